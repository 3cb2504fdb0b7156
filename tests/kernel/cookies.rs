//! SYN cookies from XDP: the contents of the answer, that the kernel completes the handshake with every
//! option, and the cost of a flood.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use proxy::folder::Folder;
use proxy::kernel::guard::{Guard, GuardMode, SynCookies};
use proxy::kernel::{Programs, Sysctls};
use tests::bpf::{self, TX, guard, test_run_output};
use tests::client::Dial;
use tests::flood::{self, Kind};
use tests::netns::Netns;
use tests::process;
use tests::skip::without_root;

use crate::frames::{ACK, Frame};

const LIMIT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(600);
const CLIENT: &str = "10.83.0.2";
const CLIENT6: &str = "fd83::2";

struct Bench {
    server: Netns,
    client: Netns,
    programs: Programs,
    listener: TcpListener,
    v4: SocketAddr,
    v6: SocketAddr,
    /// The settings of the server's namespace. They must be restored inside that namespace.
    sysctls: Option<Sysctls>,
    folder: tempfile::TempDir,
    _peer: std::os::fd::OwnedFd,
}

impl Bench {
    /// A bench with a dual-stack listener of this backlog.
    fn new(guard: &Guard, backlog: i32) -> Self {
        let (server, client) = (Netns::new(), Netns::new());
        server.join(("srv0", "10.83.0.1/24"), &client, ("cli0", "10.83.0.2/24"));
        server.ip(&["address", "add", "fd83::1/64", "dev", "srv0", "nodad"]);
        client.ip(&["address", "add", "fd83::2/64", "dev", "cli0", "nodad"]);
        // The kernel needs a route to a made-up source to answer it.
        server.ip(&["route", "add", "198.18.0.0/15", "via", CLIENT]);
        // Frames that a driver sends back vanish unless the other end has a program too.
        let peer = client.run(|| bpf::attach_empty("cli0")).expect("an empty program");
        let listener = server.run(|| {
            let fd = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
                .expect("a socket");
            setsockopt(&fd, sockopt::Ipv6V6Only, &false).expect("both families");
            let any: SocketAddr = "[::]:0".parse().expect("an address");
            bind(fd.as_raw_fd(), &SockaddrStorage::from(any)).expect("a port");
            listen(&fd, Backlog::new(backlog).expect("a backlog")).expect("listening");
            TcpListener::from(fd)
        });
        let port = listener.local_addr().expect("an address").port();
        let folder = tempfile::tempdir().expect("a folder");
        let mut programs = bpf::programs();
        programs.count_connections().expect("a cgroup v2");
        let sysctls = server.run(|| {
            let mut sysctls = Sysctls::new(Folder::open(folder.path()).expect("ours"));
            assert_eq!(
                programs.guard.use_cookies(guard, &mut sysctls).expect("cookies"),
                Vec::<String>::new()
            );
            programs
                .apply_guard(guard, &[listener.local_addr().expect("an address")])
                .expect("the guard is configured");
            sysctls
        });
        let at = |ip: &str| SocketAddr::new(ip.parse().expect("an address"), port);
        let (v4, v6) = (at("10.83.0.1"), at("fd83::1"));
        Self { server, client, programs, listener, v4, v6, sysctls: Some(sysctls), folder, _peer: peer }
    }

    fn attach(&mut self, mode: GuardMode) {
        let programs = &mut self.programs;
        self.server.run(|| programs.attach_guard("srv0", mode)).expect("attached");
    }

    fn verdict(&self, label: &str) -> u64 {
        self.programs.guard.verdicts().expect("counters")[label]
    }

    fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.client.run(|| Dial::default().connect(to, Duration::from_secs(3)))
    }

    fn judge(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let program = self.programs.guard_fd().expect("the guard loads");
        self.server.run(|| test_run_output(program, frame).expect("a run"))
    }

    fn sysctl(&self, name: &str) -> String {
        let read = || std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).expect("a setting");
        self.server.run(read).trim().to_owned()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let sysctls = self.sysctls.take();
        self.server.run(|| drop(sysctls));
    }
}

fn cookies(syn_cookies: SynCookies) -> Guard {
    Guard { syn_cookies, ..guard() }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum()
}

fn folded(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16)
}

const MSS: [u8; 4] = [2, 4, 5, 0xb4];
const SACK: [u8; 2] = [4, 2];
const STAMP: [u8; 10] = [8, 10, 0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0];
const SCALE: [u8; 4] = [1, 3, 3, 7];

#[test]
fn a_syn_becomes_its_answer_in_every_header_shape() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&cookies(SynCookies::Always), 128);
    let all = [&MSS[..], &SACK, &STAMP, &SCALE].concat();
    let padded = |options: &[u8]| [options, &[1; 3][..(4 - options.len() % 4) % 4]].concat();
    for (name, to, options, length, low) in [
        ("no options", bench.v4, Vec::new(), 24, None),
        ("all", bench.v4, all.clone(), 40, Some(0x17)),
        ("without SACK", bench.v4, padded(&[&MSS[..], &STAMP, &SCALE].concat()), 40, Some(0x07)),
        ("without scale", bench.v4, padded(&[&MSS[..], &SACK, &STAMP].concat()), 40, Some(0x1f)),
        ("scale without timestamps is lost", bench.v4, [&MSS[..], &SCALE].concat(), 24, None),
        ("only no-operations", bench.v4, vec![1; 40], 24, None),
        ("an option of no length", bench.v4, vec![99, 0, 1, 1], 24, None),
        ("no options, ipv6", bench.v6, Vec::new(), 24, None),
        ("all, ipv6", bench.v6, all.clone(), 40, Some(0x17)),
    ] {
        let client = if to.is_ipv4() { CLIENT } else { CLIENT6 };
        let syn = Frame::syn(client, &to.to_string()).tcp_options(&options);
        for (tags, shape) in [(0, syn.clone()), (4, syn.clone().tags(&[crate::frames::VLAN]))] {
            let frame = shape.bytes();
            let (action, answer) = bench.judge(&frame);
            assert_eq!(action, TX, "{name}");
            assert_eq!(
                (&answer[..6], &answer[6..12]),
                (&frame[6..12], &frame[..6]),
                "{name}: addresses change places"
            );
            assert_eq!(answer[12..14 + tags], frame[12..14 + tags], "{name}: tags stay");
            let ip = &answer[14 + tags..];
            let asked = &frame[14 + tags..];
            let (headers, pseudo) = if to.is_ipv4() {
                assert_eq!((ip[0], u16::from_be_bytes([ip[2], ip[3]]) as usize), (0x45, ip.len()), "{name}");
                assert_eq!(folded(sum(&ip[..20])), 0xffff, "{name}: the IP header's checksum");
                assert_eq!((&ip[12..16], &ip[16..20]), (&asked[16..20], &asked[12..16]), "{name}");
                (20, sum(&ip[12..20]))
            } else {
                assert_eq!(
                    (ip[0], ip[6], u16::from_be_bytes([ip[4], ip[5]]) as usize),
                    (0x60, 6, ip.len() - 40),
                    "{name}"
                );
                assert_eq!((&ip[8..24], &ip[24..40]), (&asked[24..40], &asked[8..24]), "{name}");
                (40, sum(&ip[8..40]))
            };
            let tcp = &ip[headers..];
            assert_eq!((tcp.len(), tcp[12] >> 4, tcp[13]), (length, (length / 4) as u8, 0x12), "{name}");
            assert_eq!(folded(pseudo + 6 + sum(tcp) + tcp.len() as u32), 0xffff, "{name}: the checksum");
            assert_eq!(u16::from_be_bytes([tcp[0], tcp[1]]), to.port(), "{name}");
            assert_eq!(tcp[8..12], 2u32.to_be_bytes(), "{name}: acknowledges sequence number 1");
            assert_eq!(tcp[20..22], [2, 4], "{name}: MSS");
            if let Some(low) = low {
                assert_eq!(u32::from(tcp[31]) & 0x1f, low, "{name}: the options in the timestamp");
                assert_eq!(tcp[32..36], STAMP[2..6], "{name}: the client's timestamp comes back");
                assert_eq!(tcp[37] == 3, low & 0xf != 0xf, "{name}: window scale");
                assert_eq!(tcp[24] == 4, low & 0x10 != 0, "{name}: SACK");
            }
        }
    }
    // A port without a listener, and a dry run.
    assert_eq!(bench.judge(&Frame::syn(CLIENT, "10.83.0.1:1").bytes()).0, bpf::PASS);
    let dry = Guard { dry_run: true, ..cookies(SynCookies::Always) };
    let bound = [bench.listener.local_addr().expect("an address")];
    bench.programs.apply_guard(&dry, &bound).expect("the guard is configured");
    let frame = Frame::syn(CLIENT, &bench.v4.to_string()).bytes();
    let before = bench.verdict("syn_cookie");
    assert_eq!(bench.judge(&frame), (bpf::PASS, frame), "a dry run answers nothing");
    assert_eq!(bench.verdict("syn_cookie"), before + 1, "and counts");
}

/// Handshakes by cookie with all options. Data goes both ways; a garbled window scale would stop it.
fn handshakes(mode: GuardMode) {
    let mut bench = Bench::new(&cookies(SynCookies::Always), 128);
    bench.attach(mode);
    for to in [bench.v4, bench.v6] {
        for _ in 0..10 {
            let mut client = bench.connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
            client.write_all(&[7; 1000]).expect("sent");
            let (mut server, _) = bench.listener.accept().expect("accepted");
            server.set_read_timeout(Some(LIMIT)).expect("a timeout");
            server.read_exact(&mut [0; 1000]).expect("received");
            let shown = bench.server.run(|| {
                let mut ss = std::process::Command::new("ss");
                process::run(ss.args(["-tinoH", "state", "established"]), LIMIT).success().text()
            });
            for word in [" ts ", " sack ", " wscale:"] {
                assert!(shown.contains(word), "{to}: {word:?} in {shown}");
            }
            std::thread::scope(|scope| {
                scope.spawn(move || server.write_all(&vec![9; 4 << 20]).expect("sent"));
                client.set_read_timeout(Some(LIMIT)).expect("a timeout");
                let mut bytes = vec![0; 4 << 20];
                client.read_exact(&mut bytes).expect("received");
            });
        }
    }
    assert!(bench.verdict("syn_cookie") >= 20, "{:?}", bench.programs.guard.verdicts());
    let counted = bench.programs.counting.counted().expect("tallies");
    assert_eq!(counted.uncounted, 0);
}

#[test]
fn the_kernel_takes_the_handshake_up_in_driver_mode() {
    if !without_root() {
        handshakes(GuardMode::Driver);
    }
}

#[test]
fn the_kernel_takes_the_handshake_up_in_generic_mode() {
    if !without_root() {
        handshakes(GuardMode::Generic);
    }
}

#[test]
fn settings_are_changed_for_cookies_and_given_back() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&cookies(SynCookies::Always), 128);
    let both = |bench: &Bench| [bench.sysctl("tcp_syncookies"), bench.sysctl("tcp_timestamps")];
    assert_eq!(both(&bench), ["2", "2"]);
    // After a crash the settings are still on record: the next run restores the values from before the first.
    let crashed = bench.sysctls.take();
    std::mem::forget(crashed);
    let (server, folder) = (&bench.server, &bench.folder);
    server.run(|| drop(Sysctls::new(Folder::open(folder.path()).expect("ours"))));
    assert_eq!(both(&bench), ["1", "1"]);
    assert_eq!(std::fs::read_dir(bench.folder.path()).expect("a folder").count(), 0);
}

#[test]
fn exactly_ten_of_sixty_get_in_with_cookies() {
    if without_root() {
        return;
    }
    let guard = Guard { connections_per_ip: Some(10), ..cookies(SynCookies::Always) };
    let mut bench = Bench::new(&guard, 128);
    bench.attach(GuardMode::Driver);
    let to = bench.v4;
    let streams: Vec<TcpStream> =
        bench.client.run(|| (0..60).map(|_| Dial::default().start(to).expect("started")).collect());
    std::thread::sleep(PAUSE);
    let source: IpAddr = CLIENT.parse().expect("an address");
    assert_eq!(bench.programs.counting.connections_of(source).expect("counts"), 10);
    assert!(bench.verdict("syn_cookie") >= 10);
    drop(streams);
    for _ in 0..10 {
        drop(bench.listener.accept().expect("accepted"));
    }
    tests::eventually(LIMIT, "all are gone", || {
        (bench.programs.counting.connections_of(source).expect("counts") == 0).then_some(())
    });
}

/// Connects honest clients while `kind` floods. Returns how many were served, and the softirq time of all
/// CPUs meanwhile.
fn under_flood(bench: &Bench, kind: Kind, count: u32, honest: usize) -> (usize, u64) {
    let SocketAddr::V4(to) = bench.v4 else { panic!("IPv4") };
    let before = flood::softirq_ticks();
    let served = std::thread::scope(|scope| {
        let client = &bench.client;
        scope.spawn(move || {
            // The whole flood is sent even if the honest clients finish early, so that the softirq times of
            // two runs cover the same number of packets.
            for _ in 0..count / 1000 {
                client.run(|| flood::send(kind, SocketAddrV4::new(*to.ip(), to.port()), 1000));
            }
        });
        let listener = &bench.listener;
        listener.set_nonblocking(true).expect("non-blocking");
        let mut held = Vec::new();
        for _ in 0..honest {
            held.extend(bench.connect(bench.v4));
            while let Ok((stream, _)) = listener.accept() {
                drop(stream);
            }
        }
        held.len()
    });
    (served, flood::softirq_ticks() - before)
}

#[test]
fn a_spoofed_syn_flood_costs_honest_clients_nothing() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&cookies(SynCookies::Auto), 64);
    let (without, ticks_without) = under_flood(&bench, Kind::Syn, 100_000, 200);
    bench.attach(GuardMode::Driver);
    let (with, ticks_with) = under_flood(&bench, Kind::Syn, 100_000, 200);
    println!(
        "SYN flood: {with} of 200 connect with XDP in {ticks_with} ticks of softirq, {without} without in \
         {ticks_without}"
    );
    assert!(with >= 199, "{with} of 200");
    assert!(bench.verdict("syn_cookie") > 1000, "{:?}", bench.programs.guard.verdicts());
}

/// Issue 12: SYNs in a client's name took its rate, and the client was shut out.
#[test]
fn a_source_pays_for_the_cookies_that_it_brings_back() {
    if without_root() {
        return;
    }
    let guard = Guard { syn_rate_per_ip: Some(1), syn_burst_per_ip: 3, ..cookies(SynCookies::Always) };
    let mut bench = Bench::new(&guard, 128);
    bench.attach(GuardMode::Driver);
    let SocketAddr::V4(to) = bench.v4 else { panic!("IPv4") };
    bench.listener.set_nonblocking(true).expect("non-blocking");
    let source = CLIENT.parse().expect("an address");
    let sent = bench.client.run(|| flood::send_as(source, to, 2000));
    tests::eventually(LIMIT, "all are answered", || {
        (bench.verdict("syn_cookie") >= u64::from(sent)).then_some(())
    });
    assert_eq!(bench.verdict("syn_rate"), 0, "anybody can send these");
    // The client itself has its burst, and its rate.
    let start = std::time::Instant::now();
    let held: Vec<TcpStream> = (0..12).filter_map(|_| bench.connect(bench.v4).ok()).collect();
    assert_eq!(held.len(), 12, "each gets a cookie");
    tests::eventually(LIMIT, "some are too many", || (bench.verdict("syn_rate") >= 1).then_some(()));
    let mut accepted = 0;
    tests::eventually(LIMIT, "the burst", || {
        accepted += std::iter::from_fn(|| bench.listener.accept().ok()).count();
        (accepted >= 3).then_some(())
    });
    let most = 4 + start.elapsed().as_secs() as usize;
    assert!(accepted <= most, "{accepted} of 12 within {:?}", start.elapsed());
}

#[test]
fn cookies_have_a_budget() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&Guard { syn_cookies_rate: 50, ..cookies(SynCookies::Always) }, 128);
    bench.attach(GuardMode::Driver);
    let SocketAddr::V4(to) = bench.v4 else { panic!("IPv4") };
    let start = std::time::Instant::now();
    let sent = bench.client.run(|| flood::send(Kind::Syn, to, 5000));
    tests::eventually(LIMIT, "all are judged", || {
        let judged = bench.verdict("syn_cookie") + bench.verdict("syn_cookie_rate");
        (judged >= u64::from(sent)).then_some(())
    });
    let most = 6 + 50 * (start.elapsed().as_secs() + 1);
    let answered = bench.verdict("syn_cookie");
    assert!((5..=most).contains(&answered), "{answered} of {sent}, {most} are the most");
    // The budget fills again.
    tests::eventually(LIMIT, "a client is served", || bench.connect(bench.v4).ok());
}

#[test]
fn bogus_acks_are_dropped_while_cookies_are_out_and_pass_before() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&cookies(SynCookies::Always), 128);
    let stray = Frame::syn(CLIENT, &bench.v4.to_string()).flags(ACK).bytes();
    assert_eq!(bench.judge(&stray).0, bpf::PASS, "no cookie was sent yet");
    bench.attach(GuardMode::Driver);
    drop(bench.connect(bench.v4).expect("a cookie"));
    assert_eq!(bench.judge(&stray).0, bpf::DROP);
    let SocketAddr::V4(to) = bench.v4 else { panic!("IPv4") };
    let before = bench.verdict("stray_ack");
    let sent = bench.client.run(|| flood::send(Kind::Ack, to, 20_000));
    tests::eventually(LIMIT, "all are dropped", || {
        (bench.verdict("stray_ack") >= before + u64::from(sent)).then_some(())
    });
    let (served, ticks) = under_flood(&bench, Kind::Ack, 50_000, 100);
    println!("ACK flood: {served} of 100 connect, {ticks} ticks of softirq");
    assert_eq!(served, 100);
}
