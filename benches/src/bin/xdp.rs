//! `cargo run --release -p benches --bin xdp [-- --json]`: the guard's cost for a packet. BPF_PROG_TEST_RUN
//! (Documentation/bpf/bpf_prog_run) measures it, so no driver, interrupt or allocation is included. Every
//! round runs the empty program first, then every case. The figures are medians over rounds; the cost above
//! the empty program is taken within each round. Needs root.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use benches::{Random, Spread};
use ipnet::IpNet;
use proxy::control::{self, bans::BanSource};
use proxy::kernel::Programs;
use proxy::kernel::guard::Guard;
use tests::bpf::{Spoofer, empty_program, guard, programs, test_run};

const ROUNDS: usize = 11;
const REPEAT: u32 = 500_000;
/// How many SYNs empty every bucket before flooded packets are measured.
const FLOOD: u32 = 1_500_000;
const LISTED: u32 = 20_000;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 7);

/// The smallest TCP segment over Ethernet, to port 80.
fn frame(source: impl Into<IpAddr>, flags: u8) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    match source.into() {
        IpAddr::V4(source) => {
            bytes.extend_from_slice(&[0x08, 0x00, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
            bytes.extend_from_slice(&source.octets());
            bytes.extend_from_slice(&[192, 0, 2, 1]);
        }
        IpAddr::V6(source) => {
            bytes.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            bytes.extend_from_slice(&source.octets());
            bytes.extend_from_slice(&Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets());
        }
    }
    bytes
        .extend_from_slice(&[0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

/// A list that resembles networks and hosts from all over the world. Of ten entries, one is IPv6 (29 to 64
/// bits), four are IPv4 hosts, three are IPv4 networks of 24 bits, two of 16 to 23. Together they cover one
/// address in sixty.
fn mixed() -> Vec<IpNet> {
    let mut random = Random::new(1);
    let net = |number: u32, bits: u64, other: u64| {
        let v4 = |length| IpNet::new(IpAddr::V4((bits as u32).into()), length);
        let net = match number % 10 {
            0 => {
                let address = 0x2000 << 112 | u128::from(bits) << 61 | u128::from(other) >> 3;
                IpNet::new(IpAddr::V6(address.into()), 29 + (other % 36) as u8)
            }
            1..=4 => v4(32),
            5..=7 => v4(24),
            _ => v4(16 + (other % 8) as u8),
        };
        net.expect("a prefix").trunc()
    };
    let listed = (0..LISTED * 2).map(|number| net(number, random.next(), random.next()));
    // The list contains neither the client of the cases below nor any network twice.
    let listed =
        listed.filter(|net| !net.contains(&IpAddr::V4(CLIENT)) && !net.contains(&IpAddr::V6(CLIENT6)));
    let mut listed: Vec<IpNet> = listed.take(LISTED as usize + 1_000).collect();
    listed.sort_unstable();
    listed.dedup();
    listed.truncate(LISTED as usize);
    listed
}

/// Consecutive hosts, so that neighbours differ only in their last bits.
fn host(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + number)
}

/// The guard with one configuration, and a spoofer that runs before it.
struct Guarded {
    programs: Programs,
    spoofer: Spoofer,
}

impl Guarded {
    fn new(guard: &Guard, listeners: &[&str]) -> Self {
        let mut programs = programs();
        let listeners: Vec<SocketAddr> =
            listeners.iter().map(|address| address.parse().expect("an address")).collect();
        programs.apply_guard(guard, &listeners).expect("the guard is configured");
        let spoofer = Spoofer::new(programs.guard_fd().expect("the guard loads")).expect("the spoofer loads");
        Self { programs, spoofer }
    }

    /// Bans these hosts for longer than the measurement takes.
    fn banning(mut self, hosts: impl Iterator<Item = Ipv4Addr>) -> Self {
        let (now, day) = (control::now(), Duration::from_secs(86_400));
        for host in hosts {
            let source = BanSource::new(host.into()).expect("a source");
            self.programs.guard.ban(source, now + day, now).expect("banned");
        }
        self
    }
}

/// The sources of a case's packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sources {
    One,
    /// Each packet has another source. The floor includes the spoofer's cost too.
    New,
}

struct Case {
    name: &'static str,
    what: &'static str,
    /// The highest cost above the floor that is allowed, in nanoseconds.
    goal: Option<u32>,
    /// Index into the configurations. `None`: the empty program.
    guarded: Option<usize>,
    sources: Sources,
    packet: Vec<u8>,
    /// Labels of verdicts. Most packets must get one of these.
    verdicts: &'static [&'static str],
    /// A flood empties every bucket first.
    flooded: bool,
    nanos: Vec<u32>,
    above: Vec<f64>,
}

impl Case {
    fn new(
        name: &'static str,
        what: &'static str,
        goal: Option<u32>,
        guarded: Option<usize>,
        packet: Vec<u8>,
    ) -> Self {
        let (sources, verdicts, nanos, above) = (Sources::One, &[][..], Vec::new(), Vec::new());
        Self { name, what, goal, guarded, sources, packet, verdicts, flooded: false, nanos, above }
    }

    fn verdicts(mut self, verdicts: &'static [&'static str]) -> Self {
        self.verdicts = verdicts;
        self
    }

    fn new_sources(mut self) -> Self {
        self.sources = Sources::New;
        self
    }

    fn flooded(mut self) -> Self {
        self.flooded = true;
        self
    }

    /// Runs one round. Most packets must get the verdicts that the case names.
    fn run(&mut self, floors: &Floors, guarded: &mut [Guarded]) -> u32 {
        let Some(guarded) = self.guarded.and_then(|index| guarded.get_mut(index)) else {
            return time(floors.of(self.sources), &self.packet, REPEAT);
        };
        let program = match self.sources {
            Sources::One => guarded.programs.guard_fd().expect("the guard is loaded"),
            Sources::New => guarded.spoofer.as_fd(),
        };
        let program: OwnedFd = program.try_clone_to_owned().expect("a descriptor");
        if self.flooded {
            time(guarded.spoofer.as_fd(), &self.packet, FLOOD);
        }
        let before = guarded.programs.guard.verdicts().expect("counters");
        let nanos = time(program.as_fd(), &self.packet, REPEAT);
        let after = guarded.programs.guard.verdicts().expect("counters");
        let counted: u64 = self.verdicts.iter().map(|label| after[*label] - before[*label]).sum();
        // Some packets get another verdict: the mixed list contains one address in sixty, and a flooded
        // bucket has a SYN again after a second.
        assert!(
            counted >= u64::from(REPEAT) * 3 / 4,
            "{}: only {counted} were {:?}",
            self.name,
            self.verdicts
        );
        nanos
    }
}

/// The empty program, alone and after a spoofer.
struct Floors {
    empty: OwnedFd,
    spoofer: Spoofer,
}

impl Floors {
    fn of(&self, sources: Sources) -> BorrowedFd<'_> {
        match sources {
            Sources::One => self.empty.as_fd(),
            Sources::New => self.spoofer.as_fd(),
        }
    }
}

fn time(program: BorrowedFd<'_>, packet: &[u8], repeat: u32) -> u32 {
    test_run(program, packet, repeat).expect("a run").nanos
}

/// The configurations, and the cases over them.
fn cases() -> (Vec<Guarded>, Vec<Case>) {
    const EMPTY: Option<usize> = Some(0);
    const ONE_ADDRESS: Option<usize> = Some(1);
    const TWO_ADDRESSES: Option<usize> = Some(2);
    const MIXED: Option<usize> = Some(3);
    const HOSTS: Option<usize> = Some(4);
    const WITHIN: Option<usize> = Some(5);
    const ABOVE: Option<usize> = Some(6);
    const ALL: Option<usize> = Some(7);
    const BANS: Option<usize> = Some(8);
    let any = &["[::]:80"][..];
    let rate = |rate, burst| Guard { syn_rate_per_ip: Some(rate), syn_burst_per_ip: burst, ..guard() };
    let hosts: Vec<IpNet> = (0..LISTED).map(|number| IpAddr::V4(host(number)).into()).collect();
    let guarded = vec![
        Guarded::new(&guard(), any),
        Guarded::new(&guard(), &["192.0.2.1:80", "[2001:db8::1]:80"]),
        Guarded::new(&guard(), &["192.0.2.1:80", "192.0.2.2:80"]),
        Guarded::new(&Guard { deny: mixed(), ..guard() }, any),
        Guarded::new(&Guard { deny: hosts, ..guard() }, any),
        Guarded::new(&rate(u32::MAX, u32::MAX), any),
        Guarded::new(&rate(1, 1), any),
        Guarded::new(&Guard { deny: mixed(), ..rate(1, 1) }, any),
        Guarded::new(&guard(), any).banning((0..LISTED).map(host)),
    ];
    let (v4, v6, syn) = (frame(CLIENT, ACK), frame(CLIENT6, ACK), frame(CLIENT, SYN));
    let mut elsewhere = v4.clone();
    elsewhere[37] = 81;
    let established = &["established"][..];
    let case = Case::new;
    let cases = vec![
        case("floor", "the empty program", None, None, v4.clone()),
        case("floor-new-sources", "the empty program, a new source each time", None, None, v4.clone())
            .new_sources(),
        case("not-ours", "not ours", None, EMPTY, elsewhere).verdicts(&["not_ours"]),
        case("established", "established, lists empty", Some(25), EMPTY, v4.clone()).verdicts(established),
        case("established-v6", "the same over IPv6", Some(25), EMPTY, v6.clone()).verdicts(established),
        case("one-address", "the same, listener on one address", Some(25), ONE_ADDRESS, v4.clone())
            .verdicts(established),
        case("one-address-v6", "the same over IPv6", Some(25), ONE_ADDRESS, v6.clone()).verdicts(established),
        case("two-addresses", "the same, listener on two addresses", None, TWO_ADDRESSES, v4.clone())
            .verdicts(established),
        case("bans", "established, 20,000 bans, not among them", Some(25), BANS, v4.clone())
            .verdicts(established),
        case(
            "bans-beside",
            "established, beside one of 20,000 bans",
            Some(25),
            BANS,
            frame(host(LISTED), ACK),
        )
        .verdicts(established),
        case(
            "banned",
            "established, one of 20,000 bans, dropped",
            Some(250),
            BANS,
            frame(host(LISTED / 2), ACK),
        )
        .verdicts(&["banned"]),
        case("20k", "established, 20,000 CIDRs, not among them", Some(60), MIXED, v4.clone())
            .verdicts(established),
        case("20k-v6", "the same over IPv6", Some(60), MIXED, v6).verdicts(established),
        case("20k-new-sources", "the same, a new source each time", Some(60), MIXED, v4)
            .new_sources()
            .verdicts(established),
        case(
            "20k-beside",
            "established, beside one of 20,000 hosts",
            Some(60),
            HOSTS,
            frame(host(LISTED), ACK),
        )
        .verdicts(established),
        case(
            "denied",
            "SYN denied by one of 20,000 hosts, dropped",
            Some(250),
            HOSTS,
            frame(host(LISTED / 2), SYN),
        )
        .verdicts(&["denied"]),
        case("syn", "SYN, no rate", None, EMPTY, syn.clone()).verdicts(&["syn"]),
        case("syn-within", "SYN within the rate", None, WITHIN, syn.clone()).verdicts(&["syn"]),
        case("syn-within-new-sources", "the same, a new source each time", None, WITHIN, syn.clone())
            .new_sources()
            .verdicts(&["syn"]),
        case("syn-above", "SYN above the rate, dropped", Some(250), ABOVE, syn.clone())
            .verdicts(&["syn_rate"])
            .flooded(),
        case(
            "syn-above-new-sources",
            "the same, a new spoofed source each time",
            Some(250),
            ABOVE,
            syn.clone(),
        )
        .new_sources()
        .verdicts(&["syn_rate"])
        .flooded(),
        case("syn-above-20k-new-sources", "the same, with 20,000 CIDRs", Some(250), ALL, syn)
            .new_sources()
            .verdicts(&["syn_rate", "denied"])
            .flooded(),
    ];
    (guarded, cases)
}

fn main() {
    let json = std::env::args().skip(1).any(|argument| argument == "--json");
    let empty = empty_program().expect("the empty program loads (this needs root)");
    let spoofer = Spoofer::new(empty.as_fd()).expect("the spoofer loads");
    let floors = Floors { empty, spoofer };
    let (mut guarded, mut cases) = cases();
    for round in 0..=ROUNDS {
        let mut floor = [0; 2];
        for case in &mut cases {
            let nanos = case.run(&floors, &mut guarded);
            let floor = &mut floor[usize::from(case.sources == Sources::New)];
            if case.guarded.is_none() {
                *floor = nanos;
            }
            // The first round only warms up.
            if round > 0 {
                case.nanos.push(nanos);
                case.above.push(f64::from(nanos) - f64::from(*floor));
            }
        }
    }
    if !json {
        println!(
            "{ROUNDS} rounds of {REPEAT} packets: median (min–max) ns a packet, and above the empty program"
        );
    }
    for case in &cases {
        report(case, json);
    }
}

fn report(case: &Case, json: bool) {
    let nanos = Spread::of(case.nanos.iter().copied().map(f64::from));
    let above = Spread::of(case.above.iter().copied());
    if json {
        let goal = case.goal.map_or("null".to_owned(), |goal| goal.to_string());
        println!(
            "{{\"case\":\"{}\",\"what\":\"{}\",\"ns_median\":{},\"ns_min\":{},\"ns_max\":{},\
             \"above_floor_ns\":{},\"goal_ns\":{goal}}}",
            case.name, case.what, nanos.median, nanos.min, nanos.max, above.median
        );
        return;
    }
    let goal = case.goal.map_or(String::new(), |goal| {
        format!("  goal {goal:>3} {}", if above.median <= f64::from(goal) { "met" } else { "MISSED" })
    });
    println!(
        "{:4} ({:3}–{:3})  {:+4} ({:+4}–{:+4})  {:<50}{goal}",
        nanos.median, nanos.min, nanos.max, above.median, above.min, above.max, case.what
    );
}
