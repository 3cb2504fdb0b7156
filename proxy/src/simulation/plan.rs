//! The decisions of a seed before anything happens: the configuration, how unkind the world is, what each
//! client sends, how and when, and how origins answer. Clients and origins know them all, so that both can
//! tell what must arrive.

use std::rc::Rc;
use std::time::Duration;

use super::broken::{self, Broken};
use super::random::Random;
use crate::config::model;
use crate::io::Settings;
use crate::io::simulated::{Faults, Memory};

mod secure;
mod world;

pub(super) use self::secure::{Manner, Secure, Through, Way};

pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) faults: Faults,
    pub(super) memory: Memory,
    pub(super) settings: Settings,
    pub(super) connections_max: usize,
    pub(super) config: model::Config,
    pub(super) endpoints: Vec<Endpoint>,
    /// How each endpoint speaks TLS, if it does.
    pub(super) manners: Vec<Option<Manner>>,
    pub(super) clients: Vec<Client>,
    /// Connections whose bytes are passed through as they are.
    pub(super) throughs: Vec<Through>,
    pub(super) exchanges: Vec<Exchange>,
    /// Nothing breaks that is not planned for an exchange: a client that behaves gets the answer that the
    /// origin gave.
    pub(super) calm: bool,
    /// Events of the worker, by time since the start.
    pub(super) turns: Vec<(Duration, Turn)>,
}

/// An event of the worker.
#[derive(Clone, Debug)]
pub(super) enum Turn {
    /// A new configuration: these endpoints of the first upstream stay.
    Configure {
        endpoints: usize,
    },
    Drain {
        within: Duration,
    },
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Serves {
        /// Closes a connection that was idle for so long.
        idle: Option<Duration>,
    },
    Refuses,
    Silent,
}

/// How fast a client or an origin reads or writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) piece: usize,
    pub(super) pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    Close,
    /// FIN, then reads on.
    Fin,
    Reset,
    Vanish,
    /// Sends (or reads) nothing more, for ever.
    Stall,
}

/// How a client's connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The client waits until Sluice closes.
    Waits,
    ClosesWhenDone,
    /// FIN with the last byte of the last request.
    HalfCloses,
    /// It leaves at this byte that it sends.
    AtSent(usize, Leave),
    /// It leaves at this byte that it receives.
    AtReceived(usize, Leave),
    /// It waits, and one bit of this byte that it sends is changed.
    Garbles(usize),
}

/// One connection.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) connects: Duration,
    /// Indices of its exchanges, in order.
    pub(super) exchanges: std::ops::Range<usize>,
    /// The most requests that are begun and not answered.
    pub(super) depth: usize,
    /// The pause between an answer and the next request.
    pub(super) think: Duration,
    pub(super) writes: Pace,
    pub(super) reads: Pace,
    pub(super) fate: Fate,
    /// Goes on sending after an answer said that the connection closes.
    pub(super) stubborn: bool,
    /// Reads and writes fast enough for every time limit.
    pub(super) brisk: bool,
    /// Speaks TLS.
    pub(super) secure: Option<Secure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length,
    Chunked,
    UntilClose,
}

#[derive(Clone, Debug)]
pub(super) struct Body {
    pub(super) framing: Framing,
    pub(super) bytes: Rc<[u8]>,
    pub(super) chunk: usize,
    pub(super) trailer: bool,
}

/// One request and its answers.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    pub(super) id: usize,
    pub(super) method: &'static str,
    pub(super) is_http10: bool,
    /// It has a Connection field: HTTP/1.0 with `keep-alive`, HTTP/1.1 with `close`.
    pub(super) says_connection: bool,
    pub(super) path: String,
    pub(super) body: Body,
    pub(super) expects: bool,
    pub(super) broken: Option<Broken>,
    /// Its client speaks TLS.
    pub(super) is_secure: bool,
    /// Asks for another protocol, and speaks it: the last on its connection.
    pub(super) tunnel: Option<Tunnel>,
    /// The answers by attempt; the last holds for all attempts that follow.
    pub(super) answers: Vec<Answer>,
}

/// The bytes of both sides in a tunnel, each until its FIN.
#[derive(Clone, Debug)]
pub(super) struct Tunnel {
    pub(super) up: Rc<[u8]>,
    pub(super) down: Rc<[u8]>,
}

/// When an origin begins to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Whole,
    Head,
    /// After so many body bytes, if the body has as many.
    Bytes(usize),
}

/// A misdeed of an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Sends nothing more after this byte of its answer.
    Stalls(usize),
    Closes(usize),
    Resets(usize),
    /// Sends bytes that are not HTTP instead of a head.
    Garbage(usize),
    BadChunk,
    /// Answers 101 to a request that did not ask for an upgrade.
    Unasked,
    /// Sends an unrequested response behind its answer.
    Poison,
    /// Reads nothing more of the request's body until it has answered.
    StopsReading,
    /// Closes without the announcement that TLS has for it, where the end of the connection is the answer's
    /// end.
    Truncates,
}

#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) interims: Vec<u16>,
    pub(super) body: Body,
    pub(super) closes: bool,
    pub(super) when: When,
    pub(super) delay: Duration,
    pub(super) pace: Pace,
    pub(super) reads: Pace,
    pub(super) trouble: Option<Trouble>,
}

impl Exchange {
    pub(super) fn is_idempotent(&self) -> bool {
        !matches!(self.method, "POST" | "PATCH")
    }

    pub(super) fn answer(&self, attempt: usize) -> &Answer {
        &self.answers[attempt.min(self.answers.len() - 1)]
    }

    /// Whether it may be served before its client's handshake is over (RFC 8470 §4).
    pub(super) fn is_safe(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS")
            && self.body.bytes.is_empty()
            && self.tunnel.is_none()
    }

    /// Whether the client asks for the connection's end.
    pub(super) fn asks_for_close(&self) -> bool {
        self.is_http10 != self.says_connection
    }

    /// The request as the client sends it, and where its head ends.
    pub(super) fn request(&self) -> (Vec<u8>, usize) {
        let version = if self.is_http10 { "1.0" } else { "1.1" };
        let mut out =
            format!("{} {} HTTP/{version}\r\nHost: sim.example\r\n", self.method, self.path).into_bytes();
        out.extend(format!("X-Probe: {}\r\n", self.id).bytes());
        match (self.is_http10, self.says_connection) {
            (true, true) => out.extend(b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\n"),
            (false, true) => out.extend(b"Connection: close\r\n"),
            _ => {}
        }
        if self.expects {
            out.extend(b"Expect: 100-continue\r\n");
        }
        if self.tunnel.is_some() {
            out.extend(b"Connection: Upgrade\r\nUpgrade: sim\r\n");
        }
        self.body.write_framing(&mut out);
        out.extend(b"\r\n");
        let mut head = out.len();
        self.body.write(&mut out);
        if let Some(broken) = self.broken {
            head = broken::apply(broken, &mut out, head);
        }
        (out, head)
    }
}

impl Answer {
    /// The answer as the origin sends it, with its interim responses.
    pub(super) fn response(&self, exchange: &Exchange, attempt: usize) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(Trouble::Garbage(which)) = self.trouble {
            return broken::GARBAGE[which % broken::GARBAGE.len()].to_vec();
        }
        if exchange.tunnel.is_some() {
            out.extend(format!("HTTP/1.1 101 Fine\r\nX-Exchange: {}\r\n", exchange.id).bytes());
            out.extend(b"Connection: Upgrade\r\nUpgrade: sim\r\n\r\n");
            return out;
        }
        for status in &self.interims {
            out.extend(format!("HTTP/1.1 {status} Interim\r\nX-Exchange: {}\r\n\r\n", exchange.id).bytes());
        }
        let status = if self.trouble == Some(Trouble::Unasked) { 101 } else { self.status };
        out.extend(
            format!("HTTP/1.1 {status} Fine\r\nX-Exchange: {}\r\nX-Attempt: {attempt}\r\n", exchange.id)
                .bytes(),
        );
        if self.closes {
            out.extend(b"Connection: close, X-Hop\r\nX-Hop: 1\r\n");
        }
        self.body.write_framing(&mut out);
        out.extend(b"\r\n");
        if self.has_body(exchange) {
            self.body.write(&mut out);
            if self.trouble == Some(Trouble::BadChunk) {
                broken::spoil_chunks(&mut out);
            }
        }
        if self.trouble == Some(Trouble::Poison) {
            out.extend(POISON);
        }
        out
    }

    pub(super) fn has_body(&self, exchange: &Exchange) -> bool {
        exchange.method != "HEAD" && !matches!(self.status, 204 | 304)
    }

    /// Whether the client can get the answer whole.
    pub(super) fn can_be_whole(&self, exchange: &Exchange, attempt: usize) -> bool {
        let has_body = self.has_body(exchange);
        match self.trouble {
            None | Some(Trouble::Poison | Trouble::StopsReading) => true,
            Some(Trouble::Garbage(_) | Trouble::Unasked) => false,
            Some(Trouble::BadChunk) => !has_body,
            Some(Trouble::Truncates) => !has_body,
            Some(Trouble::Resets(_)) if has_body && self.body.framing == Framing::UntilClose => false,
            Some(Trouble::Stalls(at) | Trouble::Closes(at) | Trouble::Resets(at)) => {
                at >= self.response(exchange, attempt).len()
            }
        }
    }
}

impl Body {
    fn write_framing(&self, out: &mut Vec<u8>) {
        match self.framing {
            Framing::None | Framing::UntilClose => {}
            Framing::Length => out.extend(format!("Content-Length: {}\r\n", self.bytes.len()).bytes()),
            Framing::Chunked => out.extend(b"Transfer-Encoding: chunked\r\n"),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        if self.framing != Framing::Chunked {
            out.extend_from_slice(&self.bytes);
            return;
        }
        for chunk in self.bytes.chunks(self.chunk) {
            out.extend(format!("{:x};a=b\r\n", chunk.len()).bytes());
            out.extend_from_slice(chunk);
            out.extend(b"\r\n");
        }
        out.extend(b"0\r\n");
        if self.trailer {
            out.extend(format!("X-Trailer: {}\r\n", self.bytes.len()).bytes());
        }
        out.extend(b"\r\n");
    }
}

impl Plan {
    pub(super) fn keep_alive(&self) -> Duration {
        self.config.listeners[0].timeouts.keep_alive
    }

    /// Whether an origin must answer the exchange, in a calm world.
    pub(super) fn is_smooth(&self, exchange: &Exchange) -> bool {
        let limit = self.config.listeners[0].limits.body_bytes;
        let fits = limit == 0 || exchange.body.bytes.len() as u64 <= limit;
        fits && exchange.broken.is_none() && exchange.answers.iter().all(|answer| answer.trouble.is_none())
    }

    /// How far a client may lag behind the bytes that its host has received.
    pub(super) fn lag(&self, client: &Client) -> Duration {
        client.reads.pause * u32::try_from(self.faults.window / client.reads.piece).unwrap_or(u32::MAX)
    }

    /// Whether the worker ends before its clients do.
    pub(super) fn drains(&self) -> bool {
        self.turns.iter().any(|(_, turn)| !matches!(turn, Turn::Configure { .. }))
    }

    /// Whether some origin sends unrequested bytes.
    pub(super) fn has_poison(&self) -> bool {
        let mut answers = self.exchanges.iter().flat_map(|exchange| &exchange.answers);
        answers.any(|answer| answer.trouble == Some(Trouble::Poison))
    }

    /// Longer than a client ever waits for anything, if every wait has its deadline.
    pub(super) fn patience(&self) -> Duration {
        let listener = &self.config.listeners[0].timeouts;
        let client = listener.request_header + listener.request_body + listener.keep_alive + listener.send;
        let route = self
            .config
            .routes
            .routes()
            .iter()
            .map(|route| route.timeout + route.body_timeout)
            .max()
            .unwrap_or_default();
        let connect =
            self.config.upstreams.iter().map(|upstream| upstream.connect_timeout).max().unwrap_or_default();
        let attempts =
            self.config.upstreams.iter().map(|upstream| upstream.retry.attempts).max().unwrap_or_default();
        let think = self.clients.iter().map(|client| client.think).max().unwrap_or_default();
        let throughs =
            self.config.listeners.iter().map(|listener| listener.patience()).max().unwrap_or_default();
        client
            + throughs
            + attempts * (2 * connect + route)
            + think
            + self.settings.close_timeout
            + self.settings.discard_quiet
            + Duration::from_secs(10)
    }

    /// The statuses with which Sluice itself may answer. `slow`: the client is slow or falls silent.
    /// `strange`: other bytes than the origin's answer may have reached Sluice.
    pub(super) fn refusals(&self, exchange: &Exchange, slow: bool, strange: bool) -> Vec<u16> {
        let mut allowed = Vec::new();
        if slow {
            allowed.push(408);
        }
        if let Some(broken) = exchange.broken {
            allowed.push(broken.status());
            if !broken.is_in_body() {
                return allowed;
            }
        }
        let limit = self.config.listeners[0].limits.body_bytes;
        if limit > 0 && exchange.body.bytes.len() as u64 > limit {
            allowed.push(413);
        }
        let own = [("/none/", 404), ("/here/", 200), ("/moved/", 308)];
        if let Some((_, status)) = own.iter().find(|(area, _)| exchange.path.starts_with(area)) {
            allowed.push(*status);
            return allowed;
        }
        if !self.calm || strange || exchange.answers.iter().any(|answer| answer.trouble.is_some()) {
            allowed.extend([502, 503, 504]);
        }
        allowed
    }
}

/// An unrequested response.
pub(super) const POISON: &[u8] =
    b"HTTP/1.1 200 Fine\r\nX-Exchange: poison\r\nContent-Length: 6\r\n\r\npoison";

/// Bytes that tell their seed, their exchange and their place.
pub(super) fn pattern(seed: u64, exchange: usize, direction: u64, length: usize) -> Rc<[u8]> {
    let mut bytes = Vec::with_capacity(length + 8);
    let key = Random::new(seed ^ (exchange as u64) << 8 ^ direction).next();
    while bytes.len() < length {
        let word = key ^ (bytes.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bytes.extend_from_slice(&word.wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(29).to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}
