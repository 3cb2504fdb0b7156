//! TLS without I/O: certificates and settings compiled once per configuration, who is shown which
//! certificate, handshakes by rustls, and records by ourselves. Nothing here opens a file; the clock is read
//! by rustls' time provider alone.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;

pub mod agreed;
pub mod alert;
mod beside;
pub mod certificate;
pub mod client;
pub mod client_auth;
pub mod handshake;
pub mod hello;
pub mod identity;
pub mod key_log;
mod last_word;
mod masked;
pub mod ocsp;
pub mod pem;
pub mod records;
mod refused;
pub mod resolver;
pub mod review;
pub mod server;
pub mod sessions;
pub mod tickets;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// A file that TLS settings are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A certificate and the chain to its root.
    Chain,
    /// Its private key.
    Key,
    /// The OCSP response to staple.
    Ocsp,
    /// Certificates of the authorities for clients.
    ClientCa,
    /// Certificates that those authorities have revoked.
    Crl,
    /// Certificates of the authorities for endpoints.
    Ca,
}

/// The mistake in a file; never the content of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError {
    /// Which one.
    pub part: Part,
    /// In one sentence without a full stop; the file is its subject.
    pub message: String,
    /// The right form, and the way to get it.
    pub expected: &'static str,
}

impl TlsError {
    pub(crate) fn new(part: Part, message: impl Into<String>, expected: &'static str) -> Self {
        Self { part, message: message.into(), expected }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}; expected {}", self.message, self.expected)
    }
}

impl std::error::Error for TlsError {}

/// aws-lc-rs with every suite and group that rustls holds sound, the hybrid X25519MLKEM768 first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The certificates of a file as roots. Each must be one.
fn roots(part: Part, bytes: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in pem::certificates(part, bytes)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| {
            TlsError::new(
                part,
                format!("certificate {} is not usable: {error}", index + 1),
                "certificates of CAs, in PEM",
            )
        })?;
    }
    Ok(roots)
}
