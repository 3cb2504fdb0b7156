//! Request heads: any split has the same outcome, and the forwarded form of an accepted head reads back as
//! the same request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::http::forward::{self, Origin, RequestId};
use proxy::http::h1::{HeadError, Parsed, RequestDecoder, encode};
use proxy::http::limits::Limits;
use proxy::http::message::{RequestHead, Version};
use proxy::http::path;
use proxy::http::underscores::Underscores;

const LIMITS: Limits = Limits { header_bytes: 256, fields: 8, uri_bytes: 64, paths: path::Rules::KEEP };

fn decode(input: &[u8], cuts: &[usize]) -> Result<Option<(RequestHead, usize, bool)>, HeadError> {
    let mut decoder = RequestDecoder::new();
    for &cut in cuts {
        if let Parsed::Head { head, consumed, keep_alive } = decoder.parse(&input[..cut], &LIMITS)? {
            assert!(consumed <= cut && consumed <= LIMITS.header_bytes);
            return Ok(Some((head, consumed, keep_alive)));
        }
    }
    Ok(None)
}

fn same(
    a: &Result<Option<(RequestHead, usize, bool)>, HeadError>,
    b: &Result<Option<(RequestHead, usize, bool)>, HeadError>,
) -> bool {
    match (a, b) {
        (Ok(Some((a, a_end, a_persists))), Ok(Some((b, b_end, b_persists)))) => {
            (&a.method, a.version, &a.authority, &a.path_and_query, a.body, a_persists, a_end)
                == (&b.method, b.version, &b.authority, &b.path_and_query, b.body, b_persists, b_end)
                && a.fields.iter().eq(b.fields.iter())
                && a.fields.names() == b.fields.names()
        }
        (Ok(None), Ok(None)) => true,
        (Err(a), Err(b)) => a == b,
        _ => false,
    }
}

fuzz_target!(|data: (u8, bool, &[u8])| {
    let (seed, is_trusted, input) = data;
    let whole = decode(input, &[input.len()]);
    fuzz::splits(seed, input.len(), |cuts| {
        let split = decode(input, cuts);
        assert!(same(&whole, &split), "{whole:?}\n{split:?}\n{cuts:?}");
    });
    let Ok(Some((mut head, ..))) = whole else { return };

    assert!(head.version == Version::Http10 || !head.authority.is_empty());
    assert!(head.fields.len() <= LIMITS.fields);
    if &*head.path_and_query != "*" {
        assert_eq!(
            path::normalise(head.path_and_query.as_bytes(), path::Rules::KEEP).as_deref(),
            Ok(&*head.path_and_query)
        );
    }
    let origin = Origin {
        client: [192, 0, 2, 1].into(),
        is_trusted,
        scheme: "http",
        identity: None,
        is_early: false,
        underscores: Underscores::DropColliding,
        keeps_request_id: is_trusted,
        new_request_id: RequestId::from_bits(7),
    };
    forward::request(&mut head, &origin);
    let id = head.request_id();
    assert!(is_trusted && id.is_some() || id == Some(origin.new_request_id.as_str()));
    assert_eq!(head.fields.all(b"proxy").count(), 0);
    let spelt = |name: &[u8]| {
        name.to_ascii_lowercase()
            .iter()
            .map(|&byte| if byte == b'_' { b'-' } else { byte })
            .collect::<Vec<_>>()
    };
    for (name, _) in head.fields.iter().filter(|(name, _)| name.contains(&b'_')) {
        let mut others = head.fields.iter().filter(|(other, _)| spelt(other) == spelt(name));
        assert!(others.all(|(other, _)| other.eq_ignore_ascii_case(name)), "two spellings are left");
    }
    if head.authority.is_empty() {
        // An HTTP/1.0 request without Host is forwarded with an empty Host, which Sluice refuses from
        // clients.
        head.authority = "a".into();
    }
    let mut written = Vec::new();
    encode::request(&head, &mut written);
    let limits =
        Limits { header_bytes: usize::MAX, fields: 64, uri_bytes: usize::MAX, paths: path::Rules::KEEP };
    let Ok(Parsed::Head { head: read, consumed, keep_alive }) =
        RequestDecoder::new().parse(&written, &limits)
    else {
        panic!("we do not read what we wrote: {:?}", String::from_utf8_lossy(&written));
    };
    assert_eq!(consumed, written.len());
    assert_eq!(
        (&read.method, &read.authority, &read.path_and_query, read.body),
        (&head.method, &head.authority, &head.path_and_query, head.body)
    );
    assert!(keep_alive);
    for (name, value) in head.fields.iter() {
        let is_rewritten =
            ["host", "content-length"].iter().any(|other| name.eq_ignore_ascii_case(other.as_bytes()));
        assert!(
            is_rewritten || read.fields.all(name).any(|read| read == value),
            "{:?}",
            String::from_utf8_lossy(name)
        );
    }
});
