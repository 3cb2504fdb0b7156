//! The rules of style that a program can check: sentences of at most 30 words, lines of at most 110 columns,
//! no dead link, no word that hides the subject, such as "whoever".

use std::collections::BTreeMap;
use std::path::Path;

use crate::page;

const WORDS_MAX: usize = 30;
const COLUMNS_MAX: usize = 110;
/// Words that hide the subject of a sentence.
const HIDING: &[&str] = &["whoever", "whomever", "whatever", "those of", "the one that", "that of"];

/// Pages that are not written in this style yet.
const LATER: &[&str] = &[];

/// Every page for people, by its path in the repository.
pub(crate) fn pages() -> Vec<String> {
    let mut pages = Vec::new();
    let mut folders = vec!["docs".to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(page::path(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(name),
                false if name.ends_with(".md") => pages.push(name),
                false => {}
            }
        }
    }
    let root = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    pages.extend(root.map(str::to_owned).into_iter().filter(|name| page::path(name).exists()));
    pages.sort();
    pages
}

/// The lines of a page without code blocks, with their numbers.
fn text(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    page.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        (!in_code && !is_fence).then_some((index + 1, line))
    })
}

/// A line in which each code span is one word and each link is its text.
fn words(line: &str) -> String {
    let mut out = String::new();
    for (index, part) in line.split('`').enumerate() {
        out.push_str(if index % 2 == 1 { "code" } else { part });
    }
    while let Some((before, rest)) = out.split_once("](") {
        let after = rest.split_once(')').map_or("", |(_, after)| after);
        out = format!("{before}]{after}");
    }
    out
}

/// The sentences of a page, each with the line on which it begins.
fn sentences(page: &str) -> Vec<(usize, String)> {
    let mut sentences = Vec::new();
    let mut current: Option<(usize, String)> = None;
    for (number, line) in text(page) {
        let line = line.trim();
        let is_item = line.starts_with("- ")
            || line.split_once(". ").is_some_and(|(number, _)| number.parse::<u8>().is_ok());
        let is_prose = !(line.is_empty() || line.starts_with(['|', '#', '<', '!']));
        if is_item || !is_prose {
            sentences.extend(current.take());
        }
        if !is_prose {
            continue;
        }
        for word in words(line).split_whitespace() {
            let (_, sentence) = current.get_or_insert_with(|| (number, String::new()));
            sentence.push_str(word);
            sentence.push(' ');
            let end = word.trim_end_matches([')', '"', '*', '_']);
            if end.ends_with(['.', '!', '?']) && !end.ends_with("e.g.") && end != "1." {
                sentences.extend(current.take());
            }
        }
    }
    sentences.extend(current);
    sentences
}

fn count(sentence: &str) -> usize {
    sentence.split_whitespace().filter(|word| word.contains(|letter: char| letter.is_alphanumeric())).count()
}

#[test]
fn sentences_are_short_and_name_their_subject() {
    let mut complaints = Vec::new();
    for name in pages().into_iter().filter(|name| !LATER.contains(&name.as_str())) {
        for (line, sentence) in sentences(&page::read(&name)) {
            let words = count(&sentence);
            if words > WORDS_MAX {
                complaints.push(format!("{name}:{line}: {words} words: {sentence}"));
            }
            let lower = sentence.to_lowercase();
            for hiding in HIDING.iter().filter(|hiding| lower.contains(&format!("{hiding} "))) {
                complaints.push(format!("{name}:{line}: {hiding:?} hides a noun: {sentence}"));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn lines_are_narrow() {
    let mut complaints = Vec::new();
    for name in pages().into_iter().filter(|name| !LATER.contains(&name.as_str())) {
        for (index, line) in page::read(&name).lines().enumerate() {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX && !line.starts_with('|') {
                complaints.push(format!("{name}:{}: {columns} columns", index + 1));
            }
        }
    }
    for entry in std::fs::read_dir(page::path("config")).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_type().unwrap().is_file() {
            continue;
        }
        let name = format!("config/{}", entry.file_name().to_string_lossy());
        for (index, line) in page::read(&name).lines().enumerate() {
            if line.chars().count() > COLUMNS_MAX {
                complaints.push(format!("{name}:{}: {} columns", index + 1, line.chars().count()));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

fn anchors(page: &str) -> Vec<String> {
    let headings = text(page).filter(|(_, line)| line.starts_with('#'));
    headings.map(|(_, line)| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut complaints = Vec::new();
    for name in pages() {
        let here = page::read(&name);
        for (number, line) in text(&here) {
            for link in line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)) {
                if link.contains("://") {
                    continue;
                }
                let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
                let target = match file {
                    "" => name.clone(),
                    _ => Path::new(&name).parent().unwrap().join(file).to_string_lossy().into_owned(),
                };
                if !page::path(&target).exists() {
                    complaints.push(format!("{name}:{number}: there is no {target}"));
                } else if !fragment.is_empty() {
                    let anchors =
                        known.entry(target.clone()).or_insert_with(|| anchors(&page::read(&target)));
                    if !anchors.iter().any(|anchor| anchor == fragment) {
                        complaints.push(format!("{name}:{number}: {target} has no #{fragment}"));
                    }
                }
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn sentences_are_found() {
    let page =
        "# Title\n\nOne two\nthree. Four `a b. c` [five six](x.md)!\n\n- seven\n- eight: nine\n\n| a. |\n";
    let found: Vec<String> =
        sentences(page).into_iter().map(|(_, sentence)| sentence.trim().into()).collect();
    assert_eq!(found, ["One two three.", "Four code [five six]!", "- seven", "- eight: nine"]);
    assert_eq!(anchor("## `[[listener]]` and more".trim_start_matches('#')), "listener-and-more");
}
