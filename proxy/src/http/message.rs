//! One request or response head and its body framing, whichever HTTP version carried it (RFC 9110).

use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

pub use super::fields::Fields;

/// HTTP versions a head can have come in with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0 (RFC 1945)
    Http10,
    /// HTTP/1.1 (RFC 9112)
    Http11,
    /// HTTP/2 (RFC 9113)
    Http2,
}

/// A request method. Names are case-sensitive (RFC 9110 §9.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// PUT
    Put,
    /// DELETE
    Delete,
    /// OPTIONS
    Options,
    /// PATCH
    Patch,
    /// TRACE
    Trace,
    /// CONNECT
    Connect,
    /// Any other token.
    Other(Box<str>),
}

impl Method {
    /// From its name on the wire; the parser has checked that it is a token.
    #[must_use]
    pub fn from_token(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            "PATCH" => Self::Patch,
            "TRACE" => Self::Trace,
            "CONNECT" => Self::Connect,
            other => Self::Other(other.into()),
        }
    }

    /// Its name on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Patch => "PATCH",
            Self::Trace => "TRACE",
            Self::Connect => "CONNECT",
            Self::Other(name) => name,
        }
    }

    /// Whether the client asks for nothing but an answer (RFC 9110 §9.2.1).
    #[must_use]
    pub const fn is_safe(&self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options | Self::Trace)
    }

    /// Whether repeating the request has the effect of sending it once (RFC 9110 §9.2.2), so that it may be
    /// retried.
    #[must_use]
    pub const fn is_idempotent(&self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Put | Self::Delete | Self::Options | Self::Trace)
    }
}

/// How long a body is, as its head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// No body, not even an empty one that needs framing.
    None,
    /// Exactly this many bytes.
    Known(u64),
    /// Ends with its own framing (chunked, or an HTTP/2 END_STREAM); trailers may follow.
    Unknown,
    /// A response that ends when the connection closes (RFC 9112 §6.3 item 8).
    UntilClose,
}

/// A request target as it is routed. The shortest targets need no memory of their own.
#[derive(Clone)]
pub enum Target {
    /// `/` or `*`
    Usual(&'static str),
    /// Any other.
    Other(Box<str>),
}

impl From<&str> for Target {
    fn from(text: &str) -> Self {
        match text {
            "/" => Self::Usual("/"),
            "*" => Self::Usual("*"),
            _ => Self::Other(text.into()),
        }
    }
}

impl From<String> for Target {
    fn from(text: String) -> Self {
        Self::Other(text.into())
    }
}

impl Deref for Target {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Usual(text) => text,
            Self::Other(text) => text,
        }
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A reason phrase. The most common phrases need no memory of their own.
#[derive(Clone)]
pub enum Reason {
    /// A usual one.
    Usual(&'static [u8]),
    /// Any other.
    Other(Box<[u8]>),
}

impl From<&[u8]> for Reason {
    fn from(text: &[u8]) -> Self {
        Self::Usual(match text {
            b"" => b"",
            b"OK" => b"OK",
            b"Created" => b"Created",
            b"No Content" => b"No Content",
            b"Partial Content" => b"Partial Content",
            b"Moved Permanently" => b"Moved Permanently",
            b"Found" => b"Found",
            b"Not Modified" => b"Not Modified",
            b"Not Found" => b"Not Found",
            _ => return Self::Other(text.into()),
        })
    }
}

impl<const N: usize> From<[u8; N]> for Reason {
    fn from(text: [u8; N]) -> Self {
        Self::from(&text[..])
    }
}

impl Deref for Reason {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Usual(text) => text,
            Self::Other(text) => text,
        }
    }
}

impl PartialEq for Reason {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A request head.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The version it came in with.
    pub version: Version,
    /// Host and optional port: from the request target if absolute, else from Host. Lower case; empty only
    /// for an HTTP/1.0 request without one.
    pub authority: Rc<str>,
    /// Path and query as they are routed *and* forwarded: dot segments resolved, `//` kept, never empty; `*`
    /// for `OPTIONS *`.
    pub path_and_query: Target,
    /// The fields as received, framing and hop-by-hop fields included; `forward` removes those.
    pub fields: Fields,
    /// The body's framing.
    pub body: BodyLength,
}

impl RequestHead {
    /// The path without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        match memchr::memchr(b'?', self.path_and_query.as_bytes()) {
            Some(end) => &self.path_and_query[..end],
            None => &self.path_and_query,
        }
    }
}

/// A response head, final or interim.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// 100 to 999.
    pub status: u16,
    /// The version it came in with.
    pub version: Version,
    /// Reason phrase, maybe empty. HTTP/1 only.
    pub reason: Reason,
    /// The fields as received.
    pub fields: Fields,
    /// The body's framing, with HEAD, 1xx, 204, 304 already taken into account.
    pub body: BodyLength,
}
