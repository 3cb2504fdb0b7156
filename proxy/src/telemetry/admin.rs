//! The admin endpoints: `/metrics`, `/healthz`, `/readyz` and `/status`, on the control thread. A connection
//! carries one request and has one deadline for everything: head, answer and the client's reading of it; the
//! number of connections is bounded.

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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::control::status::{DataPlaneStatus, Status, SupervisorStatus};
use crate::counters::Cells;
use crate::telemetry::metrics::{self, Scrape};

/// How long the supervisor may take to answer; without its half the rest is shown.
const SUPERVISOR_WAIT: Duration = Duration::from_secs(1);
/// More wait in the accept queue.
const CONNECTIONS_MAX: usize = 64;
/// A connection's whole life.
const CONNECTION_LIFE: Duration = Duration::from_secs(10);

/// The supervisor's answer, on its way.
pub type SupervisorAnswer<'a> = Pin<Box<dyn Future<Output = Option<SupervisorStatus>> + Send + 'a>>;

/// Where the numbers come from; the data plane implements it.
pub trait Sources: Send + Sync + 'static {
    /// The data plane's half, from memory.
    fn data_plane(&self) -> DataPlaneStatus;

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
            connection_life: CONNECTION_LIFE,
            connections_max: CONNECTIONS_MAX,
        }
    }

    async fn supervisor(&self) -> Option<SupervisorStatus> {
        tokio::time::timeout(self.supervisor_wait, self.sources.supervisor()).await.ok().flatten()
    }
}

/// Serves until the future is dropped. Runs on a tokio current_thread runtime with io and time enabled.
pub async fn serve(listener: std::net::TcpListener, state: AdminState) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = BoundedListener {
        inner: TcpListener::from_std(listener)?,
        permits: Arc::new(Semaphore::new(state.connections_max)),
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
        .with_state(state)
}

/// Every answer ends its connection, so that no idle one holds a permit.
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
    (code, one_request("text/plain; charset=utf-8", body.to_owned()))
}

async fn show_status(State(state): State<AdminState>) -> Response {
    let supervisor = state.supervisor().await;
    let status = Status { supervisor, data_plane: Some(state.sources.data_plane()) };
    match serde_json::to_string_pretty(&status) {
        Ok(body) => one_request("application/json", body + "\n"),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Accepts when a permit is free.
struct BoundedListener {
    inner: TcpListener,
    permits: Arc<Semaphore>,
    life: Duration,
}

impl Listener for BoundedListener {
    type Io = MortalStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (MortalStream, SocketAddr) {
        loop {
            // The semaphore is never closed; were it, accepting nothing more is right.
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
                std::future::pending().await
            };
            let (stream, peer) = Listener::accept(&mut self.inner).await;
            if stream.set_nodelay(true).is_ok() {
                return (
                    MortalStream {
                        stream,
                        deadline: Box::pin(tokio::time::sleep(self.life)),
                        _permit: permit,
                    },
                    peer,
                );
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A connection with a deadline for its whole life: hyper's own timers cover the head, not a client that
/// reads slowly.
struct MortalStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl MortalStream {
    fn poll_alive<T>(
        &mut self,
        context: &mut Context<'_>,
        operation: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.deadline.as_mut().poll(context).is_ready() {
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
        self.poll_alive(context, |stream, context| stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for MortalStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
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
        self.poll_alive(context, |stream, context| stream.poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;
    use crate::counters::{CounterBlock, Plain};

    /// How the supervisor behaves.
    #[derive(Clone, Copy, PartialEq)]
    enum Supervisor {
        Answers,
        Absent,
        Hangs,
    }

    struct Fake {
        status: Mutex<DataPlaneStatus>,
        block: CounterBlock,
        supervisor: Supervisor,
    }

    impl Sources for Fake {
        fn data_plane(&self) -> DataPlaneStatus {
            self.status.lock().expect("not poisoned").clone()
        }

        fn counters(&self) -> Vec<Cells> {
            vec![self.block.cells()]
        }

        fn supervisor(&self) -> SupervisorAnswer<'_> {
            let supervisor = self.supervisor;
            Box::pin(async move {
                match supervisor {
                    Supervisor::Answers => Some(SupervisorStatus {
                        version: "9.9.9".to_owned(),
                        restarts: 2,
                        ..SupervisorStatus::default()
                    }),
                    Supervisor::Absent => None,
                    Supervisor::Hangs => std::future::pending().await,
                }
            })
        }
    }

    struct Server {
        address: SocketAddr,
        fake: Arc<Fake>,
        stop: Option<tokio::sync::oneshot::Sender<()>>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Server {
        fn start(supervisor: Supervisor, adjust: impl FnOnce(&mut AdminState)) -> Self {
            let status = DataPlaneStatus { ready: true, pid: 77, ..DataPlaneStatus::default() };
            let fake =
                Arc::new(Fake { status: Mutex::new(status), block: CounterBlock::default(), supervisor });
            let mut state = AdminState::new(fake.clone());
            state.supervisor_wait = Duration::from_millis(50);
            adjust(&mut state);
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("bound");
            let (stop, stopped) = tokio::sync::oneshot::channel();
            let thread = std::thread::spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    tokio::select! {
                        result = serve(listener, state) => panic!("serve ended: {result:?}"),
                        _ = stopped => {}
                    }
                });
            });
            Self { address, fake, stop: Some(stop), thread: Some(thread) }
        }

        fn connect(&self) -> std::net::TcpStream {
            let stream = std::net::TcpStream::connect(self.address).expect("connects");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("settable");
            stream
        }

        /// Head and body, read until the server closes.
        fn ask(&self, path: &str) -> (String, String) {
            let mut stream = self.connect();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\n\r\n").expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("the server closes after its answer");
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
            (head.to_owned(), body.to_owned())
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            drop(self.stop.take());
            if let Some(thread) = self.thread.take()
                && thread.join().is_err()
                && !std::thread::panicking()
            {
                panic!("the server panicked");
            }
        }
    }

    #[test]
    fn metrics_read_the_cells_at_the_scrape() {
        let server = Server::start(Supervisor::Answers, |_| {});
        let (head, body) = server.ask("/metrics");
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert!(head.to_ascii_lowercase().contains("content-type: application/openmetrics-text"), "{head}");
        assert!(body.contains("sluice_requests_total{worker=\"0\"} 0\n"));
        assert!(body.contains("sluice_restarts_total 2\n"));
        server.fake.block.add(Plain::Requests, 41);
        assert!(server.ask("/metrics").1.contains("sluice_requests_total{worker=\"0\"} 41\n"));
    }

    #[test]
    fn a_silent_supervisor_costs_its_half_and_no_more() {
        for supervisor in [Supervisor::Hangs, Supervisor::Absent] {
            let server = Server::start(supervisor, |_| {});
            let (head, body) = server.ask("/status");
            assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
            let status: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            assert!(status["supervisor"].is_null());
            assert_eq!(status["data_plane"]["pid"], 77);
            let (_, body) = server.ask("/metrics");
            assert!(
                body.contains("sluice_supervisor_up 0\n")
                    && body.contains("sluice_requests_total{worker=\"0\"} 0\n")
            );
        }
    }

    #[test]
    fn status_is_the_status_type() {
        let server = Server::start(Supervisor::Answers, |_| {});
        let status: Status = serde_json::from_str(&server.ask("/status").1).expect("Status");
        assert_eq!(status.supervisor.expect("its half").version, "9.9.9");
        assert_eq!(status.data_plane.expect("its half").pid, 77);
    }

    #[test]
    fn ready_means_accepting_and_not_draining() {
        let server = Server::start(Supervisor::Absent, |_| {});
        assert!(server.ask("/readyz").0.starts_with("HTTP/1.1 200"));
        server.fake.status.lock().expect("not poisoned").draining = true;
        let (head, body) = server.ask("/readyz");
        assert!(head.starts_with("HTTP/1.1 503"));
        assert_eq!(body, "draining\n");
        *server.fake.status.lock().expect("not poisoned") = DataPlaneStatus::default();
        assert_eq!(server.ask("/readyz").1, "not accepting\n");
        assert!(server.ask("/healthz").0.starts_with("HTTP/1.1 200"), "alive all the same");
        assert!(server.ask("/nothing").0.starts_with("HTTP/1.1 404"));
    }

    #[test]
    fn a_client_that_never_finishes_its_head_is_cut() {
        let server =
            Server::start(Supervisor::Absent, |state| state.connection_life = Duration::from_millis(200));
        let mut stream = server.connect();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost:").expect("sent");
        let start = Instant::now();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(start.elapsed() < Duration::from_secs(5), "closed by the deadline, not by our read timeout");
        assert!(answer.is_empty());
    }

    #[test]
    fn connections_are_bounded_and_the_next_is_served_when_one_ends() {
        let server = Server::start(Supervisor::Absent, |state| {
            state.connections_max = 2;
            state.connection_life = Duration::from_millis(400);
        });
        let idle: Vec<_> = (0..2).map(|_| server.connect()).collect();
        // Both idle connections must be accepted before the third asks; the accept loop is in order.
        let start = Instant::now();
        assert!(server.ask("/healthz").0.starts_with("HTTP/1.1 200"));
        assert!(start.elapsed() >= Duration::from_millis(200), "waited for a permit: {:?}", start.elapsed());
        drop(idle);
    }
}
