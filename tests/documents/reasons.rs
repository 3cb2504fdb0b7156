//! Reasons and verdicts: their labels, and their meanings from the comments of the enums.

use proxy::error::{
    CloseReason, Crowded, DeathReason, HandshakeFailure, HandshakeKind, LogLossReason, PoolCloseReason,
    RefusalReason, ReloadOutcome, ShedReason,
};
use proxy_common::guard::Verdict;
use proxy_common::steer::Fallback;

use crate::page;

/// One value of an enum.
pub(crate) struct Reason {
    pub(crate) label: &'static str,
    /// The value's comment, on one line.
    pub(crate) meaning: String,
}

/// A file and an enum in it.
type Place = (&'static str, &'static str);

const ERRORS: &str = "proxy/src/error.rs";

/// The values of an enum with their comments. In the file, a comment stands before `Variant = "label",`; in
/// the enum of verdicts, before `Variant = pass "label",`.
fn with_meanings((file, name): Place, labels: Vec<&'static str>) -> Vec<Reason> {
    let text = page::read(file);
    let header = if name == "Verdict" { "\nverdicts! {\n" } else { name };
    let body = text.split_once(header).unwrap_or_else(|| panic!("{file} has no {name}")).1;
    let body = body.split_once("\n}").unwrap().0;
    let mut comment = Vec::new();
    let mut found = Vec::new();
    for line in body.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("///") {
            comment.push(words.trim());
        } else if let Some((_, value)) = line.split_once(" = ") {
            let label = value.split('"').nth(1).unwrap();
            found.push((label, std::mem::take(&mut comment).join(" ")));
        }
    }
    let labels: Vec<Reason> = labels
        .into_iter()
        .zip(&found)
        .map(|(label, (read, meaning))| {
            assert_eq!(label, *read, "{file}: the comments of {name} are read in its order");
            Reason { label, meaning: meaning.clone() }
        })
        .collect();
    assert_eq!(labels.len(), found.len(), "{file}: every value of {name} has its comment");
    labels
}

macro_rules! reasons {
    ($enum:ident, $file:expr, $header:literal) => {
        with_meanings(($file, $header), $enum::ALL.iter().map(|value| value.label()).collect())
    };
}

pub(crate) fn closed() -> Vec<Reason> {
    reasons!(CloseReason, ERRORS, "CloseReason {")
}

pub(crate) fn refused() -> Vec<Reason> {
    reasons!(RefusalReason, ERRORS, "RefusalReason {")
}

pub(crate) fn crowded() -> Vec<Reason> {
    reasons!(Crowded, ERRORS, "Crowded {")
}

pub(crate) fn shed() -> Vec<Reason> {
    reasons!(ShedReason, ERRORS, "ShedReason {")
}

pub(crate) fn pool_closed() -> Vec<Reason> {
    reasons!(PoolCloseReason, ERRORS, "PoolCloseReason {")
}

pub(crate) fn handshakes() -> Vec<Reason> {
    reasons!(HandshakeKind, ERRORS, "HandshakeKind {")
}

pub(crate) fn handshake_failures() -> Vec<Reason> {
    reasons!(HandshakeFailure, ERRORS, "HandshakeFailure {")
}

pub(crate) fn deaths() -> Vec<Reason> {
    reasons!(DeathReason, ERRORS, "DeathReason {")
}

pub(crate) fn reloads() -> Vec<Reason> {
    reasons!(ReloadOutcome, ERRORS, "ReloadOutcome {")
}

pub(crate) fn log_losses() -> Vec<Reason> {
    reasons!(LogLossReason, ERRORS, "LogLossReason {")
}

pub(crate) fn verdicts() -> Vec<Reason> {
    reasons!(Verdict, "proxy-common/src/guard.rs", "Verdict")
}

pub(crate) fn fallbacks() -> Vec<Reason> {
    reasons!(Fallback, "proxy-common/src/steer.rs", "\nfallbacks! {\n")
}

/// The text between a heading and the next.
fn under<'p>(page: &'p str, heading: &str) -> &'p str {
    let (_, rest) = page.split_once(&format!("\n### {heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    rest.split("\n### ").next().unwrap()
}

#[test]
fn troubleshoot_md_names_every_reason() {
    let page = page::read("docs/troubleshoot.md");
    let mut missing = Vec::new();
    for (heading, reasons) in [
        ("Requests that are refused", refused()),
        ("Connections that are closed", closed()),
        ("Connections that are shed", shed()),
        ("Connections that give way", crowded()),
        ("Upstream connections that are closed", pool_closed()),
        ("Verdicts of the guard", verdicts()),
        ("Flows that steering leaves to the kernel", fallbacks()),
    ] {
        let text = under(&page, heading);
        let unnamed = reasons.iter().filter(|reason| !text.contains(&format!("`{}`", reason.label)));
        missing.extend(unnamed.map(|reason| format!("{heading}: {}", reason.label)));
    }
    let (_, text) = page.split_once("\n## TLS handshakes fail\n").unwrap();
    let text = text.split("\n## ").next().unwrap();
    let unnamed =
        handshake_failures().into_iter().filter(|reason| !text.contains(&format!("| `{}` |", reason.label)));
    missing.extend(unnamed.map(|reason| format!("TLS handshakes: {}", reason.label)));
    let text = page.split_once("\n## The data plane dies\n").unwrap().1.split("\n## ").next().unwrap();
    let unnamed = deaths().into_iter().filter(|reason| !text.contains(&format!("| `{}` |", reason.label)));
    missing.extend(unnamed.map(|reason| format!("deaths: {}", reason.label)));
    let reload = page::read("docs/reload.md");
    let unnamed =
        reloads().into_iter().filter(|outcome| !reload.contains(&format!("| `{}` |", outcome.label)));
    missing.extend(unnamed.map(|outcome| format!("reload.md: {}", outcome.label)));
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The table shows the statuses that the code sends.
#[test]
fn troubleshoot_md_has_the_status_of_every_refusal() {
    let page = page::read("docs/troubleshoot.md");
    let text = under(&page, "Requests that are refused");
    for reason in RefusalReason::ALL {
        let row = format!("| `{}` | {} |", reason.label(), reason.status());
        assert!(text.contains(&row), "lacks {row}");
    }
}

/// All sources of the proxy and its programs as one text, with string literals as they are printed.
fn sources() -> String {
    let text = page::sources(&["proxy/src", "proxy-ebpf/src"]);
    let mut joined = String::with_capacity(text.len());
    let mut lines = text.split("\\\n");
    joined.push_str(lines.next().unwrap_or_default());
    lines.for_each(|line| joined.push_str(line.trim_start()));
    joined.replace("\\\"", "\"").replace("{VARIABLE}", "SSLKEYLOGFILE")
}

/// A table whose first column is headed "line" quotes the log: each piece between `…` must be in the code.
#[test]
fn troubleshoot_md_quotes_the_log_word_by_word() {
    let (page, sources) = (page::read("docs/troubleshoot.md"), sources());
    let mut is_quoting = false;
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in page.lines() {
        if !line.starts_with('|') {
            is_quoting = false;
        } else if line.starts_with("| line |") {
            is_quoting = true;
        } else if is_quoting && !line.starts_with("|---") {
            let cell = page::cells(line).swap_remove(0);
            for quote in cell.split('`').skip(1).step_by(2) {
                count += 1;
                let pieces = quote.split('…').map(str::trim).filter(|piece| piece.len() > 1);
                wrong.extend(pieces.filter(|piece| !sources.contains(*piece)).map(str::to_owned));
            }
        }
    }
    assert!(count > 50, "the quotes are found");
    assert!(wrong.is_empty(), "in no source: {wrong:#?}");
}
