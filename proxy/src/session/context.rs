//! The state that all sessions of one worker share: the engine's handle, counters, the current snapshot,
//! upstream states, and the table of sessions. Single-threaded; borrows never cross an await.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use aws_lc_rs::rand;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::crowd::Crowd;
use super::table::Sessions;
use super::traffic::Traffic;
use crate::access_log::AccessSender;
use crate::counters::Counters;
use crate::exchange::Signal;
use crate::http::forward::RequestId;
use crate::io::Io;
use crate::io::handshakes::Handshakes;
use crate::upstream::group::Upstream;
use crate::upstream::registry::Registry;

/// One compiled configuration, as one worker uses it.
#[derive(Debug)]
pub struct Snapshot {
    /// The part of the configuration that it was made from.
    pub traffic: Arc<Traffic>,
    /// Its upstreams, by the index that routes use.
    pub upstreams: Vec<Upstream>,
}

/// See the module.
#[derive(Debug)]
pub struct Worker {
    /// The engine.
    pub io: Io,
    /// This worker's counters.
    pub counters: Counters,
    /// Its downstream connections.
    pub sessions: Sessions,
    /// Who waits and who gives way while there are too many of them.
    pub crowd: Crowd,
    /// The time that TLS handshakes with its clients and endpoints may take of a loop turn.
    pub handshakes: Rc<Handshakes>,
    /// Where entries of the access log go; `None` while the log is off.
    pub access: Option<AccessSender>,
    current: RefCell<Current>,
    /// The pools and balancers of all upstreams; they outlive snapshots.
    pub upstreams: Registry,
    /// Given when a drain begins; each session then ends at its next boundary.
    pub drain: Signal,
    ids: RequestIds,
}

#[derive(Debug)]
struct Current {
    cache: Cache<Arc<ArcSwap<Traffic>>, Arc<Traffic>>,
    snapshot: Rc<Snapshot>,
}

impl Worker {
    /// A worker that has done nothing yet.
    #[must_use]
    pub fn new(
        io: Io,
        counters: Counters,
        traffic: Arc<ArcSwap<Traffic>>,
        connections_max: usize,
        access: Option<AccessSender>,
    ) -> Rc<Self> {
        Self::with_random(io, counters, traffic, connections_max, access, ChaCha20Rng::from_seed(random()))
    }

    /// Like `new`, but every random choice comes from `random`, so that a simulation can be repeated.
    #[must_use]
    pub fn with_random(
        io: Io,
        counters: Counters,
        traffic: Arc<ArcSwap<Traffic>>,
        connections_max: usize,
        access: Option<AccessSender>,
        mut random: ChaCha20Rng,
    ) -> Rc<Self> {
        let mut cache = Cache::new(traffic);
        let traffic = Arc::clone(cache.load());
        let handshakes = Rc::<Handshakes>::default();
        // So many descriptors there are surely, beside the upstreams' own share.
        let engine = (io.clone(), connections_max);
        let upstreams = Registry::new(engine, counters.clone(), Rc::clone(&handshakes), random.next_u64());
        let snapshot = Rc::new(Snapshot { upstreams: upstreams.succeed(&traffic.upstreams, &[]), traffic });
        Rc::new(Self {
            io,
            counters,
            sessions: Sessions::new(connections_max),
            crowd: Crowd::default(),
            handshakes,
            access,
            current: RefCell::new(Current { cache, snapshot }),
            upstreams,
            drain: Signal::default(),
            ids: RequestIds(RefCell::new(random)),
        })
    }

    /// The snapshot that is current now. An exchange keeps the one it started with.
    #[must_use]
    pub fn snapshot(&self) -> Rc<Snapshot> {
        let (newer, before) = {
            let mut current = self.current.borrow_mut();
            let Current { cache, snapshot } = &mut *current;
            let latest = cache.load();
            if Arc::ptr_eq(latest, &snapshot.traffic) {
                return Rc::clone(snapshot);
            }
            (Arc::clone(latest), Rc::clone(snapshot))
        };
        let upstreams = self.upstreams.succeed(&newer.upstreams, &before.upstreams);
        let snapshot = Rc::new(Snapshot { traffic: newer, upstreams });
        self.current.borrow_mut().snapshot = Rc::clone(&snapshot);
        snapshot
    }

    /// A request id that nobody can guess, and that tells nothing about other requests.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        self.ids.make()
    }

    /// Whether connections are to be closed at their next boundary.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.drain.is_given()
    }

    /// Begins a drain: tells the sessions, closes pooled connections, and from now on keeps none open.
    pub fn start_draining(&self) {
        self.drain.give();
        self.upstreams.drain();
    }
}

/// Makes request ids: a keyed stream of random numbers, a few blocks at a time, without system calls.
#[derive(Debug)]
struct RequestIds(RefCell<ChaCha20Rng>);

impl RequestIds {
    fn make(&self) -> RequestId {
        let random = &mut *self.0.borrow_mut();
        RequestId::from_bits(u128::from(random.next_u64()) << 64 | u128::from(random.next_u64()))
    }
}

/// A seed from the system's randomness.
fn random() -> [u8; 32] {
    let mut seed = [0; 32];
    if rand::fill(&mut seed).is_err() {
        // The library never says so. The keys of hash maps come from the system too.
        for word in seed.chunks_exact_mut(8) {
            word.copy_from_slice(&RandomState::new().build_hasher().finish().to_ne_bytes());
        }
    }
    seed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Before, an id was a number of its worker and a count.
    #[test]
    fn request_ids_cannot_be_guessed_or_counted() {
        let ids = RequestIds(RefCell::new(ChaCha20Rng::from_seed(random())));
        let made: Vec<u128> = (0..1000)
            .map(|_| u128::from_str_radix(ids.make().as_str(), 16).expect("hexadecimal digits"))
            .collect();
        // Each bit differs from one id to the next about half of the time.
        for bit in 0..128 {
            let changes = made.windows(2).filter(|pair| (pair[0] ^ pair[1]) >> bit & 1 != 0).count();
            assert!((350..650).contains(&changes), "bit {bit} changes {changes} times of 999");
        }
        let others = RequestIds(RefCell::new(ChaCha20Rng::from_seed(random())));
        assert_ne!(others.make(), ids.make(), "another worker's");
    }
}
