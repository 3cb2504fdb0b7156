//! All upstreams of one worker. Each keeps its pool and balancer over snapshots, by its name.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::connector::{State, Upstream};
use super::model;
use crate::counters::Counters;
use crate::io::Io;
use crate::io::handshakes::Handshakes;

/// See the module.
#[derive(Debug)]
pub struct Registry {
    io: Io,
    counters: Counters,
    handshakes: Rc<Handshakes>,
    /// Of the current snapshot.
    states: RefCell<Vec<Rc<State>>>,
    states_made: Cell<u16>,
    /// Changes with every upstream that is new.
    random: Cell<u64>,
    draining: Cell<bool>,
}

impl Registry {
    /// None yet. `random` places the starts of balancers.
    #[must_use]
    pub const fn new(io: Io, counters: Counters, handshakes: Rc<Handshakes>, random: u64) -> Self {
        Self {
            io,
            counters,
            handshakes,
            states: RefCell::new(Vec::new()),
            states_made: Cell::new(0),
            random: Cell::new(random),
            draining: Cell::new(false),
        }
    }

    /// An upstream's state by the id in its tags.
    #[must_use]
    pub fn by_id(&self, id: u16) -> Option<Rc<State>> {
        self.states.borrow().iter().find(|state| state.id() == id).map(Rc::clone)
    }

    #[cfg(test)]
    pub(crate) fn each(&self, each: impl FnMut(&Rc<State>)) {
        self.states.borrow().iter().for_each(each);
    }

    /// Closes pooled connections; from now on nothing is kept open.
    pub fn drain(&self) {
        self.draining.set(true);
        let states: Vec<_> = self.states.borrow().iter().map(Rc::clone).collect();
        states.iter().for_each(|state| state.drain());
    }

    /// The upstreams of a new snapshot, after those of the snapshot before. What both share costs nothing
    /// here.
    #[must_use]
    pub fn succeed(&self, configs: &[Arc<model::Upstream>], before: &[Upstream]) -> Vec<Upstream> {
        let mut known: HashMap<&str, &Upstream> =
            before.iter().map(|upstream| (&*upstream.config.name, upstream)).collect();
        let succeed = |upstream: &Arc<model::Upstream>| {
            // What was connected under other TLS carries nothing more: such an upstream begins anew.
            let before =
                known.get(&*upstream.name).filter(|before| is_same_tls(&before.config, upstream)).copied();
            let state = match before {
                Some(before) => {
                    known.remove(&*upstream.name);
                    if !Arc::ptr_eq(&before.config, upstream) {
                        before.state.configure(upstream);
                    }
                    Rc::clone(&before.state)
                }
                None => self.new_state(upstream),
            };
            Upstream { config: Arc::clone(upstream), state }
        };
        let upstreams: Vec<_> = configs.iter().map(succeed).collect();
        known.values().for_each(|gone| gone.state.drain());
        *self.states.borrow_mut() = upstreams.iter().map(|upstream| Rc::clone(&upstream.state)).collect();
        upstreams
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
