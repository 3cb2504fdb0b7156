//! PROXY headers: every prefix gives `NeedMore` until the outcome is decided, and no later byte changes it. A
//! parsed header can be written and parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::proxy_protocol::{self, Parsed};

fuzz_target!(|data: (u8, &[u8])| {
    let (seed, input) = data;
    let whole = proxy_protocol::parse(input);
    let expect = |ends: &[usize]| {
        let first = ends
            .iter()
            .map(|&end| proxy_protocol::parse(&input[..end]))
            .find(|parsed| *parsed != Ok(Parsed::NeedMore));
        assert_eq!(first.unwrap_or(Ok(Parsed::NeedMore)), whole);
    };
    fuzz::splits(seed, input.len(), expect);
    if input.len() <= 600 {
        expect(&(0..=input.len()).collect::<Vec<_>>());
    }

    let Ok(Parsed::Header { header, consumed }) = whole else { return };
    assert!(consumed <= input.len() && consumed <= proxy_protocol::BYTES_MAX);
    assert_eq!(proxy_protocol::parse(&input[..consumed - 1]), Ok(Parsed::NeedMore));
    let mut written = Vec::new();
    proxy_protocol::encode(header, &mut written);
    assert_eq!(proxy_protocol::parse(&written), Ok(Parsed::Header { header, consumed: written.len() }));
});
