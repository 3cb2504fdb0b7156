//! Paths and authorities: normalisation is idempotent and never climbs above the root, nor does a path after
//! one more decoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::http::path::{Rules, Slashes};
use proxy::http::{authority, path};

fuzz_target!(|input: &[u8]| {
    for slashes in [Slashes::Keep, Slashes::Merge, Slashes::Reject] {
        for rejects_encoded in [false, true] {
            check_path(input, Rules { slashes, rejects_encoded });
        }
    }
    if let Some(normal) = authority::normalise(input) {
        assert_eq!(authority::normalise(normal.as_bytes()), Some(normal.clone()));
        assert!(normal.starts_with(authority::host(&normal)) && !authority::host(&normal).is_empty());
    }
});

fn check_path(input: &[u8], rules: Rules) {
    let Ok(normal) = path::normalise(input, rules) else { return };
    assert_eq!(path::normalise(normal.as_bytes(), rules).as_deref(), Ok(&*normal));
    assert!(normal.len() <= input.len());
    assert!(normal.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'));
    let (path, query) = normal.split_once('?').map_or((&*normal, None), |(path, query)| (path, Some(query)));
    assert!(path.starts_with('/') && !path.contains('\\'));
    assert!(path.split('/').all(|segment| !matches!(segment, "." | "..")));
    assert!(rules.slashes == Slashes::Keep || !path.contains("//"));
    let decoded = decode(path.as_bytes());
    assert!(
        !rules.rejects_encoded
            || decoded.iter().filter(|&&byte| is_slash(byte)).count() == path.matches('/').count()
    );
    for segment in decoded.split(|&byte| is_slash(byte)) {
        let end = segment.iter().position(|byte| b";?#".contains(byte)).unwrap_or(segment.len());
        assert!(!matches!(&segment[..end], b"." | b".."), "{path}");
    }
    let input_query = memchr(input).map(|at| &input[at + 1..]);
    assert_eq!(query.map(str::as_bytes), input_query);
}

const fn is_slash(byte: u8) -> bool {
    matches!(byte, b'/' | b'\\')
}

/// As an origin decodes a path: once.
fn decode(path: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("the escapes were checked") as u8;
    let mut decoded = Vec::new();
    let mut rest = path;
    loop {
        match rest {
            [b'%', high, low, after @ ..] => {
                decoded.push(digit(*high) << 4 | digit(*low));
                rest = after;
            }
            [byte, after @ ..] => {
                decoded.push(*byte);
                rest = after;
            }
            [] => return decoded,
        }
    }
}

fn memchr(input: &[u8]) -> Option<usize> {
    input.iter().position(|&byte| byte == b'?')
}
