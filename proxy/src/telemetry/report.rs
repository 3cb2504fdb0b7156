//! `sluice status` for people: aligned tables over `control::status`, in the order in which a person looks:
//! is it up, where does it listen, do the workers share the load, does the guard drop.

use std::fmt::Write;

use super::key_log;
use crate::control::bans::Ban;
use crate::control::status::{
    CertificateStatus, CrlStatus, DataPlaneStatus, DestinationsStatus, LogStatus, ReasonStatus, ReloadStatus,
    Status, SupervisorStatus,
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
        None => print_absence(&mut text, status.supervisor.as_ref()),
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

/// The data plane did not answer.
fn print_absence(text: &mut String, supervisor: Option<&SupervisorStatus>) {
    let state = supervisor.map_or("", |supervisor| supervisor.data_plane_state.as_str());
    let what = match state {
        "hung" => "hung, it does not answer; process.watchdog says when it is killed and replaced",
        "starting" => "starting",
        "draining" | "stopping" | "ended" => "ending",
        "killed" => "killed, and not dead yet",
        _ => "not running",
    };
    let clients = match state {
        "draining" | "stopping" | "ended" => "new connections are refused",
        _ => "new connections wait in the accept queues",
    };
    let _ = writeln!(text, "\ndata plane: {what}; {clients}");
}

fn print_supervisor(text: &mut String, supervisor: &SupervisorStatus) {
    let SupervisorStatus { version, pid, instance, uptime_seconds, restarts, .. } = supervisor;
    let _ = writeln!(text, "sluice {version}, instance {instance}, up {}", duration(*uptime_seconds));
    let _ = writeln!(
        text,
        "supervisor: pid {pid}, {restarts} data plane {}",
        if *restarts == 1 { "restart" } else { "restarts" }
    );
    let deaths = supervisor.deaths.iter().filter(|(_, count)| **count > 0);
    let deaths = deaths.map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ");
    if !deaths.is_empty() {
        let _ = writeln!(text, "data planes that died: {deaths}");
    }
    print_reload(text, &supervisor.reload);
    let sandbox =
        if supervisor.sandbox.is_empty() { "none".to_owned() } else { supervisor.sandbox.join(", ") };
    let _ = writeln!(text, "sandbox of the data plane: {sandbox}");
    if let Some(DestinationsStatus { allowed, refused }) = supervisor.destinations {
        let addresses = if allowed == 1 { "1 address".to_owned() } else { format!("{allowed} addresses") };
        let _ = writeln!(text, "the data plane may connect to {addresses}; {refused} connects were refused");
    }
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
    print_crls(text, &data_plane.crls);
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

fn print_crls(text: &mut String, crls: &[CrlStatus]) {
    if crls.is_empty() {
        return;
    }
    let mut table = Table::new(["revoked certificates of", "for", "next update", "left"]);
    for CrlStatus { listener, issuer, next_update, remaining_seconds, .. } in crls {
        let left = match u64::try_from(*remaining_seconds) {
            _ if next_update.is_empty() => String::new(),
            Ok(left) => duration(left),
            Err(_) => "expired".to_owned(),
        };
        table.row([issuer.clone(), format!("listener {listener}"), next_update.clone(), left]);
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

    for (interface, reason) in &guard.unguarded {
        let _ = writeln!(text, "guard: packets on {interface} are not judged: {reason}");
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
mod tests;
