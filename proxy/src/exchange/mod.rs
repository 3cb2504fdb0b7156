//! One request and its response, whatever carries them on either side.
//!
//! An exchange takes a request head, a body source, a response sink and a signal to stop. Request and
//! response bodies run at the same time, each with trailers. Several exchanges may share one downstream
//! session and one connection to an endpoint; cancelling one leaves the others.
//!
//! `run` leads a request through route, attempts and answer. `body`, `sink` and `lease` are the seams: the
//! source of the request body, the target of the response, and a connection to an endpoint. `tunnel` is the
//! seam after an upgrade. `relay` pumps one attempt, `replay` keeps a short body for the next, and `answer`
//! makes responses of our own. `left` watches the client meanwhile. `scene` and `signal` come from the
//! session; `record` is for the access log. An exchange knows no connection.

pub mod answer;
pub mod body;
pub mod lease;
pub mod left;
pub mod outcome;
pub mod record;
mod relay;
mod replay;
mod run;
pub mod scene;
pub mod signal;
pub mod sink;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod tunnel;

pub use body::{BodyPart, BodySource, SourceError};
pub use left::Downstream;
pub use outcome::Outcome;
pub use record::Record;
pub use run::{exchange, refuse_at_once};
pub use scene::{Client, Local, Scene};
pub use signal::Signal;
pub use sink::{ResponseSink, SinkError};

/// The wall clock in microseconds, read without a system call (vdso(7)): for people to read, never for a time
/// limit.
fn unix_micros() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
