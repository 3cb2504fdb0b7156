//! Programs that the tests run, each with a deadline.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The output of a program and how it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error. If the command merges the two streams, standard output is here too.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output and standard error, for messages and for searches in either.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}{}", self.text(), self.errors())
    }

    /// The exit code; -1 after a signal.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Returns itself if the program succeeded; otherwise panics with all its output.
    #[must_use]
    pub fn success(self) -> Self {
        assert!(self.status.success(), "{}\n{}", self.status, self.all());
        self
    }
}

/// Runs a program to its end. If it takes longer than `limit`, kills it and panics.
#[must_use]
pub fn run(command: &mut Command, limit: Duration) -> Output {
    run_with(command, Stdio::null(), limit)
}

/// [`run`] with this as standard input.
#[must_use]
pub fn run_with(command: &mut Command, input: Stdio, limit: Duration) -> Output {
    Running::start(command, input).end(limit)
}

/// A program that runs, with its output so far.
#[derive(Debug)]
pub struct Running {
    shown: String,
    child: Child,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

impl Running {
    /// Starts a program with this as standard input.
    #[must_use]
    pub fn start(command: &mut Command, input: Stdio) -> Self {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
        let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
        Self { shown, child, stdout, stderr }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end. If it takes longer than `limit`, kills it and panics.
    #[must_use]
    pub fn end(mut self, limit: Duration) -> Output {
        let status = wait(&mut self.child, limit).unwrap_or_else(|| {
            let _ = self.child.kill();
            let _ = self.child.wait();
            panic!("still running after {limit:?}: {}", self.shown);
        });
        let [stdout, stderr] = [self.stdout, self.stderr].map(|thread| thread.join().unwrap_or_default());
        Output { status, stdout, stderr }
    }
}

/// Waits for a child; `None` if it still runs after `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return Some(status);
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn drain(stream: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        bytes
    })
}
