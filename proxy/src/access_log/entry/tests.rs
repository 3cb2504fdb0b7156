//! Tests of `access_log::entry`.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::http::message::{BodyLength, Fields, Method};

fn head(method: &str, authority: &str, target: &str) -> RequestHead {
    RequestHead {
        method: Method::from_token(method),
        version: Version::Http11,
        authority: authority.into(),
        path_and_query: target.into(),
        fields: Fields::new(),
        body: BodyLength::None,
    }
}

fn record(request: Option<&RequestHead>) -> Entry<'_> {
    Entry {
        unix_micros: 1_709_251_199_000_042,
        request_id: "abc",
        client: "[::ffff:192.0.2.1]:4711".parse().expect("address"),
        listener: "main",
        protocol: None,
        request,
        tls: None,
        server_name: None,
        status: Some(200),
        refused: None,
        closed: Some(CloseReason::NotKeptAlive),
        received: 100,
        sent: 200,
        route: Some("/a"),
        upstream: Some("app"),
        endpoint: Some("10.0.0.1:80"),
        attempts: 2,
        upstream_reused: Some(true),
        connection_request: 3,
        phases: Phases { head: Some(1), route: Some(2), total: 3, ..Phases::default() },
    }
}

fn read(record: &Entry<'_>, with_query: bool) -> Value {
    let mut out = Vec::new();
    record.write(&mut out, with_query);
    assert_eq!(out.pop(), Some(b'\n'));
    assert!(!out.contains(&b'\n'));
    serde_json::from_slice(&out).expect("JSON")
}

#[test]
fn every_field_has_its_key() {
    let request = head("GET", "example.com", "/a/b?token=secret");
    let expected = json!({
        "time": "2024-02-29T23:59:59.000042Z", "request_id": "abc", "client": "192.0.2.1:4711",
        "listener": "main", "protocol": "HTTP/1.1", "tls": null,
        "method": "GET", "host": "example.com", "path": "/a/b", "status": 200, "refused": null,
        "closed": "not_kept_alive", "bytes_received": 100, "bytes_sent": 200,
        "route": "/a", "upstream": "app", "endpoint": "10.0.0.1:80", "attempts": 2,
        "upstream_reused": true, "connection_request": 3,
        "micros": {"handshake": null, "accept": null, "head": 1, "route": 2, "pool": null,
                   "connect": null, "first_byte": null, "last_byte": null, "total": 3},
    });
    assert_eq!(read(&record(Some(&request)), false), expected);
    assert_eq!(read(&record(Some(&request)), true)["path"], "/a/b?token=secret");
}

#[test]
fn one_without_a_head_has_the_same_keys() {
    let refused = Entry {
        request_id: "",
        refused: Some(RefusalReason::Malformed),
        protocol: Some("tcp"),
        ..record(None)
    };
    let read = read(&refused, true);
    assert_eq!(
        (&read["method"], &read["path"], &read["request_id"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!((&read["refused"], &read["protocol"]), (&json!("malformed"), &json!("tcp")));
    assert_eq!(read.as_object().expect("object").len(), 21);
}

#[test]
fn tls_is_told_with_a_name_of_any_characters() {
    for name in [None, Some("a.example"), Some("\"\\\n\u{85}é")] {
        let agreed = Agreed::sample(rustls::CipherSuite::TLS13_AES_128_GCM_SHA256, true, name);
        let read = read(&Entry { tls: Some(&agreed), ..record(None) }, false);
        let cipher = "TLS_AES_128_GCM_SHA256";
        let expected = json!({
            "version": "TLSv1.3", "cipher": cipher, "server_name": name, "resumed": true,
            "client_certificate": null
        });
        assert_eq!(read["tls"], expected);
    }
}

proptest! {
    #[test]
    fn whatever_a_client_sends_is_one_line(
        method in ".{0,20}",
        host in ".{0,40}",
        path in ".{0,200}",
        id in ".{0,40}",
        label in ".{0,20}",
    ) {
        let request = head(&method, &host, &path);
        let record =
            Entry { request_id: &id, listener: &label, route: Some(&label), ..record(Some(&request)) };
        let read = read(&record, true);
        prop_assert_eq!(&read["method"], &method);
        prop_assert_eq!(&read["host"], &host);
        prop_assert_eq!(&read["path"], &path);
        prop_assert_eq!(read["request_id"].as_str().unwrap_or_default(), &id);
        prop_assert_eq!(&read["listener"], &label);
    }
}
