//! Certificates for tests, made by rcgen.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use super::certificate::{Certificate, Files};

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
        Files { chain: self.chain.as_bytes(), key: self.key.as_bytes() }
    }

    pub(crate) fn compiled(&self) -> std::sync::Arc<Certificate> {
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

    /// Its own certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
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
