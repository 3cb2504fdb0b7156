//! The access log's facts about a connection's TLS. They are kept as long as the connection, idle or not, and
//! so take as few bytes as possible.

use std::time::Duration;

use rustls::CipherSuite;

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
const IS_13: u8 = 0x40;
const IS_RESUMED: u8 = 0x80;

/// Version, suite, resumption and the handshake's time, in five bytes without alignment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Which of `SUITES`, and flags.
    packed: u8,
    /// Little-endian.
    micros: [u8; 4],
}

impl Summary {
    /// Of a handshake that is over.
    pub(crate) fn new(is_13: bool, suite: Option<CipherSuite>, is_resumed: bool) -> Self {
        let at = suite
            .and_then(|suite| SUITES.iter().position(|(known, _)| *known == suite))
            .unwrap_or(SUITES.len());
        let flags = if is_13 { IS_13 } else { 0 } | if is_resumed { IS_RESUMED } else { 0 };
        Self { packed: at as u8 | flags, micros: [0; 4] }
    }

    /// The same, with the time that the handshake took.
    #[must_use]
    pub fn took(self, time: Duration) -> Self {
        Self { micros: u32::try_from(time.as_micros()).unwrap_or(u32::MAX).to_le_bytes(), ..self }
    }

    /// Whether the version is 1.3; else it is 1.2.
    #[must_use]
    pub const fn is_13(self) -> bool {
        self.packed & IS_13 != 0
    }

    /// Whether an earlier session went on.
    #[must_use]
    pub const fn is_resumed(self) -> bool {
        self.packed & IS_RESUMED != 0
    }

    /// `TLSv1.3` or `TLSv1.2`.
    #[must_use]
    pub const fn version(self) -> &'static str {
        if self.is_13() { "TLSv1.3" } else { "TLSv1.2" }
    }

    /// The suite's name; `None`: an unknown suite.
    #[must_use]
    pub fn cipher(self) -> Option<&'static str> {
        SUITES.get(usize::from(self.packed & SUITE)).map(|(_, name)| *name)
    }

    /// Microseconds that the handshake took.
    #[must_use]
    pub const fn micros(self) -> u32 {
        u32::from_le_bytes(self.micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::provider;

    #[test]
    fn every_suite_that_is_offered_has_its_name() {
        for suite in provider().cipher_suites.iter().map(rustls::SupportedCipherSuite::suite) {
            let name = suite.as_str().expect("a name").replace("TLS13_", "TLS_");
            for (is_13, is_resumed) in [(false, false), (false, true), (true, false), (true, true)] {
                let summary =
                    Summary::new(is_13, Some(suite), is_resumed).took(Duration::from_micros(1_234_567));
                assert_eq!(summary.cipher(), Some(name.as_str()));
                assert_eq!(
                    (summary.is_13(), summary.is_resumed(), summary.micros()),
                    (is_13, is_resumed, 1_234_567)
                );
            }
        }
        let unknown =
            Summary::new(true, Some(CipherSuite::TLS_NULL_WITH_NULL_NULL), true).took(Duration::MAX);
        assert_eq!((unknown.cipher(), unknown.version(), unknown.micros()), (None, "TLSv1.3", u32::MAX));
    }

    #[test]
    fn it_is_small() {
        assert_eq!((size_of::<Summary>(), align_of::<Summary>()), (5, 1));
    }
}
