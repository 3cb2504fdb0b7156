//! What the supervisor owns and every data plane gets: the files' bytes, listening sockets, counters, eBPF programs and maps. Made
//! once at the start; `auto` goes on without what this host lacks and says so, an explicit demand stops here.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::net::if_::if_nametoindex;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_common::steer::WORKERS_MAX;
use tracing::{info, warn};

use crate::config::Loaded;
use crate::config::model::{Config, GuardMode, SteeringPolicy};
use crate::control::messages::{Address, Item, PROTOCOL, Place, Start};
use crate::control::sealed;
use crate::control::shared::CountersMemory;
use crate::control::status::{GuardStatus, SteeringStatus};
use crate::kernel::{KernelError, Programs, XdpMode};
use crate::listen::sockets::{self, BindError, Bound};
use crate::supervisor::privileges::{self, Identity, UserError};
use crate::supervisor::topology::{self, Host, Topology, TopologyError};

/// The half of the steering array that belongs to these sockets. A data plane that replaces a dead one takes the same half over, since the
/// sockets stay where they are.
pub const SLOT_GENERATION: u32 = 1;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum EstateError {
    /// An address is not ours to listen on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No such user.
    #[error(transparent)]
    User(#[from] UserError),
    /// The CPUs do not fit.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// An explicit demand on the kernel side.
    #[error("{0}; with guard.mode = \"auto\" Sluice would go on without XDP")]
    Demand(KernelError),
    /// A named interface that is not there.
    #[error("guard.interfaces: there is no interface \"{name}\"; this host has {existing}")]
    Interface {
        /// As configured.
        name: String,
        /// What there is.
        existing: String,
    },
    /// More workers than the steering array has lines.
    #[error("{0} workers; {WORKERS_MAX} at most")]
    Workers(usize),
    /// The kernel refused memory or a descriptor.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
}

/// All of it.
#[derive(Debug)]
pub struct Estate {
    /// The resolved configuration.
    pub config: Config,
    /// Sealed, by path; the main file first.
    files: Vec<(PathBuf, OwnedFd)>,
    topology: Topology,
    /// Index = address, as in `Start::addresses`.
    bound: Vec<Bound>,
    admin: Option<(SocketAddr, OwnedFd)>,
    /// They outlive every data plane.
    pub counters: CountersMemory,
    programs: Option<Programs>,
    guarded: BTreeMap<String, String>,
    /// Whom the data plane becomes; `None`: it stays whom we are.
    pub identity: Option<Identity>,
    /// What `auto` went on without, each with what it costs.
    pub degraded: Vec<String>,
}

impl Estate {
    /// Binds, loads and attaches.
    ///
    /// # Errors
    /// What cannot be had and was demanded. Nothing stays attached or bound then.
    pub fn claim(loaded: Loaded) -> Result<Self, EstateError> {
        let Loaded { config, files, .. } = loaded;
        let mut degraded = Vec::new();
        let identity = privileges::identity(&config.process.user)?;
        if identity.is_none() {
            let uid = nix::unistd::Uid::effective();
            degraded.push(format!("not started as root: the data plane stays uid {uid} instead of becoming process.user \"{}\"", config.process.user));
        }
        check_interfaces(&config)?;
        raise_descriptor_limit();
        let topology = topology::choose(&config.workers, &Host::read()?)?;
        topology.notes.iter().for_each(|note| info!("{note}"));
        let workers = topology.workers.len();
        if workers > WORKERS_MAX as usize {
            return Err(EstateError::Workers(workers));
        }
        let bound = sockets::bind_all(&config.listeners, workers)?;
        for bound in &bound {
            info!(listener = config.listeners[bound.listener].name, address = %bound.address, "listening");
        }
        let admin = config.admin.address.map(sockets::bind_admin).transpose()?;
        let files = seal_files(files)?;
        let counters = CountersMemory::create(workers).map_err(|error| EstateError::Io("counters", error))?;
        let mut estate = Self {
            config,
            files,
            topology,
            bound,
            admin,
            counters,
            programs: None,
            guarded: BTreeMap::new(),
            identity,
            degraded,
        };
        estate.load_programs()?;
        estate.degraded.iter().for_each(|lack| warn!("going on without: {lack}"));
        Ok(estate)
    }

    /// Steering, and the guard where interfaces are named.
    fn load_programs(&mut self) -> Result<(), EstateError> {
        let demanded = !self.config.guard.interfaces.is_empty() && self.config.guard.mode != GuardMode::Auto;
        let mut programs = match Programs::load() {
            Ok(programs) => programs,
            Err(error) if demanded => return Err(EstateError::Demand(error)),
            Err(error) => {
                self.degraded.push(format!("steering: the kernel's hash chooses the worker ({error})"));
                if !self.config.guard.interfaces.is_empty() {
                    self.degraded.push(format!("guard: no packet is judged before the kernel handles it ({error})"));
                }
                return Ok(());
            }
        };
        if let Err(error) = self.steer(&mut programs) {
            self.degraded.push(format!("steering: the kernel's hash chooses the worker of some or all flows ({error})"));
        }
        self.guard(&mut programs)?;
        self.programs = Some(programs);
        Ok(())
    }

    fn steer(&self, programs: &mut Programs) -> Result<(), KernelError> {
        programs.apply_steering(self.config.steering, self.config.workers.stuck_after)?;
        for bound in &self.bound {
            let sockets: Vec<BorrowedFd<'_>> = bound.sockets.iter().map(AsFd::as_fd).collect();
            programs.steer(bound.address, SLOT_GENERATION, &sockets)?;
        }
        Ok(())
    }

    fn guard(&mut self, programs: &mut Programs) -> Result<(), EstateError> {
        let guard = &self.config.guard;
        if guard.interfaces.is_empty() {
            return Ok(());
        }
        let addresses: Vec<SocketAddr> = self.bound.iter().map(|bound| bound.address).collect();
        // The rules first: a program without them would judge by nothing.
        let applied = programs.apply_guard(guard, &addresses);
        for interface in &guard.interfaces {
            let attached = match &applied {
                Ok(()) => programs.attach_guard(interface, guard.mode).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match attached {
                Ok(mode) => {
                    info!(interface, mode = mode.label(), "XDP attached");
                    if mode == XdpMode::Generic && guard.mode == GuardMode::Auto {
                        info!(interface, "the driver takes no XDP: generic mode judges packets after the kernel allocated them");
                    }
                    self.guarded.insert(interface.clone(), mode.label().into());
                }
                Err(reason) if guard.mode == GuardMode::Auto => {
                    self.degraded.push(format!("guard: packets on {interface} reach the kernel unjudged ({reason})"));
                }
                Err(reason) => {
                    return Err(EstateError::Demand(KernelError::Attach { interface: interface.clone(), reason }));
                }
            }
        }
        Ok(())
    }

    /// What a data plane is told first, and everything that is handed over after.
    #[must_use]
    pub fn handoff(&self, generation: u32) -> (Start, Vec<Item>) {
        let mut items: Vec<Item> = self.files.iter().map(|(path, _)| Item::File { path: path.clone() }).collect();
        items.push(Item::Counters);
        items.extend(self.programs.as_ref().map(|_| Item::Slots));
        items.extend(self.admin.as_ref().map(|_| Item::Admin));
        let workers = self.topology.workers.len();
        items.extend((0..workers).flat_map(|worker| (0..self.bound.len()).map(move |address| Item::Listener { worker, address })));
        let place = |place: &topology::Placement| Place { cpu: place.cpu, node: place.node, memory_node: place.memory_node };
        let start = Start {
            protocol: PROTOCOL,
            generation,
            slot_generation: SLOT_GENERATION,
            log_level: self.config.log.level.clone(),
            batches: 0,
            descriptors: u32::try_from(items.len()).unwrap_or(u32::MAX),
            workers: self.topology.workers.iter().map(place).collect(),
            control_cpus: self.topology.control_cpus.clone(),
            addresses: self.bound.iter().map(|bound| Address { listener: bound.listener, address: bound.address }).collect(),
        };
        (start, items)
    }

    /// The descriptor that an item names; `None` when there is none, which `handoff` excludes.
    #[must_use]
    pub fn descriptor(&self, item: &Item) -> Option<BorrowedFd<'_>> {
        match item {
            Item::File { path } => self.files.iter().find(|(known, _)| known == path).map(|(_, fd)| fd.as_fd()),
            Item::Listener { worker, address } => self.bound.get(*address)?.sockets.get(*worker).map(AsFd::as_fd),
            Item::Admin => self.admin.as_ref().map(|(_, fd)| fd.as_fd()),
            Item::Counters => Some(self.counters.fd()),
            Item::Slots => self.programs.as_ref().map(Programs::slots),
        }
    }

    /// A data plane is dead: nothing it published may steer or be shown any more.
    pub fn clear(&mut self) {
        if let Some(programs) = &mut self.programs
            && let Err(error) = programs.clear_slots(SLOT_GENERATION)
        {
            warn!("steering slots of the dead data plane stay: {error}");
        }
        self.counters.blocks().for_each(|block| block.reset_gauges());
    }

    /// New clients are refused from now on.
    pub fn retire(&self) {
        sockets::retire(&self.bound);
    }

    /// The guard, for the status.
    #[must_use]
    pub fn guard_status(&self) -> GuardStatus {
        let verdicts = self.programs.as_ref().filter(|_| !self.guarded.is_empty()).and_then(|programs| programs.verdicts().ok());
        GuardStatus { interfaces: self.guarded.clone(), dry_run: self.config.guard.dry_run, verdicts: verdicts.unwrap_or_default() }
    }

    /// Steering, for the status.
    #[must_use]
    pub fn steering_status(&self) -> SteeringStatus {
        let Some(programs) = &self.programs else {
            return SteeringStatus { policy: "kernel-hash".into(), ..SteeringStatus::default() };
        };
        let (slots, fallback) = programs.steered().unwrap_or_default();
        let mut selected = BTreeMap::new();
        for (slot, flows) in slots {
            *selected.entry(slot % WORKERS_MAX).or_default() += flows;
        }
        let policy = match self.config.steering.policy {
            SteeringPolicy::LeastLoaded => "least-loaded",
            SteeringPolicy::NumaLocal => "numa-local",
            SteeringPolicy::Hash => "hash",
        };
        SteeringStatus { policy: policy.into(), selected, fallback }
    }
}

/// A name that is not there is a mistake in every mode.
fn check_interfaces(config: &Config) -> Result<(), EstateError> {
    for name in &config.guard.interfaces {
        if if_nametoindex(name.as_str()).is_err() {
            let interfaces = nix::net::if_::if_nameindex();
            let names = interfaces.iter().flat_map(|list| list.iter()).map(|one| one.name().to_string_lossy().into_owned());
            let existing = names.collect::<Vec<_>>().join(", ");
            return Err(EstateError::Interface { name: name.clone(), existing });
        }
    }
    Ok(())
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

fn seal_files(files: Vec<(PathBuf, Vec<u8>)>) -> Result<Vec<(PathBuf, OwnedFd)>, EstateError> {
    let seal = |(path, bytes): (PathBuf, Vec<u8>)| Ok((path, sealed::seal("sluice-config", &bytes)?));
    files.into_iter().map(seal).collect::<io::Result<_>>().map_err(|error| EstateError::Io("memfd", error))
}
