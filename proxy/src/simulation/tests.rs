//! Seeds by the thousand, on as many threads as there are cores. `cargo xtask simulate` sets the environment:
//! `SLUICE_SIMULATE_FROM` and `SLUICE_SIMULATE_SEEDS` choose a range, `SLUICE_SIMULATE_TRACE` one seed to be
//! told line by line.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::run::run;

/// Seeds of the ordinary test run; CI runs more.
const SEEDS: u64 = 300;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    let number = value
        .strip_prefix("0x")
        .map_or_else(|| value.parse().ok(), |digits| u64::from_str_radix(digits, 16).ok());
    Some(number.unwrap_or_else(|| panic!("{name}: {value} is no number")))
}

/// One number for all that happened in a range of seeds (FNV-1a over each seed's hash and count of events):
/// two builds that behave alike print the same.
fn digest(mut traces: Vec<(u64, u64, u64)>) -> u64 {
    traces.sort_unstable();
    let numbers = traces.into_iter().flat_map(|(seed, hash, events)| [seed, hash, events]);
    numbers
        .flat_map(u64::to_le_bytes)
        .fold(0xcbf2_9ce4_8422_2325, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn every_seed_keeps_the_invariants() {
    if let Some(seed) = number("SLUICE_SIMULATE_TRACE") {
        return match run(seed, true) {
            Ok(report) => {
                println!("seed {seed:#x}: kept, {} events, hash {:#018x}", report.events, report.hash)
            }
            Err(broken) => panic!("seed {seed:#x}: {broken}"),
        };
    }
    let from = number("SLUICE_SIMULATE_FROM").unwrap_or(0);
    let count = number("SLUICE_SIMULATE_SEEDS").unwrap_or(SEEDS);
    let started = Instant::now();
    let (next, failures) = (AtomicU64::new(from), Mutex::new(Vec::new()));
    let [answered, cut, unanswered, early] = [const { AtomicU64::new(0) }; 4];
    let (handshakes, traces) = (Mutex::new([[0; 2]; 2]), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + count || failures.lock().expect("no panic holds it").len() >= 5 {
                return;
            }
            match run(seed, false) {
                Ok(report) => {
                    traces.lock().expect("no panic holds it").push((seed, report.hash, report.events));
                    answered.fetch_add(report.tally.responses.iter().sum(), Ordering::Relaxed);
                    cut.fetch_add(report.tally.cut, Ordering::Relaxed);
                    unanswered.fetch_add(report.tally.unanswered, Ordering::Relaxed);
                    early.fetch_add(report.early, Ordering::Relaxed);
                    let mut sums = handshakes.lock().expect("no panic holds it");
                    sums.iter_mut()
                        .flatten()
                        .zip(report.handshakes.iter().flatten())
                        .for_each(|(sum, more)| *sum += more);
                }
                Err(broken) => failures.lock().expect("no panic holds it").push((seed, broken)),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut failures = failures.into_inner().expect("no panic holds it");
    failures.sort();
    for (seed, broken) in &failures {
        eprintln!("seed {seed:#x} (number {} of this run): {broken}", seed - from + 1);
        eprintln!("    cargo xtask simulate --seed {seed:#x} --trace");
    }
    let [answered, cut, unanswered, early] = [answered, cut, unanswered, early].map(AtomicU64::into_inner);
    println!(
        "{count} seeds in {:.1} s: {answered} answers, {cut} visibly cut, {unanswered} requests without one",
        started.elapsed().as_secs_f64()
    );
    let [clients, endpoints] = handshakes.into_inner().expect("no panic holds it");
    println!("digest of their traces: {:#018x}", digest(traces.into_inner().expect("no panic holds it")));
    println!(
        "TLS handshakes made and failed: {clients:?} with clients, {endpoints:?} with endpoints; {early} \
         early requests"
    );
    assert!(failures.is_empty(), "{} seeds failed", failures.len());
    assert!(count < 100 || answered > count, "{answered} answers: the simulation does nothing");
    let least = clients.into_iter().chain(endpoints).min().unwrap_or_default();
    assert!(count < 300 || least > 0, "{clients:?}, {endpoints:?}: handshakes of every kind");
    assert!(count < 3000 || early > 0, "requests that come early");
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    for seed in 0..20 {
        let [first, second] =
            [0, 1].map(|_| run(seed, false).unwrap_or_else(|broken| panic!("seed {seed:#x}: {broken}")));
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed:#x}");
    }
    let hash = |seed| run(seed, false).map(|report| report.hash);
    assert_ne!(hash(1), hash(2), "seeds differ");
}
