//! HTTP/1.1 through the built binary, between curl or a raw client and origins that show the requests that
//! reached them (RFC 9110, 9112).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::client::Client;
use tests::message::{self, Framing};
use tests::origin::{Body, Connection, Origin, Response};
use tests::process::{self, Output};
use tests::sluice::Setup;
use tests::{eventually, skip};

const LIMIT: Duration = Duration::from_secs(30);

fn curl(arguments: &[&str]) -> Output {
    process::run(
        Command::new("curl").args(["--silent", "--show-error", "--max-time", "20"]).args(arguments),
        LIMIT,
    )
}

/// The values of a field in the request that an echo origin shows.
fn seen(shown: &Value, name: &str) -> Vec<String> {
    let fields = shown["fields"].as_array().expect("fields");
    let named =
        fields.iter().filter(|field| field[0].as_str().is_some_and(|found| found.eq_ignore_ascii_case(name)));
    named.map(|field| field[1].as_str().expect("a value").to_owned()).collect()
}

#[test]
fn curl_gets_posts_and_asks_for_heads() {
    if skip::without_tool("curl") {
        return;
    }
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).start();
    let got: Value = serde_json::from_str(&curl(&[&sluice.url("/a/b?c=d")]).success().text()).unwrap();
    assert_eq!((got["method"].as_str(), got["target"].as_str()), (Some("GET"), Some("/a/b?c=d")));
    let posted: Value =
        serde_json::from_str(&curl(&["--data", "x=1&y=2", &sluice.url("/form")]).success().text()).unwrap();
    assert_eq!((posted["body"].as_str(), posted["framing"].as_str()), (Some("x=1&y=2"), Some("Length(7)")));
    let chunked = ["--header", "Transfer-Encoding: chunked", "--data", "in chunks"];
    let chunked = curl(&[&chunked[..], &[&sluice.url("/chunked")]].concat()).success();
    let chunked: Value = serde_json::from_str(&chunked.text()).unwrap();
    assert_eq!((chunked["body"].as_str(), chunked["framing"].as_str()), (Some("in chunks"), Some("Chunked")));
    let head = curl(&["--head", &sluice.url("/head")]).success().text();
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-length: "), "{head}");
    let old = curl(&["--http1.0", "--write-out", "\n%{http_code}", &sluice.url("/old")]).success().text();
    assert!(old.ends_with("\n200"), "{old}");
    let removed = curl(&["--request", "DELETE", &sluice.url("/thing")]).success();
    assert_eq!(serde_json::from_str::<Value>(&removed.text()).unwrap()["method"], "DELETE");
}

#[test]
fn every_framing_comes_back_whole() {
    let origin = Origin::http(|request| match request.target.as_str() {
        "/chunks" => {
            let trailers = vec![("X-Sum".to_owned(), "abc".to_owned())];
            Response::with(Body::Chunks(
                vec![b"one ".to_vec(), b"two ".to_vec(), b"three".to_vec()],
                trailers,
            ))
            .field("Trailer", "X-Sum")
        }
        "/close" => Response::with(Body::UntilClose(b"until the end".to_vec())),
        "/204" => Response::with(Body::None).status("204 No Content"),
        "/304" => Response::with(Body::None)
            .status("304 Not Modified")
            .field("ETag", "\"v\"")
            .field("Content-Length", "1234"),
        "/empty" => Response::ok(""),
        _ => Response::ok("sized"),
    });
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    // All requests share one connection: a framing mistake would show in the next response.
    for _ in 0..2 {
        let chunks = client.get("/chunks");
        assert_eq!((chunks.text().as_str(), chunks.framing), ("one two three", Framing::Chunked));
        assert_eq!(message::field(&chunks.trailers, "x-sum"), Some("abc"), "trailers are passed on");
        assert_eq!(client.get("/close").text(), "until the end");
        let none = client.get("/204");
        assert_eq!(
            (none.status, none.field("content-length"), none.field("transfer-encoding")),
            (204, None, None)
        );
        let unmodified = client.get("/304");
        assert_eq!((unmodified.status, unmodified.field("etag")), (304, Some("\"v\"")));
        assert_eq!(client.get("/empty").framing, Framing::Length(0));
        assert_eq!(
            (client.get("/sized").text().as_str(), client.get("/sized").framing),
            ("sized", Framing::Length(5))
        );
        client.send("HEAD /sized HTTP/1.1\r\nHost: h\r\n\r\n");
        let head = client.response("HEAD");
        assert_eq!((head.status, head.field("content-length")), (200, Some("5")));
        client.send("HEAD /chunks HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(client.response("HEAD").status, 200);
    }
}

#[test]
fn request_bodies_and_trailers_reach_the_origin() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    client.send("POST /t HTTP/1.1\r\nHost: h\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n");
    // The body comes in small pieces that split the chunks' own framing.
    for piece in ["5", "\r\nhel", "lo", "\r\n1;ext=1\r", "\n!\r\n0\r\n", "X-T: v\r\n", "\r\n"] {
        client.send(piece);
        std::thread::sleep(Duration::from_millis(5));
    }
    let shown = client.response("POST").json();
    assert_eq!((shown["body"].as_str(), shown["framing"].as_str()), (Some("hello!"), Some("Chunked")));
    assert_eq!(shown["trailers"][0][1], "v");
    client.send("PUT /s HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.response("PUT").json()["framing"], "Length(3)");
    client.send("POST /z HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.response("POST").json()["length"], 0);
}

#[test]
fn http_1_0_is_answered_and_closed_unless_it_asks_to_stay() {
    let origin = Origin::http(|request| match request.target.as_str() {
        "/chunks" => Response::with(Body::Chunks(vec![b"no chunks for the old".to_vec()], Vec::new())),
        _ => Response::ok("old"),
    });
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.response("GET").text(), "old");
    assert!(client.until_closed().is_empty());
    let mut client = sluice.client();
    client.send("GET /chunks HTTP/1.0\r\nHost: h\r\n\r\n");
    let response = client.response("GET");
    assert_eq!(
        (response.field("transfer-encoding"), response.text().as_str()),
        (None, "no chunks for the old")
    );
    let mut client = sluice.client();
    client.send("GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n");
    let response = client.response("GET");
    assert_eq!(response.text(), "old");
    // The connection may stay open but need not. Sluice must do as its Connection field says.
    if response.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("keep-alive")) {
        client.send("GET / HTTP/1.0\r\nHost: h\r\n\r\n");
        assert_eq!(client.response("GET").text(), "old");
    }
    assert!(client.until_closed().is_empty());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::http(|request| {
        let slow = request.target == "/0" || request.target == "/7";
        Response::ok(request.target.clone()).after(Duration::from_millis(if slow { 100 } else { 0 }))
    });
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    let mut requests = String::new();
    for number in 0..20 {
        let body = if number % 3 == 0 { "Content-Length: 4\r\n\r\nbody" } else { "\r\n" };
        let method = if number % 3 == 0 { "POST" } else { "GET" };
        requests.push_str(&format!("{method} /{number} HTTP/1.1\r\nHost: h\r\n{body}"));
    }
    client.send(&requests);
    for number in 0..20 {
        assert_eq!(client.response("GET").text(), format!("/{number}"));
    }
    // A request that asks to close is the last that is answered.
    client.send("GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.response("GET").text(), "/a");
    assert!(client.until_closed().is_empty());
}

#[test]
fn a_client_that_half_closes_is_still_answered() {
    let origin = Origin::http(|_| Response::ok("late").after(Duration::from_millis(200)));
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    client.finish();
    assert_eq!(client.response("GET").text(), "late");
    assert!(client.until_closed().is_empty());
}

#[test]
fn fields_are_forwarded_as_a_proxy_must() {
    let origin = Origin::http(|request| {
        let shown: Vec<String> =
            request.fields.iter().map(|(name, value)| format!("{}: {value}", name.to_lowercase())).collect();
        let mut response = Response::ok(shown.join("\n"));
        for (name, value) in
            [("Connection", "X-Hop, keep-alive"), ("X-Hop", "1"), ("Keep-Alive", "timeout=5"), ("X-End", "2")]
        {
            response = response.field(name, value);
        }
        response.field("Set-Cookie", "a=1").field("Set-Cookie", "b=2")
    });
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    client.send(
        "GET /x HTTP/1.1\r\nHost: site.example:8080\r\nConnection: keep-alive, X-Secret\r\nX-Secret: s\r\n\
         Keep-Alive: 5\r\nTE: trailers\r\n\
         Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nX-Forwarded-For: 6.6.6.6\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n\
         Forwarded: for=6.6.6.6\r\nAccept: a\r\nAccept: b\r\nX-Request-Id: my-id-1\r\n\r\n",
    );
    let response = client.response("GET");
    let text = response.text();
    let lines: Vec<&str> = text.lines().collect();
    let value = |name: &str| -> Vec<&str> {
        lines.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
    };
    for hop in ["x-secret", "keep-alive", "proxy-connection", "upgrade"] {
        assert!(value(hop).is_empty(), "{hop} is hop-by-hop: {text}");
    }
    assert_eq!(value("host"), ["site.example:8080"]);
    assert_eq!(value("accept"), ["a", "b"]);
    assert_eq!(value("x-forwarded-for"), ["127.0.0.1"], "an untrusted client's word is not believed");
    assert_eq!(value("x-forwarded-proto"), ["http"]);
    assert_eq!(value("x-forwarded-host"), ["site.example:8080"]);
    assert!(value("x-request-id").len() == 1 && value("x-request-id") != ["my-id-1"], "{text}");
    assert_eq!(response.field("x-request-id"), Some(value("x-request-id")[0]));
    assert!(!text.contains("6.6.6.6") && !text.contains("evil"), "{text}");
    assert!(value("via").len() == 1 && value("via")[0].starts_with("1.1 "), "{text}");
    assert!(response.field("x-hop").is_none() && response.field("keep-alive").is_none(), "{response:?}");
    assert_eq!(response.field("x-end"), Some("2"));
    assert_eq!(message::values(&response.fields, "set-cookie"), ["a=1", "b=2"]);
}

#[test]
fn a_request_id_is_made_where_none_came() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    let id = |response: &tests::client::Response| {
        let sent = seen(&response.json(), "x-request-id");
        assert_eq!(sent.iter().map(String::as_str).next(), response.field("x-request-id"), "{response:?}");
        assert_eq!((sent.len(), sent[0].len()), (1, 32), "{response:?}");
        u128::from_str_radix(&sent[0], 16).expect("hexadecimal")
    };
    let (first, second) = (id(&client.get("/")), id(&client.get("/")));
    // They were a number of the worker and a count.
    let differs = (first ^ second).count_ones();
    assert!(differs > 16, "{first:032x} {second:032x}");
}

#[test]
fn the_request_id_of_a_client_is_kept_from_those_that_are_trusted() {
    let origin = Origin::http(|_| Response::ok("").field("X-Request-Id", "of-the-endpoint"));
    let routes = "\n[[route]]\npath_prefix = \"/own\"\nrespond = { status = 200 }\n\
        [[route]]\npath = \"/none\"\nresponse_headers = { remove = [\"X-Request-Id\"] }\n\
        upstream = \"app\"\n";
    for (lines, is_kept) in
        [("", false), ("request_id = \"keep\"", true), ("trusted_proxies = [\"127.0.0.1\"]", true)]
    {
        let limits = ("listener.limits", "body_bytes = \"10\"");
        let setup = Setup::to(origin.address()).with("listener", lines).with(limits.0, limits.1);
        let sluice = setup.append(routes).start();
        for (start, length) in [("GET /", 0), ("GET /own", 0), ("POST /", 11), ("OPTIONS /", 0)] {
            let mut client = sluice.client();
            client.send(format!(
                "{start} HTTP/1.1\r\nHost: h\r\nX-Request-Id: mine\r\nMax-Forwards: 0\r\n\
                 Content-Length: {length}\r\n\r\n"
            ));
            let response = client.response("GET");
            let ids = message::values(&response.fields, "x-request-id");
            assert_eq!((ids.len(), ids[0] == "mine"), (1, is_kept), "{lines}, {start}: {response:?}");
            assert!(is_kept || ids[0].len() == 32, "{response:?}");
        }
        let response = sluice.client().get("/none");
        assert_eq!((response.status, response.field("x-request-id")), (200, None));
        let refused = sluice.client().get("/..;/");
        assert_eq!((refused.status, refused.field("x-request-id").map(str::len)), (400, Some(32)));
    }
}

#[test]
fn a_trusted_proxy_is_believed() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).with("listener", "trusted_proxies = [\"127.0.0.0/8\"]").start();
    let mut client = sluice.client();
    client.send(
        "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: https\r\n\r\n",
    );
    let shown = client.response("GET").json();
    let chain = seen(&shown, "x-forwarded-for").join(", ");
    assert!(chain.starts_with("198.51.100.7") && chain.contains("127.0.0.1"), "{chain}");
    assert_eq!(seen(&shown, "x-forwarded-proto"), ["https"]);
}

#[test]
fn the_path_that_is_routed_is_the_path_that_is_forwarded() {
    let origin = Origin::echo();
    let routes = "\n[[route]]\npath_prefix = \"/open\"\nupstream = \"app\"\n";
    let sluice = Setup::to(origin.address()).without_route().append(routes).start();
    let mut client = sluice.client();
    for (sent, forwarded) in [
        ("/open/a", "/open/a"),
        ("/open", "/open"),
        ("/open/./a/../b", "/open/b"),
        ("/closed/%2e%2e/open/x?q=/../y", "/open/x?q=/../y"),
        ("/open//a", "/open//a"),
        ("http://other.example/open/abs", "/open/abs"),
    ] {
        let response = client.get(sent);
        assert_eq!(response.status, 200, "{sent}");
        assert_eq!(response.json()["target"], forwarded, "{sent}");
    }
    for sent in ["/", "/opening", "/open/../closed", "/open/%2e%2E/closed", "/Open"] {
        assert_eq!(client.get(sent).status, 404, "{sent}");
    }
}

/// Each of these reached an origin that decodes them, past a route that takes `/admin`.
#[test]
fn a_path_that_leads_out_of_its_prefix_once_decoded_is_refused() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).start();
    for sent in [
        "/x/..%2fadmin",
        "/x%2f..%2fadmin",
        "/x%2F%2e%2E/admin",
        "/x/..%5cadmin",
        "/x%5c..%5Cadmin",
        "/x/..%3b/admin",
        "/x/..;/admin",
        "/x/..;a=b%2fadmin",
        "http://site.example/x/..%2fadmin",
    ] {
        let mut client = sluice.client();
        let response = client.get(sent);
        assert_eq!(response.status, 400, "{sent}");
        assert!(response.text().contains("ambiguous_path"), "{sent}: {response:?}");
    }
    let refused = sluice.metrics().labelled("sluice_requests_refused_total", "reason", "ambiguous_path");
    assert!((refused - 9.0).abs() < f64::EPSILON, "{refused}");
    assert_eq!(sluice.client().get("/a%2fb//c").json()["target"], "/a%2Fb//c");
}

#[test]
fn slashes_are_merged_or_rejected_where_a_listener_says_so() {
    let origin = Origin::echo();
    let routes = "\n[[route]]\npath_prefix = \"/admin\"\nrespond = { status = 403 }\n";
    let setup = |lines| Setup::to(origin.address()).append(routes).with("listener", lines).start();
    let merging = setup("path_slashes = \"merge\"");
    let mut client = merging.client();
    for (sent, status) in [("//admin", 403), ("/x//..///admin/a", 403), ("/%2fadmin", 200)] {
        assert_eq!(client.get(sent).status, status, "{sent}");
    }
    assert_eq!(client.get("//a///b//?c=//").json()["target"], "/a/b/?c=//");
    let rejecting = setup("path_slashes = \"reject\"\npath_encoded_slashes = \"reject\"");
    for sent in ["//admin", "/a//b", "/%2fadmin", "/a%5Cb"] {
        assert_eq!(rejecting.client().get(sent).status, 400, "{sent}");
    }
    assert_eq!(rejecting.client().get("/a/?b=//%2f").status, 200);
}

#[test]
fn no_field_of_a_client_is_taken_for_another() {
    let origin = Origin::echo();
    let sent = "GET / HTTP/1.1\r\nHost: h\r\nProxy: evil\r\nX_Forwarded_For: 6.6.6.6\r\nX_User: root\r\n\
        X-User: me\r\nX_Solo: 1\r\nX_Set: 2\r\nTransfer_Encoding: chunked\r\n\r\n";
    let route = "request_headers = { set = { X-Set = \"ours\" } }";
    for (lines, solo, user, forwarded) in
        [("", 1, 0, 0), ("underscores = \"drop\"", 0, 0, 0), ("underscores = \"keep\"", 1, 1, 1)]
    {
        let sluice = Setup::to(origin.address()).with("listener", lines).with("route", route).start();
        let mut client = sluice.client();
        client.send(sent);
        let shown = client.response("GET").json();
        let count = |name| seen(&shown, name).len();
        assert_eq!((count("proxy"), count("x_set"), seen(&shown, "x-set")), (0, 0, vec!["ours".to_owned()]));
        assert_eq!((count("x_solo"), count("x_user"), count("x_forwarded_for")), (solo, user, forwarded));
        assert_eq!((seen(&shown, "x-user"), count("transfer_encoding")), (vec!["me".to_owned()], user));
    }
}

#[test]
fn the_longest_prefix_and_the_host_decide() {
    let (first, second) = (Origin::http(|_| Response::ok("first")), Origin::http(|_| Response::ok("second")));
    let tables = format!(
        "\n[[route]]\npath_prefix = \"/\"\nupstream = \"app\"\n[[route]]\npath_prefix = \"/api/v2\"\n\
         upstream = \"second\"\n\
         \n[[upstream]]\nname = \"second\"\nendpoints = [\"{}\"]\n",
        second.address()
    );
    let sluice = Setup::to(first.address()).without_route().append(&tables).start();
    let mut client = sluice.client();
    for (target, body) in [
        ("/", "first"),
        ("/api", "first"),
        ("/api/v2", "second"),
        ("/api/v2/x", "second"),
        ("/api/v22", "first"),
    ] {
        assert_eq!(client.get(target).text(), body, "{target}");
    }
}

#[test]
fn requests_take_the_endpoints_in_turn() {
    let origins = [Origin::http(|_| Response::ok("a")), Origin::http(|_| Response::ok("b"))];
    let sluice = Setup::to_all(&[origins[0].address(), origins[1].address()]).start();
    let mut client = sluice.client();
    for _ in 0..40 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!((origins[0].requests(), origins[1].requests()), (20, 20));
}

#[test]
fn a_dead_endpoint_is_passed_over() {
    let origin = Origin::http(|_| Response::ok("alive"));
    let dead = tests::ports::Port::lease();
    let sluice = Setup::to_all(&[dead.loopback(), origin.address()]).start();
    let mut client = sluice.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").text(), "alive");
    }
    assert!(sluice.metrics().sum("sluice_upstream_connect_failures_total") >= 1.0);
}

#[test]
fn expectations_are_met() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    client.send("POST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.try_any_response("POST").unwrap().status, 100);
    client.send("hello");
    let response = client.response("POST");
    assert_eq!((response.status, response.json()["body"].as_str()), (200, Some("hello")));
    // The body may also come without waiting.
    client.send("POST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello");
    assert_eq!(client.response("POST").json()["body"], "hello");
    client.send("POST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: coffee\r\n\r\nhello");
    assert_eq!(client.response("POST").status, 417);
}

#[test]
fn interim_responses_are_passed_on() {
    let origin = Origin::scripted(
        "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\
         ok",
    );
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let hints = client.try_any_response("GET").unwrap();
    assert_eq!((hints.status, hints.field("link")), (103, Some("</style.css>")));
    assert_eq!(client.response("GET").text(), "ok");
}

#[test]
fn an_early_response_arrives_while_the_client_still_sends() {
    let refuse = |connection: &mut Connection| {
        connection.read_head()?;
        connection.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")?;
        connection.drain();
        Ok(())
    };
    let origin = Origin::raw(refuse);
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10000000\r\n\r\nfirst bytes");
    let response = client.response("POST");
    assert_eq!((response.status, response.text().as_str()), (403, "no"));
    drop(client);
    assert_eq!(sluice.client().get("/again").status, 403);
}

#[test]
fn bodies_run_both_ways_at_once() {
    // The origin sends each byte back as it comes. The client sends its next byte only after that.
    let origin = Origin::raw(|connection| {
        connection.read_head()?;
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")?;
        let mut byte = [0];
        for _ in 0..10 {
            connection.read_exact(&mut byte)?;
            connection.write_all(&byte)?;
        }
        connection.drain();
        Ok(())
    });
    // A body of known length would be read whole first.
    let sluice = Setup::to(origin.address()).with("route", "buffer_request = \"0\"").start();
    let mut client = sluice.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n");
    let mut socket = client.socket().try_clone().unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("the response head comes before the body was sent");
        head.push(byte[0]);
    }
    for sent in b"0123456789" {
        client.send([*sent]);
        socket.read_exact(&mut byte).expect("the byte comes back");
        assert_eq!(byte[0], *sent);
    }
}

#[test]
fn upstream_connections_are_reused() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).start();
    for round in 1..=50 {
        // Each request has a new client connection; the upstream connection stays.
        assert_eq!(sluice.get("/").json()["place"], round);
    }
    assert_eq!(origin.connections(), 1);
    let metrics = sluice.metrics();
    assert_eq!(
        (metrics.sum("sluice_upstream_connects_total"), metrics.sum("sluice_upstream_reuses_total")),
        (1.0, 49.0)
    );
}

#[test]
fn idle_upstream_connections_end_in_time() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).with("upstream.pool", "idle_timeout = \"300ms\"").start();
    assert_eq!(sluice.get("/").status, 200);
    assert_eq!(origin.connections(), 1);
    eventually(Duration::from_secs(5), "the idle connection is closed", || {
        (origin.open() == 0).then_some(())
    });
    let closed =
        sluice.metrics().labelled("sluice_upstream_connections_closed_total", "reason", "idle_timeout");
    assert!((closed - 1.0).abs() < f64::EPSILON, "{closed}");
}

#[test]
fn a_connection_that_the_origin_closed_is_replaced_unnoticed() {
    // After an answer the origin closes unannounced: at once, a moment later, or after the next request has
    // come. After about half of the answers it does not close.
    let count = AtomicU64::new(0);
    let origin = Origin::raw(move |connection| {
        loop {
            connection.read_head()?;
            let number = count.fetch_add(1, Ordering::SeqCst);
            connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            match number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61 {
                0 | 1 => break,
                2 => {
                    std::thread::sleep(Duration::from_micros(number * 13 % 1500));
                    break;
                }
                3 => {
                    let _ = connection.read_head();
                    break;
                }
                _ => {}
            }
        }
        connection.close();
        Ok(())
    });
    let sluice = Setup::to(origin.address()).start();
    let address = sluice.address();
    std::thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| {
                let mut client = Client::connect(address);
                for number in 0..200 {
                    let response = client.get("/");
                    assert_eq!(response.status, 200, "request {number}: {response:?}");
                }
            });
        }
    });
    assert!(origin.connections() > 100, "the origin must have closed many: {}", origin.connections());
}

#[test]
fn a_request_that_is_not_idempotent_is_not_sent_twice() {
    // The origin takes the whole request and closes, so it may have acted on the request.
    let origin = Origin::raw(|connection| {
        connection.read_head()?;
        connection.close();
        Ok(())
    });
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    client.send("POST /pay HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n1");
    assert_eq!(client.response("POST").status, 502);
    assert_eq!(origin.recorded_text().matches("POST /pay").count(), 1);
}

#[test]
fn a_connection_takes_as_many_requests_as_it_may() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).with("listener.limits", "requests_per_connection = 3").start();
    let mut client = sluice.client();
    for _ in 0..2 {
        assert_eq!(client.get("/").field("connection"), None);
    }
    assert_eq!(client.get("/").field("connection").map(str::to_lowercase).as_deref(), Some("close"));
    assert!(client.until_closed().is_empty());
    let closed = sluice.metrics().labelled("sluice_connections_closed_total", "reason", "request_limit");
    assert!((closed - 1.0).abs() < f64::EPSILON, "{closed}");
}

#[test]
fn clients_that_leave_are_cleaned_up_after() {
    let origin = Origin::http(|_| Response::with(Body::Pattern(100 << 20)));
    let sluice = Setup::to(origin.address()).start();
    let before = sluice.holdings();
    for round in 0..20 {
        let mut client = sluice.client();
        client.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n");
        std::thread::sleep(Duration::from_millis(5 * (round % 4)));
        if round % 2 == 0 { client.reset() } else { drop(client) }
    }
    sluice.expect_back_to(before);
    eventually(LIMIT, "the origin is let go", || (origin.open() == 0).then_some(()));
}

#[test]
fn metrics_count_what_happened() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).start();
    let before = sluice.metrics();
    let mut client = sluice.client();
    for _ in 0..10 {
        client.get("/");
    }
    client.send("GET / HTTP/1.1\r\nHost: a b\r\n\r\n");
    client.response("GET");
    drop(client);
    let start = Instant::now();
    while sluice.metrics().sum("sluice_connections_open") > 0.0 {
        assert!(start.elapsed() < LIMIT);
    }
    let after = sluice.metrics();
    let grown = |name: &str| after.sum(name) - before.sum(name);
    assert_eq!(
        (grown("sluice_connections_accepted_total"), grown("sluice_responses_2xx_total")),
        (1.0, 10.0)
    );
    assert!((grown("sluice_responses_4xx_total") - 1.0).abs() < f64::EPSILON);
    assert!(
        (after.labelled("sluice_requests_refused_total", "reason", "bad_host") - 1.0).abs() < f64::EPSILON
    );
    assert!(
        grown("sluice_downstream_sent_bytes_total") > 1000.0
            && grown("sluice_downstream_received_bytes_total") > 100.0
    );
}
