//! The engine over the kernel's ring, on loopback, against blocking std sockets in threads.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZero;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use super::{LISTENER, Session, Worker, pattern};
use crate::io::ring::KernelRing;
use crate::io::settings;
use crate::io::{Engine, Handler, Settings, Tag};

const PATIENCE: Duration = Duration::from_secs(20);
const RING: settings::Ring = settings::Ring { entries: 256, buffers: 256, buffer_size: 4096 };

fn engine(ring: settings::Ring) -> Engine<KernelRing> {
    Engine::new(KernelRing::new(ring, 8 << 20).expect("a ring"), Settings::default())
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream.set_write_timeout(Some(PATIENCE)).expect("a time limit");
    stream
}

/// Descriptors of this process whose local address has this port: the engine's sockets of one test, and
/// nothing of the others.
fn held(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("the kernel's sockets");
    let local = format!(":{port:04X}");
    let inodes: Vec<_> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.len() > 9 && fields[1].ends_with(&local))
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect();
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("our descriptors").flatten();
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.filter(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str())).count()
}

/// Turns until `done`, for at most `PATIENCE`; a timer keeps the loop from sleeping past that.
fn turn_until(
    engine: &mut Engine<KernelRing>,
    worker: &mut Worker,
    mut done: impl FnMut(&Engine<KernelRing>, &Worker) -> bool,
) {
    let end = Instant::now() + PATIENCE;
    while !done(engine, worker) {
        assert!(Instant::now() < end, "not within {PATIENCE:?}");
        let tick = worker
            .io
            .timer_at(worker.io.after(Duration::from_millis(20)), Tag { kind: NonZero::<u32>::MAX, key: 0 });
        engine.turn(worker).expect("a turn");
        worker.io.cancel_timer(tick);
        engine.check_invariants();
    }
}

/// Serves `session` to `clients`, which runs in another thread, then waits until nothing is left of it.
fn serve(
    session: Session,
    ring: settings::Ring,
    clients: impl FnOnce(SocketAddr) + Send + 'static,
) -> Engine<KernelRing> {
    let mut engine = engine(ring);
    let (listener, address) = listener();
    engine.add_listener(OwnedFd::from(listener), LISTENER);
    let over = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    engine.watch(&over).expect("watched");
    let mut worker = Worker::new(engine.io(), session);
    let clients = thread::spawn(move || {
        clients(address);
        over.write(1).expect("room");
    });
    turn_until(&mut engine, &mut worker, |_, worker| worker.commands > 0 || clients.is_finished());
    clients.join().expect("the clients are content");
    turn_until(&mut engine, &mut worker, |engine, _| engine.streams() == 0);
    let stats = engine.stats();
    assert_eq!((stats.buffers_loaned, stats.budget_bytes, stats.panics), (0, 0, 0));
    engine
}

#[test]
fn echoes_and_sees_a_half_close() {
    serve(Session::Echo, RING, |address| {
        let mut stream = connect(address);
        stream.write_all(b"hello").expect("sent");
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"hello");
        stream.write_all(b"and the rest").expect("sent");
        stream.shutdown(Shutdown::Write).expect("half closed");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("the rest, then the end");
        assert_eq!(rest, b"and the rest");
    });
}

/// Bytes that wait in the kernel for the engine's only stream.
fn waiting(engine: &Engine<KernelRing>, most: usize) -> usize {
    let io = engine.io();
    let slots = io.shared().slots.borrow();
    let Some(state) = slots.entries.iter().find_map(|entry| entry.state.as_ref()) else { return 0 };
    let fd = state.inner.borrow().fd;
    recv(fd, &mut vec![0; most], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).unwrap_or(0)
}

/// Each burst is whole in the kernel before the engine looks, however busy the machine is: it fits the first
/// receive window, and eight small buffers.
#[test]
fn a_stream_that_sends_much_at_a_time_needs_few_receives() {
    const RING: settings::Ring = settings::Ring { entries: 256, buffers: 1024, buffer_size: 4096 };
    const BURST: usize = 32 << 10;
    const BURSTS: usize = 256;
    let mut engine = engine(RING);
    let (listener, address) = listener();
    engine.add_listener(OwnedFd::from(listener), LISTENER);
    let mut worker = Worker::new(engine.io(), Session::Echo);
    let mut client = connect(address);
    turn_until(&mut engine, &mut worker, |_, worker| worker.accepted == 1);
    for round in 0..BURSTS {
        let bytes = pattern(round as u64, BURST);
        client.write_all(&bytes).expect("sent");
        let end = Instant::now() + PATIENCE;
        while waiting(&engine, BURST) < BURST {
            assert!(Instant::now() < end, "the burst does not arrive");
            thread::sleep(Duration::from_micros(100));
        }
        client.set_nonblocking(true).expect("an option");
        let (mut answer, mut answered) = (vec![0; BURST], 0);
        turn_until(&mut engine, &mut worker, |_, _| {
            while let Ok(n @ 1..) = client.read(&mut answer[answered..]) {
                answered += n;
            }
            answered == BURST
        });
        assert!(answer == bytes, "the bytes are those that were sent");
        client.set_nonblocking(false).expect("an option");
    }
    // One receive and one send a burst, but in the first ones. Small buffers alone would take 2,048 receives.
    let completions = engine.stats().completions;
    assert!(completions < 3 * BURSTS as u64, "{completions} completions");
    drop(client);
    turn_until(&mut engine, &mut worker, |engine, _| engine.streams() == 0);
    let stats = engine.stats();
    assert_eq!((stats.buffers_loaned, stats.budget_bytes, stats.panics), (0, 0, 0));
}

#[test]
fn a_reset_ends_both_sides_of_a_relay() {
    let (origin, origin_address) = listener();
    serve(Session::Relay(origin_address), RING, move |address| {
        let mut stream = connect(address);
        stream.write_all(b"begin").expect("sent");
        let (mut upstream, _) = origin.accept().expect("the relay connects");
        upstream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let mut begun = [0; 5];
        upstream.read_exact(&mut begun).expect("relayed");
        setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })
            .expect("an option");
        drop(stream);
        let error = upstream.read(&mut begun).expect_err("no end in order after a reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn sixty_four_mebibytes_pass_both_ways_unharmed() {
    let (origin, origin_address) = listener();
    // Few buffers: the transfer has to live with their return.
    serve(Session::Relay(origin_address), settings::Ring { buffers: 32, ..RING }, move |address| {
        let bytes = Arc::new(pattern(7, 64 << 20));
        let echo = thread::spawn(move || {
            let (mut from, _) = origin.accept().expect("the relay connects");
            let mut to = from.try_clone().expect("a second handle");
            std::io::copy(&mut from, &mut to).expect("echoed");
            to.shutdown(Shutdown::Write).expect("half closed");
        });
        let mut stream = connect(address);
        let (mut writer, sent) = (stream.try_clone().expect("a second handle"), Arc::clone(&bytes));
        let writing = thread::spawn(move || {
            writer.write_all(&sent).expect("sent");
            writer.shutdown(Shutdown::Write).expect("half closed");
        });
        let mut received = Vec::with_capacity(bytes.len());
        stream.read_to_end(&mut received).expect("all of it");
        writing.join().expect("written");
        echo.join().expect("echoed");
        assert!(received == *bytes, "{} bytes came back", received.len());
    });
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let port = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&port);
    let engine = serve(Session::Echo, RING, move |address| {
        seen.store(usize::from(address.port()), Ordering::SeqCst);
        let mut streams: Vec<_> = (0..1000).map(|_| connect(address)).collect();
        for (index, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&(index as u64).to_le_bytes()).expect("sent");
        }
        for (index, stream) in streams.iter_mut().enumerate() {
            let mut answer = [0; 8];
            stream.read_exact(&mut answer).expect("an answer");
            assert_eq!(u64::from_le_bytes(answer), index as u64);
        }
        // The listener and one for each client.
        assert_eq!(held(address.port()), 1001);
    });
    assert_eq!(engine.stats().accepted, 1000);
    let port = port.load(Ordering::SeqCst) as u16;
    assert_eq!(held(port), 1, "the listener only");
    drop(engine);
    assert_eq!(held(port), 0);
}

#[test]
fn a_reader_slower_than_the_sender_gets_everything() {
    let (origin, origin_address) = listener();
    serve(Session::Relay(origin_address), RING, move |address| {
        let bytes = pattern(3, 8 << 20);
        let sent = bytes.clone();
        let sending = thread::spawn(move || {
            let (mut upstream, _) = origin.accept().expect("the relay connects");
            upstream.write_all(&sent).expect("sent");
            upstream.shutdown(Shutdown::Write).expect("half closed");
            upstream.read_to_end(&mut Vec::new()).expect("what the client sent");
        });
        let mut stream = connect(address);
        stream.write_all(b"begin").expect("sent");
        let mut received = Vec::new();
        let mut piece = vec![0; 256 << 10];
        loop {
            // Unread bytes fill the sockets, then the engine's queue, then stop the sender.
            thread::sleep(Duration::from_millis(5));
            match stream.read(&mut piece).expect("more") {
                0 => break,
                n => received.extend_from_slice(&piece[..n]),
            }
            if received.len() == bytes.len() {
                stream.shutdown(Shutdown::Write).expect("half closed");
            }
        }
        sending.join().expect("sent");
        assert!(received == bytes, "{} bytes came", received.len());
    });
}

#[test]
fn an_idle_engine_is_not_woken() {
    struct Quiet(Worker, Arc<AtomicUsize>);
    impl Handler for Quiet {
        fn accepted(&mut self, listener: Tag, stream: crate::io::Stream) {
            self.0.accepted(listener, stream);
        }
        fn parked_ready(&mut self, _stream: crate::io::Stream, _tag: Tag) {}
        fn timer(&mut self, _tag: Tag) {}
        fn command_ready(&mut self) {
            self.0.commands += 1;
        }
        fn after_wake(&mut self, _now: crate::time::Time) {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }
    let mut engine = engine(RING);
    let (listener, address) = listener();
    engine.add_listener(OwnedFd::from(listener), LISTENER);
    let over = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    engine.watch(&over).expect("watched");
    let wakes = Arc::new(AtomicUsize::new(0));
    let mut quiet = Quiet(Worker::new(engine.io(), Session::Echo), Arc::clone(&wakes));
    let watching = thread::spawn(move || {
        let mut stream = connect(address);
        stream.write_all(b"x").expect("sent");
        stream.read_exact(&mut [0]).expect("an answer");
        // On a busy machine the engine may still be handling earlier bytes.
        let end = Instant::now() + PATIENCE;
        let is_quiet = std::iter::repeat_with(|| {
            let before = wakes.load(Ordering::SeqCst);
            thread::sleep(Duration::from_millis(300));
            before > 0 && before == wakes.load(Ordering::SeqCst)
        })
        .take_while(|_| Instant::now() < end)
        .any(|is_quiet| is_quiet);
        over.write(1).expect("room");
        is_quiet
    });
    while quiet.0.commands == 0 {
        engine.turn(&mut quiet).expect("a turn");
    }
    assert!(watching.join().expect("watched"), "an open, idle connection causes no turn");
}

#[test]
fn cancelling_the_accepts_loses_no_connection() {
    let mut engine = engine(RING);
    let (listener, address) = listener();
    let queue = listener.try_clone().expect("a second handle");
    engine.add_listener(OwnedFd::from(listener), LISTENER);
    let mut worker = Worker::new(engine.io(), Session::Echo);
    // Fewer than std's listen queue of 128 holds.
    let connecting = thread::spawn(move || (0..100).map(|_| connect(address)).collect::<Vec<_>>());
    turn_until(&mut engine, &mut worker, |_, worker| worker.accepted > 20);
    engine.cancel_accepts();
    turn_until(&mut engine, &mut worker, |engine, _| engine.accepts_armed() == 0);
    let streams = connecting.join().expect("all connect: the queue is open");
    // Connections that the engine did not take wait in the queue for the next acceptor.
    queue.set_nonblocking(true).expect("an option");
    let waiting = std::iter::from_fn(|| queue.accept().ok()).count();
    assert_eq!(worker.accepted + waiting, streams.len());
}

#[test]
fn a_listener_that_somebody_shut_down_is_reported_once_and_taken_up_when_it_listens_again() {
    // A port that the kernel chose itself would be lost with the shutdown.
    let (_, address) = listener();
    let listener = TcpListener::bind(address).expect("the same port");
    let shared = listener.try_clone().expect("a duplicate");
    let mut engine = engine(RING);
    let mut worker = Worker::new(engine.io(), Session::Echo);
    engine.add_listener(OwnedFd::from(listener), LISTENER);
    let failing = |engine: &Engine<KernelRing>| engine.stats().listeners_failing;
    turn_until(&mut engine, &mut worker, |engine, _| engine.accepts_armed() == 1);
    nix::sys::socket::shutdown(shared.as_raw_fd(), nix::sys::socket::Shutdown::Both).expect("shut down");
    turn_until(&mut engine, &mut worker, |engine, _| failing(engine) == 1);
    let start = Instant::now();
    turn_until(&mut engine, &mut worker, |engine, _| {
        assert_eq!(failing(engine), 1, "as long as it does not listen");
        start.elapsed() > Duration::from_millis(400)
    });
    assert_eq!((worker.listener_failures, worker.accept_failures), (1, 0));
    nix::sys::socket::listen(&shared, nix::sys::socket::Backlog::new(16).expect("few")).expect("again");
    turn_until(&mut engine, &mut worker, |engine, _| failing(engine) == 0);
    let _client = connect(address);
    turn_until(&mut engine, &mut worker, |_, worker| worker.accepted == 1);
    assert_eq!((worker.listener_failures, worker.accept_failures), (1, 0));
}

#[test]
fn dropping_the_engine_mid_flight_frees_what_the_kernel_knew() {
    let (listener, address) = listener();
    let mut engine = engine(RING);
    engine.add_listener(OwnedFd::from(listener), LISTENER);
    let mut worker = Worker::new(engine.io(), Session::Echo);
    let mut streams: Vec<_> = (0..50).map(|_| connect(address)).collect();
    for stream in &mut streams {
        // More than the echo can be rid of while nobody reads: sends are in flight.
        stream.set_nonblocking(true).expect("an option");
        while stream.write(&[0; 65536]).is_ok() {}
    }
    turn_until(&mut engine, &mut worker, |engine, worker| {
        worker.accepted == 50 && engine.stats().completions > 200
    });
    assert_eq!(held(address.port()), 51);
    let start = Instant::now();
    drop(engine);
    // The ring would give up after two seconds, and leak the memory that the kernel still knew.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(held(address.port()), 0);
    for mut stream in streams {
        stream.set_nonblocking(false).expect("an option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let mut rest = Vec::new();
        // Reset or ended, but not left hanging.
        let ended = stream.read_to_end(&mut rest);
        assert!(!matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "{ended:?}");
    }
}

/// The kernel hands over completions in portions of 20 or so. A worker that comes late to many connects must
/// not take connects that are still to be handed over for connects that took too long.
#[test]
fn connects_made_in_time_are_in_time_however_late_the_worker_looks() {
    const CONNECTS: usize = 200;
    let mut engine = engine(RING);
    let (origin, address) = listener();
    nix::sys::socket::listen(&origin, nix::sys::socket::Backlog::new(CONNECTS as i32).expect("a backlog"))
        .expect("listens");
    let mut worker = Worker::new(engine.io(), Session::Sink);
    let (connected, late) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for _ in 0..CONNECTS {
        let (io, connected, late) = (engine.io(), Rc::clone(&connected), Rc::clone(&late));
        engine.io().spawn(async move {
            let outcome =
                match io.timeout_at(io.after(Duration::from_millis(100)), io.connect(address, None)).await {
                    Ok(result) => result.map(|_| &connected).expect("nobody refuses"),
                    Err(_) => &late,
                };
            outcome.set(outcome.get() + 1);
        });
    }
    // The first turn starts the tasks, the second their connects; all are made when the worker looks again.
    engine.turn(&mut worker).expect("a turn");
    let tick = worker.io.timer_at(worker.io.now(), Tag { kind: NonZero::<u32>::MAX, key: 0 });
    engine.turn(&mut worker).expect("a turn");
    worker.io.cancel_timer(tick);
    thread::sleep(Duration::from_millis(150));
    turn_until(&mut engine, &mut worker, |_, _| connected.get() + late.get() == CONNECTS);
    assert_eq!((connected.get(), late.get()), (CONNECTS, 0));
    turn_until(&mut engine, &mut worker, |engine, _| engine.streams() == 0);
}
