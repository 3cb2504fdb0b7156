//! Tests of `telemetry::metrics`.

use super::*;
use crate::control::status::{GuardStatus, ReloadStatus, SteeringStatus, WorkerStatus};
use crate::counters::CounterBlock;

fn supervisor() -> SupervisorStatus {
    SupervisorStatus {
        restarts: 3,
        guard: GuardStatus {
            interfaces: BTreeMap::from([("lo".to_owned(), "generic".to_owned())]),
            connections: Some(12),
            verdicts: BTreeMap::from([("passed".to_owned(), 10), ("syn_rate".to_owned(), 4)]),
            bans: 2,
            ..GuardStatus::default()
        },
        steering: SteeringStatus {
            policy: "least-loaded".to_owned(),
            selected: BTreeMap::from([(0, 7), (1, 8)]),
            fallback: BTreeMap::from([("no_worker".to_owned(), 1)]),
        },
        reload: ReloadStatus {
            outcomes: BTreeMap::from([("applied".to_owned(), 2)]),
            succeeded_at: 1_790_000_000,
            watched_files: 4,
            ..ReloadStatus::default()
        },
        ..SupervisorStatus::default()
    }
}

fn encoded(supervisor: Option<SupervisorStatus>) -> String {
    let blocks = [CounterBlock::default(), CounterBlock::default()];
    blocks[0].add(Plain::Requests, 5);
    blocks[1].add(Plain::Requests, 6);
    blocks[1].set(Plain::Open, 2);
    blocks[1].increment(Counter::Closed(CloseReason::ClientClosed));
    blocks[0].increment(Counter::Refused(RefusalReason::NoRoute));
    blocks[0].increment(Counter::Shed(ShedReason::MaxConnections));
    blocks[0].increment(Counter::PoolClosed(PoolCloseReason::IdleTimeout));
    let workers =
        vec![WorkerStatus { worker: 1, cpu: Some(4), state: "live".to_owned(), ..WorkerStatus::default() }];
    let certificate = |not_after_seconds| CertificateStatus {
        listener: "web".to_owned(),
        name: "*.a.example".to_owned(),
        key: "RSA".to_owned(),
        not_after_seconds,
        ..CertificateStatus::default()
    };
    let certificates = vec![certificate(1_790_000_000), certificate(1_800_000_000), certificate(-1)];
    let data_plane = DataPlaneStatus {
        ready: true,
        generation: 2,
        snapshot: 9,
        workers,
        certificates,
        ..DataPlaneStatus::default()
    };
    encode(Scrape { workers: blocks.iter().map(CounterBlock::cells).collect(), data_plane, supervisor })
}

#[test]
fn every_source_appears_with_its_labels() {
    let text = encoded(Some(supervisor()));
    for line in [
        "# TYPE sluice_requests counter",
        "sluice_requests_total{worker=\"0\"} 5",
        "sluice_requests_total{worker=\"1\"} 6",
        "# TYPE sluice_connections_open gauge",
        "sluice_connections_open{worker=\"1\"} 2",
        "sluice_connections_closed_total{worker=\"1\",reason=\"client_closed\"} 1",
        "sluice_requests_refused_total{worker=\"0\",reason=\"no_route\"} 1",
        "sluice_connections_shed_total{worker=\"0\",reason=\"max_connections\"} 1",
        "sluice_upstream_connections_closed_total{worker=\"0\",reason=\"idle_timeout\"} 1",
        "sluice_worker_info{worker=\"1\",cpu=\"4\",node=\"\",state=\"live\"} 1",
        "sluice_ready 1",
        "sluice_generation 2",
        "sluice_snapshot 9",
        "# TYPE sluice_certificate_not_after_timestamp_seconds gauge",
        "sluice_certificate_not_after_timestamp_seconds\
         {listener=\"web\",upstream=\"\",name=\"*.a.example\",key=\"RSA\"} 1800000000",
        "sluice_supervisor_up 1",
        "sluice_restarts_total 3",
        "sluice_reloads_total{outcome=\"applied\"} 2",
        "sluice_reload_last_success_timestamp_seconds 1790000000",
        "sluice_reload_watched_files 4",
        "sluice_guard_interface_info{interface=\"lo\",mode=\"generic\"} 1",
        "sluice_guard_packets_total{reason=\"syn_rate\"} 4",
        "sluice_guard_bans 2",
        "sluice_guard_connections 12",
        "sluice_guard_connections_uncounted_total 0",
        "sluice_steering_selected_total{worker=\"1\"} 8",
        "sluice_steering_fallback_total{reason=\"no_worker\"} 1",
        "sluice_steering_policy_info{policy=\"least-loaded\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn without_the_supervisor_the_rest_is_there() {
    let text = encoded(None);
    assert!(text.contains("sluice_supervisor_up 0\n"));
    assert!(text.contains("sluice_requests_total{worker=\"0\"} 5\n"));
    assert!(!text.contains("sluice_guard_"));
    assert!(!text.contains("sluice_restarts"));
}

#[test]
fn names_follow_the_rules() {
    let text = encoded(Some(supervisor()));
    let mut families: Vec<(&str, &str)> = Vec::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            families.push(declared.split_once(' ').expect("name and type"));
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().expect("a name");
            assert!(name.starts_with("sluice_"), "{name}");
            let (family, kind) = families.last().expect("a TYPE line first");
            let suffixes: &[&str] = match *kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(
                suffixes.iter().any(|suffix| name == format!("{family}{suffix}")),
                "{name} of {kind} {family}"
            );
        }
    }
    let mut names: Vec<_> = families.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "no family is declared twice");
}

#[test]
fn every_cell_is_encoded_once() {
    let block = CounterBlock::default();
    let counters = Plain::ALL
        .iter()
        .map(|&plain| Counter::Plain(plain))
        .chain(CloseReason::ALL.iter().map(|&reason| Counter::Closed(reason)))
        .chain(RefusalReason::ALL.iter().map(|&reason| Counter::Refused(reason)))
        .chain(ShedReason::ALL.iter().map(|&reason| Counter::Shed(reason)))
        .chain(Crowded::ALL.iter().map(|&reason| Counter::GaveWay(reason)))
        .chain(PoolCloseReason::ALL.iter().map(|&reason| Counter::PoolClosed(reason)))
        .chain(HandshakeKind::ALL.iter().map(|&kind| Counter::Handshake(kind)))
        .chain(HandshakeFailure::ALL.iter().map(|&reason| Counter::HandshakeFailed(reason)))
        .chain(Alert::ALL.iter().map(|&alert| Counter::AlertReceived(alert)))
        .chain(Alert::ALL.iter().map(|&alert| Counter::AlertSent(alert)));
    let durations =
        (0..=DURATION_BOUNDS_MICROS.len()).map(Counter::Duration).chain([Counter::DurationMicros]);
    for (at, counter) in durations.clone().enumerate() {
        assert_eq!(counter.index(), crate::counters::CELLS - durations.clone().count() + at);
    }
    let mut count = 0;
    for (at, counter) in counters.enumerate() {
        assert_eq!(counter.index(), at, "cells neither overlap nor leave holes");
        block.set(counter, 1_000_000 + at as u64);
        count += 1;
    }
    assert_eq!(count + durations.count(), crate::counters::CELLS);
    let text = encode(Scrape { workers: vec![block.cells()], ..Scrape::default() });
    for at in 0..count {
        let value = format!(" {}", 1_000_000 + at);
        assert_eq!(text.lines().filter(|line| line.ends_with(&value)).count(), 1, "cell {at}");
    }
}

#[test]
fn durations_are_a_histogram_of_all_workers() {
    let blocks = [CounterBlock::default(), CounterBlock::default()];
    for micros in [0, 500, 501, 3_000, 20_000_000] {
        blocks[0].took(std::time::Duration::from_micros(micros));
    }
    blocks[1].took(std::time::Duration::from_micros(600));
    let text =
        encode(Scrape { workers: blocks.iter().map(CounterBlock::cells).collect(), ..Scrape::default() });
    for line in [
        "# UNIT sluice_request_duration_seconds seconds",
        "sluice_request_duration_seconds_bucket{le=\"0.0005\"} 2",
        "sluice_request_duration_seconds_bucket{le=\"0.001\"} 4",
        "sluice_request_duration_seconds_bucket{le=\"0.005\"} 5",
        "sluice_request_duration_seconds_bucket{le=\"10.0\"} 5",
        "sluice_request_duration_seconds_bucket{le=\"+Inf\"} 6",
        "sluice_request_duration_seconds_count 6",
        "sluice_request_duration_seconds_sum 20.004601",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
}

#[test]
fn the_process_is_described() {
    let process = ProcessStatus { resident_bytes: Some(4096), open_descriptors: Some(9) };
    let text = encoded(Some(SupervisorStatus { process, ..SupervisorStatus::default() }));
    for name in ["sluice_process_resident_memory_bytes", "sluice_process_open_fds", "sluice_process_max_fds"]
    {
        let line = text.lines().find(|line| line.starts_with(name)).expect(name);
        let value: u64 = line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number");
        assert!(value > 0, "{line}");
    }
    assert!(text.contains("sluice_process_cpu_seconds_total{mode=\"user\"}"));
}

#[test]
fn resetting_gauges_keeps_counters() {
    let block = CounterBlock::default();
    block.add(Plain::Accepted, 3);
    block.add(Plain::Open, 3);
    block.decrement(Plain::Open);
    assert_eq!(block.value(Plain::Open), 2);
    block.reset_gauges();
    assert_eq!((block.value(Plain::Open), block.value(Plain::Accepted)), (0, 3));
}
