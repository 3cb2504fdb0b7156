//! The worker threads: one for each chosen core, named; each pins itself and makes its own ring, then waits.
//! When all have, and the process is confined, they serve. A thread that is ready goes live in the steering
//! array. A thread that ends, in order, by an error or by a panic,
//! says so to the control thread.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::control::messages::Place;
use crate::worker::{Prepared, WorkerSeed};

/// Sessions are small state machines on the heap; the stack only holds the loop and one poll.
const STACK_BYTES: usize = 2 << 20;

/// How long a thread may take to make its ring; the supervisor waits for longer.
const PREPARE_WAIT: Duration = Duration::from_secs(20);

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
    /// One for each thread that waits to be let go.
    waiting: Vec<SyncSender<()>>,
}

impl Crew {
    /// Starts a thread for each seed, and waits until each has made its ring or has said why it cannot.
    ///
    /// # Errors
    /// When the kernel has no thread left, or when a thread does not come so far in time.
    pub fn prepare(seeds: Vec<(Place, WorkerSeed)>) -> io::Result<Self> {
        let (sender, events) = channel(2 * seeds.len().max(1));
        let (prepared, all) = sync_channel(seeds.len());
        let mut crew = Self { events, handles: Vec::new(), waiting: Vec::new() };
        for (place, seed) in seeds {
            let (events, prepared) = (sender.clone(), prepared.clone());
            let (go, start) = sync_channel(1);
            let builder = Builder::new().name(format!("worker-{}", seed.index)).stack_size(STACK_BYTES);
            crew.handles.push(builder.spawn(move || run(place, seed, &prepared, &start, &events))?);
            crew.waiting.push(go);
        }
        for _ in &crew.waiting {
            all.recv_timeout(PREPARE_WAIT).map_err(|_| io::ErrorKind::TimedOut)?;
        }
        Ok(crew)
    }

    /// Lets the threads serve.
    pub fn go(&mut self) {
        // A thread that failed has said so, and waits no more.
        for thread in self.waiting.drain(..) {
            let _ = thread.try_send(());
        }
    }

    /// Without threads; the test plays them.
    #[cfg(test)]
    pub(super) fn played(events: Receiver<WorkerEvent>) -> Self {
        Self { events, handles: Vec::new(), waiting: Vec::new() }
    }

    /// Waits for the threads; they have all said that they ended.
    pub fn join(self) {
        for handle in self.handles {
            // A panic was caught and reported within.
            let _ = handle.join();
        }
    }
}

fn run(
    place: Place,
    seed: WorkerSeed,
    prepared: &SyncSender<()>,
    start: &mpsc::Receiver<()>,
    events: &Sender<WorkerEvent>,
) {
    let index = seed.index;
    let slot = seed.steering.clone();
    let ready = || {
        slot.live(slot.generation(), u32::try_from(place.node).unwrap_or_default());
        drop(events.try_send(WorkerEvent::Ready(index)));
    };
    let serve = || {
        let worker = Prepared::new(seed);
        let _ = prepared.try_send(());
        match (worker, start.recv()) {
            (Ok(worker), Ok(())) => worker.run(ready),
            // The process ends: it could not be confined, or another thread could not start.
            (Ok(_), Err(_)) => Ok(()),
            (Err(error), _) => Err(error),
        }
    };
    let result = match catch_unwind(AssertUnwindSafe(serve)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("panic: {}", text(panic.as_ref()))),
    };
    drop(events.try_send(WorkerEvent::Ended(index, result)));
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a value that is not text")
}
