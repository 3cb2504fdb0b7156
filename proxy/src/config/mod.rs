//! Configuration: TOML schema, its resolution into a model, and diagnostics that say where and what to do.

pub mod model;
