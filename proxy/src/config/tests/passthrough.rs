//! `protocol = "tls-passthrough"`: keys that such a listener and its routes may have, and keys that they may
//! not.

use super::errors::{Case, check, whole};
use super::*;
use crate::listen::Protocol;
use crate::route::model::Action;

const LISTENER: &str =
    "[[listener]]\nname = \"tls\"\naddress = \"127.0.0.1:8443\"\nprotocol = \"tls-passthrough\"\n";
const APP: &str = "[[upstream]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9000\"]\n";
const ROUTE: &str = "[[route]]\nlistener = \"tls\"\nhost = \"a.example\"\nupstream = \"app\"\n";

#[test]
fn names_lead_to_upstreams_and_the_rest_to_the_listener_s() {
    let routes = "[[route]]\nlistener = [\"tls\"]\nhost = [\"A.example\", \"*.b.example\"]\n\
        upstream = \"app\"\n[[route]]\nupstream = \"app\"\n";
    let text = format!("{LISTENER}upstream = \"rest\"\ntls.handshake_timeout = \"3s\"\n{routes}{APP}{BASE}")
        .replacen(
            "[[route]]\nupstream = \"app\"\n[[upstream]]\nname = \"app\"",
            "[[upstream]]\nname = \"rest\"",
            1,
        );
    let config = resolve_text(&text.replacen("127.0.0.1:9000", "127.0.0.1:9001", 1))
        .unwrap_or_else(|errors| panic!("{errors}"));
    let listener = &config.listeners[0];
    let handshake_timeout = Duration::from_secs(3);
    assert_eq!(listener.protocol, Protocol::TlsPassthrough { upstream: Some(0), handshake_timeout });
    assert_eq!(listener.patience(), handshake_timeout);
    assert!(listener.defer_accept, "its clients speak first");
    let found =
        |name| config.routes.find_by_name("tls", name).map(|route| (route.action.clone(), &*route.label));
    assert_eq!(found("a.example"), Some((Action::Upstream(1), "a.example")));
    assert_eq!(found("x.y.b.example"), Some((Action::Upstream(1), "a.example")));
    assert_eq!((found("b.example"), found("c.example")), (None, None));
    // Those without a listener are for HTTP, and the other way round.
    assert!(config.routes.find_by_name("web", "a.example").is_none());
    assert_eq!(&*config.routes.find("web", "a.example", "/x").expect("any").label, "/");
}

#[test]
fn defaults() {
    let config = resolve_text(&format!("{LISTENER}{ROUTE}{APP}")).unwrap_or_else(|errors| panic!("{errors}"));
    let handshake_timeout = Duration::from_secs(10);
    assert_eq!(config.listeners[0].protocol, Protocol::TlsPassthrough { upstream: None, handshake_timeout });
}

/// A file with a listener that has `lines`, and a route to it.
fn listener(lines: &str, key: &'static str, words: &'static [&'static str]) -> Case {
    whole(format!("{LISTENER}{lines} # <-\n{ROUTE}{APP}").leak(), key, words)
}

/// A file with a route that has `lines` beside its listener.
fn route(lines: &str, key: &'static str, words: &'static [&'static str]) -> Case {
    whole(format!("{LISTENER}[[route]]\nlistener = \"tls\"\n{lines} # <-\n{APP}").leak(), key, words)
}

#[test]
fn each_error_names_its_line_and_key() {
    const NO_MEANING: &str = "has no meaning for protocol = \"tls-passthrough\"";
    const OF_HTTP: &str = "has no meaning for a listener with protocol = \"tls-passthrough\"";
    let to_app = "host = \"a.example\"\nupstream = \"app\"\n";
    let cases = [
        listener(
            "upstream = \"ap\"",
            "listener.upstream",
            &["there is no upstream \"ap\"", "did you mean \"app\"?"],
        ),
        listener("limits = { headers = 3 }", "listener.limits", &[NO_MEANING]),
        listener(
            "timeouts.request_header = \"3s\"",
            "listener.timeouts.request_header",
            &[NO_MEANING, "tls.handshake_timeout"],
        ),
        listener("timeouts.request_body = \"3s\"", "listener.timeouts.request_body", &[NO_MEANING]),
        listener("timeouts.keep_alive = \"3s\"", "listener.timeouts.keep_alive", &[NO_MEANING]),
        listener("timeouts.min_rate = \"off\"", "listener.timeouts.min_rate", &[NO_MEANING]),
        listener(
            "trusted_proxies = [\"10.0.0.1\"]",
            "listener.trusted_proxies",
            &["has no effect without proxy_protocol"],
        ),
        listener("proxy_protocol = \"accept\"", "listener.proxy_protocol", &["nobody is trusted"]),
        listener("tls.handshake_timeout = \"0s\"", "listener.tls.handshake_timeout", &["must not be zero"]),
        listener(
            "tls.min_version = \"1.2\"",
            "listener.tls.min_version",
            &[NO_MEANING, "the endpoint's TLS"],
        ),
        listener("tls.client_ca = \"\"", "listener.tls.client_ca", &[NO_MEANING]),
        listener("tls.session_tickets = true", "listener.tls.session_tickets", &[NO_MEANING]),
        listener("tls.ticket_keys = []", "listener.tls.ticket_keys", &[NO_MEANING]),
        listener("tls.early_data = false", "listener.tls.early_data", &[NO_MEANING]),
        listener("tls.max_handshakes = 256", "listener.tls.max_handshakes", &[NO_MEANING]),
        listener(
            "tls.handshake_timeut = \"1s\"",
            "listener.tls.handshake_timeut",
            &["did you mean `handshake_timeout`?"],
        ),
        route(&format!("{to_app}path = \"/\""), "route.path", &[OF_HTTP, "host and upstream alone"]),
        route(&format!("{to_app}path_prefix = \"/\""), "route.path_prefix", &[OF_HTTP]),
        route("host = \"a.example\"\nredirect = { to = \"/\" }", "route.redirect", &[OF_HTTP]),
        route("host = \"a.example\"\nrespond = {}", "route.respond", &[OF_HTTP]),
        route(&format!("{to_app}request_headers = {{}}"), "route.request_headers", &[OF_HTTP]),
        route(&format!("{to_app}response_headers = {{}}"), "route.response_headers", &[OF_HTTP]),
        route(&format!("{to_app}timeout = \"1s\""), "route.timeout", &[OF_HTTP]),
        route(&format!("{to_app}body_timeout = \"1s\""), "route.body_timeout", &[OF_HTTP]),
        route(&format!("{to_app}buffer_request = \"0\""), "route.buffer_request", &[OF_HTTP]),
        route(&format!("{to_app}buffer_response = \"4KiB\""), "route.buffer_response", &[OF_HTTP]),
        route("upstream = \"app\"\nhost = \"127.0.0.1\"", "route.host", &["is an address", "RFC 6066"]),
        route("upstream = \"app\"\nhost = \"[::1]\"", "route.host", &["is an address"]),
        whole(
            format!("{LISTENER}[[route]] # <-\nlistener = \"tls\"\nupstream = \"app\"\n{APP}").leak(),
            "route.host",
            &["is missing", "the rest goes to listener.upstream"],
        ),
        whole(
            format!("{LISTENER}[[route]]\nlistener = [\"tls\",\n\"web\"] # <-\n{to_app}{BASE}").leak(),
            "route.listener",
            &["\"web\" speaks HTTP", "a route of its own for each kind"],
        ),
        whole(
            format!("{LISTENER}{ROUTE}[[route]] # <-\nlistener = \"tls\"\n{to_app}{APP}").leak(),
            "route.path_prefix",
            &["an earlier route takes \"/\" of host \"a.example\" already"],
        ),
    ];
    cases.iter().for_each(check);
}

#[test]
fn only_what_may_surprise_is_warned_of() {
    // A route of HTTP that no HTTP listener is left for is judged without this one, and so is a host with
    // gaps.
    let http = "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:80\"\n[[route]]\nupstream = \"app\"\n";
    assert_eq!(warnings(&format!("{LISTENER}{ROUTE}{http}{APP}")), [""; 0]);
    assert_eq!(warnings(&format!("{LISTENER}upstream = \"app\"\n{APP}")), [""; 0]);
    let warned =
        warnings(&format!("{LISTENER}[[upstream]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9000\"]\n"));
    assert_eq!(warned.len(), 2, "{warned:#?}");
    assert!(warned[0].contains("no route names listener \"tls\": every connection is closed"), "{warned:#?}");
    let hidden = format!(
        "{LISTENER}{ROUTE}[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:80\"\n[[route]]\n\
         upstream = \"app\"\n[[route]]\nlistener = \"web\"\nupstream = \"app\"\n{APP}"
    );
    let warned = warnings(&hidden);
    assert!(warned.len() == 1 && warned[0].contains("is never reached"), "{warned:#?}");
}
