//! State that the source and the sink of one request share.

use std::cell::Cell;

use crate::exchange::tunnel::TunnelEnd;

/// See the module.
pub(super) struct Flags {
    /// The request has been read whole.
    pub(super) ended: Cell<bool>,
    /// The client waits for "100 Continue" and has not got it.
    pub(super) wants_continue: Cell<bool>,
    /// The endpoint's end of a tunnel, once an upgrade was agreed upon.
    pub(super) tunnel: Cell<Option<Box<dyn TunnelEnd>>>,
}

impl Flags {
    pub(super) const fn new(ended: bool, wants_continue: bool) -> Self {
        Self { ended: Cell::new(ended), wants_continue: Cell::new(wants_continue), tunnel: Cell::new(None) }
    }
}
