//! Handshakes in memory against the promises of settings.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, NamedGroup, ProtocolVersion};

use super::*;
use crate::tls::testing::{Authority, handshake, settings};
use crate::tls::{provider, roots};

/// Roots of a client that trusts an authority.
fn client(authority: &Authority) -> ClientConfig {
    let roots = roots(Part::ClientCa, authority.pem().as_bytes()).expect("a CA");
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions");
    builder.with_root_certificates(roots).with_no_client_auth()
}

#[test]
fn a_handshake_has_what_was_asked_for() {
    let authority = Authority::new("CA");
    let server = ServerTls::new(settings(vec![authority.leaf(&["a.example"]).compiled()])).expect("sound");
    let mut config = client(&authority);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (client, connection) = handshake(config, &server.config, "a.example").expect("a handshake");
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(connection.negotiated_key_exchange_group().expect("one").name(), NamedGroup::X25519MLKEM768);
    assert_eq!(client.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
    // The codec takes these secrets over.
    assert!(connection.dangerous_extract_secrets().is_ok());
    // Without keys there are no tickets, and no early data ever.
    assert!(!server.config.ticketer.enabled() && !server.config.session_storage.can_cache());
    assert_eq!(server.config.max_early_data_size, 0);
}

#[test]
fn an_unknown_application_protocol_is_refused() {
    let authority = Authority::new("CA");
    let server = ServerTls::new(settings(vec![authority.leaf(&["a.example"]).compiled()])).expect("sound");
    let mut config = client(&authority);
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert_eq!(
        handshake(config, &server.config, "a.example").err(),
        Some(rustls::Error::NoApplicationProtocol)
    );
    assert!(handshake(client(&authority), &server.config, "a.example").is_ok(), "without ALPN");
}

#[test]
fn min_version_leaves_tls_1_2_out() {
    let authority = Authority::new("CA");
    let certificate = authority.leaf(&["a.example"]).compiled();
    let old = || {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS12])
            .expect("versions");
        let roots = roots(Part::ClientCa, authority.pem().as_bytes()).expect("a CA");
        builder.with_root_certificates(roots).with_no_client_auth()
    };
    let server = ServerTls::new(settings(vec![certificate.clone()])).expect("sound");
    let (client, _) = handshake(old(), &server.config, "a.example").expect("1.2");
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    let server = ServerTls::new(Settings { min_version: MinVersion::Tls13, ..settings(vec![certificate]) })
        .expect("sound");
    assert!(handshake(old(), &server.config, "a.example").is_err());
}

#[test]
fn the_name_that_a_client_sends_chooses_its_certificate() {
    let authority = Authority::new("CA");
    let certificates =
        vec![authority.leaf(&["a.example"]).compiled(), authority.leaf(&["*.b.example"]).compiled()];
    let server = ServerTls::new(settings(certificates)).expect("sound");
    for name in ["a.example", "x.b.example"] {
        handshake(client(&authority), &server.config, name).expect(name);
    }
    assert!(
        handshake(client(&authority), &server.config, "c.example").is_err(),
        "the default's name is not the client's"
    );
}

/// A client that takes every certificate.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    /// RSA alone.
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::RSA_PSS_SHA256]
    }
}

#[test]
fn a_client_of_rsa_alone_gets_the_rsa_certificate() {
    let authority = Authority::new("CA");
    let rsa = authority
        .issue(crate::tls::testing::params(&["a.example"]), &crate::tls::testing::rsa_key())
        .compiled();
    let server = ServerTls::new(settings(vec![authority.leaf(&["a.example"]).compiled(), rsa.clone()]))
        .expect("sound");
    let mut config = client(&authority);
    config.dangerous().set_certificate_verifier(Arc::new(Credulous));
    let (connection, _) = handshake(config, &server.config, "a.example").expect("a handshake");
    assert_eq!(connection.peer_certificates().expect("some")[0], rsa.certified(|| None).cert[0]);
    let (connection, _) = handshake(client(&authority), &server.config, "a.example").expect("a handshake");
    assert_ne!(connection.peer_certificates().expect("some")[0], rsa.certified(|| None).cert[0]);
}

#[test]
fn client_ca_requires_a_certificate_of_its_own() {
    let (authority, clients) = (Authority::new("CA"), Authority::new("Clients"));
    let settings = Settings {
        client_auth: Some(ClientAuth::required(clients.pem().as_bytes())),
        ..settings(vec![authority.leaf(&["a.example"]).compiled()])
    };
    let server = ServerTls::new(settings).expect("sound");
    assert!(handshake(client(&authority), &server.config, "a.example").is_err(), "without a certificate");
    for (issuer, accepted) in [(&clients, true), (&authority, false)] {
        let certificate = issuer.leaf(&["client.example"]).compiled();
        let mut config = client(&authority);
        config.client_auth_cert_resolver =
            Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(certificate.certified(|| None))));
        let done = handshake(config, &server.config, "a.example");
        assert_eq!(done.is_ok(), accepted, "{:?}", done.err());
        if let Ok((_, connection)) = done {
            assert_eq!(
                connection.peer_certificates().expect("some")[0],
                certificate.certified(|| None).cert[0]
            );
        }
    }
}

#[test]
fn a_client_ca_that_is_none_is_refused() {
    let authority = Authority::new("CA");
    let leaf = authority.leaf(&["a.example"]);
    for (bytes, words) in [("", "is empty"), (&*leaf.key, "holds a private key and no certificate")] {
        let settings = Settings {
            client_auth: Some(ClientAuth::required(bytes.as_bytes())),
            ..settings(vec![leaf.compiled()])
        };
        let error = ServerTls::new(settings).expect_err("refused");
        assert_eq!((error.part, error.message.as_str()), (Part::ClientCa, words));
    }
}

#[test]
fn equal_are_those_of_equal_settings() {
    let certificate = Authority::new("CA").leaf(&["a.example"]).compiled();
    let make = |min_version| {
        ServerTls::new(Settings { min_version, ..settings(vec![certificate.clone()]) }).expect("sound")
    };
    assert_eq!(make(MinVersion::Tls12), make(MinVersion::Tls12));
    assert_ne!(make(MinVersion::Tls12), make(MinVersion::Tls13));
}
