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
mod tests;
