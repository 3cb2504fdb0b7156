//! The keys of session tickets on their way from the supervisor into the listeners.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::config::model::Config;
use crate::control::sealed::{self, SealedError};
use crate::tls::tickets::{KEYS_MAX, Keys, TicketKey};

/// Why there are no such keys.
#[derive(Debug, thiserror::Error)]
pub enum TicketsError {
    /// They could still change, or cannot be read.
    #[error("keys of session tickets: {0}")]
    Sealed(#[from] SealedError),
    /// Something else was in their place.
    #[error("keys of session tickets: malformed")]
    Malformed,
}

/// Reads a sealed memfd.
///
/// # Errors
/// When it is not sealed, or does not hold keys.
pub fn read(fd: OwnedFd) -> Result<Arc<Keys>, TicketsError> {
    let bytes = Zeroizing::new(sealed::open(fd, (KEYS_MAX * TicketKey::BYTES) as u64)?);
    TicketKey::split(&bytes).map(|keys| Arc::new(Keys::new(&keys))).ok_or(TicketsError::Malformed)
}

/// Has every listener with tickets use these keys.
pub fn install(config: &Config, keys: &Arc<Keys>) {
    config
        .listeners
        .iter()
        .filter_map(|listener| listener.tls.as_ref())
        .for_each(|tls| tls.tickets.install(keys));
}

#[cfg(test)]
mod tests {
    use rustls::server::ProducesTickets as _;

    use super::*;
    use crate::tls::tickets::Tickets;

    #[test]
    fn keys_are_read_whole_from_sealed_memory_or_not_at_all() {
        let keys = [TicketKey::random().expect("randomness"), TicketKey::random().expect("randomness")];
        let here = Tickets::new(&keys, None, None);
        let there = Tickets::new(&[], None, None);
        there.install(&read(sealed::seal("test", &TicketKey::concat(&keys)).expect("memfd")).expect("keys"));
        let ticket = here.encrypt(b"state").expect("a ticket");
        assert_eq!(there.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        for bytes in [&b""[..], b"x", &[0; TicketKey::BYTES + 1]] {
            assert!(matches!(
                read(sealed::seal("test", bytes).expect("memfd")),
                Err(TicketsError::Malformed)
            ));
        }
        let long = vec![0; (KEYS_MAX + 1) * TicketKey::BYTES];
        assert!(matches!(read(sealed::seal("test", &long).expect("memfd")), Err(TicketsError::Sealed(_))));
        assert!(matches!(
            read(std::fs::File::open("/dev/null").expect("null").into()),
            Err(TicketsError::Sealed(_))
        ));
    }
}
