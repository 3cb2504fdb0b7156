//! Reading of bodies (RFC 9112 sections 6 and 7): any split of the input decodes to the same, and malformed
//! bodies are refused.

use proptest::prelude::*;

use super::*;

/// Names and values.
type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Everything in which two decodings of one input could differ.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    data: Vec<u8>,
    /// Trailers, and how many bytes the body took.
    end: Option<(Pairs, usize)>,
    error: Option<BodyError>,
    eof: Result<(), BodyError>,
}

/// Decodes pieces one after the other, as a session does.
fn decode<'a>(length: BodyLength, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut decoder = BodyDecoder::new(length);
    let mut outcome = Outcome { data: Vec::new(), end: None, error: None, eof: Ok(()) };
    let mut taken = 0;
    'pieces: for piece in pieces {
        let mut rest = piece;
        loop {
            match decoder.decode(rest) {
                Ok(Step::Data { skip, len }) => {
                    assert!(len > 0);
                    outcome.data.extend_from_slice(&rest[skip..skip + len]);
                    rest = &rest[skip + len..];
                    taken += skip + len;
                }
                Ok(Step::NeedMore { consumed }) => {
                    assert_eq!(consumed, rest.len());
                    taken += consumed;
                    break;
                }
                Ok(Step::End { consumed, trailers }) => {
                    let trailers =
                        trailers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
                    outcome.end = Some((trailers, taken + consumed));
                    break 'pieces;
                }
                Err(error) => {
                    outcome.error = Some(error);
                    break 'pieces;
                }
            }
        }
    }
    outcome.eof = decoder.eof();
    outcome
}

fn decode_cut(length: BodyLength, input: &[u8], cuts: &[usize]) -> Outcome {
    let mut pieces = Vec::new();
    let mut start = 0;
    for &cut in cuts.iter().chain([&input.len()]) {
        pieces.push(&input[start..cut]);
        start = cut;
    }
    decode(length, pieces)
}

fn decode_bytewise(length: BodyLength, input: &[u8]) -> Outcome {
    decode(length, input.chunks(1).chain([&b""[..]]))
}

fn refused() -> Vec<(Vec<u8>, BodyError)> {
    use BodyError::*;
    let mut cases: Vec<(Vec<u8>, BodyError)> = [
        // Sizes.
        ("\r\n", ChunkSize),
        ("g\r\n", ChunkSize),
        ("+5\r\nhello\r\n", ChunkSize),
        ("-5\r\nhello\r\n", ChunkSize),
        ("0x5\r\nhello\r\n", ChunkSize),
        ("5_\r\nhello\r\n", ChunkSize),
        (" 5\r\nhello\r\n", ChunkSize),
        ("\t5\r\nhello\r\n", ChunkSize),
        ("5 \r\nhello\r\n", ChunkSize),
        ("5\t\r\nhello\r\n", ChunkSize),
        ("5 5\r\nhello\r\n", ChunkSize),
        ("5,5\r\nhello\r\n", ChunkSize),
        ("5.\r\nhello\r\n", ChunkSize),
        (";a\r\nhello\r\n", ChunkSize),
        ("5\0\r\nhello\r\n", ChunkSize),
        ("\u{0665}\r\nhello\r\n", ChunkSize),
        ("10000000000000000\r\n", ChunkSize),
        ("00000000000000005\r\nhello\r\n", ChunkSize),
        ("ffffffffffffffff0\r\n", ChunkSize),
        // Line ends.
        ("5\nhello\r\n", ChunkSize),
        ("5\r\r\nhello\r\n", ChunkSize),
        ("5\rhello", ChunkSize),
        ("5;a\nhello\r\n", ChunkExtension),
        ("5;a\rX", ChunkSize),
        ("5;a\0\r\nhello\r\n", ChunkExtension),
        ("5;a=\"\n\"\r\nhello\r\n", ChunkExtension),
        ("5;\u{e9}\r\nhello\r\n", ChunkExtension),
        ("5;\x7f\r\nhello\r\n", ChunkExtension),
        // Data longer or shorter than its size.
        ("5\r\nhello\n0\r\n\r\n", ChunkEnd),
        ("5\r\nhello0\r\n\r\n", ChunkEnd),
        ("5\r\nhello\r0\r\n\r\n", ChunkEnd),
        ("4\r\nhello\r\n0\r\n\r\n", ChunkEnd),
        ("6\r\nhello\r\n0\r\n\r\n", ChunkEnd),
        ("5\r\nhello \r\n0\r\n\r\n", ChunkEnd),
        // Ends and trailers.
        ("0\n\n", ChunkSize),
        ("0\r\n\n", Trailers(HeadError::BareLineFeed)),
        ("0\r\n\r\r", Trailers(HeadError::BareCarriageReturn)),
        ("0\r\nA: b\n\r\n", Trailers(HeadError::BareLineFeed)),
        ("0\r\nA: b\rc\r\n\r\n", Trailers(HeadError::BareCarriageReturn)),
        ("0\r\n A: b\r\n\r\n", Trailers(HeadError::StartLine)),
        ("0\r\nA: b\r\n c\r\n\r\n", Trailers(HeadError::FoldedLine)),
        ("0\r\nA : b\r\n\r\n", Trailers(HeadError::FieldName)),
        ("0\r\nA\r\n\r\n", Trailers(HeadError::FieldName)),
        ("0\r\nA: b\r\n\0: c\r\n\r\n", Trailers(HeadError::FieldName)),
        ("0\r\nA: \0\r\n\r\n", Trailers(HeadError::FieldValue)),
        ("0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Trailers(HeadError::FieldName)),
    ]
    .into_iter()
    .map(|(body, error)| (body.as_bytes().to_vec(), error))
    .collect();
    cases.push((format!("5;{}\r\nhello\r\n", "a".repeat(256)).into_bytes(), ChunkExtension));
    cases.push((format!("5{};\r\nhello\r\n", " ".repeat(256)).into_bytes(), ChunkExtension));
    cases.push((
        format!("0\r\n{}\r\n", "A: b\r\n".repeat(65)).into_bytes(),
        Trailers(HeadError::TooManyFields),
    ));
    cases.push((format!("0\r\nA: {}\r\n\r\n", "b".repeat(8192)).into_bytes(), Trailers(HeadError::TooLarge)));
    cases.push((
        format!("0\r\nA: b\r\nC: {}\r\n\r\n", "b".repeat(8192)).into_bytes(),
        Trailers(HeadError::TooLarge),
    ));
    cases
}

#[test]
fn torture_list_is_refused_however_it_is_split() {
    for (body, expected) in refused() {
        let shown = String::from_utf8_lossy(&body).into_owned();
        let whole = decode(BodyLength::Unknown, [&body[..]]);
        assert_eq!(whole.error, Some(expected), "{shown:?}");
        assert_eq!(whole, decode_bytewise(BodyLength::Unknown, &body), "{shown:?}");
    }
}

/// Body, data, trailers.
type Accepted = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const ACCEPTED: &[Accepted] = &[
    ("0\r\n\r\n", "", &[]),
    ("0000000000000000\r\n\r\n", "", &[]),
    ("5\r\nhello\r\n0\r\n\r\n", "hello", &[]),
    ("0000000000000005\r\nhello\r\n000\r\n\r\n", "hello", &[]),
    ("A\r\n0123456789\r\na\r\nabcdefghij\r\n0\r\n\r\n", "0123456789abcdefghij", &[]),
    ("5;a=b;c=\"d;e\"\r\nhello\r\n0;last\r\n\r\n", "hello", &[]),
    ("5 \t; a\r\nhello\r\n0\r\n\r\n", "hello", &[]),
    ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n", &[]),
    ("0\r\nA: b\r\n\r\n", "", &[("A", "b")]),
    ("1\r\nx\r\n0\r\nA:b\r\nC:  d e \r\n\r\n", "x", &[("A", "b"), ("C", "d e")]),
    ("0\r\nA:\r\n\r\n", "", &[("A", "")]),
];

#[test]
fn chunked_bodies_are_decoded_however_they_are_split() {
    for &(body, data, trailers) in ACCEPTED {
        let input = format!("{body}next");
        let trailers = trailers
            .iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
            .collect();
        let expected = Outcome {
            data: data.as_bytes().to_vec(),
            end: Some((trailers, body.len())),
            error: None,
            eof: Ok(()),
        };
        assert_eq!(decode(BodyLength::Unknown, [input.as_bytes()]), expected, "{body:?}");
        assert_eq!(decode_bytewise(BodyLength::Unknown, input.as_bytes()), expected, "{body:?}");
        for cut in 0..body.len() {
            assert_eq!(
                decode_cut(BodyLength::Unknown, input.as_bytes(), &[cut]),
                expected,
                "{body:?} cut at {cut}"
            );
            let short = decode(BodyLength::Unknown, [&body.as_bytes()[..cut]]);
            assert_eq!(
                (short.end, short.error, short.eof),
                (None, None, Err(BodyError::CutShort)),
                "{body:?} ends at {cut}"
            );
        }
    }
}

#[test]
fn bodies_that_are_not_chunked() {
    let ends = |data: &[u8], taken| Outcome {
        data: data.to_vec(),
        end: Some((Vec::new(), taken)),
        error: None,
        eof: Ok(()),
    };
    assert_eq!(decode(BodyLength::None, [&b"next"[..]]), ends(b"", 0));
    assert_eq!(decode(BodyLength::None, [&b""[..]]), ends(b"", 0));
    assert_eq!(decode(BodyLength::Known(0), [&b""[..]]), ends(b"", 0));
    assert_eq!(decode(BodyLength::Known(5), [&b"hellonext"[..]]), ends(b"hello", 5));
    assert_eq!(decode(BodyLength::Known(5), [&b"he"[..], b"", b"llo", b"next"]), ends(b"hello", 5));
    assert_eq!(decode(BodyLength::Known(5), [&b"hell"[..]]).eof, Err(BodyError::CutShort));
    let open = decode(BodyLength::UntilClose, [&b"all of"[..], b" it"]);
    assert_eq!(open, Outcome { data: b"all of it".to_vec(), end: None, error: None, eof: Ok(()) });
}

#[test]
fn a_size_of_all_bits_needs_no_arithmetic_to_overflow() {
    let outcome = decode(BodyLength::Unknown, [&b"ffffffffffffffff\r\nabc"[..]]);
    assert_eq!((&outcome.data[..], outcome.error), (&b"abc"[..], None));
    assert_eq!(outcome.eof, Err(BodyError::CutShort));
}

fn fragments() -> impl Strategy<Value = Vec<u8>> {
    let fragment = proptest::sample::select(vec![
        &b"5\r\nhello\r\n"[..],
        b"0\r\n",
        b"\r\n",
        b"a",
        b"3;x\r\nabc\r\n",
        b"A: b\r\n",
        b"\r",
        b"\n",
        b" ",
        b";",
        b"0000000000",
        b"ffffffff",
    ]);
    proptest::collection::vec(fragment, 0..16).prop_map(|fragments| fragments.concat())
}

proptest! {
    #[test]
    fn any_split_has_the_same_outcome(
        input in fragments(),
        mut cuts in proptest::collection::vec(0..200_usize, 0..6),
    ) {
        cuts.retain(|&cut| cut <= input.len());
        cuts.sort_unstable();
        let whole = decode(BodyLength::Unknown, [&input[..]]);
        prop_assert_eq!(&whole, &decode_cut(BodyLength::Unknown, &input, &cuts));
        prop_assert_eq!(&whole, &decode_bytewise(BodyLength::Unknown, &input));
    }
}
