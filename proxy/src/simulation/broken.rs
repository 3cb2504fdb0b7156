//! Bytes of clients and origins that are not HTTP, and the answers that they must get.

/// How a request is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    BareLineFeed,
    BothLengths,
    TwoLengths,
    BadLength,
    SpaceBeforeColon,
    Folded,
    NoHost,
    TwoHosts,
    Coding,
    Control,
    Percent,
    Expectation,
    Connect,
    Version,
    LongTarget,
    ManyFields,
    LargeHead,
    Noise,
    /// The mistake is in the chunks of the body.
    ChunkSize,
    ChunkEnd,
    Trailer,
}

pub(super) const HEADS: &[Broken] = &[
    Broken::BareLineFeed,
    Broken::BothLengths,
    Broken::TwoLengths,
    Broken::BadLength,
    Broken::SpaceBeforeColon,
    Broken::Folded,
    Broken::NoHost,
    Broken::TwoHosts,
    Broken::Coding,
    Broken::Control,
    Broken::Percent,
    Broken::Expectation,
    Broken::Connect,
    Broken::Version,
    Broken::LongTarget,
    Broken::ManyFields,
    Broken::LargeHead,
    Broken::Noise,
];

/// Mistakes for requests with a chunked body.
pub(super) const BODIES: &[Broken] = &[Broken::ChunkSize, Broken::ChunkEnd, Broken::Trailer];

/// Bytes that an origin sends instead of a response.
pub(super) const GARBAGE: &[&[u8]] = &[
    b"220 mail.example ESMTP\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/3.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
];

impl Broken {
    /// The status that answers it.
    pub(super) fn status(self) -> u16 {
        match self {
            Self::Expectation => 417,
            Self::Connect => 501,
            Self::Version => 505,
            Self::LongTarget => 414,
            Self::ManyFields | Self::LargeHead => 431,
            _ => 400,
        }
    }

    pub(super) fn is_in_body(self) -> bool {
        BODIES.contains(&self)
    }
}

/// Spoils a request whose head ends at `head`; returns where the head ends then.
pub(super) fn apply(broken: Broken, out: &mut Vec<u8>, head: usize) -> usize {
    let text = |from: &str, to: &str, out: &mut Vec<u8>| {
        let at =
            out.windows(from.len()).position(|window| window == from.as_bytes()).expect("a head of ours");
        out.splice(at..at + from.len(), to.bytes());
    };
    let before = out.len();
    let mut insert = |line: &str| {
        out.splice(head - 2..head - 2, line.bytes());
    };
    match broken {
        Broken::BareLineFeed => insert("X-Line: 1\n"),
        Broken::BothLengths => insert("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"),
        Broken::TwoLengths => insert("Content-Length: 3\r\nContent-Length: 4\r\n"),
        Broken::BadLength => insert("Content-Length: 0x10\r\n"),
        Broken::SpaceBeforeColon => insert("X-Space : 1\r\n"),
        Broken::Folded => insert("X-Fold: 1\r\n 2\r\n"),
        Broken::TwoHosts => insert("Host: other.example\r\n"),
        Broken::Coding => insert("Transfer-Encoding: gzip\r\n"),
        Broken::Control => insert("X-Control: a\x01b\r\n"),
        Broken::Expectation => insert("Expect: something\r\n"),
        Broken::ManyFields => insert(&"X-Field: 1\r\n".repeat(200)),
        Broken::LargeHead => insert(&format!("X-Large: {}\r\n", "a".repeat(40_000))),
        Broken::NoHost => text("Host: sim.example\r\n", "", out),
        Broken::Percent => text(" HTTP/1.", "%zz HTTP/1.", out),
        Broken::Connect => {
            let method = out.iter().position(|&byte| byte == b' ').expect("a request line");
            out.splice(..method, *b"CONNECT");
        }
        Broken::Version => text(" HTTP/1.", " HTTP/3.", out),
        Broken::LongTarget => text(" HTTP/1.", &format!("{} HTTP/1.", "a".repeat(9000)), out),
        Broken::Noise => {
            out.splice(..0, *b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n");
        }
        Broken::ChunkSize => {
            out.splice(head..head, *b"zz\r\n");
        }
        Broken::ChunkEnd => {
            // A chunk with the body's first byte, which goes on where it should end.
            let data =
                out[head..].iter().position(|&byte| byte == b'\n').map_or(head, |line| head + line + 1);
            let chunk = if out[head] == b'0' {
                b"zz\r\n".to_vec()
            } else {
                [b"1\r\n", &out[data..=data], b"d\r\n"].concat()
            };
            out.splice(head..head, chunk);
        }
        Broken::Trailer => {
            out.truncate(out.len() - 2);
            out.extend(b"X-Tra iler: 1\r\n\r\n");
        }
    }
    if broken.is_in_body() { head } else { head + out.len() - before }
}

/// Makes the size of the last chunk wrong.
pub(super) fn spoil_chunks(out: &mut Vec<u8>) {
    if let Some(at) = out.windows(3).rposition(|window| window == b"0\r\n") {
        out.splice(at..at, *b"g\r\n");
    }
}
