//! Which listening sockets the steering program chooses from (sk_reuseport,
//! BPF_MAP_TYPE_REUSEPORT_SOCKARRAY).
//!
//! A listener address has a stride of `SLOTS` entries in the sockarray, and each of two generations one half
//! of that. The kernel lets a socket stand in one place only; it takes it out by itself when the socket is
//! closed.

mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::maps::{Array, HashMap, MapError, ReusePortSockArray};
use aya::programs::SkReuseport;
use proxy_common::ListenerKey;
use proxy_common::steer::{
    GENERATIONS, LISTENERS_MAX, SLOTS, SteerListener, WORKERS_MAX, WorkerSlot, slot_of,
};

use super::loader::{self, Programs, STEER, program_mut};
use super::{KernelError, chain, errno, listener_key};

pub use settings::{Steering, SteeringPolicy};

const SOCKETS: &str = "STEER_SOCKETS";
const LISTENERS: &str = "STEER_LISTENERS";

/// Where the sockets stand that were put into the sockarray.
#[derive(Debug, Default)]
pub(super) struct Placement {
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

impl Programs {
    /// Puts one listener address's sockets (index = worker) into the sockarray under `generation` and
    /// attaches the reuseport program. They must be listening, with SO_REUSEPORT. A socket that already
    /// stands elsewhere moves; between the two the kernel's hash serves its flows.
    pub fn steer(
        &mut self,
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
        let program: &mut SkReuseport = program_mut(&mut self.ebpf, STEER)?;
        program.attach(first).map_err(|error| refused(format!("attaching the program: {}", chain(&error))))
    }

    /// Takes one address's sockets of `generation` out of the sockarray: it is about to retire them. The
    /// address is forgotten with its last generation.
    pub fn unsteer(&mut self, address: SocketAddr, generation: u32) -> Result<(), KernelError> {
        let Some(mut listener) = self.placement.listeners.get(&address).copied() else { return Ok(()) };
        let count = std::mem::take(&mut listener.sockets[(generation % GENERATIONS) as usize]);
        if listener.sockets.iter().all(|sockets| *sockets == 0) {
            let mut listeners = self.map_mut::<HashMap<_, ListenerKey, SteerListener>>(LISTENERS)?;
            match listeners.remove(&listener_key(address)) {
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
    pub fn clear_slots(&mut self, generation: u32) -> Result<(), KernelError> {
        let failed = |error| KernelError::map(loader::SLOTS, error);
        let mut slots = self.map_mut::<Array<_, WorkerSlot>>(loader::SLOTS)?;
        let first = slot_of(generation, 0);
        for index in first..first + WORKERS_MAX {
            let slot = slots.get(&index, 0).map_err(failed)?;
            // A later generation that shares this half is alive.
            if slot.state != proxy_common::steer::SLOT_EMPTY && slot.generation <= generation {
                slots.set(index, WorkerSlot::default(), 0).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The addresses that are steered, with the sockets of each generation.
    pub fn steered_listeners(&self) -> impl Iterator<Item = (SocketAddr, [u32; GENERATIONS as usize])> {
        self.placement.listeners.iter().map(|(address, listener)| (*address, listener.sockets))
    }

    fn publish(&mut self, address: SocketAddr, listener: SteerListener) -> Result<(), KernelError> {
        let mut listeners = self.map_mut::<HashMap<_, ListenerKey, SteerListener>>(LISTENERS)?;
        listeners
            .insert(listener_key(address), listener, 0)
            .map_err(|error| KernelError::map(LISTENERS, error))?;
        self.placement.listeners.insert(address, listener);
        Ok(())
    }

    /// Puts a socket to one place, from wherever it stands.
    fn place(&mut self, place: u32, socket: &BorrowedFd<'_>) -> Result<(), MapError> {
        let inode = inode(socket)?;
        let map = self.ebpf.map_mut(SOCKETS).ok_or(MapError::ElementNotFound)?;
        let mut array = ReusePortSockArray::try_from(map)?;
        let fd = &socket.as_raw_fd();
        let result = match array.set(place, fd, 0) {
            Err(error) if errno(&error) == Some(libc::EBUSY) => match self.placement.place_of(inode) {
                Some(present) if present == place => Ok(()),
                Some(present) => {
                    array.clear_index(&present)?;
                    self.placement.sockets.remove(&present);
                    array.set(place, fd, 0)
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
        let mut array = self.map_mut::<ReusePortSockArray<_>>(SOCKETS)?;
        match array.clear_index(&place) {
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
