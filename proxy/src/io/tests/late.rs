//! Events that the kernel reports late or not at all: ends that a multishot receive missed, and completions
//! that wait their turn.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::super::simulated::{Faults, Memory, Peer, Sim, SimListener, SimRing};
use super::super::{Engine, Handler, Io, Stream, StreamError, Tag};
use super::simulated::{ORIGIN, address, assert_clean, tagged, tight};
use super::{LISTENER, Session, Worker, pattern};
use crate::time::Time;

/// The events of a stream that a session saw, and when.
#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    end: Option<(Result<(), StreamError>, Time)>,
}

/// One entry a session, in the order of acceptance.
type Log = Rc<RefCell<Vec<Rc<RefCell<Seen>>>>>;

/// Reads to the end and writes down all that comes.
struct Watcher(Io, Log);

impl Handler for Watcher {
    fn accepted(&mut self, _: Tag, stream: Stream) {
        let (io, seen) = (self.0.clone(), Rc::<RefCell<Seen>>::default());
        self.1.borrow_mut().push(Rc::clone(&seen));
        self.0.spawn(async move {
            let end = loop {
                match stream.read().await {
                    Ok(Some(chunk)) => seen.borrow_mut().bytes.extend_from_slice(&chunk),
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            seen.borrow_mut().end = Some((end, io.now()));
            stream.close();
        });
    }
    fn parked_ready(&mut self, _: Stream, _: Tag) {}
    fn timer(&mut self, _: Tag) {}
    fn command_ready(&mut self) {}
}

/// An engine whose multishot receives miss every end that follows bytes, and the events its sessions see.
fn blind(seed: u64) -> (Engine<SimRing>, Sim, SimListener, Watcher, Log) {
    let faults = Faults { missed_end: 1000, delay: 0, short: false, ..Faults::mild() };
    let (mut engine, sim) = Sim::engine(seed, faults, Memory::default(), tight());
    let listener = sim.listener();
    engine.add_listener(listener, LISTENER);
    let seen = Rc::default();
    let watcher = Watcher(engine.io(), Rc::clone(&seen));
    (engine, sim, listener, watcher, seen)
}

#[test]
fn an_end_that_the_kernel_missed_is_found_after_a_quiet_second() {
    for (is_reset, expected) in [(false, Ok(())), (true, Err(StreamError::Reset))] {
        let (mut engine, sim, listener, mut watcher, seen) = blind(1);
        let peer = sim.connect(listener);
        // The first receive is no multishot one.
        for part in [b"the last".as_slice(), b" bytes"] {
            peer.write(part);
            sim.settle(&mut engine, &mut watcher, Duration::from_millis(25));
        }
        let seen = Rc::clone(&seen.borrow()[0]);
        assert_eq!(seen.borrow().bytes, b"the last bytes");
        if is_reset {
            peer.reset()
        } else {
            peer.shutdown_write()
        }
        sim.settle(&mut engine, &mut watcher, Duration::from_millis(900));
        assert!(seen.borrow().end.is_none(), "the fault hides it");
        sim.settle(&mut engine, &mut watcher, Duration::from_millis(150));
        let (end, _) = seen.borrow().end.expect("found after a second");
        assert_eq!(end, expected);
        if !is_reset {
            peer.close();
        }
        sim.run(&mut engine, &mut watcher, |_| peer.is_closed());
        sim.settle(&mut engine, &mut watcher, Duration::from_millis(10));
        assert_clean(&engine, &sim);
    }
}

/// Busy streams are put back in the queue of streams to look at. That may make a quiet one wait for a second
/// more, but no longer.
#[test]
fn missed_ends_are_found_beside_busy_streams() {
    for seed in 0..20 {
        let (mut engine, sim, listener, mut watcher, seen) = blind(seed);
        let peers: Vec<_> = (0..40).map(|_| sim.connect(listener)).collect();
        let mut ended_at = Vec::new();
        // One after the other falls silent, while the others go on.
        for (quiet, peer) in peers.iter().enumerate() {
            for busy in &peers[quiet..] {
                busy.write(&pattern(seed, 7));
            }
            sim.settle(&mut engine, &mut watcher, Duration::from_millis(130));
            if quiet % 2 == 0 {
                peer.shutdown_write()
            } else {
                peer.reset()
            }
            ended_at.push(sim.now());
        }
        sim.settle(&mut engine, &mut watcher, Duration::from_secs(3));
        let seen = seen.borrow();
        assert_eq!(seen.len(), peers.len());
        // They are accepted in the order in which they connect.
        for (seen, ended_at) in seen.iter().zip(ended_at) {
            let took = seen.borrow().end.expect("found").1.since(ended_at);
            assert!(took < Duration::from_millis(2100), "seed {seed}: {took:?}");
        }
        drop(seen);
        peers.iter().for_each(Peer::close);
        sim.run(&mut engine, &mut watcher, |_| sim.open_sockets() == 0);
        sim.settle(&mut engine, &mut watcher, Duration::from_millis(10));
        assert_clean(&engine, &sim);
    }
}

#[test]
fn looking_again_loses_no_bytes() {
    for seed in 0..100 {
        let faults = Faults { missed_end: 1000, delay: 300, ..Faults::mild() };
        let (mut engine, sim, listener, mut watcher, seen) = blind(seed);
        sim.set_faults(faults);
        let (peer, bytes) = (sim.connect(listener), pattern(seed, 6000));
        // The pauses lie around the second after which the receive is cancelled and armed anew.
        let mut rest = &bytes[..];
        for step in 0.. {
            let (piece, more) = rest.split_at(rest.len().min(500));
            peer.write(piece);
            rest = more;
            if rest.is_empty() {
                break;
            }
            sim.settle(
                &mut engine,
                &mut watcher,
                Duration::from_micros(990_000 + (seed * 37 + step * 1_913) % 20_000),
            );
        }
        peer.shutdown_write();
        sim.settle(&mut engine, &mut watcher, Duration::from_millis(2500));
        let seen = Rc::clone(&seen.borrow()[0]);
        assert!(seen.borrow().bytes == bytes, "seed {seed}");
        assert!(matches!(seen.borrow().end, Some((Ok(()), _))), "seed {seed}");
        peer.close();
        sim.run(&mut engine, &mut watcher, |_| sim.open_sockets() == 0);
        sim.settle(&mut engine, &mut watcher, Duration::from_millis(10));
        assert_clean(&engine, &sim);
    }
}

/// A parked stream, as an idle pooled connection is: its missed end takes it out of the pool a second later.
#[test]
fn a_parked_stream_reports_an_end_that_the_kernel_missed() {
    let faults = Faults { missed_end: 1000, ..Faults::mild() };
    let (mut engine, sim) = Sim::engine(1, faults, Memory::default(), tight());
    sim.origin(address(ORIGIN));
    let mut worker = Worker::new(engine.io(), Session::Echo);
    let (io, place) = (engine.io(), Rc::new(RefCell::new(None)));
    let kept = Rc::clone(&place);
    io.clone().spawn(async move {
        let stream = io.connect(address(ORIGIN), None).await.expect("connected");
        while stream.progress().received < 4 {
            drop(stream.read().await.expect("bytes"));
        }
        stream.park(tagged(3, 7));
        *kept.borrow_mut() = Some(stream);
    });
    sim.settle(&mut engine, &mut worker, Duration::from_millis(20));
    let peer = sim.accept(address(ORIGIN)).expect("an accepted connection");
    peer.write(b"done");
    sim.run(&mut engine, &mut worker, |_| place.borrow().is_some());
    peer.close();
    sim.settle(&mut engine, &mut worker, Duration::from_millis(900));
    assert!(worker.ready.is_empty(), "the fault hides it");
    sim.settle(&mut engine, &mut worker, Duration::from_millis(200));
    let (reported, tag) = worker.ready.pop().expect("a report");
    assert_eq!(tag, tagged(3, 7));
    assert!(!reported.is_reusable());
    reported.close();
    drop((reported, place));
    sim.run(&mut engine, &mut worker, |_| sim.open_sockets() == 0);
    sim.settle(&mut engine, &mut worker, Duration::from_millis(10));
    assert_clean(&engine, &sim);
}

/// The simulated counterpart of a worker that comes late to much: one completion a wait, and a deadline that
/// passes meanwhile.
#[test]
fn what_was_done_in_time_is_not_late() {
    for seed in 0..50 {
        let faults = Faults { portion: 1, delay: 0, ..Faults::mild() };
        let (mut engine, sim) = Sim::engine(seed, faults, Memory::default(), tight());
        sim.origin(address(ORIGIN));
        let mut worker = Worker::new(engine.io(), Session::Echo);
        let outcomes = Rc::new(RefCell::new(Vec::new()));
        for _ in 0..200 {
            let (io, outcomes) = (engine.io(), Rc::clone(&outcomes));
            engine.io().spawn(async move {
                let outcome = io
                    .timeout_at(io.after(Duration::from_millis(5)), io.connect(address(ORIGIN), None))
                    .await;
                outcomes.borrow_mut().push(matches!(outcome, Ok(Ok(_))));
            });
        }
        sim.run(&mut engine, &mut worker, |_| outcomes.borrow().len() == 200);
        let connected = outcomes.borrow().iter().filter(|connected| **connected).count();
        assert_eq!(connected, 200, "seed {seed}");
        sim.run(&mut engine, &mut worker, |_| sim.open_sockets() == 0);
        sim.settle(&mut engine, &mut worker, Duration::from_millis(500));
        assert_clean(&engine, &sim);
    }
}

/// Wherever an engine is dropped, each descriptor is closed once: the simulated kernel panics at the second
/// time.
#[test]
fn an_engine_dropped_among_closes_closes_once() {
    for seed in 0..100 {
        let (mut engine, sim) =
            Sim::engine(seed, Faults { portion: 1, ..Faults::mild() }, Memory::default(), tight());
        let listener = sim.listener();
        engine.add_listener(listener, LISTENER);
        let mut worker = Worker::new(engine.io(), Session::Echo);
        let peers: Vec<_> = (0..20).map(|_| sim.connect(listener)).collect();
        for peer in &peers {
            peer.write(b"over");
            peer.close();
        }
        let enough = 1 + usize::try_from(seed).expect("small") % 20;
        sim.run(&mut engine, &mut worker, |_| peers.iter().filter(|peer| peer.is_closed()).count() >= enough);
        drop(engine);
        assert_eq!(sim.open_sockets(), 0, "seed {seed}");
    }
}
