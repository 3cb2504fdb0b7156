//! What a session may ask of the engine, apart from its streams: the time, timers, connections, tasks, and a
//! place for bytes that stay.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::executor::TaskKey;
use super::shared::{Alarm, Shared};
use super::stream::{Inner, Tag};
use super::timer::TimerKey;
use super::{Chunk, Stream};
use crate::time::Time;

/// Pieces of a body are gathered into runs of this many bytes: a segment each would cost more than its bytes.
const GATHER_BYTES: usize = 16 << 10;

/// Cheap to clone.
#[derive(Clone)]
pub struct Io(Rc<Shared>);

/// Why a connect failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Refused, unreachable, or another errno.
    #[error("connect: errno {0}")]
    Os(i32),
    /// The local address to connect from is none of this host, say; the errno.
    #[error("bind: errno {0}")]
    Unbound(i32),
    /// No local port was left for connections to this address.
    #[error("no local port left to connect from")]
    NoPort,
    /// No descriptor or engine slot was left.
    #[error("no descriptor left to connect with")]
    Exhausted,
}

impl ConnectError {
    pub(super) const fn from_errno(errno: i32) -> Self {
        match errno {
            // IPv6 says so too where no local address reaches the peer.
            libc::EADDRNOTAVAIL => Self::NoPort,
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => Self::Exhausted,
            errno => Self::Os(errno),
        }
    }
}

/// The deadline passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline passed")]
pub struct Elapsed;

impl Io {
    pub(super) const fn new(shared: Rc<Shared>) -> Self {
        Self(shared)
    }

    #[cfg(test)]
    pub(super) const fn shared(&self) -> &Rc<Shared> {
        &self.0
    }

    /// The time of this loop turn.
    #[must_use]
    pub fn now(&self) -> Time {
        self.0.now.get()
    }

    /// Waits until `deadline` (granularity of the timer wheel: 4 ms late at most).
    pub async fn sleep_until(&self, deadline: Time) {
        Sleep { shared: &self.0, deadline, key: None }.await;
    }

    /// `future`, or `Elapsed` at `deadline`. Dropping it disarms the timer.
    pub async fn timeout_at<F: Future>(&self, deadline: Time, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        let mut sleep = Sleep { shared: &self.0, deadline, key: None };
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            Pin::new(&mut sleep).poll(cx).map(|()| Err(Elapsed))
        })
        .await
    }

    /// Connects, from the local address `source` if there is one. Dropping the future cancels the connect and
    /// closes the socket.
    pub async fn connect(&self, address: SocketAddr, source: Option<IpAddr>) -> Result<Stream, ConnectError> {
        let inner = Inner::connecting(address, source, self.now());
        let stream = self.0.insert(inner).ok_or(ConnectError::Exhausted)?;
        stream.state().mark(&mut stream.state().inner.borrow_mut());
        std::future::poll_fn(|cx| stream.poll_connected(cx)).await?;
        Ok(stream)
    }

    /// Runs a future on this worker's executor.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) -> TaskKey {
        self.0.executor.spawn(future)
    }

    /// Drops a spawned future where it stands; nothing happens when it already ended.
    pub fn cancel_task(&self, key: TaskKey) {
        self.0.executor.cancel(key);
    }

    /// A single-shot timer without a future: at `deadline`, `Handler::timer` is called with `tag`. Later
    /// calls with the same `TimerKey` can cancel it. For idle sessions and pooled connections.
    pub fn timer_at(&self, deadline: Time, tag: Tag) -> TimerKey {
        self.0.arm(deadline, Alarm::Tag(tag))
    }

    /// Disarms; nothing happens when it already fired.
    pub fn cancel_timer(&self, key: TimerKey) {
        self.0.disarm(key);
    }

    /// Shorthand for `now() + duration`.
    #[must_use]
    pub fn after(&self, duration: Duration) -> Time {
        self.now() + duration
    }

    /// For received bytes that a slow peer holds up: moves them out of the ring's buffers. The copy is under
    /// the worker's buffer budget, of which such bytes may take half. It no longer counts against the stream
    /// the bytes came from. The chunk comes back as it is when there is no room.
    #[must_use]
    pub fn own(&self, chunk: Chunk) -> Chunk {
        let pool = &self.0.pool;
        pool.copy(&chunk, None, pool.budget_max() / 2).unwrap_or(chunk)
    }

    /// Appends received bytes to a body that is read whole before it is sent, out of the ring's buffers. They
    /// are under the worker's buffer budget, of which such bodies may take half. They no longer count against
    /// the stream they came from. The chunk comes back as the error when there is no room.
    pub fn gather(&self, parts: &mut Vec<Chunk>, chunk: Chunk) -> Result<(), Chunk> {
        let pool = &self.0.pool;
        let reserve = pool.budget_max() / 2;
        if pool.budget_used() + chunk.len() + reserve <= pool.budget_max()
            && parts.last_mut().is_some_and(|last| last.try_append(&chunk, GATHER_BYTES))
        {
            return Ok(());
        }
        parts.push(pool.copy(&chunk, None, reserve).ok_or(chunk)?);
        Ok(())
    }

    /// Bytes of the worker's buffer budget.
    #[must_use]
    pub fn budget_max(&self) -> usize {
        self.0.pool.budget_max()
    }

    /// Streams that there are, those that are closing too.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.0.slots.borrow().used
    }

    /// Small buffers that are not on loan.
    #[must_use]
    pub fn buffers_free(&self) -> usize {
        self.0.pool.free()
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io").field("now", &self.now()).finish_non_exhaustive()
    }
}

/// Armed at its first poll, disarmed when dropped.
struct Sleep<'a> {
    shared: &'a Rc<Shared>,
    deadline: Time,
    key: Option<TimerKey>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.now.get() >= self.deadline {
            return Poll::Ready(());
        }
        let mut wheel = self.shared.wheel.borrow_mut();
        match self.key.and_then(|key| wheel.value_mut(key)) {
            Some(Alarm::Wake(waker)) => waker.clone_from(cx.waker()),
            _ => {
                let key = wheel.arm(self.deadline, Alarm::Wake(cx.waker().clone()));
                drop(wheel);
                self.key = Some(key);
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.shared.disarm(key);
        }
    }
}
