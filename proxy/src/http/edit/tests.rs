//! Tests of `http::edit`.

use proptest::prelude::*;

use super::*;

fn fields(pairs: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    pairs.iter().for_each(|(name, value)| fields.push(name.as_bytes(), value.as_bytes()));
    fields
}

fn shown(fields: &Fields) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    fields.iter().map(|(name, value)| format!("{}: {}", text(name), text(value))).collect()
}

#[test]
fn sets_adds_and_removes_in_any_case() {
    let mut edits = Edits::default();
    assert!(edits.is_empty());
    edits.set(Side::Request, "x-tenant", "blue").expect("fit");
    edits.add(Side::Request, "Accept", "text/plain").expect("fit");
    edits.remove(Side::Request, "VIA").expect("fit");
    edits.remove(Side::Request, "X-Forwarded-For").expect("fit");
    edits.remove(Side::Request, "x-forwarded-port").expect("fit");
    edits.set(Side::Request, "hOsT", "Other.example:81").expect("fit");
    assert!(!edits.is_empty());
    let mut fields = fields(&[
        ("X-TENANT", "red"),
        ("Accept", "*/*"),
        ("Via", "1.1 sluice"),
        ("X-Tenant", "green"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Port", "80"),
        ("X-Forwarded-Proto", "http"),
    ]);
    edits.apply(&mut fields);
    assert_eq!(
        shown(&fields),
        ["Accept: */*", "X-Forwarded-Proto: http", "x-tenant: blue", "Accept: text/plain"]
    );
    assert_eq!(edits.host(), Some("other.example:81"));
    assert!(!fields.contains(b"via") && !fields.names().contains(Name::ForwardedFor));
    assert_eq!(fields.first(b"X-Tenant"), Some(&b"blue"[..]));
}

#[test]
fn a_field_that_a_route_sets_or_removes_has_no_second_spelling() {
    let mut edits = Edits::default();
    edits.set(Side::Request, "X-User", "ours").expect("fit");
    edits.remove(Side::Request, "X-Role").expect("fit");
    edits.remove(Side::Request, "Proxy").expect("as a guide against httpoxy may say");
    let sent = [("x_user", "a"), ("X_ROLE", "b"), ("X_Other", "c"), ("X-User", "d"), ("Proxy", "e")];
    let mut request = fields(&sent);
    edits.apply(&mut request);
    assert_eq!(shown(&request), ["X_Other: c", "X-User: ours"]);
    assert_eq!(edits.set(Side::Request, "proxy", "a"), Err(EditError::Proxy));
    assert_eq!(edits.add(Side::Request, "proxy", "a"), Err(EditError::Proxy));

    let mut edits = Edits::default();
    edits.set(Side::Response, "X-User", "ours").expect("fit");
    edits.set(Side::Response, "Proxy", "b").expect("fit");
    let mut response = fields(&[("x_user", "a")]);
    edits.apply(&mut response);
    assert_eq!(shown(&response), ["x_user: a", "X-User: ours", "Proxy: b"]);
}

#[test]
fn refuses_what_the_proxy_writes_and_what_is_no_field() {
    use EditError::*;
    for (name, value, request, response) in [
        ("", "a", Some(Name), Some(Name)),
        ("a b", "a", Some(Name), Some(Name)),
        ("a:", "a", Some(Name), Some(Name)),
        ("é", "a", Some(Name), Some(Name)),
        ("a\r\nb", "a", Some(Name), Some(Name)),
        ("a", "b\r\nc: d", Some(Value), Some(Value)),
        ("a", "\u{7f}", Some(Value), Some(Value)),
        ("a", "\0", Some(Value), Some(Value)),
        ("a", " b", Some(OuterSpace), Some(OuterSpace)),
        ("a", "b\t", Some(OuterSpace), Some(OuterSpace)),
        ("Content-Length", "1", Some(Framing), Some(Framing)),
        ("transfer-encoding", "chunked", Some(Framing), Some(Framing)),
        ("Trailer", "a", Some(Framing), Some(Framing)),
        ("Connection", "close", Some(HopByHop), Some(HopByHop)),
        ("TE", "trailers", Some(HopByHop), Some(HopByHop)),
        ("Upgrade", "h2c", Some(HopByHop), Some(HopByHop)),
        ("Proxy-Authorization", "a", Some(HopByHop), Some(HopByHop)),
        ("Expect", "100-continue", Some(Expect), Some(Expect)),
        ("X-Request-Id", "a", Some(RequestId), None),
        ("Host", "a b", Some(HostValue), Some(HostInResponse)),
        ("Host", "a", None, Some(HostInResponse)),
        ("a", "", None, None),
        ("Set-Cookie", "a=\u{e9}; b \t c", None, None),
    ] {
        for (side, expected) in [(Side::Request, request), (Side::Response, response)] {
            assert_eq!(Edits::default().set(side, name, value).err(), expected, "{name:?}: {value:?}");
            let only_set = name == "Host" && side == Side::Request;
            let expected = if only_set { Some(HostOnce) } else { expected };
            assert_eq!(Edits::default().add(side, name, value).err(), expected, "{name:?}: {value:?}");
            let expected = expected.filter(|error| !matches!(error, Value | OuterSpace));
            assert_eq!(Edits::default().remove(side, name).err(), expected, "{name:?}");
        }
    }
}

proptest! {
    /// Against the rules said plainly over a list of pairs.
    #[test]
    fn is_what_it_says(
        pairs in proptest::collection::vec(("(a|A|b|via|X-Real-IP|x-request-id)", "[a-c]{0,2}"), 0..8),
        set in proptest::collection::hash_map("(a|b|server)", "[x-z]{1,2}", 0..3),
        add in proptest::collection::vec(("(a|b|c|via)", "[x-z]{1,2}"), 0..3),
        remove in proptest::collection::vec("(A|via|X-REAL-IP|X-Request-ID|q)", 0..3),
    ) {
        let mut edits = Edits::default();
        remove.iter().for_each(|name| edits.remove(Side::Response, name).expect("fit"));
        set.iter().for_each(|(name, value)| edits.set(Side::Response, name, value).expect("fit"));
        add.iter().for_each(|(name, value)| edits.add(Side::Response, name, value).expect("fit"));
        let borrowed: Vec<(&str, &str)> =
            pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut fields = fields(&borrowed);
        edits.apply(&mut fields);

        let goes =
            |name: &str| remove.iter().chain(set.keys()).any(|other| other.eq_ignore_ascii_case(name));
        let kept =
            pairs.iter().filter(|(name, _)| !goes(name)).map(|(name, value)| format!("{name}: {value}"));
        let behind = set.iter().map(|(name, value)| format!("{name}: {value}"));
        let behind = behind.chain(add.iter().map(|(name, value)| format!("{name}: {value}")));
        prop_assert_eq!(shown(&fields), kept.chain(behind).collect::<Vec<_>>());
        for (name, _) in &pairs {
            let there = fields.iter().any(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes()));
            prop_assert_eq!(fields.contains(name.as_bytes()), there);
        }
    }
}
