//! A whole worker, driven by one number: random clients and origins, faults, limits and time limits over the
//! simulated ring, in virtual time. After every turn the invariants of engine and worker are checked, and
//! clients and origins, which know each other's plans, check every byte that reaches them. `cargo xtask
//! simulate` runs it by the ten thousand; `docs/internals/simulation.md` lists the judgements.
//!
//! `plan` decides everything from the seed. `client`, `origin` and `through` carry it out and judge. `wire`
//! is HTTP as they read it, `line` TLS as they speak it, `book` all that they know of each other. `run` is
//! the worker's loop.

mod book;
mod broken;
mod client;
mod line;
mod origin;
mod plan;
mod random;
mod run;
mod tests;
mod through;
mod tls;
mod trace;
mod wire;
