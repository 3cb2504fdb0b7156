//! Load over TLS (see `benches::load::tls`): connections that each begin with a handshake, full or resumed
//! (`fresh`); idle ones (`idle`); the latencies of established ones (`probe`).

use std::net::SocketAddr;
use std::process::ExitCode;

use benches::load::tls;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    /// Where to connect to.
    #[arg(long)]
    target: SocketAddr,
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// A connection for each request, until SIGINT.
    Fresh {
        /// At a time.
        #[arg(long, default_value_t = 16)]
        connections: usize,
        /// Each but the first of a thread goes on with an earlier session.
        #[arg(long)]
        resume: bool,
    },
    /// Connections that have had one request, until standard input ends.
    Idle {
        /// How many.
        #[arg(long)]
        count: usize,
    },
    /// A fixed rate of requests over established connections.
    Probe {
        /// How many.
        #[arg(long, default_value_t = 64)]
        connections: usize,
        /// Requests a second, over all.
        #[arg(long, default_value_t = 1000)]
        rate: u64,
        /// How long.
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
