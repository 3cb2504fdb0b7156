//! OCSP responses to staple (RFC 6960 §4.2.1): read as far as it takes to know that one is for a certificate,
//! and until when it may be shown. Its signature is the client's to verify.

use aws_lc_rs::digest;
use x509_parser::asn1_rs::{Any, FromDer, GeneralizedTime, Tag};
use x509_parser::certificate::X509Certificate;

use super::{Part, TlsError};

const FORM: &str = "an OCSP response in DER for this certificate, as `openssl ocsp -respout` writes it";
const SHA1: &str = "1.3.14.3.2.26";
const SHA256: &str = "2.16.840.1.101.3.4.2.1";

/// The statement of a response about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staple {
    /// Neither revoked nor unknown.
    pub is_good: bool,
    /// When it must have been replaced, seconds since 1970; `None`: it does not say.
    pub next_update: Option<i64>,
}

/// The statement of a response about `leaf`.
///
/// # Errors
/// It is none, or says nothing of `leaf`.
pub fn read(response: &[u8], leaf: &X509Certificate<'_>) -> Result<Staple, TlsError> {
    let error = |message: &str| TlsError::new(Part::Ocsp, message, FORM);
    if response.starts_with(b"-----BEGIN") {
        return Err(error("is PEM, not DER"));
    }
    let responses = responses(response).ok_or_else(|| error("is no OCSP response"))?;
    let Some(mut single) = responses else { return Err(error("is a responder's refusal to answer")) };
    while !single.is_empty() {
        let (rest, one) = sequence(single).ok_or_else(|| error("is no OCSP response"))?;
        if let Some(staple) = about(one, leaf) {
            return Ok(staple);
        }
        single = rest;
    }
    Err(error("is for another certificate"))
}

/// The single responses, one after the other. `Some(None)`: the responder did not answer.
fn responses(response: &[u8]) -> Option<Option<&[u8]>> {
    let (_, outer) = sequence(response)?;
    let (rest, status) = any(outer)?;
    if status.tag() != Tag::Enumerated {
        return None;
    }
    if status.data != [0] {
        return Some(None);
    }
    // responseBytes [0] EXPLICIT: a type and an octet string.
    let (_, tagged) = any(rest)?;
    let (_, bytes) = sequence(tagged.data)?;
    let (rest, _kind) = any(bytes)?;
    let (_, basic) = any(rest)?;
    let (_, basic) = sequence(basic.data)?;
    let (_, mut data) = sequence(basic)?;
    let (rest, first) = any(data)?;
    // The version is there only if it is another than 1, and comes before the responder's name.
    if first.class() == x509_parser::asn1_rs::Class::ContextSpecific && first.tag().0 == 0 {
        data = rest;
    }
    let (rest, _responder) = any(data)?;
    let (rest, _produced_at) = any(rest)?;
    let (_, responses) = sequence(rest)?;
    Some(Some(responses))
}

/// The statement of a single response, if it is about `leaf`.
fn about(single: &[u8], leaf: &X509Certificate<'_>) -> Option<Staple> {
    let (rest, id) = sequence(single)?;
    let (rest, status) = any(rest)?;
    let (rest, _this_update) = any(rest)?;
    let next_update = any(rest).filter(|(_, next)| next.tag().0 == 0);
    let next_update = next_update.and_then(|(_, next)| GeneralizedTime::from_der(next.data).ok());
    let next_update = next_update.and_then(|(_, time)| Some(time.utc_datetime().ok()?.unix_timestamp()));

    let (id, algorithm) = sequence(id)?;
    let (id, issuer_name) = any(id)?;
    let (id, _issuer_key) = any(id)?;
    let (_, serial) = any(id)?;
    let (_, algorithm) = any(algorithm)?;
    let algorithm = match algorithm.as_oid().ok()?.to_id_string().as_str() {
        SHA1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        SHA256 => &digest::SHA256,
        _ => return None,
    };
    let is_issuer = digest::digest(algorithm, leaf.issuer().as_raw()).as_ref() == issuer_name.data;
    (is_issuer && serial.data == leaf.raw_serial())
        .then_some(Staple { is_good: status.tag().0 == 0, next_update })
}

fn any(der: &[u8]) -> Option<(&[u8], Any<'_>)> {
    Any::from_der(der).ok()
}

/// The bytes behind a sequence, and its content.
fn sequence(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (rest, sequence) = any(der)?;
    (sequence.tag() == Tag::Sequence).then_some((rest, sequence.data))
}

#[cfg(test)]
mod tests;
