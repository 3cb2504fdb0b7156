//! Where the guard is attached, from the start on: an interface that was made anew gets it again. As long as
//! it does not, the lack and its reason are shown, and nothing claims otherwise.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tracing::{error, info, warn};

use super::{Estate, EstateError};
use crate::control::now;
use crate::control::status::GuardStatus;
use crate::kernel::changes;
use crate::kernel::guard::{GuardMode, GuardProgram, Presence, XdpMode};
use crate::kernel::{KernelError, Programs};
use crate::supervisor::leftovers;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Guarding {
    /// The rules are in the maps, so that the program may be attached.
    has_rules: bool,
    /// Interfaces that lack the program, with the reasons.
    unguarded: BTreeMap<String, String>,
    /// Interfaces with the program that have another name now.
    renamed: BTreeMap<String, String>,
    /// Why nobody knows which addresses are local.
    no_locals: Option<String>,
}

impl Guarding {
    /// Looks at one interface, and attaches the program where it is not.
    fn follow(&mut self, programs: &mut Programs, interface: &str, mode: GuardMode) {
        let lost = match programs.guard.look(interface) {
            Presence::Here => {
                self.renamed.remove(interface);
                return;
            }
            Presence::Renamed(name) => {
                if self.renamed.insert(interface.to_owned(), name.clone()) != Some(name) {
                    warn!("{}", self.remark(interface).unwrap_or_default());
                }
                return;
            }
            Presence::Lost(why) => Some(why),
            Presence::Absent => None,
        };
        self.renamed.remove(interface);
        match programs.attach_guard(interface, mode) {
            Ok(mode) => {
                self.unguarded.remove(interface);
                info!(
                    interface,
                    mode = mode.label(),
                    "XDP attached again: {}",
                    lost.unwrap_or("it was missing")
                );
            }
            Err(error) => {
                self.unguarded.insert(interface.to_owned(), error.to_string());
                if lost.is_some() {
                    warn!("{}", self.remark(interface).unwrap_or_default());
                }
            }
        }
    }

    /// Tells the program which addresses are local, as the kernel says now. Without that it takes every
    /// address for a local one, so that nothing goes unjudged.
    fn keep_locals(&mut self, programs: &mut Programs) {
        let locals = changes::locals().map_err(|error| error.to_string());
        let kept =
            locals.and_then(|locals| programs.guard.keep_locals(locals).map_err(|error| error.to_string()));
        let Err(reason) = kept else {
            self.no_locals = None;
            return;
        };
        if let Err(error) = programs.guard.forget_locals() {
            error!("packets to addresses that are new on this host may go unjudged: {error}");
        }
        if self.no_locals.is_none() {
            warn!("{}", no_locals(&reason));
        }
        self.no_locals = Some(reason);
    }

    /// The lack of one interface.
    fn remark(&self, interface: &str) -> Option<String> {
        if let Some(reason) = self.unguarded.get(interface) {
            return Some(format!("guard: packets on {interface} reach the kernel unjudged ({reason})"));
        }
        let name = self.renamed.get(interface)?;
        Some(format!(
            "guard: {interface} has the name {name} now; its packets are judged until Sluice ends: change \
             guard.interfaces"
        ))
    }
}

fn no_locals(reason: &str) -> String {
    format!(
        "guard: packets that this host routes or bridges to others are judged where a listener is on the \
         unspecified address ({reason})"
    )
}

impl Estate {
    /// Lacks that Sluice goes on with, each with its cost.
    #[must_use]
    pub fn lacks(&self) -> Vec<String> {
        let mut lacks = self.degraded.clone();
        for interface in &self.config.guard.interfaces {
            lacks.extend(self.guarding.remark(interface));
        }
        lacks.extend(self.guarding.no_locals.as_deref().map(no_locals));
        let attached = self.programs.iter().flat_map(|programs| programs.guard.attached());
        let is_generic = |mode| mode == XdpMode::Generic && self.config.guard.mode == GuardMode::Auto;
        lacks.extend(attached.filter(|(_, mode)| is_generic(*mode)).map(|(interface, _)| {
            format!(
                "guard: {interface}'s driver takes no XDP: generic mode judges packets after the kernel \
                 allocated them"
            )
        }));
        lacks
    }

    /// The interfaces that are to be guarded and are not, with the reasons.
    #[must_use]
    pub fn unguarded(&self) -> BTreeMap<String, String> {
        let guard = self.programs.as_ref().map(|programs| &programs.guard);
        let is_attached =
            |name: &String| guard.is_some_and(|guard| guard.attached().any(|(attached, _)| attached == name));
        let reason =
            |name: &String| self.guarding.unguarded.get(name).cloned().unwrap_or_else(|| self.guard_lacks());
        let names = self.config.guard.interfaces.iter().filter(|name| !is_attached(name));
        names.map(|name| (name.clone(), reason(name))).collect()
    }

    /// Tells the guard which addresses are local now; `false`: it could not be told.
    pub fn follow_locals(&mut self) -> bool {
        let Self { programs: Some(programs), guarding, .. } = self else { return true };
        if guarding.has_rules {
            guarding.keep_locals(programs);
        }
        guarding.no_locals.is_none()
    }

    /// Attaches the guard again where its interface was made anew; `false`: an interface lacks it.
    pub fn follow_interfaces(&mut self) -> bool {
        let Self { config, programs: Some(programs), guarding, .. } = self else { return true };
        if guarding.has_rules {
            for interface in &config.guard.interfaces {
                guarding.follow(programs, interface, config.guard.mode);
            }
        }
        guarding.unguarded.is_empty()
    }

    pub(super) fn guard(&mut self, programs: &mut Programs) -> Result<(), EstateError> {
        let guard = &self.config.guard;
        if guard.interfaces.is_empty() {
            return Ok(());
        }
        let addresses: Vec<SocketAddr> = self.addresses().collect();
        // The rules first: a program without them would judge by nothing.
        if let Err(error) = programs.apply_guard(guard, &addresses) {
            if guard.mode != GuardMode::Auto {
                return Err(EstateError::Demand(error));
            }
            self.degraded.push(format!("guard: no packet is judged before the kernel handles it ({error})"));
            return Ok(());
        }
        self.guarding.has_rules = true;
        self.guarding.keep_locals(programs);
        for interface in &guard.interfaces {
            match programs.attach_guard(interface, guard.mode) {
                Ok(mode) => info!(interface, mode = mode.label(), "XDP attached"),
                Err(KernelError::Held { interface, holder }) => {
                    return Err(EstateError::Held(leftovers::explain(&interface, &holder)));
                }
                Err(error) if guard.mode == GuardMode::Auto => {
                    self.guarding.unguarded.insert(interface.clone(), error.to_string());
                }
                Err(error) => return Err(EstateError::Demand(error)),
            }
        }
        Ok(())
    }

    /// Tells the program, where there is one, about a change of the guard: its list of the denied.
    pub(super) fn follow_guard(&mut self) {
        let addresses: Vec<SocketAddr> = self.addresses().collect();
        // An interface that is missing may come again.
        let Some(programs) = self.programs.as_mut().filter(|_| self.guarding.has_rules) else { return };
        if let Err(error) = programs.apply_guard(&self.config.guard, &addresses) {
            error!(
                "guard.deny: the kernel took it in part only, and what was denied before is denied still: \
                 {error}"
            );
        }
    }

    /// The guard, to enter bans into.
    ///
    /// # Errors
    /// When nothing judges packets, and why.
    pub fn guard_mut(&mut self) -> Result<&mut GuardProgram, String> {
        if self.config.guard.interfaces.is_empty() {
            return Err(
                "no interface is guarded (guard.interfaces is empty), so no packet would be dropped; name \
                 the interfaces \
                        that clients come through, and start again"
                    .to_owned(),
            );
        }
        let lacks = self.guard_lacks();
        let guard = self.programs.as_mut().map(|programs| &mut programs.guard);
        let attached = guard.filter(|guard| guard.is_attached());
        attached.ok_or_else(|| format!("no XDP program is attached, so no packet would be dropped: {lacks}"))
    }

    /// The guard, to lift bans. They are in its maps even while the program is on no interface.
    ///
    /// # Errors
    /// As `guard_mut`, except for interfaces that are missing now.
    pub fn guard_maps(&mut self) -> Result<&mut GuardProgram, String> {
        if !self.guarding.has_rules {
            return self.guard_mut();
        }
        let guard = self.programs.as_mut().map(|programs| &mut programs.guard);
        guard.ok_or_else(|| "no XDP program is loaded".to_owned())
    }

    /// The guard, for the status.
    #[must_use]
    pub fn guard_status(&self) -> GuardStatus {
        let guarding = self.programs.as_ref().filter(|_| self.guarding.has_rules);
        let status = guarding.and_then(|programs| {
            programs.guard_status(now()).inspect_err(|error| warn!("guard status: {error}")).ok()
        });
        GuardStatus { unguarded: self.unguarded(), ..status.unwrap_or_default() }
    }

    fn guard_lacks(&self) -> String {
        let lacks = self.lacks().into_iter().filter(|lack| lack.starts_with("guard:"));
        lacks.collect::<Vec<_>>().join("; ")
    }
}
