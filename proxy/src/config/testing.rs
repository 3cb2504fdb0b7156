//! Configurations without TOML, for tests: a new key has its value here, and nowhere else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::model;
use crate::io::settings::Ring;
use crate::kernel::guard::{Fragments, Guard, GuardMode, SynCookies};
use crate::kernel::steering::{Steering, SteeringPolicy};
use crate::listen::ListenerIds;
use crate::listen::{Listener, ListenerLimits, Protocol, Reading, Timeouts};
use crate::route::RouteTable;
use crate::route::model::{Action, Route};
use crate::sandbox::Sandbox;
use crate::session::traffic::Traffic;
use crate::upstream::model::{Endpoint, PoolLimits, Retry, RetryOn, Upstream};

/// One listener, one route for everything, one upstream with these endpoints; short time limits.
pub(crate) fn config(endpoints: &[SocketAddr]) -> model::Config {
    let endpoints = endpoints
        .iter()
        .map(|&address| Endpoint { address, label: address.to_string().into(), weight: 1 })
        .collect();
    model::Config {
        process: model::Process {
            run_dir: "/nonexistent".into(),
            user: "nobody".into(),
            drain_timeout: Duration::from_secs(5),
            drain_delay: Duration::ZERO,
            watchdog: Some(Duration::from_secs(15)),
            max_connections: 0,
            buffer_budget: 8 << 20,
            sandbox: Sandbox::Off,
        },
        workers: model::Workers {
            count: Some(1),
            cpus: None,
            control_cpus: None,
            numa_local: false,
            busy_poll: Duration::ZERO,
            stuck_after: Duration::from_secs(5),
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
        routes: RouteTable::new(vec![Arc::new(Route {
            timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(5),
            buffer_request: 0,
            ..Route::new(Action::Upstream(0))
        })]),
        upstreams: vec![Arc::new(upstream(endpoints))],
        admin: model::Admin { address: None },
        log: model::Log {
            level: "info".into(),
            format: model::LogFormat::Auto,
            access: model::AccessLog::Off,
            with_query: false,
        },
    }
}

pub(crate) fn listener() -> Listener {
    Listener {
        name: "main".into(),
        addresses: vec![SocketAddr::from(([127, 0, 0, 1], 80))],
        protocol: Protocol::Http,
        tls: None,
        proxy_protocol: false,
        backlog: 128,
        defer_accept: true,
        freebind: false,
        timeouts: Timeouts {
            request_header: Duration::from_secs(3),
            request_body: Duration::from_secs(3),
            keep_alive: Duration::from_secs(10),
            send: Duration::from_secs(3),
            tunnel_idle: Duration::from_secs(10),
            min_rate: None,
        },
        half_close: Some(Duration::from_secs(2)),
        limits: ListenerLimits {
            header_bytes: 16 << 10,
            headers: 64,
            uri_bytes: 4 << 10,
            body_bytes: 0,
            requests_per_connection: 0,
        },
        reading: Reading::default(),
        trusted_proxies: Vec::new(),
    }
}

pub(crate) fn upstream(endpoints: Vec<Endpoint>) -> Upstream {
    Upstream {
        name: "app".into(),
        endpoints,
        connect_timeout: Duration::from_secs(1),
        source: Vec::new(),
        send_proxy: false,
        tls: None,
        pool: PoolLimits {
            max_idle: 16,
            idle_timeout: Duration::from_secs(30),
            max_lifetime: Duration::from_secs(3600),
        },
        retry: Retry { attempts: 2, on: RetryOn::default() },
    }
}

/// The part by which workers serve. Listeners have the numbers that a first configuration gives them.
pub(crate) fn traffic(config: &model::Config) -> Traffic {
    config.traffic(&config.listener_ids(&ListenerIds::default())).expect("numbered")
}
