//! Configuration: TOML schema, its resolution into a model, and diagnostics that say where and what to do.

use std::path::{Path, PathBuf};

pub use diagnostics::{Diagnostic, Diagnostics, Severity};

pub mod diagnostics;
pub mod model;

/// Files by path, the main one first: exactly the bytes that were read, so that supervisor and data plane resolve the same.
pub type Files = [(PathBuf, Vec<u8>)];

/// A configuration and all the bytes it was made of.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the rest of Sluice reads.
    pub config: model::Config,
    /// For `resolve` in another process; the main file is first.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// Legal, but probably not what was meant. May be empty.
    pub warnings: Diagnostics,
}

/// Reads the file and whatever it refers to, once, and resolves it.
///
/// # Errors
/// Everything that is wrong with it, missing files included.
pub fn load(_path: &Path) -> Result<Loaded, Diagnostics> {
    unimplemented!()
}

/// Resolves bytes that were read before. Pure: opens nothing.
///
/// # Errors
/// Everything that is wrong with it; a file it refers to and that is not in `files` too.
pub fn resolve(_files: &Files) -> Result<model::Config, Diagnostics> {
    unimplemented!()
}
