//! TLS: files become certificates and settings, and what is wrong with one is reported at the key that names it.

use std::path::PathBuf;
use std::sync::Arc;

use super::Resolver;
use crate::config::read::At;
use crate::config::schema;
use crate::tls::certificate::{Certificate, Files};
use crate::tls::server::{ServerTls, Settings};
use crate::tls::{Part, TlsError};

const CHAIN: &str = "listener.certificate.chain";
const KEY: &str = "listener.certificate.key";
const CLIENT_CA: &str = "listener.tls.client_ca";

impl Resolver<'_> {
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
        let client_ca = match &tls.client_ca {
            Some(file) => Some(self.file(CLIENT_CA, file)?.1.into()),
            None => None,
        };
        // All of them, so that every wrong one is reported.
        let certificates: Vec<_> = tls.certificates.iter().map(|certificate| self.certificate(certificate)).collect();
        let certificates: Vec<_> = certificates.into_iter().collect::<Option<_>>()?;
        let settings = Settings {
            certificates,
            min_version: tls.min_version,
            alpn: tls.alpn.clone(),
            client_ca,
            session_tickets: tls.session_tickets,
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

    fn certificate(&self, certificate: &schema::Certificate) -> Option<Arc<Certificate>> {
        let chain = self.file(CHAIN, &certificate.chain);
        let key = self.file(KEY, &certificate.key);
        match Certificate::new(Files { chain: chain?.1, key: key?.1 }) {
            Ok(certificate) => Some(Arc::new(certificate)),
            Err(error) => {
                match error.part {
                    Part::Key => self.tls_error(KEY, &certificate.key, error),
                    Part::Chain | Part::ClientCa => self.tls_error(CHAIN, &certificate.chain, error),
                }
                None
            }
        }
    }

    fn tls_error(&self, key: &str, file: &At<PathBuf>, TlsError { message, expected, .. }: TlsError) {
        let path = super::beside(self.main, &file.value);
        self.error(key, file.span.as_ref(), format!("\"{}\" {message}", path.display()), expected);
    }
}
