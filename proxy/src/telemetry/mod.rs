//! What Sluice says about itself: metrics, logs, the admin endpoints.

pub mod admin;
pub mod key_log;
pub mod logging;
pub mod metrics;
pub mod report;
