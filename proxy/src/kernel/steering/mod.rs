//! Steering: the reuseport program `sluice_steer` and its maps `STEER_CONFIG`, `STEER_LISTENERS`,
//! `STEER_SLOTS`, `STEER_SOCKETS`, `STEER_SELECTED`, `STEER_FALLBACKS` and `STEER_MIGRATED`
//! (proxy-ebpf/src/steer.rs). It chooses the worker's socket for each new flow from a sockarray
//! (BPF_MAP_TYPE_REUSEPORT_SOCKARRAY).
//!
//! A listener address has a stride of `SLOTS` entries in the sockarray, and each of two generations one half
//! of that. The kernel lets a socket stand in one place only; it takes it out by itself when the socket is
//! closed.
//!
//! The program stays with the listening sockets until they are closed, and goes on working when this process
//! is gone: the kernel keeps it and its maps for them. `STEER_LOGGED` is the program's alone.

mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use aya::maps::{Array, HashMap, IterableMap, MapData, MapError, ReusePortSockArray};
use aya::programs::SkReuseport;
use proxy_common::ListenerKey;
use proxy_common::steer::{
    Fallback, GENERATIONS, LISTENERS_MAX, POLICY_HASH, POLICY_LEAST_LOADED, POLICY_NUMA_LOCAL, SLOT_EMPTY,
    SLOTS, SteerConfig, SteerListener, WORKERS_MAX, WorkerSlot, slot_of,
};

use super::address::listener_key;
use super::error::{KernelError, chain, errno};
use super::maps::{Counters, Single};
use super::object::{Object, STEER, explain_program};
use crate::control::status::SteeringStatus;

pub use settings::{Steering, SteeringPolicy};

const CONFIG: &str = "STEER_CONFIG";
const LISTENERS: &str = "STEER_LISTENERS";
const SLOT_ARRAY: &str = "STEER_SLOTS";
const SOCKETS: &str = "STEER_SOCKETS";
const SELECTED: &str = "STEER_SELECTED";
const FALLBACKS: &str = "STEER_FALLBACKS";
const MIGRATED: &str = "STEER_MIGRATED";

/// Flows by slot, and flows left to the kernel by reason label.
pub type Steered = (BTreeMap<u32, u64>, BTreeMap<String, u64>);

/// Where the sockets stand that were put into the sockarray.
#[derive(Debug, Default)]
struct Placement {
    /// Each steered address and what the program knows of it.
    listeners: BTreeMap<SocketAddr, SteerListener>,
    /// Socket (by inode) at each index of the sockarray. A closed socket stays until its place is taken.
    sockets: BTreeMap<u32, u64>,
}

impl Placement {
    /// The address's stride; a free one when it has none.
    fn index_of(&self, address: SocketAddr) -> Option<u32> {
        if let Some(listener) = self.listeners.get(&address) {
            return Some(listener.index);
        }
        (0..LISTENERS_MAX).find(|index| self.listeners.values().all(|listener| listener.index != *index))
    }

    fn place_of(&self, socket: u64) -> Option<u32> {
        self.sockets.iter().find(|(_, inode)| **inode == socket).map(|(place, _)| *place)
    }
}

/// The program and its maps. See the module.
pub struct SteeringProgram {
    config: Single<SteerConfig>,
    listeners: HashMap<MapData, ListenerKey, SteerListener>,
    slots: Array<MapData, WorkerSlot>,
    sockets: ReusePortSockArray<MapData>,
    selected: Counters,
    fallbacks: Counters,
    migrated: Counters,
    placement: Placement,
}

impl SteeringProgram {
    /// Loads the program.
    pub(super) fn new(object: &mut Object) -> Result<Self, KernelError> {
        let steering = Self {
            config: Single::take(object, CONFIG)?,
            listeners: object.take_map(LISTENERS)?,
            slots: object.take_map(SLOT_ARRAY)?,
            sockets: object.take_map(SOCKETS)?,
            selected: Counters::take(object, SELECTED)?,
            fallbacks: Counters::take(object, FALLBACKS)?,
            migrated: Counters::take(object, MIGRATED)?,
            placement: Placement::default(),
        };
        let program: &mut SkReuseport = object.program_mut(STEER)?;
        program.load().map_err(|error| explain_program("steering", &error))?;
        Ok(steering)
    }

    /// Sets policy and `stuck_after`.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn apply(&mut self, steering: Steering, stuck_after: Duration) -> Result<(), KernelError> {
        let policy = match steering.policy {
            SteeringPolicy::LeastLoaded => POLICY_LEAST_LOADED,
            SteeringPolicy::NumaLocal => POLICY_NUMA_LOCAL,
            SteeringPolicy::Hash => POLICY_HASH,
        };
        let stuck_after_nanos = u64::try_from(stuck_after.as_nanos()).unwrap_or(u64::MAX);
        self.config.write(SteerConfig { policy, reserved: 0, stuck_after_nanos })
    }

    /// Puts one listener address's sockets (index = worker) into the sockarray under `generation` and
    /// attaches the program. They must be listening, with SO_REUSEPORT. A socket that already stands
    /// elsewhere moves; between the two the kernel's hash serves its flows.
    pub(super) fn steer(
        &mut self,
        object: &mut Object,
        address: SocketAddr,
        generation: u32,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(), KernelError> {
        let refused = |reason: String| KernelError::Steer { address, reason };
        let Some(first) = sockets.first() else { return Err(refused("no sockets".to_owned())) };
        let count = u32::try_from(sockets.len()).unwrap_or(u32::MAX);
        if count > WORKERS_MAX {
            return Err(refused(format!("{count} sockets, {WORKERS_MAX} are the most")));
        }
        if address.port() == 0 {
            return Err(refused("the address that was bound is needed, not port 0".to_owned()));
        }
        let index = self.placement.index_of(address).ok_or_else(|| {
            refused(format!("{LISTENERS_MAX} addresses are steered already, that is the most"))
        })?;

        let mut place = index * SLOTS + slot_of(generation, 0);
        for (worker, socket) in sockets.iter().enumerate() {
            self.place(place, socket)
                .map_err(|error| refused(format!("socket of worker {worker}: {}", explain(&error))))?;
            place += 1;
        }
        let mut listener = self
            .placement
            .listeners
            .get(&address)
            .copied()
            .unwrap_or(SteerListener { index, sockets: [0; 2] });
        let half = &mut listener.sockets[(generation % GENERATIONS) as usize];
        let before = std::mem::replace(half, count);
        self.publish(address, listener)?;
        // A smaller data plane took the place of a larger one.
        for _ in count..before {
            self.clear_place(place)?;
            place += 1;
        }
        let program: &mut SkReuseport = object.program_mut(STEER)?;
        program.attach(first).map_err(|error| refused(format!("attaching the program: {}", chain(&error))))
    }

    /// Takes one address's sockets of `generation` out of the sockarray: it is about to retire them. The
    /// address is forgotten with its last generation.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn unsteer(&mut self, address: SocketAddr, generation: u32) -> Result<(), KernelError> {
        let Some(mut listener) = self.placement.listeners.get(&address).copied() else { return Ok(()) };
        let count = std::mem::take(&mut listener.sockets[(generation % GENERATIONS) as usize]);
        if listener.sockets.iter().all(|sockets| *sockets == 0) {
            match self.listeners.remove(&listener_key(address)) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(KernelError::map(LISTENERS, error)),
            }
            self.placement.listeners.remove(&address);
        } else {
            self.publish(address, listener)?;
        }
        let first = listener.index * SLOTS + slot_of(generation, 0);
        (first..first + count).try_for_each(|place| self.clear_place(place))
    }

    /// Marks every slot of a generation empty: its data plane is dead. The sockets stay, for the next one;
    /// until that is live, flows queue by the kernel's hash.
    ///
    /// # Errors
    /// When the slots cannot be read or written.
    pub fn clear_slots(&mut self, generation: u32) -> Result<(), KernelError> {
        let failed = |error| KernelError::map(SLOT_ARRAY, error);
        let first = slot_of(generation, 0);
        for index in first..first + WORKERS_MAX {
            let slot = self.slots.get(&index, 0).map_err(failed)?;
            // A later generation that shares this half is alive.
            if slot.state != SLOT_EMPTY && slot.generation <= generation {
                self.slots.set(index, WorkerSlot::default(), 0).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The mmapable array of `WorkerSlot`s, for the data plane.
    #[must_use]
    pub fn slots(&self) -> BorrowedFd<'_> {
        self.slots.map().fd().as_fd()
    }

    /// The addresses that are steered, with the sockets of each generation.
    pub fn listeners(&self) -> impl Iterator<Item = (SocketAddr, [u32; GENERATIONS as usize])> {
        self.placement.listeners.iter().map(|(address, listener)| (*address, listener.sockets))
    }

    /// Flows by slot (those above 0), and flows left to the kernel by reason label (all).
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn steered(&self) -> Result<Steered, KernelError> {
        let selected = (0..).zip(self.selected.sums()?).filter(|(_, sum)| *sum != 0).collect();
        let fallbacks = Fallback::ALL.iter().zip(self.fallbacks.sums()?);
        Ok((selected, fallbacks.map(|(reason, sum)| (reason.label().to_owned(), sum)).collect()))
    }

    /// Of the flows given to slots: those whose former listening socket went away before they were accepted.
    ///
    /// # Errors
    /// When the counter cannot be read.
    pub fn migrated(&self) -> Result<u64, KernelError> {
        Ok(self.migrated.sums()?.into_iter().sum())
    }

    /// Everything about steering, read from the kernel.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn status(&self) -> Result<SteeringStatus, KernelError> {
        let policy = match self.config.read()?.policy {
            POLICY_HASH => "hash",
            POLICY_LEAST_LOADED => "least-loaded",
            POLICY_NUMA_LOCAL => "numa-local",
            _ => "kernel-hash",
        };
        let (selected, fallback) = self.steered()?;
        Ok(SteeringStatus { policy: policy.to_owned(), selected, fallback })
    }

    fn publish(&mut self, address: SocketAddr, listener: SteerListener) -> Result<(), KernelError> {
        self.listeners
            .insert(listener_key(address), listener, 0)
            .map_err(|error| KernelError::map(LISTENERS, error))?;
        self.placement.listeners.insert(address, listener);
        Ok(())
    }

    /// Puts a socket to one place, from wherever it stands.
    fn place(&mut self, place: u32, socket: &BorrowedFd<'_>) -> Result<(), MapError> {
        let inode = inode(socket)?;
        let fd = &socket.as_raw_fd();
        let result = match self.sockets.set(place, fd, 0) {
            Err(error) if errno(&error) == Some(libc::EBUSY) => match self.placement.place_of(inode) {
                Some(present) if present == place => Ok(()),
                Some(present) => {
                    self.sockets.clear_index(&present)?;
                    self.placement.sockets.remove(&present);
                    self.sockets.set(place, fd, 0)
                }
                None => Err(error),
            },
            result => result,
        };
        result?;
        self.placement.sockets.retain(|_, socket| *socket != inode);
        self.placement.sockets.insert(place, inode);
        Ok(())
    }

    /// Empties one place; it may be empty, since the kernel takes closed sockets out.
    fn clear_place(&mut self, place: u32) -> Result<(), KernelError> {
        self.placement.sockets.remove(&place);
        match self.sockets.clear_index(&place) {
            Err(error) if errno(&error) != Some(libc::ENOENT) => Err(KernelError::map(SOCKETS, error)),
            _ => Ok(()),
        }
    }
}

/// What identifies a socket, whichever descriptor it is held by.
fn inode(socket: &BorrowedFd<'_>) -> Result<u64, MapError> {
    Ok(nix::sys::stat::fstat(socket).map_err(std::io::Error::from)?.st_ino)
}

fn explain(error: &MapError) -> String {
    match errno(error) {
        Some(libc::EINVAL) => "it must be listening already, with SO_REUSEPORT set before bind".to_owned(),
        Some(libc::EBUSY) => "it stands in a sockarray of another program".to_owned(),
        _ => chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_stride_and_a_freed_one_is_taken_again() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let mut placement = Placement::default();
        for port in 1..=3 {
            let index = placement.index_of(address(port)).expect("a free stride");
            placement.listeners.insert(address(port), SteerListener { index, sockets: [1, 0] });
        }
        assert_eq!(placement.index_of(address(2)), Some(1));
        placement.listeners.remove(&address(2));
        assert_eq!(placement.index_of(address(9)), Some(1));
        for port in 10..10 + LISTENERS_MAX as u16 - 2 {
            let index = placement.index_of(address(port)).expect("a free stride");
            placement.listeners.insert(address(port), SteerListener { index, sockets: [1, 0] });
        }
        assert_eq!(placement.index_of(address(5000)), None);
    }
}
