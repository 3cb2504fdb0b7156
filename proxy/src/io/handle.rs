//! What a session may ask of the engine, apart from its streams.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use super::Stream;
use crate::time::Time;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Io(());

/// Why a connect failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Refused, unreachable, or another errno.
    #[error("connect: errno {0}")]
    Os(i32),
    /// No descriptor or engine slot was left.
    #[error("no descriptor left to connect with")]
    Exhausted,
}

/// The deadline passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline passed")]
pub struct Elapsed;

impl Io {
    /// The time of this loop turn.
    #[must_use]
    pub fn now(&self) -> Time {
        unimplemented!()
    }

    /// Waits until `deadline` (granularity of the timer wheel: 4 ms late at most).
    pub async fn sleep_until(&self, _deadline: Time) {
        unimplemented!()
    }

    /// `future`, or `Elapsed` at `deadline`. Dropping it disarms the timer.
    pub async fn timeout_at<F: Future>(&self, _deadline: Time, _future: F) -> Result<F::Output, Elapsed> {
        unimplemented!()
    }

    /// Connects. Dropping the future cancels the connect and closes the socket.
    pub async fn connect(&self, _address: SocketAddr) -> Result<Stream, ConnectError> {
        unimplemented!()
    }

    /// Runs a future on this worker's executor.
    pub fn spawn(&self, _future: impl Future<Output = ()> + 'static) {
        unimplemented!()
    }

    /// A single-shot timer without a future: at `deadline`, `Handler::timer` is called with `tag`. Later calls with the
    /// same `TimerKey` can cancel it. For idle sessions and pooled connections.
    pub fn timer_at(&self, _deadline: Time, _tag: super::stream::Tag) -> TimerKey {
        unimplemented!()
    }

    /// Disarms; nothing happens when it already fired.
    pub fn cancel_timer(&self, _key: TimerKey) {
        unimplemented!()
    }

    /// Shorthand for `now() + duration`.
    #[must_use]
    pub fn after(&self, duration: Duration) -> Time {
        self.now() + duration
    }
}

/// Names an armed timer; stale keys are harmless (generation-tagged).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerKey(pub u64);
