//! A running Sluice. The test builds its configuration from parts, starts, queries and stops it. If the test
//! fails, its log is shown.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use serde_json::Value;

use crate::client::{Client, Response};
use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::ports::Port;
use crate::process::{self, Output};
use crate::{descriptors, eventually, skip, threads};

/// How long a start or a stop may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The binary under test: `SLUICE_BIN`, else the workspace's release build, else its debug build.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SLUICE_BIN") {
        return path.into();
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), |folder| workspace.join(folder));
    let built = ["release", "debug"].map(|profile| target.join(profile).join("sluice"));
    let found = built.iter().find(|path| path.is_file());
    found.cloned().unwrap_or_else(|| {
        panic!("no sluice binary in {}: run `cargo xtask test`, which builds it first", target.display())
    })
}

/// Runs a command of the binary to its end.
#[must_use]
pub fn command(arguments: &[&str]) -> Output {
    process::run(Command::new(binary()).args(arguments), Duration::from_secs(60))
}

/// A configuration in parts: one listener, one route and one upstream. A test adds the part that it tests.
#[derive(Debug)]
pub struct Setup {
    folder: tempfile::TempDir,
    parts: BTreeMap<&'static str, String>,
    tail: String,
    route: bool,
    endpoints: Vec<SocketAddr>,
    address: Option<IpAddr>,
    namespace: Option<Arc<Netns>>,
    port: Port,
    admin: Port,
    arguments: Vec<&'static str>,
    environment: Vec<(&'static str, OsString)>,
}

impl Setup {
    /// Sends every request to `endpoint`.
    #[must_use]
    pub fn to(endpoint: SocketAddr) -> Self {
        Self::to_all(&[endpoint])
    }

    /// Sends requests to these endpoints in turn, with one worker.
    #[must_use]
    pub fn to_all(endpoints: &[SocketAddr]) -> Self {
        Self {
            folder: tempfile::Builder::new().prefix("sluice-test-").tempdir().expect("a folder"),
            parts: BTreeMap::from([("workers", "count = 1\n".to_owned())]),
            tail: String::new(),
            route: true,
            endpoints: endpoints.to_vec(),
            address: None,
            namespace: None,
            port: Port::lease(),
            admin: Port::lease(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Adds lines to a section, such as `listener.timeouts`.
    #[must_use]
    pub fn with(mut self, section: &'static str, lines: &str) -> Self {
        let part = self.parts.entry(section).or_default();
        part.push_str(lines);
        part.push('\n');
        self
    }

    /// Sets the number of workers.
    #[must_use]
    pub fn workers(mut self, count: usize) -> Self {
        self.parts.insert("workers", format!("count = {count}\n"));
        self
    }

    /// Adds tables at the end.
    #[must_use]
    pub fn append(mut self, tables: &str) -> Self {
        self.tail.push_str(tables);
        self
    }

    /// Leaves out the default route, so that only the test's own routes remain.
    #[must_use]
    pub fn without_route(mut self) -> Self {
        self.route = false;
        self
    }

    /// Runs Sluice inside a network namespace, where it listens on this address.
    #[must_use]
    pub fn inside(mut self, namespace: &Arc<Netns>, address: IpAddr) -> Self {
        self.namespace = Some(Arc::clone(namespace));
        self.address = Some(address);
        self
    }

    /// Adds an argument of `sluice run`.
    #[must_use]
    pub fn argument(mut self, argument: &'static str) -> Self {
        self.arguments.push(argument);
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn environment(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// The address where it will listen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)), self.port.number())
    }

    /// Its run_dir.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        self.folder.path()
    }

    /// The TOML text.
    #[must_use]
    pub fn text(&self) -> String {
        let part = |name| self.parts.get(name).map_or("", String::as_str);
        let user =
            User::from_uid(geteuid()).ok().flatten().map_or_else(|| "nobody".to_owned(), |user| user.name);
        let user = if skip::is_root() { "nobody" } else { &user };
        let endpoints: Vec<String> =
            self.endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
        let mut text = format!(
            "[process]\nrun_dir = \"{}\"\nuser = \"{user}\"\n{}",
            self.run_dir().display(),
            part("process")
        );
        for name in ["workers", "ring", "steering", "guard"] {
            text.push_str(&format!("\n[{name}]\n{}", part(name)));
        }
        text.push_str(&format!(
            "\n[[listener]]\nname = \"main\"\naddress = \"{}\"\n{}",
            self.address(),
            part("listener")
        ));
        for name in ["listener.timeouts", "listener.limits"] {
            text.push_str(&format!("[{name}]\n{}", part(name)));
        }
        if self.route {
            text.push_str(&format!(
                "\n[[route]]\npath_prefix = \"/\"\nupstream = \"app\"\n{}",
                part("route")
            ));
        }
        text.push_str(&format!(
            "\n[[upstream]]\nname = \"app\"\nendpoints = [{}]\n{}",
            endpoints.join(", "),
            part("upstream")
        ));
        for name in ["upstream.pool", "upstream.retry"] {
            text.push_str(&format!("[{name}]\n{}", part(name)));
        }
        text.push_str(&format!(
            "\n[admin]\naddress = \"{}\"\n\n[log]\nlevel = \"info\"\n{}",
            self.admin.loopback(),
            part("log")
        ));
        text.push_str(&self.tail);
        text
    }

    /// Writes the configuration and returns its path.
    #[must_use]
    pub fn write(&self) -> PathBuf {
        let path = self.folder.path().join("proxy.toml");
        std::fs::write(&path, self.text()).expect("the configuration is written");
        path
    }

    /// Starts Sluice and waits until it is ready.
    #[must_use]
    pub fn start(self) -> Sluice {
        let mut sluice = self.spawn();
        sluice.wait_ready();
        sluice
    }

    /// Starts Sluice and does not wait.
    #[must_use]
    pub fn spawn(self) -> Sluice {
        let _ = self.write();
        let (child, log) = self.launch();
        Sluice { child, setup: self, log, ended: None }
    }

    /// Starts the binary with the configuration file as it is. Also returns the path of its output.
    fn launch(&self) -> (Child, PathBuf) {
        let log = self.folder.path().join("log");
        let output = File::create(&log).expect("the log is made");
        let mut command = Command::new(binary());
        command
            .arg("run")
            .arg("--config")
            .arg(self.folder.path().join("proxy.toml"))
            .env("RUST_BACKTRACE", "1");
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("dup")).stderr(output);
        let mut spawn = || command.spawn().expect("sluice starts");
        let child = match &self.namespace {
            Some(namespace) => namespace.run(spawn),
            None => spawn(),
        };
        (child, log)
    }

    /// Takes over a Sluice that the test started itself, with its output in the file `log` of run_dir.
    #[must_use]
    pub fn adopt(self, child: Child) -> Sluice {
        let log = self.folder.path().join("log");
        Sluice { child, setup: self, log, ended: None }
    }
}

/// The folder of an instance's pins in bpffs.
#[must_use]
pub fn pins_of(run_dir: &Path) -> PathBuf {
    Path::new("/sys/fs/bpf/sluice").join(run_dir.file_name().expect("a name"))
}

/// A running Sluice; stopped on drop.
#[derive(Debug)]
pub struct Sluice {
    child: Child,
    setup: Setup,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Sluice {
    /// The address to which clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.setup.address()
    }

    /// Connects a new client.
    #[must_use]
    pub fn client(&self) -> Client {
        self.inside(|| Client::connect(self.address()))
    }

    /// Sends one GET on a new connection.
    #[must_use]
    pub fn get(&self, target: &str) -> Response {
        self.client().get(target)
    }

    /// `http://address` followed by the path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// Runs `work` in the network namespace of Sluice.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.setup.namespace {
            Some(namespace) => namespace.run(work),
            None => work(),
        }
    }

    /// The supervisor's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its `run_dir`.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        self.setup.run_dir()
    }

    /// The TOML text of its setup.
    #[must_use]
    pub fn configuration(&self) -> String {
        self.setup.text()
    }

    /// The configuration's path.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.run_dir().join("proxy.toml")
    }

    /// Starts Sluice again after it has ended, and waits until it is ready. Its log begins anew.
    pub fn start_again(&mut self) {
        assert!(self.ended.is_some(), "it runs");
        (self.child, self.log) = self.setup.launch();
        self.ended = None;
        self.wait_ready();
    }

    /// [`Self::start_again`] with another configuration.
    pub fn start_again_with(&mut self, text: &str) {
        std::fs::write(self.config_path(), text).expect("the configuration is written");
        self.start_again();
    }

    /// Removes pins in bpffs that a kill left behind. Any other end of Sluice must leave none.
    fn expect_no_pins(&self, killed: bool) {
        let folder = pins_of(self.run_dir());
        if folder.exists() {
            let _ = std::fs::remove_dir_all(&folder);
            // The parent folder may hold pins of other tests; then it stays.
            let _ = folder.parent().map(std::fs::remove_dir);
            assert!(killed || std::thread::panicking(), "pins were left in {}", folder.display());
        }
    }

    /// Waits until `/readyz` reports that Sluice is ready.
    pub fn wait_ready(&mut self) {
        eventually(PATIENCE, "sluice is ready", || {
            if let Some(status) = self.child.try_wait().expect("wait") {
                self.ended = Some(status);
                panic!("sluice ended at its start: {status}");
            }
            let ready = self.admin("/readyz");
            ready.is_ok_and(|response| response.status == 200).then_some(())
        });
    }

    /// Sends a GET to an admin endpoint.
    pub fn admin(&self, path: &str) -> std::io::Result<Response> {
        let address = self.setup.admin.loopback();
        self.inside(|| {
            let mut client = Client::try_connect(address)?;
            client
                .try_send(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))?;
            client.try_response("GET")
        })
    }

    /// `/metrics`, parsed.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.admin("/metrics").expect("/metrics").text())
    }

    /// Anonymous memory of the data plane, in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let field = threads::status_field(self.data_plane_pid(), "RssAnon").expect("RssAnon");
        field.trim_end_matches(" kB").parse::<u64>().expect("KiB") << 10
    }

    /// `/status`.
    #[must_use]
    pub fn status(&self) -> Value {
        self.admin("/status").expect("/status").json()
    }

    /// The data plane's process id, from `/proc`; `None` while there is none.
    #[must_use]
    pub fn data_plane(&self) -> Option<u32> {
        let pid = self.pid();
        threads::threads(pid).into_iter().find_map(|(tid, _)| {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).ok()?;
            children.split_whitespace().find_map(|child| child.parse().ok())
        })
    }

    /// The data plane's process id; panics if there is none.
    #[must_use]
    pub fn data_plane_pid(&self) -> u32 {
        self.data_plane().expect("a data plane runs")
    }

    /// How many packets got each verdict, from `/status`.
    #[must_use]
    pub fn verdicts(&self) -> BTreeMap<String, u64> {
        numbers(&self.status()["supervisor"]["guard"]["verdicts"])
    }

    /// How many flows steering gave to each worker, from `/status`.
    #[must_use]
    pub fn selected(&self) -> BTreeMap<String, u64> {
        numbers(&self.status()["supervisor"]["steering"]["selected"])
    }

    /// A number that `/status` gives for each worker, such as `accepted`.
    #[must_use]
    pub fn per_worker(&self, what: &str) -> Vec<u64> {
        let status = self.status();
        let workers =
            status["data_plane"]["workers"].as_array().unwrap_or_else(|| panic!("no workers in {status}"));
        workers
            .iter()
            .map(|worker| worker[what].as_u64().unwrap_or_else(|| panic!("no {what} in {worker}")))
            .collect()
    }

    /// The resources that are held for clients right now.
    #[must_use]
    pub fn holdings(&self) -> Holdings {
        let metrics = self.metrics();
        Holdings {
            descriptors: descriptors(self.data_plane_pid()),
            connections: metrics.sum("sluice_connections_open"),
            requests: metrics.sum("sluice_requests_active"),
            buffers: metrics.sum("sluice_ring_buffers_loaned"),
            budget: metrics.sum("sluice_buffer_budget_used_bytes"),
            pooled: metrics.sum("sluice_upstream_connections_open"),
        }
    }

    /// Waits until nothing beyond `baseline` is held. Pooled upstream connections may stay, each with its
    /// descriptor.
    pub fn expect_back_to(&self, baseline: Holdings) {
        let start = std::time::Instant::now();
        loop {
            let now = self.holdings();
            if now.is_within(baseline) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "leaked: {now:?}, at first {baseline:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Its output so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal to the supervisor.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("kill");
    }

    /// Kills the data plane, and waits until it is gone.
    pub fn kill_data_plane(&self) {
        let pid = self.data_plane_pid();
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("kill");
        eventually(PATIENCE, "the killed data plane is gone", || {
            (self.data_plane() != Some(pid)).then_some(())
        });
    }

    /// Waits until the supervisor has ended.
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        let status = process::wait(&mut self.child, limit)
            .unwrap_or_else(|| panic!("sluice still runs after {limit:?}"));
        self.ended = Some(status);
        status
    }

    /// Whether the supervisor runs.
    #[must_use]
    pub fn runs(&mut self) -> bool {
        self.ended.is_none() && self.child.try_wait().expect("wait").is_none()
    }

    /// Runs a command of the binary against this instance.
    #[must_use]
    pub fn command(&self, name: &str) -> Output {
        self.command_with(name, &[])
    }

    /// Runs a command with arguments against this instance.
    #[must_use]
    pub fn command_with(&self, name: &str, arguments: &[&str]) -> Output {
        let run_dir = self.run_dir().to_str().expect("a path in UTF-8");
        let arguments = [&[name, "--run-dir", run_dir], arguments].concat();
        self.inside(|| command(&arguments))
    }
}

impl Drop for Sluice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the end of sluice's log");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
            eprintln!("---");
        }
        if let Some(status) = self.ended {
            return self.expect_no_pins(status.signal().is_some());
        }
        let data_plane = self.data_plane();
        let _ = kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGINT);
        let ended = process::wait(&mut self.child, Duration::from_secs(5));
        if ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            if let Some(pid) = data_plane {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
        }
        self.expect_no_pins(ended.is_none_or(|status| status.signal().is_some()));
    }
}

/// The resources that a data plane holds for its clients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Holdings {
    /// Open descriptors of the process.
    pub descriptors: usize,
    /// Downstream connections.
    pub connections: f64,
    /// Exchanges in progress.
    pub requests: f64,
    /// Receive buffers on loan.
    pub buffers: f64,
    /// Bytes used of the buffer budget.
    pub budget: f64,
    /// Upstream connections, idle ones included.
    pub pooled: f64,
}

impl Holdings {
    fn is_within(self, baseline: Self) -> bool {
        // The test's own admin connection may still be closing, so two more descriptors are allowed.
        let pooled = (self.pooled - baseline.pooled).max(0.0);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand descriptors")]
        let grown = self.descriptors as f64 - baseline.descriptors as f64;
        grown <= pooled + 2.0
            && self.connections <= baseline.connections
            && self.requests <= baseline.requests
            && self.buffers <= baseline.buffers
            && self.budget <= baseline.budget
    }
}

fn numbers(value: &Value) -> BTreeMap<String, u64> {
    let object = value.as_object().unwrap_or_else(|| panic!("not an object: {value}"));
    object.iter().map(|(name, value)| (name.clone(), value.as_u64().expect("a number"))).collect()
}
