//! All eBPF programs of Sluice. They share maps, so they are loaded together. A call that concerns one
//! program and its maps goes to that program's field. Loading, attaching and calls that concern two programs
//! go through `Programs`.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use super::counting::CountingProgram;
use super::destinations::DestinationsProgram;
use super::error::KernelError;
use super::guard::pins::{Found, PinError, Pins};
use super::guard::{Guard, GuardMode, GuardProgram, XdpMode};
use super::object::Object;
use super::steering::SteeringProgram;
use super::sysctl::Sysctls;
use crate::control::status::GuardStatus;
use crate::time::Time;

/// The loaded programs with their maps and links. Dropping this detaches XDP, and ends counting and the
/// judgement of connects; steering goes on.
pub struct Programs {
    /// The XDP program.
    pub guard: GuardProgram,
    /// The reuseport program.
    pub steering: SteeringProgram,
    /// The program that counts connections by source.
    pub counting: CountingProgram,
    /// The programs that judge where data planes connect to.
    pub destinations: DestinationsProgram,
    /// Dropped after the links above.
    object: Object,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let attached: Vec<_> = self.guard.attached().collect();
        f.debug_struct("Programs").field("attached", &attached).finish_non_exhaustive()
    }
}

impl Programs {
    /// Loads the embedded object into the kernel: all maps and the steering program. The guard's program is
    /// loaded with its first interface, the counting program by `count_connections`, and the programs that
    /// judge connects by `judge_connects`.
    ///
    /// # Errors
    /// Why the kernel refuses it.
    pub fn load() -> Result<Self, KernelError> {
        Self::new(Object::embedded(&[])?)
    }

    /// Loads an object that was just built, for tests. `object` must be aligned to 8 bytes.
    ///
    /// # Errors
    /// Why the kernel refuses it.
    pub fn load_object(object: &[u8]) -> Result<Self, KernelError> {
        Self::new(Object::load(object, &[])?)
    }

    /// Loads the embedded object over the maps that an earlier run pinned. Where those do not fit, new maps
    /// are pinned instead. The log tells which of the two happened.
    ///
    /// # Errors
    /// The object cannot be loaded or pinned. The pins of an earlier run stay then.
    pub fn load_pinned(pins: Pins, now: Time) -> Result<Self, KernelError> {
        let fresh = Object::embedded(&[])?;
        let mut programs = match pins.compare(&fresh)? {
            Found::Nothing => {
                pins.take_next()?;
                Self::new(fresh)?
            }
            Found::Fitting => {
                pins.drop_next()?;
                drop(fresh);
                let mut programs = Self::new(Object::embedded(&pins.maps())?)?;
                programs.guard.adopt()?;
                let bans = programs.guard.bans(now).count();
                tracing::info!(
                    "the maps that an earlier run left are taken over: counters go on, {bans} bans hold"
                );
                programs
            }
            Found::Older { reason, bans } => {
                pins.take_next()?;
                let mut programs = Self::new(fresh)?;
                let kept = match bans {
                    Some(bans) => format!("{} bans hold", programs.guard.enter_bans(&bans, now)?),
                    None => "its bans are lost".to_owned(),
                };
                let lost = "its counters and rate buckets begin anew";
                tracing::warn!("the maps that an earlier run left do not fit ({reason}): {lost}, {kept}");
                programs
            }
        };
        programs.guard.pin_to(pins);
        Ok(programs)
    }

    /// Hands every map to the program that owns it.
    fn new(mut object: Object) -> Result<Self, KernelError> {
        let steering = SteeringProgram::new(&mut object)?;
        let guard = GuardProgram::new(&mut object)?;
        let counting = CountingProgram::new(&mut object)?;
        let destinations = DestinationsProgram::new(&mut object)?;
        object.start_logs();
        Ok(Self { guard, steering, counting, destinations, object })
    }

    /// Writes the guard's settings and our listeners' addresses. Only packets to these addresses are judged;
    /// only connections to these addresses are counted.
    ///
    /// # Errors
    /// When a map is full or cannot be written. A part of the change may be in force then.
    pub fn apply_guard(&mut self, guard: &Guard, listeners: &[SocketAddr]) -> Result<(), KernelError> {
        self.guard.apply(guard, listeners, &mut self.counting)
    }

    /// Puts the guard on one interface. See `GuardProgram::attach`.
    ///
    /// # Errors
    /// `Held` names the interface's holder. Any other error gives the reason and the remedy.
    pub fn attach_guard(&mut self, interface: &str, mode: GuardMode) -> Result<XdpMode, KernelError> {
        self.guard.attach(&mut self.object, interface, mode)
    }

    /// The descriptor of the guard's program, for BPF_PROG_TEST_RUN. The program is loaded if it is not yet.
    ///
    /// # Errors
    /// Why the kernel refuses it.
    pub fn guard_fd(&mut self) -> Result<BorrowedFd<'_>, KernelError> {
        self.guard.fd(&mut self.object)
    }

    /// Steers the flows of one listener address to these sockets. See `SteeringProgram::steer`.
    ///
    /// # Errors
    /// The reason why the kernel's own hash chooses the worker of some or all flows.
    pub fn steer(
        &mut self,
        address: SocketAddr,
        generation: u32,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(), KernelError> {
        self.steering.steer(&mut self.object, address, generation, sockets)
    }

    /// Counts the connections of every listener that this process creates from now on; returns the cgroup's
    /// path. `apply_guard` says which listeners are ours.
    ///
    /// # Errors
    /// The reason why nothing is counted. The guard then limits no source's connections.
    pub fn count_connections(&mut self) -> Result<PathBuf, KernelError> {
        self.counting.start(&mut self.object)
    }

    /// Judges the connects of data planes by sockets that are made in the cgroup of this process; returns the
    /// cgroup's path. See `DestinationsProgram::start`.
    ///
    /// # Errors
    /// The reason why nothing is judged.
    pub fn judge_connects(&mut self) -> Result<PathBuf, KernelError> {
        self.destinations.start(&mut self.object)
    }

    /// Has every SYN answered with a cookie while SYNs exceed a source's rate, where `auto` asks for it. Call
    /// this when `GuardProgram::next_look_at_pressure` says so.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn follow_pressure(&mut self, now: Time, sysctls: &mut Sysctls) -> Result<(), KernelError> {
        let pressed_at = self.counting.pressed_at();
        self.guard.follow_pressure(*pressed_at.as_ref().unwrap_or(&0), now, sysctls);
        pressed_at.map(drop)
    }

    /// The guard's status, read from the kernel.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn guard_status(&self, now: Time) -> Result<GuardStatus, KernelError> {
        let counted = self.counting.counted()?;
        let live = counted.opened.saturating_sub(counted.closed);
        Ok(GuardStatus {
            connections: self.counting.is_counting().then_some(live),
            uncounted: counted.uncounted,
            ..self.guard.status(now)?
        })
    }

    /// Writes the programs' diagnostics to the log (target `sluice_bpf`). They are rare, never one for each
    /// packet. Call this now and then.
    pub fn flush_logs(&mut self) {
        self.object.flush_logs();
    }

    /// Detaches the guard and removes every pin, as an orderly stop does.
    ///
    /// # Errors
    /// The pin that stays, and with it the guard.
    pub fn release(self) -> Result<(), PinError> {
        self.guard.release()
    }
}
