//! Where hostile code in the data plane connects to: to endpoints of upstreams, and to nothing else. From
//! inside: a process that is confined like a data plane, and known to the programs, tries each way to
//! connect. From outside: the real data plane, whose allowed destinations a test takes away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use nix::sys::signal::Signal;
use nix::unistd::User;
use proxy::kernel::Programs;
use proxy::sandbox::root::EmptyFolder;
use proxy_common::destinations::{DESTINATIONS_MAX, Destination, TCP};
use tests::client::Client;
use tests::origin::{Origin, Response};
use tests::process::{self, Output, Running};
use tests::sluice::{Setup, Sluice, binary};
use tests::{bpf, eventually, skip};

const LIMIT: Duration = Duration::from_secs(60);
const ALL: &str = "root,files,calls,destinations";
const WITHOUT_SECCOMP: &str = "root,files";

/// Programs that judge connects and allow these.
fn judging(allowed: impl IntoIterator<Item = SocketAddr>) -> Programs {
    let mut programs = bpf::programs();
    programs.destinations.allow(&allowed.into_iter().collect()).unwrap();
    programs.judge_connects().unwrap();
    programs
}

/// Confines a process by these layers, judges it if there are programs to do so, and lets it connect.
fn connect(programs: Option<&mut Programs>, layers: &str, how: &str, to: &[SocketAddr]) -> Output {
    let nobody = User::from_name("nobody").unwrap().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let empty = EmptyFolder::make(folder.path()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_confined"));
    command
        .args([layers, &nobody.uid.to_string(), &nobody.gid.to_string(), how])
        .args(to.iter().map(SocketAddr::to_string))
        .current_dir(empty.path())
        .env("RUST_BACKTRACE", "1");
    let running = Running::start(&mut command, Stdio::from(OwnedFd::from(listener)));
    let pid = running.pid();
    if let Some(programs) = programs {
        programs.destinations.judge(pid).unwrap();
        let output = begin(running, address);
        programs.destinations.release(pid).unwrap();
        return output;
    }
    begin(running, address)
}

fn begin(running: Running, address: SocketAddr) -> Output {
    let _client = TcpStream::connect(address).unwrap();
    running.end(LIMIT).success()
}

/// The outcome of the one connect whose line begins so.
fn outcome<'a>(text: &'a str, begin: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.strip_prefix(begin)?.strip_prefix(": "));
    found.unwrap_or_else(|| panic!("{begin}: {text}"))
}

fn listening(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn at(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), port)
}

/// An allowed address, and others. Somebody listens on the first two of those.
fn targets() -> (Vec<TcpListener>, SocketAddr, Vec<SocketAddr>) {
    let ((one, allowed), (two, port), (three, v6)) =
        (listening("127.0.0.1:0"), listening("127.0.0.1:0"), listening("[::1]:0"));
    let others = vec![
        port,
        v6,
        at("127.0.0.2", allowed.port()),
        at("0.0.0.0", allowed.port()),
        at("::1", allowed.port()),
        at("::", allowed.port()),
        at("::ffff:127.0.0.1", port.port()),
        at("::ffff:127.0.0.2", allowed.port()),
    ];
    (vec![one, two, three], allowed, others)
}

#[test]
fn from_inside_nothing_but_destinations_is_reached() {
    if skip::without_root() {
        return;
    }
    let (_listeners, allowed, others) = targets();
    let mut programs = judging([allowed]);
    // Another instance on this host judges its own data planes alone.
    let other = judging([]);
    let mapped = at("::ffff:127.0.0.1", allowed.port());
    let all: Vec<SocketAddr> = [allowed, mapped].into_iter().chain(others.iter().copied()).collect();
    let text = connect(Some(&mut programs), ALL, "ring", &all).text();
    for address in [allowed, mapped] {
        assert_eq!(outcome(&text, &format!("{address} by ring")), "connected", "{text}");
        assert_ne!(outcome(&text, &format!("{address} by send")), "EPERM", "{text}");
    }
    for address in &others {
        assert_eq!(outcome(&text, &format!("{address} by ring")), "EPERM", "{text}");
        assert_eq!(outcome(&text, &format!("{address} by send")), "EPERM", "{text}");
    }
    assert_eq!(programs.destinations.refused().unwrap(), 2 * others.len() as u64);
    assert_eq!(other.destinations.refused().unwrap(), 0);
}

#[test]
fn no_socket_and_no_call_leads_elsewhere_without_seccomp_either() {
    if skip::without_root() {
        return;
    }
    let (_listeners, allowed, others) = targets();
    let mut programs = judging([allowed]);
    let all: Vec<SocketAddr> = [allowed].into_iter().chain(others.iter().copied()).collect();
    let text = connect(Some(&mut programs), WITHOUT_SECCOMP, "system", &all).text();
    assert_eq!(outcome(&text, &allowed.to_string()), "connected", "{text}");
    for address in &others {
        assert_eq!(outcome(&text, &address.to_string()), "EPERM", "{text}");
    }
    // Sockets that it was given, or accepted, belong to this process's cgroup and are judged as well.
    let others = &others[..1];
    let text = connect(Some(&mut programs), WITHOUT_SECCOMP, "sockets", others).text();
    for name in ["client", "listener"] {
        assert_eq!(outcome(&text, &format!("{} by {name}", others[0])), "EPERM", "{text}");
    }
}

#[test]
fn other_processes_of_the_same_user_and_cgroup_connect_freely() {
    if skip::without_root() {
        return;
    }
    let (_listeners, allowed, others) = targets();
    let mut programs = judging([allowed]);
    // This very process, and a child.
    assert!(TcpStream::connect(others[0]).is_ok());
    for (layers, how) in [(ALL, "ring"), (WITHOUT_SECCOMP, "system"), (WITHOUT_SECCOMP, "sockets")] {
        let text = connect(None, layers, how, &others).text();
        assert!(text.contains("connected") && !text.contains("EPERM"), "{how}: {text}");
    }
    assert_eq!(programs.destinations.refused().unwrap(), 0);
    // A process that got the id of a dead data plane.
    let text = connect(Some(&mut programs), ALL, "ring", &others[..1]).text();
    assert!(text.contains("EPERM"), "{text}");
    let text = connect(None, ALL, "ring", &others[..1]).text();
    assert!(!text.contains("EPERM"), "{text}");
}

#[test]
fn more_destinations_than_there_is_room_for_change_nothing() {
    if skip::without_root() {
        return;
    }
    let numbered = |count: u32| -> BTreeSet<SocketAddr> {
        (0..count).map(|number| SocketAddr::new(std::net::Ipv4Addr::from(number).into(), 80)).collect()
    };
    let mut programs = judging(numbered(3));
    let error = programs.destinations.allow(&numbered(DESTINATIONS_MAX + 1)).unwrap_err();
    assert!(error.to_string().contains("65537 entries wanted, 65536 are the most"), "{error}");
    assert_eq!(programs.destinations.allowed(), 3);
    programs.destinations.allow(&numbered(DESTINATIONS_MAX)).unwrap();
    assert_eq!(programs.destinations.allowed(), DESTINATIONS_MAX as usize);
    programs.destinations.allow(&numbered(1)).unwrap();
    assert_eq!(programs.destinations.allowed(), 1);
}

/// Sends each request over a new connection to the endpoint.
fn start(origin: &Origin) -> Sluice {
    Setup::to(origin.address())
        .with("process", "sandbox = \"require\"")
        .with("upstream.pool", "max_idle = 0")
        .start()
}

/// The destinations that the programs of a supervisor allow, as they read them.
fn allowed_by(supervisor: u32) -> HashMap<MapData, Destination, u8> {
    let (id, _) = bpf::maps_of(supervisor)
        .into_iter()
        .find(|(_, name)| name.starts_with("DESTINATIONS_AL"))
        .expect("the map of the destinations");
    HashMap::try_from(Map::HashMap(MapData::from_id(id).unwrap())).unwrap()
}

fn key(address: SocketAddr) -> Destination {
    let SocketAddr::V4(v4) = address else { panic!("{address}") };
    Destination { address: v4.ip().to_ipv6_mapped().octets(), port: address.port(), protocol: TCP }
}

fn destinations(sluice: &Sluice) -> (u64, u64) {
    let status = &sluice.status()["supervisor"]["destinations"];
    (status["allowed"].as_u64().unwrap(), status["refused"].as_u64().unwrap())
}

#[test]
fn the_data_plane_and_each_successor_are_judged() {
    if skip::without_root() {
        return;
    }
    let origin = Origin::http(|_| Response::ok("ok"));
    let mut sluice = start(&origin);
    assert_eq!(sluice.get("/").status, 200);
    assert_eq!(destinations(&sluice), (1, 0));
    let mut allowed = allowed_by(sluice.pid());
    allowed.remove(&key(origin.address())).unwrap();
    for round in 1..=3 {
        assert_eq!(sluice.get("/").status, 502, "round {round}");
        let refused = destinations(&sluice).1;
        assert!(refused >= round, "round {round}: {refused}");
        let old = sluice.data_plane_pid();
        sluice.kill_data_plane();
        eventually(LIMIT, "a successor", || sluice.data_plane().filter(|pid| *pid != old));
        sluice.wait_ready();
    }
    allowed.insert(key(origin.address()), 0, 0).unwrap();
    assert_eq!(sluice.get("/").status, 200);
    assert!(sluice.metrics().sum("sluice_data_plane_connects_refused_total") >= 3.0);
    let line = format!("the data plane was kept from connecting to ::ffff:{}", origin.address().ip());
    eventually(LIMIT, "a line of the log", || sluice.log().contains(&line).then_some(()));
}

/// Reloads to another endpoint.
fn reload(sluice: &Sluice, from: SocketAddr, to: SocketAddr) {
    let text = std::fs::read_to_string(sluice.config_path()).unwrap();
    std::fs::write(sluice.config_path(), text.replace(&from.to_string(), &to.to_string())).unwrap();
    let _ = sluice.command("reload").success();
}

#[test]
fn a_reload_allows_old_and_new_until_the_last_exchange_of_the_old_is_over() {
    if skip::without_root() {
        return;
    }
    let old = Origin::http(|request| {
        let slow = if request.target == "/slow" { Duration::from_secs(5) } else { Duration::ZERO };
        Response::ok("old").after(slow)
    });
    let new = Origin::http(|_| Response::ok("new"));
    let sluice = start(&old);
    let address = sluice.address();
    let slow = std::thread::spawn(move || Client::connect(address).get("/slow").text());
    eventually(LIMIT, "the old one is asked", || (old.requests() > 0).then_some(()));
    reload(&sluice, old.address(), new.address());
    assert_eq!(sluice.get("/").text(), "new");
    let allowed = allowed_by(sluice.pid());
    assert!(allowed.get(&key(old.address()), 0).is_ok() && allowed.get(&key(new.address()), 0).is_ok());
    assert_eq!(slow.join().unwrap(), "old");
    eventually(LIMIT, "the old one is forbidden", || {
        allowed.get(&key(old.address()), 0).is_err().then_some(())
    });
    assert_eq!(destinations(&sluice), (1, 0));
    assert_eq!(sluice.get("/").text(), "new");
}

#[test]
fn a_reload_that_is_refused_allows_nothing() {
    if skip::without_root() {
        return;
    }
    let origin = Origin::http(|_| Response::ok("ok"));
    let sluice = start(&origin);
    // The data plane is stopped, so that it compiles nothing in time.
    let pid = nix::unistd::Pid::from_raw(sluice.data_plane_pid().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    let elsewhere = at("127.0.0.1", 9);
    let text = std::fs::read_to_string(sluice.config_path()).unwrap();
    let text = text.replace(&origin.address().to_string(), &elsewhere.to_string());
    std::fs::write(sluice.config_path(), text).unwrap();
    let refused = sluice.command("reload");
    let allowed = allowed_by(sluice.pid());
    assert!(allowed.get(&key(elsewhere), 0).is_err(), "{}", refused.all());
    assert!(!refused.status.success(), "{}", refused.all());
    let _ = nix::sys::signal::kill(pid, Signal::SIGCONT);
    assert!(allowed.get(&key(origin.address()), 0).is_ok());
}

#[test]
fn nothing_is_left_of_a_supervisor_that_was_killed() {
    if skip::without_root() {
        return;
    }
    let origin = Origin::http(|_| Response::ok("ok"));
    let mut sluice = start(&origin);
    let maps = bpf::maps_of(sluice.pid());
    let ids = || maps.iter().filter(|(_, name)| name.starts_with("DESTINATIONS")).map(|(id, _)| *id);
    assert!(ids().count() >= 4, "{maps:?}");
    sluice.signal(Signal::SIGKILL);
    let _ = sluice.wait_end(LIMIT);
    // Links keep programs, and programs keep maps.
    eventually(LIMIT, "the programs are gone", || {
        ids().all(|id| MapData::from_id(id).is_err()).then_some(())
    });
    let _ = sluice.command("stop");
}

/// Starts Sluice by a shell, in a mount namespace of its own, after these commands.
fn after(setup: &Setup, commands: &str) -> Command {
    let output = File::create(setup.run_dir().join("log")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "/bin/sh", "-c", &format!("{commands} && exec \"$0\" run --config \"$1\"")]);
    command.arg(binary()).arg(setup.write());
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    command
}

fn cgroup2() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    PathBuf::from(mounts.find(|fields| fields[2] == "cgroup2").expect("a cgroup v2")[1])
}

fn layers(sluice: &Sluice) -> Vec<String> {
    serde_json::from_value(sluice.status()["supervisor"]["sandbox"].clone()).unwrap()
}

#[test]
fn a_host_without_cgroup2_is_told_by_auto_and_plan_and_stops_require() {
    if skip::without_root() || skip::without_tool("unshare") {
        return;
    }
    let origin = Origin::http(|_| Response::ok("ok"));
    let unmount = format!("umount -l {}", cgroup2().display());
    let setup = Setup::to(origin.address());
    let child = after(&setup, &unmount).spawn().unwrap();
    let mut sluice = setup.adopt(child);
    sluice.wait_ready();
    assert_eq!(layers(&sluice), ["empty root", "Landlock", "seccomp"]);
    let lack = "process.sandbox: destinations: cgroup v2: no cgroup2 file system is mounted";
    let degraded = sluice.status()["supervisor"]["degraded"].to_string();
    assert!(degraded.contains(lack) && sluice.log().contains(lack), "{degraded}\n{}", sluice.log());
    assert!(sluice.status()["supervisor"]["destinations"].is_null());
    assert_eq!(sluice.get("/").status, 200);

    let setup = Setup::to(origin.address()).with("process", "sandbox = \"require\"");
    let mut child = after(&setup, &unmount).spawn().unwrap();
    let status = process::wait(&mut child, LIMIT).expect("it ends");
    // A line of the log is JSON.
    let log = std::fs::read_to_string(setup.run_dir().join("log")).unwrap().replace("\\\"", "\"");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("process.sandbox = \"require\": destinations: cgroup v2: no cgroup2"), "{log}");

    let plan = Command::new("unshare")
        .args(["--mount", "/bin/sh", "-c", &format!("{unmount} && exec \"$0\" plan --config \"$1\"")])
        .arg(binary())
        .arg(setup.run_dir().join("proxy.toml"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&plan.stdout);
    assert!(text.contains(lack), "{text}");
}

#[test]
fn missing_rights_are_told_by_plan_and_stop_require() {
    if skip::without_root() || skip::without_tool("setpriv") {
        return;
    }
    let origin = Origin::http(|_| Response::ok("ok"));
    // CAP_SYS_ADMIN would stand for the others.
    for (lost, is_lost) in
        [("-net_admin,-bpf,-sys_admin", true), ("-net_admin,-sys_admin", true), ("-bpf", false)]
    {
        let setup = Setup::to(origin.address()).with("process", "sandbox = \"require\"");
        let config = setup.write();
        let run = |command: &str| {
            let mut started = Command::new("setpriv");
            started.args([format!("--inh-caps={lost}"), format!("--bounding-set={lost}")]);
            started.arg(binary()).arg(command).arg("--config").arg(&config).stdin(Stdio::null());
            started
        };
        let plan = process::run(&mut run("plan"), LIMIT).text();
        let lack = "destinations: CAP_BPF or CAP_NET_ADMIN is missing";
        assert_eq!(plan.contains(&format!("process.sandbox: {lack}")), is_lost, "{lost}: {plan}");
        if is_lost {
            let ended = process::run(&mut run("run"), LIMIT);
            assert_eq!(ended.code(), 1, "{lost}: {}", ended.all());
            // The kernel may be the one that says it. A line of the log is JSON.
            let told = ["require\\\": destinations: ", "CAP_NET_ADMIN"];
            assert!(told.iter().all(|part| ended.all().contains(part)), "{lost}: {}", ended.all());
            continue;
        }
        let output = File::create(setup.run_dir().join("log")).unwrap();
        let child = run("run").stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap();
        let mut sluice = setup.adopt(child);
        sluice.wait_ready();
        assert_eq!(layers(&sluice).last().unwrap(), "destinations", "{lost}");
    }
}

#[test]
fn a_read_only_cgroup_and_a_pid_namespace_are_no_obstacle() {
    if skip::without_root() || skip::without_tool("unshare") {
        return;
    }
    let origin = Origin::http(|_| Response::ok("ok"));
    let read_only = format!("mount -o remount,ro,bind {}", cgroup2().display());
    for (arguments, commands) in
        [(&[][..], read_only.as_str()), (&["--pid", "--fork", "--kill-child", "--mount-proc"], "true")]
    {
        let setup = Setup::to(origin.address())
            .with("process", "sandbox = \"require\"")
            .with("upstream.pool", "max_idle = 0");
        let prepared = after(&setup, commands);
        let mut command = Command::new("unshare");
        command.args(arguments).args(prepared.get_args()).stdin(Stdio::null());
        let output = File::create(setup.run_dir().join("log")).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        // Not a `Sluice`, which would signal processes by the ids that they have inside.
        let child = KilledAtTheEnd(command.spawn().unwrap());
        let get = || Client::try_connect(setup.address()).ok()?.try_get("/").ok();
        let log = || std::fs::read_to_string(setup.run_dir().join("log")).unwrap();
        assert_eq!(eventually(LIMIT, "it serves", get).status, 200, "{}", log());
        let supervisor = if arguments.is_empty() { child.0.id() } else { child_of(child.0.id()) };
        allowed_by(supervisor).remove(&key(origin.address())).unwrap();
        assert_eq!(get().unwrap().status, 502, "it is judged: {}", log());
    }
}

/// A cgroup that a test makes.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(name: &str) -> Self {
        let path = cgroup2().join(format!("sluice-test-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_successor_in_another_cgroup_is_judged() {
    if skip::without_root() || skip::without_tool("unshare") {
        return;
    }
    let (one, two) = (Cgroup::make("one"), Cgroup::make("two"));
    let origin = Origin::http(|_| Response::ok("ok"));
    let setup = Setup::to(origin.address()).with("upstream.pool", "max_idle = 0");
    let child = after(&setup, &format!("echo $$ > {}", one.procs().display())).spawn().unwrap();
    let mut sluice = setup.adopt(child);
    sluice.wait_ready();
    assert_eq!(sluice.get("/").status, 200);
    std::fs::write(two.procs(), sluice.pid().to_string()).unwrap();
    let old = sluice.data_plane_pid();
    sluice.kill_data_plane();
    eventually(LIMIT, "a successor", || sluice.data_plane().filter(|pid| *pid != old));
    sluice.wait_ready();
    let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", sluice.data_plane_pid())).unwrap();
    assert!(cgroup.contains("-two\n"), "{cgroup}");
    allowed_by(sluice.pid()).remove(&key(origin.address())).unwrap();
    assert_eq!(sluice.get("/").status, 502, "{}", sluice.log());
    // A cgroup can be removed when nobody is in it.
    drop(sluice);
}

struct KilledAtTheEnd(std::process::Child);

impl Drop for KilledAtTheEnd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The one child of a process.
fn child_of(pid: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().parse().unwrap()
}
