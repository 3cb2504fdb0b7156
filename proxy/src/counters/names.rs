//! The names of all counters: the counted event, the metric's name, and the cell in a block.

use crate::error::{
    CloseReason, Crowded, HandshakeFailure, HandshakeKind, PoolCloseReason, RefusalReason, ShedReason,
};
use crate::tls::alert::Alert;

/// Declares the plain counters and gauges with their metric name and help text.
macro_rules! plain {
    ($($(#[$meta:meta])* $variant:ident = $kind:ident $name:literal $help:literal,)*) => {
        /// A counter or gauge without a reason label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Plain { $($(#[$meta])* $variant,)* }

        impl Plain {
            /// All of them, in cell order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Metric name (without `_total` for counters), help text, and kind.
            #[must_use]
            pub const fn describe(self) -> (&'static str, &'static str, Kind) {
                match self { $(Self::$variant => ($name, $help, Kind::$kind),)* }
            }
        }
    };
}

/// Whether a cell only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, over data planes too.
    Counter,
    /// Goes up and down; reset when a data plane starts.
    Gauge,
}

plain! {
    /// Connections accepted.
    Accepted = Counter "sluice_connections_accepted" "Downstream connections accepted",
    /// Listening sockets that stopped to take accepts.
    AcceptFailures = Counter "sluice_accept_failures" "Times that a listening socket took no accept any \
        more: it was shut down, or made non-blocking",
    /// Listening sockets that take no accept now.
    ListenersFailing = Gauge "sluice_listeners_failing" "Listening sockets that take no accept now; not \
        ready meanwhile",
    /// Connections open now.
    Open = Gauge "sluice_connections_open" "Downstream connections open now",
    /// Requests whose head was parsed.
    Requests = Counter "sluice_requests" "Requests whose head was read",
    /// Exchanges in progress.
    Active = Gauge "sluice_requests_active" "Exchanges in progress",
    /// Responses 1xx.
    Responses1xx = Counter "sluice_responses_1xx" "Interim responses sent",
    /// Responses 2xx.
    Responses2xx = Counter "sluice_responses_2xx" "Responses sent with a 2xx status",
    /// Responses 3xx.
    Responses3xx = Counter "sluice_responses_3xx" "Responses sent with a 3xx status",
    /// Responses 4xx.
    Responses4xx = Counter "sluice_responses_4xx" "Responses sent with a 4xx status",
    /// Responses 5xx.
    Responses5xx = Counter "sluice_responses_5xx" "Responses sent with a 5xx status",
    /// Tunnels opened: TCP connections and HTTP upgrades.
    Tunnels = Counter "sluice_tunnels" "Tunnels opened: connections of tcp and tls-passthrough listeners, \
        and HTTP upgrades",
    /// Tunnels open now.
    TunnelsOpen = Gauge "sluice_tunnels_open" "Tunnels open now",
    /// Bytes received from clients.
    ReceivedBytes = Counter "sluice_downstream_received_bytes" "Bytes received from clients",
    /// Bytes sent to clients.
    SentBytes = Counter "sluice_downstream_sent_bytes" "Bytes sent to clients",
    /// Upstream connections opened.
    UpstreamConnects = Counter "sluice_upstream_connects" "Upstream connections opened",
    /// Upstream connects that failed.
    UpstreamConnectFailures = Counter "sluice_upstream_connect_failures" "Upstream connects that failed or \
        timed out",
    /// Requests served before their client's handshake was over.
    EarlyRequests = Counter "sluice_tls_early_requests" "Requests served from early data, before their \
        client's handshake was over",
    /// TLS handshakes that waited for a place.
    HandshakesWaited = Counter "sluice_tls_handshakes_waited" "TLS handshakes with clients that waited \
        because max_handshakes were under way",
    /// TLS handshakes with endpoints.
    UpstreamHandshakes = Counter "sluice_upstream_tls_handshakes" "TLS handshakes with endpoints",
    /// TLS handshakes with endpoints that failed.
    UpstreamHandshakeFailures = Counter "sluice_upstream_tls_handshake_failures" "TLS handshakes with \
        endpoints that failed or timed out",
    /// Exchanges that found a pooled connection.
    UpstreamReuses = Counter "sluice_upstream_reuses" "Exchanges carried by a pooled connection",
    /// Requests sent again after a pooled connection turned out dead or an endpoint failed.
    UpstreamRetries = Counter "sluice_upstream_retries" "Requests sent again on another connection",
    /// Upstream connections open now.
    UpstreamOpen = Gauge "sluice_upstream_connections_open" "Upstream connections open now, idle ones \
        included",
    /// Idle upstream connections.
    UpstreamIdle = Gauge "sluice_upstream_connections_idle" "Idle upstream connections",
    /// Request bodies that the buffer budget had no room for.
    BodiesUnbuffered = Counter "sluice_request_bodies_unbuffered" "Request bodies streamed though short \
        enough for buffer_request: the buffer budget was used up",
    /// Panics caught in a session.
    Panics = Counter "sluice_session_panics" "Sessions ended by a panic",
    /// Times the buffer ring was empty.
    BuffersExhausted = Counter "sluice_ring_buffers_exhausted" "Receives that found no provided buffer",
    /// Receive buffers on loan now.
    BuffersLoaned = Gauge "sluice_ring_buffers_loaned" "Receive buffers on loan now",
    /// Bytes of the buffer budget in use.
    BudgetBytes = Gauge "sluice_buffer_budget_used_bytes" "Bytes of the worker's buffer budget in use",
    /// io_uring_enter calls.
    RingEnters = Counter "sluice_ring_enters" "io_uring_enter calls",
    /// Completions handled.
    RingCompletions = Counter "sluice_ring_completions" "Completions handled",
    /// Connections admitted without being counted for their source.
    SourcesUncounted = Counter "sluice_connections_uncounted" "Connections that the table of sources had no \
        room to count",
    /// Loop turns longer than stuck_after.
    Stuck = Counter "sluice_worker_stuck" "Loop turns that took longer than workers.stuck_after",
}

/// Upper bounds of the buckets of `sluice_request_duration_seconds`, in microseconds; one more bucket has no
/// bound.
pub const DURATION_BOUNDS_MICROS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// One cell of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Without a reason.
    Plain(Plain),
    /// `sluice_connections_closed_total{reason}`
    Closed(CloseReason),
    /// `sluice_requests_refused_total{reason}`
    Refused(RefusalReason),
    /// `sluice_connections_shed_total{reason}`
    Shed(ShedReason),
    /// `sluice_connections_gave_way_total{reason}`
    GaveWay(Crowded),
    /// `sluice_upstream_connections_closed_total{reason}`
    PoolClosed(PoolCloseReason),
    /// `sluice_tls_handshakes_total{kind}`
    Handshake(HandshakeKind),
    /// `sluice_tls_handshakes_failed_total{reason}`
    HandshakeFailed(HandshakeFailure),
    /// `sluice_tls_alerts_received_total{alert}`
    AlertReceived(Alert),
    /// `sluice_tls_alerts_sent_total{alert}`
    AlertSent(Alert),
    /// A bucket of `sluice_request_duration_seconds`, from the fastest.
    Duration(usize),
    /// The sum of all these durations, in microseconds.
    DurationMicros,
}

const CLOSED_AT: usize = Plain::ALL.len();
const REFUSED_AT: usize = CLOSED_AT + CloseReason::ALL.len();
const SHED_AT: usize = REFUSED_AT + RefusalReason::ALL.len();
const GAVE_WAY_AT: usize = SHED_AT + ShedReason::ALL.len();
const POOL_CLOSED_AT: usize = GAVE_WAY_AT + Crowded::ALL.len();

const HANDSHAKE_AT: usize = POOL_CLOSED_AT + PoolCloseReason::ALL.len();
const HANDSHAKE_FAILED_AT: usize = HANDSHAKE_AT + HandshakeKind::ALL.len();
const ALERT_RECEIVED_AT: usize = HANDSHAKE_FAILED_AT + HandshakeFailure::ALL.len();
const ALERT_SENT_AT: usize = ALERT_RECEIVED_AT + Alert::ALL.len();

const DURATION_AT: usize = ALERT_SENT_AT + Alert::ALL.len();
const DURATION_MICROS_AT: usize = DURATION_AT + DURATION_BOUNDS_MICROS.len() + 1;

/// Cells in a block.
pub const CELLS: usize = DURATION_MICROS_AT + 1;

impl Counter {
    /// The index of its cell in a block.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Plain(plain) => plain as usize,
            Self::Closed(reason) => CLOSED_AT + reason.index(),
            Self::Refused(reason) => REFUSED_AT + reason.index(),
            Self::Shed(reason) => SHED_AT + reason.index(),
            Self::GaveWay(reason) => GAVE_WAY_AT + reason.index(),
            Self::PoolClosed(reason) => POOL_CLOSED_AT + reason.index(),
            Self::Handshake(kind) => HANDSHAKE_AT + kind.index(),
            Self::HandshakeFailed(reason) => HANDSHAKE_FAILED_AT + reason.index(),
            Self::AlertReceived(alert) => ALERT_RECEIVED_AT + alert.index(),
            Self::AlertSent(alert) => ALERT_SENT_AT + alert.index(),
            // A bucket that does not exist counts to the last.
            Self::Duration(bucket) => {
                DURATION_AT
                    + if bucket < DURATION_BOUNDS_MICROS.len() {
                        bucket
                    } else {
                        DURATION_BOUNDS_MICROS.len()
                    }
            }
            Self::DurationMicros => DURATION_MICROS_AT,
        }
    }
}

impl From<Plain> for Counter {
    fn from(plain: Plain) -> Self {
        Self::Plain(plain)
    }
}
