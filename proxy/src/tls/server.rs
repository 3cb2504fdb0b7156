//! A listener's TLS, compiled once per configuration from the bytes of its files, in supervisor and data
//! plane alike.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::{TLS12, TLS13};

use super::certificate::Certificate;
use super::client_auth::{self, ClientAuth};
use super::identity::Identity;
use super::key_log::Secrets;
use super::resolver::Resolver;
use super::sessions::StoredSessions;
use super::tickets::{TicketKey, Tickets};
use super::{Part, TlsError, masked};

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
    /// `None`: no client is asked for a certificate.
    pub client_auth: Option<ClientAuth>,
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
    /// Tells what is asked of clients' certificates from anything else; `None`: no client is asked for one.
    print: Option<[u8; 32]>,
    /// When certificates are believed no more.
    ends_at: Option<i64>,
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
        let builder = match &settings.client_auth {
            Some(auth) => builder.with_client_cert_verifier(auth.verifier()?),
            None => builder.with_no_client_auth(),
        };
        let ends_at = settings.client_auth.as_ref().and_then(ClientAuth::ends_at);
        let print = settings.client_auth.as_ref().map(ClientAuth::print);
        let mut config =
            builder.with_cert_resolver(Arc::new(Resolver::new(&settings.certificates, Arc::clone(&clock))));
        config.alpn_protocols = settings.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        // The codec takes the traffic keys over when the handshake is done.
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(Secrets);
        if settings.early_data {
            config.max_early_data_size = EARLY_BYTES_MAX;
            config.session_storage = Arc::new(StoredSessions::new(Arc::clone(&clock), ends_at));
            config.send_half_rtt_data = true;
        } else {
            config.max_early_data_size = 0;
            // The default is a cache of this process behind a lock.
            config.session_storage = Arc::new(NoServerSessionStorage {});
        }
        let tickets = Arc::new(Tickets::new(&settings.ticket_keys, print, ends_at));
        if settings.session_tickets {
            config.ticketer = Arc::clone(&tickets) as Arc<dyn ProducesTickets>;
        }
        Ok(Self {
            config: Arc::new(config),
            certificates: settings.certificates.clone(),
            tickets,
            handshake_timeout: settings.handshake_timeout,
            max_handshakes: settings.max_handshakes,
            print,
            ends_at,
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

    /// Whether clients are asked for a certificate.
    #[must_use]
    pub const fn asks_for_certificates(&self) -> bool {
        self.print.is_some()
    }

    /// Tells what a certificate that was verified now was verified by.
    pub(super) fn print(&self) -> [u8; 32] {
        self.print.unwrap_or_default()
    }

    /// Whether a client that is connected may go on with the identity that it proved, or without one. It may
    /// not when other certificates are believed since, and a list of revoked ones is part of that.
    #[must_use]
    pub fn still_trusts(&self, identity: Option<&Identity>) -> bool {
        match (identity, &self.settings.client_auth) {
            (None, auth) => auth.as_ref().is_none_or(|auth| !auth.is_required),
            (Some(_), None) => false,
            (Some(identity), Some(_)) => {
                Some(identity.print) == self.print && !client_auth::is_over(self.ends_at)
            }
        }
    }
}

impl PartialEq for ServerTls {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

#[cfg(test)]
mod tests;
