//! The cases of the benchmark: each case's name, its load, and the proxies that take part.

use super::load::Wrk;
use super::measure::{CPU_MS_PER_GIB, CPU_US, IDLE_BYTES, P99, P999};
use super::peers::Kind;

/// How many routes the case with many routes has.
const ROUTES: usize = 32;
/// Idle connections beside the busy ones.
pub(super) const BESIDE: usize = 15_000;
/// Idle connections whose memory is measured. The number fits a limit of 20,000 descriptors with room to
/// spare.
pub(super) const IDLE: usize = 18_500;
/// Idle connections over TLS. There are fewer, since their clients' memory is on this machine too.
pub(super) const IDLE_TLS: usize = 5_000;
/// Arrivals a second of the latency cases. The last is below 60 % of the slowest proxy's capacity here.
pub(super) const RATES: [u64; 3] = [2_000, 5_000, 10_000];
/// The bodies that the origin serves and that clients upload: name, and length in bytes.
pub(super) const BODIES: [(&str, u64); 3] = [("16k", 16 << 10), ("1m", 1 << 20), ("64m", 64 << 20)];

/// One kind of load on several proxies.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) what: What,
    /// Clients speak TLS 1.3 with X25519 and AES-128-GCM, to a certificate on P-256.
    pub(super) tls: bool,
    pub(super) entrants: Vec<Entrant>,
}

/// The kind of load, or the measured figure.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// Small responses over kept connections and several routes. 0 routes: one route for everything.
    Small { connections: usize, routes: usize },
    /// Responses with a body; `body` is an index into [`BODIES`].
    Down { body: usize, connections: usize },
    /// Requests with a body; `body` is an index into [`BODIES`].
    Up { body: usize, connections: usize },
    /// A connection for each request.
    Fresh { connections: usize },
    /// Latencies at a fixed rate of arrivals.
    Rate { rate: u64, connections: usize },
    /// Small responses, while some entrants hold idle connections.
    Beside { connections: usize },
    /// The memory of idle connections.
    Idle,
    /// A connection with a handshake for each request.
    Handshake { resumed: bool, connections: usize },
    /// Latencies over established connections, with or without a storm of handshakes beside them.
    Probe { storm: bool, connections: usize },
}

/// A proxy that takes part in a case, and its state.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entrant {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Sluice's XDP program is on `lo`. It sees all packets there, so it runs only in this entrant's turn.
    pub(super) guard: bool,
    /// The entrant holds [`BESIDE`] idle connections.
    pub(super) beside: bool,
}

impl Entrant {
    fn new(kind: Kind) -> Self {
        Self { name: kind.name().to_owned(), kind, guard: false, beside: false }
    }

    fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }
}

/// A second entry of the same Sluice. The difference between the two is the measurement's noise.
pub(super) const AGAIN: &str = "sluice again";
pub(super) const GUARDED: &str = "sluice, guard on";

/// The name of a proxy that holds idle connections.
pub(super) fn beside_idle(kind: Kind) -> String {
    format!("{} beside idle", kind.name())
}

impl Case {
    /// wrk's settings, for cases in which wrk makes the load.
    pub(super) fn wrk(&self) -> Option<Wrk> {
        let (connections, path, close, routes) = match self.what {
            What::Small { connections, routes } => (connections, "/".to_owned(), false, routes),
            What::Down { body, connections } => {
                (connections, format!("/bodies/{}", BODIES[body].0), false, 0)
            }
            What::Fresh { connections } => (connections, "/".to_owned(), true, 0),
            What::Beside { connections } => (connections, "/".to_owned(), false, 0),
            What::Handshake { resumed, connections } => return Some(Wrk::handshakes(connections, resumed)),
            What::Up { .. } | What::Rate { .. } | What::Idle | What::Probe { .. } => return None,
        };
        Some(Wrk { connections, path, close, routes, tls: self.tls, handshakes: None })
    }

    /// How many client connections a proxy must be ready for.
    pub(super) const fn connections(&self) -> usize {
        match self.what {
            What::Small { connections, .. }
            | What::Down { connections, .. }
            | What::Up { connections, .. }
            | What::Fresh { connections }
            | What::Handshake { connections, .. }
            | What::Probe { connections, .. }
            | What::Rate { connections, .. } => connections,
            What::Beside { connections } => connections + BESIDE,
            What::Idle => IDLE,
        }
    }

    /// The name of the figure that the case measures.
    pub(super) const fn figure(&self) -> &'static str {
        match self.what {
            What::Small { .. } | What::Fresh { .. } | What::Handshake { .. } | What::Beside { .. } => CPU_US,
            What::Probe { .. } => P99,
            What::Down { .. } | What::Up { .. } => CPU_MS_PER_GIB,
            What::Rate { .. } => P999,
            What::Idle => IDLE_BYTES,
        }
    }

    /// How many rounds a process lives. Its memory layout, lucky or not, lasts as long as the process, so
    /// several lives give a better median.
    pub(super) const fn rounds_a_life(&self) -> usize {
        match self.what {
            What::Idle => 1,
            What::Beside { .. } => usize::MAX,
            _ => 2,
        }
    }
}

/// All cases without TLS, in the order of the report.
pub(super) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for connections in [16, 64, 256, 1024, 4000] {
        cases.push(Case {
            name: format!("small-{connections}"),
            title: format!("small response, {} connections", thousands(connections as u64)),
            what: What::Small { connections, routes: 0 },
            tls: false,
            entrants: small_entrants(connections),
        });
    }
    cases.push(Case {
        name: "routes-32".into(),
        title: format!("small response, {ROUTES} routes in turn, 64 connections"),
        what: What::Small { connections: 64, routes: ROUTES },
        tls: false,
        entrants: of(&[Kind::Sluice, Kind::Nginx, Kind::Haproxy]),
    });
    for (body, (name, shown, connections)) in
        [("16k", "16 KiB", 64), ("1m", "1 MiB", 16), ("64m", "64 MiB", 4)].into_iter().enumerate()
    {
        let mut down = of(&[Kind::Sluice, Kind::Nginx, Kind::Haproxy, Kind::Relay]);
        let up = down.clone();
        if body == 0 {
            down.extend(of(&[Kind::Envoy, Kind::Pingora]));
        }
        cases.push(Case {
            name: format!("down-{name}"),
            title: format!("{shown} down, {connections} connections"),
            what: What::Down { body, connections },
            tls: false,
            entrants: down,
        });
        cases.push(Case {
            name: format!("up-{name}"),
            title: format!("{shown} up, {connections} connections"),
            what: What::Up { body, connections },
            tls: false,
            entrants: up,
        });
    }
    cases.push(fresh());
    for rate in RATES {
        cases.push(Case {
            name: format!("rate-{rate}"),
            title: format!("{} arrivals/s over 64 connections", thousands(rate)),
            what: What::Rate { rate, connections: 64 },
            tls: false,
            entrants: of(&[Kind::Sluice, Kind::Nginx, Kind::Haproxy]),
        });
    }
    cases.push(beside());
    cases.push(Case {
        name: "idle".into(),
        title: "memory of idle keep-alive connections".into(),
        what: What::Idle,
        tls: false,
        entrants: of(&[Kind::Sluice, Kind::Nginx, Kind::Haproxy, Kind::Envoy, Kind::Pingora]),
    });
    cases
}

/// The cases over TLS, and a plain connection for each request. A handshake's cost is the difference to that.
pub(super) fn tls() -> Vec<Case> {
    let of_servers = || of(&[Kind::Sluice, Kind::Nginx, Kind::Haproxy]);
    let case = |name: &str, title: &str, what| Case {
        name: name.into(),
        title: title.into(),
        what,
        tls: true,
        entrants: of_servers(),
    };
    let handshake = |resumed| What::Handshake { resumed, connections: 16 };
    let probe = |storm| What::Probe { storm, connections: 64 };
    vec![
        fresh(),
        case("tls-full", "a full handshake for each request, 16 at a time", handshake(false)),
        case("tls-resumed", "a resumed handshake for each request, 16 at a time", handshake(true)),
        case(
            "tls-small-64",
            "small response over TLS, 64 connections",
            What::Small { connections: 64, routes: 0 },
        ),
        case(
            "tls-small-256",
            "small response over TLS, 256 connections",
            What::Small { connections: 256, routes: 0 },
        ),
        case("tls-down-1m", "1 MiB down over TLS, 16 connections", What::Down { body: 1, connections: 16 }),
        case("tls-idle", "memory of idle connections over TLS", What::Idle),
        case("tls-quiet", "1,000 requests/s over 64 established connections", probe(false)),
        case("tls-storm", "the same beside a storm of handshakes", probe(true)),
    ]
}

fn of(kinds: &[Kind]) -> Vec<Entrant> {
    kinds.iter().map(|&kind| Entrant::new(kind)).collect()
}

fn small_entrants(connections: usize) -> Vec<Entrant> {
    let mut entrants = of(&[Kind::Sluice, Kind::Nginx, Kind::Haproxy, Kind::Relay]);
    if connections == 64 {
        entrants.push(Entrant::new(Kind::Sluice).named(AGAIN));
    }
    if matches!(connections, 64 | 256) {
        entrants.extend(of(&[Kind::Envoy, Kind::Pingora]));
    }
    entrants
}

fn fresh() -> Case {
    let mut entrants = of(&[Kind::Sluice, Kind::Nginx, Kind::Haproxy]);
    entrants.push(Entrant { guard: true, ..Entrant::new(Kind::Sluice).named(GUARDED) });
    Case {
        name: "fresh".into(),
        title: "a connection for each request, 64 at a time".into(),
        what: What::Fresh { connections: 64 },
        tls: false,
        entrants,
    }
}

fn beside() -> Case {
    let mut entrants = Vec::new();
    for kind in [Kind::Sluice, Kind::Nginx, Kind::Haproxy] {
        entrants.push(Entrant::new(kind));
        entrants.push(Entrant { beside: true, ..Entrant::new(kind).named(&beside_idle(kind)) });
    }
    Case {
        name: "beside-idle".into(),
        title: format!("small response, 64 connections, beside {} idle ones", thousands(BESIDE as u64)),
        what: What::Beside { connections: 64 },
        tls: false,
        entrants,
    }
}

/// Shows a number with separators, such as "15,000".
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// The entrant whose turn it is. The order changes in each round, so that no entrant always follows the same
/// one.
pub(super) const fn turn(round: usize, turn: usize, count: usize) -> usize {
    let at = (round / 2 + turn) % count;
    if round.is_multiple_of(2) { at } else { count - 1 - at }
}

/// The cases with these names, in the report's order.
pub(super) fn chosen(names: &[String]) -> Result<Vec<Case>, String> {
    let all: Vec<Case> = all().into_iter().chain(tls().into_iter().filter(|case| case.tls)).collect();
    for name in names {
        if !all.iter().any(|case| case.name == *name) {
            let known: Vec<&str> = all.iter().map(|case| case.name.as_str()).collect();
            return Err(format!("no case is called {name}; there are: {}", known.join(", ")));
        }
    }
    Ok(all.into_iter().filter(|case| names.contains(&case.name)).collect())
}

/// The peers with these names.
pub(super) fn peers(names: &[String]) -> Result<Vec<Kind>, String> {
    names
        .iter()
        .map(|name| {
            Kind::PEERS.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
                format!("no peer is called {name}; there are: {}", Kind::PEERS.map(Kind::name).join(", "))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_one_turn_a_round_and_orders_change() {
        for count in 1..6 {
            let mut orders = Vec::new();
            for round in 0..2 * count {
                let order: Vec<usize> = (0..count).map(|at| turn(round, at, count)).collect();
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..count).collect::<Vec<_>>());
                orders.push(order);
            }
            orders.dedup();
            assert!(count == 1 || orders.len() > count, "{orders:?}");
        }
    }

    #[test]
    fn unknown_names_are_told_with_the_known_ones() {
        assert!(chosen(&["small-65".into()]).unwrap_err().contains("small-64"));
        assert_eq!(chosen(&["small-64".into()]).unwrap().len(), 1);
        assert!(peers(&["apache".into()]).unwrap_err().contains("haproxy"));
        assert_eq!(peers(&["relay".into()]).unwrap(), [Kind::Relay]);
    }

    #[test]
    fn every_case_has_sluice_first_and_names_are_unique() {
        let cases = all();
        for case in &cases {
            assert_eq!(case.entrants[0].name, "sluice", "{}", case.name);
            let mut names: Vec<&str> = case.entrants.iter().map(|entrant| entrant.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), case.entrants.len(), "{}", case.name);
        }
        let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), cases.len());
        assert_eq!(
            (thousands(7), thousands(15_000), thousands(1_234_567)),
            ("7".into(), "15,000".into(), "1,234,567".into())
        );
    }
}
