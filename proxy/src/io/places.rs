//! Who gets a scarce place, who waits for one, and who gives way, sans-IO. A source is an IPv4 address or an
//! IPv6 /64, and places are shared fairly between sources.
//!
//! ```text
//! state    holds a place  may give way  next state
//! -------- -------------- ------------- -----------------------------------------------------------
//! Waiting  no             no            Working, when a place is free and its source holds the fewest
//! Working  yes            no            Resting, when it has to wait for its peer
//! Resting  yes            yes           Working, when its peer went on; Gone, when it has to give way
//! Gone     no             no            (it leaves)
//! ```
//!
//! - Of those that wait, the first of the source that holds the least comes next.
//! - Of those that rest, the longest resting of the source that holds the most gives way.
//! - Nobody gives way to a source that holds more than its own.
//! - For one that waits, a member gives way only after `patience`: a peer needs time to answer. The longer
//!   the queue was lately, the shorter it is, so that the queue passes within `TURNOVER`.
//!
//! Each step costs O(log n). A member that is heavier than another counts for more: places may be bytes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use slab::Slab;

use crate::time::Time;

/// All who wait are to have a place within this time, even if nobody who rests ever goes on. It is well below
/// the time that clients wait for a handshake.
const TURNOVER: Duration = Duration::from_secs(4);
/// The shortest patience: most peers answer within it.
const PATIENCE_MIN: Duration = Duration::from_millis(100);
/// The longest: a lost packet is sent again after a second (RFC 6298 §2), and the second time after two more.
const PATIENCE_MAX: Duration = Duration::from_secs(3);

/// Whom a member belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source(u64);

/// The upper half of the key of an IPv4 address; no IPv6 network in use begins like that.
const IPV4: u64 = 0xffff_ffff;

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => IPV4 << 32 | u64::from(address.to_bits()),
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >> 32 == IPV4 {
            write!(f, "{}", Ipv4Addr::from_bits(self.0 as u32))
        } else {
            write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(self.0) << 64))
        }
    }
}

/// Names a member until it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlaceKey(usize);

/// The outcome of `Places::poll`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<K> {
    /// This member waited and has a place now.
    Take(K),
    /// This member's place is another's now: it has to leave, unless it is spared.
    GiveWay {
        /// For `Places::spare`.
        key: PlaceKey,
        /// Whose place it was.
        owner: K,
        /// The member's source, which held the most.
        source: Source,
    },
}

/// See the module. `K` tells the caller whom a decision is about.
#[derive(Debug)]
pub struct Places<K> {
    members: Slab<Member<K>>,
    /// What each source holds; sources without a member are not here.
    standings: BTreeMap<Source, Standing>,
    /// Those that wait, by their order.
    waiting: BTreeSet<(Source, u64, PlaceKey)>,
    /// Those that rest, by the time since when.
    resting: BTreeSet<(Source, Time, PlaceKey)>,
    /// Sources of which some wait: what they hold, and the order of the first that waits.
    by_need: BTreeSet<(u64, u64, Source)>,
    /// Sources of which some rest: what they hold, and since when the first rests.
    by_greed: BTreeSet<(Reverse<u64>, Time, Source)>,
    used: u64,
    next_order: u64,
    lately: Lately,
}

/// How long the queue was, in this span of `TURNOVER` and in the one before. While a queue passes, patience
/// must not grow, or its end would wait for much longer than its beginning.
#[derive(Clone, Copy, Debug, Default)]
struct Lately {
    began: Time,
    longest: usize,
    longest_before: usize,
}

impl Lately {
    fn note(&mut self, waiting: usize, now: Time) {
        let passed = now.since(self.began);
        if passed >= TURNOVER {
            let longest_before = if passed < 2 * TURNOVER { self.longest } else { 0 };
            *self = Self { began: now, longest: 0, longest_before };
        }
        self.longest = self.longest.max(waiting);
    }

    /// How long a member may rest while others wait for one of `places`.
    fn patience(&self, places: u64) -> Duration {
        let longest = u32::try_from(self.longest.max(self.longest_before)).unwrap_or(u32::MAX).max(1);
        let places = u32::try_from(places).unwrap_or(u32::MAX);
        (TURNOVER.saturating_mul(places) / longest).clamp(PATIENCE_MIN, PATIENCE_MAX)
    }
}

#[derive(Debug)]
struct Member<K> {
    source: Source,
    weight: u64,
    state: State,
    owner: K,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting(u64),
    Working,
    Resting(Time),
    Gone,
}

impl State {
    const fn holds(self) -> bool {
        matches!(self, Self::Working | Self::Resting(_))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    members: usize,
    held: u64,
}

impl<K> Default for Places<K> {
    fn default() -> Self {
        Self {
            members: Slab::new(),
            standings: BTreeMap::new(),
            waiting: BTreeSet::new(),
            resting: BTreeSet::new(),
            by_need: BTreeSet::new(),
            by_greed: BTreeSet::new(),
            used: 0,
            next_order: 0,
            lately: Lately::default(),
        }
    }
}

impl<K: Clone> Places<K> {
    /// Adds a member that waits for one place.
    pub fn wait(&mut self, source: Source, owner: K) -> PlaceKey {
        let order = self.next_order;
        self.next_order += 1;
        self.join(source, 1, State::Waiting(order), owner)
    }

    /// Adds a member that holds so many places, whether there is room or not.
    pub fn hold(&mut self, source: Source, weight: u64, owner: K) -> PlaceKey {
        self.join(source, weight, State::Working, owner)
    }

    /// A member holds so many places more.
    pub fn grow(&mut self, key: PlaceKey, more: u64) {
        let state = self.state(key);
        self.set(key, State::Gone);
        if let Some(member) = self.members.get_mut(key.0) {
            member.weight += more;
        }
        self.set(key, state);
    }

    /// From `since` on, a member that holds places waits for its peer.
    pub fn rest(&mut self, key: PlaceKey, since: Time) {
        if self.state(key).holds() {
            self.set(key, State::Resting(since));
        }
    }

    /// A member that holds places waits for its peer no longer.
    pub fn work(&mut self, key: PlaceKey) {
        if self.state(key).holds() {
            self.set(key, State::Working);
        }
    }

    /// A member is gone; its key is not valid any more.
    pub fn leave(&mut self, key: PlaceKey) {
        self.set(key, State::Gone);
        if let Some(member) = self.members.try_remove(key.0)
            && let Some(standing) = self.standings.get_mut(&member.source)
        {
            standing.members -= 1;
            if standing.members == 0 {
                self.standings.remove(&member.source);
            }
        }
    }

    /// The next decision of `max` places for those that wait. Call it until there is none.
    pub fn poll(&mut self, max: u64, now: Time) -> Option<Decision<K>> {
        self.lately.note(self.waiting.len(), now);
        let next = self.next_waiting()?;
        if self.used < max {
            self.set(next, State::Working);
            return self.owner(next).map(Decision::Take);
        }
        if self.gives_way_at(max)? > now {
            return None;
        }
        self.give_way()
    }

    /// When a member gives way to one that waits, as of the last `poll`, unless its peer goes on before.
    /// `None`: nobody waits, there is room, or nobody may give way.
    #[must_use]
    pub fn gives_way_at(&self, max: u64) -> Option<Time> {
        let &(needy_holds, ..) = self.by_need.first()?;
        let &(Reverse(greedy_holds), since, _) = self.by_greed.first()?;
        (self.used >= max && greedy_holds >= needy_holds).then(|| since + self.lately.patience(max))
    }

    /// The next member to give way at once, if more than `max` places are held. Call it until there is none.
    pub fn relieve(&mut self, max: u64) -> Option<Decision<K>> {
        if self.used > max { self.give_way() } else { None }
    }

    /// The longest resting member of the source that holds the most gives way.
    pub fn give_way(&mut self) -> Option<Decision<K>> {
        let &(_, since, source) = self.by_greed.first()?;
        let &(.., key) = self.resting.range((source, since, PlaceKey(0))..).next()?;
        self.set(key, State::Gone);
        self.owner(key).map(|owner| Decision::GiveWay { key, owner, source })
    }

    /// A member that was to give way keeps its place: it waits for its peer since `since` only.
    pub fn spare(&mut self, key: PlaceKey, since: Time) {
        self.set(key, State::Resting(since));
    }

    /// Places held.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// Members that wait for a place.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there is no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn next_waiting(&self) -> Option<PlaceKey> {
        let &(_, order, source) = self.by_need.first()?;
        self.waiting.range((source, order, PlaceKey(0))..).next().map(|&(.., key)| key)
    }

    fn owner(&self, key: PlaceKey) -> Option<K> {
        self.members.get(key.0).map(|member| member.owner.clone())
    }

    fn state(&self, key: PlaceKey) -> State {
        self.members.get(key.0).map_or(State::Gone, |member| member.state)
    }

    fn join(&mut self, source: Source, weight: u64, state: State, owner: K) -> PlaceKey {
        self.standings.entry(source).or_default().members += 1;
        let key = PlaceKey(self.members.insert(Member { source, weight, state: State::Gone, owner }));
        self.set(key, state);
        key
    }

    /// Changes the state of a member, and the rank of its source with it.
    fn set(&mut self, key: PlaceKey, state: State) {
        let Some(member) = self.members.get_mut(key.0) else { return };
        let (source, weight) = (member.source, member.weight);
        let before = std::mem::replace(&mut member.state, state);
        self.unrank(source);
        match before {
            State::Waiting(order) => _ = self.waiting.remove(&(source, order, key)),
            State::Resting(since) => _ = self.resting.remove(&(source, since, key)),
            State::Working | State::Gone => {}
        }
        match state {
            State::Waiting(order) => _ = self.waiting.insert((source, order, key)),
            State::Resting(since) => _ = self.resting.insert((source, since, key)),
            State::Working | State::Gone => {}
        }
        let held = self.standings.entry(source).or_default();
        if before.holds() {
            held.held -= weight;
            self.used -= weight;
        }
        if state.holds() {
            held.held += weight;
            self.used += weight;
        }
        self.rank(source);
    }

    fn rank(&mut self, source: Source) {
        let (need, greed) = self.ranks(source);
        self.by_need.extend(need);
        self.by_greed.extend(greed);
    }

    fn unrank(&mut self, source: Source) {
        let (need, greed) = self.ranks(source);
        need.map(|rank| self.by_need.remove(&rank));
        greed.map(|rank| self.by_greed.remove(&rank));
    }

    /// The entries of a source in `by_need` and `by_greed`, as its members are now.
    #[expect(clippy::type_complexity, reason = "the entries of two sets")]
    fn ranks(&self, source: Source) -> (Option<(u64, u64, Source)>, Option<(Reverse<u64>, Time, Source)>) {
        let held = self.standings.get(&source).map_or(0, |standing| standing.held);
        let first = self.waiting.range((source, 0, PlaceKey(0))..).next();
        let oldest = self.resting.range((source, Time::default(), PlaceKey(0))..).next();
        let need = first.filter(|(of, ..)| *of == source).map(|&(_, order, _)| (held, order, source));
        let greed =
            oldest.filter(|(of, ..)| *of == source).map(|&(_, since, _)| (Reverse(held), since, source));
        (need, greed)
    }
}

#[cfg(test)]
mod tests;
