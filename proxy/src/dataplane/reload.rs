//! A new configuration on its way to the workers. Its files arrive in batches, a thread of its own resolves
//! them beside the configuration that runs, and it waits until the supervisor has it published. Nothing of it
//! is seen before that.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::receive;
use crate::config::model::Config;
use crate::control::batches::FileCollector;
use crate::control::messages::Item;
use crate::listen::ListenerIds;
use crate::session::traffic::Traffic;

/// Bytes of a reason that travel to the supervisor; its messages are bounded.
const REASON_BYTES_MAX: usize = 4096;

/// The one reload that may be on its way.
#[derive(Debug, Default)]
pub struct Reloader {
    current: Option<Reload>,
    /// Replaced configurations, until the workers let go of them: freed here, since a large one takes a
    /// while.
    retired: Vec<Retired>,
}

#[derive(Debug)]
struct Reload {
    id: u64,
    snapshot: u64,
    /// Of the listeners.
    ids: ListenerIds,
    step: CompileStep,
}

#[derive(Debug)]
enum CompileStep {
    Collecting(FileCollector),
    Compiling(JoinHandle<Result<Compiled, String>>),
    Compiled(Compiled),
}

/// A new configuration, and the part of it that workers will hold.
pub type Compiled = (Arc<Config>, Arc<Traffic>);

/// A replaced configuration, and the part of it that workers hold.
#[derive(Debug)]
struct Retired {
    snapshot: u64,
    config: Arc<Config>,
    traffic: Arc<Traffic>,
}

/// Says which reload it is, and why it cannot be.
pub type Refusal = (u64, String);

impl Reloader {
    /// Files of a new configuration follow. A reload that was on its way is forgotten.
    ///
    /// # Errors
    /// When the announcement makes no sense.
    pub fn begin(
        &mut self,
        id: u64,
        snapshot: u64,
        ids: ListenerIds,
        (batches, descriptors): (u32, u32),
    ) -> Result<(), Refusal> {
        self.current = None;
        let collector = FileCollector::new(batches, descriptors).map_err(|error| (id, error.to_string()))?;
        self.current = Some(Reload { id, snapshot, ids, step: CompileStep::Collecting(collector) });
        Ok(())
    }

    /// Takes a batch. After the last one it is being compiled, to succeed `running`. Within a tokio runtime.
    ///
    /// # Errors
    /// When a batch is not as announced; `None`: nothing was announced.
    pub fn take(
        &mut self,
        number: u32,
        items: Vec<Item>,
        descriptors: Vec<OwnedFd>,
        running: &Arc<Config>,
    ) -> Result<(), Option<Refusal>> {
        let Some(Reload { id, snapshot, ids, step: CompileStep::Collecting(mut collector) }) =
            self.current.take_if(|reload| matches!(reload.step, CompileStep::Collecting(_)))
        else {
            return Err(None);
        };
        let refused = |error: crate::control::batches::HandoffError| Some((id, error.to_string()));
        let step = if collector.take(number, items, descriptors).map_err(refused)? {
            let (files, running) = (collector.finish().map_err(refused)?, Arc::clone(running));
            let ids = ids.clone();
            CompileStep::Compiling(tokio::task::spawn_blocking(move || {
                let config = receive::configuration(files).map_err(|error| error.to_string())?;
                let config = config.succeed(&running);
                let traffic = config.traffic(&ids).map_err(|error| error.to_string())?;
                Ok((Arc::new(config), Arc::new(traffic)))
            }))
        } else {
            CompileStep::Collecting(collector)
        };
        self.current = Some(Reload { id, snapshot, ids, step });
        Ok(())
    }

    /// Whether `compiled` has something to wait for.
    #[must_use]
    pub fn is_compiling(&self) -> bool {
        matches!(self.current, Some(Reload { step: CompileStep::Compiling(_), .. }))
    }

    /// Waits until it is compiled; its number. Dropped before, it goes on at the next call.
    ///
    /// # Errors
    /// When it does not resolve, or its thread panicked.
    pub async fn compiled(&mut self) -> Result<u64, Refusal> {
        let Some(Reload { id, step: step @ CompileStep::Compiling(_), .. }) = &mut self.current else {
            std::future::pending().await
        };
        let CompileStep::Compiling(task) = step else { std::future::pending().await };
        let result = task.await.unwrap_or_else(|error| Err(format!("it could not be compiled: {error}")));
        let id = *id;
        match result {
            Ok(compiled) => {
                *step = CompileStep::Compiled(compiled);
                Ok(id)
            }
            Err(mut reason) => {
                self.current = None;
                reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
                Err((id, reason))
            }
        }
    }

    /// The configuration that was compiled under this number, and the number of its snapshot; once.
    pub fn publish(&mut self, id: u64) -> Option<(Compiled, u64)> {
        let is_this =
            |reload: &mut Reload| reload.id == id && matches!(reload.step, CompileStep::Compiled(_));
        match self.current.take_if(is_this) {
            Some(Reload { snapshot, step: CompileStep::Compiled(compiled), .. }) => {
                Some((compiled, snapshot))
            }
            _ => None,
        }
    }

    /// It is not wanted any more. If a thread is still compiling it, the result is thrown away.
    pub fn forget(&mut self, id: u64) {
        self.current.take_if(|reload| reload.id == id);
    }

    /// Keeps a replaced configuration until nobody else does. `snapshot`: its number.
    pub fn retire(&mut self, snapshot: u64, config: Arc<Config>, traffic: Arc<Traffic>) {
        self.retired.push(Retired { snapshot, config, traffic });
        self.release();
    }

    /// The number of the oldest configuration that somebody else holds, if one that was replaced is held.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.retired.iter().map(|retired| retired.snapshot).min()
    }

    /// Whether `release` may have something to do.
    #[must_use]
    pub fn holds_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Frees configurations that nobody else holds any more.
    pub fn release(&mut self) {
        self.retired.retain(|Retired { config, traffic, .. }| {
            Arc::strong_count(config) > 1 || Arc::strong_count(traffic) > 1
        });
    }
}
