//! Request heads, accepted and refused (RFC 9112 section 3): the torture list, its split at every byte, and
//! any bytes at all.

use proptest::prelude::*;

use super::*;
use crate::error::RefusalReason;
use crate::http::path::PathError;
use crate::http::path::Rules;

const LIMITS: Limits = Limits { header_bytes: 512, fields: 8, uri_bytes: 64, paths: Rules::KEEP };

fn parse(input: &[u8]) -> Result<Option<(RequestHead, usize, bool)>, HeadError> {
    match RequestDecoder::new().parse(input, &LIMITS)? {
        Parsed::NeedMore => Ok(None),
        Parsed::Head { head, consumed, keep_alive } => Ok(Some((head, consumed, keep_alive))),
    }
}

fn accepted(input: &str) -> RequestHead {
    match parse(input.as_bytes()) {
        Ok(Some((head, consumed, _))) => {
            assert_eq!(consumed, input.len(), "{input:?}");
            head
        }
        other => panic!("{input:?}: {other:?}"),
    }
}

/// Everything that two outcomes can differ in.
fn outcome(result: &Result<Option<(RequestHead, usize, bool)>, HeadError>) -> String {
    format!("{result:?}")
}

/// Feeds `input` cut at `cuts`, as a session would, and stops at the first head or error.
fn parse_split(
    input: &[u8],
    cuts: impl IntoIterator<Item = usize>,
) -> Result<Option<(RequestHead, usize, bool)>, HeadError> {
    let mut decoder = RequestDecoder::new();
    for cut in cuts.into_iter().chain([input.len()]) {
        if let Parsed::Head { head, consumed, keep_alive } = decoder.parse(&input[..cut], &LIMITS)? {
            return Ok(Some((head, consumed, keep_alive)));
        }
    }
    Ok(None)
}

fn refused() -> Vec<(Vec<u8>, HeadError)> {
    use HeadError::*;
    let mut cases: Vec<(Vec<u8>, HeadError)> = Vec::new();
    // Whole heads.
    for (head, error) in [
        // Line ends (RFC 9112 §2.2).
        ("GET / HTTP/1.1\nHost: a\n\n", BareLineFeed),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", BareLineFeed),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", BareLineFeed),
        ("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", BareCarriageReturn),
        ("GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", BareCarriageReturn),
        ("GET / HTTP/1.1\rHost: a\r\n\r\n", BareCarriageReturn),
        ("GET / HTTP/1.1\r\nHost: a\r\n\rX: b\r\n\r\n", BareCarriageReturn),
        ("\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BareLineFeed),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", EmptyLine),
        ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", BareCarriageReturn),
        // Folding and white space (RFC 9112 §5).
        ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", FoldedLine),
        ("GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n", FoldedLine),
        ("GET / HTTP/1.1\r\nHost: a\r\n \r\n\r\n", FoldedLine),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", FoldedLine),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nHost: a\r\n\0X: b\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nHost: a\r\nX(y): b\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\u{e9}: b\r\n\r\n", FieldName),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", FieldValue),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\u{b}c\r\n\r\n", FieldValue),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\u{7f}\r\n\r\n", FieldValue),
        // Request lines (RFC 9112 §3).
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", StartLine),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", StartLine),
        ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", StartLine),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", StartLine),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", StartLine),
        ("GET /\r\nHost: a\r\n\r\n", StartLine),
        ("GET\r\nHost: a\r\n\r\n", StartLine),
        ("GET / \r\nHost: a\r\n\r\n", StartLine),
        ("GET  HTTP/1.1\r\nHost: a\r\n\r\n", StartLine),
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", StartLine),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", StartLine),
        ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", StartLine),
        ("GET / HTTP/ 1.1\r\nHost: a\r\n\r\n", StartLine),
        ("GET / HTTP/1.1x\r\nHost: a\r\n\r\n", StartLine),
        ("GET / XHTTP/1.1\r\nHost: a\r\n\r\n", StartLine),
        ("GET / HTTP/+1.1\r\nHost: a\r\n\r\n", StartLine),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", StartLine),
        ("\u{16}\u{3}\u{1}", StartLine),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Version),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Version),
        ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", Version),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Version),
        // Targets (RFC 9112 §3.2).
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("OPTIONS ** HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET ?a HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET http:a HTTP/1.1\r\nHost: a\r\n\r\n", Target),
        ("GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n", HostInvalid),
        ("GET http:// HTTP/1.1\r\nHost: a\r\n\r\n", HostInvalid),
        ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", HostInvalid),
        ("GET http://a\\b/ HTTP/1.1\r\nHost: a\r\n\r\n", HostInvalid),
        ("GET http://a#b HTTP/1.1\r\nHost: a\r\n\r\n", Path(PathError::ForbiddenByte)),
        ("GET http://b/ HTTP/1.1\r\nHost: a b\r\n\r\n", HostInvalid),
        ("GET http://b/ HTTP/1.1\r\n\r\n", HostMissing),
        ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", Path(PathError::ForbiddenByte)),
        ("GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", Path(PathError::ForbiddenByte)),
        ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", Path(PathError::ForbiddenByte)),
        ("GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", Path(PathError::PercentEncoding)),
        ("GET http://a/%0 HTTP/1.1\r\nHost: a\r\n\r\n", Path(PathError::PercentEncoding)),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", Connect),
        // Host (RFC 9112 §3.2).
        ("GET / HTTP/1.1\r\n\r\n", HostMissing),
        ("GET / HTTP/1.1\r\nX: Host: a\r\n\r\n", HostMissing),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", HostRepeated),
        ("GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n", HostRepeated),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", HostRepeated),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", HostInvalid),
        ("GET / HTTP/1.0\r\nHost:\r\n\r\n", HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", HostInvalid),
        ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", HostInvalid),
        // Content-Length (RFC 9112 §6.2, §6.3).
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5,\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5.0\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \"5\"\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\u{a0}\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n", ContentLength),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", ContentLength),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            ContentLengthRepeated,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\ncontent-length: 6\r\n\r\n",
            ContentLengthRepeated,
        ),
        // Transfer-Encoding: CL.TE, TE.CL and TE.TE (RFC 9112 §6.1, §11.2).
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            BothLengths,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
            BothLengths,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            TransferEncoding,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
            TransferEncoding,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-encoding: x\r\n\r\n",
            TransferEncoding,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked,\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", TransferEncoding),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n", FieldValue),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n", FoldedLine),
        ("POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n", BareLineFeed),
        ("POST / HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n", BareCarriageReturn),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", TransferEncoding),
        // Expect (RFC 9110 §10.1.1).
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 200-ok\r\n\r\n", Expectation),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue, x\r\n\r\n", Expectation),
    ] {
        cases.push((head.as_bytes().to_vec(), error));
    }
    // Bounds.
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(64));
    cases.push((long_target.into_bytes(), UriTooLong));
    cases.push((format!("GET /{}", "a".repeat(500)).into_bytes(), UriTooLong));
    cases.push((format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(200)).into_bytes(), UriTooLong));
    let many = "X: y\r\n".repeat(8);
    cases.push((format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").into_bytes(), TooManyFields));
    cases.push((
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(500)).into_bytes(),
        TooLarge,
    ));
    cases.push((format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(500)).into_bytes(), TooLarge));
    cases.push((
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunk\xe9d\r\n\r\n".to_vec(),
        TransferEncoding,
    ));
    cases
}

#[test]
fn torture_list_is_refused_however_it_is_split() {
    for (head, expected) in refused() {
        let shown = String::from_utf8_lossy(&head).into_owned();
        assert_eq!(parse(&head).err(), Some(expected), "{shown:?}");
        for cut in 0..head.len() {
            assert_eq!(parse_split(&head, [cut]).err(), Some(expected), "{shown:?} cut at {cut}");
        }
        assert_eq!(parse_split(&head, 0..head.len()).err(), Some(expected), "{shown:?} byte by byte");
    }
}

#[test]
fn errors_are_answered_as_interface_says() {
    for (error, reason) in [
        (HeadError::BothLengths, RefusalReason::Malformed),
        (HeadError::HostRepeated, RefusalReason::BadHost),
        (HeadError::UriTooLong, RefusalReason::UriTooLong),
        (HeadError::TooLarge, RefusalReason::HeadTooLarge),
        (HeadError::TooManyFields, RefusalReason::HeadTooLarge),
        (HeadError::Version, RefusalReason::VersionNotSupported),
        (HeadError::Connect, RefusalReason::NotImplemented),
        (HeadError::Expectation, RefusalReason::ExpectationFailed),
    ] {
        assert_eq!(error.refusal(), reason);
    }
}

#[test]
fn targets_and_authorities() {
    for (input, authority, path) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "a", "/"),
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "a", "/"),
        ("GET /a/../b?c HTTP/1.1\r\nHost:A.B:80\r\n\r\n", "a.b:80", "/b?c"),
        ("GET / HTTP/1.1\r\nHost: \t a \t \r\n\r\n", "a", "/"),
        ("GET / HTTP/1.1\r\nhost: [::1]:8080\r\n\r\n", "[::1]:8080", "/"),
        ("GET http://B:1/c?d HTTP/1.1\r\nHost: a\r\n\r\n", "b:1", "/c?d"),
        ("GET HTTPS://b HTTP/1.1\r\nHost: a\r\n\r\n", "b", "/"),
        ("GET http://b?d=/e HTTP/1.1\r\nHost: a\r\n\r\n", "b", "/?d=/e"),
        ("GET http://b/../c HTTP/1.0\r\n\r\n", "b", "/c"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "a", "*"),
        ("OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n", "b", "*"),
        ("OPTIONS http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "b", "/"),
        ("GET / HTTP/1.0\r\n\r\n", "", "/"),
        ("GET // HTTP/1.1\r\nHost: a\r\n\r\n", "a", "//"),
    ] {
        let head = accepted(input);
        assert_eq!((&*head.authority, &*head.path_and_query), (authority, path), "{input:?}");
    }
}

#[test]
fn framing_and_persistence() {
    use BodyLength::*;
    for (fields, version, body, keep_alive) in [
        ("", "1.1", None, true),
        ("", "1.0", None, false),
        ("Connection: keep-alive\r\n", "1.0", None, true),
        ("Connection: Keep-Alive, x\r\nConnection: close\r\n", "1.0", None, false),
        ("Connection: x , CLOSE\r\n", "1.1", None, false),
        ("Connection: closed\r\n", "1.1", None, true),
        ("Content-Length: 0\r\n", "1.1", Known(0), true),
        ("CONTENT-LENGTH: \t5 \r\n", "1.1", Known(5), true),
        ("Content-Length: 007\r\n", "1.0", Known(7), false),
        ("Content-Length: 9999999999999999999\r\n", "1.1", Known(9_999_999_999_999_999_999), true),
        ("transfer-encoding: Chunked\r\n", "1.1", Unknown, true),
        ("X-Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "1.1", Known(3), true),
    ] {
        let input = format!("POST / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
        let Ok(Some((head, _, persists))) = parse(input.as_bytes()) else { panic!("{input:?}") };
        assert_eq!((head.body, persists), (body, keep_alive), "{fields:?} {version}");
    }
}

#[test]
fn fields_are_kept_as_received() {
    let head = accepted("M-SEARCH / HTTP/1.1\r\nHost: a\r\nX-A:  b  c\t\r\nx-a:\r\nObs: \u{e9}\r\n\r\n");
    assert_eq!(head.method, Method::Other("M-SEARCH".into()));
    let fields: Vec<_> = head.fields.iter().collect();
    let expected: [(&[u8], &[u8]); 4] =
        [(b"Host", b"a"), (b"X-A", b"b  c"), (b"x-a", b""), (b"Obs", "\u{e9}".as_bytes())];
    assert_eq!(fields, expected);
}

#[test]
fn expects_continue_only_with_a_body_on_http11() {
    for (fields, version, expected) in [
        ("Expect: 100-Continue\r\nContent-Length: 5\r\n", "1.1", true),
        ("Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", "1.1", true),
        ("Expect: 100-continue\r\nContent-Length: 0\r\n", "1.1", false),
        ("Expect: 100-continue\r\n", "1.1", false),
        ("Expect: 100-continue\r\nContent-Length: 5\r\n", "1.0", false),
        ("Content-Length: 5\r\n", "1.1", false),
    ] {
        let head = accepted(&format!("PUT / HTTP/{version}\r\nHost: a\r\n{fields}\r\n"));
        assert_eq!(head.expects_continue(), expected, "{fields:?}");
    }
}

#[test]
fn request_ids_are_bounded() {
    let long = "a".repeat(129);
    for (value, fit) in [
        ("a-B_3.~+/=:", true),
        (&long[..128], true),
        (&long, false),
        ("", false),
        ("a b", false),
        ("a\"", false),
    ] {
        let head = accepted(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: {value}\r\n\r\n"));
        assert_eq!(head.request_id(), fit.then_some(value), "{value:?}");
    }
}

#[test]
fn pipelined_heads_come_one_by_one_from_one_decoder() {
    let mut decoder = RequestDecoder::new();
    let input = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET";
    let mut rest = &input[..];
    for expected in ["/1", "/2"] {
        match decoder.parse(rest, &LIMITS) {
            Ok(Parsed::Head { head, consumed, .. }) => {
                assert_eq!(&*head.path_and_query, expected);
                rest = &rest[consumed..];
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(decoder.parse(rest, &LIMITS), Ok(Parsed::NeedMore)));
}

#[test]
fn one_decoder_tells_hosts_apart() {
    let mut decoder = RequestDecoder::new();
    for (host, expected) in [
        ("a", Some("a")),
        ("a", Some("a")),
        ("A", Some("a")),
        ("b:", Some("b")),
        ("b", Some("b")),
        ("b:80", Some("b:80")),
        ("[::1]", Some("[::1]")),
        ("[::1]", Some("[::1]")),
        ("a", Some("a")),
        ("a b", None),
    ] {
        let input = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let authority = match decoder.parse(input.as_bytes(), &LIMITS) {
            Ok(Parsed::Head { head, .. }) => Some(head.authority),
            _ => None,
        };
        assert_eq!(authority.as_deref(), expected, "{host}");
    }
}

#[test]
fn a_head_of_exactly_the_bounds_is_accepted() {
    let start = "GET /aaaaaaaaa HTTP/1.1\r\nHost: a\r\nX: ";
    let fill = "y".repeat(LIMITS.header_bytes - start.len() - 4);
    accepted(&format!("{start}{fill}\r\n\r\n"));
    assert_eq!(parse(format!("{start}{fill}y\r\n\r\n").as_bytes()).err(), Some(HeadError::TooLarge));
    accepted(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(LIMITS.uri_bytes - 1)));
    accepted(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(LIMITS.fields - 1)));
}

#[test]
fn more_fields_than_fit_the_stack() {
    let limits = Limits { header_bytes: 64 << 10, fields: 1000, uri_bytes: 64, paths: Rules::KEEP };
    let input = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(999));
    match RequestDecoder::new().parse(input.as_bytes(), &limits) {
        Ok(Parsed::Head { head, .. }) => assert_eq!(head.fields.len(), 1000),
        other => panic!("{other:?}"),
    }
}

/// Fragments that make heads which are almost right, and now and then right.
fn fragments() -> impl Strategy<Value = Vec<u8>> {
    let fragment = proptest::sample::select(vec![
        &b"GET / HTTP/1.1\r\n"[..],
        b"POST /a/../b HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b":",
        b"X: y",
        b"\0",
        b"yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy",
    ]);
    let tail = proptest::collection::vec(fragment, 0..12);
    (any::<bool>(), tail).prop_map(|(right, tail)| {
        let start: &[u8] = if right { b"GET / HTTP/1.1\r\nHost: a\r\n" } else { b"" };
        [start, &tail.concat()].concat()
    })
}

/// Heads with lines in every spelling, mostly right ones.
fn lines() -> impl Strategy<Value = Vec<u8>> {
    let start = proptest::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "\r\nGET / HTTP/1.1\r\n",
        "\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n",
        "GET  / HTTP/1.1\r\n",
        "GET / HTTP/1.1\n",
        "POST /a/./%62 HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "GET http://B:80/c HTTP/1.1\r\n",
        "GET /yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy HTTP/1.1\r\n",
    ]);
    let name = proptest::sample::select(vec![
        "Host",
        "hOST",
        "X",
        "Connection",
        "Content-Length",
        "Expect",
        "TE",
        "X-Real-IP",
        "X Y",
        "",
    ]);
    let value = proptest::sample::select(vec![
        "",
        "a",
        "A:80",
        "5",
        "close",
        "100-continue",
        "a b",
        "\u{e9}",
        "\r",
        "a\u{7f}",
    ]);
    let space = proptest::sample::select(vec!["", " ", " ", " ", "  ", "\t", " \t"]);
    let end = proptest::sample::select(vec!["", "", "", " ", "\t "]);
    let line_end =
        proptest::sample::select(vec!["\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r\n\r\n"]);
    let line = (name, space, value, end, line_end)
        .prop_map(|(name, space, value, end, line_end)| format!("{name}:{space}{value}{end}{line_end}"));
    let more = proptest::collection::vec(line, 0..10);
    (start, any::<bool>(), more).prop_map(|(start, has_host, more)| {
        let host = if has_host { "Host: a\r\n" } else { "" };
        format!("{start}{host}{}\r\nbody", more.concat()).into_bytes()
    })
}

proptest! {
    #[test]
    fn any_split_has_the_same_outcome(
        input in fragments(),
        mut cuts in proptest::collection::vec(0..600_usize, 0..8),
    ) {
        cuts.retain(|&cut| cut <= input.len());
        cuts.sort_unstable();
        prop_assert_eq!(outcome(&parse(&input)), outcome(&parse_split(&input, cuts)));
        prop_assert_eq!(outcome(&parse(&input)), outcome(&parse_split(&input, 0..input.len())));
    }

    /// Lines in usual and unusual spellings. Read at once they give the same as scanner and httparse give for
    /// their pieces.
    #[test]
    fn a_head_read_at_once_is_that_in_pieces(input in lines(), cut in 1..40_usize) {
        let cuts = [cut.min(input.len())];
        prop_assert_eq!(outcome(&parse(&input)), outcome(&parse_split(&input, cuts)));
    }

    #[test]
    fn any_bytes_never_panic(input in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&input);
    }
}
