//! The certificate that a client is shown (RFC 6066 §3, RFC 9525 §6.3). The name in its hello decides, exact
//! before wildcard. Then the client's abilities decide, cheapest to sign first. A certificate that holds now
//! goes before one that does not, if both fit.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;

use super::certificate::Certificate;

/// The certificates of a listener by name.
#[derive(Debug)]
pub struct Resolver {
    exact: HashMap<Box<str>, Vec<Arc<Certificate>>>,
    /// By the name behind `*.`, which is for one label.
    wildcard: HashMap<Box<str>, Vec<Arc<Certificate>>>,
    /// For clients that name nothing, or nothing known: the first certificate, and all that share a name with
    /// it.
    default: Vec<Arc<Certificate>>,
    clock: Arc<dyn TimeProvider>,
}

impl Resolver {
    /// Of certificates in the order of the configuration.
    #[must_use]
    pub fn new(certificates: &[Arc<Certificate>], clock: Arc<dyn TimeProvider>) -> Self {
        let mut exact: HashMap<Box<str>, Vec<Arc<Certificate>>> = HashMap::new();
        let mut wildcard: HashMap<Box<str>, Vec<Arc<Certificate>>> = HashMap::new();
        for certificate in certificates {
            for name in certificate.names() {
                let candidates = match name.strip_prefix("*.") {
                    Some(under) => wildcard.entry(under.into()),
                    None => exact.entry(name.clone()),
                };
                candidates.or_default().push(Arc::clone(certificate));
            }
        }
        let mut default: Vec<Arc<Certificate>> = Vec::new();
        if let Some((first, others)) = certificates.split_first() {
            let beside =
                |other: &&Arc<Certificate>| other.names().iter().any(|name| first.names().contains(name));
            default.push(Arc::clone(first));
            default.extend(others.iter().filter(beside).cloned());
        }
        // Stable: of equal certificates the first in the file.
        for candidates in exact.values_mut().chain(wildcard.values_mut()).chain([&mut default]) {
            candidates.sort_by_key(|certificate| certificate.kind());
        }
        Self { exact, wildcard, default, clock }
    }

    /// The certificate for a client that asks for `name` and verifies `schemes`; `None`: it can verify none
    /// that is for the name.
    #[must_use]
    pub fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<Certificate>> {
        let name =
            name.map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()).unwrap_or_default();
        let exact = self.exact.get(&*name).map_or(&[][..], Vec::as_slice);
        let under = name.split_once('.').and_then(|(_, under)| self.wildcard.get(under));
        let wildcard = under.map_or(&[][..], Vec::as_slice);
        let named = exact.iter().chain(wildcard);
        self.best(named, schemes).or_else(|| {
            if exact.is_empty() && wildcard.is_empty() {
                self.best(self.default.iter(), schemes)
            } else {
                None
            }
        })
    }

    fn best<'c>(
        &self,
        candidates: impl Iterator<Item = &'c Arc<Certificate>>,
        schemes: &[SignatureScheme],
    ) -> Option<&'c Arc<Certificate>> {
        let mut fitting = candidates.filter(|certificate| certificate.signs(schemes)).peekable();
        let first = fitting.next()?;
        // Without a choice the clock does not matter.
        if fitting.peek().is_none() {
            return Some(first);
        }
        let Some(now) = self.now() else { return Some(first) };
        let mut all = [first].into_iter().chain(fitting);
        all.find(|certificate| certificate.is_valid_at(now)).or(Some(first))
    }
}

impl Resolver {
    fn now(&self) -> Option<i64> {
        self.clock.current_time().map(|now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // With any, rustls finds that they have no signature in common, and says so; with none it says
        // access_denied.
        let chosen = self.choose(hello.server_name(), hello.signature_schemes()).or(self.default.first())?;
        Some(Arc::clone(chosen.certified(|| self.now())))
    }
}

#[cfg(test)]
mod tests;
