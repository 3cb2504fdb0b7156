//! The `sluice` binary: the commands of `interface.md`, each a few lines over the library.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand};
use nix::unistd::{Gid, Pid, Uid};
use proxy::config::model::BAN_FOR;
use proxy::config::{self, Diagnostics, Loaded, units};
use proxy::control::bans::BanSource;
use proxy::control::messages::{Request, Response};
use proxy::control::state::Outcome;
use proxy::supervisor::ask::AskError;
use proxy::supervisor::{ask, key_log, leftovers, plan};
use proxy::telemetry::report;
use proxy::{dataplane, demo, supervisor};

/// Used wrongly, or a command that is not built yet.
const EXIT_USAGE: u8 = 2;

/// An eBPF/XDP-assisted reverse proxy on pinned io_uring workers.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run supervisor and data plane in the foreground
    Run {
        #[command(flatten)]
        config: Config,
        /// Append the secrets of every TLS connection, to clients and upstreams, to the file that
        /// SSLKEYLOGFILE names: whoever reads that file can read their traffic. For debugging; without this
        /// the variable is ignored
        #[arg(long)]
        allow_key_log: bool,
    },
    /// Validate a configuration: exit 0 or 1
    Check(Config),
    /// Show what would run here, what is missing, and what each absence costs
    Plan {
        #[command(flatten)]
        config: Config,
        /// Where /sys and /proc of the network cards are: another machine's, copied
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
    /// Show the running proxy's workers, listeners, upstreams, guard and steering
    Status {
        #[command(flatten)]
        run_dir: RunDir,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop the running proxy now; open connections are closed. Of one that was killed: remove the filter it
    /// left
    Stop(RunDir),
    /// Let the running proxy's exchanges end, for process.drain_timeout at most, then stop it
    Drain(RunDir),
    /// Read the running proxy's configuration anew and go over to it; connections stay. Without effect if
    /// anything is wrong with it: exit 1
    ///
    /// Routes, upstreams, certificates, listeners' limits, timeouts and trusted_proxies,
    /// process.drain_timeout and log.level change by it. A configuration that changes anything else is
    /// refused as a whole, with the keys that would need a restart. Certificates and other files that the
    /// configuration names are also reloaded by themselves when they change.
    Reload(RunDir),
    /// Replace the running binary (not built yet)
    Upgrade(Unbuilt),
    /// Drop every packet of an address to the running proxy's listeners for a time; an IPv6 address stands
    /// for its /64
    Ban {
        /// Whose
        #[arg(value_name = "ADDR")]
        address: BanSource,
        /// How long, such as "10m"; guard.ban_for without it
        #[arg(long = "for", value_name = "DURATION", value_parser = ban_duration)]
        duration: Option<Duration>,
        #[command(flatten)]
        run_dir: RunDir,
    },
    /// Lift a ban
    Unban {
        /// Whose
        #[arg(value_name = "ADDR")]
        address: BanSource,
        #[command(flatten)]
        run_dir: RunDir,
    },
    /// List the bans that hold
    Bans {
        #[command(flatten)]
        run_dir: RunDir,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Live terminal view (not built yet)
    Top(Unbuilt),
    /// The data plane; started by the supervisor
    #[command(hide = true)]
    DataPlane {
        #[arg(long)]
        parent: i32,
        #[arg(long, requires = "gid")]
        uid: Option<u32>,
        #[arg(long, requires = "uid")]
        gid: Option<u32>,
    },
    /// The demo's upstream
    #[command(hide = true)]
    DemoUpstream {
        #[arg(long, default_value = "127.0.0.1:9000")]
        address: SocketAddr,
    },
    /// The demo's certificate: makes it in this folder, unless one is there that still holds for a day
    #[command(hide = true)]
    DemoCertificate { folder: PathBuf },
}

#[derive(Debug, Args)]
struct Config {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct RunDir {
    /// The running proxy's process.run_dir
    #[arg(long, value_name = "DIR", default_value = "/run/sluice")]
    run_dir: PathBuf,
}

#[derive(Debug, Args)]
struct Unbuilt {
    #[arg(num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<String>,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run { config, allow_key_log } => run(&config.config, allow_key_log),
        Command::Check(Config { config }) => check(&config),
        Command::Plan { config, root } => show_plan(&config.config, &root),
        Command::Status { run_dir, json } => status(&run_dir.run_dir, json),
        Command::Stop(RunDir { run_dir }) => order(&run_dir, &Request::Stop),
        Command::Drain(RunDir { run_dir }) => order(&run_dir, &Request::Drain),
        Command::Reload(RunDir { run_dir }) => order(&run_dir, &Request::Reload),
        Command::Upgrade(_) => not_built("upgrade"),
        Command::Ban { address, duration, run_dir } => {
            let for_ms = duration.map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
            order(&run_dir.run_dir, &Request::Ban { address, for_ms })
        }
        Command::Unban { address, run_dir } => order(&run_dir.run_dir, &Request::Unban { address }),
        Command::Bans { run_dir, json } => bans(&run_dir.run_dir, json),
        Command::Top(_) => not_built("top"),
        Command::DataPlane { parent, uid, gid } => {
            let identity = uid.zip(gid).map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid)));
            dataplane::run(Pid::from_raw(parent), identity)
        }
        Command::DemoUpstream { address } => match demo::run(address) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("demo upstream on {address}: {error}")),
        },
        Command::DemoCertificate { folder } => match demo::certificate(&folder, SystemTime::now()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("demo certificate in {}: {error}", folder.display())),
        },
    }
}

fn run(path: &Path, allow_key_log: bool) -> ExitCode {
    let loaded = match load(path) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    match supervisor::run(loaded, allow_key_log) {
        Ok(Outcome::Clean) => ExitCode::SUCCESS,
        // Logged already.
        Ok(Outcome::Forced | Outcome::NeverReady) => ExitCode::FAILURE,
        Err(error) => fail(&error.to_string()),
    }
}

fn check(path: &Path) -> ExitCode {
    match load(path) {
        Ok(_) => {
            say(&format!("{}: valid\n", path.display()));
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

fn show_plan(path: &Path, root: &Path) -> ExitCode {
    let loaded = match load(path) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    match plan::plan(&loaded.config, root) {
        Ok(text) => {
            say(&text);
            if std::env::var_os(key_log::VARIABLE).is_some_and(|name| !name.is_empty()) {
                say(&format!(
                    "\n{} is set: `sluice run --allow-key-log` would write the secrets of all TLS \
                     connections there; without that it is ignored\n",
                    key_log::VARIABLE
                ));
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error.to_string()),
    }
}

/// Loads a configuration and prints what is wrong with it, or doubtful.
fn load(path: &Path) -> Result<Loaded, ExitCode> {
    // No core dump with the private keys that are read now; where it fails, none was to be had anyway.
    let _ = nix::sys::prctl::set_dumpable(false);
    let render = |diagnostics: &Diagnostics| diagnostics.render(std::io::stderr().is_terminal());
    match config::load(path) {
        Ok(loaded) => {
            if !loaded.warnings.is_empty() {
                eprintln!("{}", render(&loaded.warnings));
            }
            Ok(loaded)
        }
        Err(diagnostics) => {
            eprintln!("{}", render(&diagnostics));
            Err(ExitCode::FAILURE)
        }
    }
}

fn status(run_dir: &Path, json: bool) -> ExitCode {
    match ask::ask(run_dir, &Request::Status) {
        Ok(Response::Status(status)) if json => match serde_json::to_string_pretty(&status) {
            Ok(text) => {
                say(&format!("{text}\n"));
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error.to_string()),
        },
        Ok(Response::Status(status)) => {
            say(&report::render(&status));
            ExitCode::SUCCESS
        }
        Ok(Response::Failed(why)) => fail(&why),
        Ok(Response::Done(what)) => fail(&format!("unexpected answer: {what}")),
        Ok(Response::Bans(_)) => fail("unexpected answer"),
        Err(error @ AskError::Absent(_)) => match leftovers::describe(run_dir) {
            Some(left) => fail(&format!("{error}\n{left}")),
            None => fail(&error.to_string()),
        },
        Err(error) => fail(&error.to_string()),
    }
}

/// Something to do: the receipt comes when it is done.
fn order(run_dir: &Path, request: &Request) -> ExitCode {
    match ask::ask(run_dir, request) {
        Ok(Response::Done(what)) => {
            say(&format!("{what}\n"));
            ExitCode::SUCCESS
        }
        Ok(Response::Failed(why)) => fail(&why),
        Ok(Response::Status(_) | Response::Bans(_)) => fail("unexpected answer"),
        // Nobody is there to stop; what a killed one left may be.
        Err(error @ AskError::Absent(_)) if *request == Request::Stop => match leftovers::remove(run_dir) {
            Some(Ok(what)) => {
                say(&format!("{what}\n"));
                ExitCode::SUCCESS
            }
            Some(Err(why)) => fail(&why),
            None => fail(&error.to_string()),
        },
        Err(error) => fail(&error.to_string()),
    }
}

fn bans(run_dir: &Path, json: bool) -> ExitCode {
    match ask::ask(run_dir, &Request::Bans) {
        Ok(Response::Bans(bans)) if json => match serde_json::to_string_pretty(&bans) {
            Ok(text) => {
                say(&format!("{text}\n"));
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error.to_string()),
        },
        Ok(Response::Bans(bans)) => {
            say(&report::render_bans(&bans));
            ExitCode::SUCCESS
        }
        Ok(Response::Failed(why)) => fail(&why),
        Ok(Response::Status(_) | Response::Done(_)) => fail("unexpected answer"),
        Err(error) => fail(&error.to_string()),
    }
}

fn ban_duration(text: &str) -> Result<Duration, String> {
    let duration = units::duration(text)?;
    if BAN_FOR.contains(&duration) {
        return Ok(duration);
    }
    let (least, most) = (units::show_duration(*BAN_FOR.start()), units::show_duration(*BAN_FOR.end()));
    Err(format!("a ban holds for {least} to {most}"))
}

fn not_built(command: &str) -> ExitCode {
    eprintln!("sluice: `{command}` is not built yet");
    ExitCode::from(EXIT_USAGE)
}

fn fail(why: &str) -> ExitCode {
    eprintln!("sluice: {why}");
    ExitCode::FAILURE
}

/// A reader that has seen enough (`sluice status | head`) is no error.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
