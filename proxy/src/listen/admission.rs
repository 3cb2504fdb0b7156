//! Whether a worker takes one more downstream connection, sans-IO: a count and a bound.

use crate::error::ShedReason;

/// See the module.
#[derive(Debug)]
pub struct Admission {
    open: usize,
    open_max: usize,
    draining: bool,
}

impl Admission {
    /// Admits up to `open_max` connections at a time.
    #[must_use]
    pub const fn new(open_max: usize) -> Self {
        Self { open: 0, open_max, draining: false }
    }

    /// Takes a connection, or says why not. While draining, connections that were accepted before the cancel took effect
    /// are real and still served.
    pub fn admit(&mut self) -> Result<(), ShedReason> {
        if self.open >= self.open_max {
            return Err(if self.draining { ShedReason::Draining } else { ShedReason::MaxConnections });
        }
        self.open += 1;
        Ok(())
    }

    /// A connection that was admitted is gone.
    pub fn release(&mut self) {
        debug_assert!(self.open > 0, "released more than was admitted");
        self.open = self.open.saturating_sub(1);
    }

    /// From now on only leftovers arrive.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Connections admitted and not released.
    #[must_use]
    pub const fn open(&self) -> usize {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sheds_above_its_bound_and_recovers() {
        let mut admission = Admission::new(2);
        assert_eq!((admission.admit(), admission.admit()), (Ok(()), Ok(())));
        assert_eq!(admission.admit(), Err(ShedReason::MaxConnections));
        admission.release();
        assert_eq!(admission.admit(), Ok(()));
        admission.drain();
        assert_eq!(admission.admit(), Err(ShedReason::Draining));
        assert_eq!(admission.open(), 2);
    }
}
