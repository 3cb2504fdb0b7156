//! Reloads: the decisions of `supervisor::reload`, turned into files read, messages sent and receipts.

use std::path::PathBuf;
use std::sync::Arc;

use tracing::{debug, error, info, warn};

use super::super::clients::ClientId;
use super::super::estate::Sealed;
use super::super::notify;
use super::super::reload::{Asker, FileScope, Finished, Plane, Read, ReloadAction, Reloads};
use super::Supervisor;
use crate::config::changes::Changes;
use crate::config::{self, Diagnostics, Loaded, model};
use crate::control::batches;
use crate::control::life::LifeState;
use crate::control::messages::{Item, Response, ToDataPlane};
use crate::control::now;
use crate::control::status::ReloadStatus;
use crate::error::ReloadOutcome;
use crate::listen::ListenerIds;
use crate::time::Time;

/// A configuration that can succeed the one in force.
#[derive(Debug)]
pub(super) struct Prepared {
    config: model::Config,
    listeners: ListenerIds,
    files: Vec<Sealed>,
    watched: Vec<PathBuf>,
}

/// The supervisor's reloads and their outcomes.
#[derive(Debug)]
pub(super) struct Reloading {
    table: Reloads<Prepared, ClientId>,
    outcomes: [u64; ReloadOutcome::ALL.len()],
    /// Seconds since 1970, of the start at first.
    succeeded_at: u64,
    /// Why the last one failed, and whether it was the watch's.
    failed: Option<(String, bool)>,
}

impl Reloading {
    pub(super) fn new() -> Self {
        Self {
            table: Reloads::default(),
            outcomes: [0; ReloadOutcome::ALL.len()],
            succeeded_at: wall_clock(),
            failed: None,
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.table.next_deadline()
    }
}

impl Supervisor {
    pub(super) fn ask_reload(&mut self, asker: Asker<ClientId>, now: Time) {
        if asker != Asker::Watch && !self.life.is_ending() {
            notify::reloading();
        }
        self.reloading.table.ask(asker, now);
    }

    pub(super) fn reload_compiled(&mut self, id: u64, now: Time) {
        self.reloading.table.compiled(id, now);
    }

    pub(super) fn reload_refused(&mut self, id: u64, reason: &str) {
        self.reloading.table.refused(id, reason);
    }

    pub(super) fn reload_published(&mut self, id: u64) {
        self.reloading.table.published(id);
    }

    pub(super) fn reload_lost_its_data_plane(&mut self) {
        self.reloading.table.died();
    }

    /// Carries out all actions for reloads that are due.
    pub(super) fn advance_reloads(&mut self) {
        while let Some(action) = self.reloading.table.poll(self.plane(), now()) {
            match action {
                ReloadAction::Read(scope) => {
                    let read = self.read(scope);
                    self.reloading.table.read(read, now());
                }
                ReloadAction::Send { id } => self.send_prepared(id),
                ReloadAction::Forget { id } => self.order(ToDataPlane::Forget { id }),
                ReloadAction::Adopt { id, prepared } => {
                    let Prepared { config, listeners, files, watched } = prepared;
                    self.estate.adopt(config, listeners, files);
                    if id.is_none() {
                        // No data plane holds another.
                        self.estate.release_destinations(self.estate.snapshot);
                    }
                    self.watch.follow(watched);
                    self.set_log_level();
                    if let Some(id) = id {
                        self.order(ToDataPlane::Publish { id });
                    }
                }
                ReloadAction::Finish(finished) => self.finish(finished),
            }
        }
    }

    fn plane(&self) -> Plane {
        match self.life.state() {
            _ if self.life.is_ending() => Plane::Ending,
            LifeState::Ready { .. } => Plane::Serving,
            LifeState::Backoff { .. } => Plane::Absent,
            LifeState::Idle | LifeState::Starting { .. } | LifeState::Killing => Plane::Changing,
            LifeState::Leaving { .. }
            | LifeState::Draining { .. }
            | LifeState::Stopping { .. }
            | LifeState::Ended => Plane::Ending,
        }
    }

    fn set_log_level(&self) {
        if let Err(error) = crate::telemetry::logging::set_level(&self.estate.config.log.level) {
            warn!("{error}");
        }
    }

    /// Reads and compares. This holds the loop up: 50 ms of CPU time for 10,000 routes and 1,000 upstreams,
    /// 10 more for the largest list of the guard.
    fn read(&mut self, scope: FileScope) -> Read<Prepared> {
        let in_force = match self.estate.files_in_force() {
            Ok(files) => files,
            Err(error) => {
                return ended(
                    ReloadOutcome::NotSent,
                    format!("the files in force cannot be read again: {error}"),
                );
            }
        };
        let loaded = match scope {
            FileScope::All => config::load(&in_force[0].0),
            FileScope::Watched => config::load_watched(&in_force),
        };
        match loaded {
            Ok(loaded) => self.compare(loaded),
            Err(diagnostics) => {
                diagnostics.iter().for_each(|diagnostic| error!("{diagnostic}"));
                ended(
                    ReloadOutcome::Invalid,
                    format!("{}\n{}", count_errors(&diagnostics), diagnostics.render(false).trim_end()),
                )
            }
        }
    }

    fn compare(&mut self, loaded: Loaded) -> Read<Prepared> {
        let Loaded { config, files, warnings, watched } = loaded;
        let sealed = files.iter().map(Sealed::new).collect::<std::io::Result<Vec<_>>>();
        drop(files);
        let Changes { fixed, live } = Changes::between(&self.estate.config, &config);
        if !fixed.is_empty() {
            let text = format!(
                "these keys are taken at a start only: {}; restart sluice for them, or set them back",
                fixed.join(", ")
            );
            return ended(ReloadOutcome::NeedsRestart, text);
        }
        let files = match sealed {
            Ok(files) => files,
            Err(error) => return ended(ReloadOutcome::NotSent, format!("memfd: {error}")),
        };
        warnings.iter().for_each(|warning| warn!("{warning}"));
        let warned: String = warnings.iter().map(|warning| format!("\n{warning}")).collect();
        if config == self.estate.config {
            // Other comments, for example: the next data plane must read the same text as we did.
            self.estate.adopt_files(files);
            self.watch.follow(watched);
            return ended(ReloadOutcome::Unchanged, format!("it says the same as the one in force{warned}"));
        }
        // Before the data plane hears of it, which connects to nothing else.
        if let Err(reason) = self.estate.propose_destinations(&config) {
            return ended(ReloadOutcome::NotSent, reason);
        }
        let live = if live.is_empty() { "details changed".to_owned() } else { live.join("; ") };
        let listeners = config.listener_ids(&self.estate.listeners);
        let prepared = Prepared { config, listeners, files, watched };
        Read::Changed { prepared, summary: live + &warned }
    }

    fn send_prepared(&mut self, id: u64) {
        let (Some(prepared), Some(plane)) = (self.reloading.table.prepared(), self.planes.current()) else {
            return;
        };
        let Prepared { files, listeners, .. } = prepared;
        let items =
            files.iter().map(|file| (Item::File { path: file.path.clone() }, Arc::clone(&file.fd))).collect();
        let batches = batches::cut(items);
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let (snapshot, descriptors) = (self.estate.snapshot + 1, count(files.len()));
        plane.order(ToDataPlane::Reload {
            id,
            snapshot,
            listeners: listeners.clone(),
            batches: count(batches.len()),
            descriptors,
        });
        for (number, batch) in (0..).zip(batches) {
            let (items, descriptors) = batch.into_iter().unzip();
            plane.carry(ToDataPlane::Batch { number, items }, descriptors);
        }
    }

    fn finish(&mut self, finished: Finished<ClientId>) {
        let Finished { askers, outcome, text, began } = finished;
        let (now, snapshot) = (now(), self.estate.snapshot);
        let took = now.since(began).as_micros() as f64 / 1e3;
        if outcome != ReloadOutcome::Applied {
            self.estate.withdraw_destinations();
        }
        let by_watch = askers.iter().all(|asker| *asker == Asker::Watch);
        if askers.contains(&Asker::Watch) {
            self.watch.finished(outcome, now);
        }
        if by_watch && outcome == ReloadOutcome::Unchanged {
            // A file was touched, or mended again.
            self.reloading.failed.take_if(|(_, by_watch)| *by_watch);
            return debug!("a watched file says what it said before");
        }
        self.reloading.outcomes[outcome.index()] += 1;
        let (response, line) = match outcome {
            ReloadOutcome::Applied => {
                let line =
                    format!("reloaded in {took:.1} ms: snapshot {} -> {snapshot}; {text}", snapshot - 1);
                (Response::Done(line.clone()), line)
            }
            ReloadOutcome::Unchanged => {
                let line = format!("nothing to reload: snapshot {snapshot} stays; {text}");
                (Response::Done(line.clone()), line)
            }
            _ => {
                let line = format!("not reloaded, snapshot {snapshot} stays in force: {text}");
                (Response::Failed(line.clone()), line)
            }
        };
        let reason = outcome.label();
        // Errors and warnings were logged one by one.
        let line = line.lines().next().unwrap_or_default();
        let succeeded = matches!(outcome, ReloadOutcome::Applied | ReloadOutcome::Unchanged);
        if succeeded {
            self.reloading.succeeded_at = wall_clock();
        }
        self.reloading.failed = (!succeeded).then(|| (line.to_owned(), by_watch));
        if succeeded {
            info!(reason, "{line}");
        } else {
            error!(reason, "{line}");
        }
        if !by_watch && !self.life.is_ending() {
            notify::ready(line);
        }
        for asker in askers {
            if let Asker::Client(id) = asker {
                self.clients.answer(id, &response, now);
            }
        }
    }

    /// For the status.
    pub(super) fn reload_status(&self) -> ReloadStatus {
        let outcomes = ReloadOutcome::ALL.iter().zip(self.reloading.outcomes);
        ReloadStatus {
            snapshot: self.estate.snapshot,
            outcomes: outcomes.map(|(outcome, count)| (outcome.label().to_owned(), count)).collect(),
            succeeded_at: self.reloading.succeeded_at,
            watched_files: self.watch.len(),
            failed: self.reloading.failed.as_ref().map(|(why, _)| why.clone()),
        }
    }
}

fn ended(outcome: ReloadOutcome, text: String) -> Read<Prepared> {
    Read::Ended { outcome, text }
}

fn count_errors(diagnostics: &Diagnostics) -> String {
    match diagnostics.len() {
        1 => "the configuration has an error".to_owned(),
        count => format!("the configuration has {count} errors"),
    }
}

fn wall_clock() -> u64 {
    u64::try_from(config::unix_now()).unwrap_or_default()
}
