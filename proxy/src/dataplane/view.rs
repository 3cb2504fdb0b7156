//! The control thread's view of the data plane. No worker is asked: everything is read from shared memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use proxy_common::steer::{SLOT_DRAINING, SLOT_LIVE};
use tokio::sync::{mpsc, oneshot};

use crate::access_log;
use crate::config::model::{AccessLog, Config, Holder};
use crate::control::messages::{Place, Start};
use crate::control::now;
use crate::control::slots::SteeringSlot;
use crate::control::status::{
    CertificateStatus, CrlStatus, DataPlaneStatus, EndpointStatus, ListenerStatus, LogStatus, ReasonStatus,
    SupervisorStatus, UpstreamStatus, WorkerStatus,
};
use crate::counters::Counters;
use crate::counters::{Cells, Counter, Plain};
use crate::error::{CloseReason, LogLossReason, RefusalReason, ShedReason};
use crate::listen::ListenKey;
use crate::session::traffic::Traffic;
use crate::telemetry::admin::{Sources, SupervisorAnswer};
use crate::telemetry::logging;
use crate::tls::certificate::Certificate;
use crate::tls::client_auth::Crl;
use crate::tls::review;
use crate::upstream::model::Upstream;

/// A question to the supervisor, with where its answer goes.
pub type Question = oneshot::Sender<SupervisorStatus>;

/// One worker, from outside.
#[derive(Debug)]
pub struct Watched {
    /// Where it runs.
    pub place: Place,
    /// Its counters.
    pub counters: Counters,
    /// Its line in the steering array.
    pub slot: SteeringSlot,
    /// Its thread has ended.
    pub ended: AtomicBool,
}

/// Shared by the control loop and the admin endpoints.
#[derive(Debug)]
pub struct View {
    /// The supervisor's start message.
    pub start: Start,
    /// The current configuration.
    pub config: ArcSwap<Config>,
    /// The part of it that workers serve by.
    pub traffic: Arc<ArcSwap<Traffic>>,
    /// Its number.
    pub snapshot: AtomicU64,
    /// Index = worker.
    pub workers: Vec<Watched>,
    /// Every worker accepts, or did once.
    pub ready: AtomicBool,
    /// Asked to drain or to stop.
    pub draining: AtomicBool,
    /// What the supervisor goes on without.
    pub lacks: ArcSwap<Vec<String>>,
    /// To the control loop, which asks the supervisor.
    pub questions: mpsc::Sender<Question>,
}

impl View {
    /// Whether no worker takes connections any more.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        let is_done = |worker: &Watched| {
            worker.ended.load(Ordering::Relaxed) || worker.slot.view().state == SLOT_DRAINING
        };
        self.workers.iter().all(is_done)
    }

    /// Whether every worker accepts on all of its listening sockets.
    fn accepts(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
            && self.workers.iter().all(|worker| worker.counters.value(Plain::ListenersFailing) == 0)
    }

    fn reasons(&self) -> ReasonStatus {
        let sum =
            |counter: Counter| self.workers.iter().map(|worker| worker.counters.value(counter)).sum::<u64>();
        let happened =
            |label: &str, counter| Some((label.to_owned(), sum(counter))).filter(|(_, count)| *count > 0);
        ReasonStatus {
            closed: CloseReason::ALL
                .iter()
                .filter_map(|&reason| happened(reason.label(), Counter::Closed(reason)))
                .collect(),
            refused: RefusalReason::ALL
                .iter()
                .filter_map(|&reason| happened(reason.label(), Counter::Refused(reason)))
                .collect(),
            shed: ShedReason::ALL
                .iter()
                .filter_map(|&reason| happened(reason.label(), Counter::Shed(reason)))
                .collect(),
        }
    }

    fn worker(&self, index: usize, worker: &Watched) -> WorkerStatus {
        let slot = worker.slot.view();
        let stuck_after = self.config.load().workers.stuck_after;
        let is_stuck = slot.running_since.is_some_and(|since| now().since(since) > stuck_after);
        let state = match slot.state {
            _ if worker.ended.load(Ordering::Relaxed) => "dead",
            SLOT_LIVE | SLOT_DRAINING if is_stuck => "stuck",
            SLOT_LIVE => "live",
            SLOT_DRAINING => "draining",
            _ => "starting",
        };
        WorkerStatus {
            worker: index,
            cpu: Some(worker.place.cpu),
            node: worker.place.memory_node,
            state: state.into(),
            connections: worker.counters.value(Plain::Open),
            accepted: worker.counters.value(Plain::Accepted),
            requests: worker.counters.value(Plain::Requests),
        }
    }
}

fn certificate((holder, certificate): (Holder<'_>, &Certificate), now: i64) -> CertificateStatus {
    let (listener, upstream) = match holder {
        Holder::Listener(name) => (name, ""),
        Holder::Upstream(name) => ("", name),
    };
    CertificateStatus {
        listener: listener.to_owned(),
        upstream: upstream.to_owned(),
        name: certificate.name().to_owned(),
        key: certificate.kind().label().to_owned(),
        not_after: review::date(certificate.not_after()),
        not_after_seconds: certificate.not_after(),
        remaining_seconds: certificate.not_after() - now,
    }
}

fn crl(listener: &str, crl: &Crl, now: i64) -> CrlStatus {
    CrlStatus {
        listener: listener.to_owned(),
        issuer: crl.issuer.to_string(),
        next_update: crl.next_update.map(review::date).unwrap_or_default(),
        next_update_seconds: crl.next_update.unwrap_or_default(),
        remaining_seconds: crl.next_update.map_or(0, |end| end - now),
    }
}

fn logs(access: &AccessLog) -> LogStatus {
    let lost = LogLossReason::ALL.iter().map(|&reason| (reason.label().to_owned(), access_log::lost(reason)));
    LogStatus {
        access: match access {
            AccessLog::Off => "off".to_owned(),
            AccessLog::Stdout => "stdout".to_owned(),
            AccessLog::File(path) => path.display().to_string(),
        },
        access_records: access_log::written(),
        access_lost: lost.filter(|(_, count)| *count > 0).collect(),
        lines_lost: logging::lines_lost(),
    }
}

impl Sources for View {
    fn data_plane(&self) -> DataPlaneStatus {
        let config = self.config.load();
        let unix_now = crate::config::unix_now();
        let draining = self.draining.load(Ordering::Relaxed);
        let traffic = self.traffic.load();
        let listener = |key: &ListenKey| ListenerStatus {
            name: traffic
                .listeners
                .get(key.listener)
                .map(|listener| listener.name.clone())
                .unwrap_or_default(),
            address: key.address.to_string(),
        };
        let upstream = |upstream: &Arc<Upstream>| UpstreamStatus {
            name: upstream.name.to_string(),
            endpoints: upstream
                .endpoints
                .iter()
                .map(|endpoint| EndpointStatus {
                    address: endpoint.label.to_string(),
                    health: "unchecked".into(),
                })
                .collect(),
        };
        DataPlaneStatus {
            pid: std::process::id(),
            generation: self.start.generation,
            snapshot: self.snapshot.load(Ordering::Relaxed),
            ready: self.accepts() && !draining,
            draining,
            workers: self
                .workers
                .iter()
                .enumerate()
                .map(|(index, worker)| self.worker(index, worker))
                .collect(),
            listeners: self.start.addresses.iter().map(listener).collect(),
            upstreams: config.upstreams.iter().map(upstream).collect(),
            certificates: config.certificates().map(|held| certificate(held, unix_now)).collect(),
            crls: config.crls().map(|(listener, list, _)| crl(listener, list, unix_now)).collect(),
            reasons: self.reasons(),
            logs: logs(&config.log.access),
        }
    }

    fn lacks(&self) -> Vec<String> {
        self.lacks.load().to_vec()
    }

    fn counters(&self) -> Vec<Cells> {
        self.workers.iter().map(|worker| worker.counters.cells()).collect()
    }

    fn supervisor(&self) -> SupervisorAnswer<'_> {
        let (question, answer) = oneshot::channel();
        // Full: enough are waiting for the same answer, and this one does without.
        let asked = self.questions.try_send(question).is_ok();
        Box::pin(async move { if asked { answer.await.ok() } else { None } })
    }
}
