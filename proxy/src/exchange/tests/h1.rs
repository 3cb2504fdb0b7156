//! The same endpoint over HTTP/1: each exchange has a connection, and an early end of an exchange ends its
//! connection.

use std::rc::Rc;

use super::{Say, World, settle};
use crate::http::h1::{BodyDecoder, Parsed, RequestDecoder, Step};
use crate::http::limits::Limits;
use crate::http::path::Rules;
use crate::io::simulated::{Faults, Peer};
use crate::upstream::group::Upstream;
use crate::worker::testing::{self, Bench, origin_address};

/// No faults, and few bytes on the way.
const NARROW: Faults = Faults { short: false, delay: 0, window: 8 << 10, ..Faults::mild() };

/// A world with an endpoint of HTTP/1.
pub(super) struct Http1 {
    bench: Bench,
    /// In the order of their connections.
    requests: Vec<Request>,
}

struct Request {
    peer: Peer,
    /// `Some` once the request's head was read.
    body: Option<BodyDecoder>,
    received: Vec<u8>,
    is_whole: bool,
}

impl Http1 {
    fn accept(&mut self) {
        settle(&mut self.bench);
        while let Some(peer) = self.bench.sim.accept(origin_address(1)) {
            self.requests.push(Request { peer, body: None, received: Vec::new(), is_whole: false });
        }
    }
}

impl World for Http1 {
    type Upstreams = Vec<Upstream>;

    fn new() -> Self {
        let bench = Bench::new(1, NARROW, testing::config(&[origin_address(1)]));
        bench.sim.origin(origin_address(1));
        Self { bench, requests: Vec::new() }
    }

    fn bench(&mut self) -> &mut Bench {
        &mut self.bench
    }

    fn upstreams(&self) -> Rc<Vec<Upstream>> {
        Rc::new(self.bench.events.worker().snapshot().upstreams.clone())
    }

    fn heard(&mut self) -> usize {
        self.accept();
        self.requests.len()
    }

    fn take(&mut self, request: usize, bytes: usize) -> (Vec<u8>, bool) {
        self.accept();
        let request = &mut self.requests[request];
        // Heads and framing come on top.
        request.received.extend(request.peer.read_at_most(bytes + 100));
        if request.body.is_none() {
            let limits = Limits { header_bytes: 4096, fields: 32, uri_bytes: 256, paths: Rules::KEEP };
            let parsed = RequestDecoder::new().parse(&request.received, &limits).expect("a good head");
            let Parsed::Head { head, consumed, .. } = parsed else { return (Vec::new(), false) };
            request.received.drain(..consumed);
            request.body = Some(BodyDecoder::new(head.body));
        }
        let (mut taken, decoder) = (Vec::new(), request.body.as_mut().expect("just made"));
        while !request.is_whole {
            match decoder.decode(&request.received).expect("a good body") {
                Step::Data { skip, len } => {
                    taken.extend_from_slice(&request.received[skip..skip + len]);
                    request.received.drain(..skip + len);
                }
                Step::End { consumed, .. } => {
                    request.received.drain(..consumed);
                    request.is_whole = true;
                }
                Step::NeedMore { .. } => {
                    request.received.clear();
                    break;
                }
            }
        }
        (taken, request.is_whole)
    }

    fn say(&mut self, request: usize, what: Say) {
        self.accept();
        let peer = &self.requests[request].peer;
        match what {
            Say::Head => peer.write(b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Say::Data(bytes) if self.requests[request].received.starts_with(b"tunnel") => peer.write(bytes),
            Say::Data(bytes) => {
                peer.write(format!("{:x}\r\n", bytes.len()).as_bytes());
                peer.write(bytes);
                peer.write(b"\r\n");
            }
            Say::End if self.requests[request].received.starts_with(b"tunnel") => peer.shutdown_write(),
            Say::End => peer.write(b"0\r\n\r\n"),
            Say::Switch => {
                peer.write(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
                drop(peer.read());
                self.requests[request].received = b"tunnel".to_vec();
            }
            Say::Reset | Say::Unprocessed => peer.reset(),
        }
    }

    fn is_reset(&mut self, request: usize) -> bool {
        self.accept();
        self.requests[request].peer.is_reset()
    }

    fn hear_in_tunnel(&mut self, request: usize) -> (Vec<u8>, bool) {
        self.accept();
        let peer = &self.requests[request].peer;
        (peer.read(), peer.is_ended())
    }

    fn connections(&mut self) -> usize {
        self.heard()
    }

    fn check_freed(&mut self) {
        self.requests.iter().for_each(|request| request.peer.close());
        self.bench.run_out();
        self.bench.check_freed("");
    }
}
