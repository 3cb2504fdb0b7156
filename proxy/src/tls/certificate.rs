//! A certificate as listeners use it: chain and key, checked to belong together, and the facts that other
//! code needs (RFC 5280).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{Error, InconsistentKeys, SignatureScheme};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::ocsp::{self, Staple};
use super::review::{self, Remark};
use super::{Part, TlsError, pem, provider};

const CHAIN_FORM: &str = "certificates as a CA issues them";
const KEYS_FORM: &str = "RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521, or Ed25519";
/// The keys that aws-lc-rs signs with.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The files of a certificate, as they were read.
#[derive(Clone, Copy)]
pub struct Files<'a> {
    /// PEM certificates, the leaf first.
    pub chain: &'a [u8],
    /// A PEM private key.
    pub key: &'a [u8],
    /// An OCSP response in DER, to staple.
    pub ocsp: Option<&'a [u8]>,
}

/// The kind of a certificate's key. In the order of a handshake's cost, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyKind {
    /// ECDSA on P-256.
    EcdsaP256,
    /// Ed25519.
    Ed25519,
    /// ECDSA on P-384.
    EcdsaP384,
    /// ECDSA on P-521.
    EcdsaP521,
    /// RSA.
    Rsa,
}

impl KeyKind {
    /// For people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ECDSA P-256",
            Self::Ed25519 => "Ed25519",
            Self::EcdsaP384 => "ECDSA P-384",
            Self::EcdsaP521 => "ECDSA P-521",
            Self::Rsa => "RSA",
        }
    }
}

/// A chain with its key. Equal are those made of the same bytes.
pub struct Certificate {
    /// With the staple, if there is one.
    certified: Arc<CertifiedKey>,
    /// Without it.
    bare: Arc<CertifiedKey>,
    staple: Option<Staple>,
    names: Vec<Box<str>>,
    subject: Box<str>,
    kind: KeyKind,
    not_before: i64,
    not_after: i64,
    /// Which of the others in the chain ends first, and when.
    intermediate_end: Option<(usize, i64)>,
    lasting: Vec<Remark>,
    /// Of the files.
    digest: [u8; 32],
}

impl Certificate {
    /// Checks and compiles a certificate's files.
    ///
    /// # Errors
    /// The mistake, and its file.
    pub fn new(files: Files<'_>) -> Result<Self, TlsError> {
        let chain = pem::certificates(Part::Chain, files.chain)?;
        let parsed = parse(&chain)?;
        let leaf = &parsed[0];
        let kind = kind(leaf)?;
        let key = pem::key(Part::Key, files.key)?;
        let key = provider().key_provider.load_private_key(key).map_err(|_| {
            TlsError::new(Part::Key, "is damaged, or of a kind that is not supported", KEYS_FORM)
        })?;
        // Read before the chain goes to its owner.
        let names = names(leaf);
        let subject = subject(leaf, &names);
        let (not_before, not_after) =
            (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        check_key(&*key, &parsed)?;
        let staple = files.ocsp.map(|response| ocsp::read(response, leaf)).transpose()?;
        let lasting = review::lasting(&parsed, &names);
        let ends =
            parsed.iter().map(|certificate| certificate.validity().not_after.timestamp()).enumerate().skip(1);
        let intermediate_end = ends.min_by_key(|(_, end)| *end);
        drop(parsed);
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(_) => {
                return Err(TlsError::new(Part::Chain, "is not what TLS can use", CHAIN_FORM));
            }
        }
        let stapled =
            files.ocsp.map(|response| CertifiedKey { ocsp: Some(response.to_vec()), ..certified.clone() });
        let bare = Arc::new(certified);
        let certified = stapled.map_or_else(|| Arc::clone(&bare), Arc::new);
        let digest = digest_of(files);
        Ok(Self {
            certified,
            bare,
            staple,
            names,
            subject,
            kind,
            not_before,
            not_after,
            intermediate_end,
            lasting,
            digest,
        })
    }

    /// DNS names it is for, in lower case: `example.com`, `*.example.com`. They come from the subject
    /// alternative name, or from the common name of a certificate without one. May be empty.
    #[must_use]
    pub fn names(&self) -> &[Box<str>] {
        &self.names
    }

    /// Its name in metrics and logs: the first of `names`, else the subject's text.
    #[must_use]
    pub fn name(&self) -> &str {
        self.names.first().unwrap_or(&self.subject)
    }

    /// The certificate for rustls: the staple is shown only while it is valid at the time that `now` reads,
    /// in seconds since 1970.
    pub(super) fn certified(&self, now: impl FnOnce() -> Option<i64>) -> &Arc<CertifiedKey> {
        match self.staple {
            Some(Staple { next_update: Some(end), .. }) if now().is_none_or(|now| now > end) => &self.bare,
            _ => &self.certified,
        }
    }

    /// Whether it can sign with one of these.
    pub(super) fn signs(&self, schemes: &[SignatureScheme]) -> bool {
        self.bare.key.choose_scheme(schemes).is_some()
    }

    /// The OCSP response to staple.
    #[must_use]
    pub const fn staple(&self) -> Option<Staple> {
        self.staple
    }

    /// Which other certificate of the chain ends first (from 0, the leaf), and when, seconds since 1970.
    #[must_use]
    pub const fn intermediate_end(&self) -> Option<(usize, i64)> {
        self.intermediate_end
    }

    /// Remarks that hold at any time.
    #[must_use]
    pub fn remarks(&self) -> &[Remark] {
        &self.lasting
    }

    /// The kind of its key.
    #[must_use]
    pub const fn kind(&self) -> KeyKind {
        self.kind
    }

    /// Its last moment, seconds since 1970.
    #[must_use]
    pub const fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Its first moment, seconds since 1970.
    #[must_use]
    pub const fn not_before(&self) -> i64 {
        self.not_before
    }

    /// Whether it holds at `now`, seconds since 1970.
    #[must_use]
    pub fn is_valid_at(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Certificate");
        shown
            .field("names", &self.names)
            .field("kind", &self.kind)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The certificates of a chain, the leaf first.
fn parse<'a>(chain: &'a [CertificateDer<'_>]) -> Result<Vec<X509Certificate<'a>>, TlsError> {
    let parse = |(index, der): (usize, &'a CertificateDer<'_>)| match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(_) => {
            let message = format!("certificate {} is not X.509", index + 1);
            Err(TlsError::new(Part::Chain, message, CHAIN_FORM))
        }
    };
    chain.iter().enumerate().map(parse).collect()
}

/// Refuses a key that is not the leaf's. A key that does not tell its public half is taken.
fn check_key(key: &dyn SigningKey, chain: &[X509Certificate<'_>]) -> Result<(), TlsError> {
    let Some(public) = key.public_key() else { return Ok(()) };
    let owner = chain.iter().position(|certificate| certificate.public_key().raw == public.as_ref());
    match owner {
        Some(0) => Ok(()),
        Some(other) => Err(TlsError::new(
            Part::Chain,
            format!("begins with another certificate than the key's, which is the {} one", ordinal(other)),
            "the server's own certificate first, then those that lead to its root",
        )),
        None => Err(TlsError::new(
            Part::Key,
            "does not belong to the certificate",
            "the key that the certificate was issued for",
        )),
    }
}

/// Of bytes that must not be kept; lengths keep the parts apart.
fn digest_of(files: Files<'_>) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [files.chain, files.key].into_iter().chain(files.ocsp) {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn kind(leaf: &X509Certificate<'_>) -> Result<KeyKind, TlsError> {
    const P256: &str = "1.2.840.10045.3.1.7";
    const P384: &str = "1.3.132.0.34";
    const P521: &str = "1.3.132.0.35";
    const ED25519: &str = "1.3.101.112";
    let public = leaf.public_key();
    let curve = || {
        public
            .algorithm
            .parameters
            .as_ref()
            .and_then(|curve| curve.as_oid().ok())
            .map(|oid| oid.to_id_string())
    };
    let unsupported =
        |what: &str| TlsError::new(Part::Chain, format!("has {what}, which is not supported"), KEYS_FORM);
    match public.parsed() {
        Ok(PublicKey::RSA(key)) => {
            let bits = key.key_size();
            if RSA_BITS.contains(&bits) {
                Ok(KeyKind::Rsa)
            } else {
                Err(unsupported(&format!("an RSA key of {bits} bits")))
            }
        }
        Ok(PublicKey::EC(_)) => match curve().as_deref() {
            Some(P256) => Ok(KeyKind::EcdsaP256),
            Some(P384) => Ok(KeyKind::EcdsaP384),
            Some(P521) => Ok(KeyKind::EcdsaP521),
            _ => Err(unsupported("an ECDSA key on another curve")),
        },
        _ if public.algorithm.algorithm.to_id_string() == ED25519 => Ok(KeyKind::Ed25519),
        _ => Err(unsupported("a key of another kind")),
    }
}

fn names(leaf: &X509Certificate<'_>) -> Vec<Box<str>> {
    let mut names: Vec<Box<str>> = Vec::new();
    let mut take = |written: &str| {
        let name = written.to_ascii_lowercase();
        if is_dns_name(&name) && !names.iter().any(|known| **known == *name) {
            names.push(name.into());
        }
    };
    match leaf.subject_alternative_name() {
        Ok(Some(alternative)) => alternative.value.general_names.iter().for_each(|name| {
            if let GeneralName::DNSName(name) = name {
                take(name);
            }
        }),
        _ => leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok()).for_each(take),
    }
    names
}

/// A name that a client could ask for, or a wildcard in the place of its first label.
fn is_dns_name(name: &str) -> bool {
    let labels = name.strip_prefix("*.").unwrap_or(name);
    let is_label = |label: &str| {
        let inner =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        !label.is_empty() && label.len() <= 63 && label.bytes().all(inner)
    };
    name.len() <= 253 && labels.split('.').all(is_label)
}

/// A certificate's name for people if it has no DNS name.
fn subject(leaf: &X509Certificate<'_>, names: &[Box<str>]) -> Box<str> {
    if !names.is_empty() {
        return Box::default();
    }
    let common = leaf.subject().iter_common_name().find_map(|name| name.as_str().ok());
    let text: String = common.map_or_else(|| leaf.subject().to_string(), str::to_owned);
    text.chars().filter(|letter| !letter.is_control()).take(64).collect::<String>().into()
}

fn ordinal(index: usize) -> String {
    match index {
        1 => "second".to_owned(),
        2 => "third".to_owned(),
        _ => format!("{}th", index + 1),
    }
}

#[cfg(test)]
mod tests;
