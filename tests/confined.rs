//! A process that confines itself as a data plane does, by the same functions in the same order, and then
//! does what tests/confinement.rs or tests/destinations.rs asks for. Standard input is a listening socket.
//!
//! `confined LAYERS UID GID call NUMBER ARGUMENT…` makes one system call and prints its result or the name of
//! its error; an argument is a number, or `s:TEXT`, a pointer to a text, `z:BYTES`, one to zeroed memory, or
//! `x:HEX`, one to these bytes.
//! `confined LAYERS UID GID spawn|rare` starts a program, or takes the paths that a data plane rarely takes.
//! `confined LAYERS UID GID ring|system|sockets ADDRESS…` waits for a client, connects to each address in one
//! of three ways, and prints what came of it: by its ring and by MSG_FASTOPEN, by connect(2), or by
//! connect(2) with sockets that were the listening one and the client's.

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    reason = "an attacker makes system calls as he likes, and what fails here fails the test"
)]

use std::ffi::CString;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::panic::catch_unwind;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrLike as _, SockaddrStorage, socket};
use nix::unistd::{Gid, Uid, getppid};
use proxy::control::sealed;
use proxy::dataplane::privileges;
use proxy::io::ring::KernelRing;
use proxy::io::seam::{Op, Ring as _};
use proxy::io::settings::Ring;
use proxy::io::token::{Kind, Token};
use proxy::sandbox::{self, Layer, Layers};
use proxy::telemetry::logging;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [layers, uid, gid, what, rest @ ..] = arguments.as_slice() else { panic!("{arguments:?}") };
    let layers: Layers = layers.parse().unwrap();
    let identity = (Uid::from_raw(uid.parse().unwrap()), Gid::from_raw(gid.parse().unwrap()));
    sandbox::close_inherited().unwrap();
    privileges::drop_all(Some(identity), getppid(), layers).unwrap();
    let log = logging::init("info", logging::look(None)).unwrap();
    let (prepared, all) = std::sync::mpsc::channel();
    let (go, start) = std::sync::mpsc::channel::<Vec<SocketAddr>>();
    // A worker: it has its ring before the process is confined, and uses and drops it later.
    let worker = thread::spawn(move || {
        let mut ring =
            KernelRing::new(Ring { entries: 64, buffers: 16, buffer_size: 4096 }, 1 << 20).unwrap();
        prepared.send(()).unwrap();
        for address in start.recv().unwrap() {
            say(&format!("{address} by ring: {}", connect_by(&mut ring, address)));
        }
        drop(ring);
    });
    all.recv().unwrap();
    layers.take(Layer::Calls).unwrap();
    say("confined");
    let addresses = || rest.iter().map(|address| address.parse().unwrap()).collect::<Vec<SocketAddr>>();
    let mut by_ring = Vec::new();
    match what.as_str() {
        "ring" => {
            drop(client());
            addresses()
                .iter()
                .for_each(|address| say(&format!("{address} by send: {}", fast_open(*address))));
            by_ring = addresses();
        }
        "system" => {
            drop(client());
            for address in addresses() {
                let socket = socket_for(address);
                say(&format!("{address}: {}", connect(socket.as_raw_fd(), address)));
            }
        }
        "sockets" => {
            let (client, listener) = (client(), stdin());
            for address in addresses() {
                for (name, socket) in [("client", client.as_raw_fd()), ("listener", listener.as_raw_fd())] {
                    disconnect(socket);
                    say(&format!("{address} by {name}: {}", connect(socket, address)));
                }
            }
        }
        "call" => call(rest),
        "spawn" => say(&format!("{:?}", Command::new("/bin/sh").arg("-c").arg("true").status())),
        "rare" => rare(),
        other => panic!("{other}"),
    }
    go.send(by_ring).unwrap();
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
    let mut bytes = Vec::new();
    let mut value = |argument: &String| -> i64 {
        if let Some(text) = argument.strip_prefix("s:") {
            texts.push(CString::new(text).unwrap());
            texts.last().unwrap().as_ptr() as i64
        } else if let Some(length) = argument.strip_prefix("z:") {
            zeros.push(vec![0u64; length.parse::<usize>().unwrap().div_ceil(8)]);
            zeros.last().unwrap().as_ptr() as i64
        } else if let Some(hex) = argument.strip_prefix("x:") {
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            bytes.push((0..hex.len()).step_by(2).map(byte).collect::<Vec<u8>>());
            bytes.last().unwrap().as_ptr() as i64
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

/// The client that says when to begin.
fn client() -> TcpStream {
    TcpListener::from(stdin()).accept().unwrap().0
}

fn socket_for(address: SocketAddr) -> OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

fn outcome(result: Result<impl Sized, Errno>) -> String {
    result.map_or_else(|errno| format!("{errno:?}"), |_| "connected".to_owned())
}

fn connect_by(ring: &mut KernelRing, address: SocketAddr) -> String {
    let fd = ring.open(address).unwrap();
    ring.submit(Token::new(Kind::Connect, 0, 1), Op::Connect { fd, address });
    let mut completions = Vec::new();
    for _ in 0..100 {
        ring.wait(Some(Duration::from_millis(100))).unwrap();
        ring.completions(&mut completions);
        if let [completion] = completions.as_slice() {
            return outcome(if completion.result < 0 {
                Err(Errno::from_raw(-completion.result))
            } else {
                Ok(())
            });
        }
    }
    "nothing".to_owned()
}

fn connect(socket: RawFd, address: SocketAddr) -> String {
    outcome(nix::sys::socket::connect(socket, &SockaddrStorage::from(address)))
}

/// Connects to AF_UNSPEC, which ends a connection or a listening socket.
fn disconnect(socket: RawFd) {
    let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the kernel reads as many bytes as are given, which outlive the call.
    let result = unsafe { libc::connect(socket, &raw const unspecified, size_of_val(&unspecified) as u32) };
    assert_eq!(result, 0, "{:?}", Errno::last());
}

/// Sends with the first segment (tcp(7), MSG_FASTOPEN), which connects without connect(2).
fn fast_open(address: SocketAddr) -> String {
    let socket = socket_for(address);
    let to = SockaddrStorage::from(address);
    // SAFETY: the kernel reads one byte, and an address of the length that is given; both outlive the call.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), b"x".as_ptr().cast(), 1, libc::MSG_FASTOPEN, to.as_ptr(), to.len())
    };
    outcome(Errno::result(sent))
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
    assert!(std::net::TcpListener::from(stdin()).local_addr().is_ok());
    logging::set_level("debug").unwrap();
    say("alive");
}

fn deep(depth: usize) -> usize {
    let here = std::hint::black_box([depth; 8]);
    if depth == 0 { 1 } else { deep(depth - 1) + here[0] }
}

fn stdin() -> OwnedFd {
    std::io::stdin().as_fd().try_clone_to_owned().unwrap()
}
