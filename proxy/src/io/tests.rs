//! The engine as a whole, over the simulated ring and over the kernel's.

mod kernel;
mod late;
mod simulated;

use std::net::SocketAddr;
use std::num::NonZero;
use std::time::Duration;

use super::{Handler, Io, Stream, StreamError, Tag};

/// The tag of the only listening socket.
pub(super) const LISTENER: Tag = Tag { kind: NonZero::<u32>::MIN, key: 0 };

/// How a test serves an accepted connection.
#[derive(Clone, Copy)]
pub(super) enum Session {
    /// Its own bytes back.
    Echo,
    /// A connection to this address, joined to it.
    Relay(SocketAddr),
    /// Everything is read and thrown away after a while, until the end; then closed.
    Sink,
}

/// A worker that gives every connection the same session.
pub(super) struct Worker {
    pub(super) io: Io,
    pub(super) session: Session,
    pub(super) accepted: usize,
    pub(super) accept_failures: usize,
    pub(super) listener_failures: usize,
    pub(super) commands: usize,
    pub(super) timers: Vec<Tag>,
    pub(super) ready: Vec<(Stream, Tag)>,
}

impl Worker {
    pub(super) fn new(io: Io, session: Session) -> Self {
        Self {
            io,
            session,
            accepted: 0,
            accept_failures: 0,
            listener_failures: 0,
            commands: 0,
            timers: Vec::new(),
            ready: Vec::new(),
        }
    }
}

impl Handler for Worker {
    fn accepted(&mut self, _listener: Tag, stream: Stream) {
        self.accepted += 1;
        let io = self.io.clone();
        match self.session {
            Session::Echo => self.io.spawn(async move {
                if pump(&stream, &stream).await.is_ok() {
                    stream.close();
                }
            }),
            Session::Relay(address) => self.io.spawn(relay(io, stream, address)),
            Session::Sink => self.io.spawn(async move {
                while let Ok(Some(chunk)) = stream.read().await {
                    io.sleep_until(io.after(Duration::from_millis(5))).await;
                    drop(chunk);
                }
                stream.close();
            }),
        };
    }

    fn parked_ready(&mut self, stream: Stream, tag: Tag) {
        self.ready.push((stream, tag));
    }

    fn timer(&mut self, tag: Tag) {
        self.timers.push(tag);
    }

    fn command_ready(&mut self) {
        self.commands += 1;
    }

    fn accept_failed(&mut self, _errno: i32) {
        self.accept_failures += 1;
    }

    fn listener_failed(&mut self, _listener: Tag) {
        self.listener_failures += 1;
    }
}

/// Moves bytes until the end of `from`.
pub(super) async fn pump(from: &Stream, to: &Stream) -> Result<(), StreamError> {
    while let Some(chunk) = from.read().await? {
        to.writable().await?;
        to.write(chunk);
    }
    Ok(())
}

/// Joins a connection to a new one. An error on either side resets both.
pub(super) async fn relay(io: Io, downstream: Stream, address: SocketAddr) {
    let deadline = io.after(Duration::from_secs(10));
    let Ok(Ok(upstream)) = io.timeout_at(deadline, io.connect(address, None)).await else {
        return downstream.close();
    };
    let forth = async {
        pump(&downstream, &upstream).await?;
        upstream.shutdown_write();
        Ok::<_, StreamError>(())
    };
    let back = async {
        pump(&upstream, &downstream).await?;
        downstream.shutdown_write();
        Ok::<_, StreamError>(())
    };
    if join(forth, back).await.is_ok() {
        upstream.close();
        downstream.close();
    }
}

/// Both, or the first error.
async fn join(
    one: impl Future<Output = Result<(), StreamError>>,
    two: impl Future<Output = Result<(), StreamError>>,
) -> Result<(), StreamError> {
    use std::task::Poll;
    let (mut one, mut two) = (Box::pin(one), Box::pin(two));
    let (mut one_done, mut two_done) = (false, false);
    std::future::poll_fn(move |cx| {
        if !one_done && let Poll::Ready(result) = one.as_mut().poll(cx) {
            result?;
            one_done = true;
        }
        if !two_done && let Poll::Ready(result) = two.as_mut().poll(cx) {
            result?;
            two_done = true;
        }
        if one_done && two_done { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// Bytes that differ at every position.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}
