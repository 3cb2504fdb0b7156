//! Pumping one exchange's bodies in both directions at once, in one task: the upload (source to slot) and the download (slot to
//! sink), joined without spawning. Backpressure is waiting: neither side is read while the other is full.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::exchange::{BodyPart, BodySource, ResponseSink, SinkError, SourceError};
use crate::http::edit::Edits;
use crate::http::forward;
use crate::http::message::{BodyLength, Fields, RequestHead, ResponseHead};
use crate::http::upgrade;
use crate::io::{Chunk, Io};
use crate::time::Time;
use crate::upstream::slot::{ReceiveResponse, SendRequest, SlotError};

/// What a route asks of an exchange's upstream side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits<'a> {
    /// Until the final response head, counted from the last request byte that made progress.
    pub(super) head: Duration,
    /// Between two reads of the response body.
    pub(super) body: Duration,
    /// Changes to the final response head.
    pub(super) edits: Option<&'a Edits>,
}

/// How a relay ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The response was delivered whole.
    Answered {
        /// Whether the whole request was sent too: else neither connection can be used again.
        request_sent: bool,
        /// Whether the endpoint keeps its connection open.
        keep_alive: bool,
    },
    /// The endpoint speaks another protocol from now on: a 101 to a request that asked for one.
    Switched(Box<ResponseHead>),
    /// The endpoint failed.
    Upstream(SlotError),
    /// The request body cannot go on.
    Source(SourceError),
    /// The response cannot be delivered.
    Sink(SinkError),
}

/// What upload and download tell each other.
#[derive(Debug)]
pub(super) struct Shared {
    /// When the response head is due.
    head_due: Cell<Time>,
    /// The upload waits for the client: the endpoint cannot be blamed for its silence.
    awaits_client: Cell<bool>,
    /// The final head's status went to the sink.
    status: Cell<Option<u16>>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self { head_due: Cell::new(Time::default()), awaits_client: Cell::new(false), status: Cell::new(None) }
    }

    /// The final status, once its head was handed to the sink.
    pub(super) fn status(&self) -> Option<u16> {
        self.status.get()
    }
}

/// Sends one request over a slot and delivers its response.
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
        // The rule: there is nothing to pump upwards.
        sender.head(head);
        sender.flush();
        let may_switch = upgrade::is_asked_for(head);
        return match download(io, limits, shared, receiver, sink, may_switch).await {
            Ok(keep_alive) => Ended::Answered { request_sent: true, keep_alive },
            Err(error) => error.into(),
        };
    }
    Box::pin(pump(io, limits, shared, head, (sender, receiver), source, sink)).await
}

/// Upload and download at once. Boxed by its caller: it would more than double the future of a request without a body.
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
    let mut download = pin!(download(io, limits, shared, receiver, sink, false));
    let mut uploaded: Option<bool> = None;
    poll_fn(|cx| {
        // When the download ends, the upload is still polled once more, since its last step may be ready.
        let downloaded = download.as_mut().poll(cx);
        if uploaded.is_none() {
            match upload.as_mut().poll(cx) {
                Poll::Ready(Ok(())) => uploaded = Some(true),
                // The endpoint may have answered before it stopped listening: what it said decides.
                Poll::Ready(Err(UploadError::Slot)) => uploaded = Some(false),
                Poll::Ready(Err(UploadError::Source(error))) if downloaded.is_pending() => {
                    return Poll::Ready(Ended::Source(error));
                }
                Poll::Ready(Err(UploadError::Source(_))) => uploaded = Some(false),
                Poll::Pending => {}
            }
        }
        downloaded.map(|result| match result {
            Ok(keep_alive) => Ended::Answered { request_sent: uploaded == Some(true), keep_alive },
            Err(error) => error.into(),
        })
    })
    .await
}

enum UploadError {
    Slot,
    Source(SourceError),
}

impl From<SlotError> for UploadError {
    fn from(_: SlotError) -> Self {
        Self::Slot
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
    /// No error for the client: what the exchange becomes instead.
    Switched(Box<ResponseHead>),
    Slot(SlotError),
    Sink(SinkError),
}

impl From<DownloadError> for Ended {
    fn from(error: DownloadError) -> Self {
        match error {
            DownloadError::Switched(head) => Self::Switched(head),
            DownloadError::Slot(error) => Self::Upstream(error),
            DownloadError::Sink(error) => Self::Sink(error),
        }
    }
}

impl From<SlotError> for DownloadError {
    fn from(error: SlotError) -> Self {
        Self::Slot(error)
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
) -> Result<bool, DownloadError> {
    let mut head = loop {
        let mut head = head_in_time(io, limits, shared, receiver).await?;
        match head.status {
            101 if may_switch => return Err(DownloadError::Switched(Box::new(head))),
            // Nobody asked for another protocol.
            101 => return Err(SlotError::Malformed.into()),
            100..=199 => {
                forward::response(&mut head);
                sink.informational(&head).await?;
            }
            _ => break head,
        }
    };
    let keep_alive = head.keep_alive;
    forward::response(&mut head);
    if let Some(edits) = limits.edits {
        edits.apply(&mut head.fields);
    }
    shared.status.set(Some(head.status));
    sink.head(&head).await?;
    loop {
        match part_in_time(io, limits, receiver, sink).await? {
            BodyPart::Data(chunk) => sink.data(chunk).await?,
            BodyPart::End(mut trailers) => {
                forward::trailers(&mut trailers);
                sink.finish(trailers).await?;
                return Ok(keep_alive);
            }
        }
    }
}

/// The next head, before `head_due`, which moves while the request makes progress or the client is what we wait for.
async fn head_in_time(
    io: &Io,
    limits: Limits<'_>,
    shared: &Shared,
    receiver: &mut impl ReceiveResponse,
) -> Result<ResponseHead, SlotError> {
    loop {
        let due = shared.head_due.get();
        if let Ok(head) = io.timeout_at(due, receiver.head()).await {
            return head;
        }
        if shared.awaits_client.get() {
            shared.head_due.set(io.now() + limits.head);
        } else if shared.head_due.get() <= due {
            return Err(SlotError::TimedOut);
        }
    }
}

async fn part_in_time(
    io: &Io,
    limits: Limits<'_>,
    receiver: &mut impl ReceiveResponse,
    sink: &mut impl ResponseSink,
) -> Result<BodyPart, SlotError> {
    {
        let mut now = pin!(receiver.part());
        if let Poll::Ready(part) = poll_fn(|cx| Poll::Ready(now.as_mut().poll(cx))).await {
            return part;
        }
    }
    sink.flush();
    io.timeout_at(io.after(limits.body), receiver.part()).await.unwrap_or(Err(SlotError::TimedOut))
}

/// A body source that can begin again while it gave no more than it could keep.
#[derive(Debug)]
pub(super) struct Replay<'a, B> {
    source: &'a mut B,
    /// Data given so far; meaningless once `lost`.
    kept: Vec<u8>,
    kept_max: usize,
    /// The end was taken from the source, with these trailers.
    ended: Option<Fields>,
    /// More was given than is kept.
    lost: bool,
    /// What to give first after `rewind`.
    again: Option<usize>,
}

impl<'a, B: BodySource> Replay<'a, B> {
    /// Keeps up to `kept_max` bytes.
    pub(super) fn new(source: &'a mut B, kept_max: usize) -> Self {
        Self { source, kept: Vec::new(), kept_max, ended: None, lost: false, again: None }
    }

    /// Begins again; `false` when that is impossible.
    pub(super) fn rewind(&mut self) -> bool {
        self.again = Some(0);
        !self.lost
    }

    fn keep(&mut self, chunk: &[u8]) {
        if self.kept.len() + chunk.len() > self.kept_max {
            self.lost = true;
            self.kept = Vec::new();
        } else if !self.lost {
            self.kept.extend_from_slice(chunk);
        }
    }
}

impl<B: BodySource> BodySource for Replay<'_, B> {
    async fn next(&mut self) -> Result<BodyPart, SourceError> {
        if let Some(at) = self.again {
            if at < self.kept.len() {
                self.again = Some(self.kept.len());
                return Ok(BodyPart::Data(Chunk::from_vec(self.kept.clone())));
            }
            self.again = None;
        }
        if let Some(trailers) = &self.ended {
            return Ok(BodyPart::End(trailers.clone()));
        }
        let part = self.source.next().await?;
        match &part {
            BodyPart::Data(chunk) => self.keep(chunk),
            BodyPart::End(trailers) => self.ended = Some(trailers.clone()),
        }
        Ok(part)
    }
}
