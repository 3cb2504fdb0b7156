//! Clients with certificates that are good, revoked, or not to be judged, and files that are no lists.

use rcgen::{KeyPair, SerialNumber};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, ClientConnection, Error, HandshakeKind, ServerConnection};

use super::*;
use crate::tls::client::Credulous;
use crate::tls::server::{ServerTls, Settings};
use crate::tls::testing::{self, Authority};
use crate::tls::tickets::TicketKey;

const NAME: &str = "a.example";
const PAST: i32 = 2021;
const FUTURE: i32 = 2035;

/// A CA's list until the end of a year.
fn list(authority: &Authority, revoked: &[u64], until: i32) -> rcgen::CertificateRevocationList {
    authority.revoking(revoked, until)
}

fn auth(authority: &Authority, lists: &[&rcgen::CertificateRevocationList]) -> ClientAuth {
    let mut auth = ClientAuth::required(authority.pem().as_bytes());
    for list in lists {
        auth.crls.extend(ClientAuth::read_crls(authority.pem().as_bytes(), list.der()).expect("a list"));
    }
    auth
}

fn server(auth: ClientAuth, key: &TicketKey) -> ServerTls {
    let certificates = vec![Authority::new("Servers").leaf(&[NAME]).compiled()];
    let (client_auth, ticket_keys) = (Some(auth), vec![key.clone()]);
    ServerTls::new(Settings { client_auth, ticket_keys, ..testing::settings(certificates) }).expect("sound")
}

/// A client with a certificate of this number; `None`: with none.
fn client(
    authority: &Authority,
    serial: Option<u64>,
    version: &'static rustls::SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[version]);
    let builder = builder.expect("a version").dangerous();
    let builder = builder.with_custom_certificate_verifier(Arc::new(Credulous(provider())));
    let Some(serial) = serial else { return Arc::new(builder.with_no_client_auth()) };
    let mut params = testing::params(&["client.example"]);
    params.serial_number = Some(SerialNumber::from(serial));
    let key = KeyPair::generate().expect("a key");
    let pair = authority.issue(params, &key);
    let chain = pem::certificates(Part::Chain, pair.chain.as_bytes()).expect("PEM");
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Arc::new(builder.with_client_auth_cert(chain, key.into()).expect("a pair"))
}

fn meet(
    client: &Arc<ClientConfig>,
    server: &ServerTls,
) -> Result<(ClientConnection, ServerConnection), Error> {
    testing::handshake(Arc::clone(client), &server.config, NAME)
}

fn invalid(result: Result<(ClientConnection, ServerConnection), Error>) -> CertificateError {
    match result.err() {
        Some(Error::InvalidCertificate(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_is_revoked_is_refused() {
    let (clients, key) = (Authority::new("Clients"), TicketKey::random().expect("randomness"));
    let server = server(auth(&clients, &[&list(&clients, &[7, 9], FUTURE)]), &key);
    for version in [&TLS13, &TLS12] {
        for (serial, is_revoked) in [(7, true), (8, false), (9, true)] {
            let met = meet(&client(&clients, Some(serial), version), &server);
            if is_revoked {
                assert_eq!(invalid(met), CertificateError::Revoked, "{serial}");
            } else {
                met.expect("good");
            }
        }
        assert_eq!(
            meet(&client(&clients, None, version), &server).err(),
            Some(Error::NoCertificatesPresented)
        );
    }
}

#[test]
fn where_a_certificate_is_optional_a_shown_one_is_judged_all_the_same() {
    let (clients, strangers) = (Authority::new("Clients"), Authority::new("Strangers"));
    let key = TicketKey::random().expect("randomness");
    let auth = ClientAuth { is_required: false, ..auth(&clients, &[&list(&clients, &[7], FUTURE)]) };
    let server = server(auth, &key);
    for version in [&TLS13, &TLS12] {
        let (_, connection) = meet(&client(&clients, None, version), &server).expect("without");
        assert!(connection.peer_certificates().is_none());
        let (_, connection) = meet(&client(&clients, Some(8), version), &server).expect("with");
        assert!(connection.peer_certificates().is_some());
        assert_eq!(invalid(meet(&client(&clients, Some(7), version), &server)), CertificateError::Revoked);
        assert!(meet(&client(&strangers, Some(8), version), &server).is_err());
    }
}

#[test]
fn without_a_list_that_holds_nobody_is_believed() {
    let (clients, key) = (Authority::new("Clients"), TicketKey::random().expect("randomness"));
    let old = auth(&clients, &[&list(&clients, &[7], PAST)]);
    let accepts = ClientAuth { accepts_expired: true, ..old.clone() };
    let (refusing, accepting) = (server(old, &key), server(accepts, &key));
    let met = invalid(meet(&client(&clients, Some(8), &TLS13), &refusing));
    assert!(matches!(met, CertificateError::ExpiredRevocationListContext { .. }), "{met:?}");
    meet(&client(&clients, Some(8), &TLS13), &accepting).expect("believed all the same");
    assert_eq!(invalid(meet(&client(&clients, Some(7), &TLS13), &accepting)), CertificateError::Revoked);
    // Of two CAs one has no list.
    let others = Authority::new("Others");
    let both = [clients.pem(), others.pem()].concat();
    let mut auth = ClientAuth::required(both.as_bytes());
    auth.crls = ClientAuth::read_crls(&auth.ca, list(&clients, &[7], FUTURE).der()).expect("a list");
    assert_eq!(auth.without_crl(), ["CN=Others"]);
    let server = server(auth, &key);
    meet(&client(&clients, Some(8), &TLS13), &server).expect("judged");
    let met = invalid(meet(&client(&others, Some(8), &TLS13), &server));
    assert_eq!(met, CertificateError::UnknownRevocationStatus);
}

#[test]
fn a_new_list_is_the_end_of_sessions_and_of_their_end_too() {
    let (clients, key) = (Authority::new("Clients"), TicketKey::random().expect("randomness"));
    let first = auth(&clients, &[&list(&clients, &[], FUTURE)]);
    let second = auth(&clients, &[&list(&clients, &[7], FUTURE)]);
    let third = ClientAuth { is_required: false, ..first.clone() };
    for version in [&TLS13, &TLS12] {
        let client = client(&clients, Some(7), version);
        let before = server(first.clone(), &key);
        let kind = |server: &ServerTls| meet(&client, server).map(|(_, met)| met.handshake_kind());
        assert_eq!(kind(&before), Ok(Some(HandshakeKind::Full)));
        assert_eq!(kind(&before), Ok(Some(HandshakeKind::Resumed)));
        // The same by another name: as after a reload.
        assert_eq!(kind(&server(first.clone(), &key)), Ok(Some(HandshakeKind::Resumed)));
        assert_eq!(kind(&server(third.clone(), &key)), Ok(Some(HandshakeKind::Full)), "it may ask for less");
        assert_eq!(
            kind(&server(second.clone(), &key)),
            Err(Error::InvalidCertificate(CertificateError::Revoked))
        );
    }
    let tickets =
        |ends_at| crate::tls::tickets::Tickets::new(std::slice::from_ref(&key), Some([1; 32]), ends_at);
    use rustls::server::ProducesTickets as _;
    let ticket = tickets(None).encrypt(b"state").expect("a ticket");
    let now = i64::try_from(UnixTime::now().as_secs()).expect("a time");
    for (ends_at, opens) in [(None, true), (Some(now + 600), true), (Some(now - 1), false)] {
        assert_eq!(tickets(ends_at).decrypt(&ticket).is_some(), opens, "{ends_at:?}");
    }
}

#[test]
fn connections_go_on_as_long_as_what_they_were_judged_by() {
    let (clients, key) = (Authority::new("Clients"), TicketKey::random().expect("randomness"));
    let base = auth(&clients, &[&list(&clients, &[], FUTURE)]);
    let judge = server(base.clone(), &key);
    let identity = crate::tls::identity::Identity { value: "Hash=1".into(), print: judge.print() };
    assert!(judge.still_trusts(Some(&identity)) && !judge.still_trusts(None));
    for (other, with, without) in [
        (base.clone(), true, false),
        (auth(&clients, &[&list(&clients, &[7], FUTURE)]), false, false),
        (auth(&clients, &[]), false, false),
        (ClientAuth { is_required: false, ..base.clone() }, false, true),
        (ClientAuth { accepts_expired: true, ..base }, false, false),
    ] {
        let other = server(other, &key);
        assert_eq!((other.still_trusts(Some(&identity)), other.still_trusts(None)), (with, without));
    }
    // A list that has ended since.
    let ended = server(auth(&clients, &[&list(&clients, &[], PAST)]), &key);
    let identity = crate::tls::identity::Identity { value: "Hash=1".into(), print: ended.print() };
    assert!(!ended.still_trusts(Some(&identity)));
}

#[test]
fn each_wrong_file_says_what_is_wrong() {
    let (clients, impostors) = (Authority::new("Clients"), Authority::new("Clients"));
    let others = Authority::new("Others");
    let good = list(&clients, &[7], FUTURE);
    let read = |bytes: &[u8]| ClientAuth::read_crls(clients.pem().as_bytes(), bytes);
    let text = good.pem().expect("PEM");
    assert_eq!(read(text.as_bytes()).expect("PEM"), read(good.der()).expect("DER"));
    let two = [text.clone(), list(&others, &[], FUTURE).pem().expect("PEM")].concat();
    let two = read(two.as_bytes()).expect("two lists");
    assert_eq!(two.iter().map(|crl| crl.is_of_known).collect::<Vec<_>>(), [true, false]);
    assert_eq!((&*two[1].issuer, two[0].next_update), ("CN=Others", Some(2_082_672_000)));
    let cut = &good.der()[..good.der().len() - 3];
    let longer = [&good.der()[..], b"x"].concat();
    for (bytes, words) in [
        (&b""[..], "is empty"),
        (b"nothing", "is not PEM"),
        (clients.pem().as_bytes(), "holds a certificate and no list of revoked certificates"),
        (cut, "holds no list of revoked certificates, or a damaged one"),
        (&longer, "goes on behind its list"),
        (text.replace("-----END", "-----DNE").as_bytes(), "is damaged"),
        (
            list(&impostors, &[], FUTURE).der(),
            "names \"CN=Clients\" as its CA, but the CA of that name has not",
        ),
    ] {
        let error = read(bytes).expect_err(words);
        assert!(error.part == Part::Crl && error.message.starts_with(words), "{error}");
    }
    assert_eq!(read(good.der()).expect("sound")[0].due(1_600_000_000, false), None);
    let due = |crl: &rcgen::CertificateRevocationList, accepts| {
        read(crl.der()).expect("sound")[0].due(1_700_000_000, accepts).expect("due")
    };
    let old = list(&clients, &[], PAST);
    assert!(due(&old, false).starts_with("of \"CN=Clients\" was to be replaced on 2021-12-31: until"));
    assert!(due(&old, true).contains("believes it all the same"));
}
