//! Each rule is broken once. Code that only looks like a breach passes.

use super::*;

/// All complaints about these files, without any list of exceptions.
fn complaints_about(files: &[(&str, &str)]) -> Vec<String> {
    let tree = tree(files);
    let mut into = Vec::new();
    invariants::check(&tree, &mut into);
    rooms::check(&tree, ROOMS, &mut into);
    sizes::check(&tree, &[], &mut into);
    placement::check(&tree, &mut into);
    into
}

fn tree(files: &[(&str, &str)]) -> Tree {
    let files: Vec<_> = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    Tree::of(&files).unwrap()
}

/// A file with a module comment.
fn file(code: &str) -> String {
    format!("//! x\n{code}\n")
}

/// `lines` lines of code.
fn long(lines: usize) -> String {
    "const A: u8 = 0;\n".repeat(lines)
}

fn function(lines: usize) -> String {
    format!("fn long() {{\n{}}}", "    a();\n".repeat(lines - 2))
}

#[test]
fn each_rule_is_held() {
    for (path, code, said) in [
        // 1. Sans-IO code is pure.
        (
            "proxy/src/http/h1/mod.rs",
            "fn f() { std::time::Instant::now(); }",
            "`std::time::Instant::now`: sans-IO",
        ),
        ("proxy/src/http/h1/mod.rs", "use std::{fmt, fs};", "`std::fs`: sans-IO"),
        (
            "proxy/src/time.rs",
            "use std::time;\nfn f() -> time::SystemTime { g() }",
            ":3: `std::time::SystemTime`",
        ),
        ("proxy/src/io/timer.rs", "use nix::unistd;", "`nix::unistd`: sans-IO"),
        // 2. Workers and supervisor do not know each other, under any name.
        (
            "proxy/src/worker/mod.rs",
            "use super::supervisor::topology;",
            "a worker never imports the supervisor",
        ),
        ("proxy/src/supervisor/lifecycle.rs", "use crate::{worker::run};", "never imports a worker"),
        // 3. Workers never block.
        (
            "proxy/src/session/relay.rs",
            "static LOCK: Mutex<()> = std::sync::Mutex::new(());",
            "holds no lock",
        ),
        ("proxy/src/session/relay.rs", "fn f() { self.table.lock(); }", "`lock`: a worker"),
        ("proxy/src/session/relay.rs", "fn f() { m! { table.lock() } }", "`lock`: a worker"),
        ("proxy/src/io/engine.rs", "fn f() { eprintln!(\"slow\"); }", "`eprintln`: a worker"),
        ("proxy/src/upstream/mod.rs", "use std::thread;\nfn f() { thread::sleep(d); }", "never blocks"),
        // 4. `unsafe` stays where it is known, in tests too.
        ("proxy/src/config/schema.rs", "fn f() { unsafe { read() } }", "`unsafe`: unsafe only in"),
        ("proxy/src/config/schema.rs", "#[expect(unsafe_code, reason = \"\")]\nfn f() {}", "unsafe only in"),
        ("proxy/src/config/schema.rs", "m! { unsafe impl Send for A {} }", "unsafe only in"),
        ("tests/http.rs", "fn f() { unsafe { read() } }", "unsafe only in"),
        // 5. Queues are bounded.
        ("proxy/src/dataplane/mod.rs", "fn f() { tokio::sync::mpsc::unbounded_channel(); }", "has a bound"),
        ("proxy/src/dataplane/mod.rs", "use std::sync::mpsc;\nfn f() { mpsc::channel(); }", "has a bound"),
        // 6. Reasons are given, and not by tests alone.
        ("proxy/src/error.rs", "reasons! { Shed { Full = \"full\", } }", ":2: Shed::Full is never given"),
        (
            "proxy/src/error.rs",
            "reasons! { Shed { Full = \"full\", } }\n#[cfg(test)]\nmod tests { const A: Shed = Shed::Full; }",
            "is never given",
        ),
        // 7. The supervisor never touches client bytes.
        ("proxy/src/supervisor/lifecycle.rs", "fn f() { listener.accept(); }", "`accept`: the supervisor"),
        ("proxy/src/supervisor/clients.rs", "use nix::sys::socket::accept4;", "accept4`: the supervisor"),
        // Nothing is left open, not even in tests.
        ("proxy/src/session/mod.rs", "fn f() { todo!() }", "`todo`: nothing is left open"),
        ("tests/http.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}", "`ignore`: nothing is left open"),
        ("proxy/src/session/mod.rs", "// FIXME\nfn f() {}", ":2: `// FIXME`: nothing is left open"),
        // Lengths.
        ("proxy/src/time.rs", &long(599), "proxy/src/time.rs: 601 lines without tests; at most 600"),
        ("tests/http.rs", &long(799), "801 lines of tests; at most 800"),
        ("proxy/src/time.rs", &function(71), "proxy::time::long has 71 lines; at most 70"),
        (
            "proxy/src/time.rs",
            &format!("impl<T> Of<T> {{\n{}\n}}", function(71)),
            ":3: proxy::time::Of::long has 71 lines",
        ),
        ("proxy/src/time.rs", &format!("// {}", "é".repeat(108)), ":2: 111 columns; at most 110"),
        // The places of tests.
        (
            "proxy/src/time.rs",
            "#[cfg(test)]\nmod time_tests;",
            "mod time_tests: only tests compile it: name it",
        ),
        ("proxy/src/time.rs", "#[cfg(test)]\nmod tests {}\nfn f() {}", "tests stand at the end of a file"),
        ("proxy/src/time.rs", "#[test]\nfn f() {}", ":2: a test outside of `mod tests`"),
        (
            "proxy/src/time.rs",
            &format!("#[cfg(test)]\nmod tests {{\n{}}}", long(placement::INLINE_LINES_MAX)),
            "lines of tests; above",
        ),
    ] {
        let found = complaints_about(&[(path, &file(code))]);
        assert!(found.iter().any(|complaint| complaint.contains(said)), "{path}: {said}\n{found:#?}");
    }
    let found = complaints_about(&[("proxy/src/time.rs", "use std::fmt;\n")]);
    assert!(found.iter().any(|complaint| complaint.contains("without a module comment")), "{found:#?}");
}

#[test]
fn prose_strings_tests_and_other_places_are_free() {
    for (path, code) in [
        (
            "proxy/src/http/h1/mod.rs",
            "//! Never calls Instant::now.\n// nor std::fs\n/// `tokio::spawn`\nfn f() {}",
        ),
        ("proxy/src/http/h1/mod.rs", "const A: &str = \"std::time::Instant\";"),
        ("proxy/src/http/h1/mod.rs", "#[cfg(test)]\nmod tests {\n    use std::time::Instant;\n}"),
        ("proxy/src/http/h1/mod.rs", "struct A {\n    #[cfg(test)]\n    at: std::time::Instant,\n}"),
        (
            "proxy/src/http/h1/mod.rs",
            "fn f() {\n    #[cfg(all(test, unix))]\n    b = std::time::Instant::now();\n}",
        ),
        ("proxy/src/http/h1/mod.rs", "use std::time::Duration;\nuse crate::error::RefusalReason;"),
        ("proxy/src/http/h1/tests.rs", "fn f<'nix>(a: &'nix u8) { let tokio = 1; a.nix() }"),
        ("proxy/src/io/ring.rs", "fn f() { unsafe { g() } }"),
        ("proxy/src/config/schema.rs", "#![deny(unsafe_code)]"),
        ("proxy/src/supervisor/plan.rs", "fn f() { crate::io::ring::probe(); }"),
        ("proxy/src/supervisor/lifecycle.rs", "use std::sync::Mutex;"),
        ("proxy/src/dataplane/mod.rs", "use tokio::sync::mpsc;\nfn f() { mpsc::channel(9); }"),
        ("proxy/src/session/mod.rs", "fn f() { let template = \"/tmp/XXX\"; }"),
        (
            "proxy/src/session/mod.rs",
            "pub(in crate::session) fn f() { crate::session::g(); super::session::h() }",
        ),
        ("proxy/src/session/pace.rs", "use super::{Pace, Flow};\nuse super::super::io::Stream;"),
        ("proxy/src/time.rs", &function(70)),
        ("proxy/src/time.rs", &format!("{}#[cfg(test)]\nmod tests {{\n    //\n}}", long(599))),
        ("proxy/src/time.rs", "#[cfg(test)]\nmod tests {\n    #[test]\n    fn f() {}\n}"),
        ("proxy/src/time.rs", "#[cfg(test)]\npub(crate) mod testing;\n#[cfg(test)]\nmod tests;"),
        ("xtask/src/run.rs", "use std::process::Command;\nfn f() { println!(\"{}\", Instant::now()); }"),
        ("tests/http.rs", &function(90)),
    ] {
        assert_eq!(complaints_about(&[(path, &file(code))]), Vec::<String>::new(), "{path}: {code}");
    }
}

#[test]
fn what_only_tests_reach_is_a_test() {
    let clock = file("use std::time::Instant;");
    let of = |how: &str| {
        complaints_about(&[
            ("proxy/src/lib.rs", &file("pub mod http;")),
            ("proxy/src/http/mod.rs", &file(&format!("{how}\nmod checks;"))),
            ("proxy/src/http/checks.rs", &file("mod deep;")),
            ("proxy/src/http/checks/deep.rs", &clock),
        ])
    };
    assert_eq!(of("#[cfg(test)]"), Vec::<String>::new());
    assert_eq!(of("#[cfg(any(test, fuzzing))]").len(), 1);
    assert_eq!(of("#[cfg(not(test))]").len(), 1);
    // The path has another name, or comes from an inline module.
    let of = |how: &str| {
        complaints_about(&[
            ("proxy/src/http/mod.rs", &file(how)),
            ("proxy/src/http/other.rs", &clock),
            ("proxy/src/http/tests/other.rs", &clock),
        ])
    };
    assert_eq!(of("#[cfg(test)]\n#[path = \"other.rs\"]\nmod tests;").len(), 1);
    assert_eq!(of("#[cfg(test)]\nmod tests {\n    mod other;\n}\n").len(), 1);
}

#[test]
fn a_given_reason_is_seen() {
    let errors = file("reasons! { Shed { /// Prose.\nFull = \"full\", } }");
    let user = file("use crate::error::Shed as Why;\nfn f() -> Why { m!(Why::Full) }");
    let found = complaints_about(&[("proxy/src/error.rs", &errors), ("proxy/src/listen/mod.rs", &user)]);
    assert_eq!(found, Vec::<String>::new());
}

fn room(name: &'static str, may_import: &'static str) -> Room {
    rooms::room(name, Storey::Ground, "", may_import)
}

/// The complaints about the arrows of `code` in the room `session`; `worker` and `io` are rooms too.
fn about_session(code: &str) -> Vec<String> {
    let tree = tree(&[
        ("proxy/src/session/h1.rs", &file(code)),
        ("proxy/src/worker/mod.rs", &file("use crate::session::h1;")),
        ("proxy/src/io/mod.rs", &file("")),
    ]);
    let mut into = Vec::new();
    let rooms = [room("worker", "session io"), room("session", "io"), room("io", "")];
    rooms::check(&tree, &rooms, &mut into);
    into
}

#[test]
fn imports_between_rooms_are_found_wherever_they_are() {
    let circle = "rooms import each other in a circle: session -> worker -> session";
    for code in [
        "use crate::worker::run;",
        "use crate::{io::Stream, worker};",
        "use super::super::worker::*;",
        "pub use super::{super::worker as boss};",
        "fn f() { crate::worker::run(); }",
        "fn f() { let a = crate::worker::Run { of: 1 }; }",
        "fn f(run: &mut Vec<crate::worker::Run>) {}",
        "impl crate::worker::Run for A {}",
        "fn f() { match a { crate::worker::Run::A => {} } }",
        "fn f() { tokio::select! { a = crate::worker::run() => {} } }",
        "fn f() { println!(\"{}\", super::super::worker::run()); }",
        "macro_rules! m { () => { $crate::worker::run() } }",
        "#[serde(with = \"crate::worker::run\")]\nstruct A;",
        "mod inner { use super::super::super::worker::run; }",
        "fn f() { use crate::worker::run; }",
    ] {
        let said = ["proxy/src/session/h1.rs:2: session may not import worker", circle];
        assert_eq!(about_session(code), said, "{code}");
    }
    for code in [
        "use crate::io::Stream;",
        "use super::table;\nuse self::worker::run;\nmod worker {}",
        "//! crate::worker\nconst A: &str = \"crate::worker::run\";",
        "use std::worker;\nuse other::worker::run;",
    ] {
        assert_eq!(about_session(code), Vec::<String>::new(), "{code}");
    }
}

#[test]
fn importing_every_room_at_once_is_seen() {
    let said = ["proxy/src/session/h1.rs:2: imports every room at once"];
    assert_eq!(about_session("use super::super::*;"), said);
    assert_eq!(about_session("use crate::*;"), said);
}

#[test]
fn a_file_that_nothing_compiles_is_seen() {
    let tree = tree(&[
        ("proxy/src/lib.rs", &file("mod io;")),
        ("proxy/src/io/mod.rs", &file("#[cfg(test)]\nmod tests;")),
        ("proxy/src/io/tests.rs", &file("")),
        ("proxy/src/io/timer.rs", &file("")),
        ("benches/src/bin/micro.rs", &file("")),
        ("tests/http.rs", &file("")),
    ]);
    let mut into = Vec::new();
    invariants::every_file_is_compiled(&tree, &mut into);
    assert_eq!(into, ["proxy/src/io/timer.rs: no `mod` item leads to it"]);
}

#[test]
fn exceptions_that_are_not_needed_are_complaints() {
    let tree = tree(&[("proxy/src/time.rs", &file(&function(71)))]);
    let mut into = Vec::new();
    let granted = &[("proxy::time::long", "a table"), ("proxy::time::short", "a table")];
    sizes::check(&tree, granted, &mut into);
    assert_eq!(into.len(), 1, "{into:?}");
    assert!(into[0].starts_with("proxy::time::short: is not long"), "{into:?}");
    into.clear();
    sizes::check(&tree, &[("proxy::time::long", "")], &mut into);
    assert_eq!(into, ["proxy::time::long: an exception without a reason"]);
    into.clear();
    invariants::check_lists(&tree, &mut into);
    assert!(into.iter().any(|complaint| complaint.starts_with("proxy/src/io/ring.rs: holds no unsafe")));
    assert!(into.iter().any(|complaint| complaint.starts_with("http: no such module")));
}

#[test]
fn arrows_point_down_to_rooms_that_are_there() {
    let mut into = Vec::new();
    let tree = tree(&[("proxy/src/io/mod.rs", &file("")), ("proxy/src/tls/mod.rs", &file(""))]);
    rooms::check_arrows(&tree, &[room("io", "tls"), room("tls", "")], &mut into);
    assert_eq!(into, Vec::<String>::new());
    rooms::check_arrows(&tree, &[room("tls", ""), room("io", "tls"), room("quic", "")], &mut into);
    assert_eq!(into.len(), 2, "an arrow that points up, a room that is not there: {into:?}");
    into.clear();
    rooms::check(&tree, &[room("io", "")], &mut into);
    assert_eq!(into, ["proxy/src/tls: a room without arrows: give it some in tidy/rooms.rs"]);
}

#[test]
fn this_tree_keeps_the_invariants() {
    tidy().unwrap();
}
