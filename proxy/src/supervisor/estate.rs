//! Everything that the supervisor owns and every data plane gets: the files' bytes, listening sockets,
//! counters, eBPF programs and maps. It is made once at the start. If this host lacks something, `auto` goes
//! on without it and says so; an explicit demand stops the start.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_common::steer::WORKERS_MAX;
use tracing::{error, info, warn};

use crate::config::model::Config;
use crate::config::{Bytes, Loaded};
use crate::control::life::SLOT_GENERATION;
use crate::control::messages::{Item, PROTOCOL, Place, Start};
use crate::control::sealed::SealedError;
use crate::control::slots::{SteeringSlot, SteeringSlots};
use crate::control::{now, sealed};
use crate::counters::CountersMemory;
use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, explain_shortage};
use crate::folder::Folder;
use crate::kernel::guard::pins::{PinError, Pins};
use crate::kernel::{KernelError, Programs, Sysctls};
use crate::listen::sockets::{self, BindError, Bound};
use crate::listen::{ListenKey, ListenerIds, Listeners};
use crate::sandbox::root::EmptyFolder;
use crate::sandbox::{Lack, Layer, Layers, Sandbox};
use crate::supervisor::destinations::Destinations;
use crate::supervisor::key_log::KeyLog;
use crate::supervisor::logs;
use crate::supervisor::privileges::{self, Fate, Identity, UserError};
use crate::supervisor::sentry::Sentry;
use crate::supervisor::tickets::TicketRing;
use crate::supervisor::topology::{self, Host, Topology, TopologyError};

mod connects;
mod guarding;
mod listeners;
mod programs;

use self::guarding::Guarding;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum EstateError {
    /// An address is not ours to listen on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No such user, or none that the data plane can become.
    #[error(transparent)]
    User(#[from] UserError),
    /// The CPUs do not fit.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// An explicit demand on the kernel side.
    #[error("{0}; with guard.mode = \"auto\" Sluice would go on without XDP")]
    Demand(KernelError),
    /// One instance per interface.
    #[error("{0}")]
    Held(String),
    /// Another instance has our name.
    #[error(transparent)]
    Pins(PinError),
    /// A named interface that is not there.
    #[error("guard.interfaces: there is no interface \"{name}\" now; this host has {existing}")]
    Interface {
        /// As configured.
        name: String,
        /// The interfaces that exist.
        existing: String,
    },
    /// An interface whose packets the guard cannot read.
    #[error("guard.interfaces: {name}: {reason}")]
    Frames {
        /// As configured.
        name: String,
        /// The reason, and the remedy.
        reason: String,
    },
    /// A layer of the sandbox that was demanded.
    #[error("process.sandbox = \"require\": {0}; with \"auto\" Sluice would go on without")]
    Sandbox(Lack),
    /// More workers than the steering array has lines.
    #[error("{0} workers; {WORKERS_MAX} at most")]
    Workers(usize),
    /// The access log.
    #[error(transparent)]
    Log(#[from] logs::OpenError),
    /// The kernel refused memory or a descriptor.
    #[error("{what}: {why}", what = .0, why = explain_shortage(.1))]
    Io(&'static str, io::Error),
}

/// Downstream connections, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Open now.
    pub open: u64,
    /// Ended for another reason than a stop.
    pub ended: u64,
    /// Cut by a stop or at a drain's end.
    pub cut: u64,
}

/// A file of the configuration, as it was read.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Its path.
    pub path: PathBuf,
    /// A sealed memfd.
    pub fd: Arc<OwnedFd>,
}

impl Sealed {
    /// Seals a file's bytes.
    ///
    /// # Errors
    /// When the kernel refuses memory or a descriptor.
    pub fn new((path, bytes): &(PathBuf, Bytes)) -> io::Result<Self> {
        Ok(Self { path: path.clone(), fd: Arc::new(sealed::seal("sluice-config", bytes)?) })
    }
}

/// All of it.
#[derive(Debug)]
pub struct Estate {
    /// The resolved configuration.
    pub config: Config,
    /// Counts configurations that were in force, from 1.
    pub snapshot: u64,
    /// The main file first.
    files: Vec<Sealed>,
    topology: Topology,
    /// Of `config`.
    pub listeners: ListenerIds,
    bound: Vec<Bound>,
    admin: Option<(SocketAddr, OwnedFd)>,
    /// Over all of these sockets.
    sentry: Sentry,
    /// They were shut down for good.
    is_retired: bool,
    /// The data plane that lives has shut some of them down.
    are_suspect: bool,
    /// Listening sockets that were shut down by somebody else, and mended.
    pub listeners_restored: u64,
    /// They outlive every data plane.
    pub counters: CountersMemory,
    programs: Option<Programs>,
    /// Where the workers publish their states: the steering program's array, if there is one.
    slots: SteeringSlots,
    /// The kernel's settings as they were: given back after the programs that need the new ones are gone.
    sysctls: Sysctls,
    /// The data plane's user; `None`: it keeps ours.
    pub identity: Option<Identity>,
    /// The layers that confine the data plane.
    pub sandbox: Layers,
    /// Where data planes may connect to.
    destinations: Destinations,
    /// Where the data plane starts, and stays if the sandbox has an empty root.
    pub empty: Option<EmptyFolder>,
    /// Where the access log goes; `None` while it is off.
    access_log: Option<OwnedFd>,
    /// Of session tickets.
    pub ticket_keys: TicketRing,
    /// Where secrets of handshakes go; `None`: nowhere.
    pub key_log: Option<KeyLog>,
    /// Lacks that `auto` went on with at the start, each with its cost. `lacks` has those of the guard too.
    degraded: Vec<String>,
    guarding: Guarding,
}

impl Estate {
    /// Binds, loads and attaches. `run_dir` keeps what the next start has to know after a crash.
    ///
    /// # Errors
    /// A demand that cannot be met. Nothing stays attached or bound then.
    pub fn claim(loaded: Loaded, run_dir: &Folder) -> Result<Self, EstateError> {
        let Loaded { config, files, .. } = loaded;
        let mut degraded = Vec::new();
        let identity = identify(&config, &mut degraded)?;
        let (mut sandbox, empty) = confine(&config, run_dir, &mut degraded)?;
        programs::check_interfaces(&config)?;
        raise_descriptor_limit();
        let access_log = logs::open(&config.log.access)?;
        let topology = topology::choose(&config.workers, &Host::read()?)?;
        topology.notes.iter().for_each(|note| info!("{note}"));
        let workers = topology.workers.len();
        if workers > WORKERS_MAX as usize {
            return Err(EstateError::Workers(workers));
        }
        let mut programs = programs::load(&config, &mut degraded)?;
        let mut sysctls = Sysctls::new(run_dir.clone());
        if let Some(programs) = &mut programs {
            programs::use_cookies(&config, programs, &mut sysctls, &mut degraded);
            programs::count_connections(&config, programs, &mut degraded);
        }
        // Sockets belong to the cgroup that they are made in, so before the first of them.
        connects::judge(&config, programs.as_mut(), &mut sandbox, &mut degraded)?;
        let (numbered, listeners) = Listeners::number(&config.listeners, &ListenerIds::default());
        let bound = sockets::bind_all(&numbered, workers)?;
        for Bound { key, .. } in &bound {
            info!(listener = listeners.name(key.listener), address = %key.address, "listening");
        }
        let admin = config.admin.address.map(sockets::bind_admin).transpose()?;
        let sentry = Sentry::new().map_err(|error| EstateError::Io("epoll", error.into()))?;
        let files = files
            .iter()
            .map(Sealed::new)
            .collect::<io::Result<_>>()
            .map_err(|error| EstateError::Io("memfd", error))?;
        let counters = CountersMemory::create(workers).map_err(|error| EstateError::Io("counters", error))?;
        let slots = steering_slots(programs.as_ref())?;
        let ticket_keys =
            TicketRing::new(now()).map_err(|error| EstateError::Io("keys of session tickets", error))?;
        let mut estate = Self {
            destinations: Destinations::new(config.destinations().collect()),
            config,
            snapshot: 1,
            files,
            topology,
            listeners,
            bound,
            admin,
            sentry,
            is_retired: false,
            are_suspect: false,
            listeners_restored: 0,
            counters,
            programs: None,
            slots,
            sysctls,
            identity,
            sandbox,
            empty,
            access_log,
            ticket_keys,
            key_log: None,
            degraded,
            guarding: Guarding::default(),
        };
        if let Some(programs) = programs {
            estate.apply(programs)?;
        }
        estate.lacks().iter().for_each(|lack| warn!("going on without: {lack}"));
        Ok(estate)
    }

    /// This configuration is in force from now on: every data plane that starts gets it. It has the listeners
    /// of the one before.
    pub fn adopt(&mut self, config: Config, listeners: ListenerIds, files: Vec<Sealed>) {
        self.destinations.adopt(self.snapshot, now());
        let is_guard_same = config.guard == self.config.guard;
        self.config = config;
        self.listeners = listeners;
        self.snapshot += 1;
        self.adopt_files(files);
        if !is_guard_same {
            self.follow_guard();
        }
    }

    /// Other files that say the same.
    pub fn adopt_files(&mut self, files: Vec<Sealed>) {
        self.files = files;
    }

    /// The bytes of the configuration in force, the main file first.
    ///
    /// # Errors
    /// When there is no descriptor or memory left.
    pub fn files_in_force(&self) -> Result<Vec<(PathBuf, Bytes)>, SealedError> {
        let read = |file: &Sealed| {
            Ok((file.path.clone(), Bytes::new(sealed::open(file.fd.try_clone()?, sealed::BYTES_MAX)?)))
        };
        self.files.iter().map(read).collect()
    }

    /// The first message to a data plane, and everything that is handed over after it.
    #[must_use]
    pub fn handoff(&self, generation: u32) -> (Start, Vec<Item>) {
        let mut items: Vec<Item> =
            self.files.iter().map(|file| Item::File { path: file.path.clone() }).collect();
        items.extend([Item::Counters, Item::TicketKeys, Item::Slots]);
        items.extend(self.admin.as_ref().map(|_| Item::Admin));
        items.extend(self.access_log.as_ref().map(|_| Item::AccessLog));
        items.extend(self.key_log.as_ref().map(|_| Item::KeyLog));
        let workers = self.topology.workers.len();
        let addresses: Vec<ListenKey> = self.bound.iter().map(|bound| bound.key).collect();
        items.extend(
            (0..workers).flat_map(|worker| addresses.iter().map(move |&key| Item::Listener { worker, key })),
        );
        let place = |place: &topology::Placement| Place {
            cpu: place.cpu,
            node: place.node,
            memory_node: place.memory_node,
        };
        let start = Start {
            protocol: PROTOCOL,
            generation,
            slot_generation: SLOT_GENERATION,
            snapshot: self.snapshot,
            log_level: self.config.log.level.clone(),
            log_look: logs::look(self.config.log.format),
            batches: 0,
            descriptors: u32::try_from(items.len()).unwrap_or(u32::MAX),
            workers: self.topology.workers.iter().map(place).collect(),
            control_cpus: self.topology.control_cpus.clone(),
            listeners: self.listeners.clone(),
            addresses,
        };
        (start, items)
    }

    /// The descriptor that an item names; `None` when there is none, which `handoff` excludes.
    #[must_use]
    pub fn descriptor(&self, item: &Item) -> Option<BorrowedFd<'_>> {
        match item {
            Item::File { path } => {
                self.files.iter().find(|file| file.path == *path).map(|file| file.fd.as_fd())
            }
            Item::Listener { worker, key } => {
                let bound = self.bound.iter().find(|bound| bound.key == *key)?;
                bound.sockets.get(*worker).map(AsFd::as_fd)
            }
            Item::Admin => self.admin.as_ref().map(|(_, fd)| fd.as_fd()),
            Item::Counters => Some(self.counters.fd()),
            Item::TicketKeys => Some(self.ticket_keys.fd()),
            Item::Slots => Some(self.slots.fd()),
            Item::AccessLog => self.access_log.as_ref().map(AsFd::as_fd),
            Item::KeyLog => self.key_log.as_ref().map(KeyLog::fd),
        }
    }

    /// Every bound address.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.bound.iter().map(|bound| bound.key.address)
    }

    /// Gives everything back: an end in order, after which nothing filters.
    pub fn release(self) {
        if let Some(programs) = self.programs
            && let Err(error) = programs.release()
        {
            error!("the filter stays: {error}");
        }
        // Leftovers of an earlier run that this one could not take over end here as well.
        if let Some(mut left) = Pins::find(&self.config.process.run_dir)
            && let Err(error) = left.remove()
        {
            error!("the filter that an earlier run left stays: {error}");
        }
    }

    /// A data plane is dead: nothing it published may steer or be shown any more.
    pub fn clear(&mut self) {
        match &mut self.programs {
            Some(programs) => {
                if let Err(error) = programs.steering.clear_slots(SLOT_GENERATION) {
                    warn!("steering slots of the dead data plane stay: {error}");
                }
            }
            None => self.worker_slots().for_each(|slot| slot.clear()),
        }
        self.release_destinations(self.snapshot);
        self.counters.renew();
    }

    /// Each worker's line in the steering array.
    pub fn worker_slots(&self) -> impl Iterator<Item = SteeringSlot> + '_ {
        let workers = 0..self.topology.workers.len();
        workers.filter_map(|worker| self.slots.slot(SLOT_GENERATION, worker))
    }

    /// Opens the access log anew, so that data planes write to the file that has its name now; `false`: it is
    /// off. On an error the open file stays.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn reopen_logs(&mut self) -> Result<bool, logs::OpenError> {
        let Some(opened) = logs::open(&self.config.log.access)? else { return Ok(false) };
        self.access_log = Some(opened);
        Ok(true)
    }

    /// Connections of all workers and data planes so far.
    #[must_use]
    pub fn connections(&self) -> Connections {
        // A data plane can write any number there.
        let sum = |values: &mut dyn Iterator<Item = u64>| values.fold(0, u64::saturating_add);
        let count = |counter: Counter| sum(&mut self.counters.blocks().map(|block| block.value(counter)));
        let closed = sum(&mut CloseReason::ALL.iter().map(|&reason| count(Counter::Closed(reason))));
        let cut = count(Counter::Closed(CloseReason::Stopped));
        Connections { open: count(Plain::Open.into()), ended: closed.saturating_sub(cut), cut }
    }

    /// New clients are refused from now on.
    pub fn retire(&mut self) {
        self.is_retired = true;
        sockets::retire(&self.bound);
    }
}

/// The steering program's array, or memory of its shape.
fn steering_slots(programs: Option<&Programs>) -> Result<SteeringSlots, EstateError> {
    let slots = match programs {
        Some(programs) => programs.steering.slots().try_clone_to_owned().and_then(SteeringSlots::map),
        None => SteeringSlots::create(),
    };
    slots.map_err(|error| EstateError::Io("steering slots", error))
}

/// Looks the data plane's user up.
fn identify(config: &Config, degraded: &mut Vec<String>) -> Result<Option<Identity>, UserError> {
    let fate = privileges::fate(&config.process.user)?;
    if let Fate::Keeps(why) = &fate {
        degraded.push(why.clone());
    }
    Ok(fate.identity())
}

/// Chooses the layers of the sandbox; an empty root also takes a folder.
fn confine(
    config: &Config,
    run_dir: &Folder,
    degraded: &mut Vec<String>,
) -> Result<(Layers, Option<EmptyFolder>), EstateError> {
    let (layers, lacks) = Layers::find(config.process.sandbox);
    for lack in lacks {
        if config.process.sandbox == Sandbox::Require {
            return Err(EstateError::Sandbox(lack));
        }
        degraded.push(lack.remark());
    }
    let empty = layers.has(Layer::Root).then(|| EmptyFolder::make(run_dir.path())).transpose();
    Ok((layers, empty.map_err(|error| EstateError::Io("an empty folder in run_dir", error))?))
}

/// One socket per worker and address may be more than the soft limit of 1024; the data plane raises its own.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Lowering nothing, so it cannot fail; were it to, bind says that descriptors are short.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

#[cfg(test)]
mod tests;
