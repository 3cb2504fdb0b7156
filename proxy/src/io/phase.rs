//! Where a stream is in its life, and where its operations are.

use super::timer::TimerKey;
use crate::time::Time;

/// Where a stream is in its life.
///
/// ```text
/// Connecting -> Open -> Closing (flush, FIN, linger) -> Ending (cancel, then close) -> Closed
///      \----------\-------\------------------------------^
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Open,
    Closing,
    Ending { reset: bool },
    Closed,
}

/// Where the receive operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    /// None in flight.
    Idle,
    /// In flight.
    Armed,
    /// In flight, and its cancel too.
    Cancelling,
    /// None in flight; waits for the session to drop bytes, or for buffers.
    Held,
}

/// Where the end of our direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fin {
    No,
    Wanted,
    InFlight,
    Sent,
}

/// How far the end of a closed stream has come.
#[derive(Default)]
pub(super) struct Closing {
    /// Bounds flushing and lingering.
    pub(super) timer: Option<TimerKey>,
    /// Bytes sent when it was armed.
    pub(super) mark: u64,
    /// Bytes thrown away while lingering, and how many they were when the timer was armed.
    pub(super) discarded: usize,
    pub(super) seen: usize,
    /// The peer broke the rules: it gets less of both. See `Settings::refused_max`.
    pub(super) is_refused: bool,
    /// The peer's end came, though what it had done before stays the reason.
    pub(super) is_ended: bool,
    /// When the linger is over however much still comes; set with our FIN.
    pub(super) until: Time,
}
