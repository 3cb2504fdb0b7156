//! A worker: one pinned thread, one ring, its sessions and pools.

pub mod context;
pub mod sessions;
pub mod tags;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::model;
use crate::control::commands::CommandReceiver;
use crate::control::shared::{Counters, SteeringSlot};

/// Everything a worker thread needs; made by the data plane's start, moved to the thread.
#[derive(Debug)]
pub struct WorkerSeed {
    /// 0-based.
    pub index: usize,
    /// The logical CPU to pin to; `None`: not pinned.
    pub cpu: Option<usize>,
    /// The NUMA node to bind memory to; `None`: not bound.
    pub node: Option<usize>,
    /// This worker's own listening sockets with the index into `Config::listeners` of each.
    pub listeners: Vec<(usize, OwnedFd)>,
    /// The current configuration; each exchange takes the one that is current when it starts.
    pub config: Arc<ArcSwap<model::Config>>,
    /// This worker's counter block.
    pub counters: Counters,
    /// This worker's line in the steering array; writes go nowhere useful when there is no steering program.
    pub steering: SteeringSlot,
    /// Drain and stop.
    pub commands: CommandReceiver,
    /// Downstream connections this worker may hold.
    pub connections_max: usize,
}

/// What ended a worker.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The ring could not be made.
    #[error("io_uring: {0}")]
    Ring(std::io::Error),
}

/// Runs the worker on this thread until it is told to stop. Reports readiness through `ready` once its accepts are armed.
pub fn run(_seed: WorkerSeed, _ready: impl FnOnce()) -> Result<(), WorkerError> {
    unimplemented!()
}
