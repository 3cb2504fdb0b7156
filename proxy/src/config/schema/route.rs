//! `[[route]]` as written: the requests that it takes, its action on them, and the changes to their fields.

use std::collections::HashSet;
use std::ops::Range;
use std::time::Duration;

use super::{GIB, KIB, MIB, SECOND, TIMEOUT};
use crate::config::read::{At, Table, nearest};
use crate::config::units::quote;
use crate::http::edit::{EditError, Edits, Side};
use crate::http::grammar::is_field_content;
use crate::http::path::{self, PathError};
use crate::http::redirect::{PLACEHOLDERS, Template, TemplateError};
use crate::route::Host;
use crate::route::host::HostError;
use crate::route::model::{Redirect, Respond, RoutePath};

/// The largest `respond.body`: larger ones are files, which a proxy does not serve.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Fields that `set`, `add` and `remove` of one table name together.
const EDITS_MAX: usize = 64;
/// Bytes of the fields that one table sets and adds.
const EDIT_BYTES_MAX: usize = 16 << 10;

/// Keys that only requests have, not connections.
const OF_HTTP: [&str; 11] = [
    "path_prefix",
    "path",
    "redirect",
    "respond",
    "client_cert",
    "request_headers",
    "response_headers",
    "timeout",
    "body_timeout",
    "buffer_request",
    "buffer_response",
];

/// `[[route]]`
#[derive(Debug)]
pub(in crate::config) struct Route {
    /// Empty: any.
    pub(in crate::config) hosts: Vec<At<Host>>,
    pub(in crate::config) path: At<RoutePath>,
    pub(in crate::config) listeners: Vec<At<String>>,
    /// `None`: reported.
    pub(in crate::config) action: Option<Action>,
    /// `None`: absent or reported.
    pub(in crate::config) client_cert: Option<At<()>>,
    pub(in crate::config) request_headers: Option<Box<Edits>>,
    pub(in crate::config) response_headers: Option<Box<Edits>>,
    pub(in crate::config) timeout: Duration,
    pub(in crate::config) body_timeout: Duration,
    pub(in crate::config) buffer_request: At<u64>,
    pub(in crate::config) buffer_response: At<u64>,
    /// The table's header.
    pub(in crate::config) span: Option<Range<usize>>,
    /// The keys beside hosts, listeners and an upstream, and where they are written.
    pub(in crate::config) of_http: Vec<At<&'static str>>,
    /// Its host, path or listener was reported: comparing it with other routes would only confuse.
    pub(in crate::config) is_doubtful: bool,
}

/// The action on its requests.
#[derive(Debug)]
pub(in crate::config) enum Action {
    Upstream(At<String>),
    Redirect(Redirect),
    Respond(Respond),
}

pub(super) fn route(mut table: Table<'_, '_>) -> Route {
    let of_http = OF_HTTP
        .iter()
        .filter(|key| table.has(key))
        .map(|key| At { value: *key, span: table.value_span(key) })
        .collect();
    let hosts = hosts(&mut table);
    let path = route_path(&mut table);
    let listeners = table.strings("listener", true);
    let is_doubtful = hosts.is_none() || path.is_none();
    let action = action(&mut table);
    let route = Route {
        hosts: hosts.unwrap_or_default(),
        path: path.unwrap_or(At { value: RoutePath::Prefix("/".into()), span: None }),
        listeners,
        client_cert: client_cert(&mut table),
        request_headers: edits(table.table("request_headers"), Side::Request),
        response_headers: edits(table.table("response_headers"), Side::Response),
        timeout: table.duration("timeout", 60 * SECOND, TIMEOUT),
        body_timeout: table.duration("body_timeout", 60 * SECOND, TIMEOUT),
        buffer_request: table.size("buffer_request", MIB, 0..=GIB),
        buffer_response: table.size("buffer_response", 64 * KIB, 4 * KIB..=GIB),
        span: table.span(),
        action,
        of_http,
        is_doubtful,
    };
    if matches!(route.action, Some(Action::Redirect(_) | Action::Respond(_))) {
        for key in ["request_headers", "timeout", "body_timeout", "buffer_response", "buffer_request"] {
            table.warn_if_written(key, "has no effect: no endpoint gets this route's requests");
        }
    }
    table.finish();
    route
}

/// The one word that it knows.
fn client_cert(table: &mut Table<'_, '_>) -> Option<At<()>> {
    const FORM: &str = "\"require\"";
    table.parsed("client_cert", FORM, |text| match text {
        "require" => Ok(()),
        _ => Err(format!("{} is unknown", quote(text))),
    })
}

/// `None`: something was wrong.
fn hosts(table: &mut Table<'_, '_>) -> Option<Vec<At<Host>>> {
    const KEY: &str = "host";
    const FORM: &str = "a host name, \"*.\" and a name, or an IPv6 address in brackets, without a port";
    let written = table.has(KEY);
    let texts = table.strings(KEY, true);
    if table.is_empty_list(KEY) {
        table.error(
            KEY,
            table.value_span(KEY),
            "is empty".to_owned(),
            "at least one host, or no such key: any host",
        );
    }
    let count = texts.len();
    let mut seen = HashSet::new();
    let mut hosts = Vec::with_capacity(count);
    for At { value: text, span } in texts {
        match Host::parse(&text) {
            Ok(host) if !seen.insert(host.clone()) => {
                table.error(KEY, span, format!("{} is listed twice", quote(&text)), "each host once");
            }
            Ok(value) => hosts.push(At { value, span }),
            Err(error) => {
                let help = match error {
                    HostError::Empty => Some("leave `host` out to take any host".to_owned()),
                    HostError::NotAscii => {
                        Some("write \"xn--bcher-kva.example\" for \"bücher.example\", say".to_owned())
                    }
                    HostError::Port => {
                        text.rsplit_once(':').map(|(host, _)| format!("write {}", quote(host)))
                    }
                    HostError::Ipv6 => {
                        let address = text.trim_matches(['[', ']']);
                        address
                            .parse::<std::net::Ipv6Addr>()
                            .ok()
                            .map(|address| format!("write \"[{address}]\""))
                    }
                    HostError::Wildcard => text.rsplit_once('*').map(|(_, rest)| {
                        let name = rest.trim_start_matches('.');
                        format!("write \"*.{}\"", if name.is_empty() { "example.com" } else { name })
                    }),
                    _ => None,
                };
                table.error_with_help(KEY, span, format!("{} {error}", quote(&text)), FORM, help);
            }
        }
    }
    (!written || (!hosts.is_empty() && hosts.len() == count)).then_some(hosts)
}

/// `None`: it was wrong.
fn route_path(table: &mut Table<'_, '_>) -> Option<At<RoutePath>> {
    const FORM: &str = "a path such as \"/\" or \"/api\"";
    let text = |text: &str| Ok(text.to_owned());
    let (has_prefix, has_exact) = (table.has("path_prefix"), table.has("path"));
    let prefix =
        table.parsed("path_prefix", FORM, text).and_then(|at| checked_path(table, "path_prefix", at));
    let exact = table.parsed("path", FORM, text).and_then(|at| checked_path(table, "path", at));
    if has_prefix && has_exact {
        table.error("path", table.value_span("path"), "is beside `path_prefix`".to_owned(), "one of both");
        return None;
    }
    match (prefix, exact) {
        (Some(At { value, span }), _) => Some(At { value: RoutePath::Prefix(value.into()), span }),
        (_, Some(At { value, span })) => Some(At { value: RoutePath::Exact(value.into()), span }),
        _ if has_prefix || has_exact => None,
        _ => Some(At { value: RoutePath::Prefix("/".into()), span: None }),
    }
}

/// Only a path in the form that paths are routed in can match one.
fn checked_path(
    table: &Table<'_, '_>,
    key: &str,
    At { value: text, span }: At<String>,
) -> Option<At<String>> {
    const FORM: &str =
        "a path as it is routed: from the first slash on, percent-encoded, without query and dot segments";
    let shown = quote(&text);
    let is_forbidden = |letter: char| !letter.is_ascii_graphic() || matches!(letter, '#' | '?' | '\\');
    let (message, help) = match path::normalise(text.as_bytes(), path::Rules::KEEP) {
        _ if text.contains('?') => (
            format!("{shown} contains '?', which a path never does"),
            text.split('?').next().map(str::to_owned),
        ),
        Ok(normal) if normal == text => return Some(At { value: text, span }),
        Ok(normal) if text.split('/').any(is_dots) => (
            format!("{shown} has a dot segment, which paths no longer have when they are routed"),
            Some(normal.into_owned()),
        ),
        Ok(normal) => (
            format!("{shown} is never what is routed: paths are normalised first"),
            Some(normal.into_owned()),
        ),
        Err(PathError::NotAbsolute) => {
            let fixed = format!("/{text}");
            let is_path =
                path::normalise(fixed.as_bytes(), path::Rules::KEEP).is_ok_and(|normal| normal == fixed);
            (format!("{shown} does not begin with '/'"), is_path.then_some(fixed))
        }
        Err(PathError::ForbiddenByte) => {
            let letter = text.chars().find(|letter| is_forbidden(*letter)).unwrap_or_default();
            let encoded: String = text
                .chars()
                .map(|letter| if is_forbidden(letter) { percent(letter) } else { letter.into() })
                .collect();
            (format!("{shown} contains {letter:?}, which a path never does"), Some(encoded))
        }
        Err(error) => (format!("{shown} has {}", error.to_string().trim_start_matches("an ")), None),
    };
    // A text that cannot be shown in a line is no suggestion.
    let help =
        help.filter(|fixed| fixed.len() <= 60 && !fixed.is_empty()).map(|fixed| format!("write \"{fixed}\""));
    table.error_with_help(key, span, message, FORM, help);
    None
}

fn is_dots(segment: &str) -> bool {
    matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..")
}

fn percent(letter: char) -> String {
    letter.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Exactly one of `upstream`, `redirect` and `respond`.
fn action(table: &mut Table<'_, '_>) -> Option<Action> {
    const FORM: &str = "the name of an [[upstream]]; or redirect = { to = \"https://{host}{uri}\" }, or \
        respond = { status = 200, body = \"ok\" }";
    let written: Vec<&str> =
        ["upstream", "redirect", "respond"].into_iter().filter(|key| table.has(key)).collect();
    if written.is_empty() {
        table.missing("upstream", FORM);
    }
    for key in written.iter().skip(1) {
        let message = format!("is beside `{}`", written[0]);
        table.error(key, table.value_span(key), message, "exactly one of upstream, redirect and respond");
    }
    let upstream = table.string("upstream").map(Action::Upstream);
    let redirect =
        if table.has("redirect") { redirect(table.table("redirect")) } else { table.absent("redirect") };
    let respond =
        if table.has("respond") { respond(table.table("respond")) } else { table.absent("respond") };
    upstream.or(redirect.map(Action::Redirect)).or(respond.map(Action::Respond))
}

fn redirect(mut table: Table<'_, '_>) -> Option<Redirect> {
    const FORM: &str = "a URL such as \"https://{host}{uri}\", or a path such as \"/new{path}\"";
    if table.is_present() && !table.has("to") {
        table.missing("to", FORM);
    }
    let to = table.string("to");
    let status = table.integer("status", 308, 301..=308);
    if matches!(status.value, 304..=306) {
        let message = format!("{} is no redirect", status.value);
        table.error("status", status.span, message, "301, 302, 303, 307 or 308");
    }
    let to = to.and_then(|At { value: text, span }| match Template::parse(&text) {
        Ok(template) => Some(template),
        Err(error) => {
            let help = match &error {
                TemplateError::Unknown(name) => {
                    let near = nearest(name, &PLACEHOLDERS).map(|known| format!("did you mean {{{known}}}?"));
                    near.or_else(|| Some(format!("there are {{{}}}", PLACEHOLDERS.join("}, {"))))
                }
                TemplateError::NotAnchored => {
                    Some("begin with \"https://{host}\", or with a path of your own".to_owned())
                }
                TemplateError::Character(letter) if !letter.is_ascii_control() => {
                    Some(format!("write {}", percent(*letter)))
                }
                TemplateError::InHost(_) => Some("put a '/' or {path} after the host".to_owned()),
                _ => None,
            };
            table.error_with_help("to", span, format!("{} {error}", quote(&text)), FORM, help);
            None
        }
    });
    table.finish();
    Some(Redirect { status: u16::try_from(status.value).ok()?, to: to? })
}

fn respond(mut table: Table<'_, '_>) -> Option<Respond> {
    let status = table.integer("status", 200, 200..=599).value;
    let body = table.string("body").unwrap_or(At { value: String::new(), span: None });
    let content_type = |text: &str| {
        let right = !text.is_empty() && text.bytes().all(is_field_content) && text.trim() == text;
        if right { Ok(text.to_owned()) } else { Err(format!("{} is no media type", quote(text))) }
    };
    let content_type =
        table.parsed("content_type", "a media type such as \"text/html; charset=utf-8\"", content_type);
    if matches!(status, 204 | 205 | 304) && !body.value.is_empty() {
        let message = format!("is not empty, but a {status} response has none");
        table.error("body", body.span.clone(), message, "no body, or another status");
    }
    if body.value.len() > BODY_BYTES_MAX {
        let message = format!("has {} bytes", body.value.len());
        table.error("body", body.span.clone(), message, &format!("at most {BODY_BYTES_MAX}"));
    }
    table.finish();
    Some(Respond {
        status: u16::try_from(status).ok()?,
        content_type: content_type.map_or_else(|| "text/plain; charset=utf-8".into(), |at| at.value.into()),
        body: body.value.into_bytes().into(),
    })
}

/// `{ set = {}, add = {}, remove = [] }`; `None`: no changes.
fn edits(mut table: Table<'_, '_>, side: Side) -> Option<Box<Edits>> {
    const FIELD: &str = "a field's name and its value as a string";
    let mut edits = Edits::default();
    let removed = table.strings("remove", false);
    let mut set = table.table("set");
    let mut add = table.table("add");
    let (to_set, to_add) = (set.pairs(false), add.pairs(true));
    let mut seen = HashSet::new();
    for (name, value) in &to_set {
        if !seen.insert(name.value.to_ascii_lowercase()) {
            set.error(
                &name.value,
                name.span.clone(),
                "is set already, in another spelling".to_owned(),
                "each field once",
            );
        } else if let Err(error) = edits.set(side, &name.value, &value.value) {
            set.error_with_help(
                &name.value,
                blamed(error, name, value),
                show(error, side),
                FIELD,
                advice(error),
            );
        }
    }
    for (name, value) in &to_add {
        if let Err(error) = edits.add(side, &name.value, &value.value) {
            add.error_with_help(
                &name.value,
                blamed(error, name, value),
                show(error, side),
                FIELD,
                advice(error),
            );
        }
    }
    for name in &removed {
        if seen.contains(&name.value.to_ascii_lowercase()) {
            let message = format!("{} is in `set` too, which replaces what is there", quote(&name.value));
            table.error("remove", name.span.clone(), message, "one of both");
        } else if let Err(error) = edits.remove(side, &name.value) {
            let message = format!("{} {}", quote(&name.value), show(error, side));
            table.error_with_help("remove", name.span.clone(), message, "names of fields", advice(error));
        }
    }
    let count = to_set.len() + to_add.len() + removed.len();
    let bytes: usize =
        to_set.iter().chain(&to_add).map(|(name, value)| name.value.len() + value.value.len()).sum();
    if count > EDITS_MAX || bytes > EDIT_BYTES_MAX {
        let message = format!("changes {count} fields with {bytes} bytes");
        table.error_of_all(message, &format!("at most {EDITS_MAX} fields and {EDIT_BYTES_MAX} bytes"));
    }
    table.finish();
    (!edits.is_empty()).then(|| Box::new(edits))
}

/// The name or the value.
fn blamed(error: EditError, name: &At<String>, value: &At<String>) -> Option<Range<usize>> {
    let is_value = matches!(error, EditError::Value | EditError::OuterSpace | EditError::HostValue);
    if is_value { value.span.clone() } else { name.span.clone() }
}

fn show(error: EditError, side: Side) -> String {
    match (error, side) {
        (
            EditError::Framing | EditError::HopByHop | EditError::Expect | EditError::RequestId,
            Side::Request,
        ) => {
            format!("cannot be changed in a request: it {error}")
        }
        (EditError::Framing | EditError::HopByHop | EditError::Expect, Side::Response) => {
            format!("cannot be changed in a response: it {error}")
        }
        _ => error.to_string(),
    }
}

fn advice(error: EditError) -> Option<String> {
    let text = match error {
        EditError::HostOnce => "write set = { Host = \"app.internal\" }",
        EditError::Name => "write letters, digits and '-'",
        EditError::Value | EditError::HostValue | EditError::HostInResponse => return None,
        EditError::OuterSpace => "take the white space off",
        EditError::Framing
        | EditError::HopByHop
        | EditError::Expect
        | EditError::Proxy
        | EditError::RequestId => "leave it out",
    };
    Some(text.to_owned())
}
