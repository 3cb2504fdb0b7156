//! `/metrics`: the counters' cells and the supervisor's numbers, encoded by prometheus-client at the moment
//! of the scrape, in the OpenMetrics text format. Nothing here is kept between scrapes: the cells outlive us
//! in the supervisor's memfd.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::access_log;
use crate::control::status::{
    CertificateStatus, CrlStatus, DataPlaneStatus, ProcessStatus, SupervisorStatus,
};
use crate::counters::{Cells, Counter, DURATION_BOUNDS_MICROS, Kind, Plain};
use crate::error::{
    CloseReason, Crowded, HandshakeFailure, HandshakeKind, LogLossReason, PoolCloseReason, RefusalReason,
    ShedReason,
};
use crate::telemetry::logging;
use crate::tls::alert::Alert;

/// The media type of the text that `encode` returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The content of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// Index = worker.
    pub workers: Vec<Cells>,
    /// The data plane's half.
    pub data_plane: DataPlaneStatus,
    /// The supervisor's half; its metrics are left out when it does not answer.
    pub supervisor: Option<SupervisorStatus>,
}

/// Encodes a scrape.
#[must_use]
pub fn encode(scrape: Scrape) -> String {
    let Scrape { workers, data_plane, supervisor } = scrape;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Workers(workers)));
    registry.register_collector(Box::new(DataPlane {
        status: data_plane,
        supervisor_answers: supervisor.is_some(),
    }));
    let process = supervisor.as_ref().map(|supervisor| supervisor.process).unwrap_or_default();
    registry.register_collector(Box::new(Process(process)));
    if let Some(supervisor) = supervisor {
        registry.register_collector(Box::new(Supervisor(supervisor)));
    }
    let mut text = String::with_capacity(16 << 10);
    // Writing to a String fails only if a label refuses to be written, and ours are numbers and strings.
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => text,
        Err(fmt::Error) => String::from("# EOF\n"),
    }
}

/// One metric family: its samples share a `# TYPE` line.
struct Family<'a, 'e> {
    encoder: &'a mut DescriptorEncoder<'e>,
    /// Without its unit.
    name: &'a str,
    help: &'a str,
    unit: Option<Unit>,
}

impl Family<'_, '_> {
    fn counter(self, value: u64) -> fmt::Result {
        let mut metric =
            self.encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn gauge(self, value: u64) -> fmt::Result {
        let mut metric =
            self.encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), MetricType::Gauge)?;
        metric.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))
    }

    fn counters<L: EncodeLabelSet>(self, samples: impl IntoIterator<Item = (L, u64)>) -> fmt::Result {
        let mut metric =
            self.encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in samples {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauges<L: EncodeLabelSet>(self, samples: impl IntoIterator<Item = (L, u64)>) -> fmt::Result {
        let mut metric =
            self.encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in samples {
            metric.encode_family(&labels)?.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?;
        }
        Ok(())
    }
}

/// The encoder appends the unit again, and declares it.
fn family<'a, 'e>(encoder: &'a mut DescriptorEncoder<'e>, name: &'a str, help: &'a str) -> Family<'a, 'e> {
    let units = [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)];
    let found = units.into_iter().find_map(|(suffix, unit)| Some((name.strip_suffix(suffix)?, unit)));
    let (name, unit) = found.map_or((name, None), |(name, unit)| (name, Some(unit)));
    Family { encoder, name, help, unit }
}

/// How long exchanges took, over all workers: as many series for each of them would be a lot on a large
/// machine.
fn durations(encoder: &mut DescriptorEncoder<'_>, workers: &[Cells]) -> fmt::Result {
    let sum = |counter: Counter| workers.iter().map(|cells| cells[counter.index()]).sum::<u64>();
    let bounds = DURATION_BOUNDS_MICROS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> =
        bounds.enumerate().map(|(bucket, bound)| (bound, sum(Counter::Duration(bucket)))).collect();
    let count = buckets.iter().map(|(_, count)| count).sum();
    let help = "From the whole request head to the response's last byte, queued for the client";
    let family = family(encoder, "sluice_request_duration_seconds", help);
    let mut metric = family.encoder.encode_descriptor(
        family.name,
        family.help,
        family.unit.as_ref(),
        MetricType::Histogram,
    )?;
    metric.encode_histogram::<NoLabelSet>(sum(Counter::DurationMicros) as f64 / 1e6, count, &buckets, None)
}

/// The workers' counter blocks.
#[derive(Debug)]
struct Workers(Vec<Cells>);

impl Workers {
    fn samples(&self, counter: Counter) -> impl Iterator<Item = (usize, u64)> {
        self.0.iter().enumerate().map(move |(worker, cells)| (worker, cells[counter.index()]))
    }

    /// One family with a reason label: every reason is shown from the start, so that rates are right from the
    /// first event on.
    fn by_reason<R: Copy>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        reasons: &[R],
        label: fn(R) -> &'static str,
        counter: fn(R) -> Counter,
    ) -> fmt::Result {
        self.by(encoder, (name, help), "reason", (reasons, label), counter)
    }

    fn by<R: Copy>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        key: &'static str,
        (values, label): (&[R], fn(R) -> &'static str),
        counter: fn(R) -> Counter,
    ) -> fmt::Result {
        let samples = values.iter().flat_map(|&value| {
            self.samples(counter(value)).map(move |(worker, count)| {
                ([("worker", worker.to_string()), (key, label(value).to_owned())], count)
            })
        });
        family(encoder, name, help).counters(samples)
    }
}

impl Collector for Workers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        for &plain in Plain::ALL {
            let (name, help, kind) = plain.describe();
            let samples = self.samples(plain.into()).map(|(worker, value)| ([("worker", worker)], value));
            match kind {
                Kind::Counter => family(encoder, name, help).counters(samples)?,
                Kind::Gauge => family(encoder, name, help).gauges(samples)?,
            }
        }
        let closed = ("sluice_connections_closed", "Downstream connections closed, by reason");
        self.by_reason(encoder, closed, CloseReason::ALL, CloseReason::label, Counter::Closed)?;
        let refused = ("sluice_requests_refused", "Requests answered by Sluice itself, by reason");
        self.by_reason(encoder, refused, RefusalReason::ALL, RefusalReason::label, Counter::Refused)?;
        let shed =
            ("sluice_connections_shed", "Accepted connections refused before a byte was read, by reason");
        self.by_reason(encoder, shed, ShedReason::ALL, ShedReason::label, Counter::Shed)?;
        let gave_way = (
            "sluice_connections_gave_way",
            "Downstream connections ended to make place for those of other clients, by reason",
        );
        self.by_reason(encoder, gave_way, Crowded::ALL, Crowded::label, Counter::GaveWay)?;
        let pool = ("sluice_upstream_connections_closed", "Upstream connections closed, by reason");
        self.by_reason(encoder, pool, PoolCloseReason::ALL, PoolCloseReason::label, Counter::PoolClosed)?;
        let failed = ("sluice_tls_handshakes_failed", "TLS handshakes with clients that failed, by reason");
        self.by_reason(
            encoder,
            failed,
            HandshakeFailure::ALL,
            HandshakeFailure::label,
            Counter::HandshakeFailed,
        )?;
        let done = (
            "sluice_tls_handshakes",
            "TLS handshakes with clients, by version and whether an earlier session went on",
        );
        self.by(encoder, done, "kind", (HandshakeKind::ALL, HandshakeKind::label), Counter::Handshake)?;
        let received = ("sluice_tls_alerts_received", "Alerts from clients that ended a connection, by name");
        self.by(encoder, received, "alert", (Alert::ALL, Alert::label), Counter::AlertReceived)?;
        let sent = ("sluice_tls_alerts_sent", "Alerts to clients that ended a connection, by name");
        self.by(encoder, sent, "alert", (Alert::ALL, Alert::label), Counter::AlertSent)?;
        durations(encoder, &self.0)
    }
}

/// The data plane's own metrics.
#[derive(Debug)]
struct DataPlane {
    status: DataPlaneStatus,
    supervisor_answers: bool,
}

impl Collector for DataPlane {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let status = &self.status;
        family(encoder, "sluice_build_info", "Always 1; the version is in the label")
            .gauges([([("version", env!("CARGO_PKG_VERSION"))], 1)])?;
        family(encoder, "sluice_ready", "1 while accepting and not draining")
            .gauge(u64::from(status.ready && !status.draining))?;
        family(encoder, "sluice_draining", "1 while draining").gauge(u64::from(status.draining))?;
        family(encoder, "sluice_generation", "Which data plane this is, from 1")
            .gauge(u64::from(status.generation))?;
        family(encoder, "sluice_snapshot", "Which compiled configuration is current, from 1")
            .gauge(status.snapshot)?;
        family(encoder, "sluice_supervisor_up", "1 when the supervisor answered this scrape")
            .gauge(u64::from(self.supervisor_answers))?;
        let workers = status.workers.iter().map(|worker| {
            let number = |number: Option<usize>| number.map_or_else(String::new, |number| number.to_string());
            (
                [
                    ("worker", worker.worker.to_string()),
                    ("cpu", number(worker.cpu)),
                    ("node", number(worker.node)),
                    ("state", worker.state.clone()),
                ],
                1,
            )
        });
        family(encoder, "sluice_worker_info", "Always 1; where each worker runs and how it is")
            .gauges(workers)?;
        certificates(encoder, &status.certificates)?;
        crls(encoder, &status.crls)?;
        family(encoder, "sluice_log_lines_lost", "Log lines lost to a full queue or a failing output")
            .counter(logging::lines_lost())?;
        family(encoder, "sluice_access_log_records", "Records written to the access log")
            .counter(access_log::written())?;
        let lost =
            LogLossReason::ALL.iter().map(|&reason| ([("reason", reason.label())], access_log::lost(reason)));
        family(
            encoder,
            "sluice_access_log_records_lost",
            "Records of the access log that were lost, by reason",
        )
        .counters(lost)
    }
}

/// When certificates end. Of several that stand for the same only one is ever shown: that which is valid for
/// longest.
fn certificates(encoder: &mut DescriptorEncoder<'_>, certificates: &[CertificateStatus]) -> fmt::Result {
    let mut ends: BTreeMap<[(&str, &str); 4], i64> = BTreeMap::new();
    for CertificateStatus { listener, upstream, name, key, not_after_seconds, .. } in certificates {
        let labels = [("listener", &**listener), ("upstream", upstream), ("name", name), ("key", key)];
        let end = ends.entry(labels).or_insert(*not_after_seconds);
        *end = (*end).max(*not_after_seconds);
    }
    let samples = ends.into_iter().map(|(labels, end)| (labels, u64::try_from(end).unwrap_or_default()));
    let help = "The last moment of each certificate that clients (listener) or endpoints (upstream) are \
        shown, in seconds since 1970";
    family(encoder, "sluice_certificate_not_after_timestamp_seconds", help).gauges(samples)
}

/// When lists of revoked certificates end. Of several of one CA the last one ends last.
fn crls(encoder: &mut DescriptorEncoder<'_>, crls: &[CrlStatus]) -> fmt::Result {
    let mut ends: BTreeMap<[(&str, &str); 2], i64> = BTreeMap::new();
    for CrlStatus { listener, issuer, next_update_seconds, .. } in crls {
        let end = ends.entry([("listener", listener), ("issuer", issuer)]).or_insert(*next_update_seconds);
        *end = (*end).max(*next_update_seconds);
    }
    let samples = ends.into_iter().map(|(labels, end)| (labels, u64::try_from(end).unwrap_or_default()));
    let help = "When the next list of revoked client certificates is due, in seconds since 1970; 0: its \
        list does not say";
    family(encoder, "sluice_crl_next_update_timestamp_seconds", help).gauges(samples)
}

/// The supervisor's metrics.
#[derive(Debug)]
struct Supervisor(SupervisorStatus);

impl Collector for Supervisor {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let Self(status) = self;
        let by_outcome =
            status.reload.outcomes.iter().map(|(outcome, count)| ([("outcome", outcome.as_str())], *count));
        data_planes(encoder, status)?;
        family(encoder, "sluice_uptime_seconds", "Since the supervisor started")
            .gauge(status.uptime_seconds)?;
        family(encoder, "sluice_reloads", "Reloads of the configuration, by outcome").counters(by_outcome)?;
        family(
            encoder,
            "sluice_reload_last_success_timestamp_seconds",
            "When the configuration in force was read or confirmed",
        )
        .gauge(status.reload.succeeded_at)?;
        family(encoder, "sluice_reload_watched_files", "Files whose changes take effect by themselves")
            .gauge(status.reload.watched_files as u64)?;
        family(encoder, "sluice_degraded_findings", "What auto went on without; /status names it")
            .gauge(status.degraded.len() as u64)?;
        let interfaces = status
            .guard
            .interfaces
            .iter()
            .map(|(name, mode)| ([("interface", name.as_str()), ("mode", mode.as_str())], 1));
        family(encoder, "sluice_guard_interface_info", "Always 1; the XDP mode of each interface")
            .gauges(interfaces)?;
        let attached = status.guard.interfaces.keys().map(|name| (name, 1));
        let attached = attached.chain(status.guard.unguarded.keys().map(|name| (name, 0)));
        let attached = attached.map(|(name, is_attached)| ([("interface", name.as_str())], is_attached));
        family(
            encoder,
            "sluice_guard_interface_attached",
            "1 while the guard judges the interface's packets",
        )
        .gauges(attached)?;
        family(encoder, "sluice_guard_dry_run", "1 when the guard counts and drops nothing")
            .gauge(u64::from(status.guard.dry_run))?;
        if let Some(connections) = status.guard.connections {
            family(encoder, "sluice_guard_connections", "Connections that count for their source now")
                .gauge(connections)?;
            family(
                encoder,
                "sluice_guard_connections_uncounted",
                "Connections that could not be counted for their source",
            )
            .counter(status.guard.uncounted)?;
        }
        family(encoder, "sluice_guard_packets", "Packets judged by the guard, by verdict")
            .counters(by_reason(&status.guard.verdicts))?;
        family(encoder, "sluice_guard_bans", "Bans that hold").gauge(status.guard.bans)?;
        let policy = [([("policy", status.steering.policy.as_str())], 1)];
        family(encoder, "sluice_steering_policy_info", "Always 1; the steering policy in force")
            .gauges(policy)?;
        let selected = status.steering.selected.iter().map(|(worker, flows)| ([("worker", *worker)], *flows));
        family(encoder, "sluice_steering_selected", "Flows handed to each worker by the steering program")
            .counters(selected)?;
        family(encoder, "sluice_steering_fallback", "Flows left to the kernel's hash, by reason")
            .counters(by_reason(&status.steering.fallback))
    }
}

fn by_reason(values: &BTreeMap<String, u64>) -> impl Iterator<Item = ([(&str, &str); 1], u64)> {
    values.iter().map(|(reason, value)| ([("reason", reason.as_str())], *value))
}

/// The supervisor's account of its data planes.
fn data_planes(encoder: &mut DescriptorEncoder<'_>, status: &SupervisorStatus) -> fmt::Result {
    family(encoder, "sluice_restarts", "Data planes restarted after a death")
        .counter(u64::from(status.restarts))?;
    let help = "Data planes that died or were killed, by reason; an end in order is none";
    family(encoder, "sluice_data_plane_deaths", help).counters(by_reason(&status.deaths))?;
    let help = "Listening sockets that another process shut down, and that listen again";
    family(encoder, "sluice_listeners_restored", help).counter(status.listeners_restored)?;
    let Some(destinations) = status.destinations else { return Ok(()) };
    let help = "Connects of the data plane that failed, since they went to no endpoint of an upstream";
    family(encoder, "sluice_data_plane_connects_refused", help).counter(destinations.refused)
}

/// This process. Its memory and descriptors are known from /proc, which only the supervisor sees.
#[derive(Debug)]
struct Process(ProcessStatus);

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
        if let Ok(usage) = usage {
            let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
            let family = family(encoder, "sluice_process_cpu_seconds", "CPU time of the data plane");
            let mut metric = family.encoder.encode_descriptor(
                family.name,
                family.help,
                family.unit.as_ref(),
                MetricType::Counter,
            )?;
            for (mode, time) in [("user", usage.user_time()), ("system", usage.system_time())] {
                metric
                    .encode_family(&[("mode", mode)])?
                    .encode_counter::<NoLabelSet, _, u64>(&seconds(time), None)?;
            }
        }
        if let Some(bytes) = self.0.resident_bytes {
            family(encoder, "sluice_process_resident_memory_bytes", "Resident memory of the data plane")
                .gauge(bytes)?;
        }
        if let Some(descriptors) = self.0.open_descriptors {
            family(encoder, "sluice_process_open_fds", "Open descriptors of the data plane")
                .gauge(descriptors)?;
        }
        if let Ok((soft, _hard)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        {
            family(encoder, "sluice_process_max_fds", "Descriptors the data plane may open").gauge(soft)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
