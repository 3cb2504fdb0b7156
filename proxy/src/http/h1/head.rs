//! Parts that request and response heads share: their errors, and the fields that decide framing and
//! persistence (RFC 9112 §6.1–6.3, §9.3).

use std::mem::MaybeUninit;

use crate::error::RefusalReason;
use crate::http::grammar::{decimal, list, trim};
use crate::http::message::{BodyLength, Fields, Version};
use crate::http::names::{Name, NameSet, Word};
use crate::http::path::PathError;

/// Why a head is refused. A request gets `refusal()`; for a response every reason is `UpstreamMalformed`.
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
    /// A Max-Forwards that is no number.
    #[error("malformed Max-Forwards")]
    MaxForwards,
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
            Self::Path(error) if error.is_ambiguous() => RefusalReason::AmbiguousPath,
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

/// Fields of a head that is read at once, without a scan before.
pub(super) const AT_ONCE_FIELDS: usize = 64;

/// Room for `httparse` to put `count` fields.
pub(super) fn with_headers<'b, R>(
    count: usize,
    parse: impl FnOnce(&mut [MaybeUninit<httparse::Header<'b>>]) -> R,
) -> R {
    if count <= INLINE_FIELDS {
        parse(&mut [const { MaybeUninit::uninit() }; INLINE_FIELDS][..count])
    } else {
        parse(&mut vec![MaybeUninit::uninit(); count])
    }
}

/// Makes `Fields` of a section's lines and the fields that `httparse` found in them, and shows the fields of
/// `noted` to `note`. The lines are copied in one piece. Only a line that is not spelt `name: value` is
/// written anew. `extra_bytes` and `extra_fields` are room for `forward`'s.
///
/// It follows the lines to the letter of RFC 9112 §2.2 and §5 as it goes: field after field has to end with
/// CRLF where the next begins.
#[inline]
pub(super) fn collect<'b>(
    lines: &[u8],
    headers: &[httparse::Header<'b>],
    (extra_bytes, extra_fields): (usize, usize),
    noted: NameSet,
    mut note: impl FnMut(Name, &'b [u8]) -> Result<(), HeadError>,
) -> Result<Fields, HeadError> {
    let mut fields = Fields::with_capacity(lines.len() + extra_bytes, headers.len() + extra_fields);
    fields.copy(lines);
    let mut rest = lines;
    for header in headers {
        let name = Name::of(header.name.as_bytes());
        let at = lines.len() - rest.len();
        let name_end = at + header.name.len();
        let line = rest.split_at_checked(header.name.len() + header.value.len() + 4);
        match line {
            // White space beside the one space would leave the line's end further away: a value has no CR.
            Some((line, after))
                if line[header.name.len()..].starts_with(b": ") && line.ends_with(b"\r\n") =>
            {
                fields.adopt(name, at, name_end, lines.len() - after.len());
                rest = after;
            }
            _ => rest = rewrite(rest, name, header, &mut fields)?,
        }
        if noted.contains(name) {
            note(name, header.value)?;
        }
    }
    if rest == b"\r\n" { Ok(fields) } else { Err(HeadError::BareLineFeed) }
}

/// Takes the line that `rest` starts with and returns the bytes behind it.
#[cold]
fn rewrite<'b>(
    rest: &'b [u8],
    name: Name,
    header: &httparse::Header<'_>,
    fields: &mut Fields,
) -> Result<&'b [u8], HeadError> {
    let end = memchr::memchr(b'\r', rest).ok_or(HeadError::BareLineFeed)?;
    let (line, after) = rest.split_at(end);
    let value = line.get(header.name.len()..).and_then(|rest| rest.strip_prefix(b":"));
    if value.map(trim) != Some(header.value) {
        return Err(HeadError::BareLineFeed);
    }
    fields.push_known(name, header.name.as_bytes(), header.value);
    after.strip_prefix(b"\r\n").ok_or(HeadError::BareLineFeed)
}

/// The framing that a head's fields declare.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Framing {
    pub(super) content_length: Option<u64>,
    pub(super) chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Framing {
    /// The fields that `note` takes into account.
    pub(super) const NAMES: NameSet =
        NameSet::of(&[Name::Connection, Name::ContentLength, Name::TransferEncoding]);

    /// Takes a field into account if it is one of framing or persistence.
    #[inline]
    pub(super) fn note(&mut self, name: Name, value: &[u8]) -> Result<(), HeadError> {
        match name {
            // The value of nearly every Connection.
            Name::Connection if Word::KEEP_ALIVE.is(value) => self.keep_alive = true,
            Name::Connection => {
                for option in list(value) {
                    self.close |= Word::CLOSE.is(option);
                    self.keep_alive |= Word::KEEP_ALIVE.is(option);
                }
            }
            Name::ContentLength => {
                let length = decimal(value).ok_or(HeadError::ContentLength)?;
                if self.content_length.replace(length).is_some() {
                    return Err(HeadError::ContentLengthRepeated);
                }
            }
            Name::TransferEncoding => {
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
