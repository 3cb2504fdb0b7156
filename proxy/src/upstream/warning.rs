//! How often a worker warns of what goes wrong with the endpoints of one upstream. Every failure is counted;
//! the warnings have a pause, so that an endpoint with a wrong certificate does not fill the log.

use std::cell::Cell;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoint;
use crate::time::Time;

/// The shortest time between two warnings of a kind, of one upstream on one worker.
const PAUSE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Warnings {
    upstream: Arc<str>,
    tls: Pause,
    ports: Pause,
    source: Pause,
}

impl Warnings {
    /// Of this upstream.
    pub(super) fn new(upstream: Arc<str>) -> Self {
        Self { upstream, tls: Pause::default(), ports: Pause::default(), source: Pause::default() }
    }

    /// TLS with an endpoint failed.
    pub(super) fn tls_failed(&self, endpoint: &Endpoint, error: &dyn Display, now: Time) {
        if self.tls.is_over(now) {
            tracing::warn!(upstream = %self.upstream, endpoint = %endpoint.label, %error, "TLS with an \
                endpoint failed");
        }
    }

    /// No port was left.
    pub(super) fn no_port(&self, endpoint: &Endpoint, now: Time) {
        if self.ports.is_over(now) {
            tracing::warn!(upstream = %self.upstream, endpoint = %endpoint.label, "no local port is left to \
                connect from; add addresses to upstream.source, or widen net.ipv4.ip_local_port_range");
        }
    }

    /// An address to connect from cannot be used.
    pub(super) fn unbound(&self, source: Option<IpAddr>, errno: i32, now: Time) {
        if self.source.is_over(now) {
            let (source, error) =
                (source.map(tracing::field::display), std::io::Error::from_raw_os_error(errno));
            tracing::warn!(upstream = %self.upstream, source, %error, "an address of upstream.source cannot \
                be connected from; is it an address of this machine?");
        }
    }
}

#[derive(Debug, Default)]
struct Pause(Cell<Option<Time>>);

impl Pause {
    /// Whether it is over; then the next begins.
    fn is_over(&self, now: Time) -> bool {
        let is_over = self.0.get().is_none_or(|last| now.since(last) >= PAUSE);
        if is_over {
            self.0.set(Some(now));
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_have_a_pause() {
        let pause = Pause::default();
        let at = |seconds: u64| Time::from_nanos(seconds * 1_000_000_000);
        let warned: Vec<_> =
            [1, 2, 10, 11, 20, 21].into_iter().filter(|&now| pause.is_over(at(now))).collect();
        assert_eq!(warned, [1, 11, 21]);
    }
}
