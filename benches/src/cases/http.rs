//! HTTP/1.1: heads parsed, changed, and written.

use std::hint::black_box;
use std::net::Ipv4Addr;

use proxy::http::forward::{self, Origin, RequestId};
use proxy::http::h1::encode::{self, Recipient};
use proxy::http::h1::{Parsed, RequestDecoder, ResponseDecoder};
use proxy::http::limits::Limits;
use proxy::http::message::{Method, RequestHead, ResponseHead};
use proxy::http::path;
use proxy::http::underscores::Underscores;

use super::{Case, Runner, each};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "request-parse-small",
        what: "parse a load generator's request",
        make: || parse_request(SMALL),
    },
    Case {
        name: "request-parse-browser",
        what: "parse a browser's request, 9 fields",
        make: || parse_request(BROWSER),
    },
    Case { name: "request-clone-browser", what: "clone that head (a part of the next)", make: clone_request },
    Case {
        name: "request-forward-small",
        what: "clone and change a load generator's head",
        make: || forward_request(SMALL),
    },
    Case {
        name: "request-forward-browser",
        what: "clone and change a browser's head",
        make: || forward_request(BROWSER),
    },
    Case {
        name: "request-encode-small",
        what: "write a load generator's changed head",
        make: || encode_request(SMALL),
    },
    Case {
        name: "request-encode-browser",
        what: "write a browser's changed head",
        make: || encode_request(BROWSER),
    },
    Case { name: "response-parse", what: "parse a response, 8 fields", make: parse_response },
    Case { name: "response-forward", what: "clone and change a response head", make: forward_response },
    Case { name: "response-encode", what: "write a changed response head", make: encode_response },
];

const LIMITS: Limits =
    Limits { header_bytes: 32 << 10, fields: 100, uri_bytes: 8 << 10, paths: path::Rules::KEEP };

const SMALL: &[u8] = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:19002\r\n\r\n";

const BROWSER: &[u8] = b"GET /articles/2024/a-title-of-some-length?page=2 HTTP/1.1\r\n\
    Host: www.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Referer: https://www.example.com/articles/\r\n\
    Connection: keep-alive\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=1\r\n\
    Cache-Control: max-age=0\r\n\
    \r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Server: nginx/1.22.1\r\n\
    Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
    Content-Type: text/html; charset=utf-8\r\n\
    Content-Length: 612\r\n\
    Last-Modified: Sun, 31 Dec 2023 00:00:00 GMT\r\n\
    Connection: keep-alive\r\n\
    ETag: \"6590c780-264\"\r\n\
    Accept-Ranges: bytes\r\n\
    \r\n";

fn origin() -> Origin<'static> {
    let new_request_id = RequestId::from_bits(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    Origin {
        client: Ipv4Addr::new(198, 51, 100, 7).into(),
        is_trusted: false,
        scheme: "http",
        identity: None,
        is_early: false,
        underscores: Underscores::DropColliding,
        keeps_request_id: false,
        new_request_id,
    }
}

fn request(bytes: &[u8]) -> RequestHead {
    match RequestDecoder::new().parse(bytes, &LIMITS) {
        Ok(Parsed::Head { head, consumed, .. }) if consumed == bytes.len() => head,
        other => panic!("{other:?}"),
    }
}

fn response(bytes: &[u8]) -> ResponseHead {
    match ResponseDecoder::new().parse(bytes, &Method::Get, &Limits::UPSTREAM) {
        Ok(Parsed::Head { head, consumed, .. }) if consumed == bytes.len() => head,
        other => panic!("{other:?}"),
    }
}

fn parse_request(bytes: &'static [u8]) -> Runner {
    each(move || {
        black_box(request(black_box(bytes)));
    })
}

fn clone_request() -> Runner {
    let head = request(BROWSER);
    each(move || {
        black_box(black_box(&head).clone());
    })
}

fn forward_request(bytes: &[u8]) -> Runner {
    let (parsed, origin) = (request(bytes), origin());
    each(move || {
        let mut head = black_box(&parsed).clone();
        forward::request(&mut head, black_box(&origin));
        black_box(head);
    })
}

fn encode_request(bytes: &[u8]) -> Runner {
    let mut head = request(bytes);
    forward::request(&mut head, &origin());
    let mut out = Vec::with_capacity(4096);
    each(move || {
        out.clear();
        encode::request(black_box(&head), &mut out);
        assert!(black_box(&out).ends_with(b"\r\n\r\n"));
    })
}

fn parse_response() -> Runner {
    each(|| {
        black_box(response(black_box(RESPONSE)));
    })
}

fn forward_response() -> Runner {
    let parsed = response(RESPONSE);
    each(move || {
        let mut head = black_box(&parsed).clone();
        forward::response(&mut head);
        black_box(head);
    })
}

fn encode_response() -> Runner {
    let mut head = response(RESPONSE);
    forward::response(&mut head);
    let recipient = Recipient::of(&request(BROWSER), true);
    let mut out = Vec::with_capacity(4096);
    each(move || {
        out.clear();
        assert!(encode::response(black_box(&head), recipient, &mut out).keep_alive);
        assert!(black_box(&out).ends_with(b"\r\n\r\n"));
    })
}
