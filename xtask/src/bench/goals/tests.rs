//! How goals are judged from results: which peer counts, which results are missing, and how a failed run is
//! shown.

use super::super::measure::Figures;
use super::super::results::{Entry, Machine, Tool, XdpLine};
use super::*;

#[test]
fn a_handshake_is_what_is_beyond_a_plain_connection() {
    let of = |name, ours: f64, nginx: f64, haproxy: f64| {
        case(name, CPU_US, &[("sluice", &[ours]), ("nginx", &[nginx]), ("haproxy", &[haproxy])])
    };
    let results = results(vec![of("fresh", 20.0, 30.0, 10.0), of("tls-full", 70.0, 130.0, 100.0)]);
    let measured = handshake(&results, "tls-full", 0.65).unwrap_or_else(|error| panic!("{error}"));
    // Sluice has 50, nginx 100 and haproxy 90.
    assert!(
        (measured.value - 50.0 / 90.0).abs() < 1e-9 && measured.shown.contains("haproxy"),
        "{}",
        measured.shown
    );
    assert!(handshake(&results, "tls-resumed", 0.5).is_err_and(|reason| reason.ends_with(NOT_RUN)));
}

fn results(cases: Vec<CaseResult>) -> Results {
    let none = String::new;
    let machine = Machine { cpu: none(), cores: 2, memory_gib: 1.0, kernel: none(), rustc: none() };
    Results {
        machine,
        command: none(),
        date: none(),
        commit: none(),
        rounds: 1,
        seconds: 1.0,
        minutes: 1.0,
        versions: Vec::new(),
        missing: Vec::new(),
        cases,
        xdp: Tool::default(),
        micro: Tool::default(),
        instructions: None,
    }
}

fn case(name: &str, figure: &'static str, entries: &[(&str, &[f64])]) -> CaseResult {
    let entries = entries.iter().map(|(name, values)| Entry {
        name: (*name).to_owned(),
        rounds: values.iter().map(|&value| Figures::from([(figure, value)])).collect(),
        failed: None,
    });
    CaseResult { name: name.into(), title: name.into(), figure, entries: entries.collect() }
}

fn row<'a>(goals: &'a [Goal], figure: &str, goal: &str) -> &'a Goal {
    goals.iter().find(|row| row.figure.contains(figure) && row.goal.contains(goal)).expect("such a goal")
}

#[test]
fn small_goals_take_the_best_peer() {
    let entries: &[(&str, &[f64])] = &[
        ("sluice", &[8.0]),
        (AGAIN, &[8.4]),
        ("nginx", &[9.0]),
        ("haproxy", &[12.0]),
        ("pingora", &[20.0]),
        ("relay", &[6.9]),
    ];
    let goals = judge(&results(vec![case("small-64", CPU_US, entries)]));
    let best = row(&goals, "64 connections", "0.80");
    assert_eq!(best.is_met(), Some(false));
    assert_eq!(best.verdict(), "**missed by 11 %**");
    assert_eq!(row(&goals, "small, 64", "pingora").verdict(), "met");
    assert_eq!(row(&goals, "small, 64", "relay").verdict(), "met");
    assert_eq!(row(&goals, "small, 64", "envoy").verdict(), "not measured");
    assert_eq!(row(&goals, "noise", "3 %").verdict(), "**missed by 59 %**");
    assert_eq!(row(&goals, "small, 256", "0.80").verdict(), "not measured");
}

#[test]
fn the_tail_may_be_as_bad_as_the_best_peers_worst_round() {
    let peers: [(&str, &[f64]); 2] = [("nginx", &[300.0, 320.0, 420.0]), ("haproxy", &[400.0, 500.0, 900.0])];
    for (ours, met) in [(410.0, true), (421.0, false)] {
        let entries: &[(&str, &[f64])] = &[("sluice", &[ours]), peers[0], peers[1]];
        let goals = judge(&results(vec![case("rate-2000", P999, entries)]));
        assert_eq!(row(&goals, "p99.9 at 2,000", "").is_met(), Some(met), "{ours}");
    }
}

#[test]
fn a_failed_entrant_is_no_result() {
    let mut fresh = case("fresh", CPU_US, &[("sluice", &[8.0]), ("nginx", &[10.0]), ("haproxy", &[9.9])]);
    fresh.entries[2].failed = Some("wrk saw errors".into());
    let goals = judge(&results(vec![fresh]));
    assert_eq!(row(&goals, "guard off", "").is_met(), Some(true), "judged by nginx alone");
    assert_eq!(row(&goals, "guard on", "").is_met(), None);
}

#[test]
fn packets_have_goals_of_their_own() {
    let mut results = results(Vec::new());
    assert_eq!(row(&judge(&results), "XDP", "").is_met(), None);
    let line = |case: &str, above_floor_ns, goal_ns| XdpLine {
        case: case.into(),
        ns_median: 0.0,
        ns_min: 0.0,
        ns_max: 0.0,
        above_floor_ns,
        goal_ns,
    };
    results.xdp.lines = vec![
        line("floor", 0.0, None),
        line("established", 24.0, Some(25.0)),
        line("SYN", 300.0, Some(250.0)),
    ];
    let goals = judge(&results);
    assert_eq!(row(&goals, "established", "25").is_met(), Some(true));
    assert_eq!(row(&goals, "SYN", "250").verdict(), "**missed by 20 %**");
}
