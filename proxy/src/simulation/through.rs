//! Both ends of connections whose bytes are passed through: connections of a TCP listener, and TLS of which
//! Sluice sees no more than the hello. Each end takes only the bytes that the other is to send, until the end
//! of its direction or visibly cut.

use std::time::Duration;

use rustls::{AlertDescription, Error};

use super::book::Book;
use super::line::Line;
use super::plan::{Fate, Leave, Pace, Through, Way};
use super::tls::{self, ADDRESS, NAME, OTHER};
use crate::io::simulated::{Peer, Script};
use crate::time::Time;

struct Client {
    book: Book,
    number: usize,
    plan: Through,
    line: Line,
    /// Bytes of its part that were handed to its line.
    said: usize,
    taken: usize,
    /// Bytes on the wire.
    sent: usize,
    received: usize,
    next_read: Time,
    next_write: Time,
    has_ended: bool,
    left: bool,
    stalls: bool,
    done: bool,
    moved: Time,
}

pub(super) fn client(book: &Book, number: usize, now: Time) -> Script {
    let plan = book.plan.throughs[number].clone();
    let name = match plan.way {
        Way::Unrouted(_, true) => tls::name(OTHER),
        Way::Unrouted(_, false) => tls::name(ADDRESS),
        _ => tls::name(NAME),
    };
    let config = plan.way.dialect().map(|dialect| book.parties.client(dialect));
    let mut line = config.map_or_else(Line::default, |config| Line::client(config, &name));
    if let Fate::Garbles(at) = plan.fate {
        line.flip(at);
    }
    book.note(now, format_args!("through {number}: connects, {:?}", plan.way));
    book.tally().connected += 1;
    book.passage(number).left = !plan.brisk;
    let mut client = Client {
        book: book.clone(),
        number,
        left: !plan.brisk,
        plan,
        line,
        said: 0,
        taken: 0,
        sent: 0,
        received: 0,
        next_read: Time::default(),
        next_write: Time::default(),
        has_ended: false,
        stalls: false,
        done: false,
        moved: now,
    };
    Box::new(move |peer| client.act(peer))
}

impl Client {
    fn note(&self, peer: &Peer, what: std::fmt::Arguments<'_>) {
        self.book.note(peer.now(), format_args!("through {}: {what}", self.number));
    }

    fn act(&mut self, peer: &Peer) {
        if !self.done {
            self.read(peer);
        }
        if !self.done && !self.stalls {
            self.write(peer);
        }
        if !self.done {
            let (waited, patience) =
                (peer.now().since(self.moved), self.book.plan.patience() + Duration::from_secs(20));
            assert!(waited < patience, "through {} waits for {waited:?}", self.number);
            peer.wake_at(self.moved + patience);
        }
    }

    fn read(&mut self, peer: &Peer) {
        let now = peer.now();
        let mut room = usize::MAX;
        if let (Fate::AtReceived(at, leave), false) = (self.plan.fate, self.has_left()) {
            room = at - self.received;
            if room == 0 {
                self.leave(peer, leave);
            }
        }
        if !self.stalls && !self.done && now >= self.next_read {
            let bytes = peer.read_at_most(self.plan.reads.piece.min(room));
            if !bytes.is_empty() {
                self.received += bytes.len();
                self.next_read = now + self.plan.reads.pause;
                self.moved = now;
                self.note(peer, format_args!("reads {} bytes", bytes.len()));
                match self.line.open(&bytes) {
                    Ok(bytes) => self.take(&bytes),
                    Err(error) => return self.fail(peer, &error),
                }
            }
        }
        peer.wake_at(self.next_read);
        if !self.done && (peer.is_reset() || peer.is_ended() || (self.stalls && peer.is_closed())) {
            self.ended(peer);
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let end = self.taken + bytes.len();
        assert!(
            self.plan.down.get(self.taken..end) == Some(bytes),
            "through {}: other bytes, ..{end}",
            self.number
        );
        self.taken = end;
        self.book.tally().read += bytes.len() as u64;
    }

    fn fail(&mut self, peer: &Peer, error: &Error) {
        self.note(peer, format_args!("its TLS broke: {error}"));
        let is_refused = *error == Error::AlertReceived(AlertDescription::UnrecognisedName)
            && !self.book.plan.leads(self.plan.way);
        assert!(is_refused || self.left, "through {}: its TLS broke: {error}", self.number);
        self.finish(peer);
    }

    /// The other direction is over.
    fn ended(&mut self, peer: &Peer) {
        // An endpoint that may get garbage does not announce its end.
        let is_parted = self.line.is_parted() || matches!(self.plan.fate, Fate::Garbles(_));
        let is_cut = peer.is_reset() || !is_parted || self.taken < self.plan.down.len();
        let is_excused = self.left || !self.book.plan.calm || !self.book.plan.leads(self.plan.way);
        assert!(!is_cut || is_excused, "through {}: cut at {}", self.number, self.taken);
        // A client whose hello was garbled may never get to send its bytes.
        if !is_cut && !self.has_ended && !self.stalls && self.line.is_ready() {
            return;
        }
        self.note(peer, format_args!("has ended, cut: {is_cut}"));
        self.finish(peer);
    }

    fn finish(&mut self, peer: &Peer) {
        self.done = true;
        self.book.tally().ended += 1;
        peer.close();
    }

    fn write(&mut self, peer: &Peer) {
        let now = peer.now();
        if now < self.next_write {
            return peer.wake_at(self.next_write);
        }
        let Pace { piece, pause } = self.plan.writes;
        if !self.line.is_unwritten() && self.line.is_ready() && !self.has_ended {
            let up = &self.plan.up;
            let n = piece.min(up.len() - self.said);
            self.line.seal(&up[self.said..self.said + n]);
            self.said += n;
            if self.said == up.len() {
                self.note(peer, format_args!("ends its side"));
                self.has_ended = true;
                self.line.part();
                self.line.end();
            }
        }
        let mut most = piece + 64;
        if let (Fate::AtSent(at, _), false) = (self.plan.fate, self.has_left()) {
            most = most.min(at - self.sent);
        }
        let n = self.line.write(peer, most);
        if n > 0 {
            self.sent += n;
            self.book.tally().written += n as u64;
            self.moved = now;
            self.next_write = now + pause;
            self.note(peer, format_args!("sends {n} bytes, {}", self.sent));
        }
        if self.line.is_garbled() {
            self.left = true;
            self.book.passage(self.number).left = true;
        }
        match self.plan.fate {
            Fate::AtSent(at, leave) if self.sent == at && !self.has_left() => self.leave(peer, leave),
            _ => peer.wake_at(self.next_write),
        }
    }

    /// Whether it has met its fate.
    fn has_left(&self) -> bool {
        self.stalls || self.done
    }

    fn leave(&mut self, peer: &Peer, leave: Leave) {
        self.note(peer, format_args!("{leave:?} at {} sent, {} received", self.sent, self.received));
        self.left = true;
        self.book.passage(self.number).left = true;
        self.stalls = true;
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
            Leave::Fin => peer.shutdown_write(),
            Leave::Stall => {}
        }
    }
}

struct Origin {
    book: Book,
    endpoint: u8,
    line: Line,
    /// The first bytes, until it is known whose they are.
    first: Vec<u8>,
    number: Option<usize>,
    taken: usize,
    said: usize,
    next_write: Time,
    has_ended: bool,
}

pub(super) fn origin(book: &Book, endpoint: u8) -> Script {
    let is_secure = endpoint != Way::Tcp.endpoint();
    let line = if is_secure { Line::server(book.parties.origin(true)) } else { Line::default() };
    let mut origin = Origin {
        book: book.clone(),
        endpoint,
        line,
        first: Vec::new(),
        number: None,
        taken: 0,
        said: 0,
        next_write: Time::default(),
        has_ended: false,
    };
    Box::new(move |peer| origin.act(peer))
}

impl Origin {
    fn act(&mut self, peer: &Peer) {
        let bytes = peer.read();
        match self.line.open(&bytes) {
            Ok(bytes) => self.take(&bytes),
            Err(error) => {
                let somebody_left =
                    (0..self.book.plan.throughs.len()).any(|number| self.book.passage(number).left);
                assert!(somebody_left, "endpoint {}: its TLS broke: {error}", self.endpoint);
                self.line.write(peer, usize::MAX);
                return peer.close();
            }
        }
        self.write(peer);
        if !peer.is_ended() || peer.is_reset() {
            return;
        }
        let Some(number) = self.number else { return peer.close() };
        let passage = self.book.passage(number).clone();
        let is_whole = self.taken == self.book.plan.throughs[number].up.len() && self.line.is_parted();
        assert!(
            is_whole || passage.left || !self.book.plan.calm,
            "endpoint {}: {number} was cut",
            self.endpoint
        );
        if self.has_ended || !is_whole {
            self.book.note(peer.now(), format_args!("endpoint {}: {number} has ended", self.endpoint));
            peer.close();
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.first.extend_from_slice(bytes);
        let Some(&number) = self.first.first_chunk() else { return };
        let bytes =
            if self.number.is_none() { std::mem::take(&mut self.first) } else { self.first.split_off(4) };
        let number = u32::from_be_bytes(number) as usize;
        if self.number.is_none() {
            let plan = self.book.plan.throughs.get(number);
            let endpoint = plan.map(|plan| plan.way.endpoint());
            assert_eq!(endpoint, Some(self.endpoint), "{number} came to endpoint {}", self.endpoint);
            let has_come = std::mem::replace(&mut self.book.passage(number).has_come, true);
            assert!(!has_come, "endpoint {}: {number} came twice", self.endpoint);
            self.number = Some(number);
            self.first = bytes[..4].to_vec();
        }
        let (up, end) = (&self.book.plan.throughs[number].up, self.taken + bytes.len());
        assert!(
            up.get(self.taken..end) == Some(&bytes[..]),
            "endpoint {}: other bytes of {number}, ..{end}",
            self.endpoint
        );
        self.taken = end;
    }

    fn write(&mut self, peer: &Peer) {
        self.line.write(peer, usize::MAX);
        let Some(number) = self.number else { return };
        if self.has_ended {
            return;
        }
        if peer.now() < self.next_write {
            return peer.wake_at(self.next_write);
        }
        let plan = &self.book.plan.throughs[number];
        let n = plan.answers.piece.min(plan.down.len() - self.said);
        self.line.seal(&plan.down[self.said..self.said + n]);
        self.said += n;
        if self.said == plan.down.len() {
            self.has_ended = true;
            // rustls asserts that it sends no alert behind the end, which garbage would make it do.
            if !matches!(plan.fate, Fate::Garbles(_)) {
                self.line.part();
            }
            self.line.end();
        }
        self.line.write(peer, usize::MAX);
        self.next_write = peer.now() + plan.answers.pause;
        peer.wake_at(self.next_write);
    }
}
