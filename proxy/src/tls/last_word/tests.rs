//! Every way to say nonsense within a handshake, and the alert for it.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, Connection, Error, SupportedProtocolVersion};

use super::*;
use crate::tls::client::Credulous;
use crate::tls::handshake::{Failure, Handshake, Progress};
use crate::tls::hello::tests::{in_records, message};
use crate::tls::key_log::{Caught, Secrets, catching};
use crate::tls::records::{HANDSHAKE, Half};
use crate::tls::server::ServerTls;
use crate::tls::tests::{drain, feed};
use crate::tls::{provider, testing};

const ALERT_NAMES: [(u8, &str); 5] = [
    (alert::UNEXPECTED_MESSAGE, "unexpected_message"),
    (alert::RECORD_OVERFLOW, "record_overflow"),
    (alert::DECODE_ERROR, "decode_error"),
    (alert::PROTOCOL_VERSION, "protocol_version"),
    (alert::BAD_RECORD_MAC, "bad_record_mac"),
];

fn record(kind: u8, version: u16, length: u16, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &version.to_be_bytes(), &length.to_be_bytes(), body].concat()
}

fn plain(kind: u8, body: &[u8]) -> Vec<u8> {
    record(kind, 0x303, body.len() as u16, body)
}

/// A client's hello on its way, and its other end. The client's secrets come into `caught` as it goes on.
struct Opening {
    ours: Handshake,
    theirs: Connection,
    hello: Vec<u8>,
    caught: Caught,
}

impl Opening {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let certificates = vec![testing::Authority::new("CA").leaf(&["edge.test"]).compiled()];
        let server = ServerTls::new(testing::settings(certificates)).expect("sound");
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(&[version]).expect("a version").dangerous();
        let mut config =
            builder.with_custom_certificate_verifier(Arc::new(Credulous(provider()))).with_no_client_auth();
        config.key_log = Arc::new(Secrets);
        let name = ServerName::try_from("edge.test").expect("a name");
        let client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut theirs = Connection::from(client);
        let hello = drain(&mut theirs);
        let ours = Handshake::server(&server.config).expect("a server");
        Self { ours, theirs, hello, caught: Caught::default() }
    }

    /// The server has answered the hello, and the client has heard it.
    fn answered(version: &'static SupportedProtocolVersion) -> Self {
        let mut opening = Self::new(version);
        let mut out = Vec::new();
        opening.ours.receive(&opening.hello).expect("fits");
        assert!(matches!(opening.ours.advance(&mut out), Ok(Progress::NeedMore)));
        catching(&mut opening.caught, || feed(&mut opening.theirs, &out)).expect("sound");
        drop(drain(&mut opening.theirs));
        opening
    }

    /// Says these bytes, in pieces. The failure, and everything that the client hears.
    fn say(&mut self, bytes: &[u8], piece: usize) -> (Failure, Vec<u8>) {
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            self.ours.receive(piece).expect("fits");
            if !self.ours.has_record() {
                continue;
            }
            match self.ours.advance(&mut out) {
                Ok(Progress::NeedMore) => {}
                Ok(Progress::Done(_)) => panic!("a handshake with nobody"),
                Err(failure) => {
                    let length = out.len();
                    assert!(self.ours.advance(&mut out).is_err(), "it is over");
                    assert_eq!(out.len(), length, "and silent");
                    return (failure, out);
                }
            }
        }
        panic!("nobody minded")
    }
}

/// The faults of a header, each with its alert.
fn headers() -> [(&'static str, Vec<u8>, u8); 10] {
    [
        ("zeros", vec![0; 16], alert::UNEXPECTED_MESSAGE),
        ("high bytes", vec![0xff; 16], alert::UNEXPECTED_MESSAGE),
        ("an unknown kind", plain(200, b"x"), alert::UNEXPECTED_MESSAGE),
        ("a heartbeat", plain(24, &[1, 0xff, 0xff]), alert::UNEXPECTED_MESSAGE),
        ("a version before SSL 3", record(22, 0x0200, 5, b"12345"), alert::PROTOCOL_VERSION),
        ("a version of DTLS", record(22, 0xfefd, 5, b"12345"), alert::PROTOCOL_VERSION),
        ("a version of nothing", record(22, 0x0903, 5, b"12345"), alert::PROTOCOL_VERSION),
        ("a long record", record(22, 0x0303, 0x4101, b""), alert::RECORD_OVERFLOW),
        ("the longest record", record(22, 0x0303, 0xffff, b""), alert::RECORD_OVERFLOW),
        ("an empty record", record(22, 0x0303, 0, b""), alert::DECODE_ERROR),
    ]
}

#[test]
fn a_first_record_that_is_none_gets_its_alert() {
    let hello = message(&Opening::new(&TLS13).hello);
    let half = plain(22, &hello[..100]);
    let mut cases = headers().to_vec();
    cases.extend([
        ("one byte too many", record(22, 0x303, 0x4001, b""), alert::RECORD_OVERFLOW),
        ("a message of 16 MiB", plain(22, &[1, 0xff, 0xff, 0xff, 3, 3]), alert::DECODE_ERROR),
        ("data first", plain(23, b"hello"), alert::UNEXPECTED_MESSAGE),
        ("a key exchange first", plain(22, &[16, 0, 0, 1, 0]), alert::UNEXPECTED_MESSAGE),
    ]);
    for (what, bytes, _) in &mut cases.clone()[..headers().len()] {
        let later = [&half[..], bytes].concat();
        let expected = headers().into_iter().find(|(name, ..)| name == what).expect("it").2;
        cases.push(("behind half a hello", later, expected));
    }
    cases.extend([
        ("data within a hello", [&half[..], &plain(23, b"x")].concat(), alert::UNEXPECTED_MESSAGE),
        ("a change within a hello", [&half[..], &plain(20, &[1])].concat(), alert::UNEXPECTED_MESSAGE),
    ]);
    for (what, bytes, expected) in cases {
        for piece in [1, 7, 1 << 20] {
            let (failure, heard) = Opening::new(&TLS13).say(&bytes, piece);
            assert_eq!(heard, plain(21, &[2, expected]), "{what}: {failure:?}");
            let Failure::Refused(_, told) = failure else { panic!("{what}: {failure:?}") };
            assert_eq!(told.map(alert::Alert::number), Some(expected), "{what}");
        }
    }
}

#[test]
fn behind_the_server_s_flight_the_alert_is_sealed_if_the_version_seals_it() {
    for version in [&TLS13, &TLS12] {
        for (what, bytes, expected) in headers() {
            let mut opening = Opening::answered(version);
            let (failure, heard) = opening.say(&bytes, 7);
            let error = feed(&mut opening.theirs, &heard).expect_err("an alert");
            assert_eq!(error, Error::AlertReceived(expected.into()), "{what}, {version:?}: {failure:?}");
            assert_eq!(failure.sent().map(alert::Alert::number), Some(expected), "{what}");
            assert_eq!(heard[0], if version == &TLS13 { APPLICATION_DATA } else { ALERT });
        }
    }
}

#[test]
fn sealed_nonsense_gets_its_alert_too() {
    let suites = provider().cipher_suites.clone();
    for (what, records, expected) in [
        ("half a message, and data", &[(HANDSHAKE, &[20, 0, 0][..]), (23, b"x")][..], 10),
        ("half a message, and an alert", &[(HANDSHAKE, &[20, 0, 0]), (ALERT, &[1, 0])], 10),
        ("data first", &[(23, b"x")], 10),
        ("a message of 16 MiB", &[(HANDSHAKE, &[20, 0xff, 0xff, 0xff, 1])], 50),
        ("nothing, again and again", &[(HANDSHAKE, &[][..]); 33], 10),
        ("a key update", &[(HANDSHAKE, &[24, 0, 0, 1, 0])], 10),
    ] {
        let mut opening = Opening::answered(&TLS13);
        let agreed = opening.theirs.negotiated_cipher_suite().expect("one").suite();
        let suite = suites.iter().find(|suite| suite.suite() == agreed).and_then(|suite| suite.tls13());
        let secret = opening.caught.client.take().expect("the client's secret");
        let mut key: Half = half(suite.expect("1.3"), &secret).expect("a key");
        let mut bytes = Vec::new();
        for (kind, content) in records {
            key.seal(*kind, content, true, &mut bytes).expect("sealed");
        }
        let (failure, heard) = opening.say(&bytes, 1 << 20);
        let error = feed(&mut opening.theirs, &heard).expect_err("an alert");
        assert_eq!(error, Error::AlertReceived(u8::into(expected)), "{what}: {failure:?}");
        assert_eq!(failure.sent().map(alert::Alert::number), Some(expected), "{what}");
    }
}

#[test]
fn the_alerts_of_this_page_are_counted_by_name() {
    for (number, name) in ALERT_NAMES {
        assert_eq!(alert::Alert::of(number).label(), name);
    }
    // A hello is whole in records of any length.
    let mut opening = Opening::new(&TLS13);
    let records = in_records(&message(&opening.hello), &[1]);
    let (failure, _) = opening.say(&[&records[..], &[0; 5]].concat(), 1 << 20);
    assert_eq!(failure.sent().map(alert::Alert::number), Some(alert::UNEXPECTED_MESSAGE));
}
