//! The place to which every configuration tells the secrets of its handshakes: for a reader of the traffic,
//! and for a handshake of ours that has to read or say something beside rustls. Nobody else gets them.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use rustls::KeyLog;
use zeroize::Zeroizing;

/// The process's taker of the secrets of all configurations.
static TAKER: OnceLock<Arc<dyn KeyLog>> = OnceLock::new();

/// From now on every handshake of the process tells its secrets to `taker`. `false`: another taker came
/// first.
#[must_use]
pub fn tell(taker: Arc<dyn KeyLog>) -> bool {
    TAKER.set(taker).is_ok()
}

/// A secret of TLS 1.3. Wiped when it is dropped.
pub(super) type Secret = Zeroizing<Vec<u8>>;

/// Secrets of one handshake, as far as it has come.
#[derive(Default)]
pub(super) struct Caught {
    /// For the client's flight.
    pub(super) client: Option<Secret>,
    /// For the server's flight, but for its hello.
    pub(super) server: Option<Secret>,
    /// For the server's records after its flight.
    pub(super) traffic: Option<Secret>,
}

impl Caught {
    fn place(&mut self, label: &str) -> Option<&mut Option<Secret>> {
        match label {
            "CLIENT_HANDSHAKE_TRAFFIC_SECRET" => Some(&mut self.client),
            "SERVER_HANDSHAKE_TRAFFIC_SECRET" => Some(&mut self.server),
            "SERVER_TRAFFIC_SECRET_0" => Some(&mut self.traffic),
            _ => None,
        }
    }
}

thread_local! {
    /// Where the handshake puts its secrets that takes a step on this thread.
    static CAUGHT: RefCell<Option<Caught>> = const { RefCell::new(None) };
}

/// Takes a step of rustls' with one handshake. Its secrets come into `caught`.
pub(super) fn catching<R>(caught: &mut Caught, step: impl FnOnce() -> R) -> R {
    CAUGHT.set(Some(std::mem::take(caught)));
    let result = step();
    *caught = CAUGHT.take().unwrap_or_default();
    result
}

/// The key log of every configuration.
#[derive(Debug)]
pub(super) struct Secrets;

impl KeyLog for Secrets {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        CAUGHT.with_borrow_mut(|caught| {
            if let Some(place) = caught.as_mut().and_then(|caught| caught.place(label)) {
                *place = Some(Zeroizing::new(secret.to_vec()));
            }
        });
        if let Some(taker) = TAKER.get().filter(|taker| taker.will_log(label)) {
            taker.log(label, client_random, secret);
        }
    }

    fn will_log(&self, label: &str) -> bool {
        let is_caught = CAUGHT
            .with_borrow_mut(|caught| caught.as_mut().is_some_and(|caught| caught.place(label).is_some()));
        is_caught || TAKER.get().is_some_and(|taker| taker.will_log(label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_for_as_long_as_nobody_takes_it() {
        let label = "SERVER_TRAFFIC_SECRET_0";
        assert!(!Secrets.will_log(label));
        let mut caught = Caught::default();
        catching(&mut caught, || {
            assert!(Secrets.will_log(label) && !Secrets.will_log("CLIENT_RANDOM"));
            Secrets.log(label, &[1; 32], &[2; 32]);
        });
        assert_eq!(caught.traffic.as_deref(), Some(&vec![2; 32]));
        assert!(!Secrets.will_log(label));
    }
}
