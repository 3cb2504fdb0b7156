//! `[[listener.certificate]]`, `[listener.tls]` and `[upstream.tls]`.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::listener::only_of_http;
use super::{DAY, MILLISECOND, Protocol, SECOND, file_path, to_usize};
use crate::config::read::{At, Table};
use crate::config::units;
use crate::tls::server::MinVersion;
use crate::tls::tickets::KEYS_MAX;

const FILE_FORM: &str = "a file's path";
/// Handshakes in progress on a worker, at most: each holds some ten KiB.
const HANDSHAKES_MAX: u64 = 65_536;
/// Files of revoked certificates for a listener.
const CRLS_MAX: usize = 64;

/// Keys of `[listener.tls]` that only a listener has which ends TLS.
const OF_HTTPS: [&str; 9] = [
    "min_version",
    "client_ca",
    "client_auth",
    "client_crl",
    "crl_expired",
    "session_tickets",
    "ticket_keys",
    "early_data",
    "max_handshakes",
];

/// `[[listener.certificate]]`
#[derive(Debug)]
pub(in crate::config) struct Certificate {
    pub(in crate::config) chain: At<PathBuf>,
    pub(in crate::config) key: At<PathBuf>,
    pub(in crate::config) ocsp: Option<At<PathBuf>>,
}

/// Keys of a listener that only TLS has.
#[derive(Debug)]
pub(in crate::config) struct Tls {
    pub(in crate::config) certificates: Vec<Certificate>,
    /// No certificate is written, rather than wrong ones.
    pub(in crate::config) lacks_certificates: bool,
    pub(in crate::config) alpn: Vec<Box<str>>,
    pub(in crate::config) min_version: MinVersion,
    pub(in crate::config) client_ca: Option<At<PathBuf>>,
    pub(in crate::config) client_auth_required: bool,
    pub(in crate::config) client_crl: Vec<At<PathBuf>>,
    pub(in crate::config) accepts_expired_crls: bool,
    pub(in crate::config) session_tickets: bool,
    pub(in crate::config) early_data: bool,
    pub(in crate::config) ticket_keys: Vec<At<PathBuf>>,
    pub(in crate::config) handshake_timeout: Duration,
    pub(in crate::config) max_handshakes: usize,
}

impl Tls {
    /// The files that it names, but for lists of revoked certificates.
    pub(in crate::config) fn files(&self) -> impl Iterator<Item = &At<PathBuf>> {
        let certificates = self.certificates.iter().flat_map(|certificate| {
            let Certificate { chain, key, ocsp } = certificate;
            [chain, key].into_iter().chain(ocsp)
        });
        certificates.chain(&self.client_ca).chain(&self.ticket_keys)
    }
}

/// Reads the keys of a listener's table that are for TLS. They are reported if the listener does not speak
/// it.
pub(super) fn tls(listener: &mut Table<'_, '_>, protocol: Protocol) -> Tls {
    let is_https = protocol == Protocol::Https;
    for key in ["certificate", "tls"] {
        // Of the latter it has one key.
        let is_read = is_https || (key == "tls" && protocol == Protocol::TlsPassthrough);
        if !is_read && listener.has(key) && !listener.is_empty_list(key) {
            let span = listener.value_span(key);
            listener.error(
                key,
                span,
                "is for protocol = \"https\" alone".to_owned(),
                "protocol = \"https\", or none",
            );
        }
    }
    let lacks_certificates = !listener.has("certificate") || listener.is_empty_list("certificate");
    let certificates = listener.tables("certificate").into_iter().filter_map(certificate).collect();
    let alpn = alpn(listener);
    let mut table = listener.table("tls");
    if protocol == Protocol::TlsPassthrough {
        for key in OF_HTTPS {
            only_of_http(&table, protocol, key, "handshake_timeout, or none: the endpoint's TLS is spoken");
        }
    }
    let min_version =
        table.choice("min_version", &[("1.2", MinVersion::Tls12), ("1.3", MinVersion::Tls13)], &[]);
    let client_ca = optional_file(&mut table, "client_ca");
    let client_auth_required = table.choice("client_auth", &[("require", true), ("optional", false)], &[]);
    let client_crl = client_crl(&mut table);
    let accepts_expired_crls = table.choice("crl_expired", &[("refuse", false), ("accept", true)], &[]);
    let (has_ca, has_crl) = (client_ca.is_some(), !client_crl.is_empty());
    needs(&table, "client_auth", !client_auth_required, ("client_ca", has_ca));
    needs(&table, "client_crl", has_crl, ("client_ca", has_ca));
    needs(&table, "crl_expired", accepts_expired_crls, ("client_crl", has_crl));
    let session_tickets = table.boolean("session_tickets", true);
    let ticket_keys = ticket_keys(&mut table, session_tickets);
    let early_data = table.boolean("early_data", false);
    if early_data && session_tickets {
        let message =
            "needs session_tickets = false, since a ticket can be played back and its early data with it"
                .to_owned();
        table.error(
            "early_data",
            table.value_span("early_data"),
            message,
            "session_tickets = false beside it, or early_data = false",
        );
    }
    let handshake_timeout = table.duration("handshake_timeout", 10 * SECOND, MILLISECOND..=DAY);
    let max_handshakes = to_usize(table.integer("max_handshakes", 256, 1..=HANDSHAKES_MAX).value);
    table.finish();
    Tls {
        certificates,
        lacks_certificates,
        alpn,
        min_version,
        client_ca,
        client_auth_required,
        client_crl,
        accepts_expired_crls,
        session_tickets,
        early_data,
        ticket_keys,
        handshake_timeout,
        max_handshakes,
    }
}

/// Files; the first makes tickets.
fn ticket_keys(table: &mut Table<'_, '_>, session_tickets: bool) -> Vec<At<PathBuf>> {
    const KEY: &str = "ticket_keys";
    let written = table.strings(KEY, false);
    if written.len() > KEYS_MAX {
        table.error(
            KEY,
            table.value_span(KEY),
            format!("has {} files", written.len()),
            &format!("at most {KEYS_MAX}"),
        );
    }
    if !session_tickets && !written.is_empty() {
        let message = "has no effect with session_tickets = false".to_owned();
        table.error(KEY, table.value_span(KEY), message, "session_tickets = true, or no ticket_keys");
    }
    paths(table, KEY, written)
}

/// A key that is set has no effect without another.
fn needs(table: &Table<'_, '_>, key: &'static str, is_set: bool, (other, is_there): (&str, bool)) {
    if is_set && !is_there {
        let message = format!("has no effect without {other}");
        table.error(key, table.value_span(key), message, &format!("{other} beside it, or no {key}"));
    }
}

/// Files with lists of revoked certificates.
fn client_crl(table: &mut Table<'_, '_>) -> Vec<At<PathBuf>> {
    const KEY: &str = "client_crl";
    let written = table.strings(KEY, false);
    if written.len() > CRLS_MAX {
        let message = format!("has {} files", written.len());
        table.error(KEY, table.value_span(KEY), message, &format!("at most {CRLS_MAX}"));
    }
    paths(table, KEY, written)
}

fn paths(table: &mut Table<'_, '_>, key: &'static str, written: Vec<At<String>>) -> Vec<At<PathBuf>> {
    let path = |At { value, span }: At<String>| match file_path(&value) {
        Ok(path) => Some(At { value: path, span }),
        Err(message) => {
            table.error(key, span, format!("{} {message}", units::quote(&value)), "paths of files");
            None
        }
    };
    written.into_iter().filter_map(path).collect()
}

/// `[upstream.tls]`
#[derive(Debug)]
pub(in crate::config) struct ClientTls {
    pub(in crate::config) server_name: Option<ServerName<'static>>,
    pub(in crate::config) ca: Option<At<PathBuf>>,
    pub(in crate::config) certificate: Option<(At<PathBuf>, At<PathBuf>)>,
    pub(in crate::config) verify: bool,
    /// The table.
    pub(in crate::config) span: Option<Range<usize>>,
    /// Where `verify` is written.
    pub(in crate::config) verify_at: Option<Range<usize>>,
}

impl ClientTls {
    /// The files that it names.
    pub(in crate::config) fn files(&self) -> impl Iterator<Item = &At<PathBuf>> {
        self.ca.iter().chain(self.certificate.iter().flat_map(|(certificate, key)| [certificate, key]))
    }

    /// Whether it trusts the system's roots.
    pub(in crate::config) const fn needs_system_roots(&self) -> bool {
        self.verify && self.ca.is_none()
    }
}

/// Absent: the upstream's endpoints speak no TLS.
pub(super) fn client_tls(upstream: &mut Table<'_, '_>) -> Option<ClientTls> {
    let mut table = upstream.table("tls");
    if !table.is_present() {
        return None;
    }
    let server_name =
        table.parsed("server_name", "a host name, or \"\" for the endpoint's address", server_name);
    let ca = optional_file(&mut table, "ca");
    let certificate = optional_file(&mut table, "certificate");
    let key = optional_file(&mut table, "key");
    let verify = table.boolean("verify", true);
    if let (false, Some(ca)) = (verify, &ca) {
        let message = "has no effect beside verify = false".to_owned();
        table.error("ca", ca.span.clone(), message, "either of both");
    }
    let certificate = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (Some(_), None) => {
            table.missing("key", "the certificate's private key, a PEM file");
            None
        }
        (None, Some(_)) => {
            table.missing("certificate", "the certificate that the key belongs to, a PEM file");
            None
        }
        (None, None) => None,
    };
    let (span, verify_at) = (table.span(), table.value_span("verify"));
    table.finish();
    Some(ClientTls {
        server_name: server_name.and_then(|name| name.value),
        ca,
        certificate,
        verify,
        span,
        verify_at,
    })
}

fn server_name(text: &str) -> Result<Option<ServerName<'static>>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = ServerName::try_from(text.to_owned());
    name.map(Some).map_err(|_| format!("{} is not a host name", units::quote(text)))
}

fn certificate(mut table: Table<'_, '_>) -> Option<Certificate> {
    let chain = required_file(
        &mut table,
        "chain",
        "a PEM file: the server's certificate, then those that lead to its root",
    );
    let key = required_file(&mut table, "key", "a PEM file with the certificate's private key");
    let ocsp = optional_file(&mut table, "ocsp");
    table.finish();
    Some(Certificate { chain: chain?, key: key?, ocsp })
}

fn required_file(table: &mut Table<'_, '_>, key: &'static str, what: &str) -> Option<At<PathBuf>> {
    if !table.has(key) {
        table.missing(key, what);
    }
    table.parsed(key, FILE_FORM, file_path)
}

/// Empty: none.
fn optional_file(table: &mut Table<'_, '_>, key: &'static str) -> Option<At<PathBuf>> {
    let path = table
        .parsed(key, FILE_FORM, |text| if text.is_empty() { Ok(None) } else { file_path(text).map(Some) })?;
    Some(At { value: path.value?, span: path.span })
}

/// Protocols that clients may choose from (RFC 7301), ours first.
fn alpn(listener: &mut Table<'_, '_>) -> Vec<Box<str>> {
    const BUILT: &str = "http/1.1";
    const FORM: &str = "[\"http/1.1\"]";
    let written = listener.strings("alpn", false);
    if listener.is_empty_list("alpn") {
        listener.error("alpn", listener.value_span("alpn"), "is empty".to_owned(), FORM);
    }
    for At { value, span } in &written {
        match value.as_str() {
            BUILT => {}
            "h2" | "http/1.0" => {
                listener.error("alpn", span.clone(), format!("\"{value}\" is not built yet"), FORM)
            }
            _ => listener.error("alpn", span.clone(), format!("{} is unknown", units::quote(value)), FORM),
        }
    }
    vec![BUILT.into()]
}
