//! Room for one more connection while the worker has as many as it may. The connection that waits longest for
//! its client, of the source that has the most such connections, gives way. Idle connections wait. So do
//! those whose hello, request head or PROXY header is not whole, and those of slow clients.
//!
//! Idle connections are not kept in order, which would cost each of them memory. A plan is made instead when
//! it is needed, from rows that lie evenly spread over the table, and serves many newcomers.

use std::rc::Rc;
use std::time::Duration;

use super::context::Worker;
use super::table::{self, SessionKey};
use crate::error::Crowded;
use crate::io::places::{Decision, Places, Source};
use crate::time::Time;

/// Rows that a plan looks at, which takes less than a millisecond.
const ROWS_MAX: usize = 4096;
/// One in so many of the connections that were found gives way before another plan is made.
const SHARE: usize = 8;
/// How long a plan is good.
const PLAN_MAX: Duration = Duration::from_secs(1);
/// How long none is made after one that found nothing. A worker full of busy connections would look for idle
/// ones at each accept.
const PAUSE: Duration = Duration::from_millis(20);
/// A connection has waited for this long at least: before, its first bytes may be here and not read yet.
const WAITED_MIN: Duration = Duration::from_millis(20);

/// Which connections give way next.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The last goes first.
    next: Vec<Waiting>,
    made_at: Option<Time>,
    found_nothing: bool,
}

/// A connection that waits for its client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) key: SessionKey,
    pub(super) since: Time,
    pub(super) source: Source,
}

/// Makes room by closing one connection; `false`: none waits for its client.
pub fn make_room(worker: &Rc<Worker>) -> bool {
    next_gives_way(worker) || (plan(worker) && next_gives_way(worker))
}

fn next_gives_way(worker: &Rc<Worker>) -> bool {
    let now = worker.io.now();
    let next = || {
        let plan = &mut *worker.sessions.plan.borrow_mut();
        let is_good = plan.made_at.is_some_and(|at| now.since(at) < PLAN_MAX);
        plan.next.pop().filter(|_| is_good)
    };
    while let Some(waiting) = next() {
        if table::give_way(worker, &waiting) {
            worker.crowd.gave_way(worker, Crowded::Connections, waiting.source);
            return true;
        }
    }
    false
}

/// Makes a plan; `false`: there is nobody in it.
fn plan(worker: &Worker) -> bool {
    let now = worker.io.now();
    let plan = &mut *worker.sessions.plan.borrow_mut();
    if plan.found_nothing && plan.made_at.is_some_and(|at| now.since(at) < PAUSE) {
        return false;
    }
    plan.made_at = Some(now);
    let mut places = Places::default();
    let mut found = 0_usize;
    worker.sessions.table.borrow().each_waiting(ROWS_MAX, |waiting| {
        if now.since(waiting.since) < WAITED_MIN {
            return;
        }
        found += 1;
        let key = places.hold(waiting.source, 1, waiting);
        places.rest(key, waiting.since);
    });
    let in_order = std::iter::from_fn(|| match places.give_way()? {
        Decision::GiveWay { owner, .. } | Decision::Take(owner) => Some(owner),
    });
    plan.next = in_order.take(found.div_ceil(SHARE)).collect();
    plan.next.reverse();
    plan.found_nothing = found == 0;
    !plan.found_nothing
}
