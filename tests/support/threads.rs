//! What `/proc` shows of a process and its threads, and how to hold one thread still while the others run.

use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A field of `/proc/PID/status`.
#[must_use]
pub fn status_field(pid: u32, name: &str) -> Option<String> {
    field_of(&format!("/proc/{pid}/status"), name)
}

fn field_of(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

/// User and system CPU time of a process so far, in ticks of 10 ms.
#[must_use]
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let (_, after_name) = stat.rsplit_once(')').expect("a name in parentheses");
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    // utime and stime are fields 14 and 15 of the line. The first field after the name is field 3, the state.
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

/// The threads of a process with their names.
#[must_use]
pub fn threads(pid: u32) -> Vec<(u32, String)> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let tids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    tids.filter_map(|tid: u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).ok()?;
        Some((tid, name.trim().to_owned()))
    })
    .collect()
}

/// How many times a thread has gone to sleep so far.
#[must_use]
pub fn sleeps(pid: u32, tid: u32) -> u64 {
    let path = format!("/proc/{pid}/task/{tid}/status");
    field_of(&path, "voluntary_ctxt_switches").and_then(|count| count.parse().ok()).expect("the thread lives")
}

/// A thread that ptrace has stopped in the middle of its work. The other threads of its process run on. On
/// drop it runs again.
///
/// ptrace binds to the calling thread, so a `Held` is used and dropped on the thread that made it.
#[derive(Debug)]
pub struct Held {
    tid: Pid,
    _here: std::marker::PhantomData<*const ()>,
}

impl Held {
    /// Attaches to a thread and stops it at its next system call other than io_uring_enter. At that call the
    /// thread has woken up and not gone to sleep again. Until then `provoke` is called repeatedly.
    #[must_use]
    pub fn at_work(tid: u32, limit: Duration, mut provoke: impl FnMut()) -> Self {
        const IO_URING_ENTER: u64 = 426;
        let tid = Pid::from_raw(tid.cast_signed());
        ptrace::seize(tid, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("ptrace");
        let held = Self { tid, _here: std::marker::PhantomData };
        ptrace::interrupt(tid).expect("ptrace");
        held.next_stop(Duration::from_secs(5)).expect("the thread stops");
        let start = Instant::now();
        let mut last_provoked = None;
        while start.elapsed() < limit {
            ptrace::syscall(tid, None).expect("ptrace");
            loop {
                if last_provoked.is_none_or(|last: Instant| last.elapsed() > Duration::from_millis(200)) {
                    provoke();
                    last_provoked = Some(Instant::now());
                }
                assert!(
                    start.elapsed() < limit,
                    "the thread made no system call but io_uring_enter in {limit:?}"
                );
                if let Some(status) = held.next_stop(Duration::from_millis(20)) {
                    let call = std::fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
                    let number = call.split(' ').next().and_then(|number| number.parse::<u64>().ok());
                    let in_call = matches!(status, WaitStatus::PtraceSyscall(_));
                    if in_call && number.is_some_and(|number| number != IO_URING_ENTER) {
                        return held;
                    }
                    break;
                }
            }
        }
        panic!("the thread was not found at work in {limit:?}");
    }

    fn next_stop(&self, limit: Duration) -> Option<WaitStatus> {
        let start = Instant::now();
        loop {
            let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
            match waitpid(self.tid, Some(flags)).expect("waitpid") {
                WaitStatus::StillAlive if start.elapsed() > limit => return None,
                WaitStatus::StillAlive => std::thread::sleep(Duration::from_micros(200)),
                status => return Some(status),
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Detaching needs a stopped thread. It may still run if `at_work` gave up.
        if ptrace::detach(self.tid, None).is_err() {
            let _ = ptrace::interrupt(self.tid);
            self.next_stop(Duration::from_secs(2));
            let _ = ptrace::detach(self.tid, None);
        }
    }
}
