//! The control thread: tokio on one thread, with the channel to the supervisor, the workers' events and the admin endpoints. It never touches
//! a client's bytes, and nothing in it can delay a worker.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::threads::{Crew, WorkerEvent};
use super::view::{Question, View};
use crate::control::commands::{Command, CommandSender};
use crate::control::handoff::{Channel, ChannelError, Received};
use crate::control::messages::{ToDataPlane, ToSupervisor};
use crate::control::{now, sealed};
use crate::telemetry::admin::{self, AdminState, Sources};

/// Questions to the supervisor that may wait for an answer; also the room of the queue that they come through.
pub const QUESTIONS_MAX: usize = 32;
/// Messages to the supervisor that may wait for room in the channel.
const QUEUED_MAX: usize = 64;
/// How often a drain looks whether the workers have stopped accepting.
const DRAIN_TICK: Duration = Duration::from_millis(5);
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
    /// Asked of the supervisor, by id.
    open: BTreeMap<u64, Question>,
    next_id: u64,
    queue: VecDeque<(ToSupervisor, Option<OwnedFd>)>,
    ready: usize,
    ended: usize,
    /// The supervisor waits to hear that the workers accept no more.
    drain_unreported: bool,
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
    ) -> io::Result<Self> {
        Ok(Self {
            channel: channel.into_async()?,
            view,
            commands,
            questions,
            open: BTreeMap::new(),
            next_id: 0,
            queue: VecDeque::new(),
            ready: 0,
            ended: 0,
            drain_unreported: false,
        })
    }

    /// Runs until every worker ended as it was told to.
    ///
    /// # Errors
    /// When the data plane cannot go on.
    pub async fn run(mut self, crew: &mut Crew, admin: Option<OwnedFd>) -> Result<(), ControlError> {
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
                () = tokio::time::sleep(DRAIN_TICK), if self.drain_unreported => {}
                () = &mut admin, if admin_runs => admin_runs = false,
            }
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
            match self.channel.get_ref().receive(0) {
                Ok(Received { message, .. }) => self.take_message(message),
                Err(ChannelError::WouldBlock) => return Ok(()),
                Err(ChannelError::Closed) => return Err(ControlError::Abandoned),
                Err(error) => return Err(ControlError::Channel(error)),
            }
        }
    }

    fn take_message(&mut self, message: ToDataPlane) {
        match message {
            ToDataPlane::Drain { within_ms } => {
                self.view.draining.store(true, Ordering::Relaxed);
                self.drain_unreported = true;
                self.command(Command::Drain { deadline: now() + Duration::from_millis(within_ms) });
            }
            ToDataPlane::Stop => {
                self.view.draining.store(true, Ordering::Relaxed);
                self.command(Command::Stop);
            }
            ToDataPlane::AskStatus { id } => self.answer(id),
            ToDataPlane::SupervisorStatus { id, status } => {
                if let Some(question) = self.open.remove(&id) {
                    // Whoever asked may have given up.
                    let _ = question.send(*status);
                }
            }
            ToDataPlane::Start(_) | ToDataPlane::Batch { .. } => warn!("the supervisor repeats the handoff; ignored"),
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
        self.open.retain(|_, open| !open.is_closed());
        if self.open.len() < QUESTIONS_MAX {
            self.next_id += 1;
            self.open.insert(self.next_id, question);
            self.say(ToSupervisor::AskStatus { id: self.next_id }, None);
        }
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
                // One that is missing leaves its sockets unserved: better a new data plane at once than a crippled one.
                self.say(ToSupervisor::Failed { reason: format!("worker {worker}: {reason}") }, None);
                self.last_word().await;
                Err(ControlError::Worker(worker, reason))
            }
        }
    }

    fn say(&mut self, message: ToSupervisor, fd: Option<OwnedFd>) {
        // A supervisor that reads nothing gets no answers; it still gets what it must know.
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
