//! The arrows between the rooms of proxy/src: what each may import, and that no circle is among them.

use super::graph::Graph;
use super::source::Tree;

/// The arrows. A room imports only rooms that stand below it in this list.
pub(super) const ARROWS: &[(&str, &[&str])] = &[
    // The two processes. Neither knows the other; they speak the messages of `control`. Of the engine the
    // supervisor asks what the ring of this kernel offers, no more.
    (
        "supervisor",
        &[
            "config",
            "kernel",
            "telemetry",
            "control",
            "listen",
            "io",
            "access_log",
            "counters",
            "tls",
            "placement",
            "error",
            "time",
        ],
    ),
    (
        "dataplane",
        &[
            "session",
            "worker",
            "config",
            "telemetry",
            "control",
            "upstream",
            "listen",
            "route",
            "access_log",
            "io",
            "counters",
            "tls",
            "http",
            "placement",
            "error",
            "time",
        ],
    ),
    ("demo", &[]),
    // What a user types. `main` alone reads it.
    ("cli", &["config", "control"]),
    // Compiles into types that the rooms below own; none of them knows where its settings come from.
    (
        "config",
        &[
            "session",
            "kernel",
            "upstream",
            "wire",
            "exchange",
            "listen",
            "route",
            "io",
            "access_log",
            "tls",
            "http",
            "proxy_protocol",
            "error",
            "time",
        ],
    ),
    // The way of a connection. A worker takes commands from the control thread, and publishes its load where
    // steering reads it.
    (
        "worker",
        &[
            "session",
            "upstream",
            "wire",
            "exchange",
            "control",
            "listen",
            "route",
            "access_log",
            "io",
            "counters",
            "tls",
            "http",
            "proxy_protocol",
            "placement",
            "error",
            "time",
        ],
    ),
    (
        "session",
        &[
            "upstream",
            "wire",
            "exchange",
            "listen",
            "route",
            "access_log",
            "io",
            "counters",
            "tls",
            "http",
            "proxy_protocol",
            "error",
            "time",
        ],
    ),
    (
        "upstream",
        &[
            "proxy_protocol",
            "wire",
            "exchange",
            "route",
            "access_log",
            "io",
            "counters",
            "tls",
            "http",
            "error",
            "time",
        ],
    ),
    ("wire", &["exchange", "io", "counters", "tls", "http", "error", "time"]),
    ("exchange", &["route", "listen", "access_log", "io", "counters", "tls", "http", "error", "time"]),
    // Beside the way of a connection: what operators see, what the kernel's programs hold, what the processes
    // say to each other.
    ("telemetry", &["threads", "control", "access_log", "counters", "tls", "http", "error", "time"]),
    ("kernel", &["control", "error", "time"]),
    ("control", &["counters", "error", "time"]),
    // What all of these stand on.
    ("listen", &["http", "io", "counters", "tls", "error", "time"]),
    ("route", &["http", "error", "time"]),
    // A record names the request, and what the handshake agreed upon.
    ("access_log", &["threads", "http", "tls", "error", "time"]),
    // A stream carries TLS records.
    ("io", &["tls", "error", "time"]),
    // Alerts are counted by kind.
    ("counters", &["tls", "error"]),
    ("tls", &["error", "time"]),
    ("http", &["error", "time"]),
    ("proxy_protocol", &["error"]),
    ("placement", &["error"]),
    ("threads", &[]),
    ("error", &[]),
    ("time", &[]),
];

/// `not_yet` is left out, and has to be needed.
pub(super) fn check(
    tree: &Tree,
    arrows: &[(&str, &[&str])],
    not_yet: &[(&str, &str)],
    into: &mut Vec<String>,
) {
    let graph = Graph::of(tree);
    let may =
        |from: &str, to: &str| arrows.iter().any(|(room, others)| *room == from && others.contains(&to));
    for ((from, to), places) in &graph.edges {
        if !may(from, to) && !not_yet.contains(&(from, to)) {
            into.extend(places.iter().map(|place| format!("{place}: {from} may not import {to}")));
        }
    }
    for (from, to) in not_yet {
        if may(from, to) || !graph.edges.contains_key(&((*from).to_owned(), (*to).to_owned())) {
            into.push(format!("{from} -> {to}: is allowed or gone: take it from tidy/not_yet.rs"));
        }
    }
    for room in &graph.rooms {
        if !arrows.iter().any(|(known, _)| known == room) {
            into.push(format!("proxy/src/{room}: a room without arrows: give it some in tidy/rooms.rs"));
        }
    }
    if let Some(circle) = graph.without(not_yet).circle() {
        into.push(format!("rooms import each other in a circle: {}", circle.join(" -> ")));
    }
}

/// Rooms that have arrows are there, and arrows point down.
pub(super) fn check_arrows(
    tree: &Tree,
    arrows: &[(&str, &[&str])],
    not_yet: &[&str],
    into: &mut Vec<String>,
) {
    let graph = Graph::of(tree);
    for (index, (room, others)) in arrows.iter().enumerate() {
        if graph.rooms.contains(*room) == not_yet.contains(room) {
            into.push(format!("{room}: has arrows and is not there, or is there at last (tidy/rooms.rs)"));
        }
        let below: Vec<&str> = arrows[index + 1..].iter().map(|(below, _)| *below).collect();
        for other in others.iter().filter(|other| !below.contains(other)) {
            into.push(format!("{room} -> {other}: points up (tidy/rooms.rs)"));
        }
    }
}
