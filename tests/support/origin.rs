//! Origins: small servers behind Sluice, with one thread for each connection. They record the requests that
//! reach them and answer as a test asks.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::message::{self, Fields, Framing};
use crate::pattern::{Pattern, Sum};

/// How much is recorded of a connection, and how much is kept of a request body, in bytes.
const KEPT: usize = 64 << 10;
/// The stack of a connection's thread, in bytes. The thread does little.
const STACK: usize = 256 << 10;

/// A request as an origin received it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its target, as sent.
    pub target: String,
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub version: String,
    /// Its fields.
    pub fields: Fields,
    /// How its body was framed.
    pub framing: Framing,
    /// The first 64 KiB of its body.
    pub body: Vec<u8>,
    /// Bytes of the whole body.
    pub length: u64,
    /// SHA-256 of the whole body.
    pub sha256: String,
    /// Its trailers.
    pub trailers: Fields,
    /// The connection's number, and the request's number on that connection. Both count from 1.
    pub place: (u64, u64),
}

impl Request {
    /// The first field of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        message::field(&self.fields, name)
    }
}

/// A response body.
#[derive(Clone, Debug)]
pub enum Body {
    /// No body and no framing field, as 204 and 304 have it.
    None,
    /// With a Content-Length.
    Bytes(Vec<u8>),
    /// The pattern of this length, with a Content-Length.
    Pattern(u64),
    /// These chunks, then these trailers.
    Chunks(Vec<Vec<u8>>, Fields),
    /// The pattern of this length, chunked.
    ChunkedPattern(u64),
    /// These bytes, ended by closing the connection.
    UntilClose(Vec<u8>),
}

/// An origin's answer to one request.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status line without its version, such as `200 OK`.
    pub status: String,
    /// Fields, without the framing fields.
    pub fields: Fields,
    /// The body.
    pub body: Body,
    /// How long the origin waits before it answers.
    pub delay: Duration,
    /// Close the connection after the response, although the response did not say so.
    pub then_close: bool,
}

impl Response {
    /// 200 with these bytes.
    #[must_use]
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::with(Body::Bytes(body.into()))
    }

    /// 200 with this body.
    #[must_use]
    pub fn with(body: Body) -> Self {
        Self { status: "200 OK".into(), fields: Vec::new(), body, delay: Duration::ZERO, then_close: false }
    }

    /// Replaces the status line.
    #[must_use]
    pub fn status(mut self, status: &str) -> Self {
        self.status = status.to_owned();
        self
    }

    /// Adds a field.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Delays the answer by this time.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Closes the connection after the response, unannounced.
    #[must_use]
    pub fn then_close(mut self) -> Self {
        self.then_close = true;
        self
    }

    fn write(self, method: &str, out: &mut impl Write) -> io::Result<()> {
        write!(out, "HTTP/1.1 {}\r\n", self.status)?;
        for (name, value) in &self.fields {
            write!(out, "{name}: {value}\r\n")?;
        }
        match &self.body {
            Body::None | Body::UntilClose(_) => {}
            Body::Bytes(bytes) => write!(out, "Content-Length: {}\r\n", bytes.len())?,
            Body::Pattern(length) => write!(out, "Content-Length: {length}\r\n")?,
            Body::Chunks(..) | Body::ChunkedPattern(_) => write!(out, "Transfer-Encoding: chunked\r\n")?,
        }
        write!(out, "\r\n")?;
        if method == "HEAD" {
            return out.flush();
        }
        match self.body {
            Body::None => {}
            Body::Bytes(bytes) | Body::UntilClose(bytes) => out.write_all(&bytes)?,
            Body::Pattern(length) => {
                io::copy(&mut BufReader::with_capacity(KEPT, Pattern::new(length)), out)?;
            }
            Body::Chunks(chunks, trailers) => {
                for chunk in chunks {
                    write!(out, "{:x}\r\n", chunk.len())?;
                    out.write_all(&chunk)?;
                    write!(out, "\r\n")?;
                    out.flush()?;
                }
                write!(out, "0\r\n")?;
                for (name, value) in trailers {
                    write!(out, "{name}: {value}\r\n")?;
                }
                write!(out, "\r\n")?;
            }
            Body::ChunkedPattern(length) => {
                let mut pattern = Pattern::new(length);
                let mut piece = vec![0; KEPT];
                loop {
                    let count = pattern.read(&mut piece)?;
                    if count == 0 {
                        break;
                    }
                    write!(out, "{count:x}\r\n")?;
                    out.write_all(&piece[..count])?;
                    write!(out, "\r\n")?;
                }
                write!(out, "0\r\n\r\n")?;
            }
        }
        out.flush()
    }
}

/// One connection to an origin. All bytes read from it are recorded.
#[derive(Debug)]
pub struct Connection {
    stream: Arc<TcpStream>,
    shared: Arc<Shared>,
    /// The connection's number, from 1.
    pub number: u64,
}

impl Connection {
    /// Reads one request head and drops it; the rest of the request stays unread.
    pub fn read_head(&mut self) -> io::Result<()> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if self.read(&mut byte)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            head.push(byte[0]);
        }
        Ok(())
    }

    /// Reads until the peer closes.
    pub fn drain(&mut self) {
        let _ = io::copy(self, &mut io::sink());
    }

    /// Closes both directions now.
    pub fn close(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&*self.stream).read(buffer)?;
        self.shared.record(self.number, &buffer[..count]);
        Ok(count)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.stream).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    accepted: AtomicU64,
    open: AtomicU64,
    requests: AtomicU64,
    /// Received bytes are not recorded.
    forgets: AtomicBool,
    recorded: Mutex<Vec<Vec<u8>>>,
    streams: Mutex<Vec<std::sync::Weak<TcpStream>>>,
}

impl Shared {
    fn record(&self, connection: u64, bytes: &[u8]) {
        if self.forgets.load(Ordering::Relaxed) {
            return;
        }
        let mut recorded = self.recorded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let index = usize::try_from(connection - 1).expect("few connections");
        if recorded.len() <= index {
            recorded.resize_with(index + 1, Vec::new);
        }
        let room = KEPT - recorded[index].len();
        recorded[index].extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// A server on 127.0.0.1. On drop it stops and closes its connections.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
}

impl Origin {
    /// An origin that hands each connection to `serve`, on a thread of its own.
    #[must_use]
    pub fn raw(serve: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::listening(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind"), serve)
    }

    /// As [`Self::raw`], on a given listener.
    #[must_use]
    pub fn listening(
        listener: TcpListener,
        serve: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        // The standard library listens with a backlog of 128. A burst of a thousand proxied connections would
        // wait for retransmitted SYNs.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4096).expect("a backlog"))
            .expect("listen");
        let address = listener.local_addr().expect("bound");
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared::default());
        let origin = Self { address, shared: Arc::clone(&shared), listener: Arc::clone(&listener) };
        std::thread::spawn(move || accept(&listener, &shared, &Arc::new(serve)));
        origin
    }

    /// An HTTP/1.1 server with keep-alive.
    #[must_use]
    pub fn http(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        Self::raw(move |connection| serve_http(connection, &answer))
    }

    /// An origin that answers every request with JSON that shows it: `method`, `target`, `version`, `fields`
    /// as pairs, `body`, `length`, `sha256`, `framing`, `trailers`, `connection`, `place`.
    #[must_use]
    pub fn echo() -> Self {
        Self::http(|request| {
            Response::ok(show(request).to_string()).field("Content-Type", "application/json")
        })
    }

    /// An origin that reads a request head, writes these bytes unchanged, and closes.
    #[must_use]
    pub fn scripted(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::raw(move |connection| {
            connection.read_head()?;
            connection.write_all(&bytes)?;
            connection.socket().shutdown(Shutdown::Write)?;
            connection.drain();
            Ok(())
        })
    }

    /// Limits how much of each response the kernel holds. For a slow reader it holds up to 4 MiB. A thousand
    /// slow readers exhaust the memory of all TCP sockets of the machine, and any socket may then lose
    /// segments.
    #[must_use]
    pub fn send_buffer(self, bytes: usize) -> Self {
        // Accepted connections inherit it.
        nix::sys::socket::setsockopt(&*self.listener, nix::sys::socket::sockopt::SndBuf, &bytes)
            .expect("SO_SNDBUF");
        self
    }

    /// Records nothing that is received, for tests that run long.
    #[must_use]
    pub fn without_record(self) -> Self {
        self.shared.forgets.store(true, Ordering::Relaxed);
        self
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Requests that an HTTP origin has read whole so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// The first 64 KiB that each connection received.
    #[must_use]
    pub fn recorded(&self) -> Vec<Vec<u8>> {
        self.shared.recorded.lock().expect("no origin thread panicked").clone()
    }

    /// All of [`Self::recorded`] as one text.
    #[must_use]
    pub fn recorded_text(&self) -> String {
        self.recorded().iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    /// Closes every open connection, as an origin that restarts does.
    pub fn close_connections(&self) {
        for stream in self.shared.streams.lock().expect("no origin thread panicked").drain(..) {
            if let Some(stream) = stream.upgrade() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // On Linux this wakes the thread that is blocked in accept.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        self.close_connections();
    }
}

fn accept<S>(listener: &TcpListener, shared: &Arc<Shared>, serve: &Arc<S>)
where
    S: Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
{
    while let Ok((stream, _)) = listener.accept() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let _ = stream.set_nodelay(true);
        let stream = Arc::new(stream);
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst) + 1;
        shared.open.fetch_add(1, Ordering::SeqCst);
        shared.record(number, &[]);
        {
            let mut streams = shared.streams.lock().expect("no origin thread panicked");
            if streams.len() % 1024 == 1023 {
                streams.retain(|stream| stream.strong_count() > 0);
            }
            streams.push(Arc::downgrade(&stream));
        }
        let (serve, shared) = (Arc::clone(serve), Arc::clone(shared));
        let run = move || {
            let mut connection = Connection { stream, shared: Arc::clone(&shared), number };
            let _ = serve(&mut connection);
            drop(connection);
            shared.open.fetch_sub(1, Ordering::SeqCst);
        };
        std::thread::Builder::new().name("origin".into()).stack_size(STACK).spawn(run).expect("a thread");
    }
}

fn serve_http(connection: &mut Connection, answer: &impl Fn(&Request) -> Response) -> io::Result<()> {
    let number = connection.number;
    let mut reader = BufReader::with_capacity(16 << 10, &mut *connection);
    for place in 1.. {
        let Some(head) = message::read_head(&mut reader)? else { break };
        let mut words = head.start.split(' ').map(str::to_owned);
        let mut word = || words.next().unwrap_or_default();
        let (method, target, version) = (word(), word(), word());
        let framing = message::framing(&head.fields, Framing::Empty)?;
        if message::field(&head.fields, "expect").is_some() {
            reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut sink = Sink::default();
        let trailers = message::read_body(&mut reader, framing, &mut sink)?;
        let (length, sha256, body, fields) = (sink.sum.length, sink.sum.hex(), sink.kept, head.fields);
        let place = (number, place);
        let request =
            Request { method, target, version, fields, framing, body, length, sha256, trailers, place };
        reader.get_ref().shared.requests.fetch_add(1, Ordering::SeqCst);
        let close = request.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let response = answer(&request);
        let close = close || response.then_close || matches!(response.body, Body::UntilClose(_));
        std::thread::sleep(response.delay);
        response.write(&request.method, &mut BufWriter::with_capacity(64 << 10, &mut **reader.get_mut()))?;
        if close {
            break;
        }
    }
    connection.close();
    Ok(())
}

fn show(request: &Request) -> serde_json::Value {
    json!({
        "method": request.method,
        "target": request.target,
        "version": request.version,
        "fields": request.fields,
        "body": String::from_utf8_lossy(&request.body),
        "length": request.length,
        "sha256": request.sha256,
        "framing": format!("{:?}", request.framing),
        "trailers": request.trailers,
        "connection": request.place.0,
        "place": request.place.1,
    })
}

#[derive(Default)]
struct Sink {
    sum: Sum,
    kept: Vec<u8>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = KEPT - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.sum.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
