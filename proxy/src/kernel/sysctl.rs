//! Kernel settings of this network namespace that Sluice changes while it runs. Their former values are
//! written to run_dir before the first change. After a crash the next start finds that file, and restores the
//! settings when it ends. A setting that somebody else has changed meanwhile stays as it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::netns;

const FILE: &str = "sysctl.json";
const ROOT: &str = "/proc/sys/net/ipv4";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The settings that were changed. Dropping this restores them.
#[derive(Debug)]
pub struct Sysctls {
    file: PathBuf,
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
    pub fn new(run_dir: &Path) -> Self {
        let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        Self::at(Path::new(ROOT), run_dir, boot, netns::cookie().unwrap_or(0))
    }

    fn at(root: &Path, run_dir: &Path, boot: String, netns: u64) -> Self {
        let file = run_dir.join(FILE);
        let left: Option<Saved> =
            std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let saved = left.filter(|left| left.boot == boot && left.netns == netns);
        let saved = saved.unwrap_or_else(|| Saved { boot, netns, settings: BTreeMap::new() });
        Self { file, root: root.to_owned(), saved }
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

    /// Changes a setting until this is dropped.
    ///
    /// # Errors
    /// The reason why the setting is unchanged.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
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
        // The file is replaced as a whole or not at all.
        let fresh = self.file.with_extension("json.new");
        std::fs::write(&fresh, bytes)
            .and_then(|()| std::fs::rename(&fresh, &self.file))
            .map_err(|error| format!("{}: {error}", self.file.display()))
    }

    /// Restores every setting that was changed, and forgets them.
    pub fn restore(&mut self) {
        for (name, change) in std::mem::take(&mut self.saved.settings) {
            if self.read(&name).as_deref() != Ok(&change.ours) {
                info!("net.ipv4.{name} was changed by somebody else meanwhile and stays");
                continue;
            }
            if let Err(error) = std::fs::write(self.root.join(&name), &change.before) {
                warn!("net.ipv4.{name} stays {}, it was {} before: {error}", change.ours, change.before);
            }
        }
        // The file may never have existed.
        let _ = std::fs::remove_file(&self.file);
    }
}

impl Drop for Sysctls {
    fn drop(&mut self) {
        self.restore();
    }
}

#[cfg(test)]
mod tests;
