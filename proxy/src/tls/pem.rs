//! PEM files (RFC 7468) of certificates and keys. An error names the thing that was found in the place of the
//! expected one: a key in the place of a chain, DER, an encrypted key.

use rustls::pki_types::pem::{self, PemObject, SectionKind};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};

use super::{Part, TlsError};

const CHAIN_FORM: &str = "PEM certificates (-----BEGIN CERTIFICATE-----), the server's own first, then those \
    that lead to its root";
const CA_FORM: &str = "PEM certificates (-----BEGIN CERTIFICATE-----)";
const KEY_FORM: &str = "one unencrypted private key in PEM (-----BEGIN PRIVATE KEY-----)";

/// The certificates of a file, one at least.
///
/// # Errors
/// There is none, or one is damaged.
pub fn certificates(part: Part, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let expected = if part == Part::Chain { CHAIN_FORM } else { CA_FORM };
    let mut found = Vec::new();
    for item in CertificateDer::pem_slice_iter(bytes) {
        let certificate = item.map_err(|error| {
            TlsError::new(
                part,
                format!("certificate {} is damaged: {}", found.len() + 1, damage(&error)),
                expected,
            )
        })?;
        found.push(certificate);
    }
    if found.is_empty() { Err(instead(part, bytes, expected, "certificate")) } else { Ok(found) }
}

/// The private key of a file, which may hold certificates and parameters beside it.
///
/// # Errors
/// There is none or more than one, or it is damaged or encrypted.
pub fn key(part: Part, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    if labels(bytes).any(|label| label == "ENCRYPTED PRIVATE KEY")
        || contains(bytes, b"Proc-Type: 4,ENCRYPTED")
    {
        let message = "is encrypted, and nobody is there at a start to type its passphrase";
        return Err(TlsError::new(
            part,
            message,
            "an unencrypted key, for its owner alone to read: `openssl pkey -in … -out …`",
        ));
    }
    let mut found = None;
    for item in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
        let (kind, der) =
            item.map_err(|error| TlsError::new(part, format!("is damaged: {}", damage(&error)), KEY_FORM))?;
        let key = match kind {
            SectionKind::PrivateKey => PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der)),
            SectionKind::RsaPrivateKey => PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(der)),
            SectionKind::EcPrivateKey => PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(der)),
            _ => continue,
        };
        if found.replace(key).is_some() {
            return Err(TlsError::new(part, "holds more than one private key", KEY_FORM));
        }
    }
    found.ok_or_else(|| instead(part, bytes, KEY_FORM, "private key"))
}

/// The kind of a file that holds no `wanted`.
pub(super) fn instead(part: Part, bytes: &[u8], expected: &'static str, wanted: &str) -> TlsError {
    let message = if bytes.iter().all(u8::is_ascii_whitespace) {
        "is empty".to_owned()
    } else if let Some(label) = labels(bytes).next() {
        format!("holds {} and no {wanted}", what(label))
    } else if bytes.first() == Some(&0x30) {
        // A DER SEQUENCE, which certificates and keys are.
        let message = "is DER, not PEM";
        let form = if wanted == "certificate" {
            "PEM: `openssl x509 -inform der -in … -out …`"
        } else {
            "PEM: `openssl pkey -inform der -in … -out …`"
        };
        return TlsError::new(part, message, form);
    } else {
        "is not PEM".to_owned()
    };
    TlsError::new(part, message, expected)
}

/// A section's label with its article.
fn what(label: &str) -> String {
    match label {
        "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => {
            "a private key".to_owned()
        }
        "CERTIFICATE" => "a certificate".to_owned(),
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => "a request for a certificate".to_owned(),
        "PUBLIC KEY" => "a public key".to_owned(),
        "X509 CRL" => "a list of revoked certificates".to_owned(),
        "PKCS7" => "a PKCS #7 bundle (`openssl pkcs7 -print_certs` takes it apart)".to_owned(),
        "TRUSTED CERTIFICATE" => {
            "a certificate in OpenSSL's own form (`openssl x509 -in … -out …` makes a usual one)".to_owned()
        }
        "OPENSSH PRIVATE KEY" => "a key of OpenSSH".to_owned(),
        _ => format!("\"{}\"", label.chars().take(40).collect::<String>().escape_debug()),
    }
}

/// The kinds that PEM sections name.
fn labels(bytes: &[u8]) -> impl Iterator<Item = &str> {
    bytes.split(|&byte| byte == b'\n' || byte == b'\r').filter_map(|line| {
        let label = line.strip_prefix(b"-----BEGIN ")?.trim_ascii_end().strip_suffix(b"-----")?;
        std::str::from_utf8(label).ok()
    })
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// Never the damaged text, which may be of a key.
pub(super) fn damage(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "its -----END line is missing",
        pem::Error::IllegalSectionStart { .. } => "its -----BEGIN line is incomplete",
        pem::Error::Base64Decode(_) => "it is not Base64",
        _ => "it cannot be decoded",
    }
}
