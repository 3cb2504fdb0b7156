//! `docs/metrics.md`: every metric as `/metrics` describes it, and every value of its labels.

use std::collections::BTreeMap;

use proxy::control::status::{
    CertificateStatus, CrlStatus, DataPlaneStatus, DestinationsStatus, GuardStatus, ProcessStatus,
    ReloadStatus, SteeringStatus, SupervisorStatus, WorkerStatus,
};
use proxy::counters::CounterBlock;
use proxy::telemetry::metrics::{self, Scrape};
use proxy::tls::alert::Alert;

use crate::page;
use crate::reasons::{self, Reason};

const PAGE: &str = "docs/metrics.md";

/// A scrape in which every metric has a sample, so that its labels show.
fn scrape() -> String {
    let one = |label: &str| BTreeMap::from([(label.to_owned(), 1)]);
    let supervisor = SupervisorStatus {
        guard: GuardStatus {
            interfaces: BTreeMap::from([("lo".to_owned(), "generic".to_owned())]),
            connections: Some(1),
            verdicts: one("passed"),
            ..GuardStatus::default()
        },
        steering: SteeringStatus {
            selected: BTreeMap::from([(0, 1)]),
            fallback: one("no"),
            ..<_>::default()
        },
        deaths: one("hung"),
        destinations: Some(DestinationsStatus::default()),
        reload: ReloadStatus { outcomes: one("applied"), ..ReloadStatus::default() },
        process: ProcessStatus { resident_bytes: Some(1), open_descriptors: Some(1) },
        ..SupervisorStatus::default()
    };
    let data_plane = DataPlaneStatus {
        workers: vec![WorkerStatus::default()],
        certificates: vec![CertificateStatus::default()],
        crls: vec![CrlStatus::default()],
        ..DataPlaneStatus::default()
    };
    let workers = vec![CounterBlock::default().cells()];
    metrics::encode(Scrape { workers, data_plane, supervisor: Some(supervisor) })
}

/// A metric, with the name that its samples have.
struct Family {
    name: String,
    kind: String,
    labels: Vec<String>,
    help: String,
}

fn families(scrape: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for line in scrape.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            // The encoder adds a full stop to each text.
            let help = help.trim_end_matches('.').to_owned();
            families.push(Family { name: name.to_owned(), kind: String::new(), labels: Vec::new(), help });
        } else if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let family = families.last_mut().unwrap();
            kind.clone_into(&mut family.kind);
            if kind == "counter" {
                family.name.push_str("_total");
            }
        } else if !line.starts_with('#')
            && let Some(family) = families.last_mut().filter(|family| family.labels.is_empty())
            && let Some((_, labels)) = line.split_once('{')
        {
            let names = labels.split("\",").filter_map(|label| label.split_once("=\""));
            family.labels = names.map(|(name, _)| name.to_owned()).filter(|name| name != "le").collect();
        }
    }
    families
}

/// The headings, each with the beginnings of the metric names below it.
const GROUPS: &[(&str, &[&str])] = &[
    (
        "Clients",
        &[
            "connections_",
            "accept_",
            "listeners_",
            "requests_",
            "request_",
            "responses_",
            "tunnels_",
            "downstream_",
            "session_",
        ],
    ),
    ("TLS with clients", &["tls_", "certificate_", "crl_"]),
    ("Upstreams", &["upstream_"]),
    ("Workers and their memory", &["worker_", "ring_", "buffer_"]),
    (
        "Processes and configuration",
        &[
            "build_",
            "ready",
            "draining",
            "generation",
            "snapshot",
            "supervisor_",
            "restarts_",
            "data_plane_",
            "uptime_",
            "reload",
            "degraded_",
            "process_",
        ],
    ),
    ("Logs", &["log_", "access_log_"]),
    ("Guard and steering", &["guard_", "steering_"]),
];

fn group_of(name: &str) -> usize {
    let name = name.strip_prefix("sluice_").unwrap();
    let is_of = |(_, prefixes): &(&str, &[&str])| prefixes.iter().any(|prefix| name.starts_with(prefix));
    GROUPS.iter().position(is_of).unwrap_or_else(|| panic!("sluice_{name} belongs to no group"))
}

fn metric_tables() -> String {
    let families = families(&scrape());
    assert!(families.len() > 60, "the families are read");
    let mut text = String::new();
    for (group, (heading, _)) in GROUPS.iter().enumerate() {
        let rows: Vec<[String; 4]> = families
            .iter()
            .filter(|family| group_of(&family.name) == group)
            .map(|Family { name, kind, labels, help }| {
                let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
                [format!("`{name}`"), kind.clone(), labels.join(", "), help.clone()]
            })
            .collect();
        assert!(!rows.is_empty(), "{heading} has metrics");
        text.push_str(&format!("### {heading}\n\n"));
        text.push_str(&page::table(["metric", "type", "labels", "says"], &rows));
        text.push('\n');
    }
    text
}

fn reason_table(label: &str, reasons: Vec<Reason>) -> String {
    let row = |Reason { label, meaning }: Reason| [format!("`{label}`"), meaning];
    let rows: Vec<[String; 2]> = reasons.into_iter().map(row).collect();
    page::table([label, "means"], &rows)
}

fn label_tables() -> String {
    let mut text = String::new();
    for (metrics, label, reasons) in [
        ("`sluice_connections_closed_total`", "reason", reasons::closed()),
        ("`sluice_requests_refused_total`", "reason", reasons::refused()),
        ("`sluice_connections_shed_total`", "reason", reasons::shed()),
        ("`sluice_connections_gave_way_total`", "reason", reasons::crowded()),
        ("`sluice_upstream_connections_closed_total`", "reason", reasons::pool_closed()),
        ("`sluice_tls_handshakes_total`", "kind", reasons::handshakes()),
        ("`sluice_tls_handshakes_failed_total`", "reason", reasons::handshake_failures()),
        ("`sluice_data_plane_deaths_total`", "reason", reasons::deaths()),
        ("`sluice_reloads_total`", "outcome", reasons::reloads()),
        ("`sluice_access_log_records_lost_total`", "reason", reasons::log_losses()),
        ("`sluice_guard_packets_total`", "reason", reasons::verdicts()),
        ("`sluice_steering_fallback_total`", "reason", reasons::fallbacks()),
    ] {
        text.push_str(&format!("### {metrics}\n\n{}\n", reason_table(label, reasons)));
    }
    text.push_str("### `sluice_tls_alerts_received_total`, `sluice_tls_alerts_sent_total`\n\n");
    text.push_str("`alert` is a name of RFC 8446, section 6, or `other`:\n\n```\n");
    let mut line = String::new();
    for alert in Alert::ALL {
        if line.len() + alert.label().len() > 100 {
            text.push_str(line.trim_end());
            text.push('\n');
            line.clear();
        }
        line.push_str(alert.label());
        line.push(' ');
    }
    text.push_str(line.trim_end());
    text.push_str("\n```\n");
    text
}

#[test]
fn metrics_md_lists_every_metric_and_every_label_value() {
    let page = page::read(PAGE);
    let page = page::with_block(&page, "metrics", &metric_tables());
    page::keep(PAGE, &page::with_block(&page, "labels", &label_tables()));
}
