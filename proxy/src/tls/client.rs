//! TLS to an upstream's endpoints, compiled once per configuration from the bytes of its files, in supervisor
//! and data plane alike.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::certificate::Certificate;
use super::key_log::Secrets;
use super::{Part, TlsError, pem, provider, roots};

/// The issuers that an endpoint's certificate must come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Trust {
    /// One of these PEM certificates, each of which must be sound: `upstream.tls.ca`.
    Ca(Arc<[u8]>),
    /// One of these PEM certificates, those left out that are not usable: the system's.
    System(Arc<[u8]>),
    /// Nobody: `verify = false`.
    Anyone,
}

/// The settings that an upstream's TLS is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `None`: the endpoint's host.
    pub server_name: Option<ServerName<'static>>,
    /// Whose certificates are believed.
    pub trust: Trust,
    /// The certificate for endpoints that ask for one.
    pub certificate: Option<Arc<Certificate>>,
    /// Protocols that we offer (RFC 7301); empty: the extension is left out.
    pub alpn: Vec<Box<str>>,
}

/// An upstream's TLS.
#[derive(Debug)]
pub struct ClientTls {
    /// Without sessions: `with_own_sessions`.
    config: ClientConfig,
    settings: Settings,
}

impl ClientTls {
    /// Compiles settings.
    ///
    /// # Errors
    /// An error of the trusted certificates.
    pub fn new(settings: Settings) -> Result<Self, TlsError> {
        let verifier: Arc<dyn ServerCertVerifier> = match &settings.trust {
            Trust::Ca(bytes) => verifier(roots(Part::Ca, bytes)?)?,
            Trust::System(bytes) => verifier(usable_roots(bytes)?)?,
            Trust::Anyone => Arc::new(Credulous(provider())),
        };
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder =
            builder.map_err(|error| TlsError::new(Part::Ca, error.to_string(), "a supported version"))?;
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match &settings.certificate {
            Some(certificate) => {
                let shown = SingleCertAndKey::from(Arc::clone(certificate.certified(|| None)));
                builder.with_client_cert_resolver(Arc::new(shown))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = settings.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        // The codec takes the traffic keys over when the handshake is done.
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(Secrets);
        config.enable_early_data = false;
        config.resumption = Resumption::disabled();
        Ok(Self { config, settings })
    }

    /// The settings of connections, with a cache of sessions of its own, for one worker and one endpoint. The
    /// cache needs no lock that another thread holds, and never shows one endpoint the ticket of another.
    #[must_use]
    pub fn with_own_sessions(&self) -> Arc<ClientConfig> {
        let mut config = self.config.clone();
        // The key is the server's name, which is one here.
        config.resumption = Resumption::in_memory_sessions(1);
        Arc::new(config)
    }

    /// The name that a connection to `endpoint` has to reach.
    #[must_use]
    pub fn server_name(&self, address: IpAddr) -> ServerName<'static> {
        match &self.settings.server_name {
            Some(name) => name.clone(),
            None => ServerName::from(address),
        }
    }

    /// The settings that it was made from.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }
}

impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

fn verifier(roots: RootCertStore) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    verifier.map_err(|error| {
        TlsError::new(Part::Ca, format!("is not usable: {error}"), "certificates of CAs, in PEM")
    })
}

/// The usable roots of a bundle: the operator cannot mend the others.
fn usable_roots(bytes: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(pem::certificates(Part::Ca, bytes)?);
    if added == 0 {
        return Err(TlsError::new(
            Part::Ca,
            "holds no certificate that is usable",
            "certificates of CAs, in PEM",
        ));
    }
    Ok(roots)
}

/// Believes every certificate, but no peer without the certificate's key.
#[derive(Debug)]
pub struct Credulous(pub Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
