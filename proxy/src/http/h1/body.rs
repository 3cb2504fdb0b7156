//! Message bodies (RFC 9112 §6.3, §7.1), decoded in place: the decoder says which bytes of its input are
//! body, and copies none but trailers.
//!
//! The chunked states, and what each byte does in them; every other byte is an error:
//!
//! | state    | byte                                    | next                                     |
//! |----------|-----------------------------------------|------------------------------------------|
//! | Size     | HEXDIG, up to 16                        | Size                                     |
//! |          | after one: CR / `;` / SP, HTAB          | SizeLf / Extension / Padding             |
//! | Padding  | SP, HTAB / `;`                          | Padding / Extension                      |
//! | Extension| HTAB, SP, VCHAR; bounded with Padding   | Extension                                |
//! |          | CR                                      | SizeLf                                   |
//! | SizeLf   | LF                                      | Data, or TrailerStart for size 0         |
//! | Data     | `size` bytes of body                    | DataCr                                   |
//! | DataCr   | CR                                      | DataLf                                   |
//! | DataLf   | LF                                      | Size                                     |
//! | TrailerStart | CR / tchar                          | EndLf / Trailers                         |
//! | EndLf    | LF                                      | Done                                     |
//! | Trailers | field lines, then an empty line         | Done                                     |

use super::head::{HeadError, collect};
use super::scan::{Bounds, Scanner};
use crate::http::grammar::hex_digit;
use crate::http::limits::{CHUNK_EXTENSION_BYTES, CHUNK_SIZE_DIGITS, Limits};
use crate::http::message::{BodyLength, Fields};
use crate::http::names::NameSet;

/// Why a body cannot be read on. After it the connection has no further use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The size line of a chunk is not `1*16HEXDIG [extensions] CRLF`.
    #[error("malformed chunk size")]
    ChunkSize,
    /// More than `CHUNK_EXTENSION_BYTES` of extensions, or a control byte in them.
    #[error("malformed or too long chunk extension")]
    ChunkExtension,
    /// No CRLF after a chunk's data.
    #[error("a chunk does not end where its size says")]
    ChunkEnd,
    /// The trailer section is malformed or exceeds `Limits::TRAILERS`.
    #[error("malformed trailers: {0}")]
    Trailers(HeadError),
    /// The stream ended within the body.
    #[error("the body was cut short")]
    CutShort,
}

/// The meaning of an input's start.
#[derive(Debug)]
pub enum Step {
    /// `skip` bytes of framing, then `len` (never 0) bytes of body. More may follow.
    Data {
        /// Bytes to drop.
        skip: usize,
        /// Bytes of body after those.
        len: usize,
    },
    /// The whole input was framing, or it was empty.
    NeedMore {
        /// Its length.
        consumed: usize,
    },
    /// The body is complete; `decode` must not be called again.
    End {
        /// Bytes of framing before the next message.
        consumed: usize,
        /// Trailer fields, maybe none, as received.
        trailers: Fields,
    },
}

/// Reads one body.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
}

#[derive(Debug)]
enum State {
    /// Bytes left of a known length.
    Known(u64),
    UntilClose,
    Size {
        size: u64,
        digits: u8,
    },
    Padding {
        size: u64,
        length: usize,
    },
    Extension {
        size: u64,
        length: usize,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    TrailerStart,
    EndLf,
    Trailers(Box<TrailerSection>),
    Done,
}

#[derive(Debug, Default)]
struct TrailerSection {
    bytes: Vec<u8>,
    scanner: Scanner,
}

const CHUNK_START: State = State::Size { size: 0, digits: 0 };

impl BodyDecoder {
    /// For the body of a head.
    #[must_use]
    pub const fn new(length: BodyLength) -> Self {
        let state = match length {
            BodyLength::None => State::Known(0),
            BodyLength::Known(length) => State::Known(length),
            BodyLength::Unknown => CHUNK_START,
            BodyLength::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// Decodes the start of `input`, which follows the bytes that were decoded before.
    pub fn decode(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        match &mut self.state {
            State::UntilClose => Ok(data_or_need_more(0, input.len())),
            State::Known(left) => {
                if *left == 0 {
                    self.state = State::Done;
                    return Ok(Step::End { consumed: 0, trailers: Fields::new() });
                }
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= len as u64;
                Ok(data_or_need_more(0, len))
            }
            _ => self.decode_chunked(input),
        }
    }

    /// The stream ended: whether the body was complete.
    pub const fn eof(&self) -> Result<(), BodyError> {
        match self.state {
            State::UntilClose | State::Known(0) | State::Done => Ok(()),
            _ => Err(BodyError::CutShort),
        }
    }

    /// Whether `decode` has returned `End`.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    fn decode_chunked(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        let mut at = 0;
        loop {
            if let State::Data { left } = &mut self.state {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len() - at);
                *left -= len as u64;
                if *left == 0 {
                    self.state = State::DataCr;
                }
                return Ok(if len > 0 {
                    Step::Data { skip: at, len }
                } else {
                    Step::NeedMore { consumed: at }
                });
            }
            if let State::Trailers(section) = &mut self.state {
                let Some((taken, trailers)) = section.read(&input[at..]).map_err(BodyError::Trailers)? else {
                    return Ok(Step::NeedMore { consumed: input.len() });
                };
                self.state = State::Done;
                return Ok(Step::End { consumed: at + taken, trailers });
            }
            if matches!(self.state, State::Done) {
                return Ok(Step::End { consumed: at, trailers: Fields::new() });
            }
            let Some(&byte) = input.get(at) else { return Ok(Step::NeedMore { consumed: at }) };
            self.state = self.state.on_framing(byte)?;
            // The first byte of a trailer belongs to its section.
            at += usize::from(!matches!(self.state, State::Trailers(_)));
        }
    }
}

const fn data_or_need_more(skip: usize, len: usize) -> Step {
    if len > 0 { Step::Data { skip, len } } else { Step::NeedMore { consumed: skip } }
}

impl State {
    /// The state after one byte of framing.
    fn on_framing(&self, byte: u8) -> Result<Self, BodyError> {
        match (self, byte) {
            (&Self::Size { size, digits }, _) => match (hex_digit(byte), byte) {
                (Some(digit), _) if digits < CHUNK_SIZE_DIGITS => {
                    Ok(Self::Size { size: size << 4 | u64::from(digit), digits: digits + 1 })
                }
                (None, b'\r') if digits > 0 => Ok(Self::SizeLf { size }),
                (None, b';') if digits > 0 => Ok(Self::Extension { size, length: 1 }),
                (None, b' ' | b'\t') if digits > 0 => Ok(Self::Padding { size, length: 1 }),
                _ => Err(BodyError::ChunkSize),
            },
            (&Self::Padding { length, .. } | &Self::Extension { length, .. }, _)
                if length >= CHUNK_EXTENSION_BYTES && byte != b'\r' =>
            {
                Err(BodyError::ChunkExtension)
            }
            (&Self::Padding { size, length }, b' ' | b'\t') => Ok(Self::Padding { size, length: length + 1 }),
            (&Self::Padding { size, length }, b';') => Ok(Self::Extension { size, length: length + 1 }),
            (&Self::Padding { .. }, _) => Err(BodyError::ChunkSize),
            (&Self::Extension { size, .. }, b'\r') => Ok(Self::SizeLf { size }),
            (&Self::Extension { size, length }, b'\t' | b' '..=b'~') => {
                Ok(Self::Extension { size, length: length + 1 })
            }
            (&Self::Extension { .. }, _) => Err(BodyError::ChunkExtension),
            (Self::SizeLf { size: 0 }, b'\n') => Ok(Self::TrailerStart),
            (&Self::SizeLf { size }, b'\n') => Ok(Self::Data { left: size }),
            (Self::SizeLf { .. }, _) => Err(BodyError::ChunkSize),
            (Self::DataCr, b'\r') => Ok(Self::DataLf),
            (Self::DataLf, b'\n') => Ok(CHUNK_START),
            (Self::DataCr | Self::DataLf, _) => Err(BodyError::ChunkEnd),
            (Self::TrailerStart, b'\r') => Ok(Self::EndLf),
            (Self::TrailerStart, _) => Ok(Self::Trailers(Box::default())),
            (Self::EndLf, b'\n') => Ok(Self::Done),
            (Self::EndLf, _) => Err(BodyError::Trailers(HeadError::BareCarriageReturn)),
            // Bodies that are not chunked have no framing bytes, and the other two never get here.
            (Self::Known(_) | Self::UntilClose | Self::Data { .. } | Self::Trailers(_) | Self::Done, _) => {
                Ok(Self::Done)
            }
        }
    }
}

impl TrailerSection {
    /// Takes the section's bytes from `input`. Once the section is whole: its length, and its fields.
    fn read(&mut self, input: &[u8]) -> Result<Option<(usize, Fields)>, HeadError> {
        const BOUNDS: Bounds = Bounds {
            bytes: Limits::TRAILERS.header_bytes,
            first_line: Limits::TRAILERS.header_bytes,
            lines: Limits::TRAILERS.fields,
            too_long: HeadError::TooLarge,
            leading_empty_line: false,
        };
        let before = self.bytes.len();
        let room = BOUNDS.bytes - before;
        self.bytes.extend_from_slice(&input[..input.len().min(room)]);
        let Some(section) = self.scanner.scan(&self.bytes, &BOUNDS)? else { return Ok(None) };
        let mut headers = [httparse::EMPTY_HEADER; Limits::TRAILERS.fields];
        match httparse::parse_headers(&self.bytes[..section.end], &mut headers)? {
            httparse::Status::Complete((length, headers)) if length == section.end => {
                let fields =
                    collect(&self.bytes[..section.end], headers, (0, 0), NameSet::default(), |_, _| Ok(()))?;
                Ok(Some((section.end - before, fields)))
            }
            _ => Err(HeadError::FieldName),
        }
    }
}

#[cfg(test)]
mod tests;
