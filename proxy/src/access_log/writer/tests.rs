//! Tests of `access_log::writer`.

use std::io::Read;
use std::time::Instant;

use super::*;

/// The counts are of the process, so the tests that look at them take turns.
static TURN: Mutex<()> = Mutex::new(());

fn line(sender: &AccessSender, text: &str) {
    if !sender.producer.push(text.as_bytes()) {
        count_lost_in_queue(1);
    }
    sender.doorbell.after_push(sender.producer.is_half_full());
}

fn all_lost() -> u64 {
    LogLossReason::ALL.iter().map(|&reason| lost(reason)).sum()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < give_up, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn every_workers_lines_arrive_whole_and_those_left_at_the_end_too() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let (log, senders) = AccessLog::start(file.reopen().expect("open").into(), 3, false).expect("a thread");
    std::thread::scope(|scope| {
        for (worker, sender) in senders.into_iter().enumerate() {
            scope.spawn(move || (0..5_000).for_each(|number| line(&sender, &format!("{worker} {number}\n"))));
        }
    });
    drop(log);
    let text = std::fs::read_to_string(file.path()).expect("text");
    for worker in 0..3 {
        let prefix = format!("{worker} ");
        let numbers = text.lines().filter_map(|line| line.strip_prefix(&prefix)?.parse::<u32>().ok());
        assert!(numbers.eq(0..5_000), "worker {worker}'s lines, all and in order");
    }
    assert_eq!(text.lines().count(), 15_000);
}

#[test]
fn a_sleeping_thread_is_woken_for_one_line() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let (log, senders) = AccessLog::start(file.reopen().expect("open").into(), 1, false).expect("a thread");
    for round in 1..=3 {
        wait_for("it sleeps", || log.shared.doorbell.state.load(Ordering::Relaxed) == SLEEPING);
        line(&senders[0], "x\n");
        wait_for("it is written", || {
            std::fs::read_to_string(file.path()).is_ok_and(|text| text.len() == 2 * round)
        });
    }
}

#[test]
fn rotation_under_load_loses_and_doubles_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    const LINES: usize = 20_000;
    let folder = tempfile::tempdir().expect("a folder");
    let open = |number: usize| File::create(folder.path().join(number.to_string())).expect("a file");
    let (log, senders) = AccessLog::start(open(0).into(), 2, false).expect("a thread");
    let before = all_lost();
    std::thread::scope(|scope| {
        for (worker, sender) in senders.into_iter().enumerate() {
            scope.spawn(move || {
                for number in 0..LINES {
                    line(&sender, &format!("{worker} {number}\n"));
                    if number % 1_000 == 0 {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
            });
        }
        for number in 1..10 {
            std::thread::sleep(Duration::from_millis(3));
            log.reopen(open(number).into());
        }
    });
    drop(log);
    assert_eq!(all_lost(), before);
    let texts: Vec<String> = (0..10)
        .map(|number| std::fs::read_to_string(folder.path().join(number.to_string())).expect("text"))
        .collect();
    assert!(texts.iter().filter(|text| !text.is_empty()).count() > 1, "it rotated while lines came");
    let mut lines: Vec<&str> = texts.iter().flat_map(|text| text.lines()).collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 2 * LINES);
}

#[test]
fn a_full_disk_loses_counted_lines_and_never_leaves_half_a_line_before_a_whole_one() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let before = (lost(LogLossReason::WriteFailed), written());
    let mut output = Output::new(File::options().write(true).open("/dev/full").expect("open"));
    output.write(b"1\n2\n3\n");
    assert_eq!((lost(LogLossReason::WriteFailed) - before.0, written() - before.1), (3, 0));
    assert_eq!((output.failing, output.torn), (Some(3), false));
    // Half of a line got through before.
    output.file = file.reopen().expect("open");
    output.file.write_all(b"{\"ha").expect("write");
    output.torn = true;
    output.write(b"4\n");
    assert_eq!((output.failing, output.torn), (None, false));
    assert_eq!(std::fs::read_to_string(file.path()).expect("text"), "{\"ha\n4\n");
}

#[test]
fn a_stuck_output_loses_what_does_not_fit_into_the_queue_and_blocks_nobody() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let before = lost(LogLossReason::QueueFull);
    let (log, senders) = AccessLog::start_with(writer.into(), 1, false, 4096).expect("a thread");
    let text = format!("{}\n", "x".repeat(99));
    let start = Instant::now();
    let mut sent = 0;
    while lost(LogLossReason::QueueFull) - before < 1_000 {
        line(&senders[0], &text);
        sent += 1;
        assert!(start.elapsed() < Duration::from_secs(10), "the queue has a bound");
    }
    let lost = lost(LogLossReason::QueueFull) - before;
    // Once the pipe is read again, the queued records arrive, and no lost record does.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    drop((senders, log));
    let text = reader.join().expect("no panic").expect("text");
    assert_eq!(text.lines().count() as u64, sent - lost);
    assert!(text.lines().all(|line| line.len() == 99));
}
