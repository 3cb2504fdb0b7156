//! Streams that carry TLS: records are opened and sealed between the engine's queues and the session's. Part
//! of a record waits in the inbound queue, counted like all received bytes. Opened or sealed bytes count for
//! the stream that received them. They count against the budget too, or keep the buffers they came from.

use std::collections::vec_deque;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::queue::Taken;
use super::{Fin, Inner, List, Phase, Queue, ReceiveOp, Spares, Stream, StreamError, StreamState};
use crate::io::Chunk;
use crate::io::buffers::{Account, BufferPool};
use crate::io::chunk::Hold;
use crate::time::Time;
use crate::tls::agreed::Agreed;
use crate::tls::handshake::{self, Established, Failure, Handshake, Progress};
use crate::tls::records::{HEADER_BYTES, Opened, Records, Sealed, Violation};

/// The largest record with its header. A stream may always have as much outstanding, or a record would never
/// be whole.
pub(in crate::io) const RECORD_BYTES_MAX: usize = HEADER_BYTES + (1 << 14) + 2048;
/// Opened and sealed bytes below this are not counted: an idle connection costs more.
const COUNTED_BYTES: usize = 2048;
/// Bytes that may be opened behind others that wait for the session, to find the peer's close_notify. Few,
/// since small records are not counted.
const AHEAD_BYTES: usize = 4096;

/// The TLS state of a stream beside its queues, while it carries records.
pub(in crate::io) struct Secure {
    layer: Layer,
    /// Opened, and not taken yet.
    plain: Queue,
    /// The peer said that it sends nothing more.
    is_ended: bool,
    /// We said so.
    is_closed: bool,
    /// An end without that is a truncation: nothing else says where the peer's message ends.
    must_end: bool,
    /// The agreement that the handshake handed over; sessions ask the stream for it.
    agreed: Agreed,
}

/// The layer that opens and seals.
enum Layer {
    Records(Box<Records>),
    /// The client asks already, and the handshake goes on beside it.
    Early(Box<Handshake>),
}

/// A handshake's failure as a violation: the client's alert, our alert, or none sent.
fn violation(failure: &Failure) -> Violation {
    match failure {
        Failure::Alert(description) => Violation::Alert(*description),
        failure => failure.sent().map_or(Violation::Unsaid, |alert| Violation::Ours(alert.number())),
    }
}

impl Secure {
    fn new(layer: Layer, agreed: Agreed, must_end: bool) -> Self {
        Self { layer, plain: Queue::default(), is_ended: false, is_closed: false, must_end, agreed }
    }

    /// Opens records until there is something for the session, `ahead` bytes at least, or until more has to
    /// come. Bytes to be sent go to `out`.
    fn pump(
        &mut self,
        ahead: usize,
        inbound: &mut Queue,
        out: &mut Vec<u8>,
        spares: &Spares,
        pool: &Rc<BufferPool>,
        account: Account,
    ) -> Result<(), StreamError> {
        if let Layer::Early(handshake) = &mut self.layer {
            let progress = go_on(handshake, inbound, out);
            let Some(established) = progress.map_err(StreamError::Tls)? else {
                // No more at a time than goes uncounted.
                let early =
                    if self.plain.is_empty() { handshake.take_early(COUNTED_BYTES) } else { Vec::new() };
                if !early.is_empty() {
                    self.plain.push_back(Chunk::from_vec(early), spares);
                }
                return Ok(());
            };
            self.layer = Layer::Records(established.records);
            self.admit(established.early, spares, pool, account)?;
        }
        let Layer::Records(records) = &mut self.layer else { return Ok(()) };
        while (self.plain.is_empty() || self.plain.bytes() < ahead) && !self.is_ended {
            let Some(header) = inbound.peek() else { break };
            let length = records.length(header, out).map_err(StreamError::Tls)?;
            let keeps = !pool.has_room(length, pool.budget_reserve());
            let Some(record) = inbound.take(length, keeps) else { break };
            let (opened, sources) = match record {
                Taken::Piece(chunk) => {
                    (records.open(Sealed::Shared(&chunk), out), if keeps { vec![chunk] } else { Vec::new() })
                }
                Taken::Joined(bytes, sources) => (records.open(Sealed::Own(bytes), out), sources),
            };
            match opened.map_err(StreamError::Tls)? {
                Opened::Data(bytes, at) => {
                    let is_counted = at.len() >= COUNTED_BYTES;
                    let mut chunk = if is_counted {
                        pool.made_of_all(sources, bytes, account)
                    } else {
                        Chunk::from_vec(bytes)
                    };
                    chunk.truncate(at.end);
                    chunk.advance(at.start);
                    self.plain.push_back(chunk, spares);
                }
                Opened::Nothing => {}
                // Bytes that come after the end are dropped.
                Opened::End => {
                    self.is_ended = true;
                    inbound.clear();
                }
            }
        }
        Ok(())
    }

    /// Early data was let in so that its handshake could end, however much the stream held. From now on it
    /// counts like everything else.
    fn admit(
        &mut self,
        early: Vec<u8>,
        spares: &Spares,
        pool: &Rc<BufferPool>,
        account: Account,
    ) -> Result<(), StreamError> {
        if early.len() >= COUNTED_BYTES {
            let charge = pool.charge_for(early.len(), Some(account), 0).ok_or(StreamError::Evicted)?;
            self.plain.push_back(Chunk::from_copy(early, Hold::Charge(charge)), spares);
        } else if !early.is_empty() {
            self.plain.push_back(Chunk::from_vec(early), spares);
        }
        Ok(())
    }

    /// How reading ended, when the connection did with these bytes left.
    pub(in crate::io) fn end(&self, inbound: &Queue) -> Result<(), StreamError> {
        let is_whole = self.is_ended || (inbound.is_empty() && !self.must_end);
        if is_whole { Ok(()) } else { Err(StreamError::Truncated) }
    }

    pub(in crate::io) const fn is_ended(&self) -> bool {
        self.is_ended
    }

    pub(in crate::io) fn take(&mut self) -> Option<Chunk> {
        self.plain.pop_front()
    }

    pub(in crate::io) fn has_plain(&self) -> bool {
        !self.plain.is_empty()
    }

    pub(in crate::io) fn unread(&mut self, chunk: Chunk, spares: &Spares) {
        self.plain.push_front(chunk, spares);
    }

    /// Bytes that were opened and not taken yet.
    pub(in crate::io) fn plain_mut(&mut self) -> vec_deque::IterMut<'_, Chunk> {
        self.plain.iter_mut()
    }

    pub(in crate::io) fn drop_plain(&mut self) {
        self.plain.clear();
    }

    pub(in crate::io) fn shrink(&mut self, spares: &Spares) {
        self.plain.shrink(spares);
    }

    fn seal(
        &mut self,
        plain: Chunk,
        now: Time,
        pool: &Rc<BufferPool>,
        reserve: usize,
    ) -> Result<Chunk, StreamError> {
        let mut out = Vec::new();
        match &mut self.layer {
            Layer::Records(records) => records.seal(&plain, now, &mut out).map_err(StreamError::Tls)?,
            Layer::Early(handshake) => {
                handshake.seal(&plain, &mut out).map_err(|failure| StreamError::Tls(violation(&failure)))?
            }
        }
        Ok(if out.len() < COUNTED_BYTES { Chunk::from_vec(out) } else { pool.made_of(plain, out, reserve) })
    }

    /// Says that we send nothing more; nothing the second time.
    pub(in crate::io) fn close(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.is_closed, true) {
            match &mut self.layer {
                Layer::Records(records) => records.close(&mut out),
                // A handshake that failed sends nothing more.
                Layer::Early(handshake) => drop(handshake.close(&mut out)),
            }
        }
        out
    }

    const fn is_early(&self) -> bool {
        matches!(self.layer, Layer::Early(_))
    }
}

/// Goes on with a handshake beside early data. The amount granted to the client bounds the early data, and
/// taking all of it in lets the handshake end.
fn go_on(
    handshake: &mut Handshake,
    inbound: &mut Queue,
    out: &mut Vec<u8>,
) -> Result<Option<Box<Established>>, Violation> {
    while let Some(header) = inbound.peek() {
        let Some(record) = inbound.take(handshake::record_length(header), false) else { break };
        let received = match &record {
            Taken::Piece(chunk) => handshake.receive(chunk),
            Taken::Joined(bytes, _) => handshake.receive(bytes),
        };
        match received.and_then(|()| handshake.advance(out)) {
            Ok(Progress::Done(established)) => return Ok(Some(established)),
            Ok(Progress::NeedMore) => {}
            Err(failure) => return Err(violation(&failure)),
        }
    }
    Ok(None)
}

/// Whether TLS ended it, ours or theirs.
const fn is_broken(end: Option<Result<(), StreamError>>) -> bool {
    matches!(end, Some(Err(StreamError::Tls(_))))
}

impl Inner {
    /// The received bytes broke the rules, and the peer is to hear it.
    pub(in crate::io) const fn has_last_word(&self) -> bool {
        matches!(
            (self.phase, self.receiving.end),
            (Phase::Open, Some(Err(StreamError::Tls(Violation::Ours(_)))))
        )
    }

    /// TLS broke it.
    pub(in crate::io) const fn is_broken(&self) -> bool {
        is_broken(self.receiving.end)
    }

    /// Nothing more comes. If TLS ended reading before, its error stays the reason.
    pub(in crate::io) fn ended(&mut self, how: Result<(), StreamError>) {
        if !is_broken(self.receiving.end) {
            self.receiving.end = Some(how);
        } else {
            self.closing.note_end();
        }
    }

    /// Whether the peer can send nothing more: a peer that broke the rules may be sending still.
    pub(in crate::io) fn is_over(&self) -> bool {
        if is_broken(self.receiving.end) { self.closing.saw_end() } else { self.receiving.end.is_some() }
    }

    /// Whether the bytes received and not opened are part of a record.
    pub(in crate::io) fn is_within_record(&self) -> bool {
        let Some(secure) = &self.secure else { return false };
        let length = |header: [u8; HEADER_BYTES]| {
            HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]]))
        };
        !secure.is_ended
            && !self.receiving.queue.is_empty()
            && self.receiving.queue.peek().is_none_or(|header| self.receiving.queue.bytes() < length(header))
    }

    /// The next bytes for the session.
    pub(super) fn take_input(&mut self) -> Option<Chunk> {
        match &mut self.secure {
            Some(secure) => secure.take(),
            None => self.receiving.queue.pop_front(),
        }
    }

    /// Whether something waits for the session.
    pub(in crate::io) fn has_input(&self) -> bool {
        self.secure.as_ref().map_or_else(|| !self.receiving.queue.is_empty(), |secure| secure.has_plain())
    }
}

impl StreamState {
    /// Opens received records, as far as the session can take them.
    pub(in crate::io) fn open_records(self: &Rc<Self>, inner: &mut Inner) {
        self.open(inner, 0);
    }

    /// The same, and some records behind them: the session takes nothing now, and wants to know of the end.
    pub(super) fn open_ahead(self: &Rc<Self>, inner: &mut Inner) {
        self.open(inner, AHEAD_BYTES);
    }

    fn open(self: &Rc<Self>, inner: &mut Inner, ahead: usize) {
        let Some(secure) = &mut inner.secure else { return };
        // Bytes that came after the end, or after an error of TLS, are dropped: they are not opened, and no
        // second alert tells of them.
        if secure.is_ended() || is_broken(inner.receiving.end) {
            inner.receiving.queue.clear();
        }
        let mut out = Vec::new();
        let shared = &self.shared;
        let inbound = &mut inner.receiving.queue;
        let pumped = secure.pump(ahead, inbound, &mut out, &shared.spares, &shared.pool, self.account());
        if let Err(error) = pumped {
            inner.receiving.queue.clear();
            inner.receiving.end = Some(Err(error));
        } else if secure.is_ended() {
            inner.receiving.end.get_or_insert(Ok(()));
        } else if inner.receiving.end == Some(Ok(())) && !secure.has_plain() {
            // Every whole record was opened.
            inner.receiving.end = Some(secure.end(&inner.receiving.queue));
        }
        self.queue(inner, Chunk::from_vec(out));
        // The stream may be held until more bytes are dropped than were opened.
        let is_of_record = !inner.lists.contains(List::Starved) && !inner.lists.contains(List::Parts);
        if is_of_record
            && inner.receiving.operation == ReceiveOp::Held
            && inner.is_within_record()
            && inner.receiving.release()
        {
            self.mark(inner);
        }
    }

    /// Seals bytes and queues them.
    pub(in crate::io) fn seal(self: &Rc<Self>, inner: &mut Inner, plain: Chunk) {
        let Some(secure) = &mut inner.secure else { return };
        // Nothing follows a fatal alert (RFC 8446 §6.2).
        if plain.is_empty()
            || inner.sending.fin != Fin::No
            || inner.sending.error().is_some()
            || is_broken(inner.receiving.end)
        {
            return;
        }
        let pool = &self.shared.pool;
        // A stream with nothing waiting finds room when others have taken theirs.
        let reserve = if inner.sending.is_flushed() { 0 } else { pool.budget_reserve() };
        match secure.seal(plain, self.shared.now.get(), pool, reserve) {
            Ok(sealed) => self.queue(inner, sealed),
            Err(error) => {
                inner.sending.fail(error);
                inner.wake_all();
            }
        }
    }

    /// Says that we send nothing more, where that is said.
    pub(in crate::io) fn say_end(self: &Rc<Self>, inner: &mut Inner) {
        if let Some(secure) = &mut inner.secure
            && inner.sending.error().is_none()
            && !is_broken(inner.receiving.end)
        {
            let bytes = secure.close();
            self.queue(inner, Chunk::from_vec(bytes));
        }
    }
}

impl Stream {
    /// From now on the stream carries records: reads open them, writes seal. `must_end`: an end that the peer
    /// did not announce is a truncation.
    pub fn secure(&self, established: Established, must_end: bool) {
        let Established { records, rest, early, agreed } = established;
        self.unread(Chunk::from_vec(rest));
        let mut secure = Box::new(Secure::new(Layer::Records(records), agreed, must_end));
        let state = self.state();
        let inner = &mut *state.inner.borrow_mut();
        if let Err(error) = secure.admit(early, &state.shared.spares, &state.shared.pool, state.account()) {
            inner.receiving.end = Some(Err(error));
        }
        inner.secure = Some(secure);
    }

    /// The same for a client that asks before the handshake is over: it goes on beside reads and writes. Its
    /// end must be awaited.
    pub fn secure_early(&self, mut handshake: Box<Handshake>, agreed: Agreed) {
        self.unread(Chunk::from_vec(handshake.take_rest()));
        let secure = Secure::new(Layer::Early(handshake), agreed, false);
        self.state().inner.borrow_mut().secure = Some(Box::new(secure));
    }

    /// Whether the handshake of `secure_early` still goes on. Requests that come meanwhile may be replayed by
    /// somebody that recorded them before.
    #[must_use]
    pub fn is_early(&self) -> bool {
        let inner = &mut *self.state().inner.borrow_mut();
        self.state().open_records(inner);
        inner.secure.as_ref().is_some_and(|secure| secure.is_early())
    }

    /// Ready once it is over.
    pub fn poll_established(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if !self.is_early() {
            return Poll::Ready(Ok(()));
        }
        let inner = &mut *self.state().inner.borrow_mut();
        match (inner.receiving.end, inner.phase) {
            (None, Phase::Open) => {
                self.state().await_bytes(inner, cx);
                Poll::Pending
            }
            (Some(Err(error)), _) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Err(StreamError::Truncated)),
        }
    }

    /// Like `poll_established`, awaited.
    pub async fn established(&self) -> Result<(), StreamError> {
        std::future::poll_fn(|cx| self.poll_established(cx)).await
    }

    /// Looks at the agreement of client and server; `None`: the stream carries no records.
    pub fn agreed<T>(&self, look: impl FnOnce(Option<&Agreed>) -> T) -> T {
        // A panic within the stream may have its exchange's record written.
        let inner = self.state().inner.try_borrow();
        let secure = inner.as_ref().ok().and_then(|inner| inner.secure.as_deref());
        look(secure.map(|secure| &secure.agreed))
    }

    /// Whether it carries records.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.state().inner.borrow().secure.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_keeps_little_beside_its_records() {
        // The record layer, its queue, the agreement, three flags. malloc gives 64 bytes a piece of 80.
        assert_eq!(size_of::<Secure>(), 64);
    }
}
