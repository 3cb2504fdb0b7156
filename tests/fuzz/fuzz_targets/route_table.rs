//! The route table against its rules, written plainly over a list of routes: any hosts, wildcards, addresses,
//! paths and listeners.
#![no_main]

use std::cmp::Reverse;
use std::sync::Arc;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use proxy::http::{authority, path};
use proxy::route::model::{Action, Route, RoutePath};
use proxy::route::{Host, RouteTable};

#[derive(Arbitrary, Debug)]
struct Case {
    routes: Vec<(Vec<Vec<u8>>, Vec<u8>, bool, u8)>,
    requests: Vec<(Vec<u8>, Vec<u8>, u8)>,
}

const LISTENERS: [&str; 2] = ["inside", "outside"];

/// Makes text from a few pieces, so that configured and requested names often match.
fn text(bytes: &[u8], pieces: &[&str], length_max: usize) -> String {
    bytes.iter().take(length_max).map(|&byte| pieces[usize::from(byte) % pieces.len()]).collect()
}

fn host_text(bytes: &[u8]) -> String {
    text(bytes, &["a", "b", ".", "A", "*.", "[::1]", "[0::1]", ":8", "c."], 8)
}

fn path_text(bytes: &[u8]) -> Option<String> {
    let raw = format!("/{}", text(bytes, &["/", "a", "b", "/a", "%2f", ".", "/b/", "%61", "~"], 12));
    path::normalise(raw.as_bytes(), path::Rules::KEEP).ok().map(String::from)
}

fn route(
    (hosts, path, is_exact, listeners): &(Vec<Vec<u8>>, Vec<u8>, bool, u8),
    index: usize,
) -> Option<Arc<Route>> {
    let path = path_text(path)?.into();
    let named = LISTENERS.iter().enumerate().filter(|(at, _)| listeners >> at & 1 != 0);
    Some(Arc::new(Route {
        hosts: hosts.iter().take(3).filter_map(|host| Host::parse(&host_text(host)).ok()).collect(),
        path: if *is_exact { RoutePath::Exact(path) } else { RoutePath::Prefix(path) },
        listeners: named.map(|(_, &name)| name.to_owned()).collect(),
        ..Route::new(Action::Upstream(index))
    }))
}

fn host_rank(route: &Route, host: &str) -> Option<usize> {
    let rank = |named: &Host| match named {
        Host::Name(name) => (**name == *host).then_some(1000),
        Host::Ipv6(address) => (host.trim_matches(['[', ']']).parse() == Ok(*address)).then_some(1000),
        Host::Under(name) => host
            .strip_suffix(&**name)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            .then_some(name.len()),
    };
    if route.hosts.is_empty() { Some(0) } else { route.hosts.iter().filter_map(rank).max() }
}

fn path_rank(route: &Route, path: &str) -> Option<usize> {
    match &route.path {
        RoutePath::Exact(exact) => (**exact == *path).then_some(1000),
        RoutePath::Prefix(prefix) if path == "*" => (&**prefix == "/").then_some(1),
        RoutePath::Prefix(prefix) => {
            let ends = path
                .strip_prefix(&**prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'));
            ends.then_some(prefix.len())
        }
    }
}

fn plainly<'r>(
    routes: &'r [Arc<Route>],
    listener: &str,
    authority: &str,
    path: &str,
) -> Option<&'r Arc<Route>> {
    let host = authority::host(authority);
    let host = host.strip_suffix('.').unwrap_or(host);
    let here = || {
        routes
            .iter()
            .filter(|route| route.listeners.is_empty() || route.listeners.iter().any(|name| name == listener))
    };
    let most = here().filter_map(|route| host_rank(route, host)).max()?;
    let of_host = here().enumerate().filter(|(_, route)| host_rank(route, host) == Some(most));
    let ranked = of_host.filter_map(|(at, route)| {
        Some(((path_rank(route, path)?, !route.listeners.is_empty(), Reverse(at)), route))
    });
    ranked.max_by_key(|(rank, _)| *rank).map(|(_, route)| route)
}

fuzz_target!(|case: Case| {
    let routes: Vec<_> =
        case.routes.iter().take(12).enumerate().filter_map(|(index, spec)| route(spec, index)).collect();
    let table = RouteTable::new(routes.clone());
    for (host, target, listener) in case.requests.iter().take(8) {
        let host = host_text(host);
        let Some(authority) = authority::normalise(host.as_bytes()) else { continue };
        let path = if target.first() == Some(&255) { Some("*".to_owned()) } else { path_text(target) };
        let Some(path) = path else { continue };
        let listener = ["inside", "outside", "third"][usize::from(*listener) % 3];
        let (found, expected) =
            (table.find(listener, &authority, &path), plainly(&routes, listener, &authority, &path));
        assert_eq!(found, expected, "{listener} {authority} {path} {routes:#?}");
    }
});
