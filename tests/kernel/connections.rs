//! Exact connections per source: which connections the counting program sees at plain listeners in namespaces
//! that the test made, and how the guard uses its counts.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::socket::{Backlog, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use proxy::kernel::Programs;
use proxy::kernel::guard::{Guard, GuardMode};
use proxy_common::guard::Verdict;
use tests::bpf::{self, DROP, PASS, guard, test_run};
use tests::client::{Client, Dial};
use tests::netns::Netns;
use tests::skip::without_root;
use tests::{eventually, raise_descriptor_limit};

use crate::frames::{ACK, Frame, RST, SYN};

const LIMIT: Duration = Duration::from_secs(15);
/// Shorter than one second, after which a client sends a lost SYN again.
const AT_ONCE: Duration = Duration::from_millis(600);

const ONE: &str = "10.79.0.2";
const OTHER: &str = "10.79.0.3";

/// Listeners in one namespace, clients in another, a cable between them.
struct Bench {
    server: Netns,
    client: Netns,
    programs: Programs,
    listener: TcpListener,
    /// The listener's address as clients reach it.
    address: SocketAddr,
}

impl Bench {
    /// A bench that counts connections. No XDP is attached yet.
    fn new(guard: &Guard, bind: &str, reached_at: &str) -> Self {
        raise_descriptor_limit();
        let (server, client) = (Netns::new(), Netns::new());
        server.join(("srv0", "10.79.0.1/24"), &client, ("cli0", "10.79.0.2/24"));
        server.ip(&["address", "add", "fd79::1/48", "dev", "srv0", "nodad"]);
        client.ip(&["address", "add", "10.79.0.3/24", "dev", "cli0"]);
        for address in ["fd79::2/48", "fd79::3/48", "fd79:0:0:1::2/48"] {
            client.ip(&["address", "add", address, "dev", "cli0", "nodad"]);
        }
        let mut programs = bpf::programs();
        programs.count_connections().expect("a cgroup v2");
        let listener = server.run(|| listen(bind));
        let bound = listener.local_addr().expect("an address");
        let address = SocketAddr::new(reached_at.parse().expect("an address"), bound.port());
        let mut bench = Self { server, client, programs, listener, address };
        bench.apply(guard);
        bench
    }

    fn apply(&mut self, guard: &Guard) {
        let bound = self.listener.local_addr().expect("an address");
        let programs = &mut self.programs;
        self.server.run(|| programs.apply_guard(guard, &[bound])).expect("the guard is configured");
    }

    fn attach(&mut self, mode: GuardMode) {
        let programs = &mut self.programs;
        self.server.run(|| programs.attach_guard("srv0", mode)).expect("attached");
    }

    fn dial(&self, source: &str) -> std::io::Result<Client> {
        let dial = Dial { source: Some(source.parse().expect("an address")), receive_buffer: None };
        Client::over(self.client.run(|| dial.connect(self.address, AT_ONCE))?)
    }

    /// A connection: the client's end and the server's end.
    fn pair(&self, source: &str) -> (Client, TcpStream) {
        let client = self.dial(source).expect("connected");
        let (server, _) = self.listener.accept().expect("accepted");
        (client, server)
    }

    fn count(&self, source: &str) -> u64 {
        self.programs.counting.connections_of(source.parse().expect("an address")).expect("counts")
    }

    fn expect_count(&self, source: &str, count: u64) {
        let open = || (self.count(source) == count).then_some(());
        eventually(LIMIT, &format!("{count} of {source}, not {}", self.count(source)), open);
    }

    /// The action and the verdicts for a packet that comes to the server's namespace.
    fn judge(&mut self, frame: &Frame) -> (u32, Vec<&'static str>) {
        let before = self.programs.guard.verdicts().expect("counters");
        let program = self.programs.guard_fd().expect("the guard loads");
        let ran = self.server.run(|| test_run(program, &frame.bytes(), 1).expect("a run"));
        let after = self.programs.guard.verdicts().expect("counters");
        let labels = Verdict::ALL.iter().map(|verdict| verdict.label());
        (ran.action, labels.filter(|label| before[*label] != after[*label]).collect())
    }
}

/// A listener whose queue has room for all connections of a test. The kernel drops an ACK that finds the
/// queue full; if a RST follows that ACK, the connection is never accepted. An accept that waits in vain ends
/// with an error.
fn listen(bind: &str) -> TcpListener {
    let listener = TcpListener::bind((bind, 0)).expect("a listener");
    nix::sys::socket::listen(&listener, Backlog::new(4096).expect("a backlog")).expect("listening");
    let limit = TimeVal::seconds(LIMIT.as_secs().cast_signed());
    setsockopt(&listener, sockopt::ReceiveTimeout, &limit).expect("SO_RCVTIMEO");
    listener
}

fn limited(limit: u32) -> Guard {
    Guard { connections_per_ip: Some(limit), ..guard() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn every_way_to_end_gives_the_count_back() {
    if without_root() {
        return;
    }
    let bench = Bench::new(&limited(100), "0.0.0.0", "10.79.0.1");
    let (first, server) = bench.pair(ONE);
    assert_eq!((bench.count(ONE), bench.count(OTHER)), (1, 0));
    // First the client sends FIN before the server, then after it. The end that closes first stays in
    // TIME_WAIT, which does not count.
    drop(first);
    drop(server);
    bench.expect_count(ONE, 0);
    let (second, server) = bench.pair(ONE);
    drop(server);
    bench.expect_count(ONE, 1);
    drop(second);
    bench.expect_count(ONE, 0);
    // First the client resets, then the server.
    let (third, server) = bench.pair(ONE);
    third.reset();
    bench.expect_count(ONE, 0);
    drop(server);
    let (fourth, server) = bench.pair(ONE);
    Client::over(server).expect("a stream").reset();
    bench.expect_count(ONE, 0);
    drop(fourth);
    // A connection that is never accepted counts too.
    let fifth = bench.dial(ONE).expect("connected");
    bench.expect_count(ONE, 1);
    drop(fifth);
    drop(bench.listener.accept().expect("accepted"));
    bench.expect_count(ONE, 0);
    let counted = bench.programs.counting.counted().expect("tallies");
    assert_eq!((counted.opened, counted.closed, counted.uncounted), (5, 5, 0));
}

#[test]
fn only_connections_to_our_listeners_count() {
    if without_root() {
        return;
    }
    let bench = Bench::new(&limited(100), "0.0.0.0", "10.79.0.1");
    let other = bench.server.run(|| TcpListener::bind("0.0.0.0:0").expect("a listener"));
    let to_other = SocketAddr::new(bench.address.ip(), other.local_addr().expect("an address").port());
    let connected = bench.client.run(|| TcpStream::connect(to_other).expect("connected"));
    // A listener with the same address and port in another namespace, under the same cgroup.
    let elsewhere = Netns::new();
    elsewhere.ip(&["address", "add", "10.79.0.1/32", "dev", "lo"]);
    elsewhere.ip(&["address", "add", "10.79.0.2/32", "dev", "lo"]);
    let listener = elsewhere.run(|| TcpListener::bind(bench.address).expect("a listener"));
    let dial = Dial { source: Some(ip(ONE)), receive_buffer: None };
    let inside = elsewhere.run(|| dial.connect(bench.address, LIMIT).expect("connected"));
    drop(listener.accept().expect("accepted"));
    assert_eq!(bench.count(ONE), 0);
    let _ours = bench.pair(ONE);
    assert_eq!(bench.count(ONE), 1);
    drop((connected, inside));
    assert_eq!(bench.count(ONE), 1);
}

#[test]
fn families_and_dual_stack_listeners_count_alike() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&limited(100), "::", "10.79.0.1");
    let mapped = [bench.pair(ONE), bench.pair(ONE)];
    assert_eq!((bench.count(ONE), bench.count("::ffff:10.79.0.2"), bench.count(OTHER)), (2, 2, 0));
    drop(mapped);
    bench.expect_count(ONE, 0);
    bench.address.set_ip(ip("fd79::1"));
    let one_64 = [bench.pair("fd79::2"), bench.pair("fd79::3")];
    let another = bench.pair("fd79:0:0:1::2");
    assert_eq!((bench.count("fd79::2"), bench.count("fd79::9"), bench.count("fd79:0:0:1::")), (2, 2, 1));
    drop((one_64, another));
    bench.expect_count("fd79::2", 0);
    bench.expect_count("fd79:0:0:1::2", 0);
}

#[test]
fn a_source_at_its_limit_is_dropped_and_others_are_not() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&limited(3), "0.0.0.0", "10.79.0.1");
    let to = bench.address.to_string();
    let syn = |source: &str| Frame::syn(source, &to);
    let mut held: Vec<_> = (0..2).map(|_| bench.pair(ONE)).collect();
    assert_eq!(bench.judge(&syn(ONE)), (PASS, vec!["syn"]));
    assert_eq!(bench.judge(&syn(ONE).flags(ACK)), (PASS, vec!["established"]));
    assert_eq!(bench.programs.counting.at_limit().expect("a count"), 0);
    held.push(bench.pair(ONE));
    assert_eq!(bench.programs.counting.at_limit().expect("a count"), 1);
    assert_eq!(bench.judge(&syn(ONE)), (DROP, vec!["connections"]));
    // An ACK that reaches a listener may carry a cookie. A reset cannot complete a handshake.
    assert_eq!(bench.judge(&syn(ONE).flags(ACK)), (DROP, vec!["connections"]));
    assert_eq!(bench.judge(&syn(ONE).flags(RST | ACK)), (PASS, vec!["established"]));
    assert_eq!(bench.judge(&syn(OTHER)), (PASS, vec!["syn"]));
    assert_eq!(bench.judge(&syn(OTHER).flags(ACK)), (PASS, vec!["established"]));
    // Established connections go on.
    let port = held[0].0.socket().local_addr().expect("an address").port();
    assert_eq!(bench.judge(&syn(ONE).source_port(port).flags(ACK)), (PASS, vec!["established"]));
    // The allow list exempts the source, a dry run passes the packet, and without a limit no count is read.
    bench.apply(&Guard { allow: vec!["10.79.0.2/32".parse().expect("a network")], ..limited(3) });
    assert_eq!(bench.judge(&syn(ONE)), (PASS, vec!["allowed"]));
    bench.apply(&Guard { dry_run: true, ..limited(3) });
    assert_eq!(bench.judge(&syn(ONE)), (PASS, vec!["connections"]));
    bench.apply(&guard());
    assert_eq!(bench.judge(&syn(ONE)), (PASS, vec!["syn"]));
    assert_eq!(bench.judge(&syn(ONE).flags(ACK)), (PASS, vec!["established"]));
    bench.apply(&limited(3));
    assert_eq!(bench.judge(&syn(ONE)), (DROP, vec!["connections"]));
    drop(held);
    bench.expect_count(ONE, 0);
    assert_eq!(bench.programs.counting.at_limit().expect("a count"), 0);
    assert_eq!(bench.judge(&syn(ONE).flags(SYN)), (PASS, vec!["syn"]));
}

/// All SYNs pass before the first ACK comes, so only a program that looks at the ACKs too keeps the limit.
fn ten_of_sixty(mode: GuardMode) {
    let mut bench = Bench::new(&limited(10), "0.0.0.0", "10.79.0.1");
    bench.attach(mode);
    let dial = Dial { source: Some(ip(ONE)), receive_buffer: None };
    let streams: Vec<_> =
        bench.client.run(|| (0..60).map(|_| dial.start(bench.address).expect("started")).collect());
    std::thread::sleep(AT_ONCE);
    assert_eq!(bench.count(ONE), 10);
    bench.listener.set_nonblocking(true).expect("non-blocking");
    let mut accepted: Vec<TcpStream> =
        std::iter::from_fn(|| bench.listener.accept().ok()).map(|(stream, _)| stream).collect();
    assert_eq!(accepted.len(), 10);
    // Clients that think they are connected cannot get in by sending data either.
    for stream in &streams {
        let _ = std::io::Write::write(&mut &*stream, b"data");
    }
    std::thread::sleep(AT_ONCE);
    assert_eq!(bench.listener.accept().map_err(|error| error.kind()).err(), Some(ErrorKind::WouldBlock));
    assert!(bench.programs.guard.verdicts().expect("counters")["connections"] >= 50);
    // The ten accepted connections are served all the while.
    for stream in &mut accepted {
        let mut bytes = [0; 4];
        stream.set_nonblocking(false).expect("blocking");
        stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
        stream.read_exact(&mut bytes).expect("the data of one of the ten");
        assert_eq!(&bytes, b"data");
    }
    drop((streams, accepted));
    bench.expect_count(ONE, 0);
    assert!(bench.dial(ONE).is_ok(), "the source may come back");
}

#[test]
fn exactly_ten_of_sixty_get_in_driver_mode() {
    if !without_root() {
        ten_of_sixty(GuardMode::Driver);
    }
}

#[test]
fn exactly_ten_of_sixty_get_in_generic_mode() {
    if !without_root() {
        ten_of_sixty(GuardMode::Generic);
    }
}

/// Four threads open and close at once, so that several CPUs count the same source up and down.
#[test]
fn churn_leaves_nothing_behind() {
    if without_root() {
        return;
    }
    let bench = Bench::new(&limited(1000), "0.0.0.0", "10.79.0.1");
    let address = bench.address;
    std::thread::scope(|scope| {
        let listener = &bench.listener;
        scope.spawn(move || {
            for _ in 0..4 * 250 {
                drop(listener.accept().expect("accepted"));
            }
        });
        for thread in 0..4 {
            let client = &bench.client;
            scope.spawn(move || {
                client.run(|| {
                    for round in 0..250 {
                        let stream = TcpStream::connect(address).expect("connected");
                        let client = Client::over(stream).expect("a stream");
                        if (round + thread) % 2 == 0 {
                            client.reset();
                        }
                    }
                });
            });
        }
    });
    bench.expect_count(ONE, 0);
    let counted = bench.programs.counting.counted().expect("tallies");
    assert_eq!((counted.opened, counted.closed, counted.uncounted), (1000, 1000, 0));
}

/// If other sources fill all buckets of a source, it gets in uncounted. No other source's count changes.
#[test]
fn without_room_a_connection_passes_uncounted() {
    if without_root() {
        return;
    }
    let bench = Bench::new(&limited(1), "0.0.0.0", "10.79.0.1");
    bpf::fill_counts(&bench.programs);
    let held = [bench.pair(ONE), bench.pair(ONE)];
    assert_eq!(bench.programs.counting.counted().expect("tallies").uncounted, 2);
    drop(held);
    std::thread::sleep(Duration::from_millis(50));
    let counted = bench.programs.counting.counted().expect("tallies");
    assert_eq!((counted.opened, counted.closed), (0, 0));
    assert!(bpf::counts_are_full(&bench.programs));
}
