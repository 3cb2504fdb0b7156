//! Restrictions of a ring (io_uring_register(2), IORING_REGISTER_RESTRICTIONS): it makes the operations of a
//! worker and no others. Without them a ring would be a way around a filter of system calls: it opens files,
//! makes sockets and sets their options.

use std::io;

use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode};

/// The operations of a worker (`sqe`), with their names for people.
pub(super) const OPERATIONS: [(u8, &str); 8] = [
    (opcode::AcceptMulti::CODE, "accept"),
    (opcode::RecvMulti::CODE, "recv"),
    (opcode::Send::CODE, "send"),
    (opcode::SendMsg::CODE, "sendmsg"),
    (opcode::Connect::CODE, "connect"),
    (opcode::Close::CODE, "close"),
    (opcode::AsyncCancel2::CODE, "async_cancel"),
    (opcode::PollAdd::CODE, "poll_add"),
];

/// IORING_REGISTER_SYNC_CANCEL of linux/io_uring.h, by which a worker ends. Nothing else is registered later.
const REGISTER_SYNC_CANCEL: u8 = 24;

/// Restricts a ring that was made disabled, and enables it: the calling thread is the one that uses it.
///
/// # Errors
/// When the kernel refuses, which it does for a ring that runs already.
pub(super) fn enable(ring: &IoUring) -> io::Result<()> {
    let mut restrictions: Vec<Restriction> =
        OPERATIONS.iter().map(|(code, _)| Restriction::sqe_op(*code)).collect();
    restrictions.push(Restriction::sqe_flags_allowed(Flags::BUFFER_SELECT.bits()));
    restrictions.push(Restriction::register_op(REGISTER_SYNC_CANCEL));
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()
}
