//! TLS: files become certificates and settings, and errors in a file are reported at the key that names it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Resolver, SYSTEM_ROOTS};
use crate::config::read::At;
use crate::config::schema;
use crate::tls::certificate::{Certificate, Files, KeyKind};
use crate::tls::client::{self, ClientTls, Trust};
use crate::tls::review::{self, Remark};
use crate::tls::server::{ServerTls, Settings};
use crate::tls::tickets::TicketKey;
use crate::tls::{Part, TlsError};

const CHAIN: &str = "listener.certificate.chain";
const KEY: &str = "listener.certificate.key";
const OCSP: &str = "listener.certificate.ocsp";
pub(super) const CLIENT_CA: &str = "listener.tls.client_ca";
const TICKET_KEYS: &str = "listener.tls.ticket_keys";
const UPSTREAM_CA: &str = "upstream.tls.ca";
const UPSTREAM_CERTIFICATE: &str = "upstream.tls.certificate";
const UPSTREAM_KEY: &str = "upstream.tls.key";

/// The most certificates of all listeners: each is two or three files, which travel to every data plane as
/// descriptors.
const CERTIFICATES_MAX: usize = 1024;

impl Resolver<'_> {
    pub(super) fn check_certificate_count(&self, listeners: &[schema::Listener]) {
        let mut all = listeners.iter().flat_map(|listener| &listener.tls.certificates);
        let count = all.clone().count();
        if let Some(first_beyond) = all.nth(CERTIFICATES_MAX) {
            let message = format!("{count} certificates in all");
            self.error(
                CHAIN,
                first_beyond.chain.span.as_ref(),
                message,
                &format!("at most {CERTIFICATES_MAX}"),
            );
        }
    }

    /// `None` only after an error.
    pub(super) fn server_tls(&self, listener: &schema::Listener) -> Option<Arc<ServerTls>> {
        let tls = &listener.tls;
        if tls.lacks_certificates {
            let message = "there is none, and https needs one".to_owned();
            self.error(
                "listener.certificate",
                listener.span.as_ref(),
                message,
                "[[listener.certificate]] with a chain and a key",
            );
            return None;
        }
        let client_auth = match &tls.client_ca {
            Some(file) => Some(self.client_auth(tls, file)?),
            None => None,
        };
        // All of them, so that every wrong one is reported.
        let certificates: Vec<_> =
            tls.certificates.iter().map(|certificate| self.certificate(certificate)).collect();
        let certificates: Vec<_> = certificates.into_iter().collect::<Option<_>>()?;
        self.check_same_names(&tls.certificates, &certificates);
        let ticket_keys = self.ticket_keys(&tls.ticket_keys)?;
        let settings = Settings {
            certificates,
            min_version: tls.min_version,
            alpn: tls.alpn.clone(),
            client_auth,
            session_tickets: tls.session_tickets,
            early_data: tls.early_data,
            ticket_keys,
            handshake_timeout: tls.handshake_timeout,
            max_handshakes: tls.max_handshakes,
        };
        match ServerTls::new(settings) {
            Ok(tls) => Some(Arc::new(tls)),
            Err(error) => {
                if let Some(file) = &tls.client_ca {
                    self.tls_error(CLIENT_CA, file, error);
                }
                None
            }
        }
    }

    /// `None` only after an error.
    fn ticket_keys(&self, written: &[At<PathBuf>]) -> Option<Vec<TicketKey>> {
        let mut keys: Vec<TicketKey> = Vec::with_capacity(written.len());
        let mut is_sound = true;
        for file in written {
            let Some((_, bytes)) = self.file(TICKET_KEYS, file) else {
                is_sound = false;
                continue;
            };
            let wrong = match TicketKey::from_file(bytes) {
                None => Some((
                    format!("has {} bytes", bytes.len()),
                    "48 or 80 random bytes, as `openssl rand 80` makes them",
                )),
                Some(key) if keys.iter().any(|other| other.is_named_as(&key)) => Some((
                    "begins with the same 16 bytes as one before, by which keys are told apart".to_owned(),
                    "each key once",
                )),
                Some(key) => {
                    keys.push(key);
                    self.check_mode(TICKET_KEYS, file);
                    None
                }
            };
            if let Some((message, expected)) = wrong {
                is_sound = false;
                let path = super::beside(self.main, &file.value);
                self.error(
                    TICKET_KEYS,
                    file.span.as_ref(),
                    format!("\"{}\" {message}", path.display()),
                    expected,
                );
            }
        }
        is_sound.then_some(keys)
    }

    fn certificate(&self, written: &schema::Certificate) -> Option<Arc<Certificate>> {
        let chain = self.file(CHAIN, &written.chain);
        let key = self.file(KEY, &written.key);
        let ocsp = written.ocsp.as_ref().map(|file| self.file(OCSP, file));
        // All three were looked for: each that is missing is reported.
        let files = Files {
            chain: chain?.1,
            key: key?.1,
            ocsp: ocsp.map_or(Some(None), |found| Some(Some(found?.1)))?,
        };
        match Certificate::new(files) {
            Ok(certificate) => {
                self.review(written, &certificate);
                Some(Arc::new(certificate))
            }
            Err(error) => {
                let (key, file) = place(written, error.part);
                self.tls_error(key, file, error);
                None
            }
        }
    }

    /// `None` only after an error.
    pub(super) fn upstream_tls(
        &self,
        upstream: &schema::Upstream,
        listeners: &[schema::Listener],
    ) -> Option<Option<Arc<ClientTls>>> {
        let Some(tls) = &upstream.tls else { return Some(None) };
        let trust = self.trust(tls);
        let certificate =
            tls.certificate.as_ref().map(|(certificate, key)| self.client_certificate(certificate, key));
        // An upstream of tunnels carries any protocol, and so offers none.
        let is_tunnel = |listener: &&schema::Listener| {
            !listener.protocol.is_http()
                && listener.upstream.as_ref().is_some_and(|name| name.value == upstream.name.value)
        };
        let is_tunnel = listeners.iter().any(|listener| is_tunnel(&listener));
        let alpn = if is_tunnel { Vec::new() } else { vec!["http/1.1".into()] };
        let certificate = certificate.map_or(Some(None), |found| Some(Some(found?)));
        let settings = client::Settings {
            server_name: tls.server_name.clone(),
            trust: trust?,
            certificate: certificate?,
            alpn,
        };
        match ClientTls::new(settings) {
            Ok(tls) => Some(Some(Arc::new(tls))),
            Err(error) => {
                match &tls.ca {
                    Some(file) => self.tls_error(UPSTREAM_CA, file, error),
                    None => self.no_system_roots(tls, &error.message),
                }
                None
            }
        }
    }

    fn trust(&self, tls: &schema::ClientTls) -> Option<Trust> {
        match &tls.ca {
            _ if !tls.verify => {
                let message = "nobody is asked who the endpoints are: whoever is on the way can read and \
                    change everything";
                self.context.warn("upstream.tls.verify", tls.verify_at.clone(), message.to_owned());
                Some(Trust::Anyone)
            }
            Some(file) => Some(Trust::Ca(self.file(UPSTREAM_CA, file)?.1.into())),
            None => {
                let found = self.files.iter().skip(1).find(|(name, _)| name.as_os_str() == SYSTEM_ROOTS);
                if found.is_none() && !self.facts.without_files {
                    let reason = self.facts.unread.get(Path::new(SYSTEM_ROOTS));
                    self.no_system_roots(tls, reason.map_or("they were not passed on", String::as_str));
                }
                Some(Trust::System(found?.1.as_slice().into()))
            }
        }
    }

    fn no_system_roots(&self, tls: &schema::ClientTls, reason: &str) {
        let message = format!("has no ca, and the system's roots cannot be used: {reason}");
        self.error(
            "upstream.tls",
            tls.span.as_ref(),
            message,
            "ca, or the package ca-certificates installed",
        );
    }

    fn client_certificate(&self, written: &At<PathBuf>, key: &At<PathBuf>) -> Option<Arc<Certificate>> {
        let place = |part| match part {
            Part::Key => (UPSTREAM_KEY, key),
            _ => (UPSTREAM_CERTIFICATE, written),
        };
        let (chain, key_bytes) = (self.file(UPSTREAM_CERTIFICATE, written), self.file(UPSTREAM_KEY, key));
        match Certificate::new(Files { chain: chain?.1, key: key_bytes?.1, ocsp: None }) {
            Ok(certificate) => {
                for Remark { part, message } in
                    self.facts.now.map(|now| review::due(&certificate, now)).unwrap_or_default()
                {
                    let (key, file) = place(part);
                    self.tls_warning(key, file, &message.replace("clients", "endpoints"));
                }
                self.check_mode(UPSTREAM_KEY, key);
                Some(Arc::new(certificate))
            }
            Err(error) => {
                let (key, file) = place(error.part);
                self.tls_error(key, file, error);
                None
            }
        }
    }

    /// Warns of a private key that is none.
    fn check_mode(&self, key: &str, file: &At<PathBuf>) {
        if self.facts.open_to_all.contains(&super::beside(self.main, &file.value)) {
            self.tls_warning(key, file, "may be read by every user of this machine; mode 0600 is enough");
        }
    }

    /// Warnings about a certificate by itself.
    fn review(&self, written: &schema::Certificate, certificate: &Certificate) {
        let due = self.facts.now.map(|now| review::due(certificate, now)).unwrap_or_default();
        for Remark { part, message } in certificate.remarks().iter().chain(&due) {
            let (key, file) = place(written, *part);
            self.tls_warning(key, file, message);
        }
        self.check_mode(KEY, &written.key);
    }

    /// Warnings about certificates beside each other: for the same name and of the same kind only one is ever
    /// chosen.
    fn check_same_names(&self, written: &[schema::Certificate], certificates: &[Arc<Certificate>]) {
        let mut taken: HashMap<(&str, KeyKind), usize> = HashMap::new();
        for (index, certificate) in certificates.iter().enumerate() {
            let mut shared = None;
            for name in certificate.names() {
                let first = *taken.entry((name, certificate.kind())).or_insert(index);
                if first != index && shared.is_none() {
                    shared = Some((name, first));
                }
            }
            let Some((name, first)) = shared else {
                if index > 0 && certificate.names().is_empty() {
                    self.tls_warning(
                        CHAIN,
                        &written[index].chain,
                        "is never used: it has no name, and is not the first",
                    );
                }
                continue;
            };
            let holds = |index: usize| self.facts.now.is_none_or(|now| certificates[index].is_valid_at(now));
            let used =
                if holds(first) || !holds(index) { "that one is" } else { "only this one is valid now, and" };
            let path = super::beside(self.main, &written[first].chain.value);
            let kind = certificate.kind().label();
            let message = format!("is for \"{name}\" and {kind} as \"{}\" is: {used} used", path.display());
            self.tls_warning(CHAIN, &written[index].chain, &message);
        }
    }

    pub(super) fn tls_warning(&self, key: &str, file: &At<PathBuf>, message: &str) {
        let path = super::beside(self.main, &file.value);
        self.context.warn(key, file.span.clone(), format!("\"{}\" {message}", path.display()));
    }

    pub(super) fn tls_error(
        &self,
        key: &str,
        file: &At<PathBuf>,
        TlsError { message, expected, .. }: TlsError,
    ) {
        let path = super::beside(self.main, &file.value);
        self.error(key, file.span.as_ref(), format!("\"{}\" {message}", path.display()), expected);
    }
}

/// The key of a certificate's table that names a file, and the file.
fn place(written: &schema::Certificate, part: Part) -> (&'static str, &At<PathBuf>) {
    match (part, &written.ocsp) {
        (Part::Key, _) => (KEY, &written.key),
        (Part::Ocsp, Some(ocsp)) => (OCSP, ocsp),
        _ => (CHAIN, &written.chain),
    }
}
