//! The pool of shared connections: who gets a slot of which, and what ends when.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::testing::{LIMITS, at, endpoint, set};
use super::*;

fn slots(slots: u32) -> NonZero<u32> {
    NonZero::new(slots).expect("some")
}

/// The connection that a lease is on.
fn leased<C: Copy>(leased: Option<(ExchangeSlot, &C)>) -> Option<(ExchangeSlot, C)> {
    leased.map(|(slot, connection)| (slot, *connection))
}

impl<C> SharedPool<C> {
    fn check(&self) {
        let open = |(index, shared): (usize, &Shared<C>)| {
            shared.closed.is_none().then_some((index as u32, shared.endpoint))
        };
        let open: Vec<_> = self.connections.iter().filter_map(open).collect();
        assert_eq!(self.shelves.list(), open, "each open connection is on the shelf of its endpoint");
        let is_left = |shared: &Shared<C>| shared.closed.is_some() && shared.leased == 0;
        assert!(!self.connections.iter().any(|(_, shared)| is_left(shared)), "closed, and without leases");
        let mut aged: Vec<_> = self.ages.iter().collect();
        aged.sort_unstable();
        let idle = self.connections.iter().filter(|(_, shared)| shared.leased == 0);
        assert_eq!(aged, idle.map(|(index, _)| index as u32).collect::<Vec<_>>(), "each without leases ages");
    }
}

#[test]
fn fills_one_connection_before_the_next() {
    let mut pool = SharedPool::new(LIMITS, &set([1, 2]));
    let first = pool.insert(endpoint(1), 'a', slots(2), at(0));
    let other = pool.insert(endpoint(2), 'x', slots(2), at(0));
    let second = pool.insert(endpoint(1), 'b', slots(3), at(0));
    let (third, connection) = leased(pool.lease(endpoint(1), at(1))).expect("a slot");
    assert_eq!(connection, 'b', "of two that are as full, the younger");
    let (fourth, connection) = leased(pool.lease(endpoint(1), at(1))).expect("a slot");
    assert_eq!((connection, fourth.connection()), ('b', third.connection()));
    let (fifth, connection) = leased(pool.lease(endpoint(1), at(1))).expect("a slot");
    assert_eq!((connection, fifth.connection()), ('a', first.connection()), "the other is full");
    assert_eq!(pool.lease(endpoint(1), at(1)), None, "all are");
    for slot in [first, second, third, fourth, fifth, other] {
        assert_eq!(pool.release(slot, at(2)), None);
    }
    assert_eq!(pool.len(), 3);
    pool.check();
}

#[test]
fn follows_what_the_endpoint_allows() {
    let mut pool = SharedPool::new(LIMITS, &set([1]));
    let first = pool.insert(endpoint(1), 'a', slots(1), at(0));
    assert_eq!(pool.lease(endpoint(1), at(0)), None);
    let key = first.connection();
    pool.resize(key, 2);
    let (second, _) = pool.lease(endpoint(1), at(0)).expect("a slot");
    // Both go on, and only when both are over there is room again.
    pool.resize(key, 1);
    assert_eq!(pool.release(first, at(0)), None);
    assert_eq!(pool.lease(endpoint(1), at(0)), None);
    assert_eq!(pool.release(second, at(0)), None);
    assert!(pool.lease(endpoint(1), at(0)).is_some());
    pool.resize(key, 0);
    assert_eq!(pool.lease(endpoint(1), at(0)), None);
}

#[test]
fn a_closed_connection_ends_with_its_leases() {
    let mut pool = SharedPool::new(LIMITS, &set([1]));
    let first = pool.insert(endpoint(1), 'a', slots(9), at(0));
    let (second, _) = pool.lease(endpoint(1), at(0)).expect("a slot");
    assert_eq!(pool.close(first.connection(), PoolCloseReason::ClosedByUpstream), None);
    assert_eq!(pool.close(first.connection(), PoolCloseReason::Draining), None);
    assert_eq!(pool.lease(endpoint(1), at(0)), None);
    assert_eq!(pool.release(first, at(0)), None);
    assert_eq!(pool.release(second, at(0)), Some(('a', PoolCloseReason::ClosedByUpstream)));
    let slot = pool.insert(endpoint(1), 'b', slots(9), at(0));
    let key = slot.connection();
    assert_eq!(pool.release(slot, at(0)), None);
    assert_eq!(pool.close(key, PoolCloseReason::ClosedByUpstream), Some('b'));
    assert_eq!(pool.close(key, PoolCloseReason::ClosedByUpstream), None);
    assert!(pool.is_empty());
}

#[test]
fn leases_of_a_dead_connection_come_to_nothing() {
    let mut pool = SharedPool::new(LIMITS, &set([1]));
    let slot = pool.insert(endpoint(1), 'a', slots(2), at(0));
    let dead = slot.connection();
    assert_eq!(pool.remove(dead), Some('a'));
    let other = pool.insert(endpoint(1), 'b', slots(2), at(0));
    assert_eq!(pool.release(slot, at(0)), None);
    pool.resize(dead, 0);
    assert_eq!((pool.remove(dead), pool.close(dead, PoolCloseReason::Draining)), (None, None));
    assert_eq!(leased(pool.lease(endpoint(1), at(0))).map(|(_, connection)| connection), Some('b'));
    assert_eq!(pool.release(other, at(0)), None);
}

#[test]
fn only_a_connection_without_leases_idles_and_ages_out() {
    let mut pool = SharedPool::new(LIMITS, &set([1]));
    let slot = pool.insert(endpoint(1), 'a', slots(2), at(0));
    assert_eq!((pool.next_deadline(), pool.poll_expired(at(3000))), (None, None));
    assert_eq!(pool.release(slot, at(3000)), None);
    assert_eq!(pool.next_deadline(), Some(at(3060)));
    assert_eq!(pool.poll_expired(at(3059)), None);
    let (slot, _) = pool.lease(endpoint(1), at(3059)).expect("a slot");
    assert_eq!(pool.poll_expired(at(3060)), None);
    assert_eq!(pool.release(slot, at(3070)), None);
    assert_eq!(pool.lease(endpoint(1), at(3130)), None, "its time is over, though nobody took it out yet");
    assert_eq!(pool.poll_expired(at(3130)), Some(('a', PoolCloseReason::IdleTimeout)));
    let slot = pool.insert(endpoint(1), 'b', slots(2), at(0));
    assert_eq!(pool.lease(endpoint(1), at(3600)), None);
    assert_eq!(pool.release(slot, at(3601)), Some(('b', PoolCloseReason::MaxLifetime)));
}

#[test]
fn those_above_max_idle_leave_sooner() {
    let mut pool = SharedPool::new(LIMITS, &set([1]));
    let leases: Vec<_> = (0..6).map(|number| pool.insert(endpoint(1), number, slots(1), at(0))).collect();
    for slot in leases {
        assert_eq!(pool.release(slot, at(1)), None);
    }
    assert_eq!(pool.next_deadline(), Some(at(11)));
    assert_eq!(pool.poll_expired(at(11)), Some((0, PoolCloseReason::MaxIdle)));
    assert_eq!(pool.poll_expired(at(11)), Some((1, PoolCloseReason::MaxIdle)));
    assert_eq!((pool.poll_expired(at(11)), pool.next_deadline()), (None, Some(at(61))));
    pool.configure(PoolLimits { max_idle: 0, ..LIMITS });
    let slot = pool.insert(endpoint(1), 6, slots(1), at(12));
    assert_eq!(pool.release(slot, at(12)), Some((6, PoolCloseReason::MaxIdle)), "none is wanted");
}

#[test]
fn a_connection_whose_endpoint_is_gone_serves_the_exchanges_that_it_has() {
    let mut pool = SharedPool::new(LIMITS, &set([1, 2]));
    let used = pool.insert(endpoint(1), 'a', slots(9), at(0));
    let idle = pool.insert(endpoint(1), 'b', slots(9), at(0));
    assert_eq!(pool.release(idle, at(0)), None);
    assert_eq!(pool.follow(&set([2])), ['b']);
    assert_eq!(pool.lease(endpoint(1), at(0)), None);
    assert_eq!(pool.release(used, at(0)), Some(('a', PoolCloseReason::EndpointRemoved)));
    // Gone while it was connected to.
    let late = pool.insert(endpoint(1), 'c', slots(9), at(0));
    assert_eq!(pool.lease(endpoint(1), at(0)), None);
    assert_eq!(pool.release(late, at(0)), Some(('c', PoolCloseReason::EndpointRemoved)));
    let slot = pool.insert(endpoint(2), 'd', slots(9), at(0));
    assert!(pool.drain().is_empty());
    assert_eq!(pool.release(slot, at(0)), Some(('d', PoolCloseReason::Draining)));
}

/// What may happen to a pool of connections.
#[derive(Clone, Copy, Debug)]
enum Event {
    Insert { endpoint: u8, slots: u32 },
    Lease { endpoint: u8 },
    Release { lease: usize },
    Resize { connection: usize, slots: u32 },
    Close { connection: usize },
    Die { connection: usize },
    Expire,
    Follow { first: u8 },
    Drain,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1..4u8, 1..4u32).prop_map(|(endpoint, slots)| Event::Insert { endpoint, slots }),
        12 => (1..4u8).prop_map(|endpoint| Event::Lease { endpoint }),
        12 => any::<usize>().prop_map(|lease| Event::Release { lease }),
        3 => (any::<usize>(), 0..4u32).prop_map(|(connection, slots)| Event::Resize { connection, slots }),
        1 => any::<usize>().prop_map(|connection| Event::Close { connection }),
        1 => any::<usize>().prop_map(|connection| Event::Die { connection }),
        2 => Just(Event::Expire),
        1 => (1..4u8).prop_map(|first| Event::Follow { first }),
        1 => Just(Event::Drain),
    ]
}

/// A connection as the test knows it.
struct Known {
    key: PoolKey,
    endpoint: u8,
    slots: u32,
    leased: u32,
    is_closed: bool,
}

/// A pool, and what is known of its connections, which are numbers.
struct Model {
    pool: SharedPool<u32>,
    endpoints: [u8; 2],
    known: BTreeMap<u32, Known>,
    /// Each lease with the connection that it is on.
    leases: Vec<(ExchangeSlot, u32)>,
    made: u32,
}

impl Model {
    fn new() -> Self {
        let pool = SharedPool::new(LIMITS, &set([1, 2]));
        Self { pool, endpoints: [1, 2], known: BTreeMap::new(), leases: Vec::new(), made: 0 }
    }

    /// A connection came back without leases.
    fn came_back(&mut self, connection: u32) {
        let known = self.known.remove(&connection).expect("it was in the pool");
        assert_eq!(known.leased, 0, "{connection} came back with leases");
    }

    /// One of those in the pool.
    fn any(&self, choice: usize) -> Option<u32> {
        self.known.keys().nth(choice % self.known.len().max(1)).copied()
    }

    fn release(&mut self, (slot, connection): (ExchangeSlot, u32), now: Time) {
        let is_dead = !self.known.get(&connection).is_some_and(|known| known.key == slot.connection());
        let back = self.pool.release(slot, now);
        let Some(known) = self.known.get_mut(&connection).filter(|_| !is_dead) else {
            return assert_eq!(back, None, "{connection} is dead");
        };
        known.leased -= 1;
        let is_last_of_closed = known.leased == 0 && known.is_closed;
        assert!(back.is_some() || !is_last_of_closed, "{connection} stays though nothing is left of it");
        if let Some((number, _)) = back {
            assert_eq!(number, connection);
            self.came_back(connection);
        }
    }

    fn step(&mut self, event: Event, now: Time) {
        match event {
            Event::Insert { endpoint: last, slots: count } => {
                let slot = self.pool.insert(endpoint(last), self.made, slots(count), now);
                let is_closed = !self.endpoints.contains(&last);
                let key = slot.connection();
                let known = Known { key, endpoint: last, slots: count, leased: 1, is_closed };
                self.known.insert(self.made, known);
                self.leases.push((slot, self.made));
                self.made += 1;
            }
            Event::Lease { endpoint: last } => {
                if let Some((slot, number)) = leased(self.pool.lease(endpoint(last), now)) {
                    let known = self.known.get_mut(&number).expect("it is in the pool");
                    assert!(known.leased < known.slots, "more leases than slots on {number}");
                    assert!(!known.is_closed && known.endpoint == last, "{number} was leased");
                    known.leased += 1;
                    self.leases.push((slot, number));
                }
            }
            Event::Release { lease } => {
                if !self.leases.is_empty() {
                    let lease = self.leases.swap_remove(lease % self.leases.len());
                    self.release(lease, now);
                }
            }
            Event::Resize { connection, slots } => {
                if let Some(known) = self.any(connection).and_then(|number| self.known.get_mut(&number)) {
                    known.slots = slots;
                    self.pool.resize(known.key, slots);
                }
            }
            Event::Close { connection } => {
                let Some(number) = self.any(connection) else { return };
                self.known.get_mut(&number).expect("it is there").is_closed = true;
                let back = self.pool.close(self.known[&number].key, PoolCloseReason::ClosedByUpstream);
                assert_eq!(back.is_some(), self.known[&number].leased == 0);
                back.into_iter().for_each(|number| self.came_back(number));
            }
            Event::Die { connection } => {
                let Some(number) = self.any(connection) else { return };
                let known = self.known.remove(&number).expect("it is there");
                assert_eq!(self.pool.remove(known.key), Some(number));
            }
            Event::Expire => {
                while let Some((number, _)) = self.pool.poll_expired(now) {
                    self.came_back(number);
                }
            }
            Event::Follow { first } => {
                self.endpoints = [first, first % 3 + 1];
                let back = self.pool.follow(&set(self.endpoints));
                back.into_iter().for_each(|number| self.came_back(number));
                let endpoints = self.endpoints;
                let gone = self.known.values_mut().filter(|known| !endpoints.contains(&known.endpoint));
                gone.for_each(|known| known.is_closed = true);
            }
            Event::Drain => {
                self.pool.drain().into_iter().for_each(|number| self.came_back(number));
                self.known.values_mut().for_each(|known| known.is_closed = true);
            }
        }
    }
}

proptest! {
    /// Slots are conserved, no connection has more leases than slots, and no slot of a closed connection is
    /// leased.
    #[test]
    fn conserves_slots(steps in prop::collection::vec((event(), 0..30u64), 1..300)) {
        let mut model = Model::new();
        let mut clock = 0;
        for (event, passed) in steps {
            clock += passed;
            model.step(event, at(clock));
            model.pool.check();
            prop_assert_eq!(model.pool.len(), model.known.len());
            let leased: u32 = model.known.values().map(|known| known.leased).sum();
            let alive = |(slot, number): &&(ExchangeSlot, u32)| {
                model.known.get(number).is_some_and(|known| known.key == slot.connection())
            };
            prop_assert_eq!(leased as usize, model.leases.iter().filter(alive).count());
            let idle = model.known.values().filter(|known| known.leased == 0).count();
            prop_assert_eq!(model.pool.next_deadline().is_some(), idle > 0);
        }
        while let Some(lease) = model.leases.pop() {
            model.release(lease, at(clock));
        }
        model.step(Event::Drain, at(clock));
        prop_assert!(model.pool.is_empty() && model.known.is_empty());
    }
}
