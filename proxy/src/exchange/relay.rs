//! Pumps one exchange's bodies in both directions at once, in one task: the upload (source to lease) and the
//! download (lease to sink), joined without spawning. Backpressure is waiting: neither side is read while the
//! other is full.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::body::{BodyPart, BodySource, SourceError};
use super::lease::{LeaseError, ReceiveResponse, SendRequest};
use super::sink::{ResponseSink, SinkError};
use crate::http::edit::Edits;
use crate::http::forward;
use crate::http::message::{BodyLength, RequestHead, ResponseHead};
use crate::http::upgrade;
use crate::io::Io;
use crate::time::Time;

/// A route's limits for an endpoint, and its changes to the response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits<'a> {
    /// How long the final response head may take, counted from the last progress of the request.
    pub(super) head: Duration,
    /// The longest pause between two reads of the response body.
    pub(super) body: Duration,
    /// Changes to the final response head.
    pub(super) edits: Option<&'a Edits>,
    /// The id of the request, which the client gets with the final response head.
    pub(super) request_id: &'a [u8],
}

/// How a relay ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The response was delivered whole, with this status.
    Answered(u16),
    /// The endpoint speaks another protocol from now on: a 101 to a request that asked for one.
    Switched(Box<ResponseHead>),
    /// The endpoint failed.
    Upstream(LeaseError),
    /// The request body cannot go on.
    Source(SourceError),
    /// The response cannot be delivered.
    Sink(SinkError),
}

/// Interim responses to one request, at most: an endpoint that never sends its final response must not hold
/// an exchange for ever.
const INTERIM_MAX: u32 = 100;

/// How long an endpoint may take to send "100 Continue" before it gets the body all the same. An endpoint
/// that does not know the expectation never sends it (RFC 9110 §10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);
/// How long a part may take until it is asked whether the endpoint can send at all.
const HELD_AFTER: Duration = Duration::from_millis(100);

/// State that upload and download share.
#[derive(Debug)]
pub(super) struct Shared {
    /// When the response head is due.
    head_due: Cell<Time>,
    /// The upload waits for the client: the endpoint cannot be blamed for its silence.
    awaits_client: Cell<bool>,
    /// The endpoint said "100 Continue".
    continued: Cell<bool>,
    /// The final head went to the sink: the client may have heard of it.
    has_begun: Cell<bool>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            head_due: Cell::new(Time::default()),
            awaits_client: Cell::new(false),
            continued: Cell::new(false),
            has_begun: Cell::new(false),
        }
    }

    /// Whether the final head went to the sink: the client may have heard of it.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.get()
    }
}

/// Sends one request over the halves of a lease and delivers its response.
pub(super) async fn relay(
    io: &Io,
    limits: Limits<'_>,
    shared: &Shared,
    head: &RequestHead,
    halves: (&mut impl SendRequest, &mut impl ReceiveResponse),
    source: &mut impl BodySource,
    sink: &mut impl ResponseSink,
) -> Ended {
    let (sender, receiver) = halves;
    shared.head_due.set(io.now() + limits.head);
    if matches!(head.body, BodyLength::None) {
        // Most requests have no body: there is nothing to upload.
        sender.head(head);
        sender.flush();
        let may_switch = upgrade::is_asked_for(head);
        return match download(io, limits, shared, receiver, sink, may_switch).await {
            Ok(status) => Ended::Answered(status),
            Err(error) => error.into(),
        };
    }
    Box::pin(pump(io, limits, shared, head, (sender, receiver), source, sink)).await
}

/// Runs upload and download at once. The caller boxes this future, since it would more than double the future
/// of a request without a body.
async fn pump(
    io: &Io,
    limits: Limits<'_>,
    shared: &Shared,
    head: &RequestHead,
    halves: (&mut impl SendRequest, &mut impl ReceiveResponse),
    source: &mut impl BodySource,
    sink: &mut impl ResponseSink,
) -> Ended {
    let (sender, receiver) = halves;
    let mut upload = pin!(upload(io, limits, shared, head, sender, source));
    let may_switch = upgrade::is_asked_for(head);
    let mut download = pin!(download(io, limits, shared, receiver, sink, may_switch));
    // Whether the request was sent whole, once that is known.
    let mut uploaded = None;
    let ended = poll_fn(|cx| {
        // When the download ends, the upload is still polled once more, since its last step may be ready.
        let downloaded = download.as_mut().poll(cx);
        if uploaded.is_none() {
            match upload.as_mut().poll(cx) {
                // If the upload failed, the endpoint may have answered before it stopped reading: its answer
                // decides.
                Poll::Ready(Err(UploadError::Lease(_))) => uploaded = Some(false),
                Poll::Ready(Ok(())) => uploaded = Some(true),
                Poll::Ready(Err(UploadError::Source(error))) if downloaded.is_pending() => {
                    return Poll::Ready(Ended::Source(error));
                }
                Poll::Ready(Err(UploadError::Source(_))) => uploaded = Some(false),
                Poll::Pending => {}
            }
        }
        downloaded.map(|result| match result {
            Ok(status) => Ended::Answered(status),
            Err(error) => error.into(),
        })
    })
    .await;
    // The other protocol begins behind the request's body (RFC 9110 §7.8).
    match (ended, uploaded) {
        (Ended::Switched(_), Some(false)) => Ended::Upstream(LeaseError::ClosedWithinResponse),
        (Ended::Switched(head), None) => match upload.await {
            Ok(()) => Ended::Switched(head),
            Err(UploadError::Lease(error)) => Ended::Upstream(error),
            Err(UploadError::Source(error)) => Ended::Source(error),
        },
        (ended, _) => ended,
    }
}

enum UploadError {
    Lease(LeaseError),
    Source(SourceError),
}

impl From<LeaseError> for UploadError {
    fn from(error: LeaseError) -> Self {
        Self::Lease(error)
    }
}

async fn upload(
    io: &Io,
    limits: Limits<'_>,
    shared: &Shared,
    head: &RequestHead,
    sender: &mut impl SendRequest,
    source: &mut impl BodySource,
) -> Result<(), UploadError> {
    sender.head(head);
    if head.expects_continue() {
        sender.flush();
        let wanted =
            poll_fn(|cx| if shared.continued.get() { Poll::Ready(()) } else { source.poll_arrived(cx) });
        // Without a "100 Continue" in time the body is sent all the same; `next` then asks the client for it.
        let _ = io.timeout_at(io.after(CONTINUE_WAIT), wanted).await;
    }
    loop {
        let part = {
            let mut next = pin!(source.next());
            poll_fn(|cx| {
                let polled = next.as_mut().poll(cx);
                shared.awaits_client.set(polled.is_pending());
                if polled.is_pending() {
                    sender.flush();
                }
                polled
            })
            .await
            .map_err(UploadError::Source)?
        };
        shared.head_due.set(io.now() + limits.head);
        match part {
            BodyPart::Data(chunk) => sender.data(chunk).await?,
            BodyPart::End(mut trailers) => {
                forward::trailers(&mut trailers);
                sender.finish(&trailers).await?;
                shared.head_due.set(io.now() + limits.head);
                return Ok(());
            }
        }
    }
}

enum DownloadError {
    /// No error: the exchange becomes a tunnel.
    Switched(Box<ResponseHead>),
    Lease(LeaseError),
    Sink(SinkError),
}

impl From<DownloadError> for Ended {
    fn from(error: DownloadError) -> Self {
        match error {
            DownloadError::Switched(head) => Self::Switched(head),
            DownloadError::Lease(error) => Self::Upstream(error),
            DownloadError::Sink(error) => Self::Sink(error),
        }
    }
}

impl From<LeaseError> for DownloadError {
    fn from(error: LeaseError) -> Self {
        Self::Lease(error)
    }
}

impl From<SinkError> for DownloadError {
    fn from(error: SinkError) -> Self {
        Self::Sink(error)
    }
}

async fn download(
    io: &Io,
    limits: Limits<'_>,
    shared: &Shared,
    receiver: &mut impl ReceiveResponse,
    sink: &mut impl ResponseSink,
    may_switch: bool,
) -> Result<u16, DownloadError> {
    let mut interim = 0;
    let mut head = loop {
        let mut head = head_in_time(io, limits, shared, receiver).await?;
        shared.continued.set(shared.continued.get() || head.status == 100);
        match head.status {
            101 if may_switch => return Err(DownloadError::Switched(Box::new(head))),
            // The request did not ask for another protocol.
            101 => return Err(LeaseError::Malformed.into()),
            100..=199 if interim == INTERIM_MAX => return Err(LeaseError::Malformed.into()),
            100..=199 => {
                interim += 1;
                forward::response(&mut head);
                sink.informational(&head).await?;
            }
            _ => break head,
        }
    };
    upgrade::response(&mut head);
    forward::date(&mut head, || super::unix_micros() / 1_000_000);
    forward::request_id(&mut head, limits.request_id);
    if let Some(edits) = limits.edits {
        edits.apply(&mut head.fields);
    }
    shared.has_begun.set(true);
    sink.head(&head).await?;
    loop {
        match part_in_time(io, limits, receiver, sink).await? {
            BodyPart::Data(chunk) => sink.data(chunk).await?,
            BodyPart::End(mut trailers) => {
                forward::trailers(&mut trailers);
                sink.finish(trailers).await?;
                return Ok(head.status);
            }
        }
    }
}

/// The next head, before `head_due`. That moves while the request makes progress, and while the exchange
/// waits for the client.
async fn head_in_time(
    io: &Io,
    limits: Limits<'_>,
    shared: &Shared,
    receiver: &mut impl ReceiveResponse,
) -> Result<ResponseHead, LeaseError> {
    loop {
        let due = shared.head_due.get();
        if let Ok(head) = io.timeout_at(due, receiver.head()).await {
            return head;
        }
        if shared.head_due.get() > due {
            continue;
        }
        // Bytes of the request may wait here for long before a slow endpoint has taken them.
        let taken_due = receiver.taken_at() + limits.head;
        // A client's receive may be held because the endpoint takes nothing. The exchange then waits for the
        // endpoint, not for the client.
        if taken_due <= io.now() && (!shared.awaits_client.get() || receiver.has_unsent()) {
            return Err(LeaseError::TimedOut);
        }
        shared.head_due.set(if shared.awaits_client.get() { io.now() + limits.head } else { taken_due });
    }
}

async fn part_in_time(
    io: &Io,
    limits: Limits<'_>,
    receiver: &mut impl ReceiveResponse,
    sink: &mut impl ResponseSink,
) -> Result<BodyPart, DownloadError> {
    {
        let mut now = pin!(receiver.part());
        if let Poll::Ready(part) = poll_fn(|cx| Poll::Ready(now.as_mut().poll(cx))).await {
            return Ok(part?);
        }
    }
    sink.flush();
    let due = io.after(limits.body);
    if let Ok(part) = io.timeout_at(due.min(io.after(HELD_AFTER)), receiver.part()).await {
        return Ok(part?);
    }
    Box::pin(part_waited_for(io, limits, due, receiver, sink)).await
}

/// Waits for a part that did not come within `HELD_AFTER`.
async fn part_waited_for(
    io: &Io,
    limits: Limits<'_>,
    mut due: Time,
    receiver: &mut impl ReceiveResponse,
    sink: &mut impl ResponseSink,
) -> Result<BodyPart, DownloadError> {
    loop {
        if receiver.is_held() {
            // The endpoint cannot send, since its earlier bytes still wait for a slow client. Meanwhile the
            // client's limits hold; once the client has taken the bytes, the endpoint's time begins anew.
            if let Some(part) = part_unless_taken(receiver, sink).await? {
                return Ok(part);
            }
            due = io.after(limits.body);
        }
        match io.timeout_at(due, receiver.part()).await {
            Ok(part) => return Ok(part?),
            Err(_) if receiver.is_held() => {}
            Err(_) => return Err(LeaseError::TimedOut.into()),
        }
    }
}

/// The next part, or `None` when the client has taken all that was queued for it before one came.
async fn part_unless_taken(
    receiver: &mut impl ReceiveResponse,
    sink: &mut impl ResponseSink,
) -> Result<Option<BodyPart>, DownloadError> {
    let mut part = pin!(receiver.part());
    let mut taken = pin!(sink.taken());
    poll_fn(|cx| match part.as_mut().poll(cx) {
        Poll::Ready(part) => Poll::Ready(part.map(Some).map_err(DownloadError::from)),
        Poll::Pending => {
            taken.as_mut().poll(cx).map(|taken| taken.map(|()| None).map_err(DownloadError::from))
        }
    })
    .await
}
