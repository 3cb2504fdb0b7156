//! The alert of a handshake that ends without one of rustls': records that are none, and errors for which
//! rustls has no alert.
//!
//! Before the server's flight an alert is plain. After it an alert of TLS 1.3 is under the server's traffic
//! key. TLS 1.2 has a moment at the end of a handshake when only rustls has the key.

use rustls::{PeerMisbehaved, Tls13CipherSuite};

use super::alert;
use super::key_log::Secret;
use super::records::{ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HEADER_BYTES};
use super::refused::half;

/// How an alert would be said now.
#[derive(Default)]
pub(super) enum LastWord {
    #[default]
    Plain,
    Sealed {
        suite: &'static Tls13CipherSuite,
        secret: Secret,
        /// Records that the server has sent under the secret.
        records: u64,
    },
    /// Not by us.
    Theirs,
}

impl LastWord {
    /// The server has sent these records. `suite`: of TLS 1.3; `secret`: for all records behind this flight.
    pub(super) fn said(
        &mut self,
        said: &[u8],
        suite: Option<&'static Tls13CipherSuite>,
        secret: &mut Option<Secret>,
    ) {
        match self {
            Self::Plain => match (suite, secret.take()) {
                (Some(suite), Some(secret)) => *self = Self::Sealed { suite, secret, records: 0 },
                (None, _) if kinds(said).any(|kind| kind == CHANGE_CIPHER_SPEC) => *self = Self::Theirs,
                _ => {}
            },
            Self::Sealed { records, .. } => {
                *records += kinds(said).filter(|kind| *kind == APPLICATION_DATA).count() as u64
            }
            Self::Theirs => {}
        }
    }

    /// Appends a fatal alert to `out`. `false`: it cannot be said here.
    pub(super) fn say(&self, description: u8, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Plain => {
                out.extend_from_slice(&[ALERT, 3, 3, 0, 2, alert::FATAL, description]);
                true
            }
            Self::Sealed { suite, secret, records } => half(suite, secret).is_some_and(|mut half| {
                half.skip_to(*records);
                half.seal(ALERT, &[alert::FATAL, description], true, out).is_ok()
            }),
            Self::Theirs => false,
        }
    }
}

/// The alert for what a peer did wrong, where rustls has none (RFC 8446 §5, §5.1).
pub(super) const fn of(misbehaved: &PeerMisbehaved) -> u8 {
    match misbehaved {
        PeerMisbehaved::MessageInterleavedWithHandshakeMessage
        | PeerMisbehaved::RejectedEarlyDataInterleavedWithHandshakeMessage
        | PeerMisbehaved::TooManyEmptyFragments
        | PeerMisbehaved::TooManyWarningAlertsReceived
        | PeerMisbehaved::IllegalMiddleboxChangeCipherSpec => alert::UNEXPECTED_MESSAGE,
        _ => alert::ILLEGAL_PARAMETER,
    }
}

fn kinds(mut records: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let &[kind, _, _, high, low] = records.first_chunk::<HEADER_BYTES>()?;
        let length = HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
        records = records.get(length..).unwrap_or_default();
        Some(kind)
    })
}

#[cfg(test)]
mod tests;
