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
    /// Expect
    Expect,
    /// Date
    Date,
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
    /// A name that starts with `X` like one of the above, spelt with `_`: an application that maps names to
    /// variables could not tell them apart.
    Spoof,
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
            6 => (Self::Expect, is(const { Ends::of(b"expect") })),
            7 => (Self::Upgrade, is(const { Ends::of(b"upgrade") })),
            9 => (Self::Forwarded, is(const { Ends::of(b"forwarded") })),
            10 if is(const { Ends::of(b"keep-alive") }) => return Self::KeepAlive,
            10 => (Self::Connection, is(const { Ends::of(b"connection") })),
            14 if is(const { Ends::of(b"http2-settings") }) => return Self::Http2Settings,
            14 => (Self::ContentLength, is(const { Ends::of(b"content-length") })),
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
        } else if matches!(name, [b'x' | b'X', b'-' | b'_', ..]) {
            Self::of_extension(name)
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
            _ => return Self::Other,
        };
        if name.contains(&b'_') { Self::Spoof } else { known }
    }

    /// Whether this stands for one name alone, not for a kind of names.
    #[must_use]
    pub const fn is_one(self) -> bool {
        !matches!(self, Self::Other | Self::Forwarded | Self::Spoof)
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

/// The same with `_` as `-`.
fn is_spelt(name: &[u8], lower: &[u8]) -> bool {
    name.len() == lower.len()
        && name.iter().zip(lower).all(|(&byte, &expected)| {
            let byte = if byte == b'_' { b'-' } else { byte };
            byte.eq_ignore_ascii_case(&expected)
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: &[(&str, Name)] = &[
        ("host", Name::Host),
        ("content-length", Name::ContentLength),
        ("transfer-encoding", Name::TransferEncoding),
        ("connection", Name::Connection),
        ("keep-alive", Name::KeepAlive),
        ("te", Name::Te),
        ("upgrade", Name::Upgrade),
        ("http2-settings", Name::Http2Settings),
        ("proxy-connection", Name::ProxyConnection),
        ("proxy-authenticate", Name::ProxyAuthenticate),
        ("proxy-authorization", Name::ProxyAuthorization),
        ("proxy-authentication-info", Name::ProxyAuthenticationInfo),
        ("expect", Name::Expect),
        ("date", Name::Date),
        ("x-request-id", Name::RequestId),
        ("x-forwarded-for", Name::ForwardedFor),
        ("x-forwarded-proto", Name::ForwardedProto),
        ("x-forwarded-host", Name::ForwardedHost),
        ("x-forwarded-client-cert", Name::ClientCert),
        ("x-forwarded-port", Name::Forwarded),
        ("x-forwarded-x", Name::Forwarded),
        ("x-real-ip", Name::Forwarded),
        ("forwarded", Name::Forwarded),
        ("x_forwarded_for", Name::Spoof),
        ("x-forwarded-my_port", Name::Spoof),
        ("x_real-ip", Name::Spoof),
        ("x-request_id", Name::Spoof),
    ];

    /// The result that `Name::of` must have, without tricks.
    fn naive(name: &str) -> Name {
        let lower = name.to_ascii_lowercase();
        let spelt = lower.replace('_', "-");
        let ours = spelt.starts_with("x-forwarded-") && spelt.len() > 12
            || spelt == "x-request-id"
            || spelt == "x-real-ip";
        match KNOWN.iter().find(|(known, _)| *known == lower) {
            Some(&(_, name)) => name,
            None if ours && lower.contains('_') => Name::Spoof,
            None if ours => Name::Forwarded,
            None => Name::Other,
        }
    }

    #[test]
    fn every_known_name_is_found_in_any_case() {
        for &(text, name) in KNOWN {
            for spelling in
                [text.to_owned(), text.to_ascii_uppercase(), text[..1].to_ascii_uppercase() + &text[1..]]
            {
                assert_eq!(Name::of(spelling.as_bytes()), name, "{spelling}");
            }
        }
    }

    #[test]
    fn one_other_byte_makes_another_name() {
        for &(text, _) in KNOWN {
            for at in 0..text.len() {
                for byte in (0..128_u8).filter(|&byte| crate::http::grammar::is_tchar(byte)) {
                    let mut changed = text.as_bytes().to_vec();
                    changed[at] = byte;
                    let changed = String::from_utf8(changed).expect("ASCII");
                    assert_eq!(Name::of(changed.as_bytes()), naive(&changed), "{changed}");
                }
            }
            assert_eq!(Name::of(&text.as_bytes()[1..]), Name::Other, "{text}");
        }
    }

    proptest! {
        #[test]
        fn short_text_is_compared_without_case(text in "\\PC{0,16}|[ckloseCKLOSE]{5}|[a-zA-Z-]{10}") {
            for (lower, word) in
                [("te", Word::of(b"te")), ("close", Word::CLOSE), ("keep-alive", Word::KEEP_ALIVE)]
            {
                prop_assert_eq!(word.is(text.as_bytes()), text.eq_ignore_ascii_case(lower));
                prop_assert!(word.is(lower.to_ascii_uppercase().as_bytes()));
            }
        }

        #[test]
        fn tokens_are_told_apart_as_text_is(
            name in "[xX][-_](forwarded[-_]|real[-_]|request[-_])?[!-~&&[^:]]{0,8}|[a-zA-Z0-9_-]{0,26}",
        ) {
            prop_assert_eq!(Name::of(name.as_bytes()), naive(&name));
        }

        #[test]
        fn sets_are_sets(
            members in proptest::collection::vec(0..KNOWN.len(), 0..6),
            others in proptest::collection::vec(0..KNOWN.len(), 0..3),
        ) {
            let names = |indices: &[usize]| indices.iter().map(|&index| KNOWN[index].1).collect::<Vec<_>>();
            let (members, others) = (names(&members), names(&others));
            let set = NameSet::of(&members);
            for (_, name) in KNOWN {
                prop_assert_eq!(set.contains(*name), members.contains(name));
            }
            prop_assert_eq!(
                set.meets(NameSet::of(&others)),
                others.iter().any(|name| members.contains(name))
            );
            for (_, name) in KNOWN {
                prop_assert_eq!(
                    set.without(NameSet::of(&others)).contains(*name),
                    members.contains(name) && !others.contains(name)
                );
            }
            prop_assert_eq!(set.or(NameSet::of(&others)), NameSet::of(&[members, others].concat()));
        }
    }
}
