//! Tests of `telemetry::report`.

use std::collections::BTreeMap;

use super::*;
use crate::control::status::{
    EndpointStatus, GuardStatus, ListenerStatus, ProcessStatus, SteeringStatus, UpstreamStatus, WorkerStatus,
};

fn whole() -> Status {
    Status {
        supervisor: Some(SupervisorStatus {
            version: "0.1.0".to_owned(),
            pid: 100,
            instance: "sluice".to_owned(),
            uptime_seconds: 3_725,
            restarts: 1,
            data_plane_state: "serving".to_owned(),
            listeners_restored: 0,
            deaths: BTreeMap::from([("crashed".to_owned(), 0), ("hung".to_owned(), 1)]),
            process: ProcessStatus::default(),
            sandbox: vec!["Landlock".to_owned(), "seccomp".to_owned()],
            destinations: Some(DestinationsStatus { allowed: 2, refused: 1 }),
            guard: GuardStatus {
                interfaces: BTreeMap::from([("lo".to_owned(), "generic".to_owned())]),
                unguarded: BTreeMap::from([("eth1".to_owned(), "it is gone".to_owned())]),
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
            crls: Vec::new(),
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
data planes that died: 1 hung
configuration: snapshot 1; reloads: 2 invalid; 2 files are watched
last reload: not reloaded, snapshot 1 stays in force: the configuration has an error
sandbox of the data plane: Landlock, seccomp
the data plane may connect to 2 addresses; 1 connects were refused
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
guard: packets on eth1 are not judged: it is gone

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
    for (state, words) in [
        ("hung", "data plane: hung, it does not answer"),
        ("stopping", "data plane: ending; new connections are refused"),
        ("waiting", "data plane: not running; new connections wait in the accept queues"),
    ] {
        let seen = SupervisorStatus { data_plane_state: state.to_owned(), ..SupervisorStatus::default() };
        let text = render(&Status { supervisor: Some(seen), data_plane: None });
        assert!(text.contains(words), "{text}");
    }
    let logged = SupervisorStatus { key_log: Some("/tmp/keys".to_owned()), ..SupervisorStatus::default() };
    let text = render(&Status { supervisor: Some(logged), data_plane: None });
    assert!(text.contains("THE SECRETS OF ALL TLS CONNECTIONS ARE WRITTEN TO /tmp/keys"), "{text}");
    let status = Status { supervisor: None, ..whole() };
    let text = render(&status);
    assert!(
        text.contains("supervisor: does not answer") && text.contains("workers\n") && !text.contains("guard")
    );
}

#[test]
fn durations_show_their_two_largest_units() {
    assert_eq!(duration(0), "0s");
    assert_eq!(duration(61), "1m 1s");
    assert_eq!(duration(86_399), "23h 59m");
    assert_eq!(duration(90_000), "1d 1h");
}
