//! The admin endpoints: `/metrics`, `/healthz`, `/readyz` and `/status`, on the control thread. A connection
//! carries one request. It has one deadline for everything (head, answer and the client's reading of it), and
//! an earlier one for the head. The number of connections is bounded: the oldest gives way to a new one, so
//! that no number of idle or slow clients keeps a health check waiting.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::control::status::{DataPlaneStatus, Status, SupervisorStatus};
use crate::counters::Cells;
use crate::telemetry::metrics::{self, Scrape};

/// How long the supervisor may take to answer; without its half the rest is shown.
const SUPERVISOR_WAIT: Duration = Duration::from_secs(1);
/// With one more, the oldest is closed.
const CONNECTIONS_MAX: usize = 64;
/// Until the answer begins, which waits for the whole head and `SUPERVISOR_WAIT`.
const ANSWER_BEGINS: Duration = Duration::from_secs(3);
/// A connection's whole life.
const CONNECTION_LIFE: Duration = Duration::from_secs(10);
/// Bytes read of a connection; our requests have a short head and no body.
const READ_BYTES_MAX: usize = 16 << 10;

/// The supervisor's answer, on its way.
pub type SupervisorAnswer<'a> = Pin<Box<dyn Future<Output = Option<SupervisorStatus>> + Send + 'a>>;

/// Where the numbers come from; the data plane implements it.
pub trait Sources: Send + Sync + 'static {
    /// The data plane's half, from memory.
    fn data_plane(&self) -> DataPlaneStatus;

    /// What Sluice goes on without, each with its cost, as the supervisor said last.
    fn lacks(&self) -> Vec<String>;

    /// Every worker's cells (`CounterBlock::cells`); index = worker.
    fn counters(&self) -> Vec<Cells>;

    /// Asks the supervisor. `None` when it cannot be asked; the caller sets the deadline.
    fn supervisor(&self) -> SupervisorAnswer<'_>;
}

/// The state that the handlers share.
#[derive(Clone)]
pub struct AdminState {
    sources: Arc<dyn Sources>,
    supervisor_wait: Duration,
    answer_begins: Duration,
    connection_life: Duration,
    connections_max: usize,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AdminState").finish_non_exhaustive()
    }
}

impl AdminState {
    /// Over these sources.
    #[must_use]
    pub fn new(sources: Arc<dyn Sources>) -> Self {
        Self {
            sources,
            supervisor_wait: SUPERVISOR_WAIT,
            answer_begins: ANSWER_BEGINS,
            connection_life: CONNECTION_LIFE,
            connections_max: CONNECTIONS_MAX,
        }
    }

    async fn supervisor(&self) -> Option<SupervisorStatus> {
        tokio::time::timeout(self.supervisor_wait, self.sources.supervisor()).await.ok().flatten()
    }
}

/// Serves until the future is dropped. Runs on a tokio current_thread runtime with io and time enabled. The
/// listener is non-blocking.
pub async fn serve(listener: std::net::TcpListener, state: AdminState) -> io::Result<()> {
    let listener = BoundedListener {
        inner: TcpListener::from_std(listener)?,
        open: VecDeque::new(),
        connections_max: state.connections_max,
        answer_begins: state.answer_begins,
        life: state.connection_life,
    };
    axum::serve(listener, router(state)).await
}

fn router(state: AdminState) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(|| async { one_request("text/plain; charset=utf-8", "ok\n".to_owned()) }))
        .route("/readyz", get(show_ready))
        .route("/status", get(show_status))
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                one_request("text/plain; charset=utf-8", "/metrics /healthz /readyz /status\n".to_owned()),
            )
        })
        .method_not_allowed_fallback(|| async {
            (StatusCode::METHOD_NOT_ALLOWED, one_request("text/plain; charset=utf-8", "GET\n".to_owned()))
        })
        .with_state(state)
}

/// Every answer ends its connection, so that no idle one takes a place.
fn one_request(content_type: &'static str, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONNECTION, "close"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers.map(|(name, value)| (name, HeaderValue::from_static(value))), body).into_response()
}

async fn show_metrics(State(state): State<AdminState>) -> Response {
    let supervisor = state.supervisor().await;
    // Read after the wait, so that cells and status are of now.
    let scrape =
        Scrape { workers: state.sources.counters(), data_plane: state.sources.data_plane(), supervisor };
    one_request(metrics::CONTENT_TYPE, metrics::encode(scrape))
}

async fn show_ready(State(state): State<AdminState>) -> (StatusCode, Response) {
    let status = state.sources.data_plane();
    let (code, body) = match (status.ready, status.draining) {
        (_, true) => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "not accepting\n"),
        (true, false) => (StatusCode::OK, "ready\n"),
    };
    // A lack is no reason to send clients elsewhere, but probes and people read it here.
    let lacks = state.sources.lacks().into_iter().map(|lack| format!("degraded: {lack}\n"));
    (code, one_request("text/plain; charset=utf-8", std::iter::once(body.to_owned()).chain(lacks).collect()))
}

async fn show_status(State(state): State<AdminState>) -> Response {
    let supervisor = state.supervisor().await;
    let status = Status { supervisor, data_plane: Some(state.sources.data_plane()) };
    match serde_json::to_string_pretty(&status) {
        Ok(body) => one_request("application/json", body + "\n"),
        Err(error) => {
            let body = one_request("text/plain; charset=utf-8", format!("{error}\n"));
            (StatusCode::INTERNAL_SERVER_ERROR, body).into_response()
        }
    }
}

/// Accepts at once. The oldest of too many gives way.
struct BoundedListener {
    inner: TcpListener,
    /// The oldest first. Dropping an entry ends its connection; one whose connection ended is closed itself.
    open: VecDeque<oneshot::Sender<()>>,
    connections_max: usize,
    answer_begins: Duration,
    life: Duration,
}

impl BoundedListener {
    /// A place for a new connection, which has to go when the receiver resolves.
    fn place(&mut self) -> oneshot::Receiver<()> {
        self.open.retain(|connection| !connection.is_closed());
        while self.open.len() >= self.connections_max {
            self.open.pop_front();
        }
        let (held, gives_way) = oneshot::channel();
        self.open.push_back(held);
        gives_way
    }
}

impl Listener for BoundedListener {
    type Io = MortalStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (MortalStream, SocketAddr) {
        loop {
            let (stream, peer) = Listener::accept(&mut self.inner).await;
            if stream.set_nodelay(true).is_ok() {
                let stream = MortalStream {
                    stream,
                    answer_begins: Some(Box::pin(tokio::time::sleep(self.answer_begins))),
                    deadline: Box::pin(tokio::time::sleep(self.life)),
                    gives_way: self.place(),
                    is_over: false,
                    read: 0,
                };
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A connection with deadlines, and with an end when its place is needed: hyper's own timers cover the head,
/// not a client that reads slowly.
struct MortalStream {
    stream: TcpStream,
    /// `None` once the answer began.
    answer_begins: Option<Pin<Box<Sleep>>>,
    deadline: Pin<Box<Sleep>>,
    gives_way: oneshot::Receiver<()>,
    /// One of the three came true. The last must not be polled after that.
    is_over: bool,
    read: usize,
}

impl MortalStream {
    fn poll_alive<T>(
        &mut self,
        context: &mut Context<'_>,
        operation: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let is_late =
            |sleep: &mut Pin<Box<Sleep>>, context: &mut Context<'_>| sleep.as_mut().poll(context).is_ready();
        self.is_over = self.is_over
            || is_late(&mut self.deadline, context)
            || self.answer_begins.as_mut().is_some_and(|sleep| is_late(sleep, context))
            || Pin::new(&mut self.gives_way).poll(context).is_ready();
        if self.is_over {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        operation(Pin::new(&mut self.stream), context)
    }
}

impl AsyncRead for MortalStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read > READ_BYTES_MAX {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buffer.filled().len();
        let polled = self.poll_alive(context, |stream, context| stream.poll_read(context, buffer));
        self.read += buffer.filled().len() - before;
        polled
    }
}

impl AsyncWrite for MortalStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.answer_begins = None;
        self.poll_alive(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_alive(context, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_alive(context, AsyncWrite::poll_shutdown)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.answer_begins = None;
        self.poll_alive(context, |stream, context| stream.poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
