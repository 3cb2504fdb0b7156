//! The places of the secrets of handshakes and keys. The key log exists only if it was allowed, and no other
//! process can read the memory of Sluice's processes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::unistd::User;
use tests::origin::Origin;
use tests::ports::Port;
use tests::sluice::{Setup, Sluice};
use tests::tls::{Authority, Kind, https};
use tests::{eventually, process, skip};

const LIMIT: Duration = Duration::from_secs(15);
const NAME: &str = "edge.example";
const LAST: &str = "GET / HTTP/1.1\r\nHost: edge.example\r\nConnection: close\r\n\r\n";
const SWITCH: &str = "--allow-key-log";
const VARIABLE: &str = "SSLKEYLOGFILE";
const WARNING: &str = "THE SECRETS OF ALL TLS CONNECTIONS ARE WRITTEN TO";

/// A Sluice with TLS before this origin. It is given a path for its key log; the file does not exist yet.
fn setup(origin: &Origin) -> Setup {
    let authority = Authority::default();
    let leaf = authority.leaf(Kind::P256, &[NAME]);
    let setup = https(Setup::to(origin.address()), &authority, &[leaf], "");
    let keys = setup.run_dir().join("keys");
    setup.environment(VARIABLE, keys)
}

/// A key log's lines without comments.
fn lines(path: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// Makes one connection of this TLS version and returns the secrets that openssl logged.
fn connect(sluice: &Sluice, version: &str, name: &str) -> BTreeSet<String> {
    let path = sluice.file(name);
    let shown =
        sluice.openssl(&[version, "-servername", NAME, "-keylogfile", path.to_str().unwrap()], &[(LAST, "")]);
    assert!(shown.contains("HTTP/1.1 200"), "{shown}");
    lines(&path)
}

fn labels(lines: &BTreeSet<String>) -> Vec<&str> {
    lines.iter().map(|line| line.split_once(' ').unwrap().0).collect()
}

#[test]
fn without_the_switch_the_variable_is_ignored_and_that_is_said() {
    if skip::without_tool("openssl") {
        return;
    }
    let origin = Origin::echo();
    let sluice = setup(&origin).start();
    assert_eq!(labels(&connect(&sluice, "-tls1_2", "theirs")), ["CLIENT_RANDOM"]);
    assert!(sluice.log().contains("SSLKEYLOGFILE is set and ignored"), "{}", sluice.log());
    assert!(!sluice.log().contains(WARNING) && !sluice.command("status").success().text().contains(WARNING));
    let threads: Vec<String> =
        tests::threads::threads(sluice.data_plane_pid()).into_iter().map(|(_, name)| name).collect();
    assert!(!threads.iter().any(|name| name.contains("key-log")), "{threads:?}");
    drop(origin);
    assert!(!sluice.file("keys").exists());
}

#[test]
fn with_the_switch_the_key_log_is_what_clients_and_servers_write() {
    if skip::without_tool("openssl") {
        return;
    }
    let origin = Origin::echo();
    let server = Port::lease();
    let upstream = format!(
        "[[route]]\npath_prefix = \"/server\"\nupstream = \"server\"\n[[upstream]]\nname = \"server\"\n\
         endpoints = [\"{}\"]\n\
         tls = {{ verify = false }}\n",
        server.loopback()
    );
    let setup = setup(&origin).argument(SWITCH).append(&upstream);
    let plan = process::run(
        Command::new(tests::sluice::binary())
            .args(["plan", "--config"])
            .arg(setup.write())
            .env(VARIABLE, "/x"),
        LIMIT,
    );
    assert!(plan.success().text().contains("SSLKEYLOGFILE is set"));
    let sluice = setup.start();
    let keys = sluice.file("keys");
    assert_eq!(std::fs::metadata(&keys).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(sluice.log().contains(WARNING) && sluice.command("status").success().text().contains(WARNING));
    let expect = |wanted: &BTreeSet<String>, count: usize| {
        eventually(LIMIT, "the lines are written", || {
            let found = lines(&keys);
            (found.len() >= count).then(|| {
                assert!(wanted.is_subset(&found), "{wanted:?}\n{found:?}");
                assert_eq!(found.len(), count, "and nothing else: {found:?}");
            })
        });
    };
    let secrets = [
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "EXPORTER_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_TRAFFIC_SECRET_0",
    ];
    let theirs = connect(&sluice, "-tls1_3", "theirs-1.3");
    assert_eq!(labels(&theirs), secrets);
    expect(&theirs, 5);
    let theirs = connect(&sluice, "-tls1_2", "theirs-1.2");
    assert_eq!(labels(&theirs), ["CLIENT_RANDOM"]);
    expect(&theirs, 6);
    // A data plane that starts later appends to the same file.
    let old = sluice.data_plane_pid();
    sluice.kill_data_plane();
    eventually(LIMIT, "a new data plane", || sluice.data_plane().filter(|pid| *pid != old));
    eventually(LIMIT, "it is ready", || {
        sluice.admin("/readyz").is_ok_and(|answer| answer.status == 200).then_some(())
    });
    expect(&connect(&sluice, "-tls1_2", "theirs-after"), 7);
    // The secrets of the upstream handshake, as the endpoint logs them, follow those of the client's
    // handshake.
    let mut count = 7;
    for (version, own) in [("-tls1_3", 5), ("-tls1_2", 1)] {
        let path = sluice.file(&format!("server{version}"));
        let mut command = Command::new("openssl");
        command
            .args([
                "s_server",
                "-quiet",
                "-www",
                version,
                "-accept",
                &server.loopback().to_string(),
                "-keylogfile",
            ])
            .arg(&path);
        command.arg("-cert").arg(sluice.file("0.pem")).arg("-key").arg(sluice.file("0.key"));
        let child =
            Killed(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        eventually(LIMIT, "s_server answers", || {
            let shown =
                sluice.curl(NAME, "/server", &["--tls-max", "1.2", "-o", "/dev/null", "-w", "%{http_code}"]);
            count += 1;
            (shown.text() == "200").then_some(())
        });
        drop(child);
        let theirs = lines(&path);
        assert_eq!(theirs.len(), own, "{theirs:?}");
        count += own;
        expect(&theirs, count);
    }
}

/// A child process that is killed when the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that runs a program with the rights of the process under test, except those for tracing: as root
/// without the tracing capabilities, or as `nobody`.
fn peer(as_nobody: bool) -> Command {
    if !skip::is_root() {
        return Command::new("env");
    }
    let mut command = Command::new("setpriv");
    if as_nobody {
        let nobody = User::from_name("nobody").unwrap().unwrap();
        command.args([
            format!("--reuid={}", nobody.uid),
            format!("--regid={}", nobody.gid),
            "--clear-groups".to_owned(),
        ]);
        command.arg("--bounding-set=-all");
    } else {
        // The last two capabilities allow reading memory, though not writing it.
        command.arg("--bounding-set=-sys_ptrace,-perfmon,-sys_admin");
    }
    command
}

/// Whether such a peer sees a process's memory map. The kernel applies the same check as for reading the
/// memory (ptrace(2), "Ptrace access mode checking"), and it refuses if the process is not dumpable. The test
/// changes nothing in the process.
fn is_open(pid: u32, as_nobody: bool) -> bool {
    let output = process::run(peer(as_nobody).arg("cat").arg(format!("/proc/{pid}/maps")), LIMIT);
    let is_open = output.status.success() && output.text().contains(" r-xp ");
    assert!(is_open || output.errors().contains("ermi"), "{}", output.all());
    is_open
}

#[test]
fn supervisor_and_data_plane_cannot_be_dumped() {
    if skip::without_tool("setpriv") {
        return;
    }
    let origin = Origin::echo();
    let sluice = setup(&origin).start();
    for (process, pid, as_nobody) in
        [("supervisor", sluice.pid(), false), ("data plane", sluice.data_plane_pid(), true)]
    {
        // For comparison: a similar process that is dumpable can be read.
        let other = Killed(peer(as_nobody).args(["sleep", "60"]).stdin(Stdio::null()).spawn().unwrap());
        eventually(LIMIT, "another process of that user can be looked into", || {
            is_open(other.0.id(), as_nobody).then_some(())
        });
        assert!(!is_open(pid, as_nobody), "the {process} can be dumped");
    }
}
