//! A whole request of a session on a kept-alive connection: the engine, the session, its exchange and the
//! pool, over the simulated ring. The figure includes the simulation's own work: maps and queues of bytes
//! instead of a kernel. It serves to compare two builds, and to count instructions by function.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use proxy::config::model;
use proxy::control::slots::SteeringSlot;
use proxy::counters::Counters;
use proxy::io::simulated::{Faults, Memory, Peer, Sim, SimRing};
use proxy::io::{Engine, Settings};
use proxy::listen::{ListenerId, ListenerIds};
use proxy::route::RouteTable;
use proxy::session::context::Worker;
use proxy::worker::events::Events;
use proxy::worker::listener_tag;

use super::{Case, Runner, each};
use proxy::io::settings::Ring;
use proxy::kernel::guard::{Fragments, Guard, GuardMode, SynCookies};
use proxy::kernel::steering::{Steering, SteeringPolicy};
use proxy::listen::{Listener, ListenerLimits, Protocol, Reading, Timeouts};
use proxy::route::model::{Action, Route};
use proxy::upstream::model::{Endpoint, PoolLimits, Retry, RetryOn, Upstream};

pub(super) const CASES: &[Case] = &[
    Case { name: "session", what: "a request through a session, simulated ring", make: || session(2) },
    Case { name: "session-16k", what: "the same, 16 KiB of response", make: || session(16 << 10) },
];

/// A perfect network: nothing is cut, late or lost.
const NO_FAULTS: Faults = Faults { short: false, delay: 0, window: 1 << 20, ..Faults::mild() };
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:19002\r\n\r\n";
/// The limit on the engine's turns for one request, far more than it needs.
const TURNS_MAX: u32 = 10_000;

const TIMEOUT: Duration = Duration::from_secs(3_600);

fn listener() -> Listener {
    Listener {
        name: "main".into(),
        addresses: vec![SocketAddr::from(([192, 0, 2, 254], 80))],
        protocol: Protocol::Http,
        tls: None,
        proxy_protocol: false,
        backlog: 128,
        defer_accept: true,
        freebind: false,
        timeouts: Timeouts {
            request_header: TIMEOUT,
            request_body: TIMEOUT,
            keep_alive: TIMEOUT,
            send: TIMEOUT,
            tunnel_idle: TIMEOUT,
            min_rate: None,
        },
        half_close: Some(Duration::from_secs(2)),
        limits: ListenerLimits {
            header_bytes: 32 << 10,
            headers: 100,
            uri_bytes: 8 << 10,
            body_bytes: 0,
            requests_per_connection: 0,
        },
        reading: Reading::default(),
        trusted_proxies: Vec::new(),
    }
}

fn upstream(endpoint: SocketAddr) -> Upstream {
    Upstream {
        name: "app".into(),
        endpoints: vec![Endpoint { address: endpoint, label: endpoint.to_string().into(), weight: 1 }],
        connect_timeout: TIMEOUT,
        source: Vec::new(),
        send_proxy: false,
        tls: None,
        pool: PoolLimits {
            max_idle: 16,
            idle_timeout: TIMEOUT,
            max_lifetime: Duration::from_secs(u64::from(u32::MAX)),
        },
        retry: Retry { attempts: 2, on: RetryOn::default() },
    }
}

fn config(endpoint: SocketAddr) -> model::Config {
    let route = Route { timeout: TIMEOUT, body_timeout: TIMEOUT, ..Route::new(Action::Upstream(0)) };
    model::Config {
        process: model::Process {
            run_dir: "/nonexistent".into(),
            user: "nobody".into(),
            drain_timeout: TIMEOUT,
            drain_delay: std::time::Duration::ZERO,
            watchdog: None,
            max_connections: 0,
            buffer_budget: 8 << 20,
            sandbox: proxy::sandbox::Sandbox::Off,
        },
        workers: model::Workers {
            count: Some(1),
            cpus: None,
            control_cpus: None,
            numa_local: false,
            busy_poll: Duration::ZERO,
            stuck_after: TIMEOUT,
        },
        ring: Ring { entries: 256, buffers: 256, buffer_size: 4096 },
        steering: Steering { policy: SteeringPolicy::Hash },
        guard: Guard {
            interfaces: Vec::new(),
            mode: GuardMode::Auto,
            dry_run: false,
            allow: Vec::new(),
            deny: Vec::new(),
            syn_rate_per_ip: None,
            syn_burst_per_ip: 0,
            ban_for: Duration::from_secs(60),
            connections_per_ip: None,
            syn_cookies: SynCookies::Off,
            syn_cookies_rate: 100_000,
            fragments: Fragments::Judge,
        },
        listeners: vec![Arc::new(listener())],
        routes: RouteTable::new(vec![Arc::new(route)]),
        upstreams: vec![Arc::new(upstream(endpoint))],
        admin: model::Admin { address: None },
        log: model::Log {
            level: "info".into(),
            format: model::LogFormat::Auto,
            access: model::AccessLog::Off,
            with_query: false,
        },
    }
}

/// Answers any bytes that end like a request head. The engine sends a head in one piece.
fn answer(body: usize) -> Vec<u8> {
    let mut response =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {body}\r\nServer: origin\r\n\r\n").into_bytes();
    response.resize(response.len() + body, b'.');
    response
}

struct Bench {
    engine: Engine<SimRing>,
    events: Events,
    client: Peer,
    body: usize,
}

impl Bench {
    fn new(body: usize) -> Self {
        let (mut engine, sim) = Sim::engine(1, NO_FAULTS, Memory::default(), Settings::default());
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 8080));
        let config = config(endpoint);
        let ids = config.listener_ids(&ListenerIds::default());
        let traffic = config.traffic(&ids).expect("each has a number");
        let traffic = Arc::new(ArcSwap::from_pointee(traffic));
        let worker = Worker::new(engine.io(), Counters::private(), traffic, 100, None);
        let listener = sim.listener();
        engine.add_listener(listener, listener_tag(ListenerId::FIRST));
        let events = Events::new(worker, SteeringSlot::private(), Duration::from_secs(3_600));
        let response = Arc::<[u8]>::from(answer(body));
        sim.serve(endpoint, move || {
            let response = Arc::clone(&response);
            Box::new(move |peer: &Peer| {
                if peer.read().ends_with(b"\r\n\r\n") {
                    peer.write(&response);
                }
            })
        });
        let client = sim.connect(listener);
        Self { engine, events, client, body }
    }

    fn request(&mut self) {
        self.client.write(REQUEST);
        let mut received = Vec::new();
        for _ in 0..TURNS_MAX {
            self.engine.turn(&mut self.events).expect("the simulated ring does not fail");
            let piece = self.client.read();
            if received.is_empty() {
                received = piece;
            } else {
                received.extend_from_slice(&piece);
            }
            if received.len() > self.body && received[..received.len() - self.body].ends_with(b"\r\n\r\n") {
                assert!(received.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", received.escape_ascii());
                return;
            }
        }
        panic!("no response: {}", received.escape_ascii());
    }
}

fn session(body: usize) -> Runner {
    let mut bench = Bench::new(body);
    // The first request makes the upstream connection.
    bench.request();
    each(move || bench.request())
}
