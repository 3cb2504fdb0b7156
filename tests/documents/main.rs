//! The documents for people. The tables of keys, metrics and reasons and the man pages are generated from the
//! code. `cargo xtask docs` renews them, and these tests fail when they are stale. Text written by hand must
//! keep its rules: short sentences, narrow lines, links that work, every reason named.

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
