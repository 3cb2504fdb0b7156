//! `sluice status` for people: aligned tables over `control::status`, in the order in which a person looks:
//! is it up, where does it listen, do the workers share the load, does the guard drop.

use std::fmt::Write;

use super::key_log;
use crate::control::bans::Ban;
use crate::control::status::{
    CertificateStatus, DataPlaneStatus, LogStatus, ReasonStatus, ReloadStatus, Status, SupervisorStatus,
};

/// Rows of cells, printed in aligned columns.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With a heading row.
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned).to_vec()] }
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Appends the table, indented by two; columns of numbers stand to the right.
    pub(crate) fn print(&self, text: &mut String) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let widths: Vec<usize> = (0..columns)
            .map(|column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0))
            .collect();
        let numeric: Vec<bool> = (0..columns)
            .map(|column| {
                self.rows.len() > 1
                    && cells(column).skip(1).all(|cell| cell == "-" || cell.parse::<u64>().is_ok())
            })
            .collect();
        for row in &self.rows {
            let mut line = String::from(" ");
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let _ = if numeric[column] {
                    write!(line, " {cell:>width$} ")
                } else {
                    write!(line, " {cell:<width$} ")
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
}

/// Renders a status as text.
#[must_use]
pub fn render(status: &Status) -> String {
    let mut text = String::new();
    match &status.supervisor {
        Some(supervisor) => print_supervisor(&mut text, supervisor),
        None => text.push_str("supervisor: does not answer\n"),
    }
    match &status.data_plane {
        Some(data_plane) => print_data_plane(&mut text, data_plane),
        None => text.push_str(
            "\ndata plane: not running; new connections wait in the accept queues while it restarts\n",
        ),
    }
    if let Some(supervisor) = &status.supervisor {
        print_kernel(&mut text, supervisor);
    }
    text
}

/// The text of `sluice bans`, the first to end at the top.
#[must_use]
pub fn render_bans(bans: &[Ban]) -> String {
    if bans.is_empty() {
        return "no bans\n".to_owned();
    }
    let mut bans = bans.to_vec();
    bans.sort_unstable_by_key(|ban| ban.remaining_ms);
    let mut table = Table::new(["address", "ends in"]);
    for ban in bans {
        table.row([ban.address.to_string(), duration(ban.remaining_ms.div_ceil(1000))]);
    }
    let mut text = String::new();
    table.print(&mut text);
    text
}

fn print_supervisor(text: &mut String, supervisor: &SupervisorStatus) {
    let SupervisorStatus { version, pid, instance, uptime_seconds, restarts, .. } = supervisor;
    let _ = writeln!(text, "sluice {version}, instance {instance}, up {}", duration(*uptime_seconds));
    let _ = writeln!(
        text,
        "supervisor: pid {pid}, {restarts} data plane {}",
        if *restarts == 1 { "restart" } else { "restarts" }
    );
    print_reload(text, &supervisor.reload);
    if let Some(path) = &supervisor.key_log {
        let _ = writeln!(text, "{}", key_log::warning(path));
    }
}

fn print_reload(text: &mut String, reload: &ReloadStatus) {
    let counts = reload.outcomes.iter().filter(|(_, count)| **count > 0);
    let counts = counts.map(|(outcome, count)| format!("{count} {outcome}")).collect::<Vec<_>>().join(", ");
    let counts = if counts.is_empty() { "none" } else { &counts };
    let watched = match reload.watched_files {
        0 => String::new(),
        1 => "; 1 file is watched".to_owned(),
        count => format!("; {count} files are watched"),
    };
    let _ = writeln!(text, "configuration: snapshot {}; reloads: {counts}{watched}", reload.snapshot);
    if let Some(failed) = &reload.failed {
        let _ = writeln!(text, "last reload: {failed}");
    }
}

fn print_data_plane(text: &mut String, data_plane: &DataPlaneStatus) {
    let state = match (data_plane.draining, data_plane.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not accepting",
    };
    let DataPlaneStatus { pid, generation, snapshot, .. } = data_plane;
    let _ = writeln!(text, "data plane: {state}, pid {pid}, generation {generation}, snapshot {snapshot}");

    text.push_str("\nlisteners\n");
    let mut listeners = Table::new(["name", "address"]);
    for listener in &data_plane.listeners {
        listeners.row([listener.name.clone(), listener.address.clone()]);
    }
    listeners.print(text);

    text.push_str("\nworkers\n");
    let mut workers = Table::new(["worker", "cpu", "node", "state", "open", "accepted", "requests"]);
    let number = |number: Option<usize>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    for worker in &data_plane.workers {
        workers.row([
            worker.worker.to_string(),
            number(worker.cpu),
            number(worker.node),
            worker.state.clone(),
            worker.connections.to_string(),
            worker.accepted.to_string(),
            worker.requests.to_string(),
        ]);
    }
    workers.print(text);

    text.push_str("\nupstreams\n");
    let mut upstreams = Table::new(["upstream", "endpoint", "health"]);
    for upstream in &data_plane.upstreams {
        for endpoint in &upstream.endpoints {
            upstreams.row([upstream.name.clone(), endpoint.address.clone(), endpoint.health.clone()]);
        }
    }
    upstreams.print(text);
    print_certificates(text, &data_plane.certificates);
    print_reasons(text, &data_plane.reasons);
    print_logs(text, &data_plane.logs);
}

fn print_certificates(text: &mut String, certificates: &[CertificateStatus]) {
    if certificates.is_empty() {
        return;
    }
    let mut table = Table::new(["certificate", "of", "key", "valid until", "left"]);
    for certificate in certificates {
        let CertificateStatus { listener, upstream, name, key, not_after, remaining_seconds, .. } =
            certificate;
        let holder =
            if upstream.is_empty() { format!("listener {listener}") } else { format!("upstream {upstream}") };
        let left = u64::try_from(*remaining_seconds).map_or_else(|_| "expired".to_owned(), duration);
        table.row([name.clone(), holder, key.clone(), not_after.clone(), left]);
    }
    text.push('\n');
    table.print(text);
}

fn print_reasons(text: &mut String, reasons: &ReasonStatus) {
    for (heading, counts) in [
        ("connections ended", &reasons.closed),
        ("requests refused", &reasons.refused),
        ("connections shed", &reasons.shed),
    ] {
        if !counts.is_empty() {
            let mut table = Table::new([heading, "count"]);
            counts.iter().for_each(|(reason, count)| table.row([reason.clone(), count.to_string()]));
            text.push('\n');
            table.print(text);
        }
    }
}

fn print_logs(text: &mut String, logs: &LogStatus) {
    let _ = write!(text, "\naccess log: {}", logs.access);
    if logs.access != "off" {
        let _ = write!(text, ", {} records written", logs.access_records);
    }
    for (reason, count) in &logs.access_lost {
        let _ = write!(text, ", {count} lost ({reason})");
    }
    text.push('\n');
    if logs.lines_lost > 0 {
        let _ = writeln!(text, "log: {} lines lost", logs.lines_lost);
    }
}

fn print_kernel(text: &mut String, supervisor: &SupervisorStatus) {
    let guard = &supervisor.guard;
    if guard.interfaces.is_empty() {
        text.push_str("\nguard: no XDP\n");
    } else {
        let interfaces: Vec<String> =
            guard.interfaces.iter().map(|(name, mode)| format!("{name} ({mode})")).collect();
        let _ = writeln!(
            text,
            "\nguard: XDP on {}{}",
            interfaces.join(", "),
            if guard.dry_run { ", dry run: counts only" } else { "" }
        );
        if let Some(connections) = guard.connections {
            let _ = writeln!(
                text,
                "connections counted by source: {connections} ({} could not be)",
                guard.uncounted
            );
        }
        let mut verdicts = Table::new(["verdict", "packets"]);
        for (reason, packets) in &guard.verdicts {
            verdicts.row([reason.clone(), packets.to_string()]);
        }
        verdicts.print(text);
        let _ = writeln!(text, "  bans that hold: {}", guard.bans);
    }

    let steering = &supervisor.steering;
    let _ = writeln!(text, "\nsteering: {}", steering.policy);
    if !steering.selected.is_empty() || !steering.fallback.is_empty() {
        let mut flows = Table::new(["flows to", "count"]);
        for (worker, count) in &steering.selected {
            flows.row([format!("worker {worker}"), count.to_string()]);
        }
        for (reason, count) in &steering.fallback {
            flows.row([format!("the kernel's hash: {reason}"), count.to_string()]);
        }
        flows.print(text);
    }

    if !supervisor.degraded.is_empty() {
        text.push_str("\ngoing on without\n");
        for finding in &supervisor.degraded {
            let _ = writeln!(text, "  {finding}");
        }
    }
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::control::status::{
        EndpointStatus, GuardStatus, ListenerStatus, SteeringStatus, UpstreamStatus, WorkerStatus,
    };

    fn whole() -> Status {
        Status {
            supervisor: Some(SupervisorStatus {
                version: "0.1.0".to_owned(),
                pid: 100,
                instance: "sluice".to_owned(),
                uptime_seconds: 3_725,
                restarts: 1,
                guard: GuardStatus {
                    interfaces: BTreeMap::from([("lo".to_owned(), "generic".to_owned())]),
                    dry_run: false,
                    connections: Some(12),
                    uncounted: 1,
                    verdicts: BTreeMap::from([("passed".to_owned(), 12_345), ("syn_rate".to_owned(), 7)]),
                    bans: 3,
                },
                steering: SteeringStatus {
                    policy: "least-loaded".to_owned(),
                    selected: BTreeMap::from([(0, 10), (1, 9)]),
                    fallback: BTreeMap::from([("no_worker".to_owned(), 1)]),
                },
                degraded: vec!["bpffs is not mounted: no pins".to_owned()],
                key_log: None,
                reload: ReloadStatus {
                    snapshot: 1,
                    outcomes: BTreeMap::from([("applied".to_owned(), 0), ("invalid".to_owned(), 2)]),
                    succeeded_at: 1_790_000_000,
                    watched_files: 2,
                    failed: Some(
                        "not reloaded, snapshot 1 stays in force: the configuration has an error".to_owned(),
                    ),
                },
            }),
            data_plane: Some(DataPlaneStatus {
                pid: 101,
                generation: 2,
                snapshot: 1,
                ready: true,
                draining: false,
                workers: vec![
                    WorkerStatus {
                        worker: 0,
                        cpu: Some(0),
                        node: Some(0),
                        state: "live".to_owned(),
                        connections: 3,
                        accepted: 12_000,
                        requests: 340_000,
                    },
                    WorkerStatus { worker: 10, state: "stuck".to_owned(), ..WorkerStatus::default() },
                ],
                listeners: vec![ListenerStatus { name: "http".to_owned(), address: "[::]:8080".to_owned() }],
                upstreams: vec![UpstreamStatus {
                    name: "app".to_owned(),
                    endpoints: vec![EndpointStatus {
                        address: "127.0.0.1:9000".to_owned(),
                        health: "unchecked".to_owned(),
                    }],
                }],
                certificates: vec![
                    CertificateStatus {
                        listener: "https".to_owned(),
                        name: "*.a.example".to_owned(),
                        key: "ECDSA P-256".to_owned(),
                        not_after: "2026-03-01".to_owned(),
                        not_after_seconds: 1_772_366_400,
                        remaining_seconds: 20 * 86_400 + 7_300,
                        ..CertificateStatus::default()
                    },
                    CertificateStatus {
                        upstream: "app".to_owned(),
                        name: "sluice".to_owned(),
                        key: "RSA".to_owned(),
                        not_after: "2026-01-01".to_owned(),
                        remaining_seconds: -1,
                        ..CertificateStatus::default()
                    },
                ],
                reasons: ReasonStatus {
                    closed: BTreeMap::from([
                        ("client_closed".to_owned(), 11_990),
                        ("keep_alive_timeout".to_owned(), 7),
                    ]),
                    refused: BTreeMap::from([("no_route".to_owned(), 5)]),
                    shed: BTreeMap::new(),
                },
                logs: LogStatus {
                    access: "/var/log/sluice/access.log".to_owned(),
                    access_records: 340_005,
                    access_lost: BTreeMap::from([("write_failed".to_owned(), 2)]),
                    lines_lost: 0,
                },
            }),
        }
    }

    #[test]
    fn a_whole_status_reads_like_this() {
        let expected = "\
sluice 0.1.0, instance sluice, up 1h 2m
supervisor: pid 100, 1 data plane restart
configuration: snapshot 1; reloads: 2 invalid; 2 files are watched
last reload: not reloaded, snapshot 1 stays in force: the configuration has an error
data plane: ready, pid 101, generation 2, snapshot 1

listeners
  name  address
  http  [::]:8080

workers
  worker  cpu  node  state  open  accepted  requests
       0    0     0  live      3     12000    340000
      10    -     -  stuck     0         0         0

upstreams
  upstream  endpoint        health
  app       127.0.0.1:9000  unchecked

  certificate  of              key          valid until  left
  *.a.example  listener https  ECDSA P-256  2026-03-01   20d 2h
  sluice       upstream app    RSA          2026-01-01   expired

  connections ended   count
  client_closed       11990
  keep_alive_timeout      7

  requests refused  count
  no_route              5

access log: /var/log/sluice/access.log, 340005 records written, 2 lost (write_failed)

guard: XDP on lo (generic)
connections counted by source: 12 (1 could not be)
  verdict   packets
  passed      12345
  syn_rate        7
  bans that hold: 3

steering: least-loaded
  flows to                      count
  worker 0                         10
  worker 1                          9
  the kernel's hash: no_worker      1

going on without
  bpffs is not mounted: no pins
";
        assert_eq!(render(&whole()), expected);
    }

    #[test]
    fn a_missing_half_is_named() {
        let status = Status { data_plane: None, ..whole() };
        let text = render(&status);
        assert!(text.contains("data plane: not running") && text.contains("guard: XDP on lo"));
        let logged =
            SupervisorStatus { key_log: Some("/tmp/keys".to_owned()), ..SupervisorStatus::default() };
        let text = render(&Status { supervisor: Some(logged), data_plane: None });
        assert!(text.contains("THE SECRETS OF ALL TLS CONNECTIONS ARE WRITTEN TO /tmp/keys"), "{text}");
        let status = Status { supervisor: None, ..whole() };
        let text = render(&status);
        assert!(
            text.contains("supervisor: does not answer")
                && text.contains("workers\n")
                && !text.contains("guard")
        );
    }

    #[test]
    fn durations_show_their_two_largest_units() {
        assert_eq!(duration(0), "0s");
        assert_eq!(duration(61), "1m 1s");
        assert_eq!(duration(86_399), "23h 59m");
        assert_eq!(duration(90_000), "1d 1h");
    }
}
