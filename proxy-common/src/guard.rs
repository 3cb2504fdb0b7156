//! The guard's verdicts and the layout of its maps (BPF_PROG_TYPE_XDP).
//!
//! One enum names everything that can happen to a packet. It indexes the per-CPU counters, decides between
//! pass and drop, and gives the label that metrics, `/status` and tests show.

/// Declares the verdicts, each with its action and its label, in counter order.
macro_rules! verdicts {
    ($($(#[$meta:meta])* $variant:ident = $action:ident $label:literal,)*) => {
        /// The guard's decision about one packet, with the reason.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Verdict { $($(#[$meta])* $variant,)* }

        impl Verdict {
            /// Every verdict, in counter order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in metrics and `/status`.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// Whether the packet is dropped (unless `GUARD_DRY_RUN` is set).
            #[must_use]
            pub const fn drops(self) -> bool {
                match self { $(Self::$variant => verdicts!(@ $action),)* }
            }
        }
    };
    (@ pass) => { false };
    (@ drop) => { true };
}

verdicts! {
    /// Neither IPv4 nor IPv6.
    NotIp = pass "not_ip",
    /// More than two VLAN tags.
    TooManyTags = drop "too_many_tags",
    /// The packet ends inside its Ethernet or IP header.
    Truncated = pass "truncated",
    /// A header contradicts itself: wrong version, impossible length.
    Malformed = pass "malformed",
    /// A later fragment, of a packet whose first fragment is judged.
    Fragment = pass "fragment",
    /// A first fragment that ends before its TCP header does.
    TinyFragment = drop "tiny_fragment",
    /// A fragmented SYN.
    SynFragment = drop "syn_fragment",
    /// A later fragment that begins inside the TCP header.
    FragmentOffset = drop "fragment_offset",
    /// A packet in one piece that ends before its TCP header does.
    Incomplete = drop "tcp_incomplete",
    /// More IPv6 extension headers than the guard walks.
    TooManyExtensions = drop "too_many_extensions",
    /// An IPv4 source route or an IPv6 routing header names further destinations.
    SourceRouted = drop "source_routed",
    /// Not TCP, or not visibly TCP (ESP).
    NotTcp = pass "not_tcp",
    /// No listener of ours at this address and port.
    NotOurs = pass "not_ours",
    /// The guard has no configuration yet.
    Unconfigured = pass "unconfigured",
    /// The source is on the allow list.
    Allowed = pass "allowed",
    /// A segment after a connection's first one; neither list names its source.
    Established = pass "established",
    /// A SYN within its source's rate, or no rate is set.
    Syn = pass "syn",
    /// The source is on the deny list.
    Denied = drop "denied",
    /// A SYN above its source's rate. While cookies are out: an ACK with a valid cookie above that rate.
    SynRate = drop "syn_rate",
    /// The source is banned for a time.
    Banned = drop "banned",
    /// A SYN from a source at its limit of connections, or a segment that would complete a handshake of such
    /// a source.
    Connections = drop "connections",
    /// A segment of no connection without a valid cookie, while cookies are out.
    StrayAck = drop "stray_ack",
    /// A SYN that was answered with a cookie.
    Cookie = pass "syn_cookie",
    /// A SYN that needs a cookie, beyond the rate of cookies.
    CookieRate = drop "syn_cookie_rate",
}

impl Verdict {
    /// Whether the packet hides its TCP header from the guard, by its form or by fragments. With
    /// `GUARD_PASS_HIDDEN` such a packet passes.
    #[must_use]
    pub const fn is_hidden(self) -> bool {
        matches!(
            self,
            Self::TooManyTags
                | Self::TinyFragment
                | Self::SynFragment
                | Self::FragmentOffset
                | Self::Incomplete
                | Self::TooManyExtensions
                | Self::SourceRouted
        )
    }

    /// Whether the frame became the answer, which goes out where the packet came in (unless `GUARD_DRY_RUN`
    /// is set).
    #[must_use]
    pub const fn answers(self) -> bool {
        matches!(self, Self::Cookie)
    }
}

/// The number of verdicts, and so of entries in the counter array.
pub const VERDICTS: u32 = Verdict::ALL.len() as u32;

/// `GuardConfig::flags`: verdicts are counted, nothing is dropped.
pub const GUARD_DRY_RUN: u32 = 1;
/// `GuardConfig::flags`: the allow list has entries.
pub const GUARD_ALLOW: u32 = 1 << 1;
/// `GuardConfig::flags`: the deny list has entries.
pub const GUARD_DENY: u32 = 1 << 2;
/// `GuardConfig::flags`: SYNs are limited per source.
pub const GUARD_SYN_RATE: u32 = 1 << 3;
/// `GuardConfig::flags`: there may be bans.
pub const GUARD_BANS: u32 = 1 << 4;
/// `GuardConfig::flags`: connections are limited per source.
pub const GUARD_CONNECTIONS: u32 = 1 << 8;
/// `GuardConfig::flags`: SYNs are answered with cookies when the kernel says so.
pub const GUARD_COOKIES: u32 = 1 << 9;
/// `GuardConfig::flags`: the maps of local addresses are kept. On a port with `PORT_ANY`, only packets to
/// these addresses are ours.
pub const GUARD_LOCALS: u32 = 1 << 10;
/// `GuardConfig::flags`: some local addresses are whole prefixes, which are in a trie of their own.
pub const GUARD_LOCAL_NETS: u32 = 1 << 11;

/// `GuardConfig::flags`: packets that hide their TCP header are counted and pass.
pub const GUARD_PASS_HIDDEN: u32 = 1 << 12;

/// The layout of the guard's maps. It is raised when their values change their meaning but not their size:
/// pinned maps of another layout are not taken over.
pub const LAYOUT: u32 = 2;

/// Entry 0 of the configuration array. The kernel copies it without a lock. A program that reads it in that
/// instant sees a mixture of two valid configurations, for one packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuardConfig {
    /// `GUARD_…`
    pub flags: u32,
    /// 1 once the guard is configured, else 0.
    pub configured: u32,
    /// Nanoseconds that one SYN takes from its bucket: one second divided by the rate.
    pub syn_cost_nanos: u64,
    /// Nanoseconds that a full bucket holds: the cost times the burst.
    pub syn_depth_nanos: u64,
    /// Random numbers that choose a source's bucket in each row. The first one also spreads the prefilter's
    /// hashed bits.
    pub seeds: [u64; SYN_ROWS as usize],
    /// The IPv4 address of `PORT_MAIN`, as IPv4-mapped IPv6 in network order in memory.
    pub main_v4: [u64; 2],
    /// The IPv6 address of `PORT_MAIN`, in network order in memory.
    pub main_v6: [u64; 2],
    /// The prefilter's classes that are in use (`filter::V4_24` …).
    pub classes: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(core::mem::size_of::<GuardConfig>() == 80);

/// Rows of SYN buckets. A source has one bucket in each row, and is above its rate only if all are empty. So
/// sharing a bucket with a flooder costs nothing (a count-min sketch of buckets).
pub const SYN_ROWS: u32 = 2;
/// Buckets in a row, a power of two.
pub const SYN_ROW_BUCKETS: u32 = 1 << 16;
/// The row that only measures: SYNs that were answered with a cookie, by source. It drops nothing, and tells
/// whether a flood goes on.
pub const SYN_GAUGE_ROW: u32 = SYN_ROWS;
/// Buckets of all rows. A bucket is 8 bytes: the time at which it is full again, in nanoseconds of
/// CLOCK_MONOTONIC.
pub const SYN_BUCKETS: u32 = (SYN_GAUGE_ROW + 1) * SYN_ROW_BUCKETS;

/// The most bans at a time.
pub const BANS_MAX: u32 = 1 << 16;
/// The most prefixes on the allow list, and on the deny list.
pub const PREFIXES_MAX: u32 = 1 << 18;
/// The most local addresses.
pub const LOCALS_MAX: u32 = 1 << 16;
/// The most listener addresses.
pub const LISTENERS_MAX: u32 = 256;
/// The most keys that listener addresses take: each with its port, and each with `PORT_HIDDEN`. While they
/// change, the maps hold the keys of two configurations.
pub const LISTENER_KEYS_MAX: u32 = 2 * LISTENERS_MAX;

/// Bits of a port in the port array: `PORT_FAMILY_BITS` for each family's state.
pub const PORT_BITS: u32 = 4;
/// Ports in one word of the port array.
pub const PORTS_PER_WORD: u32 = u64::BITS / PORT_BITS;
/// Words of the port array.
pub const PORT_WORDS: u32 = 65_536 / PORTS_PER_WORD;
/// Bits by which the state of IPv6 is shifted; the state of IPv4 is not shifted.
pub const PORT_FAMILY_BITS: u32 = 2;
/// The port that stands for every port, for packets that do not show theirs: all addresses with any listener
/// are ours there. No listener has port 0.
pub const PORT_HIDDEN: u16 = 0;
/// A port's state in a family: no address is ours.
pub const PORT_NONE: u64 = 0;
/// A port's state in a family: every local address is ours.
pub const PORT_ANY: u64 = 1;
/// A port's state in a family: one address is ours, the main address in the configuration. Most hosts listen
/// on one address.
pub const PORT_MAIN: u64 = 2;
/// A port's state in a family: some addresses are ours and must be looked up.
pub const PORT_LOOKUP: u64 = 3;

/// The place of a port's bits: the index of the word, and how far to shift it.
#[must_use]
pub const fn port_place(port: u16) -> (u32, u32) {
    let port = port as u32;
    (port / PORTS_PER_WORD, port % PORTS_PER_WORD * PORT_BITS)
}
