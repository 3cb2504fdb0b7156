//! The limits of our control group and of those above it (cgroups(7)): CPU time and memory, in version 2 and
//! in version 1. What the machine has is more than a container gets.

use std::fs;
use std::path::{Path, PathBuf};

/// CPUs whose time we may use up, rounded up; `None`: no quota.
#[must_use]
pub fn cpus(root: &Path) -> Option<usize> {
    let quotas = folders(root, "cpu").into_iter().filter_map(|folder| {
        let (quota, period) = match read(&folder, "cpu.max") {
            Some(text) => {
                let (quota, period) = text.split_once(' ')?;
                (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?)
            }
            // -1: none.
            None => (number(&folder, "cpu.cfs_quota_us")?, number(&folder, "cpu.cfs_period_us")?),
        };
        usize::try_from(quota.checked_div(period)? + u64::from(quota % period > 0)).ok()
    });
    quotas.min().map(|cpus| cpus.max(1))
}

/// Bytes that we may still allocate before the kernel kills; `None`: no limit.
#[must_use]
pub fn memory_left(root: &Path) -> Option<u64> {
    let left = folders(root, "memory").into_iter().filter_map(|folder| {
        let limit = number(&folder, "memory.max").or_else(|| number(&folder, "memory.limit_in_bytes"))?;
        let used = number(&folder, "memory.current").or_else(|| number(&folder, "memory.usage_in_bytes"))?;
        // Pages of files that nobody used of late are taken back first.
        let stat = read(&folder, "memory.stat").unwrap_or_default();
        let cached = stat.lines().find_map(|line| {
            let (key, value) = line.split_once(' ')?;
            matches!(key, "inactive_file" | "total_inactive_file").then(|| value.parse::<u64>().ok())?
        });
        // Version 1 says "no limit" with a number beyond every machine's memory.
        (limit < 1 << 60).then(|| limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
    });
    left.min()
}

fn read(folder: &Path, name: &str) -> Option<String> {
    Some(fs::read_to_string(folder.join(name)).ok()?.trim().to_owned())
}

fn number(folder: &Path, name: &str) -> Option<u64> {
    read(folder, name)?.parse().ok()
}

/// Our group's folder in each hierarchy that may have this controller, and the folders above it.
fn folders(root: &Path, controller: &str) -> Vec<PathBuf> {
    let text = |name| fs::read_to_string(root.join("proc/self").join(name)).unwrap_or_default();
    let (groups, mounts) = (text("cgroup"), text("mountinfo"));
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let is_unified = controllers.is_empty();
        if !is_unified && !controllers.split(',').any(|name| name == controller) {
            continue;
        }
        for (within, point) in mounts.lines().filter_map(|mount| hierarchy(mount, is_unified, controller)) {
            let path = Path::new(path);
            let below = path.strip_prefix(within).or_else(|_| path.strip_prefix("/")).unwrap_or(path);
            let top = root.join(point.trim_start_matches('/'));
            let folder = top.join(below);
            found.extend(folder.ancestors().take_while(|one| one.starts_with(&top)).map(Path::to_owned));
        }
    }
    found
}

/// The group and the place of a mount (proc_pid_mountinfo(5)), if it is of this hierarchy.
fn hierarchy<'m>(mount: &'m str, is_unified: bool, controller: &str) -> Option<(&'m str, &'m str)> {
    let (place, kind) = mount.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (within, point) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let (name, options) = (kind.next()?, kind.nth(1)?);
    let is_it = if is_unified {
        name == "cgroup2"
    } else {
        name == "cgroup" && options.split(',').any(|option| option == controller)
    };
    is_it.then_some((within, point))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        folder
    }

    const MOUNTS: &str = "24 1 0:21 / /proc rw - proc proc rw\n\
        30 24 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_tightest_group_on_the_way_up_counts() {
        let group = "sys/fs/cgroup/system.slice/sluice.service";
        let root = root(&[
            ("proc/self/cgroup", "0::/system.slice/sluice.service\n"),
            ("proc/self/mountinfo", MOUNTS),
            (&format!("{group}/cpu.max"), "max 100000\n"),
            ("sys/fs/cgroup/system.slice/cpu.max", "250000 100000\n"),
            (&format!("{group}/memory.max"), "1000000\n"),
            (&format!("{group}/memory.current"), "800000\n"),
            (&format!("{group}/memory.stat"), "anon 1\ninactive_file 300000\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "max\n"),
        ]);
        assert_eq!(cpus(root.path()), Some(3), "two and a half");
        assert_eq!(memory_left(root.path()), Some(500_000));
    }

    #[test]
    fn version_one_and_containers_are_understood() {
        let mounts = "40 1 0:30 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
            41 1 0:31 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let root = root(&[
            ("proc/self/cgroup", "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n1:name=systemd:/x\n"),
            ("proc/self/mountinfo", mounts),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5\n"),
        ]);
        assert_eq!(cpus(root.path()), Some(1));
        assert_eq!(memory_left(root.path()), None);
        fs::write(root.path().join("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"), "-1\n").expect("written");
        assert_eq!(cpus(root.path()), None);
        assert_eq!((cpus(Path::new("/nonexistent")), memory_left(Path::new("/nonexistent"))), (None, None));
    }
}
