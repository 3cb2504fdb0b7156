//! `arrivals --target 127.0.0.1:P --rate R --connections N --seconds S`: open-loop HTTP/1.1 load (see
//! `benches::load::arrivals`). The first second is warm-up and not recorded. Prints one line of JSON.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use benches::load::arrivals::{Report, Settings, run};
use benches::load::raise_descriptor_limit;
use clap::Parser;

const WARM_UP: Duration = Duration::from_secs(1);

#[derive(Parser)]
struct Arguments {
    /// The address that gets the requests.
    #[arg(long)]
    target: SocketAddr,
    /// Requests a second.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Requests under way at a time.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// How long requests arrive, including the warm-up of a second.
    #[arg(long, value_parser = clap::value_parser!(u64).range(2..))]
    seconds: u64,
    /// Path and query.
    #[arg(long, default_value = "/")]
    path: String,
    /// The CPU to run on.
    #[arg(long)]
    cpu: Option<usize>,
}

fn main() -> ExitCode {
    match measure(Arguments::parse()) {
        Ok(report) => {
            print(&report);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("arrivals: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: Arguments) -> io::Result<Report> {
    if let Some(cpu) = arguments.cpu {
        benches::pin(cpu)?;
    }
    raise_descriptor_limit()?;
    run(&Settings {
        target: arguments.target,
        path: arguments.path,
        rate: arguments.rate,
        connections: arguments.connections,
        duration: Duration::from_secs(arguments.seconds),
        warm_up: WARM_UP,
    })
}

fn print(report: &Report) {
    let Report { scheduled, completed, errors, unfinished, seconds, rate, latencies } = report;
    let micros = |share| latencies.quantile(share) as f64 / 1e3;
    println!(
        "{{\"scheduled\":{scheduled},\"completed\":{completed},\"errors\":{errors},\
         \"unfinished\":{unfinished},\"seconds\":{seconds:.3},\"p50_us\":{:.1},\"p99_us\":{:.1},\
         \"p999_us\":{:.1},\"max_us\":{:.1},\"rate\":{rate:.1}}}",
        micros(0.5),
        micros(0.99),
        micros(0.999),
        latencies.max() as f64 / 1e3,
    );
}
