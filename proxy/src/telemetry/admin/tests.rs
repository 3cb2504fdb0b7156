//! Tests of `telemetry::admin`.

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
    lacks: Mutex<Vec<String>>,
    block: CounterBlock,
    supervisor: Supervisor,
}

impl Sources for Fake {
    fn data_plane(&self) -> DataPlaneStatus {
        self.status.lock().expect("not poisoned").clone()
    }

    fn lacks(&self) -> Vec<String> {
        self.lacks.lock().expect("not poisoned").clone()
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
        let (status, lacks) = (Mutex::new(status), Mutex::default());
        let fake = Arc::new(Fake { status, lacks, block: CounterBlock::default(), supervisor });
        let mut state = AdminState::new(fake.clone());
        state.supervisor_wait = Duration::from_millis(50);
        adjust(&mut state);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("settable");
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
fn another_method_ends_its_connection_too() {
    let server = Server::start(Supervisor::Answers, |_| {});
    for path in ["/metrics", "/healthz", "/nothing"] {
        let mut stream = server.connect();
        write!(stream, "POST {path} HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\n\r\n").expect("sent");
        let mut answer = String::new();
        let begun = Instant::now();
        stream.read_to_string(&mut answer).expect("the server closes after its answer");
        assert!(answer.starts_with("HTTP/1.1 40") && begun.elapsed() < CONNECTION_LIFE / 2, "{answer}");
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
    let (head, body) = server.ask("/readyz");
    assert!(head.starts_with("HTTP/1.1 200"));
    assert_eq!(body, "ready\n");
    server.fake.lacks.lock().expect("not poisoned").push("guard: none".to_owned());
    let (head, body) = server.ask("/readyz");
    assert!(head.starts_with("HTTP/1.1 200"), "a lack is told, and clients are served");
    assert_eq!(body, "ready\ndegraded: guard: none\n");
    server.fake.lacks.lock().expect("not poisoned").clear();
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
    let server = Server::start(Supervisor::Absent, |state| state.answer_begins = Duration::from_millis(200));
    let mut stream = server.connect();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost:").expect("sent");
    let start = Instant::now();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(start.elapsed() < Duration::from_secs(5), "closed by the deadline, not by our read timeout");
    assert!(answer.is_empty());
}

#[test]
fn a_head_without_end_is_cut_by_its_size() {
    let server = Server::start(Supervisor::Absent, |_| {});
    let mut stream = server.connect();
    let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n");
    let start = Instant::now();
    while stream.write_all(&[b"X: ", &[b'x'; 1000][..], b"\r\n"].concat()).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(8));
    }
}

#[test]
fn a_client_has_one_time_for_everything() {
    let server = Server::start(Supervisor::Absent, |state| {
        state.answer_begins = Duration::from_secs(60);
        state.connection_life = Duration::from_millis(300);
    });
    let stream = server.connect();
    let start = Instant::now();
    let _ = (&stream).read_to_end(&mut Vec::new());
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn the_oldest_connection_gives_way_to_a_new_one() {
    let server = Server::start(Supervisor::Absent, |state| {
        state.connections_max = 4;
        state.answer_begins = Duration::from_secs(60);
        state.connection_life = Duration::from_secs(60);
    });
    let mut idle: Vec<_> = (0..40).map(|_| server.connect()).collect();
    for _ in 0..3 {
        assert!(server.ask("/healthz").0.starts_with("HTTP/1.1 200"), "nobody waits");
    }
    // The oldest were closed; the youngest still have their places.
    let mut last = idle.pop().expect("the youngest");
    for mut old in idle.drain(..36) {
        assert!(!matches!(old.read(&mut [0]), Ok(1..)));
    }
    last.write_all(b"GET /healthz HTTP/1.1\r\nHost: admin\r\n\r\n").expect("sent");
    let mut answer = String::new();
    last.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
