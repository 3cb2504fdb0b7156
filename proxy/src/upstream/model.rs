//! An upstream as its configuration says it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::tls::client::ClientTls;

/// `[[upstream]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Unique.
    pub name: Arc<str>,
    /// At least one.
    pub endpoints: Vec<Endpoint>,
    /// How long a connect may take.
    pub connect_timeout: Duration,
    /// `upstream.source`: local addresses to connect from, each used in turn for endpoints of its family.
    /// Empty: the kernel chooses.
    pub source: Vec<IpAddr>,
    /// Each connection begins with a PROXY header, version 2, and carries one exchange or one tunnel.
    pub send_proxy: bool,
    /// `upstream.tls`; `None`: its endpoints speak none.
    pub tls: Option<Arc<ClientTls>>,
    /// `upstream.pool`
    pub pool: PoolLimits,
    /// `upstream.retry`
    pub retry: Retry,
}

/// One address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to connect.
    pub address: SocketAddr,
    /// As written, for logs and metrics.
    pub label: Arc<str>,
    /// Share of the requests, relative to the others', up to 256; 0: none.
    pub weight: u32,
}

/// `upstream.pool`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PoolLimits {
    /// Idle connections that each worker keeps. Those above leave sooner; 0: none is kept.
    pub max_idle: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// How long any connection is reused.
    pub max_lifetime: Duration,
}

/// `upstream.retry`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all, over pooled connections too.
    pub attempts: u32,
    /// The failures that another attempt follows.
    pub on: RetryOn,
}

/// `upstream.retry.on`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOn {
    /// `"connect-failure"`: no connection, or no TLS over it.
    pub connect_failure: bool,
    /// `"reset-before-response"`: the endpoint closed or reset before a byte of its response.
    pub reset_before_response: bool,
}

impl Default for RetryOn {
    /// All.
    fn default() -> Self {
        Self { connect_failure: true, reset_before_response: true }
    }
}
