//! `cargo run --release -p benches --bin xdp`: what the guard costs a packet, by BPF_PROG_TEST_RUN (Documentation/bpf/bpf_prog_run),
//! so without driver, interrupt or allocation. The least of three averages; needs root.

use std::net::{Ipv4Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};
use proxy::config::model::Guard;
use proxy::kernel::Programs;
use tests::bpf::{DROP, PASS, guard, programs, test_run};

const REPEAT: u32 = 2_000_000;
/// Each is a system call of its own.
const SOURCES: u32 = 20_000;
const DENIED: u32 = 20_000;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The smallest TCP segment over IPv4, to port 80.
fn frame(source: Ipv4Addr, flags: u8) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00];
    bytes.extend_from_slice(&[0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    bytes.extend_from_slice(&source.octets());
    bytes.extend_from_slice(&[192, 0, 2, 1, 0x9c, 0x40, 0, 80]);
    bytes.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

struct Bench(Programs);

impl Bench {
    fn configure(&mut self, guard: &Guard, listener: &str) {
        let listener: SocketAddr = listener.parse().expect("an address");
        self.0.apply_guard(guard, &[listener]).expect("the guard is configured");
    }

    fn run(&mut self, packet: &[u8], repeat: u32, action: u32) -> u32 {
        let ran = test_run(self.0.guard_fd().expect("the guard loads"), packet, repeat).expect("a run");
        assert_eq!(ran.action, action, "what is measured must be what is said");
        ran.nanos
    }

    fn measure(&mut self, what: &str, packet: &[u8], action: u32) {
        let nanos = (0..3).map(|_| self.run(packet, REPEAT, action)).min().expect("three runs");
        println!("{nanos:6} ns  {what}");
    }

    /// One packet from each source, alone: the clock that is read around it is in the number.
    fn measure_singly(&mut self, what: &str, source: impl Fn(u32) -> Ipv4Addr) {
        let mut nanos: Vec<u32> = (0..SOURCES).map(|number| self.run(&frame(source(number), SYN), 1, PASS)).collect();
        nanos.sort_unstable();
        println!("{:6} ns  {what}", nanos[nanos.len() / 2]);
    }
}

fn main() {
    let client = Ipv4Addr::new(198, 51, 100, 7);
    let mut bench = Bench(programs());
    let rate = |rate, burst| Guard { syn_rate_per_ip: Some(rate), syn_burst_per_ip: burst, ..guard() };

    bench.configure(&guard(), "0.0.0.0:81");
    bench.measure("not ours", &frame(client, ACK), PASS);
    bench.configure(&guard(), "192.0.2.1:80");
    bench.measure("established, listener on one address, lists empty", &frame(client, ACK), PASS);
    bench.configure(&guard(), "0.0.0.0:80");
    bench.measure("established, lists empty", &frame(client, ACK), PASS);
    let denied = |number: u32| Ipv4Addr::from(0x0a00_0000 + number);
    let deny = (0..DENIED).map(|number| IpNet::V4(Ipv4Net::from(denied(number)))).collect();
    bench.configure(&Guard { deny, ..guard() }, "0.0.0.0:80");
    bench.measure("established, 20,000 denied prefixes, not among them", &frame(client, ACK), PASS);
    bench.measure("established, beside the denied prefixes", &frame(denied(DENIED + 1), ACK), PASS);
    bench.measure("denied by one of 20,000, dropped", &frame(denied(DENIED / 2), ACK), DROP);
    bench.configure(&guard(), "0.0.0.0:80");
    bench.measure("SYN, no rate", &frame(client, SYN), PASS);
    bench.configure(&rate(u32::MAX, u32::MAX), "0.0.0.0:80");
    bench.measure("SYN, within the rate", &frame(client, SYN), PASS);
    bench.configure(&rate(1, 1), "0.0.0.0:80");
    bench.run(&frame(client, SYN), 10, DROP);
    bench.measure("SYN, above the rate, dropped", &frame(client, SYN), DROP);

    println!("One packet at a time, median of {SOURCES}, clock included:");
    bench.configure(&rate(1_000_000, 1_000_000), "0.0.0.0:80");
    bench.measure_singly("SYN, one source", |_| client);
    bench.measure_singly("SYN, a new source each time", |number| {
        Ipv4Addr::from(0xac10_0000 + number.wrapping_mul(0x9e37_79b1) % (1 << 20))
    });
}
