//! One request or response head and its body framing, whichever HTTP version carried it (RFC 9110).

use std::ops::Range;

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

    /// Whether repeating the request has the effect of sending it once (RFC 9110 §9.2.2), so that it may be retried.
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

/// A field list in the order received. Names keep their spelling and compare without case.
///
/// All bytes live in one buffer; a field is two ranges of it. Invariant: names are tokens and values hold no
/// CR, LF, NUL or other control byte but HTAB, with outer whitespace removed.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: Range<u32>,
    value: Range<u32>,
}

impl Fields {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), entries: Vec::new() }
    }

    /// An empty list with room for `bytes` of names and values and `fields` entries.
    #[must_use]
    pub fn with_capacity(bytes: usize, fields: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), entries: Vec::with_capacity(fields) }
    }

    /// Appends a field. The caller vouches for the invariant (the parser has checked, or we wrote it).
    ///
    /// Lists are bounded by `limits.header_bytes` long before a range could exceed `u32`.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_with(name, |bytes| bytes.extend_from_slice(value));
    }

    /// Appends a field whose value `write` appends to a buffer. The same invariant holds.
    pub fn push_with(&mut self, name: &[u8], write: impl FnOnce(&mut Vec<u8>)) {
        let name_start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(name);
        let value_start = self.bytes.len() as u32;
        write(&mut self.bytes);
        let value_end = self.bytes.len() as u32;
        self.entries.push(Entry { name: name_start..value_start, value: value_start..value_end });
    }

    /// Fields in order, as (name, value).
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|entry| (self.slice(&entry.name), self.slice(&entry.value)))
    }

    /// Values of every field called `name`, in order.
    pub fn all<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The first value of `name`.
    #[must_use]
    pub fn first(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Whether a field called `name` is there.
    #[must_use]
    pub fn contains(&self, name: &[u8]) -> bool {
        self.first(name).is_some()
    }

    /// Keeps the fields for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let Self { bytes, entries } = self;
        entries.retain(|entry| {
            keep(
                &bytes[entry.name.start as usize..entry.name.end as usize],
                &bytes[entry.value.start as usize..entry.value.end as usize],
            )
        });
    }

    /// How many fields.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn slice(&self, range: &Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }
}

/// A request head.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The version it came in with.
    pub version: Version,
    /// Host and optional port: from the request target if absolute, else from Host. Lower case; empty only for
    /// an HTTP/1.0 request without one.
    pub authority: Box<str>,
    /// Path and query as they are routed *and* forwarded: dot segments resolved, `//` kept, never empty; `*` for
    /// `OPTIONS *`.
    pub path_and_query: Box<str>,
    /// The fields as received, framing and hop-by-hop fields included; `forward` removes those.
    pub fields: Fields,
    /// The body's framing.
    pub body: BodyLength,
    /// Whether the connection may carry another request after this one (RFC 9112 §9.3).
    pub keep_alive: bool,
}

impl RequestHead {
    /// The path without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path_and_query.split('?').next().unwrap_or(&self.path_and_query)
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
    pub reason: Box<[u8]>,
    /// The fields as received.
    pub fields: Fields,
    /// The body's framing, with HEAD, 1xx, 204, 304 already taken into account.
    pub body: BodyLength,
    /// Whether the connection may carry another exchange.
    pub keep_alive: bool,
}
