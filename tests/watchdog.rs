//! Processes that hang: a data plane that was stopped, or whose workers are all stuck, is replaced; a
//! supervisor that was stopped kills nobody when it goes on, and its commands do not wait for ever.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::cable::Cable;
use tests::client::Client;
use tests::origin::{Origin, Response};
use tests::sluice::{Setup, Sluice};
use tests::threads::{self, Held};
use tests::{eventually, skip};

/// Longer than any watchdog here, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(30);

fn setup(origin: &Origin, watchdog: &str) -> Setup {
    Setup::to(origin.address()).with("process", &format!("watchdog = \"{watchdog}\""))
}

fn origin() -> Origin {
    Origin::http(|_| Response::ok("ok"))
}

/// Stops a whole process, and waits until each of its threads stands.
fn stop(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSTOP).unwrap();
    let stands = |tid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
        stat.contains(") T ")
    };
    eventually(LIMIT, "it stands", || {
        threads::threads(pid).into_iter().all(|(tid, _)| stands(tid)).then_some(())
    });
}

fn go_on(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT).unwrap();
}

fn wait_for_successor(sluice: &mut Sluice, old: u32) {
    eventually(LIMIT, "a successor", || sluice.data_plane().filter(|pid| *pid != old));
    sluice.wait_ready();
}

fn deaths(sluice: &Sluice, reason: &str) -> f64 {
    sluice.metrics().labelled("sluice_data_plane_deaths_total", "reason", reason)
}

#[test]
fn a_stopped_data_plane_is_replaced_and_the_clients_in_its_queues_are_served() {
    let origin = origin();
    let mut sluice = setup(&origin, "4s").workers(2).start();
    assert_eq!(sluice.get("/").status, 200);
    assert_eq!(sluice.status()["supervisor"]["data_plane_state"], "serving");
    let old = sluice.data_plane_pid();
    stop(old);
    let mut clients: Vec<Client> = (0..40).map(|_| sluice.client()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    // The state is told before the watchdog acts on it.
    let shown = sluice.command("status");
    assert!(shown.text().contains("data plane: hung"), "{}", shown.all());
    wait_for_successor(&mut sluice, old);
    let served = clients.iter_mut().filter_map(|client| client.try_response("GET").ok()).count();
    assert_eq!(served, 40, "every client that waited in a queue is served");
    assert_eq!(sluice.get("/").status, 200);
    let status = sluice.status();
    assert_eq!(status["supervisor"]["restarts"], 1);
    assert_eq!(status["supervisor"]["deaths"]["hung"], 1, "{}", status["supervisor"]);
    assert_eq!(status["supervisor"]["data_plane_state"], "serving");
    assert_eq!((deaths(&sluice, "hung"), deaths(&sluice, "crashed")), (1.0, 0.0));
    let log = sluice.log();
    assert!(log.contains("the data plane hangs: its control thread does not answer, for 4s"), "{log}");
    let shown = sluice.command("status").success();
    assert!(shown.text().contains("data planes that died: 1 hung"), "{}", shown.text());
}

#[test]
fn one_stuck_worker_is_left_alone_and_all_of_them_are_not() {
    if skip::without_root() {
        return;
    }
    let origin = origin();
    let mut sluice = setup(&origin, "2s").workers(2).start();
    let old = sluice.data_plane_pid();
    let workers: Vec<u32> = threads::threads(old)
        .into_iter()
        .filter(|(_, name)| name.contains("worker"))
        .map(|(tid, _)| tid)
        .collect();
    assert_eq!(workers.len(), 2);
    let address = sluice.address();
    let mut clients = Vec::new();
    let mut provoke = || {
        for _ in 0..2 {
            let mut client = Client::connect(address);
            client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
            clients.push(client);
        }
    };
    let first = Held::at_work(workers[0], LIMIT, &mut provoke);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(sluice.data_plane(), Some(old), "steering fences a single worker");
    let second = Held::at_work(workers[1], LIMIT, &mut provoke);
    // SIGKILL takes them all the same; what ptrace holds is reaped here before the supervisor hears of it.
    eventually(LIMIT, "it is killed", || sluice.log().contains("killing the data plane").then_some(()));
    drop((first, second));
    wait_for_successor(&mut sluice, old);
    assert_eq!(sluice.get("/").status, 200);
    assert_eq!(deaths(&sluice, "hung"), 1.0);
    assert!(sluice.log().contains("all of its workers are stuck"), "{}", sluice.log());
}

#[test]
fn a_supervisor_that_was_stopped_kills_nobody() {
    let origin = origin();
    let mut sluice = setup(&origin, "1s").workers(2).start();
    let old = sluice.data_plane_pid();
    for _ in 0..3 {
        stop(sluice.pid());
        // Three times as long as the watchdog's patience, and the data plane serves on.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            assert_eq!(sluice.get("/").status, 200);
        }
        go_on(sluice.pid());
        eventually(LIMIT, "it answers again", || {
            (sluice.status()["supervisor"]["restarts"] == 0).then_some(())
        });
    }
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(sluice.data_plane(), Some(old));
    assert!(sluice.runs());
    assert!(!sluice.log().contains("hangs"), "{}", sluice.log());
}

#[test]
fn a_busy_machine_is_not_taken_for_one_that_hangs() {
    let origin = origin();
    let sluice = setup(&origin, "3s").workers(2).start();
    let old = sluice.data_plane_pid();
    let (stop, address) = (AtomicBool::new(false), sluice.address());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = Client::try_connect(address).and_then(|mut client| client.try_get("/"));
                }
            });
        }
        std::thread::sleep(Duration::from_secs(8));
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(sluice.data_plane(), Some(old), "{}", sluice.log());
    assert_eq!(deaths(&sluice, "hung"), 0.0);
}

#[test]
fn the_watchdog_can_be_switched_off_and_on_by_a_reload() {
    let origin = origin();
    let mut sluice = setup(&origin, "off").start();
    let old = sluice.data_plane_pid();
    stop(old);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(sluice.data_plane(), Some(old));
    let shown = sluice.command("status");
    assert!(shown.text().contains("data plane: hung"), "{}", shown.all());
    go_on(old);
    sluice.wait_ready();
    let text = sluice.configuration().replace("watchdog = \"off\"", "watchdog = \"1s\"");
    std::fs::write(sluice.config_path(), text).unwrap();
    let _ = sluice.command("reload").success();
    stop(old);
    wait_for_successor(&mut sluice, old);
    assert_eq!(deaths(&sluice, "hung"), 1.0);
}

#[test]
fn commands_do_not_wait_for_a_supervisor_that_is_stopped() {
    let origin = origin();
    let sluice = setup(&origin, "15s").start();
    stop(sluice.pid());
    let ended = AtomicBool::new(false);
    let sluice = &sluice;
    std::thread::scope(|scope| {
        let orders: [(&str, &[&str]); 6] = [
            ("status", &[]),
            ("bans", &[]),
            ("ban", &["192.0.2.1"]),
            ("reload", &[]),
            ("drain", &[]),
            ("stop", &[]),
        ];
        let asking = orders
            .map(|(order, arguments)| (order, scope.spawn(move || sluice.command_with(order, arguments))));
        // Were one to wait for ever, this lets it end, and the test fail.
        scope.spawn(|| {
            let start = Instant::now();
            while !ended.load(Ordering::SeqCst) {
                if start.elapsed() > 2 * LIMIT {
                    go_on(sluice.pid());
                    panic!("a command still waits");
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        for (order, asking) in asking {
            let done = asking.join().unwrap();
            let pid = sluice.pid();
            assert_eq!(done.code(), 1, "{order}: {}", done.all());
            let told = format!("(process {pid}) in time: it is stopped; `kill -CONT {pid}` lets it go on");
            assert!(done.errors().contains(&told), "{order}: {}", done.all());
        }
        ended.store(true, Ordering::SeqCst);
    });
    go_on(sluice.pid());
}

#[test]
fn stop_restores_the_kernel_settings_of_a_supervisor_that_was_killed() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let read = || {
        ["tcp_syncookies", "tcp_timestamps"].map(|name| {
            net.server.run(move || {
                std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap().trim().to_owned()
            })
        })
    };
    let before = read();
    let mut sluice = net.setup("syn_cookies = \"always\"").start();
    let changed = read();
    assert_ne!(changed, before);
    sluice.signal(Signal::SIGKILL);
    sluice.wait_end(LIMIT);
    assert_eq!(read(), changed, "nobody was left to restore them");
    let shown = sluice.command("status");
    assert!(shown.errors().contains("left its changes of net.ipv4.tcp_syncookies"), "{}", shown.all());
    let stopped = sluice.command("stop").success();
    assert!(stopped.text().contains("net.ipv4.tcp_syncookies is"), "{}", stopped.text());
    assert_eq!(read(), before);
    assert!(!sluice.run_dir().join("sysctl.json").exists());
    let again = sluice.command("stop");
    assert_eq!(again.code(), 1, "nothing is left: {}", again.all());
}
