//! The parts of a request's way besides HTTP: the router, the pool of upstream connections, the timers.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proxy::io::timer::Wheel;
use proxy::route::RouteTable;
use proxy::time::Time;
use proxy::upstream::endpoint::{Endpoint, EndpointId};
use proxy::upstream::endpoint_set::EndpointSet;
use proxy::upstream::pool::idle::{IdlePool, Taken};

use super::{Case, Runner, each};
use crate::Random;
use proxy::route::model::{Action, Route, RoutePath};
use proxy::upstream::model::PoolLimits;

pub(super) const CASES: &[Case] = &[
    Case { name: "route-1", what: "find a request's route, / alone", make: || route(1) },
    Case { name: "route-32", what: "find a request's route among 32", make: || route(32) },
    Case { name: "route-1000", what: "find a request's route among 1,000", make: || route(1_000) },
    Case { name: "pool", what: "take an upstream connection and put it back", make: pool },
    Case { name: "timer-cancel", what: "arm and disarm a timer, 1,000 others armed", make: timer_cancel },
    Case { name: "timer-fire", what: "arm a timer and let one fire, 500 others armed", make: timer_fire },
];

/// `/`, and prefixes of one to three segments.
fn prefix(number: usize) -> String {
    match number % 3 {
        _ if number == 0 => "/".to_owned(),
        0 => format!("/service-{number}"),
        1 => format!("/api/v{}/resource-{number}", number % 4),
        _ => format!("/static/assets-{number}"),
    }
}

fn route(count: usize) -> Runner {
    let routes: Vec<_> = (0..count)
        .map(|number| Route {
            path: RoutePath::Prefix(prefix(number).into()),
            ..Route::new(Action::Upstream(number))
        })
        .map(Arc::new)
        .collect();
    let table = RouteTable::new(routes);
    let mut random = Random::new(1);
    // The paths below the routes come in random order, so that branch predictor and cache cannot learn them.
    let wanted = (0..512).map(|_| random.next() as usize % count);
    let paths: Vec<(String, usize)> = wanted
        .map(|number| (format!("{}/item/1234", prefix(number).trim_end_matches('/')), number))
        .collect();
    let mut next = 0;
    each(move || {
        let (path, number) = &paths[next % paths.len()];
        next += 1;
        let found = table.find(black_box("main"), black_box("www.example.com"), black_box(path));
        assert!(found.is_some_and(|route| route.action == Action::Upstream(*number)), "{path}");
    })
}

/// A pool with 32 connections to two endpoints, leased in turn.
fn pool() -> Runner {
    let limits = PoolLimits {
        max_idle: 64,
        idle_timeout: Duration::from_secs(60),
        max_lifetime: Duration::from_secs(3_600),
    };
    let addresses = [1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], 8080)));
    let endpoint = |address| Endpoint { address, label: "".into(), weight: 1 };
    let mut pool = IdlePool::new(limits, &EndpointSet::new(addresses.map(endpoint)));
    let endpoints = addresses.map(EndpointId::from);
    let now = Time::from_nanos(1_000_000_000);
    for number in 0..32u64 {
        pool.put(endpoints[number as usize % 2], number, now, now, true).expect("room");
    }
    let mut next = 0;
    each(move || {
        let endpoint = endpoints[next % 2];
        next += 1;
        let Taken::Connection { connection, born } = pool.take(black_box(endpoint), now) else {
            panic!("none is idle")
        };
        black_box(pool.put(endpoint, connection, born, now, true).expect("room"));
    })
}

/// Timers as a proxy uses them: most are disarmed long before they are due.
fn timer_cancel() -> Runner {
    let mut random = Random::new(1);
    let now = Time::from_nanos(1_000_000_000);
    let mut wheel = Wheel::new(now);
    let mut delay = move || Duration::from_millis(1 + random.next() % 60_000);
    for number in 0..1_000u64 {
        wheel.arm(now + delay(), number);
    }
    let delays: Vec<Duration> = (0..1_024).map(|_| delay()).collect();
    let mut next = 0;
    each(move || {
        let key = wheel.arm(now + delays[next % delays.len()], next as u64);
        assert_eq!(wheel.disarm(black_box(key)), Some(next as u64));
        next += 1;
    })
}

/// At each step, time advances as between two requests; every timer fires a few steps later.
fn timer_fire() -> Runner {
    const STEP: Duration = Duration::from_millis(20);
    let mut now = Time::from_nanos(1_000_000_000);
    let mut wheel = Wheel::new(now);
    let mut random = Random::new(1);
    let delays: Vec<Duration> = (0..1_024).map(|_| STEP * (1 + (random.next() % 1_000) as u32)).collect();
    let (mut armed, mut fired) = (0usize, 0usize);
    let mut due = Vec::new();
    each(move || {
        wheel.arm(now + delays[armed % delays.len()], armed as u64);
        armed += 1;
        now = now + STEP;
        wheel.advance(now, &mut due);
        fired += due.len();
        due.clear();
        assert!(armed - fired <= 1_001, "{armed} armed, {fired} fired");
    })
}
