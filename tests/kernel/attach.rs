//! The guard on real interfaces: driver mode over veth, generic mode on `lo`, failures to attach, and that
//! the guard goes away with its owner.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use proxy::control::now;
use proxy::kernel::Programs;
use proxy::kernel::guard::{Guard, GuardMode, XdpMode};
use tests::bpf::{self, guard};
use tests::netns::Netns;
use tests::skip::without_root;

/// A server and a client namespace, joined by `srv0` and `cli0`. The client has two addresses of each family.
struct Pair {
    server: Netns,
    client: Netns,
}

impl Pair {
    fn new() -> Self {
        let (server, client) = (Netns::new(), Netns::new());
        server.join(("srv0", "10.7.0.1/24"), &client, ("cli0", "10.7.0.2/24"));
        server.ip(&["address", "add", "fd07::1/64", "dev", "srv0", "nodad"]);
        client.ip(&["address", "add", "10.7.0.3/24", "dev", "cli0"]);
        client.ip(&["address", "add", "fd07::2/64", "dev", "cli0", "nodad"]);
        Self { server, client }
    }

    /// Connects from one of the client's addresses. If the guard drops the packets, the connect times out.
    fn connect(&self, from: &str, to: SocketAddr) -> Result<TcpStream, ErrorKind> {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
        };
        use nix::sys::time::{TimeVal, TimeValLike};
        self.client.run(|| {
            let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
            // The send timeout limits connect(2) too.
            setsockopt(&socket, sockopt::SendTimeout, &TimeVal::milliseconds(400)).expect("a timeout");
            let from = SocketAddr::new(from.parse().expect("an address"), 0);
            let raw = std::os::fd::AsRawFd::as_raw_fd(&socket);
            bind(raw, &SockaddrStorage::from(from)).expect("an address of the client");
            match connect(raw, &SockaddrStorage::from(to)) {
                Ok(()) => Ok(TcpStream::from(socket)),
                Err(nix::errno::Errno::EINPROGRESS | nix::errno::Errno::ETIMEDOUT) => {
                    Err(ErrorKind::TimedOut)
                }
                Err(error) => Err(std::io::Error::from(error).kind()),
            }
        })
    }
}

fn listen(namespace: &Netns, address: &str) -> TcpListener {
    namespace.run(|| TcpListener::bind(address).expect("a listener"))
}

fn configured(guard: &Guard, listeners: &[SocketAddr]) -> Programs {
    let mut programs = bpf::programs();
    programs.apply_guard(guard, listeners).expect("the guard is configured");
    programs
}

/// Attaches the guard on a thread inside a namespace.
fn attach(
    namespace: &Netns,
    programs: &mut Programs,
    interface: &str,
    mode: GuardMode,
) -> Result<XdpMode, String> {
    // Only the interface's name depends on the thread's namespace; descriptors and links do not.
    namespace.run(|| programs.attach_guard(interface, mode)).map_err(|error| error.to_string())
}

#[test]
fn driver_mode_drops_the_denied_and_the_flooder_and_serves_others() {
    if without_root() {
        return;
    }
    let pair = Pair::new();
    let listener = listen(&pair.server, "[::]:0");
    let port = listener.local_addr().expect("an address").port();
    let bound = [SocketAddr::from(([0u16; 8], port))];
    let v4 = SocketAddr::from(([10, 7, 0, 1], port));
    let v6 = SocketAddr::new("fd07::1".parse().expect("an address"), port);

    let denying = Guard { deny: vec!["10.7.0.3/32".parse().expect("a prefix")], ..guard() };
    let mut programs = configured(&denying, &bound);
    assert_eq!(attach(&pair.server, &mut programs, "srv0", GuardMode::Driver), Ok(XdpMode::Driver));
    assert!(pair.server.xdp("srv0").is_some());

    pair.connect("10.7.0.2", v4).expect("not denied");
    pair.connect("fd07::2", v6).expect("not denied");
    assert_eq!(pair.connect("10.7.0.3", v4).err(), Some(ErrorKind::TimedOut));
    let verdicts = programs.guard.verdicts().expect("counters");
    assert!(verdicts["denied"] >= 1, "{verdicts:?}");
    assert!(verdicts["syn"] >= 2, "{verdicts:?}");
    assert!(verdicts["established"] >= 2, "{verdicts:?}");

    // The new deny list cuts an established flow too.
    let cut = pair.connect("10.7.0.2", v4).expect("not denied yet");
    let (served, _) = listener.accept().expect("the first");
    drop(served);
    let all = Guard { deny: vec!["10.7.0.0/24".parse().expect("a prefix")], ..guard() };
    programs.apply_guard(&all, &bound).expect("the guard is configured");
    let before = programs.guard.verdicts().expect("counters")["denied"];
    std::io::Write::write_all(&mut &cut, b"dropped").expect("the kernel takes it");
    std::thread::sleep(Duration::from_millis(50));
    assert!(
        programs.guard.verdicts().expect("counters")["denied"] > before,
        "a segment of an established flow passed"
    );

    // One source exceeds its rate; another source stays below it.
    let limited = Guard { syn_rate_per_ip: Some(1), syn_burst_per_ip: 20, ..guard() };
    programs.apply_guard(&limited, &bound).expect("the guard is configured");
    let mut served = 0;
    while pair.connect("10.7.0.3", v4).is_ok() {
        served += 1;
        assert!(served < 40, "the flooder was never dropped");
    }
    assert!(served >= 20, "the burst was not served: {served}");
    pair.connect("10.7.0.2", v4).expect("another source is served");
    assert!(programs.guard.verdicts().expect("counters")["syn_rate"] >= 1);

    // The programs leave nothing behind.
    drop(programs);
    assert!(pair.server.xdp("srv0").is_none(), "dropping the programs detaches");
    pair.connect("10.7.0.3", v4).expect("nobody judges any more");
}

#[test]
fn auto_takes_the_driver_where_it_can_and_generic_on_lo() {
    if without_root() {
        return;
    }
    let pair = Pair::new();
    let listener = listen(&pair.server, "127.0.0.1:0");
    let address = listener.local_addr().expect("an address");
    let mut programs = configured(&guard(), &[address]);
    assert_eq!(attach(&pair.server, &mut programs, "srv0", GuardMode::Auto), Ok(XdpMode::Driver));
    assert_eq!(attach(&pair.server, &mut programs, "lo", GuardMode::Auto), Ok(XdpMode::Generic));
    // Attaching again changes nothing.
    assert_eq!(attach(&pair.server, &mut programs, "lo", GuardMode::Auto), Ok(XdpMode::Generic));
    let status = programs.guard_status(now()).expect("status");
    assert_eq!(status.interfaces, [("lo".into(), "generic".into()), ("srv0".into(), "driver".into())].into());

    pair.server.run(|| TcpStream::connect(address).expect("loopback is served"));
    let verdicts = programs.guard.verdicts().expect("counters");
    assert_eq!(verdicts["syn"], 1, "{verdicts:?}");
    assert!(verdicts["established"] >= 1, "{verdicts:?}");
    // On `lo` the guard also sees the server's packets to the client's port. It does not judge them.
    assert!(verdicts["not_ours"] >= 1, "{verdicts:?}");

    programs.guard.detach("lo").expect("detached");
    assert!(pair.server.xdp("lo").is_none());
    assert!(pair.server.xdp("srv0").is_some());
}

#[test]
fn what_cannot_be_attached_says_why() {
    if without_root() {
        return;
    }
    let pair = Pair::new();
    let mut programs = configured(&guard(), &[]);
    let refused = |programs: &mut Programs, interface, mode| {
        attach(&pair.server, programs, interface, mode).expect_err("it cannot be attached")
    };
    let error = refused(&mut programs, "lo", GuardMode::Driver);
    assert!(error.starts_with("XDP on lo: driver mode:") && error.contains("\"generic\""), "{error}");
    for name in ["nonesuch0", "", "a\0b", "a-name-that-is-longer-than-any"] {
        let error = refused(&mut programs, name, GuardMode::Auto);
        assert!(error.contains("no interface of this name"), "{error}");
    }

    let mut other = configured(&guard(), &[]);
    attach(&pair.server, &mut other, "srv0", GuardMode::Driver).expect("the first one is attached");
    let error = refused(&mut programs, "srv0", GuardMode::Auto);
    assert!(error.contains("another XDP program is attached") && !error.contains("generic mode:"), "{error}");
    let error = refused(&mut programs, "srv0", GuardMode::Generic);
    assert!(error.contains("one program per interface"), "{error}");
    assert!(programs.guard.attached().next().is_none());
    drop(other);
    attach(&pair.server, &mut programs, "srv0", GuardMode::Driver).expect("the interface is free again");
}
