//! Shared by tests of workers and sessions: a worker over the simulated ring.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::events::Events;
use super::listener_tag;
use crate::access_log::AccessSender;
use crate::config::model;
pub(crate) use crate::config::testing::{config, listener, traffic};
use crate::control::slots::SteeringSlot;
use crate::counters::Counters;
use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, PoolCloseReason, RefusalReason, ShedReason};
use crate::io::simulated::{Faults, Memory, Sim, SimListener, SimRing};
use crate::io::{Engine, Settings};
use crate::listen::ListenerId;
use crate::session::context::Worker;
use crate::session::traffic::Traffic;

/// A worker over the simulated ring.
pub(crate) struct Bench {
    pub(crate) engine: Engine<SimRing>,
    pub(crate) sim: Sim,
    pub(crate) events: Events,
    pub(crate) listener: SimListener,
    pub(crate) config: ArcSwap<model::Config>,
    pub(crate) traffic: Arc<ArcSwap<Traffic>>,
}

/// Connections that a worker holds, unless a test says otherwise.
const CONNECTIONS_MAX: usize = 100;

pub(crate) fn origin_address(index: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, index], 8080))
}

impl Bench {
    pub(crate) fn new(seed: u64, faults: Faults, config: model::Config) -> Self {
        Self::logged(seed, faults, config, None)
    }

    /// A worker with so much memory.
    pub(crate) fn with_memory(seed: u64, faults: Faults, config: model::Config, memory: Memory) -> Self {
        Self::make(seed, faults, config, memory, CONNECTIONS_MAX, None)
    }

    /// A worker with so much memory, which holds so many connections.
    pub(crate) fn holding(
        connections_max: usize,
        seed: u64,
        faults: Faults,
        config: model::Config,
        memory: Memory,
    ) -> Self {
        Self::make(seed, faults, config, memory, connections_max, None)
    }

    /// A worker with an access log.
    pub(crate) fn logged(
        seed: u64,
        faults: Faults,
        config: model::Config,
        access: Option<AccessSender>,
    ) -> Self {
        Self::make(seed, faults, config, Memory::default(), CONNECTIONS_MAX, access)
    }

    fn make(
        seed: u64,
        faults: Faults,
        config: model::Config,
        memory: Memory,
        connections_max: usize,
        access: Option<AccessSender>,
    ) -> Self {
        let (mut engine, sim) = Sim::engine(seed, faults, memory, Settings::default());
        let traffic = Arc::new(ArcSwap::from_pointee(traffic(&config)));
        let worker =
            Worker::new(engine.io(), Counters::private(), Arc::clone(&traffic), connections_max, access);
        let listener = sim.listener();
        engine.add_listener(listener, listener_tag(ListenerId::FIRST));
        let events = Events::new(worker, SteeringSlot::private(), Duration::from_secs(3600));
        Self { engine, sim, events, listener, config: ArcSwap::from_pointee(config), traffic }
    }

    /// Publishes another configuration for the worker to find.
    pub(crate) fn publish(&self, config: model::Config) {
        self.traffic.store(Arc::new(traffic(&config)));
        self.config.store(Arc::new(config));
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.events.worker().counters
    }

    pub(crate) fn value(&self, counter: impl Into<Counter>) -> u64 {
        self.counters().value(counter)
    }

    /// Runs until nothing can happen any more: clients are done, idle connections have timed out.
    pub(crate) fn run_out(&mut self) {
        self.sim.run(&mut self.engine, &mut self.events, |_| false);
        self.events.publish(self.engine.stats());
    }

    /// Runs until `done`; fails if the world comes to rest before.
    pub(crate) fn run_until(&mut self, mut done: impl FnMut(&Events) -> bool) {
        let done = self.sim.run(&mut self.engine, &mut self.events, |events| done(events));
        assert!(done, "it came to rest too early: {}", self.counted());
    }

    /// Every counter that is not zero.
    pub(crate) fn counted(&self) -> String {
        let plain = Plain::ALL.iter().map(|&plain| (plain.describe().0.to_owned(), self.value(plain)));
        let closed = CloseReason::ALL
            .iter()
            .map(|&reason| (format!("closed {}", reason.label()), self.value(Counter::Closed(reason))));
        let refused = RefusalReason::ALL
            .iter()
            .map(|&reason| (format!("refused {}", reason.label()), self.value(Counter::Refused(reason))));
        let pool = PoolCloseReason::ALL
            .iter()
            .map(|&reason| (format!("pool {}", reason.label()), self.value(Counter::PoolClosed(reason))));
        let all = plain.chain(closed).chain(refused).chain(pool).filter(|(_, value)| *value != 0);
        all.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn check_freed(&self, context: &str) {
        assert!(self.events.worker().crowd.check(), "nobody is counted {context}");
        let gauges = [
            Plain::Open,
            Plain::Active,
            Plain::UpstreamOpen,
            Plain::UpstreamIdle,
            Plain::BuffersLoaned,
            Plain::BudgetBytes,
            Plain::Panics,
        ];
        for gauge in gauges {
            assert_eq!(self.value(gauge), 0, "{gauge:?} {context}");
        }
        assert_eq!(self.engine.streams(), 0, "streams {context}");
        assert_eq!(self.sim.open_sockets(), 0, "sockets {context}");
        let closed: u64 = CloseReason::ALL.iter().map(|&reason| self.value(Counter::Closed(reason))).sum();
        assert_eq!(
            closed + self.shed(),
            self.value(Plain::Accepted),
            "every connection ended for one reason {context}"
        );
    }

    pub(crate) fn shed(&self) -> u64 {
        // Without a descriptor there was no connection either, and a connection that was gone at once counts
        // as never accepted.
        let never = [ShedReason::DescriptorsExhausted, ShedReason::ClientGone];
        let accepted = ShedReason::ALL.iter().filter(|reason| !never.contains(reason));
        accepted.map(|&reason| self.value(Counter::Shed(reason))).sum()
    }
}
