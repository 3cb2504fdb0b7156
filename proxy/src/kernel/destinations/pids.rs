//! The namespace of process ids that this process and its children are in (pid_namespaces(7)). In a container
//! it is not the host's, and the kernel would show programs the host's numbers.

use std::io;
use std::os::unix::fs::MetadataExt;

use proxy_common::destinations::PidNamespace;

/// This process's namespace as the helper `bpf_get_ns_current_pid_tgid` takes it.
pub(super) fn namespace() -> io::Result<PidNamespace> {
    let file = std::fs::metadata("/proc/self/ns/pid")?;
    Ok(PidNamespace { device: device(file.dev()), inode: file.ino() })
}

/// stat(2) spreads the bits of the minor number; the kernel itself keeps the major number above 20 bits.
fn device(of_stat: u64) -> u64 {
    u64::from(libc::major(of_stat)) << 20 | u64::from(libc::minor(of_stat))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_encoded_as_the_kernel_does() {
        for (major, minor, expected) in
            [(0, 4, 4), (0, 300, 300), (8, 1, 8 << 20 | 1), (0, 0xf_ffff, 0xf_ffff)]
        {
            assert_eq!(device(libc::makedev(major, minor)), expected, "{major}:{minor}");
        }
        let ours = namespace().expect("a namespace");
        assert!(ours.device != 0 && ours.inode != 0, "{ours:?}");
    }
}
