//! Reloads as one table, sans-IO: askers, the reload in flight, the data plane's answers, and the actions
//! that follow. It takes two steps, so that exactly one configuration is in force at any time: the data plane
//! compiles it beside the one it runs, then the supervisor adopts it and has it published.
//!
//! ```text
//!   ask ─▶ waiting ─▶ Read ─▶ Compiling ─ compiled ─▶ Adopt, Publishing ─▶ applied
//!                      │          │                                          when published, dead or silent
//!                      │          └ refused, dead, silent, ending: the old one stays
//!                      └ invalid, needs a restart, unchanged; adopted at once where no data plane lives
//! ```
//!
//! One at a time: requests that come meanwhile wait for the next, which reads the files anew.

use std::collections::VecDeque;
use std::time::Duration;

use crate::error::ReloadOutcome;
use crate::time::Time;

/// How long a data plane may take to compile a configuration.
pub const COMPILE_WAIT: Duration = Duration::from_secs(10);
/// How long it may take to confirm that it has published one.
pub const PUBLISH_WAIT: Duration = Duration::from_secs(2);
/// How long a reload waits for a data plane that starts or ends.
pub const READY_WAIT: Duration = Duration::from_secs(15);

/// The origin of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker<C> {
    /// `sluice reload`, which waits for the receipt.
    Client(C),
    /// SIGHUP.
    Signal,
    /// A file that the configuration refers to has changed.
    Watch,
}

/// Which files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileScope {
    /// All of them.
    All,
    /// The watched files. All others, the main file above all, stay as they are in force: on disk they may be
    /// half edited.
    Watched,
}

/// The data plane's ability to take a configuration now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// It serves.
    Serving,
    /// None lives, and the next one takes some time to come.
    Absent,
    /// One starts or dies.
    Changing,
    /// A drain or a stop was asked for.
    Ending,
}

/// The outcome of reading the files.
#[derive(Debug)]
pub enum Read<P> {
    /// Something that can change has changed.
    Changed {
        /// To be sent and adopted.
        prepared: P,
        /// For the receipt.
        summary: String,
    },
    /// It ends here.
    Ended {
        /// How.
        outcome: ReloadOutcome,
        /// For the receipt.
        text: String,
    },
}

/// Actions, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum ReloadAction<P, C> {
    /// Read, then call `read`.
    Read(FileScope),
    /// Send `prepared` to the data plane to compile.
    Send {
        /// Its number.
        id: u64,
    },
    /// It is not wanted any more.
    Forget {
        /// Its number.
        id: u64,
    },
    /// This is the configuration in force from now on. The data plane publishes the configuration that it
    /// compiled under this number.
    Adopt {
        /// `None`: no data plane lives; its successor gets it.
        id: Option<u64>,
        /// The configuration.
        prepared: P,
    },
    /// It is over.
    Finish(Finished<C>),
}

/// How a reload went.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished<C> {
    /// To be told.
    pub askers: Vec<Asker<C>>,
    /// How.
    pub outcome: ReloadOutcome,
    /// For people.
    pub text: String,
    /// When its files were read.
    pub began: Time,
}

#[derive(Debug)]
struct Flight<P, C> {
    id: u64,
    askers: Vec<Asker<C>>,
    began: Time,
    summary: String,
    step: FlightStep<P>,
    deadline: Time,
}

#[derive(Debug)]
enum FlightStep<P> {
    Compiling(P),
    Publishing,
}

/// The table. Call `poll` until there is nothing more to do, after every event and at `next_deadline`.
#[derive(Debug)]
pub struct Reloads<P, C> {
    last_id: u64,
    /// Clients are bounded by the control socket; signal and watch are there once.
    waiting: Vec<Asker<C>>,
    /// When the askers that wait give up.
    patience: Time,
    /// Files are being read for these.
    reading: Option<(Vec<Asker<C>>, Plane, Time)>,
    flight: Option<Flight<P, C>>,
    actions: VecDeque<ReloadAction<P, C>>,
}

impl<P, C: Copy + PartialEq> Default for Reloads<P, C> {
    fn default() -> Self {
        Self {
            last_id: 0,
            waiting: Vec::new(),
            patience: Time::default(),
            reading: None,
            flight: None,
            actions: VecDeque::new(),
        }
    }
}

impl<P, C: Copy + PartialEq> Reloads<P, C> {
    /// Somebody wants one.
    pub fn ask(&mut self, asker: Asker<C>, now: Time) {
        if self.waiting.is_empty() {
            self.patience = now + READY_WAIT;
        }
        if !self.waiting.contains(&asker) {
            self.waiting.push(asker);
        }
    }

    /// The next action; `None`: nothing now.
    pub fn poll(&mut self, plane: Plane, now: Time) -> Option<ReloadAction<P, C>> {
        if self.actions.is_empty() {
            self.advance(plane, now);
        }
        self.actions.pop_front()
    }

    fn advance(&mut self, plane: Plane, now: Time) {
        let is_late = self.flight.as_ref().is_some_and(|flight| now >= flight.deadline);
        if is_late || plane == Plane::Ending {
            self.give_up(plane);
        }
        if self.waiting.is_empty() || self.flight.is_some() || self.reading.is_some() {
            return;
        }
        let outcome = match plane {
            Plane::Serving | Plane::Absent => {
                let is_told = |asker: &Asker<C>| !matches!(asker, Asker::Watch);
                let scope =
                    if self.waiting.iter().any(is_told) { FileScope::All } else { FileScope::Watched };
                self.reading = Some((std::mem::take(&mut self.waiting), plane, now));
                return self.actions.push_back(ReloadAction::Read(scope));
            }
            Plane::Changing if now < self.patience => return,
            Plane::Changing => ReloadOutcome::NotReady,
            Plane::Ending => ReloadOutcome::Ending,
        };
        let askers = std::mem::take(&mut self.waiting);
        let text = match outcome {
            ReloadOutcome::Ending => "sluice is ending".to_owned(),
            _ => format!("no data plane became ready within {READY_WAIT:?}"),
        };
        self.actions.push_back(ReloadAction::Finish(Finished { askers, outcome, text, began: now }));
    }

    /// The data plane took too long, or everything ends.
    fn give_up(&mut self, plane: Plane) {
        let Some(flight) = self.flight.take() else { return };
        match flight.step {
            FlightStep::Compiling(_) => {
                self.actions.push_back(ReloadAction::Forget { id: flight.id });
                let (outcome, text) = match plane {
                    Plane::Ending => (ReloadOutcome::Ending, "sluice is ending".to_owned()),
                    _ => (
                        ReloadOutcome::Silent,
                        format!("the data plane did not compile it within {COMPILE_WAIT:?}"),
                    ),
                };
                self.finish(flight, outcome, text);
            }
            FlightStep::Publishing => {
                self.finish_applied(flight, "; the data plane has not confirmed it yet")
            }
        }
    }

    /// The outcome of `ReloadAction::Read`.
    pub fn read(&mut self, read: Read<P>, now: Time) {
        let Some((askers, plane, began)) = self.reading.take() else { return };
        match read {
            Read::Ended { outcome, text } => {
                self.actions.push_back(ReloadAction::Finish(Finished { askers, outcome, text, began }));
            }
            Read::Changed { prepared, summary } if plane == Plane::Serving => {
                self.last_id += 1;
                let (id, deadline) = (self.last_id, now + COMPILE_WAIT);
                self.flight = Some(Flight {
                    id,
                    askers,
                    began,
                    summary,
                    step: FlightStep::Compiling(prepared),
                    deadline,
                });
                self.actions.push_back(ReloadAction::Send { id });
            }
            Read::Changed { prepared, summary } => {
                self.actions.push_back(ReloadAction::Adopt { id: None, prepared });
                let text = format!("{summary}; no data plane runs now, the next one starts with it");
                self.actions.push_back(ReloadAction::Finish(Finished {
                    askers,
                    outcome: ReloadOutcome::Applied,
                    text,
                    began,
                }));
            }
        }
    }

    /// The configuration that `ReloadAction::Send` sends.
    #[must_use]
    pub fn prepared(&self) -> Option<&P> {
        match &self.flight.as_ref()?.step {
            FlightStep::Compiling(prepared) => Some(prepared),
            FlightStep::Publishing => None,
        }
    }

    /// The data plane has compiled it, and waits.
    pub fn compiled(&mut self, id: u64, now: Time) {
        let Some(mut flight) = self.flight.take_if(|flight| flight.id == id) else { return };
        if let FlightStep::Compiling(prepared) = std::mem::replace(&mut flight.step, FlightStep::Publishing) {
            self.actions.push_back(ReloadAction::Adopt { id: Some(id), prepared });
            flight.deadline = now + PUBLISH_WAIT;
        }
        self.flight = Some(flight);
    }

    /// The data plane cannot take it.
    pub fn refused(&mut self, id: u64, reason: &str) {
        let is_this =
            |flight: &mut Flight<P, C>| flight.id == id && matches!(flight.step, FlightStep::Compiling(_));
        let Some(flight) = self.flight.take_if(is_this) else { return };
        self.finish(flight, ReloadOutcome::Refused, format!("the data plane could not take it: {reason}"));
    }

    /// The workers have it.
    pub fn published(&mut self, id: u64) {
        let is_this =
            |flight: &mut Flight<P, C>| flight.id == id && matches!(flight.step, FlightStep::Publishing);
        if let Some(flight) = self.flight.take_if(is_this) {
            self.finish_applied(flight, "");
        }
    }

    /// The data plane is dead.
    pub fn died(&mut self) {
        let Some(flight) = self.flight.take() else { return };
        match flight.step {
            FlightStep::Compiling(_) => {
                self.finish(
                    flight,
                    ReloadOutcome::Died,
                    "the data plane died while it compiled it".to_owned(),
                );
            }
            FlightStep::Publishing => {
                self.finish_applied(
                    flight,
                    "; the data plane died before it confirmed it, its successor starts with it",
                );
            }
        }
    }

    /// When `poll` has something to do though nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let patience = (!self.waiting.is_empty()).then_some(self.patience);
        self.flight.as_ref().map(|flight| flight.deadline).or(patience)
    }

    fn finish(&mut self, flight: Flight<P, C>, outcome: ReloadOutcome, text: String) {
        let Flight { askers, began, .. } = flight;
        self.actions.push_back(ReloadAction::Finish(Finished { askers, outcome, text, began }));
    }

    fn finish_applied(&mut self, mut flight: Flight<P, C>, note: &str) {
        let text = std::mem::take(&mut flight.summary) + note;
        self.finish(flight, ReloadOutcome::Applied, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Table = Reloads<&'static str, u8>;

    fn at(milliseconds: u64) -> Time {
        Time::from_nanos(milliseconds * 1_000_000)
    }

    fn changed(prepared: &'static str) -> Read<&'static str> {
        Read::Changed { prepared, summary: format!("took {prepared}") }
    }

    /// Asked by client 1 at 0, read, sent as number 1.
    fn compiling() -> Table {
        let mut table = Table::default();
        table.ask(Asker::Client(1), at(0));
        assert_eq!(table.poll(Plane::Serving, at(0)), Some(ReloadAction::Read(FileScope::All)));
        table.read(changed("a"), at(1));
        assert_eq!(table.poll(Plane::Serving, at(1)), Some(ReloadAction::Send { id: 1 }));
        assert_eq!(table.prepared(), Some(&"a"));
        assert_eq!(table.poll(Plane::Serving, at(1)), None);
        table
    }

    fn publishing() -> Table {
        let mut table = compiling();
        table.compiled(1, at(5));
        assert_eq!(
            table.poll(Plane::Serving, at(5)),
            Some(ReloadAction::Adopt { id: Some(1), prepared: "a" })
        );
        assert_eq!(table.poll(Plane::Serving, at(5)), None);
        table
    }

    #[track_caller]
    fn finished(
        action: Option<ReloadAction<&'static str, u8>>,
        outcome: ReloadOutcome,
        says: &str,
    ) -> Vec<Asker<u8>> {
        let Some(ReloadAction::Finish(finished)) = action else { panic!("{action:?}") };
        assert_eq!(finished.outcome, outcome, "{}", finished.text);
        assert!(finished.text.contains(says), "{}", finished.text);
        finished.askers
    }

    #[test]
    fn what_is_compiled_is_adopted_then_published_then_receipted() {
        let mut table = publishing();
        assert_eq!(table.prepared(), None);
        table.published(1);
        let askers = finished(table.poll(Plane::Serving, at(6)), ReloadOutcome::Applied, "took a");
        assert_eq!(askers, [Asker::Client(1)]);
        assert_eq!((table.poll(Plane::Serving, at(6)), table.next_deadline()), (None, None));
    }

    #[test]
    fn what_reading_refuses_reaches_no_data_plane() {
        let mut table = Table::default();
        table.ask(Asker::Signal, at(0));
        assert_eq!(table.poll(Plane::Serving, at(0)), Some(ReloadAction::Read(FileScope::All)));
        table.read(Read::Ended { outcome: ReloadOutcome::Invalid, text: "line 3".into() }, at(1));
        assert_eq!(
            finished(table.poll(Plane::Serving, at(1)), ReloadOutcome::Invalid, "line 3"),
            [Asker::Signal]
        );
        assert!(table.poll(Plane::Serving, at(1)).is_none());
    }

    #[test]
    fn a_data_plane_that_refuses_dies_or_is_silent_leaves_the_old_one_in_force() {
        let mut table = compiling();
        table.refused(1, "no memory");
        finished(table.poll(Plane::Serving, at(9)), ReloadOutcome::Refused, "no memory");

        let mut table = compiling();
        table.died();
        finished(table.poll(Plane::Changing, at(9)), ReloadOutcome::Died, "died");

        let mut table = compiling();
        let deadline = at(1) + COMPILE_WAIT;
        assert_eq!(table.next_deadline(), Some(deadline));
        assert_eq!(table.poll(Plane::Serving, Time::from_nanos(deadline.as_nanos() - 1)), None);
        assert_eq!(table.poll(Plane::Serving, deadline), Some(ReloadAction::Forget { id: 1 }));
        finished(table.poll(Plane::Serving, deadline), ReloadOutcome::Silent, "10s");
        // Its later answers about it change nothing.
        table.compiled(1, deadline);
        table.published(1);
        table.refused(1, "late");
        assert_eq!(table.poll(Plane::Serving, deadline), None);
    }

    #[test]
    fn what_was_adopted_is_applied_whether_or_not_the_data_plane_confirms_it() {
        let mut table = publishing();
        table.died();
        finished(table.poll(Plane::Changing, at(9)), ReloadOutcome::Applied, "its successor starts with it");

        let mut table = publishing();
        let deadline = at(5) + PUBLISH_WAIT;
        assert_eq!(table.next_deadline(), Some(deadline));
        finished(table.poll(Plane::Serving, deadline), ReloadOutcome::Applied, "not confirmed");
        table.published(1);
        assert_eq!(table.poll(Plane::Serving, deadline), None);

        // Too late to refuse.
        let mut table = publishing();
        table.refused(1, "no");
        assert_eq!(table.poll(Plane::Serving, at(6)), None);
    }

    #[test]
    fn those_that_ask_meanwhile_wait_for_one_more_that_reads_anew() {
        let mut table = compiling();
        table.ask(Asker::Client(2), at(2));
        table.ask(Asker::Signal, at(3));
        table.ask(Asker::Watch, at(3));
        table.ask(Asker::Signal, at(4));
        assert_eq!(table.poll(Plane::Serving, at(4)), None, "one at a time");
        table.compiled(1, at(5));
        assert!(matches!(table.poll(Plane::Serving, at(5)), Some(ReloadAction::Adopt { .. })));
        assert_eq!(table.poll(Plane::Serving, at(5)), None);
        table.published(1);
        assert_eq!(
            finished(table.poll(Plane::Serving, at(6)), ReloadOutcome::Applied, "took a"),
            [Asker::Client(1)]
        );
        assert_eq!(
            table.poll(Plane::Serving, at(6)),
            Some(ReloadAction::Read(FileScope::All)),
            "a signal asks for all files"
        );
        table.read(changed("b"), at(7));
        assert_eq!(table.poll(Plane::Serving, at(7)), Some(ReloadAction::Send { id: 2 }));
        // The first one's answers are not the second's.
        table.compiled(1, at(8));
        assert_eq!(table.poll(Plane::Serving, at(8)), None);
        table.compiled(2, at(8));
        assert_eq!(
            table.poll(Plane::Serving, at(8)),
            Some(ReloadAction::Adopt { id: Some(2), prepared: "b" })
        );
        table.published(2);
        let askers = finished(table.poll(Plane::Serving, at(9)), ReloadOutcome::Applied, "took b");
        assert_eq!(askers, [Asker::Client(2), Asker::Signal, Asker::Watch]);
    }

    #[test]
    fn a_watched_file_alone_reads_what_is_watched() {
        let mut table = Table::default();
        table.ask(Asker::Watch, at(0));
        assert_eq!(table.poll(Plane::Serving, at(0)), Some(ReloadAction::Read(FileScope::Watched)));
    }

    #[test]
    fn without_a_data_plane_it_is_adopted_for_the_next() {
        let mut table = Table::default();
        table.ask(Asker::Client(1), at(0));
        assert_eq!(table.poll(Plane::Absent, at(0)), Some(ReloadAction::Read(FileScope::All)));
        table.read(changed("a"), at(1));
        assert_eq!(table.poll(Plane::Absent, at(1)), Some(ReloadAction::Adopt { id: None, prepared: "a" }));
        finished(table.poll(Plane::Absent, at(1)), ReloadOutcome::Applied, "the next one starts with it");
    }

    #[test]
    fn one_that_starts_is_waited_for_but_not_for_ever() {
        let mut table = Table::default();
        table.ask(Asker::Client(1), at(0));
        assert_eq!(table.poll(Plane::Changing, at(0)), None);
        table.ask(Asker::Client(2), at(9_000));
        assert_eq!(table.next_deadline(), Some(at(0) + READY_WAIT), "who came first does not wait longer");
        let askers =
            finished(table.poll(Plane::Changing, at(0) + READY_WAIT), ReloadOutcome::NotReady, "15s");
        assert_eq!(askers, [Asker::Client(1), Asker::Client(2)]);
        table.ask(Asker::Client(3), at(20_000));
        assert_eq!(table.poll(Plane::Changing, at(20_000)), None);
        assert_eq!(table.poll(Plane::Serving, at(21_000)), Some(ReloadAction::Read(FileScope::All)));
    }

    #[test]
    fn an_end_refuses_what_waits_and_forgets_what_is_compiled_but_not_what_was_adopted() {
        let mut table = compiling();
        table.ask(Asker::Client(2), at(2));
        assert_eq!(table.poll(Plane::Ending, at(3)), Some(ReloadAction::Forget { id: 1 }));
        assert_eq!(
            finished(table.poll(Plane::Ending, at(3)), ReloadOutcome::Ending, "ending"),
            [Asker::Client(1)]
        );
        assert_eq!(
            finished(table.poll(Plane::Ending, at(3)), ReloadOutcome::Ending, "ending"),
            [Asker::Client(2)]
        );
        assert_eq!(table.poll(Plane::Ending, at(3)), None);

        let mut table = publishing();
        finished(table.poll(Plane::Ending, at(6)), ReloadOutcome::Applied, "not confirmed");
    }
}
