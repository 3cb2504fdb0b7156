//! Tests of `io::ring`.

use super::*;

#[test]
fn more_operations_than_the_queue_holds_all_complete() {
    let mut ring = KernelRing::new(settings::Ring { entries: 4, buffers: 2, buffer_size: 64 }, 0).unwrap();
    for slot in 0..100 {
        // A descriptor that is not open: each completes with EBADF.
        ring.submit(Token::new(Kind::Discard, slot, 0), Op::Close { fd: -1 });
    }
    let mut completions = Vec::new();
    for _ in 0..100 {
        if completions.len() < 100 {
            ring.wait(Some(Duration::from_secs(1))).unwrap();
            ring.completions(&mut completions);
        }
    }
    let mut slots: Vec<_> = completions.iter().map(|completion| completion.token.slot()).collect();
    slots.sort_unstable();
    assert_eq!(slots, (0..100).collect::<Vec<_>>());
    assert_eq!((ring.in_flight, ring.backlog.len()), (0, 0));
}

#[test]
fn the_kernel_gets_few_buffers_until_it_fills_more_in_a_turn() {
    use std::io::Write;
    const STREAMS: u32 = 300;
    let mut ring =
        KernelRing::new(settings::Ring { entries: 1024, buffers: 1024, buffer_size: 64 }, 0).unwrap();
    assert_eq!((ring.provided[0].offered, ring.provided.len()), (OFFER_MIN[0], 1));
    let mut pairs: Vec<_> = (0..STREAMS).map(|_| std::os::unix::net::UnixStream::pair().unwrap()).collect();
    let receive = |ring: &mut KernelRing, slot: u32, pairs: &[(std::os::unix::net::UnixStream, _)]| {
        let fd = pairs[slot as usize].0.as_raw_fd();
        ring.submit(
            Token::new(Kind::Receive, slot, 0),
            Op::Receive { fd, multishot: false, class: Class::Small },
        );
    };
    for slot in 0..STREAMS {
        pairs[slot as usize].1.write_all(&slot.to_le_bytes()).unwrap();
        receive(&mut ring, slot, &pairs);
    }
    let (mut received, mut again) = (0, 0);
    while received < STREAMS {
        ring.wait(Some(Duration::from_secs(1))).unwrap();
        let mut completions = Vec::new();
        ring.completions(&mut completions);
        assert!(!completions.is_empty(), "{received} received, {again} tried again");
        for completion in completions {
            let slot = completion.token.slot();
            match completion.loan {
                Some(loan) => {
                    assert_eq!(loan.bytes(), slot.to_le_bytes());
                    received += 1;
                }
                None => {
                    assert_eq!(completion.result, -libc::EINTR, "buffers are left");
                    again += 1;
                    receive(&mut ring, slot, &pairs);
                }
            }
        }
    }
    assert_eq!(again, STREAMS - u32::from(OFFER_MIN[0]));
    // The loans are back; from now on the kernel gets twice as many as it filled.
    ring.wait(Some(Duration::ZERO)).unwrap();
    assert!(ring.provided[0].offered > OFFER_MIN[0] * 3 / 2, "{} offered", ring.provided[0].offered);
    ring.pool.check_invariants();
}

#[test]
fn this_kernel_has_what_workers_need() {
    let features = probe().unwrap();
    assert!(features.completion_entries >= 16);
}

#[test]
fn a_ring_makes_the_operations_of_a_worker_and_no_others() {
    use io_uring::squeue::Flags;
    use io_uring::types::Fd;
    use io_uring::{Probe, opcode};
    let mut ring = KernelRing::new(settings::Ring { entries: 8, buffers: 2, buffer_size: 64 }, 0).unwrap();
    let descriptor = std::fs::File::open("/dev/null").unwrap();
    let fd = Fd(descriptor.as_raw_fd());
    let entries = [
        opcode::OpenAt::new(Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr()).build(),
        opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
        // SOCKET_URING_OP_SETSOCKOPT, by which a listener's steering could be detached.
        opcode::UringCmd16::new(fd, 3).build(),
        opcode::Listen::new(fd, 0).build(),
        opcode::Bind::new(fd, std::ptr::null(), 0).build(),
        opcode::Read::new(fd, std::ptr::null_mut(), 0).build(),
        opcode::MsgRingData::new(fd, 0, 0, None).build(),
        opcode::Nop::new().build(),
        opcode::Shutdown::new(fd, libc::SHUT_RD).build(),
        // Not even these with other flags.
        opcode::Send::new(fd, std::ptr::null(), 0).build().flags(Flags::IO_LINK),
        opcode::Close::new(Fd(-1)).build().flags(Flags::ASYNC),
    ];
    let count = entries.len();
    for (slot, entry) in (0..).zip(entries) {
        ring.push(entry.user_data(Token::new(Kind::Discard, slot, 0).raw()));
    }
    let mut completions = Vec::new();
    for _ in 0..count {
        if completions.len() < count {
            ring.wait(Some(Duration::from_secs(1))).unwrap();
            ring.completions(&mut completions);
        }
    }
    completions.sort_by_key(|completion| completion.token.slot());
    let results: Vec<i32> = completions.iter().map(|completion| completion.result).collect();
    assert_eq!(results, vec![-libc::EACCES; count]);
    let submitter = ring.ring.submitter();
    for refused in [
        submitter.register_files(&[descriptor.as_raw_fd()]),
        submitter.register_probe(&mut Probe::new()),
        submitter.register_eventfd(descriptor.as_raw_fd()),
        submitter.register_restrictions(&mut []),
        submitter.register_enable_rings(),
    ] {
        assert_eq!(refused.expect_err("registered").raw_os_error(), Some(libc::EACCES));
    }
}
