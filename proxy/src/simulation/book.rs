//! The book of a run: everything that clients and origins have seen of each exchange, so that each side can
//! check the other.

use std::cell::{LazyCell, Ref, RefCell, RefMut};
use std::fmt;
use std::rc::Rc;

use super::plan::Plan;
use super::tls::Parties;
use super::trace::Trace;
use crate::time::Time;

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Book {
    pub(super) plan: Rc<Plan>,
    pub(super) parties: Rc<LazyCell<Parties>>,
    pub(super) trace: Trace,
    records: Rc<RefCell<Vec<Record>>>,
    passages: Rc<RefCell<Vec<Passage>>>,
    tally: Rc<RefCell<Tally>>,
}

/// One exchange.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// The client has sent its head, and all of it.
    pub(super) head_sent: bool,
    pub(super) sent: bool,
    /// `is_early`: its first bytes went ahead of the handshake's end. `is_settled`: its client's part of the
    /// handshake is sent; no other request may be served before.
    pub(super) is_early: bool,
    pub(super) is_settled: bool,
    /// For each attempt that reached an origin: whether the origin saw the whole request.
    pub(super) attempts: Vec<bool>,
    /// An answer came whole, by its status.
    pub(super) answered: Option<u16>,
    /// Its client left by itself, or is slow enough to be given up.
    pub(super) left: bool,
    /// It met a connection with unrequested bytes under way: no proxy can tell them from its answer.
    pub(super) met_poison: bool,
}

/// One connection whose bytes are passed through.
#[derive(Clone, Debug, Default)]
pub(super) struct Passage {
    /// An endpoint has its first bytes.
    pub(super) has_come: bool,
    /// Its client left by itself, or is slow enough to be given up.
    pub(super) left: bool,
}

/// The sum of all that the clients saw.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Whole final responses, by class: 2xx first.
    pub(super) responses: [u64; 4],
    pub(super) interims: u64,
    pub(super) cut: u64,
    pub(super) unanswered: u64,
    pub(super) connected: u64,
    /// Bytes clients wrote, and read without what TLS adds.
    pub(super) written: u64,
    pub(super) read: u64,
    /// Connections whose clients are done.
    pub(super) ended: u64,
}

impl Book {
    pub(super) fn new(plan: Rc<Plan>, trace: Trace) -> Self {
        let records = vec![Record::default(); plan.exchanges.len()];
        let passages = vec![Passage::default(); plan.throughs.len()];
        Self {
            plan,
            parties: Rc::new(LazyCell::new(Parties::new)),
            passages: Rc::new(RefCell::new(passages)),
            trace,
            records: Rc::new(RefCell::new(records)),
            tally: Rc::default(),
        }
    }

    pub(super) fn record(&self, id: usize) -> RefMut<'_, Record> {
        RefMut::map(self.records.borrow_mut(), |records| &mut records[id])
    }

    pub(super) fn passage(&self, number: usize) -> RefMut<'_, Passage> {
        RefMut::map(self.passages.borrow_mut(), |passages| &mut passages[number])
    }

    pub(super) fn records(&self) -> Ref<'_, Vec<Record>> {
        self.records.borrow()
    }

    pub(super) fn tally(&self) -> RefMut<'_, Tally> {
        self.tally.borrow_mut()
    }

    pub(super) fn note(&self, now: Time, what: fmt::Arguments<'_>) {
        self.trace.note(now, what);
    }
}
