//! What every session of one worker shares: the engine's handle, counters, the current snapshot, upstream
//! states, and the table of sessions. Single-threaded; borrows never cross an await.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::handshakes::Handshakes;
use super::sessions::Sessions;
use crate::config::model;
use crate::control::shared::Counters;
use crate::http::forward::RequestId;
use crate::io::Io;
use crate::telemetry::access::AccessSender;
use crate::upstream::connector::{State, Upstream};

/// One compiled configuration, as one worker uses it.
#[derive(Debug)]
pub struct Snapshot {
    /// What it was compiled from.
    pub config: Arc<model::Config>,
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
    /// `None`: the access log is off.
    pub access: Option<AccessSender>,
    current: RefCell<Current>,
    /// Of the current snapshot.
    states: RefCell<Vec<Rc<State>>>,
    states_made: Cell<u16>,
    ids: RequestIds,
    /// Changes with every upstream that is new.
    random: Cell<u64>,
    draining: Cell<bool>,
}

#[derive(Debug)]
struct Current {
    cache: Cache<Arc<ArcSwap<model::Config>>, Arc<model::Config>>,
    snapshot: Rc<Snapshot>,
}

impl Worker {
    /// A worker that has done nothing yet.
    #[must_use]
    pub fn new(
        io: Io,
        counters: Counters,
        config: Arc<ArcSwap<model::Config>>,
        connections_max: usize,
        access: Option<AccessSender>,
    ) -> Rc<Self> {
        Self::with_random(io, counters, config, connections_max, access, random())
    }

    /// The same, with every choice made from this number.
    #[must_use]
    pub fn with_random(
        io: Io,
        counters: Counters,
        config: Arc<ArcSwap<model::Config>>,
        connections_max: usize,
        access: Option<AccessSender>,
        random: u64,
    ) -> Rc<Self> {
        let mut cache = Cache::new(config);
        let config = Arc::clone(cache.load());
        let empty = Rc::new(Snapshot { config: Arc::clone(&config), upstreams: Vec::new() });
        let worker = Rc::new(Self {
            io,
            counters,
            sessions: Sessions::new(connections_max),
            handshakes: Rc::default(),
            access,
            current: RefCell::new(Current { cache, snapshot: Rc::clone(&empty) }),
            states: RefCell::default(),
            states_made: Cell::new(0),
            ids: RequestIds::new(random),
            random: Cell::new(random),
            draining: Cell::new(false),
        });
        let snapshot = worker.compile(config, &empty);
        worker.current.borrow_mut().snapshot = snapshot;
        worker
    }

    /// The snapshot that is current now. An exchange keeps the one it started with.
    #[must_use]
    pub fn snapshot(&self) -> Rc<Snapshot> {
        let (newer, before) = {
            let mut current = self.current.borrow_mut();
            let Current { cache, snapshot } = &mut *current;
            let latest = cache.load();
            if Arc::ptr_eq(latest, &snapshot.config) {
                return Rc::clone(snapshot);
            }
            (Arc::clone(latest), Rc::clone(snapshot))
        };
        let snapshot = self.compile(newer, &before);
        self.current.borrow_mut().snapshot = Rc::clone(&snapshot);
        snapshot
    }

    /// An upstream's state by the id in its tags.
    #[must_use]
    pub fn upstream(&self, id: u16) -> Option<Rc<State>> {
        self.states.borrow().iter().find(|state| state.id() == id).map(Rc::clone)
    }

    #[cfg(test)]
    pub(super) fn each_upstream(&self, each: impl FnMut(&Rc<State>)) {
        self.states.borrow().iter().for_each(each);
    }

    /// A request id that no other request of this data plane has.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        self.ids.make()
    }

    /// Whether connections are to be closed at their next boundary.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Closes pooled connections; from now on nothing is kept open.
    pub fn start_draining(&self) {
        self.draining.set(true);
        let states: Vec<_> = self.states.borrow().iter().map(Rc::clone).collect();
        states.iter().for_each(|state| state.drain());
    }

    /// Upstreams keep their pools and balancers over snapshots, by name. What a new one shares with the one
    /// before costs nothing here.
    fn compile(&self, config: Arc<model::Config>, before: &Snapshot) -> Rc<Snapshot> {
        let mut known: HashMap<&str, &Upstream> =
            before.upstreams.iter().map(|upstream| (upstream.config.name.as_str(), upstream)).collect();
        let succeed = |upstream: &Arc<model::Upstream>| {
            // What was connected under other TLS carries nothing more: such an upstream begins anew.
            let before = known
                .get(upstream.name.as_str())
                .filter(|before| is_same_tls(&before.config, upstream))
                .copied();
            let state = match before {
                Some(before) => {
                    known.remove(upstream.name.as_str());
                    if !Arc::ptr_eq(&before.config, upstream) {
                        before.state.configure(upstream);
                    }
                    Rc::clone(&before.state)
                }
                None => self.new_state(upstream),
            };
            Upstream { config: Arc::clone(upstream), state }
        };
        let upstreams: Vec<_> = config.upstreams.iter().map(succeed).collect();
        known.values().for_each(|gone| gone.state.drain());
        *self.states.borrow_mut() = upstreams.iter().map(|upstream| Rc::clone(&upstream.state)).collect();
        Rc::new(Snapshot { upstreams, config })
    }

    fn new_state(&self, upstream: &model::Upstream) -> Rc<State> {
        // After 65,536 of them the first ids come again, which some may have still.
        let mut id = self.states_made.get();
        while self.states.borrow().iter().any(|state| state.id() == id) {
            id = id.wrapping_add(1);
        }
        self.states_made.set(id.wrapping_add(1));
        self.random.set(self.random.get().wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
        let random = self.random.get() >> 16;
        let (io, counters, handshakes) =
            (self.io.clone(), self.counters.clone(), Rc::clone(&self.handshakes));
        let state = Rc::new(State::new(id, upstream, io, counters, handshakes, random));
        if self.draining.get() {
            state.drain();
        }
        state
    }
}

/// A new configuration shares with the one before what is equal.
fn is_same_tls(before: &model::Upstream, after: &model::Upstream) -> bool {
    match (&before.tls, &after.tls) {
        (None, None) => true,
        (Some(before), Some(after)) => Arc::ptr_eq(before, after),
        _ => false,
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

/// Not for secrets: the standard library's per-process hash seed.
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
