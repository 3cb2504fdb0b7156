//! One data plane process and the channel to it. Sending never waits: messages that the channel does not take
//! now stay in a bounded queue.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tracing::{error, warn};

use super::allowance::Allowance;
use super::estate::Estate;
use super::privileges::Identity;
use super::watchdog::Watchdog;
use crate::control::handoff::{Channel, ChannelError, Received};
use crate::control::messages::{Item, ToDataPlane, ToSupervisor};
use crate::control::{batches, sealed};
use crate::time::Time;

/// Messages that may wait beside the handoff. A data plane that lets more pile up gets no answers.
const QUEUED_MAX: usize = 64;

/// Messages that are read of a data plane: so many at once, then one in so long. An honest one sends far
/// less; one that was taken over shall not take the supervisor's CPU with it.
const MESSAGES: Allowance = Allowance::new(64, Duration::from_millis(25));

/// Messages that a dead data plane can have left in the channel; the kernel takes some hundred.
const LEFT_MAX: usize = 4096;

/// A data plane, alive or not yet reaped. Drop it when its process is dead.
#[derive(Debug)]
pub struct Child {
    /// Its number.
    pub generation: u32,
    process: Process,
    /// Kept until the process is dead, although it may have closed its end before.
    channel: Channel,
    /// It reads no more, but may have said something before.
    is_deaf: bool,
    queue: VecDeque<Outgoing>,
    /// When it closed its end: it should be dead soon after.
    hung_up: Option<Time>,
    /// It is to be killed: nothing is read or sent any more.
    is_condemned: bool,
    /// Descriptors that it sent and nobody wants.
    strays: Vec<OwnedFd>,
    /// Whether it works.
    pub watchdog: Watchdog,
    messages: Allowance,
}

#[derive(Debug)]
enum Outgoing {
    Message(ToDataPlane),
    Batch { number: u32, items: Vec<Item> },
    Carrying { message: ToDataPlane, descriptors: Vec<Arc<OwnedFd>> },
}

/// A worker frees the memory of a whole batch of requests, then allocates the same sizes again. glibc keeps 7
/// chunks of a size at hand for each thread, and every further one costs ten times as much (glibc manual,
/// "Memory Allocation Tunables"; other libraries ignore it). This many are kept of each of its 64 sizes, up
/// to 1,032 bytes: 8.5 MiB for a worker at most, which fill with time and are no leak.
const ALLOCATOR: &str = "glibc.malloc.tcache_count=256";

impl Child {
    /// Starts it with one end of a new channel as its standard input, and queues the handoff.
    ///
    /// # Errors
    /// When there is no descriptor, memory or process left, or its connects cannot be judged.
    pub fn spawn(estate: &mut Estate, generation: u32) -> io::Result<Self> {
        let (ours, theirs) = Channel::pair()?;
        // The very file that we run, even when the one on disk was replaced meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("sluice").args(["data-plane", "--parent", &std::process::id().to_string()]);
        if let Some(Identity { uid, gid }) = estate.identity {
            command.args(["--uid", &uid.to_string(), "--gid", &gid.to_string()]);
        }
        // The channel, and standard error for its log. It closes whatever else it inherits; an access log on
        // standard output is handed over like a file.
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        match &estate.empty {
            Some(folder) => command.current_dir(folder.path()),
            None => command.current_dir("/"),
        };
        command.args(["--sandbox", &estate.sandbox.to_string()]).env_clear();
        command.envs(std::env::vars_os().filter(|(name, _)| name == "RUST_BACKTRACE"));
        command.env("GLIBC_TUNABLES", ALLOCATOR);
        let mut process = command.spawn()?;
        // Until it gets the handoff, which is sent later, it has nothing of a client's.
        if let Err(reason) = estate.judge_connects_of(process.id()) {
            process.kill()?;
            estate.judge_no_more(process.id());
            process.wait()?;
            return Err(io::Error::other(reason));
        }
        let (mut start, items) = estate.handoff(generation);
        let batches = batches::cut(items.into_iter().map(|item| (item, ())).collect());
        start.batches = u32::try_from(batches.len()).unwrap_or(u32::MAX);
        let mut queue = VecDeque::from([Outgoing::Message(ToDataPlane::Start(Box::new(start)))]);
        queue.extend((0..).zip(batches).map(|(number, batch)| {
            let items = batch.into_iter().map(|(item, ())| item).collect();
            Outgoing::Batch { number, items }
        }));
        Ok(Self {
            generation,
            process,
            channel: ours,
            is_deaf: false,
            queue,
            hung_up: None,
            is_condemned: false,
            strays: Vec::new(),
            watchdog: Watchdog::default(),
            messages: MESSAGES,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What to poll: the channel, and for which events. `None`: nothing now.
    #[must_use]
    pub fn interest(&self, now: Time) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, self.messages.next() <= now);
        events.set(PollFlags::POLLOUT, !self.queue.is_empty());
        (self.is_heard() && !events.is_empty()).then(|| (self.channel.as_fd(), events))
    }

    /// Whether its channel is still used.
    const fn is_heard(&self) -> bool {
        self.hung_up.is_none() && !self.is_condemned
    }

    /// When it closed its end, if that is still to be judged.
    #[must_use]
    pub fn hung_up(&self) -> Option<Time> {
        self.hung_up.filter(|_| !self.is_condemned)
    }

    /// It broke the protocol, and is to be killed for that.
    pub fn condemn(&mut self) {
        self.is_condemned = true;
        self.queue.clear();
    }

    /// When its next message is read at the earliest; `None`: when it comes.
    #[must_use]
    pub fn next_message(&self, now: Time) -> Option<Time> {
        Some(self.messages.next()).filter(|next| self.is_heard() && *next > now)
    }

    /// It is dead: its last words are read, however much it said before.
    pub fn lift_limits(&mut self) {
        self.messages = MESSAGES;
    }

    /// Queues an order: it goes out although answers pile up.
    pub fn order(&mut self, message: ToDataPlane) {
        self.push(Outgoing::Message(message));
    }

    /// The same, with descriptors, which the message names.
    pub fn carry(&mut self, message: ToDataPlane, descriptors: Vec<Arc<OwnedFd>>) {
        self.push(Outgoing::Carrying { message, descriptors });
    }

    fn push(&mut self, outgoing: Outgoing) {
        if !self.is_deaf {
            self.queue.push_back(outgoing);
        }
    }

    /// Queues an answer or a question; drops it when too much waits already.
    pub fn tell(&mut self, message: ToDataPlane) {
        if self.queue.len() < QUEUED_MAX {
            self.push(Outgoing::Message(message));
        }
    }

    /// Sends as much as the channel takes.
    ///
    /// # Errors
    /// When the channel is unusable.
    pub fn flush(&mut self, estate: &Estate) -> Result<(), ChannelError> {
        while let (true, Some(next)) = (self.is_heard(), self.queue.front()) {
            let channel = &self.channel;
            let sent = match next {
                Outgoing::Message(message @ ToDataPlane::AccessLog) => {
                    // The newest file, should it have been opened twice since.
                    let descriptors: Vec<_> = estate.descriptor(&Item::AccessLog).into_iter().collect();
                    channel.send(message, &descriptors)
                }
                Outgoing::Message(message) => channel.send(message, &[]),
                Outgoing::Carrying { message, descriptors } => {
                    channel.send(message, &descriptors.iter().map(|fd| fd.as_fd()).collect::<Vec<_>>())
                }
                Outgoing::Batch { number, items } => {
                    let descriptors: Vec<_> =
                        items.iter().filter_map(|item| estate.descriptor(item)).collect();
                    channel.send(&ToDataPlane::Batch { number: *number, items: items.clone() }, &descriptors)
                }
            };
            match sent {
                Ok(()) => drop(self.queue.pop_front()),
                Err(ChannelError::WouldBlock) => return Ok(()),
                // Its last words are still to be read: they say why it goes.
                Err(ChannelError::Closed) => {
                    self.is_deaf = true;
                    self.queue.clear();
                }
                // Our own fault, and no reason to kill a data plane: its successor would get the same.
                Err(error @ ChannelError::TooLong) if matches!(next, Outgoing::Message(_)) => {
                    error!("the data plane is not told something: {error}");
                    self.queue.pop_front();
                }
                Err(error) => {
                    self.condemn();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The next message; `None`: nothing now. Only a status comes with a descriptor, which is a memfd.
    ///
    /// # Errors
    /// When the data plane breaks the protocol.
    pub fn receive(&mut self, now: Time) -> Result<Option<Received<ToSupervisor>>, ChannelError> {
        if !self.is_heard() || self.messages.next() > now {
            return Ok(None);
        }
        match self.channel.receive_into(&mut self.strays, 1) {
            Ok(message) => {
                self.messages.take(now);
                let may_carry = matches!(message, ToSupervisor::Status { .. });
                // Strays of an earlier message would have condemned it.
                let descriptors: Vec<_> =
                    self.strays.pop_if(|fd| may_carry && sealed::is_memfd(fd)).into_iter().collect();
                if !self.strays.is_empty() {
                    self.condemn();
                    return Err(ChannelError::Stray);
                }
                Ok(Some(Received { message, descriptors }))
            }
            Err(ChannelError::WouldBlock) => Ok(None),
            Err(ChannelError::Closed) => {
                self.hang_up(now);
                Ok(None)
            }
            Err(error) => {
                self.condemn();
                Err(error)
            }
        }
    }

    fn hang_up(&mut self, now: Time) {
        self.queue.clear();
        self.hung_up = Some(now);
    }

    /// Whether it is dead. It keeps its process id until it is reaped.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let pid = Pid::from_raw(self.pid().cast_signed());
        !matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::StillAlive))
    }

    /// Its exit status, once.
    pub fn reap(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// SIGKILL. It is not reaped yet, so its process id is still its own.
    pub fn kill(&mut self) {
        if let Err(error) = self.process.kill() {
            warn!("cannot kill the data plane (process {}): {error}", self.pid());
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        close(std::mem::take(&mut self.strays));
        // Closing the channel would close what waits in it. An empty message looks like the end.
        for _ in 0..LEFT_MAX {
            let Some(descriptors) = self.channel.discard() else { return };
            close(descriptors);
        }
    }
}

/// Closes descriptors of a sender that is dead. Closing a socket waits for its peer, for hours if the sender
/// set SO_LINGER so; nobody can set it again now.
fn close(descriptors: Vec<OwnedFd>) {
    for fd in descriptors {
        // Other files do not have it.
        let _ = setsockopt(&fd, sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 });
    }
}

#[cfg(test)]
mod tests;
