//! Tests of `io::chunk`.

use proptest::prelude::*;

use super::super::buffers::{Account, BufferPool, Class};
use super::*;

#[test]
fn a_loan_returns_when_its_last_piece_drops() {
    let pool = BufferPool::new(4, 64, 1 << 20).expect("memory");
    let account = Account { slot: 0, generation: 0, epoch: 0 };
    pool.open_account(account);
    let mut loan = pool.lend_filled(Class::Small, b"hello world").expect("a free buffer");
    loan.charge_to(account);
    let mut chunk = Chunk::from_loan(loan);
    assert_eq!((pool.free(), pool.outstanding(account)), (3, 64));
    let head = chunk.split_to(5);
    let space = chunk.split_to(1);
    assert_eq!((&*head, &*space, &*chunk), (&b"hello"[..], &b" "[..], &b"world"[..]));
    drop(head);
    drop(chunk);
    assert_eq!((pool.free(), pool.outstanding(account)), (3, 64));
    drop(space);
    assert_eq!((pool.free(), pool.outstanding(account)), (4, 0));
}

proptest! {
    #[test]
    fn any_splitting_keeps_the_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        cuts in prop::collection::vec((0usize..64, 0u8..3), 0..20),
        kind in 0u8..3,
    ) {
        let pool = BufferPool::new(2, 64, 1 << 20).expect("memory");
        let mut chunk = match kind {
            0 => Chunk::from_vec(bytes.clone()),
            1 => Chunk::from_static(Box::leak(bytes.clone().into_boxed_slice())),
            _ => Chunk::from_loan(pool.lend_filled(Class::Small, &bytes).expect("a free buffer")),
        };
        let mut model = bytes;
        for (at, what) in cuts {
            let at = at.min(model.len());
            match what {
                0 => {
                    let head = chunk.split_to(at);
                    prop_assert_eq!(&*head, &model[..at]);
                    model.drain(..at);
                }
                1 => {
                    chunk.advance(at);
                    model.drain(..at);
                }
                _ => {
                    chunk.truncate(at);
                    model.truncate(at);
                }
            }
            prop_assert_eq!(&*chunk, &model[..]);
        }
        drop(chunk);
        prop_assert_eq!(pool.free(), 2);
    }
}
