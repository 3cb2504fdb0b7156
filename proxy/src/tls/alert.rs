//! Alerts (RFC 8446 §6, RFC 5246 §7.2): the last message of a side when a connection ends or cannot go on.

pub(super) const WARNING: u8 = 1;
pub(super) const FATAL: u8 = 2;

pub(super) const CLOSE_NOTIFY: u8 = 0;
pub(super) const UNEXPECTED_MESSAGE: u8 = 10;
pub(super) const BAD_RECORD_MAC: u8 = 20;
pub(super) const RECORD_OVERFLOW: u8 = 22;
pub(super) const HANDSHAKE_FAILURE: u8 = 40;
pub(super) const ILLEGAL_PARAMETER: u8 = 47;
pub(super) const DECODE_ERROR: u8 = 50;
pub(super) const PROTOCOL_VERSION: u8 = 70;
pub(crate) const INTERNAL_ERROR: u8 = 80;
pub(super) const USER_CANCELED: u8 = 90;
pub(super) const NO_RENEGOTIATION: u8 = 100;
pub(super) const CERTIFICATE_REQUIRED: u8 = 116;

/// Alerts that are counted by name; the last stands for all others.
const NAMED: [(u8, &str); 27] = [
    (UNEXPECTED_MESSAGE, "unexpected_message"),
    (BAD_RECORD_MAC, "bad_record_mac"),
    (RECORD_OVERFLOW, "record_overflow"),
    (HANDSHAKE_FAILURE, "handshake_failure"),
    (42, "bad_certificate"),
    (43, "unsupported_certificate"),
    (44, "certificate_revoked"),
    (45, "certificate_expired"),
    (46, "certificate_unknown"),
    (ILLEGAL_PARAMETER, "illegal_parameter"),
    (48, "unknown_ca"),
    (49, "access_denied"),
    (DECODE_ERROR, "decode_error"),
    (51, "decrypt_error"),
    (PROTOCOL_VERSION, "protocol_version"),
    (71, "insufficient_security"),
    (INTERNAL_ERROR, "internal_error"),
    (86, "inappropriate_fallback"),
    (USER_CANCELED, "user_canceled"),
    (NO_RENEGOTIATION, "no_renegotiation"),
    (109, "missing_extension"),
    (110, "unsupported_extension"),
    (112, "unrecognized_name"),
    (115, "unknown_psk_identity"),
    (CERTIFICATE_REQUIRED, "certificate_required"),
    (120, "no_application_protocol"),
    (255, "other"),
];

/// An alert, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alert(u8);

impl Alert {
    /// Every alert that is told apart.
    pub const ALL: &'static [Self] = &{
        let mut all = [Self(0); NAMED.len()];
        let mut index = 0;
        while index < all.len() {
            all[index] = Self(index as u8);
            index += 1;
        }
        all
    };

    /// By its number in the registry.
    #[must_use]
    pub fn of(description: u8) -> Self {
        Self(NAMED.iter().position(|(number, _)| *number == description).unwrap_or(NAMED.len() - 1) as u8)
    }

    /// As the registry calls it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        NAMED[self.0 as usize].1
    }

    /// Its number in the registry.
    #[must_use]
    pub const fn number(self) -> u8 {
        NAMED[self.0 as usize].0
    }

    /// Position in `ALL`.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// As the registry calls it.
pub(super) fn name(description: u8) -> &'static str {
    if description == CLOSE_NOTIFY { "close_notify" } else { Alert::of(description).label() }
}
