//! A case's result as rows of text, for the terminal and for report.md alike.

use super::measure::{
    BASE_BYTES, COMPLETIONS, CPU_MS_PER_GIB, CPU_US, ENTERS, GIB_RATE, IDLE_BYTES, IDLE_COUNT, LOAD_CORE,
    MAX, P50, P99, P999, PROXY_CORE, RATE,
};
use super::results::CaseResult;
use super::stats::Spread;

/// Rows of cells. The first row is the head.
pub(super) type Table = Vec<Vec<String>>;

/// A column of figures: its head, and the format of its values.
struct Column {
    figure: &'static str,
    head: &'static str,
    show: fn(f64) -> String,
    /// The cell also shows the smallest and the largest value.
    whole: bool,
}

fn column(figure: &'static str, head: &'static str, show: fn(f64) -> String, whole: bool) -> Column {
    Column { figure, head, show, whole }
}

fn columns(case: &CaseResult) -> Vec<Column> {
    let percent: fn(f64) -> String = |value| format!("{:.0} %", value * 100.0);
    let micros: fn(f64) -> String = |value| format!("{value:.0}");
    let mut columns = match case.figure {
        CPU_MS_PER_GIB => vec![
            column(CPU_MS_PER_GIB, "CPU ms/GiB", |value| format!("{value:.1}"), true),
            column(GIB_RATE, "GiB/s", |value| format!("{value:.2}"), false),
        ],
        IDLE_BYTES => vec![
            column(IDLE_BYTES, "bytes/connection", |value| format!("{value:.0}"), true),
            column(IDLE_COUNT, "connections", |value| format!("{value:.0}"), false),
            column(
                BASE_BYTES,
                "MiB without them",
                |value| format!("{:.1}", value / f64::from(1 << 20)),
                false,
            ),
        ],
        P99 | P999 => vec![
            column(P50, "p50 µs", micros, false),
            column(P99, "p99 µs", micros, true),
            column(P999, "p99.9 µs", micros, true),
            column(MAX, "max µs", micros, false),
            column(CPU_US, "CPU µs/request", |value| format!("{value:.2}"), false),
        ],
        _ => vec![
            column(CPU_US, "CPU µs/request", |value| format!("{value:.2}"), true),
            column(RATE, "requests/s", |value| format!("{value:.0}"), false),
            column(ENTERS, "enters", |value| format!("{value:.3}"), false),
            column(COMPLETIONS, "completions", |value| format!("{value:.2}"), false),
        ],
    };
    columns.push(column(PROXY_CORE, "proxy's core", percent, false));
    columns.push(column(LOAD_CORE, "load's core", percent, false));
    let known = |column: &Column| case.entries.iter().any(|entry| entry.spread(column.figure).is_some());
    columns.retain(|column| column.figure == case.figure || known(column));
    columns
}

/// The case's figure with its spread, related figures, and Sluice's ratio to each other entrant.
pub(super) fn table(case: &CaseResult) -> Table {
    let columns = columns(case);
    let ours = case.entries.first().map_or("", |entry| entry.name.as_str());
    let mut head = vec![String::new()];
    head.extend(columns.iter().map(|column| {
        if column.whole { format!("{} (min–max)", column.head) } else { column.head.to_owned() }
    }));
    head.push(format!("{ours} / it"));
    head.push("round by round".into());
    let mut rows = vec![head];
    for entry in &case.entries {
        let mut row = vec![entry.name.clone()];
        if let Some(reason) = &entry.failed {
            row.push(format!("failed: {}", reason.lines().next().unwrap_or_default()));
            row.resize(columns.len() + 3, String::new());
            rows.push(row);
            continue;
        }
        for column in &columns {
            row.push(entry.spread(column.figure).map_or_else(|| "–".into(), |spread| shown(column, spread)));
        }
        if entry.name == ours {
            row.extend([String::new(), String::new()]);
        } else {
            let median = |name: &str| case.spread(name, case.figure).map_or(f64::NAN, |spread| spread.median);
            let ratio = median(ours) / median(&entry.name);
            let paired = case.paired(ours, &entry.name, case.figure).map_or(f64::NAN, |spread| spread.median);
            row.extend(
                [ratio, paired]
                    .map(|ratio| if ratio.is_finite() { format!("{ratio:.3}") } else { "–".into() }),
            );
        }
        rows.push(row);
    }
    rows
}

fn shown(column: &Column, spread: Spread) -> String {
    let show = column.show;
    if column.whole {
        format!("{} ({}–{})", show(spread.median), show(spread.min), show(spread.max))
    } else {
        show(spread.median)
    }
}

/// The alignment of a column's cells. The first column is always left-aligned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lean {
    Left,
    Right,
}

/// The table aligned with spaces. A reason may be longer than its column.
pub(super) fn plain(table: &Table, lean: Lean) -> String {
    let count = table.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| {
        let cells = table.iter().filter_map(|row| row.get(at)).filter(|cell| !cell.starts_with("failed: "));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in table {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            if line.is_empty() || lean == Lean::Left || cell.starts_with("failed: ") {
                line.push_str(&format!("  {cell}{padding}"));
            } else {
                line.push_str(&format!("  {padding}{cell}"));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The table as Markdown.
pub(super) fn markdown(table: &Table) -> String {
    let mut text = String::new();
    for (at, row) in table.iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if at == 0 {
            text.push_str(&format!("|---|{}\n", "--:|".repeat(row.len().saturating_sub(1))));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::measure::Figures;
    use super::super::results::Entry;
    use super::*;

    fn case() -> CaseResult {
        let entry = |name: &str, values: &[f64], failed: Option<&str>| Entry {
            name: name.into(),
            rounds: values.iter().map(|&value| Figures::from([(CPU_US, value), (RATE, 1000.0)])).collect(),
            failed: failed.map(Into::into),
        };
        CaseResult {
            name: "small-64".into(),
            title: "small".into(),
            figure: CPU_US,
            entries: vec![
                entry("sluice", &[8.0, 9.0, 10.0], None),
                entry("nginx", &[16.0, 18.0, 20.0], None),
                entry("envoy", &[], Some("missing: no\nwheel")),
            ],
        }
    }

    #[test]
    fn medians_ratios_and_failures_are_shown() {
        let table = table(&case());
        assert_eq!(table[0], ["", "CPU µs/request (min–max)", "requests/s", "sluice / it", "round by round"]);
        assert_eq!(table[2], ["nginx", "18.00 (16.00–20.00)", "1000", "0.500", "0.500"]);
        assert_eq!(table[3][..2], ["envoy", "failed: missing: no"]);
        let markdown = markdown(&table);
        assert_eq!(markdown.lines().nth(1), Some("|---|--:|--:|--:|--:|"));
        assert!(markdown.lines().all(|line| line.matches('|').count() == 6), "{markdown}");
        assert!(plain(&table, Lean::Right).contains("nginx   "), "{}", plain(&table, Lean::Right));
    }
}
