//! Endpoints that speak TLS over the simulated ring: rustls' own server at the other end.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, ServerConnection};

use crate::counters::{Counter, Plain};
use crate::error::{PoolCloseReason, RefusalReason};
use crate::io::simulated::{Faults, Peer};
use crate::tls::client::{ClientTls, Settings, Trust};
use crate::tls::testing::Authority;
use crate::worker::testing::{self, Bench, origin_address};

const NAME: &str = "origin.test";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// How an origin answers a request.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// With a length; it keeps the connection.
    Keeps,
    /// Without a length: the end of the connection is the end of the body, announced or not.
    Ends { is_announced: bool },
    /// It asks for a certificate of the client, which has none.
    WantsCertificate,
}

#[derive(Default)]
struct Heard {
    handshakes: usize,
    resumed: usize,
    failed: Option<rustls::Error>,
}

/// A worker whose upstream is believed if `authority` says so, and a TLS server behind it.
fn bench(
    faults: Faults,
    authority: &Authority,
    server: &Authority,
    manner: Manner,
) -> (Bench, Rc<RefCell<Heard>>) {
    let tls = ClientTls::new(Settings {
        server_name: Some(ServerName::try_from(NAME).expect("name")),
        trust: Trust::Ca(authority.pem().as_bytes().into()),
        certificate: None,
        alpn: Vec::new(),
    });
    let mut config = testing::config(&[origin_address(1)]);
    Arc::make_mut(&mut config.upstreams[0]).tls = Some(Arc::new(tls.expect("settings")));
    let bench = Bench::new(1, faults, config);
    let pair = server.leaf(&[NAME]);
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pair.chain.as_bytes()).collect::<Result<_, _>>().expect("a chain");
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions");
    let server = match manner {
        Manner::WantsCertificate => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(chain[0].clone()).expect("a root");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            server.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
        _ => server.with_no_client_auth(),
    };
    let mut server = server.with_single_cert(chain, key).expect("a pair");
    server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().expect("ticketer");
    let server = Arc::new(server);
    let heard = Rc::new(RefCell::new(Heard::default()));
    let shared = Rc::clone(&heard);
    bench.sim.serve(origin_address(1), move || {
        let mut tls = ServerConnection::new(Arc::clone(&server)).expect("server");
        let (heard, mut received, mut is_done) = (Rc::clone(&shared), Vec::new(), false);
        Box::new(move |peer: &Peer| {
            let bytes = peer.read();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                tls.read_tls(&mut rest).expect("memory");
                match tls.process_new_packets() {
                    Ok(state) => {
                        let mut plain = vec![0; state.plaintext_bytes_to_read()];
                        tls.reader().read_exact(&mut plain).expect("plaintext");
                        received.extend(plain);
                    }
                    Err(error) => {
                        heard.borrow_mut().failed = Some(error);
                        // The alert.
                        let mut out = Vec::new();
                        while tls.wants_write() {
                            tls.write_tls(&mut out).expect("memory");
                        }
                        peer.write(&out);
                        return peer.close();
                    }
                }
            }
            if !tls.is_handshaking() && !std::mem::replace(&mut is_done, true) {
                let is_resumed = tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
                let mut heard = heard.borrow_mut();
                heard.handshakes += 1;
                heard.resumed += usize::from(is_resumed);
            }
            let mut ends = peer.is_ended();
            while let Some(at) = received.windows(4).position(|end| end == b"\r\n\r\n") {
                received.drain(..at + 4);
                match manner {
                    Manner::Keeps | Manner::WantsCertificate => tls
                        .writer()
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                        .expect("memory"),
                    Manner::Ends { is_announced } => {
                        tls.writer().write_all(b"HTTP/1.1 200 OK\r\n\r\nall there is").expect("memory");
                        if is_announced {
                            tls.send_close_notify();
                        }
                        ends = true;
                    }
                }
            }
            let mut out = Vec::new();
            while tls.wants_write() {
                tls.write_tls(&mut out).expect("memory");
            }
            peer.write(&out);
            if ends {
                peer.close();
            }
        })
    });
    (bench, heard)
}

#[test]
fn exchanges_share_a_pooled_connection_and_later_ones_resume() {
    for faults in [Faults::mild(), Faults { short: false, delay: 0, ..Faults::mild() }] {
        let authority = Authority::new("Test CA");
        let (mut bench, heard) = bench(faults, &authority, &authority, Manner::Keeps);
        for answered in 1..=3 {
            let client = bench.sim.connect(bench.listener);
            client.write(REQUEST);
            bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == answered);
            bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(200));
            assert!(client.read().ends_with(b"\r\n\r\nok"));
            client.close();
        }
        assert_eq!((bench.value(Plain::UpstreamHandshakes), bench.value(Plain::UpstreamReuses)), (1, 2));
        assert_eq!(bench.value(Plain::UpstreamIdle), 1);
        // Past its idle time another connection is made, from the ticket of the first.
        bench.run_out();
        assert_eq!(bench.value(Counter::PoolClosed(PoolCloseReason::IdleTimeout)), 1);
        let client = bench.sim.connect(bench.listener);
        client.write(REQUEST);
        bench.run_out();
        assert!(client.read().ends_with(b"\r\n\r\nok"));
        assert_eq!((heard.borrow().handshakes, heard.borrow().resumed), (2, 1));
        bench.check_freed("");
    }
}

#[test]
fn a_loop_turn_completes_one_handshake_with_an_endpoint_and_a_crowd_takes_turns() {
    let authority = Authority::new("Test CA");
    let faults = Faults { short: false, delay: 0, ..Faults::mild() };
    let (mut bench, heard) = bench(faults, &authority, &authority, Manner::Ends { is_announced: true });
    let clients: Vec<_> = (0..20).map(|_| bench.sim.connect(bench.listener)).collect();
    clients.iter().for_each(|client| client.write(REQUEST));
    let (mut before, mut most) = (0, 0);
    bench.run_until(|events| {
        let now = events.worker().counters.value(Plain::UpstreamHandshakes);
        most = most.max(now - std::mem::replace(&mut before, now));
        events.worker().counters.value(Plain::Responses2xx) == 20
    });
    // The last step of each handshake verifies a signature, which takes all the time that a turn has.
    assert_eq!((most, heard.borrow().handshakes), (1, 20));
    bench.run_out();
    assert!(clients.iter().all(|client| client.read().ends_with(b"\r\n0\r\n\r\n")));
    bench.check_freed("");
}

#[test]
fn an_endpoint_that_is_not_believed_is_502_and_told_why() {
    let (mut bench, heard) =
        bench(Faults::mild(), &Authority::new("Test CA"), &Authority::new("Another CA"), Manner::Keeps);
    let client = bench.sim.connect(bench.listener);
    client.write(REQUEST);
    bench.run_out();
    assert!(client.read().starts_with(b"HTTP/1.1 502 "));
    // Two attempts.
    assert_eq!(
        (bench.value(Plain::UpstreamHandshakes), bench.value(Plain::UpstreamHandshakeFailures)),
        (0, 2)
    );
    assert!(
        matches!(heard.borrow().failed, Some(rustls::Error::AlertReceived(_))),
        "{:?}",
        heard.borrow().failed
    );
    bench.check_freed("");
}

/// In TLS 1.3 the handshake is over for the client before the endpoint has seen its certificate.
#[test]
fn an_endpoint_that_refuses_our_certificate_is_502_and_not_tried_again() {
    let authority = Authority::new("Test CA");
    for seed in 0..10 {
        let faults =
            if seed == 0 { Faults { short: false, delay: 0, ..Faults::mild() } } else { Faults::mild() };
        let (mut bench, heard) = bench(faults, &authority, &authority, Manner::WantsCertificate);
        let client = bench.sim.connect(bench.listener);
        client.write(REQUEST);
        bench.run_out();
        assert!(client.read().starts_with(b"HTTP/1.1 502 "));
        assert_eq!(bench.value(Counter::Refused(RefusalReason::UpstreamTls)), 1, "{}", bench.counted());
        assert_eq!((bench.value(Plain::UpstreamConnects), bench.value(Plain::UpstreamRetries)), (1, 0));
        assert_eq!(bench.value(Plain::UpstreamHandshakeFailures), 1);
        assert!(heard.borrow().failed.is_some());
        bench.check_freed("");
    }
}

#[test]
fn an_endpoint_that_says_nothing_is_504() {
    let authority = Authority::new("Test CA");
    let (mut bench, _) = bench(Faults::mild(), &authority, &authority, Manner::Keeps);
    bench.sim.origin(origin_address(1));
    let client = bench.sim.connect(bench.listener);
    client.write(REQUEST);
    bench.run_out();
    assert!(client.read().starts_with(b"HTTP/1.1 504 "));
    bench.check_freed("");
}

#[test]
fn an_end_that_was_not_announced_is_a_cut() {
    for is_announced in [true, false] {
        let authority = Authority::new("Test CA");
        let (mut bench, _) = bench(Faults::mild(), &authority, &authority, Manner::Ends { is_announced });
        let client = bench.sim.connect(bench.listener);
        client.write(REQUEST);
        bench.run_out();
        let seen = client.read();
        let text = String::from_utf8_lossy(&seen);
        // Chunks tell where it ends, and the last one is missing where the endpoint may have been cut off.
        assert!(text.contains("all there is"), "{text}");
        assert_eq!(text.ends_with("\r\n0\r\n\r\n"), is_announced, "{text}");
        bench.check_freed("");
    }
}
