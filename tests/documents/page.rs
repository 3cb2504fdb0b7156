//! Files of the repository and their generated parts: whole pages, or blocks between two comments in a page
//! that is otherwise written by hand.

use std::path::{Path, PathBuf};

/// `cargo xtask docs` sets this variable: stale documents are then rewritten instead of reported.
const RENEW: &str = "SLUICE_RENEW_DOCUMENTS";

/// The path of a file of the repository.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(name)
}

pub(crate) fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every Rust file of these folders as one text.
pub(crate) fn sources(folders: &[&str]) -> String {
    let mut text = String::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| path(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    text
}

/// Fails if a file differs from `fresh`, or rewrites it if [`RENEW`] is set.
pub(crate) fn keep(name: &str, fresh: &str) {
    let present = std::fs::read_to_string(path(name)).unwrap_or_default();
    if present == fresh {
        return;
    }
    if std::env::var_os(RENEW).is_some() {
        std::fs::create_dir_all(path(name).parent().unwrap()).unwrap();
        std::fs::write(path(name), fresh).unwrap();
        return println!("renewed {name}");
    }
    let at = present.lines().zip(fresh.lines()).take_while(|(present, fresh)| present == fresh).count();
    panic!(
        "{name}:{} is stale; `cargo xtask docs` renews it\nthere:  {}\nfresh:  {}",
        at + 1,
        present.lines().nth(at).unwrap_or("(the end)"),
        fresh.lines().nth(at).unwrap_or("(the end)"),
    );
}

/// Replaces the page's block of this name: the text between `<!-- generated: NAME -->` and `<!-- end -->`.
pub(crate) fn with_block(page: &str, name: &str, block: &str) -> String {
    let begin = format!("<!-- generated: {name} -->\n");
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no {begin:?} in the page"));
    let (_, after) = rest.split_once("<!-- end -->").unwrap_or_else(|| panic!("{name} has no end"));
    format!("{before}{begin}{}\n<!-- end -->{after}", block.trim_end())
}

/// A table in Markdown.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&heading.map(str::to_owned));
    text.push_str(&format!("|{}\n", "---|".repeat(N)));
    rows.iter().for_each(|row| text.push_str(&line(row)));
    text
}

/// The cells of a table's row. `\|` does not separate cells.
pub(crate) fn cells(line: &str) -> Vec<String> {
    let held = line.trim().replace("\\|", "\u{1}");
    let inner = held.trim_start_matches('|').trim_end_matches('|');
    inner.split('|').map(|cell| cell.trim().replace('\u{1}', "\\|")).collect()
}
