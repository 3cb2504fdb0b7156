//! The changes of a reload: keys that a running Sluice can take, and keys that it takes at a start only.
//! Structs are taken apart field by field, so that a new key has to say here to which kind it belongs.

use std::collections::HashMap;
use std::sync::Arc;

use super::model::{self, Config, Ring};
use crate::kernel::guard::Guard;
use crate::listen::{Listener, Protocol};
use crate::route::model::{Action, Route};
use crate::tls::certificate::Certificate;
use crate::tls::server::ServerTls;
use crate::upstream::model::Upstream;

/// Names of changed items that are shown; further ones are counted.
const NAMES_MAX: usize = 8;

/// The difference between the configuration in force and a new one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys that cannot change without a restart. Not empty: nothing of the new configuration may be taken.
    pub fixed: Vec<String>,
    /// Changes that take effect, for people.
    pub live: Vec<String>,
}

impl Changes {
    /// Compares both; equal configurations have no changes.
    #[must_use]
    pub fn between(old: &Config, new: &Config) -> Self {
        let mut changes = Self::default();
        let Config { process, workers, ring, steering, guard, listeners, routes, upstreams, admin, log } =
            old;
        changes.process(process, &new.process);
        changes.workers(workers, &new.workers);
        changes.ring(*ring, new.ring);
        changes.fixed("steering.policy", steering.policy != new.steering.policy);
        changes.guard(guard, &new.guard);
        let model::Admin { address } = admin;
        changes.fixed("admin.address", *address != new.admin.address);
        changes.log(log, &new.log);
        let pairs = Pairs { old, new };
        changes.listeners(listeners, &new.listeners, &pairs);
        changes.routes(routes.routes(), new.routes.routes(), &pairs);
        changes.upstreams(upstreams, &new.upstreams);
        changes
    }

    fn fixed(&mut self, key: &str, differs: bool) {
        if differs {
            self.fixed.push(key.to_owned());
        }
    }

    fn live(&mut self, what: &str, differs: bool) {
        if differs {
            self.live.push(what.to_owned());
        }
    }

    fn process(&mut self, old: &model::Process, new: &model::Process) {
        let model::Process {
            run_dir,
            user,
            drain_timeout,
            drain_delay,
            watchdog,
            max_connections,
            buffer_budget,
            sandbox,
        } = old;
        self.fixed("process.run_dir", *run_dir != new.run_dir);
        self.fixed("process.user", *user != new.user);
        self.fixed("process.max_connections", *max_connections != new.max_connections);
        self.fixed("process.buffer_budget", *buffer_budget != new.buffer_budget);
        self.fixed("process.sandbox", *sandbox != new.sandbox);
        self.live("process.drain_timeout changed", *drain_timeout != new.drain_timeout);
        self.live("process.drain_delay changed", *drain_delay != new.drain_delay);
        self.live("process.watchdog changed", *watchdog != new.watchdog);
    }

    fn workers(&mut self, old: &model::Workers, new: &model::Workers) {
        let model::Workers { count, cpus, control_cpus, numa_local, busy_poll, stuck_after } = old;
        self.fixed("workers.count", *count != new.count);
        self.fixed("workers.cpus", *cpus != new.cpus);
        self.fixed("workers.control_cpus", *control_cpus != new.control_cpus);
        self.fixed("workers.numa", *numa_local != new.numa_local);
        self.fixed("workers.busy_poll", *busy_poll != new.busy_poll);
        self.fixed("workers.stuck_after", *stuck_after != new.stuck_after);
    }

    fn ring(&mut self, old: Ring, new: Ring) {
        let Ring { entries, buffers, buffer_size } = old;
        self.fixed("ring.entries", entries != new.entries);
        self.fixed("ring.buffers", buffers != new.buffers);
        self.fixed("ring.buffer_size", buffer_size != new.buffer_size);
    }

    fn guard(&mut self, old: &Guard, new: &Guard) {
        let Guard {
            interfaces,
            mode,
            dry_run,
            allow,
            deny,
            syn_rate_per_ip,
            syn_burst_per_ip,
            ban_for,
            connections_per_ip,
            syn_cookies,
            syn_cookies_rate,
            fragments,
        } = old;
        self.fixed("guard.interfaces", *interfaces != new.interfaces);
        self.fixed("guard.mode", *mode != new.mode);
        self.fixed("guard.dry_run", *dry_run != new.dry_run);
        self.fixed("guard.allow", *allow != new.allow);
        self.live(
            &format!("guard.deny changed ({} networks now, guard.deny_file included)", new.deny.len()),
            *deny != new.deny,
        );
        self.fixed("guard.syn_rate_per_ip", *syn_rate_per_ip != new.syn_rate_per_ip);
        self.fixed("guard.syn_burst_per_ip", *syn_burst_per_ip != new.syn_burst_per_ip);
        self.fixed("guard.ban_for", *ban_for != new.ban_for);
        self.fixed("guard.connections_per_ip", *connections_per_ip != new.connections_per_ip);
        self.fixed("guard.syn_cookies", *syn_cookies != new.syn_cookies);
        self.fixed("guard.syn_cookies_rate", *syn_cookies_rate != new.syn_cookies_rate);
        self.fixed("guard.fragments", *fragments != new.fragments);
    }

    fn log(&mut self, old: &model::Log, new: &model::Log) {
        let model::Log { level, format, access, with_query } = old;
        self.live("log.level changed", *level != new.level);
        self.fixed("log.format", *format != new.format);
        self.fixed("log.access", *access != new.access);
        self.fixed("log.query", *with_query != new.with_query);
    }

    /// Sockets belong to listeners: which there are, where they listen and how their sockets are set up
    /// stays.
    fn listeners(&mut self, old: &[Arc<Listener>], new: &[Arc<Listener>], pairs: &Pairs<'_>) {
        let (mut changed, mut taken, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for listener in old {
            let name = &listener.name;
            let Some(other) = new.iter().find(|other| other.name == *name) else {
                self.fixed(&format!("listener \"{name}\" (removed)"), true);
                continue;
            };
            let Listener {
                name: _,
                addresses,
                protocol,
                tls,
                proxy_protocol: _,
                backlog,
                defer_accept,
                freebind,
                timeouts: _,
                half_close: _,
                limits: _,
                reading: _,
                trusted_proxies: _,
            } = &**listener;
            let mut fixed = |key: &str, differs| self.fixed(&format!("listener \"{name}\": {key}"), differs);
            fixed("address", *addresses != other.addresses);
            fixed("protocol", std::mem::discriminant(protocol) != std::mem::discriminant(&other.protocol));
            fixed("backlog", *backlog != other.backlog);
            fixed("defer_accept", *defer_accept != other.defer_accept);
            fixed("freebind", *freebind != other.freebind);
            let renumbered = Listener { protocol: *protocol, ..(**other).clone() };
            if renumbered != **listener || !pairs.same_protocol(*protocol, other.protocol) {
                changed.push(name.as_str());
            }
            let (before, after) = (certificates(tls.as_ref()), certificates(other.tls.as_ref()));
            taken.extend(after.iter().filter(|one| !before.contains(one)).map(|one| one.name()));
            gone.extend(before.iter().filter(|one| !after.contains(one)).map(|one| one.name()));
        }
        for listener in new.iter().filter(|listener| !old.iter().any(|known| known.name == listener.name)) {
            self.fixed(&format!("listener \"{}\" (new)", listener.name), true);
        }
        self.names("listeners changed", &changed);
        self.names("certificates taken", &taken);
        self.names("certificates let go", &gone);
    }

    fn routes(&mut self, old: &[Arc<Route>], new: &[Arc<Route>], pairs: &Pairs<'_>) {
        // The values that tell routes apart; the configuration has each once.
        let key = |route: &Arc<Route>| (route.hosts.clone(), route.path.clone(), route.listeners.clone());
        let mut known: HashMap<_, _> = old.iter().map(|route| (key(route), route)).collect();
        let (mut added, mut changed) = (0_usize, 0_usize);
        for route in new {
            match known.remove(&key(route)) {
                None => added += 1,
                Some(before) => {
                    let renumbered = Route { action: before.action.clone(), ..(**route).clone() };
                    let is_same = renumbered == **before && pairs.same_action(&before.action, &route.action);
                    changed += usize::from(!is_same);
                }
            }
        }
        let counts = [(added, "added"), (changed, "changed"), (known.len(), "removed")];
        let counts: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if !counts.is_empty() {
            self.live.push(format!("routes: {} ({} now)", counts.join(", "), new.len()));
        } else if old != new && old.len() == new.len() {
            let moved = old.iter().zip(new).any(|(old, new)| key(old) != key(new));
            self.live("routes are in another order", moved);
        }
    }

    fn upstreams(&mut self, old: &[Arc<Upstream>], new: &[Arc<Upstream>]) {
        let mut known: HashMap<&str, &Arc<Upstream>> = old.iter().map(|one| (&*one.name, one)).collect();
        let (mut added, mut changed) = (Vec::new(), Vec::new());
        for upstream in new {
            match known.remove(&*upstream.name) {
                None => added.push(&*upstream.name),
                Some(before) if before != upstream => changed.push(&*upstream.name),
                Some(_) => {}
            }
        }
        let mut removed: Vec<&str> = known.into_keys().collect();
        removed.sort_unstable();
        self.names("upstreams added", &added);
        self.names("upstreams changed", &changed);
        self.names("upstreams removed", &removed);
    }

    fn names(&mut self, what: &str, names: &[&str]) {
        if names.is_empty() {
            return;
        }
        let shown: Vec<String> = names.iter().take(NAMES_MAX).map(|name| format!("\"{name}\"")).collect();
        let more = names.len().saturating_sub(NAMES_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        self.live.push(format!("{what}: {}{more}", shown.join(", ")));
    }
}

fn certificates(tls: Option<&Arc<ServerTls>>) -> &[Arc<Certificate>] {
    tls.map(|tls| tls.certificates.as_slice()).unwrap_or_default()
}

/// Upstreams are named by index, and the same index may be another one's in the other configuration.
struct Pairs<'a> {
    old: &'a Config,
    new: &'a Config,
}

impl Pairs<'_> {
    fn same_upstream(&self, old: Option<usize>, new: Option<usize>) -> bool {
        let name =
            |config: &'_ Config, index: Option<usize>| Some(config.upstreams.get(index?)?.name.clone());
        name(self.old, old) == name(self.new, new)
    }

    fn same_action(&self, old: &Action, new: &Action) -> bool {
        match (old, new) {
            (Action::Upstream(old), Action::Upstream(new)) => self.same_upstream(Some(*old), Some(*new)),
            _ => old == new,
        }
    }

    fn same_protocol(&self, old: Protocol, new: Protocol) -> bool {
        match (old, new) {
            (Protocol::Tcp { upstream: old }, Protocol::Tcp { upstream: new }) => {
                self.same_upstream(Some(old), Some(new))
            }
            (
                Protocol::TlsPassthrough { upstream: old, handshake_timeout: before },
                Protocol::TlsPassthrough { upstream: new, handshake_timeout },
            ) => self.same_upstream(old, new) && before == handshake_timeout,
            _ => old == new,
        }
    }
}

impl Config {
    /// Shares all equal parts with the running configuration, so that a comparison of pointers shows the
    /// differences: pools, ticket keys and sessions to resume go on with equal parts. Parts are the same by
    /// name, wherever they stand.
    #[must_use]
    pub fn succeed(mut self, running: &Self) -> Self {
        let known: HashMap<&str, &Arc<Listener>> =
            running.listeners.iter().map(|listener| (&*listener.name, listener)).collect();
        for listener in &mut self.listeners {
            let Some(before) = known.get(&*listener.name) else { continue };
            if listener == *before {
                *listener = Arc::clone(before);
            } else if listener.tls == before.tls {
                Arc::make_mut(listener).tls.clone_from(&before.tls);
            }
        }
        let known: HashMap<&str, &Arc<Upstream>> =
            running.upstreams.iter().map(|upstream| (&*upstream.name, upstream)).collect();
        for upstream in &mut self.upstreams {
            let Some(before) = known.get(&*upstream.name) else { continue };
            if upstream == *before {
                *upstream = Arc::clone(before);
            } else if upstream.tls == before.tls {
                Arc::make_mut(upstream).tls.clone_from(&before.tls);
            }
        }
        self
    }
}
