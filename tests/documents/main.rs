//! The documents for people. What the code knows better than a writer is generated from it: the tables of
//! keys, metrics and reasons, and the man pages. `cargo xtask docs` renews that, and these tests fail when it
//! is stale. What is written by hand is held to its rules: short sentences, narrow lines, links that lead
//! somewhere, every reason named.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod comparison;
mod examples;
mod keys;
mod man;
mod metrics;
mod page;
mod places;
mod prose;
mod reasons;
