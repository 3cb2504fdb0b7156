//! The record layer of an established connection (RFC 8446 §5, RFC 5246 §6.2 with AEAD ciphers). rustls makes
//! the handshake and hands over the traffic keys; from then on a record costs one pass of the cipher and no
//! copy. Key updates stay with rustls' key schedule.

use std::ops::Range;
use std::time::Duration;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion};

use super::alert;
use crate::time::Time;

/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 5;
/// Plaintext of one record (RFC 8446 §5.1).
const PLAIN_MAX: usize = 1 << 14;
/// The bytes that protection may add to it: RFC 8446 §5.2 and RFC 5246 §6.2.3.
const EXPANSION_MAX: usize = 256;
const EXPANSION_MAX_12: usize = 2048;
const TAG_BYTES: usize = 16;
/// Of a TLS 1.2 AES-GCM nonce, that part which travels (RFC 5288 §3).
const EXPLICIT_BYTES: usize = 8;

/// Records without data in a row, key updates among them: each costs a pass of the cipher, and says nothing.
const EMPTY_MAX: u8 = 32;
/// Post-handshake messages in parts, at most: tickets.
const MESSAGE_BYTES_MAX: usize = 1 << 16;

/// The first bytes after a pause go in records of about one segment, so that the peer can use each segment as
/// it comes; as many as an initial window (RFC 6928) lets go.
const SMALL_RECORD: usize = 1360;
const SMALL_BYTES: usize = 10 * SMALL_RECORD;
/// The congestion window may be small again after this.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;

const HELLO_REQUEST: u8 = 0;
const CLIENT_HELLO: u8 = 1;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// Why received bytes are refused, or nothing more can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The peer says so itself, by this alert.
    #[error("the peer sent the alert {}", alert::name(*.0))]
    Alert(u8),
    /// Not a record as agreed.
    #[error("{}", alert::name(*.0))]
    Ours(u8),
    /// Nothing that a handshake has place for, and the peer is not told so.
    #[error("no part of a handshake")]
    Unsaid,
}

impl Violation {
    pub(super) const MAC: Self = Self::Ours(alert::BAD_RECORD_MAC);
    const OVERFLOW: Self = Self::Ours(alert::RECORD_OVERFLOW);
    const UNEXPECTED: Self = Self::Ours(alert::UNEXPECTED_MESSAGE);
    const MALFORMED: Self = Self::Ours(alert::DECODE_ERROR);
    const ILLEGAL: Self = Self::Ours(alert::ILLEGAL_PARAMETER);
    const INTERNAL: Self = Self::Ours(alert::INTERNAL_ERROR);
}

/// A record as it came: where others share its bytes, and where nobody does.
#[derive(Debug)]
pub enum Sealed<'a> {
    /// Stays as it is.
    Shared(&'a [u8]),
    /// Is decrypted in place.
    Own(Vec<u8>),
}

/// The content of a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// Data, never empty: these of the bytes.
    Data(Vec<u8>, Range<usize>),
    /// Nothing that concerns anybody else.
    Nothing,
    /// The peer's end: it will send nothing more.
    End,
}

/// Both directions of a connection.
pub struct Records {
    send: Half,
    receive: Half,
    kernel: Kernel,
    is_13: bool,
    /// Received in a row without data.
    empty: u8,
    /// Parts of a post-handshake message.
    message: Vec<u8>,
    /// Sent since the last pause, and when last.
    burst: usize,
    sent_at: Time,
}

enum Kernel {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
    #[cfg(fuzzing)]
    Fixed(fixed::Schedule),
}

impl Kernel {
    fn update_receive(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Violation> {
        match self {
            Self::Server(kernel) => kernel.update_rx_secret(),
            Self::Client(kernel) => kernel.update_rx_secret(),
            #[cfg(fuzzing)]
            Self::Fixed(schedule) => Ok((0, schedule.next_receive())),
        }
        .map_err(|_| Violation::INTERNAL)
    }

    fn update_send(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Violation> {
        match self {
            Self::Server(kernel) => kernel.update_tx_secret(),
            Self::Client(kernel) => kernel.update_tx_secret(),
            #[cfg(fuzzing)]
            Self::Fixed(schedule) => Ok((0, schedule.next_send())),
        }
        .map_err(|_| Violation::INTERNAL)
    }

    /// The message that begins a peer's renegotiation.
    const fn renegotiation(&self) -> u8 {
        if matches!(self, Self::Client(_)) { HELLO_REQUEST } else { CLIENT_HELLO }
    }
}

/// One direction.
pub(super) struct Half {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    /// Records under one key.
    limit: u64,
    /// TLS 1.2 with AES-GCM: part of the nonce travels with the record.
    is_explicit: bool,
}

impl Records {
    /// Of a connection that we accepted.
    ///
    /// # Errors
    /// When rustls names a cipher that this does not know.
    pub fn server(
        secrets: ExtractedSecrets,
        kernel: KernelConnection<ServerConnectionData>,
    ) -> Result<Self, Violation> {
        let (version, limit) = (kernel.protocol_version(), limit_of(kernel.negotiated_cipher_suite()));
        Self::new(secrets, Kernel::Server(kernel), version, limit)
    }

    /// Of a connection that we opened.
    ///
    /// # Errors
    /// As `server`.
    pub fn client(
        secrets: ExtractedSecrets,
        kernel: KernelConnection<ClientConnectionData>,
    ) -> Result<Self, Violation> {
        let (version, limit) = (kernel.protocol_version(), limit_of(kernel.negotiated_cipher_suite()));
        Self::new(secrets, Kernel::Client(kernel), version, limit)
    }

    fn new(
        secrets: ExtractedSecrets,
        kernel: Kernel,
        version: ProtocolVersion,
        limit: u64,
    ) -> Result<Self, Violation> {
        let is_13 = version == ProtocolVersion::TLSv1_3;
        let half = |(sequence, secrets)| Half::new(sequence, secrets, is_13, limit);
        Ok(Self {
            send: half(secrets.tx)?,
            receive: half(secrets.rx)?,
            kernel,
            is_13,
            empty: 0,
            message: Vec::new(),
            burst: 0,
            sent_at: Time::default(),
        })
    }

    /// Bytes of a record, header included, by its header.
    ///
    /// # Errors
    /// When it cannot be one of this connection; an alert for the peer is in `out` then.
    pub fn length(&mut self, header: [u8; HEADER_BYTES], out: &mut Vec<u8>) -> Result<usize, Violation> {
        let [kind, major, minor, high, low] = header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let max = PLAIN_MAX + if self.is_13 { EXPANSION_MAX } else { EXPANSION_MAX_12 };
        let fits = if self.is_13 {
            kind == APPLICATION_DATA
        } else {
            matches!(kind, ALERT | HANDSHAKE | APPLICATION_DATA)
        };
        let result = if !fits || kind == CHANGE_CIPHER_SPEC {
            Err(Violation::UNEXPECTED)
        } else if (major, minor) != (3, 3) {
            Err(Violation::MALFORMED)
        } else if length > max {
            Err(Violation::OVERFLOW)
        } else {
            Ok(HEADER_BYTES + length)
        };
        result.inspect_err(|&violation| self.refuse(violation, out))
    }

    /// Opens a whole record. An answer goes to `out`, sealed.
    ///
    /// # Errors
    /// When the connection cannot go on; an alert for the peer is in `out` then.
    pub fn open(&mut self, record: Sealed<'_>, out: &mut Vec<u8>) -> Result<Opened, Violation> {
        let opened = self
            .receive
            .open(record, self.is_13)
            .and_then(|(kind, bytes, at)| self.take(kind, bytes, at, out));
        opened.inspect_err(|&violation| self.refuse(violation, out))
    }

    fn take(
        &mut self,
        kind: u8,
        bytes: Vec<u8>,
        at: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<Opened, Violation> {
        if kind == APPLICATION_DATA && !at.is_empty() {
            // A message in parts would have to be whole first.
            if !self.message.is_empty() {
                return Err(Violation::UNEXPECTED);
            }
            self.empty = 0;
            return Ok(Opened::Data(bytes, at));
        }
        self.empty += 1;
        if self.empty > EMPTY_MAX {
            return Err(Violation::UNEXPECTED);
        }
        match kind {
            APPLICATION_DATA => Ok(Opened::Nothing),
            ALERT => match bytes[at] {
                [_, alert::CLOSE_NOTIFY] => Ok(Opened::End),
                [_, alert::USER_CANCELED] if self.is_13 => Ok(Opened::Nothing),
                [alert::WARNING, _] if !self.is_13 => Ok(Opened::Nothing),
                [_, description] => Err(Violation::Alert(description)),
                _ => Err(Violation::MALFORMED),
            },
            HANDSHAKE if !at.is_empty() => {
                if self.message.len() + at.len() > MESSAGE_BYTES_MAX {
                    return Err(Violation::OVERFLOW);
                }
                self.message.extend_from_slice(&bytes[at]);
                self.take_messages(out)?;
                Ok(Opened::Nothing)
            }
            _ => Err(Violation::UNEXPECTED),
        }
    }

    /// Handshake messages after the handshake.
    fn take_messages(&mut self, out: &mut Vec<u8>) -> Result<(), Violation> {
        let mut at = 0;
        while let [kind, a, b, c, rest @ ..] = &self.message[at..] {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if length > MESSAGE_BYTES_MAX {
                return Err(Violation::OVERFLOW);
            }
            let Some(body) = rest.get(..length) else { break };
            match (*kind, &mut self.kernel) {
                // It is the last of its record (RFC 8446 §5.1), since the next records are under another key.
                (KEY_UPDATE, _) if self.is_13 && rest.len() == length => {
                    let &[wanted] = body else { return Err(Violation::MALFORMED) };
                    // RFC 8446 §4.6.3
                    if wanted > 1 {
                        return Err(Violation::ILLEGAL);
                    }
                    let (sequence, secrets) = self.kernel.update_receive()?;
                    self.receive = Half::new(sequence, secrets, true, self.receive.limit)?;
                    if wanted == 1 {
                        self.update_send_key(out)?;
                    }
                }
                (NEW_SESSION_TICKET, Kernel::Client(kernel)) if self.is_13 => {
                    kernel.handle_new_session_ticket(body).map_err(|_| Violation::MALFORMED)?;
                }
                // A renegotiation is refused and the connection goes on (RFC 5746 §4.5, RFC 5246 §7.2.2).
                (kind, kernel) if !self.is_13 && kind == kernel.renegotiation() => {
                    self.send.seal(ALERT, &[alert::WARNING, alert::NO_RENEGOTIATION], false, out)?;
                }
                _ => return Err(Violation::UNEXPECTED),
            }
            at += 4 + length;
        }
        if at == self.message.len() {
            // An idle connection keeps no memory for it.
            self.message = Vec::new();
        } else {
            self.message.drain(..at);
        }
        Ok(())
    }

    fn update_send_key(&mut self, out: &mut Vec<u8>) -> Result<(), Violation> {
        // `update_not_requested`
        self.send.seal(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], true, out)?;
        let (sequence, secrets) = self.kernel.update_send()?;
        self.send = Half::new(sequence, secrets, true, self.send.limit)?;
        Ok(())
    }

    /// Seals data, in as many records as the moment asks for.
    ///
    /// # Errors
    /// When the cipher has sealed all that it may under its key, and the protocol version knows no other.
    pub fn seal(&mut self, mut plain: &[u8], now: Time, out: &mut Vec<u8>) -> Result<(), Violation> {
        if now.since(self.sent_at) >= PAUSE {
            self.burst = 0;
        }
        self.sent_at = now;
        let small = SMALL_BYTES.saturating_sub(self.burst).min(plain.len());
        let records = small.div_ceil(SMALL_RECORD) + plain.len().div_ceil(PLAIN_MAX) + 1;
        out.reserve(plain.len() + records * (HEADER_BYTES + EXPLICIT_BYTES + 1 + TAG_BYTES));
        while !plain.is_empty() {
            let most = if self.burst < SMALL_BYTES { SMALL_RECORD } else { PLAIN_MAX };
            let (piece, rest) = plain.split_at(most.min(plain.len()));
            if self.send.sequence >= self.send.limit {
                if !self.is_13 {
                    return Err(Violation::INTERNAL);
                }
                self.update_send_key(out)?;
            }
            self.send.seal(APPLICATION_DATA, piece, self.is_13, out)?;
            self.burst = self.burst.saturating_add(piece.len());
            plain = rest;
        }
        Ok(())
    }

    /// The end of our direction (RFC 8446 §6.1).
    pub fn close(&mut self, out: &mut Vec<u8>) {
        // If no record can be sealed any more the peer sees a truncation, and it is one.
        let _ = self.send.seal(ALERT, &[alert::WARNING, alert::CLOSE_NOTIFY], self.is_13, out);
    }

    fn refuse(&mut self, violation: Violation, out: &mut Vec<u8>) {
        if let Violation::Ours(description) = violation {
            // As above.
            let _ = self.send.seal(ALERT, &[alert::FATAL, description], self.is_13, out);
        }
    }
}

impl Half {
    pub(super) fn new(
        sequence: u64,
        secrets: ConnectionTrafficSecrets,
        is_13: bool,
        limit: u64,
    ) -> Result<Self, Violation> {
        let (algorithm, key, iv, is_gcm) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv, true),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv, true),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv, false),
            _ => return Err(Violation::INTERNAL),
        };
        let bytes = &key.as_ref()[..algorithm.key_len().min(key.as_ref().len())];
        let unbound = UnboundKey::new(algorithm, bytes).map_err(|_| Violation::INTERNAL);
        let iv = iv.as_ref().try_into().map_err(|_| Violation::INTERNAL);
        Ok(Self { key: LessSafeKey::new(unbound?), iv: iv?, sequence, limit, is_explicit: is_gcm && !is_13 })
    }

    /// The record's number in, the nonce out (RFC 8446 §5.3, RFC 7905 §2; for AES-GCM in TLS 1.2 any that is
    /// new will do, RFC 5288 §3).
    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }

    /// The data that is authenticated beside the content in TLS 1.2 (RFC 5246 §6.2.3.3).
    fn aad_12(&self, kind: u8, length: usize) -> [u8; 13] {
        let mut aad = [0; 13];
        aad[..8].copy_from_slice(&self.sequence.to_be_bytes());
        aad[8..11].copy_from_slice(&[kind, 3, 3]);
        aad[11..].copy_from_slice(&(length as u16).to_be_bytes());
        aad
    }

    /// So many records came before.
    pub(super) const fn skip_to(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    /// Appends one record; `plain` is at most `PLAIN_MAX` bytes.
    pub(super) fn seal(
        &mut self,
        kind: u8,
        plain: &[u8],
        is_13: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Violation> {
        let nonce = self.nonce();
        let (explicit, extra): (usize, &[u8]) =
            (if self.is_explicit { EXPLICIT_BYTES } else { 0 }, if is_13 { &[kind] } else { &[] });
        let length = explicit + plain.len() + extra.len() + TAG_BYTES;
        let [high, low] = (length as u16).to_be_bytes();
        let header = [if is_13 { APPLICATION_DATA } else { kind }, 3, 3, high, low];
        out.extend_from_slice(&header);
        if self.is_explicit {
            out.extend_from_slice(&nonce[4..]);
        }
        let start = out.len();
        out.resize(start + plain.len() + extra.len() + TAG_BYTES, 0);
        let (body, rest) = out[start..].split_at_mut(plain.len());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = if is_13 {
            self.key.seal_out_of_place_scatter(nonce, Aad::from(header), plain, body, extra, rest)
        } else {
            self.key.seal_out_of_place_scatter(
                nonce,
                Aad::from(self.aad_12(kind, plain.len())),
                plain,
                body,
                extra,
                rest,
            )
        };
        // Each number once: it is used up even after a failure.
        self.sequence += 1;
        sealed.map_err(|_| Violation::INTERNAL)
    }

    /// The kind of a record's content, and its place.
    pub(super) fn open(
        &mut self,
        record: Sealed<'_>,
        is_13: bool,
    ) -> Result<(u8, Vec<u8>, Range<usize>), Violation> {
        let bytes = match &record {
            Sealed::Shared(bytes) => bytes,
            Sealed::Own(bytes) => bytes.as_slice(),
        };
        let Some((&header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(Violation::MALFORMED);
        };
        let explicit = if self.is_explicit { EXPLICIT_BYTES } else { 0 };
        let Some(length) = body.len().checked_sub(explicit + TAG_BYTES) else { return Err(Violation::MAC) };
        let mut nonce = self.nonce();
        if self.is_explicit {
            nonce[4..].copy_from_slice(&body[..EXPLICIT_BYTES]);
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        let aad_12 = self.aad_12(header[0], length);
        let aad = Aad::from(if is_13 { &header[..] } else { &aad_12[..] });
        let (mut kind, start) = (header[0], HEADER_BYTES + explicit);
        let (bytes, mut at) = match record {
            Sealed::Shared(bytes) => {
                let (sealed, tag) = bytes[start..].split_at(length);
                let mut plain = vec![0; length];
                self.key
                    .open_separate_gather(nonce, aad, sealed, tag, &mut plain)
                    .map_err(|_| Violation::MAC)?;
                (plain, 0..length)
            }
            Sealed::Own(mut bytes) => {
                self.key.open_in_place(nonce, aad, &mut bytes[start..]).map_err(|_| Violation::MAC)?;
                (bytes, start..start + length)
            }
        };
        self.sequence += 1;
        if is_13 {
            // Padding is zeros behind the kind (RFC 8446 §5.4).
            let last = bytes[at.clone()].iter().rposition(|&byte| byte != 0).ok_or(Violation::UNEXPECTED)?;
            kind = bytes[at.start + last];
            at.end = at.start + last;
        }
        if at.len() > PLAIN_MAX {
            return Err(Violation::OVERFLOW);
        }
        Ok((kind, bytes, at))
    }
}

/// Records under one key, less a margin for alerts.
fn limit_of(suite: rustls::SupportedCipherSuite) -> u64 {
    let common = match suite {
        rustls::SupportedCipherSuite::Tls12(suite) => &suite.common,
        rustls::SupportedCipherSuite::Tls13(suite) => &suite.common,
    };
    common.confidentiality_limit.saturating_sub(1 << 10)
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("is_13", &self.is_13).finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Records {
    /// Says anything.
    pub(super) fn say(&mut self, kind: u8, content: &[u8], out: &mut Vec<u8>) {
        self.send.seal(kind, content, self.is_13, out).expect("sealed");
    }

    /// The next record is one too many for its key.
    pub(super) const fn wear_out(&mut self) {
        self.send.limit = self.send.sequence;
    }
}

#[cfg(fuzzing)]
pub mod fixed;
