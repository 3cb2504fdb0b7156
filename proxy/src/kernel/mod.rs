//! The user side of XDP and steering: loading the embedded object, filling its maps, reading its counters. Only the supervisor
//! uses this.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use crate::config::model;

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Driver,
    /// In the generic hook (after the kernel allocated the packet).
    Generic,
}

/// What went wrong, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The object could not be loaded.
    #[error("eBPF: {0}")]
    Load(String),
    /// XDP could not be attached.
    #[error("XDP on {interface}: {reason}")]
    Attach {
        /// The interface.
        interface: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A map could not be read or written.
    #[error("map {map}: {reason}")]
    Map {
        /// The map.
        map: &'static str,
        /// Why.
        reason: String,
    },
}

/// The loaded object: programs, maps and links. Dropping it detaches XDP.
#[derive(Debug)]
pub struct Programs(());

impl Programs {
    /// Loads the embedded object: the steering program, and the guard if `guard` names interfaces.
    pub fn load() -> Result<Self, KernelError> {
        unimplemented!()
    }

    /// Attaches the guard to one interface; with `Auto` driver mode is tried first, then generic.
    pub fn attach_guard(&mut self, _interface: &str, _mode: model::GuardMode) -> Result<XdpMode, KernelError> {
        unimplemented!()
    }

    /// Writes allow, deny, rates, `dry_run` and the addresses whose packets are judged.
    pub fn apply_guard(&mut self, _guard: &model::Guard, _listeners: &[SocketAddr]) -> Result<(), KernelError> {
        unimplemented!()
    }

    /// Sets policy and `stuck_after`.
    pub fn apply_steering(&mut self, _steering: model::Steering, _stuck_after: std::time::Duration) -> Result<(), KernelError> {
        unimplemented!()
    }

    /// Puts one listener address's sockets (index = worker) into the sockarray under `generation` and attaches the reuseport program.
    pub fn steer(&mut self, _address: SocketAddr, _generation: u32, _sockets: &[BorrowedFd<'_>]) -> Result<(), KernelError> {
        unimplemented!()
    }

    /// The mmapable array of `WorkerSlot`s, for the data plane.
    pub fn slots(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }

    /// Marks every slot of a generation empty: its data plane is dead.
    pub fn clear_slots(&mut self, _generation: u32) -> Result<(), KernelError> {
        unimplemented!()
    }

    /// Packets by verdict reason label, summed over CPUs.
    pub fn verdicts(&self) -> Result<BTreeMap<String, u64>, KernelError> {
        unimplemented!()
    }

    /// Flows by slot, and flows left to the kernel by reason label.
    pub fn steered(&self) -> Result<(BTreeMap<u32, u64>, BTreeMap<String, u64>), KernelError> {
        unimplemented!()
    }
}
