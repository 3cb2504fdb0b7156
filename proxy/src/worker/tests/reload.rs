//! A new configuration under a worker: when it takes effect, what is kept of the old one, and what is closed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::simulated::{REQUEST, RESPONSE, bench, fetch, serve};
use crate::config::model;
use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, PoolCloseReason};
use crate::io::simulated::Faults;
use crate::route::model::{Action, Route};
use crate::tls::client::{ClientTls, Settings, Trust};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::endpoint_set::EndpointSet;
use crate::upstream::group::Group;
use crate::upstream::model::Upstream;
use crate::worker::testing::{self, Bench, origin_address};

/// Publishes the configuration with this change, as the control thread does.
fn publish(bench: &Bench, change: impl FnOnce(&mut model::Config)) {
    let running = bench.config.load_full();
    let mut config = (*running).clone();
    change(&mut config);
    bench.publish(config.succeed(&running));
}

fn upstream(name: &str, endpoint: u8) -> Arc<Upstream> {
    let config = testing::config(&[origin_address(endpoint)]);
    Arc::new(Upstream { name: name.to_owned().into(), ..(*config.upstreams[0]).clone() })
}

/// Publishes the endpoints of the first upstream, apart from any configuration.
fn publish_endpoints<const N: usize>(bench: &Bench, indices: [u8; N]) {
    let endpoint = |index| {
        let address = origin_address(index);
        Endpoint { address, label: address.to_string().into(), weight: 1 }
    };
    bench.events.worker().upstreams.publish("app", &EndpointSet::new(indices.map(endpoint)));
}

fn groups(bench: &Bench) -> Vec<Rc<Group>> {
    bench.events.worker().snapshot().upstreams.iter().map(|upstream| Rc::clone(&upstream.group)).collect()
}

#[test]
fn a_connection_is_accepted_by_the_newest_listener() {
    let mut bench = bench();
    let before = bench.config.load().listeners[0].timeouts.request_header;
    publish(&bench, |config| {
        Arc::make_mut(&mut config.listeners[0]).timeouts.request_header = before * 3;
    });
    let silent = bench.sim.connect(bench.listener);
    let begun = bench.sim.now();
    bench.run_until(|events| {
        events.worker().counters.value(Counter::Closed(CloseReason::RequestHeaderTimeout)) == 1
    });
    let took = bench.sim.now().since(begun);
    assert!((before * 3..before * 3 + Duration::from_secs(1)).contains(&took), "{took:?}");
    silent.close();
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn an_idle_worker_that_is_woken_lets_go_of_what_is_gone() {
    let mut bench = bench();
    let client = fetch(&mut bench);
    assert_eq!(bench.value(Plain::UpstreamIdle), 1);
    let old = Arc::downgrade(&bench.traffic.load_full());
    publish(&bench, |config| config.upstreams = vec![upstream("app", 2)]);
    // As the loop does when it is woken.
    drop(bench.events.worker().snapshot());
    assert_eq!(bench.value(Plain::UpstreamIdle), 0);
    assert_eq!(bench.value(Counter::PoolClosed(PoolCloseReason::EndpointRemoved)), 1);
    assert!(old.upgrade().is_none(), "nobody holds the old one");
    client.close();
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn upstreams_keep_their_pools_by_name_wherever_they_stand() {
    let mut bench = bench();
    let client = fetch(&mut bench);
    let before = groups(&bench);
    publish(&bench, |config| {
        config.upstreams.insert(0, upstream("first", 2));
        let route = Route::new(Action::Upstream(1));
        config.routes = crate::route::RouteTable::new(vec![Arc::new(route)]);
    });
    let after = groups(&bench);
    assert!(Rc::ptr_eq(&before[0], &after[1]) && after[0].id() != after[1].id());
    client.close();
    drop(fetch(&mut bench));
    assert_eq!(bench.value(Plain::UpstreamReuses), 1, "the connection from before");
    // An upstream that is removed and added again is a new one.
    publish(&bench, |config| drop(config.upstreams.remove(0)));
    let without = groups(&bench);
    publish(&bench, |config| config.upstreams.push(upstream("first", 2)));
    let again = groups(&bench);
    assert!(Rc::ptr_eq(&without[0], &again[0]) && !Rc::ptr_eq(&after[0], &again[1]));
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn ids_of_upstreams_stay_unique_over_more_reloads_than_there_are_ids() {
    let bench = bench();
    let kept = groups(&bench)[0].id();
    for round in 0..70_000_u32 {
        publish(&bench, |config| {
            config.upstreams.truncate(1);
            config.upstreams.push(upstream(&format!("new{round}"), 2));
        });
        let groups = groups(&bench);
        assert!(groups[0].id() == kept && groups[1].id() != kept, "round {round}");
    }
}

#[test]
fn an_upstream_that_is_new_in_a_drain_keeps_nothing_open() {
    let mut bench = bench();
    bench.events.worker().start_draining();
    publish(&bench, |config| config.upstreams = vec![upstream("other", 1)]);
    let client = fetch(&mut bench);
    assert_eq!(bench.value(Plain::UpstreamIdle), 0);
    client.close();
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn endpoints_change_while_the_configuration_stays() {
    let mut bench = bench();
    serve(&bench, 2);
    let first = fetch(&mut bench);
    publish_endpoints(&bench, [2, 1]);
    assert_eq!(bench.value(Plain::UpstreamIdle), 1, "an endpoint that stays keeps its connections");
    publish_endpoints(&bench, [2]);
    let removed = Counter::PoolClosed(PoolCloseReason::EndpointRemoved);
    assert_eq!((bench.value(Plain::UpstreamIdle), bench.value(removed)), (0, 1));
    // A configuration that says the same of this upstream leaves its endpoints alone.
    publish(&bench, |config| Arc::make_mut(&mut config.listeners[0]).timeouts.request_header *= 2);
    let second = fetch(&mut bench);
    publish_endpoints(&bench, [2]);
    assert_eq!((bench.value(Plain::UpstreamIdle), bench.value(Plain::UpstreamConnects)), (1, 2));
    // A configuration that changes this upstream fills the set again.
    publish(&bench, |config| Arc::make_mut(&mut config.upstreams[0]).pool.max_idle -= 1);
    drop(bench.events.worker().snapshot());
    assert_eq!((bench.value(Plain::UpstreamIdle), bench.value(removed)), (0, 2));
    // A worker without that upstream has nothing to change.
    publish(&bench, |config| config.upstreams = vec![upstream("other", 1)]);
    drop(bench.events.worker().snapshot());
    publish_endpoints(&bench, [2]);
    let third = fetch(&mut bench);
    assert_eq!(bench.value(Counter::PoolClosed(PoolCloseReason::EndpointRemoved)), 2);
    for client in [first, second, third] {
        client.close();
    }
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn the_next_attempt_chooses_among_the_endpoints_that_are_current() {
    let mut bench = Bench::new(1, Faults::mild(), testing::config(&[origin_address(3)]));
    bench.sim.silence(origin_address(3));
    serve(&bench, 1);
    let client = bench.sim.connect(bench.listener);
    client.write(REQUEST);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
    publish_endpoints(&bench, [1]);
    bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == 1);
    assert_eq!((bench.value(Plain::UpstreamConnectFailures), bench.value(Plain::UpstreamRetries)), (1, 1));
    client.close();
    bench.run_out();
    bench.check_freed("");
}

/// Has the first upstream speak TLS, to endpoints of this name.
fn with(name: Option<&str>) -> impl FnOnce(&mut model::Config) {
    let server_name = name.map(|name| ServerName::try_from(name.to_owned()).expect("a name"));
    let settings = Settings { server_name, trust: Trust::Anyone, certificate: None, alpn: Vec::new() };
    let tls = ClientTls::new(settings).map_err(|error| error.to_string()).expect("sound");
    move |config| Arc::make_mut(&mut config.upstreams[0]).tls = Some(Arc::new(tls))
}

#[test]
fn a_connection_in_use_while_its_upstream_gets_other_tls_ends_with_its_exchange() {
    let mut bench =
        Bench::new(1, Faults { short: false, ..Faults::mild() }, testing::config(&[origin_address(1)]));
    bench.sim.origin(origin_address(1));
    let client = bench.sim.connect(bench.listener);
    client.write(REQUEST);
    bench.run_until(|events| events.worker().counters.value(Plain::UpstreamConnects) == 1);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
    publish(&bench, with(None));
    drop(bench.events.worker().snapshot());
    let origin = bench.sim.accept(origin_address(1)).expect("a connection");
    origin.write(RESPONSE);
    bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == 1);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
    assert!(client.read().ends_with(b"ok"), "what was begun is ended");
    assert_eq!((bench.value(Plain::UpstreamIdle), bench.value(Plain::UpstreamOpen)), (0, 0));
    client.close();
    origin.close();
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn what_was_connected_under_other_tls_carries_nothing_more() {
    let mut bench = bench();
    let client = fetch(&mut bench);
    let plain = groups(&bench);
    publish(&bench, with(Some("a.test")));
    let first = groups(&bench);
    assert!(!Rc::ptr_eq(&plain[0], &first[0]));
    assert_eq!(
        (bench.value(Plain::UpstreamIdle), bench.value(Counter::PoolClosed(PoolCloseReason::Draining))),
        (0, 1)
    );
    // Settings that are compiled anew from the same files are the same.
    publish(&bench, with(Some("a.test")));
    assert!(Rc::ptr_eq(&first[0], &groups(&bench)[0]));
    publish(&bench, |config| Arc::make_mut(&mut config.upstreams[0]).send_proxy = true);
    assert!(Rc::ptr_eq(&first[0], &groups(&bench)[0]));
    publish(&bench, with(None));
    assert!(!Rc::ptr_eq(&first[0], &groups(&bench)[0]));
    client.close();
    bench.run_out();
    bench.check_freed("");
}
