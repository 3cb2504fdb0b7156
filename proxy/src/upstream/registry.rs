//! All upstreams of one worker. Each keeps its pool and balancer over snapshots, by its name.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::endpoint_set::EndpointSet;
use super::group::{Group, Upstream};
use super::model;
use crate::counters::Counters;
use crate::io::Io;
use crate::io::handshakes::Handshakes;

/// See the module.
#[derive(Debug)]
pub struct Registry {
    io: Io,
    /// See `Group::new`.
    streams_easy: usize,
    counters: Counters,
    handshakes: Rc<Handshakes>,
    /// Of the current snapshot.
    groups: RefCell<Vec<Rc<Group>>>,
    ids_given: Cell<u16>,
    /// Changes with every upstream that is new.
    random: Cell<u64>,
    draining: Cell<bool>,
}

impl Registry {
    /// None yet. `random` places the starts of balancers. See `Group::new` for `streams_easy`.
    #[must_use]
    pub fn new(
        (io, streams_easy): (Io, usize),
        counters: Counters,
        handshakes: Rc<Handshakes>,
        random: u64,
    ) -> Self {
        Self {
            io,
            streams_easy,
            counters,
            handshakes,
            groups: RefCell::new(Vec::new()),
            ids_given: Cell::new(0),
            random: Cell::new(random),
            draining: Cell::new(false),
        }
    }

    /// An upstream's group by the id in its tags.
    #[must_use]
    pub fn by_id(&self, id: u16) -> Option<Rc<Group>> {
        self.groups.borrow().iter().find(|group| group.id() == id).map(Rc::clone)
    }

    #[cfg(test)]
    pub(crate) fn each(&self, each: impl FnMut(&Rc<Group>)) {
        self.groups.borrow().iter().for_each(each);
    }

    /// Closes pooled connections; from now on nothing is kept open.
    pub fn drain(&self) {
        self.draining.set(true);
        let groups: Vec<_> = self.groups.borrow().iter().map(Rc::clone).collect();
        groups.iter().for_each(|group| group.drain());
    }

    /// The endpoints of the upstream of this name are these from now on, if the current snapshot has it. They
    /// stay until the next call, or until the configuration of this upstream changes.
    pub fn publish(&self, upstream: &str, endpoints: &EndpointSet) {
        let group = self.groups.borrow().iter().find(|group| group.name() == upstream).map(Rc::clone);
        if let Some(group) = group {
            group.follow(endpoints);
        }
    }

    /// The upstreams of a new snapshot, which follows the snapshot with the upstreams `before`. An upstream
    /// that is the same in both costs nothing.
    #[must_use]
    pub fn succeed(&self, configs: &[Arc<model::Upstream>], before: &[Upstream]) -> Vec<Upstream> {
        let mut known: HashMap<&str, &Upstream> =
            before.iter().map(|upstream| (&*upstream.config.name, upstream)).collect();
        let succeed = |upstream: &Arc<model::Upstream>| {
            // Connections under other TLS settings carry nothing more: such an upstream begins anew.
            let before =
                known.get(&*upstream.name).filter(|before| is_same_tls(&before.config, upstream)).copied();
            let group = match before {
                Some(before) => {
                    known.remove(&*upstream.name);
                    if !Arc::ptr_eq(&before.config, upstream) {
                        before.group.configure(upstream);
                    }
                    Rc::clone(&before.group)
                }
                None => self.new_group(upstream),
            };
            Upstream { config: Arc::clone(upstream), group }
        };
        let upstreams: Vec<_> = configs.iter().map(succeed).collect();
        known.values().for_each(|gone| gone.group.drain());
        *self.groups.borrow_mut() = upstreams.iter().map(|upstream| Rc::clone(&upstream.group)).collect();
        upstreams
    }

    fn new_group(&self, upstream: &model::Upstream) -> Rc<Group> {
        // After 65,536 ids the first come again, and an upstream may still have one of them.
        let mut id = self.ids_given.get();
        while self.groups.borrow().iter().any(|group| group.id() == id) {
            id = id.wrapping_add(1);
        }
        self.ids_given.set(id.wrapping_add(1));
        self.random.set(self.random.get().wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
        let random = self.random.get() >> 16;
        let (io, counters, handshakes) =
            ((self.io.clone(), self.streams_easy), self.counters.clone(), Rc::clone(&self.handshakes));
        let group = Rc::new(Group::new(id, upstream, io, counters, handshakes, random));
        if self.draining.get() {
            group.drain();
        }
        group
    }
}

/// Equal settings are one object in both configurations.
fn is_same_tls(before: &model::Upstream, after: &model::Upstream) -> bool {
    match (&before.tls, &after.tls) {
        (None, None) => true,
        (Some(before), Some(after)) => Arc::ptr_eq(before, after),
        _ => false,
    }
}
