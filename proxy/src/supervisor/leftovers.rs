//! Leftovers of an instance that was killed: its filter still drops packets as before, and kernel settings
//! are as it needed them. `plan` and `status` describe them, and they can be removed without a start. Also
//! names the holder of an interface that we want.

use std::fmt::Write;
use std::path::Path;

use super::run_dir;
use crate::control::now;
use crate::folder::Folder;
use crate::kernel::Holder;
use crate::kernel::guard;
use crate::kernel::guard::pins::{Pinned, Pins};
use crate::kernel::{LeftSettings, Sysctls};

/// The leftovers of the instance of this run_dir; `None` without any, or while it runs.
#[must_use]
pub fn describe(run_dir: &Path) -> Option<String> {
    if run_dir::runs_in(run_dir).is_some() {
        return None;
    }
    let settings = match left_settings(run_dir) {
        LeftSettings::Nothing => None,
        LeftSettings::Elsewhere => Some("kernel settings of another network namespace".to_owned()),
        LeftSettings::Here(settings) => {
            let names = settings.names().collect::<Vec<_>>().join(", ");
            // Only looked at.
            std::mem::forget(settings);
            Some(names)
        }
    };
    let settings = settings.map(|names| format!("an earlier run was killed and left its changes of {names}"));
    let pins = Pins::find(run_dir).map(|pins| describe_pins(pins.pinned(now())));
    let left = [pins, settings].into_iter().flatten().collect::<Vec<_>>().join("\n");
    if left.is_empty() {
        return None;
    }
    let run_dir = run_dir.display();
    Some(format!("{left}\na start takes it over, `sluice stop --run-dir {run_dir}` removes it"))
}

fn left_settings(run_dir: &Path) -> LeftSettings {
    Folder::open(run_dir).map_or(LeftSettings::Nothing, Sysctls::left_in)
}

fn describe_pins(pinned: Pinned) -> String {
    let Pinned { folder, interfaces, bans, .. } = pinned;
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
    text
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
    let pins = Pins::find(run_dir).map(remove_pins);
    // After the programs that needed them are gone.
    let settings = match left_settings(run_dir) {
        LeftSettings::Nothing => None,
        LeftSettings::Elsewhere => Some(Err(
            "an earlier run changed kernel settings of another network namespace; run `sluice stop` there"
                .to_owned(),
        )),
        LeftSettings::Here(mut settings) => {
            let outcomes = settings.restore().into_iter().collect::<Result<Vec<_>, _>>();
            Some(outcomes.map(|lines| lines.join("; ")))
        }
    };
    drop(lock);
    let outcomes: Vec<_> = [pins, settings].into_iter().flatten().collect();
    if outcomes.is_empty() {
        return None;
    }
    let mut done = vec![format!("no sluice ran in {}", run_dir.display())];
    let mut failed = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(what) => done.push(what),
            Err(why) => failed.push(why),
        }
    }
    Some(if failed.is_empty() { Ok(done.join("; ")) } else { Err(failed.join("; ")) })
}

fn remove_pins(mut pins: Pins) -> Result<String, String> {
    let Pinned { folder, interfaces, bans, .. } = pins.pinned(now());
    pins.remove().map_err(|error| format!("the pins of an earlier run stay: {error}"))?;
    let names: Vec<&str> = interfaces.iter().map(|(name, _)| name.as_str()).collect();
    let detached =
        if names.is_empty() { String::new() } else { format!(": XDP detached from {}", names.join(", ")) };
    let bans = bans.filter(|bans| *bans > 0).map_or_else(String::new, |bans| format!(", {bans} bans lifted"));
    let folder = folder.display();
    Ok(format!("the pins that an earlier run left in {folder} are removed{detached}{bans}"))
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
