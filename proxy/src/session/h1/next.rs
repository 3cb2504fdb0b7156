//! How a request leaves its connection: ready for another, a tunnel, closed in order, or reset.
//!
//! ```text
//! exchange                              request read whole            request not read whole
//! ------------------------------------- ----------------------------- ----------------------
//! answered, response said keep-alive    Request                       Close
//! answered, client asked for the close  Finish                        Close
//! answered, close for another reason    Close                         Close
//! endpoint switched protocols           Tunnel                        (cannot happen)
//! response cut by the endpoint          Close; Abort if the body ends with the connection
//! request refused within the response   Close; Abort if the body ends with the connection
//! client ended its side, time is over   Close; Abort if the body ends with the connection
//! client gone or too slow, cancelled    Abort
//! ```

use super::flags::Flags;
use crate::error::{CloseReason, RefusalReason};
use crate::exchange::tunnel::TunnelEnd;
use crate::exchange::{Outcome, SinkError, SourceError};
use crate::http::h1::Framing;
use crate::session::seat::Seat;
use crate::session::table;

/// How a request leaves its connection.
pub(super) enum Next {
    /// Ready for another request.
    Request,
    /// Close once all queued bytes are sent. The engine then sends FIN and for a while discards bytes that
    /// the client still sends. Closing with unread bytes would reset the connection, and the client might
    /// never see its answer.
    Close(CloseReason),
    /// Close like that, but without discarding: the client asked for the close and sent its request whole, so
    /// it sends nothing more.
    Finish,
    /// Become a tunnel to this endpoint.
    Tunnel(Box<dyn TunnelEnd>),
    /// Reset: the client must not take a part for the whole.
    Abort(CloseReason),
}

impl Next {
    /// Why the connection ends; `None`: it goes on, as a tunnel perhaps.
    pub(super) fn reason(&self, seat: &Seat) -> Option<CloseReason> {
        match *self {
            Self::Request | Self::Tunnel(_) => None,
            Self::Close(reason) => Some(reason),
            Self::Finish => Some(CloseReason::NotKeptAlive),
            Self::Abort(CloseReason::ClientAborted) => {
                Some(seat.stream.error().map_or(CloseReason::ClientAborted, |error| {
                    table::broken(error, CloseReason::ClientAborted)
                }))
            }
            Self::Abort(reason) => Some(reason),
        }
    }

    /// The step after an exchange. `answer`: how far the client was answered. `close_reason`: why the
    /// connection was to end with the exchange, if it was. `is_stopped`: the worker gave the session up.
    pub(super) fn after(
        outcome: Outcome,
        answer: Answer,
        flags: &Flags,
        close_reason: Option<CloseReason>,
        is_stopped: bool,
    ) -> Self {
        let is_read_whole = flags.ended.get();
        match outcome {
            Outcome::Answered { .. } if answer.kept_alive && is_read_whole => Self::Request,
            Outcome::Answered { .. } if is_read_whole && close_reason == Some(CloseReason::NotKeptAlive) => {
                Self::Finish
            }
            Outcome::Answered { .. } if is_read_whole => {
                Self::Close(close_reason.unwrap_or(CloseReason::NotKeptAlive))
            }
            // The client is still sending, so no further request can follow.
            Outcome::Answered { refused: None, .. } => Self::Close(CloseReason::EarlyResponse),
            Outcome::Answered { refused: Some(reason), .. } => Self::Close(source_refused(reason)),
            Outcome::Switched => {
                flags.tunnel.take().map_or(Self::Abort(CloseReason::UpstreamAborted), Self::Tunnel)
            }
            Outcome::Cut => answer.cut(CloseReason::UpstreamAborted),
            Outcome::CutBySource(SourceError::Aborted) => Self::Abort(CloseReason::ClientAborted),
            Outcome::CutBySource(SourceError::Refused(reason)) => answer.cut(source_refused(reason)),
            Outcome::Left => answer.cut(CloseReason::ClientClosed),
            Outcome::Undeliverable(error) => Self::Abort(undeliverable(error)),
            Outcome::Cancelled if is_stopped => Self::Abort(CloseReason::Stopped),
            // The client's handshake was not over in time.
            Outcome::Cancelled => Self::Abort(CloseReason::TlsHandshake),
        }
    }
}

/// How far a client was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    /// The response said that the connection goes on.
    pub(super) kept_alive: bool,
    /// How the client knows where the response ends.
    pub(super) framing: Framing,
}

impl Answer {
    /// Ends the connection so that the client sees that its response is cut. With a length or chunks a close
    /// shows it, and answers queued before still arrive. A body that ends with the connection needs the
    /// reset.
    fn cut(self, reason: CloseReason) -> Next {
        if self.framing == Framing::UntilClose { Next::Abort(reason) } else { Next::Close(reason) }
    }
}

/// Why a connection ends whose request was refused before it was read whole.
const fn source_refused(reason: RefusalReason) -> CloseReason {
    match reason {
        RefusalReason::RequestTimeout => CloseReason::RequestBodyTimeout,
        RefusalReason::RequestTooSlow => CloseReason::MinRate,
        _ => CloseReason::BadRequest,
    }
}

/// Why a connection ends whose client does not take its response.
pub(super) const fn undeliverable(error: SinkError) -> CloseReason {
    match error {
        SinkError::Aborted => CloseReason::ClientAborted,
        SinkError::TooSlow => CloseReason::SendTimeout,
        SinkError::BelowMinRate => CloseReason::MinRate,
    }
}
