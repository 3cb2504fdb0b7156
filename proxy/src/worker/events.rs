//! Hands each event of the engine to the code that it is for, and publishes facts about the loop before it
//! sleeps.

use std::rc::Rc;
use std::time::Duration;

use crate::control::slots::SteeringSlot;
use crate::counters::Plain;
use crate::error::Crowded;
use crate::io::Stats;
use crate::io::Stream;
use crate::io::engine::Handler;
use crate::io::stream::Tag;
use crate::io::tags;
use crate::listen::ListenerId;
use crate::session::context::Worker;
use crate::session::{crowd, table};
use crate::time::Time;
use crate::upstream::pool::PoolKey;
use crate::worker::acceptor;

/// The worker as the engine sees it.
#[derive(Debug)]
pub struct Events {
    worker: Rc<Worker>,
    steering: SteeringSlot,
    stuck_after: Duration,
    /// When the loop woke last.
    woke: Option<Time>,
    load: usize,
    published: Stats,
    commands_wait: bool,
}

impl Events {
    /// Events of an engine that has not run yet.
    #[must_use]
    pub fn new(worker: Rc<Worker>, steering: SteeringSlot, stuck_after: Duration) -> Self {
        Self {
            worker,
            steering,
            stuck_after,
            woke: None,
            load: 0,
            published: Stats::default(),
            commands_wait: false,
        }
    }

    /// The worker that gets the events.
    #[must_use]
    pub const fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// The worker's line in the steering array.
    #[must_use]
    pub const fn steering(&self) -> &SteeringSlot {
        &self.steering
    }

    /// Whether commands wait to be read. The answer is `true` once, until more arrive.
    pub const fn take_commands(&mut self) -> bool {
        std::mem::replace(&mut self.commands_wait, false)
    }

    /// Adds the engine's counts since the last call to the worker's counters.
    pub fn publish(&mut self, stats: Stats) {
        let counters = &self.worker.counters;
        let before = &self.published;
        counters.add(Plain::RingEnters, stats.enters - before.enters);
        counters.add(Plain::RingCompletions, stats.completions - before.completions);
        counters.add(Plain::BuffersExhausted, stats.buffers_exhausted - before.buffers_exhausted);
        counters.add(Plain::Panics, stats.panics - before.panics);
        let ended = stats.closings_ended - before.closings_ended;
        if ended > 0 {
            self.worker.crowd.note(&self.worker, Crowded::Closings, ended);
        }
        counters.set(Plain::BuffersLoaned, stats.buffers_loaned);
        counters.set(Plain::BudgetBytes, stats.budget_bytes);
        counters.set(Plain::ListenersFailing, stats.listeners_failing);
        self.published = stats;
    }
}

impl Handler for Events {
    fn accepted(&mut self, listener: Tag, stream: Stream) {
        acceptor::accepted(&self.worker, stream, ListenerId::from_bits(listener.key));
    }

    fn parked_ready(&mut self, _stream: Stream, tag: Tag) {
        match tag.kind {
            tags::SESSION => table::woken(&self.worker, tag.key),
            tags::POOLED => {
                if let Some(upstream) = self.worker.upstreams.by_id((tag.key >> 48) as u16) {
                    upstream.woken(PoolKey::from_bits(tag.key));
                }
            }
            _ => {}
        }
    }

    fn timer(&mut self, tag: Tag) {
        match tag.kind {
            tags::SESSION => table::timed_out(&self.worker, tag.key),
            tags::POOL_TIMER => {
                if let Some(upstream) = self.worker.upstreams.by_id(tag.key as u16) {
                    upstream.expire();
                }
            }
            tags::CROWD => crowd::timed_out(&self.worker),
            // A drain's deadline only has to wake the loop.
            _ => {}
        }
    }

    fn command_ready(&mut self) {
        self.commands_wait = true;
    }

    fn before_sleep(&mut self) {
        if self.woke.take().is_some_and(|woke| clock().since(woke) > self.stuck_after) {
            self.worker.counters.increment(Plain::Stuck);
        }
        self.worker.handshakes.begin_turn();
        let load = self.worker.sessions.open();
        if load != self.load {
            self.load = load;
            self.steering.load(u32::try_from(load).unwrap_or(u32::MAX));
        }
        self.steering.sleeping();
    }

    fn after_wake(&mut self, now: Time) {
        self.woke = Some(now);
        self.steering.running(now);
    }

    fn listener_failed(&mut self, _listener: Tag) {
        // The supervisor says which in the log, and has it listen again.
        self.worker.counters.increment(Plain::AcceptFailures);
    }

    fn accept_failed(&mut self, errno: i32) {
        acceptor::failed(&self.worker, errno);
    }
}

/// Reads CLOCK_MONOTONIC. The engine's `now` stands still within a turn, and here the length of a turn is
/// measured.
fn clock() -> Time {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or_else(
        |_| Time::default(),
        |now| Time::from_nanos(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64),
    )
}
