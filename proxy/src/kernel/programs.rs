//! All eBPF programs of Sluice, loaded together, since they share maps. A question about one program goes to
//! that program's part; loading and attaching, and whatever concerns two of them, goes through `Programs`.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use super::counting::CountingProgram;
use super::error::KernelError;
use super::guard::pins::{Found, PinError, Pins};
use super::guard::{Guard, GuardMode, GuardProgram, XdpMode};
use super::object::Object;
use super::steering::SteeringProgram;
use crate::control::status::GuardStatus;
use crate::time::Time;

/// The loaded programs with their maps and links. Dropping it detaches XDP and ends counting; steering goes
/// on.
pub struct Programs {
    /// The XDP program.
    pub guard: GuardProgram,
    /// The reuseport program.
    pub steering: SteeringProgram,
    /// The program that counts connections by source.
    pub counting: CountingProgram,
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
    /// Loads the embedded object into the kernel: maps and the steering program. The guard's program follows
    /// with its first interface, the one that counts with `count_connections`.
    ///
    /// # Errors
    /// Why the kernel refuses it.
    pub fn load() -> Result<Self, KernelError> {
        Self::new(Object::embedded(&[])?)
    }

    /// Loads another object than the embedded one: for the tests of one that was just built. `object` must be
    /// aligned to 8 bytes.
    ///
    /// # Errors
    /// Why the kernel refuses it.
    pub fn load_object(object: &[u8]) -> Result<Self, KernelError> {
        Self::new(Object::load(object, &[])?)
    }

    /// Loads the embedded object over the maps that an earlier run pinned, or pins new ones where they do not
    /// fit; what was found goes to the log.
    ///
    /// # Errors
    /// What cannot be loaded or pinned. What an earlier run left stays then.
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

    /// Over maps that are there.
    fn new(mut object: Object) -> Result<Self, KernelError> {
        let steering = SteeringProgram::new(&mut object)?;
        let guard = GuardProgram::new(&mut object)?;
        let counting = CountingProgram::new(&mut object)?;
        object.start_logs();
        Ok(Self { guard, steering, counting, object })
    }

    /// Writes the guard's settings and the addresses whose packets are judged and whose connections count.
    ///
    /// # Errors
    /// When the maps have no room or cannot be written. Then a part of the change may be in force.
    pub fn apply_guard(&mut self, guard: &Guard, listeners: &[SocketAddr]) -> Result<(), KernelError> {
        self.guard.apply(guard, listeners, &mut self.counting)
    }

    /// Puts the guard on one interface. See `GuardProgram::attach`.
    ///
    /// # Errors
    /// Why it is not there: `Held` with who has the interface, or a reason with what to do.
    pub fn attach_guard(&mut self, interface: &str, mode: GuardMode) -> Result<XdpMode, KernelError> {
        self.guard.attach(&mut self.object, interface, mode)
    }

    /// The guard's descriptor, loaded if need be: for BPF_PROG_TEST_RUN.
    ///
    /// # Errors
    /// Why the kernel refuses it.
    pub fn guard_fd(&mut self) -> Result<BorrowedFd<'_>, KernelError> {
        self.guard.fd(&mut self.object)
    }

    /// Steers the flows of one listener address to these sockets. See `SteeringProgram::steer`.
    ///
    /// # Errors
    /// Why the kernel's own hash chooses for some or all flows.
    pub fn steer(
        &mut self,
        address: SocketAddr,
        generation: u32,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(), KernelError> {
        self.steering.steer(&mut self.object, address, generation, sockets)
    }

    /// Counts the connections of listeners that this process creates from now on; returns the cgroup's path.
    /// Which listeners are ours is up to `apply_guard`.
    ///
    /// # Errors
    /// Why nothing is counted. What the guard limits stays unlimited then.
    pub fn count_connections(&mut self) -> Result<PathBuf, KernelError> {
        self.counting.start(&mut self.object)
    }

    /// Everything about the guard, read from the kernel.
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

    /// Writes what the programs had to say to the log (target `sluice_bpf`): rare diagnostics, never one per
    /// packet. Call it now and then.
    pub fn flush_logs(&mut self) {
        self.object.flush_logs();
    }

    /// Detaches and removes every pin: an end in order.
    ///
    /// # Errors
    /// What stays pinned, and so attached.
    pub fn release(self) -> Result<(), PinError> {
        self.guard.release()
    }
}
