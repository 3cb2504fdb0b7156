//! The table of `README.md` that compares Sluice with other proxies. Its figures come from the benchmark's
//! reports.

use crate::page;

const PLAIN: &str = "benches/report/report.md";
const TLS: &str = "benches/report/tls/report.md";

/// The proxies' names in the report, in the order of the columns.
const PROXIES: [&str; 5] = ["sluice", "nginx", "haproxy", "pingora", "envoy"];

/// For each row: its text, its report, its case there, and the start of the column's heading.
const ROWS: &[(&str, &str, &str, &str)] = &[
    ("µs per small request, 64 connections", PLAIN, "small-64", "CPU µs/request"),
    ("µs per small request, 256 connections", PLAIN, "small-256", "CPU µs/request"),
    ("µs per connection with one request", PLAIN, "fresh", "CPU µs/request"),
    ("µs per small request over TLS, 64 connections", TLS, "tls-small-64", "CPU µs/request"),
    ("µs per full TLS handshake with one request", TLS, "tls-full", "CPU µs/request"),
    ("ms per GiB, bodies of 1 MiB down", PLAIN, "down-1m", "CPU ms/GiB"),
    ("ms per GiB, bodies of 64 MiB down", PLAIN, "down-64m", "CPU ms/GiB"),
    ("latency in µs: 99.9 % of responses, at 5,000 requests/s", PLAIN, "rate-5000", "p99.9 µs"),
    ("bytes of memory per idle connection", PLAIN, "idle", "bytes/connection"),
    ("bytes of memory per idle connection over TLS", TLS, "tls-idle", "bytes/connection"),
];

/// The medians of a case, by proxy. `None`: the case was not measured for it.
fn medians(report: &str, case: &str, column: &str) -> [Option<f64>; PROXIES.len()] {
    let (_, rest) = report.split_once(&format!("(`{case}`)\n")).unwrap_or_else(|| panic!("no case {case}"));
    let mut table = rest.lines().skip_while(|line| !line.starts_with('|'));
    let heading = page::cells(table.next().unwrap());
    let place = heading.iter().position(|cell| cell.starts_with(column));
    let place = place.unwrap_or_else(|| panic!("{case} has no column {column}"));
    let rows: Vec<Vec<String>> = table.take_while(|line| line.starts_with('|')).map(page::cells).collect();
    PROXIES.map(|proxy| {
        let row = rows.iter().find(|row| row[0] == proxy)?;
        row[place].split_whitespace().next()?.parse().ok()
    })
}

/// Shows about three digits, with `,` between thousands.
fn show(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[test]
fn readme_compares_by_the_reports() {
    let rows: Vec<[String; 6]> = ROWS
        .iter()
        .map(|(label, report, case, column)| {
            let medians = medians(&page::read(report), case, column);
            let best = medians.iter().flatten().copied().fold(f64::INFINITY, f64::min);
            let cell = |value: Option<f64>| match value {
                Some(value) if value <= best => format!("**{}**", show(value)),
                Some(value) => show(value),
                None => String::new(),
            };
            let [sluice, nginx, haproxy, pingora, envoy] = medians.map(cell);
            [(*label).to_owned(), sluice, nginx, haproxy, pingora, envoy]
        })
        .collect();
    let table = page::table(["", "Sluice", "nginx", "HAProxy", "Pingora", "Envoy"], &rows);
    let table = table.replacen(&"---|".repeat(6), &format!("---|{}", "--:|".repeat(5)), 1);
    page::keep("README.md", &page::with_block(&page::read("README.md"), "comparison", &table));
}

#[test]
fn numbers_have_three_digits_or_commas() {
    for (value, expected) in [(11.5, "11.5"), (113.92, "114"), (464.0, "464"), (34_275.0, "34,275")] {
        assert_eq!(show(value), expected);
    }
}
