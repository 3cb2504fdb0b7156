//! The admin endpoints and the supervisor under clients, and under a data plane, that ask too much.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockType, getsockopt, send, sockopt};
use tests::origin::{Origin, Response};
use tests::sluice::{Setup, Sluice};
use tests::{eventually, pidfd, process, skip, threads};

const LIMIT: Duration = Duration::from_secs(30);
/// The bound of a health check, on a busy machine too. Before there was one, it waited for 6 s and more.
const MOMENT: Duration = Duration::from_secs(4);

fn start() -> (Origin, Sluice) {
    let origin = Origin::http(|_| Response::ok("ok"));
    let sluice = Setup::to(origin.address()).workers(2).start();
    (origin, sluice)
}

fn admin_address(sluice: &Sluice) -> SocketAddr {
    let text = sluice.configuration();
    text.split("[admin]\naddress = \"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
}

/// The longest of several health checks.
fn slowest_check(sluice: &Sluice) -> Duration {
    let check = |_| {
        let start = Instant::now();
        assert_eq!(sluice.admin("/readyz").unwrap().status, 200);
        start.elapsed()
    };
    (0..5).map(check).max().unwrap()
}

#[test]
fn idle_connections_do_not_keep_a_health_check_waiting() {
    let (_origin, sluice) = start();
    let address = admin_address(&sluice);
    let idle: Vec<TcpStream> = (0..128).map(|_| TcpStream::connect(address).unwrap()).collect();
    let slowest = slowest_check(&sluice);
    assert!(slowest < MOMENT, "{slowest:?}");
    drop(idle);
}

#[test]
fn slow_connections_do_not_keep_a_health_check_waiting() {
    let (_origin, sluice) = start();
    let address = admin_address(&sluice);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let connect = || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_nonblocking(true).unwrap();
                let _ = stream.write(b"GET /status HTTP/1.1\r\nHost: h\r\nX: ");
                stream
            };
            let mut slow: Vec<TcpStream> = (0..200).map(|_| connect()).collect();
            while !stop.load(Ordering::SeqCst) {
                for stream in &mut slow {
                    match stream.write(b"x") {
                        Err(error) if error.kind() != ErrorKind::WouldBlock => *stream = connect(),
                        _ => {}
                    }
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        let slowest = slowest_check(&sluice);
        stop.store(true, Ordering::SeqCst);
        assert!(slowest < MOMENT, "{slowest:?}");
    });
}

#[test]
fn an_address_beyond_loopback_is_warned_of() {
    let origin = Origin::http(|_| Response::ok("ok"));
    let setup = Setup::to(origin.address());
    let path = setup.write();
    let text = setup.text();
    let address = text.split("[admin]\naddress = \"").nth(1).unwrap().split('"').next().unwrap();
    let port = address.rsplit_once(':').unwrap().1;
    let open = text.replace(address, &format!("0.0.0.0:{port}"));
    std::fs::write(&path, open).unwrap();
    let path = path.to_str().unwrap();
    let told = format!("0.0.0.0:{port} is beyond loopback");
    for order in ["check", "plan"] {
        let done = tests::sluice::command(&[order, "--config", path]).success();
        assert!(done.errors().contains(&told), "{order}: {}", done.all());
    }
    let log = setup.run_dir().join("log");
    let output = std::fs::File::create(&log).unwrap();
    let mut child = std::process::Command::new(tests::sluice::binary())
        .args(["run", "--config", path])
        .stderr(output)
        .spawn()
        .unwrap();
    let read = || std::fs::read_to_string(&log).unwrap();
    eventually(LIMIT, "it runs", || read().contains("data plane ready").then_some(()));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id().cast_signed()),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    process::wait(&mut child, LIMIT).expect("it ends");
    assert!(read().contains(&told), "{}", read());
}

/// What a data plane that was taken over can send, for ever.
fn flood(message: impl Fn(u64) -> String) {
    let (_origin, mut sluice) = start();
    let (supervisor, data_plane) = (sluice.pid(), sluice.data_plane_pid());
    let channels =
        pidfd::descriptors(data_plane, |fd| getsockopt(fd, sockopt::SockType) == Ok(SockType::SeqPacket));
    assert!(!channels.is_empty(), "the data plane's end of the channel");
    let before = threads::cpu_ticks(supervisor);
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < Duration::from_secs(4) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(channels[0].as_raw_fd(), message(sent).as_bytes(), flags) {
            Ok(_) => sent += 1,
            Err(Errno::EAGAIN) => std::thread::sleep(Duration::from_micros(100)),
            Err(errno) => panic!("{errno}"),
        }
    }
    let ticks = threads::cpu_ticks(supervisor) - before;
    // 64 at once, 40 per second, and a few hundred that wait in the channel; a tick is 10 ms.
    assert!(sent < 2_000 && ticks < 4 * 25, "{ticks} ticks in 4 s, for {sent} messages");
    assert!(sluice.log().len() < 1 << 20, "the log is not flooded");
    assert!(sluice.runs());
    // The supervisor works on: what waits in the channel is read in time.
    eventually(LIMIT, "it answers", || sluice.status()["supervisor"]["restarts"].as_u64());
    assert_eq!(sluice.get("/").status, 200);
}

#[test]
fn a_data_plane_that_asks_for_status_in_a_loop_costs_little() {
    if skip::without_root() {
        return;
    }
    flood(|sent| format!("{{\"ask_status\":{{\"id\":{}}}}}", sent + 1_000_000));
}

#[test]
fn a_data_plane_that_sends_answers_nobody_asked_for_costs_little() {
    if skip::without_root() {
        return;
    }
    let long = "x".repeat(60_000);
    flood(|sent| match sent % 6 {
        0 => "\"ready\"".to_owned(),
        1 => format!("{{\"status\":{{\"id\":{}}}}}", sent + 1_000_000),
        2 => format!("{{\"pong\":{{\"id\":{}}}}}", sent + 1_000_000),
        3 => format!("{{\"not_compiled\":{{\"id\":{},\"reason\":\"{long}\"}}}}", sent + 1_000_000),
        4 => format!("{{\"published\":{{\"id\":{}}}}}", sent + 1_000_000),
        _ => format!("{{\"compiled\":{{\"id\":{}}}}}", sent + 1_000_000),
    });
}
