//! Getting the peers and the tools there, each by its own ordinary way, and saying what is missing and why.

use std::path::PathBuf;

use super::load;
use super::peers::{self, Kind, Program};
use crate::machine::{self, Package};

/// Without these nothing can be measured.
const NEEDED: &[Package] = &[
    Package::new("nginx", &["sh", "-c", "command -v nginx || test -x /usr/sbin/nginx"]),
    Package::new("wrk", &["sh", "-c", "command -v wrk"]),
    Package::new("util-linux", &["setpriv", "--version"]),
];
const HAPROXY: &[Package] = &[Package::new("haproxy", &["sh", "-c", "command -v haproxy || test -x /usr/sbin/haproxy"])];

/// What every measurement needs.
pub(super) fn needed() -> Result<(), String> {
    machine::ensure(NEEDED)
}

/// Builds the load generators and the relay.
pub(super) fn tools() -> Result<(), String> {
    machine::step(machine::cargo().args(["build", "--release", "--package", "benches"]))
}

/// A peer's program, installed where it is missing.
pub(super) fn peer(kind: Kind) -> Result<Program, String> {
    let binary = match kind {
        Kind::Nginx => peers::nginx(),
        Kind::Haproxy => machine::ensure(HAPROXY).map(|()| peers::haproxy())?,
        Kind::Relay => load::tool("relay")?,
        Kind::Sluice => machine::build_sluice()?,
        Kind::Envoy | Kind::Pingora => return Err("is not set up yet".into()),
    };
    Ok(program(kind.name(), kind, binary))
}

/// A program by hand.
pub(super) fn program(name: &str, kind: Kind, binary: PathBuf) -> Program {
    Program { name: name.to_owned(), kind, binary }
}
