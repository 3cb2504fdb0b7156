//! The supervisor's loop: poll(2) over signals, the channel to the data plane, and the control socket.
//! `control::life` decides about the data plane; this turns descriptors into its events and its actions into
//! system calls.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tracing::{debug, error, info, warn};

use self::ending::Ending;
use self::reloading::Reloading;
use super::allowance::Allowance;
use super::bans;
use super::clients::{ClientId, Clients};
use super::estate::Estate;
use super::expiry::Expiry;
use super::network::Network;
use super::notify;
use super::planes::Planes;
use super::reload::Asker;
use super::run_dir::RunDir;
use super::watch::Watch;
use crate::config::unix_now;
use crate::control::handoff::Received;
use crate::control::life::{GRACE, Life, LifeAction, LifeEvent, LifeState, RunOutcome};
use crate::control::messages::{Request, Response, ToDataPlane, ToSupervisor, said};
use crate::control::{now, sealed};
use crate::error::explain_shortage;
use crate::time::Time;

mod ending;
mod reloading;
mod watching;

/// How long the data plane may take to answer for the status.
const STATUS_WAIT: Duration = Duration::from_secs(1);
/// The most bytes of a data plane's status.
const STATUS_BYTES_MAX: u64 = 4 << 20;
/// A reload may wait for another reload and for a data plane. Each has its own deadline; this is above their
/// sum.
const RELOAD_WITHIN: Duration = Duration::from_secs(60);
/// Messages taken from the channel before anything else has its turn.
const MESSAGES_PER_TURN: usize = 64;

/// The least time between two sweeps of bans that are over; the guard's program itself looks at the time.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// The signals that the loop takes; blocked everywhere else.
const SIGNALS: [Signal; 7] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGQUIT,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Blocks the signals for this thread and all that it starts, and lets them be read.
///
/// # Errors
/// When there is no descriptor left.
pub fn signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    SIGNALS.iter().for_each(|signal| set.add(*signal));
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// The loop's state.
#[derive(Debug)]
pub struct Supervisor {
    estate: Estate,
    run_dir: RunDir,
    signals: SignalFd,
    started: Time,
    life: Life,
    planes: Planes,
    clients: Clients,
    /// Clients that wait for the end.
    waiting: Vec<ClientId>,
    /// Clients that wait for a status, by question, with their deadlines.
    asked: BTreeMap<u64, (ClientId, Time)>,
    next_question: u64,
    reloading: Reloading,
    watch: Watch,
    expiry: Expiry,
    network: Network,
    /// The lacks that data planes know of.
    told: Vec<String>,
    /// When bans that are over were taken out of the table.
    swept: Time,
    /// Of listening sockets.
    mendings: Allowance,
    mend_at: Option<Time>,
    /// All of them listen, as far as we could see to that.
    listeners_are_whole: bool,
    /// The counts when the end was first asked for.
    ending: Option<Ending>,
    /// Events that still have to be handled.
    events: VecDeque<LifeEvent>,
    outcome: Option<RunOutcome>,
}

/// The outcome of a poll.
#[derive(Debug, Default)]
struct Ready {
    signals: bool,
    /// By generation.
    planes: Vec<u32>,
    control: bool,
    /// A listening socket was shut down.
    listeners: bool,
    clients: Vec<ClientId>,
}

impl Supervisor {
    /// Everything is claimed; nothing runs yet.
    #[must_use]
    pub fn new(estate: Estate, run_dir: RunDir, signals: SignalFd, watched: Vec<PathBuf>) -> Self {
        Self {
            reloading: Reloading::new(),
            watch: Watch::new(watched, now()),
            expiry: Expiry::new(now()),
            network: Network::follow(&estate, now()),
            told: Vec::new(),
            estate,
            run_dir,
            signals,
            started: now(),
            life: Life::new(),
            planes: Planes::default(),
            clients: Clients::default(),
            waiting: Vec::new(),
            asked: BTreeMap::new(),
            next_question: 0,
            swept: Time::default(),
            mendings: watching::MENDINGS,
            mend_at: None,
            listeners_are_whole: true,
            ending: None,
            events: VecDeque::from([LifeEvent::Begin]),
            outcome: None,
        }
    }

    /// Runs until the end was asked for, or until nothing ever worked.
    #[must_use]
    pub fn run(mut self) -> RunOutcome {
        let outcome = loop {
            self.settle();
            if let Some(outcome) = self.outcome {
                break outcome;
            }
            let ready = self.wait();
            let now = now();
            for generation in ready.planes {
                self.serve_channel(generation, now);
            }
            if ready.listeners && self.estate.has_lost_listeners() {
                self.mend_listeners(now);
            }
            if ready.signals {
                self.take_signals(now);
            }
            if ready.control
                && let Some(listener) = self.run_dir.control()
            {
                self.clients.accept(listener, now);
            }
            for id in ready.clients {
                if let Some(request) = self.clients.ready(id, now) {
                    self.take_request(id, request, now);
                }
            }
            self.take_deadlines(now);
            self.estate.flush_logs();
        };
        self.leave(outcome);
        outcome
    }

    fn wait(&self) -> Ready {
        let ids: Vec<ClientId> = self.clients.interests().map(|(id, _, _)| id).collect();
        let always = [self.signals.as_fd(), self.estate.sentry()];
        let mut fds: Vec<_> = always.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).into();
        fds.extend(self.clients.interests().map(|(_, fd, events)| PollFd::new(fd, events)));
        fds.extend(self.network.interest().map(|netlink| PollFd::new(netlink, PollFlags::POLLIN)));
        let (planes_at, now) = (fds.len(), now());
        fds.extend(self.planes.interests(now).map(|(_, channel, events)| PollFd::new(channel, events)));
        let control = self.run_dir.control().filter(|_| self.clients.has_room());
        let control_at = control.map(|listener| {
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        match poll(&mut fds, self.timeout()) {
            Ok(0) | Err(_) => return Ready::default(),
            Ok(_) => {}
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        Ready {
            signals: is_ready(&fds[0]),
            listeners: is_ready(&fds[1]),
            planes: self
                .planes
                .interests(now)
                .zip(&fds[planes_at..])
                .filter(|(_, fd)| is_ready(fd))
                .map(|((generation, ..), _)| generation)
                .collect(),
            control: control_at.is_some_and(|at| is_ready(&fds[at])),
            clients: ids
                .into_iter()
                .zip(&fds[always.len()..])
                .filter(|(_, fd)| is_ready(fd))
                .map(|(id, _)| id)
                .collect(),
        }
    }

    fn timeout(&self) -> PollTimeout {
        let asked = self.asked.values().map(|(_, deadline)| *deadline).min();
        let sweep = self.estate.next_sweep().map(|due| due.max(self.swept + SWEEP_PAUSE));
        let (reload, look) = (self.reloading.next_deadline(), self.watch.next_look());
        let (expiry, rotation) =
            (Some(self.expiry.next_look()), Some(self.estate.ticket_keys.next_rotation()));
        let (life, planes) = (self.life.next_deadline(), self.planes.next_deadline());
        let planes = [planes, self.planes.next_message(now())].into_iter().flatten().min();
        let guard = [sweep, self.estate.next_look_at_pressure(), self.network.next_look()];
        let old = self.estate.next_destinations_expiry();
        let ours =
            [life, planes, self.clients.next_deadline(), asked, self.next_watch(), self.next_mending()];
        let deadlines = ours.into_iter().chain(guard).chain([reload, look, expiry, rotation, old]);
        let Some(deadline) = deadlines.flatten().min() else { return PollTimeout::NONE };
        // Rounded up, or the last fraction of a millisecond would be spent spinning.
        let milliseconds = deadline.since(now()).as_micros().div_ceil(1000);
        PollTimeout::try_from(i32::try_from(milliseconds).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
    }

    fn take_deadlines(&mut self, now: Time) {
        self.events.push_back(LifeEvent::Tick);
        if self.planes.take_hung(now) {
            self.events.push_back(LifeEvent::Violation);
        }
        self.watch_data_plane(now);
        if self.next_mending().is_some_and(|due| now >= due) {
            self.mend_listeners(now);
        }
        self.clients.expire(now);
        if self.watch.look(now) {
            self.ask_reload(Asker::Watch, now);
        }
        for remark in self.expiry.look(now, &self.estate.config, unix_now()) {
            warn!("{remark}");
        }
        if now >= self.swept + SWEEP_PAUSE && self.estate.next_sweep().is_some_and(|due| now >= due) {
            self.estate.sweep(now);
            self.swept = now;
        }
        self.estate.follow_pressure(now);
        self.estate.expire_destinations(now);
        self.rotate_ticket_keys(now);
        if self.network.look(&mut self.estate, now) {
            self.tell_lacks();
        }
        let due: Vec<u64> =
            self.asked.iter().filter(|(_, (_, deadline))| now >= *deadline).map(|(id, _)| *id).collect();
        for id in due {
            self.answer_status(id, None, now);
        }
    }

    /// Readiness probes ask a data plane, which knows only what it was told.
    fn tell_lacks(&mut self) {
        let lacks = self.estate.lacks();
        if lacks != self.told {
            for plane in self.planes.iter_mut() {
                plane.order(ToDataPlane::Degraded { lacks: lacks.clone() });
            }
            self.told = lacks;
        }
    }

    fn rotate_ticket_keys(&mut self, now: Time) {
        match self.estate.ticket_keys.rotate(now) {
            Ok(true) => {
                for plane in self.planes.iter_mut() {
                    plane.carry(ToDataPlane::TicketKeys, vec![self.estate.ticket_keys.share()]);
                }
            }
            Ok(false) => {}
            Err(error) => error!("session tickets get no new key, the last one goes on: {error}"),
        }
    }

    /// Handles every event that waits, and every event that follows from one.
    fn settle(&mut self) {
        while let Some(event) = self.events.pop_front() {
            let before = self.life.state();
            let actions = self.life.handle(event, now());
            if before != self.life.state() {
                debug!("{event:?}: {before:?} -> {:?}", self.life.state());
            }
            if let LifeState::Backoff { until } = self.life.state()
                && matches!(event, LifeEvent::Died { .. } | LifeEvent::SpawnFailed)
            {
                warn!("the next data plane starts in {:?}", until.since(now()));
            }
            for action in actions {
                self.act(action);
            }
        }
        self.advance_reloads();
        if let Err(error) = self.planes.flush(&self.estate) {
            error!("channel to the data plane: {error}");
            self.events.push_back(LifeEvent::Violation);
            // Nothing is sent to it any more, so this ends.
            self.settle();
        }
    }

    fn act(&mut self, action: LifeAction) {
        match action {
            LifeAction::Spawn { generation } => self.spawn(generation),
            LifeAction::SendLeave => {
                let delay = self.estate.config.process.drain_delay;
                info!("/readyz says 503; everything is served on for {delay:?} (process.drain_delay)");
                self.order(ToDataPlane::Leave);
            }
            LifeAction::SendDrain { timeout } => {
                info!("draining for at most {timeout:?}");
                let within_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                self.order(ToDataPlane::Drain { within_ms });
            }
            LifeAction::SendStop => self.order(ToDataPlane::Stop),
            LifeAction::Kill => {
                if let Some(plane) = self.planes.current() {
                    warn!(pid = plane.pid(), "killing the data plane");
                    plane.kill();
                }
            }
            LifeAction::Clear => {
                self.estate.clear();
                self.reload_lost_its_data_plane();
                let unanswered: Vec<u64> = self.asked.keys().copied().collect();
                for id in unanswered {
                    self.answer_status(id, None, now());
                }
            }
            LifeAction::Retire => self.estate.retire(),
            LifeAction::Exit(outcome) => self.outcome = Some(outcome),
        }
    }

    fn spawn(&mut self, generation: u32) {
        // Whatever the last data plane did to the sockets ends with it.
        self.listeners_are_whole = self.estate.check_listeners();
        if !self.listeners_are_whole {
            self.mend_at = Some(now());
        }
        match self.planes.start(&mut self.estate, generation) {
            Ok(pid) => info!(generation, pid, "data plane started"),
            Err(reason) => {
                error!("cannot start a data plane: {}", explain_shortage(&reason));
                self.events.push_back(LifeEvent::SpawnFailed);
            }
        }
    }

    fn order(&mut self, message: ToDataPlane) {
        if let Some(plane) = self.planes.current() {
            plane.order(message);
        }
    }

    fn take_signals(&mut self, now: Time) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok()) {
                Some(Signal::SIGCHLD) => {
                    for generation in self.planes.generations() {
                        self.take_death(generation, now);
                    }
                }
                Some(Signal::SIGTERM | Signal::SIGQUIT) => self.begin_drain(),
                Some(Signal::SIGINT) => {
                    info!("stopping");
                    self.begin_stop();
                }
                Some(Signal::SIGHUP) => {
                    info!("reloading, as SIGHUP asked");
                    self.ask_reload(Asker::Signal, now);
                }
                Some(Signal::SIGUSR2) => warn!("upgrade (SIGUSR2) is not built yet; this binary goes on"),
                Some(Signal::SIGUSR1) => self.reopen_logs(),
                other => debug!("signal {other:?}"),
            }
        }
    }

    fn reopen_logs(&mut self) {
        match self.estate.reopen_logs() {
            Ok(true) => {
                info!("the access log was opened anew");
                self.order(ToDataPlane::AccessLog);
            }
            Ok(false) => info!("there is no log to open anew: log.access is \"off\""),
            Err(error) => error!("{error}; the file that was open stays in use"),
        }
    }

    /// Reaps a data plane, if it is dead.
    fn take_death(&mut self, generation: u32, now: Time) {
        // Its last messages come before its death.
        if let Some(plane) = self.planes.get(generation) {
            plane.lift_limits();
        }
        self.serve_channel(generation, now);
        let Some(plane) = self.planes.get(generation).filter(|plane| plane.is_dead()) else { return };
        let pid = plane.pid();
        // Before another process can have its id.
        self.estate.judge_no_more(pid);
        let Some(status) = plane.reap() else { return };
        self.planes.remove(generation);
        // Its open connections died with it; the gauges are cleared next.
        if let Some(ending) = &mut self.ending {
            ending.after = self.estate.connections();
        }
        let clean = status.success();
        if self.life.is_ending() && clean {
            info!(generation, pid, "data plane ended");
        } else {
            let why = ending::describe(status);
            error!(generation, pid, "data plane died: {why}");
            notify::status(&format!("data plane died: {why}"));
        }
        self.events.push_back(LifeEvent::Died { clean });
    }

    fn serve_channel(&mut self, generation: u32, now: Time) {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(plane) = self.planes.get(generation) else { return };
            match plane.receive(now) {
                Ok(Some(received)) => self.take_message(generation, received, now),
                Ok(None) => return,
                Err(error) => {
                    error!("the data plane broke the protocol: {error}");
                    self.events.push_back(LifeEvent::Violation);
                    return;
                }
            }
        }
    }

    fn take_message(&mut self, generation: u32, received: Received<ToSupervisor>, now: Time) {
        let Received { message, mut descriptors } = received;
        match message {
            ToSupervisor::Ready => {
                if matches!(self.life.state(), LifeState::Starting { .. }) {
                    info!(generation, "data plane ready");
                    notify::ready("serving");
                    self.told = Vec::new();
                    self.tell_lacks();
                }
                self.events.push_back(LifeEvent::Ready);
            }
            ToSupervisor::Failed { reason } => {
                error!("data plane: {}", said(&reason));
                self.events.push_back(LifeEvent::StartFailed);
            }
            ToSupervisor::Drained => self.events.push_back(LifeEvent::Drained),
            ToSupervisor::Compiled { id } => self.reload_compiled(id, now),
            ToSupervisor::NotCompiled { id, reason } => self.reload_refused(id, &said(&reason)),
            ToSupervisor::Published { id } => self.reload_published(id),
            ToSupervisor::Released { snapshot } => self.estate.release_destinations(snapshot),
            ToSupervisor::Pong { id } => {
                if let Some(plane) = self.planes.get(generation) {
                    plane.watchdog.answered(id);
                }
            }
            ToSupervisor::AskStatus { id } => {
                let status = Box::new(self.status(true));
                if let Some(plane) = self.planes.get(generation) {
                    plane.tell(ToDataPlane::SupervisorStatus { id, status });
                }
            }
            // Nobody waits for it, so it is not read.
            ToSupervisor::Status { id } if !self.asked.contains_key(&id) => {}
            ToSupervisor::Status { id } => {
                let read = descriptors.pop().and_then(|fd| sealed::open(fd, STATUS_BYTES_MAX).ok());
                let status = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
                if status.is_none() {
                    warn!("the data plane's status cannot be read");
                }
                self.answer_status(id, status, now);
            }
        }
    }

    fn take_request(&mut self, id: ClientId, request: Request, now: Time) {
        match request {
            Request::Stop => {
                info!("stopping, as `sluice stop` asked");
                self.clients.begun(id, GRACE);
                self.waiting.push(id);
                self.begin_stop();
            }
            Request::Drain => {
                info!("draining, as `sluice drain` asked");
                self.clients.begun(id, self.estate.config.process.drain_max() + GRACE);
                self.waiting.push(id);
                self.begin_drain();
            }
            Request::Reload => {
                info!("reloading, as `sluice reload` asked");
                self.clients.begun(id, RELOAD_WITHIN);
                self.ask_reload(Asker::Client(id), now);
            }
            Request::Ban { address, for_ms } => {
                let response = bans::ban(&mut self.estate, address, for_ms.map(Duration::from_millis), now);
                self.clients.answer(id, &response, now);
            }
            Request::Unban { address } => {
                let response = bans::unban(&mut self.estate, address, now);
                self.clients.answer(id, &response, now);
            }
            Request::Bans => {
                let response = bans::list(&mut self.estate, now);
                self.clients.answer(id, &response, now);
            }
            Request::Status => {
                self.next_question += 1;
                self.asked.insert(self.next_question, (id, now + STATUS_WAIT));
                match self.planes.current() {
                    Some(plane) => plane.tell(ToDataPlane::AskStatus { id: self.next_question }),
                    None => self.answer_status(self.next_question, None, now),
                }
            }
        }
    }

    /// Everything is given back before the waiting clients hear of it.
    fn leave(self, outcome: RunOutcome) {
        let Self { estate, run_dir, mut clients, waiting, life, ending, .. } = self;
        estate.release();
        drop(run_dir);
        let receipt = ending::receipt(outcome, life.restarts(), ending);
        for id in waiting {
            clients.answer(id, &receipt, now());
        }
        // Their connections end with the process, which tells them that it is gone. Answers that they have
        // not read by then are lost.
        std::mem::forget(clients);
        match receipt {
            Response::Failed(why) => error!("{why}"),
            Response::Done(what) => info!("{what}"),
            Response::Begun { .. } | Response::Status(_) | Response::Bans(_) => {}
        }
    }
}
