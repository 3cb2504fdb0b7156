//! Tests of `http::authority`.

use super::*;

#[test]
fn accepts_and_normalises() {
    for (raw, expected) in [
        ("example.com", "example.com"),
        ("EXAMPLE.com:8080", "example.com:8080"),
        ("example.com:", "example.com"),
        ("a_b-c~d.", "a_b-c~d."),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("[::1]", "[::1]"),
        ("[2001:DB8::1]:443", "[2001:db8::1]:443"),
        ("[::ffff:10.0.0.1]:", "[::ffff:10.0.0.1]"),
        ("x:65535", "x:65535"),
    ] {
        assert_eq!(normalise(raw.as_bytes()).as_deref(), Some(expected), "{raw}");
    }
}

#[test]
fn refuses() {
    let long = "a".repeat(256);
    for raw in [
        "",
        ":80",
        "a b",
        "a,b",
        "a;b",
        "user@host",
        "host/",
        "host?x",
        "host#x",
        "a:b",
        "a:1:2",
        "a:65536",
        "a:000080",
        "a:+80",
        "a: 80",
        "[::1",
        "::1",
        "[::1]x",
        "[::1%eth0]",
        "[]",
        "[v1.a]",
        "[1.2.3.4]",
        "%41",
        "a%2eb",
        "ho\\st",
        "é",
        "a\0b",
        "a\tb",
        &long,
    ] {
        assert_eq!(normalise(raw.as_bytes()), None, "{raw:?}");
    }
}

#[test]
fn host_is_without_port() {
    for (authority, expected) in
        [("a", "a"), ("a:1", "a"), ("[::1]", "[::1]"), ("[::1]:2", "[::1]"), ("", "")]
    {
        assert_eq!(host(authority), expected);
    }
}
