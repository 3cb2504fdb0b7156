//! Whether a worker takes one more downstream connection, sans-IO: a count and a bound for all, and a bound
//! for each source.

use std::net::IpAddr;
use std::sync::Arc;

use super::sources::{Claim, Sources, Ticket};
use crate::error::ShedReason;

/// See the module.
#[derive(Debug)]
pub struct Admission {
    open: usize,
    /// Of the open connections, those that were told to give way. Their places are free.
    leaving: usize,
    open_max: usize,
    draining: bool,
    /// Shared by all workers; `None`: sources are not limited here.
    sources: Option<Arc<Sources>>,
}

/// A connection that was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Goes back with `Admission::release`.
    pub ticket: Option<Ticket>,
    /// A fact about it that is worth counting.
    pub note: Option<Note>,
}

/// A fact about an admitted connection that is worth counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A dry run: its source is at its limit.
    AtLimit,
    /// There was no room to count its source.
    Uncounted,
}

impl Admission {
    /// Admits up to `open_max` connections at a time.
    #[must_use]
    pub const fn new(open_max: usize) -> Self {
        Self { open: 0, leaving: 0, open_max, draining: false, sources: None }
    }

    /// From now on no source has more connections than `sources` allow.
    pub fn limit_sources(&mut self, sources: Arc<Sources>) {
        self.sources = Some(sources);
    }

    /// Takes a connection, or says why not. While draining, connections that were accepted before the cancel
    /// took effect are real and still served.
    ///
    /// `source` says `None` for a connection that a proxy opened for somebody who is not known yet: `claim`
    /// follows.
    pub fn admit(&mut self, source: impl FnOnce() -> Option<IpAddr>) -> Result<Admitted, ShedReason> {
        let is_full = self.open - self.leaving >= self.open_max;
        if is_full && self.draining {
            return Err(ShedReason::Draining);
        }
        let admitted = match &self.sources {
            Some(_) => {
                source().map_or(Ok(Admitted { ticket: None, note: None }), |source| self.claim(source))?
            }
            None => Admitted { ticket: None, note: None },
        };
        // Known only now: nobody gives way to a source that is at its own limit.
        if is_full {
            self.uncount(admitted.ticket);
            return Err(ShedReason::MaxConnections);
        }
        self.open += 1;
        Ok(admitted)
    }

    /// Counts the source of a connection that was admitted without one, or says why not.
    pub fn claim(&self, source: IpAddr) -> Result<Admitted, ShedReason> {
        match self.sources.as_ref().map(|sources| (sources, sources.claim(source))) {
            None | Some((_, Claim::Exempt)) => Ok(Admitted { ticket: None, note: None }),
            Some((_, Claim::Counted(ticket))) => Ok(Admitted { ticket: Some(ticket), note: None }),
            Some((_, Claim::NoRoom)) => Ok(Admitted { ticket: None, note: Some(Note::Uncounted) }),
            Some((sources, Claim::AtLimit)) if sources.is_dry_run() => {
                Ok(Admitted { ticket: None, note: Some(Note::AtLimit) })
            }
            Some((_, Claim::AtLimit)) => Err(ShedReason::ConnectionsPerIp),
        }
    }

    /// A connection was told to give way; its place is free.
    pub const fn leave(&mut self) {
        self.leaving += 1;
    }

    /// A connection that was admitted with this ticket is gone. `leaves`: it was told to give way.
    pub fn release(&mut self, ticket: Option<Ticket>, leaves: bool) {
        self.uncount(ticket);
        debug_assert!(self.open > 0, "released more than was admitted");
        self.open = self.open.saturating_sub(1);
        self.leaving = self.leaving.saturating_sub(usize::from(leaves));
    }

    fn uncount(&self, ticket: Option<Ticket>) {
        if let (Some(sources), Some(ticket)) = (&self.sources, ticket) {
            sources.release(ticket);
        }
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
mod tests;
