//! Headers as haproxy, nginx and the specification have them; every bound; and that no split of the input
//! changes what is read.

use proptest::prelude::*;

use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn tcp(source: &str, destination: &str) -> Header {
    Header::Tcp { source: address(source), destination: address(destination) }
}

/// Byte by byte, as a stream may bring it: the first answer that is no `NeedMore`.
fn parse_slowly(bytes: &[u8]) -> Result<Parsed, Error> {
    (0..=bytes.len())
        .map(|end| parse(&bytes[..end]))
        .find(|parsed| *parsed != Ok(Parsed::NeedMore))
        .unwrap_or(Ok(Parsed::NeedMore))
}

fn v2(command: u8, kind: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("16 bits").to_be_bytes();
    [&SIGNATURE[..], &[command, kind], &length, rest].concat()
}

#[test]
fn lines_of_version_1_are_read() {
    for (line, header) in [
        ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443", tcp("192.0.2.1:56324", "198.51.100.1:443")),
        (
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535",
            tcp("255.255.255.255:65535", "255.255.255.255:65535"),
        ),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 0 1", tcp("1.2.3.4:0", "5.6.7.8:1")),
        ("PROXY TCP6 2001:db8::1 ::1 1 2", tcp("[2001:db8::1]:1", "[::1]:2")),
        ("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:1.2.3.4 1 2", tcp("192.0.2.1:1", "1.2.3.4:2")),
        ("PROXY UNKNOWN", Header::Unknown),
        ("PROXY UNKNOWN whatever \u{1} this is", Header::Unknown),
        (
            "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535 \
             xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            Header::Unknown,
        ),
    ] {
        let bytes = format!("{line}\r\nGET / HTTP/1.1\r\n");
        let expected = Ok(Parsed::Header { header, consumed: line.len() + 2 });
        assert_eq!(parse(bytes.as_bytes()), expected, "{line}");
        assert_eq!(parse_slowly(bytes.as_bytes()), expected, "{line}");
    }
}

#[test]
fn other_lines_are_refused() {
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LINE_BYTES_MAX - 15));
    assert_eq!(long.len(), LINE_BYTES_MAX + 1);
    for (line, error) in [
        ("GET / HTTP/1.1\r\n", Error::Signature),
        ("proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n", Error::Signature),
        ("PROXX TCP4 1.2.3.4 5.6.7.8 1 2\r\n", Error::Signature),
        (" PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", Error::Signature),
        ("\r\n\r\n\0\r\nQUIX", Error::Signature),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", Error::Line),
        ("PROXY \n", Error::Line),
        (&long, Error::Line),
        ("PROXY \r\n", Error::Word),
        ("PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n", Error::Word),
        ("PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n", Error::Word),
        ("PROXY UNKNOWNX\r\n", Error::Word),
        ("PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n", Error::Word),
        ("PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n", Error::Word),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", Error::Word),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n", Error::Word),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n", Error::Word),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\r\n", Error::Word),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1\t2\r\n", Error::Word),
        ("PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n", Error::Word),
        ("PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n", Error::Word),
        ("PROXY TCP4 1.2.3.256 5.6.7.8 1 2\r\n", Error::Word),
        ("PROXY TCP4 ::1 ::2 1 2\r\n", Error::Word),
        ("PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n", Error::Word),
        ("PROXY TCP6 [::1] [::2] 1 2\r\n", Error::Word),
        ("PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n", Error::Word),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n", Error::Word),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n", Error::Word),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n", Error::Word),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n", Error::Word),
        ("PROXY TCP4 1.2.3.4 5.6.7.8  2\r\n", Error::Word),
    ] {
        assert_eq!(parse(line.as_bytes()), Err(error), "{line:?}");
        assert_eq!(parse_slowly(line.as_bytes()), Err(error), "{line:?}");
    }
    assert_eq!(parse(b"PROXY TCP4 \xff\r\n"), Err(Error::Word));
}

#[test]
fn headers_of_version_2_are_read() {
    let inet = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb];
    let client = tcp("192.0.2.1:56324", "198.51.100.1:443");
    let with_tlvs = [&inet[..], &[0x04, 0, 1, 0, 0x20, 0, 3, 1, 2, 3]].concat();
    let mut inet6 = [0; 36];
    (inet6[0], inet6[1], inet6[15], inet6[31], inet6[33], inet6[35]) = (0x20, 0x01, 1, 2, 3, 4);
    let mut mapped = [0; 36];
    mapped[10..16].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
    mapped[31] = 1;
    for (bytes, header) in [
        (v2(0x21, 0x11, &inet), client),
        (v2(0x21, 0x11, &with_tlvs), client),
        // TLVs that make no sense are skipped too.
        (v2(0x21, 0x11, &[&inet[..], &[0xff; 50_000]].concat()), client),
        (v2(0x21, 0x21, &inet6), tcp("[2001::1]:3", "[::2]:4")),
        (v2(0x21, 0x21, &mapped), tcp("192.0.2.1:0", "[::1]:0")),
        (v2(0x21, 0x12, &inet), Header::Unknown),
        (v2(0x21, 0x10, &inet), Header::Unknown),
        (v2(0x21, 0x22, &inet6), Header::Unknown),
        (v2(0x21, 0x31, &[b'/'; 216]), Header::Unknown),
        (v2(0x21, 0x00, &[]), Header::Unknown),
        (v2(0x21, 0x00, &[7; 40]), Header::Unknown),
        (v2(0x20, 0x00, &[]), Header::Local),
        (v2(0x20, 0x11, &inet), Header::Local),
        (v2(0x20, 0x11, &[]), Header::Local),
        (v2(0x20, 0xff, &[1, 2, 3]), Header::Local),
        (v2(0x20, 0x00, &[0; 0xffff]), Header::Local),
    ] {
        let expected = Ok(Parsed::Header { header, consumed: bytes.len() });
        let followed = [&bytes[..], b"rest"].concat();
        assert_eq!(parse(&followed), expected, "{:?}", &bytes[..bytes.len().min(40)]);
        assert_eq!(parse_slowly(&bytes), expected);
        assert_eq!(parse(&bytes[..bytes.len() - 1]), Ok(Parsed::NeedMore));
    }
}

#[test]
fn other_headers_are_refused() {
    for (bytes, error) in [
        (v2(0x11, 0x11, &[0; 12]), Error::Kind),
        (v2(0x31, 0x11, &[0; 12]), Error::Kind),
        (v2(0x22, 0x11, &[0; 12]), Error::Kind),
        (v2(0x21, 0x41, &[0; 300]), Error::Kind),
        (v2(0x21, 0x13, &[0; 300]), Error::Kind),
        (v2(0x21, 0x11, &[0; 11]), Error::Length),
        (v2(0x21, 0x12, &[0; 11]), Error::Length),
        (v2(0x21, 0x21, &[0; 35]), Error::Length),
        (v2(0x21, 0x31, &[0; 215]), Error::Length),
    ] {
        assert_eq!(parse(&bytes), Err(error), "{bytes:?}");
        assert_eq!(parse_slowly(&bytes), Err(error), "{bytes:?}");
    }
}

fn addresses() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(address, port)| socket_address(address, port))
}

/// Bytes that are a header, nearly one, or none.
fn inputs() -> impl Strategy<Value = Vec<u8>> {
    let words = prop_oneof![
        Just(" ".to_owned()),
        Just("TCP4".to_owned()),
        Just("TCP6".to_owned()),
        Just("UNKNOWN".to_owned()),
        Just("\r\n".to_owned()),
        "[0-9]{1,5}",
        any::<IpAddr>().prop_map(|address| address.to_string()),
        "\\PC{0,40}",
    ];
    let line = proptest::collection::vec(words, 0..12)
        .prop_map(|words| format!("PROXY {}", words.concat()).into_bytes());
    let binary = (
        prop_oneof![0x20_u8..0x23, any::<u8>()],
        prop_oneof![0_u8..0x34, any::<u8>()],
        proptest::collection::vec(any::<u8>(), 0..300),
    )
        .prop_map(|(command, kind, rest)| v2(command, kind, &rest));
    let cut = (binary.clone(), any::<prop::sample::Index>())
        .prop_map(|(bytes, at)| bytes[..at.index(bytes.len())].to_vec());
    prop_oneof![line, binary, cut, proptest::collection::vec(any::<u8>(), 0..40)]
}

proptest! {
    #[test]
    fn no_split_changes_what_is_read(
        bytes in inputs(),
        more in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let whole = parse(&bytes);
        prop_assert_eq!(parse_slowly(&bytes), whole);
        if whole != Ok(Parsed::NeedMore) {
            prop_assert_eq!(parse(&[&bytes[..], &more].concat()), whole);
        }
        if let Ok(Parsed::Header { consumed, .. }) = whole {
            prop_assert!(consumed <= bytes.len());
            prop_assert_eq!(parse(&bytes[..consumed - 1]), Ok(Parsed::NeedMore));
        }
    }

    #[test]
    fn what_is_written_is_read(source in addresses(), destination in addresses()) {
        for header in [Header::Tcp { source, destination }, Header::Local, Header::Unknown] {
            let mut bytes = Vec::new();
            encode(header, &mut bytes);
            prop_assert!(bytes.len() <= 52);
            prop_assert_eq!(parse(&bytes), Ok(Parsed::Header { header, consumed: bytes.len() }));
        }
    }

    #[test]
    fn lines_are_read_as_they_are_written(source in any::<IpAddr>(), ports in any::<[u16; 2]>()) {
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let destination = if source.is_ipv4() { "192.0.2.9" } else { "2001:db8::9" };
        let line = format!("PROXY {family} {source} {destination} {} {}\r\n", ports[0], ports[1]);
        let header = Header::Tcp {
            source: socket_address(source, ports[0]),
            destination: socket_address(destination.parse().expect("one"), ports[1]),
        };
        prop_assert_eq!(parse(line.as_bytes()), Ok(Parsed::Header { header, consumed: line.len() }));
    }
}
