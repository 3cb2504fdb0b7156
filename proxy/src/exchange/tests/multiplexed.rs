//! An endpoint that carries many exchanges over one connection, as an HTTP/2 endpoint does. Its streams share
//! a window of bytes that it takes. It can reset one stream and spare the others. When it goes away, it says
//! which requests it did not process.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{Say, World};
use crate::counters::Plain;
use crate::error::RefusalReason;
use crate::exchange::BodyPart;
use crate::exchange::lease::{
    Asked, Attempts, Lease, LeaseError, Processed, ReceiveResponse, SendRequest, Upstreams,
};
use crate::exchange::tunnel::{Duplex, TunnelEnd};
use crate::http::message::{BodyLength, Fields, RequestHead, ResponseHead, Version};
use crate::io::simulated::Faults;
use crate::io::{Chunk, Progress, StreamError};
use crate::time::Time;
use crate::worker::testing::{self, Bench, origin_address};

/// Bytes of request bodies that the endpoint takes at first, over all streams of a connection.
const WINDOW: usize = 8 << 10;

/// See the module.
#[derive(Default)]
struct Endpoint {
    /// In the order of their heads, over all connections.
    streams: Vec<Stream>,
    connections: Vec<Connection>,
    waiting: Vec<Waker>,
}

struct Connection {
    window: usize,
    /// The connection takes no further streams.
    is_leaving: bool,
    leases: usize,
}

struct Stream {
    connection: usize,
    body: Vec<u8>,
    is_ended: bool,
    /// We reset it.
    is_reset: bool,
    said: VecDeque<Say>,
    /// Bytes that the endpoint got through a tunnel.
    heard: Vec<u8>,
    is_tunnel_ended: bool,
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Endpoint>>);

impl Shared {
    fn wake(&self) {
        let waiting = std::mem::take(&mut self.0.borrow_mut().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }

    fn wait<T>(&self, cx: &Context<'_>) -> Poll<T> {
        self.0.borrow_mut().waiting.push(cx.waker().clone());
        Poll::Pending
    }
}

/// A world with such an endpoint.
pub(super) struct Multiplexed {
    bench: Bench,
    endpoint: Shared,
}

pub(super) struct FakeUpstreams(Shared);

impl World for Multiplexed {
    type Upstreams = FakeUpstreams;

    fn new() -> Self {
        let bench = Bench::new(1, Faults::mild(), testing::config(&[origin_address(1)]));
        Self { bench, endpoint: Shared::default() }
    }

    fn bench(&mut self) -> &mut Bench {
        &mut self.bench
    }

    fn upstreams(&self) -> Rc<FakeUpstreams> {
        Rc::new(FakeUpstreams(self.endpoint.clone()))
    }

    fn heard(&mut self) -> usize {
        self.endpoint.0.borrow().streams.len()
    }

    fn take(&mut self, request: usize, bytes: usize) -> (Vec<u8>, bool) {
        let taken = {
            let mut endpoint = self.endpoint.0.borrow_mut();
            let held: usize = endpoint.streams.iter().map(|stream| stream.body.len()).sum();
            assert!(held <= WINDOW * endpoint.connections.len(), "{held} bytes beyond the window");
            let stream = &mut endpoint.streams[request];
            let taken: Vec<u8> = stream.body.drain(..bytes.min(stream.body.len())).collect();
            let (connection, is_whole) = (stream.connection, stream.is_ended && stream.body.is_empty());
            endpoint.connections[connection].window += taken.len();
            (taken, is_whole)
        };
        self.endpoint.wake();
        taken
    }

    fn say(&mut self, request: usize, what: Say) {
        {
            let mut endpoint = self.endpoint.0.borrow_mut();
            let connection = endpoint.streams[request].connection;
            if what == Say::Unprocessed {
                endpoint.connections[connection].is_leaving = true;
            }
            endpoint.streams[request].said.push_back(what);
        }
        self.endpoint.wake();
    }

    fn is_reset(&mut self, request: usize) -> bool {
        self.endpoint.0.borrow().streams[request].is_reset
    }

    fn hear_in_tunnel(&mut self, request: usize) -> (Vec<u8>, bool) {
        let mut endpoint = self.endpoint.0.borrow_mut();
        let stream = &mut endpoint.streams[request];
        (std::mem::take(&mut stream.heard), stream.is_tunnel_ended)
    }

    fn connections(&mut self) -> usize {
        self.endpoint.0.borrow().connections.len()
    }

    fn check_freed(&mut self) {
        let endpoint = self.endpoint.0.borrow();
        assert!(endpoint.connections.iter().all(|connection| connection.leases == 0), "leases that are left");
        assert_eq!(self.bench.value(Plain::Active), 0);
    }
}

impl Upstreams for FakeUpstreams {
    type Attempts<'a> = FakeAttempts;

    fn attempts<'a>(&'a self, _upstream: usize, _asked: &'a Asked<'a>) -> FakeAttempts {
        FakeAttempts { endpoint: self.0.clone(), left: 2 }
    }
}

pub(super) struct FakeAttempts {
    endpoint: Shared,
    left: usize,
}

impl Attempts for FakeAttempts {
    type Lease = StreamLease;

    async fn lease(&mut self) -> Result<StreamLease, RefusalReason> {
        let mut endpoint = self.endpoint.0.borrow_mut();
        let open = endpoint.connections.iter().position(|connection| !connection.is_leaving);
        let connection = open.unwrap_or_else(|| {
            endpoint.connections.push(Connection { window: WINDOW, is_leaving: false, leases: 0 });
            endpoint.connections.len() - 1
        });
        endpoint.connections[connection].leases += 1;
        let state = RefCell::new(StreamState { id: None, is_complete: false });
        Ok(StreamLease { endpoint: self.endpoint.clone(), connection, state })
    }

    fn again_after(&mut self, _failed: &StreamLease) -> bool {
        self.left -= 1;
        self.left > 0
    }
}

/// A lease on a stream. The stream begins with its head, and ends with its lease.
pub(super) struct StreamLease {
    endpoint: Shared,
    connection: usize,
    state: RefCell<StreamState>,
}

struct StreamState {
    id: Option<usize>,
    is_complete: bool,
}

impl StreamLease {
    fn id(&self) -> usize {
        self.state.borrow().id.expect("its head was sent")
    }

    /// The endpoint's next step on this stream.
    fn poll_said(&self, cx: &Context<'_>) -> Poll<Say> {
        // The response to an upload may be waited for before its head was sent.
        let Some(id) = self.state.borrow().id else { return self.endpoint.wait(cx) };
        let said = self.endpoint.0.borrow_mut().streams[id].said.pop_front();
        said.map_or_else(|| self.endpoint.wait(cx), Poll::Ready)
    }
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        let mut endpoint = self.endpoint.0.borrow_mut();
        endpoint.connections[self.connection].leases -= 1;
        let StreamState { id, is_complete } = *self.state.borrow();
        if let Some(id) = id
            && !is_complete
        {
            endpoint.streams[id].is_reset = true;
        }
    }
}

impl Lease for StreamLease {
    type Sender<'a> = StreamSender<'a>;
    type Receiver<'a> = StreamReceiver<'a>;

    fn split<'a>(&'a self, _head: &'a RequestHead) -> (StreamSender<'a>, StreamReceiver<'a>) {
        (StreamSender(self), StreamReceiver(self))
    }

    fn complete(self) {
        let is_sent = self.endpoint.0.borrow().streams[self.id()].is_ended;
        // The rest of a request that was answered early is cancelled.
        self.state.borrow_mut().is_complete = is_sent;
    }

    fn into_tunnel(self) -> Box<dyn TunnelEnd> {
        Box::new(Tunnel(self))
    }
}

pub(super) struct StreamSender<'a>(&'a StreamLease);

impl SendRequest for StreamSender<'_> {
    fn head(&mut self, head: &RequestHead) {
        let mut endpoint = self.0.endpoint.0.borrow_mut();
        self.0.state.borrow_mut().id = Some(endpoint.streams.len());
        endpoint.streams.push(Stream {
            connection: self.0.connection,
            body: Vec::new(),
            is_ended: matches!(head.body, BodyLength::None),
            is_reset: false,
            said: VecDeque::new(),
            heard: Vec::new(),
            is_tunnel_ended: false,
        });
    }

    async fn data(&mut self, mut chunk: Chunk) -> Result<(), LeaseError> {
        while !chunk.is_empty() {
            poll_fn(|cx| {
                let given = {
                    let mut endpoint = self.0.endpoint.0.borrow_mut();
                    let window = &mut endpoint.connections[self.0.connection].window;
                    let given = (*window).min(chunk.len());
                    *window -= given;
                    endpoint.streams[self.0.id()].body.extend_from_slice(&chunk.split_to(given));
                    given
                };
                if given > 0 { Poll::Ready(()) } else { self.0.endpoint.wait(cx) }
            })
            .await;
        }
        Ok(())
    }

    async fn finish(&mut self, _trailers: &Fields) -> Result<(), LeaseError> {
        self.0.endpoint.0.borrow_mut().streams[self.0.id()].is_ended = true;
        Ok(())
    }

    fn flush(&mut self) {}
}

pub(super) struct StreamReceiver<'a>(&'a StreamLease);

impl ReceiveResponse for StreamReceiver<'_> {
    async fn head(&mut self) -> Result<ResponseHead, LeaseError> {
        let said = poll_fn(|cx| self.0.poll_said(cx)).await;
        let (status, fields) = match said {
            Say::Head => (200, Fields::new()),
            Say::Switch => {
                let mut fields = Fields::new();
                fields.push(b"Connection", b"Upgrade");
                fields.push(b"Upgrade", b"echo");
                (101, fields)
            }
            Say::Unprocessed => return Err(LeaseError::ClosedBeforeResponse(Processed::No)),
            Say::Reset => return Err(LeaseError::ClosedBeforeResponse(Processed::Maybe)),
            Say::Data(_) | Say::End => return Err(LeaseError::Malformed),
        };
        let reason = (*b"Fine").into();
        Ok(ResponseHead { status, version: Version::Http2, reason, fields, body: BodyLength::Unknown })
    }

    fn taken_at(&self) -> Time {
        Time::default()
    }

    fn has_unsent(&self) -> bool {
        false
    }

    fn is_held(&self) -> bool {
        false
    }

    async fn part(&mut self) -> Result<BodyPart, LeaseError> {
        match poll_fn(|cx| self.0.poll_said(cx)).await {
            Say::Data(bytes) => Ok(BodyPart::Data(Chunk::from_static(bytes))),
            Say::End => Ok(BodyPart::End(Fields::new())),
            _ => Err(LeaseError::ClosedWithinResponse),
        }
    }
}

struct Tunnel(StreamLease);

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Tunnel")
    }
}

impl TunnelEnd for Tunnel {
    fn duplex(&self) -> &dyn Duplex {
        self
    }

    fn close(self: Box<Self>) {
        self.0.state.borrow_mut().is_complete = true;
    }
}

impl Duplex for Tunnel {
    fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>, StreamError>> {
        self.0.poll_said(cx).map(|said| match said {
            Say::Data(bytes) => Ok(Some(Chunk::from_static(bytes))),
            Say::End => {
                // It is read again whenever somebody asks.
                self.0.endpoint.0.borrow_mut().streams[self.0.id()].said.push_front(Say::End);
                Ok(None)
            }
            _ => Err(StreamError::Reset),
        })
    }

    fn poll_writable(&self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_flushed(&self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Poll::Ready(Ok(()))
    }

    fn write(&self, chunk: Chunk) {
        self.0.endpoint.0.borrow_mut().streams[self.0.id()].heard.extend_from_slice(&chunk);
    }

    fn shutdown_write(&self) {
        self.0.endpoint.0.borrow_mut().streams[self.0.id()].is_tunnel_ended = true;
    }

    fn unsent(&self) -> usize {
        0
    }

    fn progress(&self) -> Progress {
        Progress::default()
    }

    fn error(&self) -> Option<StreamError> {
        None
    }

    fn shrink(&self) {}
}
