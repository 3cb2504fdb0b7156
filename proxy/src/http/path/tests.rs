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
        ("/a%2f../b", "/a%2F../b"),
        ("/..%2fa", "/..%2Fa"),
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
        assert_eq!(normalise(raw.as_bytes()).as_deref(), Ok(expected), "{raw}");
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
        (b"/..;/a", DotSegmentParameters),
        (b"/a/.;x/b", DotSegmentParameters),
        (b"/%2e%2e;/a", DotSegmentParameters),
    ] {
        assert_eq!(normalise(raw), Err(expected), "{raw:?}");
    }
}

proptest! {
    #[test]
    fn is_idempotent_and_stays_below_the_root(
        path in "(/([.]|%2[eE]|%2[fF]|%25|%[0-9a-fA-F]{2}|[a-c;])*){1,6}([?].{0,8})?",
    ) {
        if let Ok(once) = normalise(path.as_bytes()) {
            let twice = normalise(once.as_bytes());
            prop_assert_eq!(twice.as_deref(), Ok(&*once));
            let only_path = once.split('?').next().unwrap_or_default();
            prop_assert!(only_path.starts_with('/'));
            prop_assert!(
                only_path.split('/').all(|segment| segment != "." && segment != ".."),
                "{}",
                only_path
            );
        }
    }

    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = normalise(&bytes);
    }
}
