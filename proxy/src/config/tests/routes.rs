//! `[[route]]`: its requests and actions, its errors one by one, and routes beside each other.

use super::errors::{case, check, whole};
use super::*;
use crate::route::model::{Action, Route, RoutePath};

/// One route with these lines, beside `BASE`.
fn route(lines: &str) -> Route {
    let text = format!("[[route]]\n{lines}\n{BASE}");
    let config = resolve_text(&text).unwrap_or_else(|errors| panic!("{}", errors.render(false)));
    (*config.routes.routes()[0]).clone()
}

#[test]
fn what_a_route_takes() {
    let found = route(
        "host = [\"A.example.\", \"*.b.example\", \"[::1]\"]\npath = \"/exact\"\nlistener = [\"web\"]\n\
         upstream = \"app\"",
    );
    let hosts: Vec<String> = found.hosts.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["a.example", "*.b.example", "[::1]"]);
    assert_eq!(found.path, RoutePath::Exact("/exact".into()));
    assert_eq!(found.listeners, ["web"]);
    assert_eq!(&*found.label, "a.example=/exact");
    assert_eq!(found.action, Action::Upstream(0));
    let found = route("host = \"example.com\"\nlistener = \"web\"\nupstream = \"app\"");
    assert_eq!((found.path, found.listeners), (RoutePath::Prefix("/".into()), vec!["web".to_owned()]));
    // As written where it is routed so.
    let odd = "/a%2Fb//c;d={e}~";
    assert_eq!(route(&format!("path = \"{odd}\"\nupstream = \"app\"")).path, RoutePath::Exact(odd.into()));
}

#[test]
fn what_a_route_answers() {
    let found = route("path = \"/a\"\nredirect = { to = \"https://{host}{uri}\" }");
    let Action::Redirect(redirect) = found.action else { panic!("a redirect") };
    assert_eq!(redirect.status, 308);
    let found = route("path = \"/a\"\nrespond = {}");
    let Action::Respond(respond) = found.action else { panic!("a response") };
    assert_eq!(
        (respond.status, &*respond.content_type, &*respond.body),
        (200, "text/plain; charset=utf-8", &b""[..])
    );
    let found =
        route("path = \"/a\"\nrespond = { status = 503, body = \"<p>\", content_type = \"text/html\" }");
    let Action::Respond(respond) = found.action else { panic!("a response") };
    assert_eq!((respond.status, &*respond.content_type, &*respond.body), (503, "text/html", &b"<p>"[..]));
}

#[test]
fn edits_keep_their_order_and_empty_ones_cost_nothing() {
    let found = route(
        "path = \"/a\"\nupstream = \"app\"\nrequest_headers = { set = { Host = \"b.example\", X-Z = \"1\", \
         X-A = \"2\" }, \
         add = { X-Z = [\"3\", \"4\"] }, remove = [\"Via\"] }\n\
         response_headers = { set = {}, add = {}, remove = [] }",
    );
    assert_eq!(found.response_headers, None);
    let edits = found.request_headers.expect("some");
    let mut fields = crate::http::message::Fields::new();
    fields.push(b"via", b"x");
    edits.apply(&mut fields);
    let shown: Vec<_> = fields.iter().map(|(name, value)| [name, b"=", value].concat()).collect();
    assert_eq!(shown, [b"X-Z=1", b"X-A=2", b"X-Z=3", b"X-Z=4"].map(|pair| pair.to_vec()));
    assert_eq!(edits.host(), Some("b.example"));
}

#[test]
fn each_error_names_its_line_and_key() {
    let to_app = "[[route]]\npath_prefix = \"/a\"\nupstream = \"app\"\n";
    let own =
        |line: &'static str| -> &'static str { Box::leak(format!("{to_app}{line} # <-\n").into_boxed_str()) };
    let alone = |line: &'static str| -> &'static str {
        Box::leak(format!("[[route]]\npath = \"/a\"\n{line} # <-\n").into_boxed_str())
    };
    let host = "route.host";
    let to = "route.redirect.to";
    let cases = [
        // Hosts.
        case(own("host = 7"), host, &["is an integer", "a string or a list of strings"]),
        case(own("host = []"), host, &["is empty", "at least one host"]),
        case(own("host = [\"a\", 7]"), host, &["is an integer", "only strings"]),
        case(own("host = [\"a\", \"A.\"]"), host, &["\"A.\" is listed twice"]),
        case(own("host = \"*\""), host, &["names no host", "leave `host` out to take any host"]),
        case(own("host = \"bücher.example\""), host, &["is not ASCII", "A-label", "xn--bcher-kva.example"]),
        case(own("host = \"a.example:80\""), host, &["has a port", "write \"a.example\""]),
        case(own("host = \"[::1]:80\""), host, &["has a port", "write \"[::1]\""]),
        case(own("host = \"::1\""), host, &["no IPv6 address in brackets", "write \"[::1]\""]),
        case(own("host = \"*a.example\""), host, &["not the whole first label", "write \"*.a.example\""]),
        case(own("host = \"www.*\""), host, &["not the whole first label", "write \"*.example.com\""]),
        case(own("host = \"https://a.example\""), host, &["has ':', which a host name never does"]),
        case(own("host = \"a..example\""), host, &["has an empty label"]),
        // Paths.
        case(
            "[[route]]\npath = \"/a\"\npath_prefix = \"/b\"\nupstream = \"app\"\n"
                .replace("path = \"/a\"", "path = \"/a\" # <-")
                .leak(),
            "route.path",
            &["is beside `path_prefix`", "one of both"],
        ),
        case(
            "[[route]]\npath_prefix = 1 # <-\nupstream = \"app\"\n",
            "route.path_prefix",
            &["is an integer", "\"/api\""],
        ),
        case(
            "[[route]]\npath_prefix = \"a\" # <-\nupstream = \"app\"\n",
            "route.path_prefix",
            &["does not begin with '/'", "write \"/a\""],
        ),
        case(
            "[[route]]\npath_prefix = \"/a?b\" # <-\nupstream = \"app\"\n",
            "route.path_prefix",
            &["contains '?'", "write \"/a\""],
        ),
        case(
            "[[route]]\npath = \"/a/%2E./b\" # <-\nupstream = \"app\"\n",
            "route.path",
            &["dot segment", "write \"/b\""],
        ),
        case(
            "[[route]]\npath = \"/a%2\" # <-\nupstream = \"app\"\n",
            "route.path",
            &["malformed percent-encoding"],
        ),
        case(
            "[[route]]\npath = \"/a%2fb\" # <-\nupstream = \"app\"\n",
            "route.path",
            &["never what is routed", "write \"/a%2Fb\""],
        ),
        case(
            "[[route]]\npath = \"/%61\" # <-\nupstream = \"app\"\n",
            "route.path",
            &["never what is routed", "write \"/a\""],
        ),
        case(
            "[[route]]\npath = \"/é b\" # <-\nupstream = \"app\"\n",
            "route.path",
            &["contains 'é'", "write \"/%C3%A9%20b\""],
        ),
        case(
            "[[route]]\npath = \"/a;/..;b\" # <-\nupstream = \"app\"\n",
            "route.path",
            &["has a dot segment with parameters"],
        ),
        // Listeners.
        case(
            own("listener = [\"wep\"]"),
            "route.listener",
            &["there is no listener \"wep\"", "did you mean \"web\"?"],
        ),
        case(own("listener = 1"), "route.listener", &["is an integer"]),
        // Its action.
        case(
            "[[route]] # <-\npath_prefix = \"/a\"\n",
            "route.upstream",
            &["is missing", "redirect", "respond"],
        ),
        case(alone("upstream = \"ap\""), "route.upstream", &["no upstream \"ap\"", "did you mean \"app\"?"]),
        case(alone("upstream = \"\""), "route.upstream", &["no upstream \"\""]),
        case(alone("upstream = true"), "route.upstream", &["is a boolean"]),
        case(
            own("redirect = { to = \"/b\" }"),
            "route.redirect",
            &["is beside `upstream`", "exactly one of"],
        ),
        case(own("respond = {}"), "route.respond", &["is beside `upstream`", "exactly one of"]),
        case(alone("redirect = { to = \"/b\" }\nrespond = {}"), "route.respond", &["is beside `redirect`"]),
        case(alone("redirect = \"/b\""), "route.redirect", &["is a string", "a table"]),
        case(alone("redirect = {}"), to, &["is missing", "https://{host}{uri}"]),
        case(alone("redirect = { to = 1 }"), to, &["is an integer"]),
        case(
            alone("redirect = { to = \"https://{hots}/\" }"),
            to,
            &["unknown placeholder {hots}", "did you mean {host}?"],
        ),
        case(alone("redirect = { to = \"https://{host}/{zzzzzzz}\" }"), to, &["there are {scheme}, {host}"]),
        case(
            alone("redirect = { to = \"{uri}\" }"),
            to,
            &["could lead to whatever host a client names", "begin with"],
        ),
        case(
            alone("redirect = { to = \"https://b.example{query}\" }"),
            to,
            &["has {query} where", "put a '/'"],
        ),
        case(
            alone("redirect = { to = \"https://b.example/ü\" }"),
            to,
            &["has 'ü', which a URL never does", "write %C3%BC"],
        ),
        case(
            alone("redirect = { to = \"https://b.example/\\r\\nX: y\" }"),
            to,
            &["has '\\r', which a URL never does"],
        ),
        case(
            alone("redirect = { to = \"/b\", status = 304 }"),
            "route.redirect.status",
            &["304 is no redirect", "301, 302, 303, 307 or 308"],
        ),
        case(alone("redirect = { to = \"/b\", status = 200 }"), "route.redirect.status", &["out of bounds"]),
        case(
            alone("redirect = { to = \"/b\", code = 301 }"),
            "route.redirect.code",
            &["no such key", "one of to, status"],
        ),
        case(alone("respond = { status = 101 }"), "route.respond.status", &["200 to 599"]),
        case(
            alone("respond = { status = 204, body = \"x\" }"),
            "route.respond.body",
            &["a 204 response has none"],
        ),
        case(alone("respond = { status = 200, body = 1 }"), "route.respond.body", &["is an integer"]),
        case(
            alone("respond = { content_type = \"a\\r\\nb\" }"),
            "route.respond.content_type",
            &["is no media type", "text/html"],
        ),
        // Edits.
        case(
            own("request_headers = { set = { Content-Length = \"1\" } }"),
            "route.request_headers.set.Content-Length",
            &["cannot be changed in a request: it says how the body is framed", "leave it out"],
        ),
        case(
            own("response_headers = { add = { connection = \"close\" } }"),
            "route.response_headers.add.connection",
            &["cannot be changed in a response: it belongs to one connection"],
        ),
        case(
            own("request_headers = { add = { Host = \"b\" } }"),
            "route.request_headers.add.Host",
            &["exactly once", "write set = { Host"],
        ),
        case(
            own("request_headers = { set = { Host = \"a b\" } }"),
            "route.request_headers.set.Host",
            &["not a host with an optional port"],
        ),
        case(
            own("response_headers = { set = { Host = \"a\" } }"),
            "route.response_headers.set.Host",
            &["requests only"],
        ),
        case(
            own("request_headers = { remove = [\"Host\"] }"),
            "route.request_headers.remove",
            &["\"Host\" is in a request exactly once"],
        ),
        case(
            own("request_headers = { remove = [\"x-request-id\"] }"),
            "route.request_headers.remove",
            &["ties a request to its log lines"],
        ),
        case(
            own("request_headers = { set = { \"a b\" = \"1\" } }"),
            "route.request_headers.set.a b",
            &["is not a field name"],
        ),
        case(
            own("request_headers = { set = { a = \"x\\ny\" } }"),
            "route.request_headers.set.a",
            &["has a control character"],
        ),
        case(
            own("request_headers = { set = { a = \" x\" } }"),
            "route.request_headers.set.a",
            &["has white space around it"],
        ),
        case(
            own("request_headers = { set = { a = 1 } }"),
            "route.request_headers.set.a",
            &["is an integer", "a string"],
        ),
        case(
            own("request_headers = { set = { a = \"1\", A = \"2\" } }"),
            "route.request_headers.set.A",
            &["is set already"],
        ),
        case(
            own("request_headers = { set = { a = \"1\" }, remove = [\"A\"] }"),
            "route.request_headers.remove",
            &["\"A\" is in `set` too"],
        ),
        case(own("request_headers = { sett = {} }"), "route.request_headers.sett", &["did you mean `set`?"]),
        case(
            own("request_headers = { remove = \"Via\" }"),
            "route.request_headers.remove",
            &["is a string", "a list of strings"],
        ),
        case(own("request_headers = [\"Via\"]"), "route.request_headers", &["is a list", "a table"]),
        // Numbers.
        case(own("timeout = \"0s\""), "route.timeout", &["must not be zero"]),
        case(
            own("buffer_request = \"40MiB\""),
            "route.buffer_request",
            &["half of process.buffer_budget", "at most 32MiB"],
        ),
        case(
            own("buffer_response = \"1GiB\""),
            "route.buffer_response",
            &["process.buffer_budget", "at most 64MiB"],
        ),
        // Beside each other.
        whole(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\n[[upstream]]\nname=\"u\"\n\
             endpoints=[\"127.0.0.1:2\"]\n\
             [[route]]\nupstream=\"u\"\n[[route]] # <-\nupstream=\"u\"\n",
            "route.path_prefix",
            &["an earlier route takes \"/\" of any host already", "the earlier one on line 7"],
        ),
    ];
    cases.iter().for_each(check);
}

/// Routes of two listeners; the report, empty for none.
fn beside(first: &str, second: &str) -> Vec<String> {
    let text = format!(
        "[[listener]]\nname = \"in\"\naddress = \"127.0.0.1:1\"\n[[route]]\n{first}\nupstream = \"app\"\n\
         [[route]]\n{second}\nupstream = \"app\"\n{BASE}"
    );
    let parsed = Parsed::new(
        Path::new("t"),
        text.replace("[[route]]\nupstream", "[[route]]\nhost = \"other\"\nupstream").as_bytes(),
    );
    let (_, errors, warnings) = parsed.resolve(&[], &Facts::default());
    errors.iter().chain(warnings.iter()).map(ToString::to_string).collect()
}

#[test]
fn routes_for_the_same_requests() {
    for (first, second, words) in [
        ("path = \"/a\"", "path_prefix = \"/a\"", ""),
        ("path = \"/a\"", "path = \"/a/\"", ""),
        ("path = \"/a\"", "path = \"/a\"", "`route.path`: an earlier route takes \"/a\" of any host already"),
        (
            "host = \"a\"",
            "host = [\"b\", \"A.\"]",
            "takes \"/\" of host \"a\" already; expected each host and path once on a listener; the earlier \
             one on line 4",
        ),
        ("host = \"[::1]\"", "host = \"[0:0::1]\"", "takes \"/\" of host \"[::1]\" already"),
        ("host = \"*.a\"", "host = \"a\"", ""),
        ("listener = [\"in\"]\npath = \"/a\"", "path = \"/a\"", ""),
        ("listener = [\"in\"]\npath = \"/a\"", "listener = [\"web\"]\npath = \"/a\"", ""),
        (
            "listener = [\"in\"]\npath = \"/a\"",
            "listener = [\"web\", \"in\"]\npath = \"/a\"",
            "an earlier route takes \"/a\"",
        ),
    ] {
        let found = beside(first, second);
        assert_eq!(found.len(), usize::from(!words.is_empty()), "{first}\n{second}\n{found:#?}");
        assert!(found.iter().all(|found| found.contains(words)), "{found:#?}");
    }
}

#[test]
fn routes_that_nothing_reaches_and_gaps_get_warnings() {
    let hidden = beside("listener = [\"in\", \"web\"]\npath = \"/a\"", "path = \"/a\"");
    assert_eq!(hidden.len(), 1, "{hidden:?}");
    assert!(
        hidden[0].contains("t:9:8: warning: `route.path` is never reached: on every listener"),
        "{hidden:?}"
    );
    let long = format!("path = \"/{}\"", "a".repeat(8192));
    let long = beside(&long, "path = \"/b\"");
    assert!(
        long.len() == 1 && long[0].contains("`route.path` is never reached: it is longer than"),
        "{long:?}"
    );

    let gap = beside("host = \"www.a\"\npath_prefix = \"/x\"", "host = \"*.a\"");
    assert_eq!(gap.len(), 1, "{gap:?}");
    assert!(
        gap[0].contains("t:5:8: warning: `route.host`: \"www.a\" has no route for every path"),
        "{gap:?}"
    );
    assert!(gap[0].contains("do not stand in"), "{gap:?}");
    for (first, second) in [
        ("host = \"www.a\"\npath_prefix = \"/x\"", "host = \"www.b\""),
        ("host = \"www.a\"\npath_prefix = \"/x\"", "host = \"www.a\""),
        ("host = \"a\"\npath_prefix = \"/x\"", "host = \"*.a\""),
    ] {
        assert_eq!(beside(first, second), Vec::<String>::new());
    }
    let effects = warnings(&format!(
        "[[route]]\npath = \"/a\"\nrespond = {{}}\ntimeout = \"1s\"\nrequest_headers.remove = [\"a\"]\n{BASE}"
    ));
    assert_eq!(effects.len(), 2, "{effects:?}");
    assert!(effects.iter().all(|warning| warning.contains("has no effect: no endpoint gets")), "{effects:?}");
}

#[test]
fn both_places_of_a_clash_are_shown() {
    let text = format!(
        "[[route]]\npath = \"/twice\"\nupstream = \"app\"\n[[route]]\npath = \"/twice\"\nrespond = {{}}\n\
         {BASE}"
    );
    let shown = resolve_text(&text).expect_err("a clash").render(false);
    assert!(shown.contains("the earlier one") && shown.matches("path = \"/twice\"").count() == 2, "{shown}");
    assert!(shown.contains("etc/test.toml:5:8"), "{shown}");
}

#[test]
fn ten_thousand_routes_resolve() {
    let routes: String = (0..10_000)
        .map(|number| {
            format!(
                "[[route]]\nhost = \"h{}.example\"\npath_prefix = \"/{number}/\"\nupstream = \"app\"\n",
                number % 5_000
            )
        })
        .collect();
    let config = resolve_text(&(routes + BASE)).map_err(|errors| errors.to_string()).expect("valid");
    let found = config.routes.find("web", "h1234.example", "/6234/x").expect("a route");
    assert_eq!(found.path, RoutePath::Prefix("/6234/".into()));
}
