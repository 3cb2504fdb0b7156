//! `relay --listen 127.0.0.1:P --upstream 127.0.0.1:Q --cpu N`: the limit for proxies, a bare io_uring relay
//! of bytes (see `benches::relay`). SIGUSR1 prints its counts as one line of JSON to standard error. SIGTERM
//! or SIGINT prints them too and ends it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::process::ExitCode;

use benches::load::raise_descriptor_limit;
use benches::relay::{Counts, Relay, Settings};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{Backlog, listen, setsockopt, sockopt};

#[derive(Parser)]
struct Arguments {
    /// The address to listen on.
    #[arg(long)]
    listen: SocketAddr,
    /// The address to which each accepted connection is relayed.
    #[arg(long)]
    upstream: SocketAddr,
    /// The CPU to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// Connections at a time.
    #[arg(long, default_value_t = Settings::default().connections)]
    connections: u32,
    /// Submission queue entries.
    #[arg(long, default_value_t = Settings::default().entries)]
    entries: u32,
    /// Receive buffers.
    #[arg(long, default_value_t = Settings::default().buffers)]
    buffers: u16,
    /// The size of a receive buffer in bytes.
    #[arg(long, default_value_t = Settings::default().buffer_size)]
    buffer_size: u16,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    if let Some(cpu) = arguments.cpu {
        benches::pin(cpu)?;
    }
    // The table of direct descriptors counts against this limit too.
    raise_descriptor_limit()?;
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1].into_iter().collect();
    signals.thread_block()?;
    let signal_fd = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;

    let listener = TcpListener::bind(arguments.listen)?;
    listen(&listener, Backlog::new(4096)?)?;
    // Accepted connections inherit it.
    setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
    let settings = Settings {
        connections: arguments.connections,
        entries: arguments.entries,
        buffers: arguments.buffers,
        buffer_size: arguments.buffer_size,
        ..Settings::default()
    };
    let mut relay = Relay::new(settings, &listener, arguments.upstream)?;
    let counts = relay.run(signal_fd.as_fd(), |counts| {
        while let Ok(Some(signal)) = signal_fd.read_signal() {
            if signal.ssi_signo != Signal::SIGUSR1 as u32 {
                return ControlFlow::Break(());
            }
            print(counts);
        }
        ControlFlow::Continue(())
    })?;
    print(&counts);
    Ok(())
}

fn print(counts: &Counts) {
    let Counts { enters, completions, accepted, paused, starved, aborted } = counts;
    eprintln!(
        "{{\"enters\":{enters},\"completions\":{completions},\"accepted\":{accepted},\"paused\":{paused},\
         \"starved\":{starved},\"aborted\":{aborted}}}"
    );
}
