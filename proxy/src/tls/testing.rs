//! Certificates for tests, made by rcgen.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use super::certificate::{Certificate, Files};
use super::server::{MinVersion, Settings};

/// A CA that signs leaves.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A leaf's files.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Pair {
    pub(crate) fn files(&self) -> Files<'_> {
        Files { chain: self.chain.as_bytes(), key: self.key.as_bytes(), ocsp: None }
    }

    pub(crate) fn compiled(&self) -> Arc<Certificate> {
        Certificate::new(self.files()).map_err(|error| error.to_string()).expect("sound").into()
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// The same in every process, also in the lengths of its signatures.
    pub(crate) fn fixed(name: &str, number: u8) -> Self {
        let mut params = params(&[]);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = fixed_key(number);
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Its list of these revoked certificates, until the end of a year.
    pub(crate) fn revoking(&self, serials: &[u64], until: i32) -> rcgen::CertificateRevocationList {
        let revoked_certs = serials.iter().map(|serial| rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 2, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = rcgen::CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 12, 31),
            crl_number: rcgen::SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("signed")
    }

    /// A list without any.
    pub(crate) fn crl(&self, until: i32) -> rcgen::CertificateRevocationList {
        self.revoking(&[], until)
    }

    /// For these names, on P-256.
    pub(crate) fn leaf(&self, names: &[&str]) -> Pair {
        self.issue(params(names), &KeyPair::generate().expect("a key"))
    }

    pub(crate) fn issue(&self, params: CertificateParams, key: &KeyPair) -> Pair {
        let certificate = params.signed_by(key, &self.issuer).expect("signed");
        Pair { chain: certificate.pem(), key: key.serialize_pem() }
    }
}

/// Valid from 2020 to 2040.
pub(crate) fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params
}

/// An Ed25519 key, the same in every process. Its signatures have one length, while ECDSA's lengths vary.
pub(crate) fn fixed_key(number: u8) -> KeyPair {
    // PKCS #8 (RFC 8410 §7) around a seed.
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend_from_slice(&[number; 32]);
    KeyPair::from_pkcs8_der_and_sign_algo(&der.as_slice().into(), &rcgen::PKCS_ED25519).expect("a key")
}

/// A key of another kind than P-256.
pub(crate) fn key(algorithm: &'static rcgen::SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("a key")
}

/// RSA of 2048 bits takes its time to make: one for all tests, never used but in tests.
pub(crate) fn rsa_key() -> KeyPair {
    static PEM: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let pem = PEM.get_or_init(|| key(&rcgen::PKCS_RSA_SHA256).serialize_pem());
    KeyPair::from_pem_and_sign_algo(pem, &rcgen::PKCS_RSA_SHA256).expect("a key")
}

/// Runs a handshake to its end in memory, and takes in the server's messages after it.
pub(crate) fn handshake(
    client: impl Into<Arc<ClientConfig>>,
    server: &Arc<ServerConfig>,
    name: &str,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(client.into(), name)?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("to memory");
        }
        server.read_tls(&mut wire.as_slice()).expect("from memory");
        server.process_new_packets()?;
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("to memory");
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("from memory");
            client.process_new_packets()?;
        }
    }
    Ok((client, server))
}

/// A listener's settings: everything as by default.
pub(crate) fn settings(certificates: Vec<Arc<Certificate>>) -> Settings {
    Settings {
        certificates,
        min_version: MinVersion::Tls12,
        alpn: vec!["http/1.1".into()],
        client_auth: None,
        session_tickets: true,
        early_data: false,
        ticket_keys: vec![],
        handshake_timeout: Duration::from_secs(10),
        max_handshakes: 256,
    }
}

/// An OCSP response, unsigned, as `ocsp::read` reads it.
pub(crate) struct Response {
    /// PEM; the first certificate is meant.
    pub(crate) chain: String,
    /// Answered for before it.
    pub(crate) others: Vec<String>,
    /// The tag of certStatus.
    pub(crate) status: u8,
    pub(crate) is_sha1: bool,
    pub(crate) has_version: bool,
    pub(crate) next_update: Option<&'static str>,
}

impl Response {
    /// Good until the first of February 2026.
    pub(crate) fn new(chain: &str) -> Self {
        let next_update = Some("20260201120000Z");
        Self {
            chain: chain.to_owned(),
            others: Vec::new(),
            status: 0x80,
            is_sha1: true,
            has_version: false,
            next_update,
        }
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        let singles: Vec<u8> =
            self.others.iter().chain([&self.chain]).flat_map(|chain| self.single(chain)).collect();
        let time = tlv(0x18, b"20260125120000Z");
        let version = if self.has_version { tlv(0xa0, &tlv(2, &[0])) } else { Vec::new() };
        let responder = tlv(0xa2, &tlv(4, &[7; 20]));
        let data = tlv(0x30, &[version, responder, time, tlv(0x30, &singles)].concat());
        let basic = tlv(0x30, &[data, tlv(0x30, &[]), tlv(3, &[0])].concat());
        let kind = tlv(6, &[0x2b, 6, 1, 5, 5, 7, 48, 1, 1]);
        let bytes = tlv(0xa0, &tlv(0x30, &[kind, tlv(4, &basic)].concat()));
        tlv(0x30, &[tlv(0x0a, &[0]), bytes].concat())
    }

    fn single(&self, chain: &str) -> Vec<u8> {
        use aws_lc_rs::digest;
        use x509_parser::prelude::{FromDer as _, X509Certificate};
        let chain = super::pem::certificates(super::Part::Chain, chain.as_bytes()).expect("PEM");
        let (_, leaf) = X509Certificate::from_der(&chain[0]).expect("X.509");
        let (oid, hash): (&[u8], _) = if self.is_sha1 {
            (&[0x2b, 14, 3, 2, 26], &digest::SHA1_FOR_LEGACY_USE_ONLY)
        } else {
            (&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1], &digest::SHA256)
        };
        let algorithm = tlv(0x30, &[tlv(6, oid), tlv(5, &[])].concat());
        let name = tlv(4, digest::digest(hash, leaf.issuer().as_raw()).as_ref());
        let id = tlv(0x30, &[algorithm, name, tlv(4, &[9; 20]), tlv(2, leaf.raw_serial())].concat());
        let next = self.next_update.map_or_else(Vec::new, |time| tlv(0xa0, &tlv(0x18, time.as_bytes())));
        let status = if self.status == 0xa1 {
            tlv(0xa1, &tlv(0x18, b"20260101000000Z"))
        } else {
            tlv(self.status, &[])
        };
        tlv(0x30, &[id, status, tlv(0x18, b"20260125120000Z"), next].concat())
    }
}

/// A DER value with its tag and length.
pub(crate) fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    match value.len() {
        short @ 0..=127 => der.push(short as u8),
        long => der.extend([0x82, (long >> 8) as u8, long as u8]),
    }
    der.extend_from_slice(value);
    der
}
