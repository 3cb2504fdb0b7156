//! Tests of `http::names`.

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
