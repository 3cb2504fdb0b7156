//! The parts of a world beside plain HTTP: TLS with clients and with endpoints, and listeners that pass bytes
//! through. A fifth of the worlds have them. A generator of its own leaves the other worlds as they were.

use std::sync::Arc;

use super::world::{BRISK, pace, slow_pace};
use super::*;
use crate::listen::{Listener, Protocol};
use crate::route::model::{Action, Route, RoutePath};
use crate::route::{Host, RouteTable};
use crate::simulation::tls::{self, Dialect, Keeps};
use crate::upstream::model::Upstream;
use crate::worker::testing::{self, origin_address};

/// Bytes that a handshake adds to each direction of a client's connection.
const HANDSHAKE: usize = 2500;

/// How a client speaks TLS.
#[derive(Clone, Copy, Debug)]
pub(in crate::simulation) struct Secure {
    pub(in crate::simulation) dialect: Dialect,
    /// Announces its end before it ends.
    pub(in crate::simulation) is_polite: bool,
    /// Sends its first request before the handshake is over, if it may.
    pub(in crate::simulation) is_early: bool,
}

/// How an endpoint speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulation) enum Manner {
    Sound,
    /// With a certificate that nobody believes.
    Stray,
    /// Sends nothing more from this byte of its handshake on.
    Stops(usize),
    /// Answers with bytes that are not TLS.
    Garbage,
}

/// A connection whose bytes are passed through as they are, each way until its end.
#[derive(Clone, Debug)]
pub(in crate::simulation) struct Through {
    pub(in crate::simulation) connects: Duration,
    pub(in crate::simulation) way: Way,
    /// The client's bytes; they begin with the connection's number.
    pub(in crate::simulation) up: Rc<[u8]>,
    pub(in crate::simulation) down: Rc<[u8]>,
    pub(in crate::simulation) writes: Pace,
    pub(in crate::simulation) reads: Pace,
    /// How fast the endpoint writes.
    pub(in crate::simulation) answers: Pace,
    pub(in crate::simulation) fate: Fate,
    pub(in crate::simulation) brisk: bool,
}

/// The way of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulation) enum Way {
    Tcp,
    /// TLS with the endpoint that the name has a route to.
    Named(Dialect),
    /// TLS with the listener's own endpoint, if it has one. The `bool`: the hello has a name, for which there
    /// is no route.
    Unrouted(Dialect, bool),
}

impl Way {
    /// The last bytes of the endpoints' addresses.
    pub(in crate::simulation) const ENDPOINTS: std::ops::RangeInclusive<u8> = 101..=103;

    pub(in crate::simulation) const fn endpoint(self) -> u8 {
        match self {
            Self::Tcp => 101,
            Self::Named(_) => 102,
            Self::Unrouted(..) => 103,
        }
    }

    /// The listener, by index.
    pub(in crate::simulation) const fn listener(self) -> usize {
        if matches!(self, Self::Tcp) { 2 } else { 3 }
    }

    pub(in crate::simulation) const fn dialect(self) -> Option<Dialect> {
        match self {
            Self::Tcp => None,
            Self::Named(dialect) | Self::Unrouted(dialect, _) => Some(dialect),
        }
    }
}

impl Plan {
    /// Whether an endpoint takes the connection.
    pub(in crate::simulation) fn leads(&self, way: Way) -> bool {
        let rest = |listener: &Arc<Listener>| {
            matches!(listener.protocol, Protocol::TlsPassthrough { upstream: Some(_), .. })
        };
        !matches!(way, Way::Unrouted(..)) || self.config.listeners.last().is_some_and(rest)
    }

    pub(super) fn bring_tls(&mut self) {
        let mut random = Random::new(self.seed ^ 0x7e57_ab1e_0f71_5eed);
        if !random.percent(20) {
            return;
        }
        let keeps = random.pick(&Keeps::ALL);
        self.add_listeners(&mut random, keeps);
        for upstream in 0..2 {
            if random.percent(50) {
                self.secure_upstream(&mut random, upstream);
            }
        }
        for client in 0..self.clients.len() {
            // Clients that are to resume each other's sessions speak alike.
            let (chance, dialect) = match keeps {
                Keeps::Sessions => (90, Dialect::Tls13),
                _ => (60, random.pick(&Dialect::ALL)),
            };
            if random.percent(chance) {
                self.secure_client(&mut random, client, dialect);
            }
        }
        for number in 0..random.below(3) {
            let through = self.through(&mut random, number);
            self.throughs.push(through);
        }
    }

    /// Adds listeners for HTTP over TLS, for TCP, and for TLS that is passed through, with the upstreams of
    /// the last two.
    fn add_listeners(&mut self, random: &mut Random, keeps: Keeps) {
        let handshake_timeout = random.millis(2000..=5000);
        let max_handshakes = if self.calm || random.percent(80) { 64 } else { random.within(1..=2) };
        let secure = tls::listener(handshake_timeout, max_handshakes, keeps);
        let passed =
            Protocol::TlsPassthrough { upstream: random.percent(60).then_some(4), handshake_timeout };
        let main = Arc::clone(&self.config.listeners[0]);
        let listener = |name: &str, protocol| Listener { name: name.into(), protocol, ..(*main).clone() };
        self.config.listeners.extend([
            Arc::new(Listener { tls: Some(secure), ..listener("secure", Protocol::Https) }),
            Arc::new(listener("tcp", Protocol::Tcp { upstream: 2 })),
            Arc::new(listener("passed", passed)),
        ]);
        let base = Arc::clone(&self.config.upstreams[0]);
        self.config.upstreams.extend(Way::ENDPOINTS.map(|address| {
            let endpoints = testing::config(&[origin_address(address)]).upstreams[0].endpoints.clone();
            Arc::new(Upstream { name: format!("through {address}").into(), endpoints, ..(*base).clone() })
        }));
        let routes = self.config.routes.routes();
        let named = Route {
            hosts: vec![Host::parse(tls::NAME).expect("a host")],
            path: RoutePath::Prefix("/".into()),
            listeners: vec!["passed".into()],
            action: Action::Upstream(3),
            ..(*routes[0]).clone()
        };
        self.config.routes = RouteTable::new(routes.iter().cloned().chain([Arc::new(named)]).collect());
    }

    fn secure_upstream(&mut self, random: &mut Random, upstream: usize) {
        Arc::make_mut(&mut self.config.upstreams[upstream]).tls = Some(tls::upstream());
        let last = self.endpoints.len() - 1;
        let its = if upstream == 0 { 0..last } else { last..last + 1 };
        for manner in &mut self.manners[its] {
            *manner = Some(match random.below(12) {
                _ if self.calm => Manner::Sound,
                0 => Manner::Stray,
                1 => Manner::Stops(random.below(HANDSHAKE)),
                2 => Manner::Garbage,
                _ => Manner::Sound,
            });
        }
        let area = ["/x/", "/y/"][upstream];
        let answers = self.exchanges.iter_mut().filter(|exchange| exchange.path.starts_with(area));
        for answer in answers.flat_map(|exchange| &mut exchange.answers) {
            if answer.body.framing == Framing::UntilClose && answer.trouble.is_none() && random.percent(15) {
                answer.trouble = Some(Trouble::Truncates);
            }
        }
    }

    fn secure_client(&mut self, random: &mut Random, number: usize, dialect: Dialect) {
        let client = &mut self.clients[number];
        client.secure = Some(Secure { dialect, is_polite: random.percent(70), is_early: random.percent(70) });
        let exchanges = &mut self.exchanges[client.exchanges.clone()];
        exchanges.iter_mut().for_each(|exchange| exchange.is_secure = true);
        let bytes: usize =
            HANDSHAKE + exchanges.iter().map(|exchange| exchange.request().0.len()).sum::<usize>();
        if client.brisk {
            client.writes = pace(random, bytes, BRISK);
            client.reads = pace(random, 20_000 + HANDSHAKE, BRISK);
        }
        let within = if random.percent(50) { HANDSHAKE } else { bytes };
        client.fate = match client.fate {
            _ if random.percent(10) => Fate::Garbles(random.below(within)),
            Fate::AtSent(_, leave) => Fate::AtSent(random.below(within), leave),
            Fate::AtReceived(at, leave) => Fate::AtReceived(at + random.below(HANDSHAKE), leave),
            other => other,
        };
    }

    fn through(&self, random: &mut Random, number: usize) -> Through {
        let dialect = random.pick(&Dialect::ALL);
        let way = match random.below(6) {
            0..3 => Way::Tcp,
            3 | 4 => Way::Named(dialect),
            _ => Way::Unrouted(dialect, random.percent(50)),
        };
        let length = |random: &mut Random| random.pick(&[0, 1, 100, 5000, 50_000]);
        let bytes =
            |random: &mut Random, direction| pattern(self.seed, 1 << 20 | number, direction, length(random));
        let number = u32::try_from(number).expect("a few").to_be_bytes();
        let up: Rc<[u8]> = [&number[..], &bytes(random, 5)].concat().into();
        let down = bytes(random, 6);
        let brisk = random.percent(85);
        let (sent, got) = (up.len() + HANDSHAKE, down.len() + HANDSHAKE);
        let leaves = [Leave::Close, Leave::Fin, Leave::Reset, Leave::Vanish, Leave::Stall];
        Through {
            connects: random.millis(0..=4000),
            way,
            writes: if brisk { pace(random, sent, BRISK) } else { slow_pace(random, sent) },
            reads: if brisk { pace(random, got, BRISK) } else { slow_pace(random, got) },
            answers: pace(random, down.len(), BRISK),
            fate: match random.below(10) {
                0 | 1 => Fate::AtSent(random.below(sent), random.pick(&leaves)),
                2 => Fate::AtReceived(random.below(got), random.pick(&leaves)),
                3 if way != Way::Tcp => Fate::Garbles(random.below(sent)),
                _ => Fate::Waits,
            },
            up,
            down,
            brisk,
        }
    }
}
