//! TLS on the client's side: certificates made for one test, a Sluice that uses them, and its clients: curl,
//! openssl, gnutls-cli and rustls.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::client::{Client, PATIENCE};
use crate::process::{self, Output};
use crate::sluice::{Setup, Sluice};

/// The kind of a certificate's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519.
    Ed25519,
    /// RSA, 2048 bits.
    Rsa,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::P256, Self::P384, Self::Ed25519, Self::Rsa];

    fn key(self) -> KeyPair {
        let algorithm = match self {
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
            Self::Rsa => &rcgen::PKCS_RSA_SHA256,
        };
        KeyPair::generate_for(algorithm).expect("a key")
    }
}

/// A CA that one test makes and its clients trust.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub pem: String,
    key: String,
}

/// A certificate with its key, PEM.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate.
    pub chain: String,
    /// Its key.
    pub key: String,
    /// An OCSP response to staple, DER.
    pub ocsp: Option<Vec<u8>>,
}

impl Default for Authority {
    fn default() -> Self {
        Self::named("Test CA")
    }
}

impl Authority {
    /// A CA of this name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        let text = key.serialize_pem();
        Self { issuer: Issuer::new(params, key), pem, key: text }
    }

    /// Its key, PEM.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its list of revoked certificates, which has none, PEM. The next is due in so many days.
    #[must_use]
    pub fn crl(&self, days: i64) -> String {
        let now = SystemTime::now();
        let distance = Duration::from_secs(days.unsigned_abs() * 86_400);
        let params = rcgen::CertificateRevocationListParams {
            this_update: (now - Duration::from_secs(86_400 * 10)).into(),
            next_update: (if days < 0 { now - distance } else { now + distance }).into(),
            crl_number: rcgen::SerialNumber::from(9_u64),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("signed").pem().expect("PEM")
    }

    /// A certificate for these names.
    #[must_use]
    pub fn leaf(&self, kind: Kind, names: &[&str]) -> Leaf {
        let key = kind.key();
        let mut params =
            CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
                .expect("names");
        params.distinguished_name.push(DnType::CommonName, names[0]);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        Leaf { chain: self.sign(params, &key), key: key.serialize_pem(), ocsp: None }
    }

    /// Signs any certificate; returns PEM.
    #[must_use]
    pub fn sign(&self, params: CertificateParams, key: &KeyPair) -> String {
        params.signed_by(key, &self.issuer).expect("signed").pem()
    }

    /// This CA's OCSP response that a certificate is good, made by openssl.
    #[must_use]
    pub fn good(&self, leaf: &Leaf) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a folder");
        let files = [("ca.pem", &self.pem), ("ca.key", &self.key), ("leaf.pem", &leaf.chain)];
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        let run = |arguments: &[&str]| {
            process::run(Command::new("openssl").args(arguments).current_dir(folder.path()), PATIENCE)
                .success()
                .text()
        };
        let serial = run(&["x509", "-in", "leaf.pem", "-noout", "-serial"]);
        let serial = serial.trim().trim_start_matches("serial=");
        std::fs::write(
            folder.path().join("index.txt"),
            format!("V\t400101000000Z\t\t{serial}\tunknown\t/CN=x\n"),
        )
        .expect("a file");
        let signer = [
            "ocsp",
            "-index",
            "index.txt",
            "-CA",
            "ca.pem",
            "-rsigner",
            "ca.pem",
            "-rkey",
            "ca.key",
            "-ndays",
            "7",
        ];
        let _ = run(
            &[&signer[..], &["-issuer", "ca.pem", "-cert", "leaf.pem", "-respout", "leaf.ocsp"]].concat()
        );
        std::fs::read(folder.path().join("leaf.ocsp")).expect("a response")
    }

    /// The roots that make a rustls client trust this CA.
    #[must_use]
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("a CA")).expect("a root");
        roots
    }

    /// A client's configuration for these TLS versions.
    #[must_use]
    pub fn config(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
        let mut config = builder.with_root_certificates(self.roots()).with_no_client_auth();
        config.enable_secret_extraction = true;
        config
    }
}

/// TLS 1.3 and TLS 1.2, each alone.
pub const VERSIONS: [(&str, &[&SupportedProtocolVersion]); 2] =
    [("TLSv1.3", &[&TLS13]), ("TLSv1.2", &[&TLS12])];

/// Makes a setup's listener an https listener with these certificates. `lines` go into `listener.tls`.
#[must_use]
pub fn https(setup: Setup, authority: &Authority, leaves: &[Leaf], lines: &str) -> Setup {
    let folder = setup.run_dir().to_owned();
    std::fs::write(folder.join("ca.pem"), &authority.pem).expect("a file");
    let mut tables = String::new();
    for (index, leaf) in leaves.iter().enumerate() {
        let path = |what: &str| folder.join(format!("{index}.{what}"));
        std::fs::write(path("pem"), &leaf.chain).expect("a file");
        std::fs::write(path("key"), &leaf.key).expect("a file");
        std::fs::set_permissions(path("key"), std::fs::Permissions::from_mode(0o600)).expect("a mode");
        tables += &format!(
            "[[listener.certificate]]\nchain = \"{}\"\nkey = \"{}\"\n",
            path("pem").display(),
            path("key").display()
        );
        if let Some(ocsp) = &leaf.ocsp {
            std::fs::write(path("ocsp"), ocsp).expect("a file");
            tables += &format!("ocsp = \"{}\"\n", path("ocsp").display());
        }
    }
    setup.with("listener", &format!("protocol = \"https\"\n{tables}[listener.tls]\n{lines}"))
}

/// A TLS connection of a rustls client.
pub type Secured = StreamOwned<ClientConnection, TcpStream>;

/// Shakes hands over a connected socket and sends nothing else.
///
/// # Errors
/// The handshake failed. The error wraps rustls' own, if rustls found the fault.
pub fn handshake(mut socket: TcpStream, config: &Arc<ClientConfig>, name: &str) -> io::Result<Secured> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    while connection.is_handshaking() || connection.wants_write() {
        connection.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(connection, socket))
}

impl Sluice {
    /// A client over TLS; panics if the handshake fails.
    #[must_use]
    pub fn secured(&self, config: &Arc<ClientConfig>, name: &str) -> Client<Secured> {
        let socket = self.inside(|| TcpStream::connect_timeout(&self.address(), PATIENCE)).expect("connect");
        Client::new(
            handshake(socket, config, name).unwrap_or_else(|error| panic!("handshake with {name}: {error}")),
        )
    }

    /// A file that `https` wrote beside the configuration: `ca.pem`, `0.pem`, `0.key`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.run_dir().join(name)
    }

    /// A curl command that trusts the CA given to `https` and resolves this name.
    #[must_use]
    pub fn curl_for(&self, name: &str) -> Command {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "30", "--cacert"]).arg(self.file("ca.pem"));
        command.args(["--resolve", &format!("{name}:{}:127.0.0.1", self.address().port())]);
        command
    }

    /// The output of curl for `https://name/path`.
    #[must_use]
    pub fn curl(&self, name: &str, path: &str, options: &[&str]) -> Output {
        let url = format!("https://{name}:{}{path}", self.address().port());
        process::run(self.curl_for(name).args(options).arg(url), PATIENCE * 3)
    }

    /// The output of `openssl s_client`; see [`converse`] for `lines`.
    #[must_use]
    pub fn openssl(&self, options: &[&str], lines: &[(&str, &str)]) -> String {
        let mut command = Command::new("openssl");
        command
            .args(["s_client", "-connect", &self.address().to_string(), "-CAfile"])
            .arg(self.file("ca.pem"));
        converse(command.args(options), lines)
    }

    /// The output of gnutls-cli; see [`converse`] for `lines`.
    #[must_use]
    pub fn gnutls(&self, options: &[&str], lines: &[(&str, &str)]) -> String {
        let mut command = Command::new("gnutls-cli");
        command
            .arg("--x509cafile")
            .arg(self.file("ca.pem"))
            .args(["--port", &self.address().port().to_string()]);
        converse(command.args(options).arg("127.0.0.1"), lines)
    }
}

/// Runs a program and returns all its output. Each line is a text to send, and the output to wait for before
/// that; only output since the previous line counts. An empty text closes standard input. Panics, with the
/// output so far, if awaited output does not come.
pub fn converse(command: &mut Command, lines: &[(&str, &str)]) -> String {
    use std::sync::mpsc::{RecvTimeoutError, channel};
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|_| panic!("{shown}"));
    let mut stdin = child.stdin.take();
    let (sender, printed) = channel::<Vec<u8>>();
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|out| Box::new(out) as _),
        child.stderr.take().map(|out| Box::new(out) as _),
    ];
    for mut stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
    }
    drop(sender);
    let (mut all, mut at) = (Vec::new(), 0);
    let mut next = |all: &mut Vec<u8>| match printed.recv_timeout(Duration::from_secs(10)) {
        Ok(bytes) => {
            all.extend(bytes);
            true
        }
        Err(RecvTimeoutError::Disconnected) => false,
        Err(RecvTimeoutError::Timeout) => {
            let _ = child.kill();
            panic!("silent: {shown}\n{}", String::from_utf8_lossy(all))
        }
    };
    for (text, wanted) in lines {
        loop {
            let rest = String::from_utf8_lossy(&all[at..]).into_owned();
            if rest.contains(wanted) {
                at = all.len();
                break;
            }
            assert!(next(&mut all), "no {wanted:?}: {shown}\n{}", String::from_utf8_lossy(&all));
        }
        if text.is_empty() {
            // The test sends nothing more.
            stdin = None;
        } else if let Some(stdin) = &mut stdin {
            stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("standard input");
        }
    }
    while next(&mut all) {}
    drop(stdin);
    process::wait(&mut child, Duration::from_secs(10)).unwrap_or_else(|| panic!("still running: {shown}"));
    String::from_utf8_lossy(&all).into_owned()
}

/// A client that makes its own records. rustls does the handshake; afterwards this type seals and opens any
/// record, valid or not.
pub struct Forger {
    /// The socket, for bytes that are not sealed.
    pub socket: TcpStream,
    is_13: bool,
    send: Half,
    receive: Half,
    /// Bytes received but not opened yet.
    input: Vec<u8>,
}

/// The keys of one direction, always for AES-128-GCM.
struct Half {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this alert; 0 is close_notify.
    Alert(u8),
    /// Without an alert.
    Cut,
}

impl Forger {
    /// Connects and shakes hands for this name, in this TLS version.
    #[must_use]
    pub fn connect(
        address: SocketAddr,
        authority: &Authority,
        name: &str,
        version: &'static SupportedProtocolVersion,
    ) -> Self {
        use rustls::CipherSuite::{TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS13_AES_128_GCM_SHA256};
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        let suites = [TLS13_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256];
        provider.cipher_suites.retain(|suite| suites.contains(&suite.suite()));
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .expect("a version");
        let mut config = builder.with_root_certificates(authority.roots()).with_no_client_auth();
        config.enable_secret_extraction = true;
        let socket = TcpStream::connect_timeout(&address, PATIENCE).expect("connect");
        let StreamOwned { conn, sock: socket } =
            handshake(socket, &Arc::new(config), name).expect("handshake");
        let secrets = conn.dangerous_extract_secrets().expect("secrets");
        let half = |(sequence, secrets)| {
            let rustls::ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
                panic!("another cipher")
            };
            let key = UnboundKey::new(&AES_128_GCM, &key.as_ref()[..16]).expect("a key");
            Half { key: LessSafeKey::new(key), iv: iv.as_ref().try_into().expect("12 bytes"), sequence }
        };
        let is_13 = version.version == rustls::ProtocolVersion::TLSv1_3;
        Self { socket, is_13, send: half(secrets.tx), receive: half(secrets.rx), input: Vec::new() }
    }

    /// Seals a record of this kind.
    #[must_use]
    pub fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        if self.is_13 { self.seal_inside(&[content, &[kind]].concat()) } else { self.seal_12(kind, content) }
    }

    /// Seals a TLS 1.3 record with this inner plaintext, which includes the kind and any padding.
    #[must_use]
    pub fn seal_inside(&mut self, inside: &[u8]) -> Vec<u8> {
        let length = u16::try_from(inside.len() + 16).expect("a record's length");
        let mut record = [&[23, 3, 3][..], &length.to_be_bytes()].concat();
        let (aad, nonce) = (Aad::from(record.clone()), self.send.nonce());
        let mut sealed = inside.to_vec();
        self.send
            .key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .expect("sealed");
        self.send.sequence += 1;
        record.append(&mut sealed);
        record
    }

    fn seal_12(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len() + 24).expect("a record's length");
        let (aad, nonce) = (self.send.aad_12(kind, content.len()), self.send.nonce());
        let mut record = [&[kind, 3, 3][..], &length.to_be_bytes(), &nonce[4..]].concat();
        let mut sealed = content.to_vec();
        self.send
            .key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .expect("sealed");
        self.send.sequence += 1;
        record.append(&mut sealed);
        record
    }

    /// Writes to the socket.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // Sluice may have closed the connection already.
        let _ = self.socket.write_all(bytes.as_ref());
    }

    /// The next record's kind and content; tickets are skipped. `None`: the connection ended.
    pub fn record(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let [kind, 3, 3, high, low, rest @ ..] = &*self.input
                && let Some(body) = rest.get(..usize::from(u16::from_be_bytes([*high, *low])))
            {
                let (header, mut body) = ([*kind, 3, 3, *high, *low], body.to_vec());
                self.input.drain(..5 + body.len());
                let (kind, content) = self.receive.open(header, &mut body, self.is_13);
                if kind == 22 {
                    continue;
                }
                return Some((kind, content));
            }
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(self.input.is_empty(), "part of a record: {:?}", self.input);
        None
    }

    /// Reads until the end. Returns the data, every alert but the last, and how the connection ended.
    pub fn until_closed(&mut self) -> (Vec<u8>, Vec<u8>, Ending) {
        let (mut data, mut alerts) = (Vec::new(), Vec::new());
        while let Some((kind, mut content)) = self.record() {
            match kind {
                23 => data.append(&mut content),
                21 => alerts.push(content[1]),
                kind => panic!("a record of kind {kind}"),
            }
        }
        let ending = alerts.pop().map_or(Ending::Cut, Ending::Alert);
        (data, alerts, ending)
    }
}

impl Half {
    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }

    fn aad_12(&self, kind: u8, length: usize) -> Aad<Vec<u8>> {
        let length = u16::try_from(length).expect("a record's length");
        Aad::from([&self.sequence.to_be_bytes()[..], &[kind, 3, 3], &length.to_be_bytes()].concat())
    }

    fn open(&mut self, header: [u8; 5], body: &mut [u8], is_13: bool) -> (u8, Vec<u8>) {
        let mut nonce = self.nonce();
        let content = if is_13 {
            self.key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(header), body)
        } else {
            let (explicit, body) = body.split_at_mut(8);
            nonce[4..].copy_from_slice(explicit);
            let aad = self.aad_12(header[0], body.len() - 16);
            self.key.open_in_place(Nonce::assume_unique_for_key(nonce), aad, body)
        };
        let content = content.expect("a sound record");
        self.sequence += 1;
        if !is_13 {
            return (header[0], content.to_vec());
        }
        let last = content.iter().rposition(|&byte| byte != 0).expect("a kind");
        (content[last], content[..last].to_vec())
    }
}

impl std::fmt::Debug for Forger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forger").field("sent", &self.send.sequence).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}
