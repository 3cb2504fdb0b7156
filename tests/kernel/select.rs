//! Steering of plain listeners on the loopback of a namespace that the test made. Each flow is one connect.
//! The socket whose accept queue gets it shows which worker was chosen.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use proxy::kernel::Programs;
use proxy::kernel::steering::{Steering, SteeringPolicy};
use proxy_common::steer::{SLOT_DRAINING, SLOT_EMPTY, SLOT_LIVE, WORKERS_MAX, WorkerSlot, slot_of};
use tests::bpf;
use tests::netns::Netns;
use tests::skip::{self, without_root};

const STUCK_AFTER: Duration = Duration::from_secs(5);

/// Listening sockets with one address, one for each worker.
fn listeners(namespace: &Netns, address: &str, count: usize) -> Vec<TcpListener> {
    let mut address: SocketAddr = address.parse().expect("an address");
    namespace.run(|| {
        let mut sockets = Vec::new();
        for _ in 0..count {
            let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
            setsockopt(&fd, sockopt::ReusePort, &true).expect("SO_REUSEPORT");
            bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).expect("a free port");
            listen(&fd, Backlog::new(512).expect("a backlog")).expect("listening");
            let listener = TcpListener::from(fd);
            listener.set_nonblocking(true).expect("non-blocking");
            address = listener.local_addr().expect("an address");
            sockets.push(listener);
        }
        sockets
    })
}

/// The programs with a policy. The test writes the slots instead of workers.
struct Bench {
    namespace: Netns,
    programs: Programs,
}

impl Bench {
    fn new(policy: SteeringPolicy) -> Self {
        let mut programs = bpf::programs();
        programs.steering.apply(Steering { policy }, STUCK_AFTER).expect("a policy");
        Self { namespace: Netns::new(), programs }
    }

    fn steer(&mut self, generation: u32, sockets: &[TcpListener]) -> Result<(), String> {
        let address = sockets[0].local_addr().expect("an address");
        let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        self.programs.steer(address, generation, &sockets).map_err(|error| error.to_string())
    }

    /// Writes a slot as a worker does.
    fn publish(&self, slot: u32, value: WorkerSlot) {
        let map =
            MapData::from_fd(self.programs.steering.slots().try_clone_to_owned().expect("a descriptor"))
                .expect("the slots");
        let mut slots = Array::try_from(Map::Array(map)).expect("an array of slots");
        slots.set(slot, value, 0).expect("a slot");
    }

    fn live(&self, slot: u32, load: u32) {
        self.publish(slot, WorkerSlot { state: SLOT_LIVE, load, generation: 1, ..WorkerSlot::default() });
    }

    /// Connects `count` times, accepts at every socket, and returns the number of flows for each.
    fn flows(&self, sockets: &[TcpListener], count: usize) -> Vec<usize> {
        let address = sockets[0].local_addr().expect("an address");
        self.flows_to(address, sockets, count)
    }

    fn flows_to(&self, address: SocketAddr, sockets: &[TcpListener], count: usize) -> Vec<usize> {
        let clients = self.namespace.run(|| {
            let connect =
                |_| TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("nobody is refused");
            (0..count).map(connect).collect::<Vec<_>>()
        });
        let accepted: Vec<usize> = sockets.iter().map(|socket| accept_all(socket).len()).collect();
        assert_eq!(accepted.iter().sum::<usize>(), clients.len(), "a flow was lost: {accepted:?}");
        accepted
    }

    fn steered(&self) -> (BTreeMap<u32, u64>, BTreeMap<String, u64>) {
        self.programs.steering.steered().expect("counters")
    }
}

fn accept_all(socket: &TcpListener) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    loop {
        match socket.accept() {
            Ok((stream, _)) => streams.push(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return streams,
            Err(error) => panic!("accept: {error}"),
        }
    }
}

fn now_nanos() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    u64::try_from(now.tv_sec()).expect("after the start") * 1_000_000_000
        + u64::try_from(now.tv_nsec()).expect("nanoseconds")
}

#[test]
fn the_less_loaded_of_two_takes_every_flow() {
    if without_root() {
        return;
    }
    for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
        let mut bench = Bench::new(SteeringPolicy::LeastLoaded);
        let sockets = listeners(&bench.namespace, address, 2);
        bench.steer(1, &sockets).expect("steered");
        let first = slot_of(1, 0);
        bench.live(first, 10);
        bench.live(first + 1, 3);
        assert_eq!(bench.flows(&sockets, 40), [0, 40], "{address}");
        bench.live(first + 1, 11);
        assert_eq!(bench.flows(&sockets, 40), [40, 0], "{address}");
        let (selected, fallback) = bench.steered();
        assert_eq!(selected, [(first, 40), (first + 1, 40)].into(), "{address}");
        assert!(fallback.values().all(|count| *count == 0), "{address}: {fallback:?}");
    }
}

#[test]
fn equal_loads_spread_and_a_heavier_worker_gets_little() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(SteeringPolicy::LeastLoaded);
    let sockets = listeners(&bench.namespace, "127.0.0.1:0", 8);
    bench.steer(2, &sockets).expect("steered");
    for worker in 0..8 {
        bench.live(worker, if worker == 5 { 100 } else { 7 });
    }
    let flows = bench.flows(&sockets, 400);
    assert_eq!(flows[5], 0, "{flows:?}");
    assert!(flows.iter().enumerate().all(|(worker, flows)| worker == 5 || *flows >= 20), "{flows:?}");
}

#[test]
fn draining_empty_and_stuck_workers_get_nothing() {
    if without_root() {
        return;
    }
    for policy in [SteeringPolicy::LeastLoaded, SteeringPolicy::Hash, SteeringPolicy::NumaLocal] {
        let mut bench = Bench::new(policy);
        let sockets = listeners(&bench.namespace, "127.0.0.1:0", 5);
        bench.steer(2, &sockets).expect("steered");
        let slot = |state, running_since| WorkerSlot {
            state,
            running_since,
            generation: 2,
            ..WorkerSlot::default()
        };
        let now = now_nanos();
        bench.publish(0, slot(SLOT_DRAINING, 0));
        bench.publish(1, slot(SLOT_EMPTY, 0));
        bench.publish(2, slot(SLOT_LIVE, now - 6_000_000_000));
        bench.publish(3, WorkerSlot { load: 50, ..slot(SLOT_LIVE, now) });
        bench.publish(4, WorkerSlot { load: 50, ..slot(SLOT_LIVE, 0) });
        let flows = bench.flows(&sockets, 100);
        assert_eq!(flows[..3], [0, 0, 0], "{policy:?}");
        assert!(flows[3] > 10 && flows[4] > 10, "{policy:?}: {flows:?}");

        // The last live worker takes all flows. Without it the kernel decides, and no client is refused.
        bench.publish(3, slot(SLOT_DRAINING, 0));
        assert_eq!(bench.flows(&sockets, 30), [0, 0, 0, 0, 30], "{policy:?}");
        bench.publish(4, slot(SLOT_LIVE, 1));
        bench.flows(&sockets, 30);
        assert_eq!(bench.steered().1["no_live_worker"], 30, "{policy:?}");
    }
}

#[test]
fn one_usable_worker_among_many_is_found() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(SteeringPolicy::LeastLoaded);
    let sockets = listeners(&bench.namespace, "127.0.0.1:0", WORKERS_MAX as usize);
    bench.steer(1, &sockets).expect("steered");
    let slot = slot_of(1, 77);
    bench.live(slot, 1000);
    let flows = bench.flows(&sockets, 50);
    assert_eq!(flows[77], 50);
    assert_eq!(bench.steered().0, [(slot, 50)].into());
}

#[test]
fn hash_spreads_whatever_the_load() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(SteeringPolicy::Hash);
    let sockets = listeners(&bench.namespace, "[::1]:0", 4);
    bench.steer(1, &sockets).expect("steered");
    for worker in 0..4 {
        bench.live(slot_of(1, worker), worker * 1000);
    }
    let flows = bench.flows(&sockets, 200);
    assert!(flows.iter().all(|flows| *flows > 20), "{flows:?}");
}

#[test]
fn numa_local_stays_on_the_node_and_leaves_it_when_it_must() {
    if without_root() {
        return;
    }
    // The kernel reports the node of the CPU that sends, since loopback receives on the same CPU.
    if std::fs::exists("/sys/devices/system/node/node1").unwrap_or(false) {
        skip::skip(skip::Reason::ManyNodes, "");
        return;
    }
    let mut bench = Bench::new(SteeringPolicy::NumaLocal);
    let sockets = listeners(&bench.namespace, "127.0.0.1:0", 4);
    bench.steer(1, &sockets).expect("steered");
    let slot =
        |node, load| WorkerSlot { state: SLOT_LIVE, load, node, generation: 1, ..WorkerSlot::default() };
    bench.publish(slot_of(1, 0), slot(1, 0));
    bench.publish(slot_of(1, 1), slot(0, 500));
    bench.publish(slot_of(1, 2), slot(0, 400));
    bench.publish(slot_of(1, 3), slot(1, 0));
    assert_eq!(bench.flows(&sockets, 60), [0, 0, 60, 0]);
    bench.publish(slot_of(1, 1), slot(7, 500));
    bench.publish(slot_of(1, 2), slot(7, 400));
    let flows = bench.flows(&sockets, 60);
    assert_eq!(flows[1] + flows[2] + flows[0] + flows[3], 60);
    assert!(flows[0] > 0 && flows[3] > 0, "{flows:?}");
    assert!(bench.steered().1.values().all(|count| *count == 0));
}

#[test]
fn a_socket_outlives_its_data_plane_and_moves_to_the_next() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(SteeringPolicy::LeastLoaded);
    let sockets = listeners(&bench.namespace, "127.0.0.1:0", 3);
    let other = listeners(&bench.namespace, "127.0.0.1:0", 2);
    bench.steer(1, &sockets).expect("steered");
    bench.steer(1, &other).expect("a second listener");
    for worker in 0..3 {
        bench.publish(
            slot_of(1, worker),
            WorkerSlot { state: SLOT_LIVE, generation: 1, ..WorkerSlot::default() },
        );
    }
    bench.flows(&sockets, 20);
    bench.flows(&other, 20);
    let before = bench.steered();
    assert!(before.1.values().all(|count| *count == 0), "{before:?}");

    // The data plane dies: flows queue by the kernel's hash until the next data plane is live.
    bench.programs.steering.clear_slots(1).expect("cleared");
    bench.flows(&sockets, 20);
    assert_eq!(bench.steered().1["no_live_worker"], 20);

    // The same sockets are steered for the same generation again, then for the next.
    bench.steer(1, &sockets).expect("the same places");
    bench.steer(2, &sockets).expect("the other half");
    bench.steer(2, &other).expect("the other half");
    for worker in 0..3 {
        let load = if worker == 1 { 0 } else { 9 };
        bench.publish(
            slot_of(2, worker),
            WorkerSlot { state: SLOT_LIVE, load, generation: 2, ..WorkerSlot::default() },
        );
    }
    let flows = bench.flows(&sockets, 40);
    assert!(flows[1] > 15, "{flows:?}");
    let steered = bench.steered();
    assert_eq!(steered.0.range(..WORKERS_MAX).map(|(_, flows)| flows).sum::<u64>(), 40, "{steered:?}");
    // A late clean-up for the dead data plane does not touch its successor.
    bench.programs.steering.clear_slots(1).expect("cleared");
    bench.flows(&sockets, 10);
    assert_eq!(bench.steered().1["no_live_worker"], 20);
    assert_eq!(bench.steered().1["select_failed"], 0);
}

#[test]
fn two_generations_share_an_address_during_an_upgrade() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(SteeringPolicy::LeastLoaded);
    let old = listeners(&bench.namespace, "127.0.0.1:0", 2);
    let address = old[0].local_addr().expect("an address");
    let new = listeners(&bench.namespace, &address.to_string(), 3);
    bench.steer(1, &old).expect("steered");
    bench.steer(2, &new).expect("steered");
    let all: Vec<TcpListener> =
        old.iter().chain(&new).map(|socket| socket.try_clone().expect("a descriptor")).collect();
    for worker in 0..3 {
        bench.publish(
            slot_of(2, worker),
            WorkerSlot { state: SLOT_LIVE, generation: 2, ..WorkerSlot::default() },
        );
    }
    for worker in 0..2 {
        bench.publish(
            slot_of(1, worker),
            WorkerSlot { state: SLOT_DRAINING, generation: 1, ..WorkerSlot::default() },
        );
    }
    let flows = bench.flows(&all, 60);
    assert_eq!(flows[..2], [0, 0]);
    assert!(flows[2..].iter().all(|flows| *flows > 0), "{flows:?}");

    assert_eq!(bench.programs.steering.listeners().collect::<Vec<_>>(), [(address, [3, 2])]);
    bench.programs.steering.unsteer(address, 1).expect("the old one leaves");
    assert_eq!(bench.programs.steering.listeners().collect::<Vec<_>>(), [(address, [3, 0])]);
    bench.flows(&all, 20);
    bench.programs.steering.unsteer(address, 2).expect("the new one too");
    assert_eq!(bench.programs.steering.listeners().count(), 0);
    bench.flows(&all, 20);
    let (_, fallback) = bench.steered();
    assert_eq!(fallback["unknown_listener"], 20, "{fallback:?}");
}

/// Flows whose handshake is done but which were not accepted move to another worker if their socket goes
/// away.
#[test]
fn queued_flows_migrate_to_a_live_worker() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(SteeringPolicy::LeastLoaded);
    let mut sockets = listeners(&bench.namespace, "127.0.0.1:0", 3);
    let address = sockets[0].local_addr().expect("an address");
    bench.steer(1, &sockets).expect("steered");
    bench.live(slot_of(1, 0), 0);
    let clients: Vec<TcpStream> =
        bench.namespace.run(|| (0..25).map(|_| TcpStream::connect(address).expect("a connection")).collect());
    // Worker 2 is live, worker 1 drains, and worker 0 retires with 25 flows in its queue.
    bench.publish(slot_of(1, 0), WorkerSlot { state: SLOT_DRAINING, generation: 1, ..WorkerSlot::default() });
    bench.publish(slot_of(1, 1), WorkerSlot { state: SLOT_DRAINING, generation: 1, ..WorkerSlot::default() });
    bench.live(slot_of(1, 2), 0);
    nix::sys::socket::shutdown(sockets[0].as_raw_fd(), nix::sys::socket::Shutdown::Both).expect("shutdown");
    drop(sockets.remove(0));
    let accepted = accept_all(&sockets[1]);
    assert_eq!((accept_all(&sockets[0]).len(), accepted.len()), (0, 25));
    assert_eq!(bench.programs.steering.migrated().expect("counters"), 25);
    for mut stream in accepted {
        std::io::Write::write_all(&mut stream, b"!").expect("the flow lives");
    }
    for mut client in clients {
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        std::io::Read::read_exact(&mut client, &mut [0; 1]).expect("the flow lives");
    }
    // A new socket can take the place of a closed one.
    let again = listeners(&bench.namespace, &address.to_string(), 1);
    bench.steer(1, &again).expect("steered");
}

#[test]
fn a_live_slot_without_a_socket_is_counted_and_the_flow_is_served() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(SteeringPolicy::Hash);
    let mut sockets = listeners(&bench.namespace, "127.0.0.1:0", 2);
    bench.steer(1, &sockets).expect("steered");
    bench.live(slot_of(1, 0), 0);
    drop(sockets.remove(0));
    assert_eq!(bench.flows(&sockets, 20), [20]);
    assert_eq!(bench.steered().1["select_failed"], 20);
    bench.programs.flush_logs();
}

#[test]
fn sockets_that_cannot_be_steered_say_why() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(SteeringPolicy::Hash);
    let plain = bench.namespace.run(|| TcpListener::bind("127.0.0.1:0").expect("a listener"));
    let error = bench.steer(1, &[plain]).expect_err("no SO_REUSEPORT");
    assert!(error.contains("SO_REUSEPORT"), "{error}");
    let address: SocketAddr = "127.0.0.1:80".parse().expect("an address");
    assert!(bench.programs.steer(address, 1, &[]).is_err());
    // Sockets that another owner steers are not taken from it.
    let sockets = listeners(&bench.namespace, "127.0.0.1:0", 1);
    let mut other = bpf::programs();
    let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    other.steer(sockets[0].local_addr().expect("an address"), 1, &borrowed).expect("steered");
    let error = bench.steer(1, &sockets).expect_err("held by another");
    assert!(error.contains("another"), "{error}");
    assert_eq!(bench.programs.steering.listeners().count(), 0);
}
