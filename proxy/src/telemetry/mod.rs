//! Facts about Sluice for its operator: metrics, logs, the admin endpoints.

pub mod admin;
pub mod key_log;
pub mod logging;
pub mod metrics;
pub mod report;
