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
    ("proxy", Name::Proxy),
    ("expect", Name::Expect),
    ("date", Name::Date),
    ("authorization", Name::Authorization),
    ("www-authenticate", Name::WwwAuthenticate),
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
    ("x.forwarded.for", Name::Spoof),
    ("x~real|ip", Name::Spoof),
    ("content_length", Name::Spoof),
    ("transfer_encoding", Name::Spoof),
    ("keep_alive", Name::Spoof),
    ("proxy_authentication-info", Name::Spoof),
    ("x_user", Name::Underscored),
    ("x-user_name", Name::Underscored),
    ("a_", Name::Underscored),
    ("_", Name::Underscored),
    ("transfer-_encodings", Name::Underscored),
    ("sec_ch_ua_platform_version", Name::Underscored),
    ("a_name_that_is_longer_than_any_that_matters", Name::Underscored),
];

/// The result that `Name::of` must have, without tricks.
fn naive(name: &str) -> Name {
    let lower = name.to_ascii_lowercase();
    let with_dashes = |is_dash: fn(char) -> bool| lower.replace(is_dash, "-");
    let known = |name: &str| match KNOWN.iter().find(|(known, _)| *known == name) {
        Some(&(_, name)) => Some(name),
        None if name.starts_with("x-forwarded-") && name.len() > 12 => Some(Name::Forwarded),
        None => None,
    };
    let any_dashes = with_dashes(|letter| !letter.is_ascii_alphanumeric());
    if let Some(name) = known(&lower).filter(|_| !lower.contains('_')) {
        return if name == Name::Forwarded && any_dashes != lower { Name::Spoof } else { name };
    }
    if any_dashes.starts_with("x-") && known(&any_dashes).is_some()
        || known(&with_dashes(|letter| letter == '_')).is_some()
    {
        Name::Spoof
    } else if lower.contains('_') {
        Name::Underscored
    } else {
        Name::Other
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
        assert_eq!(Name::of(&text.as_bytes()[1..]), naive(&text[1..]), "{text}");
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
        name in "[xX][-_](forwarded[-_]|real[-_]|request[-_])?[!-~&&[^:]]{0,8}|[a-zA-Z0-9_-]{0,26}\
            |[a-z]{1,8}_[a-z]{1,16}",
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
