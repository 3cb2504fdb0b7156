//! Tunnels: bytes in both directions between a client and an endpoint, in any protocol. They serve TCP
//! listeners, TLS that is passed through, and HTTP upgrades (RFC 9110 §7.8). Received buffers are forwarded
//! as they are, and the end of each direction is passed on by itself.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::context::{Snapshot, Worker};
use super::record::Logged;
use super::seat::Seat;
use super::table;
use crate::counters::Plain;
use crate::error::CloseReason;
use crate::exchange::lease::Asked;
use crate::exchange::record::Phase;
use crate::exchange::signal::Waiter;
use crate::exchange::tunnel::{Duplex, TunnelEnd};
use crate::exchange::{Client, Local};
use crate::io::StreamError;
use crate::listen::Protocol;
use crate::time::Time;
use crate::upstream::attempts::Attempts;

/// Makes a tunnel of a client's connection and an endpoint's. The tunnel is a task of its own, so that the
/// code before it holds no memory meanwhile.
pub(super) fn start(seat: Seat, upstream: Box<dyn TunnelEnd>, record: Option<Logged>) {
    let worker = seat.worker.clone();
    worker.io.spawn(Tunnel::new(seat, upstream, record).serve());
}

/// Connects a client of a `tcp` listener with an endpoint. Neither side has to speak first.
pub(crate) async fn open(mut seat: Seat) {
    let worker = Rc::clone(&seat.worker);
    let snapshot = worker.snapshot();
    // The listener that accepted the connection may be gone by now, or serve something else.
    let listener = snapshot.traffic.listeners.get(seat.listener_id);
    let Some((listener, Protocol::Tcp { upstream })) = listener.map(|listener| (listener, listener.protocol))
    else {
        seat.stream.abort();
        return seat.end(CloseReason::Draining);
    };
    seat.listener.clone_from(listener);
    let record = Logged::begin(&seat, None);
    if let Some(record) = &record {
        record.protocol("tcp");
    }
    connect(seat, &snapshot, upstream, record).await;
}

/// Connects a client with an endpoint of `upstream`, an index in the snapshot, and makes a tunnel of both. If
/// a connect fails, another endpoint is tried, as for HTTP.
pub(super) async fn connect(seat: Seat, snapshot: &Snapshot, upstream: usize, record: Option<Logged>) {
    let connected = {
        let ask = || seat.stream.local();
        let local = seat.proxied_local().map_or(Local::Asked(&ask), Local::Known);
        let fallback = &*seat.listener.addresses;
        let client = Client { peer: seat.client(), local, fallback };
        let asked = Asked { client, record: record.as_deref(), stall: seat.listener.timeouts.send };
        let mut attempts = Attempts::of_tunnel(&snapshot.upstreams[upstream], &asked);
        let mut connecting = pin!(attempts.connection());
        let cancelled = seat.cancel.waiter();
        poll_fn(|cx| match cancelled.poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(CloseReason::Draining)),
            Poll::Pending => connecting.as_mut().poll(cx).map_err(|_| CloseReason::UpstreamUnavailable),
        })
        .await
    };
    match connected {
        Ok(connection) => start(seat, Box::new(connection.into_tunnel()), record),
        Err(reason) => {
            if let Some(record) = record {
                record.finish(&seat, None, Some(reason));
            }
            seat.stream.abort();
            seat.end(reason);
        }
    }
}

/// One tunnel. Dropping it resets both connections.
pub(super) struct Tunnel {
    seat: Seat,
    upstream: Box<dyn TunnelEnd>,
    up: Direction,
    down: Direction,
    idle: Duration,
    send: Duration,
    cancelled: Waiter,
    /// Its record in the access log, if there is one.
    record: Option<Logged>,
    _open: Open,
}

/// Counts a tunnel as open, however it ends.
struct Open(Rc<Worker>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counters.decrement(Plain::TunnelsOpen);
    }
}

/// One direction of it.
#[derive(Clone, Copy)]
struct Direction {
    /// The source ended it, and the end was passed on to the target.
    ended: bool,
    /// When the target's queue last went from empty to filled; from then on the target must make progress.
    queued_at: Time,
}

/// Which connection broke.
enum Broken {
    Source(StreamError),
    Target(StreamError),
}

/// Why a tunnel's task woke.
enum Woken {
    /// The tunnel is over.
    Over(CloseReason),
    /// Something is to be checked before the timer would fire.
    CheckSooner,
}

impl Tunnel {
    pub(super) fn new(seat: Seat, upstream: Box<dyn TunnelEnd>, record: Option<Logged>) -> Self {
        let worker = &seat.worker;
        worker.counters.increment(Plain::Tunnels);
        worker.counters.increment(Plain::TunnelsOpen);
        let open = Open(Rc::clone(worker));
        let direction = Direction { ended: false, queued_at: worker.io.now() };
        let (timeouts, cancelled) = (seat.listener.timeouts, seat.cancel.waiter());
        Self {
            upstream,
            up: direction,
            down: direction,
            idle: timeouts.tunnel_idle,
            send: timeouts.send,
            cancelled,
            seat,
            record,
            _open: open,
        }
    }

    /// Runs until both sides have ended, or one breaks or is too slow. Not an `async fn`, whose future would
    /// have room for the tunnel twice.
    pub(super) fn serve(self) -> impl Future<Output = ()> {
        let mut tunnel = self;
        async move {
            let reason = loop {
                let due = tunnel.due();
                let worker = Rc::clone(&tunnel.seat.worker);
                match worker.io.timeout_at(due, poll_fn(|cx| tunnel.poll(cx, due))).await {
                    Ok(Woken::Over(reason)) => break reason,
                    Ok(Woken::CheckSooner) => {}
                    Err(_) => match tunnel.overdue(worker.io.now()) {
                        Some(reason) => break reason,
                        None => tunnel.shrink(),
                    },
                }
            };
            tunnel.end(reason);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, due: Time) -> Poll<Woken> {
        if self.cancelled.poll(cx).is_ready() {
            return Poll::Ready(Woken::Over(CloseReason::Stopped));
        }
        let now = self.seat.worker.io.now();
        let (client, upstream): (&dyn Duplex, _) = (&self.seat.stream, self.upstream.duplex());
        let up = self.up.poll(cx, client, upstream, now);
        let down = self.down.poll(cx, upstream, client, now);
        // A side that ended is not read any more, so only sending to it shows that it broke.
        for (direction, source) in [(self.up, client), (self.down, upstream)] {
            if direction.ended && source.unsent() > 0 {
                let _ = source.poll_flushed(cx);
            }
        }
        let over = match (up, down) {
            (Err(Broken::Source(error)), _) | (_, Err(Broken::Target(error))) => {
                Some(table::broken(error, CloseReason::ClientAborted))
            }
            (Err(Broken::Target(error)), _) | (_, Err(Broken::Source(error))) => {
                Some(table::broken(error, CloseReason::UpstreamAborted))
            }
            (Ok(up), Ok(down)) => {
                if up > 0 {
                    self.seat.count_received();
                }
                if down > 0 {
                    self.seat.worker.counters.add(Plain::SentBytes, down);
                    if let Some(record) = &self.record {
                        record.sent(down);
                    }
                }
                (self.up.ended && self.down.ended).then_some(CloseReason::TunnelClosed)
            }
        };
        match over {
            Some(reason) => Poll::Ready(Woken::Over(reason)),
            None if self.is_unsent() && due > now + self.send => Poll::Ready(Woken::CheckSooner),
            None => Poll::Pending,
        }
    }

    /// When one of the time limits may have passed.
    fn due(&self) -> Time {
        let idle = self.last_moved() + self.idle;
        self.stalls().into_iter().flatten().map(|(due, _)| due).fold(idle, Time::min)
    }

    fn overdue(&self, now: Time) -> Option<CloseReason> {
        let stalled = self.stalls().into_iter().flatten().find(|(due, _)| *due <= now);
        let idle = (self.last_moved() + self.idle <= now).then_some(CloseReason::TunnelIdle);
        stalled.map(|(_, reason)| reason).or(idle)
    }

    /// For each side with bytes in its queue: when it will have been too slow to take them, and the reason to
    /// close then.
    fn stalls(&self) -> [Option<(Time, CloseReason)>; 2] {
        let stall = |to: &dyn Duplex, direction: &Direction, reason| {
            (to.unsent() > 0).then(|| (to.progress().sent_at.max(direction.queued_at) + self.send, reason))
        };
        [
            stall(&self.seat.stream, &self.down, CloseReason::SendTimeout),
            stall(self.upstream.duplex(), &self.up, CloseReason::UpstreamSendTimeout),
        ]
    }

    fn last_moved(&self) -> Time {
        let moved = |stream: &dyn Duplex| {
            let progress = stream.progress();
            progress.received_at.max(progress.sent_at)
        };
        moved(&self.seat.stream)
            .max(moved(self.upstream.duplex()))
            .max(self.up.queued_at)
            .max(self.down.queued_at)
    }

    fn is_unsent(&self) -> bool {
        self.seat.stream.unsent() > 0 || self.upstream.duplex().unsent() > 0
    }

    /// Frees the memory that a quiet tunnel keeps for bytes to come.
    fn shrink(&self) {
        self.seat.stream.shrink();
        self.upstream.duplex().shrink();
    }

    fn end(self, reason: CloseReason) {
        let is_orderly = match reason {
            CloseReason::TunnelClosed => true,
            CloseReason::TunnelIdle => !self.is_unsent(),
            // A tunnel that was cut must look cut, to both sides.
            _ => false,
        };
        let Self { mut seat, upstream, record, .. } = self;
        if let Some(record) = record {
            record.reached(Phase::LastByte);
            record.finish(&seat, None, Some(reason));
        }
        seat.count_received();
        if is_orderly {
            seat.stream.close();
            upstream.close();
        } else {
            seat.stream.abort();
            drop(upstream);
        }
        seat.end(reason);
    }
}

impl Direction {
    /// Moves the bytes that are here, as long as the target takes them; returns their number.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &dyn Duplex,
        to: &dyn Duplex,
        now: Time,
    ) -> Result<u64, Broken> {
        let mut moved = 0;
        if self.ended {
            return from.error().map_or(Ok(moved), |error| Err(Broken::Source(error)));
        }
        loop {
            match to.poll_writable(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(Broken::Target(error)),
                // The source is not read now, so its reset shows only here.
                Poll::Pending => return from.error().map_or(Ok(moved), |error| Err(Broken::Source(error))),
            }
            match from.poll_read(cx) {
                Poll::Ready(Ok(Some(chunk))) => {
                    moved += chunk.len() as u64;
                    if to.unsent() == 0 {
                        self.queued_at = now;
                    }
                    to.write(chunk);
                }
                Poll::Ready(Ok(None)) => {
                    self.ended = true;
                    to.shutdown_write();
                    return Ok(moved);
                }
                Poll::Ready(Err(error)) => return Err(Broken::Source(error)),
                Poll::Pending => return Ok(moved),
            }
        }
    }
}

#[cfg(test)]
mod tests;
