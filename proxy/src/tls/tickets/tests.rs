//! Tickets between rings of keys, and between rustls' client and servers that share them.

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConnection};

use super::*;
use crate::tls::certificate::{Certificate, Files};
use crate::tls::server::{MinVersion, ServerTls, Settings};
use crate::tls::testing::{Authority, Pair};

fn key() -> TicketKey {
    TicketKey::random().expect("randomness")
}

fn tickets(keys: &[TicketKey]) -> Tickets {
    let tickets = Tickets::new(&[], None, None);
    tickets.install(&Arc::new(Keys::new(keys)));
    tickets
}

#[test]
fn a_ticket_opens_wherever_its_key_is() {
    let (old, new) = (key(), key());
    let (before, after) = (tickets(std::slice::from_ref(&old)), tickets(&[new.clone(), old.clone()]));
    let ticket = before.encrypt(b"state").expect("a ticket");
    assert_eq!(after.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
    // As another process has it.
    let elsewhere = tickets(&TicketKey::split(&TicketKey::concat(&[new.clone(), old])).expect("two keys"));
    assert_eq!(elsewhere.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
    // The first key makes tickets: tickets of the new key are not known before.
    let ticket = after.encrypt(b"state").expect("a ticket");
    assert_eq!((before.decrypt(&ticket), elsewhere.decrypt(&ticket).is_some()), (None, true));
    // Once it is gone, so are its sessions.
    before.install(&Arc::new(Keys::new(&[new, key()])));
    assert!(before.decrypt(&ticket).is_some());
    before.install(&Arc::new(Keys::new(&[key(), key()])));
    assert_eq!(before.decrypt(&ticket), None);
}

#[test]
fn without_keys_there_are_no_tickets() {
    let none = Tickets::new(&[], None, None);
    assert!(!none.enabled() && none.encrypt(b"state").is_none() && none.decrypt(&[0; 100]).is_none());
    none.install(&Arc::new(Keys::new(&[key()])));
    assert!(none.enabled() && none.lifetime() == 43_200);
}

#[test]
fn own_keys_are_not_replaced() {
    let own = key();
    let tickets = Tickets::new(&[own], None, None);
    let ticket = tickets.encrypt(b"state").expect("a ticket");
    tickets.install(&Arc::new(Keys::new(&[key()])));
    assert!(tickets.decrypt(&ticket).is_some());
}

#[test]
fn what_is_not_whole_or_not_ours_is_not_opened() {
    let (one, other) = (key(), key());
    let ours = tickets(std::slice::from_ref(&one));
    let ticket = ours.encrypt(b"a state of some length").expect("a ticket");
    for length in 0..ticket.len() {
        assert_eq!(ours.decrypt(&ticket[..length]), None, "{length}");
    }
    for at in 0..ticket.len() {
        let mut changed = ticket.clone();
        changed[at] ^= 1;
        assert_eq!(ours.decrypt(&changed), None, "{at}");
    }
    assert_eq!(ours.decrypt(&[&ticket[..], b"x"].concat()), None);
    // The right name over another secret.
    let mut forged = other;
    forged.0[..NAME_BYTES].copy_from_slice(one.name());
    assert_eq!(tickets(&[forged]).decrypt(&ticket), None);
    let long = vec![0; STATE_BYTES_MAX + 1];
    assert!(
        ours.encrypt(&long).is_none()
            && ours.encrypt(&long[1..]).is_some_and(|ticket| ours.decrypt(&ticket).is_some())
    );
    assert_eq!(ours.decrypt(&vec![0; 65_535]), None);
}

#[test]
fn the_same_state_never_looks_the_same() {
    let ours = tickets(&[key()]);
    assert_ne!(ours.encrypt(b"state"), ours.encrypt(b"state"));
}

#[test]
fn what_a_client_had_to_show_is_bound_into_its_ticket() {
    let keys = [key()];
    let with = |client_auth| Tickets::new(&keys, client_auth, None);
    let all = [with(None), with(Some([7; 32])), with(Some([1; 32])), with(Some([2; 32]))];
    for (index, tickets) in all.iter().enumerate() {
        let ticket = tickets.encrypt(b"state").expect("a ticket");
        let opened: Vec<bool> = all.iter().map(|tickets| tickets.decrypt(&ticket).is_some()).collect();
        assert_eq!(opened, (0..4).map(|other| other == index).collect::<Vec<_>>());
    }
}

#[test]
fn files_have_48_or_80_bytes_and_every_byte_counts() {
    for length in FILE_BYTES {
        let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let made = TicketKey::from_file(&bytes).expect("a key");
        assert_eq!((made.name(), TicketKey::from_file(&bytes) == Some(made.clone())), (&bytes[..16], true));
        for at in 0..length {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let other = TicketKey::from_file(&changed).expect("a key");
            assert!(other != made && other.is_named_as(&made) == (at >= 16), "{at}");
        }
    }
    for length in [0, 47, 49, 79, 81, 96] {
        assert!(TicketKey::from_file(&vec![0; length]).is_none());
    }
}

#[test]
fn keys_travel_whole_or_not_at_all() {
    let keys: Vec<TicketKey> = (0..KEYS_MAX).map(|_| key()).collect();
    assert!(TicketKey::split(&TicketKey::concat(&keys)).is_some_and(|read| read == keys));
    let bytes = vec![0; TicketKey::BYTES * (KEYS_MAX + 1)];
    for length in [0, 1, TicketKey::BYTES - 1, TicketKey::BYTES + 1, bytes.len()] {
        assert!(TicketKey::split(&bytes[..length]).is_none(), "{length}");
    }
}

#[test]
fn nothing_of_a_key_is_shown() {
    let (key, tickets) =
        (TicketKey([0xab; TicketKey::BYTES]), tickets(&[TicketKey([0xab; TicketKey::BYTES])]));
    let shown = format!("{key:?} {:?} {tickets:?}", Keys::new(std::slice::from_ref(&key)));
    assert!(
        !shown.contains("171") && !shown.to_lowercase().contains("ab, ") && shown.contains("1 keys"),
        "{shown}"
    );
}

fn server(pair: &Pair, own: &[TicketKey], session_tickets: bool) -> ServerTls {
    let files = Files { chain: pair.chain.as_bytes(), key: pair.key.as_bytes(), ocsp: None };
    let settings = Settings {
        certificates: vec![Arc::new(Certificate::new(files).expect("sound"))],
        min_version: MinVersion::Tls12,
        alpn: vec!["http/1.1".into()],
        client_auth: None,
        session_tickets,
        early_data: false,
        ticket_keys: own.to_vec(),
        handshake_timeout: Duration::from_secs(10),
        max_handshakes: 16,
    };
    ServerTls::new(settings).expect("sound")
}

/// One handshake, and how it went.
fn shake(client: &Arc<ClientConfig>, server: &ServerTls) -> HandshakeKind {
    let name = ServerName::try_from("a.example").expect("a name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let mut server = ServerConnection::new(Arc::clone(&server.config)).expect("a server");
    while client.is_handshaking() || server.is_handshaking() || server.wants_write() || client.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("memory");
        }
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            server.read_tls(&mut left).expect("memory");
            server.process_new_packets().expect("sound");
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("memory");
        }
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            client.read_tls(&mut left).expect("memory");
            client.process_new_packets().expect("sound");
        }
    }
    server.handshake_kind().expect("done")
}

#[test]
fn rustls_resumes_wherever_the_keys_are_shared() {
    let authority = Authority::new("CA");
    let pair = authority.leaf(&["a.example"]);
    let mut roots = RootCertStore::empty();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("PEM"))
        .expect("a root");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = || {
            let builder = ClientConfig::builder_with_provider(crate::tls::provider())
                .with_protocol_versions(&[version]);
            Arc::new(builder.expect("a version").with_root_certificates(roots.clone()).with_no_client_auth())
        };
        let full = |kind: HandshakeKind| kind != HandshakeKind::Resumed;
        let keys = Arc::new(Keys::new(&[key()]));
        let (one, other) = (server(&pair, &[], true), server(&pair, &[], true));
        // Before there are keys, each handshake is a full one.
        let early = client();
        assert!(full(shake(&early, &one)) && full(shake(&early, &one)));
        one.tickets.install(&keys);
        other.tickets.install(&keys);
        let ours = client();
        assert!(full(shake(&ours, &one)));
        assert_eq!(shake(&ours, &other), HandshakeKind::Resumed, "as on another worker");
        // After a change of keys nothing is wrong with an old ticket.
        other.tickets.install(&Arc::new(Keys::new(&[key()])));
        assert!(full(shake(&ours, &other)));
        assert_eq!(shake(&ours, &other), HandshakeKind::Resumed);
        // From files, as two machines have them.
        let file = [TicketKey::from_file(&[7; 80]).expect("a key")];
        let ours = client();
        assert!(full(shake(&ours, &server(&pair, &file, true))));
        assert_eq!(shake(&ours, &server(&pair, &file, true)), HandshakeKind::Resumed);
        // Switched off.
        let (off, ours) = (server(&pair, &[], false), client());
        off.tickets.install(&keys);
        assert!(full(shake(&ours, &off)) && full(shake(&ours, &off)));
    }
}

proptest! {
    #[test]
    fn any_state_comes_back_and_no_bytes_panic(
        state in prop::collection::vec(any::<u8>(), 0..600),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let key = key();
        let ours = tickets(std::slice::from_ref(&key));
        let ticket = ours.encrypt(&state).expect("a ticket");
        prop_assert_eq!(ours.decrypt(&ticket), Some(state));
        prop_assert_eq!(ours.decrypt(&garbage), None);
        prop_assert_eq!(ours.decrypt(&[key.name(), &garbage].concat()), None);
    }
}
