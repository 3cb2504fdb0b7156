//! Draws a whole plan from a seed. Half of the worlds are calm, so that the bytes that must arrive are known
//! exactly.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::http::redirect::Template;
use crate::route::RouteTable;
use crate::route::model::{Action, Redirect, Respond, Route, RoutePath};
use crate::upstream::model::{RetryOn, Upstream};
use crate::worker::testing::{self, origin_address};

/// Time limits are drawn from seconds; a brisk client stays far below them.
pub(super) const BRISK: usize = 40;

impl Plan {
    pub(in crate::simulation) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let calm = random.percent(50);
        let faults = faults(&mut random, calm);
        let memory = memory(&mut random, calm);
        let endpoints = endpoints(&mut random, calm);
        let mut config = config(&mut random, endpoints.len());
        let mut listener = (*config.listeners[0]).clone();
        listener.half_close = half_close(seed);
        config.listeners = vec![Arc::new(listener)];
        let mut plan = Self {
            seed,
            faults,
            memory,
            settings: Settings { discard_quiet: Duration::from_secs(1), ..Settings::default() },
            connections_max: if calm || random.percent(80) { 100 } else { random.within(1..=4) },
            config,
            manners: vec![None; endpoints.len()],
            endpoints,
            clients: Vec::new(),
            throughs: Vec::new(),
            exchanges: Vec::new(),
            calm,
            turns: turns(&mut random, calm),
        };
        let mut shape = random.fork();
        let large = random.percent(15);
        for _ in 0..random.within(1..=5) {
            let mut random = shape.fork();
            plan.add_client(&mut random, large);
        }
        plan.bring_tls();
        plan
    }

    fn add_client(&mut self, random: &mut Random, large: bool) {
        let first = self.exchanges.len();
        let keep_alive = self.config.listeners[0].timeouts.keep_alive;
        for _ in 0..random.within(1..=5) {
            let exchange = self.exchange(random, large);
            self.exchanges.push(exchange);
        }
        if random.percent(12) {
            let exchange = self.tunnel(random);
            self.exchanges.push(exchange);
        }
        let exchanges = first..self.exchanges.len();
        let bytes: usize =
            self.exchanges[exchanges.clone()].iter().map(|exchange| exchange.request().0.len()).sum();
        let brisk = random.percent(85);
        let fate = match random.below(20) {
            0..7 => Fate::Waits,
            7..12 => Fate::ClosesWhenDone,
            12..15 => Fate::HalfCloses,
            15..18 => {
                let leave =
                    random.pick(&[Leave::Close, Leave::Fin, Leave::Reset, Leave::Vanish, Leave::Stall]);
                Fate::AtSent(random.below(bytes + 1), leave)
            }
            _ => {
                let leave = random.pick(&[Leave::Close, Leave::Reset, Leave::Vanish, Leave::Stall]);
                Fate::AtReceived(random.pick(&[0, 1, 50, 200, 1000, 10_000]) + random.below(50), leave)
            }
        };
        let (writes, reads) = if brisk {
            (pace(random, bytes, BRISK), pace(random, 20_000, BRISK))
        } else {
            let answers = self.exchanges[exchanges.clone()].iter().flat_map(|exchange| &exchange.answers);
            let answered = answers.map(|answer| answer.body.bytes.len() + 300).max().unwrap_or_default();
            (slow_pace(random, bytes), slow_pace(random, answered))
        };
        self.clients.push(Client {
            connects: random.millis(0..=4000),
            exchanges,
            depth: random.pick(&[1, 1, 2, 10]),
            think: match random.below(6) {
                0 => random.millis(0..=keep_alive.as_millis() as usize / 2),
                1 => keep_alive.mul_f64(1.5),
                _ => Duration::ZERO,
            },
            writes,
            reads,
            fate,
            stubborn: random.percent(30),
            brisk,
            secure: None,
        });
    }

    fn exchange(&self, random: &mut Random, large: bool) -> Exchange {
        let id = self.exchanges.len();
        let method =
            random.pick(&["GET", "GET", "GET", "POST", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH"]);
        let is_http10 = random.percent(12);
        let has_body = matches!(method, "POST" | "PUT" | "PATCH") || random.percent(5);
        let framing = match random.below(2) {
            _ if !has_body => Framing::None,
            0 if !is_http10 => Framing::Chunked,
            _ => Framing::Length,
        };
        let body = self.body(random, id, 1, framing, large);
        let mut broken = None;
        if !is_http10 && random.percent(6) {
            broken =
                Some(random.pick(if framing == Framing::Chunked { broken::BODIES } else { broken::HEADS }));
        }
        let area = random.pick(&["x", "x", "x", "x", "y", "y", "y/deeper", "none", "here", "moved"]);
        let query = if broken.is_none() && random.percent(20) { "?a=%zz&b=1" } else { "" };
        let is_certain = random.percent(75);
        let mut exchange = Exchange {
            id,
            method,
            is_http10,
            says_connection: random.percent(if is_http10 { 60 } else { 8 }),
            path: format!("/{area}/{id}{query}"),
            expects: !is_http10 && !body.bytes.is_empty() && random.percent(15),
            broken,
            is_secure: false,
            tunnel: None,
            answers: (0..if is_certain { 1 } else { 2 })
                .map(|_| self.answer(random, id, is_certain, large, body.bytes.len()))
                .collect(),
            body,
        };
        // An unannounced close after an answer would break the next request on that connection, whose own
        // plan knows nothing of it.
        let unannounced = |answer: &Answer, attempt| match answer.trouble {
            Some(Trouble::Closes(at) | Trouble::Resets(at)) => {
                at >= answer.response(&exchange, attempt).len()
            }
            _ => false,
        };
        let harmless: Vec<_> = exchange
            .answers
            .iter()
            .enumerate()
            .map(|(attempt, answer)| unannounced(answer, attempt))
            .collect();
        for (answer, harmless) in exchange.answers.iter_mut().zip(harmless) {
            answer.trouble = answer.trouble.filter(|_| !(harmless && self.calm));
        }
        exchange
    }

    fn tunnel(&self, random: &mut Random) -> Exchange {
        let id = self.exchanges.len();
        let length = |random: &mut Random| random.pick(&[0, 1, 100, 5000, 50_000]);
        let none = Body { framing: Framing::None, bytes: Rc::new([]), chunk: 1, trailer: false };
        let tunnel = Tunnel {
            up: pattern(self.seed, id, 3, length(random)),
            down: pattern(self.seed, id, 4, length(random)),
        };
        let body = self.body_before_tunnel(id);
        let answer = Answer {
            status: 101,
            interims: Vec::new(),
            body: none.clone(),
            closes: false,
            when: When::Whole,
            delay: Duration::ZERO,
            pace: pace(random, tunnel.down.len(), BRISK),
            reads: pace(random, tunnel.up.len().max(body.bytes.len()), BRISK),
            trouble: None,
        };
        Exchange {
            id,
            method: if body.framing == Framing::None { "GET" } else { "POST" },
            is_http10: false,
            says_connection: false,
            path: format!("/{}/{id}", random.pick(&["x", "y"])),
            body,
            expects: false,
            broken: None,
            is_secure: false,
            tunnel: Some(tunnel),
            answers: vec![answer],
        }
    }

    /// The body of a request that asks for another protocol. A generator of its own leaves the other draws as
    /// they were.
    fn body_before_tunnel(&self, id: usize) -> Body {
        let mut random = Random::new(self.seed ^ 0x626f_6479 ^ id as u64);
        let framing = random.pick(&[Framing::None, Framing::None, Framing::Length, Framing::Chunked]);
        let body = self.body(&mut random, id, 1, framing, false);
        // A body that is refused begins no tunnel.
        let limit = self.config.listeners[0].limits.body_bytes as usize;
        if limit > 0 && body.bytes.len() > limit {
            return Body { framing: Framing::Length, bytes: Rc::new([]), chunk: 1, trailer: false };
        }
        body
    }

    fn answer(&self, random: &mut Random, id: usize, is_certain: bool, large: bool, upload: usize) -> Answer {
        let framing = random.pick(&[
            Framing::Length,
            Framing::Length,
            Framing::Chunked,
            Framing::Chunked,
            Framing::UntilClose,
        ]);
        let body = self.body(random, id, 2, framing, large);
        let status = random.pick(&[200, 200, 200, 201, 204, 301, 304, 404, 500, 503]);
        let bytes = body.bytes.len();
        let anywhere = random.below(bytes + 200);
        let trouble = (!is_certain && random.percent(70)).then(|| match random.below(16) {
            0 | 1 => Trouble::Stalls(anywhere),
            2 => Trouble::Stalls(0),
            3 | 4 => Trouble::Closes(anywhere),
            5 => Trouble::Closes(0),
            6 => Trouble::Resets(anywhere),
            7 => Trouble::Resets(0),
            8 | 9 => Trouble::Garbage(random.below(100)),
            10 if framing == Framing::Chunked && !matches!(status, 204 | 304) => Trouble::BadChunk,
            11 => Trouble::Unasked,
            12 | 13 => Trouble::StopsReading,
            _ => Trouble::Poison,
        });
        // A response that ends with the connection cannot have another behind it, and a close within it is
        // its end.
        let trouble = match trouble {
            Some(Trouble::Poison) if framing == Framing::UntilClose => None,
            Some(Trouble::Closes(at)) if framing == Framing::UntilClose => Some(Trouble::Resets(at)),
            other => other,
        };
        Answer {
            status,
            interims: (0..if random.percent(15) { random.within(1..=3) } else { 0 })
                .map(|_| random.pick(&[100, 102, 103]))
                .collect(),
            body,
            closes: trouble != Some(Trouble::Poison)
                && (framing == Framing::UntilClose || random.percent(15)),
            when: match random.below(10) {
                0 => When::Head,
                1 => When::Bytes(random.below(upload + 1)),
                _ => When::Whole,
            },
            delay: if random.percent(30) { random.millis(0..=500) } else { Duration::ZERO },
            pace: pace(random, bytes, BRISK),
            reads: pace(random, upload, BRISK),
            trouble,
        }
    }

    fn body(&self, random: &mut Random, id: usize, direction: u64, framing: Framing, large: bool) -> Body {
        let length = match framing {
            Framing::None => 0,
            _ if large && random.percent(30) => random.within(100_000..=900_000),
            _ => random.pick(&[0, 1, 10, 100, 1000, 3000, 10_000, 40_000]) + random.below(20),
        };
        Body {
            framing,
            bytes: pattern(self.seed, id, direction, length),
            chunk: random.pick(&[length / 20 + 1, length / 3 + 1, length + 1, 4096.max(length / 40)]),
            trailer: random.percent(30),
        }
    }
}

/// A pace with at most so many pieces, and pauses that add up to a second or so.
pub(super) fn pace(random: &mut Random, bytes: usize, pieces: usize) -> Pace {
    let pieces = random.within(1..=pieces);
    let pause = if random.percent(50) { Duration::ZERO } else { random.millis(1..=20) };
    Pace { piece: (bytes + 300) / pieces + 1, pause }
}

/// A pace that is too slow for some time limit, now and then.
pub(super) fn slow_pace(random: &mut Random, bytes: usize) -> Pace {
    Pace { piece: bytes / random.within(1..=10) + 1, pause: random.millis(200..=4000) }
}

fn faults(random: &mut Random, calm: bool) -> Faults {
    let base = if random.percent(50) { Faults::mild() } else { Faults::rough() };
    let faults = Faults {
        short: random.percent(80),
        delay: random.pick(&[0, 100, 300]),
        portion: random.pick(&[1, 4, 16, usize::MAX]),
        window: random.pick(&[1 << 10, 8 << 10, 64 << 10, 1 << 20]),
        ..base
    };
    if calm || random.percent(40) {
        return faults;
    }
    Faults {
        reset: random.pick(&[0, 2, 10]),
        connect_failure: random.pick(&[0, 100, 400]),
        open_failure: random.pick(&[0, 0, 100]),
        no_buffers: random.pick(&[0, 30, 300]),
        ..faults
    }
}

fn memory(random: &mut Random, calm: bool) -> Memory {
    if calm || random.percent(50) {
        return Memory { buffers: 512, buffer_size: 4096, budget: 8 << 20 };
    }
    Memory {
        buffers: random.pick(&[4, 16, 64]),
        buffer_size: random.pick(&[1024, 4096, 16_384]),
        budget: random.pick(&[4 << 10, 64 << 10, 1 << 20]),
    }
}

fn endpoints(random: &mut Random, calm: bool) -> Vec<Endpoint> {
    let draw = |random: &mut Random| match random.below(10) {
        _ if calm => Endpoint::Serves { idle: None },
        0 => Endpoint::Refuses,
        1 => Endpoint::Silent,
        2 | 3 => Endpoint::Serves { idle: Some(random.millis(0..=3000)) },
        _ => Endpoint::Serves { idle: None },
    };
    (0..random.within(2..=4)).map(|_| draw(random)).collect()
}

/// The configuration. The last endpoint is the second upstream's.
fn config(random: &mut Random, endpoints: usize) -> model::Config {
    let addresses: Vec<_> = (1..=endpoints).map(|index| origin_address(index as u8)).collect();
    let (first, second) = addresses.split_at(endpoints - 1);
    let mut config = testing::config(first);
    let seconds = |random: &mut Random, range| Duration::from_secs(random.within(range) as u64);
    let mut listener = testing::listener();
    listener.timeouts.request_header = seconds(random, 3..=8);
    listener.timeouts.request_body = seconds(random, 3..=8);
    listener.timeouts.keep_alive = seconds(random, 1..=10);
    listener.timeouts.send = seconds(random, 3..=8);
    listener.limits.body_bytes = random.pick(&[0, 0, 0, 5000]);
    listener.limits.requests_per_connection = random.pick(&[0, 0, 0, 3]);
    listener.timeouts.min_rate = random.pick(&[None, NonZero::new(100), NonZero::new(2000)]);
    config.listeners = vec![Arc::new(listener)];
    let base = config.upstreams[0].clone();
    let mut upstream = |name: &str, addresses| {
        let endpoints = testing::config(addresses).upstreams[0].endpoints.clone();
        let mut upstream = Upstream { name: name.into(), endpoints, ..(*base).clone() };
        upstream.connect_timeout = seconds(random, 1..=2);
        upstream.pool.max_idle = random.pick(&[0, 1, 2, 16]);
        upstream.pool.idle_timeout = seconds(random, 1..=20);
        upstream.pool.max_lifetime = seconds(random, 3..=60);
        upstream.retry.attempts = random.within(1..=3) as u32;
        upstream.retry.on =
            RetryOn { connect_failure: random.percent(80), reset_before_response: random.percent(80) };
        Arc::new(upstream)
    };
    config.upstreams = vec![upstream("x", first), upstream("y", second)];
    let base = config.routes.routes()[0].clone();
    let mut route = |prefix: &str, upstream: usize| {
        let mut route = (*base).clone();
        route.path = RoutePath::Prefix(prefix.into());
        route.action = Action::Upstream(upstream);
        route.timeout = seconds(random, 3..=6);
        route.body_timeout = seconds(random, 3..=6);
        route.buffer_response = random.pick(&[1, 4 << 10, 64 << 10]);
        Arc::new(route)
    };
    let routes = vec![route("/x", 0), route("/y", 1)];
    let own = |prefix: &str, action| {
        Arc::new(Route { path: RoutePath::Prefix(prefix.into()), action, ..(*base).clone() })
    };
    let here = Respond { status: 200, content_type: "text/plain".into(), body: (*b"here").into() };
    let to = Template::parse("https://{host}{uri}").expect("a template");
    let moved = Redirect { status: 308, to };
    let own = [own("/here", Action::Respond(here)), own("/moved", Action::Redirect(moved))];
    config.routes = RouteTable::new(routes.into_iter().chain(own).collect());
    config
}

/// How long a client that ended its side is served on. A generator of its own leaves the other draws as they
/// were.
fn half_close(seed: u64) -> Option<Duration> {
    let mut random = Random::new(seed ^ 0x6861_6c66);
    random.pick(&[None, None, Some(Duration::ZERO), Some(Duration::from_secs(2))])
}

fn turns(random: &mut Random, calm: bool) -> Vec<(Duration, Turn)> {
    let mut turns = Vec::new();
    if random.percent(20) {
        turns.push((random.millis(0..=8000), Turn::Configure { endpoints: random.within(1..=3) }));
    }
    if !calm && random.percent(25) {
        let within = random.millis(0..=10_000);
        turns.push((
            random.millis(0..=8000),
            if random.percent(50) { Turn::Drain { within } } else { Turn::Stop },
        ));
    }
    turns.sort_by_key(|(at, _)| *at);
    turns
}
