//! Load over TLS 1.3 with X25519 and AES-128-GCM alone, on blocking threads.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use proxy::tls::client::Credulous;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};

use super::histogram::Histogram;
use super::raise_descriptor_limit;
use super::response::Reader;

type Connection = StreamOwned<ClientConnection, TcpStream>;

/// One version, one suite, one group. The certificate is not checked against roots, but its signature is
/// verified.
fn config(resume: bool) -> Arc<ClientConfig> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![kx_group::X25519];
    let provider = Arc::new(provider);
    let verifier = Arc::new(Credulous(Arc::clone(&provider)));
    let builder =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let builder =
        builder.expect("the suite is one of 1.3's").dangerous().with_custom_certificate_verifier(verifier);
    let mut config = builder.with_no_client_auth();
    config.resumption = if resume { Resumption::in_memory_sessions(16) } else { Resumption::disabled() };
    Arc::new(config)
}

fn connect(target: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Connection> {
    let name = ServerName::try_from("bench.test").map_err(io::Error::other)?;
    let stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let client = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(client, stream))
}

/// Makes one request and reads the whole response.
fn ask(connection: &mut Connection, closes: bool) -> io::Result<()> {
    let close = if closes { "Connection: close\r\n" } else { "" };
    connection.write_all(format!("GET / HTTP/1.1\r\nHost: bench.test\r\n{close}\r\n").as_bytes())?;
    let mut reader = Reader::default();
    let mut buffer = [0; 4096];
    loop {
        let count = connection.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let response = reader.feed(&buffer[..count]).map_err(|_| io::Error::other("no HTTP response"))?;
        match response {
            Some(response) if response.status == 200 => return Ok(()),
            Some(response) => return Err(io::Error::other(format!("status {}", response.status))),
            None => {}
        }
    }
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    resumed: AtomicU64,
    errors: AtomicU64,
    is_over: AtomicBool,
}

fn one_after_the_other(target: SocketAddr, config: &Arc<ClientConfig>, counts: &Counts) {
    while !counts.is_over.load(Ordering::Relaxed) {
        let served = connect(target, config).and_then(|mut connection| {
            ask(&mut connection, true)?;
            let is_resumed = connection.conn.handshake_kind() == Some(HandshakeKind::Resumed);
            counts.resumed.fetch_add(u64::from(is_resumed), Ordering::Relaxed);
            Ok(())
        });
        match served {
            Ok(()) => counts.requests.fetch_add(1, Ordering::Relaxed),
            Err(_) => counts.errors.fetch_add(1, Ordering::Relaxed),
        };
    }
}

/// Makes a connection for each request, until SIGINT or SIGTERM.
///
/// # Errors
/// Signals cannot be blocked.
pub fn fresh(target: SocketAddr, connections: usize, resume: bool) -> io::Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;
    let counts = Counts::default();
    thread::scope(|scope| {
        for _ in 0..connections {
            // Each thread has sessions of its own, since a ticket is used once.
            scope.spawn(|| one_after_the_other(target, &config(resume), &counts));
        }
        let _ = signals.wait();
        counts.is_over.store(true, Ordering::Relaxed);
    });
    let (requests, resumed) = (counts.requests.into_inner(), counts.resumed.into_inner());
    let errors = counts.errors.into_inner();
    println!(
        "{{\"requests\":{requests},\"resumed\":{resumed},\"connect\":{errors},\"read\":0,\"write\":0,\
         \"status\":0,\"timeout\":0}}"
    );
    Ok(())
}

/// Holds connections that have had one request, until standard input ends.
///
/// # Errors
/// The first connection that fails.
pub fn idle(target: SocketAddr, count: usize) -> io::Result<()> {
    raise_descriptor_limit()?;
    let config = config(false);
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = connect(target, &config)?;
        ask(&mut connection, false)?;
        held.push(connection);
    }
    println!("{{\"ready\":{count}}}");
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    let mut alive = 0;
    for mut connection in held {
        connection.sock.set_nonblocking(true)?;
        let mut byte = [0];
        let is_alive =
            matches!(connection.read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        alive += usize::from(is_alive);
    }
    println!("{{\"alive\":{alive}}}");
    Ok(())
}

/// Makes requests at a fixed rate over established connections, one request at a time.
///
/// # Errors
/// The first request that fails.
pub fn probe(target: SocketAddr, connections: usize, rate: u64, seconds: u64) -> io::Result<()> {
    let quiet = config(false);
    let mut established = Vec::new();
    for _ in 0..connections {
        let mut connection = connect(target, &quiet)?;
        ask(&mut connection, false)?;
        established.push(connection);
    }
    let mut latencies = Histogram::default();
    let pause = Duration::from_nanos(1_000_000_000 / rate.max(1));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        let probed = latencies.count();
        let due = begun + pause * u32::try_from(probed).unwrap_or(u32::MAX);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let asked = Instant::now();
        ask(&mut established[(probed % connections as u64) as usize], false)?;
        latencies.record(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    let probed = latencies.count();
    let micros = |part: f64| latencies.quantile(part) as f64 / 1e3;
    println!(
        "{{\"scheduled\":{probed},\"completed\":{probed},\"errors\":0,\"p50_us\":{},\"p99_us\":{},\
         \"p999_us\":{},\"max_us\":{}}}",
        micros(0.5),
        micros(0.99),
        micros(0.999),
        micros(1.0)
    );
    Ok(())
}
