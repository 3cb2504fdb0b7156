//! Routes through the built binary: which request goes where, answers without an upstream, edits and weights.
//! All of them agree with how paths are normalised.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use serde_json::Value;
use tests::client::{Client, Response};
use tests::origin::{self, Origin};
use tests::ports::Port;
use tests::sluice::{Setup, Sluice};

/// A route that responds with its name.
fn respond(name: &str, what: &str) -> String {
    format!("\n[[route]]\n{what}\nrespond = {{ body = \"{name}\" }}\n")
}

fn get(client: &mut Client, host: &str, target: &str) -> Response {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    client.response("GET")
}

fn start(tables: &str) -> (Origin, Sluice) {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).without_route().append(tables).start();
    (origin, sluice)
}

fn values<'v>(shown: &'v Value, name: &str) -> Vec<&'v str> {
    let fields = shown["fields"].as_array().unwrap().iter();
    fields
        .filter(|field| field[0].as_str().unwrap().eq_ignore_ascii_case(name))
        .map(|field| field[1].as_str().unwrap())
        .collect()
}

#[test]
fn the_most_specific_host_and_path_take_a_request() {
    let tables = [
        respond("any", ""),
        respond("any-x", "path = \"/x\""),
        respond("exact", "host = [\"example.com\", \"[::1]\"]"),
        respond("exact-api", "host = \"example.com\"\npath_prefix = \"/api\""),
        respond("exact-one", "host = \"example.com\"\npath = \"/api/one\""),
        respond("wild", "host = \"*.example.com\""),
        respond("wilder", "host = \"*.b.example.com\"\npath_prefix = \"/only\""),
    ];
    let (_origin, sluice) = start(&tables.concat());
    let mut client = sluice.client();
    for (host, target, name) in [
        ("other", "/", "any"),
        ("other", "/x", "any-x"),
        ("other", "/x/", "any"),
        ("other", "/a/../x", "any-x"),
        ("example.com", "/x", "exact"),
        ("EXAMPLE.com:8080", "/", "exact"),
        ("example.com.", "/", "exact"),
        ("[0:0:0:0:0:0:0:1]:80", "/", "exact"),
        ("example.com", "/api/", "exact-api"),
        ("example.com", "/apis", "exact"),
        ("example.com", "/api/one", "exact-one"),
        ("example.com", "/api/%6fne", "exact-one"),
        ("example.com", "/api//one", "exact-api"),
        ("example.com", "/api%2Fone", "exact"),
        ("www.example.com", "/api", "wild"),
        ("b.example.com", "/only", "wild"),
        ("a.b.example.com", "/only/x", "wilder"),
        // If the target is absolute, its host counts, not the Host field.
        ("other", "http://example.com/api/one", "exact-one"),
    ] {
        let response = get(&mut client, host, target);
        assert_eq!((response.status, response.text().as_str()), (200, name), "{host} {target}");
    }
    assert_eq!(get(&mut client, "a.b.example.com", "/").status, 404, "less specific hosts do not stand in");
    assert_eq!(sluice.metrics().sum("sluice_connections_accepted_total"), 1.0, "all on one connection");
}

#[test]
fn routes_of_one_listener_only() {
    let other = Port::lease();
    let origin = Origin::echo();
    let tables = [
        format!("\n[[listener]]\nname = \"inside\"\naddress = \"{}\"\n", other.loopback()),
        respond("all", ""),
        respond("inside", "listener = [\"inside\"]"),
        respond("main", "listener = \"main\"\npath_prefix = \"/m\""),
    ];
    let sluice = Setup::to(origin.address()).without_route().append(&tables.concat()).start();
    let (mut main, mut inside) = (sluice.client(), Client::connect(other.loopback()));
    assert_eq!((main.get("/").text(), inside.get("/").text()), ("all".to_owned(), "inside".to_owned()));
    assert_eq!((main.get("/m").text(), inside.get("/m").text()), ("main".to_owned(), "inside".to_owned()));
}

#[test]
fn redirects_lead_where_they_say_and_nowhere_else() {
    let redirect =
        |path: &str, to: &str| format!("\n[[route]]\npath_prefix = \"{path}\"\nredirect = {{ {to} }}\n");
    let tables = [
        redirect("/", "to = \"https://{host}{uri}\""),
        redirect("/moved", "to = \"{scheme}://{authority}/new{path}?was={uri}\", status = 302"),
        redirect("/query", "to = \"https://b.example/?{query}\", status = 307"),
    ];
    let (_origin, sluice) = start(&tables.concat());
    let mut client = sluice.client();
    for (host, target, status, location) in [
        ("A.example:8080", "/x?y=1", 308, "https://a.example/x?y=1"),
        ("a.example", "/a/%2e%2e//b.example/", 308, "https://a.example//b.example/"),
        ("a.example", "//b.example/", 308, "https://a.example//b.example/"),
        ("a.example", "/%0d%0aSet-Cookie:x", 308, "https://a.example/%0D%0ASet-Cookie:x"),
        ("[::1]:81", "/", 308, "https://[::1]/"),
        (
            "a.example:81",
            "/moved/x?a=1&b=2",
            302,
            "http://a.example:81/new/moved/x?was=/moved/x%3Fa%3D1%26b%3D2",
        ),
        ("a.example", "/query?a=1", 307, "https://b.example/?a=1"),
    ] {
        let response = get(&mut client, host, target);
        assert_eq!((response.status, response.field("location")), (status, Some(location)), "{target}");
        assert!(
            response.field("x-request-id").is_some()
                && response.field("date").is_some()
                && response.field("connection").is_none()
        );
    }
    client.send("HEAD / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let head = client.response("HEAD");
    assert_eq!(
        (head.status, head.field("location"), head.field("content-length")),
        (308, Some("https://a.example/"), Some("23"))
    );
    // A short body is read to its end, so that the connection can stay open.
    client.send("POST /p HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.response("POST").field("location"), Some("https://a.example/p"));
    client.send(
        "POST /p HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    );
    assert_eq!(client.response("POST").status, 308);
    client.send("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert_eq!(client.response("OPTIONS").field("location"), Some("https://a.example/"));
    // Without a host there is no target to redirect to.
    client.send("GET / HTTP/1.0\r\n\r\n");
    let response = client.response("GET");
    assert_eq!((response.status, response.text().as_str()), (400, "400 Bad Request: bad_host\n"));
}

#[test]
fn bodies_that_are_not_worth_reading_end_the_connection() {
    let (_origin, sluice) = start(&respond("ok", ""));
    let mut client = sluice.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");
    let response = client.response("POST");
    assert_eq!((response.status, response.field("connection")), (200, Some("close")));
    client.until_closed();
    // The client waits for a 100 before it sends the body. It gets the answer instead.
    let mut client = sluice.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    let response = client.try_any_response("POST").unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    client.until_closed();
    // Sluice stops reading a chunked body at a bound.
    let mut client = sluice.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    for _ in 0..4 {
        let _ = client.try_send(&chunk);
    }
    assert_eq!(client.response("POST").field("connection"), Some("close"));
}

#[test]
fn fixed_responses_have_their_status_type_and_length() {
    let tables = "\n[[route]]\npath = \"/robots.txt\"\nrespond = { body = \"User-agent: *\\n\" }\n\
         \n[[route]]\npath = \"/page\"\nrespond = { status = 503, body = \"<p>\", content_type = \
         \"text/html\" }\n\
         \n[[route]]\npath = \"/none\"\nrespond = { status = 204 }\n\
         \n[[route]]\npath = \"/same\"\nrespond = { status = 304 }\n\
         response_headers.set.ETag = \"\\\"v\\\"\"\n\
         \n[[route]]\npath = \"/reset\"\nrespond = { status = 205 }\n";
    let (_origin, sluice) = start(tables);
    let mut client = sluice.client();
    for _ in 0..2 {
        let robots = client.get("/robots.txt");
        assert_eq!((robots.status, robots.field("content-type")), (200, Some("text/plain; charset=utf-8")));
        assert_eq!((robots.text().as_str(), robots.field("content-length")), ("User-agent: *\n", Some("14")));
        let page = client.get("/page");
        assert_eq!(
            (page.status, page.field("content-type"), page.text().as_str()),
            (503, Some("text/html"), "<p>")
        );
        let none = client.get("/none");
        assert_eq!(
            (none.status, none.field("content-length"), none.field("content-type")),
            (204, None, None)
        );
        let same = client.get("/same");
        assert_eq!(
            (same.status, same.field("content-length"), same.field("etag")),
            (304, None, Some("\"v\""))
        );
        let reset = client.get("/reset");
        assert_eq!((reset.status, reset.field("content-length")), (205, Some("0")));
        client.send("HEAD /page HTTP/1.1\r\nHost: h\r\n\r\n");
        let head = client.response("HEAD");
        assert_eq!((head.status, head.field("content-length"), head.text().as_str()), (503, Some("3"), ""));
    }
    assert_eq!(client.get("/other").status, 404);
    let metrics = sluice.metrics();
    assert_eq!(metrics.sum("sluice_connections_accepted_total"), 1.0, "the connection was kept alive");
}

#[test]
fn fields_are_edited_on_the_way() {
    let echo = Origin::echo();
    let origin = Origin::http(|_| {
        origin::Response::ok("ok").field("Server", "origin/1").field("X-Old", "1").field("X-Old", "2")
    });
    let closed = Port::lease();
    let edits = "request_headers = { set = { Host = \"app.internal:81\", X-Tenant = \"blue\" }, add = { \
        Accept = \"text/plain\" }, remove = [\"via\", \"X-Forwarded-For\", \"cookie\"] }\n\
                 response_headers = { set = { Server = \"edge\", Strict-Transport-Security = \"max-age=1\" \
                 }, add = { Set-Cookie = [\"a=1\", \"b=2\"] }, remove = [\"x-old\", \"Via\"] }\n";
    let tables = format!(
        "\n[[route]]\nupstream = \"app\"\n{edits}\n[[route]]\npath = \"/echo\"\nupstream = \"echo\"\n\
         {edits}\n[[route]]\npath = \"/down\"\nupstream = \"down\"\n{edits}\n[[route]]\npath = \"/to\"\n\
         redirect = {{ to = \"/\" }}\nresponse_headers.set = {{ Cache-Control = \"no-store\", Content-Type = \
         \"text/x\" }}\n\
         [[upstream]]\nname = \"down\"\nendpoints = [\"{}\"]\n[[upstream]]\nname = \"echo\"\n\
         endpoints = [\"{}\"]\n",
        closed.loopback(),
        echo.address()
    );
    let sluice = Setup::to(origin.address()).without_route().append(&tables).start();
    let mut client = sluice.client();
    client.send(
        "GET /echo HTTP/1.1\r\nHost: example.com\r\nX-TENANT: red\r\nAccept: */*\r\nCookie: a\r\n\
         Cookie: b\r\nx-tenant: green\r\n\r\n",
    );
    let shown = client.response("GET").json();
    assert_eq!(values(&shown, "host"), ["app.internal:81"]);
    assert_eq!(values(&shown, "x-tenant"), ["blue"]);
    assert_eq!(values(&shown, "accept"), ["*/*", "text/plain"]);
    assert_eq!(values(&shown, "x-forwarded-host"), ["example.com"]);
    assert_eq!(values(&shown, "x-forwarded-proto"), ["http"]);
    for gone in ["via", "x-forwarded-for", "cookie"] {
        assert_eq!(values(&shown, gone), Vec::<&str>::new(), "{gone}");
    }
    let check = |response: &Response| {
        let all = |name: &str| -> Vec<String> {
            let named = response.fields.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
            named.map(|(_, value)| value.clone()).collect()
        };
        assert_eq!(
            (all("server"), all("strict-transport-security")),
            (vec!["edge".to_owned()], vec!["max-age=1".to_owned()])
        );
        assert_eq!(all("set-cookie"), ["a=1", "b=2"]);
        assert!(all("x-old").is_empty() && all("via").is_empty());
    };
    let response = client.get("/plain");
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    check(&response);
    // Sluice's own error responses on this route are edited too.
    let down = client.get("/down");
    assert_eq!(down.status, 502);
    check(&down);
    let redirect = client.get("/to");
    assert_eq!(
        (redirect.status, redirect.field("cache-control"), redirect.field("content-type")),
        (308, Some("no-store"), Some("text/x"))
    );
}

#[test]
fn weights_share_out_requests_exactly() {
    let origins = [
        Origin::http(|_| origin::Response::ok("a")),
        Origin::http(|_| origin::Response::ok("b")),
        Origin::echo(),
    ];
    let [a, b, c] = [0, 1, 2].map(|index| origins[index].address());
    let tables = format!(
        "\n[[route]]\nupstream = \"shared\"\n[[upstream]]\nname = \"shared\"\n\
         endpoints = [{{ address = \"{a}\", weight = 3 }}, \"{b}\", {{ address = \"{c}\", weight = 0 }}]\n"
    );
    let sluice = Setup::to(a).without_route().append(&tables).start();
    let mut client = sluice.client();
    for _ in 0..40 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(origins.each_ref().map(Origin::requests), [30, 10, 0]);
}

#[test]
fn a_retry_takes_another_endpoint_whatever_its_weight() {
    let dead = Port::lease();
    let alive = Origin::http(|_| origin::Response::ok("alive"));
    let endpoints =
        format!("[{{ address = \"{}\", weight = 100 }}, \"{}\"]", dead.loopback(), alive.address());
    let tables =
        format!("\n[[route]]\nupstream = \"two\"\n[[upstream]]\nname = \"two\"\nendpoints = {endpoints}\n");
    let sluice = Setup::to(alive.address()).without_route().append(&tables).start();
    let mut client = sluice.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").text(), "alive");
    }
    // From its first failure on it comes last.
    tests::eventually(Duration::from_secs(5), "the failures are counted", || {
        (1.0..=6.0).contains(&sluice.metrics().sum("sluice_upstream_connect_failures_total")).then_some(())
    });
}
