//! Field names that a proxy treats in a way of its own, told apart once, when a field is received. Later code
//! asks for numbers and sets of them instead of comparing text.

/// A field's name, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Name {
    /// A name that means nothing to a proxy.
    Other,
    /// Host
    Host,
    /// Content-Length
    ContentLength,
    /// Transfer-Encoding
    TransferEncoding,
    /// Connection
    Connection,
    /// Keep-Alive
    KeepAlive,
    /// TE
    Te,
    /// Upgrade
    Upgrade,
    /// HTTP2-Settings
    Http2Settings,
    /// Proxy-Connection
    ProxyConnection,
    /// Proxy-Authenticate
    ProxyAuthenticate,
    /// Proxy-Authorization
    ProxyAuthorization,
    /// Proxy-Authentication-Info
    ProxyAuthenticationInfo,
    /// Proxy, which no server sends or expects: programs that get fields as variables take `HTTP_PROXY` for
    /// the address of their own proxy.
    Proxy,
    /// Expect
    Expect,
    /// Date
    Date,
    /// Authorization
    Authorization,
    /// WWW-Authenticate
    WwwAuthenticate,
    /// X-Request-Id
    RequestId,
    /// X-Forwarded-For
    ForwardedFor,
    /// X-Forwarded-Proto
    ForwardedProto,
    /// X-Forwarded-Host
    ForwardedHost,
    /// X-Forwarded-Client-Cert
    ClientCert,
    /// Any other X-Forwarded-*, X-Real-IP or Forwarded.
    Forwarded,
    /// One of the above, spelt with `_`: an application that maps names to variables could not tell them
    /// apart. Of names with `X` any byte but letters and digits may stand for `-`.
    Spoof,
    /// Any other name with `_`.
    Underscored,
}

impl Name {
    /// Of a field. Without case, like every comparison of names; `name` is a token.
    #[must_use]
    #[inline]
    pub fn of(name: &[u8]) -> Self {
        let Ends { head, tail } = Ends::of(name);
        let is = |lower: Ends| head == lower.head && tail == lower.tail;
        let (known, is_it) = match name.len() {
            2 => (Self::Te, is(const { Ends::of(b"te") })),
            4 if is(const { Ends::of(b"date") }) => return Self::Date,
            4 => (Self::Host, is(const { Ends::of(b"host") })),
            5 => (Self::Proxy, is(const { Ends::of(b"proxy") })),
            6 => (Self::Expect, is(const { Ends::of(b"expect") })),
            7 => (Self::Upgrade, is(const { Ends::of(b"upgrade") })),
            9 => (Self::Forwarded, is(const { Ends::of(b"forwarded") })),
            10 if is(const { Ends::of(b"keep-alive") }) => return Self::KeepAlive,
            10 => (Self::Connection, is(const { Ends::of(b"connection") })),
            13 if is(const { Ends::of(b"authorization") }) => return Self::Authorization,
            14 if is(const { Ends::of(b"http2-settings") }) => return Self::Http2Settings,
            14 => (Self::ContentLength, is(const { Ends::of(b"content-length") })),
            16 if is(const { Ends::of(b"www-authenticate") }) => return Self::WwwAuthenticate,
            16 => (Self::ProxyConnection, is(const { Ends::of(b"proxy-connection") })),
            17.. if head == const { Ends::of(b"transfer-").head }
                || head == const { Ends::of(b"proxy-au").head } =>
            {
                return Self::of_long(name);
            }
            _ => (Self::Other, false),
        };
        if is_it {
            known
        } else if matches!(name, [b'x' | b'X', separator, ..] if !separator.is_ascii_alphanumeric()) {
            Self::of_extension(name)
        } else if has_underscore(name, Ends { head, tail }) {
            Self::of_underscored(name)
        } else {
            Self::Other
        }
    }

    #[inline(never)]
    fn of_long(name: &[u8]) -> Self {
        match name.len() {
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => Self::TransferEncoding,
            18 if name.eq_ignore_ascii_case(b"proxy-authenticate") => Self::ProxyAuthenticate,
            19 if name.eq_ignore_ascii_case(b"proxy-authorization") => Self::ProxyAuthorization,
            25 if name.eq_ignore_ascii_case(b"proxy-authentication-info") => Self::ProxyAuthenticationInfo,
            _ if name.contains(&b'_') => Self::of_underscored(name),
            _ => Self::Other,
        }
    }

    #[inline(never)]
    fn of_extension(name: &[u8]) -> Self {
        let known = match name.len() {
            9 if is_spelt(name, b"x-real-ip") => Self::Forwarded,
            12 if is_spelt(name, b"x-request-id") => Self::RequestId,
            15 if is_spelt(name, b"x-forwarded-for") => Self::ForwardedFor,
            16 if is_spelt(name, b"x-forwarded-host") => Self::ForwardedHost,
            17 if is_spelt(name, b"x-forwarded-proto") => Self::ForwardedProto,
            23 if is_spelt(name, b"x-forwarded-client-cert") => Self::ClientCert,
            13.. if is_spelt(&name[..12], b"x-forwarded-") => Self::Forwarded,
            _ if name.contains(&b'_') => return Self::Underscored,
            _ => return Self::Other,
        };
        if name.iter().all(|&byte| byte == b'-' || byte.is_ascii_alphanumeric()) {
            known
        } else {
            Self::Spoof
        }
    }

    /// Of a name with `_` that does not begin like an extension.
    #[inline(never)]
    fn of_underscored(name: &[u8]) -> Self {
        const KNOWN_BYTES_MAX: usize = 25;
        let mut spelt = [0; KNOWN_BYTES_MAX];
        let Some(spelt) = spelt.get_mut(..name.len()) else { return Self::Underscored };
        for (to, &from) in spelt.iter_mut().zip(name) {
            *to = if from == b'_' { b'-' } else { from };
        }
        if Self::of(spelt) == Self::Other { Self::Underscored } else { Self::Spoof }
    }

    /// Whether this stands for one name alone, not for a kind of names.
    #[must_use]
    pub const fn is_one(self) -> bool {
        !matches!(self, Self::Other | Self::Forwarded | Self::Spoof | Self::Underscored)
    }
}

/// A set of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameSet(u32);

impl NameSet {
    /// Of these.
    #[must_use]
    pub const fn of(names: &[Name]) -> Self {
        let mut set = Self(0);
        let mut at = 0;
        while at < names.len() {
            set = set.with(names[at]);
            at += 1;
        }
        set
    }

    /// And `name`.
    #[must_use]
    pub const fn with(self, name: Name) -> Self {
        Self(self.0 | 1 << name as u8)
    }

    /// Names in either set.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Names that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether `name` is in it.
    #[must_use]
    pub const fn contains(self, name: Name) -> bool {
        self.0 >> name as u8 & 1 != 0
    }

    /// Whether both have a name in common.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// The first and last eight bytes of a name of up to sixteen, which may overlap, or first and last four, or
/// two: enough to tell it from another of its length. Bit 5 is set in each, which makes letters lower case.
/// Lower-case letters, digits and `-` are the only bytes of tokens and field values that become themselves by
/// that. So a text that equals a known name is that name.
#[derive(Clone, Copy)]
struct Ends {
    head: u64,
    tail: u64,
}

impl Ends {
    #[inline]
    const fn of(name: &[u8]) -> Self {
        const LOWER: u64 = 0x2020_2020_2020_2020;
        if let (Some(head), Some(tail)) = (name.first_chunk::<8>(), name.last_chunk::<8>()) {
            Self { head: u64::from_le_bytes(*head) | LOWER, tail: u64::from_le_bytes(*tail) | LOWER }
        } else if let (Some(head), Some(tail)) = (name.first_chunk::<4>(), name.last_chunk::<4>()) {
            Self {
                head: u32::from_le_bytes(*head) as u64 | LOWER,
                tail: u32::from_le_bytes(*tail) as u64 | LOWER,
            }
        } else if let (Some(head), Some(tail)) = (name.first_chunk::<2>(), name.last_chunk::<2>()) {
            Self {
                head: u16::from_le_bytes(*head) as u64 | LOWER,
                tail: u16::from_le_bytes(*tail) as u64 | LOWER,
            }
        } else {
            Self { head: 0, tail: 0 }
        }
    }

    /// `_` alone becomes 0x7f here: a token has no such byte.
    #[inline]
    const fn has_underscore(self) -> bool {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const fn has_zero(word: u64) -> bool {
            word.wrapping_sub(ONES) & !word & (0x80 * ONES) != 0
        }
        has_zero(self.head ^ (0x7f * ONES)) || has_zero(self.tail ^ (0x7f * ONES))
    }
}

/// A word to compare field content with but for case: 2 to 16 lower-case letters, digits and `-`.
#[derive(Clone, Copy)]
pub(super) struct Word {
    len: usize,
    ends: Ends,
}

impl Word {
    pub(super) const CLOSE: Self = Self::of(b"close");
    pub(super) const KEEP_ALIVE: Self = Self::of(b"keep-alive");

    const fn of(lower: &[u8]) -> Self {
        assert!(2 <= lower.len() && lower.len() <= 16);
        Self { len: lower.len(), ends: Ends::of(lower) }
    }

    /// Whether `text` is this.
    #[inline]
    pub(super) fn is(self, text: &[u8]) -> bool {
        text.len() == self.len && {
            let ends = Ends::of(text);
            ends.head == self.ends.head && ends.tail == self.ends.tail
        }
    }
}

/// Whether a name with these ends has `_` in it.
#[inline]
fn has_underscore(name: &[u8], ends: Ends) -> bool {
    if (2..=16).contains(&name.len()) { ends.has_underscore() } else { memchr::memchr(b'_', name).is_some() }
}

/// The same with `-` for every byte that is neither letter nor digit.
fn is_spelt(name: &[u8], lower: &[u8]) -> bool {
    name.len() == lower.len()
        && name.iter().zip(lower).all(|(&byte, &expected)| {
            let byte = if byte.is_ascii_alphanumeric() { byte } else { b'-' };
            byte.eq_ignore_ascii_case(&expected)
        })
}

#[cfg(test)]
mod tests;
