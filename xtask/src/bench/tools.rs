//! Measurements that package `benches` makes by itself: nanoseconds for each packet and each operation. And
//! instructions, by callgrind.

use std::process::Command;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::load;
use super::results::{MicroLine, Tool, XdpLine};
use super::stage::{PROXY_CPU, Pipes, Stage};
use crate::machine::{self, Package};

const WITHIN: Duration = Duration::from_secs(300);
const VALGRIND: &[Package] = &[Package::new("valgrind", &["valgrind", "--version"])];
/// The iterations of two runs. Their difference counts, so that start and end cancel out.
const ITERATIONS: [u64; 2] = [500, 2_500];

/// Runs the XDP cases on the proxies' core.
pub(super) fn xdp(stage: &Stage) -> Result<Tool<XdpLine>, String> {
    lines(stage, "xdp")
}

/// Runs the micro benchmarks.
pub(super) fn micro(stage: &Stage) -> Result<Tool<MicroLine>, String> {
    lines(stage, "micro")
}

/// Runs a tool. An error means that the user interrupted; any other failure is in the result.
fn lines<L: DeserializeOwned>(stage: &Stage, name: &str) -> Result<Tool<L>, String> {
    let lines = json_lines(stage, name);
    stage.check()?;
    Ok(match lines {
        Ok(lines) => Tool { lines, error: None },
        Err(error) => Tool { lines: Vec::new(), error: Some(error) },
    })
}

fn json_lines<L: DeserializeOwned>(stage: &Stage, name: &str) -> Result<Vec<L>, String> {
    let mut command = Command::new(load::tool(name)?);
    command.arg("--json");
    let process = stage.start(name, PROXY_CPU, &command, Pipes::Out)?;
    let output = stage.finish(process, WITHIN)?;
    if !output.status.success() {
        return Err(format!(
            "{name}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        ));
    }
    let lines = parse_lines(&String::from_utf8_lossy(&output.stdout))
        .map_err(|error| format!("{name} said {error}"))?;
    if lines.is_empty() { Err(format!("{name} printed no line of JSON")) } else { Ok(lines) }
}

fn parse_lines<L: DeserializeOwned>(text: &str) -> Result<Vec<L>, String> {
    let objects = text.lines().filter(|line| line.starts_with('{'));
    objects.map(|line| serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))).collect()
}

/// Instructions of one request in Sluice's user-space part: sessions over the simulated ring under callgrind.
pub(super) fn instructions(stage: &Stage) -> Result<Result<f64, String>, String> {
    let counted = difference(stage);
    stage.check()?;
    Ok(counted)
}

fn difference(stage: &Stage) -> Result<f64, String> {
    machine::ensure(VALGRIND)?;
    let mut counts = [0; 2];
    for (count, iterations) in counts.iter_mut().zip(ITERATIONS) {
        let mut command = Command::new("valgrind");
        command
            .arg("--tool=callgrind")
            .arg(format!("--callgrind-out-file={}", stage.folder().join("callgrind.out").display()))
            .arg(load::tool("micro")?)
            .args(["--only", "session", "--iterations", &iterations.to_string()]);
        let output = stage.run("callgrind", WITHIN, &command)?;
        let text = String::from_utf8_lossy(&output.stderr);
        *count = collected(&text).filter(|_| output.status.success()).ok_or_else(|| {
            format!("callgrind: {}: {}", output.status, text.lines().last().unwrap_or_default())
        })?;
    }
    Ok((counts[1].saturating_sub(counts[0])) as f64 / (ITERATIONS[1] - ITERATIONS[0]) as f64)
}

/// The number in callgrind's line "==7== Collected : 123456".
fn collected(text: &str) -> Option<u64> {
    text.lines()
        .rev()
        .find_map(|line| line.split_once("Collected : ")?.1.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_output_is_read() {
        assert_eq!(collected("==7== Events    : Ir\n==7== Collected : 123456\n==7== \n"), Some(123_456));
        assert_eq!(collected("==7== nothing"), None);
        let line = "{\"case\":\"new\",\"ns_median\":40.5,\"ns_min\":40,\"ns_max\":44,\
                    \"above_floor_ns\":10.5,\"goal_ns\":25}";
        let lines: Vec<XdpLine> = parse_lines(&format!("floor\n{line}\n")).unwrap();
        assert_eq!((lines.len(), lines[0].goal_ns), (1, Some(25.0)));
        let without: Vec<XdpLine> = parse_lines(&line.replace("25}", "null}")).unwrap();
        assert_eq!(without[0].goal_ns, None);
        assert!(parse_lines::<XdpLine>("{\"case\":1}").is_err());
    }
}
