//! Crashes and ends: the data plane killed under load, the supervisor told to stop or drain, a second
//! instance, and the rights that the data plane keeps.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::client::Client;
use tests::origin::{Origin, Response};
use tests::sluice::{Setup, Sluice};
use tests::{eventually, skip, threads};

const LIMIT: Duration = Duration::from_secs(15);

fn origin() -> Origin {
    Origin::http(|request| match request.target.strip_prefix("/after/") {
        Some(milliseconds) => {
            Response::ok("late").after(Duration::from_millis(milliseconds.parse().unwrap()))
        }
        None => Response::ok("ok"),
    })
}

/// Waits until a data plane other than `old` answers.
fn wait_for_successor(sluice: &mut Sluice, old: u32) -> u32 {
    let new = eventually(LIMIT, "a new data plane", || sluice.data_plane().filter(|pid| *pid != old));
    sluice.wait_ready();
    new
}

#[test]
fn nobody_is_refused_while_the_data_plane_dies() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).workers(2).start();
    let address = sluice.address();
    let (stop, served, broken) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    // The promise of this test: a connect never fails.
                    let mut client =
                        Client::try_connect(address).unwrap_or_else(|error| panic!("refused: {error}"));
                    match client.try_get("/") {
                        Ok(response) if response.status == 200 => served.fetch_add(1, Ordering::SeqCst),
                        Ok(response) => panic!("{response:?}"),
                        // A connection that the dead process had accepted dies with it.
                        Err(error) if error.kind() != ErrorKind::WouldBlock => {
                            broken.fetch_add(1, Ordering::SeqCst)
                        }
                        Err(error) => panic!("left hanging: {error}"),
                    };
                }
            });
        }
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(300));
            let old = sluice.data_plane_pid();
            sluice.kill_data_plane();
            wait_for_successor(&mut sluice, old);
        }
        eventually(LIMIT, "many are served", || (served.load(Ordering::SeqCst) > 200).then_some(()));
        stop.store(true, Ordering::SeqCst);
    });
    let (served, broken) = (served.load(Ordering::SeqCst), broken.load(Ordering::SeqCst));
    // Six clients, three kills. Each kill may break the connection in a client's hand and connections that
    // were accepted but not answered, no more.
    assert!(broken <= 18, "{broken} broke, {served} were served");
    let status = sluice.status();
    assert_eq!(status["supervisor"]["restarts"], 3);
    assert_eq!(status["data_plane"]["generation"], 4);
}

#[test]
fn clients_that_wait_in_the_queue_are_served_by_the_successor() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).workers(2).start();
    let old = sluice.data_plane_pid();
    // While the supervisor is stopped, no new data plane starts, so the gap lasts as long as the test needs.
    let supervisor = Pid::from_raw(sluice.pid().cast_signed());
    kill(supervisor, Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(old.cast_signed()), Signal::SIGKILL).unwrap();
    // A zombie with no thread but its first: its rings and sockets are gone, and no process has waited for
    // it.
    eventually(LIMIT, "it is dead", || {
        let stat = std::fs::read_to_string(format!("/proc/{old}/stat")).ok()?;
        (stat.contains(") Z ") && threads::threads(old).len() <= 1).then_some(())
    });
    let mut clients: Vec<Client> = (0..40).map(|_| sluice.client()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    kill(supervisor, Signal::SIGCONT).unwrap();
    wait_for_successor(&mut sluice, old);
    let served = clients.iter_mut().filter_map(|client| client.try_response("GET").ok()).count();
    assert_eq!(served, 40, "every client that waited in a queue is served");
}

#[test]
fn counters_survive_a_death_and_gauges_do_not() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).start();
    for _ in 0..25 {
        assert_eq!(sluice.get("/").status, 200);
    }
    let _open = sluice.client();
    let requests = sluice.metrics().sum("sluice_requests_total");
    assert!(requests >= 25.0);
    let old = sluice.data_plane_pid();
    sluice.kill_data_plane();
    wait_for_successor(&mut sluice, old);
    let after = sluice.metrics();
    assert!(
        (after.sum("sluice_requests_total") - requests).abs() < f64::EPSILON,
        "{}",
        after.sum("sluice_requests_total")
    );
    assert!(
        after.sum("sluice_connections_open") < 0.5 && after.sum("sluice_upstream_connections_open") < 0.5
    );
    assert_eq!(sluice.get("/").status, 200);
    assert!(sluice.metrics().sum("sluice_requests_total") > requests);
}

#[test]
fn a_data_plane_that_keeps_dying_is_restarted_ever_later() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).start();
    let mut gaps = Vec::new();
    for _ in 0..5 {
        let old = sluice.data_plane_pid();
        let start = Instant::now();
        sluice.kill_data_plane();
        wait_for_successor(&mut sluice, old);
        gaps.push(start.elapsed());
    }
    assert!(gaps[0] < Duration::from_secs(2), "the first restart is prompt: {gaps:?}");
    assert!(
        gaps[4] >= Duration::from_millis(800),
        "the fifth waits for 100 ms, doubled three times: {gaps:?}"
    );
    assert!(sluice.runs());
    assert_eq!(sluice.get("/").status, 200);
}

#[test]
fn sigterm_drains() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).with("process", "drain_timeout = \"10s\"").start();
    let mut idle = sluice.client();
    assert_eq!(idle.get("/").status, 200);
    let mut busy = sluice.client();
    busy.send("GET /after/1500 HTTP/1.1\r\nHost: h\r\n\r\n");
    eventually(LIMIT, "the request is at the origin", || (origin.requests() == 2).then_some(()));
    let start = Instant::now();
    sluice.signal(Signal::SIGTERM);
    eventually(LIMIT, "it says that it is not ready", || match sluice.admin("/readyz") {
        Ok(response) if response.status == 200 => None,
        _ => Some(()),
    });
    assert!(idle.until_closed().is_empty(), "an idle client is let go");
    let response = busy.response("GET");
    assert_eq!((response.status, response.text().as_str()), (200, "late"), "what was begun is ended");
    assert!(busy.until_closed().is_empty());
    let status = sluice.wait_end(LIMIT);
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "it does not wait for its whole drain_timeout: {:?}",
        start.elapsed()
    );
    assert!(TcpStream::connect(sluice.address()).is_err());
}

#[test]
fn a_drain_ends_at_its_timeout() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).with("process", "drain_timeout = \"1s\"").start();
    let mut busy = sluice.client();
    busy.send("GET /after/9000 HTTP/1.1\r\nHost: h\r\n\r\n");
    eventually(LIMIT, "the request is at the origin", || (origin.requests() == 1).then_some(()));
    let start = Instant::now();
    sluice.signal(Signal::SIGTERM);
    sluice.wait_end(Duration::from_secs(6));
    assert!(start.elapsed() > Duration::from_millis(700), "{:?}", start.elapsed());
    busy.until_closed();
}

#[test]
fn the_drain_command_waits_for_the_drain() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).start();
    let mut busy = sluice.client();
    let start = Instant::now();
    busy.send("GET /after/1000 HTTP/1.1\r\nHost: h\r\n\r\n");
    eventually(LIMIT, "the request is at the origin", || (origin.requests() == 1).then_some(()));
    let drained = sluice.command("drain");
    assert_eq!(drained.code(), 0, "{}", drained.all());
    assert!(
        start.elapsed() >= Duration::from_millis(1000),
        "it waits for the outcome: {:?}",
        start.elapsed()
    );
    assert!(!drained.text().trim().is_empty(), "a receipt");
    assert_eq!(busy.response("GET").text(), "late");
    assert_eq!(sluice.wait_end(LIMIT).code(), Some(0));
}

#[test]
fn sigint_stops_at_once() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).start();
    let data_plane = sluice.data_plane_pid();
    let mut busy = sluice.client();
    busy.send("GET /after/9000 HTTP/1.1\r\nHost: h\r\n\r\n");
    eventually(LIMIT, "the request is at the origin", || (origin.requests() == 1).then_some(()));
    sluice.signal(Signal::SIGINT);
    let status = sluice.wait_end(Duration::from_secs(5));
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(!std::path::Path::new(&format!("/proc/{data_plane}")).exists(), "the data plane ends first");
}

#[test]
fn stop_waits_and_prints_a_receipt() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).start();
    assert_eq!(sluice.get("/").status, 200);
    let (supervisor, data_plane) = (sluice.pid(), sluice.data_plane_pid());
    let stopped = sluice.command("stop");
    assert_eq!(stopped.code(), 0, "{}", stopped.all());
    assert!(stopped.text().lines().count() >= 1, "a receipt: {:?}", stopped.all());
    assert_eq!(threads::status_field(data_plane, "State"), None, "nothing runs when stop returns");
    let state = threads::status_field(supervisor, "State");
    assert!(state.as_ref().is_none_or(|state| state.starts_with('Z')), "{state:?}");
    assert_eq!(sluice.wait_end(LIMIT).code(), Some(0));
    assert!(TcpStream::connect(sluice.address()).is_err());
    // No instance runs any more: `stop` fails with a reason and prints no receipt.
    let again = sluice.command("stop");
    assert_ne!(again.code(), 0);
    assert!(!again.errors().trim().is_empty(), "{}", again.all());
}

#[test]
fn a_second_instance_on_the_same_run_dir_is_refused() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).start();
    // The second instance has the same run_dir but other ports, so only the run_dir can stop it.
    let other = Setup::to(origin.address());
    let path = other.write();
    let text = other.text().replace(other.run_dir().to_str().unwrap(), sluice.run_dir().to_str().unwrap());
    std::fs::write(&path, text).unwrap();
    let second = tests::sluice::command(&["run", "--config", path.to_str().unwrap()]);
    assert_ne!(second.code(), 0);
    let said = second.all();
    let holder = sluice.pid().to_string();
    assert!(
        said.contains(sluice.run_dir().to_str().unwrap()) || said.contains(&holder),
        "it says what is taken: {said}"
    );
    assert!(sluice.runs());
    assert_eq!(sluice.get("/").status, 200);
}

#[test]
fn the_data_plane_has_no_rights() {
    if skip::without_root() {
        return;
    }
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).start();
    for round in 0..2 {
        let pid = sluice.data_plane_pid();
        let field = |name: &str| threads::status_field(pid, name).unwrap();
        let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
        assert_eq!(
            field("Uid").split_whitespace().next(),
            Some(nobody.uid.to_string().as_str()),
            "round {round}"
        );
        assert!(field("Uid").split_whitespace().all(|uid| uid == nobody.uid.to_string()), "{}", field("Uid"));
        assert!(field("Gid").split_whitespace().all(|gid| gid == nobody.gid.to_string()), "{}", field("Gid"));
        assert!(!field("Groups").split_whitespace().any(|group| group == "0"), "{}", field("Groups"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set).trim_start_matches('0'), "", "{set} = {}", field(set));
        }
        assert_eq!(field("NoNewPrivs"), "1");
        sluice.kill_data_plane();
        wait_for_successor(&mut sluice, pid);
    }
}

#[test]
fn the_data_plane_ends_with_its_supervisor() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).start();
    let data_plane = sluice.data_plane_pid();
    sluice.signal(Signal::SIGKILL);
    sluice.wait_end(LIMIT);
    let gone = || threads::status_field(data_plane, "State").is_none_or(|state| state.starts_with('Z'));
    let ended =
        std::panic::catch_unwind(|| eventually(LIMIT, "the data plane ends", || gone().then_some(())));
    if ended.is_err() {
        let _ = kill(Pid::from_raw(data_plane.cast_signed()), Signal::SIGKILL);
        panic!("a data plane without its supervisor serves nobody and holds the ports");
    }
}
