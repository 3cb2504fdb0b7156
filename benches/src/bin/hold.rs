//! `hold --target 127.0.0.1:P --count N`: opens idle keep-alive connections (see `benches::load::hold`),
//! prints `{"ready":N}`, holds them until standard input ends or SIGTERM comes, and prints `{"alive":M}`. If
//! a connection does not become ready, it fails.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::thread;

use benches::load::hold::{Settings, open};
use benches::load::raise_descriptor_limit;
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};

#[derive(Parser)]
struct Arguments {
    /// The address to connect to.
    #[arg(long)]
    target: SocketAddr,
    /// How many connections.
    #[arg(long)]
    count: usize,
    /// Source addresses, used in turn.
    #[arg(long, value_delimiter = ',')]
    sources: Vec<IpAddr>,
    /// Path and query.
    #[arg(long, default_value = "/")]
    path: String,
    /// Requests on each connection.
    #[arg(long, default_value_t = 1)]
    requests: u32,
    /// How many connections are opened at a time.
    #[arg(long, default_value_t = 64)]
    at_once: usize,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hold: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> io::Result<()> {
    raise_descriptor_limit()?;
    let Arguments { target, count, sources, path, requests, at_once } = arguments;
    let held = open(&Settings { target, count, sources, path, requests, at_once })?;
    // Signals are blocked before the threads start, since threads inherit the mask.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;
    println!("{{\"ready\":{count}}}");
    // Either thread ends the holding; the other one ends with the process. Threads are needed because a
    // terminal or /dev/null cannot be polled for its end.
    let (end, by_signal) = io::pipe()?;
    let by_input = by_signal.try_clone()?;
    thread::spawn(move || {
        let _ = signals.wait();
        let _ = io::Write::write(&mut &by_signal, b"s");
    });
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock().by_ref(), &mut io::sink());
        let _ = io::Write::write(&mut &by_input, b"i");
    });
    println!("{{\"alive\":{}}}", held.hold(end.as_fd())?);
    Ok(())
}
