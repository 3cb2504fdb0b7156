//! The kernel's figures for a process tree and a core: time on the processor, memory, and how busy a core is.

use std::fs;
use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// A process and all its living descendants.
pub(super) fn tree(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut at = 0;
    while at < found.len() {
        for thread in numbers(&format!("/proc/{}/task", found[at])) {
            let children =
                fs::read_to_string(format!("/proc/{}/task/{thread}/children", found[at])).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        at += 1;
    }
    found
}

fn numbers(folder: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Microseconds of user and system time of a tree's living processes, ended threads included. The process CPU
/// clocks count nanoseconds up to this instant. schedstat is as fine, but lags behind a running thread by up
/// to a tick.
pub(super) fn micros(pids: &[u32]) -> Result<f64, String> {
    let mut sum = 0.0;
    for &pid in pids {
        let spent = clock_getcpuclockid(Pid::from_raw(pid.cast_signed()))
            .and_then(clock_gettime)
            .map_err(|error| format!("CPU time of process {pid}: {error}"))?;
        sum += Duration::from(spent).as_secs_f64() * 1e6;
    }
    Ok(sum)
}

/// The bytes of memory of a tree. The users of a shared page share its cost.
pub(super) fn pss(pids: &[u32]) -> Result<u64, String> {
    let mut bytes = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        bytes += pss_bytes(&text).ok_or_else(|| format!("{path}: no Pss"))?;
    }
    Ok(bytes)
}

fn pss_bytes(smaps: &str) -> Option<u64> {
    let line = smaps.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Bytes that a process has read so far, including from sockets.
pub(super) fn bytes_read(pid: u32) -> Result<u64, String> {
    io(pid, "rchar:")
}

/// Bytes that a process has written so far, including to sockets.
pub(super) fn bytes_written(pid: u32) -> Result<u64, String> {
    io(pid, "wchar:")
}

fn io(pid: u32, name: &str) -> Result<u64, String> {
    let path = format!("/proc/{pid}/io");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.ok_or_else(|| format!("{path}: no {name}"))
}

/// A core's busy time and total time, in ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Core {
    busy: u64,
    all: u64,
}

impl Core {
    pub(super) fn read(core: usize) -> Result<Self, String> {
        let text = fs::read_to_string("/proc/stat").map_err(|error| format!("/proc/stat: {error}"))?;
        Self::parse(&text, core).ok_or_else(|| format!("/proc/stat has no cpu{core}"))
    }

    fn parse(stat: &str, core: usize) -> Option<Self> {
        let name = format!("cpu{core} ");
        let line = stat.lines().find_map(|line| line.strip_prefix(&name))?;
        // The first columns: user nice system idle iowait irq softirq steal.
        let ticks: Vec<u64> = line.split_whitespace().take(8).filter_map(|word| word.parse().ok()).collect();
        (ticks.len() == 8).then(|| {
            let all = ticks.iter().sum();
            Self { busy: all - ticks[3] - ticks[4], all }
        })
    }

    /// The share of the time since `earlier` in which the core was busy, 0 to 1.
    pub(super) fn utilisation_since(self, earlier: Self) -> f64 {
        (self.busy - earlier.busy) as f64 / (self.all - earlier.all).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_read() {
        assert_eq!(
            pss_bytes(
                "563736a32000-7ffd3a918000 ---p 0 0 0 [rollup]\nRss: 9 kB\nPss:    1108 kB\nPss_Anon: 1 kB\n"
            ),
            Some(1108 * 1024)
        );
        assert_eq!(pss_bytes("Rss: 9 kB\n"), None);
    }

    #[test]
    fn a_core_is_busy_when_neither_idle_nor_waiting() {
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\ncpu1 10 0 20 60 10 0 0 0 0 0\n";
        let earlier = Core::parse(text, 1).unwrap();
        assert_eq!(earlier, Core { busy: 30, all: 100 });
        let later = Core { busy: 105, all: 200 };
        assert!((later.utilisation_since(earlier) - 0.75).abs() < 1e-9);
        assert_eq!(Core::parse(text, 2), None);
    }

    #[test]
    fn our_own_tree_has_time_and_memory() {
        let pids = tree(std::process::id());
        assert_eq!(pids[0], std::process::id());
        assert!(micros(&pids[..1]).unwrap() > 0.0);
        assert!(pss(&pids[..1]).unwrap() > 100_000);
        let (read, written) = (bytes_read(pids[0]).unwrap(), bytes_written(pids[0]).unwrap());
        let mut sent = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut sent.1, &[7; 3000]).unwrap();
        std::io::Read::read_exact(&mut sent.0, &mut [0; 3000]).unwrap();
        assert!(
            bytes_read(pids[0]).unwrap() >= read + 3000 && bytes_written(pids[0]).unwrap() >= written + 3000
        );
        assert!(micros(&[(1 << 22) + 1]).is_err(), "beyond the largest process id");
    }
}
