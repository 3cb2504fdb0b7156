//! Response heads: any split has the same outcome, and the forwarded form of an accepted head reads back as
//! the same response.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::http::forward;
use proxy::http::h1::{Framing, HeadError, Parsed, Recipient, ResponseDecoder, encode};
use proxy::http::limits::Limits;
use proxy::http::message::{BodyLength, Method, ResponseHead, Version};
use proxy::http::path;

const LIMITS: Limits = Limits { header_bytes: 256, fields: 8, uri_bytes: 0, paths: path::Rules::KEEP };

fn decode(
    input: &[u8],
    method: &Method,
    cuts: &[usize],
) -> Result<Option<(ResponseHead, usize, bool)>, HeadError> {
    let mut decoder = ResponseDecoder::new();
    for &cut in cuts {
        if let Parsed::Head { head, consumed, keep_alive } = decoder.parse(&input[..cut], method, &LIMITS)? {
            assert!(consumed <= cut && consumed <= LIMITS.header_bytes);
            return Ok(Some((head, consumed, keep_alive)));
        }
    }
    Ok(None)
}

fn same(
    a: &Result<Option<(ResponseHead, usize, bool)>, HeadError>,
    b: &Result<Option<(ResponseHead, usize, bool)>, HeadError>,
) -> bool {
    match (a, b) {
        (Ok(Some((a, a_end, a_persists))), Ok(Some((b, b_end, b_persists)))) => {
            (a.status, a.version, &a.reason, a.body, a_persists, a_end)
                == (b.status, b.version, &b.reason, b.body, b_persists, b_end)
                && a.fields.iter().eq(b.fields.iter())
                && a.fields.names() == b.fields.names()
        }
        (Ok(None), Ok(None)) => true,
        (Err(a), Err(b)) => a == b,
        _ => false,
    }
}

fuzz_target!(|data: (u8, u8, &[u8])| {
    let (seed, flags, input) = data;
    let method = if flags & 1 == 0 { Method::Get } else { Method::Head };
    let whole = decode(input, &method, &[input.len()]);
    fuzz::splits(seed, input.len(), |cuts| {
        let split = decode(input, &method, cuts);
        assert!(same(&whole, &split), "{whole:?}\n{split:?}\n{cuts:?}");
    });
    let Ok(Some((mut head, ..))) = whole else { return };

    assert!((100..=999).contains(&head.status));
    forward::response(&mut head);
    let mut written = Vec::new();
    let recipient = Recipient {
        version: if flags & 2 == 0 { Version::Http11 } else { Version::Http10 },
        is_head: method == Method::Head,
        keep_alive: flags & 4 == 0,
    };
    let limits = Limits { header_bytes: usize::MAX, fields: 64, uri_bytes: 0, paths: path::Rules::KEEP };
    let sent = if head.status < 200 {
        encode::informational(&head, &mut written);
        None
    } else {
        Some(encode::response(&head, recipient, &mut written))
    };
    let Ok(Parsed::Head { head: read, consumed, keep_alive }) =
        ResponseDecoder::new().parse(&written, &method, &limits)
    else {
        panic!("we do not read what we wrote: {:?}", String::from_utf8_lossy(&written));
    };
    assert_eq!((consumed, read.status, &read.reason), (written.len(), head.status, &head.reason));
    if let Some(sent) = sent {
        let expected = match sent.framing {
            Framing::None => BodyLength::None,
            Framing::Length(length) => BodyLength::Known(length),
            Framing::Chunked => BodyLength::Unknown,
            Framing::UntilClose => BodyLength::UntilClose,
        };
        assert_eq!((read.body, keep_alive), (expected, sent.keep_alive));
    }
});
