//! The invariants of ARCHITECTURE.md that show in paths, calls and macros.

use std::collections::HashSet;

use super::source::{Source, Tree};
use super::words::{Kind, Word};

/// The only files that may contain `unsafe`.
pub(super) const UNSAFE_FILES: &[&str] = &[
    "proxy-common/src/pod.rs",
    "proxy-ebpf/src/destinations.rs",
    "proxy-ebpf/src/packet.rs",
    "proxy-ebpf/src/maps.rs",
    "proxy-ebpf/src/sockets.rs",
    "proxy/src/io/ring.rs",
    "proxy/src/io/sqe.rs",
    "proxy/src/io/buffers.rs",
    "proxy/src/io/chunk.rs",
    "proxy/src/control/handoff.rs",
    "proxy/src/control/slots.rs",
    "proxy/src/counters/block.rs",
    "proxy/src/counters/mapping.rs",
    "proxy/src/kernel/netlink.rs",
    "proxy/src/kernel/netns.rs",
    "proxy/src/listen/defer.rs",
    "proxy/src/placement.rs",
    "proxy/src/sandbox/raw.rs",
    "tests/confined.rs",
    "tests/support/bpf.rs",
    "tests/support/pidfd.rs",
    "benches/src/load/poll.rs",
    "benches/src/relay/ring.rs",
];

/// Modules of sans-IO code: bytes and `now` in, bytes and decisions out.
pub(super) const SANS_IO: &[&str] = &[
    "http",
    "proxy_protocol",
    "route",
    "tls",
    "upstream::endpoint",
    "upstream::endpoint_set",
    "upstream::balance",
    "upstream::pool",
    "listen::admission",
    "control::life",
    "supervisor::reload",
    "supervisor::allowance",
    "supervisor::watchdog",
    "config::changes",
    "io::timer",
    "time",
];

/// Modules whose code runs on a worker thread.
pub(super) const WORKER: &[&str] = &[
    "io",
    "session",
    "upstream",
    "worker",
    "http",
    "proxy_protocol",
    "route",
    "tls",
    "listen::admission",
    "exchange",
    "wire",
    "access_log",
];

/// Modules inside the worker's modules whose code runs on a thread of its own.
const OFF_WORKER: &[&str] = &["access_log::writer"];

type Rule = fn(&Source, &mut Vec<String>);

pub(super) const RULES: &[Rule] = &[
    sans_io_is_pure,
    worker_and_supervisor_are_strangers,
    workers_never_block,
    unsafe_stays_where_it_is_known,
    queues_are_bounded,
    supervisor_never_touches_client_bytes,
    nothing_is_left_open,
    files_say_their_idea,
];

pub(super) fn check(tree: &Tree, into: &mut Vec<String>) {
    for source in &tree.sources {
        RULES.iter().for_each(|rule| rule(source, into));
    }
    reasons_are_given(tree, into);
}

/// Whether a file of proxy/src lies in one of these modules.
fn is_in(source: &Source, places: &[&str]) -> bool {
    let module = source.module.join("::");
    let is_below = |place: &&str| {
        module.strip_prefix(*place).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    source.package == "proxy" && places.iter().any(is_below)
}

/// Complains about forbidden words of a kind, except in tests.
fn forbid(
    source: &Source,
    kind: Kind,
    why: &str,
    into: &mut Vec<String>,
    is_forbidden: impl Fn(&[&str]) -> bool,
) {
    for word in source.live_words(kind) {
        let path = if kind == Kind::Path { source.resolve(word) } else { word.path.clone() };
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        if is_forbidden(&path) {
            into.push(complaint(source, word, &path.join("::"), why));
        }
    }
}

fn complaint(source: &Source, word: &Word, what: &str, why: &str) -> String {
    format!("{}:{}: `{what}`: {why}", source.path, word.line)
}

/// Whether a path is one of these places or leads into one.
fn leads_to(path: &[&str], places: &[&str]) -> bool {
    places.iter().any(|place| path.starts_with(&place.split("::").collect::<Vec<_>>()))
}

/// Invariant 1.
fn sans_io_is_pure(source: &Source, into: &mut Vec<String>) {
    const IMPURE: &[&str] = &[
        "std::time::Instant",
        "std::time::SystemTime",
        "std::io",
        "std::fs",
        "std::thread",
        "std::os",
        "std::process",
        "std::net::TcpListener",
        "std::net::TcpStream",
        "std::net::UdpSocket",
        "nix",
        "libc",
        "io_uring",
        "tokio",
    ];
    if !is_in(source, SANS_IO) {
        return;
    }
    let why = "sans-IO code does no I/O and reads no clock";
    // The pure files of `io` may import each other.
    let imports_io = |path: &[&str]| leads_to(path, &["crate::io"]) && source.module[0] != "io";
    forbid(source, Kind::Path, why, into, |path| leads_to(path, IMPURE) || imports_io(path));
}

/// Invariant 2.
fn worker_and_supervisor_are_strangers(source: &Source, into: &mut Vec<String>) {
    if is_in(source, &["worker"]) {
        let why = "a worker never imports the supervisor";
        forbid(source, Kind::Path, why, into, |path| leads_to(path, &["crate::supervisor"]));
    }
    if is_in(source, &["supervisor"]) {
        let why = "the supervisor never imports a worker";
        forbid(source, Kind::Path, why, into, |path| leads_to(path, &["crate::worker"]));
    }
}

/// Invariant 3.
fn workers_never_block(source: &Source, into: &mut Vec<String>) {
    const BLOCKING: &[&str] = &["std::fs", "std::process", "std::sync::mpsc", "std::thread::sleep"];
    const LOCKS: &[&str] = &["Mutex", "RwLock", "Condvar", "block_on"];
    const PRINTING: &[&str] = &["print", "println", "eprint", "eprintln"];
    if !is_in(source, WORKER) || is_in(source, OFF_WORKER) {
        return;
    }
    let why = "a worker holds no lock, never blocks and writes no log itself";
    let is_lock = |path: &[&str]| path.iter().any(|segment| LOCKS.contains(segment));
    forbid(source, Kind::Path, why, into, |path| leads_to(path, BLOCKING) || is_lock(path));
    forbid(source, Kind::Macro, why, into, |path| PRINTING.contains(&path[0]));
    forbid(source, Kind::EmptyCall, why, into, |path| path == ["lock"]);
    forbid(source, Kind::Call, why, into, |path| path == ["block_on"]);
}

/// Invariant 4, in tests too. Clippy's `undocumented_unsafe_blocks` checks that each block has its SAFETY
/// comment.
fn unsafe_stays_where_it_is_known(source: &Source, into: &mut Vec<String>) {
    if UNSAFE_FILES.contains(&source.path.as_str()) {
        return;
    }
    for word in source.words.iter().filter(|word| is_unsafe(word)) {
        let why = "unsafe only in the files that xtask/src/tidy/invariants.rs lists";
        into.push(complaint(source, word, &word.path.join(" "), why));
    }
}

fn is_unsafe(word: &Word) -> bool {
    let has = |name: &str| word.path.iter().any(|part| part == name);
    let permits = word.kind == Kind::Attribute && has("unsafe_code") && (has("allow") || has("expect"));
    word.kind == Kind::Unsafe || permits
}

/// Invariant 5, as far as names show it.
fn queues_are_bounded(source: &Source, into: &mut Vec<String>) {
    const UNBOUNDED: &[&str] = &["unbounded_channel", "unbounded", "SegQueue"];
    if source.package != "proxy" {
        return;
    }
    forbid(source, Kind::Path, "every queue has a bound", into, |path| {
        path == ["std", "sync", "mpsc", "channel"] || path.iter().any(|name| UNBOUNDED.contains(name))
    });
}

/// Invariant 7.
fn supervisor_never_touches_client_bytes(source: &Source, into: &mut Vec<String>) {
    const ENGINE: &[&str] =
        &["crate::http", "crate::session", "crate::upstream", "crate::wire", "crate::exchange", "crate::io"];
    if !is_in(source, &["supervisor"]) {
        return;
    }
    let why = "the supervisor never reads a byte from a client";
    // The plan asks the ring which features the kernel offers; it opens no connection.
    let asks = |path: &[&str]| leads_to(path, &["crate::io::ring::probe"]);
    forbid(source, Kind::Path, why, into, |path| leads_to(path, ENGINE) && !asks(path));
    forbid(source, Kind::Path, why, into, |path| path.last() == Some(&"accept4"));
    // Only `clients.rs`, which serves the socket in run_dir, may accept.
    if !is_in(source, &["supervisor::clients"]) {
        forbid(source, Kind::EmptyCall, why, into, |path| path == ["accept"]);
    }
}

/// Unfinished code is forbidden, in tests too.
fn nothing_is_left_open(source: &Source, into: &mut Vec<String>) {
    const MARKS: &[&str] = &["FIXME", "XXX"];
    const MACROS: &[&str] = &["todo", "unimplemented", "dbg"];
    for word in &source.words {
        let text = word.path[0].as_str();
        let is_open = match word.kind {
            Kind::Macro => MACROS.contains(&text),
            Kind::Attribute => word.path.iter().any(|part| part == "ignore"),
            Kind::Comment => {
                text.split(|letter: char| !letter.is_alphanumeric()).any(|part| MARKS.contains(&part))
            }
            _ => false,
        };
        if is_open {
            into.push(complaint(source, word, &word.path.join(" "), "nothing is left open"));
        }
    }
}

fn files_say_their_idea(source: &Source, into: &mut Vec<String>) {
    let first = source.text.lines().find(|line| !line.starts_with("#!") && !line.trim().is_empty());
    if !first.is_some_and(|line| line.starts_with("//!") || line.starts_with("// ")) {
        into.push(format!("{}: begins without a module comment that says which idea it holds", source.path));
    }
}

/// Invariant 6: every reason is given by some code.
fn reasons_are_given(tree: &Tree, into: &mut Vec<String>) {
    let ends = tree.sources.iter().flat_map(|source| {
        let paths = source.live_words(Kind::Path).map(|word| source.resolve(word));
        paths.filter_map(|path| path.last_chunk::<2>().cloned())
    });
    let given: HashSet<[String; 2]> = ends.collect();
    for source in &tree.sources {
        for reason in &source.outline.reasons {
            let path = [reason.name.clone(), reason.variant.clone()];
            if !given.contains(&path) {
                let (at, reason) = (reason.line, path.join("::"));
                into.push(format!("{}:{at}: {reason} is never given as a reason", source.path));
            }
        }
    }
}

/// A file without a `mod` item that leads to it is not compiled, unless it is the root of a crate. The
/// package of tests lists its crates in its Cargo.toml.
pub(super) fn every_file_is_compiled(tree: &Tree, into: &mut Vec<String>) {
    for source in tree.sources.iter().filter(|source| !source.is_declared) {
        let is_root = ["/src/lib.rs", "/src/main.rs"].iter().any(|root| source.path.ends_with(root));
        if source.path.contains("/src/") && !is_root && !source.path.contains("/src/bin/") {
            into.push(format!("{}: no `mod` item leads to it", source.path));
        }
    }
}

/// Complains about entries of the lists above that match nothing.
pub(super) fn check_lists(tree: &Tree, into: &mut Vec<String>) {
    for path in UNSAFE_FILES {
        let source = tree.sources.iter().find(|source| source.path == *path);
        if !source.is_some_and(|source| source.words.iter().any(is_unsafe)) {
            into.push(format!("{path}: holds no unsafe code: take it from tidy/invariants.rs"));
        }
    }
    for place in SANS_IO.iter().chain(WORKER).chain(OFF_WORKER) {
        if !tree.sources.iter().any(|source| is_in(source, &[place])) {
            into.push(format!("{place}: no such module: take it from tidy/invariants.rs"));
        }
    }
}
