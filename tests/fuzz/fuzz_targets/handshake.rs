//! A server's handshake over any input. Any bytes end the same way, however they are cut. A rustls client's
//! flights are altered, left out, repeated, framed anew and cut anywhere. Only a client whose messages arrive
//! unaltered gets a connection. An error is final and sends at most one alert.
#![no_main]

use std::io::Write as _;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use proxy::tls::certificate::{Certificate, Files};
use proxy::tls::client_auth::ClientAuth;
use proxy::tls::handshake::{Established, Failure, Handshake, INPUT_BYTES_MAX, Progress};
use proxy::tls::records::{HEADER_BYTES, Opened, Sealed};
use proxy::tls::server::{MinVersion, ServerTls, Settings};
use proxy::tls::tickets::TicketKey;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const NAME: &str = "edge.test";
/// The data that a client sends after its handshake.
const BEHIND: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// The most flights that a client here sends.
const FLIGHTS_MAX: usize = 4;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    seed: u8,
    server: u8,
    mode: Mode<'a>,
}

#[derive(Arbitrary, Debug)]
enum Mode<'a> {
    /// Arbitrary bytes.
    Raw(&'a [u8]),
    /// A message of this length in records of this size, in bytes. The records may be empty.
    Flood { kind: u8, message: u16, record: u16 },
    /// A rustls client's flights, altered by these acts.
    Client { kind: u8, acts: Vec<Act<'a>> },
}

#[derive(Arbitrary, Debug)]
struct Act<'a> {
    flight: bool,
    at: u16,
    deed: Deed<'a>,
}

#[derive(Arbitrary, Debug)]
enum Deed<'a> {
    Flip(u8),
    Set(&'a [u8]),
    Insert(&'a [u8]),
    Drop(u8),
    Repeat(u8),
    Truncate,
    /// Puts handshake messages into records of at most this size; the messages stay unaltered.
    Frame(u8),
}

struct World {
    servers: Vec<Arc<ServerConfig>>,
    clients: Vec<ClientConfig>,
}

/// Indices of some servers and clients in [`World`].
const ONLY_13: usize = 1;
const ASKS: usize = 2;
const SPEAKS_12: usize = 2;
const RESUMES_13: usize = 3;
const RESUMES_12: usize = 4;
const IDENTIFIED: usize = 5;

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = || KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let ca_key = key();
    let ca = params.self_signed(&ca_key).expect("signed");
    let issuer = Issuer::new(params, ca_key);
    let leaf = |key: &KeyPair| {
        let params = CertificateParams::new([NAME.to_owned()]).expect("a name");
        params.signed_by(key, &issuer).expect("signed")
    };
    // Ed25519 signatures have a fixed length, so that outcomes can be compared.
    let server_key = key();
    let (chain, key_pem) = (leaf(&server_key).pem(), server_key.serialize_pem());
    let files = Files { chain: chain.as_bytes(), key: key_pem.as_bytes(), ocsp: None };
    let certificate = Arc::new(Certificate::new(files).expect("a certificate"));
    let server = |min_version, client_ca: Option<&str>| {
        let tls = ServerTls::new(Settings {
            certificates: vec![Arc::clone(&certificate)],
            min_version,
            alpn: vec!["http/1.1".into()],
            client_auth: client_ca.map(|pem| ClientAuth::required(pem.as_bytes())),
            session_tickets: true,
            early_data: false,
            ticket_keys: vec![TicketKey::from_file(&[7; 48]).expect("a key")],
            handshake_timeout: Duration::from_secs(1),
            max_handshakes: 1,
        });
        tls.expect("settings").config
    };
    // This server accepts only P-256. It sends a HelloRetryRequest to a client with another share.
    let mut narrow = default_provider();
    narrow.kx_groups = vec![kx_group::SECP256R1];
    let builder = ServerConfig::builder_with_provider(narrow.into())
        .with_safe_default_protocol_versions()
        .expect("versions");
    let pair = |chain: &str, key: &str| {
        let chain = CertificateDer::from_pem_slice(chain.as_bytes()).expect("a chain");
        (vec![chain], PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key"))
    };
    let (certificates, key) = pair(&chain, &key_pem);
    let mut retries = builder.with_no_client_auth().with_single_cert(certificates, key).expect("a pair");
    retries.enable_secret_extraction = true;
    let servers = vec![
        server(MinVersion::Tls12, None),
        server(MinVersion::Tls13, None),
        server(MinVersion::Tls12, Some(&ca.pem())),
        Arc::new(retries),
    ];

    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).expect("a root");
    let client = |versions: &[&'static rustls::SupportedProtocolVersion],
                  is_light: bool,
                  identity: Option<&KeyPair>| {
        let mut provider = default_provider();
        if is_light {
            provider.kx_groups = vec![kx_group::X25519, kx_group::SECP256R1];
        }
        let builder = ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(versions)
            .expect("versions");
        let builder = builder.with_root_certificates(roots.clone());
        let mut config = match identity {
            Some(key) => {
                let (chain, key) = pair(&leaf(key).pem(), &key.serialize_pem());
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        config
    };
    let clients = vec![
        client(&[&TLS13], true, None),
        client(&[&TLS13, &TLS12], false, None),
        client(&[&TLS12], true, None),
        client(&[&TLS13], true, None),
        client(&[&TLS12], true, None),
        client(&[&TLS13, &TLS12], true, Some(&KeyPair::generate_for(&PKCS_ED25519).expect("a key"))),
    ];
    World { servers, clients }
});

/// A handshake and all bytes that it has sent.
struct Server {
    handshake: Handshake,
    out: Vec<u8>,
    /// How many of the sent bytes the client has received.
    heard: usize,
}

impl Server {
    fn new(config: &Arc<ServerConfig>) -> Self {
        Self { handshake: Handshake::server(config).expect("a connection"), out: Vec::new(), heard: 0 }
    }

    /// Passes a piece of input to the handshake as a session does.
    fn take(&mut self, piece: &[u8]) -> Result<Progress, Failure> {
        self.handshake.receive(piece)?;
        assert!(self.kept() <= INPUT_BYTES_MAX, "{:?}", self.handshake);
        if !self.handshake.has_record() {
            return Ok(Progress::NeedMore);
        }
        let before = self.out.len();
        let progress = self.handshake.advance(&mut self.out);
        assert!(self.out.len() >= before);
        progress
    }

    /// How many input bytes the handshake holds, from its `Debug` output.
    fn kept(&self) -> usize {
        let shown = format!("{:?}", self.handshake);
        let digits: String = shown.chars().filter(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    }

    /// Checks that the output is whole records. Only the last may be an alert, and only if there is an error.
    fn check_said(&self, failure: Option<&Failure>) {
        let kinds = kinds(&self.out);
        let alerts = kinds.iter().filter(|&&kind| kind == ALERT).count();
        assert!(alerts <= 1, "{kinds:?}");
        assert!(alerts == 0 || kinds.last() == Some(&ALERT), "{kinds:?}");
        match failure {
            Some(Failure::Refused(_, alert)) => {
                assert!(alert.is_some() || alerts == 0, "an alert that nobody counts")
            }
            // rustls answers an alert of an unknown level with an alert.
            Some(Failure::Alert(_)) => {}
            _ => assert_eq!(alerts, 0, "an alert without a refusal: {failure:?}"),
        }
    }

    /// Checks that a handshake that has ended sends nothing more.
    fn check_over(&mut self) {
        let said = self.out.len();
        let _ = self.handshake.receive(&[HANDSHAKE, 3, 1, 0, 1, 0]);
        assert!(self.handshake.advance(&mut self.out).is_err());
        assert_eq!(self.out.len(), said, "it spoke after its end");
    }
}

/// The kinds of records; the bytes must be whole records.
fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while !bytes.is_empty() {
        kinds.push(bytes[0]);
        bytes = &bytes[HEADER_BYTES + usize::from(u16::from_be_bytes([bytes[3], bytes[4]]))..];
    }
    kinds
}

/// Passes bytes that no client made for this connection to a server. Returns the failure, the kinds of the
/// sent records, and their length. The contents are not compared.
fn receive(server: usize, wire: &[u8], ends: &[usize]) -> (Option<Failure>, Vec<u8>, usize) {
    let mut server = Server::new(&WORLD.servers[server]);
    let mut at = 0;
    for &end in ends.iter() {
        let piece = &wire[at..end];
        at = end;
        if piece.is_empty() {
            continue;
        }
        match server.take(piece) {
            Ok(Progress::NeedMore) => {}
            Ok(Progress::Done(_)) => panic!("a handshake with nobody"),
            Err(failure) => {
                server.check_said(Some(&failure));
                // These inputs are refused before the handshake looks at them.
                if !matches!(failure, Failure::PlainHttp | Failure::TooLarge) {
                    server.check_over();
                }
                return (Some(failure), kinds(&server.out), server.out.len());
            }
        }
    }
    server.check_said(None);
    (None, kinds(&server.out), server.out.len())
}

fn flood(server: usize, kind: u8, message: u16, record: u16) {
    let mut wire = Vec::new();
    let body = [&[1, 0][..], &message.to_be_bytes(), &vec![3; INPUT_BYTES_MAX]].concat();
    let kind = if kind < 200 { HANDSHAKE } else { CHANGE_CIPHER_SPEC + kind % 5 };
    let mut content = &body[..];
    while wire.len() < INPUT_BYTES_MAX + 4096 {
        let (now, later) = content.split_at(content.len().min(usize::from(record)));
        content = later;
        wire.extend_from_slice(&[kind, 3, 1]);
        wire.extend_from_slice(&(now.len() as u16).to_be_bytes());
        wire.extend_from_slice(now);
    }
    let ends: Vec<usize> = (0..=wire.len()).step_by(4096).skip(1).collect();
    let (failure, ..) = receive(server, &wire, &ends);
    assert!(failure.is_some() || record == u16::MAX, "there is no end to it");
}

fn altered(wire: &[u8], acts: &[Act<'_>], is_first: bool) -> Vec<u8> {
    let mut wire = wire.to_vec();
    for Act { at, deed, .. } in acts.iter().take(8).filter(|act| act.flight != is_first) {
        if wire.is_empty() {
            break;
        }
        let at = usize::from(*at) % wire.len();
        let end = |length: u8| (at + usize::from(length)).min(wire.len());
        match *deed {
            Deed::Flip(bit) => wire[at] ^= 1 << (bit % 8),
            Deed::Set(bytes) => {
                let bytes = &bytes[..bytes.len().min(wire.len() - at)];
                wire[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Deed::Insert(bytes) => drop(wire.splice(at..at, bytes.iter().copied())),
            Deed::Drop(length) => drop(wire.drain(at..end(length))),
            Deed::Repeat(length) => {
                let again = wire[at..end(length)].to_vec();
                drop(wire.splice(at..at, again));
            }
            Deed::Truncate => wire.truncate(at),
            Deed::Frame(size) => wire = framed(&wire, usize::from(size) + 1),
        }
    }
    wire
}

/// Puts the plain messages at the front of a flight into other records.
fn framed(wire: &[u8], size: usize) -> Vec<u8> {
    let (mut content, mut rest) = (Vec::new(), wire);
    while let [HANDSHAKE, _, _, high, low, body @ ..] = rest
        && let Some((now, later)) = body.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))
    {
        content.extend_from_slice(now);
        rest = later;
    }
    let records =
        content.chunks(size).flat_map(|chunk| [&[HANDSHAKE, 3, 1, 0, chunk.len() as u8][..], chunk].concat());
    records.chain(rest.iter().copied()).collect()
}

/// The first message of a flight, independent of its records.
fn first_message(mut wire: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    while let [kind, _, _, high, low, body @ ..] = wire
        && let Some((now, later)) = body.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))
    {
        if *kind == HANDSHAKE {
            content.extend_from_slice(now);
        }
        wire = later;
        if let [_, high, middle, low, ..] = content[..] {
            let length = 4 + usize::from(high) * 65_536 + usize::from(u16::from_be_bytes([middle, low]));
            if content.len() >= length {
                content.truncate(length);
                return Some(content);
            }
        }
    }
    None
}

/// Whether a client whose flights stay unaltered gets its connection.
fn suits(server: usize, client: usize) -> bool {
    match server {
        ONLY_13 => !matches!(client, SPEAKS_12 | RESUMES_12),
        ASKS => client == IDENTIFIED,
        _ => true,
    }
}

/// Runs an unaltered handshake, so that the client gets a session.
fn introduce(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) {
    let name = ServerName::try_from(NAME).expect("a name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let mut server = rustls::ServerConnection::new(Arc::clone(server)).expect("a server");
    for _ in 0..FLIGHTS_MAX {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory");
        }
        server.read_tls(&mut wire.as_slice()).expect("memory");
        if server.process_new_packets().is_err() {
            return;
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("memory");
        }
        client.read_tls(&mut wire.as_slice()).expect("memory");
        if client.process_new_packets().is_err() {
            return;
        }
    }
}

fn converse(seed: u8, server_kind: usize, client_kind: usize, acts: &[Act<'_>]) {
    let config = &WORLD.servers[server_kind];
    let mut client = WORLD.clients[client_kind].clone();
    let resumes = matches!(client_kind, RESUMES_12 | RESUMES_13);
    if resumes {
        client.resumption = Resumption::in_memory_sessions(1);
    }
    let client_config = Arc::new(client);
    if resumes {
        introduce(&client_config, config);
    }
    let name = ServerName::try_from(NAME).expect("a name");
    let mut client = ClientConnection::new(client_config, name).expect("a client");
    let mut server = Server::new(config);
    let (mut is_altered, mut is_misheard, mut has_spoken) = (false, false, false);
    for flight in 0..FLIGHTS_MAX {
        if !client.is_handshaking() && !has_spoken {
            has_spoken = true;
            client.writer().write_all(BEHIND).expect("memory");
        }
        let mut said = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut said).expect("memory");
        }
        if said.is_empty() {
            break;
        }
        let wire = altered(&said, acts, flight == 0);
        let is_reframed = acts.iter().any(|act| matches!(act.deed, Deed::Frame(_)));
        is_altered |= wire != said
            && !(is_reframed && first_message(&wire) == first_message(&said) && is_framing(acts));
        is_misheard |= flight == 0 && first_message(&wire) != first_message(&said);
        let mut outcome = None;
        fuzz::splits(seed % 251, wire.len(), |ends| {
            let mut at = 0;
            for &end in ends {
                let piece = &wire[at..end];
                at = end;
                match server.take(piece) {
                    Ok(Progress::NeedMore) => continue,
                    Ok(Progress::Done(established)) => outcome = Some((Ok(established), at)),
                    Err(failure) => outcome = Some((Err(failure), at)),
                }
                return;
            }
        });
        match outcome {
            None => {}
            Some((Ok(established), at)) => {
                assert!(!is_misheard, "a connection with somebody who said something else");
                server.check_said(None);
                server.check_over();
                let later = &wire[at..];
                return check_established(*established, later, is_altered || !has_spoken);
            }
            Some((Err(failure), _)) => {
                assert!(is_altered || !suits(server_kind, client_kind), "{failure:?}");
                server.check_said(Some(&failure));
                if !matches!(failure, Failure::PlainHttp | Failure::TooLarge) {
                    server.check_over();
                }
                return;
            }
        }
        server.check_said(None);
        let mut heard = &server.out[server.heard..];
        while !heard.is_empty() {
            client.read_tls(&mut heard).expect("memory");
            let result = client.process_new_packets();
            assert!(is_altered || result.is_ok(), "{result:?}");
        }
        server.heard = server.out.len();
    }
    assert!(is_altered, "a client that was let be has no connection, {server_kind} {client_kind}");
}

/// Whether the acts only frame messages anew.
fn is_framing(acts: &[Act<'_>]) -> bool {
    acts.iter().take(8).all(|act| matches!(act.deed, Deed::Frame(_)))
}

/// Checks that the data after the handshake is the data that the client sent.
fn check_established(established: Established, later: &[u8], is_altered: bool) {
    let Established { mut records, rest, .. } = established;
    let bytes = [&rest[..], later].concat();
    let (mut wire, mut out, mut data) = (&bytes[..], Vec::new(), Vec::new());
    while let Some(&header) = wire.first_chunk::<HEADER_BYTES>() {
        let Ok(length) = records.length(header, &mut out) else { break };
        let Some((record, left)) = wire.split_at_checked(length) else { break };
        wire = left;
        match records.open(Sealed::Shared(record), &mut out) {
            Ok(Opened::Data(bytes, range)) => data.extend_from_slice(&bytes[range]),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    assert!(BEHIND.starts_with(&data), "what nobody said");
    assert!(is_altered || data == BEHIND, "not all that was said: {} bytes", data.len());
}

fuzz_target!(|input: Input<'_>| {
    let server = usize::from(input.server) % WORLD.servers.len();
    match input.mode {
        Mode::Raw(bytes) => {
            let whole = receive(server, bytes, &[bytes.len()]);
            fuzz::splits(input.seed, bytes.len(), |ends| assert_eq!(receive(server, bytes, ends), whole));
        }
        Mode::Flood { kind, message, record } => flood(server, kind, message, record),
        Mode::Client { kind, acts } => {
            converse(input.seed, server, usize::from(kind) % WORLD.clients.len(), &acts)
        }
    }
});
