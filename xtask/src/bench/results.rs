//! The results of a run, as results.json holds them: every round, with the machine and the versions.

use std::fs;
use std::process::Command;

use serde::Serialize;

use super::measure::Figures;
use super::stats::{Spread, paired_ratio, spread};
use crate::machine;

/// The results of a run.
#[derive(Serialize)]
pub(super) struct Results {
    pub(super) machine: Machine,
    pub(super) command: String,
    pub(super) date: String,
    pub(super) commit: String,
    pub(super) rounds: usize,
    pub(super) seconds: f64,
    pub(super) minutes: f64,
    pub(super) versions: Vec<(String, String)>,
    /// Peers that could not take part, and the reasons.
    pub(super) missing: Vec<(String, String)>,
    pub(super) cases: Vec<CaseResult>,
    pub(super) xdp: Tool<XdpLine>,
    pub(super) micro: Tool<MicroLine>,
    /// Instructions for each request in Sluice's user-space part.
    pub(super) instructions: Option<Result<f64, String>>,
}

/// A tool's lines, or the error that prevented them. Both are empty if the tool was not asked for.
#[derive(Serialize)]
pub(super) struct Tool<L> {
    pub(super) lines: Vec<L>,
    pub(super) error: Option<String>,
}

impl<L> Default for Tool<L> {
    fn default() -> Self {
        Self { lines: Vec::new(), error: None }
    }
}

/// A line of `xdp --json`: nanoseconds for each packet.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub(super) struct XdpLine {
    pub(super) case: String,
    pub(super) ns_median: f64,
    pub(super) ns_min: f64,
    pub(super) ns_max: f64,
    pub(super) above_floor_ns: f64,
    pub(super) goal_ns: Option<f64>,
}

/// A line of `micro --json`: nanoseconds for each operation.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub(super) struct MicroLine {
    pub(super) case: String,
    pub(super) ns_median: f64,
    pub(super) ns_min: f64,
    pub(super) ns_max: f64,
}

/// One case.
#[derive(Serialize)]
pub(super) struct CaseResult {
    pub(super) name: String,
    pub(super) title: String,
    /// The name of the figure that the case measures.
    pub(super) figure: &'static str,
    pub(super) entries: Vec<Entry>,
}

/// One entrant of a case.
#[derive(Serialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) rounds: Vec<Figures>,
    /// The reason if the entrant did not take part to the end.
    pub(super) failed: Option<String>,
}

impl Entry {
    /// A figure in each round; NaN if a round lacks it.
    pub(super) fn column(&self, figure: &str) -> Vec<f64> {
        self.rounds.iter().map(|round| round.get(figure).copied().unwrap_or(f64::NAN)).collect()
    }

    /// The spread of a figure. `None` if the entrant failed: half of the rounds is no result.
    pub(super) fn spread(&self, figure: &str) -> Option<Spread> {
        if self.failed.is_some() { None } else { spread(&self.column(figure)) }
    }
}

impl CaseResult {
    pub(super) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The spread of an entrant's figure. `None` if it failed or did not take part.
    pub(super) fn spread(&self, name: &str, figure: &str) -> Option<Spread> {
        self.entry(name)?.spread(figure)
    }

    /// The entrant with the smallest median among some, and its spread.
    pub(super) fn best<'a>(&self, names: &[&'a str], figure: &str) -> Option<(&'a str, Spread)> {
        names
            .iter()
            .filter_map(|&name| Some((name, self.spread(name, figure)?)))
            .min_by(|(_, one), (_, other)| one.median.total_cmp(&other.median))
    }

    /// The ratio of one entrant's figure to another's, round by round.
    pub(super) fn paired(&self, name: &str, other: &str, figure: &str) -> Option<Spread> {
        let (one, other) = (self.entry(name)?, self.entry(other)?);
        (one.failed.is_none() && other.failed.is_none())
            .then(|| paired_ratio(&one.column(figure), &other.column(figure)))
            .flatten()
    }
}

impl Results {
    pub(super) fn case(&self, name: &str) -> Option<&CaseResult> {
        self.cases.iter().find(|case| case.name == name)
    }
}

/// The machine on which the run was made.
#[derive(Serialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) memory_gib: f64,
    pub(super) kernel: String,
    pub(super) rustc: String,
}

impl Machine {
    pub(super) fn read() -> Self {
        let value = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kilobytes = value(&meminfo, "MemTotal")
            .and_then(|value| value.strip_suffix(" kB")?.parse::<f64>().ok())
            .unwrap_or(f64::NAN);
        let numbers = ["vendor_id", "cpu family", "model\t", "stepping"]
            .map(|key| value(&cpuinfo, key).unwrap_or_default());
        let name = value(&cpuinfo, "model name").unwrap_or_else(|| "unknown".into());
        let hypervisor = if cpuinfo.contains(" hypervisor") { ", virtual machine" } else { "" };
        let [_, family, model, stepping] = numbers;
        Self {
            cpu: format!("{name} (family {family}, model {model}, stepping {stepping}{hypervisor})"),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory_gib: kilobytes / (1 << 20) as f64,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            rustc: said(&["rustc", "--version"]),
        }
    }
}

/// The measured commit, and whether the tree differs from it.
pub(super) fn commit() -> String {
    let commit = said(&["git", "rev-parse", "--short=12", "HEAD"]);
    if said(&["git", "status", "--porcelain", "--untracked-files=no"]).is_empty() {
        commit
    } else {
        format!("{commit} with uncommitted changes")
    }
}

/// The first line of a command's output, or of its standard error if there is no output. Empty if it fails.
pub(super) fn said(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).current_dir(machine::root()).output();
    output.map_or_else(
        |_| String::new(),
        |output| {
            let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
            // Envoy's output begins with an empty line.
            String::from_utf8_lossy(&text)
                .lines()
                .map(str::trim)
                .find(|line| !line.is_empty())
                .unwrap_or_default()
                .to_owned()
        },
    )
}
