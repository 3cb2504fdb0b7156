//! How an exchange ends, and how that is counted.

use super::body::SourceError;
use super::sink::SinkError;
use crate::counters::{Counter, Counters, Plain};
use crate::error::RefusalReason;

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A final response was handed to the sink whole: the endpoint's, or our own with a reason.
    Answered {
        /// Its status.
        status: u16,
        /// Why Sluice refused the request; `None` for an endpoint's response, and for an answer of our own
        /// that is no refusal.
        refused: Option<RefusalReason>,
    },
    /// The sink was given the endpoint's connection: a tunnel follows.
    Switched,
    /// The endpoint broke after its response head was handed on. The client must see that the response is
    /// cut.
    Cut,
    /// The request body failed within the response. The client must see that the response is cut.
    CutBySource(SourceError),
    /// The response cannot be delivered.
    Undeliverable(SinkError),
    /// The client had ended its side, and was served on for as long as its listener allows.
    Left,
    /// The exchange was told to stop.
    Cancelled,
}

/// Counts a response.
pub fn count(counters: &Counters, outcome: Outcome) {
    let Outcome::Answered { status, refused } = outcome else { return };
    counters.increment(match status {
        ..300 => Plain::Responses2xx,
        300..400 => Plain::Responses3xx,
        400..500 => Plain::Responses4xx,
        500.. => Plain::Responses5xx,
    });
    if let Some(reason) = refused {
        counters.increment(Counter::Refused(reason));
    }
}
