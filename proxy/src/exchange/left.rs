//! Clients that leave while their exchange runs. A client whose connection broke is gone at once. A client
//! that has ended its side (FIN, close_notify) may still wait for the response, or may be gone: nobody can
//! tell the one from the other (RFC 9112 §9.6). It is served on for `listener.half_close`.

use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use super::outcome::Outcome;
use super::sink::SinkError;
use crate::io::{Io, Stream};
use crate::time::Time;

/// After this time an exchange watches its client. Watching from the start would cost most exchanges one more
/// receive to arm and to cancel.
const WATCH_AFTER: Duration = Duration::from_millis(100);

/// The client's end of an exchange, as far as it tells whether the client is still there.
pub trait Downstream: fmt::Debug {
    /// Ready once the client is gone and cannot get the response any more. A client that has only ended its
    /// own direction is not gone; the task is woken for it all the same.
    fn poll_gone(&self, cx: &Context<'_>) -> Poll<()>;
    /// When the client ended its own direction, if it has. `None` for ever where that says nothing about the
    /// client, as for a stream of a connection that others share.
    fn ended_at(&self) -> Option<Time>;
}

impl Downstream for Stream {
    fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        self.poll_broken(cx)
    }

    fn ended_at(&self) -> Option<Time> {
        Self::ended_at(self)
    }
}

/// Ready once the client is gone, or has ended its side and was served for `half_close` since. `None`: it is
/// served for as long as it takes.
pub(super) async fn left(io: &Io, client: &dyn Downstream, half_close: Option<Duration>) -> Outcome {
    if half_close != Some(Duration::ZERO) {
        io.sleep_until(io.after(WATCH_AFTER)).await;
    }
    // Boxed, since most exchanges are over by now.
    Box::pin(watch(io, client, half_close)).await
}

async fn watch(io: &Io, client: &dyn Downstream, half_close: Option<Duration>) -> Outcome {
    const GONE: Outcome = Outcome::Undeliverable(SinkError::Aborted);
    let due = poll_fn(|cx| {
        if client.poll_gone(cx).is_ready() {
            return Poll::Ready(None);
        }
        match (half_close, client.ended_at()) {
            (Some(patience), Some(at)) => Poll::Ready(Some(at + patience)),
            _ => Poll::Pending,
        }
    });
    let Some(due) = due.await else { return GONE };
    match io.timeout_at(due, poll_fn(|cx| client.poll_gone(cx))).await {
        Ok(()) => GONE,
        Err(_) => Outcome::Left,
    }
}
