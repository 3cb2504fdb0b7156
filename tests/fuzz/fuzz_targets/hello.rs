//! A connection's first bytes: every cut gives the same outcome, at the earliest byte that decides it. If
//! rustls accepts the hello too, it reads the same names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::tls::hello::{Hello, HelloError, Reader};
use rustls::server::Acceptor;

/// The outcome, and how many pieces were read until then.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Result<Option<Hello>, HelloError>, usize) {
    let mut reader = Reader::default();
    let mut given = 0;
    for piece in pieces {
        given += 1;
        let outcome = reader.read(piece);
        if outcome != Ok(None) {
            return (outcome, given);
        }
    }
    (Ok(None), given)
}

fuzz_target!(|data: (u8, &[u8])| {
    let (seed, input) = data;
    let (whole, _) = read([input]);
    fuzz::splits(seed, input.len(), |ends| {
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let pieces = starts.zip(ends).map(|(start, end)| &input[start..*end]);
        assert_eq!(read(pieces).0, whole);
    });
    let (bytewise, needed) = read(input.chunks(1));
    assert_eq!(bytewise, whole);
    if whole != Ok(None) {
        assert_eq!(read([&input[..needed]]).0, whole, "nothing after it counts");
        assert_eq!(read([&input[..needed - 1]]).0, Ok(None), "it was known before");
    }

    let Ok(Some(hello)) = whole else { return };
    let mut acceptor = Acceptor::default();
    let mut left = &input[..needed];
    while !left.is_empty() {
        if acceptor.read_tls(&mut left).is_err() {
            return;
        }
    }
    let Ok(Some(accepted)) = acceptor.accept() else { return };
    let theirs = accepted.client_hello();
    let name = theirs.server_name().map(|name| name.strip_suffix('.').unwrap_or(name).to_owned());
    assert_eq!(hello.server_name.as_deref(), name.as_deref());
    let protocols: Vec<&[u8]> = theirs.alpn().into_iter().flatten().collect();
    assert_eq!(hello.alpn().collect::<Vec<_>>(), protocols);
});
