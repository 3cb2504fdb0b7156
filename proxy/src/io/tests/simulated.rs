//! Seeded simulations: the same sessions for many seeds, with invariants after every turn and everything
//! given back at the end.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::num::NonZero;
use std::rc::Rc;
use std::time::Duration;

use super::super::simulated::{Faults, Memory, Peer, Sim, SimRing};
use super::super::{Chunk, ConnectError, Engine, Settings, Tag};
use super::{LISTENER, Session, Worker, pattern};

pub(super) const ORIGIN: &str = "10.0.0.1:8080";

pub(super) fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

pub(super) fn tagged(kind: u32, key: u64) -> Tag {
    Tag { kind: NonZero::new(kind).expect("not zero"), key }
}

fn small() -> Memory {
    Memory { buffers: 16, buffer_size: 256, budget: 16 << 10 }
}

pub(super) fn tight() -> Settings {
    Settings {
        receive_high: 4096,
        receive_low: 1024,
        receive_pressed: 1024,
        write_low: 2048,
        send_bytes_max: 1500,
        send_bytes_pressed: 512,
        send_chunks_max: 4,
        ..Settings::default()
    }
}

/// Every slot, buffer, descriptor and byte of budget came back.
pub(super) fn assert_clean(engine: &Engine<SimRing>, sim: &Sim) {
    let stats = engine.stats();
    assert_eq!((stats.streams, stats.buffers_loaned, stats.budget_bytes), (0, 0, 0));
    assert_eq!(sim.open_sockets(), 0);
}

/// A client that writes `bytes` in pieces, reads the answer slowly or not, and ends.
fn client(peer: &Peer, bytes: Vec<u8>, received: &Rc<RefCell<Vec<u8>>>, speed: usize) {
    let received = Rc::clone(received);
    let mut sent = 0;
    peer.script(move |peer| {
        if peer.unsent() < 1024 && sent < bytes.len() {
            let n = (bytes.len() - sent).min(1 + speed * 3);
            peer.write(&bytes[sent..sent + n]);
            sent += n;
            if sent == bytes.len() {
                peer.shutdown_write();
            }
        }
        received.borrow_mut().extend(peer.read_at_most(speed));
        if peer.is_ended() {
            peer.close();
        }
    });
}

fn run_many(seed: u64, faults: Faults, session: Session, clients: usize, len: usize) {
    let (mut engine, sim) = Sim::engine(seed, faults, small(), tight());
    let listener = sim.listener();
    engine.add_listener(listener, LISTENER);
    sim.serve(address(ORIGIN), move || {
        Box::new(move |peer| {
            let bytes = peer.read_at_most(700);
            peer.write(&bytes);
            if peer.is_ended() {
                peer.shutdown_write();
            }
        })
    });
    let mut worker = Worker::new(engine.io(), session);
    let peers: Vec<_> = (0..clients)
        .map(|n| {
            let (bytes, received) = (pattern(seed ^ n as u64, len), Rc::default());
            let peer = sim.connect(listener);
            client(&peer, bytes.clone(), &received, 100 + n * 150);
            (peer, bytes, received)
        })
        .collect();
    let all_closed = |_: &mut Worker| {
        peers.iter().all(|(peer, ..)| peer.is_closed() && (peer.is_reset() || peer.is_ended()))
    };
    assert!(sim.run(&mut engine, &mut worker, all_closed), "seed {seed}: stuck");
    for (peer, bytes, received) in &peers {
        let received = received.borrow();
        let whole = *received == *bytes;
        assert!(
            whole || (faults.reset > 0 || faults.connect_failure > 0) && bytes.starts_with(&received),
            "seed {seed}"
        );
        assert!(whole || peer.is_reset() || peer.is_ended(), "seed {seed}: cut off without a sign");
    }
    sim.run(&mut engine, &mut worker, |_| sim.open_sockets() == 0);
    sim.settle(&mut engine, &mut worker, Duration::from_millis(100));
    assert_clean(&engine, &sim);
    assert_eq!(engine.stats().panics, 0);
}

#[test]
fn echoes_survive_a_mild_world() {
    for seed in 0..200 {
        run_many(seed, Faults::mild(), Session::Echo, 4, 20_000);
    }
}

#[test]
fn echoes_survive_a_rough_world() {
    for seed in 0..200 {
        run_many(seed, Faults::rough(), Session::Echo, 5, 10_000);
    }
}

#[test]
fn relays_survive_a_rough_world() {
    for seed in 0..200 {
        run_many(seed, Faults::rough(), Session::Relay(address(ORIGIN)), 5, 8_000);
    }
}

#[test]
fn relays_give_everything_back_in_a_hostile_world() {
    for seed in 0..400 {
        run_many(seed, Faults::hostile(), Session::Relay(address(ORIGIN)), 6, 5_000);
    }
}

#[test]
fn the_same_seed_takes_the_same_course() {
    let course = || {
        let (mut engine, sim) = Sim::engine(7, Faults::rough(), small(), tight());
        let listener = sim.listener();
        engine.add_listener(listener, LISTENER);
        let mut worker = Worker::new(engine.io(), Session::Echo);
        let received = Rc::default();
        client(&sim.connect(listener), pattern(1, 30_000), &received, 333);
        sim.run(&mut engine, &mut worker, |_| received.borrow().len() == 30_000);
        (engine.stats(), sim.now())
    };
    assert_eq!(course(), course());
}

/// Peers that do nothing cause no turns, however much they hold.
fn assert_still(seed: u64, engine: &mut Engine<SimRing>, worker: &mut Worker, sim: &Sim) {
    sim.settle(engine, worker, Duration::from_secs(1));
    let before = engine.stats().enters;
    sim.settle(engine, worker, Duration::from_secs(10));
    let turns = engine.stats().enters - before;
    assert!(turns <= 2, "seed {seed}: {turns} turns while nothing happened");
}

/// Slow readers of their own echo pin all they may; a fast one must get through beside them.
#[test]
fn a_fast_client_passes_beside_slow_ones() {
    for seed in 0..20 {
        let memory = Memory { buffers: 64, buffer_size: 256, budget: 24 << 10 };
        let faults = Faults { window: 512, ..Faults::mild() };
        let (mut engine, sim) = Sim::engine(seed, faults, memory, tight());
        let listener = sim.listener();
        engine.add_listener(listener, LISTENER);
        let mut worker = Worker::new(engine.io(), Session::Echo);
        let slow: Vec<_> = (0..40).map(|_| sim.connect(listener)).collect();
        for peer in &slow {
            peer.write(&pattern(3, 100_000));
        }
        sim.settle(&mut engine, &mut worker, Duration::from_secs(1));
        assert!(slow.iter().all(|peer| peer.unsent() > 0), "backpressure reaches the peer");
        let (bytes, received) = (pattern(9, 50_000), Rc::new(RefCell::new(Vec::new())));
        let fast = sim.connect(listener);
        client(&fast, bytes.clone(), &received, 4000);
        let start = sim.now();
        assert!(sim.run(&mut engine, &mut worker, |_| received.borrow().len() == bytes.len()), "seed {seed}");
        assert!(
            sim.now().since(start) < Duration::from_secs(20),
            "seed {seed}: {:?}",
            sim.now().since(start)
        );
        assert_eq!(*received.borrow(), bytes);
        // Each slow send is cancelled for its buffers once or twice, not for ever.
        assert!(engine.stats().sends_reclaimed <= 80, "seed {seed}: {:?}", engine.stats());
        assert_still(seed, &mut engine, &mut worker, &sim);
        slow.iter().for_each(Peer::reset);
        sim.run(&mut engine, &mut worker, |_| sim.open_sockets() == 0);
        assert_clean(&engine, &sim);
    }
}

/// More slow readers than there is memory for: some of them must go, or nobody else gets a byte through.
#[test]
fn a_fast_client_passes_when_the_slow_hold_everything() {
    for seed in 0..20 {
        let memory = Memory { buffers: 16, buffer_size: 256, budget: 4 << 10 };
        let faults = Faults { window: 512, ..Faults::mild() };
        let (mut engine, sim) = Sim::engine(seed, faults, memory, tight());
        let listener = sim.listener();
        engine.add_listener(listener, LISTENER);
        let mut worker = Worker::new(engine.io(), Session::Echo);
        let slow: Vec<_> = (0..60).map(|_| sim.connect(listener)).collect();
        for peer in &slow {
            peer.write(&pattern(3, 10_000));
        }
        sim.settle(&mut engine, &mut worker, Duration::from_millis(500));
        assert_eq!(engine.stats().evicted, 0, "seed {seed}: a moment without buffers is borne");
        let (bytes, received) = (pattern(9, 20_000), Rc::new(RefCell::new(Vec::new())));
        let fast = sim.connect(listener);
        client(&fast, bytes.clone(), &received, 4000);
        let start = sim.now();
        assert!(sim.run(&mut engine, &mut worker, |_| received.borrow().len() == bytes.len()), "seed {seed}");
        assert_eq!(*received.borrow(), bytes);
        let took = sim.now().since(start);
        assert!(took < Duration::from_secs(40), "seed {seed}: {took:?}");
        let evicted = engine.stats().evicted;
        assert!((1..60).contains(&evicted), "seed {seed}: {evicted}");
        assert_still(seed, &mut engine, &mut worker, &sim);
        slow.iter().for_each(Peer::reset);
        sim.run(&mut engine, &mut worker, |_| sim.open_sockets() == 0);
        assert_clean(&engine, &sim);
    }
}

#[test]
fn a_slow_session_holds_no_more_than_its_bound() {
    let memory = Memory { buffers: 256, buffer_size: 256, budget: 1 << 20 };
    let (mut engine, sim) = Sim::engine(5, Faults::mild(), memory, tight());
    let listener = sim.listener();
    engine.add_listener(listener, LISTENER);
    let mut worker = Worker::new(engine.io(), Session::Sink);
    let peer = sim.connect(listener);
    let bytes = pattern(1, 200_000);
    peer.write(&bytes);
    peer.shutdown_write();
    let mut most = 0;
    let (io, pool_count) = (engine.io(), 256);
    sim.run(&mut engine, &mut worker, |_| {
        most = most.max(pool_count - io.buffers_free());
        peer.is_closed()
    });
    // 4096 bytes are 16 buffers; a multishot receive runs on a little before its cancel takes hold.
    assert!((8..40).contains(&most), "{most} buffers");
    sim.settle(&mut engine, &mut worker, Duration::from_millis(10));
    assert_clean(&engine, &sim);
}

#[test]
fn parked_streams_report_instead_of_waking() {
    let (mut engine, sim) = Sim::engine(1, Faults::mild(), small(), tight());
    sim.origin(address(ORIGIN));
    let mut worker = Worker::new(engine.io(), Session::Echo);
    let (io, place) = (engine.io(), Rc::new(RefCell::new(None)));
    let kept = Rc::clone(&place);
    io.clone().spawn(async move {
        *kept.borrow_mut() = Some(io.connect(address(ORIGIN), None).await.expect("connected"))
    });
    sim.run(&mut engine, &mut worker, |_| place.borrow().is_some());
    let stream = place.borrow_mut().take().expect("a stream");
    let peer = sim.accept(address(ORIGIN)).expect("an accepted connection");
    let tag = tagged(3, 42);
    stream.park(tag);
    sim.settle(&mut engine, &mut worker, Duration::from_millis(50));
    assert!(worker.ready.is_empty() && stream.is_reusable());
    peer.write(b"late");
    sim.run(&mut engine, &mut worker, |worker| !worker.ready.is_empty());
    let (reported, with) = worker.ready.pop().expect("a report");
    assert_eq!(with, tag);
    assert!(reported.is_readable() && !reported.is_reusable());
    // Parking with bytes unread reports again at once; unparking takes the mark away.
    reported.park(tagged(4, 1));
    sim.run(&mut engine, &mut worker, |worker| !worker.ready.is_empty());
    assert_eq!(worker.ready.pop().expect("a report").1, tagged(4, 1));
    reported.park(tag);
    reported.unpark();
    sim.settle(&mut engine, &mut worker, Duration::from_millis(50));
    assert!(worker.ready.is_empty());
    drop((reported, stream));
    sim.run(&mut engine, &mut worker, |_| peer.is_closed());
    assert!(peer.is_reset(), "dropped without close");
    sim.settle(&mut engine, &mut worker, Duration::from_millis(10));
    assert_clean(&engine, &sim);
}

#[test]
fn connects_fail_time_out_and_are_cancelled() {
    let settings = Settings { streams_max: 2, ..tight() };
    let (mut engine, sim) = Sim::engine(2, Faults::mild(), small(), settings);
    let silent = address("10.0.0.2:1");
    sim.silence(silent);
    let mut worker = Worker::new(engine.io(), Session::Echo);
    let results = Rc::new(RefCell::new(Vec::new()));
    let (io, log) = (engine.io(), Rc::clone(&results));
    io.clone().spawn(async move {
        let refused = io.connect(address(ORIGIN), None).await.map(|_| ());
        log.borrow_mut().push(Ok(refused));
        let late = io.timeout_at(io.after(Duration::from_secs(1)), io.connect(silent, None)).await;
        log.borrow_mut().push(late.map(|connected| connected.map(|_| ())));
    });
    sim.run(&mut engine, &mut worker, |_| results.borrow().len() == 2);
    assert_eq!(results.borrow()[0], Ok(Err(ConnectError::Os(libc::ECONNREFUSED))));
    assert!(results.borrow()[1].is_err());
    sim.settle(&mut engine, &mut worker, Duration::from_millis(10));
    assert_clean(&engine, &sim);

    let exhausted = Rc::new(Cell::new(0));
    for _ in 0..5 {
        let (io, exhausted) = (engine.io(), Rc::clone(&exhausted));
        engine.io().spawn(async move {
            let result = io.timeout_at(io.after(Duration::from_secs(1)), io.connect(silent, None)).await;
            exhausted.set(exhausted.get() + usize::from(matches!(result, Ok(Err(ConnectError::Exhausted)))));
        });
    }
    sim.settle(&mut engine, &mut worker, Duration::from_secs(2));
    assert_eq!(exhausted.get(), 3, "two slots, five connects");
    assert_clean(&engine, &sim);
}

#[test]
fn accepts_are_bounded_and_drain() {
    let settings = Settings { streams_max: 3, ..tight() };
    let (mut engine, sim) = Sim::engine(3, Faults::mild(), small(), settings);
    let listener = sim.listener();
    engine.add_listener(listener, LISTENER);
    let mut worker = Worker::new(engine.io(), Session::Echo);
    let peers: Vec<_> = (0..5).map(|_| sim.connect(listener)).collect();
    sim.settle(&mut engine, &mut worker, Duration::from_millis(50));
    assert_eq!((worker.accepted, worker.accept_failures, engine.accepts_armed()), (3, 2, 1));
    peers.iter().for_each(Peer::close);
    sim.settle(&mut engine, &mut worker, Duration::from_millis(50));
    assert_eq!(engine.streams(), 0);
    engine.cancel_accepts();
    sim.run(&mut engine, &mut worker, |_| false);
    assert_eq!(engine.accepts_armed(), 0);
    let late = sim.connect(listener);
    sim.settle(&mut engine, &mut worker, Duration::from_millis(50));
    assert!(worker.accepted == 3 && !late.is_closed(), "waits in the queue for the next data plane");
}

#[test]
fn timers_fire_in_time_and_commands_arrive() {
    let (mut engine, sim) = Sim::engine(4, Faults::mild(), small(), tight());
    engine.watch(std::io::stdin()).expect("a descriptor");
    let mut worker = Worker::new(engine.io(), Session::Echo);
    let io = engine.io();
    let start = io.now();
    io.timer_at(start + Duration::from_secs(2), tagged(1, 2));
    let cancelled = io.timer_at(start + Duration::from_secs(1), tagged(1, 1));
    io.cancel_timer(cancelled);
    let slept = Rc::new(Cell::new(None));
    let (sleeper, mark) = (io.clone(), Rc::clone(&slept));
    io.spawn(async move {
        sleeper.sleep_until(sleeper.after(Duration::from_millis(100))).await;
        mark.set(Some(sleeper.now()));
    });
    sim.run(&mut engine, &mut worker, |worker| !worker.timers.is_empty());
    assert_eq!(worker.timers, [tagged(1, 2)]);
    let late = slept.get().expect("slept").since(start + Duration::from_millis(100));
    assert!(late <= Duration::from_millis(4), "{late:?}");
    assert_eq!(worker.commands, 0);
    sim.signal();
    sim.run(&mut engine, &mut worker, |worker| worker.commands == 1);
    assert_eq!(worker.commands, 1);
}

#[test]
fn closing_flushes_and_is_bounded() {
    let (mut engine, sim) = Sim::engine(6, Faults { window: 1000, ..Faults::mild() }, small(), tight());
    let listener = sim.listener();
    engine.add_listener(listener, LISTENER);
    struct Writer(Vec<u8>);
    impl super::super::Handler for Writer {
        fn accepted(&mut self, _: Tag, stream: super::super::Stream) {
            stream.write(Chunk::from_vec(self.0.clone()));
            stream.close();
        }
        fn parked_ready(&mut self, _: super::super::Stream, _: Tag) {}
        fn timer(&mut self, _: Tag) {}
        fn command_ready(&mut self) {}
    }
    let mut writer = Writer(pattern(1, 10_000));
    // One reads slowly and then says goodbye, one reads everything and stays, one reads nothing.
    let (polite, silent, deaf) = (sim.connect(listener), sim.connect(listener), sim.connect(listener));
    let received = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&received);
    polite.write(b"unread by the session");
    polite.script(move |peer| {
        log.borrow_mut().extend(peer.read_at_most(100));
        if peer.is_ended() {
            peer.close();
        }
    });
    let start = sim.now();
    sim.run(&mut engine, &mut writer, |_| polite.is_closed());
    assert!(*received.borrow() == writer.0 && !polite.is_reset());
    let mut silently = Vec::new();
    sim.run(&mut engine, &mut writer, |_| {
        silently.extend(silent.read());
        silent.is_closed()
    });
    assert!(silently == writer.0 && !silent.is_reset());
    assert!(sim.now().since(start) < Duration::from_secs(5));
    sim.run(&mut engine, &mut writer, |_| deaf.is_closed());
    assert!(deaf.is_reset());
    assert!(sim.now().since(start) < Duration::from_secs(70), "{:?}", sim.now().since(start));
    sim.settle(&mut engine, &mut writer, Duration::from_millis(10));
    assert_clean(&engine, &sim);
}

/// Answers each connection with so many bytes and closes it.
struct Answerer(usize);

impl super::super::Handler for Answerer {
    fn accepted(&mut self, _: Tag, stream: super::super::Stream) {
        stream.write(Chunk::from_vec(pattern(1, self.0)));
        stream.refuse();
    }
    fn parked_ready(&mut self, _: super::super::Stream, _: Tag) {}
    fn timer(&mut self, _: Tag) {}
    fn command_ready(&mut self) {}
}

#[test]
fn no_more_streams_are_closing_than_may_be() {
    let settings = Settings { closings_max: 4, ..tight() };
    let faults = Faults { window: 1000, short: false, ..Faults::mild() };
    let (mut engine, sim) = Sim::engine(6, faults, small(), settings);
    let listener = sim.listener();
    engine.add_listener(listener, LISTENER);
    let mut worker = Answerer(5000);
    let settle = |engine: &mut _, worker: &mut _| sim.settle(engine, worker, Duration::from_millis(50));
    // They read nothing, so that the flush does not end.
    let deaf: Vec<_> = (0..3).map(|_| sim.connect(listener)).collect();
    settle(&mut engine, &mut worker);
    // They were answered, and never end their side.
    worker.0 = 10;
    let mut answered = Vec::new();
    for _ in 0..4 {
        answered.push(sim.connect(listener));
        settle(&mut engine, &mut worker);
    }
    assert_eq!((engine.stats().closings_ended, engine.streams()), (3, 4), "who was answered goes first");
    assert!(answered.iter().all(|peer| peer.read() == pattern(1, 10) && !peer.is_reset()));
    // Nobody is left who was answered.
    worker.0 = 5000;
    let other = sim.connect_from(std::net::Ipv4Addr::new(192, 0, 2, 9), listener);
    settle(&mut engine, &mut worker);
    let more = sim.connect(listener);
    settle(&mut engine, &mut worker);
    assert_eq!((engine.stats().closings_ended, engine.streams()), (5, 4));
    assert!(deaf[0].is_reset() && !deaf[1].is_reset() && !other.is_reset() && !more.is_reset());
    sim.run(&mut engine, &mut worker, |_| sim.open_sockets() == 0);
    sim.settle(&mut engine, &mut worker, Duration::from_millis(100));
    assert_clean(&engine, &sim);
}

#[test]
fn a_panic_costs_one_connection() {
    struct Panicky(super::super::Io);
    impl super::super::Handler for Panicky {
        fn accepted(&mut self, _: Tag, stream: super::super::Stream) {
            self.0.spawn(async move {
                let chunk = stream.read().await;
                assert!(!matches!(&chunk, Ok(Some(bytes)) if bytes.starts_with(b"!")), "a session's bug");
                let _ = chunk.map(|chunk| chunk.map(|chunk| stream.write(chunk)));
                stream.close();
            });
        }
        fn parked_ready(&mut self, _: super::super::Stream, _: Tag) {}
        fn timer(&mut self, _: Tag) {}
        fn command_ready(&mut self) {}
    }
    let (mut engine, sim) = Sim::engine(8, Faults { short: false, ..Faults::mild() }, small(), tight());
    let listener = sim.listener();
    engine.add_listener(listener, LISTENER);
    let mut handler = Panicky(engine.io());
    let (bad, good) = (sim.connect(listener), sim.connect(listener));
    bad.write(b"!");
    good.write(b"fine");
    sim.run(&mut engine, &mut handler, |_| bad.is_closed() && good.is_closed());
    assert!(bad.is_reset());
    assert_eq!((good.read(), engine.stats().panics), (b"fine".to_vec(), 1));
    good.close();
    sim.settle(&mut engine, &mut handler, Duration::from_millis(10));
    assert_clean(&engine, &sim);
}

#[test]
fn dropping_the_engine_ends_everything() {
    let (mut engine, sim) = Sim::engine(9, Faults::mild(), small(), tight());
    let listener = sim.listener();
    engine.add_listener(listener, LISTENER);
    let mut worker = Worker::new(engine.io(), Session::Echo);
    let peers: Vec<_> = (0..4).map(|_| sim.connect(listener)).collect();
    peers.iter().for_each(|peer| peer.write(&pattern(1, 5000)));
    sim.settle(&mut engine, &mut worker, Duration::from_millis(20));
    let stream = {
        let (io, place) = (engine.io(), Rc::new(RefCell::new(None)));
        sim.origin(address(ORIGIN));
        let kept = Rc::clone(&place);
        io.clone().spawn(async move { *kept.borrow_mut() = io.connect(address(ORIGIN), None).await.ok() });
        sim.run(&mut engine, &mut worker, |_| place.borrow().is_some());
        place.borrow_mut().take().expect("a stream")
    };
    drop(engine);
    assert_eq!(sim.open_sockets(), 0);
    assert!(peers.iter().all(Peer::is_closed));
    stream.write(Chunk::from_static(b"nobody"));
    stream.close();
    assert!(stream.is_readable());
}

/// A session that keeps all it has read until more comes must get more once memory is free again, though it
/// gave nothing back.
#[test]
fn who_keeps_what_it_read_goes_on_when_memory_is_free_again() {
    struct Keeper(Worker, Rc<Cell<usize>>);
    impl crate::io::Handler for Keeper {
        fn accepted(&mut self, listener: Tag, stream: crate::io::Stream) {
            if listener == LISTENER {
                return self.0.accepted(listener, stream);
            }
            let count = Rc::clone(&self.1);
            self.0.io.spawn(async move {
                let mut kept = Vec::new();
                while let Ok(Some(chunk)) = stream.read().await {
                    count.set(count.get() + chunk.len());
                    kept.push(chunk);
                }
                stream.close();
            });
        }
        fn parked_ready(&mut self, _: crate::io::Stream, _: Tag) {}
        fn timer(&mut self, _: Tag) {}
        fn command_ready(&mut self) {}
    }
    for seed in 0..20 {
        let (mut engine, sim) = Sim::engine(seed, Faults { window: 64, ..Faults::mild() }, small(), tight());
        let (echoes, keeps) = (sim.listener(), sim.listener());
        engine.add_listener(echoes, LISTENER);
        engine.add_listener(keeps, tagged(1, 1));
        let kept = Rc::new(Cell::new(0));
        let mut handler = Keeper(Worker::new(engine.io(), Session::Echo), Rc::clone(&kept));
        let slow: Vec<_> = (0..6).map(|_| sim.connect(echoes)).collect();
        slow.iter().for_each(|peer| peer.write(&pattern(1, 20_000)));
        sim.settle(&mut engine, &mut handler, Duration::from_millis(300));
        let keeper = sim.connect(keeps);
        keeper.write(&pattern(2, 2000));
        sim.settle(&mut engine, &mut handler, Duration::from_millis(300));
        assert!(keeper.unsent() > 0, "seed {seed}: memory is short");
        slow.iter().for_each(Peer::reset);
        sim.settle(&mut engine, &mut handler, Duration::from_millis(500));
        assert_eq!(kept.get(), 2000, "seed {seed}: {:?}", engine.stats());
        keeper.close();
        sim.run(&mut engine, &mut handler, |_| sim.open_sockets() == 0);
        assert_clean(&engine, &sim);
    }
}
