//! The command line of `sluice`: its commands and options, with the texts of `--help` and of the man page.
//! `main` runs the commands.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::model::BAN_FOR;
use crate::config::units;
use crate::control::bans::BanSource;
use crate::sandbox::Layers;

/// An eBPF/XDP-assisted reverse proxy on pinned io_uring workers.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run supervisor and data plane in the foreground
    Run {
        /// What to run.
        #[command(flatten)]
        config: Config,
        /// Append the secrets of every TLS connection, with clients and with endpoints, to the file that
        /// SSLKEYLOGFILE names. A reader of that file can read the traffic. For debugging; without this
        /// option the variable is ignored
        #[arg(long)]
        allow_key_log: bool,
    },
    /// Validate a configuration: exit 0 or 1. Users, interfaces, addresses and CPUs that it names have to be
    /// here too
    Check {
        /// What to validate; `-` reads standard input.
        #[command(flatten)]
        config: Config,
        /// Look at the text alone, on a machine without its keys, users, interfaces and addresses
        #[arg(long)]
        no_files: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what would run here, what is missing, and what each absence costs. Exit 1 if a start would fail
    Plan {
        /// What would run; `-` reads standard input.
        #[command(flatten)]
        config: Config,
        /// The folder that holds /sys and /proc of the network cards, such as a copy from another machine
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the running proxy's workers, listeners, upstreams, guard and steering
    Status {
        /// Of which instance.
        #[command(flatten)]
        run_dir: RunDir,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop the running proxy now and cut open connections. If it was killed before, remove the filter that
    /// it left
    Stop(RunDir),
    /// Let the running proxy's requests end, for process.drain_timeout at most, then stop it.
    /// Before that, process.drain_delay serves on
    Drain(RunDir),
    /// Read the running proxy's configuration anew and go over to it; connections stay. If anything is wrong
    /// with it, nothing changes: exit 1
    ///
    /// Routes, upstreams, certificates, listeners' limits, timeouts and trusted_proxies, guard.deny,
    /// process.drain_delay, process.drain_timeout, process.watchdog and log.level change by it. A
    /// configuration that changes anything else is refused as a whole, with the keys that would need a
    /// restart. Certificates and other files that the configuration names are also reloaded by themselves
    /// when they change.
    Reload(RunDir),
    /// Replace the running binary (not built yet)
    Upgrade(Unbuilt),
    /// Drop every packet of an address to the running proxy's listeners for a time; an IPv6 address stands
    /// for its /64
    Ban {
        /// The address to ban
        #[arg(value_name = "ADDR")]
        address: BanSource,
        /// How long, such as "10m"; guard.ban_for without it
        #[arg(long = "for", value_name = "DURATION", value_parser = ban_duration)]
        duration: Option<Duration>,
        /// Of which instance.
        #[command(flatten)]
        run_dir: RunDir,
    },
    /// Lift a ban
    Unban {
        /// The address that is banned
        #[arg(value_name = "ADDR")]
        address: BanSource,
        /// Of which instance.
        #[command(flatten)]
        run_dir: RunDir,
    },
    /// List the bans that hold
    Bans {
        /// Of which instance.
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
        /// The supervisor's process.
        #[arg(long)]
        parent: i32,
        /// The user that it becomes.
        #[arg(long, requires = "gid")]
        uid: Option<u32>,
        /// The group that it becomes.
        #[arg(long, requires = "uid")]
        gid: Option<u32>,
        /// The layers that confine it.
        #[arg(long, default_value = "")]
        sandbox: Layers,
    },
    /// The demo's upstream
    #[command(hide = true)]
    DemoUpstream {
        /// Where it listens.
        #[arg(long, default_value = "127.0.0.1:9000")]
        address: SocketAddr,
    },
    /// The demo's certificate: makes it in this folder, unless one is there that still holds for a day
    #[command(hide = true)]
    DemoCertificate {
        /// Where it is made.
        folder: PathBuf,
    },
}

/// A configuration.
#[derive(Debug, Args)]
pub struct Config {
    /// The configuration file; `-`: standard input, for check and plan
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// A running instance.
#[derive(Debug, Args)]
pub struct RunDir {
    /// The running proxy's process.run_dir
    #[arg(long, value_name = "DIR", default_value = "/run/sluice")]
    pub run_dir: PathBuf,
}

/// Whatever stands behind a command that is not built.
#[derive(Debug, Args)]
pub struct Unbuilt {
    #[arg(num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<String>,
}

fn ban_duration(text: &str) -> Result<Duration, String> {
    let duration = units::duration(text)?;
    if BAN_FOR.contains(&duration) {
        return Ok(duration);
    }
    let (least, most) = (units::show_duration(*BAN_FOR.start()), units::show_duration(*BAN_FOR.end()));
    Err(format!("a ban holds for {least} to {most}"))
}
