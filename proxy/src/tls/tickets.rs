//! Session tickets (RFC 5077, RFC 8446 §4.6.1): the keys that a listener encrypts resumption state with.

/// The key ring of a listener; without keys no ticket is made and none is accepted.
#[derive(Debug, Default)]
pub struct Tickets {}

impl Tickets {
    /// Whether there is a key to make tickets with.
    #[must_use]
    pub const fn enabled(&self) -> bool {
        false
    }
}
