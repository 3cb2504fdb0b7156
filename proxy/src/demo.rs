//! The built-in demo upstream: `sluice demo-upstream`, a hidden command. `cargo xtask run` uses it as the
//! endpoint behind the proxy, and tests as an origin that needs nothing installed. It shows what it received,
//! and streams in both directions.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Path, RawQuery, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::serve::ListenerExt;
use http_body::{Frame, SizeHint};
use nix::sys::{prctl, signal::Signal};
use nix::unistd::getppid;
use rcgen::{CertificateParams, DnType, KeyPair};

/// The longest wait of `/slow`, in milliseconds.
const SLOW_MS_MAX: u64 = 600_000;
/// A prime, so that bytes shifted by any power of two are noticed.
const PERIOD: usize = 251;
const CHUNK_BYTES: usize = PERIOD * 256;

/// The bytes that `/bytes/N` sends: byte i is `i % 251`.
static PATTERN: [u8; CHUNK_BYTES] = {
    let mut pattern = [0; CHUNK_BYTES];
    let mut at = 0;
    while at < CHUNK_BYTES {
        pattern[at] = (at % PERIOD) as u8;
        at += 1;
    }
    pattern
};

/// Serves until the process or the thread that started it ends. PR_SET_PDEATHSIG follows the parent's thread,
/// so start it from a thread that lives on.
pub fn run(address: SocketAddr) -> io::Result<()> {
    let parent = getppid();
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent {
        // The parent died before the signal was asked for.
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { serve(tokio::net::TcpListener::bind(address).await?).await })
}

/// Makes `localhost.pem` and `localhost.key` in a folder, for this machine's own names and for 30 days,
/// unless they are there and hold for another day. A client that is to believe the certificate takes it as
/// its CA.
///
/// # Errors
/// When the folder or the files cannot be written.
pub fn certificate(folder: &std::path::Path, now: SystemTime) -> io::Result<()> {
    const DAY: Duration = Duration::from_secs(86_400);
    let (chain, key) = (folder.join("localhost.pem"), folder.join("localhost.key"));
    let made = std::fs::metadata(&chain).and_then(|metadata| metadata.modified());
    if made.is_ok_and(|made| now < made + 29 * DAY) && key.exists() {
        return Ok(());
    }
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
    params.distinguished_name.push(DnType::CommonName, "Sluice demo");
    (params.not_before, params.not_after) = ((now - DAY).into(), (now + 30 * DAY).into());
    let pair = KeyPair::generate().map_err(io::Error::other)?;
    let certificate = params.self_signed(&pair).map_err(io::Error::other)?;
    std::fs::create_dir_all(folder)?;
    // The key is written first, so that a certificate that is there has its key. Only the owner may read the
    // key.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(key)?;
    file.write_all(pair.serialize_pem().as_bytes())?;
    std::fs::write(chain, certificate.pem())
}

async fn serve(listener: tokio::net::TcpListener) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        // Without TCP_NODELAY a small last chunk waits for an acknowledgement.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router()).await
}

fn router() -> Router {
    Router::new()
        .route(
            "/bytes/{count}",
            get(|Path(count): Path<u64>| async move { Body::new(Pattern { left: count }) }),
        )
        .route("/echo", any(echo))
        .route("/slow", any(slow))
        .route("/status/{code}", any(status))
        .fallback(hello)
}

/// Answers any other path with the request as it was received, so that a person sees how the proxy changed
/// it.
async fn hello(request: Request) -> Response {
    let mut text = String::from("Hello from Sluice's demo upstream.\n\n");
    let _ = writeln!(text, "{} {} {:?}", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    text_response(text)
}

/// Answers with the request's body, chunk by chunk as it comes.
async fn echo(request: Request) -> Response {
    let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
    let mut response = Response::new(request.into_body());
    if let Some(content_type) = content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    response
}

async fn slow(RawQuery(query): RawQuery) -> Response {
    let wanted =
        query.as_deref().and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("ms=")));
    let Some(milliseconds) = wanted.and_then(|value| value.parse::<u64>().ok()) else {
        return (StatusCode::BAD_REQUEST, "/slow?ms=250 answers after 250 milliseconds\n").into_response();
    };
    let milliseconds = milliseconds.min(SLOW_MS_MAX);
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    text_response(format!("after {milliseconds} ms\n"))
}

async fn status(Path(code): Path<u16>) -> Response {
    match StatusCode::from_u16(code) {
        // An interim response is none; 204 and 304 have no body.
        Ok(code) if code == StatusCode::NO_CONTENT || code == StatusCode::NOT_MODIFIED => {
            code.into_response()
        }
        Ok(code) if code.as_u16() >= 200 => (code, format!("{code}\n")).into_response(),
        _ => (StatusCode::BAD_REQUEST, "a status from 200 to 999\n").into_response(),
    }
}

fn text_response(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// A body of known length that is never in memory as a whole.
struct Pattern {
    left: u64,
}

impl HttpBody for Pattern {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        self.left -= length as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&PATTERN[..length])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    use super::*;

    struct Client {
        stream: BufReader<TcpStream>,
    }

    struct Answer {
        status: u16,
        head: String,
        body: Vec<u8>,
    }

    impl Client {
        /// A server on a thread that ends with the test process, and a connection to it.
        fn start() -> Self {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("bound");
            listener.set_nonblocking(true).expect("settable");
            std::thread::spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    serve(tokio::net::TcpListener::from_std(listener).expect("registers")).await
                })
            });
            let stream = TcpStream::connect(address).expect("connects");
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("settable");
            Self { stream: BufReader::new(stream) }
        }

        fn send(&mut self, request: &str) {
            self.stream.get_mut().write_all(request.as_bytes()).expect("sent");
        }

        fn line(&mut self) -> String {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("a line");
            line
        }

        fn exactly(&mut self, length: usize) -> Vec<u8> {
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).expect("a body");
            body
        }

        /// One response on a connection that stays open.
        fn answer(&mut self, has_body: bool) -> Answer {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                head += &self.line();
            }
            let head = head.to_ascii_lowercase();
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map(|length| length.parse().expect("a number"));
            let mut body = Vec::new();
            if has_body && let Some(length) = length {
                body = self.exactly(length);
            } else if has_body && head.contains("transfer-encoding: chunked") {
                loop {
                    let length = usize::from_str_radix(self.line().trim_end(), 16).expect("a chunk size");
                    body.extend(self.exactly(length));
                    assert_eq!(self.line(), "\r\n");
                    if length == 0 {
                        break;
                    }
                }
            }
            Answer { status, head, body }
        }

        fn get(&mut self, path: &str) -> Answer {
            self.send(&format!("GET {path} HTTP/1.1\r\nHost: demo\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"));
            self.answer(true)
        }
    }

    #[test]
    fn one_connection_serves_every_path() {
        let mut client = Client::start();
        let hello = client.get("/a/path?x=1");
        let text = String::from_utf8(hello.body).expect("text");
        assert_eq!(hello.status, 200);
        assert!(
            text.contains("GET /a/path?x=1 HTTP/1.1\n") && text.contains("x-forwarded-for: 192.0.2.1\n"),
            "{text}"
        );
        for (path, status) in [
            ("/status/200", 200),
            ("/status/404", 404),
            ("/status/503", 503),
            ("/status/99", 400),
            ("/status/101", 400),
        ] {
            assert_eq!(client.get(path).status, status, "{path}");
        }
        client.send("GET /status/204 HTTP/1.1\r\nHost: demo\r\n\r\n");
        assert_eq!(client.answer(false).status, 204);
        assert_eq!(client.get("/slow?ms=soon").status, 400);
        let start = Instant::now();
        assert_eq!(client.get("/slow?ms=60").status, 200);
        assert!(start.elapsed() >= Duration::from_millis(60));
        assert_eq!(client.get("/").status, 200, "and is still open");
    }

    #[test]
    fn bytes_have_a_length_and_a_pattern() {
        let mut client = Client::start();
        for count in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 17] {
            let answer = client.get(&format!("/bytes/{count}"));
            assert!(answer.head.contains(&format!("content-length: {count}\r\n")), "{}", answer.head);
            assert!(answer.body.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at % PERIOD));
            assert_eq!(answer.body.len(), count);
        }
        client.send("HEAD /bytes/1073741824 HTTP/1.1\r\nHost: demo\r\n\r\n");
        assert!(client.answer(false).head.contains("content-length: 1073741824"));
        assert_eq!(client.get("/bytes/many").status, 400);
    }

    #[test]
    fn echo_streams_while_it_receives() {
        let mut client = Client::start();
        client.send("POST /echo HTTP/1.1\r\nHost: demo\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        while client.line() != "\r\n" {}
        assert_eq!(client.line(), "5\r\n", "the first chunk comes back before the second is sent");
        assert_eq!(client.exactly(7), b"first\r\n");
        client.send("6\r\nsecond\r\n0\r\n\r\n");
        assert_eq!(client.line(), "6\r\n");
        assert_eq!(client.exactly(8), b"second\r\n");
        assert_eq!(client.exactly(5), b"0\r\n\r\n");
        client.send("POST /echo HTTP/1.1\r\nHost: demo\r\nContent-Type: x/y\r\nContent-Length: 3\r\n\r\nabc");
        let answer = client.answer(true);
        assert_eq!(answer.body, b"abc");
        assert!(answer.head.contains("content-type: x/y"));
    }

    /// This process starts one that starts the demo, prints its id and ends: the demo must end with it.
    #[test]
    fn it_ends_with_its_parent() {
        const MARK: &str = "SLUICE_TEST_DEMO";
        let again = |role: &str| {
            let mut command = std::process::Command::new(std::env::current_exe().expect("our path"));
            command.args(["--exact", "demo::tests::it_ends_with_its_parent", "--nocapture"]).env(MARK, role);
            command
        };
        match std::env::var(MARK).as_deref() {
            Ok("demo") => {
                let address = "127.0.0.1:0".parse().expect("an address");
                panic!("{:?}", run(address));
            }
            Ok("parent") => {
                let mut demo = again("demo").stdout(std::process::Stdio::null()).spawn().expect("starts");
                // Given time to ask for the signal, it still runs: it did not end by itself.
                std::thread::sleep(Duration::from_millis(300));
                assert!(demo.try_wait().expect("a child").is_none());
                println!("demo={}", demo.id());
                return;
            }
            _ => {}
        }
        let output = again("parent").stderr(std::process::Stdio::null()).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let id = text
            .split_once("demo=")
            .and_then(|(_, id)| id.lines().next())
            .unwrap_or_else(|| panic!("{text}"));
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
        };
        let give_up = Instant::now() + Duration::from_secs(5);
        while runs() {
            assert!(Instant::now() < give_up, "process {id} outlived its parent");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
