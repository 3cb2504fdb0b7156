//! The measured proxies and the origin behind them: how each is set up and started. Their configurations are
//! templates in benches/peers.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::http;
use super::stage::{LOAD_CPU, PROXY_CPU, Pipes, Process, Stage};
use crate::machine;

const READY_WITHIN: Duration = Duration::from_secs(20);

/// A kind of proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Sluice,
    Nginx,
    Haproxy,
    Envoy,
    Pingora,
    /// A relay of bytes without HTTP: the limit for all proxies.
    Relay,
}

impl Kind {
    pub(super) const PEERS: [Self; 5] = [Self::Nginx, Self::Haproxy, Self::Envoy, Self::Pingora, Self::Relay];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sluice => "sluice",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Pingora => "pingora",
            Self::Relay => "relay",
        }
    }
}

/// A program that can be started as a proxy.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// The name in tables. Several entries may share a kind.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) binary: PathBuf,
}

/// A proxy's tasks.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) upstream: SocketAddr,
    /// Routes by path prefix, each with an upstream of its own. 0: one route for everything.
    pub(super) routes: usize,
    /// Sluice's XDP program is on `lo`. It sees all traffic there, so no other proxy may have a turn
    /// meanwhile.
    pub(super) guard: bool,
    /// Clients at a time, for proxies that must know it.
    pub(super) connections: usize,
    /// Clients speak TLS.
    pub(super) tls: bool,
}

impl Setup {
    pub(super) const fn plain(upstream: SocketAddr) -> Self {
        Self { upstream, routes: 0, guard: false, connections: 64, tls: false }
    }

    /// The name and path prefix of each route.
    fn routes(&self) -> Vec<(String, String)> {
        if self.routes == 0 {
            return vec![("origin".into(), "/".into())];
        }
        (1..=self.routes)
            .map(|route| (format!("service{route:02}"), format!("/service-{route:02}/")))
            .collect()
    }
}

/// A running proxy. It ends on drop.
pub(super) struct Proxy {
    pub(super) kind: Kind,
    pub(super) address: SocketAddr,
    pub(super) admin: SocketAddr,
    /// Clients speak TLS.
    pub(super) tls: bool,
    pub(super) process: Process,
}

impl Proxy {
    /// Starts the proxy on the proxies' core and waits until a request reaches the origin through it.
    pub(super) fn start(stage: &Stage, program: &Program, setup: &Setup) -> Result<Self, String> {
        let (address, admin) = (stage.address()?, stage.address()?);
        let name = format!("{}-{}", program.name.replace(' ', "-"), address.port());
        let command = command(stage, program, setup, (&name, address, admin))?;
        let pipes = if program.kind == Kind::Relay { Pipes::Out } else { Pipes::None };
        let mut process = stage.start(&name, PROXY_CPU, &command, pipes)?;
        if program.kind == Kind::Sluice {
            process = process.ended_by(Signal::SIGINT);
        }
        let path = setup.routes()[0].1.clone();
        wait_for(stage, &mut process, (address, setup.tls), &path)
            .map_err(|error| format!("{}: {error}", program.name))?;
        Ok(Self { kind: program.kind, address, admin, tls: setup.tls, process })
    }

    /// Ends the proxy and returns its standard output and standard error.
    pub(super) fn stop(self, stage: &Stage) -> Result<String, String> {
        self.process.ask_to_end();
        let output = stage.finish(self.process, Duration::from_secs(10))?;
        let both = [output.stdout, b"\n".to_vec(), output.stderr].concat();
        Ok(String::from_utf8_lossy(&both).into_owned())
    }
}

fn command(
    stage: &Stage,
    program: &Program,
    setup: &Setup,
    (name, address, admin): (&str, SocketAddr, SocketAddr),
) -> Result<Command, String> {
    let folder = stage.subfolder(name)?;
    let mut command = Command::new(&program.binary);
    // Envoy's template takes only ports.
    let shown = |address: SocketAddr| {
        if program.kind == Kind::Envoy { address.port().to_string() } else { address.to_string() }
    };
    let values = [
        ("FOLDER", folder.display().to_string()),
        ("NAME", name.to_owned()),
        ("LISTEN", shown(address)),
        ("UPSTREAM", shown(setup.upstream)),
        ("ADMIN", shown(admin)),
        ("CPU", PROXY_CPU.to_string()),
        ("CPU_MASK", cpu_mask(PROXY_CPU)),
    ];
    if setup.tls {
        make_certificate(&folder)?;
    }
    let configure = |template: &str| configure(&folder, template, &values, setup);
    match program.kind {
        Kind::Sluice => command.args(["run", "--config"]).arg(configure("sluice.toml")?),
        Kind::Nginx => {
            let file = configure("nginx.conf")?;
            command.arg("-p").arg(&folder).arg("-c").arg(file).arg("-e").arg(folder.join("error.log"))
        }
        Kind::Haproxy => {
            let lines: String =
                setup.routes().iter().map(|(route, prefix)| format!("{prefix} {route}\n")).collect();
            write(&folder.join("routes.map"), &lines)?;
            command.arg("-db").arg("-f").arg(configure("haproxy.cfg")?)
        }
        Kind::Envoy => command.arg("-c").arg(configure("envoy.yaml")?).args([
            "--concurrency",
            "1",
            "--log-level",
            "error",
            "--disable-hot-restart",
        ]),
        Kind::Pingora => command.args(listen_and_upstream(address, setup)).args(["--threads", "1"]),
        Kind::Relay => command
            .args(listen_and_upstream(address, setup))
            .args(["--cpu", &PROXY_CPU.to_string()])
            .args(["--connections", &(setup.connections + 64).to_string()]),
    };
    Ok(command)
}

fn listen_and_upstream(address: SocketAddr, setup: &Setup) -> [String; 4] {
    ["--listen".into(), address.to_string(), "--upstream".into(), setup.upstream.to_string()]
}

/// A CPU set as nginx writes it, in binary digits.
fn cpu_mask(cpu: usize) -> String {
    format!("1{}", "0".repeat(cpu))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Fills in a template of benches/peers and writes the result to the folder.
fn configure(
    folder: &Path,
    template: &str,
    values: &[(&str, String)],
    setup: &Setup,
) -> Result<PathBuf, String> {
    let source = machine::root().join("benches/peers").join(template);
    let text = fs::read_to_string(&source).map_err(|error| format!("{}: {error}", source.display()))?;
    let text = fill(&text, values, &setup.routes(), (setup.guard, setup.tls))
        .map_err(|error| format!("{}: {error}", source.display()))?;
    let file = folder.join(template);
    write(&file, &text)?;
    Ok(file)
}

/// Makes a certificate on P-256, with its key in the same file, as haproxy needs it.
fn make_certificate(folder: &Path) -> Result<(), String> {
    let file = folder.join("tls.pem");
    let output = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
        ])
        .args([
            "-subj",
            "/CN=bench.test",
            "-addext",
            "subjectAltName=DNS:bench.test",
            "-keyout",
            "-",
            "-out",
            "-",
        ])
        .output()
        .map_err(|error| format!("openssl: {error}"))?;
    if !output.status.success() {
        return Err(format!("openssl: {}", String::from_utf8_lossy(&output.stderr)));
    }
    fs::write(&file, output.stdout).map_err(|error| format!("{}: {error}", file.display()))
}

/// Replaces each @NAME@ by its value and repeats the lines between EACH ROUTE and END ROUTE. Drops GUARD to
/// END GUARD unless the guard is on, and either TLS to END TLS or PLAIN to END PLAIN.
fn fill(
    template: &str,
    values: &[(&str, String)],
    routes: &[(String, String)],
    (guard, tls): (bool, bool),
) -> Result<String, String> {
    let mut text = String::new();
    let mut block: Option<String> = None;
    let mut dropping = false;
    for line in template.lines() {
        match line.trim() {
            "# EACH ROUTE" => block = Some(String::new()),
            "# END ROUTE" => {
                let block = block.take().ok_or("END ROUTE without EACH ROUTE")?;
                for (route, prefix) in routes {
                    text.push_str(&block.replace("@ROUTE@", route).replace("@PREFIX@", prefix));
                }
            }
            "# GUARD" => dropping = !guard,
            "# TLS" => dropping = !tls,
            "# PLAIN" => dropping = tls,
            "# END GUARD" | "# END TLS" | "# END PLAIN" => dropping = false,
            comment if comment.starts_with('#') => {}
            _ if dropping => {}
            _ => {
                let into = block.as_mut().unwrap_or(&mut text);
                into.push_str(line);
                into.push('\n');
            }
        }
    }
    for (name, value) in values {
        text = text.replace(&format!("@{name}@"), value);
    }
    match text.lines().find(|line| has_placeholder(line)) {
        Some(line) => Err(format!("nothing to put into: {line}")),
        None => Ok(text),
    }
}

/// Whether a line holds a placeholder. A single @ may belong to the configuration itself.
fn has_placeholder(line: &str) -> bool {
    let between: Vec<&str> = line.split('@').collect();
    between.len() > 2
        && between[1..between.len() - 1].iter().any(|name| {
            !name.is_empty() && name.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_')
        })
}

fn wait_for(
    stage: &Stage,
    process: &mut Process,
    (address, tls): (SocketAddr, bool),
    path: &str,
) -> Result<(), String> {
    let give_up = Instant::now() + READY_WITHIN;
    loop {
        process.check()?;
        match if tls { get_over_tls(address, path) } else { http::get(address, path).map(drop) } {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > give_up => {
                return Err(format!(
                    "no answer within {} s: {error}\n{}",
                    READY_WITHIN.as_secs(),
                    process.last_words()
                ));
            }
            Err(_) => stage.sleep(Duration::from_millis(50))?,
        }
    }
}

fn get_over_tls(address: SocketAddr, path: &str) -> Result<(), String> {
    let mut command = Command::new("curl");
    command.args(["-sSfk", "--max-time", "5", "-o", "/dev/null"]).arg(format!("https://{address}{path}"));
    let output = command.output().map_err(|error| format!("curl: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// The server behind all proxies.
pub(super) struct Origin {
    pub(super) address: SocketAddr,
    client: http::Client,
    /// The sink for request bodies.
    pub(super) sink: SocketAddr,
    /// The folder that holds the bodies.
    pub(super) files: PathBuf,
    process: Process,
}

impl Origin {
    /// Starts the origin on the load's core, with a file for each body.
    pub(super) fn start(stage: &Stage, bodies: &[(&str, u64)]) -> Result<Self, String> {
        let folder = stage.subfolder("origin")?;
        let files = stage.subfolder("bodies")?;
        for (name, bytes) in bodies {
            // The file is written, not sparse, so that all of it is in the page cache.
            let size = usize::try_from(*bytes).map_err(|error| error.to_string())?;
            fs::write(files.join(name), vec![b'x'; size])
                .map_err(|error| format!("{}: {error}", files.display()))?;
        }
        let address = stage.address()?;
        let values = [
            ("FOLDER", folder.display().to_string()),
            ("LISTEN", address.to_string()),
            ("CPU_MASK", cpu_mask(LOAD_CPU)),
            ("BODIES", files.display().to_string()),
        ];
        let conf = configure(&folder, "origin.conf", &values, &Setup::plain(address))?;
        let mut command = Command::new(nginx());
        command.arg("-p").arg(&folder).arg("-c").arg(conf).arg("-e").arg(folder.join("error.log"));
        let mut process = stage.start("origin", LOAD_CPU, &command, Pipes::None)?;
        wait_for(stage, &mut process, (address, false), "/").map_err(|error| format!("origin: {error}"))?;
        Ok(Self {
            address,
            client: http::Client::connect(address)?,
            sink: http::start_sink()?,
            files,
            process,
        })
    }

    /// Fails if the origin has ended.
    pub(super) fn check(&mut self) -> Result<(), String> {
        self.process.check()
    }

    /// Requests begun so far, including this one.
    pub(super) fn requests(&mut self) -> Result<u64, String> {
        let text = self.client.get("/status")?;
        http::requests_in_stub_status(&text).ok_or_else(|| format!("origin's status: {text}"))
    }
}

/// The path of Debian's nginx, which may not be in PATH.
pub(super) fn nginx() -> PathBuf {
    found("nginx")
}

/// The path of Debian's haproxy, which may not be in PATH.
pub(super) fn haproxy() -> PathBuf {
    found("haproxy")
}

fn found(name: &str) -> PathBuf {
    let in_sbin = Path::new("/usr/sbin").join(name);
    if in_sbin.exists() { in_sbin } else { PathBuf::from(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled_in() {
        let template = "# prose @X@\nport @PORT@;\n# GUARD\nguard\n# END GUARD\n# EACH ROUTE\n\
            route @ROUTE@ @PREFIX@\n# END ROUTE\n";
        let values = [("PORT", "80".to_owned())];
        let routes = [("a".to_owned(), "/a/".to_owned()), ("b".to_owned(), "/b/".to_owned())];
        assert_eq!(
            fill(template, &values, &routes, (false, false)).unwrap(),
            "port 80;\nroute a /a/\nroute b /b/\n"
        );
        assert!(fill(template, &values, &routes, (true, false)).unwrap().contains("guard\n"));
        assert!(fill("x @MISSING@\n", &values, &routes, (false, false)).unwrap_err().contains("@MISSING@"));
        assert!(fill("# END ROUTE\n", &values, &routes, (false, false)).is_err());
    }

    #[test]
    fn what_is_no_placeholder_stays() {
        assert!(has_placeholder("port: @PORT@") && has_placeholder("\"@type\": @A_B@"));
        assert!(!has_placeholder("\"@type\": a@b") && !has_placeholder("a@@b"));
    }

    #[test]
    fn every_committed_template_fills() {
        let some = |name: &'static str| (name, "1".to_owned());
        let values = ["FOLDER", "NAME", "LISTEN", "UPSTREAM", "ADMIN", "CPU", "CPU_MASK", "BODIES"].map(some);
        for template in ["nginx.conf", "haproxy.cfg", "sluice.toml", "origin.conf"] {
            let text = fs::read_to_string(machine::root().join("benches/peers").join(template)).unwrap();
            for routes in [0, 32] {
                let setup = Setup { routes, ..Setup::plain(([127, 0, 0, 1], 1).into()) };
                let filled = fill(&text, &values, &setup.routes(), (true, routes == 0)).unwrap();
                let speaks_tls = filled.contains("tls.pem");
                assert_eq!(speaks_tls, routes == 0 && template != "origin.conf", "{template}");
                assert_eq!(
                    filled.matches("service32").count() > 0,
                    routes == 32 && template != "origin.conf",
                    "{template}"
                );
            }
        }
    }
}
