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
mod tests;
