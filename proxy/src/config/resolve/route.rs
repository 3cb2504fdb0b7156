//! Routes beside each other. Names become indices, and two routes for the same requests are refused. Routes
//! that no request can reach, or that leave a surprising gap, get a warning.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::{Resolver, passthrough};
use crate::config::diagnostics::Related;
use crate::config::read::{At, nearest};
use crate::config::schema;
use crate::config::units;
use crate::route::Host;
use crate::route::model::{Action, Route, RoutePath};

/// Requests that no two routes may take on one listener.
type Taken<'r> = (Option<&'r Host>, &'r RoutePath);

impl schema::Route {
    /// The upstream it leads to.
    pub(in crate::config) fn upstream(&self) -> Option<&str> {
        match &self.action {
            Some(schema::Action::Upstream(name)) => Some(&name.value),
            _ => None,
        }
    }

    fn takes(&self) -> impl Iterator<Item = Taken<'_>> {
        let any = self.hosts.is_empty().then_some((None, &self.path.value));
        any.into_iter().chain(self.hosts.iter().map(|host| (Some(&host.value), &self.path.value)))
    }

    /// The place to which a report about its requests points: the path, else the table's header.
    fn place(&self) -> Option<Range<usize>> {
        self.path.span.clone().or_else(|| self.span.clone())
    }

    const fn path_key(&self) -> &'static str {
        match self.path.value {
            RoutePath::Exact(_) => "route.path",
            RoutePath::Prefix(_) => "route.path_prefix",
        }
    }
}

impl Resolver<'_> {
    /// `None` only after an error.
    pub(super) fn routes(
        &self,
        routes: Vec<schema::Route>,
        upstreams: &[schema::Upstream],
        listeners: &[schema::Listener],
        buffer_budget: usize,
    ) -> Option<Vec<Arc<Route>>> {
        // Nothing routes a connection of TCP.
        if routes.is_empty()
            && (listeners.is_empty() || listeners.iter().any(|listener| listener.protocol.is_http()))
        {
            self.context.warn("route", None, "there is none: every request gets 404".to_owned());
        }
        let sound: Vec<&schema::Route> = routes.iter().filter(|route| !route.is_doubtful).collect();
        self.check_listener_names(&routes, listeners);
        self.check_same_requests(&sound, listeners);
        self.check_passthrough(&routes, listeners);
        let of_http: Vec<&schema::Route> =
            sound.iter().copied().filter(|route| !passthrough::is_for_it(route, listeners)).collect();
        self.check_lengths(&of_http, listeners);
        if sound.len() == routes.len() {
            self.check_gaps(&of_http);
        }
        let names = super::index(upstreams);
        let resolved: Vec<Option<Arc<Route>>> = routes
            .into_iter()
            .map(|route| {
                if let (length, Some(span)) = (route.buffer_request.value, &route.buffer_request.span)
                    && length > buffer_budget as u64 / 2
                {
                    let message =
                        "is more than half of process.buffer_budget, which is what such bodies may take"
                            .to_owned();
                    let expected = format!("at most {}", units::show_size(buffer_budget as u64 / 2));
                    self.error("route.buffer_request", Some(span), message, &expected);
                }
                if route.buffer_response.value > buffer_budget as u64 {
                    let message = "is more than process.buffer_budget".to_owned();
                    let expected = format!("at most {}", units::show_size(buffer_budget as u64));
                    self.error(
                        "route.buffer_response",
                        route.buffer_response.span.as_ref(),
                        message,
                        &expected,
                    );
                }
                self.route(route, &names, listeners)
            })
            .collect();
        resolved.into_iter().collect()
    }

    fn check_listener_names(&self, routes: &[schema::Route], listeners: &[schema::Listener]) {
        let known: Vec<&str> = listeners
            .iter()
            .map(|listener| listener.name.value.as_str())
            .filter(|name| !name.is_empty())
            .collect();
        // A listener whose name was reported may be the intended one.
        let all_named = known.len() == listeners.len();
        for At { value: name, span } in routes.iter().flat_map(|route| &route.listeners) {
            if listeners
                .iter()
                .any(|listener| listener.protocol == schema::Protocol::Tcp && listener.name.value == *name)
            {
                let message = format!("{} is for tcp, which no route takes", units::quote(name));
                self.error(
                    "route.listener",
                    span.as_ref(),
                    message,
                    "listeners of HTTP or of tls-passthrough",
                );
            }
            if !known.contains(&name.as_str()) && all_named {
                let help = nearest(name, &known).map(|known| format!("did you mean \"{known}\"?"));
                let expected = format!("one of \"{}\"", known.join("\", \""));
                let message = format!("there is no listener {}", units::quote(name));
                self.context.error("route.listener", span.clone(), message, Some(expected), help);
            }
        }
    }

    /// Routes for the same host and path: on one listener they would hide each other, unless one of them
    /// alone names it.
    fn check_same_requests(&self, routes: &[&schema::Route], listeners: &[schema::Listener]) {
        let mut takers: HashMap<Taken<'_>, Vec<&schema::Route>> = HashMap::new();
        for &route in routes {
            let mut reported = false;
            for taken in route.takes() {
                let earlier = takers.entry(taken).or_default();
                let other = earlier.iter().find(|other| {
                    other.listeners.is_empty() == route.listeners.is_empty()
                        && (route.listeners.is_empty()
                            || route.listeners.iter().any(|at| names(other, &at.value)))
                });
                if let Some(other) = other.filter(|_| !reported) {
                    reported = true;
                    self.report_same_requests(taken, route, other);
                }
                // A third one for the same requests is compared with the first.
                if other.is_none() {
                    earlier.push(route);
                }
            }
        }
        let of_http = || listeners.iter().filter(|listener| listener.protocol.is_http());
        for &route in routes.iter().filter(|route| route.listeners.is_empty()) {
            let is_hidden = |taken: Taken<'_>| {
                let takers = takers.get(&taken).map_or(&[][..], Vec::as_slice);
                of_http().all(|listener| takers.iter().any(|taker| names(taker, &listener.name.value)))
            };
            if of_http().next().is_some() && route.takes().all(is_hidden) {
                let message =
                    "is never reached: on every listener a route that names it takes the same requests"
                        .to_owned();
                self.context.warn(route.path_key(), route.place(), message);
            }
        }
    }

    fn report_same_requests(&self, (host, path): Taken<'_>, route: &schema::Route, other: &schema::Route) {
        let path = match path {
            RoutePath::Exact(path) | RoutePath::Prefix(path) => path,
        };
        let host = host.map_or_else(|| "any host".to_owned(), |host| format!("host \"{host}\""));
        let message = format!("an earlier route takes \"{path}\" of {host} already");
        let related = other.place().map(|span| Related { span, label: "the earlier one".to_owned() });
        self.context.clash(
            route.path_key(),
            route.place(),
            message,
            "each host and path once on a listener",
            related,
        );
    }

    fn check_lengths(&self, routes: &[&schema::Route], listeners: &[schema::Listener]) {
        for route in routes {
            let (RoutePath::Exact(path) | RoutePath::Prefix(path)) = &route.path.value;
            let reach = listeners
                .iter()
                .filter(|listener| route.listeners.is_empty() || names(route, &listener.name.value));
            let longest = reach.map(|listener| listener.limits.uri_bytes).max();
            if longest.is_some_and(|longest| path.len() > longest) {
                let message =
                    "is never reached: it is longer than limits.uri_bytes of its listeners".to_owned();
                self.context.warn(route.path_key(), route.path.span.clone(), message);
            }
        }
    }

    /// A host whose routes leave paths out, although a less specific host has routes for them: those do not
    /// stand in.
    fn check_gaps(&self, routes: &[&schema::Route]) {
        let hosts: HashSet<&Host> =
            routes.iter().flat_map(|route| &route.hosts).map(|host| &host.value).collect();
        let any = routes.iter().any(|route| route.hosts.is_empty());
        let is_whole = |path: &RoutePath| matches!(path, RoutePath::Prefix(prefix) if &**prefix == "/");
        let mut settled: HashSet<&Host> = HashSet::new();
        for route in routes.iter().filter(|route| is_whole(&route.path.value)) {
            settled.extend(route.hosts.iter().map(|host| &host.value));
        }
        for At { value: host, span } in routes.iter().flat_map(|route| &route.hosts) {
            if (any || covered(host, &hosts)) && settled.insert(host) {
                let message = format!(
                    "\"{host}\" has no route for every path, and routes of less specific hosts do not stand \
                     in: what none of its own takes gets 404"
                );
                self.context.warn("route.host", span.clone(), message);
            }
        }
    }

    fn route(
        &self,
        route: schema::Route,
        upstreams: &BTreeMap<&str, usize>,
        listeners: &[schema::Listener],
    ) -> Option<Arc<Route>> {
        let label = label(&route, listeners);
        self.check_client_cert(&route, listeners);
        let action = match route.action? {
            schema::Action::Upstream(name) => {
                Action::Upstream(self.upstream_index("route.upstream", &name, upstreams)?)
            }
            schema::Action::Redirect(redirect) => Action::Redirect(redirect),
            schema::Action::Respond(respond) => Action::Respond(respond),
        };
        Some(Arc::new(Route {
            label,
            hosts: route.hosts.into_iter().map(|at| at.value).collect(),
            path: route.path.value,
            listeners: route.listeners.into_iter().map(|at| at.value).collect(),
            action,
            client_cert: route.client_cert.is_some(),
            request_headers: route.request_headers,
            response_headers: route.response_headers,
            timeout: route.timeout,
            body_timeout: route.body_timeout,
            buffer_request: route.buffer_request.value,
            buffer_response: usize::try_from(route.buffer_response.value).unwrap_or(usize::MAX),
        }))
    }

    /// A route that wants certificates needs a listener that asks for them.
    fn check_client_cert(&self, route: &schema::Route, listeners: &[schema::Listener]) {
        let Some(at) = &route.client_cert else { return };
        let is_of_it = |listener: &schema::Listener| {
            listener.protocol.is_http() && (route.listeners.is_empty() || names(route, &listener.name.value))
        };
        let asks = |listener: &schema::Listener| listener.tls.client_ca.is_some();
        if !listeners.iter().any(|listener| is_of_it(listener) && asks(listener)) {
            let message = "can be met by nobody: no listener of this route asks for certificates".to_owned();
            let expected = "client_ca in [listener.tls] of a listener with protocol = \"https\"";
            self.error("route.client_cert", at.span.as_ref(), message, expected);
        }
    }

    pub(super) fn upstream_index(
        &self,
        key: &str,
        At { value: name, span }: &At<String>,
        upstreams: &BTreeMap<&str, usize>,
    ) -> Option<usize> {
        let found = upstreams.get(name.as_str()).copied().filter(|_| !name.is_empty());
        // An upstream whose name was reported may be the intended one.
        if found.is_none() && (name.is_empty() || !upstreams.contains_key("")) {
            let known: Vec<&str> = upstreams.keys().copied().filter(|known| !known.is_empty()).collect();
            let help = nearest(name, &known).map(|known| format!("did you mean \"{known}\"?"));
            let expected = if known.is_empty() {
                "an [[upstream]] of that name, and there is none at all".to_owned()
            } else {
                format!("one of \"{}\"", known.join("\", \""))
            };
            let message = format!("there is no upstream {}", units::quote(name));
            self.context.error(key, span.clone(), message, Some(expected), help);
        }
        found
    }
}

fn label(route: &schema::Route, listeners: &[schema::Listener]) -> Box<str> {
    let host = route.hosts.first().map(|host| host.value.to_string()).unwrap_or_default();
    match &route.path.value {
        _ if passthrough::is_for_it(route, listeners) => host.into(),
        RoutePath::Exact(path) => format!("{host}={path}").into(),
        RoutePath::Prefix(path) => format!("{host}{path}").into(),
    }
}

pub(super) fn names(route: &schema::Route, listener: &str) -> bool {
    route.listeners.iter().any(|at| at.value == listener)
}

/// Whether one of `hosts` is a wildcard that takes this host too.
fn covered(host: &Host, hosts: &HashSet<&Host>) -> bool {
    let (Host::Name(name) | Host::Under(name)) = host else { return false };
    let cuts = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
    cuts.into_iter().any(|cut| hosts.contains(&Host::Under(cut.into())))
}
