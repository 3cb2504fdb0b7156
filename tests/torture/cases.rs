//! The torture cases: raw requests that are ambiguous, invalid or unusual (RFC 9110, 9112), the outcome that
//! Sluice must give each, and the reason.

/// The required outcome of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Sluice refuses with this status and closes. Nothing reaches the origin.
    Refused(u16),
    /// Sluice answers with this status itself and keeps the connection. Nothing reaches the origin.
    Answered(u16),
    /// This many requests reach the origin, and as many answers reach the client.
    Forwarded(usize),
    /// The request is incomplete: Sluice sends no answer, and the origin gets no whole request.
    Waits,
}

impl Expected {
    /// How many answers have to come.
    pub(crate) const fn answers(self) -> usize {
        match self {
            Self::Refused(_) | Self::Answered(_) => 1,
            Self::Forwarded(count) => count,
            Self::Waits => 0,
        }
    }
}

/// A raw request and its required outcome.
#[derive(Debug)]
pub(crate) struct Case {
    /// The subject of the case.
    pub(crate) group: &'static str,
    /// The bytes a client sends.
    pub(crate) request: Vec<u8>,
    /// The outcome that Sluice must give.
    pub(crate) expected: Expected,
    /// The reason, where other proxies may differ.
    pub(crate) why: &'static str,
}

use Expected::{Answered, Forwarded, Refused, Waits};

const STRICT: &str = "RFC 9112 §6: framing with two readings is refused, never repaired";
const LINES: &str = "RFC 9112 §2.2: a recipient may take a bare LF; one behind another proxy must not";
const WHITE: &str = "RFC 9112 §5.1, §5.2: white space before a colon and folded lines are refused";
const NAME: &str = "RFC 9110 §5.1: a field name is a token";
const BYTES: &str = "RFC 9110 §5.5: control bytes are no field content";
const HOST: &str = "RFC 9112 §3.2: exactly one valid Host";
const LINE: &str = "RFC 9112 §3: one space between three words";
const PATH: &str = "the path that is routed is the path that is forwarded";
const CHUNK: &str = "RFC 9112 §7.1: chunk framing to the letter";

/// A GET with these field lines after Host.
fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

/// A POST with these field lines after Host, and this body.
fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

fn target(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")
}

const SECOND: &str = "GET /second HTTP/1.1\r\nHost: h\r\n\r\n";

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut group = "";
    let mut add = |name: &'static str, list: Vec<(String, Expected, &'static str)>| {
        group = name;
        let made = list.into_iter().map(|(request, expected, why)| Case {
            group,
            request: request.into_bytes(),
            expected,
            why,
        });
        cases.extend(made);
    };
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    add(
        "Content-Length beside Transfer-Encoding",
        vec![
            (post(both, "0\r\n\r\n"), Refused(400), STRICT),
            (post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), Refused(400), STRICT),
            (
                post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{SECOND}")),
                Refused(400),
                STRICT,
            ),
            (
                post("Content-Length: 43\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{SECOND}")),
                Refused(400),
                STRICT,
            ),
        ],
    );
    add(
        "Content-Length",
        vec![
            (post("Content-Length: 5\r\n", "hello"), Forwarded(1), ""),
            (post("Content-Length: 0\r\n", ""), Forwarded(1), ""),
            (
                post("Content-Length: 05\r\n", "hello"),
                Forwarded(1),
                "1*DIGIT allows it; it is forwarded without the zero",
            ),
            (post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), Refused(400), STRICT),
            (post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"), Refused(400), STRICT),
            (post("Content-Length: 5, 5\r\n", "hello"), Refused(400), STRICT),
            (post("Content-Length: +5\r\n", "hello"), Refused(400), STRICT),
            (post("Content-Length: -5\r\n", "hello"), Refused(400), STRICT),
            (post("Content-Length: 0x5\r\n", "hello"), Refused(400), STRICT),
            (post("Content-Length: 5 5\r\n", "hello"), Refused(400), STRICT),
            (post("Content-Length:\r\n", ""), Refused(400), STRICT),
            (post("Content-Length: 99999999999999999999\r\n", ""), Refused(400), STRICT),
            (post("Content-Length : 5\r\n", "hello"), Refused(400), WHITE),
            (
                post("Content_Length: 5\r\n", "hello"),
                Forwarded(1),
                "another field: no body, and what follows must be a request",
            ),
            (
                get("Content-Length: 5\r\n").replace("\r\n\r\n", "\r\n\r\nhello"),
                Forwarded(1),
                "a GET may have a body",
            ),
        ],
    );
    add(
        "Transfer-Encoding",
        vec![
            (chunked("5\r\nhello\r\n0\r\n\r\n"), Forwarded(1), ""),
            (post("Transfer-Encoding: Chunked\r\n", "0\r\n\r\n"), Forwarded(1), ""),
            (
                post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
                Refused(400),
                "we decode no other coding, and an endpoint may",
            ),
            (post("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"), Refused(400), STRICT),
            (post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"), Refused(400), STRICT),
            (
                post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
                Refused(400),
                STRICT,
            ),
            (
                post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
                Refused(400),
                STRICT,
            ),
            (post("Transfer-Encoding: identity\r\n", ""), Refused(400), STRICT),
            (post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), Refused(400), STRICT),
            (post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), Refused(400), STRICT),
            (post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"), Refused(400), STRICT),
            (post("Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n"), Refused(400), BYTES),
            (post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), Refused(400), WHITE),
            (post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"), Refused(400), WHITE),
            (post("Transfer-Encoding:\r\n", "0\r\n\r\n"), Refused(400), STRICT),
            (
                "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
                Refused(400),
                STRICT,
            ),
        ],
    );
    add(
        "Chunks",
        vec![
            (chunked("5;a=b\r\nhello\r\n0\r\n\r\n"), Forwarded(1), "extensions end here"),
            (
                chunked("5;a=\"b\nc\"\r\nhello\r\n0\r\n\r\n"),
                Refused(400),
                "a bare LF in an extension ends the line for some",
            ),
            (chunked("00000005\r\nhello\r\n0\r\n\r\n"), Forwarded(1), ""),
            (chunked("0x5\r\nhello\r\n0\r\n\r\n"), Refused(400), CHUNK),
            (chunked("+5\r\nhello\r\n0\r\n\r\n"), Refused(400), CHUNK),
            (chunked(" 5\r\nhello\r\n0\r\n\r\n"), Refused(400), CHUNK),
            (chunked("5 \r\nhello\r\n0\r\n\r\n"), Refused(400), CHUNK),
            (chunked("5\nhello\r\n0\r\n\r\n"), Refused(400), LINES),
            (chunked("5\r\nhelloX\r\n0\r\n\r\n"), Refused(400), CHUNK),
            (chunked("5\r\nhello0\r\n\r\n"), Refused(400), CHUNK),
            (
                chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"),
                Refused(400),
                "2^64 + 5: a wrapped number would be 5",
            ),
            (chunked("g\r\n\r\n"), Refused(400), CHUNK),
            (chunked("0\r\nX-T: v\r\n\r\n"), Forwarded(1), "trailers pass"),
            (
                chunked("0\r\nContent-Length: 5\r\n\r\n"),
                Forwarded(1),
                "trailers that would be framing are dropped",
            ),
            (chunked("0\r\nBad Name: v\r\n\r\n"), Refused(400), NAME),
            (chunked("0\r\n\r"), Waits, ""),
        ],
    );
    add(
        "Line ends and folding",
        vec![
            ("GET / HTTP/1.1\nHost: h\n\n".to_owned(), Refused(400), LINES),
            ("GET / HTTP/1.1\r\nHost: h\n\r\n".to_owned(), Refused(400), LINES),
            (get("A: b\rC: d\r\n"), Refused(400), "RFC 9112 §2.2: a bare CR"),
            (get("A: b\r\n c\r\n"), Refused(400), WHITE),
            (get("A: b\r\n\tc\r\n"), Refused(400), WHITE),
            ("GET / HTTP/1.1\r\n Host: h\r\n\r\n".to_owned(), Refused(400), WHITE),
            (
                "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
                Forwarded(1),
                "RFC 9112 §2.2: one empty line before a request",
            ),
            ("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), Refused(400), "one, not three"),
        ],
    );
    add(
        "Fields",
        vec![
            (get("A : b\r\n"), Refused(400), WHITE),
            (get("A b: c\r\n"), Refused(400), NAME),
            (get(": b\r\n"), Refused(400), NAME),
            (get("no colon\r\n"), Refused(400), NAME),
            (get("A(b): c\r\n"), Refused(400), NAME),
            (get("A: b\0c\r\n"), Refused(400), BYTES),
            (get("A: b\x01c\r\n"), Refused(400), BYTES),
            (get("A: b\x7fc\r\n"), Refused(400), BYTES),
            (get("A\0: b\r\n"), Refused(400), NAME),
            (get("A: \u{e9}\r\n"), Forwarded(1), "obs-text is opaque"),
            (get("A_b: c\r\n"), Forwarded(1), ""),
            (
                get("Connection: close, X-Secret\r\nX-Secret: 1\r\n"),
                Forwarded(1),
                "what Connection names ends here",
            ),
            (get("Connection: Host\r\n"), Forwarded(1), "Host is not for the client to hide"),
            (get("Expect: coffee\r\n"), Refused(417), "RFC 9110 §10.1.1"),
        ],
    );
    add(
        "Host",
        vec![
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), Refused(400), HOST),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(), Refused(400), HOST),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(), Refused(400), HOST),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned(), Refused(400), HOST),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), Refused(400), HOST),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned(), Refused(400), HOST),
            ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n".to_owned(), Refused(400), HOST),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".to_owned(), Refused(400), HOST),
            ("GET / HTTP/1.1\r\nHost: a:port\r\n\r\n".to_owned(), Refused(400), HOST),
            ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n".to_owned(), Refused(400), HOST),
            (
                "GET / HTTP/1.1\r\nHost: Site.EXAMPLE:8080\r\n\r\n".to_owned(),
                Forwarded(1),
                "hosts have no case: one form is routed and forwarded",
            ),
            ("GET / HTTP/1.0\r\n\r\n".to_owned(), Forwarded(1), "HTTP/1.0 needs none"),
        ],
    );
    add(
        "The request line",
        vec![
            ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), Refused(400), LINE),
            ("GET / HTTP/1.1 \r\nHost: h\r\n\r\n".to_owned(), Refused(400), LINE),
            ("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), Refused(400), LINE),
            ("GET\t/\tHTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), Refused(400), LINE),
            (" GET / HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), Refused(400), LINE),
            ("GET / http/1.1\r\nHost: h\r\n\r\n".to_owned(), Refused(400), LINE),
            (
                "GET / HTTP/1.2\r\nHost: h\r\n\r\n".to_owned(),
                Refused(505),
                "a version that nobody has defined",
            ),
            ("GET / HTTP/2.0\r\nHost: h\r\n\r\n".to_owned(), Refused(505), ""),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), Refused(505), "HTTP/2 without TLS is not served"),
            ("GET /\r\n\r\n".to_owned(), Refused(400), "HTTP/0.9 has no status to refuse with, and no Host"),
            ("GET\r\n\r\n".to_owned(), Refused(400), LINE),
            ("G(T / HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), Refused(400), "a method is a token"),
            (
                "get / HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
                Forwarded(1),
                "methods have case, and may be new",
            ),
            ("PROPFIND / HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), Forwarded(1), ""),
            (
                "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n".to_owned(),
                Refused(501),
                "a reverse proxy opens no tunnels for clients",
            ),
            (
                "TRACE / HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n\r\n".to_owned(),
                Answered(501),
                "RFC 9110 §7.6.2: it ends here",
            ),
            ("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(), Forwarded(1), ""),
            (
                "OPTIONS * HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n\r\n".to_owned(),
                Answered(200),
                "RFC 9110 §7.6.2: it ends here",
            ),
            (
                "GET * HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
                Refused(400),
                "RFC 9112 §3.2.4: for OPTIONS alone",
            ),
            ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(), Refused(400), "TLS on a plain port"),
        ],
    );
    add(
        "The target",
        vec![
            (
                target("http://other.example/x"),
                Forwarded(1),
                "RFC 9112 §3.2.2: the target's host counts, not Host",
            ),
            (target("http://other.example"), Forwarded(1), "an empty path is /"),
            (target("ftp://other.example/x"), Refused(400), "another scheme is another service"),
            (
                target("//other.example/x"),
                Forwarded(1),
                "a path that begins with an empty segment, not an authority",
            ),
            (target("x"), Refused(400), "neither a path nor absolute"),
            (target("/a/./b/../c"), Forwarded(1), PATH),
            (target("/a/%2e%2E/c"), Forwarded(1), PATH),
            (target("/../../etc"), Forwarded(1), PATH),
            (target("/a%2fb"), Forwarded(1), "an encoded slash is data"),
            (target("/%zz"), Refused(400), PATH),
            (target("/%4"), Refused(400), PATH),
            (target("/%00"), Refused(400), "an encoded zero ends strings in some servers"),
            (target("/a\\b"), Refused(400), "not in a path, and a slash to some servers"),
            (target("/a#b"), Refused(400), "a fragment is not for servers"),
            (target("/?a=/../b"), Forwarded(1), "a query is no path"),
            (target("/a\0b"), Refused(400), BYTES),
            (target("/\u{e9}"), Refused(400), "targets are ASCII"),
        ],
    );
    add(
        "Sizes",
        vec![
            (target(&format!("/{}", "x".repeat(9000))), Refused(414), "8 KiB by default"),
            (get(&format!("A: {}\r\n", "x".repeat(40_000))), Refused(431), "32 KiB by default"),
            (get(&"A: b\r\n".repeat(150)), Refused(431), "100 fields by default"),
        ],
    );
    add(
        "Smuggling and pipelining",
        vec![
            (get("").repeat(2), Forwarded(2), ""),
            (post("Content-Length: 3\r\n", "abc") + SECOND, Forwarded(2), ""),
            (
                post("Content-Length: 6\r\n", "0\r\n\r\nX") + SECOND,
                Forwarded(2),
                "the body is six bytes, whatever they look like",
            ),
            (chunked(&format!("0\r\n\r\n{SECOND}")), Forwarded(2), ""),
            (chunked(&format!("0\r\n\n{SECOND}")), Refused(400), LINES),
            (get("Connection: close\r\n") + SECOND, Forwarded(1), "nothing after a close is answered"),
            (get(&format!("X: y\rz\r\n{both}")), Refused(400), STRICT),
            (get("Foo: bar\r\n\rTransfer-Encoding: chunked\r\n"), Refused(400), "a bare CR"),
        ],
    );
    cases
}
