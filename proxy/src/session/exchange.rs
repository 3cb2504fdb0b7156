//! The exchange seam: one request and its response, whatever carries them on either side.
//!
//! An exchange takes a request head, a body source, a response sink and a cancel. Request and response bodies
//! run at the same time, each with trailers. Several exchanges share one downstream session (HTTP/2, HTTP/3
//! later); cancelling one leaves the others.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::answer;
use super::body::Replay;
use super::relay::{self, Ended, Limits, Shared};
use super::trace::{Step, Trace};
use crate::config::model::{self, Action};
use crate::control::shared::Counters;
use crate::error::RefusalReason;
use crate::http::edit::Edits;
use crate::http::forward::{self, Origin};
use crate::http::h1::encode;
use crate::http::message::{BodyLength, Fields, Method, RequestHead, ResponseHead};
use crate::http::upgrade;
use crate::io::{Chunk, Stream};
use crate::proxy_protocol::{self, Header};
use crate::telemetry::counters::{Counter, Plain};
use crate::upstream::connector::{Connection, Upstream};
use crate::upstream::endpoint::Tried;
use crate::upstream::h1::Slot;
use crate::upstream::slot::SlotError;
use crate::worker::context::{Snapshot, Worker};

/// The next part of a body.
#[derive(Debug)]
pub enum BodyPart {
    /// Bytes, never empty.
    Data(Chunk),
    /// The end, with trailers (maybe none). Nothing comes after it.
    End(Fields),
}

/// Why a request body cannot go on. The session that owns the source knows how to answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The client went away.
    #[error("the client went away within the request body")]
    Aborted,
    /// The body's framing broke, it was too large, or too slow: answer with this.
    #[error("request body refused: {}", .0.label())]
    Refused(RefusalReason),
}

/// Why a response can no longer be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// The client went away.
    #[error("the client went away within the response")]
    Aborted,
    /// The client took nothing for `send`.
    #[error("the client took nothing for too long")]
    TooSlow,
    /// It was slower than `min_rate`.
    #[error("the client took too little")]
    BelowMinRate,
}

/// Where an exchange's request body comes from.
pub trait BodySource {
    /// Whether this is all that is left to come of a body of `length` bytes, and all of it is here.
    fn is_whole(&self, length: u64) -> bool;
    /// Whether the client waits for "100 Continue" before it sends the body. `next` sends one unless an
    /// endpoint's was sent before.
    fn awaits_continue(&self) -> bool;
    /// Ready once `next` has something to take without sending "100 Continue".
    fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// The next part. Waiting here is the request body's backpressure: nothing is read ahead of it beyond the
    /// stream's own bound.
    fn next(&mut self) -> impl Future<Output = Result<BodyPart, SourceError>>;
}

/// Where an exchange's response goes. Order: `informational`*, `head`, `data`*, `finish`.
pub trait ResponseSink {
    /// How many bytes may be read ahead of a slow client; told before the response begins.
    fn read_ahead(&mut self, bytes: usize);
    /// A 101 that has passed `http::upgrade`, in place of everything else: what the endpoint and the client
    /// say from now on is theirs.
    fn switch(&mut self, head: &ResponseHead, upstream: Connection);
    /// An interim response other than 101.
    fn informational(&mut self, head: &ResponseHead) -> impl Future<Output = Result<(), SinkError>>;
    /// The final head. `fields` have passed `http::forward`.
    fn head(&mut self, head: &ResponseHead) -> impl Future<Output = Result<(), SinkError>>;
    /// Body bytes. Waits while the client is slower than `buffer_response` allows.
    fn data(&mut self, chunk: Chunk) -> impl Future<Output = Result<(), SinkError>>;
    /// The end, with trailers (maybe none).
    fn finish(&mut self, trailers: Fields) -> impl Future<Output = Result<(), SinkError>>;
    /// Sends what was held back to travel together: called before waiting for more of the response.
    fn flush(&mut self);
    /// Ready once the client is gone, so that nobody waits for the response any more. One that merely has
    /// nothing more to say is not.
    fn poll_gone(&self, cx: &Context<'_>) -> Poll<()>;
    /// Waits until the client has taken all that was queued for it, as long as it goes on taking.
    fn taken(&mut self) -> impl Future<Output = Result<(), SinkError>>;
}

/// Bytes of a request body that are kept for sending it again; a longer one is sent once.
const REPLAY_BYTES: usize = 16 * 1024;

/// Tells one exchange to stop. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Rc<CancelState>);

#[derive(Debug, Default)]
struct CancelState {
    cancelled: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Cancel {
    /// Stops the exchange at its next await.
    pub fn cancel(&self) {
        self.0.cancelled.set(true);
        let waker = self.0.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether it was told.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.get()
    }

    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.0.cancelled.get() {
            return Poll::Ready(());
        }
        let mut waker = self.0.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A final response was handed to the sink whole: the endpoint's, or our own with a reason.
    Answered {
        /// Its status.
        status: u16,
        /// Why it is our own.
        refused: Option<RefusalReason>,
    },
    /// The sink was given the endpoint's connection: a tunnel follows.
    Switched,
    /// The endpoint broke after its head was handed on: the client must see that the response is cut.
    Cut,
    /// The request body ended within the response, by this: the same.
    CutBySource(SourceError),
    /// The response cannot be delivered.
    Undeliverable(SinkError),
    /// Told to stop.
    Cancelled,
}

/// What an exchange needs to know beside the message.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The worker.
    pub worker: &'a Rc<Worker>,
    /// The snapshot this exchange runs under.
    pub snapshot: &'a Snapshot,
    /// The listener the request came in by.
    pub listener: &'a model::Listener,
    /// The client's address: that of its connection, or what a trusted proxy's PROXY header said.
    pub peer: SocketAddr,
    /// What the access log is told; `None` while it is off.
    pub trace: Option<&'a Trace>,
    /// Where the client connected to.
    pub local: Local<'a>,
    /// Who it proved to be, for X-Forwarded-Client-Cert.
    pub identity: Option<&'a str>,
    /// The client's handshake is not over.
    pub is_early: bool,
}

/// An address that is asked of the kernel only where somebody wants to know.
#[derive(Clone, Copy, Debug)]
pub enum Local<'a> {
    /// A PROXY header said it.
    Known(SocketAddr),
    /// This connection's.
    Of(&'a Stream),
}

impl Scene<'_> {
    /// The PROXY header that introduces the client to an endpoint.
    fn proxy_header(&self) -> Vec<u8> {
        let local = match self.local {
            Local::Known(address) => Some(address),
            Local::Of(stream) => stream.local(),
        };
        let header = match local.or_else(|| self.listener.addresses.first().copied()) {
            Some(destination) => Header::Tcp { source: self.peer, destination },
            None => Header::Unknown,
        };
        let mut bytes = Vec::new();
        proxy_protocol::encode(header, &mut bytes);
        bytes
    }
}

impl Scene<'_> {
    /// How the client reached us.
    pub(super) const fn scheme(&self) -> &'static str {
        self.listener.protocol.scheme()
    }
}

/// Runs one exchange: routes the request, sends it to an endpoint and its response to the sink, or answers it
/// itself. `head` becomes what is forwarded; it is borrowed, since a future keeps a copy of each value that
/// moves through it.
pub async fn exchange(
    head: &mut RequestHead,
    source: &mut impl BodySource,
    sink: &mut impl ResponseSink,
    cancel: &Cancel,
    scene: &Scene<'_>,
) -> Outcome {
    let counters = &scene.worker.counters;
    let active = Active::new(scene.worker);
    let started = scene.worker.io.now();
    let mut running = pin!(run(head, source, sink, scene));
    let outcome = poll_fn(|cx| match cancel.poll(cx) {
        Poll::Ready(()) => Poll::Ready(Outcome::Cancelled),
        Poll::Pending => running.as_mut().poll(cx),
    })
    .await;
    drop(active);
    counters.took(scene.worker.io.now().since(started));
    count(counters, outcome);
    outcome
}

/// Counts a response.
pub(super) fn count(counters: &Counters, outcome: Outcome) {
    let Outcome::Answered { status, refused } = outcome else { return };
    counters.increment(match status {
        ..300 => Plain::Responses2xx,
        300..400 => Plain::Responses3xx,
        400..500 => Plain::Responses4xx,
        500.. => Plain::Responses5xx,
    });
    if let Some(reason) = refused {
        counters.increment(Counter::Refused(reason));
    }
}

/// Counts an exchange as in progress, however it ends.
struct Active<'a>(&'a Worker);

impl<'a> Active<'a> {
    fn new(worker: &'a Worker) -> Self {
        worker.counters.increment(Plain::Active);
        Self(worker)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.counters.decrement(Plain::Active);
    }
}

async fn run(
    head: &mut RequestHead,
    source: &mut impl BodySource,
    sink: &mut impl ResponseSink,
    scene: &Scene<'_>,
) -> Outcome {
    let counters = &scene.worker.counters;
    let client = scene.peer.ip().to_canonical();
    let origin = Origin {
        client,
        is_trusted: scene.listener.trusts(client),
        scheme: scene.scheme(),
        identity: scene.identity,
        is_early: scene.is_early,
        new_request_id: scene.worker.request_id(),
    };
    let body_expected = !head.expects_continue();
    forward::request(head, &origin);
    if matches!(head.method, Method::Options | Method::Trace)
        && let Some(answer) = last_hop(head)
    {
        let request_id = head.request_id().unwrap_or_default();
        return match answer {
            Ok(status) => {
                send(sink, answer::generated(status, ("", b""), None, request_id, None), None).await
            }
            Err(reason) => refuse(sink, reason, request_id, None).await,
        };
    }
    let Some(route) = scene.snapshot.config.routes.find(&scene.listener.name, &head.authority, head.path())
    else {
        return refuse(sink, RefusalReason::NoRoute, head.request_id().unwrap_or_default(), None).await;
    };
    if let Some(trace) = scene.trace {
        trace.routed(&route.label);
    }
    let Action::Upstream(upstream) = route.action else {
        return Box::pin(answer::answer(route, head, body_expected, source, sink, scene)).await;
    };
    if let Some(edits) = &route.request_headers {
        edits.apply(&mut head.fields);
        if let Some(host) = edits.host() {
            head.authority = host.into();
        }
    }
    let edits = route.response_headers.as_deref();
    let upstream = &scene.snapshot.upstreams[upstream];
    let replay_bytes = if head.method.is_idempotent() { REPLAY_BYTES } else { 0 };
    let mut source = Replay::new(source, replay_bytes);
    if let BodyLength::Known(length) = head.body
        && length <= route.buffer_request
        && !source.is_whole(length)
    {
        // Boxed: what came in one piece with its head, as most short bodies do, never gets here.
        let read = Box::pin(source.read_ahead(&scene.worker.io)).await;
        if let Some(trace) = scene.trace {
            trace.reached(Step::Body);
        }
        match read {
            Ok(true) => {}
            Ok(false) => counters.increment(Plain::BodiesUnbuffered),
            Err(error) => {
                return refuse_body(sink, error, head.request_id().unwrap_or_default(), edits).await;
            }
        }
    }
    if source.awaits_continue() {
        // The endpoint is asked in the client's stead, and may refuse before anything was sent in vain.
        forward::expect_continue(head);
    }
    let head = &*head;
    let request_id = || head.request_id().unwrap_or_default();
    sink.read_ahead(route.buffer_response);
    let limits = Limits { head: route.timeout, body: route.body_timeout, edits };
    let mut tries = Tries::new(upstream);
    loop {
        let connection = match tries.connection(scene).await {
            Ok(connection) => connection,
            Err(reason) => return refuse(sink, reason, request_id(), edits).await,
        };
        let shared = Shared::new();
        let (ended, connection) = {
            let slot = Slot::new(connection, &scene.worker.io, limits.head);
            let (mut sender, mut receiver) = slot.split(head);
            let halves = (&mut sender, &mut receiver);
            let ended =
                relay::relay(&scene.worker.io, limits, &shared, head, halves, &mut source, sink).await;
            drop((sender, receiver));
            (ended, slot.into_connection())
        };
        match ended {
            Ended::Answered { request_sent, keep_alive } => {
                match (request_sent, keep_alive) {
                    (true, true) if !upstream.config.send_proxy => upstream.state.release(connection),
                    (true, _) => connection.close_used(),
                    // The rest of a request that was answered early must not go out: a reset, not a flush.
                    (false, _) => drop(connection),
                }
                return Outcome::Answered { status: shared.status().unwrap_or_default(), refused: None };
            }
            Ended::Switched(mut response) => {
                if !upgrade::switch(&mut response, head) {
                    return refuse(sink, RefusalReason::UpstreamMalformed, request_id(), edits).await;
                }
                if let Some(edits) = edits {
                    edits.apply(&mut response.fields);
                }
                sink.switch(&response, connection);
                return Outcome::Switched;
            }
            Ended::Sink(error) => return Outcome::Undeliverable(error),
            Ended::Source(error) if shared.status().is_some() => return Outcome::CutBySource(error),
            Ended::Source(error) => return refuse_body(sink, error, request_id(), edits).await,
            Ended::Upstream(_) if shared.status().is_some() => return Outcome::Cut,
            Ended::Upstream(error) => {
                let harmless = error == SlotError::ClosedBeforeResponse
                    && (head.method.is_idempotent() || connection.sent_nothing())
                    && source.rewind();
                if !(harmless && tries.again_after(&connection)) {
                    return refuse(sink, refusal(error), request_id(), edits).await;
                }
                scene.worker.counters.increment(Plain::UpstreamRetries);
            }
        }
    }
}

/// The answer to a request whose Max-Forwards ends here, if it does; else it is counted down (RFC 9110
/// §7.6.2). OPTIONS gets a status; TRACE is refused, since what it would show includes fields that were not
/// meant for the client.
fn last_hop(head: &mut RequestHead) -> Option<Result<u16, RefusalReason>> {
    match forward::max_forwards(&mut head.fields) {
        Ok(false) => None,
        Ok(true) if head.method == Method::Options => Some(Ok(200)),
        Ok(true) => Some(Err(RefusalReason::NotImplemented)),
        Err(_) => Some(Err(RefusalReason::Malformed)),
    }
}

/// Answers a request whose body cannot be read on, if there is still somebody to answer.
async fn refuse_body(
    sink: &mut impl ResponseSink,
    error: SourceError,
    request_id: &str,
    edits: Option<&Edits>,
) -> Outcome {
    match error {
        SourceError::Aborted => Outcome::Undeliverable(SinkError::Aborted),
        SourceError::Refused(reason) => refuse(sink, reason, request_id, edits).await,
    }
}

const fn refusal(error: SlotError) -> RefusalReason {
    match error {
        SlotError::ClosedBeforeResponse | SlotError::ClosedWithinResponse => RefusalReason::UpstreamReset,
        SlotError::Malformed => RefusalReason::UpstreamMalformed,
        SlotError::TimedOut => RefusalReason::UpstreamTimeout,
    }
}

/// Which endpoints an exchange tried, and what it may still try.
pub(super) struct Tries<'a> {
    upstream: &'a Upstream,
    /// Pooled connections will do. Not where each begins with its client's PROXY header, nor for a tunnel.
    may_reuse: bool,
    tried: Tried,
    attempts_left: u32,
    /// The endpoint of the current attempt.
    index: usize,
    /// A pooled connection was dead: the next attempt connects to the same endpoint, which is not to blame.
    replace: bool,
}

impl<'a> Tries<'a> {
    fn new(upstream: &'a Upstream) -> Self {
        let may_reuse = !upstream.config.send_proxy;
        Self {
            upstream,
            may_reuse,
            tried: Tried::default(),
            attempts_left: upstream.config.retry.attempts.max(1),
            index: 0,
            replace: false,
        }
    }

    /// For what ends with its connection.
    pub(super) fn of_new_connections(upstream: &'a Upstream) -> Self {
        Self { may_reuse: false, ..Self::new(upstream) }
    }

    /// A connection to talk over, or why there is none.
    pub(super) async fn connection(&mut self, scene: &Scene<'_>) -> Result<Connection, RefusalReason> {
        let Upstream { config, state } = self.upstream;
        let mut failed = RefusalReason::NoEndpoint;
        while self.attempts_left > 0 {
            if !self.replace {
                let picked = state.pick(config.endpoints.len(), &self.tried).or_else(|| {
                    // Every endpoint failed once; what attempts are left may take any.
                    self.tried.clear();
                    state.pick(config.endpoints.len(), &self.tried)
                });
                let Some(index) = picked else { return Err(failed) };
                self.index = index;
            }
            let endpoint = &config.endpoints[self.index];
            if let Some(trace) = scene.trace {
                trace.attempt(config, self.index);
            }
            if self.may_reuse
                && !self.replace
                && let Some(connection) = state.reuse(endpoint.address)
            {
                if let Some(trace) = scene.trace {
                    trace.connected(true);
                }
                return Ok(connection);
            }
            if let Some(trace) = scene.trace {
                trace.reached(Step::Pool);
            }
            let introduction = config.send_proxy.then(|| scene.proxy_header());
            let connected = state.connect(endpoint, config, introduction).await;
            if let Some(trace) = scene.trace {
                trace.connected(false);
            }
            match connected {
                Ok(connection) => return Ok(connection),
                Err(reason) => failed = reason,
            }
            self.failed();
            if self.attempts_left > 0 {
                scene.worker.counters.increment(Plain::UpstreamRetries);
            }
        }
        Err(failed)
    }

    /// Whether another attempt may follow one that got no answer over `connection`.
    fn again_after(&mut self, connection: &Connection) -> bool {
        if connection.is_reused() {
            self.replace = true;
            return true;
        }
        self.failed();
        self.attempts_left > 0
    }

    fn failed(&mut self) {
        self.attempts_left -= 1;
        self.replace = false;
        self.tried.insert(self.index);
    }
}

/// Answers a request ourselves, if its response has not begun. `edits`: its route's.
pub(super) async fn refuse(
    sink: &mut impl ResponseSink,
    reason: RefusalReason,
    request_id: &str,
    edits: Option<&Edits>,
) -> Outcome {
    let status = reason.status();
    let body = format!("{status} {}: {}\n", encode::reason_phrase(status), reason.label());
    let content = ("text/plain; charset=utf-8", body.as_bytes());
    send(sink, answer::generated(status, content, None, request_id, edits), Some(reason)).await
}

/// Hands a response of our own to the sink.
pub(super) async fn send(
    sink: &mut impl ResponseSink,
    (head, body): (ResponseHead, Chunk),
    refused: Option<RefusalReason>,
) -> Outcome {
    let sent = async {
        sink.head(&head).await?;
        sink.data(body).await?;
        sink.finish(Fields::new()).await
    };
    match sent.await {
        Ok(()) => Outcome::Answered { status: head.status, refused },
        Err(error) => Outcome::Undeliverable(error),
    }
}
