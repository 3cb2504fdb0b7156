//! One run of a seed: the worker's loop over the simulated ring, with everything checked after every turn and
//! at the end.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Once};
use std::time::Duration;

use arc_swap::ArcSwap;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::book::{Book, Tally};
use super::plan::{Endpoint, Plan, Turn, Way};
use super::trace::Trace;
use super::{client, origin, through};
use crate::config::testing;
use crate::control::commands::Command;
use crate::control::slots::SteeringSlot;
use crate::counters::Counters;
use crate::counters::{Counter, Plain};
use crate::error::{HandshakeFailure, HandshakeKind, RefusalReason};
use crate::io::Engine;
use crate::io::simulated::{Sim, SimListener, SimRing};
use crate::session::context::Worker;
use crate::session::traffic::Traffic;
use crate::time::Time;
use crate::worker::checks::check_invariants;
use crate::worker::drain::Phase;
use crate::worker::events::Events;
use crate::worker::listener_tag;
use crate::worker::testing::origin_address;

/// More turns than any seed takes.
const TURNS_MAX: usize = 2_000_000;
/// More virtual time than any seed takes.
const TIME_MAX: Duration = Duration::from_secs(20_000);

/// The result of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    pub(super) hash: u64,
    pub(super) events: u64,
    pub(super) tally: Tally,
    /// Handshakes made and failed: with clients, with endpoints.
    pub(super) handshakes: [[u64; 2]; 2],
    /// Requests served before their client's handshake was over.
    pub(super) early: u64,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has panics of this thread kept instead of printed while a seed runs: they are its findings.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let kept = PANIC.with_borrow_mut(|kept| match kept {
                Some(text) => {
                    // The first is the cause.
                    if text.is_empty() {
                        *text = info.to_string();
                    }
                    true
                }
                None => false,
            });
            if !kept {
                before(info);
            }
        }));
    });
}

/// Runs a seed; `Err` says which invariant broke.
pub(super) fn run(seed: u64, prints: bool) -> Result<Report, String> {
    keep_panics();
    PANIC.set(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(|| World::new(seed, prints).run()));
    let kept = PANIC.take().unwrap_or_default();
    result.map_err(|payload| if kept.is_empty() { text(&*payload) } else { kept })
}

fn text(payload: &dyn Any) -> String {
    payload.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic without a text".into())
}

/// A party that connects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Party {
    Client(usize),
    Through(usize),
}

struct World {
    plan: Rc<Plan>,
    book: Book,
    sim: Sim,
    engine: Engine<SimRing>,
    events: Events,
    listeners: Vec<SimListener>,
    traffic: Arc<ArcSwap<Traffic>>,
    phase: Phase,
    start: Time,
    done: bool,
}

impl World {
    fn new(seed: u64, prints: bool) -> Self {
        let plan = Rc::new(Plan::new(seed));
        let trace = Trace::new(prints);
        let (mut engine, sim) = Sim::engine(seed, plan.faults, plan.memory, plan.settings);
        let observed = trace.clone();
        sim.observe(Box::new(move |now, what| observed.note(now, what)));
        let traffic = Arc::new(ArcSwap::from_pointee(testing::traffic(&plan.config)));
        let worker = Worker::with_random(
            engine.io(),
            Counters::private(),
            Arc::clone(&traffic),
            plan.connections_max,
            None,
            ChaCha20Rng::seed_from_u64(seed),
        );
        // A step of a handshake takes as much of a turn every time.
        worker.handshakes.step_time.set(Some(Duration::from_micros(30)));
        // Numbers are given in the order of the file.
        let listeners: Vec<_> = plan.config.listeners.iter().map(|_| sim.listener()).collect();
        for ((id, _), &listener) in traffic.load().listeners.iter().zip(&listeners) {
            engine.add_listener(listener, listener_tag(id));
        }
        let events = Events::new(worker, SteeringSlot::private(), Duration::from_secs(u64::from(u32::MAX)));
        let book = Book::new(Rc::clone(&plan), trace);
        let start = sim.now();
        let mut world = Self {
            plan,
            book,
            sim,
            engine,
            events,
            listeners,
            traffic,
            phase: Phase::Serving,
            start,
            done: false,
        };
        world.open_endpoints();
        world
    }

    fn open_endpoints(&mut self) {
        for (index, endpoint) in self.plan.endpoints.iter().enumerate() {
            let address = origin_address(index as u8 + 1);
            match endpoint {
                Endpoint::Refuses => self.sim.refuse(address),
                Endpoint::Silent => self.sim.silence(address),
                Endpoint::Serves { .. } => {
                    let book = self.book.clone();
                    let mut connections = 0;
                    self.sim.serve(address, move || {
                        connections += 1;
                        origin::script(&book, index, connections)
                    });
                }
            }
        }
        if !self.plan.throughs.is_empty() {
            for endpoint in Way::ENDPOINTS {
                let book = self.book.clone();
                self.sim.serve(origin_address(endpoint), move || through::origin(&book, endpoint));
            }
        }
    }

    fn connect(&self, party: Party, now: Time) {
        let plan = &self.plan;
        let (listener, script) = match party {
            Party::Client(number) => {
                (usize::from(plan.clients[number].secure.is_some()), client::script(&self.book, number, now))
            }
            Party::Through(number) => {
                (plan.throughs[number].way.listener(), through::client(&self.book, number, now))
            }
        };
        self.sim.connect(self.listeners[listener]).script(script);
    }

    fn run(mut self) -> Report {
        let plan = Rc::clone(&self.plan);
        let calm = if plan.calm { "calm" } else { "not calm" };
        self.book.note(self.start, format_args!("the world is {calm}: {:?}, {:?}", plan.faults, plan.memory));
        self.book.note(
            self.start,
            format_args!(
                "listener: {:?}, {}",
                plan.config.listeners[0].timeouts,
                // Traces stay what they were, whatever the type is called.
                format!("{:?}", plan.config.listeners[0].limits).trim_start_matches("Listener")
            ),
        );
        let clients =
            plan.clients.iter().enumerate().map(|(number, client)| (client.connects, Party::Client(number)));
        let throughs = plan
            .throughs
            .iter()
            .enumerate()
            .map(|(number, through)| (through.connects, Party::Through(number)));
        let mut clients: Vec<_> = clients.chain(throughs).collect();
        clients.sort_unstable();
        let mut clients = clients.into_iter().peekable();
        let mut turns = plan.turns.iter().peekable();
        for _ in 0..TURNS_MAX {
            let now = self.sim.now();
            while let Some((_, party)) = clients.next_if(|(at, _)| self.start + *at <= now) {
                self.connect(party, now);
            }
            while let Some((_, turn)) = turns.next_if(|(at, _)| self.start + *at <= now) {
                self.obey(turn);
            }
            let next = [clients.peek().map(|(at, _)| *at), turns.peek().map(|(at, _)| *at)]
                .into_iter()
                .flatten()
                .min();
            self.sim.set_horizon(next.map(|at| self.start + at));
            self.turn();
            if self.done || (self.sim.is_quiet() && self.engine.is_quiet() && next.is_none()) {
                return self.end();
            }
            assert!(now.since(self.start) < TIME_MAX, "no end after {TIME_MAX:?}");
        }
        panic!("no end in {TURNS_MAX} turns");
    }

    fn turn(&mut self) {
        self.engine.turn(&mut self.events).expect("the simulated ring does not fail");
        self.events.publish(self.engine.stats());
        let worker = Rc::clone(self.events.worker());
        self.sim.check_invariants();
        check_invariants(&worker, &self.engine);
        if self.phase.advance(&worker, &mut self.engine) {
            self.done = true;
        }
    }

    fn obey(&mut self, turn: &Turn) {
        let now = self.sim.now();
        self.book.note(now, format_args!("worker: {turn:?}"));
        let command = match turn {
            Turn::Configure { endpoints } => {
                let mut config = self.plan.config.clone();
                let mut upstream = (*config.upstreams[0]).clone();
                upstream.endpoints.truncate(*endpoints);
                config.upstreams[0] = Arc::new(upstream);
                return self.traffic.store(Arc::new(testing::traffic(&config)));
            }
            Turn::Drain { within } => Command::Drain { deadline: now + *within },
            Turn::Stop => Command::Stop,
        };
        let worker = Rc::clone(self.events.worker());
        self.phase.obey(command, &worker, &mut self.engine, self.events.steering());
    }

    /// Checks the end: nothing can happen any more, or the worker is done.
    fn end(mut self) -> Report {
        self.events.publish(self.engine.stats());
        let tally = *self.book.tally();
        let (engine, worker) = (&self.engine, self.events.worker());
        // A worker that stops returns at its deadline, even with connections that are still closing. The
        // engine's end closes them.
        if !matches!(self.phase, Phase::Stopping { .. }) || engine.streams() == 0 {
            assert_eq!(engine.streams(), 0, "streams at the end");
            assert_eq!(self.sim.open_sockets(), 0, "sockets at the end");
            assert!(engine.is_memory_free(), "buffers or budget at the end: {:?}", engine.stats());
        }
        assert_eq!(worker.sessions.open(), 0, "sessions at the end");
        assert!(worker.crowd.check(), "handshakes and beginnings at the end");
        let value = |counter: Plain| worker.counters.value(counter);
        for gauge in [Plain::Open, Plain::Active, Plain::UpstreamOpen, Plain::UpstreamIdle] {
            assert_eq!(value(gauge), 0, "{gauge:?} at the end");
        }
        assert!(
            self.plan.drains() || tally.ended == tally.connected,
            "{} of {} clients ended",
            tally.ended,
            tally.connected
        );
        let classes = [Plain::Responses2xx, Plain::Responses3xx, Plain::Responses4xx, Plain::Responses5xx];
        for (class, counter) in classes.into_iter().enumerate() {
            assert!(value(counter) >= tally.responses[class], "{counter:?} counts fewer than clients have");
        }
        let (sent, forwarded) = {
            let records = self.book.records();
            let sent = records.iter().filter(|record| record.head_sent).count() as u64;
            (sent, records.iter().filter(|record| !record.attempts.is_empty()).count() as u64)
        };
        let requests = value(Plain::Requests);
        assert!(
            (forwarded..=sent).contains(&requests),
            "{requests} requests, {sent} sent, {forwarded} forwarded"
        );
        let refused: u64 =
            RefusalReason::ALL.iter().map(|&reason| worker.counters.value(Counter::Refused(reason))).sum();
        let answered: u64 = classes.into_iter().map(value).sum();
        assert!(
            answered <= requests + refused,
            "{answered} answers to {requests} requests, {refused} refused"
        );
        assert!(value(Plain::ReceivedBytes) <= tally.written, "more bytes received than clients sent");
        assert!(value(Plain::SentBytes) >= tally.read, "fewer bytes sent than clients have");
        let made =
            HandshakeKind::ALL.iter().map(|&kind| worker.counters.value(Counter::Handshake(kind))).sum();
        let failed = HandshakeFailure::ALL
            .iter()
            .map(|&reason| worker.counters.value(Counter::HandshakeFailed(reason)))
            .sum();
        let handshakes =
            [[made, failed], [value(Plain::UpstreamHandshakes), value(Plain::UpstreamHandshakeFailures)]];
        let early = value(Plain::EarlyRequests);
        self.book.note(self.sim.now(), format_args!("the end: {tally:?}, {handshakes:?}, {early} early"));
        drop(self.engine);
        assert_eq!(self.sim.open_sockets(), 0, "sockets when the engine is gone");
        Report { hash: self.book.trace.hash(), events: self.book.trace.events(), tally, handshakes, early }
    }
}
