//! A handshake: rustls' unbuffered connection until it is over, then its keys in `Records`. Bytes in, bytes
//! out.

use std::rc::Rc;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus, WriteTraffic,
};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, ServerConfig};

use super::agreed::Agreed;
use super::alert::{self, Alert};
use super::beside::Beside;
use super::identity::{self, Identity};
use super::last_word;
use super::records::{ALERT, CHANGE_CIPHER_SPEC, HEADER_BYTES, Records, Violation};
use crate::error::HandshakeFailure;

/// Bytes of a handshake that may wait for the rest of their message: a chain of client certificates is the
/// largest.
pub const INPUT_BYTES_MAX: usize = 64 << 10;

/// The length from which rustls takes a record for too long, beyond RFC 5246 §6.2.3.
const BODY_BYTES_MAX: usize = (16 << 10) + 2048;
const HEARTBEAT: u8 = 24;

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// Plain HTTP came to where TLS is spoken.
    #[error("plain HTTP")]
    PlainHttp,
    /// The peer gave up, with this alert.
    #[error("the peer sent the alert {}", alert::name(*.0))]
    Alert(u8),
    /// We did, and the peer was told so with this alert, if it was.
    #[error("{0}")]
    Refused(Error, Option<Alert>),
    /// It sent more than any handshake needs.
    #[error("more than {INPUT_BYTES_MAX} bytes within one message")]
    TooLarge,
}

impl Failure {
    /// A failure that the peer was not told of.
    const fn ours(error: Error) -> Self {
        Self::Refused(error, None)
    }

    /// The alert that we tell it with.
    #[must_use]
    pub fn sent(&self) -> Option<Alert> {
        match self {
            Self::PlainHttp | Self::Alert(_) | Self::TooLarge => None,
            Self::Refused(_, alert) => *alert,
        }
    }

    /// Why it failed, as that is counted.
    #[must_use]
    pub const fn reason(&self) -> HandshakeFailure {
        match self {
            Self::PlainHttp => HandshakeFailure::NotTls,
            Self::Alert(_) => HandshakeFailure::Alert,
            Self::TooLarge => HandshakeFailure::Malformed,
            Self::Refused(error, _) => match error {
                Error::InvalidCertificate(CertificateError::Revoked) => HandshakeFailure::ClientRevoked,
                Error::InvalidCertificate(
                    CertificateError::UnknownRevocationStatus
                    | CertificateError::ExpiredRevocationList
                    | CertificateError::ExpiredRevocationListContext { .. },
                ) => HandshakeFailure::ClientUnchecked,
                Error::NoCertificatesPresented | Error::InvalidCertificate(_) => {
                    HandshakeFailure::ClientCertificate
                }
                Error::PeerIncompatible(_) | Error::NoApplicationProtocol => HandshakeFailure::Incompatible,
                Error::InvalidMessage(_)
                | Error::PeerMisbehaved(_)
                | Error::InappropriateMessage { .. }
                | Error::InappropriateHandshakeMessage { .. }
                | Error::DecryptError
                | Error::PeerSentOversizedRecord => HandshakeFailure::Malformed,
                _ => HandshakeFailure::Internal,
            },
        }
    }
}

/// rustls tells a client of TLS 1.2 that a certificate is required in the words of 1.3; its own has another
/// for that (RFC 5246 §7.4.6). In 1.3 the alert is sealed.
fn in_words_of_1_2(out: &mut [u8]) {
    if let [ALERT, 3, _, 0, 2, _, description] = out
        && *description == alert::CERTIFICATE_REQUIRED
    {
        *description = alert::HANDSHAKE_FAILURE;
    }
}

/// The alert in `out`. If it is sealed already, the alert that rustls means for the error.
fn told(out: &[u8], error: &Error) -> Option<Alert> {
    match *out {
        [] => None,
        [ALERT, 3, _, 0, 2, _, description] => Some(Alert::of(description)),
        _ => Some(Alert::of(u8::from(alert_for(error)))),
    }
}

/// The alert that rustls sends for an error once keys are agreed.
fn alert_for(error: &Error) -> AlertDescription {
    match error {
        Error::InvalidMessage(error) => (*error).into(),
        Error::InvalidCertificate(error) => error.clone().into(),
        Error::NoCertificatesPresented => AlertDescription::CertificateRequired,
        Error::NoApplicationProtocol => AlertDescription::NoApplicationProtocol,
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            AlertDescription::UnexpectedMessage
        }
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        Error::PeerMisbehaved(_) => AlertDescription::IllegalParameter,
        Error::PeerIncompatible(_) => AlertDescription::HandshakeFailure,
        _ => AlertDescription::InternalError,
    }
}

/// The outcome of a handshake.
#[derive(Debug)]
pub struct Established {
    /// Both directions from now on.
    pub records: Box<Records>,
    /// The bytes behind the handshake: records, and the beginning of one.
    pub rest: Vec<u8>,
    /// Early data that nobody took. After the handshake's end it is known to be this client's.
    pub early: Vec<u8>,
    /// The agreement.
    pub agreed: Agreed,
}

/// Where a handshake stands.
#[derive(Debug)]
pub enum Progress {
    /// More has to be received. Early data may be there already.
    NeedMore,
    /// It is over.
    Done(Box<Established>),
}

/// One under way.
pub struct Handshake {
    connection: Connection,
    /// Received and not taken yet.
    input: Vec<u8>,
    /// Bytes of it that rustls has seen: whole records.
    shown: usize,
    is_first: bool,
    /// For a server: all that is done beside rustls.
    beside: Option<Box<Beside>>,
    /// The name in the client's hello, if it is to be kept: rustls does not tell it to users of unbuffered
    /// connections.
    server_name: Option<Box<str>>,
    keeps_name: bool,
    /// Whether the agreement was handed over.
    is_agreed: bool,
    /// Whether early data came, and the part of it that was not taken.
    is_early: bool,
    early: Vec<u8>,
}

enum Connection {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
    /// It ended.
    Over,
}

/// One step of rustls'.
enum HandshakeStep {
    Again,
    NeedMore,
    Established,
}

impl Handshake {
    /// With a client that has connected.
    ///
    /// # Errors
    /// When rustls takes no connection with this configuration.
    pub fn server(config: &Arc<ServerConfig>) -> Result<Self, Failure> {
        let connection = UnbufferedServerConnection::new(Arc::clone(config)).map_err(Failure::ours)?;
        Ok(Self::new(Connection::Server(Box::new(connection)), Some(Box::default())))
    }

    /// With an endpoint that we connected to. Its first message comes from `advance`.
    ///
    /// # Errors
    /// As `server`.
    pub fn client(config: &Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Failure> {
        let connection = UnbufferedClientConnection::new(Arc::clone(config), name).map_err(Failure::ours)?;
        Ok(Self::new(Connection::Client(Box::new(connection)), None))
    }

    const fn new(connection: Connection, beside: Option<Box<Beside>>) -> Self {
        Self {
            connection,
            input: Vec::new(),
            shown: 0,
            is_first: beside.is_some(),
            beside,
            server_name: None,
            keeps_name: false,
            is_agreed: false,
            is_early: false,
            early: Vec::new(),
        }
    }

    /// Remembers the name that a client looks for.
    #[must_use]
    pub const fn with_name(mut self) -> Self {
        self.keeps_name = true;
        self
    }

    /// Bytes that it takes at once.
    #[must_use]
    pub const fn room(&self) -> usize {
        INPUT_BYTES_MAX - self.input.len()
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// When they cannot be part of a handshake.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        // A record begins with its kind, a method with a letter.
        if std::mem::take(&mut self.is_first) && bytes.first().is_some_and(u8::is_ascii_alphabetic) {
            return Err(Failure::PlainHttp);
        }
        if bytes.len() > self.room() {
            return Err(Failure::TooLarge);
        }
        self.input.extend_from_slice(bytes);
        if let Some(name) = self.beside.as_mut().and_then(|beside| beside.receive(bytes)) {
            self.server_name = self.keeps_name.then_some(name);
        }
        Ok(())
    }

    /// Whether a whole record waits, or bytes that can be none: anything less is not worth a step.
    #[must_use]
    pub fn has_record(&self) -> bool {
        let next = &self.input[self.shown..];
        match &self.beside {
            Some(beside) if beside.waits() => false,
            Some(beside) => record_at(next).is_some() || beside.fault_at(next).is_some(),
            None => record_at(next).is_some(),
        }
    }

    /// Shows rustls one record more. The bytes right behind the last record of the handshake are for
    /// `Records`, which alone may open them.
    fn show(&mut self) -> Result<bool, (Error, u8)> {
        if let Some(beside) = &mut self.beside
            && !beside.prepare(&mut self.input, self.shown)?
        {
            return Ok(false);
        }
        let length = record_at(&self.input[self.shown..]);
        self.shown += length.unwrap_or(0);
        Ok(length.is_some())
    }

    /// Goes as far as it can. Bytes to send are appended to `out`, also beside an error.
    ///
    /// # Errors
    /// When it fails.
    pub fn advance(&mut self, out: &mut Vec<u8>) -> Result<Progress, Failure> {
        if let Connection::Over = self.connection {
            return Err(Failure::ours(Error::HandshakeNotComplete));
        }
        let mut told = out.len();
        let mut is_shown = self.show();
        loop {
            if let Err((error, alert)) = is_shown {
                self.connection = Connection::Over;
                return Err(self.refuse(error, alert, out));
            }
            let (discard, step) = self.step(out);
            self.is_early |= !self.early.is_empty();
            self.input.drain(..discard);
            self.shown -= discard;
            if !matches!(step, Ok(HandshakeStep::Again))
                && let (Connection::Server(connection), Some(beside)) = (&self.connection, &mut self.beside)
            {
                beside.said(&out[told..], connection);
                told = out.len();
            }
            match step {
                Ok(HandshakeStep::Again) => {}
                Ok(HandshakeStep::NeedMore) => {
                    is_shown = self.show();
                    if let Ok(false) = is_shown {
                        return Ok(Progress::NeedMore);
                    }
                }
                Ok(HandshakeStep::Established) => {
                    return self.establish().map(|established| Progress::Done(Box::new(established)));
                }
                Err(error) => return Err(self.fail(error, out)),
            }
        }
    }

    /// One step of rustls' with the bytes that it was shown.
    fn step(&mut self, out: &mut Vec<u8>) -> (usize, Result<HandshakeStep, Error>) {
        let input = &mut self.input[..self.shown];
        match (&mut self.connection, &mut self.beside) {
            (Connection::Server(connection), Some(beside)) => {
                let status = beside.step(|| connection.process_tls_records(input));
                let taken = take_early(status, out, &mut self.early);
                // Our half of it is over, and theirs is not.
                match taken {
                    (discard, Ok(HandshakeStep::Established)) if connection.is_handshaking() => {
                        (discard, Ok(HandshakeStep::NeedMore))
                    }
                    taken => taken,
                }
            }
            (Connection::Client(connection), _) => step(connection.process_tls_records(input), out),
            _ => (0, Err(Error::HandshakeNotComplete)),
        }
    }

    /// Ends it after an error of rustls', with the alert of rustls' or, if there is none, with ours.
    fn fail(&mut self, error: Error, out: &mut Vec<u8>) -> Failure {
        let start = out.len();
        self.say_last(out);
        in_words_of_1_2(&mut out[start..]);
        match error {
            Error::AlertReceived(description) => Failure::Alert(u8::from(description)),
            error if out.len() == start => {
                let alert = match &error {
                    Error::PeerMisbehaved(misbehaved) => last_word::of(misbehaved),
                    error => u8::from(alert_for(error)),
                };
                self.refuse(error, alert, out)
            }
            error => {
                let alert = told(&out[start..], &error);
                Failure::Refused(error, alert)
            }
        }
    }

    /// Tells the client of an error without rustls.
    fn refuse(&self, error: Error, alert: u8, out: &mut Vec<u8>) -> Failure {
        let is_told = self.beside.as_ref().is_some_and(|beside| beside.last_word.say(alert, out));
        Failure::Refused(error, is_told.then(|| Alert::of(alert)))
    }

    /// Whether a client that resumes asked something before the handshake was over (RFC 8446 §2.3). It may be
    /// answered before, too.
    #[must_use]
    pub const fn is_early(&self) -> bool {
        self.is_early
    }

    /// The first bytes of the early data until now, at most so many.
    pub fn take_early(&mut self, most: usize) -> Vec<u8> {
        let rest = self.early.split_off(self.early.len().min(most));
        std::mem::replace(&mut self.early, rest)
    }

    /// The received bytes that nobody has looked at.
    pub fn take_rest(&mut self) -> Vec<u8> {
        self.input.split_off(self.shown)
    }

    /// The agreement, before the handshake is over or when it is; whole only the first time.
    pub fn agreed(&mut self) -> Agreed {
        if std::mem::replace(&mut self.is_agreed, true) {
            return Agreed::default();
        }
        let mut agreed = match &self.connection {
            Connection::Server(connection) => Agreed::of(connection),
            Connection::Client(connection) => Agreed::of(connection),
            Connection::Over => Agreed::default(),
        };
        if let Connection::Server(connection) = &self.connection {
            let leaf = connection.peer_certificates().and_then(<[_]>::first);
            agreed.identity = leaf.map(|leaf| {
                let value = identity::forwarded(leaf).into();
                Rc::new(Identity { value, print: [0; 32] })
            });
        }
        agreed.server_name = self.server_name.take();
        agreed
    }

    /// Seals an answer to early data and appends it to `out`.
    ///
    /// # Errors
    /// Where no such data has come, or the handshake failed.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        self.write(out, |traffic, room| traffic.encrypt(plain, room))
    }

    /// Tells the client that nothing more comes.
    ///
    /// # Errors
    /// As `seal`.
    pub fn close(&mut self, out: &mut Vec<u8>) -> Result<(), Failure> {
        self.write(out, |traffic, room| traffic.queue_close_notify(room))
    }

    fn write(
        &mut self,
        out: &mut Vec<u8>,
        write: impl Fn(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), Failure> {
        let (Connection::Server(connection), Some(beside)) = (&mut self.connection, &mut self.beside) else {
            return Err(Failure::ours(Error::EncryptError));
        };
        let start = out.len();
        let input = &mut self.input[..self.shown];
        let UnbufferedStatus { discard, state } = beside.step(|| connection.process_tls_records(input));
        let written = match state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                append(out, |room| match write(&mut traffic, room) {
                    Err(EncryptError::InsufficientSize(needed)) => Err(Some(needed)),
                    other => other.map_err(|_| None),
                })
            }
            Ok(_) => Err(Error::EncryptError),
            Err(error) => Err(error),
        };
        beside.said(&out[start..], connection);
        self.input.drain(..discard);
        self.shown -= discard;
        written.map_err(Failure::ours)
    }

    /// The alert that rustls has queued with an error. It refers to input that rustls has taken in, so the
    /// input must still be there. Rustls may be asked no further than that.
    fn say_last(&mut self, out: &mut Vec<u8>) {
        let mut connection = std::mem::replace(&mut self.connection, Connection::Over);
        loop {
            let (discard, step) = match &mut connection {
                Connection::Server(connection) if connection.wants_write() => {
                    step(connection.process_tls_records(&mut self.input), out)
                }
                Connection::Client(connection) if connection.wants_write() => {
                    step(connection.process_tls_records(&mut self.input), out)
                }
                _ => return,
            };
            self.input.drain(..discard);
            if !matches!(step, Ok(HandshakeStep::Again)) {
                return;
            }
        }
    }

    fn establish(&mut self) -> Result<Established, Failure> {
        let agreed = self.agreed();
        let records = match std::mem::replace(&mut self.connection, Connection::Over) {
            Connection::Server(connection) => {
                let (secrets, kernel) =
                    connection.dangerous_into_kernel_connection().map_err(Failure::ours)?;
                Records::server(secrets, kernel)
            }
            Connection::Client(connection) => {
                let (secrets, kernel) =
                    connection.dangerous_into_kernel_connection().map_err(Failure::ours)?;
                Records::client(secrets, kernel)
            }
            Connection::Over => return Err(Failure::ours(Error::HandshakeNotComplete)),
        };
        let records = records.map_err(|_: Violation| Failure::ours(Error::EncryptError))?;
        let (rest, early) = (std::mem::take(&mut self.input), std::mem::take(&mut self.early));
        Ok(Established { records: Box::new(records), rest, early, agreed })
    }
}

/// Lets `write` append to `out`; it says how much room it needs.
fn append(
    out: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<InsufficientSizeError>>,
) -> Result<(), Error> {
    let start = out.len();
    let written = match write(&mut []) {
        Err(Some(needed)) => {
            out.resize(start + needed.required_size, 0);
            write(&mut out[start..])
        }
        other => other,
    };
    out.truncate(start + written.as_ref().unwrap_or(&0));
    written.map(drop).map_err(|_| Error::EncryptError)
}

/// As `step`, where early data may come.
fn take_early(
    status: UnbufferedStatus<'_, '_, ServerConnectionData>,
    out: &mut Vec<u8>,
    early: &mut Vec<u8>,
) -> (usize, Result<HandshakeStep, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let Ok(ConnectionState::ReadEarlyData(mut read)) = state else {
        return step(UnbufferedStatus { discard, state }, out);
    };
    while let Some(record) = read.next_record() {
        match record {
            Ok(record) => {
                discard += record.discard;
                early.extend_from_slice(record.payload);
            }
            Err(error) => return (discard, Err(error)),
        }
    }
    (discard, Ok(HandshakeStep::Again))
}

/// Bytes of the record that begins so; of its header, where that is of none, which rustls refuses.
#[must_use]
pub fn record_length(header: [u8; HEADER_BYTES]) -> usize {
    let [kind, major, _, high, low] = header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    // Heartbeats, SSL 2 and DTLS are names to rustls.
    let is_none = !(CHANGE_CIPHER_SPEC..=HEARTBEAT).contains(&kind)
        || !matches!(major, 2 | 3 | 0xfe)
        || length >= BODY_BYTES_MAX;
    if is_none { HEADER_BYTES } else { HEADER_BYTES + length }
}

/// Bytes of the first record, once it is there; or of its header, once that is of none, which rustls refuses.
pub(super) fn record_at(bytes: &[u8]) -> Option<usize> {
    let length = record_length(*bytes.first_chunk()?);
    (bytes.len() >= length).then_some(length)
}

/// Handles one state: how much of the input to throw away, and the next step.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    out: &mut Vec<u8>,
) -> (usize, Result<HandshakeStep, Error>) {
    let UnbufferedStatus { discard, state } = status;
    let result = match state {
        Err(error) => Err(error),
        Ok(ConnectionState::EncodeTlsData(mut encode)) => {
            let written = append(out, |room| match encode.encode(room) {
                Err(EncodeError::InsufficientSize(needed)) => Err(Some(needed)),
                other => other.map_err(|_| None),
            });
            written.map(|()| HandshakeStep::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done();
            Ok(HandshakeStep::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(HandshakeStep::NeedMore),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(HandshakeStep::Established),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
            Err(Error::AlertReceived(AlertDescription::CloseNotify))
        }
        // Data behind the handshake: rustls is shown none. Early data was taken before.
        Ok(_) => Err(Error::HandshakeNotComplete),
    };
    (discard, result)
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake").field("input", &self.input.len()).finish_non_exhaustive()
    }
}
