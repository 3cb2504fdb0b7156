//! How often a worker warns that TLS with the endpoints of one upstream fails. Every failure is counted; the
//! warnings have a pause, so that an endpoint with a wrong certificate does not fill the log.

use std::cell::Cell;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::handshake::HandshakeError;
use crate::time::Time;

/// The shortest time between two warnings of one upstream on one worker.
const PAUSE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct HandshakeWarning {
    last: Cell<Option<Time>>,
}

impl HandshakeWarning {
    /// A handshake with an endpoint failed.
    pub(super) fn failed(&self, upstream: &str, endpoint: &Endpoint, error: &HandshakeError, now: Time) {
        if self.last.get().is_none_or(|last| now.since(last) >= PAUSE) {
            self.last.set(Some(now));
            tracing::warn!(upstream = %upstream, endpoint = %endpoint.label, %error, "TLS with an \
                endpoint failed");
        }
    }
}
