//! What Sluice says about itself: counters, metrics, logs, the admin endpoints.

pub mod counters;
