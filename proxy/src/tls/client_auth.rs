//! What a listener asks of its clients' certificates: who vouches for them, whether a client must show one,
//! and which are revoked (RFC 5280 §5).
//!
//! A session that is resumed shows its certificate no more. So everything here is bound into tickets, and a
//! listener whose lists have ended resumes nothing.

use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::{Part, TlsError, pem, provider, review, roots};

const CRL_FORM: &str = "lists of revoked certificates in PEM (-----BEGIN X509 CRL-----), or one in DER";

/// So long before its end a list is warned of, in seconds.
const SOON: i64 = 86_400;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// `listener.tls.client_ca`: PEM certificates.
    pub ca: Box<[u8]>,
    /// `listener.tls.client_auth`: a client without a certificate is refused.
    pub is_required: bool,
    /// `listener.tls.client_crl`; empty: nothing is known to be revoked.
    pub crls: Vec<Crl>,
    /// `listener.tls.crl_expired`: a list holds after its end.
    pub accepts_expired: bool,
}

/// A list of revoked certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crl {
    /// The subject of the CA that issued it.
    pub issuer: Box<str>,
    /// When the next one is due, seconds since 1970; `None`: it does not say.
    pub next_update: Option<i64>,
    /// Whether its CA is one of `client_ca`.
    pub is_of_known: bool,
    der: CertificateRevocationListDer<'static>,
}

impl ClientAuth {
    /// Of clients that must have a certificate of these CAs.
    #[must_use]
    pub fn required(ca: &[u8]) -> Self {
        Self { ca: ca.into(), is_required: true, crls: Vec::new(), accepts_expired: false }
    }

    /// The lists in a file.
    ///
    /// # Errors
    /// It holds none, or one that is damaged, not signed by its CA, or of a kind that is not understood.
    /// Errors of `ca` are not for this.
    pub fn read_crls(ca: &[u8], bytes: &[u8]) -> Result<Vec<Crl>, TlsError> {
        let wrong = |message: String| TlsError::new(Part::Crl, message, CRL_FORM);
        let ders: Vec<_> = if bytes.first() == Some(&0x30) {
            vec![CertificateRevocationListDer::from(bytes.to_vec())]
        } else {
            let items = CertificateRevocationListDer::pem_slice_iter(bytes);
            let items: Result<_, _> = items.collect();
            items.map_err(|error| wrong(format!("is damaged: {}", pem::damage(&error))))?
        };
        if ders.is_empty() {
            return Err(pem::instead(Part::Crl, bytes, CRL_FORM, "list of revoked certificates"));
        }
        let authorities = pem::certificates(Part::ClientCa, ca)?;
        let authorities: Vec<_> = authorities
            .iter()
            .filter_map(|der| X509Certificate::from_der(der).ok())
            .map(|(_, ca)| ca)
            .collect();
        let roots = Arc::new(roots(Part::ClientCa, ca)?);
        ders.into_iter().map(|der| Crl::new(der, &authorities, &roots)).collect()
    }

    /// The judge of certificates.
    ///
    /// # Errors
    /// When `ca` holds no usable certificates.
    pub(super) fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let roots = Arc::new(roots(Part::ClientCa, &self.ca)?);
        let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
        if !self.is_required {
            builder = builder.allow_unauthenticated();
        }
        if !self.crls.is_empty() {
            builder = builder.with_crls(self.crls.iter().map(|crl| crl.der.clone()));
            if !self.accepts_expired {
                builder = builder.enforce_revocation_expiration();
            }
        }
        builder.build().map(|verifier| verifier as Arc<dyn ClientCertVerifier>).map_err(|error| {
            TlsError::new(
                Part::ClientCa,
                format!("is not usable: {error}"),
                "certificates that may vouch for clients",
            )
        })
    }

    /// Tells everything here from anything else.
    pub(super) fn print(&self) -> [u8; 32] {
        let Self { ca, is_required, crls, accepts_expired } = self;
        let mut context = digest::Context::new(&digest::SHA256);
        let mut add = |bytes: &[u8]| {
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        };
        add(&[1, u8::from(*is_required), u8::from(*accepts_expired)]);
        add(ca);
        crls.iter().for_each(|crl| add(&crl.der));
        context.finish().as_ref().try_into().unwrap_or_default()
    }

    /// The moment from which on no certificate is believed, seconds since 1970; `None`: there is none.
    pub(super) fn ends_at(&self) -> Option<i64> {
        if self.accepts_expired { None } else { self.crls.iter().filter_map(|crl| crl.next_update).min() }
    }

    /// The subjects of CAs whose clients are all refused, since no list is theirs.
    #[must_use]
    pub fn without_crl(&self) -> Vec<String> {
        if self.crls.is_empty() {
            return Vec::new();
        }
        let Ok(ders) = pem::certificates(Part::ClientCa, &self.ca) else { return Vec::new() };
        let subjects = ders.iter().filter_map(|der| {
            let (_, authority) = X509Certificate::from_der(der).ok()?;
            Some(authority.subject().to_string())
        });
        subjects.filter(|subject| !self.crls.iter().any(|crl| *crl.issuer == **subject)).collect()
    }
}

/// Whether a moment of `ends_at` is over.
pub(super) fn is_over(end: Option<i64>) -> bool {
    end.is_some_and(|end| UnixTime::now().as_secs() >= u64::try_from(end).unwrap_or_default())
}

impl Crl {
    /// A remark that is due at `now`, seconds since 1970: in one sentence whose subject is the list.
    #[must_use]
    pub fn due(&self, now: i64, accepts_expired: bool) -> Option<String> {
        let end = self.next_update?;
        let (issuer, day) = (&self.issuer, review::date(end));
        if now < end {
            let left = end - now;
            return (left < SOON)
                .then(|| format!("of \"{issuer}\" is to be replaced on {day}, in a day or less"));
        }
        let effect = if accepts_expired {
            "crl_expired = \"accept\" believes it all the same"
        } else {
            "until there is a new one, every client is refused that it is for"
        };
        Some(format!("of \"{issuer}\" was to be replaced on {day}: {effect}"))
    }

    fn new(
        der: CertificateRevocationListDer<'static>,
        authorities: &[X509Certificate<'_>],
        roots: &Arc<RootCertStore>,
    ) -> Result<Self, TlsError> {
        let wrong = |message: String| TlsError::new(Part::Crl, message, CRL_FORM);
        let (rest, list) = CertificateRevocationList::from_der(&der)
            .map_err(|_| wrong("holds no list of revoked certificates, or a damaged one".to_owned()))?;
        if !rest.is_empty() {
            return Err(wrong("goes on behind its list of revoked certificates".to_owned()));
        }
        let issuer: Box<str> = list.issuer().to_string().into();
        let mut named =
            authorities.iter().filter(|ca| ca.subject().as_raw() == list.issuer().as_raw()).peekable();
        let is_of_known = named.peek().is_some();
        if is_of_known && !named.any(|authority| is_signed_by(&list, authority)) {
            let message = format!("names \"{issuer}\" as its CA, but the CA of that name has not signed it");
            return Err(TlsError::new(Part::Crl, message, "a list that one of client_ca has signed"));
        }
        let next_update = list.next_update().map(|time| time.timestamp());
        // Lists of some kinds are not understood: of changes alone, or of a part of the certificates.
        let probe = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
        probe.with_crls([der.clone()]).build().map_err(|error| {
            TlsError::new(
                Part::Crl,
                format!("of \"{issuer}\" is not usable: {error}"),
                "a whole list of version 2, signed with a usual algorithm",
            )
        })?;
        Ok(Self { issuer, next_update, is_of_known, der })
    }
}

/// Whether one of the algorithms that we know says so.
fn is_signed_by(list: &CertificateRevocationList<'_>, authority: &X509Certificate<'_>) -> bool {
    let (key, signed) = (&authority.public_key().subject_public_key.data, list.tbs_cert_list.as_ref());
    let algorithms = provider().signature_verification_algorithms.all;
    algorithms.iter().any(|one| one.verify_signature(key, signed, &list.signature_value.data).is_ok())
}

#[cfg(test)]
mod tests;
