//! The ground of a measurement: a folder, processes that end with the harness, ports, and waits that Ctrl-C
//! interrupts. However the run ends, each process started here is ended by its id, and all files lie in the
//! folder.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cpu;

/// The core of the measured proxy. It is idle otherwise.
pub(super) const PROXY_CPU: usize = 0;
/// The core of load, origin and this harness.
pub(super) const LOAD_CPU: usize = 1;

const FIRST_PORT: u16 = 19_000;
/// The last port is below the range that the kernel uses for outgoing connections.
const LAST_PORT: u16 = 29_999;

/// How a process is connected to the harness. Its standard error always goes to a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pipes {
    None,
    Out,
    InOut,
}

/// The folder, the ports and the state of interruption.
pub(super) struct Stage {
    folder: PathBuf,
    interrupted: Arc<AtomicBool>,
    next_port: AtomicU16,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Stage {
    /// Makes the folder and raises the descriptor limit to its hard limit, also for all children. From now on
    /// SIGINT and SIGTERM ask the run to end in order.
    pub(super) fn new() -> Result<Self, String> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .map_err(|error| format!("signals: {error}"))?;
        }
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
                .map_err(|error| format!("descriptor limit: {error}"))?;
        }
        let folder = std::env::temp_dir().join(format!("sluice-bench-{}", std::process::id()));
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self { folder, interrupted, next_port: AtomicU16::new(FIRST_PORT) })
    }

    /// Keeps this process on the load's core from now on. Earlier builds may use all cores.
    pub(super) fn keep_to_load_core(&self) -> Result<(), String> {
        self.check()?;
        run_on(LOAD_CPU)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes a folder inside the stage's folder.
    pub(super) fn subfolder(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.folder.join(name);
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// A loopback address on which nothing listens.
    pub(super) fn address(&self) -> Result<SocketAddr, String> {
        for _ in FIRST_PORT..=LAST_PORT {
            let port = self.next_port.fetch_add(1, Ordering::Relaxed);
            if port >= LAST_PORT {
                self.next_port.store(FIRST_PORT, Ordering::Relaxed);
            }
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if TcpListener::bind(address).is_ok() {
                return Ok(address);
            }
        }
        Err(format!("no free port from {FIRST_PORT} to {LAST_PORT}"))
    }

    /// Fails if the user has interrupted the run.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.interrupted.load(Ordering::Relaxed) { Err("interrupted".into()) } else { Ok(()) }
    }

    /// Sleeps; fails if the user interrupts.
    pub(super) fn sleep(&self, duration: Duration) -> Result<(), String> {
        let end = Instant::now() + duration;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    /// Starts a process on a core. It has a process group of its own, so that Ctrl-C on a terminal reaches
    /// only the harness. If the harness dies, the process gets SIGTERM.
    pub(super) fn start(
        &self,
        name: &str,
        core: usize,
        command: &Command,
        pipes: Pipes,
    ) -> Result<Process, String> {
        self.check()?;
        let log = self.folder.join(format!("{name}.log"));
        let file = fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        run_on(core)?;
        let spawned = parented(command, pipes).stderr(file).process_group(0).spawn();
        run_on(LOAD_CPU)?;
        let child = spawned.map_err(|error| format!("{name}: {command:?}: {error}"))?;
        Ok(Process { name: name.to_owned(), child, log, ending: Signal::SIGTERM })
    }

    /// Runs a process on the load's core to its end, at most for `within`.
    pub(super) fn run(&self, name: &str, within: Duration, command: &Command) -> Result<Output, String> {
        let process = self.start(name, LOAD_CPU, command, Pipes::Out)?;
        self.finish(process, within)
    }

    /// Waits for a process that ends by itself. Its output must fit a pipe.
    pub(super) fn finish(&self, mut process: Process, within: Duration) -> Result<Output, String> {
        let status = self.wait(&mut process, within)?;
        let mut stdout = Vec::new();
        if let Some(mut pipe) = process.child.stdout.take() {
            std::io::Read::read_to_end(&mut pipe, &mut stdout)
                .map_err(|error| format!("{}: {error}", process.name))?;
        }
        let stderr = fs::read(&process.log).unwrap_or_default();
        Ok(Output { status, stdout, stderr })
    }

    fn wait(&self, process: &mut Process, within: Duration) -> Result<ExitStatus, String> {
        let give_up = Instant::now() + within;
        loop {
            self.check()?;
            match process.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < give_up => thread::sleep(Duration::from_millis(10)),
                Ok(None) => {
                    return Err(format!("{} did not end within {} s", process.name, within.as_secs()));
                }
                Err(error) => return Err(format!("{}: {error}", process.name)),
            }
        }
    }
}

/// The same command, started by `setpriv`. That ties its life to the harness and then executes the command,
/// so the process id stays.
fn parented(command: &Command, pipes: Pipes) -> Command {
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(key, value),
            None => tied.env_remove(key),
        };
    }
    tied.stdin(if pipes == Pipes::InOut { Stdio::piped() } else { Stdio::null() });
    tied.stdout(if pipes == Pipes::None { Stdio::null() } else { Stdio::piped() });
    tied
}

fn run_on(core: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|error| format!("CPU {core}: {error}; the measurement needs two cores"))
}

/// A process that is ended on drop.
pub(super) struct Process {
    name: String,
    pub(super) child: Child,
    log: PathBuf,
    ending: Signal,
}

impl Process {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process by this signal, if SIGTERM would make it wait for exchanges to end.
    pub(super) fn ended_by(mut self, signal: Signal) -> Self {
        self.ending = signal;
        self
    }

    /// Sends the process its ending signal.
    pub(super) fn ask_to_end(&self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), self.ending);
    }

    /// The end of its standard error, for an error's text.
    pub(super) fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Fails if the process has ended by itself.
    pub(super) fn check(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(format!("{} ended: {status}\n{}", self.name, self.last_words())),
            _ => Ok(()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // The tree is read while the process lives: afterwards its children cannot be found by it.
        let tree = cpu::tree(self.child.id());
        self.ask_to_end();
        let give_up = Instant::now() + Duration::from_secs(5);
        while Instant::now() < give_up {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        for pid in tree {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}
