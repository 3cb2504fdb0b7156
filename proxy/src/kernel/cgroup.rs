//! The cgroup v2 of this process (cgroups(7)). A socket belongs to the cgroup of the process that created it,
//! and programs that watch or judge sockets are attached to that cgroup.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::kernel::error::KernelError;

/// Opens this process's cgroup.
pub(super) fn own() -> Result<(PathBuf, File), KernelError> {
    let failed = |reason: String| KernelError::Cgroup { reason };
    let read = |path: &str| std::fs::read_to_string(path).map_err(|error| failed(format!("{path}: {error}")));
    let path = find(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)
        .map_err(|reason| failed(reason.to_owned()))?;
    let file = File::open(&path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
    Ok((path, file))
}

/// The path of this process's cgroup, from the contents of /proc/self/cgroup and /proc/self/mountinfo.
fn find(cgroups: &str, mounts: &str) -> Result<PathBuf, &'static str> {
    let own =
        cgroups.lines().find_map(|line| line.strip_prefix("0::")).ok_or("this kernel has no cgroup v2")?;
    let own = Path::new(own);
    let mut mounted = false;
    for line in mounts.lines() {
        // proc_pid_mountinfo(5): fields up to a lone hyphen, then the file system's type.
        let Some((fields, rest)) = line.split_once(" - ") else { continue };
        let mut fields = fields.split(' ').skip(3);
        let (Some("cgroup2"), Some(root), Some(point)) =
            (rest.split(' ').next(), fields.next(), fields.next())
        else {
            continue;
        };
        mounted = true;
        let (root, point) = (unescaped(root), unescaped(point));
        if let Ok(below) = own.strip_prefix(&root) {
            return Ok(PathBuf::from(point).join(below));
        }
    }
    Err(if mounted {
        "this process's cgroup is outside of what is mounted as cgroup2"
    } else {
        "no cgroup2 file system is mounted (`mount -t cgroup2 none /sys/fs/cgroup` does)"
    })
}

/// Decodes a field: spaces, tabs, line ends and backslashes are written as three octal digits.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_at_checked(3).map(|(digits, rest)| (u8::from_str_radix(digits, 8), rest)) {
            Some((Ok(byte), rest)) => {
                text.push(char::from(byte));
                text.push_str(rest);
            }
            _ => text.push_str(part),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "25 20 0:22 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
        26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n\
        27 25 0:24 / /sys/fs/cgroup/systemd rw shared:10 - cgroup cgroup rw,name=systemd\n";

    #[test]
    fn the_own_cgroup_is_found_where_it_is_mounted() {
        for (cgroups, mounts, expected) in [
            ("0::/\n", HYBRID, "/sys/fs/cgroup/unified"),
            (
                "9:name=systemd:/x\n0::/system.slice/sluice.service\n",
                HYBRID,
                "/sys/fs/cgroup/unified/system.slice/sluice.service",
            ),
            // Only a part of the tree is mounted, as in a container.
            ("0::/pod/one\n", "30 1 0:23 /pod /cg rw - cgroup2 none rw\n", "/cg/one"),
            ("0::/pod\n", "30 1 0:23 /pod /with\\040space rw - cgroup2 none rw\n", "/with space"),
        ] {
            assert_eq!(find(cgroups, mounts), Ok(PathBuf::from(expected)), "{cgroups}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (cgroups, mounts, expected) in [
            ("9:cpu:/\n", HYBRID, "no cgroup v2"),
            ("0::/\n", "25 20 0:22 / /sys ro - sysfs sysfs ro\n", "mounted"),
            ("0::/../other\n", "30 1 0:23 /pod /cg rw - cgroup2 none rw\n", "outside"),
        ] {
            let error = find(cgroups, mounts).expect_err(cgroups);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn this_machine_has_one_or_says_why_not() {
        match own() {
            Ok((path, file)) => assert!(path.is_absolute() && file.metadata().expect("open").is_dir()),
            Err(error) => assert!(error.to_string().starts_with("cgroup v2: "), "{error}"),
        }
    }
}
