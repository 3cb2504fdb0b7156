//! Tests of `config::units`.

use proptest::prelude::*;

use super::*;

#[test]
fn durations() {
    for (text, millis) in
        [("0us", 0), ("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("1d", 86_400_000)]
    {
        assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    assert_eq!(duration("7us"), Ok(Duration::from_micros(7)));
    assert_eq!(duration("7ns"), Ok(Duration::from_nanos(7)));
    for text in [
        "",
        "s",
        "5",
        "5 s",
        "-5s",
        "+5s",
        "1.5s",
        "5S",
        "5sec",
        " 5s",
        "5s ",
        "99999999999999999999s",
        "999999999d",
    ] {
        assert!(duration(text).is_err(), "{text:?}");
    }
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("0", 0),
        ("12", 12),
        ("512B", 512),
        ("16KiB", 16384),
        ("1MiB", 1 << 20),
        ("3GiB", 3 << 30),
        ("2TiB", 2 << 40),
    ] {
        assert_eq!(size(text), Ok(bytes), "{text}");
    }
    for text in ["", "KiB", "16KB", "16 KiB", "16kib", "-1B", "1.5MiB", "99999999TiB"] {
        assert!(size(text).is_err(), "{text:?}");
    }
}

#[test]
fn rates() {
    assert_eq!(rate("100/s"), Ok(100));
    assert_eq!(rate("4294967295/s"), Ok(u32::MAX));
    for text in ["", "100", "0/s", "/s", "100/m", "4294967296/s", "100 /s", "off"] {
        assert!(rate(text).is_err(), "{text:?}");
    }
}

#[test]
fn cpu_lists() {
    assert_eq!(cpus("2-5,18"), Ok(vec![2, 3, 4, 5, 18]));
    assert_eq!(cpus("3, 1"), Ok(vec![3, 1]));
    assert_eq!(cpus("8191"), Ok(vec![8191]));
    for text in ["", ",", "1,", "a", "5-2", "1-3,2", "1--2", "-1", "8192", "0-99999999999", "+1"] {
        assert!(cpus(text).is_err(), "{text:?}");
    }
}

#[test]
fn networks() {
    for (text, shown) in [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
    ] {
        assert_eq!(network(text).map(|network| network.to_string()), Ok(shown.to_owned()), "{text}");
    }
    for text in [
        "",
        "/",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.0/+8",
        "::/129",
        "10.1.2.3/8",
        "host",
        "10.0.0/8",
        "1.2.3.4/8/9",
    ] {
        assert!(network(text).is_err(), "{text:?}");
    }
    assert!(network("10.1.2.3/8").is_err_and(|reason| reason.contains("write 10.0.0.0/8 or 10.1.2.3")));
}

proptest! {
    #[test]
    fn what_is_shown_parses_back(nanos in any::<u64>(), bytes in any::<u64>()) {
        let shown = show_duration(Duration::from_nanos(nanos));
        prop_assert_eq!(duration(&shown), Ok(Duration::from_nanos(nanos)));
        prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
    }

    #[test]
    fn arbitrary_text_never_panics(text in ".{0,40}") {
        let _ = (duration(&text), size(&text), rate(&text), cpus(&text), network(&text));
    }
}
