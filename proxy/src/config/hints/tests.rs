//! Tests of `config::hints`.

use super::*;

#[test]
fn usual_mistakes_have_a_suggestion_that_is_right() {
    let (duration, size, rate) = (units::DURATION_FORM, units::SIZE_FORM, units::RATE_FORM);
    for (text, form, fixed) in [
        ("30", duration, "30s"),
        ("30 s", duration, "30s"),
        ("30S", duration, "30s"),
        ("5min", duration, "5m"),
        ("250 msec", duration, "250ms"),
        ("1.5s", duration, "1500ms"),
        ("0.5h", duration, "30m"),
        ("16KB", size, "16KiB"),
        ("16 kib", size, "16KiB"),
        ("1.5MiB", size, "1536KiB"),
        ("64M", size, "64MiB"),
        ("100", rate, "100/s"),
        ("100 /sec", rate, "100/s"),
    ] {
        assert_eq!(for_text(text, form), Some(format!("write \"{fixed}\"")), "{text}");
    }
    for (text, form) in [
        ("", duration),
        ("s", duration),
        ("soon", duration),
        ("7 parsecs", duration),
        ("30s", duration),
        ("1.0001s", duration),
        ("1.", duration),
        ("9999999999999999999999", duration),
        ("-1", size),
        ("1.5", size),
        ("0", rate),
        ("100/m", rate),
        ("x", "a string"),
    ] {
        assert_eq!(for_text(text, form), None, "{text}");
    }
}

#[test]
fn addresses_get_their_port_or_brackets() {
    for (text, fixed) in [
        ("127.0.0.1", "127.0.0.1:8080"),
        ("::1", "[::1]:8080"),
        (":80", "[::]:80"),
        ("*:80", "[::]:80"),
        ("localhost:80", "127.0.0.1:80"),
        ("8080", "127.0.0.1:8080"),
        ("2001:db8::zz:80", ""),
        ("example.com:80", ""),
        ("127.0.0.1:0", ""),
        (":x", ""),
    ] {
        let expected = (!fixed.is_empty()).then(|| format!("write \"{fixed}\""));
        assert_eq!(for_address(text), expected, "{text}");
    }
}
