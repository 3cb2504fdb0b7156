//! Whether a worker takes one more downstream connection, sans-IO: a count and a bound for all, and a bound
//! for each source where the kernel side does not hold it.

use std::net::IpAddr;
use std::sync::Arc;

use super::sources::{Claim, Sources, Ticket};
use crate::error::ShedReason;

/// See the module.
#[derive(Debug)]
pub struct Admission {
    open: usize,
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
        Self { open: 0, open_max, draining: false, sources: None }
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
        if self.open >= self.open_max {
            return Err(if self.draining { ShedReason::Draining } else { ShedReason::MaxConnections });
        }
        let admitted = match &self.sources {
            Some(_) => {
                source().map_or(Ok(Admitted { ticket: None, note: None }), |source| self.claim(source))?
            }
            None => Admitted { ticket: None, note: None },
        };
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

    /// A connection that was admitted with this ticket is gone.
    pub fn release(&mut self, ticket: Option<Ticket>) {
        if let (Some(sources), Some(ticket)) = (&self.sources, ticket) {
            sources.release(ticket);
        }
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

    const ONE: fn() -> Option<IpAddr> = || Some(IpAddr::from([198, 51, 100, 7]));
    const OTHER: fn() -> Option<IpAddr> = || Some(IpAddr::from([198, 51, 100, 8]));

    fn limited(open_max: usize, sources: Sources) -> Admission {
        sharing(open_max, &Arc::new(sources))
    }

    fn sharing(open_max: usize, sources: &Arc<Sources>) -> Admission {
        let mut admission = Admission::new(open_max);
        admission.limit_sources(Arc::clone(sources));
        admission
    }

    const PLAIN: Admitted = Admitted { ticket: None, note: None };

    #[test]
    fn sheds_above_its_bound_and_recovers() {
        let mut admission = Admission::new(2);
        let never = || panic!("nobody asks for the source");
        assert_eq!((admission.admit(never), admission.admit(never)), (Ok(PLAIN), Ok(PLAIN)));
        assert_eq!(admission.admit(never), Err(ShedReason::MaxConnections));
        admission.release(None);
        assert_eq!(admission.admit(never), Ok(PLAIN));
        admission.drain();
        assert_eq!(admission.admit(never), Err(ShedReason::Draining));
        assert_eq!(admission.open(), 2);
    }

    #[test]
    fn workers_share_the_bound_of_a_source() {
        let sources = Arc::new(Sources::new(2, 10, &[], false, [3, 4]));
        let mut workers = [0; 2].map(|_| sharing(10, &sources));
        let tickets = workers.each_mut().map(|worker| worker.admit(ONE).expect("below the limit").ticket);
        for worker in &mut workers {
            assert_eq!(worker.admit(ONE), Err(ShedReason::ConnectionsPerIp));
            assert_eq!(worker.open(), 1, "what was shed is not held");
            assert!(worker.admit(OTHER).expect("another source").ticket.is_some());
        }
        workers[0].release(tickets[0]);
        assert!(workers[1].admit(ONE).is_ok());
    }

    #[test]
    fn a_source_that_is_known_later_counts_from_then_on() {
        let sources = Arc::new(Sources::new(1, 10, &[], false, [3, 4]));
        let mut admission = sharing(10, &sources);
        assert_eq!((admission.admit(|| None), admission.admit(|| None)), (Ok(PLAIN), Ok(PLAIN)));
        let source = ONE().expect("an address");
        let claimed = admission.claim(source).expect("below the limit");
        assert_eq!(admission.claim(source), Err(ShedReason::ConnectionsPerIp));
        assert_eq!(admission.admit(ONE), Err(ShedReason::ConnectionsPerIp));
        admission.release(claimed.ticket);
        assert!(admission.admit(ONE).is_ok());
    }

    #[test]
    fn a_connection_shed_by_the_bound_of_all_does_not_count_for_its_source() {
        let sources = Arc::new(Sources::new(1, 10, &[], false, [3, 4]));
        let mut full = sharing(0, &sources);
        assert_eq!(full.admit(ONE), Err(ShedReason::MaxConnections));
        assert!(sharing(1, &sources).admit(ONE).is_ok());
    }

    #[test]
    fn a_dry_run_notes_and_admits() {
        let mut admission = limited(10, Sources::new(1, 10, &[], true, [3, 4]));
        let first = admission.admit(ONE).expect("below the limit");
        let second = admission.admit(ONE).expect("a dry run");
        assert_eq!((first.note, second), (None, Admitted { ticket: None, note: Some(Note::AtLimit) }));
        admission.release(second.ticket);
        assert_eq!(
            admission.admit(ONE).expect("a dry run").note,
            Some(Note::AtLimit),
            "who was not counted is not given back"
        );
    }
}
