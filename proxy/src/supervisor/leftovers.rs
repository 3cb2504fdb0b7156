//! Leftovers in bpffs of an instance that was killed: its filter still drops packets as before. `plan` and
//! `status` describe them, and they can be removed without a start. Also names the holder of an interface
//! that we want.

use std::fmt::Write;
use std::path::Path;

use super::run_dir;
use crate::control::now;
use crate::kernel::Holder;
use crate::kernel::guard;
use crate::kernel::guard::pins::{Pinned, Pins};

/// The leftovers of the instance of this run_dir; `None` without any, or while it runs.
#[must_use]
pub fn describe(run_dir: &Path) -> Option<String> {
    if run_dir::runs_in(run_dir).is_some() {
        return None;
    }
    let Pinned { folder, interfaces, bans, .. } = Pins::find(run_dir)?.pinned(now());
    let mut text = format!("an earlier run was killed and left its pins in {}: ", folder.display());
    let names: Vec<&str> = interfaces.iter().map(|(name, _)| name.as_str()).collect();
    match (&names[..], bans) {
        ([], _) => text.push_str("maps only, no packet is judged by them"),
        (names, bans) => {
            let _ = write!(
                text,
                "XDP on {} still drops denied and banned sources and those above their rate",
                names.join(", ")
            );
            if let Some(bans) = bans {
                let _ = write!(text, " ({bans} bans hold)");
            }
        }
    }
    let _ =
        write!(text, "; a start takes them over, `sluice stop --run-dir {}` removes them", run_dir.display());
    Some(text)
}

/// Removes the leftovers; the receipt. `None` when there are none.
///
/// # Errors
/// Why it stays.
pub fn remove(run_dir: &Path) -> Option<Result<String, String>> {
    let lock = match run_dir::take_lock_of(run_dir) {
        Ok(lock) => lock,
        Err(error) => return Some(Err(error.to_string())),
    };
    let mut pins = Pins::find(run_dir)?;
    let Pinned { folder, interfaces, bans, .. } = pins.pinned(now());
    let removed =
        pins.remove().map_err(|error| format!("the pins of an earlier run stay: {error}")).map(|()| {
            let names: Vec<&str> = interfaces.iter().map(|(name, _)| name.as_str()).collect();
            let detached = if names.is_empty() {
                String::new()
            } else {
                format!(": XDP detached from {}", names.join(", "))
            };
            let bans = bans
                .filter(|bans| *bans > 0)
                .map_or_else(String::new, |bans| format!(", {bans} bans lifted"));
            format!(
                "no sluice ran in {}; the pins that an earlier run left in {} are removed{detached}{bans}",
                run_dir.display(),
                folder.display()
            )
        });
    drop(lock);
    Some(removed)
}

/// The holder of an interface that is not ours to take, with advice; `None`: nobody, or the instance of this
/// run_dir itself.
#[must_use]
pub fn holder_of(interface: &str, run_dir: &Path) -> Option<String> {
    match guard::holder(interface)? {
        Holder::Instance { run_dir: holder, .. } if holder == run_dir => None,
        holder => Some(explain(interface, &holder)),
    }
}

/// One instance for each interface: names the holder, and says how the interface becomes free.
#[must_use]
pub fn explain(interface: &str, holder: &Holder) -> String {
    let or = "or take it out of guard.interfaces";
    match holder {
        Holder::Instance { run_dir, .. } => match run_dir::runs_in(run_dir) {
            Some(pid) => format!(
                "XDP on {interface}: {holder} filters it, as process {pid}; one instance per interface: stop \
                 that one (`sluice stop \
                 --run-dir {}`) {or}",
                run_dir.display()
            ),
            None => format!(
                "XDP on {interface}: {holder} filters it; it does not run, but its pins are left: `sluice \
                 stop --run-dir {}` removes \
                 them; {or}",
                run_dir.display()
            ),
        },
        Holder::Unpinned { .. } | Holder::Program { .. } => format!(
            "XDP on {interface}: {holder} is attached; one XDP program per interface: detach it (`ip link \
             set dev {interface} xdp off`, \
             or end what attached it) {or}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn whoever_holds_an_interface_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().expect("directory");
        let dead = Holder::Instance { instance: "edge".into(), run_dir: folder.path().to_owned() };
        let text = explain("eth0", &dead);
        assert!(
            text.contains("\"edge\"")
                && text.contains("does not run")
                && text.contains("sluice stop --run-dir"),
            "{text}"
        );
        let held = run_dir::RunDir::claim(folder.path()).expect("claim");
        let text = explain("eth0", &dead);
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        drop(held);
        let other = Holder::Program { id: 7, name: Some("katran".into()) };
        let text = explain("eth0", &other);
        assert!(
            text.contains("\"katran\"") && text.contains("not Sluice's") && text.contains("xdp off"),
            "{text}"
        );
    }

    #[test]
    fn nothing_is_left_of_nobody() {
        let nowhere = PathBuf::from("/run/no-such-instance-here");
        assert_eq!(describe(&nowhere), None);
        assert_eq!(remove(&nowhere), None);
    }
}
