//! A route as configured: its requests, and the action on them.

use std::time::Duration;

use super::host::Host;
use crate::http::edit::Edits;
use crate::http::redirect::Template;

/// `[[route]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Empty: any.
    pub hosts: Vec<Host>,
    /// `path_prefix` or `path`
    pub path: RoutePath,
    /// Names; empty: all that speak HTTP.
    pub listeners: Vec<String>,
    /// Its name in logs: the first host, if it has one, and the path, with `=` before an exact one.
    pub label: Box<str>,
    /// The action on a request.
    pub action: Action,
    /// `client_cert`: a client that showed no certificate gets 403.
    pub client_cert: bool,
    /// Changes to the request for an endpoint; `None`: none.
    pub request_headers: Option<Box<Edits>>,
    /// Changes to the response for a client, an endpoint's or our own; `None`: none.
    pub response_headers: Option<Box<Edits>>,
    /// Request bodies of known length up to this many bytes are read whole before an endpoint is chosen; 0:
    /// none.
    pub buffer_request: u64,
    /// Until the response head.
    pub timeout: Duration,
    /// Between two reads of the response body.
    pub body_timeout: Duration,
    /// Read ahead of a slow client, then backpressure; bytes.
    pub buffer_response: usize,
}

impl Route {
    /// For every request, with the interface's defaults.
    #[must_use]
    pub fn new(action: Action) -> Self {
        let minute = Duration::from_secs(60);
        Self {
            hosts: Vec::new(),
            path: RoutePath::Prefix("/".into()),
            listeners: Vec::new(),
            label: "/".into(),
            action,
            client_cert: false,
            request_headers: None,
            response_headers: None,
            buffer_request: 1 << 20,
            timeout: minute,
            body_timeout: minute,
            buffer_response: 64 << 10,
        }
    }
}

/// Which paths a route takes, in the form that paths are routed in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RoutePath {
    /// This one.
    Exact(Box<str>),
    /// Paths that begin with it and go on at a segment boundary; `/`: all.
    Prefix(Box<str>),
}

/// The action on a route's requests.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Index into `Config::upstreams`.
    Upstream(usize),
    /// `redirect`
    Redirect(Redirect),
    /// `respond`
    Respond(Respond),
}

/// `route.redirect`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// For Location.
    pub to: Template,
}

/// `route.respond`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// Of a body that is not empty.
    pub content_type: Box<str>,
    /// Empty for 204, 205 and 304.
    pub body: Box<[u8]>,
}
