//! Chunked bodies: any split of the input has the same outcome. A decoded body, written again in other
//! chunks, decodes to the same body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::http::h1::{BodyDecoder, BodyError, Framing, Step};
use proxy::http::limits::Limits;
use proxy::http::message::{BodyLength, Fields};

#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    data: Vec<u8>,
    trailers: Option<String>,
    taken: usize,
    error: Option<BodyError>,
    is_clean: bool,
}

fn decode(input: &[u8], cuts: &[usize]) -> (Outcome, Option<Fields>) {
    let mut decoder = BodyDecoder::new(BodyLength::Unknown);
    let mut outcome = Outcome::default();
    let mut at = 0;
    for &cut in cuts {
        loop {
            match decoder.decode(&input[at..cut]) {
                Ok(Step::Data { skip, len }) => {
                    assert!(len > 0);
                    outcome.data.extend_from_slice(&input[at + skip..at + skip + len]);
                    at += skip + len;
                }
                Ok(Step::NeedMore { consumed }) => {
                    assert_eq!(at + consumed, cut);
                    at = cut;
                    break;
                }
                Ok(Step::End { consumed, trailers }) => {
                    outcome.taken = at + consumed;
                    outcome.trailers = Some(format!("{trailers:?}"));
                    outcome.is_clean = decoder.eof().is_ok();
                    assert!(outcome.is_clean && decoder.is_done());
                    return (outcome, Some(trailers));
                }
                Err(error) => {
                    outcome.error = Some(error);
                    return (outcome, None);
                }
            }
        }
    }
    outcome.taken = at;
    outcome.is_clean = decoder.eof().is_ok();
    assert!(!outcome.is_clean);
    (outcome, None)
}

fuzz_target!(|data: (u8, &[u8])| {
    let (seed, input) = data;
    let (whole, trailers) = decode(input, &[input.len()]);
    fuzz::splits(seed, input.len(), |cuts| assert_eq!(whole, decode(input, cuts).0, "{cuts:?}"));

    let Some(trailers) = trailers else { return };
    let mut written = Vec::new();
    for chunk in whole.data.chunks(usize::from(seed) + 1) {
        Framing::Chunked.before_data(chunk.len(), &mut written);
        written.extend_from_slice(chunk);
        written.extend_from_slice(Framing::Chunked.after_data());
    }
    let body = written.len();
    Framing::Chunked.end(&trailers, &mut written);
    // Sluice writes a space after each colon, so trailers that were within the limit may exceed it.
    if written.len() - body - b"0\r\n".len() > Limits::TRAILERS.header_bytes {
        return;
    }
    let (again, again_trailers) = decode(&written, &[written.len()]);
    assert_eq!((&again.data, again.taken, again.error), (&whole.data, written.len(), None));
    let again_trailers = again_trailers.expect("a decoded end");
    assert!(again_trailers.iter().eq(trailers.iter()));
});
