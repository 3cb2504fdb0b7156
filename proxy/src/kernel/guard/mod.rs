//! The guard: the XDP program `sluice_guard` (proxy-ebpf/src/guard.rs). It judges packets before the kernel
//! allocates anything for them. Its maps are `GUARD_CONFIG`, `GUARD_PORTS`, `GUARD_LISTENERS`, `GUARD_ALLOW`,
//! `GUARD_DENY`, `GUARD_FILTER`, `GUARD_BANS`, `GUARD_LOCALS`, `GUARD_LOCAL_NETS`, `GUARD_VERDICTS` and
//! `COOKIE_CONFIG`. Only the program itself uses `GUARD_SYN_BUCKETS` and `COOKIE_HEADERS`.
//!
//! | file | |
//! |---|---|
//! | `settings` | the guard in a configuration |
//! | `interfaces`, `pins` | where the program is attached, and what of it outlives this process |
//! | `listeners` | the addresses whose packets are judged |
//! | `locals` | the addresses that a listener on the unspecified address stands for |
//! | `lists`, `bans` | sources that are let through or dropped whatever they send |
//! | `filter`, `prefilter` | the bitmap that spares most sources these look-ups |
//! | `cookies` | answers to SYNs under attack |
//!
//! A change is written in this order: additions, the configuration, removals. So each state in between is the
//! old policy or the new one, or for a source on neither list the stricter of both. The prefilter's bits are
//! set before the additions and cleared after the removals.

mod bans;
mod cookies;
mod filter;
mod interfaces;
mod listeners;
mod lists;
mod locals;
pub mod pins;
mod prefilter;
mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use proxy_common::guard::{
    GUARD_ALLOW, GUARD_BANS, GUARD_CONNECTIONS, GUARD_DENY, GUARD_DRY_RUN, GUARD_PASS_HIDDEN, GUARD_SYN_RATE,
    GuardConfig, SYN_ROWS, Verdict,
};

use self::bans::Bans;
use self::cookies::Cookies;
use self::filter::Filter;
use self::interfaces::Interfaces;
use self::listeners::{ListenerPlan, Listeners, Mains};
use self::lists::{List, prefixes};
use self::locals::Locals;
use self::pins::{PinError, Pins};
use self::prefilter::Prefilter;
use super::counting::CountingProgram;
use super::error::KernelError;
use super::maps::{Counters, Single, random_seeds};
use super::object::Object;
use super::sysctl::Sysctls;
use crate::control::bans::BanSource;
use crate::control::status::GuardStatus;
use crate::time::Time;

pub use self::interfaces::{Presence, holder};
pub use self::settings::{Fragments, Guard, GuardMode, SynCookies};
pub use super::links::XdpMode;

const CONFIG: &str = "GUARD_CONFIG";
const ALLOW: &str = "GUARD_ALLOW";
const DENY: &str = "GUARD_DENY";
const VERDICTS: &str = "GUARD_VERDICTS";

/// The program and its maps. See the module.
pub struct GuardProgram {
    config: Single<GuardConfig>,
    listeners: Listeners,
    allow: List,
    deny: List,
    bans: Bans,
    prefilter: Prefilter,
    /// The bits of the prefilter that the lists need.
    listed: Filter,
    /// The prefilter may still have bits of bans that are gone.
    has_stale_bits: bool,
    locals: Locals,
    cookies: Cookies,
    verdicts: Counters,
    interfaces: Interfaces,
    /// The seeds choose a source's SYN buckets and its bits in the prefilter. They stay for as long as the
    /// maps live.
    seeds: [u64; SYN_ROWS as usize],
}

impl GuardProgram {
    pub(super) fn new(object: &mut Object) -> Result<Self, KernelError> {
        Ok(Self {
            config: Single::take(object, CONFIG)?,
            listeners: Listeners::take(object)?,
            allow: List::take(object, ALLOW)?,
            deny: List::take(object, DENY)?,
            bans: Bans::take(object)?,
            prefilter: Prefilter::take(object)?,
            listed: Filter::default(),
            has_stale_bits: false,
            locals: Locals::take(object)?,
            cookies: Cookies::take(object)?,
            verdicts: Counters::take(object, VERDICTS)?,
            interfaces: Interfaces::default(),
            seeds: random_seeds(),
        })
    }

    /// Reads the contents of adopted maps. Their seeds chose the places of sources, so the seeds stay too.
    pub(super) fn adopt(&mut self) -> Result<(), KernelError> {
        let config = self.config.read()?;
        if config.configured != 0 {
            self.seeds = config.seeds;
        }
        self.prefilter.adopt(config.classes)?;
        self.listed = self.prefilter.present().clone();
        self.bans.adopt()
    }

    /// Writes lists, rates, `dry_run` and our listeners' addresses. The limit of connections goes to
    /// `counting`, at its place in the order.
    pub(super) fn apply(
        &mut self,
        guard: &Guard,
        listeners: &[SocketAddr],
        counting: &mut CountingProgram,
    ) -> Result<(), KernelError> {
        let allow = prefixes(&guard.allow);
        let deny = prefixes(&guard.deny);
        let plan = ListenerPlan::new(listeners);
        self.allow.check_room(&allow)?;
        self.deny.check_room(&deny)?;
        Listeners::check_room(&plan)?;
        // Only entries that list sources need bits. An exemption lies within a shorter prefix, whose bits
        // lead to the look-up.
        let listed = allow.iter().chain(&deny).filter(|(_, value)| **value != 0).map(|(key, _)| *key);
        let listed = Filter::new(self.multiplier(), listed);
        let filter = listed.clone().union(&self.bans.filter(self.multiplier()));
        // Until the last step, and if a step fails, the bits of the old and the new lists stay.
        self.listed = std::mem::take(&mut self.listed).union(&listed);

        // Bits go before prefixes: the program must look up every prefix in a trie.
        let both = self.prefilter.present().clone().union(&filter);
        self.prefilter.write(&both)?;
        let present = self.config.read()?;
        self.config.write(GuardConfig { classes: both.classes, ..present })?;
        let stale_allow = self.allow.add(&allow)?;
        let stale_deny = self.deny.add(&deny)?;

        counting.set_limit(guard.connections_per_ip)?;
        // While a main address changes, its ports are looked up.
        let mains = plan.mains();
        let kept = mains.common(Mains::of(&present));
        let stale_listeners = self.listeners.add(&plan)?;
        self.listeners.write_ports(&plan, kept)?;
        let mut config = config(guard, self.seeds, mains, both.classes);
        config.flags |= self.bans_flag() | self.locals.flags() | self.cookies.flag(guard.syn_cookies);
        self.config.write(config)?;
        if kept != mains {
            self.listeners.write_ports(&plan, mains)?;
        }

        self.listeners.remove(&stale_listeners)?;
        self.allow.remove(&stale_allow)?;
        self.deny.remove(&stale_deny)?;
        self.config.write(GuardConfig { classes: filter.classes, ..config })?;
        self.prefilter.write(&filter)?;
        self.listed = listed;
        Ok(())
    }

    /// From now on, listeners on the unspecified address stand for these addresses and prefixes only. The
    /// caller keeps the list up to date by calling this again.
    ///
    /// # Errors
    /// When a map is full or cannot be written. No packet to an address on the list goes unjudged then.
    pub fn keep_locals(&mut self, locals: impl IntoIterator<Item = IpNet>) -> Result<(), KernelError> {
        let stale = self.locals.add(locals.into_iter().collect())?;
        self.write_locals_flags()?;
        self.locals.remove(&stale)
    }

    /// The addresses and prefixes that are kept, in order; none if nobody keeps them.
    pub fn locals(&self) -> impl Iterator<Item = IpNet> {
        self.locals.iter()
    }

    /// Nobody keeps the list any more: listeners on the unspecified address stand for every address again.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn forget_locals(&mut self) -> Result<(), KernelError> {
        self.locals.forget();
        self.write_locals_flags()
    }

    fn write_locals_flags(&mut self) -> Result<(), KernelError> {
        let config = self.config.read()?;
        let flags = config.flags & !locals::FLAGS | self.locals.flags();
        if flags == config.flags { Ok(()) } else { self.config.write(GuardConfig { flags, ..config }) }
    }

    /// Prepares answers to SYNs with cookies; they begin with the next change that is written. Returns the
    /// losses under attack that a kernel setting causes because it could not be changed.
    ///
    /// # Errors
    /// The reason why no SYN is answered with a cookie.
    pub fn use_cookies(&mut self, guard: &Guard, sysctls: &mut Sysctls) -> Result<Vec<String>, KernelError> {
        self.cookies.prepare(guard, sysctls)
    }

    /// When `Programs::follow_pressure` has something to do; `None`: never, as the guard is set up.
    #[must_use]
    pub fn next_look_at_pressure(&self) -> Option<Time> {
        self.cookies.next_look().filter(|_| self.is_attached())
    }

    pub(super) fn follow_pressure(&mut self, pressed_at: u64, now: Time, sysctls: &mut Sysctls) {
        self.cookies.follow(pressed_at, now, sysctls);
    }

    /// Bans a source until `end`; an earlier ban of this source is replaced. Returns the end of the replaced
    /// ban.
    ///
    /// # Errors
    /// `BansFull` when the table is full and no ban is over. All other bans stay as they were.
    pub fn ban(&mut self, source: BanSource, end: Time, now: Time) -> Result<Option<Time>, KernelError> {
        if !self.bans.has_room_for(source) {
            self.sweep_bans(now)?;
            if !self.bans.has_room_for(source) {
                return Err(KernelError::BansFull);
            }
        }
        let bits = bans::filter_of(source, self.multiplier());
        // If a later step fails, the next sweep clears the bits.
        let had_stale_bits = std::mem::replace(&mut self.has_stale_bits, true);
        self.prefilter.add(&bits)?;
        let config = self.config.read()?;
        let wanted = GuardConfig {
            flags: config.flags | GUARD_BANS,
            classes: config.classes | bits.classes,
            ..config
        };
        if config != wanted {
            self.config.write(wanted)?;
        }
        let before = self.bans.insert(source, end)?;
        self.has_stale_bits = had_stale_bits;
        Ok(before.filter(|before| *before > now))
    }

    /// Enters bans that former maps held; returns how many hold.
    pub(super) fn enter_bans(&mut self, bans: &[(BanSource, Time)], now: Time) -> Result<usize, KernelError> {
        for (source, end) in bans.iter().filter(|(_, end)| *end > now) {
            self.ban(*source, *end, now)?;
        }
        Ok(self.bans(now).count())
    }

    /// Lifts a ban and returns when it would have ended; `None` if the source is not banned.
    ///
    /// # Errors
    /// When the table cannot be written. The ban holds then.
    pub fn unban(&mut self, source: BanSource, now: Time) -> Result<Option<Time>, KernelError> {
        let end = self.bans.remove(source)?;
        self.has_stale_bits |= end.is_some();
        Ok(end.filter(|end| *end > now))
    }

    /// Removes the bans that are over, and the bits that only they needed; returns how many ended. The
    /// program compares the time itself, so sweeping only frees room and spares look-ups.
    ///
    /// Sources share bits, so bits cannot be cleared one by one. The bitmap is computed anew, once for all
    /// bans that ended.
    ///
    /// # Errors
    /// When a map cannot be written. The rest is swept next time.
    pub fn sweep_bans(&mut self, now: Time) -> Result<usize, KernelError> {
        let over: Vec<BanSource> = self.bans.over(now).collect();
        for source in &over {
            self.bans.remove(*source)?;
            self.has_stale_bits = true;
        }
        if self.has_stale_bits {
            let filter = self.listed.clone().union(&self.bans.filter(self.multiplier()));
            let config = self.config.read()?;
            let flags = config.flags & !GUARD_BANS | self.bans_flag();
            self.config.write(GuardConfig { flags, classes: filter.classes, ..config })?;
            self.prefilter.write(&filter)?;
            self.has_stale_bits = false;
        }
        Ok(over.len())
    }

    /// When the next sweep is due: at the first end of a ban, or at once if bits are left over.
    #[must_use]
    pub fn next_ban_sweep(&self) -> Option<Time> {
        if self.has_stale_bits { Some(Time::from_nanos(0)) } else { self.bans.next_end() }
    }

    /// The bans that hold, with their ends, ordered by source.
    pub fn bans(&self, now: Time) -> impl Iterator<Item = (BanSource, Time)> {
        self.bans.iter().filter(move |(_, end)| *end > now)
    }

    /// Attaches the program to one interface. `Auto` tries driver mode first, then generic mode. If an
    /// earlier run of this instance left its program pinned there, it is replaced in one step, and no packet
    /// goes unjudged.
    ///
    /// Until the first `apply`, every packet passes and is counted as `unconfigured`.
    pub(super) fn attach(
        &mut self,
        object: &mut Object,
        interface: &str,
        mode: GuardMode,
    ) -> Result<XdpMode, KernelError> {
        self.interfaces.attach(object, interface, mode)
    }

    /// Looks whether the program is still on an interface that it was attached to. If it is not, the program
    /// is detached from there for good, and the interface can be attached anew.
    pub fn look(&mut self, interface: &str) -> Presence {
        self.interfaces.look(interface)
    }

    /// The program's descriptor. The program is loaded if it is not yet.
    pub(super) fn fd<'a>(&self, object: &'a mut Object) -> Result<BorrowedFd<'a>, KernelError> {
        interfaces::program_fd(object)
    }

    /// Detaches the program from one interface, if it is attached.
    ///
    /// # Errors
    /// The reason why it stays.
    pub fn detach(&mut self, interface: &str) -> Result<(), KernelError> {
        self.interfaces.detach(interface)
    }

    /// Detaches the program from the interfaces that only an earlier run guarded.
    ///
    /// # Errors
    /// The reason why one stays.
    pub fn detach_others(&mut self, interfaces: &[String]) -> Result<(), KernelError> {
        self.interfaces.detach_others(interfaces)
    }

    /// The interfaces that the program is attached to.
    pub fn attached(&self) -> impl Iterator<Item = (&str, XdpMode)> {
        self.interfaces.attached()
    }

    /// Whether the program is attached to any interface.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached().next().is_some()
    }

    /// Pins links in this folder from now on.
    pub(super) fn pin_to(&mut self, pins: Pins) {
        self.interfaces.pin_to(pins);
    }

    /// From now on the pins outlive this process, unless `release` removes them.
    pub fn keep_pins(&mut self) {
        self.interfaces.keep_pins();
    }

    /// Detaches the program everywhere and removes every pin.
    pub(super) fn release(self) -> Result<(), PinError> {
        self.interfaces.release()
    }

    /// The number of packets by the label of their verdict, including labels at 0.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn verdicts(&self) -> Result<BTreeMap<String, u64>, KernelError> {
        let sums = self.verdicts.sums()?;
        Ok(Verdict::ALL.iter().zip(sums).map(|(verdict, sum)| (verdict.label().to_owned(), sum)).collect())
    }

    /// The guard's status without the counts of connections.
    pub(super) fn status(&self, now: Time) -> Result<GuardStatus, KernelError> {
        let attached =
            self.attached().map(|(interface, mode)| (interface.to_owned(), mode.label().to_owned()));
        Ok(GuardStatus {
            interfaces: attached.collect(),
            dry_run: self.config.read()?.flags & GUARD_DRY_RUN != 0,
            verdicts: self.verdicts()?,
            bans: self.bans(now).count() as u64,
            ..GuardStatus::default()
        })
    }

    /// The flag of `GuardConfig` that says whether there may be bans.
    fn bans_flag(&self) -> u32 {
        if self.bans.is_empty() { 0 } else { GUARD_BANS }
    }

    /// The seed that spreads the prefilter's hashed bits.
    fn multiplier(&self) -> u64 {
        let [multiplier, _] = self.seeds;
        multiplier
    }
}

/// The program's configuration, without the flags for bans and cookies.
fn config(guard: &Guard, seeds: [u64; 2], mains: Mains, classes: u32) -> GuardConfig {
    let mut flags = 0;
    for (flag, set) in [
        (GUARD_DRY_RUN, guard.dry_run),
        (GUARD_ALLOW, !guard.allow.is_empty()),
        (GUARD_DENY, !guard.deny.is_empty()),
        (GUARD_SYN_RATE, guard.syn_rate_per_ip.is_some()),
        (GUARD_CONNECTIONS, guard.connections_per_ip.is_some()),
        (GUARD_PASS_HIDDEN, guard.fragments == Fragments::Pass),
    ] {
        if set {
            flags |= flag;
        }
    }
    let [main_v4, main_v6] = mains.words();
    let cost = 1_000_000_000 / u64::from(guard.syn_rate_per_ip.unwrap_or(1).clamp(1, 1_000_000_000));
    GuardConfig {
        flags,
        configured: 1,
        syn_cost_nanos: cost,
        syn_depth_nanos: cost * u64::from(guard.syn_burst_per_ip.max(1)),
        seeds,
        main_v4,
        main_v6,
        classes,
        reserved: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_holds_the_burst() {
        let guard = |rate, burst| Guard {
            interfaces: Vec::new(),
            mode: GuardMode::Auto,
            dry_run: false,
            allow: Vec::new(),
            deny: Vec::new(),
            syn_rate_per_ip: rate,
            syn_burst_per_ip: burst,
            ban_for: Duration::from_secs(60),
            connections_per_ip: None,
            syn_cookies: SynCookies::Off,
            syn_cookies_rate: 100_000,
            fragments: Fragments::Judge,
        };
        let guard_config = |guard: &Guard| config(guard, [0; 2], Mains::NONE, 0);
        let config = guard_config(&guard(Some(1000), 2000));
        assert_eq!(
            (config.flags, config.syn_cost_nanos, config.syn_depth_nanos),
            (GUARD_SYN_RATE, 1_000_000, 2_000_000_000)
        );
        assert_eq!(guard_config(&guard(None, 2000)).flags, 0);
        // Extreme values neither divide by zero nor overflow.
        assert_eq!(
            guard_config(&guard(Some(1), u32::MAX)).syn_depth_nanos,
            u64::from(u32::MAX) * 1_000_000_000
        );
        assert_eq!(guard_config(&guard(Some(u32::MAX), 0)).syn_depth_nanos, 1);
    }
}
