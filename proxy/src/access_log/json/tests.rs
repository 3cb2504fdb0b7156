//! Tests of `access_log::json`.

use proptest::prelude::*;

use super::*;

fn read(bytes: &[u8]) -> String {
    let mut out = Vec::new();
    string(bytes, &mut out);
    assert!(out.iter().all(|byte| matches!(byte, b' '..=b'~')), "{}", out.escape_ascii());
    serde_json::from_slice(&out).expect("JSON")
}

#[test]
fn hostile_strings_come_back_as_they_were() {
    for text in [
        "",
        "plain",
        "\"\\/\u{8}\t\n\r\u{0}\u{7f}",
        "zoë \u{2028}\u{2029}\u{85} \u{1f600}",
        "\\u0041",
        "</script>",
    ] {
        assert_eq!(read(text.as_bytes()), text);
    }
    assert_eq!(read(b"a\xffb\xc3"), "a\u{fffd}b\u{fffd}");
    assert_eq!(read(b"\xed\xa0\x80"), "\u{fffd}\u{fffd}\u{fffd}", "a surrogate is no UTF-8");
}

#[test]
fn a_long_string_is_cut_between_characters() {
    let text = "x".repeat(STRING_BYTES_MAX - 1) + "é" + "rest";
    assert_eq!(read(text.as_bytes()), "x".repeat(STRING_BYTES_MAX - 1) + "…");
    let all = "y".repeat(STRING_BYTES_MAX);
    assert_eq!(read(all.as_bytes()), all);
}

#[test]
fn objects_nest_and_hold_every_kind() {
    let mut out = Vec::new();
    let mut object = Object::open(&mut out);
    object.string("a", None);
    object.string("b", b"x".as_slice());
    object.number("c", u64::MAX);
    object.number("d", None);
    object.boolean("e", Some(false));
    let mut inner = object.object("f");
    inner.plain("g", |out| out.extend_from_slice(b"y"));
    inner.close();
    object.boolean("h", None);
    object.close();
    let expected = r#"{"a":null,"b":"x","c":18446744073709551615,"d":null,"e":false,"f":{"g":"y"},"h":null}"#;
    assert_eq!(String::from_utf8_lossy(&out), expected);
}

proptest! {
    #[test]
    fn any_bytes_are_one_string_on_one_line(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(read(&bytes), String::from_utf8_lossy(&bytes));
    }
}
