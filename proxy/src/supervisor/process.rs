//! The data plane's process, from /proc. The data plane cannot look there itself: its root is empty.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use crate::control::status::ProcessStatus;

/// Its memory and its descriptors. Neither takes a capability.
pub(super) fn status(pid: u32) -> ProcessStatus {
    ProcessStatus {
        resident_bytes: resident_bytes(pid),
        // Since Linux 6.2 the folder's size is the number of descriptors.
        open_descriptors: fs::metadata(format!("/proc/{pid}/fd")).ok().map(|folder| folder.len()),
    }
}

fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_descriptors_and_a_dead_one_has_none() {
        let ours = status(std::process::id());
        assert!(ours.resident_bytes.is_some_and(|bytes| bytes > 1 << 20), "{ours:?}");
        assert!(ours.open_descriptors.is_some_and(|count| count >= 3), "{ours:?}");
        assert_eq!(status(u32::MAX), ProcessStatus::default());
    }
}
