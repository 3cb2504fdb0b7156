//! The engine: completion-driven, and owner of every buffer that the kernel can see.
//!
//! Sessions see only `Io` (time, timers, connecting), `Stream` (two in-memory queues) and `Chunk` (bytes on
//! loan or owned). No future owns a kernel buffer or a submission, so a session can be dropped at any await.
//!
//! `engine` and `flow` are the state machine; `seam` is the interface they need from a ring; `ring` is the
//! kernel's, `simulated` a seeded one.

pub mod buffers;
#[cfg(test)]
mod checks;
pub mod chunk;
pub mod engine;
pub mod executor;
mod flow;
pub mod handle;
pub mod handshakes;
pub mod places;
mod restrictions;
pub mod ring;
pub mod seam;
pub mod settings;
mod shared;
pub mod simulated;
mod socket;
mod sqe;
pub mod stream;
pub mod tags;
pub mod timer;
pub mod token;
mod waiting_task;

#[cfg(test)]
mod tests;

pub use chunk::Chunk;
pub use engine::{Engine, Handler, Stats};
pub use handle::{ConnectError, Elapsed, Io};
pub use seam::Unreported;
pub use settings::Settings;
pub use stream::{Progress, Stream, StreamError, Tag};
pub use timer::TimerKey;
pub(crate) use waiting_task::WaitingTask;
