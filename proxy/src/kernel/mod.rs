//! The user side of the eBPF programs: loading them, filling their maps, reading their counters. Only the
//! supervisor uses this. What the programs do is in `proxy-ebpf`; what both sides agree on is in
//! `proxy-common`.
//!
//! Each program has a folder with a type that owns the program's maps; `Programs` holds all three. The arrow
//! means "may import":
//!
//! ```text
//! programs ─▶ guard ─▶ counting ─▶ object, maps, error, address
//!          └▶ steering ───────────▶
//! ```
//!
//! The guard imports counting since the limit of connections is one of the guard's settings. `netns`,
//! `sysctl` (settings that Sluice changes while it runs) and `cut` (ends a source's connections) stand for
//! themselves.

mod address;
pub mod counting;
mod cut;
mod error;
pub mod guard;
mod maps;
mod netns;
mod object;
mod programs;
pub mod steering;
mod sysctl;

pub use cut::cut;
pub use error::{Holder, KernelError};
pub use programs::Programs;
pub use sysctl::Sysctls;
