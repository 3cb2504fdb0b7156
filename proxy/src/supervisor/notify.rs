//! What the service manager is told (sd_notify(3)): ready, reloading, ending, and how long an end may take.
//! Without one (`NOTIFY_SOCKET`) nobody is told anything.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// A data plane serves.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// For a person who asks for the unit's status.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// A reload was asked for; `ready` ends it.
pub(super) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// The end began, and takes so long at most: the unit's TimeoutStopSec is set aside.
pub(super) fn stopping(within: Duration) {
    let extended = format!("EXTEND_TIMEOUT_USEC={}", within.as_micros());
    tell(&[NotifyState::Stopping, NotifyState::Custom(&extended)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!("the service manager cannot be told: {error}");
    }
}
