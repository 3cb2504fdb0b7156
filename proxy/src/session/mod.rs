//! Sessions: the only place where `io` and the sans-IO parts meet, as straight-line async functions that
//! await only in-memory queues.

mod answer;
mod body;
pub mod downstream;
#[cfg(test)]
mod downstream_tests;
pub(crate) mod early;
pub mod exchange;
pub(crate) mod flow;
pub(crate) mod pace;
pub(crate) mod passthrough;
pub(crate) mod proxied;
mod relay;
pub(crate) mod secure;
#[cfg(test)]
mod tests;
pub mod trace;
pub(crate) mod tunnel;

/// The wall clock in microseconds, read without a system call (vdso(7)): for what others read, never for a
/// time limit.
fn unix_micros() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
