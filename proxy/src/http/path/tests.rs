//! Tests of `http::path`.

use proptest::prelude::*;

use super::*;

#[test]
fn normalises() {
    for (raw, expected) in [
        ("/", "/"),
        ("/a/b?c=d", "/a/b?c=d"),
        ("//", "//"),
        ("/a//b/", "/a//b/"),
        ("/.", "/"),
        ("/..", "/"),
        ("/./", "/"),
        ("/../", "/"),
        ("/a/.", "/a/"),
        ("/a/..", "/"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/../../../../c", "/c"),
        ("/a//../b", "/a/b"),
        ("//..", "/"),
        ("/.//a", "//a"),
        ("/%2e%2E/a", "/a"),
        ("/a/%2e%2e/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/%61dmin", "/admin"),
        ("/%7euser", "/~user"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%2fb/../c", "/c"),
        ("/a%2fb/%2e", "/a%2Fb/"),
        ("/...%2f.a%5c..b", "/...%2F.a%5C..b"),
        ("/%252e%252e/", "/%252e%252e/"),
        ("/%25%32e", "/%252e"),
        ("/a%5cb", "/a%5Cb"),
        ("/...", "/..."),
        ("/.a/..b/c.", "/.a/..b/c."),
        ("/a;b=c/d", "/a;b=c/d"),
        ("/?", "/?"),
        ("/a/../?x=/../%zz&y=\\", "/?x=/../%zz&y=\\"),
        ("/{a}|\"<b>^`", "/{a}|\"<b>^`"),
    ] {
        assert_eq!(normalise(raw.as_bytes(), Rules::KEEP).as_deref(), Ok(expected), "{raw}");
    }
}

#[test]
fn refuses() {
    use PathError::*;
    for (raw, expected) in [
        (&b""[..], NotAbsolute),
        (b"a", NotAbsolute),
        (b"?a", NotAbsolute),
        (b"*", NotAbsolute),
        (b"/%", PercentEncoding),
        (b"/%1", PercentEncoding),
        (b"/%g1", PercentEncoding),
        (b"/%1g", PercentEncoding),
        (b"/%%32e", PercentEncoding),
        (b"/%u002e", PercentEncoding),
        (b"/%?41", PercentEncoding),
        (b"/%00", EncodedNul),
        (b"/a\\..\\b", ForbiddenByte),
        (b"/a b", ForbiddenByte),
        (b"/a#b", ForbiddenByte),
        (b"/a\0", ForbiddenByte),
        (b"/a\t", ForbiddenByte),
        (b"/a\x7f", ForbiddenByte),
        (b"/\xc3\xa9", ForbiddenByte),
        (b"/?\xc3\xa9", ForbiddenByte),
        (b"/?a#b", ForbiddenByte),
        (b"/..;/a", HiddenDotSegment),
        (b"/a/.;x/b", HiddenDotSegment),
        (b"/%2e%2e;/a", HiddenDotSegment),
        (b"/..%3ba", HiddenDotSegment),
        (b"/a/..%3fb", HiddenDotSegment),
        (b"/a/..%23", HiddenDotSegment),
        (b"/x/..%2fadmin", HiddenDotSegment),
        (b"/x%2f..%2fadmin", HiddenDotSegment),
        (b"/x%2F../admin", HiddenDotSegment),
        (b"/x/..%5cadmin", HiddenDotSegment),
        (b"/x%5c%2e%2E", HiddenDotSegment),
        (b"/x%2f.", HiddenDotSegment),
        (b"/x%2f.%2e;a=b%5Cadmin?q", HiddenDotSegment),
        (b"/x%2f%2f..%2fadmin/", HiddenDotSegment),
    ] {
        assert_eq!(normalise(raw, Rules::KEEP), Err(expected), "{raw:?}");
    }
}

/// Every way to write `x/../admin` whose slashes, dots or parameters are encoded or not. An origin that
/// decodes once, and takes parameters off, serves the path that was routed, or the path was refused.
#[test]
fn no_mixture_of_dots_and_slashes_leads_elsewhere() {
    const SLASHES: [&str; 5] = ["/", "%2f", "%2F", "%5c", "%5C"];
    const DOTS: [&str; 3] = [".", "%2e", "%2E"];
    const PARAMETERS: [&str; 4] = ["", ";", ";x=1", "%3B"];
    let mut refused = 0;
    for before in SLASHES {
        for after in SLASHES {
            for first in DOTS {
                for second in DOTS.into_iter().chain([""]) {
                    for parameters in PARAMETERS {
                        let raw = format!("/x{before}{first}{second}{parameters}{after}admin");
                        match normalise(raw.as_bytes(), Rules::KEEP) {
                            Ok(normal) => assert_eq!(served(&normal), *normal, "{raw}"),
                            Err(PathError::HiddenDotSegment) => refused += 1,
                            Err(other) => panic!("{raw}: {other}"),
                        }
                    }
                }
            }
        }
    }
    assert_eq!(refused, (5 * 5 * 4 - 1) * 3 * 4, "all but plain slashes without parameters");
}

/// The path that an origin serves which decodes once, takes either slash, and takes parameters off.
fn served(path: &str) -> String {
    let mut decoded = String::new();
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        decoded.push_str(&rest[..at]);
        decoded.push(u8::from_str_radix(&rest[at + 1..at + 3], 16).expect("hexadecimal").into());
        rest = &rest[at + 3..];
    }
    decoded.push_str(rest);
    let mut segments = Vec::new();
    for segment in decoded.split(['/', '\\']).skip(1) {
        match segment.split(';').next() {
            Some(".") => {}
            Some("..") => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

#[test]
fn slashes_are_kept_merged_or_refused() {
    use PathError::{EmptySegment, EncodedSlash, HiddenDotSegment};
    let merge = Rules { slashes: Slashes::Merge, ..Rules::KEEP };
    let reject = Rules { slashes: Slashes::Reject, ..Rules::KEEP };
    let reject_encoded = Rules { rejects_encoded: true, ..Rules::KEEP };
    for (rules, raw, expected) in [
        (merge, "//", Ok("/")),
        (merge, "/a//b///c//?d=//", Ok("/a/b/c/?d=//")),
        (merge, "/a//../b", Ok("/b")),
        (merge, "/a/..//b", Ok("/b")),
        (merge, "//admin", Ok("/admin")),
        (merge, "/a//..;/b", Err(HiddenDotSegment)),
        (merge, "/a%2f%2Fb", Ok("/a%2F%2Fb")),
        (reject, "/a/b/?c=//", Ok("/a/b/?c=//")),
        (reject, "//", Err(EmptySegment)),
        (reject, "/a//b", Err(EmptySegment)),
        (reject, "/a/..//b", Err(EmptySegment)),
        (reject, "/a%2f%2Fb", Ok("/a%2F%2Fb")),
        (reject_encoded, "/a//b?c=%2f", Ok("/a//b?c=%2f")),
        (reject_encoded, "/a%2fb", Err(EncodedSlash)),
        (reject_encoded, "/a%5Cb", Err(EncodedSlash)),
        (reject_encoded, "/a%252fb", Ok("/a%252fb")),
    ] {
        assert_eq!(normalise(raw.as_bytes(), rules).as_deref(), expected.as_ref().copied(), "{raw}");
    }
}

proptest! {
    #[test]
    fn is_idempotent_and_stays_below_the_root(
        path in "(/([.]|%2[eE]|%2[fF]|%25|%5[cC]|%3[bB]|%[0-9a-fA-F]{2}|[a-c;])*){1,6}([?].{0,8})?",
        slashes in prop::sample::select(&[Slashes::Keep, Slashes::Merge, Slashes::Reject][..]),
        rejects_encoded: bool,
    ) {
        let rules = Rules { slashes, rejects_encoded };
        if let Ok(once) = normalise(path.as_bytes(), rules) {
            let twice = normalise(once.as_bytes(), rules);
            prop_assert_eq!(twice.as_deref(), Ok(&*once));
            let only_path = once.split('?').next().unwrap_or_default();
            prop_assert!(only_path.starts_with('/'));
            prop_assert!(
                only_path.split('/').all(|segment| segment != "." && segment != ".."),
                "{}",
                only_path
            );
            prop_assert!(slashes == Slashes::Keep || !only_path.contains("//"), "{}", only_path);
            let encoded = ["%2F", "%5C"].iter().any(|slash| only_path.contains(slash));
            prop_assert!(!(rejects_encoded && encoded), "{}", only_path);
            let decoded = only_path.replace("%2F", "/").replace("%5C", "/").replace("%3B", ";");
            let is_dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
            prop_assert!(!decoded.split('/').any(is_dots), "{}", only_path);
        }
    }

    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = normalise(&bytes, Rules::KEEP);
    }
}
