//! The data plane process: unprivileged; control thread, log thread, workers. It is started by the supervisor
//! with the channel as its standard input and opens no configured path: everything it needs comes over that
//! channel.

pub mod control_thread;
pub mod privileges;
pub mod receive;
pub mod reload;
pub mod threads;
pub mod tickets;
pub mod view;

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{Gid, Pid, Uid};
use tokio::sync::mpsc;
use tracing::{info, warn};

use self::control_thread::{Control, ControlError, QUESTIONS_MAX};
use self::threads::Crew;
use self::view::{View, Watched};
use crate::access_log::AccessLog;
use crate::control::batches::Handoff;
use crate::control::commands::{self, CommandSender};
use crate::control::handoff::Channel;
use crate::control::messages::{Place, ToSupervisor};
use crate::control::slots::SteeringSlots;
use crate::counters::CountersMemory;
use crate::listen::sources::Sources;
use crate::supervisor::plan;
use crate::telemetry::key_log::KeyLogGuard;
use crate::telemetry::logging;
use crate::tls::tickets::Keys;
use crate::worker::WorkerSeed;
use crate::{config, placement};

/// Why the data plane ended by itself.
#[derive(Debug, thiserror::Error)]
enum DataPlaneError {
    #[error("privileges: {0}")]
    Privileges(#[from] privileges::PrivilegeError),
    #[error(transparent)]
    Receive(#[from] receive::ReceiveError),
    #[error(transparent)]
    Tickets(#[from] tickets::TicketsError),
    #[error(transparent)]
    Log(#[from] logging::LogError),
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// `sluice data-plane`: the process's whole life. `parent`: the supervisor's process id; `identity`: the user
/// to become.
#[must_use]
pub fn run(parent: Pid, identity: Option<(Uid, Gid)>) -> ExitCode {
    let channel = match take_channel() {
        Ok(channel) => channel,
        Err(error) => {
            eprintln!("sluice data-plane is started by `sluice run` only: {error}");
            return ExitCode::FAILURE;
        }
    };
    // A second descriptor of the same socket, for a last word: the control thread takes the first.
    let last_word = channel.as_fd().try_clone_to_owned().map(Channel::from);
    match serve(channel, parent, identity) {
        Ok(()) => ExitCode::SUCCESS,
        // The control thread has said it already, or there is nobody to hear it.
        Err(DataPlaneError::Control(_)) => ExitCode::FAILURE,
        Err(error) => {
            let reason = error.to_string();
            if !last_word.is_ok_and(|channel| channel.send(&ToSupervisor::Failed { reason }, &[]).is_ok()) {
                eprintln!("sluice data-plane: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The channel is our standard input; nothing else shall find it there.
fn take_channel() -> io::Result<Channel> {
    let channel = io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    // Anything but a SEQPACKET socket was not put there by a supervisor.
    let kind = nix::sys::socket::getsockopt(&channel, nix::sys::socket::sockopt::SockType)?;
    if kind != nix::sys::socket::SockType::SeqPacket {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(Channel::from(channel))
}

fn serve(channel: Channel, parent: Pid, identity: Option<(Uid, Gid)>) -> Result<(), DataPlaneError> {
    // First of all, and before the first thread: afterwards not one instruction runs with the supervisor's
    // rights.
    privileges::drop_all(identity, parent)?;
    // Re-executed through /proc/self/exe, it would be called `exe`.
    let _ = nix::sys::prctl::set_name(c"sluice-control");
    let mut handoff = receive::handoff(&channel)?;
    // Threads inherit it: the log thread stays there, workers pin themselves elsewhere.
    let control_cpus = handoff.start.control_cpus.clone();
    let pinned = if control_cpus.is_empty() { Ok(()) } else { placement::pin_current_to(&control_cpus) };
    let _log = logging::init(&handoff.start.log_level)?;
    if let Err(error) = pinned {
        warn!("control thread: {error}");
    }
    // Before the first handshake, and until after the last.
    let key_log = handoff.key_log.take().map(KeyLogGuard::start).transpose();
    let key_log = key_log.map_err(|error| DataPlaneError::Io("key log", error))?;
    let (plane, seeds) = build(handoff)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| DataPlaneError::Io("tokio", error))?;
    let _entered = runtime.enter();
    let control = Control::new(
        channel,
        plane.view,
        plane.commands,
        plane.questions,
        plane.access_log,
        plane.ticket_keys,
    );
    let mut control = control.map_err(|error| DataPlaneError::Io("channel", error))?;
    let mut crew = Crew::start(seeds).map_err(|error| DataPlaneError::Io("worker threads", error))?;
    runtime.block_on(control.run(&mut crew, plane.admin))?;
    // The workers' last records are in the queues then; dropping the control thread's state writes them.
    crew.join();
    drop(control);
    drop(key_log);
    Ok(())
}

/// The control thread's side of everything.
struct Plane {
    view: Arc<View>,
    commands: Vec<CommandSender>,
    questions: mpsc::Receiver<view::Question>,
    admin: Option<OwnedFd>,
    access_log: Option<AccessLog>,
    ticket_keys: Arc<Keys>,
}

fn build(handoff: Handoff) -> Result<(Plane, Vec<(Place, WorkerSeed)>), DataPlaneError> {
    let Handoff { start, files, listeners, admin, counters, slots, access_log, ticket_keys, key_log: _ } =
        handoff;
    let config: Arc<config::model::Config> = Arc::new(receive::configuration(files)?);
    let ticket_keys = tickets::read(ticket_keys)?;
    tickets::install(&config, &ticket_keys);
    let workers = start.workers.len();
    let connections_max = connections_per_worker(&config, workers);
    info!(generation = start.generation, workers, connections_max, "data plane starts");
    let counters =
        CountersMemory::open(counters, workers).map_err(|error| DataPlaneError::Io("counters", error))?;
    let slots = match slots {
        Some(fd) => SteeringSlots::map(fd.as_fd()),
        None => SteeringSlots::private(),
    };
    let slots = slots.map_err(|error| DataPlaneError::Io("steering slots", error))?;
    if start.addresses.iter().any(|address| address.listener >= config.listeners.len()) {
        return Err(DataPlaneError::Io("handoff", io::ErrorKind::InvalidData.into()));
    }
    let access_log =
        access_log.map(|file| AccessLog::start(file, workers, config.log.with_query)).transpose();
    let (access_log, senders) = access_log.map_err(|error| DataPlaneError::Io("access log", error))?.unzip();
    let mut senders = senders.into_iter().flatten();
    let sources = limit_of_sources(&config, start.limit_at_accept, connections_max.saturating_mul(workers));
    let traffic = Arc::new(ArcSwap::from_pointee(config.traffic()));
    let (mut seeds, mut commands, mut watched) = (Vec::new(), Vec::new(), Vec::new());
    let missing = || DataPlaneError::Io("shared memory", io::ErrorKind::InvalidInput.into());
    for (index, (sockets, place)) in listeners.into_iter().zip(&start.workers).enumerate() {
        let (sender, receiver) = commands::channel().map_err(|error| DataPlaneError::Io("eventfd", error))?;
        let slot = slots.slot(start.slot_generation, index).ok_or_else(missing)?;
        let block = counters.block(index).ok_or_else(missing)?;
        commands.push(sender);
        watched.push(Watched {
            place: *place,
            counters: block.clone(),
            slot: slot.clone(),
            ended: AtomicBool::new(false),
        });
        let seed = WorkerSeed {
            index,
            cpu: Some(place.cpu),
            node: place.memory_node,
            listeners: sockets
                .into_iter()
                .map(|(address, fd)| (start.addresses[address].listener, fd))
                .collect(),
            traffic: Arc::clone(&traffic),
            ring: config.ring,
            buffer_budget: config.process.buffer_budget,
            stuck_after: config.workers.stuck_after,
            counters: block,
            steering: slot,
            commands: receiver,
            connections_max,
            access: senders.next(),
            sources: sources.clone(),
        };
        seeds.push((*place, seed));
    }
    let (sender, questions) = mpsc::channel(QUESTIONS_MAX);
    let view = View {
        snapshot: AtomicU64::new(start.snapshot),
        start,
        config: ArcSwap::new(config),
        traffic,
        workers: watched,
        ready: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        questions: sender,
    };
    Ok((Plane { view: Arc::new(view), commands, questions, admin, access_log, ticket_keys }, seeds))
}

/// Connections per source, where the kernel side does not count them.
fn limit_of_sources(
    config: &config::model::Config,
    at_accept: bool,
    connections_max: usize,
) -> Option<Arc<Sources>> {
    let guard = &config.guard;
    let limit = guard.connections_per_ip.filter(|_| at_accept)?;
    let random = RandomState::new();
    let seeds = std::array::from_fn(|row| random.hash_one(row));
    Some(Arc::new(Sources::new(limit, connections_max, &guard.allow, guard.dry_run, seeds)))
}

/// Its share of the connections that the descriptor limit or `process.max_connections` allows.
fn connections_per_worker(config: &config::model::Config, workers: usize) -> usize {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    let all = plan::connections_max(config, workers, descriptors);
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
