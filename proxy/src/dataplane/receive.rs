//! The first thing a data plane hears: start message and descriptor batches, each checked, all within one
//! deadline.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::config::model::Config;
use crate::config::{self, Bytes, Diagnostics};
use crate::control::batches::{Collector, Handoff, HandoffError};
use crate::control::handoff::{Channel, ChannelError, DESCRIPTORS_MAX, Received};
use crate::control::messages::ToDataPlane;
use crate::control::now;
use crate::control::sealed::{self, SealedError};
use crate::time::Time;

/// For the whole handoff.
pub const WAIT: Duration = Duration::from_secs(10);

/// Why the data plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The messages that came over it.
    #[error("handoff: {0}")]
    Handoff(#[from] HandoffError),
    /// Nothing came.
    #[error("the handoff did not arrive within {WAIT:?}")]
    Late,
    /// Something else than a handoff came.
    #[error("handoff: unexpected {0}")]
    Unexpected(&'static str),
    /// The configuration's bytes could still change, or cannot be read.
    #[error("{}: {reason}", path.display())]
    Sealed {
        /// Which file.
        path: PathBuf,
        /// The reason.
        reason: SealedError,
    },
    /// The supervisor took this configuration, we do not.
    #[error("the configuration does not resolve here:\n{}", .0.render(false))]
    Resolve(Diagnostics),
}

/// Receives a whole handoff. Later messages stay in the channel.
///
/// # Errors
/// When it is late, or not as it should be.
pub fn handoff(channel: &Channel) -> Result<Handoff, ReceiveError> {
    let deadline = now() + WAIT;
    let first = next(channel, 0, deadline)?;
    let ToDataPlane::Start(start) = first.message else {
        return Err(ReceiveError::Unexpected("message before the start"));
    };
    let mut collector = Collector::new(*start)?;
    while !collector.is_complete() {
        let received = next(channel, DESCRIPTORS_MAX, deadline)?;
        let ToDataPlane::Batch { number, items } = received.message else {
            return Err(ReceiveError::Unexpected("message between the batches"));
        };
        collector.take(number, items, received.descriptors)?;
    }
    Ok(collector.finish()?)
}

fn next(
    channel: &Channel,
    descriptors_max: usize,
    deadline: Time,
) -> Result<Received<ToDataPlane>, ReceiveError> {
    loop {
        match channel.receive(descriptors_max) {
            Err(ChannelError::WouldBlock) => {}
            other => return Ok(other?),
        }
        let left = deadline.since(now());
        if left.is_zero() {
            return Err(ReceiveError::Late);
        }
        let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        let milliseconds = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // EINTR ends the wait early; the loop looks again.
        let _ = poll(&mut fds, PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX));
    }
}

/// The configuration out of its sealed files, resolved as the supervisor did.
///
/// # Errors
/// When a file is not sealed, or when it does not resolve.
pub fn configuration(files: Vec<(PathBuf, std::os::fd::OwnedFd)>) -> Result<Config, ReceiveError> {
    let open = |(path, fd): (PathBuf, _)| match sealed::open(fd, sealed::BYTES_MAX) {
        Ok(bytes) => Ok((path, Bytes::new(bytes))),
        Err(reason) => Err(ReceiveError::Sealed { path, reason }),
    };
    let files = files.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
    config::resolve(&files).map_err(ReceiveError::Resolve)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_configuration_that_could_still_change_is_refused() {
        let fd = memfd_create("test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("memfd");
        let mut file = std::fs::File::from(fd);
        file.write_all(b"[process]\n").expect("write");
        let error = configuration(vec![("/etc/proxy.toml".into(), file.into())]).expect_err("unsealed");
        assert!(matches!(error, ReceiveError::Sealed { reason: SealedError::Unsealed, .. }), "{error}");
    }

    #[test]
    fn a_configuration_that_does_not_resolve_names_the_problem() {
        let fd = sealed::seal("test", b"[process]\nrun_dri = \"/run/x\"\n").expect("memfd");
        let error = configuration(vec![("proxy.toml".into(), fd)]).expect_err("unknown key");
        assert!(error.to_string().contains("run_dri"), "{error}");
    }

    #[test]
    fn another_first_message_and_a_closed_channel_end_the_start() {
        let (ours, theirs) = Channel::pair().expect("pair");
        ours.send(&ToDataPlane::Stop, &[]).expect("send");
        assert!(matches!(handoff(&theirs), Err(ReceiveError::Unexpected(_))));
        drop(ours);
        assert!(matches!(handoff(&theirs), Err(ReceiveError::Channel(ChannelError::Closed))));
    }
}
