//! The seam between the engine and the ring that carries out its operations: the kernel's, or a simulated
//! one. Memory that an operation refers to belongs to the ring from `submit` until the final completion hands
//! it back.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use super::Chunk;
use super::buffers::{BufferPool, Class, Loan};
use super::token::Token;
use crate::time::Time;

/// One operation. A stream has at most one receive, one send and one connect in flight.
#[derive(Debug)]
pub enum Op {
    /// Accept connections until cancelled or failed.
    Accept {
        /// A listening socket.
        fd: RawFd,
    },
    /// Receive into a buffer of the ring's choice.
    Receive {
        /// A connected socket.
        fd: RawFd,
        /// Until cancelled, ended, failed or out of buffers; else once.
        multishot: bool,
        /// The class of the buffer.
        class: Class,
    },
    /// Send the chunks, in order; the result may be short.
    Send {
        /// A connected socket.
        fd: RawFd,
        /// Not empty, none of them empty. Comes back with the completion.
        chunks: Vec<Chunk>,
        /// `Ring::shutdown` follows once all are taken: the last segment may wait for it, and carry FIN.
        is_last: bool,
    },
    /// Connect a socket made by `Ring::open`.
    Connect {
        /// The socket.
        fd: RawFd,
        /// Where to.
        address: SocketAddr,
    },
    /// Close the descriptor. Nothing else is in flight on it.
    Close {
        /// Any descriptor of ours.
        fd: RawFd,
    },
    /// Cancel the operation with this token; it completes by itself, with -ECANCELED if that came in time.
    Cancel {
        /// The operation to cancel.
        target: Token,
    },
    /// Report whenever the descriptor becomes readable.
    Watch {
        /// An eventfd or the like.
        fd: RawFd,
    },
}

/// Something that a connection received before its engine heard of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreported {
    /// Bytes.
    Bytes,
    /// The end of the stream, or a reset.
    End,
}

/// The outcome of an operation.
#[derive(Debug)]
pub struct Completion {
    /// Which operation.
    pub token: Token,
    /// A count or descriptor, or a negated errno.
    pub result: i32,
    /// Whether more completions of this operation follow.
    pub more: bool,
    /// The bytes of a receive.
    pub(super) loan: Option<Loan>,
    /// The chunks a send was given.
    pub chunks: Vec<Chunk>,
}

/// Carries out operations. Completions of different sockets may come in any order; the bytes of one socket
/// never do.
pub trait Ring {
    /// A listening socket.
    type Listener;

    /// The descriptor to accept on.
    fn listener_fd(&self, listener: &Self::Listener) -> RawFd;

    /// The clock, monotonic.
    fn now(&self) -> Time;

    /// Where received bytes are put.
    fn pool(&self) -> &Rc<BufferPool>;

    /// Queues an operation; it starts at the next `wait` at the latest.
    fn submit(&mut self, token: Token, op: Op);

    /// Starts queued operations, gives returned buffers back, and waits for a completion or until `timeout`
    /// (for ever if `None`).
    fn wait(&mut self, timeout: Option<Duration>) -> std::io::Result<()>;

    /// Makes completions of all that is done, however much that is; `wait` may leave some for later. Does not
    /// wait.
    fn catch_up(&mut self) -> std::io::Result<()>;

    /// Appends the completions that have come.
    fn completions(&mut self, into: &mut Vec<Completion>);

    /// A socket fit to connect to `address`, or an errno.
    fn open(&mut self, address: SocketAddr) -> Result<RawFd, i32>;

    /// Has the socket connect from this local address, whose port the connect chooses. Or an errno.
    fn bind(&mut self, fd: RawFd, source: IpAddr) -> Result<(), i32>;

    /// Prepares a fresh connection (accepted or connected) and returns its peer's address, or an errno.
    fn prepare(&mut self, fd: RawFd, accepted: bool) -> Result<SocketAddr, i32>;

    /// This end's address of a connection; nothing where it is gone. Asks the kernel each time.
    fn local_address(fd: RawFd) -> Option<SocketAddr>;

    /// Ends our direction of a connection, at once; or an errno. Not an operation: the kernel would have a
    /// thread carry it out, long after the last bytes have left.
    fn shutdown(&mut self, fd: RawFd) -> Result<(), i32>;

    /// Has the kernel keep the rest of the coming sends that fills no segment until `shutdown`, whatever the
    /// peer acknowledges meanwhile.
    fn hold_back(&mut self, fd: RawFd);

    /// Has the coming close reset the connection.
    fn reset_on_close(&mut self, fd: RawFd);

    /// A function that tells, of the bytes that a connection's socket took, how many the peer's host has not
    /// acknowledged. Sessions may ask at any time.
    fn unacknowledged(&self) -> Rc<dyn Fn(RawFd) -> usize>;

    /// A function that tells what a connection has received and no completion has told of yet. Sessions may
    /// ask at any time.
    fn unreported(&self) -> Rc<dyn Fn(RawFd) -> Option<Unreported>>;

    /// Ends everything in flight; afterwards no memory is shared with the kernel any more and no completion
    /// comes.
    fn stop(&mut self);

    /// Closes a descriptor at once; only after `stop`.
    fn close_now(&mut self, fd: RawFd);

    /// Entries into the kernel so far.
    fn enters(&self) -> u64;
}
