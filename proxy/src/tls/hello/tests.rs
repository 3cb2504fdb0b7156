//! The hellos of real clients, and of clients that want to be misread.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::*;

type Read = Result<Option<Hello>, HelloError>;

/// The first flight of rustls' client, as records.
fn records(
    name: &str,
    alpn: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
    fragment: Option<usize>,
) -> Vec<u8> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let roots = builder
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(RootCertStore::empty());
    let mut config = roots.with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.max_fragment_size = fragment;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut written = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut written).expect("to memory");
    }
    written
}

pub(crate) fn hello(name: &str) -> Vec<u8> {
    records(name, &[b"h2", b"http/1.1"], rustls::ALL_VERSIONS, None)
}

/// Of a client that looks for an address.
pub(crate) fn without_name() -> Vec<u8> {
    records("127.0.0.1", &[], rustls::ALL_VERSIONS, None)
}

/// The message out of records.
pub(crate) fn message(mut records: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = records {
        let (fragment, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        message.extend_from_slice(fragment);
        records = rest;
    }
    message
}

/// The message in records of these lengths, the last one again and again.
pub(crate) fn in_records(message: &[u8], lengths: &[usize]) -> Vec<u8> {
    let (mut out, mut left) = (Vec::new(), message);
    let last = lengths.last().copied().expect("a length");
    for length in lengths.iter().copied().chain(std::iter::repeat(last)) {
        let (fragment, rest) = left.split_at(length.min(left.len()));
        out.extend_from_slice(&[22, 3, 1]);
        out.extend_from_slice(&u16::try_from(fragment.len()).expect("short").to_be_bytes());
        out.extend_from_slice(fragment);
        left = rest;
        if left.is_empty() {
            break;
        }
    }
    out
}

/// The outcome for these pieces, and how many bytes had been given by then.
fn read_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Read, usize) {
    let mut reader = Reader::default();
    let mut given = 0;
    for piece in pieces {
        given += piece.len();
        match reader.read(piece) {
            Ok(None) => assert!(reader.message.len() <= MESSAGE_BYTES_MAX),
            outcome => return (outcome, given),
        }
    }
    (Ok(None), given)
}

fn read(bytes: &[u8]) -> Read {
    read_pieces([bytes]).0
}

fn name_of(bytes: &[u8]) -> Option<String> {
    read(bytes).expect("a hello").expect("whole").server_name.map(String::from)
}

/// Length and bytes.
fn vector8(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).expect("short")], bytes].concat()
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).expect("short").to_be_bytes()[..], bytes].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(data)].concat()
}

fn sni(name: &[u8]) -> Vec<u8> {
    extension(0, &vector16(&[&[0][..], &vector16(name)].concat()))
}

/// A ClientHello's body with everything but extensions.
fn before_extensions() -> Vec<u8> {
    [&[3, 3][..], &[7; 32], &vector8(&[9; 32]), &vector16(&[0x13, 1, 0x13, 2]), &vector8(&[0])].concat()
}

fn wrapped(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    in_records(&[&[1][..], &length[1..], body].concat(), &[1 << 14])
}

fn with_extensions(extensions: &[u8]) -> Vec<u8> {
    wrapped(&[before_extensions(), vector16(extensions)].concat())
}

#[test]
fn hellos_of_rustls_are_read() {
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13], rustls::ALL_VERSIONS] {
        for fragment in [None, Some(32), Some(100)] {
            let bytes = records("Www.Example.COM", &[b"h2", b"http/1.1"], versions, fragment);
            let hello = read(&bytes).expect("a hello").expect("whole");
            assert_eq!(hello.server_name.as_deref(), Some("www.example.com"));
            assert_eq!(hello.alpn().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
        }
    }
    // A client that looks for an address names nothing.
    let hello = read(&without_name()).expect("a hello").expect("whole");
    assert_eq!((hello.server_name.is_none(), hello.alpn().count()), (true, 0));
}

#[test]
fn a_hello_is_known_with_its_last_byte_however_it_is_cut() {
    let bytes = hello("example.com");
    let expected = read(&bytes);
    assert!(matches!(expected, Ok(Some(_))));
    for cut in 0..bytes.len() {
        assert_eq!(read(&bytes[..cut]), Ok(None), "{cut}");
        assert_eq!(read_pieces([&bytes[..cut], &bytes[cut..]]), (expected.clone(), bytes.len()));
    }
    assert_eq!(read_pieces(bytes.chunks(1)), (expected.clone(), bytes.len()));
    // Later bytes are none of its business: early data, or anything.
    let longer = [&bytes[..], b"\x14\x03\x03\x00\x01\x01GET"].concat();
    assert_eq!(read(&longer), expected);
}

#[test]
fn records_may_be_as_short_as_a_byte() {
    let bytes = hello("example.com");
    let expected = read(&bytes);
    let message = message(&bytes);
    for lengths in [&[1][..], &[2], &[3, 1], &[4, 1 << 14], &[message.len() - 1, 1], &[5, 64]] {
        let records = in_records(&message, lengths);
        assert_eq!(read(&records), expected, "{lengths:?}");
        assert_eq!(read_pieces(records.chunks(1)), (expected.clone(), records.len()));
        assert_eq!(read_pieces(records.chunks(7)).0, expected);
        assert_eq!(read(&records[..records.len() - 1]), Ok(None));
    }
}

#[test]
fn what_is_not_tls_is_known_at_its_first_bytes() {
    for (bytes, error, needed) in [
        (&b"GET / HTTP/1.1\r\n"[..], HelloError::PlainText, 1),
        (b"post", HelloError::PlainText, 1),
        (b"\r\n\r\n\0\r\nQUIT\n", HelloError::NotTls(b'\r'), 1),
        (b"\0\0", HelloError::NotTls(0), 1),
        (b"\x15\x03\x01\x00\x02\x02\x46", HelloError::NotTls(21), 1),
        (b"\x80\x2e\x01\x03\x01", HelloError::Sslv2, 3),
        (b"\x80\x2e\x02", HelloError::NotTls(0x80), 3),
        (b"\x16\xfe\xfd\0\0", HelloError::Version(0xfefd), 3),
        (b"\x16\x02\x00\0\0", HelloError::Version(0x200), 3),
        (b"\x16\x03\x01\0\0\x16", HelloError::RecordLength(0), 5),
        (b"\x16\x03\x01\x40\x01", HelloError::RecordLength(0x4001), 5),
        (b"\x16\x03\x01\0\x01\x02", HelloError::NotClientHello(2), 6),
        (b"\x16\x03\x01\0\x04\x01\x00\x40\x00", HelloError::TooLarge(0x4000), 9),
        (b"\x16\x03\x01\0\x05\x01\x00\x00\x00\x01", HelloError::Malformed("length"), 9),
    ] {
        assert_eq!(read(bytes), Err(error), "{bytes:?}");
        assert_eq!(read_pieces(bytes.chunks(1)), (Err(error), needed), "{bytes:?}");
        assert_eq!(read(&bytes[..needed - 1]), Ok(None));
    }
    // Between the fragments of a hello there may be nothing else (RFC 8446 §5.1).
    let message = message(&hello("example.com"));
    let half = &in_records(&message, &[100])[..105];
    for (next, error) in
        [(&b"\x15\x03\x03\0\x02"[..], HelloError::NotTls(21)), (b"GET", HelloError::NotTls(b'G'))]
    {
        assert_eq!(read(&[half, next].concat()), Err(error));
    }
    assert_eq!(read(&[half, b"\x16\x03\x03\0\0"].concat()), Err(HelloError::RecordLength(0)));
}

#[test]
fn the_longest_hello_is_read_and_a_longer_one_is_not() {
    let padding = |bytes: usize| with_extensions(&[sni(b"a"), extension(21, &vec![0; bytes])].concat());
    let rest = padding(0).len() - RECORD_HEADER;
    let in_full = |bytes: usize| in_records(&message(&padding(bytes - rest)), &[1 << 14]);
    assert_eq!(name_of(&in_full(MESSAGE_BYTES_MAX)).as_deref(), Some("a"));
    let longer = in_full(MESSAGE_BYTES_MAX + 1);
    assert_eq!(read(&longer), Err(HelloError::TooLarge(MESSAGE_BYTES_MAX as u32 + 1 - 4)));
    assert_eq!(read_pieces(longer.chunks(1)).1, RECORD_HEADER + MESSAGE_HEADER);
}

#[test]
fn names_are_domain_names() {
    let long = [&[b'a'; 63][..], b".", &[b'b'; 63], b".", &[b'c'; 63], b".", &[b'd'; 61]].concat();
    for (name, read) in [
        (&b"a"[..], "a"),
        (b"A_b-c.Example", "a_b-c.example"),
        (b"example.com.", "example.com"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"1.2.3", "1.2.3"),
        (&long, std::str::from_utf8(&long).expect("ASCII")),
    ] {
        assert_eq!(name_of(&with_extensions(&sni(name))).as_deref(), Some(read));
    }
    let label = [b'a'; 64];
    let longer = [&long[..], b"dd"].concat();
    // Other servers show such a client their default certificate.
    for name in [
        &b"127.0.0.1"[..],
        b"127.0.0.1.",
        b"::1",
        b"[::1]",
        b"a b",
        b"a\0.example",
        b"a:443",
        b"*.example",
        "bücher.example".as_bytes(),
        b"\xff",
        b".",
        b"a..b",
        b".a",
        b"a..",
        &label,
        &longer,
    ] {
        assert_eq!(name_of(&with_extensions(&sni(name))), None, "{name:?}");
    }
    let empty = read(&with_extensions(&sni(b"")));
    assert_eq!(empty, Err(HelloError::Malformed("server_name")));
}

#[test]
fn a_name_that_rustls_refuses_can_be_hidden() {
    let rest = extension(0xff60, b"");
    for (name, is_refused) in [
        (&b"example.com"[..], false),
        (b"a_b", false),
        (b"127.0.0.1", false),
        (b"foo-.example", true),
        (b"-foo.example", true),
        (b"foo.123", true),
        (b"a:443", true),
        (b"[::1]", true),
        (&[b'x'; 300], true),
    ] {
        let records = with_extensions(&[&extension(42, b"")[..], &sni(name), &rest].concat());
        let hello = read(&records).expect("a hello").expect("whole");
        assert!(hello.offers_early_data);
        assert_eq!(hello.hidden.is_some(), is_refused, "{name:?}");
        let Some(Hidden { at, kind }) = hello.hidden else { continue };
        let message = message(&records);
        assert_eq!(message[at..at + 2], [0, 0], "the type of the name's extension");
        assert!(message[at..].starts_with(&sni(name)) && kind == 0xff61, "a type that is free");
    }
}

#[test]
fn there_is_one_name_and_each_extension_once() {
    let entry = |kind: u8, name: &[u8]| [&[kind][..], &vector16(name)].concat();
    let list = |entries: &[u8]| with_extensions(&extension(0, &vector16(entries)));
    let two = [entry(0, b"a"), entry(0, b"b")].concat();
    let malformed = HelloError::Malformed("server_name");
    assert_eq!(read(&list(&two)), Err(HelloError::SeveralNames));
    assert_eq!(read(&list(&[&entry(0, b"a")[..], b"\0"].concat())), Err(HelloError::SeveralNames));
    assert_eq!(read(&list(&entry(1, b"a"))), Err(malformed));
    assert_eq!(read(&list(b"")), Err(malformed));
    assert_eq!(read(&list(b"\0\0\x02a")), Err(malformed));
    // The empty one is a server's answer.
    assert_eq!(read(&with_extensions(&extension(0, b""))), Err(malformed));
    assert_eq!(read(&with_extensions(&extension(0, b"\0\x04\0\0\x01ab"))), Err(malformed));

    let twice = [sni(b"a"), extension(43, b""), sni(b"a")].concat();
    assert_eq!(read(&with_extensions(&twice)), Err(HelloError::DuplicateExtension(0)));
    let unknown = [extension(0x1a1a, b""), extension(0x1a1a, b"")].concat();
    assert_eq!(read(&with_extensions(&unknown)), Err(HelloError::DuplicateExtension(0x1a1a)));
    let many = |count: u16| (1000..1000 + count).flat_map(|kind| extension(kind, b"")).collect::<Vec<u8>>();
    assert_eq!(read(&with_extensions(&many(128))), Ok(Some(Hello::default())));
    assert_eq!(read(&with_extensions(&many(129))), Err(HelloError::ExtensionCount));
}

#[test]
fn protocols_are_listed_in_their_order() {
    let alpn = |list: &[u8]| with_extensions(&extension(16, &vector16(list)));
    let hello = read(&alpn(b"\x02h2\x08http/1.1")).expect("a hello").expect("whole");
    assert_eq!(hello.alpn().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
    let malformed = HelloError::Malformed("application_layer_protocol_negotiation");
    for list in [&b""[..], b"\0", b"\x02h2\0", b"\x03h2"] {
        assert_eq!(read(&alpn(list)), Err(malformed), "{list:?}");
    }
    assert_eq!(read(&with_extensions(&extension(16, b"\0\x03\x02h2!"))), Err(malformed));
}

#[test]
fn lengths_that_do_not_fit_say_where() {
    let whole = [before_extensions(), vector16(&sni(b"example.com"))].concat();
    // Cut off anywhere, the message's own length being right.
    let ends = [
        (0..2, "legacy_version"),
        (2..34, "random"),
        (34..67, "legacy_session_id"),
        (67..73, "cipher_suites"),
        (73..75, "legacy_compression_methods"),
        (76..whole.len(), "extensions"),
    ];
    for (range, field) in ends {
        for end in range {
            assert_eq!(read(&wrapped(&whole[..end])), Err(HelloError::Malformed(field)), "{end}");
        }
    }
    // Without extensions it is whole.
    assert_eq!(read(&wrapped(&whole[..75])), Ok(Some(Hello::default())));
    assert_eq!(read(&wrapped(&[&whole[..], b"\0"].concat())), Err(HelloError::Malformed("extensions")));
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        read(&wrapped(&bytes))
    };
    assert_eq!(changed(0, &[2]), Err(HelloError::Version(0x203)));
    assert_eq!(changed(34, &[33]), Err(HelloError::Malformed("legacy_session_id")));
    assert_eq!(changed(67, &[0, 0]), Err(HelloError::Malformed("cipher_suites")));
    assert_eq!(changed(67, &[0, 3]), Err(HelloError::Malformed("cipher_suites")));
    assert_eq!(changed(73, &[0]), Err(HelloError::Malformed("legacy_compression_methods")));
    assert_eq!(read(&with_extensions(&[0])), Err(HelloError::Malformed("extension")));
    assert_eq!(read(&with_extensions(&[0, 9, 0, 1])), Err(HelloError::Malformed("extension")));
}

#[test]
fn whoever_can_hear_an_alert_gets_one() {
    assert_eq!(HelloError::PlainText.alert(), None);
    assert_eq!(HelloError::Version(0x200).alert(), Some(70));
    assert_eq!(HelloError::SeveralNames.alert(), Some(50));
}

proptest! {
    /// Garbage, and hellos with a few bytes changed: any cut gives the same outcome, and it never takes more
    /// than it may.
    #[test]
    fn any_split_gives_the_same_outcome(
        garbage in prop::option::weighted(0.2, prop::collection::vec(any::<u8>(), 0..400)),
        lengths in prop::collection::vec(1usize..600, 1..6),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut bytes = garbage.unwrap_or_else(|| in_records(&message(&hello("www.example.com")), &lengths));
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len().min(120));
                bytes[at] = byte;
            }
        }
        let (whole, _) = read_pieces([&bytes[..]]);
        let mut ends: Vec<usize> =
            cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
        ends.sort_unstable();
        let pieces = ends.windows(2).map(|ends| &bytes[ends[0]..ends[1]]);
        prop_assert_eq!(&read_pieces(pieces).0, &whole);
        prop_assert_eq!(&read_pieces(bytes.chunks(1)).0, &whole);
    }
}
