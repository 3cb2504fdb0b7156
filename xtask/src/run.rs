//! `cargo xtask run` starts the released binary as a user would. Without `--config` it runs the demo on
//! loopback.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine;

const DEMO_CONFIG: &str = "config/dev.toml";
const DEMO_RUN_DIR: &str = "/run/sluice-dev";
const DEMO_UPSTREAM: &str = "127.0.0.1:9000";
/// The folder for the demo's certificate, beside its configuration.
const DEMO_CERTIFICATE: &str = "config/dev-tls";
/// How long the proxy may take to answer `sluice status`.
const READY_WITHIN: Duration = Duration::from_secs(20);

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let sluice = machine::build_sluice()?;
    let demo = !arguments.iter().any(|argument| argument == "--config" || argument.starts_with("--config="));
    let mut upstream = None;
    let mut command = Command::new(&sluice);
    command.current_dir(machine::root()).arg("run").args(arguments);
    if demo {
        command.args(["--config", DEMO_CONFIG]);
        let folder = machine::root().join(DEMO_CERTIFICATE);
        machine::step(Command::new(&sluice).arg("demo-certificate").arg(folder))?;
        upstream = Some(start(Command::new(&sluice).args(["demo-upstream", "--address", DEMO_UPSTREAM]))?);
    }
    let mut proxy = match start(&mut command) {
        Ok(proxy) => proxy,
        Err(error) => {
            stop(upstream.as_mut());
            return Err(error);
        }
    };
    forward_signals(&proxy)?;
    if demo {
        introduce(&sluice, &mut proxy);
    }
    let status = proxy.wait().map_err(|error| format!("waiting for sluice: {error}"));
    stop(upstream.as_mut());
    match status? {
        status if status.success() => Ok(()),
        status => Err(format!("sluice ended with {status}")),
    }
}

fn start(command: &mut Command) -> Result<Child, String> {
    command.stdin(Stdio::null()).spawn().map_err(|error| format!("{command:?}: {error}"))
}

fn stop(child: Option<&mut Child>) {
    if let Some(child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Passes SIGINT, SIGTERM and SIGQUIT on, so that ending `cargo xtask run` ends the proxy in order. Ctrl-C on
/// a terminal also reaches the proxy directly; the proxy treats the second signal like the first.
fn forward_signals(proxy: &Child) -> Result<(), String> {
    use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM};
    let pid = Pid::from_raw(proxy.id().cast_signed());
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGQUIT])
        .map_err(|error| format!("signals: {error}"))?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if let Ok(signal) = Signal::try_from(signal) {
                let _ = kill(pid, signal);
            }
        }
    });
    Ok(())
}

/// Waits until the proxy is ready, then prints its status (XDP mode, workers and their cores, listeners) and
/// suggestions.
fn introduce(sluice: &Path, proxy: &mut Child) {
    let give_up = Instant::now() + READY_WITHIN;
    while Instant::now() < give_up && matches!(proxy.try_wait(), Ok(None)) {
        let status =
            Command::new(sluice).args(["status", "--run-dir", DEMO_RUN_DIR]).stderr(Stdio::null()).output();
        if let Ok(output) = status
            && output.status.success()
            && machine::succeeds(&["curl", "-fsS", "-m", "1", "http://127.0.0.1:9901/readyz"])
        {
            println!("\n{}", String::from_utf8_lossy(&output.stdout));
            println!("try:   curl -i http://127.0.0.1:8080/");
            println!("       curl -i --cacert {DEMO_CERTIFICATE}/localhost.pem https://localhost:8443/");
            println!("       curl -s http://127.0.0.1:8080/bytes/1048576 | wc -c");
            println!("       curl -s http://127.0.0.1:9901/metrics | grep sluice_guard");
            println!("stop:  Ctrl-C\n");
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
}
