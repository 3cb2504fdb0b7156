//! `sluice status` for people: aligned tables over `control::status`.

use crate::control::status::Status;

/// Renders a status as text.
#[must_use]
pub fn render(_status: &Status) -> String {
    unimplemented!()
}
