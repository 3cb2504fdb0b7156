//! The state that all sessions of one worker share: the engine's handle, counters, the current snapshot,
//! upstream states, and the table of sessions. Single-threaded; borrows never cross an await.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

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
    /// TLS handshakes with its clients and endpoints.
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
        Self::with_random(io, counters, traffic, connections_max, access, random())
    }

    /// Like `new`, but every random choice comes from `random`, so that a simulation can be repeated.
    #[must_use]
    pub fn with_random(
        io: Io,
        counters: Counters,
        traffic: Arc<ArcSwap<Traffic>>,
        connections_max: usize,
        access: Option<AccessSender>,
        random: u64,
    ) -> Rc<Self> {
        let mut cache = Cache::new(traffic);
        let traffic = Arc::clone(cache.load());
        let handshakes = Rc::<Handshakes>::default();
        let upstreams = Registry::new(io.clone(), counters.clone(), Rc::clone(&handshakes), random);
        let snapshot = Rc::new(Snapshot { upstreams: upstreams.succeed(&traffic.upstreams, &[]), traffic });
        Rc::new(Self {
            io,
            counters,
            sessions: Sessions::new(connections_max),
            handshakes,
            access,
            current: RefCell::new(Current { cache, snapshot }),
            upstreams,
            drain: Signal::default(),
            ids: RequestIds::new(random),
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

    /// A request id that no other request of this data plane has.
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

#[derive(Debug)]
struct RequestIds {
    /// Random for each worker and start.
    prefix: u64,
    made: Cell<u64>,
}

impl RequestIds {
    const fn new(prefix: u64) -> Self {
        Self { prefix, made: Cell::new(0) }
    }

    fn make(&self) -> RequestId {
        let count = self.made.get();
        self.made.set(count.wrapping_add(1));
        RequestId::from_bits(u128::from(self.prefix) << 64 | u128::from(count))
    }
}

/// A random number from the seed of the standard library's hash maps; not for secrets.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_differ_and_are_tokens() {
        let ids = RequestIds::new(0x0123_4567_89ab_cdef);
        assert_eq!(ids.make().as_str(), "0123456789abcdef0000000000000000");
        assert_eq!(ids.make().as_str(), "0123456789abcdef0000000000000001");
    }
}
