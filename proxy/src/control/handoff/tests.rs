//! Tests of `control::handoff`.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use proptest::prelude::*;

use super::*;

fn inode(fd: &OwnedFd) -> u64 {
    std::fs::File::from(fd.try_clone().expect("dup")).metadata().expect("stat").ino()
}

#[test]
fn messages_and_descriptors_arrive_whole_in_order_and_close_on_exec() {
    let (one, other) = Channel::pair().expect("pair");
    let files: Vec<OwnedFd> =
        (0..DESCRIPTORS_MAX).map(|_| tempfile::tempfile().expect("file").into()).collect();
    one.send(&"many", &files.iter().map(AsFd::as_fd).collect::<Vec<_>>()).expect("send");
    one.send(&"none", &[]).expect("send");
    let many: Received<String> = other.receive(DESCRIPTORS_MAX).expect("receive");
    assert_eq!(many.message, "many");
    assert_eq!(
        many.descriptors.iter().map(inode).collect::<Vec<_>>(),
        files.iter().map(inode).collect::<Vec<_>>()
    );
    for fd in &many.descriptors {
        let flags = fcntl(fd, FcntlArg::F_GETFD).expect("getfd");
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    }
    assert_eq!(other.receive::<String>(0).expect("receive").message, "none");
    assert!(matches!(other.receive::<String>(0), Err(ChannelError::WouldBlock)));
    drop(one);
    assert!(matches!(other.receive::<String>(0), Err(ChannelError::Closed)));
    assert!(matches!(other.send(&"x", &[]), Err(ChannelError::Closed)));
}

#[test]
fn more_than_a_message_carries_is_refused_before_it_is_sent() {
    let (one, other) = Channel::pair().expect("pair");
    let file: OwnedFd = tempfile::tempfile().expect("file").into();
    let many = vec![file.as_fd(); DESCRIPTORS_MAX + 1];
    assert!(matches!(one.send(&"x", &many), Err(ChannelError::TooManyDescriptors)));
    assert!(matches!(one.send(&"x".repeat(MESSAGE_BYTES_MAX), &[]), Err(ChannelError::TooLong)));
    assert!(matches!(other.receive::<String>(0), Err(ChannelError::WouldBlock)));
    one.send(&"x".repeat(MESSAGE_BYTES_MAX - 2), &[]).expect("just fits");
    assert_eq!(other.receive::<String>(0).expect("receive").message.len(), MESSAGE_BYTES_MAX - 2);
}

#[test]
fn a_hostile_sender_gets_errors_and_leaves_no_descriptor_open() {
    let (one, other) = Channel::pair().expect("pair");
    let (pipe, writer) = nix::unistd::pipe().expect("pipe");
    let raw = |bytes: &[u8], fds: &[RawFd]| {
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        sendmsg::<()>(one.as_raw_fd(), &[io::IoSlice::new(bytes)], control, MsgFlags::empty(), None)
            .expect("sendmsg");
    };
    raw(&vec![b' '; MESSAGE_BYTES_MAX + 5_000], &[writer.as_raw_fd()]);
    assert!(matches!(other.receive::<String>(9), Err(ChannelError::TooLong)));
    raw(b"\"hello\"", &[writer.as_raw_fd(); 253]);
    assert!(matches!(other.receive::<String>(1), Err(ChannelError::TooManyDescriptors)));
    raw(b"\"hel", &[writer.as_raw_fd()]);
    assert!(matches!(other.receive::<String>(9), Err(ChannelError::Malformed(_))));
    raw(b"", &[writer.as_raw_fd()]);
    assert!(matches!(other.receive::<String>(9), Err(ChannelError::Malformed(_))));
    // An empty packet cannot be told from the end; either way this sender is finished.
    raw(b"", &[]);
    assert!(matches!(other.receive::<String>(9), Err(ChannelError::Closed)));
    // Were one copy of the writing end left open here, the pipe would not be at its end.
    drop(writer);
    assert_eq!(nix::unistd::read(&pipe, &mut [0; 1]).expect("read"), 0);
}

#[test]
fn hundreds_of_descriptors_travel_in_batches() {
    let (one, other) = Channel::pair().expect("pair");
    let files: Vec<OwnedFd> = (0..600).map(|_| tempfile::tempfile().expect("file").into()).collect();
    for (number, batch) in files.chunks(DESCRIPTORS_MAX).enumerate() {
        one.send(&number, &batch.iter().map(AsFd::as_fd).collect::<Vec<_>>()).expect("send");
    }
    let mut inodes = BTreeSet::new();
    for number in 0..3_usize {
        let received: Received<usize> = other.receive(DESCRIPTORS_MAX).expect("receive");
        assert_eq!(received.message, number);
        inodes.extend(received.descriptors.iter().map(inode));
    }
    assert_eq!(inodes, files.iter().map(inode).collect());
}

proptest! {
    #[test]
    fn no_bytes_panic_the_receiver(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let (one, other) = Channel::pair().expect("pair");
        sendmsg::<()>(one.as_raw_fd(), &[io::IoSlice::new(&bytes)], &[], MsgFlags::empty(), None)
            .expect("sendmsg");
        let _ = other.receive::<crate::control::messages::ToDataPlane>(9);
        sendmsg::<()>(one.as_raw_fd(), &[io::IoSlice::new(&bytes)], &[], MsgFlags::empty(), None)
            .expect("sendmsg");
        let _ = other.receive::<crate::control::messages::ToSupervisor>(9);
    }
}
