//! The supervisor: privileged, small, never reads a byte from a client.

pub mod allowance;
pub mod ask;
pub mod bans;
pub mod cgroup;
pub mod child;
pub mod clients;
pub mod destinations;
pub mod estate;
pub mod expiry;
pub mod key_log;
pub mod leftovers;
pub mod lifecycle;
pub mod logs;
pub mod network;
mod notify;
pub mod plan;
pub mod planes;
pub mod privileges;
mod process;
pub mod reload;
pub mod run_dir;
pub mod sentry;
pub mod tickets;
pub mod topology;
pub mod watch;
pub mod watchdog;

use nix::sys::signalfd::SignalFd;
use tracing::{error, info, warn};

use crate::config::Loaded;
use crate::control::life::RunOutcome;
use crate::telemetry::logging;

/// Why the supervisor did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A part of its estate cannot be had.
    #[error(transparent)]
    Estate(#[from] estate::EstateError),
    /// Another one runs here, or the directory is of no use.
    #[error(transparent)]
    RunDir(#[from] run_dir::RunDirError),
    /// The logger.
    #[error(transparent)]
    Log(#[from] logging::LogError),
    /// This process or its kernel lacks something.
    #[error("{0}")]
    Obstacle(plan::Finding),
    /// The key log.
    #[error(transparent)]
    KeyLog(#[from] key_log::OpenError),
    /// signalfd(2).
    #[error("signals: {0}")]
    Signals(#[from] nix::Error),
}

impl StartError {
    /// Whether the log has it, like every error after the log began.
    #[must_use]
    pub const fn is_logged(&self) -> bool {
        !matches!(self, Self::Log(_) | Self::Signals(_))
    }
}

/// `sluice run`: supervises data planes until the end is asked for. `allow_key_log`: secrets may be written
/// to where SSLKEYLOGFILE says.
///
/// # Errors
/// When it cannot start; nothing was started then.
pub fn run(loaded: Loaded, allow_key_log: bool) -> Result<RunOutcome, StartError> {
    // Our memory has private keys and ticket keys: no core dump, and nobody without CAP_SYS_PTRACE looks into
    // it.
    nix::sys::prctl::set_dumpable(false)?;
    // Before the first thread, which inherits the mask.
    let signals = lifecycle::signals()?;
    let _log = logging::init(&loaded.config.log.level, logs::look(loaded.config.log.format))?;
    start(loaded, allow_key_log, signals)
        .map(lifecycle::Supervisor::run)
        .inspect_err(|error| error!("{error}"))
}

/// Claims everything.
fn start(
    loaded: Loaded,
    allow_key_log: bool,
    signals: SignalFd,
) -> Result<lifecycle::Supervisor, StartError> {
    let run_dir = run_dir::RunDir::claim(&loaded.config.process.run_dir)?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        instance = run_dir.instance(),
        pid = std::process::id(),
        "sluice starts"
    );
    loaded.warnings.iter().for_each(|warning| warn!("{warning}"));
    let watched = loaded.watched.clone();
    let key_log = key_log::KeyLog::open(allow_key_log, std::env::var_os(key_log::VARIABLE))?;
    if let Some(obstacle) = plan::obstacles(&loaded.config).into_iter().next() {
        return Err(StartError::Obstacle(obstacle));
    }
    let mut estate = estate::Estate::claim(loaded, run_dir.folder())?;
    estate.key_log = key_log;
    if let Err(error) = privileges::reduce() {
        warn!("the supervisor keeps capabilities that it does not need: {error}");
    }
    Ok(lifecycle::Supervisor::new(estate, run_dir, signals, watched))
}
