//! Clients with every name that somebody has asked for. rustls' client cannot ask for most of them: its hello
//! is changed on its way, and its hash functions change it alike.

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs::kx_group::{MLKEM768, X25519};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, ServerConfig, SupportedProtocolVersion,
};

use super::*;
use crate::tls::client::Credulous;
use crate::tls::handshake::{Failure, Handshake, Progress};
use crate::tls::hello::tests::{in_records, message};
use crate::tls::server::{ServerTls, Settings};
use crate::tls::testing;
use crate::tls::tests::{drain, feed, open, seal};

const NAMES: [&[u8]; 21] = [
    b"foo-.w.test",
    b"-foo.w.test",
    b"foo.123",
    b"x:443",
    b"[::1]",
    b"::1",
    b"127.0.0.1",
    b"127.0.0.1.",
    b"1.2.3",
    b"0x7f.1",
    b"edge.test.",
    b"edge.test..",
    b"under_score.test",
    b"a b",
    b"a\0.test",
    b"*.w.test",
    b"\xff\xfe",
    b".",
    b"a..b",
    b"https://edge.test/",
    "bücher.test".as_bytes(),
];

/// A name that rustls' client asks for, as long as any.
fn stand_in(length: usize) -> String {
    let labels = vec!["q".repeat(60); length / 61 + 2].join(".");
    labels[..length].trim_end_matches('.').to_owned() + if labels[..length].ends_with('.') { "q" } else { "" }
}

/// A name on its way in a hello, with its type and its length.
fn entry(name: &[u8]) -> Vec<u8> {
    [&[0][..], &(name.len() as u16).to_be_bytes(), name].concat()
}

thread_local! {
    /// The name that the client asks for by itself, and the name that it asks for on the wire.
    static NAMED: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// The messages with the other name in it, if there is a hello among them.
fn disguised(message: &[u8]) -> Vec<u8> {
    NAMED.with_borrow(|(own, other)| {
        let at = message.windows(own.len()).position(|part| part == own);
        let mut message = message.to_vec();
        // A second hello comes behind the hash of the first.
        if let (Some(1 | 254), Some(at)) = (message.first(), at) {
            message[at..at + other.len()].copy_from_slice(other);
        }
        message
    })
}

struct Disguising(&'static dyn Hash);

impl Hash for Disguising {
    fn start(&self) -> Box<dyn Context> {
        Box::new(Disguised(self.0.start()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        self.0.hash(&disguised(data))
    }

    fn output_len(&self) -> usize {
        self.0.output_len()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0.algorithm()
    }
}

struct Disguised(Box<dyn Context>);

impl Context for Disguised {
    fn fork_finish(&self) -> Output {
        self.0.fork_finish()
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Self(self.0.fork()))
    }

    fn finish(self: Box<Self>) -> Output {
        self.0.finish()
    }

    fn update(&mut self, data: &[u8]) {
        self.0.update(&disguised(data));
    }
}

/// A flight on its way, its hello in records of these lengths.
fn on_its_way(flight: &[u8], lengths: &[usize]) -> Vec<u8> {
    let (mut out, mut left) = (Vec::new(), flight);
    while let Some(&[kind, _, _, high, low]) = left.first_chunk::<HEADER_BYTES>() {
        let (record, rest) = left.split_at(HEADER_BYTES + usize::from(u16::from_be_bytes([high, low])));
        left = rest;
        // Behind a first hello there may be a change of ciphers before the second.
        let length = (record.len() - HEADER_BYTES).saturating_sub(4) as u32;
        let is_hello =
            record[HEADER_BYTES..].starts_with(&[1]) && record[6..].starts_with(&length.to_be_bytes()[1..]);
        if kind == 22 && is_hello {
            out.extend(in_records(&disguised(&message(record)), lengths));
        } else {
            out.extend_from_slice(record);
        }
    }
    out
}

/// A handshake with a client that asks for `name`, until data went both ways.
fn ask(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
    name: &[u8],
    lengths: &[usize],
    piece: usize,
) -> Result<crate::tls::agreed::Agreed, Failure> {
    let stand_in = stand_in(name.len());
    NAMED.set((entry(stand_in.as_bytes()), entry(name)));
    let asked = ServerName::try_from(stand_in).expect("a name");
    let mut theirs = Connection::from(ClientConnection::new(Arc::clone(client), asked).expect("a client"));
    let mut ours = Handshake::server(server)?.with_name();
    for _ in 0..10 {
        let flight = on_its_way(&drain(&mut theirs), lengths);
        let (mut out, mut progress) = (Vec::new(), Progress::NeedMore);
        for piece in flight.chunks(piece) {
            ours.receive(piece)?;
            progress = ours.advance(&mut out)?;
        }
        feed(&mut theirs, &out).expect("they accept");
        let Progress::Done(established) = progress else { continue };
        let is_repeated = client.crypto_provider().kx_groups[0].name() == MLKEM768.name();
        if !established.agreed.is_resumed() {
            let kind = theirs.handshake_kind();
            assert_eq!(kind == Some(HandshakeKind::FullWithHelloRetryRequest), is_repeated);
        }
        let mut records = established.records;
        feed(&mut theirs, &seal(&mut records, b"answer")).expect("sound");
        theirs.send_close_notify();
        let end = drain(&mut theirs);
        assert_eq!(open(&mut records, &end, false, &mut Vec::new()), Ok((vec![], true)));
        return Ok(established.agreed);
    }
    panic!("the handshake does not end: {} {ours:?}", name.escape_ascii());
}

/// `repeats`: the server asks for another key share.
fn client(version: &'static SupportedProtocolVersion, repeats: bool) -> Arc<ClientConfig> {
    static SUITES: LazyLock<Vec<SupportedCipherSuite>> =
        LazyLock::new(|| suites(|hash| Box::leak(Box::new(Disguising(hash)))));
    let mut provider = CryptoProvider::clone(&crate::tls::provider());
    provider.cipher_suites = SUITES.clone();
    if repeats {
        provider.kx_groups = vec![MLKEM768, X25519];
    }
    let provider = Arc::new(provider);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(&[version]).expect("a version").dangerous();
    Arc::new(builder.with_custom_certificate_verifier(Arc::new(Credulous(provider))).with_no_client_auth())
}

fn server() -> ServerTls {
    let certificates = vec![testing::Authority::new("CA").leaf(&["edge.test"]).compiled()];
    let keys = vec![crate::tls::tickets::TicketKey::random().expect("randomness")];
    ServerTls::new(Settings { ticket_keys: keys, ..testing::settings(certificates) }).expect("sound")
}

#[test]
fn whatever_name_a_client_asks_for_it_gets_a_connection() {
    let server = server();
    for version in [&TLS13, &TLS12] {
        for name in NAMES {
            let client = client(version, false);
            let ways = [(&[1 << 14][..], 1 << 20), (&[1], 7), (&[100], 1)];
            for (index, (lengths, piece)) in ways.into_iter().enumerate() {
                let what = format!("{} {version:?} {lengths:?}", name.escape_ascii());
                let agreed = ask(&server.config, &client, name, lengths, piece).expect(&what);
                // The others resume the first.
                assert_eq!(agreed.is_resumed(), index > 0, "{what}");
            }
        }
    }
}

#[test]
fn also_when_the_client_has_to_say_its_hello_twice() {
    let server = server();
    for name in NAMES {
        for (lengths, piece) in [(&[1 << 14][..], 1 << 20), (&[1], 7), (&[100], 1)] {
            let what = format!("{} {lengths:?}", name.escape_ascii());
            ask(&server.config, &client(&TLS13, true), name, lengths, piece).expect(&what);
        }
    }
}

#[test]
fn the_name_is_remembered_if_a_server_could_have_it() {
    let server = server();
    for (name, remembered) in
        [(&b"foo-.W.test"[..], Some("foo-.w.test")), (b"edge.test.", Some("edge.test")), (b"x:443", None)]
    {
        let agreed = ask(&server.config, &client(&TLS13, false), name, &[1 << 14], 99).expect("served");
        assert_eq!(agreed.server_name.as_deref(), remembered);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn no_name_keeps_a_client_out(
        name in prop_oneof![
            prop::collection::vec(any::<u8>(), 1..253),
            "[a-z0-9.:_*-]{1,60}".prop_map(String::into_bytes),
        ],
        is_13: bool,
        repeats: bool,
        length in 1_usize..400,
        piece in 1_usize..400,
    ) {
        let version = if is_13 { &TLS13 } else { &TLS12 };
        let outcome = ask(&server().config, &client(version, repeats && is_13), &name, &[length], piece);
        prop_assert!(outcome.is_ok(), "{outcome:?}");
    }
}
