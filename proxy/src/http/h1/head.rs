//! What request and response heads share: their errors, and the fields that decide framing and persistence
//! (RFC 9112 §6.1–6.3, §9.3).

use std::mem::MaybeUninit;

use crate::error::RefusalReason;
use crate::http::grammar::{decimal, list};
use crate::http::message::{BodyLength, Fields, Version};
use crate::http::path::PathError;

/// Why a head is refused. A request gets `refusal()`, a response is `UpstreamMalformed` whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// LF without CR before it.
    #[error("a line ends with a bare LF")]
    BareLineFeed,
    /// CR without LF after it.
    #[error("a bare CR")]
    BareCarriageReturn,
    /// obs-fold: a field line that begins with white space.
    #[error("a folded line")]
    FoldedLine,
    /// A second empty line before a request, or any before a response.
    #[error("an empty line before the start line")]
    EmptyLine,
    /// The request or status line is none.
    #[error("malformed start line")]
    StartLine,
    /// An HTTP version other than 1.0 and 1.1.
    #[error("unsupported HTTP version")]
    Version,
    /// A field name that is no token, or white space before its colon.
    #[error("malformed field name")]
    FieldName,
    /// A control byte in a field value.
    #[error("malformed field value")]
    FieldValue,
    /// More bytes than `header_bytes`.
    #[error("the head is too large")]
    TooLarge,
    /// More fields than allowed.
    #[error("too many fields")]
    TooManyFields,
    /// A request target longer than `uri_bytes`.
    #[error("the request target is too long")]
    UriTooLong,
    /// A request target in no form that its method allows.
    #[error("malformed request target")]
    Target,
    /// A path that cannot be normalised.
    #[error("malformed request target: {0}")]
    Path(#[from] PathError),
    /// No Host on HTTP/1.1.
    #[error("Host is missing")]
    HostMissing,
    /// More than one Host.
    #[error("Host is repeated")]
    HostRepeated,
    /// A Host, or an authority in the target, that names no host.
    #[error("Host is invalid")]
    HostInvalid,
    /// A Content-Length that is not a plain number, or a list of them.
    #[error("malformed Content-Length")]
    ContentLength,
    /// More than one Content-Length, even with the same value.
    #[error("Content-Length is repeated")]
    ContentLengthRepeated,
    /// Anything but a single `chunked`, or Transfer-Encoding on HTTP/1.0.
    #[error("unsupported Transfer-Encoding")]
    TransferEncoding,
    /// Content-Length beside Transfer-Encoding.
    #[error("both Content-Length and Transfer-Encoding")]
    BothLengths,
    /// An Expect other than 100-continue.
    #[error("unsupported expectation")]
    Expectation,
    /// CONNECT: tunnels are not served.
    #[error("CONNECT is not supported")]
    Connect,
}

impl HeadError {
    /// How a request with this error is answered.
    #[must_use]
    pub const fn refusal(self) -> RefusalReason {
        match self {
            Self::HostMissing | Self::HostRepeated | Self::HostInvalid => RefusalReason::BadHost,
            Self::TooLarge | Self::TooManyFields => RefusalReason::HeadTooLarge,
            Self::UriTooLong => RefusalReason::UriTooLong,
            Self::Version => RefusalReason::VersionNotSupported,
            Self::Expectation => RefusalReason::ExpectationFailed,
            Self::Connect => RefusalReason::NotImplemented,
            _ => RefusalReason::Malformed,
        }
    }
}

impl From<httparse::Error> for HeadError {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::HeaderName => Self::FieldName,
            httparse::Error::HeaderValue => Self::FieldValue,
            httparse::Error::TooManyHeaders => Self::TooManyFields,
            _ => Self::StartLine,
        }
    }
}

/// Fields that fit the stack; more than this, if the configuration allows them, go to the heap.
const INLINE_FIELDS: usize = 128;

/// Room for `httparse` to put `count` fields.
pub(super) fn with_headers<'b, R>(count: usize, parse: impl FnOnce(&mut [MaybeUninit<httparse::Header<'b>>]) -> R) -> R {
    if count <= INLINE_FIELDS {
        parse(&mut [const { MaybeUninit::uninit() }; INLINE_FIELDS][..count])
    } else {
        parse(&mut vec![MaybeUninit::uninit(); count])
    }
}

/// Copies fields into one buffer, with room for those that `forward` adds.
pub(super) fn collect(headers: &[httparse::Header<'_>], bytes: usize) -> Fields {
    const ADDED_BYTES: usize = 256;
    const ADDED_FIELDS: usize = 8;
    let mut fields = Fields::with_capacity(bytes + ADDED_BYTES, headers.len() + ADDED_FIELDS);
    for header in headers {
        fields.push(header.name.as_bytes(), header.value);
    }
    fields
}

/// What the framing fields of a head say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Framing {
    pub(super) content_length: Option<u64>,
    pub(super) chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Framing {
    /// Takes a field into account if it is one of framing or persistence.
    pub(super) fn note(&mut self, name: &str, value: &[u8]) -> Result<(), HeadError> {
        match name.len() {
            10 if name.eq_ignore_ascii_case("connection") => {
                for option in list(value) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            14 if name.eq_ignore_ascii_case("content-length") => {
                let length = decimal(value).ok_or(HeadError::ContentLength)?;
                if self.content_length.replace(length).is_some() {
                    return Err(HeadError::ContentLengthRepeated);
                }
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadError::TransferEncoding);
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// The length that the fields give, if any (RFC 9112 §6.3 items 3 to 6).
    pub(super) fn length(&self, version: Version) -> Result<Option<BodyLength>, HeadError> {
        match (self.chunked, self.content_length) {
            (true, Some(_)) => Err(HeadError::BothLengths),
            (true, None) if version == Version::Http10 => Err(HeadError::TransferEncoding),
            (true, None) => Ok(Some(BodyLength::Unknown)),
            (false, length) => Ok(length.map(BodyLength::Known)),
        }
    }

    /// Whether the connection persists after this message (RFC 9112 §9.3).
    pub(super) fn persists(&self, version: Version) -> bool {
        !self.close && (version > Version::Http10 || self.keep_alive)
    }
}
