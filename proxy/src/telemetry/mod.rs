//! What Sluice says about itself: counters, metrics, logs, the admin endpoints.

pub mod access;
pub mod admin;
pub mod counters;
pub mod logging;
pub mod metrics;
pub mod report;
