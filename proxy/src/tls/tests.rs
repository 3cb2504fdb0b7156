//! Handshakes and records against rustls' own buffered connections, which know nothing of either.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion,
};

use super::agreed::Alpn;
use super::handshake::{Established, Failure, Handshake, INPUT_BYTES_MAX, Progress};
use super::records::{HEADER_BYTES, Opened, Records, Sealed, Violation};
use super::{alert, client, client_auth, provider, server, testing};
use crate::time::Time;

pub(super) const NAME: &str = "edge.test";

struct Pki {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// A server's and a client's side that trust each other, and speak this version with this suite alone.
fn pki(version: &'static SupportedProtocolVersion, suite: Option<rustls::SupportedCipherSuite>) -> Pki {
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).expect("certificate");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("root");
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    if let Some(suite) = suite {
        provider.cipher_suites = vec![suite];
    }
    let provider = Arc::new(provider);
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .expect("version");
    let mut server = server
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("pair");
    server.enable_secret_extraction = true;
    let client =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).expect("version");
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    client.enable_secret_extraction = true;
    Pki { server: Arc::new(server), client: Arc::new(client) }
}

fn suites() -> Vec<(&'static SupportedProtocolVersion, rustls::SupportedCipherSuite)> {
    let all = rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES.iter().copied();
    all.filter(|suite| !format!("{suite:?}").contains("RSA"))
        .map(|suite| (if suite.tls13().is_some() { &TLS13 } else { &TLS12 }, suite))
        .collect()
}

fn client_of(pki: &Pki) -> ClientConnection {
    let mut client = unbounded(pki);
    client.set_buffer_limit(None);
    client
}

fn unbounded(pki: &Pki) -> ClientConnection {
    ClientConnection::new(Arc::clone(&pki.client), ServerName::try_from(NAME).expect("name")).expect("client")
}

pub(super) fn drain(connection: &mut rustls::Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).expect("memory");
    }
    bytes
}

pub(super) fn feed(connection: &mut rustls::Connection, mut bytes: &[u8]) -> Result<Vec<u8>, rustls::Error> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        connection.read_tls(&mut bytes).expect("memory");
        connection.process_new_packets()?;
        let _ = connection.reader().read_to_end(&mut plain);
    }
    Ok(plain)
}

/// Ours with theirs, `piece` bytes at a time.
pub(super) fn establish(
    mut ours: Handshake,
    theirs: &mut rustls::Connection,
    piece: usize,
) -> Result<(Established, Vec<u8>), Failure> {
    let mut to_them = Vec::new();
    let mut heard = Vec::new();
    let mut progress = ours.advance(&mut to_them)?;
    for _ in 0..10 {
        heard.extend(feed(theirs, &std::mem::take(&mut to_them)).expect("they accept"));
        for piece in drain(theirs).chunks(piece) {
            ours.receive(piece)?;
            progress = ours.advance(&mut to_them)?;
        }
        if let Progress::Done(established) = progress {
            heard.extend(feed(theirs, &to_them).expect("they accept"));
            return Ok((*established, heard));
        }
    }
    panic!("the handshake does not end");
}

/// Cuts records off and opens them.
pub(super) fn open(
    records: &mut Records,
    mut bytes: &[u8],
    own: bool,
    out: &mut Vec<u8>,
) -> Result<(Vec<u8>, bool), Violation> {
    let mut plain = Vec::new();
    while let Some((&header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let (record, rest) = bytes.split_at(records.length(header, out)?);
        bytes = rest;
        let record = if own { Sealed::Own(record.to_vec()) } else { Sealed::Shared(record) };
        match records.open(record, out)? {
            Opened::Data(bytes, at) => plain.extend_from_slice(&bytes[at]),
            Opened::Nothing => {}
            Opened::End => return Ok((plain, true)),
        }
    }
    Ok((plain, false))
}

pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 251) as u8).collect()
}

pub(super) fn seal(records: &mut Records, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    records.seal(plain, Time::from_nanos(1), &mut out).expect("sealed");
    out
}

#[test]
fn every_suite_carries_data_both_ways_with_their_clients() {
    for (version, suite) in suites() {
        for own in [false, true] {
            let pki = pki(version, Some(suite));
            let mut theirs = rustls::Connection::from(client_of(&pki));
            let (established, _) = establish(
                Handshake::server(&pki.server).expect("server"),
                &mut theirs,
                if own { 1 } else { 4096 },
            )
            .expect("handshake");
            let Established { mut records, rest, agreed, .. } = established;
            assert!(rest.is_empty());
            assert_eq!(agreed.version(), if version == &TLS13 { "TLSv1.3" } else { "TLSv1.2" });
            for length in [1, 100, 1360, 1361, 16_384, 16_385, 100_000] {
                let plain = pattern(length);
                assert_eq!(
                    feed(&mut theirs, &seal(&mut records, &plain)).expect("accepted"),
                    plain,
                    "{suite:?} {length}"
                );
                theirs.writer().write_all(&plain).expect("memory");
                let mut out = Vec::new();
                assert_eq!(
                    open(&mut records, &drain(&mut theirs), own, &mut out),
                    Ok((plain, false)),
                    "{suite:?} {length}"
                );
                assert!(out.is_empty());
            }
            let mut out = Vec::new();
            records.close(&mut out);
            feed(&mut theirs, &out).expect("accepted");
            let mut nothing = [0];
            assert_eq!(theirs.reader().read(&mut nothing).expect("an orderly end"), 0);
            theirs.send_close_notify();
            assert_eq!(open(&mut records, &drain(&mut theirs), own, &mut out), Ok((vec![], true)));
        }
    }
}

#[test]
fn the_name_that_a_client_looks_for_is_remembered_where_that_is_wanted() {
    for version in [&TLS13, &TLS12] {
        for (wanted, piece) in [(true, 1), (true, 4096), (false, 4096)] {
            let pki = pki(version, None);
            let mut theirs = rustls::Connection::from(client_of(&pki));
            let ours = Handshake::server(&pki.server).expect("server");
            let ours = if wanted { ours.with_name() } else { ours };
            let (established, _) = establish(ours, &mut theirs, piece).expect("handshake");
            assert_eq!(
                established.agreed.server_name.as_deref(),
                wanted.then_some(NAME),
                "{version:?} {piece}"
            );
        }
    }
}

#[test]
fn the_protocol_that_both_speak_is_part_of_what_they_agree_upon() {
    for (offered, agreed) in [(None, None), (Some("h2"), Some(Alpn::Http2)), (Some("x"), Some(Alpn::Other))] {
        for version in [&TLS13, &TLS12] {
            let mut pki = pki(version, None);
            let protocols: Vec<Vec<u8>> = offered.into_iter().map(|name| name.as_bytes().to_vec()).collect();
            Arc::get_mut(&mut pki.server).expect("ours").alpn_protocols.clone_from(&protocols);
            Arc::get_mut(&mut pki.client).expect("ours").alpn_protocols = protocols;
            let name = ServerName::try_from(NAME).expect("name");
            let ours = Handshake::server(&pki.server).expect("server");
            let (established, _) = establish(ours, &mut client_of(&pki).into(), 4096).expect("handshake");
            assert_eq!(established.agreed.alpn(), agreed, "{version:?}");
            let ours = Handshake::client(&pki.client, name).expect("client");
            let theirs = ServerConnection::new(Arc::clone(&pki.server)).expect("server");
            let (established, _) = establish(ours, &mut theirs.into(), 4096).expect("handshake");
            assert_eq!(established.agreed.alpn(), agreed, "{version:?}");
        }
    }
}

#[test]
fn who_shows_no_certificate_is_told_so_in_the_words_of_its_version() {
    let authority = testing::Authority::new("CA");
    let settings = server::Settings {
        client_auth: Some(client_auth::ClientAuth::required(authority.pem().as_bytes())),
        ..testing::settings(vec![authority.leaf(&[NAME]).compiled()])
    };
    let tls = server::ServerTls::new(settings).expect("settings");
    for (version, alert) in [(&TLS13, alert::CERTIFICATE_REQUIRED), (&TLS12, alert::HANDSHAKE_FAILURE)] {
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .expect("version");
        let client =
            client.dangerous().with_custom_certificate_verifier(Arc::new(client::Credulous(provider())));
        let name = ServerName::try_from(NAME).expect("name");
        let theirs = ClientConnection::new(Arc::new(client.with_no_client_auth()), name).expect("client");
        let ours = Handshake::server(&tls.config).expect("server");
        let failure = establish(ours, &mut theirs.into(), 4096).expect_err("no certificate");
        assert_eq!(
            failure,
            Failure::Refused(rustls::Error::NoCertificatesPresented, Some(alert::Alert::of(alert)))
        );
    }
}

#[test]
fn every_suite_carries_data_both_ways_with_their_servers() {
    for (version, suite) in suites() {
        let pki = pki(version, Some(suite));
        let mut theirs =
            rustls::Connection::from(ServerConnection::new(Arc::clone(&pki.server)).expect("server"));
        let ours = Handshake::client(&pki.client, ServerName::try_from(NAME).expect("name")).expect("client");
        let (established, _) = establish(ours, &mut theirs, 333).expect("handshake");
        let Established { mut records, rest, agreed, .. } = established;
        assert!(agreed.identity.is_none(), "an endpoint is verified, and not forwarded");
        let plain = pattern(40_000);
        assert_eq!(feed(&mut theirs, &seal(&mut records, &plain)).expect("accepted"), plain);
        theirs.writer().write_all(&plain).expect("memory");
        let mut out = Vec::new();
        // TLS 1.3 sends its tickets first.
        let received = [rest, drain(&mut theirs)].concat();
        assert_eq!(open(&mut records, &received, true, &mut out), Ok((plain, false)), "{suite:?}");
        assert!(out.is_empty());
    }
}

#[test]
fn tickets_that_come_after_the_handshake_resume_the_next() {
    for version in [&TLS13, &TLS12] {
        let mut pki = pki(version, None);
        Arc::get_mut(&mut pki.server).expect("ours").ticketer =
            rustls::crypto::aws_lc_rs::Ticketer::new().expect("ticketer");
        for is_resumed in [false, true] {
            let mut theirs =
                rustls::Connection::from(ServerConnection::new(Arc::clone(&pki.server)).expect("server"));
            let ours =
                Handshake::client(&pki.client, ServerName::try_from(NAME).expect("name")).expect("client");
            let (Established { mut records, rest, agreed, .. }, _) =
                establish(ours, &mut theirs, 100_000).expect("handshake");
            assert_eq!(agreed.is_resumed(), is_resumed, "{version:?}");
            assert_eq!(
                open(&mut records, &[rest, drain(&mut theirs)].concat(), false, &mut Vec::new()),
                Ok((vec![], false))
            );
        }
        // And the other way round.
        for is_resumed in [true, true] {
            let mut theirs = rustls::Connection::from(client_of(&pki));
            let (established, _) = establish(Handshake::server(&pki.server).expect("server"), &mut theirs, 7)
                .expect("handshake");
            assert_eq!(established.agreed.is_resumed(), is_resumed, "{version:?}");
        }
    }
}

#[test]
fn data_right_behind_the_handshake_is_not_lost() {
    let pki = pki(&TLS13, None);
    let mut theirs = rustls::Connection::from(client_of(&pki));
    let mut ours = Handshake::server(&pki.server).expect("server");
    let mut to_them = Vec::new();
    ours.receive(&drain(&mut theirs)).expect("fits");
    assert!(matches!(ours.advance(&mut to_them), Ok(Progress::NeedMore)));
    feed(&mut theirs, &to_them).expect("accepted");
    let heard = to_them.len();
    theirs.writer().write_all(b"first").expect("memory");
    // An answer to this belongs between the keys that it is about.
    theirs.refresh_traffic_keys().expect("1.3");
    theirs.writer().write_all(b"second").expect("memory");
    theirs.send_close_notify();
    let mut bytes = drain(&mut theirs);
    // And half of a record.
    let half = bytes.split_off(bytes.len() - 3);
    ours.receive(&bytes).expect("fits");
    let Ok(Progress::Done(mut established)) = ours.advance(&mut to_them) else { panic!("not over") };
    let (whole, mut out) = ([established.rest, half].concat(), to_them.split_off(heard));
    let opened = open(&mut established.records, &whole, false, &mut out);
    assert_eq!(opened, Ok((b"firstsecond".to_vec(), true)));
    established.records.seal(b"answer", Time::from_nanos(1), &mut out).expect("sealed");
    assert_eq!(feed(&mut theirs, &out).expect("accepted"), b"answer");
}

fn established(version: &'static SupportedProtocolVersion) -> (Box<Records>, rustls::Connection) {
    let pki = pki(version, None);
    let mut theirs = rustls::Connection::from(client_of(&pki));
    let (established, _) =
        establish(Handshake::server(&pki.server).expect("server"), &mut theirs, 4096).expect("handshake");
    (established.records, theirs)
}

#[test]
fn keys_are_updated_when_asked_and_a_flood_of_updates_ends_it() {
    let (mut records, mut theirs) = established(&TLS13);
    for _ in 0..100 {
        theirs.refresh_traffic_keys().expect("1.3");
        theirs.writer().write_all(b"after").expect("memory");
        let mut out = Vec::new();
        assert_eq!(open(&mut records, &drain(&mut theirs), false, &mut out), Ok((b"after".to_vec(), false)));
        records.seal(b"answer", Time::from_nanos(1), &mut out).expect("sealed");
        assert_eq!(feed(&mut theirs, &out).expect("accepted"), b"answer");
    }
    let mut result = Ok((vec![], false));
    for _ in 0..40 {
        theirs.refresh_traffic_keys().expect("1.3");
        let mut out = Vec::new();
        result = open(&mut records, &drain(&mut theirs), false, &mut out);
        if result.is_err() {
            assert!(feed(&mut theirs, &out).is_err(), "they are told");
            break;
        }
        // Their answer waits in their connection.
        feed(&mut theirs, &out).expect("accepted");
    }
    assert_eq!(result, Err(Violation::Ours(alert::UNEXPECTED_MESSAGE)));
}

#[test]
fn whatever_is_changed_in_a_record_is_refused_and_they_are_told() {
    for version in [&TLS13, &TLS12] {
        let length = {
            let (_, mut theirs) = established(version);
            theirs.writer().write_all(b"hello").expect("memory");
            drain(&mut theirs).len()
        };
        for at in 0..length {
            let (mut records, mut theirs) = established(version);
            theirs.writer().write_all(b"hello").expect("memory");
            let mut bytes = drain(&mut theirs);
            // The record's own length apart, which only asks for more.
            if at == 3 || at == 4 {
                continue;
            }
            bytes[at] ^= 1;
            let mut out = Vec::new();
            let violation = open(&mut records, &bytes, at % 2 == 0, &mut out).expect_err("it was changed");
            let error = feed(&mut theirs, &out).expect_err("an alert");
            let Violation::Ours(sent) = violation else { panic!("{violation:?}") };
            assert_eq!(error, rustls::Error::AlertReceived(sent.into()), "byte {at}");
        }
    }
}

#[test]
fn records_out_of_bounds_are_refused_by_their_header() {
    let header = |kind, version: u16, length: u16| {
        let ([a, b], [c, d]) = (version.to_be_bytes(), length.to_be_bytes());
        [kind, a, b, c, d]
    };
    let (mut records, _) = established(&TLS13);
    let mut out = Vec::new();
    assert_eq!(records.length(header(23, 0x303, 16_384 + 256), &mut out), Ok(5 + 16_640));
    assert!(out.is_empty());
    for (bytes, expected) in [
        (header(23, 0x303, 16_641), alert::RECORD_OVERFLOW),
        (header(23, 0x301, 100), alert::DECODE_ERROR),
        (header(22, 0x303, 100), alert::UNEXPECTED_MESSAGE),
        (header(20, 0x303, 1), alert::UNEXPECTED_MESSAGE),
        (*b"GET /", alert::UNEXPECTED_MESSAGE),
    ] {
        out.clear();
        assert_eq!(records.length(bytes, &mut out), Err(Violation::Ours(expected)));
        assert!(!out.is_empty());
    }
    let (mut records, _) = established(&TLS12);
    assert_eq!(records.length(header(22, 0x303, 16_384 + 2048), &mut out), Ok(5 + 18_432));
    assert_eq!(
        records.length(header(23, 0x303, 18_433), &mut out),
        Err(Violation::Ours(alert::RECORD_OVERFLOW))
    );
    // Shorter than a tag.
    let mut short = header(23, 0x303, 3).to_vec();
    short.extend_from_slice(b"abc");
    assert_eq!(records.open(Sealed::Shared(&short), &mut out), Err(Violation::Ours(alert::BAD_RECORD_MAC)));
}

#[test]
fn empty_records_are_bounded_and_alerts_heard() {
    // Of rustls only fatal alerts and the end can be had, so a pair of ours says the rest.
    let pair = |version| {
        let pki = pki(version, None);
        let mut server = Handshake::server(&pki.server).expect("server");
        let mut client =
            Handshake::client(&pki.client, ServerName::try_from(NAME).expect("name")).expect("client");
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let (mut left, mut right) = (client.advance(&mut up).expect("hello"), Progress::NeedMore);
        while let (Progress::NeedMore, _) | (_, Progress::NeedMore) = (&left, &right) {
            if let Progress::NeedMore = right {
                server.receive(&std::mem::take(&mut up)).expect("fits");
                right = server.advance(&mut down).expect("accepted");
            }
            if let Progress::NeedMore = left {
                client.receive(&std::mem::take(&mut down)).expect("fits");
                left = client.advance(&mut up).expect("accepted");
            }
        }
        let (Progress::Done(client), Progress::Done(server)) = (left, right) else { unreachable!() };
        (client.records, server.records)
    };
    for version in [&TLS13, &TLS12] {
        let (mut client, mut server) = pair(version);
        let mut bytes = Vec::new();
        for _ in 0..32 {
            client.say(23, b"", &mut bytes);
        }
        client.say(23, b"x", &mut bytes);
        assert_eq!(open(&mut server, &bytes, false, &mut Vec::new()), Ok((b"x".to_vec(), false)));
        bytes.clear();
        for _ in 0..33 {
            client.say(23, b"", &mut bytes);
        }
        let refused = open(&mut server, &bytes, false, &mut Vec::new());
        assert_eq!(refused, Err(Violation::Ours(alert::UNEXPECTED_MESSAGE)));

        for (content, expected) in [
            ((21, &[2_u8, 80][..]), Err(Violation::Alert(80))),
            ((21, &[1, 0]), Ok((vec![], true))),
            ((21, &[1]), Err(Violation::Ours(alert::DECODE_ERROR))),
            ((21, &[1, 90]), Ok((vec![], false))),
            ((22, &[]), Err(Violation::Ours(alert::UNEXPECTED_MESSAGE))),
            (
                (22, &[24, 0, 0, 1, 2]),
                Err(Violation::Ours(if version == &TLS13 { alert::ILLEGAL_PARAMETER } else { 10 })),
            ),
            (
                (22, &[24, 0, 0, 2, 0, 0]),
                Err(Violation::Ours(if version == &TLS13 { alert::DECODE_ERROR } else { 10 })),
            ),
            ((22, &[24, 0, 0, 1, 0, 24]), Err(Violation::Ours(alert::UNEXPECTED_MESSAGE))),
            ((22, &[4, 0, 0, 1, 0]), Err(Violation::Ours(alert::UNEXPECTED_MESSAGE))),
            ((22, &[11, 255, 0, 0]), Err(Violation::Ours(alert::RECORD_OVERFLOW))),
            ((20, &[1]), Err(Violation::Ours(alert::UNEXPECTED_MESSAGE))),
        ] {
            let (mut client, mut server) = pair(version);
            let mut bytes = Vec::new();
            client.say(content.0, content.1, &mut bytes);
            let opened = open(&mut server, &bytes, true, &mut Vec::new());
            assert_eq!(opened, expected, "{version:?} {content:?}");
        }
        // A renegotiation: refused with a warning, and the connection goes on.
        let (mut client, mut server) = pair(version);
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        client.say(22, &[1, 0, 0, 0], &mut bytes);
        client.say(23, b"on", &mut bytes);
        let opened = open(&mut server, &bytes, false, &mut out);
        if version == &TLS12 {
            assert_eq!(opened, Ok((b"on".to_vec(), false)));
            assert_eq!(open(&mut client, &out, false, &mut Vec::new()), Ok((vec![], false)), "a warning");
        } else {
            assert_eq!(opened, Err(Violation::Ours(alert::UNEXPECTED_MESSAGE)));
        }
    }
}

#[test]
fn records_are_small_at_first_and_full_in_bulk() {
    let lengths = |mut bytes: &[u8]| {
        let mut lengths = Vec::new();
        while let [_, _, _, high, low, ..] = bytes {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            lengths.push(length - 17);
            bytes = &bytes[5 + length..];
        }
        lengths
    };
    let (mut records, _) = established(&TLS13);
    let mut at = |seconds, length| {
        let mut out = Vec::new();
        records
            .seal(&pattern(length), Time::default() + Duration::from_millis(seconds), &mut out)
            .expect("sealed");
        lengths(&out)
    };
    assert_eq!(at(5000, 20_000), [[1360; 10].as_slice(), &[6400]].concat());
    assert_eq!(at(5900, 40_000), [16_384, 16_384, 7232]);
    assert_eq!(at(6900, 3000), [1360, 1360, 280], "after a pause");
}

#[test]
fn keys_wear_out() {
    for version in [&TLS13, &TLS12] {
        let (mut records, mut theirs) = established(version);
        records.wear_out();
        let mut out = Vec::new();
        let sealed = records.seal(b"more", Time::from_nanos(1), &mut out);
        if version == &TLS13 {
            sealed.expect("under a new key");
            assert_eq!(feed(&mut theirs, &out).expect("accepted"), b"more");
        } else {
            assert!(sealed.is_err() && out.is_empty());
        }
    }
}

#[test]
fn what_is_no_handshake_says_what_it_is() {
    let pki = pki(&TLS13, None);
    let server = || Handshake::server(&pki.server).expect("server");
    let mut out = Vec::new();
    assert_eq!(server().receive(b"GET / HTTP/1.1\r\n"), Err(Failure::PlainHttp));
    assert_eq!(server().receive(&vec![22; INPUT_BYTES_MAX + 1]), Err(Failure::TooLarge));
    for garbage in [
        &[22, 3, 1, 0, 4, 1, 0, 0, 0][..],
        &[0; 100],
        &[22, 3, 3, 0xff, 0xff],
        &[23, 3, 3, 0, 1, 0],
        &[128, 46, 1, 0, 2],
    ] {
        let mut handshake = server();
        handshake.receive(garbage).expect("fits");
        out.clear();
        let failure = handshake.advance(&mut out).expect_err("garbage");
        assert!(matches!(failure, Failure::Refused(..)), "{failure:?}");
        assert_eq!(out.len(), 7, "an alert in plain");
        assert_eq!(Some(alert::Alert::of(out[6])), failure.sent(), "{failure:?}");
    }
    // Their alert.
    let mut theirs = rustls::Connection::from(
        ClientConnection::new(Arc::clone(&pki.client), ServerName::try_from("other.test").expect("name"))
            .expect("client"),
    );
    let mut handshake = server();
    handshake.receive(&drain(&mut theirs)).expect("fits");
    out.clear();
    assert!(matches!(handshake.advance(&mut out), Ok(Progress::NeedMore)));
    assert!(feed(&mut theirs, &out).is_err(), "the name is another's");
    handshake.receive(&drain(&mut theirs)).expect("fits");
    let failure = handshake.advance(&mut out).expect_err("they gave up");
    assert!(matches!(failure, Failure::Alert(_)), "{failure:?}");
    assert!(handshake.advance(&mut out).is_err(), "it stays over");
}

proptest! {
    #[test]
    fn no_bytes_make_a_handshake_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        piece in 1_usize..50,
    ) {
        let pki = pki(&TLS13, None);
        let mut handshake = Handshake::server(&pki.server).expect("server");
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = 22;
        }
        for piece in bytes.chunks(piece) {
            if handshake.receive(piece).is_err() || handshake.advance(&mut Vec::new()).is_err() {
                break;
            }
        }
    }
}
