//! Certificates and settings of a world in which TLS is spoken. Everything has the same length in every
//! process. A signature or a serial number with one byte more would make another world, since the ring's
//! choices depend on lengths. A seed does not fix the content of records, and nothing here looks at it.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::tls::certificate::Certificate;
use crate::tls::client::{self, ClientTls, Trust};
use crate::tls::server::{self, MinVersion, ServerTls};
use crate::tls::testing::{self, Authority, Pair};
use crate::tls::tickets::TicketKey;

/// The name that clients and Sluice look for.
pub(super) const NAME: &str = "sim.example";
/// The other name that clients of pass-through look for; no route has it.
pub(super) const OTHER: &str = "other.example";

/// The address that clients connect to that look for no name.
pub(super) const ADDRESS: &str = "192.0.2.2";

struct Files {
    ca: String,
    /// A certificate for both names and for the address.
    sound: Pair,
    certificate: Arc<Certificate>,
    /// A certificate from a CA that nobody believes.
    stray: Pair,
}

static FILES: LazyLock<Files> = LazyLock::new(|| {
    let (authority, strange) = (Authority::fixed("Sim CA", 1), Authority::fixed("Stray CA", 2));
    let leaf = |authority: &Authority, number| {
        authority.issue(testing::params(&[NAME, OTHER, ADDRESS]), &testing::fixed_key(number))
    };
    let sound = leaf(&authority, 3);
    Files { ca: authority.pem().to_owned(), certificate: sound.compiled(), sound, stray: leaf(&strange, 4) }
});

/// The version of TLS that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Tls12,
    Tls13,
    PostQuantum,
}

impl Dialect {
    pub(super) const ALL: [Self; 3] = [Self::Tls12, Self::Tls13, Self::PostQuantum];
}

/// How a listener's sessions can be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    Nothing,
    Tickets,
    /// Sessions, with early data.
    Sessions,
}

impl Keeps {
    pub(super) const ALL: [Self; 3] = [Self::Nothing, Self::Tickets, Self::Sessions];
}

/// The settings that clients and origins of one world make their connections with. They keep sessions, which
/// no other world knows.
pub(super) struct Parties {
    clients: [Arc<ClientConfig>; 3],
    /// With the certificate that is believed, and with the other.
    origins: [Arc<ServerConfig>; 2],
}

impl Parties {
    pub(super) fn new() -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(FILES.ca.as_bytes()).expect("a CA")).expect("a root");
        let client = |dialect| {
            let mut provider = default_provider();
            if dialect != Dialect::PostQuantum {
                provider.kx_groups = vec![kx_group::X25519];
            }
            let versions = if dialect == Dialect::Tls12 { &[&TLS12] } else { &[&TLS13] };
            let builder =
                ClientConfig::builder_with_provider(provider.into()).with_protocol_versions(versions);
            let mut config =
                builder.expect("versions").with_root_certificates(roots.clone()).with_no_client_auth();
            config.resumption = Resumption::in_memory_sessions(8);
            config.enable_early_data = true;
            Arc::new(config)
        };
        let origin = |pair: &Pair| {
            let builder = ServerConfig::builder_with_provider(default_provider().into())
                .with_safe_default_protocol_versions();
            let chain = CertificateDer::from_pem_slice(pair.chain.as_bytes()).expect("a chain");
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("a key");
            Arc::new(
                builder
                    .expect("versions")
                    .with_no_client_auth()
                    .with_single_cert(vec![chain], key)
                    .expect("a pair"),
            )
        };
        Self { clients: Dialect::ALL.map(client), origins: [origin(&FILES.sound), origin(&FILES.stray)] }
    }

    pub(super) const fn client(&self, dialect: Dialect) -> &Arc<ClientConfig> {
        &self.clients[dialect as usize]
    }

    pub(super) fn origin(&self, is_believed: bool) -> &Arc<ServerConfig> {
        &self.origins[usize::from(!is_believed)]
    }
}

pub(super) fn name(name: &'static str) -> ServerName<'static> {
    ServerName::try_from(name).expect("a name")
}

pub(super) fn listener(handshake_timeout: Duration, max_handshakes: usize, keeps: Keeps) -> Arc<ServerTls> {
    let settings = server::Settings {
        certificates: vec![Arc::clone(&FILES.certificate)],
        min_version: MinVersion::Tls12,
        alpn: vec!["http/1.1".into()],
        client_auth: None,
        session_tickets: keeps == Keeps::Tickets,
        early_data: keeps == Keeps::Sessions,
        ticket_keys: vec![TicketKey::from_file(&[7; 48]).expect("a key")],
        handshake_timeout,
        max_handshakes,
    };
    Arc::new(ServerTls::new(settings).expect("settings"))
}

pub(super) fn upstream() -> Arc<ClientTls> {
    let settings = client::Settings {
        server_name: Some(name(NAME)),
        trust: Trust::Ca(FILES.ca.as_bytes().into()),
        certificate: None,
        alpn: Vec::new(),
    };
    Arc::new(ClientTls::new(settings).expect("settings"))
}
