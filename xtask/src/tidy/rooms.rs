//! The arrows between the rooms of proxy/src: the imports that each room may have. They form no circle.

use super::graph::Graph;
use super::source::Tree;

/// Where a room stands in the picture of the house.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storey {
    /// A process and its start.
    Process,
    /// On the way of a connection.
    Way,
    /// Beside that way: for operators, or between the processes.
    Beside,
    /// Below the other rooms, which build on it.
    Ground,
}

/// A room of the house.
pub(crate) struct Room {
    pub(crate) name: &'static str,
    pub(crate) storey: Storey,
    /// A short description of its contents.
    pub(crate) about: &'static str,
    /// The names of rooms, separated by spaces.
    may_import: &'static str,
}

impl Room {
    pub(crate) fn may_import(&self) -> impl Iterator<Item = &'static str> {
        self.may_import.split_whitespace()
    }
}

pub(super) const fn room(
    name: &'static str,
    storey: Storey,
    about: &'static str,
    may_import: &'static str,
) -> Room {
    Room { name, storey, about, may_import }
}

/// The house. A room imports only rooms that stand below it in this list.
pub(crate) const ROOMS: &[Room] = &[
    // The two processes. They do not know each other and exchange the messages of `control`. The supervisor
    // asks the engine only which ring features this kernel offers.
    room(
        "supervisor",
        Storey::Process,
        "sockets, maps, reloads, restarts",
        "config kernel telemetry control listen io access_log counters tls placement sandbox folder error \
         time",
    ),
    room(
        "dataplane",
        Storey::Process,
        "threads, control, snapshots",
        "session worker config telemetry control upstream listen route access_log io counters tls http \
         placement sandbox error time",
    ),
    room("demo", Storey::Process, "an origin for a first try", ""),
    // The command line. Only `main` reads it.
    room("cli", Storey::Process, "commands and options", "config control sandbox"),
    // It compiles into types that the rooms below own. None of those rooms knows where its settings come
    // from.
    room(
        "config",
        Storey::Beside,
        "TOML to compiled models",
        "session kernel upstream wire exchange listen route io access_log tls http proxy_protocol sandbox \
         error time",
    ),
    // A worker takes commands from the control thread, and publishes its load where steering reads it.
    room(
        "worker",
        Storey::Way,
        "the loop of one thread, drain",
        "session upstream wire exchange control listen route access_log io counters tls http \
         proxy_protocol placement error time",
    ),
    room(
        "session",
        Storey::Way,
        "one client connection",
        "upstream wire exchange listen route access_log io counters tls http proxy_protocol error time",
    ),
    room(
        "upstream",
        Storey::Way,
        "endpoints, pool, balance",
        "proxy_protocol wire exchange route access_log io counters tls http error time",
    ),
    room("wire", Storey::Way, "HTTP/1 messages over a stream", "exchange io counters tls http error time"),
    room(
        "exchange",
        Storey::Way,
        "one request and its response",
        "route listen access_log io counters tls http error time",
    ),
    room(
        "telemetry",
        Storey::Beside,
        "admin, metrics, status, logs",
        "threads control access_log counters tls http error time",
    ),
    room("kernel", Storey::Beside, "eBPF programs and their maps", "control folder error time"),
    room("control", Storey::Beside, "messages between processes", "listen counters error time"),
    room("listen", Storey::Ground, "listeners, admission", "http io counters tls error time"),
    room("route", Storey::Ground, "hosts, paths, matcher", "http error time"),
    // A record names the request and the parameters that the handshake agreed on.
    room("access_log", Storey::Ground, "a record, its ring, its file", "threads http tls error time"),
    // A stream carries TLS records.
    room("io", Storey::Ground, "ring, streams, buffers, timers", "tls error time"),
    // Alerts are counted by kind.
    room("counters", Storey::Ground, "names, and a shared block", "tls error"),
    room("tls", Storey::Ground, "handshakes, records, tickets", "error time"),
    room("http", Storey::Ground, "heads, fields, the h1 codec", "error time"),
    room("proxy_protocol", Storey::Ground, "PROXY headers", "error"),
    room("folder", Storey::Ground, "folders that are ours", ""),
    room("placement", Storey::Ground, "CPUs and NUMA nodes", "error"),
    room("sandbox", Storey::Ground, "confining the data plane", ""),
    room("threads", Storey::Ground, "ending threads in time", ""),
    room("error", Storey::Ground, "reasons with their labels", ""),
    room("time", Storey::Ground, "a point in time", ""),
];

/// Checks the imports against the arrows.
pub(super) fn check(tree: &Tree, rooms: &[Room], into: &mut Vec<String>) {
    let graph = Graph::of(tree);
    let may = |from: &str, to: &str| {
        rooms.iter().any(|room| room.name == from && room.may_import().any(|room| room == to))
    };
    for ((from, to), places) in &graph.edges {
        if !may(from, to) {
            into.extend(places.iter().map(|place| format!("{place}: {from} may not import {to}")));
        }
    }
    into.extend(graph.blurred.iter().map(|place| format!("{place}: imports every room at once")));
    for room in &graph.rooms {
        if !rooms.iter().any(|known| known.name == room) {
            into.push(format!("proxy/src/{room}: a room without arrows: give it some in tidy/rooms.rs"));
        }
    }
    if let Some(circle) = graph.circle() {
        into.push(format!("rooms import each other in a circle: {}", circle.join(" -> ")));
    }
}

/// Checks that rooms with arrows exist, and that arrows point down.
pub(super) fn check_arrows(tree: &Tree, rooms: &[Room], into: &mut Vec<String>) {
    let graph = Graph::of(tree);
    for (index, room) in rooms.iter().enumerate() {
        let name = room.name;
        if !graph.rooms.contains(name) {
            into.push(format!("{name}: has arrows and is not there (tidy/rooms.rs)"));
        }
        let below = &rooms[index + 1..];
        for other in room.may_import().filter(|other| !below.iter().any(|room| room.name == *other)) {
            into.push(format!("{name} -> {other}: points up (tidy/rooms.rs)"));
        }
    }
}
