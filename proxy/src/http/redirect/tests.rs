//! Tests of `http::redirect`.

use proptest::prelude::*;

use super::*;
use crate::http::path;

fn rendered(template: &str, authority: &str, path_and_query: &str) -> Option<String> {
    let template = Template::parse(template).unwrap_or_else(|error| panic!("{template}: {error}"));
    let url = template.render(&Target { scheme: "http", authority, path_and_query });
    url.map(|url| String::from_utf8(url).expect("ASCII"))
}

#[test]
fn puts_the_request_into_its_places() {
    for (template, url) in [
        ("https://{host}{uri}", "https://a.example/x//y?b=c"),
        ("HTTPS://{host}:8443{uri}", "HTTPS://a.example:8443/x//y?b=c"),
        ("{scheme}://www.{host}{path}", "http://www.a.example/x//y"),
        ("{scheme}://{authority}{path}/", "http://a.example:81/x//y/"),
        ("https://{authority}", "https://a.example:81"),
        ("https://{authority}?{query}", "https://a.example:81?b=c"),
        ("https://b.example/new?{query}#top", "https://b.example/new?b=c#top"),
        ("https://b.example?next={uri}", "https://b.example?next=/x//y%3Fb%3Dc"),
        ("https://[2001:db8::1]:443{path}", "https://[2001:db8::1]:443/x//y"),
        ("/login?from={path}&at={host}", "/login?from=/x//y&at=a.example"),
        ("/new{uri}", "/new/x//y?b=c"),
        ("/", "/"),
        ("/%7Euser", "/%7Euser"),
    ] {
        assert_eq!(rendered(template, "a.example:81", "/x//y?b=c").as_deref(), Some(url), "{template}");
    }
    assert_eq!(rendered("https://{host}{uri}", "[::1]:80", "*").as_deref(), Some("https://[::1]/"));
    assert_eq!(
        rendered("https://b.example{path}?{query}", "", "/a").as_deref(),
        Some("https://b.example/a?")
    );
    assert_eq!(rendered("https://{host}{uri}", "", "/a"), None);
    assert_eq!(rendered("https://{authority}/", "", "/a"), None);
}

#[test]
fn refuses_what_could_lead_elsewhere() {
    use TemplateError::*;
    let in_host = |what: &str| InHost(what.to_owned());
    for (template, error) in [
        ("", NotAnchored),
        ("{uri}", NotAnchored),
        ("{path}/", NotAnchored),
        ("/{path}", NotAnchored),
        ("/{query}", NotAnchored),
        ("//{host}", NotAnchored),
        ("//b.example/", NotAnchored),
        ("b.example/", NotAnchored),
        ("ftp://b.example/", NotAnchored),
        ("javascript:alert(1)", NotAnchored),
        ("{scheme}", NotAnchored),
        ("{scheme}{host}", NotAnchored),
        ("{scheme}:{uri}", NotAnchored),
        ("{host}/", NotAnchored),
        ("https://", NoHost),
        ("https:///x", NoHost),
        ("https://{uri}", NoHost),
        ("https://{path}", NoHost),
        ("https://b.example{query}", in_host("{query}")),
        ("https://{query}", in_host("{query}")),
        ("https://b.example@{host}/", in_host("'@'")),
        ("https://{authority}:443", in_host("\":443\"")),
        ("https://{authority}.b.example/", in_host("\".b.example/\"")),
        ("https://{authority}{host}", in_host("{host}")),
        ("https://{host}{scheme}", in_host("{scheme}")),
        ("https://a%2eb/", in_host("'%'")),
        ("https://{host}/{Uri}", Unknown("Uri".to_owned())),
        ("https://{host}/{}", Unknown(String::new())),
        ("https://{host}/{uri", Brace),
        ("https://{host}/}", Brace),
        ("https://{host}/a b", Character(' ')),
        ("https://{host}/\r\nSet-Cookie: a", Character('\r')),
        ("https://{host}/é", Character('é')),
        ("https://{host}/\\", Character('\\')),
        ("https://{host}/%2", PercentEncoding),
        ("https://{host}/%{path}", PercentEncoding),
    ] {
        assert_eq!(Template::parse(template), Err(error), "{template}");
    }
    assert_eq!(Template::parse(&format!("/{}", "a".repeat(TEMPLATE_BYTES_MAX))), Err(TooLong));
    let many = |count: usize| format!("https://a/{}", "{path}".repeat(count));
    assert!(Template::parse(&many(PLACEHOLDERS_MAX)).is_ok());
    assert_eq!(Template::parse(&many(PLACEHOLDERS_MAX + 1)), Err(TooManyPlaceholders));
}

proptest! {
    /// For every accepted template, the URL of any request has the template's host and is fit for a field
    /// value.
    #[test]
    fn never_leaves_its_host(
        parts in proptest::collection::vec(
            "(https://|/|\\?|#|b\\.example|:|\\{(host|authority|uri|path|query|scheme)\\}|[a-z.@%\\\\-])",
            0..7,
        ),
        path in "/[a-z/.%@:;]{0,8}(\\?[a-z/.@:\\\\]{0,8})?",
        anchored in any::<bool>(),
    ) {
        let text = if anchored { format!("https://b.example{}", parts.concat()) } else { parts.concat() };
        let (Ok(template), Ok(path)) =
            (Template::parse(&text), path::normalise(path.as_bytes(), path::Rules::KEEP))
        else {
            return Ok(());
        };
        let mut hosts = std::collections::HashSet::new();
        for path_and_query in [&*path, "/", "/?x"] {
            let url = template
                .render(&Target { scheme: "https", authority: "a.example:1", path_and_query })
                .expect("a host");
            prop_assert!(url.iter().all(u8::is_ascii_graphic));
            let url = String::from_utf8(url).expect("ASCII");
            let host =
                match url.split_once("://").filter(|(scheme, _)| scheme.eq_ignore_ascii_case("https")) {
                    Some((_, rest)) => rest.split(['/', '?', '#', '\\']).next().expect("one").to_owned(),
                    None => {
                        prop_assert!(
                            url.starts_with('/') && !url.starts_with("//") && !url.starts_with("/\\"),
                            "{} {}",
                            text,
                            url
                        );
                        String::new()
                    }
                };
            prop_assert!(!host.contains('@'), "{} {}", text, url);
            hosts.insert(host);
        }
        prop_assert_eq!(hosts.len(), 1, "{} {:?}", text, hosts);
    }
}
