//! Paths and authorities: normalisation is idempotent and never climbs above the root.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::http::{authority, path};

fuzz_target!(|input: &[u8]| {
    if let Ok(normal) = path::normalise(input) {
        assert_eq!(path::normalise(normal.as_bytes()).as_deref(), Ok(&*normal));
        assert!(normal.len() <= input.len());
        assert!(normal.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'));
        let (path, query) =
            normal.split_once('?').map_or((&*normal, None), |(path, query)| (path, Some(query)));
        assert!(path.starts_with('/') && !path.contains('\\'));
        assert!(path.split('/').all(|segment| !matches!(segment, "." | "..")));
        let input_query = memchr(input).map(|at| &input[at + 1..]);
        assert_eq!(query.map(str::as_bytes), input_query);
    }
    if let Some(normal) = authority::normalise(input) {
        assert_eq!(authority::normalise(normal.as_bytes()), Some(normal.clone()));
        assert!(normal.starts_with(authority::host(&normal)) && !authority::host(&normal).is_empty());
    }
});

fn memchr(input: &[u8]) -> Option<usize> {
    input.iter().position(|&byte| byte == b'?')
}
