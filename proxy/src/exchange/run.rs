//! The way of one exchange. Its request is made ready to be forwarded and finds its route. An endpoint
//! answers it, within the attempts that its upstream allows, or we answer it.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use super::answer::{self, refuse, refuse_body, send};
use super::body::BodySource;
use super::lease::{Asked, Attempts, Lease, Upstreams};
use super::left::left;
use super::outcome::{self, Outcome};
use super::record::Phase;
use super::relay::{self, Ended, Limits, Shared};
use super::replay::Replay;
use super::scene::Scene;
use super::signal::Signal;
use super::sink::ResponseSink;
use crate::counters::{Counters, Plain};
use crate::error::RefusalReason;
use crate::http::edit::Edits;
use crate::http::forward::{self, Origin};
use crate::http::message::{BodyLength, Method, RequestHead, ResponseHead};
use crate::http::upgrade;
use crate::route::{Action, Route};

/// Bytes of a request body that are kept for sending it again; a longer body is sent once.
const REPLAY_BYTES: usize = 16 * 1024;

/// Runs one exchange: routes the request, sends it to an endpoint and its response to the sink, or answers it
/// itself. `head` becomes the head that is forwarded; it is borrowed, since a future keeps a copy of each
/// value that moves through it. The exchange stops at its next await once `cancel` is given, or once the
/// client has left.
pub async fn exchange<U: Upstreams>(
    head: &mut RequestHead,
    source: &mut impl BodySource,
    sink: &mut impl ResponseSink,
    cancel: &Signal,
    scene: &Scene<'_, U>,
) -> Outcome {
    let active = Active::new(scene.counters);
    let started = scene.io.now();
    let cancelled = cancel.waiter();
    let mut running = pin!(run(head, source, sink, scene));
    let mut left = pin!(left(scene.io, scene.downstream, scene.listener.half_close));
    let outcome = poll_fn(|cx| match cancelled.poll(cx) {
        Poll::Ready(()) => Poll::Ready(Outcome::Cancelled),
        Poll::Pending => match running.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(outcome),
            Poll::Pending => left.as_mut().poll(cx),
        },
    })
    .await;
    drop(active);
    scene.counters.took(scene.io.now().since(started));
    outcome::count(scene.counters, outcome);
    outcome
}

/// Counts an exchange as in progress, however it ends.
struct Active<'a>(&'a Counters);

impl<'a> Active<'a> {
    fn new(counters: &'a Counters) -> Self {
        counters.increment(Plain::Active);
        Self(counters)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.decrement(Plain::Active);
    }
}

async fn run<U: Upstreams>(
    head: &mut RequestHead,
    source: &mut impl BodySource,
    sink: &mut impl ResponseSink,
    scene: &Scene<'_, U>,
) -> Outcome {
    let body_expected = !head.expects_continue();
    prepare(head, scene);
    if let Some(answer) = last_hop(head) {
        let request_id = forward::request_id_of(head);
        return match answer {
            Ok(status) => {
                send(sink, answer::generated(status, ("", b""), None, request_id, None), None).await
            }
            Err(reason) => refuse(sink, reason, request_id, None).await,
        };
    }
    let Some(route) = scene.routes.find(&scene.listener.name, &head.authority, head.path()) else {
        return refuse(sink, RefusalReason::NoRoute, forward::request_id_of(head), None).await;
    };
    scene.note(|record| record.routed(&route.label));
    if route.client_cert && scene.identity.is_none_or(str::is_empty) {
        let (request_id, edits) = (forward::request_id_of(head), route.response_headers.as_deref());
        return refuse(sink, RefusalReason::NoClientCertificate, request_id, edits).await;
    }
    let Action::Upstream(upstream) = route.action else {
        return Box::pin(answer::answer(route, head, body_expected, source, sink, scene)).await;
    };
    edit_request(head, route.request_headers.as_deref());
    let edits = route.response_headers.as_deref();
    let replay_bytes = if head.method.is_idempotent() { REPLAY_BYTES } else { 0 };
    let mut source = Replay::new(source, replay_bytes);
    if let BodyLength::Known(length) = head.body
        && length <= route.buffer_request
        && !source.is_whole(length)
    {
        // Boxed, since it is rare: most short bodies come in one piece with their head.
        let read = Box::pin(source.read_ahead(scene.io)).await;
        scene.note(|record| record.reached(Phase::Body));
        match read {
            Ok(true) => {}
            Ok(false) => scene.counters.increment(Plain::BodiesUnbuffered),
            Err(error) => {
                return refuse_body(sink, error, forward::request_id_of(head), edits).await;
            }
        }
    }
    if source.awaits_continue() {
        // The endpoint is asked in the client's stead, and may refuse before the body is sent in vain.
        forward::expect_continue(head);
    }
    sink.read_ahead(route.buffer_response);
    attempt(upstream, route, head, &mut source, sink, scene).await
}

/// Refuses a request that does not get as far as an exchange. `head` becomes the head that would be
/// forwarded.
pub async fn refuse_at_once<U>(
    head: &mut RequestHead,
    reason: RefusalReason,
    sink: &mut impl ResponseSink,
    scene: &Scene<'_, U>,
) -> Outcome {
    prepare(head, scene);
    let refused = refuse(sink, reason, forward::request_id_of(head), None).await;
    outcome::count(scene.counters, refused);
    refused
}

/// Turns a client's head into the head that is forwarded.
#[inline]
fn prepare<U>(head: &mut RequestHead, scene: &Scene<'_, U>) {
    let client = scene.client.peer.ip().to_canonical();
    let is_trusted = scene.listener.trusts(client);
    let origin = Origin {
        client,
        is_trusted,
        scheme: scene.scheme(),
        identity: scene.identity,
        is_early: scene.is_early,
        underscores: scene.listener.reading.underscores,
        keeps_request_id: is_trusted || scene.listener.reading.keeps_request_ids,
        new_request_id: scene.new_request_id,
    };
    forward::request(head, &origin);
}

/// The answer to an OPTIONS or TRACE request whose Max-Forwards ends here. Other requests give `None`; their
/// Max-Forwards is counted down (RFC 9110 §7.6.2). OPTIONS gets a status. TRACE is refused, since its answer
/// would show fields that were not meant for the client.
fn last_hop(head: &mut RequestHead) -> Option<Result<u16, RefusalReason>> {
    if !matches!(head.method, Method::Options | Method::Trace) {
        return None;
    }
    match forward::max_forwards(&mut head.fields) {
        Ok(false) => None,
        Ok(true) if head.method == Method::Options => Some(Ok(200)),
        Ok(true) => Some(Err(RefusalReason::NotImplemented)),
        Err(_) => Some(Err(RefusalReason::Malformed)),
    }
}

/// Applies a route's changes to the request.
#[inline]
fn edit_request(head: &mut RequestHead, edits: Option<&Edits>) {
    let Some(edits) = edits else { return };
    edits.apply(&mut head.fields);
    if let Some(host) = edits.host() {
        head.authority = host.into();
    }
}

/// Makes attempts until an endpoint answers or no further attempt is allowed. Another attempt follows a
/// failed one only before the client heard of a response, and only if the body can be sent again. The
/// endpoint must surely have done nothing, or the request must be idempotent.
async fn attempt<U: Upstreams, B: BodySource>(
    upstream: usize,
    route: &Route,
    head: &RequestHead,
    source: &mut Replay<'_, B>,
    sink: &mut impl ResponseSink,
    scene: &Scene<'_, U>,
) -> Outcome {
    let edits = route.response_headers.as_deref();
    let request_id = forward::request_id_of(head);
    let limits = Limits { head: route.timeout, body: route.body_timeout, edits, request_id };
    let asked = Asked { client: scene.client, record: scene.record, stall: limits.head };
    let mut attempts = scene.upstreams.attempts(upstream, &asked);
    loop {
        let lease = match attempts.lease().await {
            Ok(lease) => lease,
            Err(reason) => return refuse(sink, reason, request_id, edits).await,
        };
        let shared = Shared::new();
        let ended = {
            let (mut sender, mut receiver) = lease.split(head);
            let halves = (&mut sender, &mut receiver);
            relay::relay(scene.io, limits, &shared, head, halves, source, sink).await
        };
        let has_begun = shared.has_begun();
        match ended {
            Ended::Answered(status) => {
                lease.complete();
                return Outcome::Answered { status, refused: None };
            }
            Ended::Switched(response) => return switch(sink, *response, lease, head, edits).await,
            Ended::Sink(error) => return Outcome::Undeliverable(error),
            Ended::Source(error) if has_begun => return Outcome::CutBySource(error),
            Ended::Source(error) => return refuse_body(sink, error, request_id, edits).await,
            Ended::Upstream(_) if has_begun => return Outcome::Cut,
            Ended::Upstream(error) => {
                let is_harmless = error.may_be_sent_again(head.method.is_idempotent()) && source.rewind();
                if !(is_harmless && attempts.again_after(&lease)) {
                    return refuse(sink, error.refusal(), request_id, edits).await;
                }
                scene.counters.increment(Plain::UpstreamRetries);
            }
        }
    }
}

/// Makes a tunnel of an exchange whose endpoint agreed to another protocol.
async fn switch(
    sink: &mut impl ResponseSink,
    mut response: ResponseHead,
    lease: impl Lease,
    head: &RequestHead,
    edits: Option<&Edits>,
) -> Outcome {
    if !upgrade::switch(&mut response, head) {
        let request_id = forward::request_id_of(head);
        return refuse(sink, RefusalReason::UpstreamMalformed, request_id, edits).await;
    }
    forward::request_id(&mut response, forward::request_id_of(head));
    if let Some(edits) = edits {
        edits.apply(&mut response.fields);
    }
    sink.switch(&response, lease.into_tunnel());
    Outcome::Switched
}
