//! Tests of `io::handshakes`.

use std::pin::{Pin, pin};
use std::task::Context;

use super::*;

/// A step that spends a turn.
fn long() {
    let begun = Instant::now();
    while begun.elapsed() < TURN_TIME {
        std::hint::spin_loop();
    }
}

fn is_done(step: Pin<&mut impl Future<Output = ()>>) -> bool {
    step.poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[test]
fn a_turn_has_time_for_one_long_step_and_who_came_first_goes_on_first() {
    let handshakes = Handshakes::default();
    let step = |step: fn()| handshakes.step(With::Client, step);
    let (mut a, mut b, mut d) = (pin!(step(long)), pin!(step(long)), pin!(step(|| ())));
    let mut c = Box::pin(step(long));
    assert!(is_done(a.as_mut()));
    assert!(!is_done(b.as_mut()) && !is_done(c.as_mut()) && !is_done(d.as_mut()));
    handshakes.begin_turn();
    assert!(!is_done(c.as_mut()), "it is not its turn");
    assert!(is_done(b.as_mut()));
    assert!(!is_done(c.as_mut()) && !is_done(d.as_mut()), "the turn is spent");
    // A handshake that gives up leaves its turn to the next.
    drop(c);
    handshakes.begin_turn();
    assert!(is_done(d.as_mut()));
}

#[test]
fn short_steps_share_a_turn() {
    let handshakes = Handshakes::default();
    let step = |step: fn()| handshakes.step(With::Client, step);
    let (mut a, mut b, mut c) = (pin!(step(long)), pin!(step(|| ())), pin!(step(|| ())));
    assert!(is_done(a.as_mut()) && !is_done(b.as_mut()) && !is_done(c.as_mut()));
    handshakes.begin_turn();
    assert!(is_done(b.as_mut()) && is_done(c.as_mut()), "the first calls the next");
}

#[test]
fn clients_and_endpoints_take_turns_however_many_of_the_others_wait() {
    for (many, one) in [(With::Client, With::Endpoint), (With::Endpoint, With::Client)] {
        let handshakes = Handshakes::default();
        assert!(is_done(pin!(handshakes.step(many, long))));
        let mut crowd: Vec<_> = (0..100).map(|_| Box::pin(handshakes.step(many, long))).collect();
        assert!(crowd.iter_mut().all(|step| !is_done(step.as_mut())));
        // Each new handshake comes to a crowd that has been waiting. It is let through in the second turn at
        // the latest, and holds up one of the crowd.
        let mut through = 0;
        for _ in 0..10 {
            let mut step = pin!(handshakes.step(one, long));
            assert!(!is_done(step.as_mut()), "the crowd waits already");
            let turns = (1..=2).find(|_| {
                handshakes.begin_turn();
                let of_crowd =
                    crowd.iter_mut().filter_map(|step| is_done(step.as_mut()).then_some(())).count();
                crowd.drain(..of_crowd);
                let is_through = is_done(step.as_mut());
                assert_eq!(of_crowd + usize::from(is_through), 1, "a turn has time for one long step");
                through += of_crowd;
                is_through
            });
            assert!(turns.is_some(), "{one:?} queues behind the others");
        }
        assert!(through >= 5, "the crowd goes on: {through}");
    }
}
