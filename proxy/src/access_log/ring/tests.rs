//! Tests of `access_log::ring`.

use proptest::prelude::*;

use super::*;

#[test]
fn what_does_not_fit_is_refused_and_what_is_read_makes_room() {
    let (producer, mut consumer) = ring(64);
    assert!(!producer.push(&[0; 57]), "8 words, and the length takes one");
    assert!(producer.push(&[1; 56]));
    assert!(producer.is_half_full());
    assert!(!producer.push(&[]));
    let mut read = Vec::new();
    assert!(consumer.pop(&mut read) && consumer.is_empty());
    assert_eq!(read, [1; 56]);
    assert!(producer.push(&[]) && !producer.is_half_full());
    read.clear();
    assert!(consumer.pop(&mut read) && read.is_empty());
    assert!(!consumer.pop(&mut read));
}

#[test]
fn two_threads_lose_nothing_and_keep_the_order() {
    let (producer, mut consumer) = ring(4096);
    const COUNT: u32 = 100_000;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..COUNT {
                let mut bytes = number.to_le_bytes().to_vec();
                bytes.resize(4 + number as usize % 40, number as u8);
                while !producer.push(&bytes) {
                    std::thread::yield_now();
                }
            }
        });
        let mut read = Vec::new();
        for number in 0..COUNT {
            read.clear();
            while !consumer.pop(&mut read) {
                std::thread::yield_now();
            }
            assert_eq!(read[..4], number.to_le_bytes());
            assert_eq!(read.len(), 4 + number as usize % 40);
            assert!(read[4..].iter().all(|&byte| byte == number as u8));
        }
    });
}

proptest! {
    /// Against a queue of vectors.
    #[test]
    fn is_a_queue(
        steps in prop::collection::vec(
            prop::option::of(prop::collection::vec(any::<u8>(), 0..90)),
            1..200,
        ),
    ) {
        let (producer, mut consumer) = ring(256);
        let mut model = std::collections::VecDeque::new();
        for step in steps {
            match step {
                Some(bytes) => {
                    let used: usize =
                        model.iter().map(|queued: &Vec<u8>| 1 + queued.len().div_ceil(WORD)).sum();
                    let fits = used + 1 + bytes.len().div_ceil(WORD) <= 32;
                    prop_assert_eq!(producer.push(&bytes), fits);
                    if fits {
                        model.push_back(bytes);
                    }
                }
                None => {
                    let mut read = vec![7];
                    let expected = model.pop_front();
                    prop_assert_eq!(consumer.pop(&mut read), expected.is_some());
                    prop_assert_eq!(read.split_off(1), expected.unwrap_or_default());
                }
            }
        }
    }
}
