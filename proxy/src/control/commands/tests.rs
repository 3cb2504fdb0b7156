//! Tests of `control::commands`.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

fn readable(receiver: &CommandReceiver) -> bool {
    let mut fds = [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).expect("poll") == 1
}

#[test]
fn commands_arrive_in_order_and_the_descriptor_clears() {
    let (sender, receiver) = channel().expect("eventfd");
    assert!(!readable(&receiver));
    let drain = Command::Drain { deadline: Time::from_nanos(7) };
    sender.send(drain).expect("room");
    sender.send(Command::Stop).expect("room");
    assert!(readable(&receiver));
    assert_eq!(receiver.try_next(), Some(drain));
    assert!(readable(&receiver), "a command still waits");
    assert_eq!(receiver.try_next(), Some(Command::Stop));
    assert_eq!(receiver.try_next(), None);
    assert!(!readable(&receiver));
    sender.send(Command::Stop).expect("room");
    assert!(readable(&receiver), "a later command wakes again");
}

#[test]
fn a_full_queue_refuses_and_keeps_what_it_has() {
    let (sender, receiver) = channel().expect("eventfd");
    for nanos in 0..PENDING_MAX {
        sender.send(Command::Drain { deadline: Time::from_nanos(nanos as u64) }).expect("room");
    }
    assert_eq!(sender.send(Command::Stop), Err(Full));
    assert_eq!(std::iter::from_fn(|| receiver.try_next()).count(), PENDING_MAX);
    sender.send(Command::Stop).expect("room again");
    assert_eq!(receiver.try_next(), Some(Command::Stop));
}

#[test]
fn a_nudge_wakes_and_is_no_command() {
    let (sender, receiver) = channel().expect("eventfd");
    for _ in 0..100 {
        sender.nudge();
    }
    assert!(readable(&receiver));
    assert_eq!(receiver.try_next(), None);
    assert!(!readable(&receiver));
}

#[test]
fn no_wake_up_is_lost_between_threads() {
    let (sender, receiver) = channel().expect("eventfd");
    let count = 20_000_usize;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..count {
                while sender.send(Command::Stop).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        let mut seen = 0;
        while seen < count {
            let mut fds = [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)];
            assert_eq!(
                poll(&mut fds, 5_000_u16).expect("poll"),
                1,
                "slept with {} of {count} commands left",
                count - seen
            );
            while receiver.try_next().is_some() {
                seen += 1;
            }
        }
    });
}
