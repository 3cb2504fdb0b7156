//! Handshakes in memory: the certificates that an upstream's TLS believes and shows, and the sessions that it
//! resumes.

use std::time::Duration;

use rustls::{HandshakeKind, ServerConfig};

use super::*;
use crate::tls::client_auth::ClientAuth;
use crate::tls::server::{self, MinVersion, ServerTls};
use crate::tls::testing::{Authority, handshake};

fn server(certificate: Arc<Certificate>, client_ca: Option<&Authority>) -> ServerTls {
    ServerTls::new(server::Settings {
        certificates: vec![certificate],
        min_version: MinVersion::Tls12,
        alpn: vec!["http/1.1".into()],
        client_auth: client_ca.map(|authority| ClientAuth::required(authority.pem().as_bytes())),
        session_tickets: true,
        early_data: false,
        ticket_keys: vec![],
        handshake_timeout: Duration::from_secs(10),
        max_handshakes: 256,
    })
    .expect("sound")
}

fn trusting(authority: &Authority) -> Settings {
    let trust = Trust::Ca(authority.pem().as_bytes().into());
    Settings { server_name: None, trust, certificate: None, alpn: vec!["http/1.1".into()] }
}

fn endpoint(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

/// Whether a handshake with an endpoint at 192.0.2.1 comes to its end.
fn reaches(settings: Settings, server: &ServerTls) -> Result<(), rustls::Error> {
    let client = ClientTls::new(settings).expect("sound");
    let name = client.server_name(endpoint("192.0.2.1"));
    handshake(client.with_own_sessions(), &server.config, &name.to_str()).map(drop)
}

#[test]
fn an_endpoint_has_to_be_whom_the_ca_vouches_for() {
    let (authority, stranger) = (Authority::new("CA"), Authority::new("Stranger"));
    let by_address = server(authority.leaf(&["192.0.2.1"]).compiled(), None);
    let by_name = server(authority.leaf(&["app.example"]).compiled(), None);
    let named =
        || Settings { server_name: Some("app.example".try_into().expect("a name")), ..trusting(&authority) };
    assert_eq!(reaches(trusting(&authority), &by_address), Ok(()));
    assert_eq!(reaches(named(), &by_name), Ok(()));
    assert!(reaches(trusting(&authority), &by_name).is_err(), "for a name, not for the address");
    assert!(reaches(named(), &by_address).is_err(), "for the address, not for the name");
    assert!(reaches(trusting(&stranger), &by_address).is_err(), "by nobody whom we trust");
}

#[test]
fn without_verification_anybody_who_has_a_key_is_believed() {
    let authority = Authority::new("CA");
    let settings = || Settings { trust: Trust::Anyone, ..trusting(&authority) };
    for certificate in [authority.leaf(&["other.example"]), Authority::new("Stranger").leaf(&["192.0.2.1"])] {
        assert_eq!(reaches(settings(), &server(certificate.compiled(), None)), Ok(()));
    }
    let config = ClientTls::new(settings()).expect("sound").with_own_sessions();
    assert!(config.enable_secret_extraction && !config.enable_early_data);
}

#[test]
fn the_certificate_is_shown_to_an_endpoint_that_asks() {
    let (authority, clients) = (Authority::new("CA"), Authority::new("Clients"));
    let server = server(authority.leaf(&["192.0.2.1"]).compiled(), Some(&clients));
    assert!(reaches(trusting(&authority), &server).is_err(), "without one");
    let certificate = Some(clients.leaf(&["sluice.example"]).compiled());
    assert_eq!(reaches(Settings { certificate, ..trusting(&authority) }, &server), Ok(()));
}

#[test]
fn sessions_are_resumed_where_they_were_made() {
    let authority = Authority::new("CA");
    let mut server = ServerConfig::clone(&server(authority.leaf(&["a.example"]).compiled(), None).config);
    server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().expect("a ticketer");
    let server = Arc::new(server);
    let client = ClientTls::new(trusting(&authority)).expect("sound");
    let kind = |config: &Arc<ClientConfig>| {
        let (client, _) = handshake(Arc::clone(config), &server, "a.example").expect("a handshake");
        client.handshake_kind().expect("done")
    };
    let full = |kind| matches!(kind, HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest);
    let (one, other) = (client.with_own_sessions(), client.with_own_sessions());
    for config in [&one, &other] {
        assert!(full(kind(config)));
        assert_eq!(kind(config), HandshakeKind::Resumed);
    }
}

#[test]
fn the_server_name_is_the_settings_or_the_endpoints_address() {
    let authority = Authority::new("CA");
    let client = ClientTls::new(trusting(&authority)).expect("sound");
    assert_eq!(client.server_name(endpoint("2001:db8::1")).to_str(), "2001:db8::1");
    let named =
        Settings { server_name: Some("b.example".try_into().expect("a name")), ..trusting(&authority) };
    let named = ClientTls::new(named).expect("sound");
    assert_eq!(named.server_name(endpoint("192.0.2.1")).to_str(), "b.example");
    assert_ne!(client, named);
    assert_eq!(client, ClientTls::new(trusting(&authority)).expect("sound"));
}

#[test]
fn a_bundle_of_the_system_may_hold_what_is_not_usable_and_a_ca_may_not() {
    let authority = Authority::new("CA");
    // X.509 by its outside only.
    let odd = "-----BEGIN CERTIFICATE-----\nMAUwAzABAA==\n-----END CERTIFICATE-----\n";
    let bundle: Arc<[u8]> = format!("{odd}{}", authority.pem()).into_bytes().into();
    let make = |trust| ClientTls::new(Settings { trust, ..trusting(&authority) });
    assert!(make(Trust::System(bundle.clone())).is_ok());
    let refused = |trust| make(trust).expect_err("refused");
    assert!(refused(Trust::Ca(bundle)).message.starts_with("certificate 1 is not usable"));
    let none = refused(Trust::System(odd.as_bytes().into()));
    assert_eq!((none.part, none.message.as_str()), (Part::Ca, "holds no certificate that is usable"));
    assert_eq!(refused(Trust::Ca([].into())).message, "is empty");
}
