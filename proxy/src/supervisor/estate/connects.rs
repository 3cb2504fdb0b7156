//! Where data planes connect to: the programs that judge it, and the addresses that they allow. Each data
//! plane is known to the programs before it gets anything of a client.

use tracing::{error, info, warn};

use super::{Estate, EstateError};
use crate::config::model::Config;
use crate::control::status::DestinationsStatus;
use crate::kernel::{KernelError, Programs, destinations};
use crate::sandbox::{Lack, Layer, Layers, Sandbox};
use crate::time::Time;

/// Attaches the programs, with the destinations of the configuration, where the sandbox has this layer.
/// Without them the layer is taken out of it.
pub(super) fn judge(
    config: &Config,
    programs: Option<&mut Programs>,
    sandbox: &mut Layers,
    degraded: &mut Vec<String>,
) -> Result<(), EstateError> {
    if !sandbox.has(Layer::Destinations) {
        return Ok(());
    }
    let begun = match programs {
        Some(programs) => programs
            .destinations
            .allow(&config.destinations().collect())
            .and_then(|()| programs.judge_connects())
            .map_err(|error| error.to_string()),
        None => Err(destinations::find().err().unwrap_or_else(|| "no eBPF program can be loaded".to_owned())),
    };
    match begun {
        Ok(cgroup) => {
            info!(cgroup = %cgroup.display(), "the data plane connects to endpoints of upstreams alone");
            Ok(())
        }
        Err(reason) => {
            sandbox.remove(Layer::Destinations);
            lacking(config, reason, degraded)
        }
    }
}

fn lacking(config: &Config, reason: String, degraded: &mut Vec<String>) -> Result<(), EstateError> {
    let lack = Lack { layer: Layer::Destinations, reason };
    if config.process.sandbox == Sandbox::Require {
        return Err(EstateError::Sandbox(lack));
    }
    degraded.push(lack.remark());
    Ok(())
}

impl Estate {
    /// Judges the connects of a data plane that was started just now.
    ///
    /// # Errors
    /// The reason why its connects would not be judged, so that it must not run.
    pub fn judge_connects_of(&mut self, pid: u32) -> Result<(), String> {
        let sandbox = self.config.process.sandbox;
        let Some(programs) = self.judging() else { return Ok(()) };
        let failed = |error: KernelError| format!("its connects cannot be judged: {error}");
        programs.destinations.judge(pid).map_err(failed)?;
        // Somebody may have moved us to another cgroup, and its sockets would belong to that.
        match programs.judge_connects().map_err(failed) {
            Err(reason) if sandbox != Sandbox::Require => {
                warn!("if Sluice was moved to another cgroup: {reason}");
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// A data plane is dead, and not reaped yet.
    pub fn judge_no_more(&mut self, pid: u32) {
        let Some(programs) = self.judging() else { return };
        if let Err(error) = programs.destinations.release(pid) {
            error!(pid, "connects of a process that gets the dead data plane's id will be judged: {error}");
        }
    }

    /// Allows the destinations of a configuration that may follow, besides those of today.
    ///
    /// # Errors
    /// When there is no room for all of them. Those of today stay allowed.
    pub fn propose_destinations(&mut self, config: &Config) -> Result<(), String> {
        self.destinations.propose(config.destinations().collect());
        let allowed = self.destinations.allowed();
        let Some(programs) = self.judging() else { return Ok(()) };
        let Err(error) = programs.destinations.allow(&allowed) else { return Ok(()) };
        self.withdraw_destinations();
        Err(format!("its endpoints cannot be allowed: {error}"))
    }

    /// That configuration does not follow.
    pub fn withdraw_destinations(&mut self) {
        self.destinations.withdraw();
        self.follow_destinations();
    }

    /// No data plane holds a configuration before this one any more.
    pub fn release_destinations(&mut self, snapshot: u64) {
        self.destinations.released(snapshot);
        self.follow_destinations();
    }

    /// When `expire_destinations` has something to do.
    #[must_use]
    pub fn next_destinations_expiry(&self) -> Option<Time> {
        self.destinations.next_expiry()
    }

    /// Forbids destinations of configurations that were replaced long ago.
    pub fn expire_destinations(&mut self, now: Time) {
        if self.destinations.next_expiry().is_some_and(|due| due <= now) {
            self.destinations.expire(now);
            self.follow_destinations();
        }
    }

    /// For the status; `None`: nothing is judged.
    #[must_use]
    pub fn destinations_status(&self) -> Option<DestinationsStatus> {
        let programs = self.programs.as_ref().filter(|programs| programs.destinations.is_judging())?;
        let refused = programs.destinations.refused();
        let refused = refused.inspect_err(|error| warn!("status of connects: {error}")).unwrap_or(0);
        Some(DestinationsStatus { allowed: programs.destinations.allowed(), refused })
    }

    fn follow_destinations(&mut self) {
        let allowed = self.destinations.allowed();
        let Some(programs) = self.judging() else { return };
        if let Err(error) = programs.destinations.allow(&allowed) {
            error!("the data plane may still connect to endpoints that are gone: {error}");
        }
    }

    fn judging(&mut self) -> Option<&mut Programs> {
        self.programs.as_mut().filter(|programs| programs.destinations.is_judging())
    }
}
