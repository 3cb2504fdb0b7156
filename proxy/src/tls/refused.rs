//! Early data that is refused: a server skips as much of it as clients are promised (RFC 8446 §4.2.10).
//!
//! rustls skips too, but counts a record again each time that it is shown, and by its sealed length. It knows
//! no limit where early data is off. So it is shown no record of early data that was refused.
//!
//! | after | skipped |
//! |---|---|
//! | the hello that offers early data | nothing: the server answers first |
//! | a HelloRetryRequest | every record of application data |
//! | the server's flight, if that refuses | every record that the handshake's key does not open |
//! | the first record that the key opens | nothing |

use rustls::Tls13CipherSuite;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::crypto::tls13::{HkdfExpander, OkmBlock};
use zeroize::Zeroizing;

use super::key_log::Caught;
use super::records::{APPLICATION_DATA, HANDSHAKE, HEADER_BYTES, Half, Sealed, Violation};
use super::server::EARLY_BYTES_MAX;

/// The kind of the content, and the tag (RFC 8446 §5.2). Padding cannot be told from content.
const EXPANSION: usize = 1 + 16;
const ENCRYPTED_EXTENSIONS: u8 = 8;
const EARLY_DATA: u16 = 42;

/// See the module.
#[derive(Default)]
pub(super) enum Refused {
    /// There is no early data, or no more.
    #[default]
    Nothing,
    /// A client has offered early data.
    Offered,
    /// The client has to say its hello again.
    Retried { left: usize },
    /// The server's flight refuses. Records of the client's flight are under this key.
    Sealed { key: Box<Half>, left: usize },
}

impl Refused {
    /// The server has answered with the records in `said`. `is_retry`: with a HelloRetryRequest.
    pub(super) fn answered(
        &mut self,
        said: &[u8],
        is_retry: bool,
        suite: Option<&Tls13CipherSuite>,
        caught: &Caught,
    ) {
        if !matches!(self, Self::Offered | Self::Retried { .. }) {
            return;
        }
        let left = EARLY_BYTES_MAX as usize;
        if let (Some(suite), Some(client), Some(server)) = (suite, &caught.client, &caught.server) {
            // The second hello comes after all early data.
            let is_retried = matches!(self, Self::Retried { .. });
            *self = match half(suite, client) {
                Some(key) if !is_retried && refuses(said, suite, server) => {
                    Self::Sealed { key: Box::new(key), left }
                }
                _ => Self::Nothing,
            };
        } else if is_retry && matches!(self, Self::Offered) {
            *self = Self::Retried { left };
        }
    }

    /// Whether a whole record is early data to skip.
    pub(super) fn skips(&mut self, record: &[u8]) -> bool {
        let (Self::Retried { left } | Self::Sealed { left, .. }) = self else { return false };
        if record.first() != Some(&APPLICATION_DATA) {
            return false;
        }
        // A record without content costs as well, or there would be no end to them.
        let cost = record.len().saturating_sub(HEADER_BYTES + EXPANSION).max(1);
        match left.checked_sub(cost) {
            Some(rest) => *left = rest,
            // More than was promised: rustls says so.
            None => *self = Self::Nothing,
        }
        match self {
            Self::Retried { .. } => true,
            Self::Sealed { key, .. } => {
                let is_early = matches!(key.open(Sealed::Shared(record), true), Err(Violation::MAC));
                if !is_early {
                    *self = Self::Nothing;
                }
                is_early
            }
            Self::Nothing | Self::Offered => false,
        }
    }
}

/// Whether the server's flight accepts no early data: its `EncryptedExtensions` say so.
fn refuses(said: &[u8], suite: &Tls13CipherSuite, secret: &[u8]) -> bool {
    let mut left = said;
    let record = loop {
        let Some(&[kind, _, _, high, low]) = left.first_chunk::<HEADER_BYTES>() else { return false };
        let length = HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
        let Some((record, rest)) = left.split_at_checked(length) else { return false };
        if kind == APPLICATION_DATA {
            break record;
        }
        left = rest;
    };
    let Some(mut key) = half(suite, secret) else { return false };
    let Ok((HANDSHAKE, bytes, at)) = key.open(Sealed::Shared(record), true) else { return false };
    // Type, length, and the length of the list.
    let [ENCRYPTED_EXTENSIONS, _, _, _, high, low, list @ ..] = &bytes[at] else { return false };
    let Some(mut list) = list.get(..usize::from(u16::from_be_bytes([*high, *low]))) else { return false };
    while let [a, b, high, low, rest @ ..] = list {
        if u16::from_be_bytes([*a, *b]) == EARLY_DATA {
            return false;
        }
        list = rest.get(usize::from(u16::from_be_bytes([*high, *low]))..).unwrap_or_default();
    }
    true
}

/// A direction's cipher by its secret (RFC 8446 §7.3).
pub(super) fn half(suite: &Tls13CipherSuite, secret: &[u8]) -> Option<Half> {
    let expander = suite.hkdf_provider.expander_for_okm(&OkmBlock::new(secret));
    let (mut key, mut iv) = (Zeroizing::new([0; 32]), [0; 12]);
    let length = suite.aead_alg.key_len();
    expand(&*expander, b"tls13 key", key.get_mut(..length)?)?;
    expand(&*expander, b"tls13 iv", &mut iv)?;
    let secrets = suite.aead_alg.extract_keys(AeadKey::from(*key), Iv::new(iv)).ok()?;
    Half::new(0, secrets, true, u64::MAX).ok()
}

/// HKDF-Expand-Label without a context (RFC 8446 §7.1).
fn expand(expander: &dyn HkdfExpander, label: &[u8], out: &mut [u8]) -> Option<()> {
    let length = (out.len() as u16).to_be_bytes();
    expander.expand_slice(&[&length, &[label.len() as u8], label, &[0]], out).ok()
}

#[cfg(test)]
mod tests;
