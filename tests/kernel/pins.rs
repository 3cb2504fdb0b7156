//! Kernel objects that outlive a crash. After supervisor and data plane are killed, the filter that they left
//! still drops packets. The next start takes it over with bans and counters, or names the part that it cannot
//! take over. Also: only one instance may guard an interface.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::cable::{CLIENTS, Cable, Reached, verdict};
use tests::client::{Client, Dial};
use tests::process::Output;
use tests::sluice::{Setup, Sluice, pins_of};
use tests::{eventually, skip};

const LIMIT: Duration = Duration::from_secs(15);

const ONE: IpAddr = CLIENTS[0];
const BANNED: IpAddr = CLIENTS[1];
const DENIED: IpAddr = CLIENTS[2];

/// A Sluice on the cable that denies one of the clients.
fn guarded(net: &Cable, mode: &str) -> Setup {
    net.setup_in(mode, "deny = [\"10.77.0.4/32\"]\n")
}

/// Kills supervisor and data plane at once.
fn crash(sluice: &mut Sluice) {
    let data_plane = sluice.data_plane_pid();
    sluice.signal(Signal::SIGKILL);
    sluice.wait_end(LIMIT);
    let proc = PathBuf::from(format!("/proc/{data_plane}"));
    eventually(LIMIT, "the data plane and its sockets are gone", || {
        let state = std::fs::read_to_string(proc.join("stat")).ok();
        let refused = || sluice.inside(|| TcpStream::connect(sluice.address())).is_err();
        (state.is_none_or(|state| state.contains(") Z ")) && refused()).then_some(())
    });
}

fn success(done: &Output) -> String {
    assert_eq!(done.code(), 0, "{}", done.all());
    done.text()
}

#[test]
fn the_filter_outlives_a_crash_and_the_next_start_takes_it_over() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let mut first = guarded(&net, "driver").start();
    let (address, folder) = (first.address(), pins_of(first.run_dir()));
    success(&first.command_with("ban", &["10.77.0.3", "--for", "1h"]));
    assert_eq!(net.reach(ONE, address), Reached::Served);
    assert_eq!(
        (net.reach(BANNED, address), net.reach(DENIED, address)),
        (Reached::Dropped, Reached::Dropped)
    );
    let (banned, denied) = (verdict(&first, "banned"), verdict(&first, "denied"));
    assert!(banned >= 1 && denied >= 1);

    crash(&mut first);
    assert!(folder.join("GUARD_BANS").exists(), "{folder:?}");
    assert_eq!(net.server.xdp("edge").as_deref(), Some("xdp"));
    assert_eq!(
        net.reach(ONE, address),
        Reached::Refused,
        "nobody listens, and nobody drops what is not listed"
    );
    assert_eq!(
        (net.reach(BANNED, address), net.reach(DENIED, address)),
        (Reached::Dropped, Reached::Dropped)
    );

    // Both commands explain the objects that are left.
    let status = first.command("status");
    assert_eq!(status.code(), 1, "{}", status.all());
    let plan = success(
        &first
            .inside(|| tests::sluice::command(&["plan", "--config", first.config_path().to_str().unwrap()])),
    );
    for said in [status.errors(), plan] {
        for words in ["earlier run was killed", "XDP on edge", "1 bans hold", "sluice stop --run-dir"] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }

    first.start_again();
    let mut second = first;
    assert!(second.log().contains("taken over"), "{}", second.log());
    assert_eq!(net.reach(ONE, address), Reached::Served);
    assert_eq!(
        (net.reach(BANNED, address), net.reach(DENIED, address)),
        (Reached::Dropped, Reached::Dropped)
    );
    assert!(
        verdict(&second, "banned") > banned && verdict(&second, "denied") > denied,
        "the counters went on"
    );
    assert!(success(&second.command("bans")).contains("10.77.0.3"));
    assert_eq!(second.status()["supervisor"]["guard"]["interfaces"]["edge"], "driver");
    // Bans and their bits in the bitmap are writable after they were taken over.
    success(&second.command_with("unban", &["10.77.0.3"]));
    assert_eq!(net.reach(BANNED, address), Reached::Served);
    success(&second.command("stop"));
    second.wait_end(LIMIT);
    assert_eq!(net.server.xdp("edge"), None, "a stop detaches");
    assert!(!folder.exists(), "and removes the pins");
}

#[test]
fn no_packet_goes_unjudged_while_a_start_takes_over() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let mut sluice = guarded(&net, "driver").start();
    success(&sluice.command_with("ban", &["10.77.0.3", "--for", "1h"]));
    // While Sluice is down, another server listens on its address and port, which the filter still guards.
    let address = sluice.address();
    crash(&mut sluice);
    let listener = net.server.run(|| TcpListener::bind(address).unwrap());
    let (stop, tried) = (AtomicBool::new(false), AtomicU64::new(0));
    // The denied sources send SYNs all the time. If one passes, the server that listens accepts it.
    let sluice = std::thread::scope(|scope| {
        for source in [BANNED, DENIED] {
            let (stop, tried, net) = (&stop, &tried, &net);
            scope.spawn(move || {
                let dial = Dial { source: Some(source), receive_buffer: None };
                net.clients.run(|| {
                    while !stop.load(Ordering::SeqCst) {
                        let done = dial.connect(address, Duration::from_millis(3));
                        assert!(
                            done.is_err_and(|error| error.kind() == ErrorKind::TimedOut),
                            "a packet of {source} passed"
                        );
                        tried.fetch_add(1, Ordering::SeqCst);
                    }
                });
            });
        }
        eventually(LIMIT, "packets come", || (tried.load(Ordering::SeqCst) > 20).then_some(()));
        drop(listener);
        let mut sluice = sluice;
        for _ in 0..2 {
            sluice.start_again();
            crash(&mut sluice);
        }
        sluice.start_again();
        stop.store(true, Ordering::SeqCst);
        sluice
    });
    assert!(tried.load(Ordering::SeqCst) > 50);
    assert_eq!(net.reach(ONE, address), Reached::Served);
    assert!(success(&sluice.command("bans")).contains("10.77.0.3"));
}

#[test]
fn every_end_in_order_removes_the_pins() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    for how in ["stop", "drain", "SIGTERM", "SIGINT"] {
        let mut sluice = guarded(&net, "generic").start();
        let folder = pins_of(sluice.run_dir());
        assert!(folder.join("xdp-edge").exists(), "{how}");
        match how {
            "SIGTERM" => sluice.signal(Signal::SIGTERM),
            "SIGINT" => sluice.signal(Signal::SIGINT),
            command => drop(success(&sluice.command(command))),
        }
        assert_eq!(sluice.wait_end(LIMIT).code(), Some(0), "{how}");
        assert!(!folder.exists() && net.server.xdp("edge").is_none(), "{how}");
    }
}

#[test]
fn what_a_crash_left_is_removed_by_stop() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let mut sluice = guarded(&net, "driver").start();
    let folder = pins_of(sluice.run_dir());
    success(&sluice.command_with("ban", &["10.77.0.3", "--for", "1h"]));
    crash(&mut sluice);
    let receipt = success(&sluice.command("stop"));
    assert!(receipt.contains("XDP detached from edge") && receipt.contains("1 bans lifted"), "{receipt}");
    assert!(!folder.exists() && net.server.xdp("edge").is_none());
    assert_eq!(net.reach(BANNED, sluice.address()), Reached::Refused);
    // Now `stop` finds nothing to remove.
    let again = sluice.command("stop");
    assert_eq!(again.code(), 1, "{}", again.all());
    assert!(again.errors().contains("no sluice runs"), "{}", again.errors());
}

#[test]
fn an_interface_that_is_not_guarded_any_more_is_let_go() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let mut sluice = guarded(&net, "driver").start();
    crash(&mut sluice);
    // In another mode the link cannot be kept.
    let config = std::fs::read_to_string(sluice.config_path()).unwrap();
    sluice.start_again_with(&config.replace("\"driver\"", "\"generic\""));
    assert_eq!(net.server.xdp("edge").as_deref(), Some("xdpgeneric"));
    assert!(sluice.log().contains("another mode"), "{}", sluice.log());
    assert_eq!(net.reach(DENIED, sluice.address()), Reached::Dropped);
    crash(&mut sluice);
    sluice.start_again_with(&config.replace("\"edge\"", "\"lo\"").replace("\"driver\"", "\"generic\""));
    assert_eq!(net.server.xdp("edge"), None);
    assert_eq!(net.server.xdp("lo").as_deref(), Some("xdpgeneric"));
    crash(&mut sluice);
    let folder = pins_of(sluice.run_dir());
    sluice.start_again_with(&config.replace("interfaces = [\"edge\"]", "interfaces = []"));
    assert!(net.server.xdp("lo").is_none() && !folder.exists());
    assert!(sluice.log().contains("no interface is guarded any more"), "{}", sluice.log());
}

/// An interface that was deleted and made anew has lost the pinned link. The maps are still taken over.
#[test]
fn an_interface_that_came_back_is_attached_anew() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let mut sluice = guarded(&net, "driver").start();
    success(&sluice.command_with("ban", &["10.77.0.3", "--for", "1h"]));
    crash(&mut sluice);
    net.server.ip(&["link", "delete", "edge"]);
    net.server.join(("edge", "10.77.0.1/24"), &net.clients, ("out", "10.77.0.2/24"));
    net.clients.ip(&["address", "add", "10.77.0.3/24", "dev", "out"]);
    sluice.start_again();
    assert!(sluice.log().contains("interface that is gone"), "{}", sluice.log());
    assert_eq!(net.server.xdp("edge").as_deref(), Some("xdp"));
    assert_eq!(
        (net.reach(ONE, sluice.address()), net.reach(BANNED, sluice.address())),
        (Reached::Served, Reached::Dropped)
    );
}

#[test]
fn maps_of_an_older_layout_are_replaced_and_it_is_said_what_is_lost() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let mut sluice = guarded(&net, "driver").start();
    let (address, folder) = (sluice.address(), pins_of(sluice.run_dir()));
    success(&sluice.command_with("ban", &["10.77.0.3", "--for", "1h"]));
    assert_eq!(net.reach(BANNED, address), Reached::Dropped);
    crash(&mut sluice);
    // A pinned map of another size stands in for the counters of another version.
    std::fs::rename(folder.join("GUARD_PORTS"), folder.join("GUARD_VERDICTS")).unwrap();
    sluice.start_again();
    let log = sluice.log();
    for words in [
        "do not fit",
        "GUARD_PORTS is new",
        "GUARD_VERDICTS",
        "counters and rate buckets begin anew",
        "1 bans hold",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert_eq!((net.reach(ONE, address), net.reach(BANNED, address)), (Reached::Served, Reached::Dropped));
    // The maps have the same shapes, but their layout says that they mean something else.
    crash(&mut sluice);
    std::fs::remove_file(folder.join("layout")).unwrap();
    std::os::unix::fs::symlink("0", folder.join("layout")).unwrap();
    std::fs::remove_file(folder.join("GUARD_BANS")).unwrap();
    sluice.start_again();
    let log = sluice.log();
    assert!(log.contains("layout") && log.contains("its bans are lost"), "{log}");
    assert_eq!((net.reach(BANNED, address), net.reach(DENIED, address)), (Reached::Served, Reached::Dropped));
    // The next start takes over the new maps.
    crash(&mut sluice);
    sluice.start_again();
    assert!(sluice.log().contains("taken over"), "{}", sluice.log());
}

#[test]
fn a_second_instance_is_refused_with_the_holders_name_in_every_mode() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let mut first = guarded(&net, "driver").start();
    let name = first.run_dir().file_name().unwrap().to_str().unwrap().to_owned();
    for mode in ["auto", "driver", "generic"] {
        let mut second = guarded(&net, mode).spawn();
        assert_ne!(second.wait_end(LIMIT).code(), Some(0), "{mode}");
        let log = second.log();
        for words in [
            "edge",
            name.as_str(),
            &format!("process {}", first.pid()),
            "sluice stop --run-dir",
            "one instance per interface",
        ] {
            assert!(log.contains(words), "{mode}: {words}: {log}");
        }
        assert!(!pins_of(second.run_dir()).exists(), "the loser leaves nothing");
    }
    let setup = guarded(&net, "auto");
    let path = setup.write();
    let planned = net.server.run(|| tests::sluice::command(&["plan", "--config", path.to_str().unwrap()]));
    let plan = planned.text();
    assert_eq!(planned.code(), 1, "{plan}");
    assert!(
        plan.contains("would stop a start") && plan.contains(&format!("process {}", first.pid())),
        "{plan}"
    );
    assert_eq!(net.reach(ONE, first.address()), Reached::Served);
    // An instance that was killed holds the interface too, until somebody runs `stop`.
    crash(&mut first);
    let mut second = guarded(&net, "auto").spawn();
    assert_ne!(second.wait_end(LIMIT).code(), Some(0));
    assert!(second.log().contains(&name) && second.log().contains("does not run"), "{}", second.log());
    success(&first.command("stop"));
    let third = guarded(&net, "auto").start();
    assert_eq!(net.reach(ONE, third.address()), Reached::Served);
}

#[test]
fn an_xdp_program_of_others_is_named() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let program = tests::bpf::empty_program().unwrap();
    let _link = net.server.run(|| tests::bpf::attach_xdp(program.as_fd(), "edge").unwrap());
    for mode in ["auto", "driver"] {
        let mut sluice = guarded(&net, mode).spawn();
        assert_ne!(sluice.wait_end(LIMIT).code(), Some(0), "{mode}");
        assert!(
            sluice.log().contains("edge")
                && sluice.log().contains("is attached")
                && sluice.log().contains("xdp off"),
            "{}",
            sluice.log()
        );
        assert!(!pins_of(sluice.run_dir()).exists());
    }
    assert!(net.server.xdp("edge").is_some(), "it is left alone");
}

#[test]
fn another_run_dir_of_the_same_name_is_refused() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let first = guarded(&net, "driver").start();
    let base = tempfile::tempdir().unwrap();
    let same = base.path().join(first.run_dir().file_name().unwrap());
    let setup = guarded(&net, "generic");
    let path = setup.write();
    let text = setup
        .text()
        .replace(setup.run_dir().to_str().unwrap(), same.to_str().unwrap())
        .replace("\"edge\"", "\"lo\"");
    std::fs::write(&path, text).unwrap();
    let second = net.server.run(|| tests::sluice::command(&["run", "--config", path.to_str().unwrap()]));
    assert_ne!(second.code(), 0);
    assert!(second.all().contains(first.run_dir().to_str().unwrap()), "{}", second.all());
    assert_eq!(net.reach(ONE, first.address()), Reached::Served);
}

/// Counts of connections are not pinned: the connections of a killed run end with it, and the next run must
/// not count them against their sources.
#[test]
fn connections_of_a_killed_run_do_not_count_any_more() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let mut sluice = guarded(&net, "driver").with("guard", "connections_per_ip = 2").start();
    let address = sluice.address();
    let dial = Dial { source: Some(ONE), receive_buffer: None };
    for round in 0..3 {
        let held: Vec<Client> = (0..2)
            .map(|_| {
                let mut client =
                    Client::over(net.clients.run(|| dial.connect(address, LIMIT)).unwrap()).unwrap();
                assert_eq!(client.get("/").text(), "inside", "round {round}");
                client
            })
            .collect();
        assert_eq!(net.reach(ONE, address), Reached::Dropped, "round {round}: at its limit");
        crash(&mut sluice);
        sluice.start_again();
        drop(held);
    }
}

/// Sluice runs in a mount namespace without a bpffs, where none can be mounted.
#[test]
fn without_bpffs_it_is_said_loudly_and_goes_on() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let setup = guarded(&net, "driver");
    let path = setup.write();
    let script = "umount -l -t bpf -a 2>/dev/null; while grep -q ' bpf ' /proc/self/mounts; do umount -l \
        $(awk '$3==\"bpf\"{print $2;exit}' \
                  /proc/self/mounts); done; mount -t tmpfs -o ro none /sys/fs && exec \"$0\" run --config \
                  \"$1\"";
    let log = std::fs::File::create(setup.run_dir().join("log")).unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .arg(tests::sluice::binary())
        .arg(&path);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let child = net.server.run(|| command.spawn().unwrap());
    let mut sluice = setup.adopt(child);
    sluice.wait_ready();
    let degraded = sluice.status()["supervisor"]["degraded"].to_string();
    assert!(degraded.contains("no bpffs") && degraded.contains("mount -t bpf"), "{degraded}");
    assert_eq!(
        (net.reach(ONE, sluice.address()), net.reach(DENIED, sluice.address())),
        (Reached::Served, Reached::Dropped)
    );
    success(&sluice.command_with("ban", &["10.77.0.3"]));
    assert_eq!(net.reach(BANNED, sluice.address()), Reached::Dropped);
    // A second instance cannot learn the holder's name, but it learns that a sluice holds the interface.
    let mut second = guarded(&net, "auto").spawn();
    assert_ne!(second.wait_end(LIMIT).code(), Some(0));
    assert!(second.log().contains("a sluice without pins"), "{}", second.log());
    crash(&mut sluice);
    assert_eq!(net.server.xdp("edge"), None, "nothing kept it");
}
