//! A client's side of one connection: sends its requests as planned, and takes only answers that belong to
//! them, in order, once, byte for byte or visibly cut.

use std::time::Duration;

use super::book::Book;
use super::line::Line;
use super::plan::{Answer, Client, Exchange, Fate, Framing, Leave, Pace};
use super::tls::{self, NAME};
use super::wire::{Event, Head, Length, Reader};
use crate::io::simulated::{Peer, Script};
use crate::time::Time;

mod writing;

/// How long a client waits for "100 Continue" before it sends the body all the same.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// An answer that has begun.
struct Current {
    status: u16,
    /// The attempt that the origin answers; `None`: the answer is Sluice's own.
    attempt: Option<usize>,
    body_at: usize,
    closes: bool,
    chunked: bool,
}

struct Connection {
    book: Book,
    number: usize,
    plan: Client,
    line: Line,
    reader: Reader,
    /// The request being sent, its bytes and where its head ends.
    sending: Option<(usize, Vec<u8>, usize)>,
    /// Bytes of it sent.
    at: usize,
    /// Requests begun.
    begun: usize,
    answered: usize,
    current: Option<Current>,
    /// A "100 Continue" came for the exchange whose answer is awaited.
    continued: bool,
    interims: usize,
    waits_until: Option<Time>,
    sent: usize,
    received: usize,
    /// Bytes of the first request that went ahead of the handshake's end, until it is known whether they were
    /// accepted.
    early: usize,
    next_read: Time,
    next_write: Time,
    next_request: Time,
    /// An answer said that the connection closes.
    closing: bool,
    /// All exchanges before were as smooth as they were planned.
    smooth: bool,
    stops_writing: bool,
    stops_reading: bool,
    left: bool,
    done: bool,
    /// Bytes taken and sent of the tunnel that the connection has become.
    tunnelled: Option<(usize, usize)>,
    moved: Time,
    patience: Duration,
    /// When the client checks next whether it has waited for too long.
    looks: Time,
}

pub(super) fn script(book: &Book, number: usize, now: Time) -> Script {
    let plan = book.plan.clients[number].clone();
    let start = Time::default();
    let mut line = match plan.secure {
        Some(secure) => Line::client(book.parties.client(secure.dialect), &tls::name(NAME)),
        None => Line::default(),
    };
    if let Fate::Garbles(at) = plan.fate {
        line.flip(at);
    }
    let mut connection = Connection {
        book: book.clone(),
        number,
        smooth: plan.brisk,
        line,
        reader: Reader::default(),
        sending: None,
        at: 0,
        begun: 0,
        answered: 0,
        current: None,
        continued: false,
        interims: 0,
        waits_until: None,
        sent: 0,
        received: 0,
        early: 0,
        next_read: start,
        next_write: start,
        next_request: start,
        closing: false,
        stops_writing: false,
        stops_reading: false,
        left: false,
        done: false,
        tunnelled: None,
        moved: now,
        patience: book.plan.patience(),
        looks: now,
        plan,
    };
    book.note(now, format_args!("client {number}: connects"));
    book.tally().connected += 1;
    // A client that lags behind its host may find its tunnel idle for too long before it has seen it.
    let plan = &book.plan.clients[number];
    if !plan.brisk || book.plan.lag(plan) > Duration::from_secs(3) {
        plan.exchanges.clone().for_each(|id| book.record(id).left = true);
    }
    Box::new(move |peer| connection.act(peer))
}

impl Connection {
    fn note(&self, peer: &Peer, what: std::fmt::Arguments<'_>) {
        self.book.note(peer.now(), format_args!("client {}: {what}", self.number));
    }

    fn act(&mut self, peer: &Peer) {
        if self.done {
            return;
        }
        self.receive(peer);
        if !self.done && self.tunnelled.is_some() {
            self.send_tunnel(peer);
        } else if !self.done {
            self.send(peer);
        }
        if !self.done {
            self.leave_when_done(peer);
        }
        if !self.done {
            let waited = peer.now().since(self.moved);
            assert!(
                waited < self.patience,
                "client {} waits for {waited:?}: {:?}",
                self.number,
                self.awaited().map(|e| &e.path)
            );
            if peer.now() >= self.looks {
                self.looks = self.moved + self.patience;
                peer.wake_at(self.looks);
            }
        }
    }

    /// Whether another exchange's bytes may have come on its upstream connection: no proxy can tell them
    /// apart then.
    fn is_strange(&self, exchange: &Exchange) -> bool {
        let record = self.book.record(exchange.id);
        record.met_poison || (record.attempts.is_empty() && self.book.plan.has_poison())
    }

    /// The exchange whose answer comes next.
    fn awaited(&self) -> Option<&Exchange> {
        self.book.plan.exchanges[self.plan.exchanges.clone()].get(self.answered)
    }

    fn receive(&mut self, peer: &Peer) {
        if let Fate::AtReceived(at, leave) = self.plan.fate
            && self.received >= at
            && !self.left
        {
            self.leave(peer, leave);
            if self.done {
                return;
            }
        }
        let now = peer.now();
        if !self.stops_reading && now >= self.next_read {
            let Pace { piece, pause } = self.plan.reads;
            let room = if let (Fate::AtReceived(at, _), false) = (self.plan.fate, self.left) {
                at - self.received
            } else {
                usize::MAX
            };
            let bytes = peer.read_at_most(piece.min(room));
            if !bytes.is_empty() {
                self.received += bytes.len();
                self.next_read = now + pause;
                self.moved = now;
                self.note(peer, format_args!("reads {} bytes", bytes.len()));
                match self.line.open(&bytes) {
                    Ok(bytes) => self.take(peer, &bytes),
                    Err(error) => return self.fail(peer, &error),
                }
            }
        }
        if self.next_read > now {
            peer.wake_at(self.next_read);
        }
        // A client that reads nothing sees only that its connection is gone.
        if peer.is_reset() || peer.is_ended() || (self.stops_reading && peer.is_closed()) {
            self.ended(peer);
        }
    }

    fn take(&mut self, peer: &Peer, bytes: &[u8]) {
        self.book.tally().read += bytes.len() as u64;
        if self.tunnelled.is_some() {
            self.take_tunnel(bytes);
        } else {
            self.reader.feed(bytes);
            self.take_events(peer);
        }
    }

    fn take_events(&mut self, peer: &Peer) {
        loop {
            match self.reader.next() {
                Ok(Some(Event::Head(head))) => self.head(peer, &head),
                Ok(Some(Event::Data(bytes))) => self.data(&bytes),
                Ok(Some(Event::End(trailers))) => self.whole(peer, &trailers),
                Ok(None) => break,
                Err(error) => panic!("client {}: a malformed response: {error}", self.number),
            }
        }
    }

    fn head(&mut self, peer: &Peer, head: &Head) {
        let number = self.number;
        assert!(!self.closing, "client {number}: {head:?} after the connection's last response");
        let book = self.book.clone();
        let Some(exchange) = book.plan.exchanges[self.plan.exchanges.clone()].get(self.answered) else {
            panic!("client {number}: {head:?} for no request");
        };
        assert!(self.answered < self.begun, "client {number}: {head:?} before its request");
        let status: u16 = head
            .start
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .unwrap_or_default();
        assert!((100..600).contains(&status), "client {number}: {head:?}");
        if status < 200 {
            return self.interim(peer, head, status, exchange);
        }
        let attempt = self.whose(head, status, exchange);
        let length = match head.length().unwrap_or_else(|error| panic!("client {number}: {error}")) {
            _ if exchange.method == "HEAD" || matches!(status, 204 | 304) => Length::Known(0),
            Some(length) => length,
            None => Length::UntilClose,
        };
        assert!(length != Length::Chunked || !exchange.is_http10, "client {number}: chunks for HTTP/1.0");
        assert!(
            length != Length::UntilClose || exchange.is_http10,
            "client {number}: neither length nor chunks: {head:?}"
        );
        let closes = head.lists("connection", "close")
            || (exchange.is_http10 && !head.lists("connection", "keep-alive"));
        assert!(
            length != Length::UntilClose || closes,
            "client {number}: a body until close, kept alive: {head:?}"
        );
        self.check_close(exchange, attempt, closes);
        self.note(peer, format_args!("{status} for {}, {length:?}", exchange.id));
        self.current =
            Some(Current { status, attempt, body_at: 0, closes, chunked: length == Length::Chunked });
        self.reader.body(length);
    }

    fn interim(&mut self, peer: &Peer, head: &Head, status: u16, exchange: &Exchange) {
        let number = self.number;
        assert!(!exchange.is_http10, "client {number}: {status} for HTTP/1.0");
        self.book.tally().interims += 1;
        self.note(peer, format_args!("{status} for {}", exchange.id));
        if status == 101 {
            assert!(
                exchange.tunnel.is_some() && head.field("upgrade") == Some("sim"),
                "client {number}: {head:?}"
            );
            self.book.record(exchange.id).answered = Some(101);
            self.answered += 1;
            self.tunnelled = Some((0, 0));
            let rest = self.reader.take_rest();
            return self.take_tunnel(&rest);
        }
        if status == 100 {
            assert!(
                exchange.expects && !self.continued,
                "client {number}: 100 Continue that nobody waits for"
            );
            self.continued = true;
        } else {
            assert_eq!(
                head.field("x-exchange"),
                Some(exchange.id.to_string().as_str()),
                "client {number}: another's {status}"
            );
            self.interims += 1;
            let most: usize = exchange.answers.iter().map(|answer| answer.interims.len()).sum();
            assert!(self.interims <= most, "client {number}: more interim responses than there were");
        }
        self.reader.body(Length::Known(0));
        assert!(matches!(self.reader.next(), Ok(Some(Event::End(_)))));
    }

    /// The attempt whose answer this is; `None`: Sluice's own, which must have its reason.
    fn whose(&self, head: &Head, status: u16, exchange: &Exchange) -> Option<usize> {
        let number = self.number;
        let attempts = self.book.record(exchange.id).attempts.len();
        match head.field("x-exchange") {
            Some("poison") => {
                assert!(
                    self.is_strange(exchange),
                    "client {number}: an answer to nobody's request came for {}",
                    exchange.id
                );
                Some(usize::MAX)
            }
            Some(id) => {
                let answers_another = self.is_strange(exchange) && id != exchange.id.to_string();
                assert!(
                    answers_another || id == exchange.id.to_string(),
                    "client {number}: the answer to {id} came for {}",
                    exchange.id
                );
                if answers_another {
                    return Some(usize::MAX);
                }
                let attempt = head
                    .field("x-attempt")
                    .and_then(|attempt| attempt.parse::<usize>().ok())
                    .expect("an attempt");
                assert!(attempt < attempts, "client {number}: an attempt that was not made");
                let answer = exchange.answer(attempt);
                assert_eq!(status, answer.status, "client {number}: another status for {}", exchange.id);
                assert!(head.field("via").is_some(), "client {number}: {head:?}");
                assert!(head.field("x-hop").is_none(), "client {number}: X-Hop was forwarded");
                Some(attempt)
            }
            None => {
                if exchange.path.starts_with("/moved/") && status == 308 {
                    let to = format!("https://sim.example{}", exchange.path);
                    assert_eq!(head.field("location"), Some(to.as_str()), "client {number}");
                } else if status >= 400 {
                    assert!(head.field("x-request-id").is_some(), "client {number}: {head:?}");
                }
                let allowed = self.book.plan.refusals(
                    exchange,
                    !self.plan.brisk || self.left,
                    self.is_strange(exchange),
                );
                assert!(
                    allowed.contains(&status),
                    "client {number}: {status} for {}, not one of {allowed:?}",
                    exchange.path
                );
                None
            }
        }
    }

    /// Checks that no connection is closed without need.
    fn check_close(&self, exchange: &Exchange, attempt: Option<usize>, closes: bool) {
        let limit = self.book.plan.config.listeners[0].limits.requests_per_connection;
        let limited = limit > 0 && self.answered as u64 + 1 >= limit;
        let Some(answer) =
            attempt.filter(|&attempt| attempt != usize::MAX).map(|attempt| exchange.answer(attempt))
        else {
            return;
        };
        let early = answer.when != super::plan::When::Whole && exchange.body.framing != Framing::None;
        let until_close =
            exchange.is_http10 && matches!(answer.body.framing, Framing::UntilClose | Framing::Chunked);
        let drains = self.book.plan.drains();
        let must = exchange.asks_for_close() || limited;
        assert!(!must || closes, "client {}: kept alive against its will", self.number);
        assert!(
            closes == must || early || until_close || drains,
            "client {}: closed without need after {}",
            self.number,
            exchange.id
        );
    }

    fn answer<'a>(&self, exchange: &'a Exchange, current: &Current) -> Option<&'a Answer> {
        current.attempt.filter(|&attempt| attempt != usize::MAX).map(|attempt| exchange.answer(attempt))
    }

    fn data(&mut self, bytes: &[u8]) {
        let book = self.book.clone();
        let exchange = &book.plan.exchanges[self.plan.exchanges.start + self.answered];
        let Some(mut current) = self.current.take() else {
            panic!("client {}: a body of no response", self.number)
        };
        let end = current.body_at + bytes.len();
        if let Some(answer) = self.answer(exchange, &current) {
            let expected = answer.body.bytes.get(current.body_at..end);
            assert!(
                expected == Some(bytes),
                "client {}: other bytes in the answer to {}, {}..{end}",
                self.number,
                exchange.id,
                current.body_at
            );
        }
        current.body_at = end;
        self.current = Some(current);
    }

    fn whole(&mut self, peer: &Peer, trailers: &[(String, String)]) {
        let book = self.book.clone();
        let number = self.number;
        let exchange = &book.plan.exchanges[self.plan.exchanges.start + self.answered];
        let Some(current) = self.current.take() else { panic!("client {number}: the end of no response") };
        if let Some(answer) = self.answer(exchange, &current) {
            let expected = if answer.has_body(exchange) { answer.body.bytes.len() } else { 0 };
            assert_eq!(
                current.body_at, expected,
                "client {number}: the answer to {} was cut and looks whole",
                exchange.id
            );
            let attempt = current.attempt.unwrap_or_default();
            assert!(
                answer.can_be_whole(exchange, attempt),
                "client {number}: a broken answer to {} looks whole",
                exchange.id
            );
            let expects_trailer = answer.body.trailer
                && answer.body.framing == Framing::Chunked
                && current.chunked
                && answer.has_body(exchange);
            let has_trailer = trailers.iter().any(|(name, value)| {
                name.eq_ignore_ascii_case("x-trailer") && *value == answer.body.bytes.len().to_string()
            });
            assert_eq!(
                has_trailer, expects_trailer,
                "client {number}: trailers of {}: {trailers:?}",
                exchange.id
            );
        }
        let earlier = book.record(exchange.id).answered.replace(current.status);
        assert!(earlier.is_none(), "client {number}: {} was answered twice", exchange.id);
        book.tally().responses[usize::from(current.status / 100 - 2)] += 1;
        self.note(peer, format_args!("has the answer to {} whole", exchange.id));
        self.smooth &= book.plan.is_smooth(exchange);
        self.closing = current.closes;
        self.answered += 1;
        (self.continued, self.interims) = (false, 0);
        self.next_request = peer.now() + self.plan.think;
        // The keep-alive time may be over before the next one comes.
        self.smooth &= self.plan.think + book.plan.lag(&self.plan) < book.plan.keep_alive().mul_f64(0.7);
    }

    fn tunnel(&self) -> &super::plan::Tunnel {
        let exchange = &self.book.plan.exchanges[self.plan.exchanges.start + self.answered - 1];
        exchange.tunnel.as_ref().expect("a tunnel")
    }

    fn take_tunnel(&mut self, bytes: &[u8]) {
        let Some((at, sent)) = self.tunnelled else { return };
        let end = at + bytes.len();
        assert!(
            self.tunnel().down.get(at..end) == Some(bytes),
            "client {}: other bytes down the tunnel, {at}..{end}",
            self.number
        );
        self.tunnelled = Some((end, sent));
    }

    fn send_tunnel(&mut self, peer: &Peer) {
        let Some((taken, at)) = self.tunnelled else { return };
        if self.line.is_unwritten() {
            return self.write(peer);
        }
        if self.stops_writing {
            return;
        }
        if peer.now() < self.next_write {
            return peer.wake_at(self.next_write);
        }
        let up = std::rc::Rc::clone(&self.tunnel().up);
        let n = self.plan.writes.piece.max(up.len() / 40 + 1).min(up.len() - at);
        self.line.seal(&up[at..at + n]);
        self.tunnelled = Some((taken, at + n));
        self.next_write = peer.now();
        self.note(peer, format_args!("sends {n} bytes up the tunnel, {} of {}", at + n, up.len()));
        if at + n == up.len() {
            self.stops_writing = true;
            self.end();
        }
        self.write(peer);
        self.moved = peer.now();
        self.next_write = peer.now() + self.plan.writes.pause;
        peer.wake_at(self.next_write);
    }

    /// The proxy's direction is over.
    fn ended(&mut self, peer: &Peer) {
        let reset = peer.is_reset();
        if let Some((taken, _)) = self.tunnelled {
            if !reset && !self.stops_writing {
                // The client's own direction goes on.
                return;
            }
            let whole = !reset && taken == self.tunnel().down.len();
            assert!(
                reset || self.left || self.line.is_parted(),
                "client {}: the tunnel's end was not announced",
                self.number
            );
            assert!(
                whole || self.left || !self.smooth || !self.book.plan.calm,
                "client {}: the tunnel ended at {taken}",
                self.number
            );
            self.note(peer, format_args!("the tunnel has ended, reset: {reset}"));
            return self.finish(peer);
        }
        self.note(peer, format_args!("{}", if reset { "was reset" } else { "sees the end" }));
        let book = self.book.clone();
        let is_announced = self.line.is_parted() || !self.line.is_ready() || self.left;
        assert!(
            reset || is_announced || !peer.is_ended(),
            "client {}: an end that nobody announced",
            self.number
        );
        if self.reader.ends_with_connection()
            && peer.is_ended()
            && self.current.is_some()
            && self.line.is_parted()
        {
            self.whole(peer, &[]);
        }
        let cut = self.current.is_some() || self.reader.is_within();
        let left = self.plan.exchanges.len() - self.answered;
        if left > 0 && !self.closing && !self.left {
            let exchange = &book.plan.exchanges[self.plan.exchanges.start + self.answered];
            // A body that ends with the connection is cut by a reset, which also takes the bytes queued
            // before it.
            let begun =
                &book.plan.exchanges[self.plan.exchanges.start..self.plan.exchanges.start + self.begun];
            let cut_later = reset && begun.iter().any(|later| later.is_http10 && !book.plan.is_smooth(later));
            let excused = cut_later
                || !self.smooth
                || !book.plan.is_smooth(exchange)
                || self.is_strange(exchange)
                || !book.plan.calm;
            assert!(
                excused,
                "client {}: its connection ended without an answer to {}",
                self.number, exchange.id
            );
        }
        self.book.tally().cut += u64::from(cut);
        self.left_unanswered();
        self.finish(peer);
    }

    fn left_unanswered(&self) {
        self.book.tally().unanswered += (self.plan.exchanges.len() - self.answered) as u64;
    }

    fn finish(&mut self, peer: &Peer) {
        self.done = true;
        self.book.tally().ended += 1;
        peer.close();
    }

    fn send(&mut self, peer: &Peer) {
        let now = peer.now();
        if self.line.is_unwritten() {
            return self.write(peer);
        }
        if self.stops_writing || (self.closing && !self.plan.stubborn) {
            return;
        }
        if !self.line.is_ready() {
            if self.plan.secure.is_some_and(|secure| secure.is_early) && self.begun == 0 {
                self.send_early(peer);
            }
            return self.check_fate(peer);
        }
        self.note_settled();
        if std::mem::take(&mut self.early) > 0 && !self.line.is_early_accepted() {
            self.say_again(peer);
        }
        if self.sending.is_none() && !self.begin(peer) {
            return self.check_fate(peer);
        }
        self.check_fate(peer);
        if self.stops_writing || self.done {
            return;
        }
        if now < self.next_write {
            return peer.wake_at(self.next_write);
        }
        let Some((id, bytes, head)) = &self.sending else { return };
        let (id, head) = (*id, *head);
        let exchange = &self.book.plan.exchanges[id];
        let mut stop = bytes.len();
        if exchange.expects && self.at < stop {
            let is_awaited = self.answered + self.plan.exchanges.start == id;
            let answered = ((self.continued || self.current.is_some()) && is_awaited)
                || self.answered + self.plan.exchanges.start > id;
            if self.at >= head && !answered {
                let until = *self.waits_until.get_or_insert(now + CONTINUE_WAIT);
                if now < until {
                    return peer.wake_at(until);
                }
            }
            if self.at < head {
                stop = head;
            }
        }
        if let (Fate::AtSent(at, _), false) = (self.plan.fate, self.line.is_secure()) {
            stop = stop.min(self.at + (at - self.sent.min(at)));
        }
        let Pace { piece, .. } = self.plan.writes;
        let n = piece.min(stop - self.at);
        let piece = bytes[self.at..self.at + n].to_vec();
        let total = bytes.len();
        self.at += n;
        let mut record = self.book.record(id);
        record.head_sent |= self.at >= head;
        record.sent |= self.at == total;
        drop(record);
        let is_tunnel = exchange.tunnel.is_some();
        if n > 0 {
            self.line.seal(&piece);
            self.note(peer, format_args!("sends {n} bytes of {id}, {} of {total}", self.at));
        }
        if self.at == total {
            self.sending = None;
            if self.begun == self.plan.exchanges.len() && self.plan.fate == Fate::HalfCloses && !is_tunnel {
                self.note(peer, format_args!("half-closes"));
                self.stops_writing = true;
                self.end();
                self.hope();
            }
        }
        self.write(peer);
        self.check_fate(peer);
        if self.next_write > now {
            peer.wake_at(self.next_write);
        }
    }

    /// It has ended its side, and still wants its answers. It gets those that come before its time is over.
    fn hope(&mut self) {
        if self.book.plan.config.listeners[0].half_close.is_some() {
            self.smooth = false;
            self.plan.exchanges.clone().for_each(|id| self.book.record(id).left = true);
        }
    }

    /// Takes the next request in hand, if it is its time.
    fn begin(&mut self, peer: &Peer) -> bool {
        if self.begun == self.plan.exchanges.len()
            || self.begun - self.answered.min(self.begun) >= self.plan.depth
        {
            return false;
        }
        let before =
            &self.book.plan.exchanges[self.plan.exchanges.start..self.plan.exchanges.start + self.begun];
        if self.plan.brisk && before.last().is_some_and(Exchange::asks_for_close) {
            // The client promised to send nothing more, and its connection may be closed at once.
            return false;
        }
        if peer.now() < self.next_request {
            peer.wake_at(self.next_request);
            return false;
        }
        let id = self.plan.exchanges.start + self.begun;
        let exchange = &self.book.plan.exchanges[id];
        let (bytes, head) = exchange.request();
        self.note(peer, format_args!("begins {id}: {} {}", exchange.method, exchange.path));
        self.sending = Some((id, bytes, head));
        self.at = 0;
        self.begun += 1;
        self.waits_until = None;
        true
    }

    fn check_fate(&mut self, peer: &Peer) {
        if let Fate::AtSent(at, leave) = self.plan.fate
            && self.sent >= at
            && !self.left
        {
            self.leave(peer, leave);
        }
    }

    fn left(&mut self) {
        self.left = true;
        for id in self.plan.exchanges.clone() {
            self.book.record(id).left = true;
        }
    }

    fn leave(&mut self, peer: &Peer, leave: Leave) {
        self.left();
        self.note(peer, format_args!("{leave:?} at {} sent, {} received", self.sent, self.received));
        match leave {
            Leave::Close => self.finish(peer),
            Leave::Reset => {
                peer.reset();
                self.finish(peer);
            }
            Leave::Vanish => {
                peer.vanish();
                self.finish(peer);
            }
            Leave::Fin => {
                self.stops_writing = true;
                self.line.cut();
                peer.shutdown_write();
            }
            Leave::Stall => {
                self.stops_writing = true;
                self.line.cut();
                self.stops_reading |= matches!(self.plan.fate, Fate::AtReceived(..));
            }
        }
    }

    fn leave_when_done(&mut self, peer: &Peer) {
        if self.answered == self.plan.exchanges.len()
            && self.plan.fate == Fate::ClosesWhenDone
            && self.sending.is_none()
            && self.tunnelled.is_none()
            && !self.line.is_unwritten()
        {
            self.note(peer, format_args!("closes"));
            self.left = true;
            if self.plan.secure.is_some_and(|secure| secure.is_polite) {
                self.line.part();
                self.book.tally().written += self.line.write(peer, usize::MAX) as u64;
            }
            self.finish(peer);
        }
    }
}
