//! Steering: the reuseport program `sluice_steer` (proxy-ebpf/src/steer.rs). It chooses the worker's socket
//! for each new flow from a sockarray (BPF_MAP_TYPE_REUSEPORT_SOCKARRAY). Its maps are `STEER_CONFIG`,
//! `STEER_LISTENERS`, `STEER_SLOTS`, `STEER_SOCKETS`, `STEER_SELECTED`, `STEER_FALLBACKS` and
//! `STEER_MIGRATED`. Only the program itself uses `STEER_LOGGED`.
//!
//! Each listener address has `SLOTS` entries in a row in the sockarray, its stride. Each of two generations
//! has one half of the stride. The kernel lets a socket stand in one place only, and takes it out when the
//! socket is closed.
//!
//! The kernel keeps the program and its maps for the listening sockets until they are closed. So steering
//! goes on when this process is gone.

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

/// The number of flows given to each slot, and of flows left to the kernel by the reason's label.
pub type Steered = (BTreeMap<u32, u64>, BTreeMap<String, u64>);

/// The places of the sockets in the sockarray.
#[derive(Debug, Default)]
struct Placement {
    /// Each steered address, with the entry that the program reads.
    listeners: BTreeMap<SocketAddr, SteerListener>,
    /// The inode of the socket at each index of the sockarray. A closed socket stays here until its place is
    /// taken.
    sockets: BTreeMap<u32, u64>,
}

impl Placement {
    /// The number of the address's stride; if it has none, a free one.
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

    /// Sets the policy, and how long a loop turn of a worker may last before it gets no new flows.
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

    /// Puts the sockets of one listener address (index = worker) into the sockarray under `generation`, and
    /// attaches the program. The sockets must be listening, with SO_REUSEPORT. A socket that already stands
    /// elsewhere moves; meanwhile the kernel's hash serves its flows.
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
        // The data plane before had more workers; their places are emptied.
        for _ in count..before {
            self.clear_place(place)?;
            place += 1;
        }
        let program: &mut SkReuseport = object.program_mut(STEER)?;
        program.attach(first).map_err(|error| refused(format!("attaching the program: {}", chain(&error))))
    }

    /// Takes the sockets that `generation` has at one address out of the sockarray, before they are retired.
    /// The address is forgotten with its last generation.
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

    /// Marks every slot of a generation's half empty, since its data plane is dead. The sockets stay for the
    /// next data plane. Until that is live, the kernel's hash chooses the queue of each flow.
    ///
    /// Whatever a slot says of itself is no reason to leave it: the dead data plane wrote that.
    ///
    /// # Errors
    /// When the slots cannot be read or written.
    pub fn clear_slots(&mut self, generation: u32) -> Result<(), KernelError> {
        let failed = |error| KernelError::map(SLOT_ARRAY, error);
        let first = slot_of(generation, 0);
        for index in first..first + WORKERS_MAX {
            let slot = self.slots.get(&index, 0).map_err(failed)?;
            if slot.state != SLOT_EMPTY {
                self.slots.set(index, WorkerSlot::default(), 0).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The array of `WorkerSlot`s, which the data plane maps into its memory.
    #[must_use]
    pub fn slots(&self) -> BorrowedFd<'_> {
        self.slots.map().fd().as_fd()
    }

    /// The steered addresses, with the number of sockets of each generation.
    pub fn listeners(&self) -> impl Iterator<Item = (SocketAddr, [u32; GENERATIONS as usize])> {
        self.placement.listeners.iter().map(|(address, listener)| (*address, listener.sockets))
    }

    /// The number of flows given to each slot (slots without flows are left out), and of flows left to the
    /// kernel by the reason's label (all labels).
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn steered(&self) -> Result<Steered, KernelError> {
        let selected = (0..).zip(self.selected.sums()?).filter(|(_, sum)| *sum != 0).collect();
        let fallbacks = Fallback::ALL.iter().zip(self.fallbacks.sums()?);
        Ok((selected, fallbacks.map(|(reason, sum)| (reason.label().to_owned(), sum)).collect()))
    }

    /// The number of flows that were steered again because their listening socket went away before they were
    /// accepted.
    ///
    /// # Errors
    /// When the counter cannot be read.
    pub fn migrated(&self) -> Result<u64, KernelError> {
        Ok(self.migrated.sums()?.into_iter().sum())
    }

    /// The status of steering, read from the kernel.
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

    /// Puts a socket into one place of the sockarray; it leaves the place where it stood.
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

    /// Empties one place. It may be empty already, since the kernel takes closed sockets out.
    fn clear_place(&mut self, place: u32) -> Result<(), KernelError> {
        self.placement.sockets.remove(&place);
        match self.sockets.clear_index(&place) {
            Err(error) if errno(&error) != Some(libc::ENOENT) => Err(KernelError::map(SOCKETS, error)),
            _ => Ok(()),
        }
    }
}

/// The inode, which is the same for every descriptor of a socket.
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
