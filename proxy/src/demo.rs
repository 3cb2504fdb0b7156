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
mod tests;
