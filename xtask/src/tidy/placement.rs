//! The places of tests, the same everywhere. The tests of `foo.rs`, and of a room's `foo/mod.rs`, are
//! `#[cfg(test)] mod tests`. Short tests stand at the end of the file, longer ones in `foo/tests.rs`. If that
//! file is too long, its subjects become files in `foo/tests/`. Helpers for tests of several modules are in a
//! `testing.rs`. A `checks.rs` holds invariants that tests and the simulation check.

use super::outline::Module;
use super::source::{Source, Tree};
use super::words::{Kind, Word};

/// Longer tests get a file of their own.
pub(super) const INLINE_LINES_MAX: usize = 60;

/// The names that a module may have if only tests compile it.
const NAMES: &[&str] = &["tests", "testing", "checks"];

/// The one room that only tests compile: whole workers over a seeded world.
const TEST_ROOM: &str = "proxy::simulation";

pub(super) fn check(tree: &Tree, into: &mut Vec<String>) {
    let of_source = tree
        .sources
        .iter()
        .filter(|source| source.path.contains("/src/") && source.package != "tests")
        .flat_map(|source| modules(source).chain(lone_tests(source)).chain(folders(source)));
    into.extend(of_source);
}

/// Misplaced modules of tests.
fn modules(source: &Source) -> impl Iterator<Item = String> {
    let of_tests = source.outline.modules.iter().filter(|module| {
        module.within.is_empty() && !source.is_test && source.outline.tests.contains(&module.extent)
    });
    of_tests.filter_map(move |module| {
        let fault = fault(module).filter(|_| source.full_name(&module.name) != TEST_ROOM)?;
        Some(format!("{}:{}: mod {}: {fault}", source.path, module.extent.lines.0, module.name))
    })
}

fn fault(module: &Module) -> Option<String> {
    let name = module.name.as_str();
    if !NAMES.contains(&name) {
        return Some(format!("only tests compile it: name it {}", NAMES.join(", or ")));
    }
    if !module.is_inline {
        return None;
    }
    if name != "tests" {
        return Some("a file of its own, please".to_owned());
    }
    if !module.is_last {
        return Some("tests stand at the end of a file".to_owned());
    }
    let lines = module.extent.line_count();
    (lines > INLINE_LINES_MAX)
        .then(|| format!("{lines} lines of tests; above {INLINE_LINES_MAX} they get their own tests.rs"))
}

/// `#[test]` functions outside of a module of tests.
fn lone_tests(source: &Source) -> impl Iterator<Item = String> {
    let is_in_module = |line: usize| {
        source.outline.modules.iter().any(|module| {
            module.is_inline && source.outline.tests.contains(&module.extent) && {
                let (from, to) = module.extent.lines;
                (from..=to).contains(&line)
            }
        })
    };
    let is_test = |word: &&Word| {
        word.kind == Kind::Attribute && (word.path == ["test"] || word.path == ["tokio", "test"])
    };
    let tests = source.words.iter().filter(is_test).filter(|_| !source.is_test);
    let lone = tests.filter(move |word| !is_in_module(word.line));
    lone.map(|word| format!("{}:{}: a test outside of `mod tests`", source.path, word.line))
}

/// A folder of tests must begin in its `tests.rs`.
fn folders(source: &Source) -> Option<String> {
    let is_folder = source.path.ends_with("/tests/mod.rs");
    is_folder.then(|| format!("{}: should be tests.rs beside the folder", source.path))
}
