//! How a worker ends, in phases, each with a deadline. While it drains, accepts end with the listening
//! sockets, idle connections are closed, and active ones end with `Connection: close`. When it stops, all
//! connections that are left are reset.

use std::rc::Rc;
use std::time::Duration;

use crate::control::commands::Command;
use crate::control::slots::SteeringSlot;
use crate::io::Engine;
use crate::io::seam::Ring;
use crate::io::stream::Tag;
use crate::io::tags;
use crate::session::context::Worker;
use crate::session::table;
use crate::time::Time;

/// How long resets may take to leave before the worker returns all the same.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// How long accepts go on after a drain began: until then the supervisor has shut down the listening sockets.
/// Connections in their queues are still served; they would be lost if accepts ended first.
const ACCEPT_GRACE: Duration = Duration::from_secs(1);

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Accepts and serves.
    Serving,
    /// Serves the connections that it has.
    Draining {
        /// When all connections that are left are reset.
        deadline: Time,
        /// When accepts end at the latest.
        accepts_until: Time,
    },
    /// All connections were reset.
    Stopping {
        /// When the worker returns, even if connections are still closing.
        deadline: Time,
    },
}

impl Phase {
    /// Follows a command. A second drain can only shorten the first.
    pub fn obey<R: Ring>(
        &mut self,
        command: Command,
        worker: &Rc<Worker>,
        engine: &mut Engine<R>,
        steering: &SteeringSlot,
    ) {
        match (command, *self) {
            (_, Self::Stopping { .. }) => {}
            (Command::Drain { deadline }, Self::Draining { deadline: earlier, accepts_until }) => {
                *self = Self::Draining { deadline: deadline.min(earlier), accepts_until };
                arm(worker, deadline);
            }
            (Command::Drain { deadline }, Self::Serving) => {
                let accepts_until = worker.io.after(ACCEPT_GRACE).min(deadline);
                *self = Self::Draining { deadline, accepts_until };
                steering.draining();
                engine.let_accepts_end();
                worker.start_draining();
                table::drain(worker);
                arm(worker, accepts_until);
                arm(worker, deadline);
            }
            (Command::Stop, _) => {
                steering.draining();
                engine.cancel_accepts();
                worker.start_draining();
                self.stop(worker);
            }
        }
    }

    /// Goes on to the next phase if it is time, after a loop turn. `true`: the worker is done.
    pub fn advance<R: Ring>(&mut self, worker: &Rc<Worker>, engine: &mut Engine<R>) -> bool {
        let empty = |engine: &Engine<R>| {
            engine.accepts_armed() == 0 && worker.sessions.open() == 0 && engine.streams() == 0
        };
        match *self {
            Self::Serving => false,
            Self::Draining { .. } if empty(engine) => true,
            Self::Draining { deadline, accepts_until } => {
                if accepts_until <= worker.io.now() {
                    engine.cancel_accepts();
                }
                if deadline <= worker.io.now() {
                    self.stop(worker);
                }
                false
            }
            Self::Stopping { deadline } => {
                // A connection that was accepted while its accept was being cancelled comes too late.
                table::abort_all(worker);
                empty(engine) || deadline <= worker.io.now()
            }
        }
    }

    fn stop(&mut self, worker: &Rc<Worker>) {
        let deadline = worker.io.after(STOP_GRACE);
        *self = Self::Stopping { deadline };
        table::abort_all(worker);
        arm(worker, deadline);
    }
}

/// The loop has to wake at a deadline even if nothing else happens.
fn arm(worker: &Worker, deadline: Time) {
    worker.io.timer_at(deadline, Tag { kind: tags::DRAIN, key: 0 });
}
