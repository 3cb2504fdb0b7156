//! `cargo xtask tidy`: the invariants of ARCHITECTURE.md, each held by a rule over the source text. A rule
//! reads code with comments, strings' quotes and test modules taken away, so that prose and tests may speak
//! of what code may not do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine;

/// The only files that may contain `unsafe`.
const UNSAFE_FILES: &[&str] = &[
    "proxy-common/src/pod.rs",
    "proxy-ebpf/src/packet.rs",
    "proxy-ebpf/src/maps.rs",
    "proxy-ebpf/src/sockets.rs",
    "proxy/src/io/ring.rs",
    "proxy/src/io/sqe.rs",
    "proxy/src/io/buffers.rs",
    "proxy/src/io/chunk.rs",
    "proxy/src/control/handoff.rs",
    "proxy/src/control/shared.rs",
    "proxy/src/kernel/netns.rs",
    "proxy/src/listen/defer.rs",
    "proxy/src/placement.rs",
    "tests/support/bpf.rs",
    "benches/src/load/poll.rs",
    "benches/src/relay/ring.rs",
];

/// Sans-IO code: bytes and `now` in, bytes and decisions out.
const SANS_IO: &[&str] = &[
    "proxy/src/http/",
    "proxy/src/proxy_protocol.rs",
    "proxy/src/route/",
    "proxy/src/tls/",
    "proxy/src/upstream/endpoint.rs",
    "proxy/src/upstream/balance.rs",
    "proxy/src/upstream/pool.rs",
    "proxy/src/listen/admission.rs",
    "proxy/src/control/state.rs",
    "proxy/src/supervisor/reload.rs",
    "proxy/src/config/changes.rs",
    "proxy/src/io/timer.rs",
    "proxy/src/time.rs",
];

/// Code that runs on a worker thread.
const WORKER: &[&str] = &[
    "proxy/src/io/",
    "proxy/src/session/",
    "proxy/src/upstream/",
    "proxy/src/worker/",
    "proxy/src/http/",
    "proxy/src/proxy_protocol.rs",
    "proxy/src/route/",
    "proxy/src/tls/",
    "proxy/src/listen/acceptor.rs",
    "proxy/src/listen/admission.rs",
    "proxy/src/telemetry/access/mod.rs",
    "proxy/src/telemetry/access/json.rs",
    "proxy/src/telemetry/access/record.rs",
    "proxy/src/telemetry/access/ring.rs",
];

/// A file's lines without its tests may not be more.
const LINES_MAX: usize = 700;

/// A source file as the rules see it.
struct Source {
    /// From the workspace's root, with `/`.
    path: String,
    /// As written.
    text: String,
    /// Without comments and without `#[cfg(test)]` modules at its end.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let mut code = String::new();
        for line in text.lines() {
            if line.starts_with("#[cfg(test)]") {
                break;
            }
            code.push_str(without_comment(line));
            code.push('\n');
        }
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }

    /// A module that only tests compile: it may print, block and read clocks.
    fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name == "tests.rs"
            || name == "testing.rs"
            || name.ends_with("_tests.rs")
            || self.path.starts_with("proxy/src/simulation/")
            || self.path.ends_with("/checks.rs")
            || self.path.contains("/src/") && self.path.contains("/tests/")
    }

    /// The lines of code that hold `word`, as complaints.
    fn complain(&self, word: &str, why: &str, into: &mut Vec<String>) {
        for (index, line) in self.code.lines().enumerate() {
            if line.contains(word) {
                into.push(format!("{}:{}: `{word}`: {why}", self.path, index + 1));
            }
        }
    }
}

/// Cuts a line comment. `//` within a string (a URL) is kept: it follows a colon there.
fn without_comment(line: &str) -> &str {
    let mut from = 0;
    while let Some(found) = line[from..].find("//") {
        let at = from + found;
        if !line[..at].ends_with(':') {
            return &line[..at];
        }
        from = at + 2;
    }
    line
}

type Rule = fn(&Source, &mut Vec<String>);

const RULES: &[Rule] = &[
    sans_io_is_pure,
    worker_and_supervisor_are_strangers,
    workers_never_block,
    unsafe_stays_where_it_is_known,
    queues_are_bounded,
    supervisor_never_touches_client_bytes,
    nothing_is_left_open,
    files_hold_one_idea,
];

/// What holds for tests as well.
const TEST_RULES: &[Rule] = &[unsafe_stays_where_it_is_known, nothing_is_left_open, files_hold_one_idea];

/// Invariant 1.
fn sans_io_is_pure(source: &Source, into: &mut Vec<String>) {
    if !source.is_in(SANS_IO) {
        return;
    }
    for word in [
        "Instant",
        "SystemTime",
        "std::io",
        "std::fs",
        "std::thread",
        "TcpStream",
        "UdpSocket",
        "UnixStream",
        "nix::",
        "libc::",
        "io_uring",
        "tokio::",
        "crate::io",
        "std::os",
        "std::process",
    ] {
        source.complain(word, "sans-IO code does no I/O and reads no clock", into);
    }
}

/// Invariant 2.
fn worker_and_supervisor_are_strangers(source: &Source, into: &mut Vec<String>) {
    if source.path.starts_with("proxy/src/worker/") {
        source.complain("crate::supervisor", "a worker never imports the supervisor", into);
    }
    if source.path.starts_with("proxy/src/supervisor/") {
        source.complain("crate::worker", "the supervisor never imports a worker", into);
    }
}

/// Invariant 3.
fn workers_never_block(source: &Source, into: &mut Vec<String>) {
    if !source.is_in(WORKER) {
        return;
    }
    for word in [
        "Mutex",
        "RwLock",
        "Condvar",
        "std::fs",
        "println!",
        "eprintln!",
        "thread::sleep",
        ".lock()",
        "block_on",
        "std::sync::mpsc",
        "std::process",
    ] {
        source.complain(word, "a worker holds no lock, never blocks and writes no log itself", into);
    }
}

/// Invariant 4; that each block has its SAFETY comment is clippy's `undocumented_unsafe_blocks`.
fn unsafe_stays_where_it_is_known(source: &Source, into: &mut Vec<String>) {
    if source.is_in(UNSAFE_FILES) || source.path.starts_with("xtask/") {
        return;
    }
    for word in
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe_code", "expect(unsafe_code"]
    {
        source.complain(word, "unsafe only in the files listed in xtask/src/tidy.rs", into);
    }
}

/// Invariant 5, as far as text shows it.
fn queues_are_bounded(source: &Source, into: &mut Vec<String>) {
    if !source.path.starts_with("proxy/src/") {
        return;
    }
    for word in ["unbounded_channel", "mpsc::channel()", "SegQueue", "unbounded()"] {
        source.complain(word, "every queue has a bound", into);
    }
}

/// Invariant 7.
fn supervisor_never_touches_client_bytes(source: &Source, into: &mut Vec<String>) {
    if !source.path.starts_with("proxy/src/supervisor/") {
        return;
    }
    // The socket in run_dir is `clients.rs`'s; nothing else here may accept.
    let accept = if source.path.ends_with("/clients.rs") { "accept4(" } else { ".accept()" };
    for word in ["crate::http", "crate::session", "crate::upstream", "crate::io::", accept] {
        // The plan asks the ring what the kernel offers; it opens no connection.
        if word == "crate::io::"
            && source.code.matches(word).count() == source.code.matches("crate::io::ring::probe").count()
        {
            continue;
        }
        source.complain(word, "the supervisor never reads a byte from a client", into);
    }
}

fn nothing_is_left_open(source: &Source, into: &mut Vec<String>) {
    if source.path.starts_with("xtask/src/tidy.rs") {
        return;
    }
    for word in ["todo!(", "unimplemented!(", "#[ignore", "dbg!("] {
        source.complain(word, "nothing is left open", into);
    }
    for word in ["FIXME", "XXX"] {
        if source.text.contains(word) {
            into.push(format!("{}: `{word}`: nothing is left open", source.path));
        }
    }
}

fn files_hold_one_idea(source: &Source, into: &mut Vec<String>) {
    let lines = source.code.lines().count();
    if lines > LINES_MAX {
        into.push(format!("{}: {lines} lines without tests; at most {LINES_MAX}", source.path));
    }
    let first = source.text.lines().find(|line| !line.starts_with("#!") && !line.trim().is_empty());
    if !first.is_some_and(|line| line.starts_with("//!") || line.starts_with("// ")) {
        into.push(format!("{}: begins without a module comment that says which idea it holds", source.path));
    }
}

/// Invariant 6: a reason that nothing gives is a reason nobody can count on.
fn reasons_are_given(sources: &[Source], into: &mut Vec<String>) {
    let Some(errors) = sources.iter().find(|source| source.path == "proxy/src/error.rs") else {
        return;
    };
    let mut name = "";
    for line in errors.code.lines().map(str::trim) {
        let is_name = |found: &&str| found.starts_with(char::is_uppercase) && !found.contains(' ');
        if let Some(found) = line.strip_suffix('{').map(str::trim).filter(is_name) {
            name = found;
        }
        let Some((variant, _)) = line.split_once(" = \"").filter(|_| line.ends_with("\",")) else { continue };
        let used = format!("{name}::{variant}");
        if !sources.iter().any(|source| source.path != errors.path && source.code.contains(&used)) {
            into.push(format!("{}: {used} is never given as a reason", errors.path));
        }
    }
}

fn check(source: &Source, into: &mut Vec<String>) {
    let rules = if source.is_test() { TEST_RULES } else { RULES };
    for rule in rules {
        rule(source, into);
    }
}

pub(crate) fn tidy() -> Result<(), String> {
    let root = machine::root();
    let sources = sources(&root)?;
    let mut complaints = Vec::new();
    for source in &sources {
        check(source, &mut complaints);
    }
    reasons_are_given(&sources, &mut complaints);
    if complaints.is_empty() {
        eprintln!("tidy: {} files, nothing to complain about", sources.len());
        return Ok(());
    }
    Err(format!("tidy: {} complaints\n{}", complaints.len(), complaints.join("\n")))
}

/// Every Rust file that git knows or would add.
fn sources(root: &Path) -> Result<Vec<Source>, String> {
    let listing = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .output()
        .map_err(|error| format!("git ls-files: {error}"))?;
    let names = String::from_utf8_lossy(&listing.stdout).into_owned();
    let mut sources = Vec::new();
    for name in names.lines() {
        let path: PathBuf = root.join(name);
        if path.exists() {
            let text = fs::read_to_string(&path).map_err(|error| format!("{name}: {error}"))?;
            sources.push(Source::new(name, &text));
        }
    }
    if sources.is_empty() {
        return Err("tidy: found no source file".into());
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        let mut into = Vec::new();
        check(&Source::new(path, text), &mut into);
        into
    }

    #[test]
    fn each_invariant_is_held() {
        for (path, line) in [
            ("proxy/src/http/h1/mod.rs", "let now = std::time::Instant::now();"),
            ("proxy/src/route/table.rs", "use crate::io::Chunk;"),
            ("proxy/src/worker/mod.rs", "use crate::supervisor::topology;"),
            ("proxy/src/supervisor/lifecycle.rs", "use crate::worker::run;"),
            ("proxy/src/session/relay.rs", "static LOCK: Mutex<()> = Mutex::new(());"),
            ("proxy/src/io/engine.rs", "eprintln!(\"slow\");"),
            ("proxy/src/config/schema.rs", "unsafe { read() }"),
            ("proxy/src/dataplane/mod.rs", "let (a, b) = tokio::sync::mpsc::unbounded_channel();"),
            ("proxy/src/supervisor/lifecycle.rs", "use crate::http::message;"),
            ("proxy/src/session/mod.rs", "todo!()"),
            ("proxy/src/session/tests.rs", "todo!()"),
            ("proxy/src/worker/testing.rs", "unsafe { read() }"),
        ] {
            assert!(!complaints(path, &format!("//! x\n{line}\n")).is_empty(), "{path}: {line}");
        }
    }

    #[test]
    fn prose_tests_and_other_places_are_free() {
        for (path, text) in [
            ("proxy/src/http/h1/mod.rs", "//! Never calls Instant::now.\n// nor SystemTime\n"),
            ("proxy/src/http/h1/mod.rs", "//! x\n#[cfg(test)]\nmod tests { use std::time::Instant; }\n"),
            ("proxy/src/http/h1/tests.rs", "//! x\nuse std::time::Instant;\n"),
            ("proxy/src/io/ring.rs", "//! x\nfn f() { unsafe { g() } }\n"),
            ("proxy/src/supervisor/plan.rs", "//! x\nlet features = crate::io::ring::probe();\n"),
            ("proxy/src/supervisor/lifecycle.rs", "//! x\nuse std::sync::Mutex;\n"),
        ] {
            assert_eq!(complaints(path, text), Vec::<String>::new(), "{path}");
        }
    }

    #[test]
    fn a_file_too_long_or_without_its_comment_is_seen() {
        assert_eq!(complaints("proxy/src/time.rs", "use std::fmt;\n").len(), 1);
        assert_eq!(
            complaints("proxy/src/error.rs", &format!("//! x\n{}", "fn f() {}\n".repeat(LINES_MAX))).len(),
            1
        );
    }

    #[test]
    fn an_unused_reason_is_seen() {
        let errors = Source::new(
            "proxy/src/error.rs",
            "//! x\nreasons! {\n    ShedReason {\n        Full = \"full\",\n    }\n}\n",
        );
        let mut into = Vec::new();
        reasons_are_given(&[errors], &mut into);
        assert_eq!(into.len(), 1);
        let errors = Source::new(
            "proxy/src/error.rs",
            "//! x\nreasons! {\n    ShedReason {\n        Full = \"full\",\n    }\n}\n",
        );
        let user = Source::new("proxy/src/listen/admission.rs", "//! x\nreturn Err(ShedReason::Full);\n");
        into.clear();
        reasons_are_given(&[errors, user], &mut into);
        assert_eq!(into, Vec::<String>::new());
    }

    #[test]
    fn this_tree_keeps_the_invariants() {
        tidy().unwrap();
    }
}
