//! Load over TLS (see `benches::load::tls`). `fresh`: connections that each begin with a full or resumed
//! handshake. `idle`: idle connections. `probe`: the latencies of established connections.

use std::net::SocketAddr;
use std::process::ExitCode;

use benches::load::tls;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    /// The address to connect to.
    #[arg(long)]
    target: SocketAddr,
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// A connection for each request, until SIGINT.
    Fresh {
        /// Connections at a time.
        #[arg(long, default_value_t = 16)]
        connections: usize,
        /// Each connection but a thread's first resumes an earlier session.
        #[arg(long)]
        resume: bool,
    },
    /// Connections that have had one request, until standard input ends.
    Idle {
        /// How many connections.
        #[arg(long)]
        count: usize,
    },
    /// A fixed rate of requests over established connections.
    Probe {
        /// How many connections.
        #[arg(long, default_value_t = 64)]
        connections: usize,
        /// Requests a second, over all connections.
        #[arg(long, default_value_t = 1000)]
        rate: u64,
        /// How many seconds.
        #[arg(long)]
        seconds: u64,
    },
}

fn main() -> ExitCode {
    let Arguments { target, mode } = Arguments::parse();
    let result = match mode {
        Mode::Fresh { connections, resume } => tls::fresh(target, connections, resume),
        Mode::Idle { count } => tls::idle(target, count),
        Mode::Probe { connections, rate, seconds } => tls::probe(target, connections, rate, seconds),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tlsload: {error}");
            ExitCode::FAILURE
        }
    }
}
