//! The data plane process: unprivileged; control thread, log thread, workers. It is started by the supervisor
//! with the channel as its standard input and opens no configured path: everything it needs comes over that
//! channel.

mod build;
pub mod control_thread;
pub mod privileges;
pub mod receive;
pub mod reload;
pub mod threads;
pub mod tickets;
pub mod view;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use nix::unistd::{Gid, Pid, Uid};
use tracing::warn;

use self::build::build;
use self::control_thread::{Control, ControlError};
use self::threads::Crew;
use crate::control::handoff::Channel;
use crate::control::messages::ToSupervisor;
use crate::error::explain_shortage;
use crate::sandbox::{Layer, LayerError, Layers};
use crate::telemetry::key_log::KeyLogGuard;
use crate::telemetry::logging;
use crate::{placement, sandbox};

/// Why the data plane ended by itself.
#[derive(Debug, thiserror::Error)]
enum DataPlaneError {
    #[error("privileges: {0}")]
    Privileges(#[from] privileges::PrivilegeError),
    #[error(transparent)]
    Receive(#[from] receive::ReceiveError),
    #[error(transparent)]
    Tickets(#[from] tickets::TicketsError),
    #[error(transparent)]
    Log(#[from] logging::LogError),
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error("{what}: {why}", what = .0, why = explain_shortage(.1))]
    Io(&'static str, io::Error),
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// `sluice data-plane`: the process's whole life. `parent`: the supervisor's process id; `identity`: the user
/// to become; `layers`: those of the sandbox that it takes.
#[must_use]
pub fn run(parent: Pid, identity: Option<(Uid, Gid)>, layers: Layers) -> ExitCode {
    // Before anything is opened: everything else comes over the channel.
    if let Err(error) = sandbox::close_inherited() {
        eprintln!("sluice data-plane: close_range: {error}");
        return ExitCode::FAILURE;
    }
    let channel = match take_channel() {
        Ok(channel) => channel,
        Err(error) => {
            eprintln!("sluice data-plane is started by `sluice run` only: {error}");
            return ExitCode::FAILURE;
        }
    };
    // A second descriptor of the same socket, for a last word: the control thread takes the first.
    let last_word = channel.as_fd().try_clone_to_owned().map(Channel::from);
    match serve(channel, parent, identity, layers) {
        Ok(()) => ExitCode::SUCCESS,
        // The control thread has said it already, or there is nobody to hear it.
        Err(DataPlaneError::Control(_)) => ExitCode::FAILURE,
        Err(error) => {
            let reason = error.to_string();
            if !last_word.is_ok_and(|channel| channel.send(&ToSupervisor::Failed { reason }, &[]).is_ok()) {
                eprintln!("sluice data-plane: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The channel is our standard input; nothing else shall find it there.
fn take_channel() -> io::Result<Channel> {
    let channel = io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    // Anything but a SEQPACKET socket was not put there by a supervisor.
    let kind = nix::sys::socket::getsockopt(&channel, nix::sys::socket::sockopt::SockType)?;
    if kind != nix::sys::socket::SockType::SeqPacket {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(Channel::from(channel))
}

fn serve(
    channel: Channel,
    parent: Pid,
    identity: Option<(Uid, Gid)>,
    layers: Layers,
) -> Result<(), DataPlaneError> {
    // First of all, and before the first thread: afterwards not one instruction runs with the supervisor's
    // rights.
    privileges::drop_all(identity, parent, layers)?;
    // Re-executed through /proc/self/exe, it would be called `exe`.
    let _ = nix::sys::prctl::set_name(c"sluice-control");
    let mut handoff = receive::handoff(&channel)?;
    // Threads inherit it: the log thread stays there, workers pin themselves elsewhere.
    let control_cpus = handoff.start.control_cpus.clone();
    let pinned = if control_cpus.is_empty() { Ok(()) } else { placement::pin_current_to(&control_cpus) };
    let _log = logging::init(&handoff.start.log_level, handoff.start.log_look)?;
    if let Err(error) = pinned {
        warn!("control thread: {error}");
    }
    // Before the first handshake, and until after the last.
    let key_log = handoff.key_log.take().map(KeyLogGuard::start).transpose();
    let key_log = key_log.map_err(|error| DataPlaneError::Io("key log", error))?;
    let (plane, seeds) = build(handoff)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| DataPlaneError::Io("tokio", error))?;
    let _entered = runtime.enter();
    let control = Control::new(
        channel,
        plane.view,
        plane.commands,
        plane.questions,
        plane.access_log,
        plane.ticket_keys,
    );
    let mut control = control.map_err(|error| DataPlaneError::Io("channel", error))?;
    let mut crew = Crew::prepare(seeds).map_err(|error| DataPlaneError::Io("worker threads", error))?;
    // Every ring is made, and no byte of a client was read.
    layers.take(Layer::Calls)?;
    crew.go();
    runtime.block_on(control.run(&mut crew, plane.admin))?;
    // The workers' last records are in the queues then; dropping the control thread's state writes them.
    crew.join();
    drop(control);
    drop(key_log);
    Ok(())
}
