//! What a listener asks of its clients' certificates: the CAs, and the lists of what they have revoked.

use std::path::PathBuf;

use super::Resolver;
use super::tls::CLIENT_CA;
use crate::config::read::At;
use crate::config::schema;
use crate::tls::client_auth::ClientAuth;
use crate::tls::{Part, TlsError};

const CLIENT_CRL: &str = "listener.tls.client_crl";

impl Resolver<'_> {
    /// `None` only after an error. `ca`: the listener's `client_ca`.
    pub(super) fn client_auth(&self, tls: &schema::Tls, ca: &At<PathBuf>) -> Option<ClientAuth> {
        let authorities = self.file(CLIENT_CA, ca)?.1;
        let mut auth = ClientAuth {
            ca: authorities.into(),
            is_required: tls.client_auth_required,
            crls: Vec::new(),
            accepts_expired: tls.accepts_expired_crls,
        };
        let mut is_sound = true;
        for file in &tls.client_crl {
            match self.file(CLIENT_CRL, file).map(|(_, bytes)| ClientAuth::read_crls(authorities, bytes)) {
                Some(Ok(found)) => {
                    let now = self.facts.now;
                    let due = found.iter().filter_map(|crl| crl.due(now?, auth.accepts_expired));
                    due.for_each(|message| self.tls_warning(CLIENT_CRL, file, &message));
                    for crl in found.iter().filter(|crl| !crl.is_of_known) {
                        let message = format!(
                            "is of \"{}\", which is none of client_ca: it is for clients alone whose \
                             certificates lead over that CA",
                            crl.issuer
                        );
                        self.tls_warning(CLIENT_CRL, file, &message);
                    }
                    auth.crls.extend(found);
                }
                Some(Err(error)) => {
                    is_sound = false;
                    let is_of_ca = error.part == Part::ClientCa;
                    let (key, file) = if is_of_ca { (CLIENT_CA, ca) } else { (CLIENT_CRL, file) };
                    self.tls_error(key, file, error);
                }
                None => is_sound = false,
            }
        }
        if !is_sound {
            return None;
        }
        if let Some(file) = tls.client_crl.first() {
            if !auth.crls.iter().any(|crl| crl.is_of_known) {
                let message = "and the files beside it hold no list of a CA of client_ca: every client would \
                               be refused";
                let expected = "the lists that the CAs of client_ca publish";
                self.tls_error(CLIENT_CRL, file, TlsError::new(Part::Crl, message, expected));
                return None;
            }
            for subject in auth.without_crl() {
                let message = format!(
                    "and the files beside it hold no list of \"{subject}\", so every client of that CA is \
                     refused"
                );
                self.tls_warning(CLIENT_CRL, file, &message);
            }
        }
        Some(auth)
    }
}
