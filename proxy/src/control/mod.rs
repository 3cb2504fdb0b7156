//! What supervisor and data plane say to each other, and what the data plane's threads share.

pub mod commands;
pub mod shared;
pub mod status;
