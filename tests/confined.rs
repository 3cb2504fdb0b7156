//! A process that confines itself as a data plane does, by the same functions in the same order, and then
//! does what tests/confinement.rs asks for. Standard input is a listening socket.
//!
//! `confined LAYERS UID GID call NUMBER ARGUMENT…` makes one system call and prints its result or the name of
//! its error; an argument is a number, or `s:TEXT`, a pointer to a text, or `z:BYTES`, one to zeroed memory.
//! `confined LAYERS UID GID spawn|rare` starts a program, or takes the paths that a data plane rarely takes.

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    reason = "an attacker makes system calls as he likes, and what fails here fails the test"
)]

use std::ffi::CString;
use std::io::Write as _;
use std::panic::catch_unwind;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, getppid};
use proxy::control::sealed;
use proxy::dataplane::privileges;
use proxy::io::ring::KernelRing;
use proxy::io::settings::Ring;
use proxy::sandbox::{self, Layer, Layers};
use proxy::telemetry::logging;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [layers, uid, gid, what, rest @ ..] = arguments.as_slice() else { panic!("{arguments:?}") };
    let layers: Layers = layers.parse().unwrap();
    let identity = (Uid::from_raw(uid.parse().unwrap()), Gid::from_raw(gid.parse().unwrap()));
    sandbox::close_inherited().unwrap();
    privileges::drop_all(Some(identity), getppid(), layers).unwrap();
    let log = logging::init("info").unwrap();
    let (prepared, all) = std::sync::mpsc::channel();
    let (go, start) = std::sync::mpsc::channel::<()>();
    // A worker: it has its ring before the process is confined, and uses and drops it later.
    let worker = thread::spawn(move || {
        let ring = KernelRing::new(Ring { entries: 64, buffers: 16, buffer_size: 4096 }, 1 << 20).unwrap();
        prepared.send(()).unwrap();
        start.recv().unwrap();
        drop(ring);
    });
    all.recv().unwrap();
    layers.take(Layer::Calls).unwrap();
    say("confined");
    match what.as_str() {
        "call" => call(rest),
        "spawn" => say(&format!("{:?}", Command::new("/bin/sh").arg("-c").arg("true").status())),
        "rare" => rare(),
        other => panic!("{other}"),
    }
    go.send(()).unwrap();
    worker.join().unwrap();
    drop(log);
    say("ended");
}

fn say(text: &str) {
    let mut output = std::io::stdout();
    writeln!(output, "{text}").unwrap();
    output.flush().unwrap();
}

fn call(arguments: &[String]) {
    let mut texts = Vec::new();
    let mut zeros = Vec::new();
    let mut value = |argument: &String| -> i64 {
        if let Some(text) = argument.strip_prefix("s:") {
            texts.push(CString::new(text).unwrap());
            texts.last().unwrap().as_ptr() as i64
        } else if let Some(length) = argument.strip_prefix("z:") {
            zeros.push(vec![0u64; length.parse::<usize>().unwrap().div_ceil(8)]);
            zeros.last().unwrap().as_ptr() as i64
        } else {
            argument.parse().unwrap()
        }
    };
    let mut values: Vec<i64> = arguments.iter().map(&mut value).collect();
    values.resize(7, 0);
    // SAFETY: pointers among the arguments lead to memory that lives until the end of this function and is
    // as large as the test says. A call that succeeds ends the test.
    let result =
        unsafe { libc::syscall(values[0], values[1], values[2], values[3], values[4], values[5], values[6]) };
    let error = Errno::last();
    say(&if result < 0 { format!("{error:?}") } else { format!("= {result}") });
}

/// What a data plane does seldom, and must survive.
fn rare() {
    let caught = catch_unwind(|| panic!("of one session"));
    assert!(caught.is_err());
    assert!(!std::backtrace::Backtrace::force_capture().to_string().is_empty());
    let threads: Vec<_> = (0..4)
        .map(|index| {
            let work = move || {
                let mut grown = Vec::new();
                for block in 0..2000_usize {
                    grown.push(vec![index as u8; block * 13 % 70_000]);
                    if block % 3 == 0 {
                        grown.remove(grown.len() / 2);
                    }
                }
                let mut random = [0; 64];
                aws_lc_rs::rand::fill(&mut random).unwrap();
                grown.iter().map(Vec::len).sum::<usize>()
            };
            thread::Builder::new().name(format!("later-{index}")).spawn(work).unwrap()
        })
        .collect();
    for thread in threads {
        assert!(thread.join().unwrap() > 0);
    }
    let mut large: Vec<u64> = Vec::new();
    (0..16 << 20).for_each(|number| large.push(number));
    assert!(large.capacity() >= 16 << 20);
    assert!(thread::spawn(|| deep(2_000)).join().unwrap() > 0);
    let bytes = sealed::open(sealed::seal("status", b"answer").unwrap(), 64).unwrap();
    assert_eq!(bytes, b"answer");
    thread::sleep(Duration::from_millis(1));
    assert!(SystemTime::UNIX_EPOCH.elapsed().is_ok());
    assert!(thread::available_parallelism().is_ok());
    assert!(nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).is_ok());
    let (mut ours, theirs) = (std::net::TcpListener::from(stdin()), stdin());
    ours.set_nonblocking(true).unwrap();
    assert!(ours.accept().is_err());
    ours = std::net::TcpListener::from(theirs);
    assert!(ours.local_addr().is_ok());
    logging::set_level("debug").unwrap();
    say("alive");
}

fn deep(depth: usize) -> usize {
    let here = std::hint::black_box([depth; 8]);
    if depth == 0 { 1 } else { deep(depth - 1) + here[0] }
}

fn stdin() -> std::os::fd::OwnedFd {
    use std::os::fd::AsFd as _;
    std::io::stdin().as_fd().try_clone_to_owned().unwrap()
}
