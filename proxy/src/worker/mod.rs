//! A worker: one pinned thread with one ring, its sessions and its pools. This file starts it and turns its
//! loop. `events` hands each event of the engine to the code that it is for, `acceptor` admits connections,
//! and `drain` ends the worker.

mod acceptor;
#[cfg(test)]
pub(crate) mod checks;
pub mod drain;
pub mod events;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use self::drain::Phase;
use self::events::Events;
use crate::LINUX_MIN;
use crate::access_log::AccessSender;
use crate::control::commands::CommandReceiver;
use crate::control::slots::SteeringSlot;
use crate::counters::Counters;
use crate::io::ring::KernelRing;
use crate::io::seam::Ring;
use crate::io::token::SLOTS_MAX;
use crate::io::{self, Engine, Settings, Tag, tags};
use crate::listen::sources::Sources;
use crate::listen::{ListenKey, ListenerId};
use crate::placement;
use crate::session::context::Worker;
use crate::session::traffic::Traffic;

/// Everything a worker thread needs; made by the data plane's start, moved to the thread.
#[derive(Debug)]
pub struct WorkerSeed {
    /// The number of the worker, from 0.
    pub index: usize,
    /// The logical CPU to pin to; `None`: not pinned.
    pub cpu: Option<usize>,
    /// The NUMA node to bind memory to; `None`: not bound.
    pub node: Option<usize>,
    /// This worker's own listening sockets.
    pub listeners: Vec<(ListenKey, OwnedFd)>,
    /// The current configuration; each exchange takes the version that is current when it starts.
    pub traffic: Arc<ArcSwap<Traffic>>,
    /// The size of its ring.
    pub ring: io::settings::Ring,
    /// `process.buffer_budget`, in bytes.
    pub buffer_budget: usize,
    /// A loop turn longer than this gets no new flows.
    pub stuck_after: Duration,
    /// This worker's counter block.
    pub counters: Counters,
    /// This worker's line in the steering array. Without a steering program nothing steers by it, but the
    /// worker's state can be read from it.
    pub steering: SteeringSlot,
    /// The commands to drain and to stop.
    pub commands: CommandReceiver,
    /// Downstream connections this worker may hold.
    pub connections_max: usize,
    /// Where entries of the access log go; `None` while the log is off.
    pub access: Option<AccessSender>,
    /// Shared by all workers: limits the connections of each source, where the kernel side does not.
    pub sources: Option<Arc<Sources>>,
}

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The ring could not be made.
    #[error("io_uring: {reason}{advice}", reason = .0, advice = advice(.0))]
    Ring(std::io::Error),
}

/// The advice that an operator gets with the error.
fn advice(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            "; the locked memory that this user may have is used up, by rings of its other processes too: \
             LimitMEMLOCK=infinity, fewer workers, or a smaller ring.entries"
                .into()
        }
        Some(libc::EPERM | libc::ENOSYS) => {
            "; forbidden here: kernel.io_uring_disabled, or a container's seccomp profile".into()
        }
        Some(libc::EINVAL) => format!("; this kernel is too old: it takes Linux {LINUX_MIN}"),
        _ => String::new(),
    }
}

/// A worker on its own thread, with its ring, that serves nobody yet.
#[derive(Debug)]
pub struct Prepared {
    seed: WorkerSeed,
    ring: KernelRing,
}

impl Prepared {
    /// Places the calling thread and makes its ring.
    ///
    /// # Errors
    /// When the ring cannot be made.
    pub fn new(seed: WorkerSeed) -> Result<Self, WorkerError> {
        place(&seed);
        let ring = KernelRing::new(seed.ring, seed.buffer_budget).map_err(WorkerError::Ring)?;
        Ok(Self { seed, ring })
    }

    /// Runs the worker until it is told to stop. Reports readiness through `ready` once its accepts are
    /// armed; marking the steering slot live is up to `ready`.
    ///
    /// # Errors
    /// When a loop turn's enter fails for a reason that no later turn would mend.
    pub fn run(self, ready: impl FnOnce()) -> Result<(), WorkerError> {
        let Self { seed, ring } = self;
        let mut engine = Engine::new(ring, engine_settings(seed.connections_max));
        let worker = Worker::new(engine.io(), seed.counters, seed.traffic, seed.connections_max, seed.access);
        if let Some(sources) = seed.sources {
            worker.sessions.limit_sources(sources);
        }
        let mut events = Events::new(worker, seed.steering, seed.stuck_after);
        engine.watch(&seed.commands).map_err(WorkerError::Ring)?;
        for (key, socket) in seed.listeners {
            engine.add_listener(socket, listener_tag(key.listener));
        }
        ready();
        serve(&mut engine, &mut events, &seed.commands).map_err(WorkerError::Ring)
    }
}

/// How the engine names the listener of a socket to `Events`.
#[must_use]
pub const fn listener_tag(listener: ListenerId) -> Tag {
    Tag { kind: tags::LISTENER, key: listener.to_bits() }
}

/// A proxied connection takes a stream on each side. Connections that are closing take streams beside them.
fn engine_settings(connections_max: usize) -> Settings {
    let streams_max = connections_max.saturating_mul(2).saturating_add(1024).min(SLOTS_MAX);
    Settings { streams_max, ..Settings::default() }
}

/// Turns the loop until the worker is done.
fn serve<R: Ring>(
    engine: &mut Engine<R>,
    events: &mut Events,
    commands: &CommandReceiver,
) -> std::io::Result<()> {
    let worker = Rc::clone(events.worker());
    let mut phase = Phase::Serving;
    loop {
        engine.turn(events)?;
        events.publish(engine.stats());
        if events.take_commands() {
            // The wake may be for a new configuration, which an idle worker would not look at otherwise.
            drop(worker.snapshot());
            while let Some(command) = commands.try_next() {
                phase.obey(command, &worker, engine, events.steering());
            }
        }
        if phase.advance(&worker, engine) {
            return Ok(());
        }
    }
}

/// Pins the worker and binds its memory. A worker that cannot be placed serves all the same, only slower; the
/// supervisor has warned of it from the plan.
fn place(seed: &WorkerSeed) {
    if let Some(cpu) = seed.cpu
        && let Err(error) = placement::pin_current(cpu)
    {
        tracing::warn!(worker = seed.index, %error, "worker is not pinned");
    }
    if let Some(node) = seed.node
        && let Err(error) = placement::bind_memory_current_thread(node)
    {
        tracing::warn!(worker = seed.index, %error, "worker's memory is not bound");
    }
}
