//! The user side of the eBPF programs: loads them, fills their maps, reads their counters. Only the
//! supervisor uses this room. The programs themselves are in `proxy-ebpf`, the layout of their maps in
//! `proxy-common`.
//!
//! Each program has a folder, with a type that owns the program's maps. `Programs` holds all of them. An
//! arrow means "may import":
//!
//! ```text
//! programs ─▶ guard ─▶ counting ─▶ object, maps, error, address, cgroup
//!          ├▶ destinations ──────▶
//!          └▶ steering ───────────▶
//! ```
//!
//! The guard imports counting because the limit of connections is one of the guard's settings. These files
//! depend on none of them: `netns`, `sysctl` (settings that Sluice changes while it runs), and the users of
//! `netlink`: `links` (interfaces), `changes` (of interfaces and addresses) and `cut` (ends a source's
//! connections).

mod address;
mod cgroup;
pub mod changes;
pub mod counting;
mod cut;
pub mod destinations;
mod error;
pub mod guard;
pub mod links;
mod maps;
mod netlink;
mod netns;
mod object;
mod programs;
pub mod steering;
mod sysctl;

pub use cut::cut;
pub use error::{Holder, KernelError};
pub use programs::Programs;
pub use sysctl::{LeftSettings, Sysctls};
