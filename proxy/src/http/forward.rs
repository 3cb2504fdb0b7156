//! What a proxy changes in a message on its way (RFC 9110 §7.6), whichever version carries it: hop-by-hop fields go, Via,
//! X-Forwarded-* and X-Request-Id are set. Heads are changed in place; Host and framing fields are the encoders' business.

use std::fmt::Write;
use std::net::IpAddr;
use std::ops::Range;

use super::grammar::list;
use super::message::{Fields, RequestHead, ResponseHead, Version};

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The client's address; an IPv4-mapped one is shown as IPv4.
    pub client: IpAddr,
    /// Whether the client is one of `trusted_proxies`, whose X-Forwarded-* are believed.
    pub is_trusted: bool,
    /// `http` or `https`: how the client reached us.
    pub scheme: &'static str,
    /// Becomes X-Request-Id unless the client sent one that is fit to be kept.
    pub new_request_id: RequestId,
}

/// An X-Request-Id of our own: 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId([u8; 32]);

impl RequestId {
    /// From bits that the caller made unique.
    #[must_use]
    pub fn from_bits(bits: u128) -> Self {
        let mut digits = [0; 32];
        for (position, digit) in digits.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(bits >> (124 - 4 * position) & 15) as usize];
        }
        Self(digits)
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Makes a client's request fit for an upstream. Afterwards `head.request_id()` is the one in effect.
pub fn request(head: &mut RequestHead, origin: &Origin) {
    let has_request_id = head.request_id().is_some();
    let wants_trailers = head.fields.all(b"te").flat_map(list).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    let client = origin.client.to_canonical();
    let forwarded_for = origin.is_trusted.then(|| joined(&head.fields, b"x-forwarded-for"));
    let mut kept_request_id = false;
    let named = NamedByConnection::collect(&head.fields);
    head.fields.retain(|name, _| match Kind::of_request(name) {
        Kind::HopByHop | Kind::Spoof => false,
        Kind::RequestId => has_request_id && !std::mem::replace(&mut kept_request_id, true),
        Kind::ForwardedFor => false,
        Kind::Forwarded => origin.is_trusted,
        Kind::EndToEnd => !named.contains(name),
    });

    if !has_request_id {
        head.fields.push(b"X-Request-Id", &origin.new_request_id.0);
    }
    head.fields.push_with(b"X-Forwarded-For", |value| {
        if let Some(previous) = forwarded_for.filter(|previous| !previous.is_empty()) {
            value.extend_from_slice(&previous);
            value.extend_from_slice(b", ");
        }
        append(value, &client);
    });
    if !head.fields.contains(b"x-forwarded-proto") {
        head.fields.push(b"X-Forwarded-Proto", origin.scheme.as_bytes());
    }
    if !head.authority.is_empty() && !head.fields.contains(b"x-forwarded-host") {
        head.fields.push(b"X-Forwarded-Host", head.authority.as_bytes());
    }
    if wants_trailers {
        head.fields.push(b"TE", b"trailers");
    }
    head.fields.push(b"Via", via(head.version));
}

/// Makes an upstream's response, interim or final, fit for a client.
pub fn response(head: &mut ResponseHead) {
    let named = NamedByConnection::collect(&head.fields);
    head.fields.retain(|name, _| !is_hop_by_hop(name) && !named.contains(name));
    head.fields.push(b"Via", via(head.version));
}

/// Takes away what trailers must not carry (RFC 9110 §6.5.1): framing, routing, authentication and content fields, and what a proxy vouches for.
pub fn trailers(fields: &mut Fields) {
    const FORBIDDEN: &[&[u8]] = &[
        b"age",
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"date",
        b"expires",
        b"host",
        b"location",
        b"max-forwards",
        b"range",
        b"retry-after",
        b"set-cookie",
        b"trailer",
        b"vary",
        b"via",
        b"www-authenticate",
    ];
    fields.retain(|name, _| {
        matches!(Kind::of_request(name), Kind::EndToEnd)
            && !FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden))
    });
}

const fn via(version: Version) -> &'static [u8] {
    match version {
        Version::Http10 => b"1.0 sluice",
        Version::Http11 => b"1.1 sluice",
        Version::Http2 => b"2.0 sluice",
    }
}

/// All values of `name` as one list.
fn joined(fields: &Fields, name: &[u8]) -> Vec<u8> {
    let values: Vec<&[u8]> = fields.all(name).filter(|value| !value.is_empty()).collect();
    values.join(&b", "[..])
}

fn append(value: &mut Vec<u8>, address: &IpAddr) {
    struct Utf8<'a>(&'a mut Vec<u8>);
    impl Write for Utf8<'_> {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.extend_from_slice(text.as_bytes());
            Ok(())
        }
    }
    // Writing to a vector cannot fail.
    let _ = write!(Utf8(value), "{address}");
}

/// What a request's field is to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    HopByHop,
    RequestId,
    ForwardedFor,
    /// X-Forwarded-*, X-Real-IP or Forwarded: believed from trusted proxies only.
    Forwarded,
    /// One of the above spelt with `_`: an application that maps names to variables could not tell them apart.
    Spoof,
    EndToEnd,
}

impl Kind {
    fn of_request(name: &[u8]) -> Self {
        let owned = match name {
            [b'x' | b'X', b'-' | b'_', ..] if matches_name(name, b"x-request-id") => Self::RequestId,
            [b'x' | b'X', b'-' | b'_', ..] if matches_name(name, b"x-forwarded-for") => Self::ForwardedFor,
            [b'x' | b'X', b'-' | b'_', ..] if matches_name(name, b"x-real-ip") => Self::Forwarded,
            [b'x' | b'X', b'-' | b'_', ..] if name.len() > 12 && matches_name(&name[..12], b"x-forwarded-") => Self::Forwarded,
            _ if name.eq_ignore_ascii_case(b"forwarded") => return Self::Forwarded,
            _ if is_hop_by_hop(name) || is_for_us(name) => return Self::HopByHop,
            _ => return Self::EndToEnd,
        };
        if name.contains(&b'_') { Self::Spoof } else { owned }
    }
}

/// Without case, `_` as `-`.
fn matches_name(name: &[u8], lower: &[u8]) -> bool {
    name.len() == lower.len()
        && name.iter().zip(lower).all(|(&byte, &expected)| {
            let byte = if byte == b'_' { b'-' } else { byte };
            byte.eq_ignore_ascii_case(&expected)
        })
}

/// Fields that end here whether Connection names them or not (RFC 9110 §7.6.1).
fn is_hop_by_hop(name: &[u8]) -> bool {
    match name.len() {
        2 => name.eq_ignore_ascii_case(b"te"),
        7 => name.eq_ignore_ascii_case(b"upgrade"),
        10 => name.eq_ignore_ascii_case(b"connection") || name.eq_ignore_ascii_case(b"keep-alive"),
        14 => name.eq_ignore_ascii_case(b"http2-settings"),
        16 => name.eq_ignore_ascii_case(b"proxy-connection"),
        17 => name.eq_ignore_ascii_case(b"transfer-encoding"),
        18 => name.eq_ignore_ascii_case(b"proxy-authenticate"),
        19 => name.eq_ignore_ascii_case(b"proxy-authorization"),
        25 => name.eq_ignore_ascii_case(b"proxy-authentication-info"),
        _ => false,
    }
}

/// Expect: the session answers it itself.
fn is_for_us(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"expect")
}

/// The fields that Connection names, sorted: thousands of options beside a hundred fields must not cost their product.
#[derive(Debug, Default)]
struct NamedByConnection {
    lower: Vec<u8>,
    names: Vec<Range<usize>>,
}

impl NamedByConnection {
    /// Options that name no field, or one that goes anyway.
    const ORDINARY: &[&[u8]] = &[b"close", b"keep-alive", b"te", b"upgrade"];

    /// Fields that are for all recipients: a client that names them wants to hide them from the upstream behind us
    /// (RFC 9110 §7.6.1 forbids it).
    const PROTECTED: &[&[u8]] = &[
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"date",
        b"etag",
        b"host",
        b"location",
        b"origin",
        b"set-cookie",
        b"trailer",
        b"vary",
        b"via",
        b"www-authenticate",
        b"x-request-id",
    ];

    fn collect(fields: &Fields) -> Self {
        let mut named = Self::default();
        for option in fields.all(b"connection").flat_map(list) {
            let is_any = |names: &[&[u8]]| names.iter().any(|name| option.eq_ignore_ascii_case(name));
            if !is_any(Self::ORDINARY) && !is_any(Self::PROTECTED) {
                let start = named.lower.len();
                named.lower.extend(option.iter().map(u8::to_ascii_lowercase));
                named.names.push(start..named.lower.len());
            }
        }
        let Self { lower, names } = &mut named;
        names.sort_unstable_by(|a, b| lower[a.clone()].cmp(&lower[b.clone()]));
        named
    }

    fn contains(&self, name: &[u8]) -> bool {
        let lower = |range: &Range<usize>| self.lower[range.clone()].iter().copied();
        self.names.binary_search_by(|range| lower(range).cmp(name.iter().map(u8::to_ascii_lowercase))).is_ok()
    }
}

#[cfg(test)]
mod tests;
