//! Bounds on the input from a peer before it is refused. A client's bounds come from `listener.limits`.
//! Bounds on an upstream, on trailers and on chunk framing are fixed here, since nobody needs to tune them.

use super::path::Rules;

/// Bounds of one message head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole head, from its first byte to the empty line that ends it.
    pub header_bytes: usize,
    /// Fields.
    pub fields: usize,
    /// Bytes of the request target. Not used for responses.
    pub uri_bytes: usize,
    /// How its path is read. Not used for responses.
    pub paths: Rules,
}

impl Limits {
    /// For an upstream's responses: generous, since the operator chose it, but finite.
    pub const UPSTREAM: Self =
        Self { header_bytes: 64 * 1024, fields: 256, uri_bytes: 0, paths: Rules::KEEP };

    /// For a trailer section from either side.
    pub const TRAILERS: Self = Self { header_bytes: 8 * 1024, fields: 64, uri_bytes: 0, paths: Rules::KEEP };
}

/// Bytes of a request line beside its target before it counts as too long: a method, two spaces and the
/// version.
pub const REQUEST_LINE_EXTRA: usize = 64;

/// Bytes of a status line.
pub const STATUS_LINE_BYTES: usize = 1024;

/// Bytes of one chunk's extensions, with the white space before them. They are read past, never kept.
pub const CHUNK_EXTENSION_BYTES: usize = 256;

/// Hexadecimal digits of a chunk size, leading zeros included: as many as fit a `u64`.
pub const CHUNK_SIZE_DIGITS: u8 = 16;

/// Bytes of an X-Request-Id that is taken over from a client.
pub const REQUEST_ID_BYTES: usize = 128;
