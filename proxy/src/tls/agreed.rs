//! What client and server agreed upon in a handshake, in one value. It is kept as long as the connection,
//! idle or not, and so takes as few bytes as possible.

use std::rc::Rc;
use std::time::Duration;

use rustls::{CipherSuite, CommonState, ProtocolVersion};

use super::identity::Identity;
use super::server::ServerTls;
use crate::error::HandshakeKind;

/// Every suite that is spoken, with its name in IANA's registry. For the suites of TLS 1.3 rustls has other
/// names.
const SUITES: [(CipherSuite, &str); 9] = [
    (CipherSuite::TLS13_AES_128_GCM_SHA256, "TLS_AES_128_GCM_SHA256"),
    (CipherSuite::TLS13_AES_256_GCM_SHA384, "TLS_AES_256_GCM_SHA384"),
    (CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, "TLS_CHACHA20_POLY1305_SHA256"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    ),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
];

const SUITE: u8 = 0x0f;
/// Where the protocol is: 0 for none, else one more than in `PROTOCOLS`.
const ALPN_SHIFT: u32 = 4;
const ALPN: u8 = 0x03;
const IS_13: u8 = 0x40;
const IS_RESUMED: u8 = 0x80;

/// Names of RFC 7301, each with its protocol.
const PROTOCOLS: [(&[u8], Alpn); 2] = [(b"http/1.1", Alpn::Http1), (b"h2", Alpn::Http2)];

/// The application protocol of a connection (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// `http/1.1`
    Http1,
    /// `h2`
    Http2,
    /// Another protocol, which the configuration names.
    Other,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    terms: Terms,
    /// The name that the client looked for, where that is remembered.
    pub server_name: Option<Box<str>>,
    /// Of a client that showed a certificate: who it proved to be, as `identity` writes it.
    pub identity: Option<Rc<Identity>>,
    /// Whether the client was asked for a certificate.
    pub is_asked: bool,
}

impl Agreed {
    /// The terms of a connection that has them. Names are for the caller to add.
    pub(super) fn of(connection: &CommonState) -> Self {
        let is_13 = connection.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
        let is_resumed = connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        Self { terms: Terms::new(is_13, suite, connection.alpn_protocol(), is_resumed), ..Self::default() }
    }

    /// An agreement for tests.
    #[cfg(test)]
    pub(crate) fn sample(suite: CipherSuite, is_resumed: bool, server_name: Option<&str>) -> Self {
        Self {
            terms: Terms::new(true, Some(suite), None, is_resumed),
            server_name: server_name.map(Into::into),
            ..Self::default()
        }
    }

    /// Remembers the listener by which the client was judged.
    pub fn judged_by(&mut self, tls: &ServerTls) {
        self.is_asked = tls.asks_for_certificates();
        if let Some(identity) = &mut self.identity {
            Rc::make_mut(identity).print = tls.print();
        }
    }

    /// The verdict on the client's certificate; `None`: it was not asked for one.
    #[must_use]
    pub const fn client_certificate(&self) -> Option<&'static str> {
        match (&self.identity, self.is_asked) {
            (Some(_), _) => Some("verified"),
            (None, true) => Some("none"),
            (None, false) => None,
        }
    }

    /// Remembers how long the handshake took.
    pub fn took(&mut self, time: Duration) {
        self.terms.micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX).to_le_bytes();
    }

    /// How the handshake went, for the counters.
    #[must_use]
    pub const fn kind(&self) -> HandshakeKind {
        match (self.terms.is_13(), self.is_resumed()) {
            (true, false) => HandshakeKind::Full13,
            (true, true) => HandshakeKind::Resumed13,
            (false, false) => HandshakeKind::Full12,
            (false, true) => HandshakeKind::Resumed12,
        }
    }

    /// Whether an earlier session went on.
    #[must_use]
    pub const fn is_resumed(&self) -> bool {
        self.terms.packed & IS_RESUMED != 0
    }

    /// `TLSv1.3` or `TLSv1.2`.
    #[must_use]
    pub const fn version(&self) -> &'static str {
        if self.terms.is_13() { "TLSv1.3" } else { "TLSv1.2" }
    }

    /// The suite's name; `None`: an unknown suite.
    #[must_use]
    pub fn cipher(&self) -> Option<&'static str> {
        SUITES.get(usize::from(self.terms.packed & SUITE)).map(|(_, name)| *name)
    }

    /// The application protocol; `None`: the client or the configuration named none.
    #[must_use]
    pub fn alpn(&self) -> Option<Alpn> {
        let at = usize::from(self.terms.packed >> ALPN_SHIFT & ALPN).checked_sub(1)?;
        Some(PROTOCOLS.get(at).map_or(Alpn::Other, |&(_, protocol)| protocol))
    }

    /// Microseconds that the handshake took.
    #[must_use]
    pub const fn micros(&self) -> u32 {
        u32::from_le_bytes(self.terms.micros)
    }
}

/// Version, suite, protocol, resumption and the handshake's duration, in five bytes without alignment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Terms {
    /// Which of `SUITES` and of `PROTOCOLS`, and flags.
    packed: u8,
    /// Little-endian.
    micros: [u8; 4],
}

impl Terms {
    fn new(is_13: bool, suite: Option<CipherSuite>, alpn: Option<&[u8]>, is_resumed: bool) -> Self {
        let suite = suite
            .and_then(|suite| SUITES.iter().position(|(known, _)| *known == suite))
            .unwrap_or(SUITES.len());
        let alpn = alpn.map_or(0, |name| {
            1 + PROTOCOLS.iter().position(|(known, _)| *known == name).unwrap_or(PROTOCOLS.len())
        });
        let flags = if is_13 { IS_13 } else { 0 } | if is_resumed { IS_RESUMED } else { 0 };
        Self { packed: suite as u8 | (alpn as u8) << ALPN_SHIFT | flags, micros: [0; 4] }
    }

    /// Whether the version is 1.3; else it is 1.2.
    const fn is_13(self) -> bool {
        self.packed & IS_13 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::provider;

    #[test]
    fn every_suite_that_is_offered_has_its_name() {
        let protocols: [(Option<&[u8]>, Option<Alpn>); 4] = [
            (None, None),
            (Some(b"http/1.1"), Some(Alpn::Http1)),
            (Some(b"h2"), Some(Alpn::Http2)),
            (Some(b"acme-tls/1"), Some(Alpn::Other)),
        ];
        for suite in provider().cipher_suites.iter().map(rustls::SupportedCipherSuite::suite) {
            let name = suite.as_str().expect("a name").replace("TLS13_", "TLS_");
            for (is_13, is_resumed) in [(false, false), (false, true), (true, false), (true, true)] {
                for (alpn, protocol) in protocols {
                    let terms = Terms::new(is_13, Some(suite), alpn, is_resumed);
                    let mut agreed = Agreed { terms, ..Agreed::default() };
                    agreed.took(Duration::from_micros(1_234_567));
                    assert_eq!((agreed.cipher(), agreed.alpn()), (Some(name.as_str()), protocol));
                    assert_eq!(
                        (terms.is_13(), agreed.is_resumed(), agreed.micros()),
                        (is_13, is_resumed, 1_234_567)
                    );
                }
            }
        }
        let terms = Terms::new(true, Some(CipherSuite::TLS_NULL_WITH_NULL_NULL), None, true);
        let mut unknown = Agreed { terms, ..Agreed::default() };
        unknown.took(Duration::MAX);
        assert_eq!((unknown.cipher(), unknown.version(), unknown.micros()), (None, "TLSv1.3", u32::MAX));
    }

    #[test]
    fn it_is_small() {
        assert_eq!((size_of::<Terms>(), align_of::<Terms>()), (5, 1));
        // A name and an identity beside the terms.
        assert_eq!(size_of::<Agreed>(), 32);
    }
}
