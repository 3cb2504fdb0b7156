//! A data plane that was taken over, against its supervisor and its successors: nothing that it writes to
//! shared memory or says outlives it, and nothing that it sends keeps the supervisor waiting. The test plays
//! it with the descriptors of a real one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::io::{IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, SockType, getsockopt, sendmsg, setsockopt, sockopt};
use nix::unistd::Pid;
use tests::origin::{Origin, Response};
use tests::sluice::{Setup, Sluice};
use tests::{eventually, pidfd, skip};

const LIMIT: Duration = Duration::from_secs(30);
/// How long a hostile socket would keep who closes it.
const LINGER_SECONDS: i32 = 45;

fn start() -> (Origin, Sluice) {
    let origin = Origin::http(|_| Response::ok("ok"));
    let sluice = Setup::to(origin.address()).workers(2).start();
    (origin, sluice)
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// The data plane's end of the channel.
fn channel(sluice: &Sluice) -> OwnedFd {
    let is_channel = |fd: &OwnedFd| getsockopt(fd, sockopt::SockType) == Ok(SockType::SeqPacket);
    pidfd::descriptors(sluice.data_plane_pid(), is_channel).remove(0)
}

fn say(channel: &OwnedFd, text: &str, descriptors: &[&OwnedFd]) {
    let raw: Vec<_> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(text.as_bytes())], control, flags, None).unwrap();
}

fn wait_for_successor(sluice: &mut Sluice, old: u32) {
    eventually(LIMIT, "a successor", || sluice.data_plane().filter(|pid| *pid != old));
    sluice.wait_ready();
    assert_eq!(sluice.get("/").status, 200);
}

/// A socket that nobody closes quickly: its peer reads nothing.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 65_536]).is_ok() {}
    let linger = nix::libc::linger { l_onoff: 1, l_linger: LINGER_SECONDS };
    setsockopt(&stream, sockopt::Linger, &linger).unwrap();
    (stream.into(), peer)
}

#[test]
fn shared_counters_that_were_overwritten_keep_no_successor_from_starting() {
    if skip::without_root() {
        return;
    }
    let (_origin, mut sluice) = start();
    let old = sluice.data_plane_pid();
    // Both processes map it, and the supervisor keeps the descriptor.
    let memory = std::fs::read_dir(format!("/proc/{}/fd", sluice.pid())).unwrap().flatten().find(|entry| {
        std::fs::read_link(entry.path()).is_ok_and(|path| path.to_string_lossy().contains("sluice-counters"))
    });
    let memory = File::options().write(true).open(memory.expect("the counters").path()).unwrap();
    let length = usize::try_from(memory.metadata().unwrap().len()).unwrap();
    memory.write_all_at(&vec![0xff; length], 0).unwrap();
    signal(old, Signal::SIGKILL);
    wait_for_successor(&mut sluice, old);
    assert_eq!(sluice.status()["supervisor"]["restarts"], 1);
    let output = sluice.command("stop").success();
    assert!(output.text().contains("ended in order"), "{}", output.all());
}

#[test]
fn an_endless_reason_is_shortened_and_kills_no_successor() {
    if skip::without_root() {
        return;
    }
    let (origin, mut sluice) = start();
    let (old, channel) = (sluice.data_plane_pid(), channel(&sluice));
    let text = sluice
        .configuration()
        .replace("[listener.timeouts]\n", "[listener.timeouts]\nkeep_alive = \"70s\"\n");
    assert_ne!(text, sluice.configuration());
    std::fs::write(sluice.config_path(), text).unwrap();
    signal(old, Signal::SIGSTOP);
    let ended = AtomicBool::new(false);
    let (theirs, reason) = (&sluice, format!("\u{1b}[2J{}", "x".repeat(65_400)).replace('\u{1b}', "\\u001b"));
    let output = std::thread::scope(|scope| {
        let reload = scope.spawn(|| {
            let output = theirs.command("reload");
            ended.store(true, Ordering::SeqCst);
            output
        });
        while !ended.load(Ordering::SeqCst) {
            say(&channel, &format!("{{\"not_compiled\":{{\"id\":1,\"reason\":\"{reason}\"}}}}"), &[]);
            std::thread::sleep(Duration::from_millis(100));
        }
        reload.join().unwrap()
    });
    signal(old, Signal::SIGCONT);
    let said = output.all();
    assert!(said.contains("could not take it") && said.len() < 10_000, "{} bytes", said.len());
    assert!(!said.contains('\u{1b}'), "it moves no cursor");
    for _ in 0..3 {
        let status = sluice.status();
        assert!(status["supervisor"]["reload"]["failed"].is_string(), "{status}");
        assert_eq!(status["supervisor"]["restarts"], 0);
    }
    sluice.wait_ready();
    assert_eq!(sluice.data_plane(), Some(old));
    drop(origin);
}

#[test]
fn nothing_that_a_data_plane_sends_keeps_the_supervisor_waiting() {
    if skip::without_root() {
        return;
    }
    let (_origin, mut sluice) = start();
    for text in ["{\"pong\":{\"id\":0}}", "{\"status\":{\"id\":9}}", "nonsense", ""] {
        let (old, channel) = (sluice.data_plane_pid(), channel(&sluice));
        let (socket, _peer) = lingering();
        // All of it waits when the supervisor looks; the last is read by nobody.
        signal(sluice.pid(), Signal::SIGSTOP);
        for text in [text, "", text] {
            let carried: &[&OwnedFd] = if text.is_empty() { &[] } else { &[&socket] };
            say(&channel, text, carried);
        }
        say(&channel, text, &[&socket]);
        drop((socket, channel));
        let start = Instant::now();
        signal(sluice.pid(), Signal::SIGCONT);
        wait_for_successor(&mut sluice, old);
        let _ = sluice.command("status").success();
        let took = start.elapsed();
        assert!(took < Duration::from_secs(LINGER_SECONDS as u64 / 2), "{text:?}: {took:?}");
    }
    assert!(sluice.log().contains("a descriptor that does not belong to its message"), "{}", sluice.log());
    assert!(sluice.runs());
}
