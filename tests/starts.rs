//! Starts in surroundings that lack something: an address, an interface, a capability. Sluice starts where it
//! may, and else says what is missing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tests::netns::Netns;
use tests::origin::{Origin, Response};
use tests::process::{self, Output};
use tests::sluice::{Setup, binary};
use tests::{eventually, skip};

const LIMIT: Duration = Duration::from_secs(30);
const LATE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);
/// The id of "nobody" on Debian.
const NOBODY: u32 = 65_534;

/// A command of Sluice behind other programs (setpriv, unshare).
fn behind(words: &[&str], command: &str, config: &Path) -> Command {
    let mut started = Command::new(words[0]);
    started.args(&words[1..]).arg(binary()).args([command, "--config"]).arg(config);
    started
}

fn run(words: &[&str], command: &str, config: &Path) -> Output {
    process::run(&mut behind(words, command, config), LIMIT)
}

#[test]
fn an_address_that_comes_later_is_named_and_listened_on_with_freebind() {
    if skip::without_root() {
        return;
    }
    let namespace = Arc::new(Netns::new());
    let setup = Setup::to(NOWHERE).inside(&namespace, LATE);
    let config = setup.write();
    for command in ["run", "plan"] {
        let said = namespace.run(|| run(&["env"], command, &config));
        assert_ne!(said.code(), 0, "{command}: {}", said.all());
        let address = setup.address().to_string();
        assert!(said.all().contains("this host has no such address now"), "{command}: {}", said.all());
        assert!(said.all().contains(&address) && said.all().contains("listener.freebind"), "{}", said.all());
    }
    drop(setup);

    let setup = Setup::to(NOWHERE).inside(&namespace, LATE).with("listener", "freebind = true");
    let planned = namespace.run(|| run(&["env"], "plan", &setup.write()));
    assert!(!planned.all().contains("no such address"), "{}", planned.all());
    let sluice = setup.start();
    namespace.ip(&["address", "add", &format!("{LATE}/32"), "dev", "lo"]);
    assert_eq!(sluice.get("/").status, 502, "it answers there; the endpoint is nowhere");
}

#[test]
fn an_interface_that_comes_later_is_named_and_guarded_at_the_next_start() {
    if skip::without_root() {
        return;
    }
    let namespace = Arc::new(Netns::new());
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let setup = Setup::to(NOWHERE).inside(&namespace, here).with("guard", "interfaces = [\"late0\"]");
    let config = setup.write();
    for command in ["run", "plan"] {
        let said = namespace.run(|| run(&["env"], command, &config));
        assert_ne!(said.code(), 0, "{command}: {}", said.all());
        assert!(said.all().contains("late0") && said.all().contains("no interface"), "{}", said.all());
    }
    namespace.ip(&["link", "add", "late0", "type", "veth", "peer", "name", "late1"]);
    namespace.ip(&["link", "set", "late0", "up"]);
    let sluice = setup.start();
    assert!(namespace.xdp("late0").is_some());
    drop(sluice);
}

/// `cap-drop ALL`, and a container that keeps all but the two capabilities.
#[test]
fn root_without_capabilities_starts_where_the_user_is_its_own_and_else_says_why() {
    if skip::without_root() || skip::without_tool("setpriv") {
        return;
    }
    let origin = Origin::http(|_| Response::ok("ok"));
    for dropped in ["-all", "-setuid,-setgid"] {
        let words = ["setpriv", "--bounding-set", dropped, "--inh-caps", "-all"];
        let setup = Setup::to(origin.address());
        let config = setup.write();
        for command in ["run", "plan"] {
            // Every time: the reason must not depend on who is faster.
            for _ in 0..5 {
                let said = run(&words, command, &config);
                assert_eq!(said.code(), 1, "{command}: {}", said.all());
                let all = said.all();
                assert!(all.contains("CAP_SETUID and CAP_SETGID is missing"), "{command}: {all}");
                assert!(all.contains("nobody") && all.contains("process.user = "), "{command}: {all}");
            }
        }
        let text = setup.text().replace("user = \"nobody\"", "user = \"root\"");
        std::fs::write(&config, text).unwrap();
        serves(setup, &words, &config);
    }
}

/// As `podman run` without subordinate ids has it: root inside is somebody outside.
#[test]
fn a_rootless_user_namespace_starts_as_its_own_root() {
    if skip::without_root() || skip::without_tool("setpriv") || skip::without_tool("unshare") {
        return;
    }
    let origin = Origin::http(|_| Response::ok("ok"));
    let somebody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let inside = ["unshare", "--user", "--map-root-user"];
    let words = [&somebody[..], &inside].concat();
    let setup = Setup::to(origin.address());
    let config = setup.write();
    for path in [setup.run_dir(), &config] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let said = run(&words, "run", &config).all();
    assert!(said.contains("this user namespace has no user 65534"), "{said}");
    std::fs::write(&config, setup.text().replace("user = \"nobody\"", "user = \"root\"")).unwrap();
    serves(setup, &words, &config);
}

/// Started like this, it serves, and ends in order.
fn serves(setup: Setup, words: &[&str], config: &Path) {
    let output = File::create(setup.run_dir().join("log")).unwrap();
    let mut command = behind(words, "run", config);
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    let mut sluice = setup.adopt(command.spawn().unwrap());
    sluice.wait_ready();
    assert_eq!(sluice.get("/").status, 200);
    sluice.signal(nix::sys::signal::Signal::SIGTERM);
    let ended = sluice.wait_end(LIMIT);
    assert!(ended.success(), "{ended}: {}", sluice.log());
    eventually(LIMIT, "nobody listens", || {
        std::net::TcpStream::connect(sluice.address()).is_err().then_some(())
    });
}

/// A limit that is reached is named, by whoever meets it.
#[test]
fn low_limits_of_descriptors_and_processes_are_named() {
    if skip::without_root() || skip::without_tool("setpriv") || skip::without_tool("prlimit") {
        return;
    }
    let setup = Setup::to(NOWHERE);
    let config = setup.write();
    for command in ["run", "plan"] {
        let said = run(&["prlimit", "--nofile=48:48"], command, &config);
        assert_eq!(said.code(), 1, "{command}: {}", said.all());
        assert!(said.all().contains("LimitNOFILE="), "{command}: {}", said.all());
    }
    let somebody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    for path in [setup.run_dir(), &config] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let said = run(&[&somebody[..], &["prlimit", "--nproc=1:1"]].concat(), "run", &config);
    assert_eq!(said.code(), 1, "{}", said.all());
    assert!(said.all().contains("LimitNPROC="), "{}", said.all());
}

/// As systemd hears it over a unit of `Type=notify`.
#[test]
fn the_service_manager_hears_of_the_start_a_reload_and_the_end() {
    let origin = Origin::http(|_| Response::ok("ok"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let hear = || {
        let mut bytes = [0; 4096];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let process = "drain_delay = \"100ms\"\ndrain_timeout = \"2s\"";
    let setup = Setup::to(origin.address()).with("process", process).environment("NOTIFY_SOCKET", path);
    let mut sluice = setup.start();
    assert!(hear().starts_with("READY=1\n"));
    assert_eq!(sluice.command("reload").code(), 0);
    let said = hear();
    assert!(said.contains("RELOADING=1") && said.contains("MONOTONIC_USEC="), "{said}");
    let said = hear();
    assert!(said.contains("READY=1") && said.contains("STATUS=nothing to reload"), "{said}");
    sluice.signal(nix::sys::signal::Signal::SIGTERM);
    let said = hear();
    // 100 ms, 2 s, 5 s until a data plane is killed, and 5 s for the rest.
    assert!(said.contains("STOPPING=1") && said.contains("EXTEND_TIMEOUT_USEC=12100000"), "{said}");
    assert!(sluice.wait_end(LIMIT).success());
}

/// The supervisor outlives a shortage of memory.
#[test]
fn the_data_plane_goes_first_when_memory_is_short() {
    let origin = Origin::http(|_| Response::ok("ok"));
    let sluice = Setup::to(origin.address()).start();
    let score = |pid: u32| -> i32 {
        std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    let (ours, theirs) = (score(sluice.pid()), score(sluice.data_plane_pid()));
    assert_eq!(theirs, (ours + 200).min(1000));
}
