//! All that a server does beside rustls within a handshake. It reads the hello for itself, hides a name that
//! rustls refuses, skips early data that was refused, and judges the headers of records.

use std::rc::Rc;

use rustls::server::UnbufferedServerConnection;
use rustls::{Error, HandshakeKind, InvalidMessage};

use super::alert;
use super::hello::{Hello, Reader};
use super::key_log::{self, Caught};
use super::last_word::LastWord;
use super::masked::{self, Mask};
use super::records::{APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, HEADER_BYTES};
use super::refused::Refused;

/// Content of a record (RFC 8446 §5.1), and what sealing adds to it (§5.2).
const PLAIN_MAX: usize = 1 << 14;
const SEALED_MAX: usize = PLAIN_MAX + 256;

/// See the module.
#[derive(Default)]
pub(super) struct Beside {
    hello: HelloStage,
    refused: Refused,
    mask: Option<Rc<Mask>>,
    /// The client has to say its hello again.
    is_retried: bool,
    caught: Caught,
    pub(super) last_word: LastWord,
}

/// The hello, which rustls is shown once it is here whole.
enum HelloStage {
    /// It is on its way.
    Coming(Box<Reader>),
    /// It is here, and rustls has not seen it.
    Here(Hello),
    /// rustls has it, with its name hidden. If the client has to say it again, so must the second be.
    Masked,
    /// Nothing is to be done about it.
    Past,
}

impl Default for HelloStage {
    fn default() -> Self {
        Self::Coming(Box::default())
    }
}

impl Beside {
    /// Reads received bytes, and takes out the server name when the hello is whole.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Option<Box<str>> {
        let HelloStage::Coming(reader) = &mut self.hello else { return None };
        match reader.read(bytes) {
            Ok(None) => None,
            Ok(Some(mut hello)) => {
                let name = hello.server_name.take();
                self.hello = HelloStage::Here(hello);
                name
            }
            // Whether that can be a handshake is rustls' to judge.
            Err(_) => {
                self.hello = HelloStage::Past;
                None
            }
        }
    }

    /// Whether the hello is still to come.
    pub(super) const fn waits(&self) -> bool {
        matches!(self.hello, HelloStage::Coming(_))
    }

    /// Prepares the input behind `shown` for rustls. Records that it must not see are taken out. `false`:
    /// rustls has to wait.
    ///
    /// # Errors
    /// When the next bytes begin no record: the error, and the alert for it.
    pub(super) fn prepare(&mut self, input: &mut Vec<u8>, shown: usize) -> Result<bool, (Error, u8)> {
        if self.waits() {
            return Ok(false);
        }
        let mut at = shown;
        while let Some(length) = super::handshake::record_at(&input[at..])
            && self.refused.skips(&input[at..at + length])
        {
            at += length;
        }
        input.drain(shown..at);
        let next = &mut input[shown..];
        if let Some(fault) = self.fault_at(next) {
            return Err(fault);
        }
        match &mut self.hello {
            HelloStage::Here(hello) => {
                if hello.offers_early_data {
                    self.refused = Refused::Offered;
                }
                self.mask = hello.hidden.and_then(|hidden| Mask::put_on(next, hidden)).map(Rc::new);
                self.hello = if self.mask.is_some() { HelloStage::Masked } else { HelloStage::Past };
            }
            // Records of other kinds may come between both hellos.
            HelloStage::Masked if next.first() == Some(&HANDSHAKE) && self.is_retried => {
                match Reader::default().read(next) {
                    Ok(None) => return Ok(false),
                    Ok(Some(hello)) => {
                        self.mask = hello.hidden.and_then(|hidden| Mask::put_on(next, hidden)).map(Rc::new);
                    }
                    Err(_) => {}
                }
                self.hello = HelloStage::Past;
            }
            _ => {}
        }
        Ok(true)
    }

    /// The fault of bytes that begin no record. RFC 8446 §5 has an alert for each.
    pub(super) fn fault_at(&self, bytes: &[u8]) -> Option<(Error, u8)> {
        let &[kind, major, _, high, low] = bytes.first_chunk::<HEADER_BYTES>()?;
        if matches!(self.last_word, LastWord::Theirs) {
            return None;
        }
        let is_sealed = kind == APPLICATION_DATA || matches!(self.last_word, LastWord::Sealed { .. });
        let max = if is_sealed { SEALED_MAX } else { PLAIN_MAX };
        let (error, alert) = if !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&kind) {
            (InvalidMessage::InvalidContentType, alert::UNEXPECTED_MESSAGE)
        } else if major != 3 {
            (InvalidMessage::UnknownProtocolVersion, alert::PROTOCOL_VERSION)
        } else if usize::from(u16::from_be_bytes([high, low])) > max {
            (InvalidMessage::MessageTooLarge, alert::RECORD_OVERFLOW)
        } else {
            return None;
        };
        Some((Error::InvalidMessage(error), alert))
    }

    /// Takes a step of rustls'.
    pub(super) fn step<R>(&mut self, step: impl FnOnce() -> R) -> R {
        masked::wearing(self.mask.as_ref(), || key_log::catching(&mut self.caught, step))
    }

    /// rustls has said these records, and can do no more for now.
    pub(super) fn said(&mut self, said: &[u8], connection: &UnbufferedServerConnection) {
        let suite = connection.negotiated_cipher_suite().and_then(|suite| suite.tls13());
        let is_retry = connection.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest);
        self.is_retried |= is_retry;
        self.refused.answered(said, is_retry, suite, &self.caught);
        self.last_word.said(said, suite, &mut self.caught.traffic);
    }
}
