//! The eBPF programs of an estate: loaded and attached, or the reason why Sluice goes on without them. Their
//! sweeps, logs and status go through this file too.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::net::if_::if_nametoindex;
use proxy_common::steer::WORKERS_MAX;
use tracing::{info, warn};

use super::{Estate, EstateError};
use crate::config::model::Config;
use crate::control::life::SLOT_GENERATION;
use crate::control::now;
use crate::control::status::SteeringStatus;
use crate::kernel::guard::GuardMode;
use crate::kernel::guard::pins::{PinError, Pins};
use crate::kernel::links;
use crate::kernel::{KernelError, Programs, Sysctls};
use crate::time::Time;

impl Estate {
    /// Steering, and the guard where interfaces are named.
    pub(super) fn apply(&mut self, mut programs: Programs) -> Result<(), EstateError> {
        if let Err(error) = self.steer(&mut programs) {
            self.degraded.push(format!(
                "steering: the kernel's hash chooses the worker of some or all flows ({error})"
            ));
        }
        self.guard(&mut programs)?;
        programs.guard.keep_pins();
        self.programs = Some(programs);
        Ok(())
    }

    fn steer(&self, programs: &mut Programs) -> Result<(), KernelError> {
        programs.steering.apply(self.config.steering, self.config.workers.stuck_after)?;
        for bound in &self.bound {
            let sockets: Vec<BorrowedFd<'_>> = bound.sockets.iter().map(AsFd::as_fd).collect();
            programs.steer(bound.key.address, SLOT_GENERATION, &sockets)?;
        }
        Ok(())
    }

    /// When `sweep` has something to do.
    #[must_use]
    pub fn next_sweep(&self) -> Option<Time> {
        self.programs.as_ref().and_then(|programs| programs.guard.next_ban_sweep())
    }

    /// Takes ended bans out of the table.
    pub fn sweep(&mut self, now: Time) {
        if let Some(programs) = &mut self.programs
            && programs.guard.next_ban_sweep().is_some_and(|due| due <= now)
        {
            match programs.guard.sweep_bans(now) {
                Ok(0) => {}
                Ok(count) => info!(count, "bans are over"),
                Err(error) => warn!("bans that are over stay in the table: {error}"),
            }
        }
    }

    /// When `follow_pressure` has something to do.
    #[must_use]
    pub fn next_look_at_pressure(&self) -> Option<Time> {
        self.programs.as_ref().and_then(|programs| programs.guard.next_look_at_pressure())
    }

    /// Turns cookies for every SYN on and off.
    pub fn follow_pressure(&mut self, now: Time) {
        if let Some(programs) = &mut self.programs
            && programs.guard.next_look_at_pressure().is_some_and(|due| due <= now)
            && let Err(error) = programs.follow_pressure(now, &mut self.sysctls)
        {
            warn!("guard.syn_cookies: {error}");
        }
    }

    /// Messages of the eBPF programs go to the log.
    pub fn flush_logs(&mut self) {
        if let Some(programs) = &mut self.programs {
            programs.flush_logs();
        }
    }

    /// Steering, for the status; flows by worker.
    #[must_use]
    pub fn steering_status(&self) -> SteeringStatus {
        let programs = self.programs.as_ref();
        let status = programs.and_then(|programs| {
            programs.steering.status().inspect_err(|error| warn!("steering status: {error}")).ok()
        });
        let Some(mut status) = status else {
            return SteeringStatus { policy: "kernel-hash".into(), ..SteeringStatus::default() };
        };
        let slots = std::mem::take(&mut status.selected);
        for (slot, flows) in slots {
            *status.selected.entry(slot % WORKERS_MAX).or_default() += flows;
        }
        status
    }
}

/// Before the first listening socket is made. `None`: this host or its rights do not allow it.
pub(super) fn load(config: &Config, degraded: &mut Vec<String>) -> Result<Option<Programs>, EstateError> {
    let guarded = !config.guard.interfaces.is_empty();
    match programs_with_pins(config, degraded)? {
        Ok(programs) => Ok(Some(programs)),
        Err(error) if guarded && config.guard.mode != GuardMode::Auto => Err(EstateError::Demand(error)),
        Err(error) => {
            degraded.push(format!("steering: the kernel's hash chooses the worker ({error})"));
            if guarded {
                degraded.push(format!("guard: no packet is judged before the kernel handles it ({error})"));
            }
            Ok(None)
        }
    }
}

/// Loads the programs. If an interface is guarded they are pinned, over the leftovers of an earlier run.
fn programs_with_pins(
    config: &Config,
    degraded: &mut Vec<String>,
) -> Result<Result<Programs, KernelError>, EstateError> {
    let (run_dir, interfaces) = (&config.process.run_dir, &config.guard.interfaces);
    if interfaces.is_empty() {
        if let Some(mut left) = Pins::find(run_dir) {
            match left.remove() {
                Ok(()) => {
                    warn!("no interface is guarded any more: the filter that an earlier run left is removed")
                }
                Err(error) => warn!("the filter that an earlier run left stays: {error}"),
            }
        }
        return Ok(Programs::load());
    }
    let pins = match Pins::claim(run_dir) {
        Ok(pins) => pins,
        Err(error @ PinError::Taken { .. }) => return Err(EstateError::Pins(error)),
        Err(error) => {
            degraded.push(format!("pins: a crash of the supervisor ends the filter and its bans ({error})"));
            return Ok(Programs::load());
        }
    };
    let loaded = Programs::load_pinned(pins, now());
    Ok(loaded.and_then(|mut programs| programs.guard.detach_others(interfaces).map(|()| programs)))
}

/// The kernel's settings first, then the program that relies on them.
pub(super) fn use_cookies(
    config: &Config,
    programs: &mut Programs,
    sysctls: &mut Sysctls,
    degraded: &mut Vec<String>,
) {
    let guard = &config.guard;
    if guard.interfaces.is_empty() {
        return;
    }
    match programs.guard.use_cookies(guard, sysctls) {
        Ok(lacks) => degraded.extend(lacks.into_iter().map(|lack| format!("guard.syn_cookies: {lack}"))),
        Err(error) => degraded.push(format!(
            "guard.syn_cookies: SYNs are not answered before the kernel handles them ({error})"
        )),
    }
}

/// Connections count from the first one on: the program is attached, and knows whose they are, before
/// anything listens.
pub(super) fn count_connections(config: &Config, programs: &mut Programs, degraded: &mut Vec<String>) {
    let guard = &config.guard;
    if guard.interfaces.is_empty() || guard.connections_per_ip.is_none() {
        return;
    }
    let addresses: Vec<SocketAddr> =
        config.listeners.iter().flat_map(|listener| listener.addresses.iter().copied()).collect();
    let counting = programs.apply_guard(guard, &addresses).and_then(|()| programs.count_connections());
    match counting {
        Ok(cgroup) => info!(cgroup = %cgroup.display(), "connections are counted by source"),
        Err(error) => degraded.push(format!(
            "guard.connections_per_ip: held when connections are accepted, not before the kernel handles \
             their handshakes ({error})"
        )),
    }
}

/// A name that is not there is a mistake in every mode.
pub(super) fn check_interfaces(config: &Config) -> Result<(), EstateError> {
    for name in &config.guard.interfaces {
        if if_nametoindex(name.as_str()).is_err() {
            let interfaces = nix::net::if_::if_nameindex();
            let names = interfaces
                .iter()
                .flat_map(|list| list.iter())
                .map(|one| one.name().to_string_lossy().into_owned());
            let existing = names.collect::<Vec<_>>().join(", ");
            return Err(EstateError::Interface { name: name.clone(), existing });
        }
        if let Some(reason) = links::without_ethernet(name) {
            return Err(EstateError::Frames { name: name.clone(), reason });
        }
    }
    Ok(())
}
