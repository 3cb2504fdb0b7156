//! The messages between supervisor and data plane, and between `sluice stop|drain|reload|status|ban|…` and
//! the supervisor. JSON, so that a message that does not fit is refused by name; sizes are bounded by the
//! transports (`handoff`, `supervisor::clients`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::bans::{Ban, BanSource};
use super::status::{Status, SupervisorStatus};
use crate::listen::{ListenKey, ListenerIds};

/// Raised when a message changes its meaning: a data plane only takes a protocol that it knows.
pub const PROTOCOL: u32 = 7;

/// From the supervisor to the data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToDataPlane {
    /// The first message: the number of batches that follow, and facts that are not in the configuration.
    Start(Box<Start>),
    /// Descriptors, in `Start::batches` messages numbered from 0; the n-th item names the n-th descriptor.
    Batch {
        /// From 0.
        number: u32,
        /// As many as descriptors.
        items: Vec<Item>,
    },
    /// Compile the configuration whose files follow in batches, beside the one that runs; answered by
    /// `Compiled` or `NotCompiled`. A further `Reload` before this one is published takes its place.
    Reload {
        /// Comes back in the answers.
        id: u64,
        /// The number it will have.
        snapshot: u64,
        /// The numbers of its listeners.
        listeners: ListenerIds,
        /// Batches that follow.
        batches: u32,
        /// Descriptors in them, all together.
        descriptors: u32,
    },
    /// Hand the compiled configuration to the workers; answered by `Published`.
    Publish {
        /// As in `Reload`.
        id: u64,
    },
    /// The configuration of this `Reload` is not wanted any more.
    Forget {
        /// As in `Reload`.
        id: u64,
    },
    /// A drain comes soon: readiness probes are told, everything is served on.
    Leave,
    /// Let exchanges end, then exit.
    Drain {
        /// Milliseconds until the remaining connections are cut.
        within_ms: u64,
    },
    /// Exit now.
    Stop,
    /// Answered by `Pong` at once: the control thread works.
    Ping {
        /// Comes back in the answer.
        id: u64,
    },
    /// The access log goes on in the file that comes with this message.
    AccessLog,
    /// Session tickets go on with the keys that come with this message, in a sealed memfd.
    TicketKeys,
    /// What the supervisor goes on without now, for readiness probes.
    Degraded {
        /// Each with its cost.
        lacks: Vec<String>,
    },
    /// Asks for `ToSupervisor::Status`.
    AskStatus {
        /// Comes back in the answer.
        id: u64,
    },
    /// Answers `ToSupervisor::AskStatus`.
    SupervisorStatus {
        /// As asked.
        id: u64,
        /// The supervisor's half.
        status: Box<SupervisorStatus>,
    },
}

/// From the data plane to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToSupervisor {
    /// Every worker accepts.
    Ready,
    /// It cannot start, or a worker ended; it exits after this.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// Every worker drains: the listening sockets may be shut down, which ends their accepts.
    Drained,
    /// The configuration of a `Reload` is compiled, and waits for `Publish`.
    Compiled {
        /// As asked.
        id: u64,
    },
    /// It cannot be compiled.
    NotCompiled {
        /// As asked.
        id: u64,
        /// Why, for people; short.
        reason: String,
    },
    /// Every request that begins from now on takes it.
    Published {
        /// As asked.
        id: u64,
    },
    /// No worker holds a configuration before this one any more, and so none begins a connection by it.
    Released {
        /// The number of the oldest that is held.
        snapshot: u64,
    },
    /// Answers `ToDataPlane::Ping`.
    Pong {
        /// As asked.
        id: u64,
    },
    /// Asks for `ToDataPlane::SupervisorStatus`.
    AskStatus {
        /// Comes back in the answer.
        id: u64,
    },
    /// Answers `ToDataPlane::AskStatus`: one descriptor, a sealed memfd with `DataPlaneStatus` as JSON,
    /// because that grows with the number of endpoints.
    Status {
        /// As asked.
        id: u64,
    },
}

/// How the lines of the log look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLook {
    /// Lines for people; else one JSON object a line.
    pub text: bool,
    /// Text has colours.
    pub color: bool,
    /// Each line begins with its priority, `<3>` to `<7>`, which the journal takes off (sd-daemon(3)).
    pub priorities: bool,
}

/// Bytes of `said`.
const SAID_BYTES_MAX: usize = 4096;

/// The words of the other process, for a log, a status and a terminal: bounded, and without control
/// characters other than line ends.
#[must_use]
pub fn said(text: &str) -> String {
    let kept = text.floor_char_boundary(SAID_BYTES_MAX);
    let more = if kept < text.len() { "…" } else { "" };
    printable(&text[..kept]) + more
}

/// A text without control characters other than line ends, which could forge what a terminal shows.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => shown.push('\n'),
            other if other.is_control() => shown.extend(other.escape_unicode()),
            other => shown.push(other),
        }
    }
    shown
}

/// Facts that a data plane needs beside its descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// `PROTOCOL` of the sender.
    pub protocol: u32,
    /// Number of this data plane, from 1.
    pub generation: u32,
    /// Which half of the steering array is its; a restart after a crash keeps it, since the sockets stay
    /// where they are.
    pub slot_generation: u32,
    /// Number of the configuration, from 1.
    pub snapshot: u64,
    /// `log.level`, known before the configuration is resolved.
    pub log_level: String,
    /// How its lines look: as the supervisor's, which found out.
    pub log_look: LogLook,
    /// Batches that follow.
    pub batches: u32,
    /// Descriptors in them, all together.
    pub descriptors: u32,
    /// Index = worker.
    pub workers: Vec<Place>,
    /// Logical CPUs of the control and log threads; empty: any.
    pub control_cpus: Vec<usize>,
    /// The numbers of the configuration's listeners.
    pub listeners: ListenerIds,
    /// Every bound address.
    pub addresses: Vec<ListenKey>,
}

/// Where a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Logical CPU.
    pub cpu: usize,
    /// NUMA node of that CPU, which steering compares.
    pub node: usize,
    /// Node to bind memory to.
    pub memory_node: Option<usize>,
}

/// The meaning of a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Item {
    /// A sealed memfd with a file's bytes; the main configuration comes first.
    File {
        /// The path it was read from.
        path: PathBuf,
    },
    /// A listening socket.
    Listener {
        /// Whose.
        worker: usize,
        /// One of `Start::addresses`.
        key: ListenKey,
    },
    /// The admin listener.
    Admin,
    /// The counters' memfd.
    Counters,
    /// The steering array; where no program steers, memory of the same shape.
    Slots,
    /// Where the access log goes.
    AccessLog,
    /// A sealed memfd with the keys of session tickets.
    TicketKeys,
    /// Where secrets of handshakes go.
    KeyLog,
}

/// The requests of `sluice stop|drain|reload|status|ban|unban|bans` over `control.sock`: one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Exit now.
    Stop,
    /// Let exchanges end, then exit.
    Drain,
    /// Read the configuration anew and go over to it.
    Reload,
    /// Both halves of the status.
    Status,
    /// Drop a source's packets for a time.
    Ban {
        /// Whose.
        address: BanSource,
        /// How long; absent: `guard.ban_for`.
        for_ms: Option<u64>,
    },
    /// Lift a ban.
    Unban {
        /// Whose.
        address: BanSource,
    },
    /// The bans that hold.
    Bans,
}

impl Request {
    /// Whether the supervisor ends with its answer.
    #[must_use]
    pub const fn ends(&self) -> bool {
        matches!(self, Self::Stop | Self::Drain)
    }
}

/// The answer: one line of JSON, after the outcome is known. `Begun` comes before it if that may take long.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// The supervisor has the request, and will know the outcome within this time.
    Begun {
        /// Milliseconds.
        within_ms: u64,
    },
    /// It was done; the receipt, for people.
    Done(String),
    /// It was not.
    Failed(String),
    /// For `Request::Status`.
    Status(Box<Status>),
    /// For `Request::Bans`.
    Bans(Vec<Ban>),
}

#[cfg(test)]
mod tests;
