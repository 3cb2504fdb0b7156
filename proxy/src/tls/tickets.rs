//! Session tickets (RFC 5077, RFC 8446 §4.6.1): the state of a session, encrypted to ourselves. Every worker,
//! every later data plane and every instance with the same keys can resume it. A ticket is a key's name, a
//! nonce, and the state under AES-256-GCM-SIV (RFC 8452), whose random nonces are safe for more tickets than
//! a fleet makes under one key. Keys are made and replaced by the supervisor, or come from files.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, rand};
use rustls::server::ProducesTickets;
use zeroize::{Zeroize as _, Zeroizing};

use super::client_auth;

/// Keys that tickets are accepted from at a time.
pub const KEYS_MAX: usize = 16;
/// How long a key makes tickets. They are accepted for as long again.
pub const ROTATION: Duration = Duration::from_secs(12 * 3600);
/// Of a file: a name and 32 or 64 random bytes, as `ssl_session_ticket_key` of nginx.
pub const FILE_BYTES: [usize; 2] = [48, 80];

const NAME_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// The longest state that becomes a ticket: with a client's certificate it has some KiB. A ticket's length
/// has 16 bits.
const STATE_BYTES_MAX: usize = 32 << 10;

/// A key as it travels and rests. Wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKey([u8; Self::BYTES]);

impl TicketKey {
    /// Its name and its secret.
    pub const BYTES: usize = NAME_BYTES + SECRET_BYTES;

    /// A new one.
    ///
    /// # Errors
    /// When there is no randomness, which does not happen where the process could start.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut key = Self([0; Self::BYTES]);
        rand::fill(&mut key.0).map_err(|_| NoRandomness)?;
        Ok(key)
    }

    /// From a file's bytes; `None`: neither 48 nor 80 of them. The first 16 are its name, the secret is drawn
    /// from all others (RFC 5869).
    #[must_use]
    pub fn from_file(bytes: &[u8]) -> Option<Self> {
        if !FILE_BYTES.contains(&bytes.len()) {
            return None;
        }
        let (name, secret) = bytes.split_at(NAME_BYTES);
        let mut key = Self([0; Self::BYTES]);
        key.0[..NAME_BYTES].copy_from_slice(name);
        let drawn = hkdf::Salt::new(hkdf::HKDF_SHA256, b"sluice session tickets").extract(secret);
        drawn.expand(&[], hkdf::HKDF_SHA256).ok()?.fill(&mut key.0[NAME_BYTES..]).ok()?;
        Some(key)
    }

    /// Keys one after the other.
    #[must_use]
    pub fn concat(keys: &[Self]) -> Zeroizing<Vec<u8>> {
        // With room for all: a vector that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(keys.len() * Self::BYTES));
        keys.iter().for_each(|key| bytes.extend_from_slice(&key.0));
        bytes
    }

    /// The keys of bytes that `concat` made; `None`: other bytes.
    #[must_use]
    pub fn split(bytes: &[u8]) -> Option<Vec<Self>> {
        let (keys, rest) = bytes.as_chunks::<{ Self::BYTES }>();
        (rest.is_empty() && (1..=KEYS_MAX).contains(&keys.len()))
            .then(|| keys.iter().map(|key| Self(*key)).collect())
    }

    fn name(&self) -> &[u8] {
        &self.0[..NAME_BYTES]
    }

    /// Whether tickets do not tell which of both they are from.
    #[must_use]
    pub fn is_named_as(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Drop for TicketKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TicketKey")
    }
}

/// The system gave no random bytes.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no random bytes for a key of session tickets")]
pub struct NoRandomness;

/// Keys ready for use: the first makes tickets, all are tried by name.
pub struct Keys(Vec<([u8; NAME_BYTES], LessSafeKey)>);

impl Keys {
    /// The first `KEYS_MAX` of them.
    #[must_use]
    pub fn new(keys: &[TicketKey]) -> Self {
        let ready = |key: &TicketKey| {
            let (name, secret) = key.0.split_first_chunk()?;
            Some((*name, LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, secret).ok()?)))
        };
        Self(keys.iter().take(KEYS_MAX).filter_map(ready).collect())
    }

    fn encrypt(&self, context: &[u8], state: &[u8]) -> Option<Vec<u8>> {
        let (name, key) = self.0.first().filter(|_| state.len() <= STATE_BYTES_MAX)?;
        let mut nonce = [0; NONCE_BYTES];
        rand::fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(NAME_BYTES + NONCE_BYTES + state.len() + TAG_BYTES);
        ticket.extend_from_slice(name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(state);
        let (_, sealed) = ticket.split_at_mut(NAME_BYTES + NONCE_BYTES);
        let tag = key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), sealed)
            .ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, context: &[u8], ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
        if sealed.len() > STATE_BYTES_MAX + TAG_BYTES {
            return None;
        }
        // Names are no secret: they stand in every ticket.
        let (_, key) = self.0.iter().find(|(known, _)| known == name)?;
        let mut state = sealed.to_vec();
        let length = key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), &mut state)
            .ok()?
            .len();
        state.truncate(length);
        Some(state)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} keys", self.0.len())
    }
}

/// The tickets of a listener. Keys are looked up without a lock, and replaced while handshakes run.
#[derive(Debug)]
pub struct Tickets {
    keys: ArcSwap<Keys>,
    /// They are the listener's own, from files.
    are_own: bool,
    /// Bound into each ticket: the certificate that a client had to show for it. A listener that asks for a
    /// certificate must not resume a session of a listener that asks for none, though both share their keys.
    /// Nor must it resume a session whose certificate was judged by other authorities or other lists of
    /// revoked certificates.
    context: [u8; 32],
    /// When no session is resumed any more, since the lists of revoked certificates have ended.
    ends_at: Option<i64>,
}

impl Tickets {
    /// With keys from files; none: they are installed. `client_auth`: tells what client certificates are
    /// judged by, if they are asked for. `ends_at`: when they are believed no more, seconds since 1970.
    #[must_use]
    pub fn new(own: &[TicketKey], client_auth: Option<[u8; 32]>, ends_at: Option<i64>) -> Self {
        let keys = ArcSwap::from_pointee(Keys::new(own));
        Self { keys, are_own: !own.is_empty(), context: client_auth.unwrap_or_default(), ends_at }
    }

    /// The process's keys, which take the place of those before. Own keys stay.
    pub fn install(&self, keys: &Arc<Keys>) {
        if !self.are_own {
            self.keys.store(Arc::clone(keys));
        }
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        !self.keys.load().0.is_empty()
    }

    /// A key is accepted for so long after its last ticket.
    fn lifetime(&self) -> u32 {
        u32::try_from(ROTATION.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.load().encrypt(&self.context, plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        if client_auth::is_over(self.ends_at) {
            return None;
        }
        self.keys.load().decrypt(&self.context, cipher)
    }
}

#[cfg(test)]
mod tests;
