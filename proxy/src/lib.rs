//! Sluice: an eBPF/XDP-assisted reverse proxy. `ARCHITECTURE.md` is the map of these modules, and
//! `docs/internals/connection.md` walks a connection through them.

/// The oldest Linux that Sluice runs on, for people to read: code tries what it needs instead.
pub(crate) const LINUX_MIN: &str = "6.12";

pub mod access_log;
pub mod cli;
pub mod config;
pub mod control;
pub mod counters;
pub mod dataplane;
pub mod demo;
pub mod error;
pub mod exchange;
pub mod folder;
pub mod http;
pub mod io;
pub mod kernel;
pub mod listen;
pub mod placement;
pub mod proxy_protocol;
pub mod route;
pub mod sandbox;
pub mod session;
#[cfg(test)]
mod simulation;
pub mod supervisor;
pub mod telemetry;
mod threads;
pub mod time;
pub mod tls;
pub mod upstream;
pub mod wire;
pub mod worker;
