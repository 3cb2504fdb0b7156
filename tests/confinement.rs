//! What is left to hostile code in the data plane. From inside: a process that is confined by the same
//! functions tries what an attacker would (`confined.rs`). From outside: the real one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::User;
use proxy::sandbox::root::EmptyFolder;
use tests::origin::{Origin, Response};
use tests::process::{self, Output};
use tests::sluice::{Setup, Sluice, binary};
use tests::{eventually, skip, threads};

const LIMIT: Duration = Duration::from_secs(60);
const ALL: &str = "root,files,calls";

/// Where the descriptors of a process lead, by number.
fn descriptors(pid: u32) -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let number = |name: std::ffi::OsString| name.to_str()?.parse().ok();
    entries
        .filter_map(|entry| Some((number(entry.file_name())?, std::fs::read_link(entry.path()).ok()?)))
        .collect()
}

/// Confines a process by these layers and lets it act.
fn confined(layers: &str, what: &[&str]) -> Output {
    let nobody = User::from_name("nobody").unwrap().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let empty = EmptyFolder::make(folder.path()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_confined"));
    command
        .args([layers, &nobody.uid.to_string(), &nobody.gid.to_string()])
        .args(what)
        .current_dir(empty.path())
        .env("RUST_BACKTRACE", "1");
    process::run_with(&mut command, Stdio::from(OwnedFd::from(listener)), LIMIT)
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The kernel kills the process.
    Killed,
    /// The call fails.
    Fails(&'static str),
}

fn expect(output: &Output, end: End, what: &dyn std::fmt::Debug) {
    assert!(output.text().starts_with("confined\n"), "{what:?}: {}", output.all());
    match end {
        End::Killed => assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{what:?}: {}", output.all()),
        End::Fails(error) => {
            assert_eq!(output.text(), format!("confined\n{error}\nended\n"), "{what:?}: {}", output.all());
        }
    }
}

#[test]
fn from_inside_every_attempt_fails() {
    if skip::without_root() {
        return;
    }
    let open = libc::O_RDONLY.to_string();
    let at = libc::AT_FDCWD.to_string();
    let number = |value: i32| value.to_string();
    let option = |level: i32, option: i32| {
        vec!["0".to_owned(), number(level), number(option), "z:16".into(), "8".into()]
    };
    let with = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect::<Vec<_>>();
    let socket = |family: i32, kind: i32, protocol: i32| vec![number(family), number(kind), number(protocol)];
    let attempts: Vec<(&str, libc::c_long, Vec<String>, End)> = vec![
        ("read a file", libc::SYS_openat, with(&[&at, "s:/etc/passwd", &open]), End::Fails("EACCES")),
        (
            "read a file above",
            libc::SYS_openat,
            with(&[&at, "s:../../../etc/passwd", &open]),
            End::Fails("EACCES"),
        ),
        (
            "look at the supervisor",
            libc::SYS_newfstatat,
            with(&[&at, "s:/proc/1", "z:256", "0"]),
            End::Fails("EACCES"),
        ),
        ("execve", libc::SYS_execve, with(&["s:/bin/sh", "0", "0"]), End::Killed),
        ("execveat", libc::SYS_execveat, with(&["1", "s:", "0", "0", "4096"]), End::Killed),
        ("a child", libc::SYS_clone, with(&["17", "0", "0", "0", "0"]), End::Killed),
        ("a child by clone3", libc::SYS_clone3, with(&["z:88", "88"]), End::Fails("ENOSYS")),
        ("outlive the supervisor", libc::SYS_prctl, with(&["1", "0", "0", "0", "0"]), End::Fails("EPERM")),
        ("be dumped and traced", libc::SYS_prctl, with(&["4", "1", "0", "0", "0"]), End::Fails("EPERM")),
        ("signal its supervisor", libc::SYS_kill, with(&["1", "0"]), End::Killed),
        ("a user namespace", libc::SYS_unshare, vec![number(libc::CLONE_NEWUSER)], End::Killed),
        ("a mount", libc::SYS_mount, with(&["s:a", "s:/", "s:tmpfs", "0", "0"]), End::Killed),
        ("another root", libc::SYS_chroot, with(&["s:/"]), End::Killed),
        ("ptrace", libc::SYS_ptrace, with(&["16", "1", "0", "0"]), End::Killed),
        ("bpf", libc::SYS_bpf, with(&["0", "z:128", "128"]), End::Killed),
        ("a ring of its own", libc::SYS_io_uring_setup, with(&["8", "z:120"]), End::Killed),
        ("code in memory", libc::SYS_mmap, with(&["0", "4096", "7", "34", "-1", "0"]), End::Killed),
        ("connect by itself", libc::SYS_connect, with(&["0", "z:16", "16"]), End::Killed),
        ("disconnect a listener", libc::SYS_connect, with(&["0", "z:16", "2"]), End::Killed),
        ("a listener's queue", libc::SYS_listen, with(&["0", "0"]), End::Killed),
        (
            "a port",
            libc::SYS_bind,
            with(&["0", "x:02001f907f0000010000000000000000", "16"]),
            End::Fails("EACCES"),
        ),
        (
            "no port of its choice",
            libc::SYS_bind,
            // Standard input is bound already.
            with(&["0", "x:020000007f0000010000000000000000", "16"]),
            End::Fails("EINVAL"),
        ),
        ("a Unix socket's path", libc::SYS_bind, with(&["0", "z:110", "110"]), End::Killed),
        ("transparent", libc::SYS_setsockopt, option(libc::IPPROTO_IP, libc::IP_TRANSPARENT), End::Killed),
        ("UDP", libc::SYS_socket, socket(libc::AF_INET, libc::SOCK_DGRAM, 0), End::Killed),
        ("netlink", libc::SYS_socket, socket(libc::AF_NETLINK, libc::SOCK_RAW, 0), End::Killed),
        ("a Unix socket", libc::SYS_socket, socket(libc::AF_UNIX, libc::SOCK_STREAM, 0), End::Killed),
        (
            "MPTCP",
            libc::SYS_socket,
            socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
            End::Killed,
        ),
        (
            "detach steering",
            libc::SYS_setsockopt,
            option(libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF),
            End::Killed,
        ),
        (
            "replace steering",
            libc::SYS_setsockopt,
            option(libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF),
            End::Killed,
        ),
        (
            "replace steering",
            libc::SYS_setsockopt,
            option(libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF),
            End::Killed,
        ),
        ("lines of a shared log", libc::SYS_fcntl, with(&["2", "4", "0"]), End::Fails("EPERM")),
        ("others wait no more", libc::SYS_ioctl, with(&["2", "21537", "z:8"]), End::Fails("ENOTTY")),
        ("what was written", libc::SYS_pwrite64, with(&["2", "z:8", "8", "0"]), End::Killed),
        ("cut a log", libc::SYS_ftruncate, with(&["2", "0"]), End::Killed),
        ("a limit", libc::SYS_prlimit64, with(&["0", "7", "z:16", "0"]), End::Fails("EPERM")),
        ("x32", 0x4000_0000 + libc::SYS_getpid, Vec::new(), End::Killed),
    ];
    for (what, call, arguments, end) in attempts {
        let call = call.to_string();
        let all: Vec<&str> =
            ["call", &call].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        expect(&confined(ALL, &all), end, &what);
    }
    expect(&confined(ALL, &["spawn"]), End::Killed, &"start a shell");
}

#[test]
fn each_layer_alone_keeps_files_away() {
    if skip::without_root() {
        return;
    }
    let (call, at) = (libc::SYS_openat.to_string(), libc::AT_FDCWD.to_string());
    let passwd = ["call", &call, &at, "s:/etc/passwd", "0"];
    for (layers, error) in [("root", "EACCES"), ("files", "EACCES"), ("calls", "EACCES")] {
        expect(&confined(layers, &passwd), End::Fails(error), &layers);
    }
    let output = confined("", &passwd);
    assert!(output.text().starts_with("confined\n= "), "the attempt works without: {}", output.all());
}

#[test]
fn what_a_data_plane_does_seldom_is_not_forbidden() {
    if skip::without_root() {
        return;
    }
    let output = confined(ALL, &["rare"]).success();
    assert_eq!(output.text(), "confined\nalive\nended\n", "{}", output.all());
    assert!(output.errors().contains("panic: of one session"), "{}", output.errors());
}

fn layers(sluice: &Sluice) -> Vec<String> {
    let layers = sluice.status()["supervisor"]["sandbox"].clone();
    serde_json::from_value(layers).unwrap()
}

#[test]
fn a_running_data_plane_is_confined_and_reloads_to_an_upstream_on_a_new_port() {
    if skip::without_root() {
        return;
    }
    let (old, new) = (Origin::http(|_| Response::ok("old")), Origin::http(|_| Response::ok("new")));
    let sluice = Setup::to(old.address()).with("process", "sandbox = \"require\"").workers(2).start();
    assert_eq!(layers(&sluice), ["empty root", "Landlock", "seccomp", "destinations"]);
    assert_eq!(sluice.get("/").text(), "old");
    let pid = sluice.data_plane_pid();
    for (thread, name) in threads::threads(pid) {
        let path = format!("/proc/{pid}/task/{thread}/status");
        let status = std::fs::read_to_string(path).unwrap();
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
            assert!(status.lines().any(|found| found == line), "{name}: {line}\n{status}");
        }
    }
    let root = std::fs::read_link(format!("/proc/{pid}/root")).unwrap();
    assert!(root.starts_with(sluice.run_dir()) && root.to_string_lossy().ends_with(" (deleted)"), "{root:?}");
    let text = std::fs::read_to_string(sluice.config_path()).unwrap();
    let text = text.replace(&old.address().to_string(), &new.address().to_string());
    std::fs::write(sluice.config_path(), text).unwrap();
    let _ = sluice.command("reload").success();
    drop(old);
    assert_eq!(sluice.get("/").text(), "new");
    assert_eq!(sluice.data_plane_pid(), pid, "it is the same process");
    let text = sluice.command("status").success().text();
    assert!(
        text.contains("sandbox of the data plane: empty root, Landlock, seccomp, destinations"),
        "{text}"
    );
}

#[test]
fn off_confines_by_the_user_alone() {
    if skip::without_root() {
        return;
    }
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).with("process", "sandbox = \"off\"").start();
    let pid = sluice.data_plane_pid();
    assert_eq!(threads::status_field(pid, "Seccomp").as_deref(), Some("0"));
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/root")).unwrap(), Path::new("/"));
    assert!(layers(&sluice).is_empty());
    assert_eq!(sluice.get("/").status, 200);
}

/// Sluice without CAP_SYS_CHROOT, and so without an empty root.
fn without_chroot(setup: &Setup) -> Command {
    let output = File::create(setup.run_dir().join("log")).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-sys_chroot", "--bounding-set=-sys_chroot"]).arg(binary());
    command.args(["run", "--config"]).arg(setup.write());
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    command
}

#[test]
fn a_missing_layer_is_told_by_auto_and_stops_require() {
    if skip::without_root() || skip::without_tool("setpriv") {
        return;
    }
    let origin = Origin::echo();
    let setup = Setup::to(origin.address());
    let child = without_chroot(&setup).spawn().unwrap();
    let mut sluice = setup.adopt(child);
    sluice.wait_ready();
    assert_eq!(layers(&sluice), ["Landlock", "seccomp", "destinations"]);
    let lack = "process.sandbox: empty root: CAP_SYS_CHROOT is missing";
    let degraded = sluice.status()["supervisor"]["degraded"].to_string();
    assert!(
        degraded.contains(lack) && sluice.log().matches(lack).count() == 1,
        "{degraded}\n{}",
        sluice.log()
    );
    assert_eq!(sluice.get("/").status, 200);

    let setup = Setup::to(origin.address()).with("process", "sandbox = \"require\"");
    let mut child = without_chroot(&setup).spawn().unwrap();
    let status = process::wait(&mut child, LIMIT).expect("it ends");
    let log = std::fs::read_to_string(setup.run_dir().join("log")).unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    let why = "process.sandbox = \"require\": empty root: CAP_SYS_CHROOT is missing";
    // A line of the log is JSON.
    assert!(log.replace("\\\"", "\"").contains(why), "{log}");
}

#[test]
fn a_forbidden_call_is_told_by_name_of_the_signal() {
    if skip::without_root() {
        return;
    }
    let origin = Origin::echo();
    let mut sluice = Setup::to(origin.address()).start();
    let old = sluice.data_plane_pid();
    // As the kernel does it.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(old.cast_signed()), nix::sys::signal::Signal::SIGSYS)
        .unwrap();
    eventually(LIMIT, "a new data plane", || sluice.data_plane().filter(|pid| *pid != old));
    sluice.wait_ready();
    let log = sluice.log();
    assert!(log.contains("data plane died: killed by SIGSYS: it made a system call"), "{log}");
}

#[test]
fn descriptors_that_the_supervisor_inherited_are_not_passed_on() {
    if skip::without_root() {
        return;
    }
    let origin = Origin::echo();
    let setup = Setup::to(origin.address());
    let secret = setup.run_dir().join("secret");
    std::fs::write(&secret, "of the shell").unwrap();
    let output = File::create(setup.run_dir().join("log")).unwrap();
    let child = Command::new("/bin/sh")
        .args(["-c", "exec 7<\"$1\"; exec \"$0\" run --config \"$2\""])
        .args([&binary(), &secret, &setup.write()])
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let mut sluice = setup.adopt(child);
    sluice.wait_ready();
    assert!(descriptors(sluice.pid()).contains(&(7, secret.clone())), "the supervisor was given it");
    let theirs = descriptors(sluice.data_plane_pid());
    assert!(theirs.iter().all(|(_, path)| *path != secret), "{theirs:?}");
    for (number, path) in theirs {
        let name = path.to_str().unwrap();
        let is_made_here = ["socket:[", "anon_inode:[", "/memfd:"].iter().any(|kind| name.starts_with(kind));
        // The log, on standard error, is the only file.
        let is_known = is_made_here
            || path == Path::new("/dev/null")
            || (number, path.as_path()) == (2, &sluice.file("log"));
        assert!(is_known, "{number}: {name}");
    }
    assert_eq!(sluice.get("/").status, 200);
}
