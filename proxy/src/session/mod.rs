//! Sessions: the only place where `io` and the sans-IO parts meet, as straight-line async functions that await only
//! in-memory queues.

mod answer;
mod body;
pub mod downstream;
#[cfg(test)]
mod downstream_tests;
pub mod exchange;
pub(crate) mod flow;
pub(crate) mod pace;
pub(crate) mod proxied;
mod relay;
#[cfg(test)]
mod tests;
pub mod trace;
pub(crate) mod tunnel;
