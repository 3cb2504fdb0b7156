//! If a document names a file, a test or a type of the code, it must exist.
//!
//! The test reads code spans in prose and tables, but no blocks of code. It looks for `io/engine.rs` from the
//! page's folder, the repository's root and `proxy/src`. It looks for `Config::succeed` in all source files.
//! In pages of `tests/`, `tls::name` means a test in a file there.

use std::collections::BTreeSet;
use std::process::Command;

use crate::page;

/// Documents that are generated, or that speak of another tree.
const SKIPPED: &[&str] = &["benches/report/", "CHANGELOG.md"];
/// Folders that a document may leave out at the start of a path.
const ROOTS: &[&str] = &["", "proxy/src/", "proxy-ebpf/src/", "proxy-common/src/", "xtask/src/"];
/// Endings by which a span is taken for the name of a file or folder.
const ENDINGS: &[&str] = &[".rs", ".md", ".toml", ".svg", ".service", ".logrotate", ".o", "/"];
/// Beginnings of names that stand for an arbitrary file.
const EXAMPLES: &[&str] = &["foo", "my"];

/// Every file that git tracks or would add.
fn files() -> Vec<String> {
    let listing = Command::new("git")
        .current_dir(page::path(""))
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .output()
        .unwrap();
    assert!(listing.status.success(), "git ls-files");
    String::from_utf8(listing.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The files and words of the repository that documents may name.
struct Tree {
    files: BTreeSet<String>,
    /// Every word of the source.
    words: BTreeSet<String>,
}

impl Tree {
    fn read() -> Self {
        let files: BTreeSet<String> = files().into_iter().filter(|file| page::path(file).exists()).collect();
        let mut words = BTreeSet::new();
        let is_source = |file: &&String| file.ends_with(".rs") && !file.ends_with("documents/places.rs");
        for file in files.iter().filter(is_source) {
            let text = page::read(file);
            let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
            words.extend(text.split(|letter| !is_word(letter)).map(str::to_owned));
        }
        Self { files, words }
    }

    /// Whether a file in any folder has this name.
    fn has_name(&self, name: &str) -> bool {
        let end = format!("/{name}");
        !name.contains('/') && self.files.iter().any(|file| file.ends_with(&end))
    }

    fn has_path(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        match path.ends_with('/') {
            true => self.files.range(folder.clone()..).next().is_some_and(|file| file.starts_with(&folder)),
            false => self.files.contains(path),
        }
    }
}

/// A complaint for each name in a page that does not exist.
fn complaints(tree: &Tree, page: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, line) in prose(text) {
        for span in line.split('`').skip(1).step_by(2) {
            if !spread(span).iter().all(|name| is_there(tree, page, name)) {
                wrong.push(format!("{page}:{number}: `{span}` is not in the repository"));
            }
        }
    }
    wrong
}

/// The lines outside of code blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().zip(1..).filter_map(move |(line, number)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence && !line.starts_with("    ")).then_some((number, line))
    })
}

/// Expands `a/{b,c}.rs` to `a/b.rs` and `a/c.rs`.
fn spread(span: &str) -> Vec<String> {
    let whole = || vec![span.to_owned()];
    let Some((before, rest)) = span.split_once('{') else { return whole() };
    let Some((choices, after)) = rest.split_once('}') else { return whole() };
    choices.split(',').map(|choice| format!("{before}{}{after}", choice.trim())).collect()
}

/// A path relative to the repository's root, from a path relative to a page's folder.
fn beside(page: &str, path: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Whether the name in a code span exists. True also for spans that are no such names.
fn is_there(tree: &Tree, page: &str, span: &str) -> bool {
    if span.contains(|letter: char| letter.is_whitespace() || "<>*…{}()$=\"".contains(letter)) {
        return true;
    }
    // `tests/http.rs::name`: a test in a file.
    if let Some((file, name)) = span.split_once(".rs::") {
        let file = format!("{file}.rs");
        return ROOTS.iter().any(|root| {
            let path = format!("{root}{file}");
            tree.has_path(&path) && page::read(&path).contains(&format!("fn {name}("))
        });
    }
    // `tls::name`: a test, in pages about tests.
    if let Some((file, name)) = span.split_once("::")
        && page.rsplit_once('/').is_some_and(|(folder, _)| folder == "tests")
        && file.starts_with(char::is_lowercase)
    {
        let path = format!("tests/{file}.rs");
        return tree.has_path(&path) && page::read(&path).contains(&format!("fn {name}("));
    }
    let is_elsewhere = span.starts_with(['/', '~', '.']) || span.contains("://");
    let is_example = EXAMPLES.iter().any(|example| span.starts_with(example));
    if ENDINGS.iter().any(|ending| span.ends_with(ending)) && !is_elsewhere && !is_example {
        return tree.has_name(span)
            || tree.has_path(&beside(page, span))
            || ROOTS.iter().any(|root| tree.has_path(&format!("{root}{span}")));
    }
    if is_name(span) {
        return span.split("::").all(|word| tree.words.contains(word));
    }
    true
}

/// Whether a span is a type or an item of a type, such as `Engine` or `Config::succeed`.
fn is_name(span: &str) -> bool {
    let is_word = |word: &str| word.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    let first = span.split("::").next().unwrap_or_default();
    let is_type = first.starts_with(char::is_uppercase) && first.contains(char::is_lowercase);
    span.split("::").all(is_word) && is_type && !first.contains('_')
}

#[test]
fn names_in_documents_exist() {
    let tree = Tree::read();
    let mut wrong = Vec::new();
    let is_read =
        |file: &&String| file.ends_with(".md") && !SKIPPED.iter().any(|skipped| file.starts_with(skipped));
    for page in tree.files.iter().filter(is_read) {
        wrong.extend(complaints(&tree, page, &page::read(page)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_of_nothing_are_seen() {
    let tree = Tree::read();
    let seen = |text: &str| complaints(&tree, "docs/page.md", text).len();
    for text in [
        "`io/nothing.rs`",
        "`proxy/src/nothing/`",
        "`io/{engine,nothing}.rs`",
        "`Nothing::at_all`",
        "`Engine::never_was_there_at_all`",
        "`tests/http.rs::no_such_test`",
    ] {
        assert_eq!(seen(text), 1, "{text}");
    }
    for text in [
        "`io/{engine,ring}.rs`, `proxy/src/io/`, `Engine`, `Engine::turn`",
        "`/etc/nothing.toml`, `cargo xtask test`",
        "```\n`io/nothing.rs`\n```",
    ] {
        assert_eq!(seen(text), 0, "{text}");
    }
    assert_eq!(beside("docs/internals/a.md", "../../B.md"), "B.md");
}
