//! The rules case by case, and held against themselves said plainly.

use proptest::prelude::*;

use super::*;
use crate::route::Host;
use crate::route::{Action, RoutePath};

/// Hosts, `=` before an exact path, listeners.
type Spec<'a> = (&'a [&'a str], &'a str, &'a [&'a str]);

fn route(index: usize, (hosts, path, listeners): Spec<'_>) -> Arc<model::Route> {
    Arc::new(model::Route {
        hosts: hosts.iter().map(|host| Host::parse(host).expect("a host")).collect(),
        path: match path.strip_prefix('=') {
            Some(path) => RoutePath::Exact(path.into()),
            None => RoutePath::Prefix(path.into()),
        },
        listeners: listeners.iter().map(|&name| name.to_owned()).collect(),
        // Only the route that was found counts here.
        ..model::Route::new(Action::Upstream(index))
    })
}

fn table(specs: &[Spec<'_>]) -> RouteTable {
    RouteTable::new(specs.iter().enumerate().map(|(index, spec)| route(index, *spec)).collect())
}

fn index(route: &model::Route) -> usize {
    match route.action {
        Action::Upstream(index) => index,
        _ => panic!("all lead to an upstream"),
    }
}

fn found(table: &RouteTable, listener: &str, authority: &str, path: &str) -> Option<usize> {
    table.find(listener, authority, path).map(|route| index(route))
}

/// Which of these prefixes takes a path.
fn check_paths(paths: &[&str], cases: &[(&str, Option<&str>)]) {
    let specs: Vec<Spec<'_>> = paths.iter().map(|&path| (&[][..], path, &[][..])).collect();
    let table = table(&specs);
    for (path, expected) in cases {
        assert_eq!(found(&table, "web", "example.com", path).map(|index| paths[index]), *expected, "{path}");
    }
}

#[test]
fn the_longest_prefix_at_a_segment_boundary_wins() {
    check_paths(
        &["/", "/api", "/api/v1", "/files/", "/ap"],
        &[
            ("/", Some("/")),
            ("*", Some("/")),
            ("/a", Some("/")),
            ("/ap", Some("/ap")),
            ("/ap/i", Some("/ap")),
            ("/api", Some("/api")),
            ("/api/", Some("/api")),
            ("/api/x", Some("/api")),
            ("/api.x", Some("/")),
            ("/apis", Some("/")),
            ("/api//v1", Some("/api")),
            ("/api/v1", Some("/api/v1")),
            ("/api/v1/x", Some("/api/v1")),
            ("/api/v10", Some("/api")),
            ("/files", Some("/")),
            ("/files/", Some("/files/")),
            ("/files/x", Some("/files/")),
            ("/files//", Some("/files/")),
            ("/API", Some("/")),
            ("//api", Some("/")),
            ("/~", Some("/")),
        ],
    );
}

#[test]
fn an_exact_path_wins_over_every_prefix() {
    check_paths(
        &["/", "=/api", "/api", "=/api/v1", "=/", "=/files/"],
        &[
            ("/", Some("=/")),
            ("*", Some("/")),
            ("/api", Some("=/api")),
            ("/api/", Some("/api")),
            ("/api/v1", Some("=/api/v1")),
            ("/api/v1/", Some("/api")),
            ("/files", Some("/")),
            ("/files/", Some("=/files/")),
            ("/files/x", Some("/")),
        ],
    );
    check_paths(&["=/a"], &[("/a", Some("=/a")), ("/a/", None), ("/", None), ("*", None)]);
    check_paths(&["=/"], &[("/", Some("=/")), ("/a", None), ("*", None)]);
    check_paths(&["/", "=/"], &[("/", Some("=/")), ("/a", Some("/"))]);
}

#[test]
fn without_a_match_there_is_no_route() {
    check_paths(&[], &[("/", None), ("*", None)]);
    check_paths(&["/a"], &[("/", None), ("/b", None), ("/ab", None), ("*", None), ("", None)]);
}

#[test]
fn the_most_specific_host_decides_alone() {
    let specs: [Spec<'_>; 8] = [
        (&[], "/", &[]),
        (&["example.com", "EXAMPLE.org."], "/", &[]),
        (&["*.example.com"], "/", &[]),
        (&["*.b.example.com"], "/only", &[]),
        (&["a.b.example.com"], "/", &[]),
        (&["[2001:db8::1]"], "/", &[]),
        (&["127.0.0.1"], "/", &[]),
        (&["*.com"], "/", &[]),
    ];
    let table = table(&specs);
    for (authority, path, expected) in [
        ("example.com", "/", Some(1)),
        ("example.com:8443", "/", Some(1)),
        ("example.com.", "/", Some(1)),
        ("example.com.:80", "/", Some(1)),
        ("example.org", "/", Some(1)),
        ("www.example.com", "/", Some(2)),
        ("www.example.com.:1", "/", Some(2)),
        ("x.y.z.example.com", "/", Some(2)),
        ("b.example.com", "/only", Some(2)),
        ("c.b.example.com", "/only", Some(3)),
        ("d.c.b.example.com", "/only/x", Some(3)),
        // No other host stands in.
        ("c.b.example.com", "/", None),
        ("a.b.example.com", "/only", Some(4)),
        ("other.com", "/", Some(7)),
        ("com", "/", Some(0)),
        (".com", "/", Some(0)),
        (".example.com", "/", Some(7)),
        ("wwwexample.com", "/", Some(7)),
        ("example.net", "/", Some(0)),
        ("", "/", Some(0)),
        ("[2001:db8::1]", "/", Some(5)),
        ("[2001:db8:0:0::1]:8080", "/", Some(5)),
        ("[2001:db8::2]", "/", Some(0)),
        ("127.0.0.1:8080", "/", Some(6)),
        ("127.0.0.2", "/", Some(0)),
    ] {
        assert_eq!(found(&table, "web", authority, path), expected, "{authority} {path}");
    }
}

#[test]
fn a_route_that_names_the_listener_wins_a_tie_only() {
    let specs: [Spec<'_>; 5] = [
        (&[], "/", &[]),
        (&[], "/", &["inside", "admin"]),
        (&[], "/long", &[]),
        (&["example.com"], "/", &[]),
        (&["example.com"], "/long/x", &["inside"]),
    ];
    let table = table(&specs);
    for (listener, authority, path, expected) in [
        ("web", "a", "/", Some(0)),
        ("inside", "a", "/", Some(1)),
        ("admin", "a", "/x", Some(1)),
        ("inside", "a", "/long", Some(2)),
        ("admin", "example.com", "/", Some(3)),
        ("inside", "example.com", "/", Some(3)),
        ("inside", "example.com", "/long/x/y", Some(4)),
        ("web", "example.com", "/long/x/y", Some(3)),
    ] {
        assert_eq!(found(&table, listener, authority, path), expected, "{listener} {authority} {path}");
    }
}

#[test]
fn of_equal_routes_the_first_counts() {
    let specs: [Spec<'_>; 4] = [(&[], "/a", &[]), (&[], "/b", &[]), (&[], "/a", &[]), (&[], "=/a", &[])];
    let table = table(&specs);
    assert_eq!((found(&table, "", "", "/a/"), found(&table, "", "", "/a")), (Some(0), Some(3)));
    assert_eq!(table.routes().len(), 4);
}

/// A lookup takes a step for each prefix that begins another, not for each that is there, and none for a
/// client's slashes or labels.
#[test]
fn ten_thousand_routes_and_hostile_requests() {
    let names: Vec<String> = (0..10_000).map(|number| format!("h{number}.example")).collect();
    let paths: Vec<String> = (0..10_000).map(|number| format!("/service-{number}/api")).collect();
    let mut routes: Vec<_> =
        names.iter().enumerate().map(|(at, name)| route(at, (&[name], "/", &[]))).collect();
    routes.extend(paths.iter().enumerate().map(|(at, path)| route(at, (&[], path, &[]))));
    let table = RouteTable::new(routes);
    for number in [0, 1, 99, 5_000, 9_999] {
        assert_eq!(found(&table, "web", &names[number], "/x"), Some(number));
        assert_eq!(found(&table, "web", "other", &format!("{}/x", paths[number])), Some(number));
    }
    assert_eq!(found(&table, "web", "other", "/service-10000/api"), None);
    assert_eq!(found(&table, "web", &"a.".repeat(120), &"/".repeat(8000)), None);
    assert!(table.0.common.any.entries.iter().all(|entry| entry.parent.is_none()));
}

const HOSTS: &[&str] = &["a", "b.a", "*.a", "*.b.a", "c.b.a", "[::1]"];
const AUTHORITIES: &[&str] = &["a", "b.a", "c.b.a:1", "d.c.b.a.", "x.a", "[0::1]:2", "z", "", "x.b"];

/// The rules said plainly over a list of routes.
fn naive(specs: &[Spec<'_>], listener: &str, authority: &str, path: &str) -> Option<usize> {
    let host = authority::host(authority).trim_end_matches('.').replace("0::1", "::1");
    let host_rank = |spec: &Spec<'_>| {
        if spec.0.is_empty() {
            return Some(0);
        }
        let rank = |named: &&str| match named.strip_prefix('*') {
            None => (**named == *host).then_some(1000),
            Some(suffix) => (host.ends_with(suffix) && host.len() > suffix.len()).then_some(suffix.len()),
        };
        spec.0.iter().filter_map(rank).max()
    };
    let path_rank = |spec: &Spec<'_>| match spec.1.strip_prefix('=') {
        Some(exact) => (exact == path).then_some(1000),
        None => {
            let rest = if path == "*" && spec.1 == "/" { Some("") } else { path.strip_prefix(spec.1) };
            let boundary = |rest: &str| rest.is_empty() || rest.starts_with('/') || spec.1.ends_with('/');
            rest.filter(|rest| boundary(rest)).map(|_| spec.1.len())
        }
    };
    let here: Vec<usize> =
        (0..specs.len()).filter(|&at| specs[at].2.is_empty() || specs[at].2.contains(&listener)).collect();
    let most = here.iter().filter_map(|&at| host_rank(&specs[at])).max()?;
    let of_host = here.into_iter().filter(|&at| host_rank(&specs[at]) == Some(most));
    let ranked = of_host.filter_map(|at| {
        Some(((path_rank(&specs[at])?, !specs[at].2.is_empty(), std::cmp::Reverse(at)), at))
    });
    ranked.max().map(|(_, at)| at)
}

proptest! {
    #[test]
    fn agrees_with_the_rules_said_plainly(
        routes in prop::collection::vec(
            (
                prop::collection::vec(prop::sample::select(HOSTS), 0..3),
                "=?(/[ab]{0,2}){1,3}",
                prop::sample::subsequence(vec!["l", "m"], 0..=2),
            ),
            0..12,
        ),
        requests in prop::collection::vec(
            (
                prop::sample::select(AUTHORITIES),
                "((/[ab]{0,2}){1,5}|[*])",
                prop::sample::select(vec!["l", "m", "n"]),
            ),
            1..20,
        ),
    ) {
        let specs: Vec<Spec<'_>> = routes
            .iter()
            .map(|(hosts, path, listeners)| (&hosts[..], path.as_str(), &listeners[..]))
            .collect();
        let table = table(&specs);
        for (authority, path, listener) in &requests {
            prop_assert_eq!(
                found(&table, listener, authority, path),
                naive(&specs, listener, authority, path),
                "{} {} {}",
                listener,
                authority,
                path
            );
        }
    }
}
