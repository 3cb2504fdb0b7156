//! The authority of a request, from Host or an absolute-form target (RFC 9110 §4.2, §7.2; RFC 3986 §3.2).
//!
//! Only hosts as they occur in practice are accepted: letters, digits, `-`, `.`, `_`, `~`, or an IPv6 address
//! in brackets. User information, percent-encoding and the sub-delimiters are refused: a comma, say, would
//! split X-Forwarded-Host.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use super::grammar::{decimal, is_unreserved};

/// Longest DNS name with its dots.
const MAX_HOST: usize = 255;

/// Checks an authority and puts it in the form that is routed and forwarded: lower case, no empty port.
#[must_use]
pub fn normalise(raw: &[u8]) -> Option<Cow<'_, str>> {
    if is_normal(raw) {
        return std::str::from_utf8(raw).ok().map(Cow::Borrowed);
    }
    let (host, port) = split(raw)?;
    if host.is_empty() || host.len() > MAX_HOST || !port.is_none_or(is_port) {
        return None;
    }
    let is_host = match host {
        [b'[', address @ .., b']'] => {
            std::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
        }
        _ => host.iter().all(|&byte| is_unreserved(byte)),
    };
    if !is_host {
        return None;
    }
    let kept = if port.is_some_and(<[u8]>::is_empty) { host } else { raw };
    std::str::from_utf8(kept).ok().map(|text| Cow::Owned(text.to_ascii_lowercase()))
}

/// Whether it is a name or an IPv4 address as it is routed, with or without a port. Nearly every request has
/// one.
fn is_normal(raw: &[u8]) -> bool {
    let is_kept = |byte: u8| is_unreserved(byte) && !byte.is_ascii_uppercase();
    let host_end = raw.iter().position(|&byte| !is_kept(byte)).unwrap_or(raw.len());
    let port_is_normal = match &raw[host_end..] {
        [] => true,
        [b':', port @ ..] => !port.is_empty() && is_port(port),
        _ => false,
    };
    (1..=MAX_HOST).contains(&host_end) && port_is_normal
}

/// The host of a normalised authority, without its port; brackets stay.
#[must_use]
pub fn host(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !authority.ends_with(']') => &authority[..colon],
        _ => authority,
    }
}

fn split(raw: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let host_end = if raw.first() == Some(&b'[') {
        memchr::memchr(b']', raw)? + 1
    } else {
        memchr::memchr(b':', raw).unwrap_or(raw.len())
    };
    let (host, rest) = raw.split_at(host_end);
    match rest {
        [] => Some((host, None)),
        [b':', port @ ..] => Some((host, Some(port))),
        _ => None,
    }
}

fn is_port(digits: &[u8]) -> bool {
    digits.is_empty() || (digits.len() <= 5 && decimal(digits).is_some_and(|port| port <= 65535))
}

#[cfg(test)]
mod tests {
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
}
