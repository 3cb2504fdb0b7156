//! An origin's side of one connection: it takes only requests that a client sent, byte for byte, and answers
//! as planned.

use std::time::Duration;

use super::book::Book;
use super::line::Line;
use super::plan::{Endpoint, Exchange, Manner, POISON, Pace, Trouble, When};
use super::wire::{Event, Head, Length, Reader};
use crate::io::simulated::{Peer, Script};
use crate::time::Time;

/// An exchange under way.
struct Current {
    id: usize,
    attempt: usize,
    body_at: usize,
    whole: bool,
    begun: Option<Time>,
    /// The answer was written before the request was whole.
    early: bool,
    /// Bytes taken of the tunnel that it has become.
    tunnelled: Option<usize>,
    out: Vec<u8>,
    written: usize,
}

struct Connection {
    book: Book,
    name: String,
    endpoint: usize,
    idle: Option<Duration>,
    line: Line,
    /// How it speaks TLS, if it does.
    manner: Option<Manner>,
    /// Announces every end of its bytes.
    is_polite: bool,
    reader: Reader,
    current: Option<Current>,
    idle_since: Time,
    next_read: Time,
    next_write: Time,
    /// Unrequested bytes were sent, and the kernel took them at this time.
    poisoned: bool,
    poison_taken: Option<Time>,
    /// It announced its close, or broke: nothing may come any more but the rest of a request.
    over: bool,
    stalls: bool,
}

/// How long bytes that the kernel has taken may need to reach the worker: a portion of completions at a time.
const UNDER_WAY: Duration = Duration::from_millis(500);

pub(super) fn script(book: &Book, endpoint: usize, number: usize) -> Script {
    let Endpoint::Serves { idle } = book.plan.endpoints[endpoint] else {
        panic!("endpoint {endpoint} does not serve")
    };
    let manner = book.plan.manners[endpoint];
    let mut line = manner
        .map_or_else(Line::default, |manner| Line::server(book.parties.origin(manner != Manner::Stray)));
    if let Some(Manner::Stops(at)) = manner {
        line.stop(Some(at));
    }
    let mut connection = Connection {
        book: book.clone(),
        name: format!("origin {endpoint}.{number}"),
        endpoint,
        idle,
        line,
        manner,
        is_polite: number.is_multiple_of(2),
        reader: Reader::default(),
        current: None,
        idle_since: Time::default(),
        next_read: Time::default(),
        next_write: Time::default(),
        poisoned: false,
        poison_taken: None,
        over: false,
        stalls: false,
    };
    Box::new(move |peer| connection.act(peer))
}

impl Connection {
    fn act(&mut self, peer: &Peer) {
        if self.idle_since == Time::default() {
            self.idle_since = peer.now();
            self.book.note(peer.now(), format_args!("{}: accepts", self.name));
        }
        if self.poisoned && self.poison_taken.is_none() && peer.unsent() == 0 {
            self.poison_taken = Some(peer.now());
        }
        self.read(peer);
        self.write(peer);
        if peer.is_reset() {
            return self.book.note(peer.now(), format_args!("{}: was reset", self.name));
        }
        if self.current.as_ref().is_some_and(|current| current.tunnelled.is_some()) {
            return self.end_tunnel(peer);
        }
        if peer.is_ended() {
            self.book.note(peer.now(), format_args!("{}: ended by the proxy", self.name));
            assert!(
                self.line.is_parted() || !self.line.is_ready(),
                "{}: an end that nobody announced",
                self.name
            );
            return peer.close();
        }
        if let (None, Some(idle)) = (&self.current, self.idle) {
            if peer.now() >= self.idle_since + idle {
                self.book.note(peer.now(), format_args!("{}: closes, idle", self.name));
                if self.is_polite {
                    self.part(peer);
                }
                return peer.close();
            }
            peer.wake_at(self.idle_since + idle);
        }
    }

    fn plan(&self, current: &Current) -> (Exchange, Pace, Pace, Option<Trouble>) {
        let exchange = &self.book.plan.exchanges[current.id];
        let answer = exchange.answer(current.attempt);
        (exchange.clone(), answer.reads, answer.pace, answer.trouble)
    }

    fn read(&mut self, peer: &Peer) {
        let mut piece = usize::MAX;
        if let Some(current) = &self.current {
            let (_, reads, _, trouble) = self.plan(current);
            if trouble == Some(Trouble::StopsReading) && !current.whole && !current.early {
                return;
            }
            if peer.now() < self.next_read {
                return peer.wake_at(self.next_read);
            }
            piece = reads.piece;
            self.next_read = peer.now() + reads.pause;
        }
        let bytes = peer.read_at_most(piece);
        if bytes.is_empty() {
            return;
        }
        if self.next_read > peer.now() {
            peer.wake_at(self.next_read);
        }
        self.book.note(peer.now(), format_args!("{}: reads {} bytes", self.name, bytes.len()));
        if self.manner == Some(Manner::Garbage) {
            // A port that speaks no TLS does the same.
            self.book.note(peer.now(), format_args!("{}: answers in plain", self.name));
            return peer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
        let opened = self.line.open(&bytes);
        self.line.write(peer, usize::MAX);
        let bytes = opened.unwrap_or_else(|error| {
            assert!(self.manner == Some(Manner::Stray), "{}: its TLS broke: {error}", self.name);
            self.book.note(peer.now(), format_args!("{}: its TLS broke: {error}", self.name));
            peer.close();
            Vec::new()
        });
        if let Some(Current { id, tunnelled: Some(at), .. }) = &mut self.current {
            let tunnel = self.book.plan.exchanges[*id].tunnel.as_ref().expect("a tunnel");
            let end = *at + bytes.len();
            assert!(
                tunnel.up.get(*at..end) == Some(&bytes[..]),
                "{}: other bytes up the tunnel {id}, {at}..{end}",
                self.name
            );
            *at = end;
            return;
        }
        self.reader.feed(&bytes);
        loop {
            match self.reader.next() {
                Ok(Some(Event::Head(head))) => self.begin(peer, &head),
                Ok(Some(Event::Data(bytes))) => self.data(&bytes),
                Ok(Some(Event::End(trailers))) => self.whole(peer, &trailers),
                Ok(None) => break,
                Err(error) => panic!("{}: a malformed request: {error}", self.name),
            }
        }
        if self.current.is_none() && self.reader.is_within() {
            assert!(!self.over, "{}: a request after the connection's last response", self.name);
        }
    }

    /// Announces that nothing more comes.
    fn part(&mut self, peer: &Peer) {
        self.line.part();
        self.line.write(peer, usize::MAX);
    }

    fn begin(&mut self, peer: &Peer, head: &Head) {
        let (name, plan) = (&self.name, self.book.plan.clone());
        assert!(self.current.is_none(), "{name}: a request before the last one was answered");
        assert!(!self.over, "{name}: a request after the connection's last response");
        let mut words = head.start.split(' ');
        let (method, path, version) =
            (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next().unwrap_or(""));
        assert!(
            version == "HTTP/1.1" && words.next().is_none(),
            "{name}: a malformed request line: {head:?}"
        );
        let id: usize = head
            .field("x-probe")
            .and_then(|id| id.parse().ok())
            .unwrap_or_else(|| panic!("{name}: whose is {head:?}?"));
        let exchange = &plan.exchanges[id];
        self.check_head(head, exchange, method, path);
        let mut record = self.book.record(id);
        assert!(record.head_sent, "{name}: request {id} came before its client sent its head");
        let earlier = record.attempts.len();
        assert!(
            earlier == 0 || exchange.is_idempotent(),
            "{name}: {method} {path} came {} times",
            earlier + 1
        );
        match head.field("early-data") {
            None => assert!(
                record.is_settled || !exchange.is_secure,
                "{name}: {id} came before its client's handshake was over"
            ),
            Some("1") => assert!(record.is_early && exchange.is_safe(), "{name}: {method} {path} is early"),
            Some(other) => panic!("{name}: Early-Data: {other}"),
        }
        record.attempts.push(false);
        if let Some(taken) = self.poison_taken.filter(|_| self.poisoned) {
            assert!(
                peer.now() < taken + UNDER_WAY,
                "{name}: request {id} came though the connection had spoken out of turn"
            );
        }
        record.met_poison |= self.poisoned;
        drop(record);
        self.book.note(peer.now(), format_args!("{name}: begins {method} {path}, attempt {earlier}"));
        let length =
            head.length().unwrap_or_else(|error| panic!("{name}: {error}")).unwrap_or(Length::Known(0));
        self.reader.body(length);
        let out = exchange.answer(earlier).response(exchange, earlier);
        self.current = Some(Current {
            id,
            attempt: earlier,
            body_at: 0,
            whole: false,
            begun: None,
            early: false,
            tunnelled: None,
            out,
            written: 0,
        });
        self.next_read = peer.now();
        if exchange.answer(earlier).when == When::Head {
            self.answer(peer);
        }
    }

    fn check_head(&self, head: &Head, exchange: &Exchange, method: &str, path: &str) {
        let name = &self.name;
        assert_eq!((method, path), (exchange.method, exchange.path.as_str()), "{name}: another request line");
        assert!(
            exchange.broken.is_none_or(|broken| broken.is_in_body()),
            "{name}: {:?} was forwarded",
            exchange.broken
        );
        let upstream = usize::from(exchange.path.starts_with("/y/"));
        let is_second = self.endpoint + 1 == self.book.plan.endpoints.len();
        assert_eq!(upstream, usize::from(is_second), "{name}: {path} has another upstream");
        assert_eq!(head.field("host"), Some("sim.example"), "{name}");
        assert_eq!(head.field("x-forwarded-for"), Some("192.0.2.1"), "{name}");
        assert_eq!(
            head.field("x-forwarded-proto"),
            Some(if exchange.is_secure { "https" } else { "http" }),
            "{name}"
        );
        assert!(head.field("x-request-id").is_some() && head.field("via").is_some(), "{name}: {head:?}");
        assert_eq!(head.field("upgrade"), exchange.tunnel.as_ref().map(|_| "sim"), "{name}");
        for gone in ["x-hop", "keep-alive", "proxy-connection"] {
            assert!(head.field(gone).is_none(), "{name}: {gone} was forwarded");
        }
        let limit = self.book.plan.config.listeners[0].limits.body_bytes;
        if let Ok(Some(Length::Known(length))) = head.length() {
            assert_eq!(length, exchange.body.bytes.len() as u64, "{name}: another length");
            assert!(limit == 0 || length <= limit, "{name}: a body of {length} bytes beyond the limit");
        }
    }

    fn data(&mut self, bytes: &[u8]) {
        let Some(current) = &mut self.current else { panic!("{}: a body of no request", self.name) };
        let exchange = &self.book.plan.exchanges[current.id];
        let end = current.body_at + bytes.len();
        let expected = exchange.body.bytes.get(current.body_at..end);
        assert!(
            expected == Some(bytes),
            "{}: other bytes in the body of {}, {}..{end}",
            self.name,
            current.id,
            current.body_at
        );
        current.body_at = end;
    }

    fn whole(&mut self, peer: &Peer, trailers: &[(String, String)]) {
        let Some(current) = &mut self.current else { panic!("{}: the end of no request", self.name) };
        let (name, id) = (&self.name, current.id);
        let exchange = &self.book.plan.exchanges[id];
        assert_eq!(
            current.body_at,
            exchange.body.bytes.len(),
            "{name}: the body of {id} was cut and looks whole"
        );
        assert!(exchange.broken.is_none(), "{name}: {:?} looks whole", exchange.broken);
        let expected = exchange.body.trailer && exchange.body.framing == super::plan::Framing::Chunked;
        let has_trailer = trailers.iter().any(|(name, value)| {
            name.eq_ignore_ascii_case("x-trailer") && *value == exchange.body.bytes.len().to_string()
        });
        assert_eq!(has_trailer, expected, "{name}: trailers of {id}: {trailers:?}");
        current.whole = true;
        let mut record = self.book.record(id);
        assert!(record.sent, "{name}: request {id} is whole and its client has not sent it whole");
        *record.attempts.last_mut().expect("it began") = true;
        drop(record);
        self.book.note(peer.now(), format_args!("{name}: has {id} whole"));
        if current.early {
            self.current = None;
            self.idle_since = peer.now();
            self.stalls = false;
        } else {
            self.answer(peer);
        }
    }

    /// Begins to answer, unless it has begun.
    fn answer(&mut self, peer: &Peer) {
        if let Some(current) = &mut self.current
            && current.begun.is_none()
        {
            let delay = self.book.plan.exchanges[current.id].answer(current.attempt).delay;
            current.begun = Some(peer.now() + delay);
        }
    }

    fn write(&mut self, peer: &Peer) {
        let Some(current) = &self.current else { return };
        let (exchange, _, pace, trouble) = self.plan(current);
        if let When::Bytes(bytes) = exchange.answer(current.attempt).when
            && current.body_at >= bytes
        {
            self.answer(peer);
        }
        let Some(current) = &mut self.current else { return };
        let Some(begun) = current.begun else { return };
        let now = peer.now();
        let due = begun.max(self.next_write);
        if self.stalls {
            return;
        }
        if now < due {
            return peer.wake_at(due);
        }
        let stop = match trouble {
            Some(Trouble::Stalls(at) | Trouble::Closes(at) | Trouble::Resets(at)) => {
                at.min(current.out.len())
            }
            _ => current.out.len(),
        };
        let mut n = pace.piece.min(stop - current.written);
        if trouble == Some(Trouble::Poison) && current.written + n + POISON.len() >= stop {
            // Right behind the answer: the connection may be another exchange's at once.
            n = stop - current.written;
        }
        self.line.seal(&current.out[current.written..current.written + n]);
        current.written += n;
        if current.written == stop && stop < current.out.len() {
            // On a sealed line, a part of a record may be the last that comes.
            self.line.seal_half(&current.out[stop..=stop]);
        }
        self.line.write(peer, usize::MAX);
        if n > 0 {
            self.next_write = now + pace.pause;
            self.book
                .note(now, format_args!("{}: writes {n} bytes, {} of {stop}", self.name, current.written));
        }
        if current.written < stop {
            return peer.wake_at(self.next_write);
        }
        if let Some(tunnel) = &exchange.tunnel {
            if current.tunnelled.is_none() {
                self.book.note(now, format_args!("{}: switches", self.name));
                current.tunnelled = Some(0);
                current.out = tunnel.down.to_vec();
                current.written = 0;
                peer.wake_at(self.next_write);
            } else if !self.stalls {
                self.stalls = true;
                self.book.note(now, format_args!("{}: ends its side of the tunnel", self.name));
                self.part(peer);
                peer.shutdown_write();
            }
            return;
        }
        let (whole, id) = (current.whole, current.id);
        let is_fine = exchange.answer(current.attempt).can_be_whole(&exchange, current.attempt);
        match trouble {
            Some(Trouble::Stalls(_)) if stop < current.out.len() => self.stalls = true,
            Some(Trouble::Closes(_)) => self.leave(peer, "closes within", id, Peer::close),
            Some(Trouble::Resets(_)) => self.leave(peer, "resets within", id, Peer::reset),
            Some(Trouble::Garbage(_) | Trouble::BadChunk | Trouble::Unasked) if !is_fine => {
                // It waits for the proxy's reaction.
                self.stalls = true;
                self.over = true;
            }
            _ if trouble != Some(Trouble::Truncates)
                && exchange.answer(current.attempt).closes
                && !whole
                && self.book.plan.calm =>
            {
                // A server whose answer is to arrive does the same: a close with unread bytes would reset the
                // connection.
                current.early = true;
                (self.over, self.stalls) = (true, true);
                self.book.note(now, format_args!("{}: half-closes after {id}", self.name));
                self.part(peer);
                peer.shutdown_write();
            }
            Some(Trouble::Truncates) => self.leave(peer, "closes without a word after", id, Peer::close),
            _ if exchange.answer(current.attempt).closes => {
                self.part(peer);
                self.leave(peer, "closes after", id, Peer::close);
            }
            _ => {
                self.poisoned |= trouble == Some(Trouble::Poison);
                self.book.note(now, format_args!("{}: has answered {id}", self.name));
                if whole {
                    self.current = None;
                    self.idle_since = now;
                } else {
                    // The bytes that come now are the rest of this request.
                    current.early = true;
                    self.stalls = true;
                }
            }
        }
    }

    /// The other side has ended, and so have we.
    fn end_tunnel(&mut self, peer: &Peer) {
        let Some(Current { id, tunnelled: Some(at), .. }) = &self.current else { return };
        if !peer.is_ended() || !self.stalls {
            return;
        }
        let tunnel = self.book.plan.exchanges[*id].tunnel.as_ref().expect("a tunnel");
        let whole = *at == tunnel.up.len();
        assert!(
            whole || !self.book.plan.calm || self.book.record(*id).left,
            "{}: tunnel {id} ended at {at}",
            self.name
        );
        self.book.note(peer.now(), format_args!("{}: the tunnel has ended", self.name));
        peer.close();
    }

    fn leave(&mut self, peer: &Peer, how: &str, id: usize, leave: impl FnOnce(&Peer)) {
        self.over = true;
        self.stalls = true;
        self.book.note(peer.now(), format_args!("{}: {how} {id}", self.name));
        leave(peer);
    }
}
