//! The place to which every configuration tells the secrets of its handshakes, for a reader of the traffic.
//! As long as nobody takes them, none is asked for.

use std::sync::{Arc, OnceLock};

use rustls::KeyLog;

/// The process's taker of the secrets of all configurations.
static TAKER: OnceLock<Arc<dyn KeyLog>> = OnceLock::new();

/// From now on every handshake of the process tells its secrets to `taker`. `false`: another taker came
/// first.
#[must_use]
pub fn tell(taker: Arc<dyn KeyLog>) -> bool {
    TAKER.set(taker).is_ok()
}

/// The key log of every configuration.
#[derive(Debug)]
pub(super) struct Secrets;

impl KeyLog for Secrets {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        if let Some(taker) = TAKER.get() {
            taker.log(label, client_random, secret);
        }
    }

    fn will_log(&self, label: &str) -> bool {
        TAKER.get().is_some_and(|taker| taker.will_log(label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_for_as_long_as_nobody_takes_it() {
        assert!(!Secrets.will_log("CLIENT_RANDOM"));
    }
}
