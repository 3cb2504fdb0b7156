//! The control thread: tokio on one thread, with the channel to the supervisor, the workers' events and the
//! admin endpoints. It never touches a client's bytes, and nothing in it can delay a worker.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::reload::{Refusal, Reloader};
use super::threads::{Crew, WorkerEvent};
use super::tickets;
use super::view::{Question, View};
use crate::access_log::AccessLog;
use crate::control::commands::{Command, CommandSender};
use crate::control::handoff::{Channel, ChannelError, DESCRIPTORS_MAX, Received};
use crate::control::messages::{ToDataPlane, ToSupervisor};
use crate::control::{now, sealed};
use crate::telemetry::admin::{self, AdminState, Sources};
use crate::telemetry::logging;
use crate::time::Time;
use crate::tls::tickets::Keys;

/// Questions to the supervisor that may wait for an answer; also the room of the queue that they come
/// through.
pub const QUESTIONS_MAX: usize = 32;
/// Messages to the supervisor that may wait for room in the channel.
const QUEUED_MAX: usize = 64;
/// After so long without an answer the supervisor is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How often a drain looks whether the workers have stopped accepting.
const DRAIN_TICK: Duration = Duration::from_millis(5);
/// How often it looks whether the workers have let go of a replaced configuration.
const RETIRED_TICK: Duration = Duration::from_secs(1);
/// How long a last word to the supervisor may take.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Why the data plane ends before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The supervisor is gone.
    #[error("the supervisor closed the channel")]
    Abandoned,
    /// A worker's loop ended.
    #[error("worker {0}: {1}")]
    Worker(usize, String),
    /// The channel or the reactor.
    #[error("control thread: {0}")]
    Io(#[from] io::Error),
    /// The supervisor said something that this side does not know.
    #[error("control thread: {0}")]
    Channel(ChannelError),
}

/// The loop's state.
#[derive(Debug)]
pub struct Control {
    channel: AsyncFd<Channel>,
    view: Arc<View>,
    commands: Vec<CommandSender>,
    questions: mpsc::Receiver<Question>,
    /// Asked of the supervisor.
    asked: Vec<Question>,
    /// The number of that question, and when it was asked; `None`: none is open. One at a time, so that many
    /// scrapes cost the supervisor no more than one.
    open: Option<(u64, Time)>,
    /// To be asked next: the answer that is on its way may be older than they are.
    next: Vec<Question>,
    next_id: u64,
    queue: VecDeque<(ToSupervisor, Option<OwnedFd>)>,
    ready: usize,
    ended: usize,
    /// The supervisor waits to hear that the workers drain.
    drain_unreported: bool,
    access_log: Option<AccessLog>,
    /// Of session tickets, for configurations to come.
    ticket_keys: Arc<Keys>,
    reloader: Reloader,
    /// The supervisor knows that nobody holds a configuration before this one.
    released: u64,
}

impl Control {
    /// Within a tokio runtime.
    ///
    /// # Errors
    /// When the reactor does not take the channel.
    pub fn new(
        channel: Channel,
        view: Arc<View>,
        commands: Vec<CommandSender>,
        questions: mpsc::Receiver<Question>,
        access_log: Option<AccessLog>,
        ticket_keys: Arc<Keys>,
    ) -> io::Result<Self> {
        Ok(Self {
            channel: channel.into_async()?,
            released: view.snapshot.load(Ordering::Relaxed),
            view,
            commands,
            questions,
            asked: Vec::new(),
            open: None,
            next: Vec::new(),
            next_id: 0,
            queue: VecDeque::new(),
            ready: 0,
            ended: 0,
            drain_unreported: false,
            access_log,
            ticket_keys,
            reloader: Reloader::default(),
        })
    }

    /// Runs until every worker ended as it was told to.
    ///
    /// # Errors
    /// When the data plane cannot go on.
    pub async fn run(&mut self, crew: &mut Crew, admin: Option<OwnedFd>) -> Result<(), ControlError> {
        let mut admin = pin!(serve_admin(admin, Arc::clone(&self.view)));
        let mut admin_runs = true;
        loop {
            self.flush()?;
            tokio::select! {
                readable = self.channel.readable() => {
                    readable?.clear_ready();
                    self.take_messages()?;
                }
                writable = self.channel.writable(), if !self.queue.is_empty() => writable?.clear_ready(),
                Some(question) = self.questions.recv() => self.ask(question),
                event = crew.events.recv() => match event {
                    Some(event) => self.take_event(event).await?,
                    None => return Err(ControlError::Worker(0, "all threads vanished".into())),
                },
                result = self.reloader.compiled(), if self.reloader.is_compiling() => {
                    self.say_compiled(result);
                }
                () = tokio::time::sleep(RETIRED_TICK), if self.reloader.holds_retired() => {}
                () = tokio::time::sleep(DRAIN_TICK), if self.drain_unreported => {}
                () = &mut admin, if admin_runs => admin_runs = false,
            }
            self.release();
            if self.drain_unreported && self.view.is_drained() {
                self.drain_unreported = false;
                self.say(ToSupervisor::Drained, None);
            }
            if self.ended == self.commands.len() {
                info!("every worker ended");
                return Ok(());
            }
        }
    }

    fn take_messages(&mut self) -> Result<(), ControlError> {
        loop {
            match self.channel.get_ref().receive(DESCRIPTORS_MAX) {
                Ok(Received { message, descriptors }) => self.take_message(message, descriptors),
                Err(ChannelError::WouldBlock) => return Ok(()),
                Err(ChannelError::Closed) => return Err(ControlError::Abandoned),
                Err(error) => return Err(ControlError::Channel(error)),
            }
        }
    }

    fn take_message(&mut self, message: ToDataPlane, mut descriptors: Vec<OwnedFd>) {
        match message {
            ToDataPlane::AccessLog => match (&self.access_log, descriptors.pop()) {
                (Some(log), Some(file)) => log.reopen(file),
                _ => warn!("the supervisor hands over a log that is not written; ignored"),
            },
            ToDataPlane::TicketKeys => match descriptors.pop().map(tickets::read) {
                Some(Ok(keys)) => {
                    tickets::install(&self.view.config.load(), &keys);
                    self.ticket_keys = keys;
                    info!("session tickets have a new key");
                }
                Some(Err(error)) => warn!("{error}; the old ones stay in use"),
                None => {
                    warn!("the supervisor hands over no keys of session tickets; the old ones stay in use")
                }
            },
            ToDataPlane::Reload { id, snapshot, listeners, batches, descriptors } => {
                let begun = self.reloader.begin(id, snapshot, listeners, (batches, descriptors));
                if let Err(refusal) = begun {
                    self.say_compiled(Err(refusal));
                }
            }
            ToDataPlane::Batch { number, items } => {
                let running = self.view.config.load_full();
                match self.reloader.take(number, items, descriptors, &running) {
                    Ok(()) => {}
                    Err(Some(refusal)) => self.say_compiled(Err(refusal)),
                    // The end of a reload that was refused, or is forgotten.
                    Err(None) => debug!(number, "a batch that belongs to nothing; ignored"),
                }
            }
            ToDataPlane::Publish { id } => self.publish(id),
            ToDataPlane::Forget { id } => self.reloader.forget(id),
            ToDataPlane::Leave => self.view.draining.store(true, Ordering::Relaxed),
            ToDataPlane::Drain { within_ms } => {
                self.view.draining.store(true, Ordering::Relaxed);
                self.drain_unreported = true;
                self.command(Command::Drain { deadline: now() + Duration::from_millis(within_ms) });
            }
            ToDataPlane::Stop => {
                self.view.draining.store(true, Ordering::Relaxed);
                self.command(Command::Stop);
            }
            ToDataPlane::Ping { id } => self.say(ToSupervisor::Pong { id }, None),
            ToDataPlane::Degraded { lacks } => self.view.lacks.store(Arc::new(lacks)),
            ToDataPlane::AskStatus { id } => self.answer(id),
            ToDataPlane::SupervisorStatus { id, status } => {
                if self.open.take_if(|(open, _)| *open == id).is_some() {
                    for question in std::mem::take(&mut self.asked) {
                        // The asker may have given up.
                        let _ = question.send((*status).clone());
                    }
                    self.ask_next();
                }
            }
            ToDataPlane::Start(_) => warn!("the supervisor repeats the handoff; ignored"),
        }
    }

    fn say_compiled(&mut self, result: Result<u64, Refusal>) {
        match result {
            Ok(id) => self.say(ToSupervisor::Compiled { id }, None),
            Err((id, reason)) => {
                warn!("a new configuration cannot be taken: {reason}");
                self.say(ToSupervisor::NotCompiled { id, reason }, None);
            }
        }
    }

    fn publish(&mut self, id: u64) {
        let Some(((config, traffic), snapshot)) = self.reloader.publish(id) else {
            return warn!(id, "the supervisor publishes a configuration that is not here; ignored");
        };
        if let Err(error) = logging::set_level(&config.log.level) {
            warn!("{error}");
        }
        tickets::install(&config, &self.ticket_keys);
        let traffic = self.view.traffic.swap(traffic);
        let before = self.view.config.swap(config);
        let replaced = self.view.snapshot.swap(snapshot, Ordering::Relaxed);
        self.reloader.retire(replaced, before, traffic);
        // Each takes it at its next request; an idle one shall not hold on to the old one, its connections
        // and its keys.
        self.commands.iter().for_each(CommandSender::nudge);
        info!(snapshot, "a new configuration is in force");
        self.say(ToSupervisor::Published { id }, None);
    }

    /// Frees configurations that the workers let go of, and says so.
    fn release(&mut self) {
        self.reloader.release();
        let held = self.reloader.oldest().unwrap_or_else(|| self.view.snapshot.load(Ordering::Relaxed));
        if held > self.released {
            self.released = held;
            self.say(ToSupervisor::Released { snapshot: held }, None);
        }
    }

    fn command(&self, command: Command) {
        for (index, sender) in self.commands.iter().enumerate() {
            if let Err(error) = sender.send(command) {
                warn!(worker = index, "{error}");
            }
        }
    }

    fn answer(&mut self, id: u64) {
        let status = serde_json::to_vec(&self.view.data_plane()).map_err(io::Error::other);
        match status.and_then(|bytes| sealed::seal("sluice-status", &bytes)) {
            Ok(fd) => self.say(ToSupervisor::Status { id }, Some(fd)),
            Err(error) => warn!("cannot answer for the status: {error}"),
        }
    }

    fn ask(&mut self, question: Question) {
        self.asked.retain(|question| !question.is_closed());
        self.next.retain(|question| !question.is_closed());
        if self.asked.len() + self.next.len() < QUESTIONS_MAX {
            self.next.push(question);
            self.ask_next();
        }
    }

    /// Asks for all who wait, unless an answer is on its way.
    fn ask_next(&mut self) {
        let is_open = self.open.is_some_and(|(_, at)| now().since(at) < ASK_AGAIN);
        if is_open || self.next.is_empty() {
            return;
        }
        self.next_id += 1;
        self.open = Some((self.next_id, now()));
        self.asked.append(&mut self.next);
        self.say(ToSupervisor::AskStatus { id: self.next_id }, None);
    }

    async fn take_event(&mut self, event: WorkerEvent) -> Result<(), ControlError> {
        match event {
            WorkerEvent::Ready(worker) => {
                debug!(worker, "accepting");
                self.ready += 1;
                if self.ready == self.commands.len() {
                    self.view.ready.store(true, Ordering::Relaxed);
                    self.say(ToSupervisor::Ready, None);
                }
                Ok(())
            }
            WorkerEvent::Ended(worker, result) => {
                self.ended += 1;
                if let Some(watched) = self.view.workers.get(worker) {
                    watched.ended.store(true, Ordering::Relaxed);
                }
                let reason = match result {
                    Ok(()) if self.view.draining.load(Ordering::Relaxed) => return Ok(()),
                    Ok(()) => "ended without being told to".into(),
                    Err(reason) => reason,
                };
                error!(worker, "{reason}");
                // A missing worker leaves its sockets unserved: better a new data plane at once than a
                // crippled one.
                self.say(ToSupervisor::Failed { reason: format!("worker {worker}: {reason}") }, None);
                self.last_word().await;
                Err(ControlError::Worker(worker, reason))
            }
        }
    }

    fn say(&mut self, message: ToSupervisor, fd: Option<OwnedFd>) {
        // A supervisor that reads nothing gets no answers; it still gets its orders' outcomes.
        let is_answer = matches!(message, ToSupervisor::Status { .. } | ToSupervisor::AskStatus { .. });
        if !is_answer || self.queue.len() < QUEUED_MAX {
            self.queue.push_back((message, fd));
        }
    }

    fn flush(&mut self) -> Result<(), ControlError> {
        while let Some((message, fd)) = self.queue.front() {
            let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
            match self.channel.get_ref().send(message, &fds) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(ChannelError::WouldBlock) => return Ok(()),
                Err(ChannelError::Closed) => return Err(ControlError::Abandoned),
                Err(error) => return Err(ControlError::Channel(error)),
            }
        }
        Ok(())
    }

    async fn last_word(&mut self) {
        let flushed = async {
            while self.flush().is_ok() && !self.queue.is_empty() {
                match self.channel.writable().await {
                    Ok(mut writable) => writable.clear_ready(),
                    Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(LAST_WORD, flushed).await;
    }
}

async fn serve_admin(listener: Option<OwnedFd>, view: Arc<View>) {
    let Some(listener) = listener else { return };
    if let Err(error) = admin::serve(listener.into(), AdminState::new(view)).await {
        error!("the admin endpoints are gone: {error}");
    }
}

#[cfg(test)]
mod tests;
