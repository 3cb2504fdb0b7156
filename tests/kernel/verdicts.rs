//! The guard's fixtures: a packet in, an action and a verdict out, for every header shape and every length to
//! which it can be cut. The program runs in the kernel (BPF_PROG_TEST_RUN), over maps of one test alone.

use std::collections::BTreeMap;
use std::time::Duration;

use proxy::kernel::Programs;
use proxy::kernel::guard::{Fragments, Guard};
use proxy_common::guard::Verdict;
use tests::bpf::{self, DROP, PACKET_MIN, PASS, guard, test_run};
use tests::skip::without_root;

use crate::frames::{ACK, Frame, QINQ, RST, SYN, VLAN};

const SERVER: &str = "192.0.2.1:443";
const SERVER6: &str = "[2001:db8::1]:443";
const CLIENT: &str = "198.51.100.7";
const CLIENT6: &str = "2001:db8:7::7";

/// The programs with a configuration, and the counters so far.
struct Bench {
    programs: Programs,
    before: BTreeMap<String, u64>,
}

impl Bench {
    fn new(guard: &Guard, listeners: &[&str]) -> Self {
        let mut programs = bpf::programs();
        apply(&mut programs, guard, listeners);
        let before = programs.guard.verdicts().expect("counters");
        Self { programs, before }
    }

    fn apply(&mut self, guard: &Guard, listeners: &[&str]) {
        apply(&mut self.programs, guard, listeners);
    }

    /// The action and verdict of one packet. Exactly one counter must grow, by one.
    fn judge(&mut self, packet: &[u8]) -> (u32, Verdict) {
        let program = self.programs.guard_fd().expect("the guard loads");
        let ran =
            test_run(program, packet, 1).unwrap_or_else(|error| panic!("{} bytes: {error}", packet.len()));
        let now = self.programs.guard.verdicts().expect("counters");
        let changed: Vec<_> = Verdict::ALL
            .iter()
            .filter(|verdict| now[verdict.label()] != self.before[verdict.label()])
            .collect();
        let [verdict] = changed[..] else { panic!("one verdict a packet, not {changed:?}") };
        assert_eq!(now[verdict.label()], self.before[verdict.label()] + 1);
        self.before = now;
        (ran.action, *verdict)
    }

    /// Runs one packet `repeat` times and returns how often each verdict was counted.
    fn flood(&mut self, packet: &[u8], repeat: u32) -> BTreeMap<Verdict, u64> {
        let program = self.programs.guard_fd().expect("the guard loads");
        test_run(program, packet, repeat).expect("a run");
        let now = self.programs.guard.verdicts().expect("counters");
        let counted = Verdict::ALL
            .iter()
            .map(|verdict| (*verdict, now[verdict.label()] - self.before[verdict.label()]));
        let counted = counted.filter(|(_, count)| *count != 0).collect();
        self.before = now;
        counted
    }

    #[track_caller]
    fn expect(&mut self, frame: &Frame, verdict: Verdict) {
        let action = if verdict.drops() { DROP } else { PASS };
        assert_eq!(self.judge(&frame.bytes()), (action, verdict), "{frame:?}");
    }
}

fn apply(programs: &mut Programs, guard: &Guard, listeners: &[&str]) {
    let listeners: Vec<_> = listeners.iter().map(|address| address.parse().expect("an address")).collect();
    programs.apply_guard(guard, &listeners).expect("the guard is configured");
}

fn nets(list: &[&str]) -> Vec<ipnet::IpNet> {
    list.iter().map(|net| net.parse().expect("a prefix")).collect()
}

/// Every header shape, and its verdict from a guard without lists or a rate.
fn shapes() -> Vec<(&'static str, Frame, Verdict)> {
    let v4 = || Frame::syn(CLIENT, SERVER);
    let v6 = || Frame::syn(CLIENT6, SERVER6);
    // Bytes of extension headers after the next-header field: length in the header's unit, then content.
    let options = [0, 1, 4, 0, 0, 0, 0];
    let long_options = [2, 1, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let routing_done = [0, 4, 0, 0, 0, 0, 0];
    let routing_left = [0, 4, 1, 0, 0, 0, 0];
    let authentication = [4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let whole = [0, 0, 0, 0, 0, 0, 9];
    let first = [0, 0, 1, 0, 0, 0, 9];
    let middle = [0, 0, 0x49, 0, 0, 0, 9];
    let later = [0, 0, 0x48, 0, 0, 0, 9];
    let chain = (0..8).fold(v6(), |frame, _| frame.extension(60, &options));
    vec![
        ("ipv4", v4(), Verdict::Syn),
        ("ipv4 established", v4().flags(ACK), Verdict::Established),
        ("ipv4 SYN-ACK", v4().flags(SYN | ACK), Verdict::Established),
        ("ipv4 RST", v4().flags(RST), Verdict::Established),
        ("SYN with ECN", v4().flags(SYN | 0xc0), Verdict::Syn),
        ("SYN with FIN", v4().flags(SYN | 0x01), Verdict::Syn),
        ("no flags", v4().flags(0), Verdict::Established),
        ("vlan", v4().tags(&[VLAN]), Verdict::Syn),
        ("qinq", v4().tags(&[QINQ, VLAN]), Verdict::Syn),
        ("vlan in vlan", v4().tags(&[VLAN, VLAN]), Verdict::Syn),
        ("802.1ad alone", v4().tags(&[QINQ]), Verdict::Syn),
        ("802.1ad twice", v4().tags(&[QINQ, QINQ]), Verdict::Syn),
        ("three tags", v4().tags(&[QINQ, VLAN, VLAN]), Verdict::TooManyTags),
        ("one option", v4().options(1), Verdict::Syn),
        ("most options", v4().options(10), Verdict::Syn),
        ("options in qinq", v4().options(10).tags(&[QINQ, VLAN]), Verdict::Syn),
        ("tcp options", v4().data_offset(15), Verdict::Syn),
        ("tcp header too short", v4().data_offset(4), Verdict::Malformed),
        ("first fragment of a SYN", v4().fragment(0x2000), Verdict::SynFragment),
        ("first fragment of a SYN-ACK", v4().flags(SYN | ACK).fragment(0x2000), Verdict::SynFragment),
        ("whole first fragment", v4().flags(ACK).fragment(0x2000), Verdict::Established),
        ("fragment in the middle", v4().fragment(0x20b9), Verdict::Fragment),
        ("later fragment", v4().fragment(0x00b9), Verdict::Fragment),
        ("fragment in vlan", v4().fragment(0x2000).tags(&[VLAN]), Verdict::SynFragment),
        ("fragment behind options", v4().options(3).fragment(0x2000), Verdict::SynFragment),
        ("fragment of 8 bytes", v4().flags(ACK).fragment(0x2000).cut(8), Verdict::TinyFragment),
        ("fragment of 16 bytes", v4().flags(ACK).fragment(0x2000).cut(16), Verdict::TinyFragment),
        (
            "fragment without all TCP options",
            v4().flags(ACK).data_offset(8).fragment(0x2000).cut(24),
            Verdict::TinyFragment,
        ),
        ("fragment of the header alone", v4().flags(ACK).fragment(0x2000).cut(20), Verdict::Established),
        ("fragment at 8 bytes", v4().fragment(0x2001), Verdict::FragmentOffset),
        ("last fragment at 16 bytes", v4().fragment(0x0002), Verdict::FragmentOffset),
        ("fragment at 24 bytes", v4().fragment(0x2003), Verdict::Fragment),
        ("udp fragment", v4().protocol(17).fragment(0x2000), Verdict::NotTcp),
        ("udp fragment at 8 bytes", v4().protocol(17).fragment(0x0001), Verdict::NotTcp),
        ("fragment elsewhere", Frame::syn(CLIENT, "192.0.2.2:443").fragment(0x2001), Verdict::NotOurs),
        (
            "fragment to another port",
            Frame::syn(CLIENT, "192.0.2.1:81").flags(ACK).fragment(0x2000),
            Verdict::NotOurs,
        ),
        ("encryption over ipv4", v4().protocol(50), Verdict::NotTcp),
        ("tunnel over ipv4", v4().protocol(47), Verdict::NotTcp),
        ("last fragment of many", v4().fragment(0x1fff), Verdict::Fragment),
        ("no fragment bits", v4().fragment(0), Verdict::Syn),
        ("udp", v4().protocol(17), Verdict::NotTcp),
        ("icmp", v4().protocol(1), Verdict::NotTcp),
        ("other port", Frame::syn(CLIENT, "192.0.2.1:444"), Verdict::NotOurs),
        ("other address", Frame::syn(CLIENT, "192.0.2.2:443"), Verdict::NotOurs),
        ("ipv6", v6(), Verdict::Syn),
        ("ipv6 established", v6().flags(ACK), Verdict::Established),
        ("ipv6 vlan", v6().tags(&[VLAN]), Verdict::Syn),
        ("ipv6 qinq", v6().tags(&[QINQ, VLAN]), Verdict::Syn),
        ("ipv6 other port", Frame::syn(CLIENT6, "[2001:db8::1]:444"), Verdict::NotOurs),
        ("ipv6 other address", Frame::syn(CLIENT6, "[2001:db8::2]:443"), Verdict::NotOurs),
        ("ipv6 udp", v6().protocol(17), Verdict::NotTcp),
        ("ipv6 icmp", v6().protocol(58), Verdict::NotTcp),
        ("ipv6 nothing follows", v6().protocol(59), Verdict::NotTcp),
        ("hop by hop", v6().extension(0, &options), Verdict::Syn),
        ("long hop by hop", v6().extension(0, &long_options), Verdict::Syn),
        ("destination options", v6().extension(60, &options), Verdict::Syn),
        ("routing, arrived", v6().extension(43, &routing_done), Verdict::Syn),
        ("routing, under way", v6().extension(43, &routing_left), Verdict::SourceRouted),
        ("fragment in one piece", v6().extension(44, &whole), Verdict::Syn),
        ("ipv6 first fragment of a SYN", v6().extension(44, &first), Verdict::SynFragment),
        ("ipv6 whole first fragment", v6().flags(ACK).extension(44, &first), Verdict::Established),
        ("ipv6 fragment of 8 bytes", v6().flags(ACK).extension(44, &first).cut(8), Verdict::TinyFragment),
        ("ipv6 fragment of 16 bytes", v6().flags(ACK).extension(44, &first).cut(16), Verdict::TinyFragment),
        (
            "ipv6 fragment of 24 bytes",
            v6().extension(44, &first).extension(60, &options).cut(8),
            Verdict::TinyFragment,
        ),
        (
            "ipv6 fragment that ends before its extensions",
            v6().extension(44, &first).extension(60, &long_options).cut(0),
            Verdict::TinyFragment,
        ),
        ("ipv6 fragment at 8 bytes", v6().extension(44, &[0, 0, 8, 0, 0, 0, 9]), Verdict::FragmentOffset),
        ("ipv6 udp fragment", v6().protocol(17).extension(44, &later), Verdict::NotTcp),
        (
            "ipv6 fragment elsewhere",
            Frame::syn(CLIENT6, "[2001:db8::2]:443").extension(44, &later),
            Verdict::NotOurs,
        ),
        ("ipv6 fragment in the middle", v6().extension(44, &middle), Verdict::Fragment),
        ("ipv6 later fragment", v6().extension(44, &later), Verdict::Fragment),
        (
            "fragment behind hop by hop",
            v6().extension(0, &options).extension(44, &first),
            Verdict::SynFragment,
        ),
        (
            "routing under way behind options",
            v6().extension(60, &options).extension(43, &routing_left),
            Verdict::SourceRouted,
        ),
        ("authentication", v6().extension(51, &authentication), Verdict::Syn),
        ("encryption", v6().extension(50, &options), Verdict::NotTcp),
        ("mobility", v6().extension(135, &options), Verdict::Syn),
        ("host identity", v6().extension(139, &options), Verdict::Syn),
        ("shim6", v6().extension(140, &options), Verdict::Syn),
        ("experimental", v6().extension(253, &options), Verdict::NotTcp),
        (
            "all in the recommended order",
            v6().extension(0, &options)
                .extension(60, &long_options)
                .extension(43, &routing_done)
                .extension(44, &whole)
                .extension(51, &authentication)
                .extension(60, &options),
            Verdict::Syn,
        ),
        (
            "all, in qinq",
            v6().extension(0, &long_options).extension(51, &authentication).tags(&[QINQ, VLAN]),
            Verdict::Syn,
        ),
        (
            "udp after extensions",
            v6().protocol(17).extension(0, &options).extension(60, &options),
            Verdict::NotTcp,
        ),
        ("eight extensions", chain.clone(), Verdict::Syn),
        ("nine extensions", chain.extension(60, &options), Verdict::TooManyExtensions),
    ]
}

/// Frames that cannot be built as valid frames are.
fn oddities() -> Vec<(&'static str, Vec<u8>, Verdict)> {
    let v4 = Frame::syn(CLIENT, SERVER).bytes();
    let v6 = Frame::syn(CLIENT6, SERVER6).bytes();
    let with = |bytes: &[u8], at: usize, value: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        bytes
    };
    // The frame is longer than a page, so the kernel gives the program only the first piece.
    let long = |bytes: &[u8]| [bytes, &[0x2a; 8000]].concat();
    vec![
        ("arp", with(&v4, 13, 0x06), Verdict::NotIp),
        ("802.3 length", with(&with(&v4, 12, 0), 13, 46), Verdict::NotIp),
        ("ipv4 that says 6", with(&v4, 14, 0x65), Verdict::Malformed),
        ("ipv6 that says 4", with(&v6, 14, 0x40), Verdict::Malformed),
        ("ipv4 header of 16 bytes", with(&v4, 14, 0x44), Verdict::Malformed),
        ("ipv4 header of 0 bytes", with(&v4, 14, 0x40), Verdict::Malformed),
        ("ipv4 over several buffers", long(&v4), Verdict::Syn),
        ("ipv6 over several buffers", long(&v6), Verdict::Syn),
    ]
}

#[test]
fn every_header_shape_gets_its_verdict() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&guard(), &[SERVER, SERVER6]);
    for (name, frame, verdict) in shapes() {
        assert_eq!(bench.judge(&frame.bytes()), (action(verdict), verdict), "{name}");
    }
    for (name, bytes, verdict) in oddities() {
        assert_eq!(bench.judge(&bytes), (action(verdict), verdict), "{name}");
    }
    // All the same is counted, and passes, where the operator says so.
    bench.apply(&Guard { fragments: Fragments::Pass, ..guard() }, &[SERVER, SERVER6]);
    for (name, frame, verdict) in shapes() {
        assert_eq!(bench.judge(&frame.bytes()), (PASS, verdict), "{name}");
    }
}

const fn action(verdict: Verdict) -> u32 {
    if verdict.drops() { DROP } else { PASS }
}

/// Issue 12: each of these reached the TCP stack, whatever its source. Lists and bans need no TCP header.
#[test]
fn a_denied_or_banned_source_is_dropped_in_every_shape() {
    if without_root() {
        return;
    }
    let denying = Guard { deny: nets(&["198.51.100.0/24", "2001:db8:7::/48"]), ..guard() };
    for fragments in [Fragments::Judge, Fragments::Pass] {
        let mut denied = Bench::new(&Guard { fragments, ..denying.clone() }, &["[::]:443"]);
        let mut banned = Bench::new(&Guard { fragments, ..guard() }, &["[::]:443"]);
        let now = proxy::control::now();
        for source in [CLIENT, CLIENT6] {
            let source = proxy::control::bans::BanSource::new(source.parse().expect("an address"));
            let source = source.expect("a source");
            banned.programs.guard.ban(source, now + Duration::from_secs(600), now).expect("banned");
        }
        let mut reached = 0;
        for (name, frame, verdict) in shapes() {
            let unknown = matches!(verdict, Verdict::NotTcp | Verdict::TooManyTags);
            if unknown || (verdict == Verdict::NotOurs && name.contains("port")) {
                continue;
            }
            assert_eq!(denied.judge(&frame.bytes()), (DROP, Verdict::Denied), "{name}");
            assert_eq!(banned.judge(&frame.bytes()), (DROP, Verdict::Banned), "{name}");
            reached += 1;
        }
        assert!(reached > 50, "{reached}");
    }
    // A source on the allow list is never judged.
    let allowing = Guard { allow: nets(&["198.51.100.0/24"]), ..guard() };
    let mut bench = Bench::new(&allowing, &[SERVER]);
    bench.expect(&Frame::syn(CLIENT, SERVER).fragment(0x2000).cut(8), Verdict::Allowed);
}

/// What shows no port is ours where anything of ours listens: not on other addresses, and behind a wildcard
/// on local addresses only.
#[test]
fn a_hidden_port_is_ours_by_its_address() {
    if without_root() {
        return;
    }
    let tiny = |to: &str| Frame::syn(CLIENT, to).flags(ACK).fragment(0x2000).cut(8);
    let mut bench = Bench::new(&guard(), &[SERVER, SERVER6, "192.0.2.3:80"]);
    bench.expect(&tiny("192.0.2.1:1"), Verdict::TinyFragment);
    bench.expect(&tiny("192.0.2.3:1"), Verdict::TinyFragment);
    bench.expect(&tiny("192.0.2.2:443"), Verdict::NotOurs);
    bench.apply(&guard(), &[SERVER, "[::]:444"]);
    bench.expect(&tiny("192.0.2.2:443"), Verdict::TinyFragment);
    bench.programs.guard.keep_locals(nets(&["192.0.2.1/32", "192.0.2.3/32"])).expect("kept");
    bench.expect(&tiny("192.0.2.3:1"), Verdict::TinyFragment);
    bench.expect(&tiny("192.0.2.2:443"), Verdict::NotOurs);
    // Other families, and no listener at all.
    bench.apply(&guard(), &[SERVER6]);
    bench.expect(&tiny("192.0.2.1:443"), Verdict::NotOurs);
}

/// Issue 12: the kernel delivers such a packet to its last address, whatever the address in its header. A
/// denied source was served so on a host that follows routes.
#[test]
fn a_source_route_is_judged_by_its_last_address() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&guard(), &[SERVER, SERVER6]);
    let to = |address: &str| Frame::syn(CLIENT, &format!("{address}:443"));
    for kind in [131, 137] {
        let route = |address: &str, next, addresses: &[&str]| to(address).route(kind, next, addresses);
        bench.expect(&route("192.0.2.2", 4, &["192.0.2.1"]), Verdict::SourceRouted);
        bench.expect(&route("192.0.2.2", 8, &["192.0.2.3", "192.0.2.1"]), Verdict::SourceRouted);
        bench.expect(&route("192.0.2.2", 4, &["192.0.2.1"]).flags(ACK), Verdict::SourceRouted);
        bench.expect(&route("192.0.2.2", 4, &["192.0.2.1"]).fragment(0x2000), Verdict::SourceRouted);
        bench.expect(&route("192.0.2.2", 4, &["192.0.2.1", "192.0.2.4"]), Verdict::NotOurs);
        bench.expect(&route("192.0.2.1", 4, &["192.0.2.4"]), Verdict::SourceRouted);
        // The packet has arrived.
        bench.expect(&route("192.0.2.1", 8, &["192.0.2.4"]), Verdict::Syn);
        bench.expect(&route("192.0.2.2", 8, &["192.0.2.1"]), Verdict::NotOurs);
    }
    // Other options name addresses too: a record of the route (7).
    bench.expect(&to("192.0.2.2").route(7, 4, &["192.0.2.1"]), Verdict::NotOurs);
    bench.expect(&to("192.0.2.1").route(7, 4, &["192.0.2.4"]), Verdict::Syn);
    let (ours, other) = ("2001:db8::1", "2001:db8::2");
    for (kind, last, verdict) in [
        (4, ours, Verdict::SourceRouted),
        (2, ours, Verdict::SourceRouted),
        (4, "2001:db8::3", Verdict::NotOurs),
        (0, ours, Verdict::NotOurs),
    ] {
        let mut header = vec![2, kind, 1, 0, 0, 0, 0];
        header.extend(last.parse::<std::net::Ipv6Addr>().expect("an address").octets());
        let frame = Frame::syn(CLIENT6, &format!("[{other}]:443"));
        bench.expect(&frame.extension(43, &header), verdict);
    }
    let denying = Guard { deny: nets(&["198.51.100.0/24"]), ..guard() };
    bench.apply(&Guard { fragments: Fragments::Pass, ..denying }, &[SERVER, SERVER6]);
    bench.expect(&to("192.0.2.2").route(131, 4, &["192.0.2.1"]), Verdict::Denied);
}

/// TCP behind more extension headers than the first buffer of the frame holds.
#[test]
fn a_header_behind_the_first_buffer_is_judged() {
    if without_root() {
        return;
    }
    // A header of destination options of 2,048 bytes: a length of 255 and padding (RFC 8200 section 4.2).
    let mut options = vec![255];
    for _ in 0..8 {
        options.extend_from_slice(&[1, 253]);
        options.resize(options.len() + 253, 0);
    }
    options.extend_from_slice(&[1, 4, 0, 0, 0, 0]);
    let far = |flags| {
        (0..3).fold(Frame::syn(CLIENT6, SERVER6).flags(flags), |frame, _| frame.extension(60, &options))
    };
    let mut bench = Bench::new(&guard(), &[SERVER6]);
    bench.expect(&far(SYN), Verdict::Syn);
    bench.expect(&far(ACK), Verdict::Established);
    bench.apply(&Guard { deny: nets(&["2001:db8:7::/48"]), ..guard() }, &[SERVER6]);
    bench.expect(&far(SYN), Verdict::Denied);
}

/// The headers decide. A packet cut after its headers is judged like the whole packet. A packet cut within
/// its IP header passes as truncated; one cut later is dropped as incomplete, since its source is known.
#[test]
fn every_truncation_is_dropped_or_judged_as_the_whole() {
    if without_root() {
        return;
    }
    let mut open = Bench::new(&guard(), &["[::]:443"]);
    let denying = Guard { deny: nets(&["0.0.0.0/0", "::/0"]), ..guard() };
    let mut denying = Bench::new(&denying, &["[::]:443"]);
    let mut cut = 0;
    for (name, frame, verdict) in shapes() {
        let judged = matches!(verdict, Verdict::Syn | Verdict::Established);
        // The other shapes get their verdict before the TCP header, or by the length in the IP header.
        if !judged || name.contains("fragment") {
            continue;
        }
        let (bytes, headers) = (frame.bytes(), frame.header_len());
        for length in PACKET_MIN..=bytes.len() {
            let (open, denied) = (open.judge(&bytes[..length]), denying.judge(&bytes[..length]));
            if length >= headers {
                assert_eq!(
                    (open, denied),
                    ((PASS, verdict), (DROP, Verdict::Denied)),
                    "{name} cut to {length}"
                );
            } else if open == (PASS, Verdict::Truncated) {
                assert_eq!(open, denied, "{name} cut to {length}");
            } else {
                assert_eq!(open, (DROP, Verdict::Incomplete), "{name} cut to {length} of {headers}");
                assert_eq!(denied, (DROP, Verdict::Denied), "{name} cut to {length}");
            }
            cut += 1;
        }
    }
    assert!(cut > 2_000, "{cut} pieces");
}

#[test]
fn nothing_is_judged_before_there_is_a_configuration() {
    if without_root() {
        return;
    }
    let mut programs = bpf::programs();
    let before = programs.guard.verdicts().expect("counters");
    let mut bench = Bench { before, programs: std::mem::replace(&mut programs, bpf::programs()) };
    bench.expect(&Frame::syn(CLIENT, SERVER), Verdict::Unconfigured);
    bench.apply(&guard(), &[SERVER]);
    bench.expect(&Frame::syn(CLIENT, SERVER), Verdict::Syn);
}

#[test]
fn wildcards_take_their_families() {
    if without_root() {
        return;
    }
    let v4 = Frame::syn(CLIENT, "203.0.113.9:443");
    let v6 = Frame::syn(CLIENT6, "[2001:db8:9::9]:443");
    let mut bench = Bench::new(&guard(), &["[::]:443"]);
    bench.expect(&v4, Verdict::Syn);
    bench.expect(&v6, Verdict::Syn);
    // An IPv4 listener has the same port, so `[::]` does not cover IPv4.
    bench.apply(&guard(), &["[::]:443", SERVER]);
    bench.expect(&v4, Verdict::NotOurs);
    bench.expect(&Frame::syn(CLIENT, SERVER), Verdict::Syn);
    bench.expect(&v6, Verdict::Syn);
    bench.apply(&guard(), &["0.0.0.0:443"]);
    bench.expect(&v4, Verdict::Syn);
    bench.expect(&v6, Verdict::NotOurs);
    // Removed listeners are forgotten. Their neighbours in the array of ports are untouched.
    bench.apply(&guard(), &[SERVER6, "0.0.0.0:442", "[::]:444"]);
    bench.expect(&v4, Verdict::NotOurs);
    bench.expect(&Frame::syn(CLIENT, SERVER), Verdict::NotOurs);
    bench.expect(&Frame::syn(CLIENT6, SERVER6), Verdict::Syn);
    bench.expect(&Frame::syn(CLIENT, "203.0.113.9:442"), Verdict::Syn);
    bench.expect(&Frame::syn(CLIENT, "203.0.113.9:444"), Verdict::Syn);
}

#[test]
fn a_wildcard_takes_only_local_addresses_once_they_are_known() {
    if without_root() {
        return;
    }
    let denying = Guard { deny: nets(&["198.51.100.0/24", "2001:db8:7::/48"]), ..guard() };
    let mut bench = Bench::new(&denying, &["[::]:443", "192.0.2.9:80"]);
    let to = |address: &str| match address.starts_with('[') {
        true => Frame::syn(CLIENT6, address),
        false => Frame::syn(CLIENT, address),
    };
    let (local, local6) = (to("203.0.113.9:443"), to("[2001:db8:9::9]:443"));
    let (other, other6) = (to("203.0.113.10:443"), to("[2001:db8:9::a]:443"));
    let any_ip = to("203.0.114.77:443");
    // While nobody keeps the list, any address may be local.
    for frame in [&local, &local6, &other, &other6, &any_ip] {
        bench.expect(frame, Verdict::Denied);
    }
    let locals = nets(&["203.0.113.9/32", "2001:db8:9::9/128"]);
    bench.programs.guard.keep_locals(locals.iter().copied()).expect("kept");
    assert!(bench.programs.guard.locals().eq(locals));
    bench.expect(&local, Verdict::Denied);
    bench.expect(&local6, Verdict::Denied);
    for frame in [&other, &other6, &any_ip] {
        bench.expect(frame, Verdict::NotOurs);
    }
    // A listener on one address knows whose it is.
    bench.expect(&to("192.0.2.9:80"), Verdict::Denied);
    // A whole prefix can be local (AnyIP), also one that covers the IPv4-mapped addresses.
    let with_nets = nets(&["203.0.113.9/32", "2001:db8:9::9/128", "203.0.114.0/24", "::/0"]);
    bench.programs.guard.keep_locals(with_nets).expect("kept");
    bench.expect(&any_ip, Verdict::Denied);
    bench.expect(&other6, Verdict::Denied);
    bench.expect(&other, Verdict::NotOurs);
    // The list stays over a change of the configuration.
    bench.apply(&denying, &["[::]:443"]);
    bench.expect(&other, Verdict::NotOurs);
    bench.programs.guard.keep_locals(nets(&["2001:db8:9::9/128"])).expect("kept");
    bench.expect(&local, Verdict::NotOurs);
    bench.expect(&other6, Verdict::NotOurs);
    bench.expect(&local6, Verdict::Denied);
    bench.programs.guard.forget_locals().expect("forgotten");
    bench.expect(&other, Verdict::Denied);
    assert_eq!(bench.programs.guard.locals().count(), 0);
}

#[test]
fn lists_apply_to_every_segment_and_allow_beats_deny() {
    if without_root() {
        return;
    }
    let lists = Guard {
        allow: nets(&["198.51.100.7/32", "2001:db8:7::/64"]),
        deny: nets(&["198.51.100.0/24", "2001:db8::/32"]),
        ..guard()
    };
    let mut bench = Bench::new(&lists, &[SERVER, SERVER6]);
    for flags in [SYN, ACK, RST] {
        bench.expect(&Frame::syn("198.51.100.8", SERVER).flags(flags), Verdict::Denied);
        bench.expect(&Frame::syn("2001:db8:8::8", SERVER6).flags(flags), Verdict::Denied);
        bench.expect(&Frame::syn(CLIENT, SERVER).flags(flags), Verdict::Allowed);
        bench.expect(&Frame::syn(CLIENT6, SERVER6).flags(flags), Verdict::Allowed);
    }
    bench.expect(&Frame::syn("198.51.101.8", SERVER), Verdict::Syn);
    // The guard does not judge a packet to another server.
    bench.expect(&Frame::syn("198.51.100.8", "192.0.2.1:80"), Verdict::NotOurs);
    // Headers between Ethernet and TCP hide nothing.
    bench.expect(&Frame::syn("198.51.100.8", SERVER).options(10).tags(&[QINQ, VLAN]), Verdict::Denied);
    bench
        .expect(&Frame::syn("2001:db8:8::8", SERVER6).extension(44, &[0, 0, 0, 0, 0, 0, 9]), Verdict::Denied);
    // A list that was replaced has no effect any more.
    bench.apply(&Guard { deny: nets(&["203.0.113.0/24"]), ..guard() }, &[SERVER, SERVER6]);
    bench.expect(&Frame::syn("198.51.100.8", SERVER), Verdict::Syn);
    bench.expect(&Frame::syn(CLIENT, SERVER), Verdict::Syn);
    bench.expect(&Frame::syn("203.0.113.1", SERVER), Verdict::Denied);
    bench.apply(&guard(), &[SERVER]);
    bench.expect(&Frame::syn("203.0.113.1", SERVER), Verdict::Syn);
}

#[test]
fn denying_all_of_ipv6_spares_ipv4() {
    if without_root() {
        return;
    }
    let deny = |list: &[&str]| Guard { deny: nets(list), ..guard() };
    let mut bench = Bench::new(&deny(&["::/0"]), &["[::]:443"]);
    bench.expect(&Frame::syn(CLIENT6, SERVER6), Verdict::Denied);
    bench.expect(&Frame::syn(CLIENT, SERVER), Verdict::Syn);
    bench.apply(&deny(&["::/0", "198.51.100.0/24"]), &["[::]:443"]);
    bench.expect(&Frame::syn(CLIENT, SERVER), Verdict::Denied);
    bench.expect(&Frame::syn("203.0.113.1", SERVER), Verdict::Syn);
    bench.apply(&deny(&["::/0", "0.0.0.0/0"]), &["[::]:443"]);
    bench.expect(&Frame::syn("203.0.113.1", SERVER), Verdict::Denied);
}

#[test]
fn dry_run_counts_and_passes() {
    if without_root() {
        return;
    }
    let dry = Guard { dry_run: true, deny: nets(&["198.51.100.0/24"]), syn_rate_per_ip: Some(1), ..guard() };
    let mut bench = Bench::new(&dry, &[SERVER]);
    let denied = Frame::syn(CLIENT, SERVER).bytes();
    assert_eq!(bench.judge(&denied), (PASS, Verdict::Denied));
    let other = Frame::syn("203.0.113.1", SERVER).bytes();
    assert_eq!(bench.judge(&other), (PASS, Verdict::Syn));
    assert_eq!(bench.judge(&other), (PASS, Verdict::SynRate));
    bench.apply(&Guard { dry_run: false, ..dry }, &[SERVER]);
    assert_eq!(bench.judge(&denied), (DROP, Verdict::Denied));
}

/// A rate so low that a bucket hardly refills while a test runs. The lowest rate is one SYN a second, so the
/// burst must be large.
fn limited(rate: u32, burst: u32) -> Guard {
    Guard { syn_rate_per_ip: Some(rate), syn_burst_per_ip: burst, ..guard() }
}

#[test]
fn a_source_has_its_burst_and_no_other_pays_for_it() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&limited(1, 500), &[SERVER, SERVER6]);
    let flooder = Frame::syn(CLIENT, SERVER);
    let counted = bench.flood(&flooder.bytes(), 20_000);
    let passed = counted[&Verdict::Syn];
    // On a slow machine a few tokens may be refilled.
    assert!((500..560).contains(&passed), "{passed} SYNs passed");
    assert_eq!(counted[&Verdict::SynRate], 20_000 - passed);
    // The flooder's established flows are not touched, nor are its neighbours' SYNs.
    bench.expect(&flooder.clone().flags(ACK), Verdict::Established);
    for last in 1..=200 {
        if last != 7 {
            bench.expect(&Frame::syn(&format!("198.51.100.{last}"), SERVER), Verdict::Syn);
        }
    }
    // The allow list exempts a source from the limit.
    bench.apply(&Guard { allow: nets(&["198.51.100.7/32"]), ..limited(1, 500) }, &[SERVER]);
    assert_eq!(bench.flood(&flooder.bytes(), 1000), [(Verdict::Allowed, 1000)].into());
}

#[test]
fn an_ipv6_source_is_its_64() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&limited(1, 200), &[SERVER6]);
    let mut passed = 0;
    for host in 1..=400 {
        let frame = Frame::syn(&format!("2001:db8:7:1::{host:x}"), SERVER6);
        passed += u32::from(bench.judge(&frame.bytes()) == (PASS, Verdict::Syn));
    }
    assert!((200..260).contains(&passed), "{passed} SYNs of one /64 passed");
    bench.expect(&Frame::syn("2001:db8:7:2::1", SERVER6), Verdict::Syn);
    // A /64 that differs in one bit is another source.
    bench.expect(&Frame::syn("2001:db8:7:0::1", SERVER6), Verdict::Syn);
}

#[test]
fn a_bucket_refills_at_its_rate() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&limited(200, 2), &[SERVER]);
    let packet = Frame::syn(CLIENT, SERVER).bytes();
    assert!(bench.flood(&packet, 2_000).contains_key(&Verdict::SynRate));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.judge(&packet), (PASS, Verdict::Syn));
    // A pause saves up no more than the burst.
    std::thread::sleep(Duration::from_millis(50));
    let start = std::time::Instant::now();
    let passed = bench.flood(&packet, 1_000)[&Verdict::Syn];
    let refilled = u64::try_from(start.elapsed().as_millis()).expect("a short time") / 5;
    assert!(
        (2..=3 + refilled).contains(&passed),
        "{passed} SYNs passed after a pause, {refilled} were refilled"
    );
}

#[test]
fn a_smaller_burst_holds_at_once() {
    if without_root() {
        return;
    }
    // Under the large burst, the source runs up a debt of 10,000 seconds.
    let mut bench = Bench::new(&limited(1, 10_000), &[SERVER]);
    let packet = Frame::syn(CLIENT, SERVER).bytes();
    assert!(bench.flood(&packet, 12_000)[&Verdict::SynRate] > 0);
    // The small burst leaves only 10 ms of that debt.
    bench.apply(&limited(100, 1), &[SERVER]);
    assert_eq!(bench.judge(&packet), (DROP, Verdict::SynRate));
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(bench.judge(&packet), (PASS, Verdict::Syn));
}

/// A spoofed flood uses up buckets, not entries: with any number of sources, no table grows. An honest source
/// is served while one of its two buckets has tokens.
#[test]
fn many_flooders_leave_honest_sources_alone() {
    if without_root() {
        return;
    }
    let mut bench = Bench::new(&limited(1, 3), &[SERVER]);
    for flooder in 0..2_000u32 {
        let source = format!("10.{}.{}.{}", flooder >> 16, (flooder >> 8) & 0xff, flooder & 0xff);
        let packet = Frame::syn(&source, SERVER).bytes();
        // Each packet is run alone: a repeated run costs the kernel a grace period.
        for _ in 0..6 {
            let program = bench.programs.guard_fd().expect("the guard loads");
            test_run(program, &packet, 1).expect("a run");
        }
    }
    bench.before = bench.programs.guard.verdicts().expect("counters");
    // 2,000 of 65,536 buckets in each row are used up: about one source in a thousand has two of them.
    let mut refused = 0;
    for honest in 0..1_000u32 {
        let source = format!("172.16.{}.{}", honest >> 8, honest & 0xff);
        refused += u32::from(bench.judge(&Frame::syn(&source, SERVER).bytes()).1 == Verdict::SynRate);
    }
    assert!(refused <= 10, "{refused} of 1,000 honest sources were refused");
}

#[test]
fn lists_have_a_bound_and_say_so() {
    if without_root() {
        return;
    }
    let mut programs = bpf::programs();
    let many: Vec<std::net::SocketAddr> = (0..300u16)
        .map(|number| std::net::SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 80)))
        .collect();
    let error = programs.apply_guard(&guard(), &many).expect_err("too many listeners");
    assert!(error.to_string().contains("256 are the most"), "{error}");
    programs.apply_guard(&guard(), &many[..256]).expect("256 listeners");
}
