//! Reasons: every drop, shed, close, refusal and ejection carries one, and the same enum feeds metrics, logs
//! and tests.

/// Declares a reason enum with a stable snake_case label for each variant, used as the metric label.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant,)* }

        impl $name {
            /// Every reason, in declaration order: the index of a reason is its position here.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The label in metrics and logs.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// Position in `ALL`.
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

reasons! {
    /// Why a downstream connection ended.
    CloseReason {
        /// The client closed between requests, or ended its side within one and was served for `half_close`.
        ClientClosed = "client_closed",
        /// The client closed or reset within a request or response.
        ClientAborted = "client_aborted",
        /// `Connection: close` or HTTP/1.0 ended it after the response.
        NotKeptAlive = "not_kept_alive",
        /// The endpoint answered before the request was read whole, so no further request can follow.
        EarlyResponse = "early_response",
        /// No request for `keep_alive`.
        KeepAliveTimeout = "keep_alive_timeout",
        /// A request head did not arrive within `request_header`.
        RequestHeaderTimeout = "request_header_timeout",
        /// A request body paused longer than `request_body`.
        RequestBodyTimeout = "request_body_timeout",
        /// The client took nothing for `send`.
        SendTimeout = "send_timeout",
        /// The client was slower than `min_rate`.
        MinRate = "min_rate",
        /// A request was refused, and the connection could not go on.
        BadRequest = "bad_request",
        /// The endpoint broke off after the response's head was sent.
        UpstreamAborted = "upstream_aborted",
        /// `requests_per_connection` was reached.
        RequestLimit = "request_limit",
        /// A trusted proxy's connection did not begin with a PROXY header.
        ProxyHeader = "proxy_header",
        /// The client that a PROXY header named has as many connections as a source may have
        /// (`guard.connections_per_ip`).
        ConnectionsPerIp = "connections_per_ip",
        /// The PROXY header did not arrive within `request_header`.
        ProxyHeaderTimeout = "proxy_header_timeout",
        /// Something other than TLS came to a `tls-passthrough` listener.
        NotTls = "not_tls",
        /// A `ClientHello` that breaks RFC 8446, or that names its server in a forbidden way.
        HelloMalformed = "hello_malformed",
        /// A `ClientHello` beyond 16 KiB.
        HelloTooLarge = "hello_too_large",
        /// No whole `ClientHello` within `handshake_timeout`.
        HelloTimeout = "hello_timeout",
        /// A `ClientHello` without a name that a server can have, and the listener has no upstream for that.
        NoServerName = "no_server_name",
        /// No route for the server name, and the listener has no upstream for that.
        NoRoute = "no_route",
        /// No endpoint could be connected for a tunnel.
        UpstreamUnavailable = "upstream_unavailable",
        /// Both sides of a tunnel ended it.
        TunnelClosed = "tunnel_closed",
        /// No byte passed a tunnel either way for `tunnel_idle`.
        TunnelIdle = "tunnel_idle",
        /// The endpoint of a tunnel took nothing for `send`.
        UpstreamSendTimeout = "upstream_send_timeout",
        /// The worker drains, and the connection was idle or at the end of its last request.
        Draining = "draining",
        /// Cut when a drain's time was over, or by a stop.
        Stopped = "stopped",
        /// A panic ended the session.
        Panicked = "panicked",
        /// No memory was left, and this client held the most without moving.
        Overloaded = "overloaded",
        /// Its place was needed for a client that has fewer connections.
        GaveWay = "gave_way",
        /// A socket error that is no reset: the client's host is gone, for example.
        SocketError = "socket_error",
        /// The TLS handshake failed; `sluice_tls_handshakes_failed_total` says why.
        TlsHandshake = "tls_handshake",
        /// After the handshake the client broke TLS, or ended the connection with an alert.
        TlsBroken = "tls_broken",
        /// Since its handshake `client_ca`, `client_auth` or `client_crl` changed, or a list has expired.
        ClientAuthChanged = "client_auth_changed",
    }
}

reasons! {
    /// Why a request was answered by Sluice itself.
    RefusalReason {
        /// 400: the head or the body's framing broke RFC 9112.
        Malformed = "malformed",
        /// 400: Host missing, repeated or invalid.
        BadHost = "bad_host",
        /// 400: the path could lead an endpoint elsewhere than its route: a dot segment with parameters or
        /// beside an encoded slash, or slashes that the listener rejects.
        AmbiguousPath = "ambiguous_path",
        /// 400: plain HTTP came to a port that takes TLS.
        PlainHttp = "plain_http",
        /// 403: the route wants a client certificate, and the client showed none.
        NoClientCertificate = "no_client_certificate",
        /// 404: no route takes the request.
        NoRoute = "no_route",
        /// 408: the head or body was too slow.
        RequestTimeout = "request_timeout",
        /// 408: the body was slower than `min_rate`.
        RequestTooSlow = "request_too_slow",
        /// 413: the body exceeds `body_bytes`.
        BodyTooLarge = "body_too_large",
        /// 414: the target exceeds `uri_bytes`.
        UriTooLong = "uri_too_long",
        /// 417: an expectation other than 100-continue.
        ExpectationFailed = "expectation_failed",
        /// 431: the head exceeds `header_bytes` or `headers`.
        HeadTooLarge = "head_too_large",
        /// 501: CONNECT, or a TRACE whose Max-Forwards is used up.
        NotImplemented = "not_implemented",
        /// 502: could not connect.
        ConnectFailed = "connect_failed",
        /// 502: the endpoint closed or reset before the head of its response.
        UpstreamReset = "upstream_reset",
        /// 502: the endpoint sent something that is not HTTP.
        UpstreamMalformed = "upstream_malformed",
        /// 502: TLS with the endpoint failed: its certificate is not trusted, for example.
        UpstreamTls = "upstream_tls",
        /// 503: no endpoint could be chosen.
        NoEndpoint = "no_endpoint",
        /// 503: no descriptor was left to connect with.
        Overloaded = "overloaded",
        /// 503: no local port was left to connect from.
        NoPort = "no_port",
        /// 504: no connection within `connect_timeout`.
        ConnectTimeout = "connect_timeout",
        /// 504: no response head within the route's `timeout`.
        UpstreamTimeout = "upstream_timeout",
        /// 505: an HTTP version that is not supported.
        VersionNotSupported = "version_not_supported",
    }
}

impl RefusalReason {
    /// The status code that answers it.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Malformed | Self::BadHost | Self::AmbiguousPath | Self::PlainHttp => 400,
            Self::NoClientCertificate => 403,
            Self::NoRoute => 404,
            Self::RequestTimeout | Self::RequestTooSlow => 408,
            Self::BodyTooLarge => 413,
            Self::UriTooLong => 414,
            Self::ExpectationFailed => 417,
            Self::HeadTooLarge => 431,
            Self::NotImplemented => 501,
            Self::ConnectFailed | Self::UpstreamReset | Self::UpstreamMalformed | Self::UpstreamTls => 502,
            Self::NoEndpoint | Self::Overloaded | Self::NoPort => 503,
            Self::ConnectTimeout | Self::UpstreamTimeout => 504,
            Self::VersionNotSupported => 505,
        }
    }
}

reasons! {
    /// How a TLS handshake with a client succeeded.
    HandshakeKind {
        /// TLS 1.3, from nothing.
        Full13 = "1.3",
        /// TLS 1.3, an earlier session goes on.
        Resumed13 = "1.3_resumed",
        /// TLS 1.2, from nothing.
        Full12 = "1.2",
        /// TLS 1.2, an earlier session goes on.
        Resumed12 = "1.2_resumed",
    }
}

reasons! {
    /// Why a TLS handshake with a client failed.
    HandshakeFailure {
        /// It was not over within `handshake_timeout`.
        Timeout = "timeout",
        /// The client closed or reset the connection.
        ClientClosed = "client_closed",
        /// It found no place within `handshake_timeout`: `max_handshakes` were under way.
        TooMany = "too_many",
        /// Its place was needed for another client, and this client had not answered for longest.
        GaveWay = "gave_way",
        /// Plain HTTP, answered with 400.
        NotTls = "not_tls",
        /// The client gave up with an alert: it does not trust the certificate, for example.
        Alert = "alert",
        /// The bytes are not TLS, or break its rules.
        Malformed = "malformed",
        /// No version, cipher, group or application protocol that both know.
        Incompatible = "incompatible",
        /// The client's certificate is missing, wrong, expired, or not from `client_ca`.
        ClientCertificate = "client_certificate",
        /// The client's certificate is revoked, says a list of `client_crl`.
        ClientRevoked = "client_revoked",
        /// No list of `client_crl` that holds now is for the client's certificate.
        ClientUnchecked = "client_unchecked",
        /// The worker drains, or stops.
        Draining = "draining",
        /// A fault of Sluice's own.
        Internal = "internal",
    }
}

reasons! {
    /// Why an accepted connection was refused before a byte of it was read.
    ShedReason {
        /// `process.max_connections` was reached, and no connection waited for its client.
        MaxConnections = "max_connections",
        /// `guard.connections_per_ip` was reached. In a dry run the connection passes.
        ConnectionsPerIp = "connections_per_ip",
        /// The client reset the connection before it was looked at.
        ClientGone = "client_gone",
        /// No descriptor was left.
        DescriptorsExhausted = "descriptors_exhausted",
        /// The worker drains.
        Draining = "draining",
    }
}

reasons! {
    /// What there was too much of when a connection gave way to that of a client with fewer.
    Crowded {
        /// TLS handshakes of a listener: `max_handshakes` were under way.
        Handshakes = "handshakes",
        /// Bytes of hellos, request heads and PROXY headers that are not whole.
        Beginnings = "beginnings",
        /// Connections of a worker: its share of `process.max_connections` was reached.
        Connections = "connections",
        /// Closed connections whose last bytes are sent, or whose further bytes are discarded.
        Closings = "closings",
    }
}

reasons! {
    /// Why an upstream connection left the pool.
    PoolCloseReason {
        /// The endpoint closed it while idle.
        ClosedByUpstream = "closed_by_upstream",
        /// Idle for `idle_timeout`.
        IdleTimeout = "idle_timeout",
        /// Older than `max_lifetime`.
        MaxLifetime = "max_lifetime",
        /// More than `max_idle` idle connections: it was not used for a while, or the worker was short of
        /// descriptors.
        MaxIdle = "max_idle",
        /// Its endpoint is not configured any more.
        EndpointRemoved = "endpoint_removed",
        /// Its last exchange left it unusable: not kept alive, reset, or cut short.
        NotReusable = "not_reusable",
        /// It was a tunnel for one client.
        Tunnel = "tunnel",
        /// It was pinned to the connection of one client, by NTLM or Negotiate, and that connection ended.
        Pinned = "pinned",
        /// The endpoint sent bytes that no request asked for.
        UnsolicitedBytes = "unsolicited_bytes",
        /// The worker drains.
        Draining = "draining",
    }
}

reasons! {
    /// Why a data plane died, or was killed.
    DeathReason {
        /// It died by itself, by a signal or with an exit status.
        Crashed = "crashed",
        /// It could not start, or one of its workers ended.
        Failed = "failed",
        /// It was not ready within 30 s, and was killed.
        StartTimeout = "start_timeout",
        /// Its control thread or all of its workers were silent for `process.watchdog`, and it was killed.
        Hung = "hung",
        /// It broke the protocol between the processes, and was killed.
        Protocol = "protocol",
        /// A drain or a stop did not end in time, and it was killed.
        EndTimeout = "end_timeout",
    }
}

reasons! {
    /// How a reload went. All but the first two leave the configuration in force as it was.
    ReloadOutcome {
        /// The new configuration is in force.
        Applied = "applied",
        /// Valid, and it says the same as the one in force.
        Unchanged = "unchanged",
        /// It has errors.
        Invalid = "invalid",
        /// It changes keys that are taken at a start only.
        NeedsRestart = "needs_restart",
        /// The files' bytes could not be handed over.
        NotSent = "not_sent",
        /// The data plane could not take it.
        Refused = "refused",
        /// The data plane died while it compiled it.
        Died = "died",
        /// The data plane did not answer in time.
        Silent = "silent",
        /// No data plane became ready in time.
        NotReady = "not_ready",
        /// A drain or a stop was asked for.
        Ending = "ending",
    }
}

/// An error of the kernel; where it is a limit of processes or descriptors, with the limit's name.
#[must_use]
pub fn explain_shortage(error: &std::io::Error) -> String {
    let limit = match error.raw_os_error() {
        Some(libc::EAGAIN) => {
            "no further thread or process may be made; raise LimitNPROC=, TasksMax= (pids.max) or `ulimit -u`"
        }
        Some(libc::EMFILE) => "no descriptor is left; raise LimitNOFILE= or `ulimit -n`",
        Some(libc::ENFILE) => "the machine has no descriptor left; raise fs.file-max",
        _ => return error.to_string(),
    };
    format!("{error}: {limit}")
}

reasons! {
    /// Why a record of the access log was lost.
    LogLossReason {
        /// The log thread did not keep up, or its file blocked it.
        QueueFull = "queue_full",
        /// The file could not be written: the disk is full, for example.
        WriteFailed = "write_failed",
    }
}
