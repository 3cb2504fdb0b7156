//! Tests of `io::executor`.

use std::rc::Rc;

use super::*;

async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[test]
fn tasks_take_turns() {
    let executor = Executor::new();
    let log = Rc::new(RefCell::new(Vec::new()));
    for name in ["a", "b"] {
        let log = Rc::clone(&log);
        executor.spawn(async move {
            for step in 0..2 {
                log.borrow_mut().push((name, step));
                yield_now().await;
            }
        });
    }
    assert!(!executor.run(100));
    assert_eq!(*log.borrow(), [("a", 0), ("b", 0), ("a", 1), ("b", 1)]);
    assert!(executor.is_empty());
}

#[test]
fn a_bound_on_polls_leaves_the_rest_ready() {
    let executor = Executor::new();
    executor.spawn(async {
        loop {
            yield_now().await;
        }
    });
    assert!(executor.run(10));
    assert_eq!(executor.len(), 1);
}

#[test]
fn a_panic_ends_one_task() {
    let executor = Executor::new();
    let alive = Rc::new(());
    let witness = Rc::clone(&alive);
    executor.spawn(async move {
        let _witness = witness;
        yield_now().await;
        panic!("a session's bug");
    });
    let done = Rc::new(Cell::new(false));
    let mark = Rc::clone(&done);
    executor.spawn(async move {
        yield_now().await;
        yield_now().await;
        mark.set(true);
    });
    executor.run(100);
    assert_eq!((executor.panics(), executor.len(), done.get(), Rc::strong_count(&alive)), (1, 0, true, 1));
}

#[test]
fn a_late_wake_does_not_reach_the_next_tenant() {
    let executor = Executor::new();
    let stolen = Rc::new(RefCell::new(None));
    let place = Rc::clone(&stolen);
    executor.spawn(std::future::poll_fn(move |cx| {
        *place.borrow_mut() = Some(cx.waker().clone());
        Poll::Ready(())
    }));
    executor.run(10);
    let polls = Rc::new(Cell::new(0));
    let count = Rc::clone(&polls);
    executor.spawn(std::future::poll_fn(move |_| {
        count.set(count.get() + 1);
        Poll::Pending
    }));
    executor.run(10);
    stolen.borrow().as_ref().expect("a waker").wake_by_ref();
    executor.run(10);
    assert_eq!(polls.get(), 1);
}

#[test]
fn tasks_spawn_and_cancel_tasks() {
    let executor = Rc::new(Executor::new());
    let inner = Rc::clone(&executor);
    let witness = Rc::new(());
    let held = Rc::clone(&witness);
    executor.spawn(async move {
        let key = inner.spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        yield_now().await;
        inner.cancel(key);
        inner.cancel(key);
    });
    executor.run(100);
    assert_eq!((executor.len(), Rc::strong_count(&witness)), (0, 1));
}

#[test]
fn two_executors_share_a_thread() {
    let (one, two) = (Executor::new(), Executor::new());
    let ran = Rc::new(Cell::new(0));
    for executor in [&one, &two] {
        let ran = Rc::clone(&ran);
        executor.spawn(async move { ran.set(ran.get() + 1) });
    }
    one.run(10);
    assert_eq!(ran.get(), 1);
    two.run(10);
    assert_eq!(ran.get(), 2);
}
