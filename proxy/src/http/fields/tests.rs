//! Tests of `http::fields`.

use proptest::prelude::*;

use super::*;

const NAMES: &[&str] =
    &["Host", "hOST", "A", "b", "TE", "Connection", "X-Real-IP", "Forwarded", "X-Forwarded-For", "x_real_ip"];

fn pairs() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    proptest::collection::vec((proptest::sample::select(NAMES), "[a-z]{0,3}"), 0..8)
}

#[test]
fn buffers_are_kept_up_to_a_bound_and_come_back_empty() {
    let list = |bytes: usize, count: usize| {
        let mut fields = Fields::with_capacity(16, 1);
        assert!(fields.is_empty() && fields.iter().next().is_none());
        for _ in 0..count {
            fields.push(b"Host", &vec![b'a'; bytes]);
        }
        fields
    };
    drop(list(10, 1));
    assert_eq!(spare::kept().0, 1);
    assert!(!Fields::with_capacity(0, 0).contains(b"host"));
    assert_eq!(spare::kept().0, 1);
    drop([list(spare::LINES_BYTES, 1), list(1, spare::ENTRIES + 1)]);
    drop((0..spare::LISTS + 5).map(|_| list(100, 2)).collect::<Vec<_>>());
    let (lists, lines, entries) = spare::kept();
    assert_eq!(lists, spare::LISTS);
    assert!(lines <= spare::LINES_BYTES && entries <= spare::ENTRIES);
    assert!(lines > 0);
}

proptest! {
    /// Against a plain list of names and values.
    #[test]
    fn is_the_list_it_was_made_of(
        pairs in pairs(),
        kept in any::<u8>(),
        left_out in proptest::sample::select(NAMES),
    ) {
        let mut fields = Fields::new();
        for (name, value) in &pairs {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        let mut at = 0;
        fields.retain(|_, _| {
            at += 1;
            kept >> (at - 1) & 1 != 0
        });
        let pairs: Vec<_> = pairs
            .into_iter()
            .enumerate()
            .filter(|(at, _)| kept >> at & 1 != 0)
            .map(|(_, pair)| pair)
            .collect();

        let listed: Vec<_> =
            pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        prop_assert_eq!(fields.iter().collect::<Vec<_>>(), listed);
        for name in NAMES.iter().chain(&["C", "expect"]) {
            let expected: Vec<_> = pairs
                .iter()
                .filter(|(other, _)| other.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.as_bytes())
                .collect();
            prop_assert_eq!(fields.first(name.as_bytes()), expected.first().copied());
            prop_assert_eq!(fields.contains(name.as_bytes()), !expected.is_empty());
            prop_assert_eq!(fields.all(name.as_bytes()).collect::<Vec<_>>(), expected);
            let is_one = Name::of(name.as_bytes());
            prop_assert_eq!(
                fields.names().contains(is_one),
                pairs.iter().any(|(other, _)| Name::of(other.as_bytes()) == is_one)
            );
        }
        let left_out = Name::of(left_out.as_bytes());
        let mut written = Vec::new();
        fields.write(NameSet::of(&[left_out]), &mut written);
        let expected: String = pairs
            .iter()
            .filter(|(name, _)| Name::of(name.as_bytes()) != left_out)
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        prop_assert_eq!(String::from_utf8_lossy(&written), expected);
    }
}
