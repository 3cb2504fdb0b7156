//! Tests of `telemetry::key_log`.

use std::sync::Mutex;
use std::time::Instant;

use super::*;

#[test]
fn a_line_is_as_nss_has_it() {
    let written = line("CLIENT_RANDOM", &[0, 0xab, 0xff], &[1, 2]);
    assert_eq!(written.as_slice(), b"CLIENT_RANDOM 00abff 0102\n");
    assert_eq!(written.capacity(), written.len());
}

#[test]
fn what_finds_no_room_is_counted_and_nobody_waits() {
    let queue = Queue::new(2);
    for number in 0..5 {
        queue.log("X", &[], &[number]);
    }
    assert_eq!(queue.lost.load(Ordering::Relaxed), 3);
    queue.closing.store(true, Ordering::Relaxed);
    let mut written = Vec::new();
    queue.write_out(&mut written);
    assert_eq!(written, b"X  00\nX  01\n");
    assert_eq!(queue.lost.load(Ordering::Relaxed), 0, "it was said");
}

/// Fails as long as it is told so.
struct Disk {
    is_full: Arc<AtomicBool>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_full.load(Ordering::Acquire) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.written.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_costs_lines_and_the_rest_is_written_to_the_end() {
    let is_full = Arc::new(AtomicBool::new(true));
    let written = Arc::new(Mutex::new(Vec::new()));
    let mut disk = Disk { is_full: Arc::clone(&is_full), written: Arc::clone(&written) };
    let queue = Arc::new(Queue::new(64));
    let theirs = Arc::clone(&queue);
    let thread = std::thread::spawn(move || theirs.write_out(&mut disk));
    let _ = queue.writer.set(thread.thread().clone());
    let guard = KeyLogGuard { queue: Arc::clone(&queue), thread: Some(thread) };
    queue.log("LOST", &[], &[]);
    let start = Instant::now();
    while !queue.lines.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "it is taken");
        std::thread::sleep(Duration::from_millis(1));
    }
    // It may be at it still.
    std::thread::sleep(Duration::from_millis(50));
    is_full.store(false, Ordering::Release);
    for number in 0..50 {
        queue.log("KEPT", &[number], &[]);
    }
    drop(guard);
    let wanted: String = (0..50).map(|number| format!("KEPT {number:02x} \n")).collect();
    assert_eq!(String::from_utf8_lossy(&written.lock().expect("not poisoned")), wanted);
}
