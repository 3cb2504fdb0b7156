//! A listener's TLS, compiled once per configuration from the bytes of its files, in supervisor and data
//! plane alike.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::{TLS12, TLS13};

use super::certificate::Certificate;
use super::key_log::Secrets;
use super::resolver::Resolver;
use super::sessions::StoredSessions;
use super::tickets::{TicketKey, Tickets};
use super::{Part, TlsError, masked, provider, roots};

/// Early data of a connection, RFC 8446 §4.2.10: so much is promised, and so much is skipped where it is
/// refused.
pub(super) const EARLY_BYTES_MAX: u32 = 48 << 10;

/// The oldest version that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinVersion {
    /// 1.2 and 1.3.
    Tls12,
    /// 1.3 alone.
    Tls13,
}

/// The settings that a listener's TLS is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// One at least; the first is the default.
    pub certificates: Vec<Arc<Certificate>>,
    /// `listener.tls.min_version`
    pub min_version: MinVersion,
    /// `listener.alpn`
    pub alpn: Vec<Box<str>>,
    /// PEM certificates; `None`: no client is asked for one.
    pub client_ca: Option<Box<[u8]>>,
    /// `listener.tls.session_tickets`
    pub session_tickets: bool,
    /// `listener.tls.early_data`; never beside tickets, which could be played back.
    pub early_data: bool,
    /// `listener.tls.ticket_keys`, the first makes tickets; empty: the process's keys.
    pub ticket_keys: Vec<TicketKey>,
    /// `listener.tls.handshake_timeout`
    pub handshake_timeout: Duration,
    /// `listener.tls.max_handshakes`
    pub max_handshakes: usize,
}

/// A listener's TLS.
#[derive(Debug)]
pub struct ServerTls {
    /// For each connection.
    pub config: Arc<ServerConfig>,
    /// One at least; the first is the default.
    pub certificates: Vec<Arc<Certificate>>,
    /// Without keys until the data plane installs some, unless there are files.
    pub tickets: Arc<Tickets>,
    /// From accept until the handshake is done.
    pub handshake_timeout: Duration,
    /// In progress at once on a worker.
    pub max_handshakes: usize,
    settings: Settings,
}

impl ServerTls {
    /// Compiles settings.
    ///
    /// # Errors
    /// An error of a file. The certificates' own files were checked before.
    pub fn new(settings: Settings) -> Result<Self, TlsError> {
        let clock: Arc<dyn TimeProvider> = Arc::new(DefaultTimeProvider);
        let versions = match settings.min_version {
            MinVersion::Tls12 => &[&TLS13, &TLS12][..],
            MinVersion::Tls13 => &[&TLS13][..],
        };
        let builder = ServerConfig::builder_with_details(masked::provider(), Arc::clone(&clock))
            .with_protocol_versions(versions);
        let builder =
            builder.map_err(|error| TlsError::new(Part::Chain, error.to_string(), "a supported version"))?;
        let builder = match &settings.client_ca {
            Some(bytes) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots(Part::ClientCa, bytes)?),
                    provider(),
                );
                let verifier = verifier.build().map_err(|error| {
                    TlsError::new(
                        Part::ClientCa,
                        format!("is not usable: {error}"),
                        "certificates that may vouch for clients",
                    )
                })?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config =
            builder.with_cert_resolver(Arc::new(Resolver::new(&settings.certificates, Arc::clone(&clock))));
        config.alpn_protocols = settings.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        // The codec takes the traffic keys over when the handshake is done.
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(Secrets);
        if settings.early_data {
            config.max_early_data_size = EARLY_BYTES_MAX;
            config.session_storage = Arc::new(StoredSessions::new(Arc::clone(&clock)));
            config.send_half_rtt_data = true;
        } else {
            config.max_early_data_size = 0;
            // The default is a cache of this process behind a lock.
            config.session_storage = Arc::new(NoServerSessionStorage {});
        }
        let tickets = Arc::new(Tickets::new(&settings.ticket_keys, settings.client_ca.as_deref()));
        if settings.session_tickets {
            config.ticketer = Arc::clone(&tickets) as Arc<dyn ProducesTickets>;
        }
        Ok(Self {
            config: Arc::new(config),
            certificates: settings.certificates.clone(),
            tickets,
            handshake_timeout: settings.handshake_timeout,
            max_handshakes: settings.max_handshakes,
            settings,
        })
    }
}

impl ServerTls {
    /// The settings that it was made from.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }
}

impl PartialEq for ServerTls {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

#[cfg(test)]
mod tests;
