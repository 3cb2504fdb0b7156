//! Response heads, accepted and refused (RFC 9112 section 4): the torture list, and its split at every byte.

use proptest::prelude::*;

use super::*;
use crate::http::path::Rules;

const LIMITS: Limits = Limits { header_bytes: 2048, fields: 8, uri_bytes: 0, paths: Rules::KEEP };

fn parse_as(method: &Method, input: &[u8]) -> Result<Option<(ResponseHead, usize, bool)>, HeadError> {
    match ResponseDecoder::new().parse(input, method, &LIMITS)? {
        Parsed::NeedMore => Ok(None),
        Parsed::Head { head, consumed, keep_alive } => Ok(Some((head, consumed, keep_alive))),
    }
}

fn accepted(method: &Method, input: &str) -> ResponseHead {
    match parse_as(method, input.as_bytes()) {
        Ok(Some((head, consumed, _))) => {
            assert_eq!(consumed, input.len(), "{input:?}");
            head
        }
        other => panic!("{input:?}: {other:?}"),
    }
}

fn refused() -> Vec<(Vec<u8>, HeadError)> {
    use HeadError::*;
    let mut cases: Vec<(Vec<u8>, HeadError)> = [
        ("HTTP/1.1 200 OK\n\n", BareLineFeed),
        ("HTTP/1.1 200 OK\r\nA: b\n\r\n", BareLineFeed),
        ("HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", BareCarriageReturn),
        ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", FoldedLine),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", EmptyLine),
        ("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", FieldName),
        ("HTTP/1.1 200 OK\r\nA\r\n\r\n", FieldName),
        ("HTTP/1.1 200 OK\r\n: b\r\n\r\n", FieldName),
        ("HTTP/1.1 200 OK\r\nA: \0\r\n\r\n", FieldValue),
        ("HTTP/1.1  200 OK\r\n\r\n", StartLine),
        ("HTTP/1.1 20 OK\r\n\r\n", StartLine),
        ("HTTP/1.1 2000 OK\r\n\r\n", StartLine),
        ("HTTP/1.1 099 OK\r\n\r\n", StartLine),
        ("HTTP/1.1 +20 OK\r\n\r\n", StartLine),
        ("HTTP/1.1 200\tOK\r\n\r\n", StartLine),
        ("HTTP/1.1 200 O\u{1}K\r\n\r\n", StartLine),
        ("HTTP/1.1 200 O\0K\r\n\r\n", StartLine),
        ("HTTP/1.1\r\n\r\n", StartLine),
        ("HTTP/2.0 200 OK\r\n\r\n", StartLine),
        ("HTTP/1.2 200 OK\r\n\r\n", StartLine),
        ("http/1.1 200 OK\r\n\r\n", StartLine),
        ("ICY 200 OK\r\n\r\n", StartLine),
        ("\u{15}\u{3}\u{3}", StartLine),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", ContentLengthRepeated),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", ContentLength),
        ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ContentLength),
        ("HTTP/1.1 304 OK\r\nContent-Length: x\r\n\r\n", ContentLength),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", BothLengths),
        ("HTTP/1.1 204 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", BothLengths),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", TransferEncoding),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n", TransferEncoding),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", TransferEncoding),
    ]
    .into_iter()
    .map(|(head, error)| (head.as_bytes().to_vec(), error))
    .collect();
    cases.push((format!("HTTP/1.1 200 {}\r\n\r\n", "x".repeat(1100)).into_bytes(), TooLarge));
    cases.push((format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(2048)).into_bytes(), TooLarge));
    cases.push((format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(9)).into_bytes(), TooManyFields));
    cases
}

#[test]
fn torture_list_is_refused_however_it_is_split() {
    for (head, expected) in refused() {
        let shown = String::from_utf8_lossy(&head).into_owned();
        assert_eq!(parse_as(&Method::Get, &head).err(), Some(expected), "{shown:?}");
        let mut decoder = ResponseDecoder::new();
        let error = (0..=head.len()).find_map(|cut| decoder.parse(&head[..cut], &Method::Get, &LIMITS).err());
        assert_eq!(error, Some(expected), "{shown:?} byte by byte");
    }
}

#[test]
fn a_head_split_anywhere_is_the_same_head() {
    let input = b"HTTP/1.1 200 All right\r\nContent-Length: 3\r\nA: b\r\n\r\nabc";
    let whole = format!("{:?}", parse_as(&Method::Get, input));
    for cut in 0..input.len() {
        let mut decoder = ResponseDecoder::new();
        let first = decoder.parse(&input[..cut], &Method::Get, &LIMITS);
        let parsed = match first {
            Ok(Parsed::NeedMore) => decoder.parse(input, &Method::Get, &LIMITS),
            done => done,
        };
        match parsed {
            Ok(Parsed::Head { head, consumed, keep_alive }) => {
                let parsed = Ok::<_, HeadError>(Some((head, consumed, keep_alive)));
                assert_eq!(format!("{parsed:?}"), whole, "{cut}");
            }
            other => panic!("{cut}: {other:?}"),
        }
    }
}

/// Heads with lines in every spelling, mostly right ones.
fn lines() -> impl Strategy<Value = Vec<u8>> {
    let start = proptest::sample::select(vec![
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 404 Not \u{e9}\r\n",
        "HTTP/1.1 204\r\n",
        "HTTP/1.1 200 \r\n",
        "HTTP/1.1 200 OK\n",
        "HTTP/1.1  200 OK\r\n",
        "\r\nHTTP/1.1 200 OK\r\n",
        "HTTP/1.1 099 Low\r\n",
    ]);
    let name = proptest::sample::select(vec![
        "Server",
        "X",
        "Connection",
        "Content-Length",
        "Transfer-Encoding",
        "X Y",
        "",
    ]);
    let value = proptest::sample::select(vec![
        "",
        "a",
        "5",
        "close",
        "keep-alive, x",
        "chunked",
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
    (start, more).prop_map(|(start, more)| format!("{start}{}\r\nbody", more.concat()).into_bytes())
}

proptest! {
    /// Read at once they give the same as scanner and httparse give for their pieces.
    #[test]
    fn a_head_read_at_once_is_that_in_pieces(input in lines(), cut in 1..40_usize, is_head in any::<bool>()) {
        let method = if is_head { Method::Head } else { Method::Get };
        let mut decoder = ResponseDecoder::new();
        let in_pieces = match decoder.parse(&input[..cut.min(input.len())], &method, &LIMITS) {
            Ok(Parsed::NeedMore) => decoder.parse(&input, &method, &LIMITS),
            done => done,
        };
        let in_pieces = in_pieces.map(|parsed| match parsed {
            Parsed::NeedMore => None,
            Parsed::Head { head, consumed, keep_alive } => Some((head, consumed, keep_alive)),
        });
        prop_assert_eq!(format!("{in_pieces:?}"), format!("{:?}", parse_as(&method, &input)));
    }
}

#[test]
fn status_lines() {
    for (line, status, reason) in [
        ("HTTP/1.1 200 OK", 200, "OK"),
        ("HTTP/1.1 200 ", 200, ""),
        ("HTTP/1.1 200", 200, ""),
        ("HTTP/1.0 404 Not  Found \t!", 404, "Not  Found \t!"),
        ("HTTP/1.1 999 \u{e9}", 999, "\u{e9}"),
    ] {
        let head = accepted(&Method::Get, &format!("{line}\r\n\r\n"));
        assert_eq!((head.status, &*head.reason), (status, reason.as_bytes()), "{line:?}");
    }
}

#[test]
fn body_length_and_persistence() {
    use BodyLength::*;
    use Method::{Get, Head};
    for (method, line, fields, body, keep_alive) in [
        (Get, "1.1 200", "Content-Length: 5", Known(5), true),
        (Get, "1.1 200", "Content-Length: 0", Known(0), true),
        (Get, "1.1 200", "transfer-encoding: CHUNKED", Unknown, true),
        (Get, "1.1 200", "X: y", UntilClose, false),
        (Get, "1.1 200", "Content-Length: 5\r\nConnection: close", Known(5), false),
        (Get, "1.0 200", "Content-Length: 5", Known(5), false),
        (Get, "1.0 200", "Content-Length: 5\r\nConnection: keep-alive", Known(5), true),
        (Get, "1.0 200", "Connection: keep-alive", UntilClose, false),
        (Head, "1.1 200", "Content-Length: 5", None, true),
        (Head, "1.1 200", "Transfer-Encoding: chunked", None, true),
        (Head, "1.1 200", "X: y", None, true),
        (Get, "1.1 304", "Content-Length: 5", None, true),
        (Get, "1.1 304", "X: y", None, true),
        (Get, "1.1 204", "X: y", None, true),
        (Get, "1.1 204", "Content-Length: 0", None, true),
        (Get, "1.1 204", "Content-Length: 5", None, false),
        (Get, "1.1 204", "Transfer-Encoding: chunked", None, false),
        (Get, "1.1 100", "X: y", None, true),
        (Get, "1.1 103", "Content-Length: 5", None, false),
        (Get, "1.1 205", "X: y", UntilClose, false),
    ] {
        let input = format!("HTTP/{line} x\r\n{fields}\r\n\r\n");
        let Ok(Some((head, _, persists))) = parse_as(&method, input.as_bytes()) else { panic!("{input:?}") };
        assert_eq!((head.body, persists), (body, keep_alive), "{method:?} {line} {fields}");
    }
}
