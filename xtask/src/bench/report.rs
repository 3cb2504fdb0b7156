//! Writes the results: report.md, charts beside it, and results.json with every round.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::cases::thousands;
use super::chart::{Bar, Chart, Group};
use super::goals;
use super::measure::{BASE_BYTES, IDLE_BYTES, IDLE_COUNT, LOAD_CORE, OTHERS, P99, P999};
use super::results::{CaseResult, Results};
use super::table::{self, Table};

/// For each chart: its file, its title, its unit, its cases, and whether its scale is logarithmic.
const CHARTS: &[(&str, &str, &str, &[&str], bool)] = &[
    (
        "small",
        "CPU time for each request, small response",
        "µs",
        &["small-16", "small-64", "small-256", "small-1024", "small-4000", "routes-32"],
        false,
    ),
    (
        "bodies",
        "CPU time for each GiB of body",
        "ms",
        &["down-16k", "up-16k", "down-1m", "up-1m", "down-64m", "up-64m"],
        false,
    ),
    ("fresh", "CPU time for each connection with one request", "µs", &["fresh"], false),
    (
        "latency",
        "p99.9 latency at fixed rates of arrivals",
        "µs",
        &["rate-2000", "rate-5000", "rate-10000"],
        false,
    ),
    ("beside-idle", "CPU time for each request beside idle connections", "µs", &["beside-idle"], false),
    ("idle", "Memory of an idle keep-alive connection", "bytes", &["idle"], true),
];

/// Replaces the folder's report.
pub(super) fn write(results: &Results, folder: &Path) -> Result<(), String> {
    let told = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(folder).map_err(|error| told(folder, error))?;
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| told(&path, error))
    };
    let mut charts = Vec::new();
    for (name, chart) in draw(results) {
        let file = format!("{name}.svg");
        match chart.svg() {
            Some(svg) => {
                put(&file, &svg)?;
                charts.push((file, chart.title));
            }
            // A chart of an earlier run would show other numbers.
            None => drop(fs::remove_file(folder.join(file))),
        }
    }
    put("report.md", &text(results, &charts))?;
    let json = serde_json::to_string_pretty(results).map_err(|error| format!("results.json: {error}"))?;
    put("results.json", &(json + "\n"))
}

fn draw(results: &Results) -> Vec<(&'static str, Chart)> {
    let mut charts = Vec::new();
    for &(name, title, unit, cases, logarithmic) in CHARTS {
        let groups = cases.iter().filter_map(|case| results.case(case)).filter_map(group).collect();
        charts.push((name, Chart { title: title.into(), unit: unit.into(), groups, logarithmic }));
    }
    let bars = results.xdp.lines.iter().map(|line| Bar {
        name: line.case.clone(),
        value: super::stats::Spread { median: line.ns_median, min: line.ns_min, max: line.ns_max },
    });
    let bars: Vec<Bar> = bars.collect();
    let groups = if bars.is_empty() { Vec::new() } else { vec![Group { title: "XDP program".into(), bars }] };
    charts.push((
        "xdp",
        Chart { title: "Time for each packet".into(), unit: "ns".into(), groups, logarithmic: false },
    ));
    charts
}

fn group(case: &CaseResult) -> Option<Group> {
    let bars: Vec<Bar> = case
        .entries
        .iter()
        .filter_map(|entry| Some(Bar { name: entry.name.clone(), value: entry.spread(case.figure)? }))
        .collect();
    (!bars.is_empty()).then(|| Group { title: case.title.clone(), bars })
}

fn text(results: &Results, charts: &[(String, String)]) -> String {
    let mut text = String::from("# Sluice beside other proxies, measured\n\n");
    head(&mut text, results);
    text.push_str("\n## Where it must get to\n\n");
    text.push_str(&table::markdown(&goals::table(&goals::judge(results))));
    if !charts.is_empty() {
        text.push_str("\n## At a glance\n\n");
        for (file, title) in charts {
            let _ = writeln!(text, "![{title}]({file})\n");
        }
    }
    text.push_str("\n## Every case\n");
    for case in &results.cases {
        let _ = write!(
            text,
            "\n### {} (`{}`)\n\n{}",
            capital(&case.title),
            case.name,
            table::markdown(&table::table(case))
        );
        notes(&mut text, case);
    }
    tools(&mut text, results);
    text.push_str(HOW);
    text
}

fn head(text: &mut String, results: &Results) {
    let machine = &results.machine;
    let mut rows: Table = vec![vec!["".into(), "".into()]];
    let mut row = |name: &str, value: String| rows.push(vec![name.into(), value]);
    row("date", results.date.clone());
    row("commit", results.commit.clone());
    row("command", format!("`{}` ({:.0} minutes)", results.command, results.minutes));
    row("rounds", format!("{} of {} s", results.rounds, results.seconds));
    row("CPU", format!("{}, {} cores", machine.cpu, machine.cores));
    row("memory", format!("{:.0} GiB", machine.memory_gib));
    row("kernel", machine.kernel.clone());
    row("compiler", machine.rustc.clone());
    for (name, version) in &results.versions {
        row(name, version.clone());
    }
    for (name, reason) in &results.missing {
        row(name, format!("**missing**: {}", reason.lines().next().unwrap_or_default()));
    }
    text.push_str(&table::markdown(&rows));
}

/// The largest share of the proxies' core that other processes may use in an undisturbed round.
const DISTURBED: f64 = 0.05;

/// Adds notes that a case's table does not show.
pub(super) fn notes(text: &mut String, case: &CaseResult) {
    for entry in &case.entries {
        if let Some(reason) = &entry.failed {
            let _ = writeln!(
                text,
                "\n{} failed in this case: {}",
                entry.name,
                reason.lines().collect::<Vec<_>>().join(" ")
            );
        }
    }
    let busiest =
        case.entries.iter().filter_map(|entry| Some((entry.spread(LOAD_CORE)?.median, &entry.name)));
    if let Some((part, name)) = busiest.max_by(|one, other| one.0.total_cmp(&other.0))
        && part > 0.95
        && !matches!(case.figure, P99 | P999)
    {
        let _ = writeln!(
            text,
            "\nThe load's core was full ({:.0} % with {name}): the rates are its limit, not the proxies'.",
            part * 100.0
        );
    }
    let disturbed = case
        .entries
        .iter()
        .filter_map(|entry| entry.spread(OTHERS))
        .map(|spread| spread.median)
        .fold(0.0, f64::max);
    if disturbed > DISTURBED {
        let _ = writeln!(
            text,
            "\nOther processes took up to {:.0} % of the proxies' core: these numbers are doubtful.",
            disturbed * 100.0
        );
    }
    if case.figure == IDLE_BYTES {
        let all =
            if case.name.starts_with("tls-") { super::cases::IDLE_TLS } else { super::cases::IDLE } as u64;
        let asked = thousands(all);
        let fewer =
            case.entries.iter().filter_map(|entry| Some((entry, entry.spread(IDLE_COUNT)?.median as u64)));
        for (entry, count) in fewer.filter(|(_, count)| *count < all) {
            let _ = writeln!(
                text,
                "\n{} took about {} of {asked} connections under this descriptor limit.",
                entry.name,
                thousands(count)
            );
        }
        let many: Vec<String> = case
            .entries
            .iter()
            .filter_map(|entry| {
                let (each, base) = (entry.spread(IDLE_BYTES)?.median, entry.spread(BASE_BYTES)?.median);
                Some(format!("{} {:.0} MiB", entry.name, (base + each * 100_000.0) / f64::from(1 << 20)))
            })
            .collect();
        let _ = writeln!(
            text,
            "\nExtrapolated to {} connections, not measured: {}. The kernel's own memory for sockets is the \
             same for all and not in it.",
            thousands(100_000),
            many.join(", ")
        );
    }
}

/// Adds the results of the tools of `benches`.
pub(super) fn tools(text: &mut String, results: &Results) {
    if !results.xdp.lines.is_empty() || results.xdp.error.is_some() {
        text.push_str("\n## XDP, nanoseconds for each packet\n\n");
        if let Some(error) = &results.xdp.error {
            let _ = writeln!(text, "Not measured: {error}");
        }
    }
    if !results.xdp.lines.is_empty() {
        let mut rows = vec![["", "ns (min–max)", "above the floor", "goal"].map(str::to_owned).to_vec()];
        for line in &results.xdp.lines {
            rows.push(vec![
                line.case.clone(),
                format!("{:.1} ({:.1}–{:.1})", line.ns_median, line.ns_min, line.ns_max),
                format!("{:.1}", line.above_floor_ns),
                line.goal_ns.map_or_else(String::new, |goal| format!("≤ {goal:.0}")),
            ]);
        }
        text.push_str(&table::markdown(&rows));
    }
    if !results.micro.lines.is_empty() || results.micro.error.is_some() || results.instructions.is_some() {
        text.push_str("\n## Micro benchmarks\n\n");
        if let Some(error) = &results.micro.error {
            let _ = writeln!(text, "Not measured: {error}");
        }
    }
    if !results.micro.lines.is_empty() {
        let mut rows = vec![["", "ns (min–max)"].map(str::to_owned).to_vec()];
        for line in &results.micro.lines {
            rows.push(vec![
                line.case.clone(),
                format!("{:.1} ({:.1}–{:.1})", line.ns_median, line.ns_min, line.ns_max),
            ]);
        }
        text.push_str(&table::markdown(&rows));
    }
    match &results.instructions {
        Some(Ok(count)) => {
            let count = thousands(count.round().max(0.0) as u64);
            let _ = writeln!(
                text,
                "\nInstructions of our user-space part for each request, sessions over the simulated ring \
                 included, by callgrind: {count}."
            );
        }
        Some(Err(error)) => {
            let _ = writeln!(text, "\nInstructions by callgrind were not counted: {error}");
        }
        None => {}
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

const HOW: &str = "
## How this was measured, and what it does not say

- One worker each, the proxy's whole process tree pinned to CPU 0; wrk, h2load, the open-loop generator and \
the origin (nginx) share CPU 1.
  No scaling is claimed from two cores; rates show who was the bottleneck, they are not the result.
- One proxy has load at a time; the others stand idle. Each round gives every proxy a turn, in changing \
order, and each is started anew
  every second round. Numbers are medians with least and most round; \"round by round\" is the median of \
  each round's own ratio.
- CPU time is the process tree's CPU clock, user and system, between two instants within the load; requests \
are those the origin counted
  meanwhile. Interrupts that strike the proxy while it runs count to it. On loopback the sender's core does \
  the receiver's TCP work:
  what a proxy receives is partly paid by CPU 1, what it sends wholly by itself. This is the same for all.
- The relay is the limit: io_uring and bytes, one upstream connection for each client, no HTTP, no pool, no \
counters.
- Latencies come from an open-loop generator: arrivals at a fixed rate, each measured from when it was due.
- All add X-Forwarded-For, -Proto and -Host; Sluice and Envoy make an X-Request-Id, too, the others do not. \
Logs are off everywhere.
  Configurations: `benches/peers/`.
- Bodies: CPU time by the bytes that the client has read or written between two instants within the load; \
uploads end in a sink that drops
  them in the kernel.
- Guard on: the XDP program in generic mode on lo, which sees every packet of both sides, the origin's too; \
only in its own turn.
- Memory is the process tree's proportional set size (PSS) with so many idle connections that have had one \
request, less that without
  them, by their number.
";

/// A line for each goal, and the number of goals that are met, for the terminal.
pub(super) fn summary(results: &Results) -> String {
    let mut goals = goals::judge(results);
    goals.retain(goals::Goal::was_run);
    if goals.is_empty() {
        return String::new();
    }
    let judged: Vec<bool> = goals.iter().filter_map(goals::Goal::is_met).collect();
    let met = judged.iter().filter(|met| **met).count();
    format!(
        "{}\n{met} of {} measured goals met",
        table::plain(&goals::table(&goals), table::Lean::Left),
        judged.len()
    )
}
