//! Tests of `io::buffers`.

use super::*;

#[test]
fn lends_each_buffer_once() {
    let pool = BufferPool::new(4, 16, 0).expect("memory");
    let loans: Vec<_> = (0..4u8).map(|n| pool.lend_filled(Class::Small, &[n; 16]).expect("free")).collect();
    assert!(pool.lend_filled(Class::Small, b"x").is_none());
    for (n, loan) in loans.iter().enumerate() {
        assert_eq!(loan.bytes(), [n as u8; 16]);
    }
    pool.check_invariants();
    drop(loans);
    assert_eq!(pool.free(), 4);
    pool.check_invariants();
}

#[test]
fn relief_is_reported_once_at_the_mark() {
    let pool = BufferPool::new(4, 16, 0).expect("memory");
    let account = Account { slot: 7, generation: 3, epoch: 0 };
    pool.open_account(account);
    let mut loans: Vec<_> = (0..4).map(|_| pool.lend_filled(Class::Small, b"x").expect("free")).collect();
    loans.iter_mut().for_each(|loan| loan.charge_to(account));
    pool.await_relief(account, 32);
    loans.pop();
    assert!(!pool.has_relieved());
    loans.pop();
    loans.pop();
    let mut relieved = Vec::new();
    pool.take_relieved(&mut relieved);
    assert_eq!(relieved, [(7, 3)]);
}

#[test]
fn what_a_former_stream_received_does_not_count_for_its_successor() {
    let pool = BufferPool::new(4, 16, 1 << 10).expect("memory");
    let [former, successor] = [0, 1].map(|generation| Account { slot: 2, generation, epoch: 0 });
    pool.open_account(former);
    let mut loan = pool.lend_filled(Class::Small, b"x").expect("free");
    loan.charge_to(former);
    let copy = pool.copy(b"yy", Some(former), 0).expect("room");
    assert_eq!(pool.outstanding(former), 18);
    pool.open_account(successor);
    let mut late = pool.lend_filled(Class::Small, b"x").expect("free");
    late.charge_to(former);
    assert_eq!((pool.outstanding(former), pool.outstanding(successor)), (0, 0));
    drop((loan, copy, late));
    assert_eq!((pool.outstanding(successor), pool.free(), pool.budget_used()), (0, 4, 0));
    pool.check_invariants();
}

#[test]
fn copies_stop_at_the_budget() {
    let pool = BufferPool::new(2, 16, 2 * (FRAGMENT_COST + 10)).expect("memory");
    let account = Account { slot: 0, generation: 0, epoch: 0 };
    pool.open_account(account);
    let first = pool.copy(&[1; 10], Some(account), 0).expect("room");
    let second = pool.copy(&[2; 10], None, 0).expect("room");
    assert!(pool.copy(&[3; 1], None, 0).is_none());
    assert_eq!((pool.budget_used(), pool.outstanding(account)), (2 * (FRAGMENT_COST + 10), 10));
    drop(first);
    assert!(pool.copy(&[3; 10], None, 1).is_none(), "the reserve is kept");
    drop(second);
    assert_eq!((pool.budget_used(), pool.outstanding(account)), (0, 0));
}

#[test]
fn small_fragments_grow_one_copy() {
    let pool = BufferPool::new(2, 16, 4096).expect("memory");
    let account = Account { slot: 0, generation: 0, epoch: 0 };
    pool.open_account(account);
    let mut chunk = pool.copy(b"a", Some(account), 0).expect("room");
    for _ in 0..9 {
        assert!(chunk.try_append(b"b", 10));
    }
    assert!(!chunk.try_append(b"c", 10));
    assert_eq!(&*chunk, b"abbbbbbbbb");
    assert_eq!((pool.budget_used(), pool.outstanding(account)), (10 + FRAGMENT_COST, 10));
    let head = chunk.split_to(2);
    assert!(!chunk.try_append(b"c", 100), "shared bytes are left alone");
    chunk.compact();
    assert_eq!(pool.budget_used(), 10 + FRAGMENT_COST, "nor are they given up");
    drop(head);
    chunk.truncate(7);
    chunk.compact();
    assert_eq!(
        (&*chunk, pool.budget_used(), pool.outstanding(account)),
        (&b"bbbbbbb"[..], 7 + FRAGMENT_COST, 7)
    );
    assert!(chunk.try_append(b"d", 10) && *chunk == *b"bbbbbbbd");
    drop(chunk);
    assert_eq!((pool.budget_used(), pool.outstanding(account)), (0, 0));
}
