//! The TOML as written: every key of the interface with its type, unit, default and bounds, one function a
//! table. Listeners, routes and upstreams have files of their own. A check of one key alone is here, a check
//! of several tables or files in `resolve`.

use std::net::{IpAddr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::model::{self, LogFormat};
use super::read::{At, Literal, Table};
use super::{hints, units};
use crate::io::settings::Ring;
use crate::kernel::guard::{Fragments, GuardMode, SynCookies};
use crate::kernel::steering::{Steering, SteeringPolicy};
use crate::sandbox::Sandbox;
pub(super) use listener::{Listener, Protocol};
pub(super) use route::{Action, Route};
pub(super) use tls::{Certificate, ClientTls, Tls};
pub(super) use upstream::Upstream;

mod listener;
mod route;
mod tls;
mod upstream;

/// The longest path of `process.run_dir`: a socket's file name and its 108 byte limit (`unix(7)`) leave this
/// much.
const RUN_DIR_BYTES_MAX: usize = 80;
/// The longest name of a listener or upstream, which is a metric label.
const NAME_BYTES_MAX: usize = 64;
/// The longest interface name (IFNAMSIZ less its terminating zero).
const INTERFACE_BYTES_MAX: usize = 15;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// Bounds of timeouts: shorter than a timer tick cannot be kept, longer than a day is a mistake.
const TIMEOUT: RangeInclusive<Duration> = MILLISECOND..=DAY;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A whole file.
#[derive(Debug)]
pub(super) struct Schema {
    pub(super) process: Process,
    pub(super) workers: Workers,
    pub(super) ring: Ring,
    pub(super) steering: Steering,
    pub(super) guard: Guard,
    pub(super) listeners: Vec<Listener>,
    /// No listener is written, rather than wrong ones.
    pub(super) lacks_listeners: bool,
    pub(super) routes: Vec<Route>,
    pub(super) upstreams: Vec<Upstream>,
    pub(super) admin: Option<At<SocketAddr>>,
    pub(super) log: model::Log,
}

/// `[process]`, and where two of its keys are written.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) model: model::Process,
    pub(super) run_dir_at: Option<Range<usize>>,
    pub(super) user_at: Option<Range<usize>>,
}

/// `[workers]`
#[derive(Debug)]
pub(super) struct Workers {
    pub(super) count: At<Option<usize>>,
    pub(super) cpus: At<Option<Vec<usize>>>,
    pub(super) control_cpus: At<Option<Vec<usize>>>,
    pub(super) numa_local: bool,
    pub(super) stuck_after: Duration,
}

/// `[guard]`
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) interfaces: Vec<At<String>>,
    pub(super) mode: GuardMode,
    pub(super) dry_run: bool,
    pub(super) allow: Vec<At<IpNet>>,
    pub(super) deny: Vec<At<IpNet>>,
    pub(super) deny_file: Option<At<PathBuf>>,
    pub(super) syn_rate_per_ip: Option<u32>,
    pub(super) syn_burst_per_ip: u32,
    pub(super) ban_for: Duration,
    /// 0: no limit.
    pub(super) connections_per_ip: u32,
    pub(super) syn_cookies: SynCookies,
    pub(super) syn_cookies_rate: u32,
    pub(super) fragments: Fragments,
}

/// Reads the outermost table. Its result may be used only when no error was reported.
pub(super) fn read(mut root: Table<'_, '_>) -> Schema {
    let schema = Schema {
        process: process(root.table("process")),
        workers: workers(root.table("workers")),
        ring: ring(root.table("ring")),
        steering: steering(root.table("steering")),
        guard: guard(root.table("guard")),
        lacks_listeners: !root.has("listener") || root.is_empty_list("listener"),
        listeners: root.tables("listener").into_iter().map(listener::listener).collect(),
        routes: root.tables("route").into_iter().map(route::route).collect(),
        upstreams: root.tables("upstream").into_iter().map(upstream::upstream).collect(),
        admin: admin(root.table("admin")),
        log: log(root.table("log")),
    };
    root.finish();
    schema
}

fn process(mut table: Table<'_, '_>) -> Process {
    let run_dir = table.parsed("run_dir", "an absolute path such as \"/run/sluice\"", run_dir);
    let user = table.parsed("user", "a user's name", user);
    let run_dir = run_dir.unwrap_or_else(|| At { value: PathBuf::from("/run/sluice"), span: None });
    let user = user.unwrap_or_else(|| At { value: "nobody".to_owned(), span: None });
    let model = model::Process {
        run_dir: run_dir.value,
        user: user.value,
        drain_timeout: table.duration("drain_timeout", 30 * SECOND, TIMEOUT),
        drain_delay: table.duration("drain_delay", Duration::ZERO, Duration::ZERO..=HOUR),
        watchdog: table.parsed("watchdog", WATCHDOG_FORM, watchdog).map_or(Some(15 * SECOND), |at| at.value),
        max_connections: table.integer("max_connections", 0, 0..=i64::MAX as u64).value,
        buffer_budget: to_usize(table.size("buffer_budget", 64 * MIB, MIB..=64 * GIB).value),
        sandbox: table.choice(
            "sandbox",
            &[("auto", Sandbox::Auto), ("require", Sandbox::Require), ("off", Sandbox::Off)],
            &[],
        ),
    };
    table.finish();
    Process { model, run_dir_at: run_dir.span, user_at: user.span }
}

const WATCHDOG_FORM: &str = "\"off\" or a duration from 1s to 1d";

/// Below a second, a busy machine could be taken for a data plane that hangs.
fn watchdog(text: &str) -> Result<Option<Duration>, String> {
    if text == "off" {
        return Ok(None);
    }
    let patience = units::duration(text)?;
    if (SECOND..=DAY).contains(&patience) {
        Ok(Some(patience))
    } else {
        Err(format!("{} is not within 1s to 1d", units::quote(text)))
    }
}

fn run_dir(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| path.is_absolute()) else {
        return Err(format!("{} is not an absolute path with a last component", units::quote(text)));
    };
    if text.len() > RUN_DIR_BYTES_MAX {
        return Err(format!(
            "is longer than {RUN_DIR_BYTES_MAX} bytes, which leaves no room for a socket's name"
        ));
    }
    if name.bytes().any(|byte| byte.is_ascii_control() || byte.is_ascii_whitespace()) {
        return Err("its last component names the instance and must not contain spaces".to_owned());
    }
    Ok(path)
}

fn user(text: &str) -> Result<String, String> {
    let wrong = text.is_empty()
        || text.contains(|letter: char| letter.is_whitespace() || letter.is_control() || letter == ':');
    if wrong { Err(format!("{} is not a user's name", units::quote(text))) } else { Ok(text.to_owned()) }
}

fn workers(mut table: Table<'_, '_>) -> Workers {
    let workers_max = u64::from(proxy_common::steer::WORKERS_MAX);
    let count = if table.is_text("count") {
        let form = format!("\"auto\" or a whole number from 1 to {workers_max}");
        let auto = |text: &str| {
            if text == "auto" { Ok(None) } else { Err(format!("{} is unknown", units::quote(text))) }
        };
        table.parsed("count", &form, auto).unwrap_or(At { value: None, span: None })
    } else {
        let written = table.has("count");
        let At { value, span } = table.integer("count", 1, 1..=workers_max);
        At { value: written.then(|| to_usize(value)), span }
    };
    let cpus = |text: &str| if text == "auto" { Ok(None) } else { units::cpus(text).map(Some) };
    let form = format!("\"auto\" or {}", units::CPUS_FORM);
    let default = || At { value: None, span: None };
    let workers = Workers {
        count,
        cpus: table.parsed("cpus", &form, cpus).unwrap_or_else(default),
        control_cpus: table.parsed("control_cpus", &form, cpus).unwrap_or_else(default),
        numa_local: table.choice("numa", &[("local", true), ("off", false)], &[]),
        stuck_after: table.duration("stuck_after", 5 * SECOND, 10 * MILLISECOND..=HOUR),
    };
    table.not_built("busy_poll", Some(Literal::Duration(Duration::ZERO)));
    table.finish();
    workers
}

fn ring(mut table: Table<'_, '_>) -> Ring {
    let ring = Ring {
        // IORING_MAX_ENTRIES, and the most buffers that one buffer ring can hold
        // (io_uring_register_buf_ring(3)).
        entries: to_u32(power_of_two(&mut table, "entries", 4096, 64..=32_768)),
        buffers: u16::try_from(power_of_two(&mut table, "buffers", 4096, 16..=32_768)).unwrap_or(u16::MAX),
        buffer_size: {
            let size = table.size("buffer_size", 4 * KIB, KIB..=MIB);
            table.check_power_of_two("buffer_size", &size, units::show_size);
            to_u32(size.value)
        },
    };
    table.finish();
    ring
}

fn power_of_two(
    table: &mut Table<'_, '_>,
    key: &'static str,
    default: u64,
    bounds: RangeInclusive<u64>,
) -> u64 {
    let number = table.integer(key, default, bounds);
    table.check_power_of_two(key, &number, |number| number.to_string());
    number.value
}

fn steering(mut table: Table<'_, '_>) -> Steering {
    let policies = [
        ("least-loaded", SteeringPolicy::LeastLoaded),
        ("numa-local", SteeringPolicy::NumaLocal),
        ("hash", SteeringPolicy::Hash),
    ];
    let policy = table.choice("policy", &policies, &[]);
    table.finish();
    Steering { policy }
}

fn guard(mut table: Table<'_, '_>) -> Guard {
    let interfaces = table.strings("interfaces", false);
    for At { value, span } in &interfaces {
        let wrong =
            |letter: char| letter.is_whitespace() || letter.is_control() || matches!(letter, '/' | ':');
        if value.is_empty()
            || value.len() > INTERFACE_BYTES_MAX
            || value.contains(wrong)
            || matches!(value.as_str(), "." | "..")
        {
            let message = format!("{} is not an interface's name", units::quote(value));
            table.error("interfaces", span.clone(), message, "a name such as \"eth0\"");
        }
    }
    let rate = |text: &str| match text {
        "off" => Ok(None),
        // The guard counts in nanoseconds per SYN.
        _ => units::rate(text).and_then(|rate| {
            if rate > 1_000_000_000 {
                Err(format!("{} is too high", units::quote(text)))
            } else {
                Ok(Some(rate))
            }
        }),
    };
    let guard = Guard {
        interfaces,
        mode: table.choice(
            "mode",
            &[("auto", GuardMode::Auto), ("driver", GuardMode::Driver), ("generic", GuardMode::Generic)],
            &[],
        ),
        dry_run: table.boolean("dry_run", false),
        allow: table.networks("allow"),
        deny: table.networks("deny"),
        deny_file: table.parsed("deny_file", "a file's path", file_path),
        syn_rate_per_ip: table
            .parsed("syn_rate_per_ip", &format!("\"off\" or {}", units::RATE_FORM), rate)
            .map_or(Some(1000), |at| at.value),
        syn_burst_per_ip: to_u32(table.integer("syn_burst_per_ip", 2000, 1..=u64::from(u32::MAX)).value),
        ban_for: table.duration("ban_for", MINUTE, model::BAN_FOR),
        // One entry of the guard's table of sources counts that far.
        connections_per_ip: to_u32(table.integer("connections_per_ip", 1024, 0..=65_535).value),
        syn_cookies: table.choice(
            "syn_cookies",
            &[("auto", SynCookies::Auto), ("always", SynCookies::Always), ("off", SynCookies::Off)],
            &[],
        ),
        syn_cookies_rate: table
            .parsed("syn_cookies_rate", units::RATE_FORM, |text| {
                units::rate(text).and_then(|rate| match rate {
                    1..=1_000_000_000 => Ok(rate),
                    _ => Err(format!("{} is too high", units::quote(text))),
                })
            })
            .map_or(100_000, |at| at.value),
        fragments: table.choice("fragments", &[("judge", Fragments::Judge), ("pass", Fragments::Pass)], &[]),
    };
    table.finish();
    guard
}

fn file_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        Err("is not a path".to_owned())
    } else {
        Ok(PathBuf::from(text))
    }
}

/// The required `name`; a wrong one is reported and read as empty.
fn name(table: &mut Table<'_, '_>) -> At<String> {
    const FORM: &str = "letters, digits, '.', '_' and '-', at most 64";
    let parse = |text: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let right = !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(allowed);
        if right { Ok(text.to_owned()) } else { Err(format!("{} is not a name", units::quote(text))) }
    };
    if !table.has("name") {
        table.missing("name", FORM);
    }
    table.parsed("name", FORM, parse).unwrap_or(At { value: String::new(), span: None })
}

/// An address with a port to bind; IPv4-mapped IPv6 becomes IPv4.
fn listen_address(
    table: &Table<'_, '_>,
    key: &str,
    At { value, span }: At<String>,
) -> Option<At<SocketAddr>> {
    match socket_address(&value) {
        Ok(value) => Some(At { value, span }),
        Err(message) => {
            let form = "an address with a port such as \"127.0.0.1:8080\" or \"[::]:443\"";
            table.error_with_help(key, span, message, form, hints::for_address(&value));
            None
        }
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let shown = units::quote(text);
    let address: SocketAddr = text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(_) => format!("{shown} has no port"),
        Err(_) => format!("{shown} is not an address with a port"),
    })?;
    if address.port() == 0 {
        return Err(format!("{shown} has port 0"));
    }
    Ok(match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    })
}

fn admin(mut table: Table<'_, '_>) -> Option<At<SocketAddr>> {
    let default = || Some(At { value: "127.0.0.1:9901".to_owned(), span: None });
    let written = table.has("address");
    let text = table.string("address").or_else(|| if written { None } else { default() });
    let address =
        text.filter(|text| !text.value.is_empty()).and_then(|text| listen_address(&table, "address", text));
    table.finish();
    address
}

fn log(mut table: Table<'_, '_>) -> model::Log {
    const LEVELS: [(&str, &str); 5] =
        [("info", "info"), ("error", "error"), ("warn", "warn"), ("debug", "debug"), ("trace", "trace")];
    let level = table.choice("level", &LEVELS, &[]).to_owned();
    let access = table.parsed("access", "\"off\", \"stdout\" or a file's path", access_log);
    let formats = [("auto", LogFormat::Auto), ("json", LogFormat::Json), ("text", LogFormat::Text)];
    let format = table.choice("format", &formats, &[]);
    let with_query = table.boolean("query", false);
    table.finish();
    model::Log { level, format, access: access.map_or(model::AccessLog::Off, |at| at.value), with_query }
}

fn access_log(text: &str) -> Result<model::AccessLog, String> {
    match text {
        "off" => Ok(model::AccessLog::Off),
        // As a path it could not be opened where standard output is a socket, as the journal's, or a pipe of
        // another user, as in containers.
        "stdout" | "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1" => Ok(model::AccessLog::Stdout),
        "on" | "stderr" => Err(format!(
            "\"{text}\" is neither a word that is known here nor a path; a file of that name is \"./{text}\""
        )),
        _ => file_path(text).map(model::AccessLog::File),
    }
}

/// Bounds checked before keep these exact on every machine that Sluice runs on.
fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn to_u32(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
