//! The guard's settings.

use std::time::Duration;

use ipnet::IpNet;

/// `[guard]`
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    /// Interface names; empty: no XDP.
    pub interfaces: Vec<String>,
    /// `guard.mode`
    pub mode: GuardMode,
    /// Only count verdicts; drop nothing.
    pub dry_run: bool,
    /// Sources that always pass.
    pub allow: Vec<IpNet>,
    /// Sources that are always dropped; `deny_file` is merged in.
    pub deny: Vec<IpNet>,
    /// SYNs per second per source; `None`: off.
    pub syn_rate_per_ip: Option<u32>,
    /// SYNs that a source may send at once.
    pub syn_burst_per_ip: u32,
    /// How long a ban holds if `sluice ban` names no time.
    pub ban_for: Duration,
    /// Connections at a time per source; `None`: no limit.
    pub connections_per_ip: Option<u32>,
    /// When SYNs are answered with cookies.
    pub syn_cookies: SynCookies,
    /// Cookies per second, to all sources together.
    pub syn_cookies_rate: u32,
    /// Whether packets that hide their TCP header are dropped.
    pub fragments: Fragments,
}

/// `guard.fragments`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragments {
    /// Whole first fragments are judged; fragmented SYNs and hidden TCP headers are dropped.
    Judge,
    /// Fragments and hidden TCP headers pass, unless their source is denied or banned.
    Pass,
}

/// `guard.syn_cookies`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynCookies {
    /// While a listener's request queue is full, or a source's SYNs exceed its rate.
    Auto,
    /// Always.
    Always,
    /// Never by the guard. The kernel's own setting is left alone.
    Off,
}

/// `guard.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardMode {
    /// Driver mode, else generic mode, else none with a warning.
    Auto,
    /// Driver mode or an error.
    Driver,
    /// Generic mode or an error.
    Generic,
}
