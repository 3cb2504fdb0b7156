//! Kernel settings of this network namespace that Sluice changes while it runs. Their former values are
//! written to run_dir before the first change. After a crash the next start finds that file, and restores the
//! settings when it ends. A setting that somebody else has changed meanwhile stays as it is.
//!
//! Only the settings of `SETTINGS` are ever written, whatever the file names.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::netns;
use crate::folder::Folder;

const FILE: &str = "sysctl.json";
/// The file has a few hundred bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// The settings that Sluice changes.
const SETTINGS: [&str; 2] = ["tcp_syncookies", "tcp_timestamps"];
const ROOT: &str = "/proc/sys/net/ipv4";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The settings that were changed. Dropping this restores them.
#[derive(Debug)]
pub struct Sysctls {
    run_dir: Folder,
    /// The folder of the settings in /proc/sys.
    root: PathBuf,
    saved: Saved,
}

/// The file's contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    /// The boot and the network namespace of these settings, which do not outlive either.
    boot: String,
    netns: u64,
    settings: BTreeMap<String, Change>,
}

/// The changes that an earlier run did not take back.
#[derive(Debug)]
pub enum LeftSettings {
    /// None.
    Nothing,
    /// Changes in another network namespace, out of reach from here.
    Elsewhere,
    /// Changes in this network namespace.
    Here(Sysctls),
}

/// One setting's value before our change, and our value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    before: String,
    ours: String,
}

impl Sysctls {
    /// The settings of this thread's network namespace. Takes over the file that a crashed process left in
    /// `run_dir`.
    #[must_use]
    pub fn new(run_dir: Folder) -> Self {
        let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        Self::at(PathBuf::from(ROOT), run_dir, boot, netns::cookie().unwrap_or(0))
    }

    /// Looks for what a killed process left in `run_dir`, which nobody uses now.
    #[must_use]
    pub fn left_in(run_dir: Folder) -> LeftSettings {
        let Some(left) = left(&run_dir) else { return LeftSettings::Nothing };
        let ours = Self::new(run_dir);
        if left.boot != ours.saved.boot {
            // Those settings ended with that boot.
            LeftSettings::Nothing
        } else if left.netns == ours.saved.netns {
            LeftSettings::Here(ours)
        } else {
            // The file is still of use there.
            std::mem::forget(ours);
            LeftSettings::Elsewhere
        }
    }

    /// The names of the settings that `restore` concerns, such as `net.ipv4.tcp_timestamps`.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        self.saved.settings.keys().map(|name| format!("net.ipv4.{name}"))
    }

    fn at(root: PathBuf, run_dir: Folder, boot: String, netns: u64) -> Self {
        let left = left(&run_dir).filter(|left| left.boot == boot && left.netns == netns);
        let saved = left.unwrap_or_else(|| Saved { boot, netns, settings: BTreeMap::new() });
        Self { run_dir, root, saved }
    }

    /// Reads a setting.
    ///
    /// # Errors
    /// The reason why it cannot be read.
    pub fn read(&self, name: &str) -> Result<String, String> {
        let path = self.root.join(name);
        std::fs::read_to_string(&path)
            .map(|text| text.trim().to_owned())
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    /// A setting's value before the first change, if this or a crashed process changed it.
    #[must_use]
    pub fn before(&self, name: &str) -> Option<&str> {
        self.saved.settings.get(name).map(|change| change.before.as_str())
    }

    /// Changes a setting until this is dropped.
    ///
    /// # Errors
    /// The reason why the setting is unchanged.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        if !SETTINGS.contains(&name) {
            return Err(format!("net.ipv4.{name} is none of the settings that Sluice changes"));
        }
        let present = self.read(name)?;
        if present == value {
            return Ok(());
        }
        let before = self.saved.settings.get(name).map_or(present, |change| change.before.clone());
        let former = self
            .saved
            .settings
            .insert(name.to_owned(), Change { before: before.clone(), ours: value.to_owned() });
        let path = self.root.join(name);
        let changed = self.save().and_then(|()| {
            std::fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))
        });
        match changed {
            Ok(()) => info!("net.ipv4.{name} is {value} while this runs; it was {before}"),
            Err(_) => {
                match former {
                    Some(former) => self.saved.settings.insert(name.to_owned(), former),
                    None => self.saved.settings.remove(name),
                };
            }
        }
        changed
    }

    fn save(&self) -> Result<(), String> {
        let bytes = serde_json::to_vec(&self.saved).map_err(|error| error.to_string())?;
        let written = self.run_dir.replace(FILE, &bytes);
        written.map_err(|error| format!("{}: {error}", self.run_dir.path().join(FILE).display()))
    }

    /// Restores every setting that was changed, and forgets them. Returns whether each has its former value
    /// again, or why not.
    pub fn restore(&mut self) -> Vec<Result<String, String>> {
        let mut outcomes = Vec::new();
        for (name, change) in std::mem::take(&mut self.saved.settings) {
            if self.read(&name).as_deref() != Ok(&change.ours) {
                outcomes
                    .push(Ok(format!("net.ipv4.{name} was changed by somebody else meanwhile and stays")));
                continue;
            }
            outcomes.push(match std::fs::write(self.root.join(&name), &change.before) {
                Ok(()) => Ok(format!("net.ipv4.{name} is {} again", change.before)),
                Err(error) => {
                    let Change { before, ours } = change;
                    Err(format!("net.ipv4.{name} stays {ours}, it was {before} before: {error}"))
                }
            });
        }
        // The file may never have existed.
        let _ = self.run_dir.remove(FILE);
        outcomes
    }
}

/// The file that a crashed process left, without settings that no Sluice changes.
fn left(run_dir: &Folder) -> Option<Saved> {
    let path = || run_dir.path().join(FILE);
    let bytes = run_dir.read(FILE, FILE_BYTES_MAX).unwrap_or_else(|error| {
        warn!("{} is ignored, so no kernel setting is restored from it: {error}", path().display());
        None
    })?;
    let mut left: Saved = serde_json::from_slice(&bytes)
        .inspect_err(|error| {
            warn!("{} is ignored, so no kernel setting is restored from it: {error}", path().display());
        })
        .ok()?;
    left.settings.retain(|name, change| {
        let is_ours = SETTINGS.contains(&name.as_str()) && is_number(&change.before);
        if !is_ours {
            warn!("{} names {name:?}, which Sluice does not change: that is ignored", path().display());
        }
        is_ours
    });
    Some(left)
}

/// Whether it can be the value of one of `SETTINGS`.
fn is_number(value: &str) -> bool {
    (1..=10).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_digit())
}

impl Drop for Sysctls {
    fn drop(&mut self) {
        for outcome in self.restore() {
            match outcome {
                Ok(line) => info!("{line}"),
                Err(line) => warn!("{line}"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
