//! The TLS sessions of one worker with the endpoints of one upstream, so that a new connection resumes one.
//! Each endpoint has its own: no endpoint is shown the ticket of another.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::tls::client::ClientTls;

/// See the module.
#[derive(Debug)]
pub(super) struct TlsSessions {
    tls: Arc<ClientTls>,
    endpoints: RefCell<HashMap<SocketAddr, Arc<ClientConfig>>>,
}

impl TlsSessions {
    /// None yet.
    pub(super) fn new(tls: Arc<ClientTls>) -> Self {
        Self { tls, endpoints: RefCell::default() }
    }

    /// The settings for a connection to this endpoint, with its sessions.
    pub(super) fn settings(&self, address: SocketAddr) -> Arc<ClientConfig> {
        let mut endpoints = self.endpoints.borrow_mut();
        Arc::clone(endpoints.entry(address).or_insert_with(|| self.tls.with_own_sessions()))
    }

    /// The name that the certificate of the endpoint at `address` has to show.
    pub(super) fn server_name(&self, address: IpAddr) -> ServerName<'static> {
        self.tls.server_name(address)
    }

    /// Forgets the sessions of endpoints that are gone.
    pub(super) fn retain(&self, addresses: &[SocketAddr]) {
        self.endpoints.borrow_mut().retain(|address, _| addresses.contains(address));
    }
}
