//! Which other protocol a client may ask for and an endpoint may switch to on the same connection (RFC 9110
//! §7.8, RFC 6455).

use super::forward;
use super::grammar::{is_token, list};
use super::message::{Fields, RequestHead, ResponseHead, Version};
use super::names::Name;

/// HTTP in other versions, and TLS: past us, their requests would be neither routed nor checked, and nobody
/// would know of the next hop's certificate.
const KEPT_FROM_UPSTREAMS: &[&[u8]] = &[b"h2c", b"h2", b"h3", b"http", b"tls"];

/// The protocols of a request that are forwarded, as its Upgrade field. None for HTTP/1.0, where the field is
/// ignored. A request with a body may ask too: the other protocol begins behind the body.
pub fn offered(head: &RequestHead) -> Option<Vec<u8>> {
    let mut options = head.fields.all_known(Name::Connection).flat_map(list);
    let is_asked =
        head.version == Version::Http11 && options.any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    if is_asked { forwarded(&head.fields) } else { None }
}

/// Makes a final response fit for a client. Its Upgrade stays: it says which protocols the endpoint would
/// switch to, or, with 426, that the client has to ask for one (RFC 9110 §7.8, §15.5.22).
pub fn response(head: &mut ResponseHead) {
    let named = if head.fields.names().contains(Name::Upgrade) { forwarded(&head.fields) } else { None };
    forward::response(head);
    if let Some(protocols) = named {
        head.fields.push_known(Name::Upgrade, b"Upgrade", &protocols);
    }
}

/// The protocols of Upgrade that clients may ask for through us, as one value.
fn forwarded(fields: &Fields) -> Option<Vec<u8>> {
    let protocols: Vec<&[u8]> =
        fields.all_known(Name::Upgrade).flat_map(list).filter(|name| is_forwarded(name)).collect();
    (!protocols.is_empty()).then(|| protocols.join(&b", "[..]))
}

fn is_forwarded(protocol: &[u8]) -> bool {
    let mut parts = protocol.splitn(2, |&byte| byte == b'/');
    let name = parts.next().unwrap_or_default();
    is_token(name)
        && parts.next().is_none_or(is_token)
        && !KEPT_FROM_UPSTREAMS.iter().any(|kept| name.eq_ignore_ascii_case(kept))
}

/// Whether a request, after `forward::request`, asks for another protocol.
#[must_use]
pub const fn is_asked_for(head: &RequestHead) -> bool {
    head.fields.names().contains(Name::Upgrade)
}

/// Makes a 101 fit for the client; `false` if it does not name protocols that `request` offered.
#[must_use]
pub fn switch(head: &mut ResponseHead, request: &RequestHead) -> bool {
    let chosen: Vec<&[u8]> = head.fields.all_known(Name::Upgrade).flat_map(list).collect();
    let is_offered = |protocol: &[u8]| {
        request
            .fields
            .all_known(Name::Upgrade)
            .flat_map(list)
            .any(|offered| offered.eq_ignore_ascii_case(protocol))
    };
    if chosen.is_empty() || !chosen.iter().all(|protocol| is_offered(protocol)) {
        return false;
    }
    let chosen = chosen.join(&b", "[..]);
    forward::response(head);
    head.fields.push_known(Name::Upgrade, b"Upgrade", &chosen);
    true
}

#[cfg(test)]
mod tests;
