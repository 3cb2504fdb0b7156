//! Field names that a proxy treats in a way of its own, told apart once, when a field is received: what follows asks for numbers
//! and sets of them instead of comparing text.

/// What a field is called, as far as it matters here.
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
    /// X-Request-Id
    RequestId,
    /// X-Forwarded-For
    ForwardedFor,
    /// X-Forwarded-Proto
    ForwardedProto,
    /// X-Forwarded-Host
    ForwardedHost,
    /// Any other X-Forwarded-*, X-Real-IP or Forwarded.
    Forwarded,
    /// A name that starts with `X` like one of the above, spelt with `_`: an application that maps names to variables could not tell
    /// them apart.
    Spoof,
}

impl Name {
    /// Of a field. Without case, like every comparison of names; `name` is a token.
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        let (known, is_it) = match name.len() {
            2 => (Self::Te, is(name, b"te")),
            4 => (Self::Host, is(name, b"host")),
            6 => (Self::Expect, is(name, b"expect")),
            7 => (Self::Upgrade, is(name, b"upgrade")),
            9 if is(name, b"forwarded") => return Self::Forwarded,
            10 if is(name, b"keep-alive") => return Self::KeepAlive,
            10 => (Self::Connection, is(name, b"connection")),
            14 if is(name, b"http2-settings") => return Self::Http2Settings,
            14 => (Self::ContentLength, is(name, b"content-length")),
            16 => (Self::ProxyConnection, is(name, b"proxy-connection")),
            17 => (Self::TransferEncoding, is(name, b"transfer-encoding")),
            18 => (Self::ProxyAuthenticate, is(name, b"proxy-authenticate")),
            19 => (Self::ProxyAuthorization, is(name, b"proxy-authorization")),
            25 => (Self::ProxyAuthenticationInfo, is(name, b"proxy-authentication-info")),
            _ => (Self::Other, false),
        };
        match name {
            _ if is_it => known,
            [b'x' | b'X', b'-' | b'_', ..] => Self::of_extension(name),
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

    /// What is in one of both.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
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

/// Whether `name` is `lower` but for case: `lower` holds lower-case letters, digits and `-`, which are the tokens' only bytes that setting
/// bit 5 turns into themselves. Eight bytes at a time, the last eight may overlap.
pub(super) fn is<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    const fn eight(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes([
            bytes[at],
            bytes[at + 1],
            bytes[at + 2],
            bytes[at + 3],
            bytes[at + 4],
            bytes[at + 5],
            bytes[at + 6],
            bytes[at + 7],
        ])
    }
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    let mut difference = 0;
    if N < 8 {
        for (byte, lower) in name.iter().zip(lower) {
            difference |= u64::from((byte | 0x20) ^ lower);
        }
    } else {
        for at in (0..N).step_by(8) {
            let at = at.min(N - 8);
            difference |= (eight(name, at) | 0x2020_2020_2020_2020) ^ eight(lower, at);
        }
    }
    difference == 0
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
        ("x-request-id", Name::RequestId),
        ("x-forwarded-for", Name::ForwardedFor),
        ("x-forwarded-proto", Name::ForwardedProto),
        ("x-forwarded-host", Name::ForwardedHost),
        ("x-forwarded-port", Name::Forwarded),
        ("x-forwarded-x", Name::Forwarded),
        ("x-real-ip", Name::Forwarded),
        ("forwarded", Name::Forwarded),
        ("x_forwarded_for", Name::Spoof),
        ("x-forwarded-my_port", Name::Spoof),
        ("x_real-ip", Name::Spoof),
        ("x-request_id", Name::Spoof),
    ];

    /// What `Name::of` has to be, without tricks.
    fn naive(name: &str) -> Name {
        let lower = name.to_ascii_lowercase();
        let spelt = lower.replace('_', "-");
        let ours = spelt.starts_with("x-forwarded-") && spelt.len() > 12 || spelt == "x-request-id" || spelt == "x-real-ip";
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
            for spelling in [text.to_owned(), text.to_ascii_uppercase(), text[..1].to_ascii_uppercase() + &text[1..]] {
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
        fn tokens_are_told_apart_as_text_is(name in "[xX][-_](forwarded[-_]|real[-_]|request[-_])?[!-~&&[^:]]{0,8}|[a-zA-Z0-9_-]{0,26}") {
            prop_assert_eq!(Name::of(name.as_bytes()), naive(&name));
        }

        #[test]
        fn sets_are_sets(members in proptest::collection::vec(0..KNOWN.len(), 0..6), others in proptest::collection::vec(0..KNOWN.len(), 0..3)) {
            let names = |indices: &[usize]| indices.iter().map(|&index| KNOWN[index].1).collect::<Vec<_>>();
            let (members, others) = (names(&members), names(&others));
            let set = NameSet::of(&members);
            for (_, name) in KNOWN {
                prop_assert_eq!(set.contains(*name), members.contains(name));
            }
            prop_assert_eq!(set.meets(NameSet::of(&others)), others.iter().any(|name| members.contains(name)));
            prop_assert_eq!(set.or(NameSet::of(&others)), NameSet::of(&[members, others].concat()));
        }
    }
}
