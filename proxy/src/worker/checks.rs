//! Invariants of a worker after every turn of its loop, for tests: its table, its pools, its gauges and its
//! timers must agree.

use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, ShedReason};
use crate::io::Engine;
use crate::io::seam::Ring;
use crate::io::stream::Tag;
use crate::io::tags;
use crate::session::context::Worker;

/// See the module.
pub(crate) fn check_invariants<R: Ring>(worker: &Worker, engine: &Engine<R>) {
    engine.check_invariants();
    engine.check_streams();
    let table = worker.sessions.check();
    worker.crowd.check();
    let value = |counter: Counter| worker.counters.value(counter);
    assert_eq!(value(Plain::Open.into()), table.open as u64, "the gauge of open connections");
    let closed: u64 = CloseReason::ALL.iter().map(|&reason| value(Counter::Closed(reason))).sum();
    // Without a descriptor there was no connection either, and a connection that was gone at once counts as
    // never accepted.
    let never = [ShedReason::DescriptorsExhausted, ShedReason::ClientGone];
    let shed = ShedReason::ALL.iter().filter(|reason| !never.contains(reason));
    let shed: u64 = shed.map(|&reason| value(Counter::Shed(reason))).sum();
    assert_eq!(
        value(Plain::Accepted.into()),
        closed + shed + table.open as u64,
        "accepted = closed + shed + open"
    );
    assert!(value(Plain::Active.into()) <= table.open as u64, "more exchanges than connections");
    assert_eq!(engine.stats().panics, 0, "a session panicked");

    let parked = engine.parked();
    for tag in &table.timed {
        assert!(engine.has_timer(*tag), "an idle connection without a deadline: {tag:?}");
    }
    for tag in &table.parked {
        assert!(parked.contains(tag), "a row is parked, its stream is not: {tag:?}");
    }
    check_pools(worker, engine, &parked);
    for task in engine.tasks_without_deadline() {
        assert!(table.lingering.contains(&task), "a session waits without a deadline: {task:?}");
    }
}

fn check_pools<R: Ring>(worker: &Worker, engine: &Engine<R>, parked: &[Tag]) {
    let mut idle = 0;
    worker.upstreams.each(|group| {
        let keys = group.check();
        for &key in &keys {
            let tag = Tag { kind: tags::POOLED, key };
            assert!(parked.contains(&tag), "a pooled connection is not parked");
        }
        let timer = Tag { kind: tags::POOL_TIMER, key: u64::from(group.id()) };
        assert!(keys.is_empty() || engine.has_timer(timer), "a pool without a deadline");
        idle += keys.len() as u64;
    });
    let pooled = parked.iter().filter(|tag| tag.kind == tags::POOLED).count() as u64;
    assert!(pooled <= idle, "{pooled} streams are parked for a pool of {idle}");
    assert_eq!(worker.counters.value(Plain::UpstreamIdle), idle, "the gauge of idle upstream connections");
    assert!(worker.counters.value(Plain::UpstreamOpen) >= idle, "fewer upstream connections open than idle");
}
