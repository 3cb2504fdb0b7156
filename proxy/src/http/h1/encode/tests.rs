//! A written message reads back as the same message, with every framing that the recipient can take.

use proptest::prelude::*;

use super::*;
use crate::http::h1::{BodyDecoder, Parsed, RequestDecoder, ResponseDecoder, Step};
use crate::http::limits::Limits;
use crate::http::path::Rules;

const LIMITS: Limits = Limits { header_bytes: 64 << 10, fields: 100, uri_bytes: 4096, paths: Rules::KEEP };

fn fields(pairs: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in pairs {
        fields.push(name.as_bytes(), value.as_bytes());
    }
    fields
}

fn request_head(body: BodyLength, pairs: &[(&str, &str)]) -> RequestHead {
    RequestHead {
        method: Method::Post,
        version: Version::Http10,
        authority: "app:8080".into(),
        path_and_query: "/a?b".into(),
        fields: fields(pairs),
        body,
    }
}

fn response_head(status: u16, body: BodyLength, pairs: &[(&str, &str)]) -> ResponseHead {
    ResponseHead { status, version: Version::Http11, reason: (*b"Fine").into(), fields: fields(pairs), body }
}

fn text(out: &[u8]) -> &str {
    std::str::from_utf8(out).expect("text")
}

fn parsed_response(out: &[u8], method: &Method) -> (ResponseHead, usize, bool) {
    match ResponseDecoder::new().parse(out, method, &LIMITS) {
        Ok(Parsed::Head { head, consumed, keep_alive }) => (head, consumed, keep_alive),
        other => panic!("{other:?} of {:?}", text(out)),
    }
}

#[test]
fn requests_get_host_and_framing_from_the_head_alone() {
    let pairs = [
        ("host", "other"),
        ("Content-Length", "7"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close"),
        ("A", "b"),
        ("TE", "trailers"),
    ];
    for (body, framing, line) in [
        (BodyLength::None, Framing::None, ""),
        (BodyLength::Known(5), Framing::Length(5), "Content-Length: 5\r\n"),
        (BodyLength::Unknown, Framing::Chunked, "Transfer-Encoding: chunked\r\n"),
    ] {
        let mut out = Vec::new();
        assert_eq!(request(&request_head(body, &pairs), &mut out), framing);
        let expected = format!(
            "POST /a?b HTTP/1.1\r\nHost: app:8080\r\n{line}A: b\r\nTE: trailers\r\nConnection: TE\r\n\r\n"
        );
        assert_eq!(text(&out), expected);
    }
}

const CLIENT: Recipient = Recipient { version: Version::Http11, is_head: false, keep_alive: true };
const OLD_CLIENT: Recipient = Recipient { version: Version::Http10, ..CLIENT };

#[test]
fn responses_are_framed_for_their_recipient() {
    use BodyLength::{Known, Unknown, UntilClose};
    let head_client = Recipient { is_head: true, ..CLIENT };
    let last = Recipient { keep_alive: false, ..CLIENT };
    for (recipient, status, body, framing, keep_alive, lines) in [
        (CLIENT, 200, Known(5), Framing::Length(5), true, "Content-Length: 5\r\n"),
        (CLIENT, 200, BodyLength::None, Framing::Length(0), true, "Content-Length: 0\r\n"),
        (CLIENT, 200, Unknown, Framing::Chunked, true, "Transfer-Encoding: chunked\r\n"),
        (CLIENT, 200, UntilClose, Framing::Chunked, true, "Transfer-Encoding: chunked\r\n"),
        (last, 200, Unknown, Framing::Chunked, false, "Transfer-Encoding: chunked\r\nConnection: close\r\n"),
        (
            OLD_CLIENT,
            200,
            Known(5),
            Framing::Length(5),
            true,
            "Content-Length: 5\r\nConnection: keep-alive\r\n",
        ),
        (OLD_CLIENT, 200, Unknown, Framing::UntilClose, false, "Connection: close\r\n"),
        (OLD_CLIENT, 200, UntilClose, Framing::UntilClose, false, "Connection: close\r\n"),
        (CLIENT, 204, BodyLength::None, Framing::None, true, ""),
        (CLIENT, 304, BodyLength::None, Framing::None, true, "content-length: 9\r\n"),
        (head_client, 204, BodyLength::None, Framing::None, true, ""),
        (head_client, 200, BodyLength::None, Framing::None, true, "content-length: 9\r\n"),
        (head_client, 200, Known(9), Framing::None, true, "content-length: 9\r\n"),
    ] {
        let mut out = Vec::new();
        let pairs = [("content-length", "9"), ("transfer-encoding", "chunked"), ("connection", "x")];
        let sent = response(&response_head(status, body, &pairs), recipient, &mut out);
        assert_eq!(sent, Sent { framing, keep_alive });
        assert_eq!(text(&out), format!("HTTP/1.1 {status} Fine\r\n{lines}\r\n"), "{recipient:?} {body:?}");
    }
}

#[test]
fn interim_responses_have_no_framing() {
    let mut out = Vec::new();
    let pairs = [("Link", "</a>"), ("Content-Length", "9"), ("Connection", "x")];
    informational(&response_head(103, BodyLength::None, &pairs), &mut out);
    assert_eq!(text(&out), "HTTP/1.1 103 Fine\r\nLink: </a>\r\n\r\n");
    assert_eq!(parsed_response(CONTINUE, &Method::Post).0.status, 100);
}

#[test]
fn chunk_sizes() {
    for (len, line) in [
        (0, ""),
        (1, "1\r\n"),
        (15, "f\r\n"),
        (16, "10\r\n"),
        (4096, "1000\r\n"),
        (usize::MAX, "ffffffffffffffff\r\n"),
    ] {
        let mut out = Vec::new();
        Framing::Chunked.before_data(len, &mut out);
        assert_eq!(text(&out), line);
        Framing::Length(9).before_data(len, &mut out);
        assert_eq!(text(&out), line, "only chunks have a size line");
    }
}

fn name() -> impl Strategy<Value = String> {
    "[Xx]-[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}"
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(
        proptest::sample::select(
            (0x20..=0xff_u8).filter(|&byte| byte != 0x7f).chain([9]).collect::<Vec<_>>(),
        ),
        0..24,
    )
    .prop_map(|bytes| crate::http::grammar::trim(&bytes).to_vec())
}

fn some_fields() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    proptest::collection::vec((name(), value()), 0..12)
}

fn body_length() -> impl Strategy<Value = BodyLength> {
    prop_oneof![
        Just(BodyLength::None),
        (0..10_u64.pow(18)).prop_map(BodyLength::Known),
        Just(BodyLength::Unknown)
    ]
}

fn to_fields(pairs: &[(String, Vec<u8>)]) -> Fields {
    let mut fields = Fields::new();
    pairs.iter().for_each(|(name, value)| fields.push(name.as_bytes(), value));
    fields
}

/// Fields that the test put in, as read back.
fn own_fields(fields: &Fields) -> Vec<(String, Vec<u8>)> {
    let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    fields
        .iter()
        .filter(|(name, _)| matches!(name, [b'x' | b'X', b'-', ..]))
        .map(|(name, value)| (text(name), value.to_vec()))
        .collect()
}

proptest! {
    #[test]
    fn a_request_that_we_write_we_parse(
        method in "[A-Z][A-Z-]{0,8}",
        authority in "[a-z0-9.-]{1,20}(:[0-9]{1,4})?",
        path in "/[a-z0-9/]{0,20}([?][!-~&&[^#]]{0,10})?",
        pairs in some_fields(),
        body in body_length(),
    ) {
        prop_assume!(method != "CONNECT");
        let head = RequestHead {
            method: Method::from_token(&method),
            version: Version::Http11,
            authority: authority.into(),
            path_and_query: path.into(),
            fields: to_fields(&pairs),
            body,
        };
        let mut out = Vec::new();
        request(&head, &mut out);
        let Ok(Parsed::Head { head: read, consumed, keep_alive: persists }) =
            RequestDecoder::new().parse(&out, &LIMITS)
        else {
            return Err(TestCaseError::fail(format!("refused: {:?}", String::from_utf8_lossy(&out))));
        };
        prop_assert_eq!(consumed, out.len());
        prop_assert_eq!(
            (read.method, read.authority, read.path_and_query),
            (head.method, head.authority, head.path_and_query)
        );
        prop_assert_eq!((read.body, persists), (body, true));
        prop_assert_eq!(own_fields(&read.fields), pairs);
    }

    #[test]
    fn a_response_that_we_write_we_parse(
        status in 200..1000_u16,
        reason in "[ -~]{0,20}",
        pairs in some_fields(),
        body in body_length(),
        old in any::<bool>(),
        keep_alive in any::<bool>(),
    ) {
        let head = ResponseHead {
            status,
            version: Version::Http11,
            reason: reason.as_bytes().into(),
            fields: to_fields(&pairs),
            body,
        };
        let version = if old { Version::Http10 } else { Version::Http11 };
        let mut out = Vec::new();
        let sent = response(&head, Recipient { version, is_head: false, keep_alive }, &mut out);
        let (read, consumed, persists) = parsed_response(&out, &Method::Get);
        prop_assert_eq!(consumed, out.len());
        prop_assert_eq!(
            (read.status, &*read.reason, persists),
            (status, reason.as_bytes(), sent.keep_alive)
        );
        let framing = match read.body {
            BodyLength::None => Framing::None,
            BodyLength::Known(length) => Framing::Length(length),
            BodyLength::Unknown => Framing::Chunked,
            BodyLength::UntilClose => Framing::UntilClose,
        };
        prop_assert_eq!(framing, sent.framing);
        prop_assert_eq!(own_fields(&read.fields), pairs);
    }

    #[test]
    fn chunks_that_we_write_we_decode(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6),
        trailers in some_fields(),
    ) {
        let mut out = Vec::new();
        for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
            Framing::Chunked.before_data(chunk.len(), &mut out);
            out.extend_from_slice(chunk);
            out.extend_from_slice(Framing::Chunked.after_data());
        }
        Framing::Chunked.end(&to_fields(&trailers), &mut out);
        let mut decoder = BodyDecoder::new(BodyLength::Unknown);
        let (mut rest, mut data) = (&out[..], Vec::new());
        let read = loop {
            match decoder.decode(rest) {
                Ok(Step::Data { skip, len }) => {
                    data.extend_from_slice(&rest[skip..skip + len]);
                    rest = &rest[skip + len..];
                }
                Ok(Step::End { consumed, trailers }) => {
                    prop_assert_eq!(consumed, rest.len());
                    break trailers;
                }
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
        };
        prop_assert_eq!(data, chunks.concat());
        prop_assert_eq!(own_fields(&read), trailers);
    }
}
