//! Everything that the supervisor owns and every data plane gets: the files' bytes, listening sockets,
//! counters, eBPF programs and maps. It is made once at the start. If this host lacks something, `auto` goes
//! on without it and says so; an explicit demand stops the start.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::net::if_::if_nametoindex;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_common::steer::WORKERS_MAX;
use tracing::{error, info, warn};

use crate::config::model::Config;
use crate::config::{Bytes, Loaded};
use crate::control::messages::{Address, Item, PROTOCOL, Place, Start};
use crate::control::sealed::SealedError;
use crate::control::status::{GuardStatus, SteeringStatus};
use crate::control::{now, sealed};
use crate::counters::CountersMemory;
use crate::counters::{Counter, Plain};
use crate::error::CloseReason;
use crate::kernel::guard::GuardMode;
use crate::kernel::guard::pins::{PinError, Pins};
use crate::kernel::guard::{GuardProgram, XdpMode};
use crate::kernel::{KernelError, Programs, Sysctls};
use crate::listen::sockets::{self, BindError, Bound};
use crate::supervisor::key_log::KeyLog;
use crate::supervisor::leftovers;
use crate::supervisor::logs;
use crate::supervisor::privileges::{self, Identity, UserError};
use crate::supervisor::tickets::TicketRing;
use crate::supervisor::topology::{self, Host, Topology, TopologyError};
use crate::time::Time;

/// The half of the steering array that belongs to these sockets. A data plane that replaces a dead one takes
/// the same half over, since the sockets stay where they are.
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
    /// One instance per interface.
    #[error("{0}")]
    Held(String),
    /// Another instance has our name.
    #[error(transparent)]
    Pins(PinError),
    /// A named interface that is not there.
    #[error("guard.interfaces: there is no interface \"{name}\"; this host has {existing}")]
    Interface {
        /// As configured.
        name: String,
        /// The existing ones.
        existing: String,
    },
    /// More workers than the steering array has lines.
    #[error("{0} workers; {WORKERS_MAX} at most")]
    Workers(usize),
    /// The access log.
    #[error(transparent)]
    Log(#[from] logs::OpenError),
    /// The kernel refused memory or a descriptor.
    #[error("{0}: {1}")]
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
    /// Index = address, as in `Start::addresses`.
    bound: Vec<Bound>,
    admin: Option<(SocketAddr, OwnedFd)>,
    /// They outlive every data plane.
    pub counters: CountersMemory,
    programs: Option<Programs>,
    /// The kernel's settings as they were: given back after the programs that need the new ones are gone.
    #[expect(dead_code, reason = "restores when it is dropped")]
    sysctls: Sysctls,
    /// The data plane's user; `None`: it keeps ours.
    pub identity: Option<Identity>,
    /// Where the access log goes; `None` while it is off.
    access_log: Option<OwnedFd>,
    /// Of session tickets.
    pub ticket_keys: TicketRing,
    /// Where secrets of handshakes go; `None`: nowhere.
    pub key_log: Option<KeyLog>,
    /// Lacks that `auto` went on with, each with its cost.
    pub degraded: Vec<String>,
}

impl Estate {
    /// Binds, loads and attaches.
    ///
    /// # Errors
    /// A demand that cannot be met. Nothing stays attached or bound then.
    pub fn claim(loaded: Loaded) -> Result<Self, EstateError> {
        let Loaded { config, files, .. } = loaded;
        let mut degraded = Vec::new();
        let identity = privileges::identity(&config.process.user)?;
        if identity.is_none() {
            let uid = nix::unistd::Uid::effective();
            degraded.push(format!(
                "not started as root: the data plane stays uid {uid} instead of becoming process.user \"{}\"",
                config.process.user
            ));
        }
        check_interfaces(&config)?;
        raise_descriptor_limit();
        let access_log = logs::open(&config.log.access)?;
        let topology = topology::choose(&config.workers, &Host::read()?)?;
        topology.notes.iter().for_each(|note| info!("{note}"));
        let workers = topology.workers.len();
        if workers > WORKERS_MAX as usize {
            return Err(EstateError::Workers(workers));
        }
        let mut programs = load_programs(&config, &mut degraded)?;
        let mut sysctls = Sysctls::new(&config.process.run_dir);
        if let Some(programs) = &mut programs {
            use_cookies(&config, programs, &mut sysctls, &mut degraded);
            count_connections(&config, programs, &mut degraded);
        }
        let bound = sockets::bind_all(&config.listeners, workers)?;
        for bound in &bound {
            info!(listener = config.listeners[bound.listener].name, address = %bound.address, "listening");
        }
        let admin = config.admin.address.map(sockets::bind_admin).transpose()?;
        let files = files
            .iter()
            .map(Sealed::new)
            .collect::<io::Result<_>>()
            .map_err(|error| EstateError::Io("memfd", error))?;
        let counters = CountersMemory::create(workers).map_err(|error| EstateError::Io("counters", error))?;
        let ticket_keys =
            TicketRing::new(now()).map_err(|error| EstateError::Io("keys of session tickets", error))?;
        let mut estate = Self {
            config,
            snapshot: 1,
            files,
            topology,
            bound,
            admin,
            counters,
            programs: None,
            sysctls,
            identity,
            access_log,
            ticket_keys,
            key_log: None,
            degraded,
        };
        if let Some(programs) = programs {
            estate.apply(programs)?;
        }
        estate.degraded.iter().for_each(|lack| warn!("going on without: {lack}"));
        Ok(estate)
    }

    /// Steering, and the guard where interfaces are named.
    fn apply(&mut self, mut programs: Programs) -> Result<(), EstateError> {
        if let Err(error) = self.steer(&mut programs) {
            self.degraded.push(format!(
                "steering: the kernel's hash chooses the worker of some or all flows ({error})"
            ));
        }
        self.guard(&mut programs)?;
        programs.guard.keep_pins();
        self.programs = Some(programs);
        Ok(())
    }

    fn steer(&self, programs: &mut Programs) -> Result<(), KernelError> {
        programs.steering.apply(self.config.steering, self.config.workers.stuck_after)?;
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
        if let Err(error) = programs.apply_guard(guard, &addresses) {
            if guard.mode != GuardMode::Auto {
                return Err(EstateError::Demand(error));
            }
            self.degraded.push(format!("guard: no packet is judged before the kernel handles it ({error})"));
            return Ok(());
        }
        for interface in &guard.interfaces {
            match programs.attach_guard(interface, guard.mode) {
                Ok(mode) => {
                    info!(interface, mode = mode.label(), "XDP attached");
                    if mode == XdpMode::Generic && guard.mode == GuardMode::Auto {
                        self.degraded.push(format!(
                            "guard: {interface}'s driver takes no XDP: generic mode judges packets after the \
                             kernel allocated them"
                        ));
                    }
                }
                Err(KernelError::Held { interface, holder }) => {
                    return Err(EstateError::Held(leftovers::explain(&interface, &holder)));
                }
                Err(error) if guard.mode == GuardMode::Auto => {
                    self.degraded
                        .push(format!("guard: packets on {interface} reach the kernel unjudged ({error})"));
                }
                Err(error) => return Err(EstateError::Demand(error)),
            }
        }
        Ok(())
    }

    /// Whether connections per source are the data plane's to limit: no program that counts them, or none
    /// that would drop handshakes.
    fn limits_at_accept(&self) -> bool {
        self.programs
            .as_ref()
            .is_none_or(|programs| !programs.counting.is_counting() || !programs.guard.is_attached())
    }

    /// This configuration is in force from now on: every data plane that starts gets it. It has the listeners
    /// of the one before.
    pub fn adopt(&mut self, config: Config, files: Vec<Sealed>) {
        let is_guard_same = config.guard == self.config.guard;
        for bound in &mut self.bound {
            let name = &self.config.listeners[bound.listener].name;
            bound.listener =
                config.listeners.iter().position(|listener| listener.name == *name).unwrap_or(bound.listener);
        }
        self.config = config;
        self.snapshot += 1;
        self.adopt_files(files);
        if !is_guard_same {
            self.follow_guard();
        }
    }

    /// Tells the program, where there is one, about a change of the guard: its list of the denied.
    fn follow_guard(&mut self) {
        let addresses: Vec<SocketAddr> = self.addresses().collect();
        let Some(programs) = self.programs.as_mut().filter(|programs| programs.guard.is_attached()) else {
            return;
        };
        if let Err(error) = programs.apply_guard(&self.config.guard, &addresses) {
            error!(
                "guard.deny: the kernel took it in part only, and what was denied before is denied still: \
                 {error}"
            );
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
        items.extend([Item::Counters, Item::TicketKeys]);
        items.extend(self.programs.as_ref().map(|_| Item::Slots));
        items.extend(self.admin.as_ref().map(|_| Item::Admin));
        items.extend(self.access_log.as_ref().map(|_| Item::AccessLog));
        items.extend(self.key_log.as_ref().map(|_| Item::KeyLog));
        let workers = self.topology.workers.len();
        items.extend(
            (0..workers).flat_map(|worker| {
                (0..self.bound.len()).map(move |address| Item::Listener { worker, address })
            }),
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
            limit_at_accept: self.limits_at_accept(),
            snapshot: self.snapshot,
            log_level: self.config.log.level.clone(),
            batches: 0,
            descriptors: u32::try_from(items.len()).unwrap_or(u32::MAX),
            workers: self.topology.workers.iter().map(place).collect(),
            control_cpus: self.topology.control_cpus.clone(),
            addresses: self
                .bound
                .iter()
                .map(|bound| Address { listener: bound.listener, address: bound.address })
                .collect(),
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
            Item::Listener { worker, address } => {
                self.bound.get(*address)?.sockets.get(*worker).map(AsFd::as_fd)
            }
            Item::Admin => self.admin.as_ref().map(|(_, fd)| fd.as_fd()),
            Item::Counters => Some(self.counters.fd()),
            Item::TicketKeys => Some(self.ticket_keys.fd()),
            Item::Slots => self.programs.as_ref().map(|programs| programs.steering.slots()),
            Item::AccessLog => self.access_log.as_ref().map(AsFd::as_fd),
            Item::KeyLog => self.key_log.as_ref().map(KeyLog::fd),
        }
    }

    /// The programs, to enter bans into.
    ///
    /// # Errors
    /// When nothing judges packets, and why.
    pub fn guard_mut(&mut self) -> Result<&mut GuardProgram, String> {
        if self.config.guard.interfaces.is_empty() {
            return Err(
                "no interface is guarded (guard.interfaces is empty), so no packet would be dropped; name \
                 the interfaces \
                        that clients come through, and start again"
                    .to_owned(),
            );
        }
        let lacks = self
            .degraded
            .iter()
            .filter(|lack| lack.starts_with("guard:"))
            .cloned()
            .collect::<Vec<_>>()
            .join("; ");
        let guard = self.programs.as_mut().map(|programs| &mut programs.guard);
        let attached = guard.filter(|guard| guard.is_attached());
        attached.ok_or_else(|| format!("no XDP program is attached, so no packet would be dropped: {lacks}"))
    }

    /// Every bound address.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.bound.iter().map(|bound| bound.address)
    }

    /// When `sweep` has something to do.
    #[must_use]
    pub fn next_sweep(&self) -> Option<Time> {
        self.programs.as_ref().and_then(|programs| programs.guard.next_ban_sweep())
    }

    /// Takes ended bans out of the table.
    pub fn sweep(&mut self, now: Time) {
        if let Some(programs) = &mut self.programs
            && programs.guard.next_ban_sweep().is_some_and(|due| due <= now)
        {
            match programs.guard.sweep_bans(now) {
                Ok(0) => {}
                Ok(count) => info!(count, "bans are over"),
                Err(error) => warn!("bans that are over stay in the table: {error}"),
            }
        }
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
        if let Some(programs) = &mut self.programs
            && let Err(error) = programs.steering.clear_slots(SLOT_GENERATION)
        {
            warn!("steering slots of the dead data plane stay: {error}");
        }
        self.counters.blocks().for_each(|block| block.reset_gauges());
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
        let count = |counter: Counter| self.counters.blocks().map(|block| block.value(counter)).sum::<u64>();
        let closed: u64 = CloseReason::ALL.iter().map(|&reason| count(Counter::Closed(reason))).sum();
        let cut = count(Counter::Closed(CloseReason::Stopped));
        Connections { open: count(Plain::Open.into()), ended: closed - cut, cut }
    }

    /// New clients are refused from now on.
    pub fn retire(&self) {
        sockets::retire(&self.bound);
    }

    /// Messages of the eBPF programs go to the log.
    pub fn flush_logs(&mut self) {
        if let Some(programs) = &mut self.programs {
            programs.flush_logs();
        }
    }

    /// The guard, for the status.
    #[must_use]
    pub fn guard_status(&self) -> GuardStatus {
        let guarding = self.programs.as_ref().filter(|programs| programs.guard.is_attached());
        let status = guarding.and_then(|programs| {
            programs.guard_status(now()).inspect_err(|error| warn!("guard status: {error}")).ok()
        });
        status.unwrap_or_default()
    }

    /// Steering, for the status; flows by worker.
    #[must_use]
    pub fn steering_status(&self) -> SteeringStatus {
        let programs = self.programs.as_ref();
        let status = programs.and_then(|programs| {
            programs.steering.status().inspect_err(|error| warn!("steering status: {error}")).ok()
        });
        let Some(mut status) = status else {
            return SteeringStatus { policy: "kernel-hash".into(), ..SteeringStatus::default() };
        };
        let slots = std::mem::take(&mut status.selected);
        for (slot, flows) in slots {
            *status.selected.entry(slot % WORKERS_MAX).or_default() += flows;
        }
        status
    }
}

/// Before the first listening socket is made. `None`: this host or its rights do not allow it.
fn load_programs(config: &Config, degraded: &mut Vec<String>) -> Result<Option<Programs>, EstateError> {
    let guarded = !config.guard.interfaces.is_empty();
    match programs_with_pins(config, degraded)? {
        Ok(programs) => Ok(Some(programs)),
        Err(error) if guarded && config.guard.mode != GuardMode::Auto => Err(EstateError::Demand(error)),
        Err(error) => {
            degraded.push(format!("steering: the kernel's hash chooses the worker ({error})"));
            if guarded {
                degraded.push(format!("guard: no packet is judged before the kernel handles it ({error})"));
            }
            Ok(None)
        }
    }
}

/// Loads the programs. If an interface is guarded they are pinned, over the leftovers of an earlier run.
fn programs_with_pins(
    config: &Config,
    degraded: &mut Vec<String>,
) -> Result<Result<Programs, KernelError>, EstateError> {
    let (run_dir, interfaces) = (&config.process.run_dir, &config.guard.interfaces);
    if interfaces.is_empty() {
        if let Some(mut left) = Pins::find(run_dir) {
            match left.remove() {
                Ok(()) => {
                    warn!("no interface is guarded any more: the filter that an earlier run left is removed")
                }
                Err(error) => warn!("the filter that an earlier run left stays: {error}"),
            }
        }
        return Ok(Programs::load());
    }
    let pins = match Pins::claim(run_dir) {
        Ok(pins) => pins,
        Err(error @ PinError::Taken { .. }) => return Err(EstateError::Pins(error)),
        Err(error) => {
            degraded.push(format!("pins: a crash of the supervisor ends the filter and its bans ({error})"));
            return Ok(Programs::load());
        }
    };
    let loaded = Programs::load_pinned(pins, now());
    Ok(loaded.and_then(|mut programs| programs.guard.detach_others(interfaces).map(|()| programs)))
}

/// The kernel's settings first, then the program that relies on them.
fn use_cookies(config: &Config, programs: &mut Programs, sysctls: &mut Sysctls, degraded: &mut Vec<String>) {
    let guard = &config.guard;
    if guard.interfaces.is_empty() {
        return;
    }
    match programs.guard.use_cookies(guard.syn_cookies, sysctls) {
        Ok(lacks) => degraded.extend(lacks.into_iter().map(|lack| format!("guard.syn_cookies: {lack}"))),
        Err(error) => degraded.push(format!(
            "guard.syn_cookies: SYNs are not answered before the kernel handles them ({error})"
        )),
    }
}

/// Connections count from the first one on: the program is attached, and knows whose they are, before
/// anything listens.
fn count_connections(config: &Config, programs: &mut Programs, degraded: &mut Vec<String>) {
    let guard = &config.guard;
    if guard.interfaces.is_empty() || guard.connections_per_ip.is_none() {
        return;
    }
    let addresses: Vec<SocketAddr> =
        config.listeners.iter().flat_map(|listener| listener.addresses.iter().copied()).collect();
    let counting = programs.apply_guard(guard, &addresses).and_then(|()| programs.count_connections());
    match counting {
        Ok(cgroup) => info!(cgroup = %cgroup.display(), "connections are counted by source"),
        Err(error) => degraded.push(format!(
            "guard.connections_per_ip: held when connections are accepted, not before the kernel handles \
             their handshakes ({error})"
        )),
    }
}

/// A name that is not there is a mistake in every mode.
fn check_interfaces(config: &Config) -> Result<(), EstateError> {
    for name in &config.guard.interfaces {
        if if_nametoindex(name.as_str()).is_err() {
            let interfaces = nix::net::if_::if_nameindex();
            let names = interfaces
                .iter()
                .flat_map(|list| list.iter())
                .map(|one| one.name().to_string_lossy().into_owned());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::control::batches::{self, Collector};

    fn loaded(more: &str) -> Loaded {
        let text = format!(
            "[[listener]]\nname = \"main\"\naddress = [\"127.0.0.1:1\", \"[::1]:1\"]\n[[route]]\n\
             path_prefix = \"/\"\nupstream = \"app\"\n\
             [[upstream]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9000\"]\n[admin]\n\
             address = \"127.0.0.1:2\"\n{more}\n"
        );
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("proxy.toml");
        std::fs::write(&path, text).expect("write");
        let mut loaded =
            config::load(&path).unwrap_or_else(|diagnostics| panic!("{}", diagnostics.render(false)));
        // Ports that the kernel chooses, which a file may not ask for.
        let listener = std::sync::Arc::make_mut(&mut loaded.config.listeners[0]);
        listener.addresses.iter_mut().for_each(|address| address.set_port(0));
        loaded.config.admin.address.iter_mut().for_each(|address| address.set_port(0));
        loaded
    }

    #[test]
    fn everything_that_is_announced_can_be_handed_over_and_fits_together() {
        let estate = Estate::claim(loaded("")).expect("claim");
        let (mut start, items) = estate.handoff(7);
        assert_eq!((start.generation, start.addresses.len()), (7, 2));
        assert!(start.addresses.iter().all(|address| address.address.port() != 0));
        let batches = batches::cut(items.into_iter().map(|item| (item, ())).collect());
        start.batches = u32::try_from(batches.len()).expect("few");
        let workers = start.workers.len();
        let mut collector = Collector::new(start).expect("sane");
        for (number, batch) in (0..).zip(batches) {
            let items: Vec<Item> = batch.into_iter().map(|(item, ())| item).collect();
            let fds = items
                .iter()
                .map(|item| estate.descriptor(item).expect("there").try_clone_to_owned().expect("dup"))
                .collect();
            collector.take(number, items, fds).expect("in order");
        }
        let handoff = collector.finish().expect("complete");
        assert!(handoff.admin.is_some());
        assert!(
            handoff.listeners.len() == workers && handoff.listeners.iter().all(|sockets| sockets.len() == 2)
        );
        CountersMemory::open(handoff.counters, workers).expect("fits");
    }

    #[test]
    fn an_interface_that_is_not_there_stops_the_start_in_every_mode() {
        for mode in ["auto", "driver", "generic"] {
            let error =
                Estate::claim(loaded(&format!("[guard]\ninterfaces = [\"nope0\"]\nmode = \"{mode}\"")))
                    .expect_err(mode);
            assert!(matches!(&error, EstateError::Interface { name, .. } if name == "nope0"), "{error}");
            assert!(error.to_string().contains("lo"), "it names those that are there: {error}");
        }
    }

    #[test]
    fn driver_mode_on_loopback_is_a_demand_that_cannot_be_met() {
        // Without the rights to load anything it is refused for that reason: refused either way.
        let error = Estate::claim(loaded("[guard]\ninterfaces = [\"lo\"]\nmode = \"driver\""))
            .expect_err("lo has no driver mode");
        assert!(matches!(error, EstateError::Demand(_)), "{error}");
    }
}
