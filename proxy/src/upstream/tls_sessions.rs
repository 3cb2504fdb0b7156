//! The TLS sessions of one worker with the endpoints of one upstream, so that a new connection resumes one.
//! Each endpoint has its own: no endpoint is shown the ticket of another.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::endpoint::EndpointId;
use super::endpoint_set::EndpointSet;
use crate::tls::client::ClientTls;

/// See the module.
#[derive(Debug)]
pub(super) struct TlsSessions {
    tls: Arc<ClientTls>,
    endpoints: RefCell<HashMap<EndpointId, Arc<ClientConfig>>>,
}

impl TlsSessions {
    /// None yet.
    pub(super) fn new(tls: Arc<ClientTls>) -> Self {
        Self { tls, endpoints: RefCell::default() }
    }

    /// The settings for a connection to this endpoint, with its sessions.
    pub(super) fn settings(&self, endpoint: EndpointId) -> Arc<ClientConfig> {
        let mut endpoints = self.endpoints.borrow_mut();
        Arc::clone(endpoints.entry(endpoint).or_insert_with(|| self.tls.with_own_sessions()))
    }

    /// The name that the certificate of the endpoint at `address` has to show.
    pub(super) fn server_name(&self, address: IpAddr) -> ServerName<'static> {
        self.tls.server_name(address)
    }

    /// Forgets the sessions of endpoints that are gone.
    pub(super) fn follow(&self, endpoints: &EndpointSet) {
        self.endpoints.borrow_mut().retain(|endpoint, _| endpoints.contains(*endpoint));
    }
}
