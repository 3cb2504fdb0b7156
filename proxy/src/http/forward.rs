//! The changes that a proxy makes to a message on its way (RFC 9110 §7.6), in every version of HTTP.
//! Hop-by-hop fields go; Via, X-Forwarded-* and X-Request-Id are set. Heads are changed in place; the
//! encoders write Host and framing.

use std::net::IpAddr;
use std::ops::Range;

use super::date::imf_fixdate;
use super::grammar::list;
use super::h1::HeadError;
use super::message::{Fields, RequestHead, ResponseHead, Version};
use super::names::{Name, NameSet, Word};
use super::underscores::Underscores;
use super::{underscores, upgrade};

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The client's address; an IPv4-mapped one is shown as IPv4.
    pub client: IpAddr,
    /// Whether the client is one of `trusted_proxies`, whose X-Forwarded-* are believed.
    pub is_trusted: bool,
    /// `http` or `https`: how the client reached us.
    pub scheme: &'static str,
    /// The client's identity from its certificate, for X-Forwarded-Client-Cert. Empty: it showed none.
    /// `None`: no certificate was asked for.
    pub identity: Option<&'a str>,
    /// The request came before the client's handshake was over, so that it may be a recording: Early-Data
    /// (RFC 8470 §5.1).
    pub is_early: bool,
    /// What becomes of fields with `_` in their names.
    pub underscores: Underscores,
    /// An X-Request-Id that the client sent is kept, if it is fit.
    pub keeps_request_id: bool,
    /// Becomes X-Request-Id otherwise.
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
        for (eight, word) in digits.chunks_exact_mut(8).zip([bits >> 96, bits >> 64, bits >> 32, bits]) {
            eight.copy_from_slice(&hexadecimal(word as u32));
        }
        Self(digits)
    }

    /// The digits.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The digits of a word, all eight at once.
const fn hexadecimal(word: u32) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let word = word as u64;
    let pairs = (word | word << 16) & 0x0000_ffff_0000_ffff;
    let bytes = (pairs | pairs << 8) & 0x00ff_00ff_00ff_00ff;
    let nibbles = (bytes | bytes << 4) & (0x0f * ONES);
    let is_letter = (nibbles + 6 * ONES) >> 4 & ONES;
    (nibbles + b'0' as u64 * ONES + is_letter * (b'a' - b'0' - 10) as u64).to_be_bytes()
}

/// Makes a client's request fit for an upstream. Afterwards `request_id_of` gives the id in effect.
pub fn request(head: &mut RequestHead, origin: &Origin<'_>) {
    /// Nearly always there already.
    const ADDED_FIELDS: usize = 6;
    const ADDED_BYTES: usize = 192;
    let has_request_id = origin.keeps_request_id && head.request_id().is_some();
    let wants_trailers =
        head.fields.all_known(Name::Te).flat_map(list).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    let forwarded_for = origin
        .is_trusted
        .then(|| joined(&head.fields, Name::ForwardedFor))
        .filter(|previous| !previous.is_empty());
    let offered = if head.fields.names().contains(Name::Upgrade) { upgrade::offered(head) } else { None };
    if head.fields.names().meets(LEAVES_REQUEST) {
        remove_from_request(&mut head.fields, has_request_id, origin);
    }

    let fields = &mut head.fields;
    fields.reserve(
        ADDED_BYTES + head.authority.len() + forwarded_for.as_ref().map_or(0, Vec::len),
        ADDED_FIELDS,
    );
    if !has_request_id {
        fields.push_own(Name::RequestId, b"X-Request-Id: ", &origin.new_request_id.0);
    }
    fields.push_with(Name::ForwardedFor, b"X-Forwarded-For", |value| {
        if let Some(previous) = forwarded_for {
            value.extend_from_slice(&previous);
            value.extend_from_slice(b", ");
        }
        append(value, origin.client.to_canonical());
    });
    if !fields.names().contains(Name::ForwardedProto) {
        fields.push_own(Name::ForwardedProto, b"X-Forwarded-Proto: ", origin.scheme.as_bytes());
    }
    if !head.authority.is_empty() && !fields.names().contains(Name::ForwardedHost) {
        fields.push_own(Name::ForwardedHost, b"X-Forwarded-Host: ", head.authority.as_bytes());
    }
    if let Some(identity) = origin.identity.filter(|identity| !identity.is_empty()) {
        fields.push_own(Name::ClientCert, b"X-Forwarded-Client-Cert: ", identity.as_bytes());
    }
    if origin.is_early {
        fields.retain(|_, name| {
            !name.eq_ignore_ascii_case(b"Early-Data") && !name.eq_ignore_ascii_case(b"Early_Data")
        });
        fields.push(b"Early-Data", b"1");
    }
    if wants_trailers {
        fields.push_own(Name::Te, b"TE: ", b"trailers");
    }
    push_via(fields, head.version);
    if let Some(protocols) = offered {
        fields.push_own(Name::Upgrade, b"Upgrade: ", &protocols);
    }
    // Last, since our own fields count among those that a client could speak for.
    underscores::remove(fields, origin.underscores);
}

/// Asks the upstream to say "100 Continue", as the client asked us.
pub fn expect_continue(head: &mut RequestHead) {
    head.fields.push_own(Name::Expect, b"Expect: ", b"100-continue");
}

/// Counts down Max-Forwards (RFC 9110 §7.6.2), which limits how far TRACE and OPTIONS go. `true`: the request
/// must not go further. An error: it is no number, or there are two.
pub fn max_forwards(fields: &mut Fields) -> Result<bool, HeadError> {
    const NAME: &[u8] = b"Max-Forwards";
    let value = match fields.all(NAME).collect::<Vec<_>>()[..] {
        [] => return Ok(false),
        [value] if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => value,
        _ => return Err(HeadError::MaxForwards),
    };
    // A number that is too large limits nothing.
    let left = value
        .iter()
        .fold(0_u32, |number, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
    let Some(left) = left.checked_sub(1) else { return Ok(true) };
    fields.retain(|_, name| !name.eq_ignore_ascii_case(NAME));
    fields.push(NAME, itoa::Buffer::new().format(left).as_bytes());
    Ok(false)
}

/// Makes an upstream's response, interim or final, fit for a client.
pub fn response(head: &mut ResponseHead) {
    // Connection is among them: without it there is nothing else that it could name.
    if head.fields.names().meets(HOP_BY_HOP) {
        let named = NamedByConnection::collect(&head.fields);
        if named.names.is_empty() {
            head.fields.remove(HOP_BY_HOP);
        } else {
            head.fields.retain(|name, text| !HOP_BY_HOP.contains(name) && !named.contains(text));
        }
    }
    push_via(&mut head.fields, head.version);
}

/// The X-Request-Id of a request that `request` made fit. It is not judged again.
#[must_use]
pub fn request_id_of(head: &RequestHead) -> &[u8] {
    head.fields.all_known(Name::RequestId).next().unwrap_or_default()
}

/// Tells the client the id of its request, in the place of what the endpoint says.
pub fn request_id(head: &mut ResponseHead, id: &[u8]) {
    if head.fields.names().contains(Name::RequestId) {
        head.fields.remove(NameSet::of(&[Name::RequestId]));
    }
    head.fields.push_own(Name::RequestId, b"X-Request-Id: ", id);
}

/// Says when a final response was received, if its origin does not say when it was made (RFC 9110 §6.6.1).
/// `unix_seconds` is now.
pub fn date(head: &mut ResponseHead, unix_seconds: impl FnOnce() -> u64) {
    if !head.fields.names().contains(Name::Date) {
        head.fields.push_own(Name::Date, b"Date: ", &imf_fixdate(unix_seconds()));
    }
}

/// Fields that end here whether Connection names them or not (RFC 9110 §7.6.1).
pub(super) const HOP_BY_HOP: NameSet = NameSet::of(&[
    Name::Te,
    Name::Upgrade,
    Name::Connection,
    Name::KeepAlive,
    Name::Http2Settings,
    Name::ProxyConnection,
    Name::TransferEncoding,
    Name::ProxyAuthenticate,
    Name::ProxyAuthorization,
    Name::ProxyAuthenticationInfo,
]);

/// X-Forwarded-*, X-Real-IP or Forwarded: believed from trusted proxies only.
const FORWARDED: NameSet = NameSet::of(&[
    Name::ForwardedFor,
    Name::ForwardedProto,
    Name::ForwardedHost,
    Name::ClientCert,
    Name::Forwarded,
]);

/// Fields that may have to go from a request. Expect: the session answers it itself.
const LEAVES_REQUEST: NameSet =
    HOP_BY_HOP.or(FORWARDED).with(Name::Expect).with(Name::RequestId).with(Name::Proxy);

fn remove_from_request(fields: &mut Fields, has_request_id: bool, origin: &Origin<'_>) {
    let mut kept_request_id = false;
    let named = NamedByConnection::collect(fields);
    fields.retain(|name, text| match name {
        Name::RequestId => has_request_id && !std::mem::replace(&mut kept_request_id, true),
        // X-Forwarded-For is written anew, with a trusted proxy's entries in it.
        Name::ForwardedFor => false,
        // A client that was asked who it is may not speak for another, not even a trusted proxy.
        Name::ClientCert => origin.is_trusted && origin.identity.is_none(),
        _ if FORWARDED.contains(name) => origin.is_trusted,
        _ => !LEAVES_REQUEST.contains(name) && !named.contains(text),
    });
}

/// Takes away fields that trailers must not carry (RFC 9110 §6.5.1): framing, routing, authentication and
/// content fields, and the fields that a proxy vouches for.
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
    if !fields.is_empty() {
        fields.retain(|name, text| {
            !LEAVES_REQUEST.with(Name::Spoof).contains(name)
                && !FORBIDDEN.iter().any(|forbidden| text.eq_ignore_ascii_case(forbidden))
        });
    }
}

fn push_via(fields: &mut Fields, version: Version) {
    let value: &[u8; 10] = match version {
        Version::Http10 => b"1.0 sluice",
        Version::Http11 => b"1.1 sluice",
        Version::Http2 => b"2.0 sluice",
    };
    fields.push_own(Name::Other, b"Via: ", value);
}

/// All values of `name` as one list.
fn joined(fields: &Fields, name: Name) -> Vec<u8> {
    let values: Vec<&[u8]> = fields.all_known(name).filter(|value| !value.is_empty()).collect();
    values.join(&b", "[..])
}

fn append(value: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => append_ipv4(value, address.octets()),
        IpAddr::V6(address) => value.extend_from_slice(address.to_string().as_bytes()),
    }
}

/// Without the formatting machinery, which costs more than all else that is added to a request.
fn append_ipv4(value: &mut Vec<u8>, octets: [u8; 4]) {
    let mut text = [b'.'; 16];
    let mut end = 0;
    for octet in octets {
        if octet >= 100 {
            text[end] = b'0' + octet / 100;
            end += 1;
        }
        if octet >= 10 {
            text[end] = b'0' + octet / 10 % 10;
            end += 1;
        }
        text[end] = b'0' + octet % 10;
        text[end + 1] = b'.';
        end += 2;
    }
    value.extend_from_slice(&text[..end - 1]);
}

/// The fields that Connection names, sorted: thousands of options beside a hundred fields must not cost their
/// product.
#[derive(Debug, Default)]
struct NamedByConnection {
    lower: Vec<u8>,
    names: Vec<Range<usize>>,
}

impl NamedByConnection {
    /// Options that name no field, or a field that goes anyway.
    const ORDINARY: &[&[u8]] = &[b"close", b"keep-alive", b"te", b"upgrade"];

    /// Fields that are for all recipients: a client that names them wants to hide them from the upstream
    /// behind us (RFC 9110 §7.6.1 forbids it).
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
        // Nearly every Connection names no field.
        if fields.all_known(Name::Connection).all(|value| Word::KEEP_ALIVE.is(value) || Word::CLOSE.is(value))
        {
            return named;
        }
        for option in fields.all_known(Name::Connection).flat_map(list) {
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
        if self.names.is_empty() {
            return false;
        }
        let lower = |range: &Range<usize>| self.lower[range.clone()].iter().copied();
        self.names.binary_search_by(|range| lower(range).cmp(name.iter().map(u8::to_ascii_lowercase))).is_ok()
    }
}

#[cfg(test)]
mod tests;
