//! From the TOML as written to the model. Names become indices, files that the main one refers to are merged
//! in, and contradictions across tables are reported. Pure: it sees only the bytes it is given.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use toml::de::DeTable;

use super::diagnostics::{Diagnostic, Diagnostics, Severity, Source};
use super::read::{At, Context, Table};
use super::schema::{self, Schema};
use super::{Files, NO_SUCH_FILE, PERMISSION_DENIED, model, units};
use crate::kernel::guard::Guard;
use crate::route::RouteTable;
use crate::tls::client::ClientTls;
use crate::upstream::model::Upstream;

mod client_auth;
mod listener;
mod passthrough;
mod route;
mod tls;

/// The most prefixes on the allow list, and on the deny list with its file: the size of the guard's tries.
const PREFIXES_MAX: usize = 1 << 18;
/// The most listener addresses: the size of the guard's and the steering program's maps.
const ADDRESSES_MAX: usize = 256;

/// The largest list that it refers to.
const LIST_BYTES_MAX: u64 = 32 << 20;
/// The largest file of certificates or a key.
const TLS_BYTES_MAX: u64 = 1 << 20;

/// The name under which the bytes of the system's roots are among the files; no file is called that.
pub(super) const SYSTEM_ROOTS: &str = "(the system's roots)";

/// Facts that `load` knows beside the files' bytes; `resolve` reports them at the key that names a file. The
/// data plane knows none of them.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Files that could not be read, and why.
    pub(super) unread: HashMap<PathBuf, String>,
    /// No file was looked for, and none is missed.
    pub(super) without_files: bool,
    /// Files that every user of this machine may read.
    pub(super) open_to_all: HashSet<PathBuf>,
    /// Seconds since 1970.
    pub(super) now: Option<i64>,
}

/// A main file whose keys were read, and the problems that were found so far.
pub(super) struct Parsed {
    main: PathBuf,
    context: Context,
    /// `None`: syntax errors.
    schema: Option<Schema>,
}

impl Parsed {
    /// Reads the main file's keys.
    pub(super) fn new(path: &Path, bytes: &[u8]) -> Self {
        let main = path.to_owned();
        let (text, invalid_at) = match std::str::from_utf8(bytes) {
            Ok(text) => (text.to_owned(), None),
            // The bytes before the first wrong one are not changed by the replacement, so its offset holds.
            Err(error) => (String::from_utf8_lossy(bytes).into_owned(), Some(error.valid_up_to())),
        };
        let source = Source::new(path, text);
        let context = Context::new(source.clone());
        if let Some(at) = invalid_at {
            context.error(
                "",
                Some(at..at),
                "is not UTF-8 here".to_owned(),
                Some("a TOML file".to_owned()),
                None,
            );
            return Self { main, context, schema: None };
        }
        let (root, errors) = DeTable::parse_recoverable(source.text());
        for error in &errors {
            report_syntax(&context, &source, error);
        }
        // Recovery only guesses at the text behind an error: errors there would mislead.
        let schema = errors.is_empty().then(|| schema::read(Table::root(&context, root.get_ref())));
        Self { main, context, schema }
    }

    /// Paths of the files it refers to, to be read before `resolve`, each once, and how many bytes each may
    /// have.
    pub(super) fn references(&self) -> Vec<(PathBuf, u64)> {
        let Some(schema) = &self.schema else { return Vec::new() };
        let lists = schema.guard.deny_file.iter().map(|file| (file, LIST_BYTES_MAX));
        let listeners = schema.listeners.iter().flat_map(|listener| listener.tls.files());
        let upstreams = schema
            .upstreams
            .iter()
            .filter_map(|upstream| upstream.tls.as_ref())
            .flat_map(schema::ClientTls::files);
        let tls = listeners.chain(upstreams).map(|file| (file, TLS_BYTES_MAX));
        let crls = schema.listeners.iter().flat_map(|listener| &listener.tls.client_crl);
        let lists = lists.chain(crls.map(|file| (file, LIST_BYTES_MAX)));
        let mut known = HashSet::new();
        let all = lists.chain(tls).map(|(file, bytes_max)| (beside(&self.main, &file.value), bytes_max));
        all.filter(|(path, _)| known.insert(path.clone())).collect()
    }

    /// The references whose changes take effect by themselves: all of them.
    pub(super) fn watched(&self) -> Vec<PathBuf> {
        self.references().into_iter().map(|(path, _)| path).collect()
    }

    /// Whether the system's roots are to be read too.
    pub(super) fn needs_system_roots(&self) -> bool {
        let mut upstreams = self.schema.iter().flat_map(|schema| &schema.upstreams);
        upstreams.any(|upstream| upstream.tls.as_ref().is_some_and(schema::ClientTls::needs_system_roots))
    }

    /// The model, and errors and warnings; `None` when there are errors.
    pub(super) fn resolve(
        self,
        files: &Files,
        facts: &Facts,
    ) -> (Option<model::Config>, Diagnostics, Diagnostics) {
        let Self { main, context, schema } = self;
        let config = schema.and_then(|schema| {
            let config = Resolver { context: &context, main: &main, files, facts }.config(schema);
            config.filter(|_| !context.has_errors())
        });
        let (mut errors, mut warnings) = context.into_diagnostics();
        errors.sort(&main);
        warnings.sort(&main);
        (config, errors, warnings)
    }
}

/// Paths in a configuration are relative to its own folder.
fn beside(main: &Path, written: &Path) -> PathBuf {
    main.parent().map_or_else(|| written.to_owned(), |folder| folder.join(written))
}

fn report_syntax(context: &Context, source: &Source, error: &toml::de::Error) {
    let message = error.message().trim().to_owned();
    let (message, expected) = match message.split_once(", expected ") {
        Some((message, expected)) => (message.to_owned(), Some(expected.to_owned())),
        None => (message, None),
    };
    let written = error.span().and_then(|span| source.text().get(span));
    let key = written.filter(|_| message.starts_with("duplicate key")).unwrap_or_default();
    context.error(key, error.span(), message, expected, None);
}

struct Resolver<'a> {
    context: &'a Context,
    main: &'a Path,
    files: &'a Files,
    facts: &'a Facts,
}

impl Resolver<'_> {
    /// `None` only after an error.
    fn config(&self, schema: Schema) -> Option<model::Config> {
        let Schema {
            process,
            workers,
            ring,
            steering,
            guard,
            listeners,
            lacks_listeners,
            routes,
            upstreams,
            admin,
            log,
        } = schema;
        self.check_process(&process, &guard);
        let process = process.model;
        let workers = self.workers(workers);
        let guard = self.guard(guard);
        if lacks_listeners {
            self.error(
                "listener",
                None,
                "there is none".to_owned(),
                "at least one [[listener]] with a name and an address",
            );
        }
        self.check_listeners(&listeners, process.buffer_budget);
        self.check_certificate_count(&listeners);
        self.check_admin(admin.as_ref(), &listeners);
        self.check_upstreams(&upstreams, &routes, &listeners, admin.as_ref());
        let routes = self.routes(routes, &upstreams, &listeners, process.buffer_budget);
        let tls: Vec<_> = upstreams.iter().map(|upstream| self.upstream_tls(upstream, &listeners)).collect();
        let names = index(&upstreams);
        let listeners: Vec<_> =
            listeners.into_iter().map(|listener| self.listener(listener, &names)).collect();
        let access = match log.access {
            model::AccessLog::File(path) => model::AccessLog::File(beside(self.main, &path)),
            other => other,
        };
        Some(model::Config {
            process,
            workers,
            ring,
            steering,
            guard,
            listeners: listeners.into_iter().collect::<Option<_>>()?,
            routes: RouteTable::new(routes?),
            upstreams: upstreams
                .into_iter()
                .zip(tls)
                .map(|(upstream, tls)| Some(model_of(upstream, tls?)))
                .collect::<Option<_>>()?,
            admin: model::Admin { address: admin.map(|at| at.value) },
            log: model::Log { access, ..log },
        })
    }

    fn error(&self, key: &str, span: Option<&Range<usize>>, message: String, expected: &str) {
        let expected = (!expected.is_empty()).then(|| expected.to_owned());
        self.context.error(key, span.cloned(), message, expected, None);
    }

    fn check_process(&self, process: &schema::Process, guard: &schema::Guard) {
        let instance = process.model.run_dir.file_name().unwrap_or_default();
        if !guard.interfaces.is_empty() && instance.as_encoded_bytes().contains(&b'.') {
            let message = format!(
                "\"{}\" names the pins of the guard, and bpffs refuses names with a dot",
                instance.display()
            );
            self.error(
                "process.run_dir",
                process.run_dir_at.as_ref(),
                message,
                "a last component without dots",
            );
        }
        if process.model.user == "root" {
            let message = "the data plane, which parses hostile bytes, would run as root".to_owned();
            self.context.warn("process.user", process.user_at.clone(), message);
        }
    }

    fn workers(&self, workers: schema::Workers) -> model::Workers {
        let schema::Workers { count, cpus, control_cpus, numa_local, stuck_after } = workers;
        let workers_max = proxy_common::steer::WORKERS_MAX as usize;
        match (count.value, &cpus.value) {
            (Some(wanted), Some(list)) if wanted > list.len() => {
                let message = format!("{wanted} workers do not fit on {} CPUs, one each", list.len());
                self.error(
                    "workers.count",
                    count.span.as_ref(),
                    message,
                    &format!("at most {}, or more in workers.cpus", list.len()),
                );
            }
            (None, Some(list)) if list.len() > workers_max => {
                let message = format!("lists {} CPUs, and one worker each would be too many", list.len());
                self.error(
                    "workers.cpus",
                    cpus.span.as_ref(),
                    message,
                    &format!("at most {workers_max}, or a workers.count"),
                );
            }
            _ => {}
        }
        if let (Some(workers), Some(control)) = (&cpus.value, &control_cpus.value)
            && let Some(shared) = control.iter().find(|cpu| workers.contains(cpu))
        {
            let message = format!(
                "CPU {shared} is one of workers.cpus too: control and log threads would delay its worker"
            );
            self.context.warn("workers.control_cpus", control_cpus.span.clone(), message);
        }
        model::Workers {
            count: count.value,
            cpus: cpus.value,
            control_cpus: control_cpus.value,
            numa_local,
            busy_poll: std::time::Duration::ZERO,
            stuck_after,
        }
    }

    fn guard(&self, guard: schema::Guard) -> Guard {
        let mut interfaces: Vec<String> = Vec::new();
        for At { value, span } in guard.interfaces {
            if interfaces.contains(&value) {
                self.error("guard.interfaces", span.as_ref(), format!("\"{value}\" is listed twice"), "");
            }
            interfaces.push(value);
        }
        for denied in &guard.deny {
            if guard.allow.iter().any(|allowed| allowed.value == denied.value) {
                let message = format!("{} is on the allow list too, which wins", denied.value);
                self.context.warn("guard.deny", denied.span.clone(), message);
            }
        }
        let first = |list: &[At<IpNet>]| list.first().and_then(|at| at.span.clone());
        let allow_at = first(&guard.allow);
        let deny_at =
            guard.deny_file.as_ref().and_then(|file| file.span.clone()).or_else(|| first(&guard.deny));
        let mut deny: Vec<IpNet> = guard.deny.into_iter().map(|at| at.value).collect();
        if let Some(file) = &guard.deny_file {
            self.deny_file(file, &mut deny);
        }
        // The trie holds each prefix once.
        deny.sort_unstable();
        deny.dedup();
        let mut allow: Vec<IpNet> = guard.allow.into_iter().map(|at| at.value).collect();
        allow.sort_unstable();
        allow.dedup();
        for (key, list, span) in [("guard.allow", &allow, &allow_at), ("guard.deny", &deny, &deny_at)] {
            if list.len() > PREFIXES_MAX {
                let message = format!("has {} networks", list.len());
                self.error(key, span.as_ref(), message, &format!("at most {PREFIXES_MAX}, files included"));
            }
        }
        if interfaces.is_empty() && !(allow.is_empty() && deny.is_empty()) {
            let message = "no interface is guarded, so the allow and deny lists have no effect".to_owned();
            self.context.warn("guard.interfaces", allow_at.or(deny_at), message);
        }
        Guard {
            interfaces,
            mode: guard.mode,
            dry_run: guard.dry_run,
            allow,
            deny,
            syn_rate_per_ip: guard.syn_rate_per_ip,
            syn_burst_per_ip: guard.syn_burst_per_ip,
            ban_for: guard.ban_for,
            connections_per_ip: Some(guard.connections_per_ip).filter(|limit| *limit > 0),
            syn_cookies: guard.syn_cookies,
            syn_cookies_rate: guard.syn_cookies_rate,
            fragments: guard.fragments,
        }
    }

    /// The bytes of a file that the main one refers to, and its path; reported if there are none.
    fn file(&self, key: &str, file: &At<PathBuf>) -> Option<(&Path, &[u8])> {
        self.file_at(key, file.span.as_ref(), beside(self.main, &file.value))
    }

    fn file_at(&self, key: &str, span: Option<&Range<usize>>, path: PathBuf) -> Option<(&Path, &[u8])> {
        let found = self.files.iter().skip(1).find(|(name, _)| *name == path);
        if found.is_none() && !self.facts.without_files {
            let reason = self.facts.unread.get(&path).map_or("it was not passed on", String::as_str);
            let message = format!("\"{}\" cannot be read: {reason}", path.display());
            let expected = match reason {
                PERMISSION_DENIED => "a file that the user who starts Sluice may read",
                NO_SUCH_FILE => "a file that exists",
                _ => "a file that can be read",
            };
            self.error(key, span, message, expected);
        }
        found.map(|(path, bytes)| (path.as_path(), bytes.as_slice()))
    }

    /// One network a line; `#` begins a comment.
    fn deny_file(&self, file: &At<PathBuf>, deny: &mut Vec<IpNet>) {
        const KEY: &str = "guard.deny_file";
        let Some((path, bytes)) = self.file(KEY, file) else { return };
        let text = String::from_utf8_lossy(bytes);
        let mut source = None;
        let mut line_start = 0;
        for line in text.split_inclusive('\n') {
            let written = line.split('#').next().unwrap_or_default();
            let network = written.trim();
            if !network.is_empty() {
                match units::network(network) {
                    Ok(network) => deny.push(network),
                    Err(message) => {
                        let at = line_start + (written.len() - written.trim_start().len());
                        let source = source.get_or_insert_with(|| Source::new(path, text.to_string()));
                        self.context.push(Diagnostic {
                            severity: Severity::Error,
                            source: source.clone(),
                            span: Some(at..at + network.len()),
                            key: KEY.to_owned(),
                            message,
                            expected: Some(units::NETWORK_FORM.to_owned()),
                            help: None,
                            related: None,
                        });
                    }
                }
            }
            line_start += line.len();
        }
    }

    fn check_listeners(&self, listeners: &[schema::Listener], buffer_budget: usize) {
        self.check_names("listener.name", listeners.iter().map(|listener| &listener.name));
        let mut seen: HashMap<SocketAddr, &str> = HashMap::new();
        let all = || {
            let addresses = |listener: &'_ schema::Listener| {
                listener.addresses.iter().map(|at| at.value).collect::<Vec<_>>()
            };
            listeners.iter().flat_map(move |listener| {
                addresses(listener).into_iter().map(|at| (&listener.name.value, at))
            })
        };
        for listener in listeners {
            let name = listener.name.value.as_str();
            for At { value, span } in &listener.addresses {
                if let Some(other) = seen.insert(*value, name) {
                    let message = format!("{value} is an address of listener \"{other}\" already");
                    self.error("listener.address", span.as_ref(), message, "each address once");
                } else if let Some((other, by)) =
                    all().find(|(_, other)| other != value && listener::is_within(*value, *other))
                {
                    // Linux would take both, and the order of binding would decide which of them gets a
                    // connection.
                    let message = format!("{value} is covered by {by}, an address of listener \"{other}\"");
                    self.error("listener.address", span.as_ref(), message, "one of both, or another port");
                }
            }
            if listener.limits.header_bytes > buffer_budget {
                let message = "one request head would not fit into process.buffer_budget".to_owned();
                let expected = format!("at most {}", units::show_size(buffer_budget as u64));
                self.error(
                    "listener.limits.header_bytes",
                    listener.header_bytes_at.as_ref(),
                    message,
                    &expected,
                );
            }
        }
        let addresses: usize = listeners.iter().map(|listener| listener.addresses.len()).sum();
        if addresses > ADDRESSES_MAX {
            let message = format!("{addresses} addresses in all");
            let last = listeners
                .iter()
                .flat_map(|listener| &listener.addresses)
                .next_back()
                .and_then(|at| at.span.as_ref());
            self.error("listener.address", last, message, &format!("at most {ADDRESSES_MAX}"));
        }
    }

    fn check_names<'n>(&self, key: &str, names: impl Iterator<Item = &'n At<String>>) {
        let mut seen = HashSet::new();
        for At { value, span } in names.filter(|name| !name.value.is_empty()) {
            if !seen.insert(value) {
                self.error(key, span.as_ref(), format!("\"{value}\" is taken already"), "a unique name");
            }
        }
    }

    fn check_admin(&self, admin: Option<&At<SocketAddr>>, listeners: &[schema::Listener]) {
        let Some(At { value: admin, span }) = admin else { return };
        if !admin.ip().to_canonical().is_loopback() {
            let message = format!(
                "{admin} is beyond loopback: everybody who reaches it reads metrics and status, without a \
                 password; guard it by a firewall, or use 127.0.0.1"
            );
            self.context.warn("admin.address", span.clone(), message);
        }
        for listener in listeners {
            if let Some(taken) = listener
                .addresses
                .iter()
                .find(|address| covers(address.value, *admin) || covers(*admin, address.value))
            {
                let name = &listener.name.value;
                // A default has no place; the listener's address has.
                let (key, span, message) = match span {
                    Some(span) => {
                        ("admin.address", Some(span), format!("{admin} is taken by listener \"{name}\""))
                    }
                    None => (
                        "listener.address",
                        taken.span.as_ref(),
                        format!("{} is taken by admin.address, {admin}", taken.value),
                    ),
                };
                self.error(key, span, message, "another port; or admin.address = \"\" for none");
            }
        }
    }

    fn check_upstreams(
        &self,
        upstreams: &[schema::Upstream],
        routes: &[schema::Route],
        listeners: &[schema::Listener],
        admin: Option<&At<SocketAddr>>,
    ) {
        self.check_names("upstream.name", upstreams.iter().map(|upstream| &upstream.name));
        let own = || {
            listeners.iter().flat_map(|listener| {
                listener.addresses.iter().map(move |address| (&listener.name.value, address.value))
            })
        };
        let led_to: HashSet<&str> = routes.iter().filter_map(schema::Route::upstream).collect();
        for upstream in upstreams {
            let mut seen = HashSet::new();
            for At { value: endpoint, span } in &upstream.endpoints {
                if !seen.insert(endpoint.address) {
                    self.error(
                        "upstream.endpoints",
                        span.as_ref(),
                        format!("{} is listed twice", endpoint.address),
                        "each endpoint once",
                    );
                }
                if let Some((name, _)) = own().find(|(_, address)| reaches(endpoint.address, *address)) {
                    let message = format!(
                        "{} is listener \"{name}\" itself: requests would go round",
                        endpoint.address
                    );
                    self.context.warn("upstream.endpoints", span.clone(), message);
                } else if admin.is_some_and(|admin| reaches(endpoint.address, admin.value)) {
                    let message = format!(
                        "{} is admin.address: clients would reach the admin endpoints",
                        endpoint.address
                    );
                    self.context.warn("upstream.endpoints", span.clone(), message);
                }
            }
            let name = &upstream.name;
            let is_listened =
                || listeners.iter().flat_map(|listener| &listener.upstream).any(|at| at.value == name.value);
            if !name.value.is_empty() && !led_to.contains(name.value.as_str()) && !is_listened() {
                self.context.warn(
                    "upstream.name",
                    name.span.clone(),
                    format!("no route leads to \"{}\"", name.value),
                );
            }
        }
    }
}

fn index(upstreams: &[schema::Upstream]) -> BTreeMap<&str, usize> {
    upstreams
        .iter()
        .enumerate()
        .rev()
        .map(|(index, upstream)| (upstream.name.value.as_str(), index))
        .collect()
}

/// Whether a socket bound to `bound` takes connections to `address`.
fn covers(bound: SocketAddr, address: SocketAddr) -> bool {
    let any = match bound.ip() {
        IpAddr::V4(ip) => ip.is_unspecified() && address.is_ipv4(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    bound.port() == address.port() && (any || bound.ip() == address.ip())
}

/// Whether connecting to `endpoint` surely reaches a socket of this machine that is bound to `bound`. Which
/// other addresses are this machine's, a pure function cannot know.
fn reaches(endpoint: SocketAddr, bound: SocketAddr) -> bool {
    let local = endpoint.ip().is_loopback() || endpoint.ip().is_unspecified();
    endpoint == bound || (local && covers(bound, endpoint))
}

fn model_of(upstream: schema::Upstream, tls: Option<Arc<ClientTls>>) -> Arc<Upstream> {
    Arc::new(Upstream {
        name: upstream.name.value.into(),
        endpoints: upstream.endpoints.into_iter().map(|at| at.value).collect(),
        connect_timeout: upstream.connect_timeout,
        source: upstream.source,
        send_proxy: upstream.send_proxy,
        tls,
        pool: upstream.pool,
        retry: upstream.retry,
    })
}
