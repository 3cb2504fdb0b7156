//! What the engine does for each stream: decides which operations it needs, and takes in their completions.
//! Receiving yields to three bounds: what the stream may have outstanding, the buffers of the ring, and the
//! budget for copies.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::Chunk;
use super::buffers::FRAGMENT_COST;
use super::handle::{Alarm, ConnectError, Shared};
use super::seam::{Completion, Op, Ring};
use super::stream::{Fin, Inner, Phase, Receive, State, StreamError};
use super::token::{Kind, Token};
use crate::time::Time;

mod parts;
mod receive;

/// How often streams that wait for buffers or budget are looked at when nothing else happens.
const RETRY: Duration = Duration::from_millis(20);
/// A send that holds ring buffers this long while they are short is cancelled, and goes on from a copy.
const PIN_MAX: Duration = Duration::from_millis(50);
/// Budget that must be free beside the reserve before a throttled stream goes on.
const RESUME_ROOM: usize = 16 << 10;
/// How long receives find no buffer before the stream is reset that holds the most, and how long that one has
/// not moved.
const STARVED_MAX: Duration = Duration::from_secs(1);
/// Streams searched for buffers to copy out, per loop turn.
const RECLAIM_STREAMS: usize = 64;
/// Streams over a lowered limit that are looked at again per loop turn, once it has grown.
const RECHECK_STREAMS: usize = 64;
/// Empty vectors for sends kept for reuse.
const SPARE_MAX: usize = 256;

/// Streams and their operations.
pub(super) struct Flow {
    shared: Rc<Shared>,
    /// Streams whose receive found no buffer (slot, generation), first come first served.
    starved: VecDeque<(u32, u32)>,
    /// When the next stream is reset, if some starve and no buffer comes free before.
    evict_at: Option<Time>,
    /// Streams that hold much while neither ring nor budget has room.
    throttled: VecDeque<(u32, u32)>,
    /// Streams held by a limit that was lowered. They may keep what they have until more comes, so a higher
    /// limit must reach them too.
    lowered: VecDeque<(u32, u32)>,
    parts: parts::Parts,
    /// The limit when `resume` last looked, and how many of `lowered` it has to look at since it grew.
    limit: usize,
    recheck: usize,
    /// Streams to look at again and when, each once. One that is put back stands behind later ones, which
    /// costs it a second at most.
    unsure: VecDeque<(u32, u32, Time)>,
    /// Where the last search for buffers stopped.
    reclaim_at: usize,
    relieved: Vec<(u32, u32)>,
    dirty: Vec<Rc<State>>,
    spare: Vec<Vec<Chunk>>,
    pub(super) buffers_exhausted: u64,
    pub(super) copied_bytes: u64,
    pub(super) sends_reclaimed: u64,
    pub(super) evicted: u64,
}

impl Flow {
    pub(super) fn new(shared: Rc<Shared>) -> Self {
        Self {
            shared,
            starved: VecDeque::new(),
            evict_at: None,
            throttled: VecDeque::new(),
            lowered: VecDeque::new(),
            parts: VecDeque::new(),
            limit: 0,
            recheck: 0,
            unsure: VecDeque::new(),
            reclaim_at: 0,
            relieved: Vec::new(),
            dirty: Vec::new(),
            spare: Vec::new(),
            buffers_exhausted: 0,
            copied_bytes: 0,
            sends_reclaimed: 0,
            evicted: 0,
        }
    }

    /// Whether something is left to submit that no completion will announce.
    pub(super) fn has_work(&self) -> bool {
        self.shared.pool.has_relieved() || self.recheck > 0
    }

    /// When to look again although nothing happened.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let short = (!self.starved.is_empty() || !self.throttled.is_empty() || !self.parts.is_empty())
            .then_some(RETRY);
        let look = self
            .unsure
            .front()
            .map(|&(_, _, at)| at.since(self.shared.now.get()).max(Duration::from_millis(1)));
        [short, look].into_iter().flatten().min()
    }

    /// Submits what every stream with news needs.
    pub(super) fn submit<R: Ring>(&mut self, ring: &mut R) {
        if self.shared.pool.is_pressed() {
            self.reclaim(ring);
        }
        self.resume();
        self.evict();
        self.look_again(ring);
        let mut dirty = std::mem::take(&mut self.dirty);
        std::mem::swap(&mut dirty, &mut *self.shared.dirty.borrow_mut());
        for state in dirty.drain(..) {
            let inner = &mut *state.inner.borrow_mut();
            inner.dirty = false;
            self.drive(&state, inner, ring);
        }
        self.dirty = dirty;
    }

    /// Takes in the completion of one of the stream's operations.
    pub(super) fn complete<R: Ring>(&mut self, state: &Rc<State>, completion: Completion, ring: &mut R) {
        let inner = &mut *state.inner.borrow_mut();
        let goes_on = completion.token.kind() == Kind::Receive && completion.more;
        match completion.token.kind() {
            Kind::Receive => self.received(state, inner, completion),
            Kind::Send => self.sent(state, inner, completion),
            Kind::Connect => self.connected(inner, completion.result, ring),
            Kind::Shutdown => {
                inner.fin = Fin::Sent;
                if completion.result < 0 && inner.write_error.is_none() {
                    inner.write_error = Some(StreamError::from_errno(-completion.result));
                }
            }
            Kind::Cancel => inner.cancels -= 1,
            Kind::Close => return self.release(state, inner),
            Kind::Accept | Kind::Watch | Kind::Discard => unreachable!("not a stream's"),
        }
        // While the receive goes on and nothing else changed there is nothing to decide.
        let settled = goes_on && inner.phase == Phase::Open && inner.armed == inner.class;
        if !settled
            || inner.throttled
            || self.shared.pool.outstanding(state.account()) >= self.limit_of(inner)
        {
            state.mark(inner);
        }
    }

    /// The time that `close` may take is over, or a part of it without progress.
    pub(super) fn close_timed_out(&self, state: &Rc<State>) {
        let inner = &mut *state.inner.borrow_mut();
        let mark = inner.closing.as_mut().map_or(0, |closing| {
            closing.timer = None;
            closing.mark
        });
        if inner.phase == Phase::Closing {
            let flushed = inner.queued == 0;
            let over = match inner.closing.as_mut() {
                // A peer that is still sending has not read our last bytes yet.
                Some(closing) if flushed => {
                    let quiet = std::mem::replace(&mut closing.seen, closing.discarded) == closing.discarded;
                    quiet || self.shared.now.get() >= closing.until
                }
                _ => flushed || inner.progress.sent - mark < self.shared.settings.close_bytes,
            };
            if over {
                inner.end(!flushed);
            }
            state.mark(inner);
        }
    }

    /// Submits what the stream's state asks for. Idempotent: called as often as anything may have changed.
    fn drive<R: Ring>(&mut self, state: &Rc<State>, inner: &mut Inner, ring: &mut R) {
        match inner.phase {
            Phase::Connecting => self.start_connect(state, inner, ring),
            Phase::Open => {
                self.drive_send(state, inner, ring);
                self.drive_receive(state, inner, ring);
            }
            Phase::Closing => {
                self.drive_send(state, inner, ring);
                self.drive_close(state, inner, ring);
            }
            Phase::Ending { .. } | Phase::Closed => {}
        }
        if let Phase::Ending { reset } = inner.phase {
            self.drive_end(state, inner, ring, reset);
        }
    }

    fn start_connect<R: Ring>(&self, state: &Rc<State>, inner: &mut Inner, ring: &mut R) {
        if inner.connecting {
            return;
        }
        match ring.open(inner.peer.address()) {
            Ok(fd) => {
                inner.fd = fd;
                inner.connecting = true;
                ring.submit(token(state, Kind::Connect), Op::Connect { fd, address: inner.peer.address() });
            }
            Err(errno) => {
                inner.connect_error = Some(ConnectError::from_errno(errno));
                inner.end(false);
            }
        }
    }

    fn connected<R: Ring>(&self, inner: &mut Inner, result: i32, ring: &mut R) {
        inner.connecting = false;
        if inner.phase != Phase::Connecting {
            return;
        }
        let prepared = if result < 0 { Err(-result) } else { ring.prepare(inner.fd, false) };
        match prepared {
            Ok(_) => {
                inner.phase = Phase::Open;
                let now = self.shared.now.get();
                (inner.progress.received_at, inner.progress.sent_at) = (now, now);
                inner.wake_all();
            }
            Err(errno) => {
                inner.connect_error = Some(ConnectError::from_errno(errno));
                inner.end(false);
            }
        }
    }

    fn drive_send<R: Ring>(&mut self, state: &Rc<State>, inner: &mut Inner, ring: &mut R) {
        if inner.sending || inner.write_error.is_some() {
            return;
        }
        if inner.outbound.is_empty() {
            if inner.fin == Fin::Wanted {
                inner.fin = Fin::InFlight;
                ring.submit(token(state, Kind::Shutdown), Op::Shutdown { fd: inner.fd });
            }
            return;
        }
        let settings = self.shared.settings;
        let pressed = self.shared.pool.is_pressed();
        let bytes_max = if pressed { settings.send_bytes_pressed } else { settings.send_bytes_max };
        let mut chunks = self.spare.pop().unwrap_or_default();
        let mut bytes = 0;
        let mut pins = 0;
        while bytes < bytes_max && chunks.len() < settings.send_chunks_max {
            let Some(mut chunk) = inner.outbound.pop_front() else { break };
            if chunk.len() > bytes_max - bytes {
                let head = chunk.split_to(bytes_max - bytes);
                inner.outbound.push_front(std::mem::replace(&mut chunk, head), &self.shared.spares);
            }
            bytes += chunk.len();
            if pressed {
                self.copy_out(&mut chunk);
            }
            pins += if chunk.pins() { chunk.len() + FRAGMENT_COST } else { 0 };
            chunks.push(chunk);
        }
        inner.sending = true;
        inner.send_cancelled = false;
        inner.send_pins = u32::try_from(pins).unwrap_or(u32::MAX);
        inner.in_flight = u32::try_from(bytes).unwrap_or(u32::MAX);
        inner.send_started = self.shared.now.get();
        ring.submit(token(state, Kind::Send), Op::Send { fd: inner.fd, chunks });
    }

    fn sent(&mut self, state: &Rc<State>, inner: &mut Inner, completion: Completion) {
        let Completion { result, mut chunks, .. } = completion;
        inner.sending = false;
        let sent = inner.in_flight as usize;
        inner.queued -= sent;
        inner.in_flight = 0;
        let ended = matches!(inner.phase, Phase::Ending { .. });
        let mut taken = usize::try_from(result).unwrap_or(0);
        if taken > 0 {
            inner.progress.sent += taken as u64;
            inner.progress.sent_at = self.shared.now.get();
        }
        // The peer's host takes what it gets at once: it may get more at a time.
        inner.flows = taken == sent;
        let retry = taken > 0 || matches!(-result, libc::ECANCELED | libc::EINTR);
        if !retry && inner.write_error.is_none() {
            inner.write_error =
                Some(StreamError::from_errno(if result == 0 { libc::EPIPE } else { -result }));
        }
        if ended || !retry {
            chunks.clear();
            inner.drop_outbound();
            inner.wake_all();
        }
        // What was not taken goes back to the front, in order.
        let whole = chunks
            .iter()
            .take_while(|chunk| taken.checked_sub(chunk.len()).map(|rest| taken = rest).is_some())
            .count();
        for mut chunk in chunks.drain(whole..).rev() {
            inner.queued += chunk.len();
            if inner.send_cancelled {
                // It was to give its buffers back, whether they are short at this moment or not.
                self.copy_out(&mut chunk);
            }
            inner.outbound.push_front(std::mem::take(&mut chunk), &self.shared.spares);
        }
        if let Some(first) = inner.outbound.front_mut().filter(|_| taken > 0) {
            first.advance(taken);
            inner.queued -= taken;
        }
        chunks.clear();
        if self.spare.len() < SPARE_MAX {
            self.spare.push(chunks);
        }
        if inner.has_room(&self.shared.settings) {
            inner.wake_writer();
        }
        if inner.parked.is_some() {
            // Parked before its last bytes were sent.
            inner.outbound.shrink(&self.shared.spares);
            if inner.write_error.is_some() {
                self.shared.push_parked(state);
            }
        }
    }

    /// After the flush: FIN, then throw away what comes until the peer's end or until the linger is over.
    fn drive_close<R: Ring>(&mut self, state: &Rc<State>, inner: &mut Inner, ring: &mut R) {
        let is_of_socket = match inner.end {
            Some(Err(error)) => !matches!(error, StreamError::Tls(_) | StreamError::Truncated),
            _ => false,
        };
        let broken = inner.write_error.is_some() || is_of_socket;
        let flushed = inner.queued == 0;
        let settings = &self.shared.settings;
        let (discarded, is_refused) =
            inner.closing.as_ref().map_or((0, false), |closing| (closing.discarded, closing.is_refused));
        let over = inner.is_over()
            || (inner.is_last && inner.receive == Receive::Idle)
            || discarded > if is_refused { settings.refused_bytes } else { settings.linger_bytes };
        if broken || (flushed && over && inner.fin != Fin::InFlight) {
            // What is cut for want of memory must not look whole.
            return inner.end(inner.end == Some(Err(StreamError::Evicted)));
        }
        if flushed && inner.fin == Fin::No {
            inner.fin = Fin::InFlight;
            ring.submit(token(state, Kind::Shutdown), Op::Shutdown { fd: inner.fd });
            // From now on the timer bounds the linger.
            self.disarm_close(inner);
        }
        if inner.receive == Receive::Idle && !inner.is_over() && !inner.is_last {
            self.arm_receive(state, inner, ring);
        }
        let closing = inner.closing.get_or_insert_default();
        if closing.timer.is_none() {
            let (flush, linger) = if is_refused {
                (settings.close_timeout.min(settings.refused_max), settings.refused_max)
            } else {
                (settings.close_timeout, settings.linger_max)
            };
            closing.mark = inner.progress.sent;
            if flushed && closing.until == Time::default() {
                closing.until = self.shared.now.get() + linger;
            }
            let wait = if flushed { settings.linger } else { flush };
            let alarm = Alarm::Stream(state.slot, state.generation);
            closing.timer = Some(self.shared.arm(self.shared.now.get() + wait, alarm));
        }
    }

    fn disarm_close(&self, inner: &mut Inner) {
        if let Some(key) = inner.closing.as_mut().and_then(|closing| closing.timer.take()) {
            self.shared.disarm(key);
        }
    }

    /// Cancels what is in flight; closes when nothing is.
    fn drive_end<R: Ring>(&mut self, state: &Rc<State>, inner: &mut Inner, ring: &mut R, reset: bool) {
        if inner.closing_fd {
            return;
        }
        if inner.receive == Receive::Armed {
            self.cancel_receive(state, inner, ring);
        }
        if inner.sending && !inner.send_cancelled {
            inner.send_cancelled = true;
            inner.cancels += 1;
            ring.submit(token(state, Kind::Cancel), Op::Cancel { target: token(state, Kind::Send) });
        }
        if inner.connecting && !inner.connect_cancelled {
            inner.connect_cancelled = true;
            inner.cancels += 1;
            ring.submit(token(state, Kind::Cancel), Op::Cancel { target: token(state, Kind::Connect) });
        }
        if inner.in_flight_ops() > 0 {
            return;
        }
        if inner.fd < 0 {
            return self.release(state, inner);
        }
        if reset {
            ring.reset_on_close(inner.fd);
        }
        inner.closing_fd = true;
        ring.submit(token(state, Kind::Close), Op::Close { fd: inner.fd });
    }

    /// The stream is over and nothing refers to its slot any more.
    fn release(&self, state: &Rc<State>, inner: &mut Inner) {
        inner.fd = -1;
        inner.phase = Phase::Closed;
        self.disarm_close(inner);
        inner.wake_all();
        self.shared.slots.borrow_mut().release(state.slot);
    }

    /// Forgets streams that are gone once they outnumber the others, so that queues stay bounded by the
    /// slots.
    fn purge(&mut self) {
        let shared = &self.shared;
        let bound = 2 * shared.slots.borrow().used + 64;
        for queue in [&mut self.starved, &mut self.throttled, &mut self.lowered] {
            if queue.len() > bound {
                queue.retain(|&(slot, generation)| shared.find(slot, generation).is_some());
            }
        }
        if self.unsure.len() > bound {
            self.unsure.retain(|&(slot, generation, _)| shared.find(slot, generation).is_some());
        }
    }

    /// Lets streams receive again whose bound was lifted.
    fn resume(&mut self) {
        self.purge();
        let mut relieved = std::mem::take(&mut self.relieved);
        self.shared.pool.take_relieved(&mut relieved);
        for (slot, generation) in relieved.drain(..) {
            self.release_hold(slot, generation, |_| ());
        }
        self.relieved = relieved;
        let pool = Rc::clone(&self.shared.pool);
        // Each takes one buffer at least.
        let mut room = pool.free();
        while room > 0
            && let Some((slot, generation)) = self.starved.pop_front()
        {
            room -= usize::from(self.release_hold(slot, generation, |inner| inner.in_starved = false));
        }
        // Budget that sends and fragments freed is room as well.
        let budgeted = || pool.budget_used() + pool.budget_reserve() + RESUME_ROOM < pool.budget_max();
        for _ in 0..self.throttled.len() {
            if pool.is_pressed() && !budgeted() {
                break;
            }
            let Some((slot, generation)) = self.throttled.pop_front() else { break };
            self.release_hold(slot, generation, |inner| {
                (inner.in_throttled, inner.throttled) = (false, false)
            });
        }
        self.resume_parts();
        self.recheck_lowered();
    }

    /// Lets streams receive again that a higher limit covers. Memory is given back within loop turns only, so
    /// no timer is needed.
    fn recheck_lowered(&mut self) {
        let limit = self.receive_limit();
        if limit > std::mem::replace(&mut self.limit, limit) {
            self.recheck = self.lowered.len();
        }
        let count = self.recheck.min(RECHECK_STREAMS);
        self.recheck -= count;
        for _ in 0..count {
            let Some((slot, generation)) = self.lowered.pop_front() else { break };
            let Some(state) = self.shared.find(slot, generation) else { continue };
            let is_held = state.inner.borrow().receive == Receive::Held;
            if is_held && self.shared.pool.outstanding(state.account()) >= limit {
                self.lowered.push_back((slot, generation));
            } else {
                self.release_hold(slot, generation, |inner| inner.in_lowered = false);
            }
        }
    }

    fn release_hold(&self, slot: u32, generation: u32, note: impl FnOnce(&mut Inner)) -> bool {
        let Some(state) = self.shared.find(slot, generation) else { return false };
        let inner = &mut *state.inner.borrow_mut();
        note(inner);
        let held = inner.receive == Receive::Held;
        if held {
            inner.receive = Receive::Idle;
            state.mark(inner);
        }
        held
    }

    /// While buffers are short: copies queued loans out of the ring, and has sends to slow peers let go of
    /// theirs.
    fn reclaim<R: Ring>(&mut self, ring: &mut R) {
        let shared = Rc::clone(&self.shared);
        let slots = shared.slots.borrow();
        let count = slots.entries.len();
        let mut promised = 0;
        for _ in 0..RECLAIM_STREAMS.min(count) {
            self.reclaim_at = (self.reclaim_at + 1) % count;
            let Some(state) = &slots.entries[self.reclaim_at].state else { continue };
            let inner = &mut *state.inner.borrow_mut();
            let opened = inner.secure.iter_mut().flat_map(|secure| secure.plain_mut());
            for chunk in inner.outbound.iter_mut().chain(inner.inbound.iter_mut()).chain(opened) {
                self.copy_out(chunk);
            }
            let stuck =
                inner.sending && inner.send_pins > 0 && shared.now.get().since(inner.send_started) > PIN_MAX;
            // What cannot all be copied would come back as another send that pins, and be cancelled again.
            let needed = promised + inner.send_pins as usize;
            let room =
                shared.pool.budget_used() + shared.pool.budget_reserve() + needed <= shared.pool.budget_max();
            if stuck && room && !inner.send_cancelled {
                promised = needed;
                inner.send_cancelled = true;
                inner.cancels += 1;
                self.sends_reclaimed += 1;
                ring.submit(token(state, Kind::Cancel), Op::Cancel { target: token(state, Kind::Send) });
            }
        }
    }

    /// When buffers and budget are gone and stay gone, slow peers hold them all, and nobody else gets a byte
    /// through. Then the one goes that holds the most without having moved, one at a time, until somebody can
    /// receive again.
    fn evict(&mut self) {
        let shared = Rc::clone(&self.shared);
        let now = shared.now.get();
        if self.starved.is_empty() || shared.pool.free() > 0 {
            self.evict_at = None;
            return;
        }
        if now < *self.evict_at.get_or_insert(now + STARVED_MAX) {
            return;
        }
        // What the one gives back may come with its last completions.
        self.evict_at = Some(now + RETRY);
        self.starved.retain(|&(slot, generation)| shared.find(slot, generation).is_some());
        let held = |state: &Rc<State>| {
            let inner = state.inner.borrow();
            let unsent_since = inner.progress.sent_at.max(inner.send_started);
            let unsent =
                if inner.sending && now.since(unsent_since) >= STARVED_MAX { inner.queued } else { 0 };
            let is_unread = now.since(inner.progress.received_at) >= STARVED_MAX;
            let unread = if is_unread { inner.inbound.bytes() } else { 0 };
            if matches!(inner.phase, Phase::Open | Phase::Closing) { unsent + unread } else { 0 }
        };
        let largest = {
            let slots = shared.slots.borrow();
            let streams = slots.entries.iter().filter_map(|entry| entry.state.as_ref());
            streams
                .map(|state| (held(state), state))
                .filter(|&(held, _)| held > 0)
                .max_by_key(|&(held, _)| held)
                .map(|(_, state)| Rc::clone(state))
        };
        if let Some(state) = largest.filter(|_| !self.starved.is_empty()) {
            self.reset_for_memory(&state, &mut state.inner.borrow_mut());
        }
    }

    fn reset_for_memory(&mut self, state: &Rc<State>, inner: &mut Inner) {
        self.evicted += 1;
        inner.write_error.get_or_insert(StreamError::Evicted);
        inner.end = Some(Err(StreamError::Evicted));
        let parked = inner.parked;
        inner.end(true);
        state.mark(inner);
        if parked.is_some() {
            // Unlike the session's own abort this is news to it.
            inner.parked = parked;
            self.shared.push_parked(state);
        }
    }

    /// Has a chunk let go of its receive buffers if the budget has room: a loan becomes a copy.
    fn copy_out(&mut self, chunk: &mut Chunk) {
        let pool = &self.shared.pool;
        let Some(loan) = chunk.loan() else { return chunk.settle(pool, pool.budget_reserve()) };
        if let Some(copy) = pool.copy(chunk, loan.account(), pool.budget_reserve()) {
            self.copied_bytes += copy.len() as u64;
            *chunk = copy;
        }
    }
}

fn token(state: &State, kind: Kind) -> Token {
    Token::new(kind, state.slot, state.generation)
}
