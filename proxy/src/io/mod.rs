//! The engine: completion-driven, and owner of every buffer that the kernel can see.
//!
//! Sessions see only `Io` (time, timers, connecting), `Stream` (two in-memory queues) and `Chunk` (bytes on loan or
//! owned). No future owns a kernel buffer or a submission, so a session can be dropped at any await.

pub mod chunk;
pub mod handle;
pub mod stream;

pub use chunk::Chunk;
pub use handle::Io;
pub use stream::{Stream, StreamError};
