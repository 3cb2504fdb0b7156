//! Session tickets with the released binary and openssl: any worker, data plane or instance that has the keys
//! resumes a session.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::origin::{Origin, Response};
use tests::sluice::{Setup, Sluice};
use tests::{eventually, process, skip};

const LIMIT: Duration = Duration::from_secs(15);

/// Instances of Sluice with one certificate, and a folder for openssl's files.
struct Stage {
    origin: Origin,
    folder: tempfile::TempDir,
}

impl Stage {
    /// `None`: openssl is not installed.
    fn new() -> Option<Self> {
        if skip::without_tool("openssl") {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("sluice-test-tickets-").tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        std::fs::write(folder.path().join("a.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("a.key"), made.signing_key.serialize_pem()).unwrap();
        Some(Self { origin: Origin::http(|_| Response::ok("hello")), folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts an instance with these keys in its `[listener.tls]`.
    fn start(&self, workers: usize, tls: &str) -> Sluice {
        self.setup(workers, tls).start()
    }

    fn setup(&self, workers: usize, tls: &str) -> Setup {
        let shown = |name| self.path(name).display().to_string();
        let certificate =
            format!("certificate = [{{ chain = \"{}\", key = \"{}\" }}]", shown("a.pem"), shown("a.key"));
        let lines = format!("protocol = \"https\"\n{certificate}\ntls = {{ {tls} }}");
        Setup::to(self.origin.address()).workers(workers).with("listener", &lines)
    }

    /// Sends a request and returns whether its session was resumed. The file `session` keeps the session; if
    /// it exists, openssl offers to resume.
    fn ask(&self, address: SocketAddr, version: &str, session: &Path) -> bool {
        let resume = if session.exists() { format!("-sess_in {}", session.display()) } else { String::new() };
        let script = format!(
            "printf 'GET / HTTP/1.1\\r\\nHost: a.example\\r\\nConnection: close\\r\\n\\r\\n' | openssl \
             s_client -connect {address} \
             -servername a.example -{version} -ign_eof -CAfile {} -verify_return_error {resume} -sess_out {}",
            self.path("a.pem").display(),
            session.display()
        );
        let output = process::run(Command::new("sh").args(["-c", &script]), LIMIT);
        let text = output.text();
        assert!(text.contains("HTTP/1.1 200 ") && session.exists(), "{}", output.all());
        let resumed = text.contains("\nReused, ");
        assert!(resumed || text.contains("\nNew, "), "{text}");
        resumed
    }
}

#[test]
fn a_session_goes_on_with_any_worker_after_a_crash_and_after_a_reload() {
    let Some(stage) = Stage::new() else { return };
    let sluice = stage.start(2, "");
    for version in ["tls1_3", "tls1_2"] {
        let session = stage.path(version);
        assert!(!stage.ask(sluice.address(), version, &session), "the first is new");
        let before = sluice.per_worker("accepted");
        eventually(LIMIT, "both workers had one", || {
            assert!(stage.ask(sluice.address(), version, &session), "{version}");
            sluice.per_worker("accepted").iter().zip(&before).all(|(now, before)| now > before).then_some(())
        });
        let old = sluice.data_plane_pid();
        sluice.kill_data_plane();
        eventually(LIMIT, "a new data plane", || sluice.data_plane().filter(|pid| *pid != old));
        assert!(stage.ask(sluice.address(), version, &session), "{version} after a crash");
        // A changed limit makes a new TLS configuration.
        let text = std::fs::read_to_string(sluice.config_path()).unwrap();
        let limit = if version == "tls1_3" {
            "tls = { max_handshakes = 77 }"
        } else {
            "tls = { max_handshakes = 78 }"
        };
        let changed: Vec<&str> =
            text.lines().map(|line| if line.starts_with("tls = {") { limit } else { line }).collect();
        std::fs::write(sluice.config_path(), changed.join("\n")).unwrap();
        assert_eq!(sluice.command("reload").code(), 0);
        assert!(stage.ask(sluice.address(), version, &session), "{version} after a reload");
    }
}

#[test]
fn instances_that_share_files_of_keys_share_sessions() {
    let Some(stage) = Stage::new() else { return };
    let file = |name: &str, bytes: usize, seed: u8| {
        let bytes: Vec<u8> = (0..bytes).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
        std::fs::write(stage.path(name), bytes).unwrap();
        stage.path(name).display().to_string()
    };
    let (old, new) = (file("old", 48, 1), file("new", 80, 2));
    let keys = |keys: &[&str]| format!("ticket_keys = [\"{}\"]", keys.join("\", \""));
    let (one, other) = (stage.start(1, &keys(&[&old])), stage.start(1, &keys(&[&new, &old])));
    for version in ["tls1_3", "tls1_2"] {
        let session = stage.path(version);
        assert!(!stage.ask(one.address(), version, &session));
        assert!(
            stage.ask(other.address(), version, &session),
            "{version}: the old key is still accepted there"
        );
        // A resumed TLS 1.3 session gave openssl a new ticket, made with the new key. The first instance does
        // not know that key.
        assert_eq!(stage.ask(one.address(), version, &session), version == "tls1_2", "{version}");
        assert!(stage.ask(one.address(), version, &session));
    }
    // An instance with keys of its own knows neither.
    let alone = stage.start(1, "");
    assert!(!stage.ask(alone.address(), "tls1_3", &stage.path("tls1_3")));
}

#[test]
fn without_tickets_each_handshake_is_a_full_one() {
    let Some(stage) = Stage::new() else { return };
    let sluice = stage.start(1, "session_tickets = false");
    let count = |_: &Sluice| {
        let script = format!(
            "openssl s_client -connect {} -servername a.example -tls1_2 -reconnect </dev/null",
            sluice.address()
        );
        let output = process::run(Command::new("sh").args(["-c", &script]), LIMIT);
        (output.text().matches("\nNew, ").count(), output.text().matches("\nReused, ").count())
    };
    assert_eq!(count(&sluice), (6, 0));
}

/// A library that puts CLOCK_MONOTONIC forward by the seconds in a file. Only the supervisor loads it, since
/// the supervisor passes no variable on to its data planes.
const CLOCK: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long *forward;

__attribute__((constructor)) static void load(void) {
    int file = open(getenv("SLUICE_TEST_CLOCK"), O_RDONLY | O_CLOEXEC);
    void *mapped = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (file < 0 || mapped == MAP_FAILED) abort();
    forward = mapped;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = (int)syscall(SYS_clock_gettime, clock, at);
    if (result == 0 && clock == CLOCK_MONOTONIC && forward) at->tv_sec += *forward;
    return result;
}
"#;

#[test]
fn a_key_is_replaced_after_twelve_hours_and_accepted_for_twelve_more() {
    let Some(stage) = Stage::new() else { return };
    if skip::without_tool("cc") {
        return;
    }
    let (source, library, clock) = (stage.path("clock.c"), stage.path("clock.so"), stage.path("clock"));
    std::fs::write(&source, CLOCK).unwrap();
    let mut compile = Command::new("cc");
    let _ = process::run(compile.args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]), LIMIT)
        .success();
    // The file is overwritten in place, since the process has mapped it.
    std::fs::write(&clock, 0_i64.to_ne_bytes()).unwrap();
    let put = |hours: i64| {
        let mut file = std::fs::OpenOptions::new().write(true).open(&clock).unwrap();
        file.write_all(&(hours * 3600).to_ne_bytes()).unwrap();
    };
    let setup =
        stage.setup(1, "").environment("LD_PRELOAD", &library).environment("SLUICE_TEST_CLOCK", &clock);
    let sluice = setup.start();
    let new_keys = || sluice.log().matches("session tickets have a new key").count();
    // A request for the status wakes the supervisor, which then looks at its clock.
    let wait_new_keys = |count| {
        eventually(LIMIT, "a new key", || {
            let _ = sluice.command("status").success();
            (new_keys() == count).then_some(())
        });
    };
    let versions = ["tls1_3", "tls1_2"];
    let ask = |version: &str, session: &str| {
        // openssl gets a copy, since a new ticket replaces the old one in the file.
        let copy = stage.path("copy");
        let _ = std::fs::remove_file(&copy);
        let _ = std::fs::copy(stage.path(session), &copy);
        let resumed = stage.ask(sluice.address(), version, &copy);
        (resumed, copy)
    };
    let keep = |(resumed, copy): (bool, PathBuf), session: &str| {
        std::fs::copy(copy, stage.path(session)).unwrap();
        resumed
    };
    for version in versions {
        assert!(!keep(ask(version, "none"), &format!("{version}-first")));
        assert!(ask(version, &format!("{version}-first")).0);
    }
    put(11);
    let _ = sluice.command("status").success();
    assert_eq!(new_keys(), 0, "not yet");
    put(13);
    wait_new_keys(1);
    for version in versions {
        assert!(ask(version, &format!("{version}-first")).0, "{version}: the key before is accepted");
        assert!(!keep(ask(version, "none"), &format!("{version}-second")));
        assert!(ask(version, &format!("{version}-second")).0, "{version}: the new key makes tickets");
    }
    put(26);
    wait_new_keys(2);
    // A new data plane gets the same keys.
    for crashed in [false, true] {
        if crashed {
            let old = sluice.data_plane_pid();
            sluice.kill_data_plane();
            eventually(LIMIT, "a new data plane", || sluice.data_plane().filter(|pid| *pid != old));
            eventually(LIMIT, "it is ready", || {
                sluice.admin("/readyz").is_ok_and(|answer| answer.status == 200).then_some(())
            });
        }
        for version in versions {
            assert!(
                !ask(version, &format!("{version}-first")).0,
                "{version}: two keys are accepted, not three"
            );
            assert!(ask(version, &format!("{version}-second")).0, "{version}");
        }
    }
    // No timeout of the supervisor took the skipped hours for a failure of the data plane.
    assert_eq!(sluice.status()["supervisor"]["restarts"], 1);
}
