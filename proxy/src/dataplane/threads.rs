//! The worker threads: one for each chosen core, named; each pins itself and makes its own ring. A thread
//! that is ready goes live in the steering array. A thread that ends, in order, by an error or by a panic,
//! says so to the control thread.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::control::messages::Place;
use crate::worker::{self, WorkerSeed};

/// Sessions are small state machines on the heap; the stack only holds the loop and one poll.
const STACK_BYTES: usize = 2 << 20;

/// A worker thread's news about itself.
#[derive(Debug, PartialEq, Eq)]
pub enum WorkerEvent {
    /// Its accepts are armed.
    Ready(usize),
    /// Its loop returned; with the reason when it should not have.
    Ended(usize, Result<(), String>),
}

/// All worker threads.
#[derive(Debug)]
pub struct Crew {
    /// Each sends two at most, and there is room for all of them, so no worker ever waits here.
    pub events: Receiver<WorkerEvent>,
    handles: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Starts a thread for each seed.
    ///
    /// # Errors
    /// When the kernel has no thread left.
    pub fn start(seeds: Vec<(Place, WorkerSeed)>) -> io::Result<Self> {
        let (sender, events) = channel(2 * seeds.len().max(1));
        let start = |(place, seed): (Place, WorkerSeed)| {
            let events = sender.clone();
            let builder = Builder::new().name(format!("worker-{}", seed.index)).stack_size(STACK_BYTES);
            builder.spawn(move || run(place, seed, &events))
        };
        let handles = seeds.into_iter().map(start).collect::<io::Result<_>>()?;
        Ok(Self { events, handles })
    }

    /// Without threads; the test plays them.
    #[cfg(test)]
    pub(super) fn played(events: Receiver<WorkerEvent>) -> Self {
        Self { events, handles: Vec::new() }
    }

    /// Waits for the threads; they have all said that they ended.
    pub fn join(self) {
        for handle in self.handles {
            // A panic was caught and reported within.
            let _ = handle.join();
        }
    }
}

fn run(place: Place, seed: WorkerSeed, events: &Sender<WorkerEvent>) {
    let index = seed.index;
    let slot = seed.steering.clone();
    let ready = || {
        slot.live(slot.generation(), u32::try_from(place.node).unwrap_or_default());
        drop(events.try_send(WorkerEvent::Ready(index)));
    };
    let result = match catch_unwind(AssertUnwindSafe(|| worker::run(seed, ready))) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("panic: {}", text(panic.as_ref()))),
    };
    drop(events.try_send(WorkerEvent::Ended(index, result)));
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a value that is not text")
}
