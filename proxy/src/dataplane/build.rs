//! Builds a data plane from a handoff: the control thread's side, and a seed for each worker.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use arc_swap::ArcSwap;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::control_thread::QUESTIONS_MAX;
use super::view::{Question, View, Watched};
use super::{DataPlaneError, receive, tickets};
use crate::access_log::{AccessLog, AccessSender};
use crate::config::model::Config;
use crate::control::batches::Handoff;
use crate::control::commands::{self, CommandReceiver, CommandSender};
use crate::control::messages::{Place, Start};
use crate::control::slots::{SteeringSlot, SteeringSlots};
use crate::counters::{Counters, CountersMemory};
use crate::listen::ListenKey;
use crate::listen::sources::Sources;
use crate::session::traffic::Traffic;
use crate::tls::tickets::Keys;
use crate::worker::WorkerSeed;

/// The control thread's side of everything.
pub(super) struct Plane {
    pub(super) view: Arc<View>,
    pub(super) commands: Vec<CommandSender>,
    pub(super) questions: mpsc::Receiver<Question>,
    pub(super) admin: Option<OwnedFd>,
    pub(super) access_log: Option<AccessLog>,
    pub(super) ticket_keys: Arc<Keys>,
}

/// A seed for each worker, with its place.
pub(super) type Seeds = Vec<(Place, WorkerSeed)>;

/// Opens and compiles all that was handed over. Starts the log thread; the workers are up to the caller.
pub(super) fn build(handoff: Handoff) -> Result<(Plane, Seeds), DataPlaneError> {
    let Handoff { start, files, listeners, admin, counters, slots, access_log, ticket_keys, key_log: _ } =
        handoff;
    let config = Arc::new(receive::configuration(files)?);
    if let Some(admin) = &admin {
        // For tokio, and now: the filter of system calls forbids it.
        let set = fcntl(admin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        set.map_err(|errno| DataPlaneError::Io("admin listener", errno.into()))?;
    }
    let ticket_keys = tickets::read(ticket_keys)?;
    tickets::install(&config, &ticket_keys);
    let workers = start.workers.len();
    let connections_max = connections_per_worker(&config, workers);
    info!(generation = start.generation, workers, connections_max, "data plane starts");
    let memory = SharedMemory::open(counters, slots, &start)?;
    let invalid = |error| DataPlaneError::Io("handoff", io::Error::new(io::ErrorKind::InvalidData, error));
    let traffic = config.traffic(&start.listeners).map_err(|error| invalid(error.to_string()))?;
    if start.addresses.iter().any(|key| traffic.listeners.get(key.listener).is_none()) {
        return Err(invalid("a socket of a listener that is not there".to_owned()));
    }
    let access_log =
        access_log.map(|file| AccessLog::start(file, workers, config.log.with_query)).transpose();
    let (access_log, senders) = access_log.map_err(|error| DataPlaneError::Io("access log", error))?.unzip();
    let mut senders = senders.into_iter().flatten();
    let common = Common {
        sources: limit_of_sources(&config, connections_max.saturating_mul(workers)),
        traffic: Arc::new(ArcSwap::from_pointee(traffic)),
        config: &config,
        connections_max,
    };
    let (mut seeds, mut commands, mut watched) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (sockets, place)) in listeners.into_iter().zip(&start.workers).enumerate() {
        let (sender, receiver) = commands::channel().map_err(|error| DataPlaneError::Io("eventfd", error))?;
        let own = memory.of(index)?;
        commands.push(sender);
        watched.push(Watched {
            place: *place,
            counters: own.0.clone(),
            slot: own.1.clone(),
            ended: AtomicBool::new(false),
        });
        let seed = common.seed((index, place), sockets, own, receiver, senders.next());
        seeds.push((*place, seed));
    }
    let traffic = common.traffic;
    let (sender, questions) = mpsc::channel(QUESTIONS_MAX);
    let view = View {
        snapshot: AtomicU64::new(start.snapshot),
        start,
        config: ArcSwap::new(config),
        traffic,
        workers: watched,
        ready: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        lacks: ArcSwap::default(),
        questions: sender,
    };
    Ok((Plane { view: Arc::new(view), commands, questions, admin, access_log, ticket_keys }, seeds))
}

/// The memory that workers write and others read: counters, and the lines of the steering array.
struct SharedMemory {
    counters: CountersMemory,
    slots: SteeringSlots,
    slot_generation: u32,
}

impl SharedMemory {
    /// Maps it.
    fn open(counters: OwnedFd, slots: OwnedFd, start: &Start) -> Result<Self, DataPlaneError> {
        let counters = CountersMemory::open(counters, start.workers.len())
            .map_err(|error| DataPlaneError::Io("counters", error))?;
        let slots = SteeringSlots::map(slots).map_err(|error| DataPlaneError::Io("steering slots", error))?;
        Ok(Self { counters, slots, slot_generation: start.slot_generation })
    }

    /// A worker's own part.
    fn of(&self, worker: usize) -> Result<(Counters, SteeringSlot), DataPlaneError> {
        let slot = self.slots.slot(self.slot_generation, worker);
        let own = self.counters.block(worker).zip(slot);
        own.ok_or_else(|| DataPlaneError::Io("shared memory", io::ErrorKind::InvalidInput.into()))
    }
}

/// The parts that all workers have in common.
struct Common<'a> {
    config: &'a Config,
    traffic: Arc<ArcSwap<Traffic>>,
    connections_max: usize,
    sources: Option<Arc<Sources>>,
}

impl Common<'_> {
    fn seed(
        &self,
        (index, place): (usize, &Place),
        listeners: Vec<(ListenKey, OwnedFd)>,
        (counters, steering): (Counters, SteeringSlot),
        commands: CommandReceiver,
        access: Option<AccessSender>,
    ) -> WorkerSeed {
        WorkerSeed {
            index,
            cpu: Some(place.cpu),
            node: place.memory_node,
            listeners,
            traffic: Arc::clone(&self.traffic),
            ring: self.config.ring,
            buffer_budget: self.config.process.buffer_budget,
            stuck_after: self.config.workers.stuck_after,
            counters,
            steering,
            commands,
            connections_max: self.connections_max,
            access,
            sources: self.sources.clone(),
        }
    }
}

/// Connections per source. Beside a guarded interface this limit counts what reached accept: over another
/// interface, by loopback, or for a client that a PROXY header names.
fn limit_of_sources(config: &Config, connections_max: usize) -> Option<Arc<Sources>> {
    let guard = &config.guard;
    let limit = guard.connections_per_ip?;
    let random = RandomState::new();
    let seeds = std::array::from_fn(|row| random.hash_one(row));
    Some(Arc::new(Sources::new(limit, connections_max, &guard.allow, guard.dry_run, seeds)))
}

/// Its share of the connections that the descriptor limit or `process.max_connections` allows.
fn connections_per_worker(config: &Config, workers: usize) -> usize {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    let all = config.capacity(workers).connections_max(descriptors);
    if config.process.max_connections > all {
        warn!(
            "process.max_connections = {}, but {descriptors} descriptors only allow {all}",
            config.process.max_connections
        );
    }
    // Rounded up, so that every allowed connection has a place; one at least, or the worker would serve
    // nobody.
    usize::try_from(all.div_ceil(workers as u64)).unwrap_or(usize::MAX).max(1)
}
