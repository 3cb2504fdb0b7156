//! Request targets in origin form: the path that is routed is the path that is forwarded (RFC 3986 §5.2.4,
//! §6.2.2).
//!
//! Percent-encoded unreserved characters are decoded, so that `/%61dmin` cannot pass a route for `/admin`,
//! other escapes get upper-case digits, then dot segments are resolved. A query is checked but never changed.
//!
//! Many origins decode a path once more, and take `%2F` or `%5C` for slashes then. A dot segment that only
//! they would find is refused: it leads them elsewhere than to the path that was routed. The listener's
//! `Rules` say what becomes of `//` and of encoded slashes without dot segments.

use std::borrow::Cow;

use super::grammar::hex_digit;

/// A listener's rules for slashes that an origin may read in another way than we do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// `path_slashes`
    pub slashes: Slashes,
    /// `path_encoded_slashes`: whether `%2F` and `%5C` are refused.
    pub rejects_encoded: bool,
}

impl Rules {
    /// Keeps all slashes as they came.
    pub const KEEP: Self = Self { slashes: Slashes::Keep, rejects_encoded: false };
}

/// What becomes of empty segments (`//`). One at the end of a path is a slash at its end, and stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slashes {
    /// They stay.
    #[default]
    Keep,
    /// They go, before dot segments are resolved.
    Merge,
    /// They are refused.
    Reject,
}

/// Errors of a path or query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Does not start with `/`.
    #[error("the path does not start with a slash")]
    NotAbsolute,
    /// A control byte, space, `#`, or byte above 0x7e; in the path a backslash too.
    #[error("a byte that a request target cannot hold")]
    ForbiddenByte,
    /// `%` without two hexadecimal digits, in the path.
    #[error("malformed percent-encoding")]
    PercentEncoding,
    /// `%00` in the path.
    #[error("an encoded NUL")]
    EncodedNul,
    /// A dot segment with parameters (`/..;x/`) or beside an encoded slash (`/..%2Fx`): some servers resolve
    /// it, so it has two readings.
    #[error("a dot segment with parameters or beside an encoded slash")]
    HiddenDotSegment,
    /// `//`, where the listener rejects it.
    #[error("an empty segment")]
    EmptySegment,
    /// `%2F` or `%5C`, where the listener rejects them.
    #[error("an encoded slash")]
    EncodedSlash,
}

impl PathError {
    /// Whether the path is well formed, and refused for its second reading.
    #[must_use]
    pub const fn is_ambiguous(self) -> bool {
        matches!(self, Self::HiddenDotSegment | Self::EmptySegment | Self::EncodedSlash)
    }
}

/// Checks and normalises `path [ "?" query ]`. Idempotent; the result starts with `/` and never climbs above
/// it, nor does it after a second decoding.
pub fn normalise(target: &[u8], rules: Rules) -> Result<Cow<'_, str>, PathError> {
    match check(target, rules.slashes)? {
        Form::Normal => std::str::from_utf8(target).map(Cow::Borrowed).map_err(|_| PathError::ForbiddenByte),
        Form::Other { path_end } => resolve(target, path_end, rules).map(Cow::Owned),
    }
}

/// The same for text.
pub(super) fn normalise_text(target: &str, rules: Rules) -> Result<Cow<'_, str>, PathError> {
    match check(target.as_bytes(), rules.slashes)? {
        Form::Normal => Ok(Cow::Borrowed(target)),
        Form::Other { path_end } => resolve(target.as_bytes(), path_end, rules).map(Cow::Owned),
    }
}

enum Form {
    /// As it is routed.
    Normal,
    /// The path may hold dot segments or escapes.
    Other {
        /// Where the query or nothing follows.
        path_end: usize,
    },
}

/// Refuses bytes that a target cannot hold, and empty segments where they are rejected.
fn check(target: &[u8], slashes: Slashes) -> Result<Form, PathError> {
    if target.first() != Some(&b'/') {
        return Err(PathError::NotAbsolute);
    }
    let mut needs_work = false;
    let mut has_empty_segment = false;
    let mut path_end = target.len();
    let mut previous = 0;
    for (at, &byte) in target.iter().enumerate() {
        match byte {
            b'?' => {
                path_end = at;
                break;
            }
            b'%' => needs_work = true,
            b'.' => needs_work |= previous == b'/',
            b'/' => has_empty_segment |= previous == b'/',
            b'\\' => return Err(PathError::ForbiddenByte),
            _ if !is_target_byte(byte) => return Err(PathError::ForbiddenByte),
            _ => {}
        }
        previous = byte;
    }
    if !target[path_end..].iter().all(|&byte| is_target_byte(byte)) {
        return Err(PathError::ForbiddenByte);
    }
    match slashes {
        Slashes::Reject if has_empty_segment => return Err(PathError::EmptySegment),
        Slashes::Merge => needs_work |= has_empty_segment,
        Slashes::Keep | Slashes::Reject => {}
    }
    Ok(if needs_work { Form::Other { path_end } } else { Form::Normal })
}

const fn is_target_byte(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && byte != b'#'
}

fn resolve(target: &[u8], path_end: usize, rules: Rules) -> Result<String, PathError> {
    let (path, query) = target.split_at(path_end);
    let decoded = decode_unreserved(path, rules.rejects_encoded)?;
    let mut normal = remove_dot_segments(&decoded, rules.slashes == Slashes::Merge)?;
    normal.extend_from_slice(query);
    String::from_utf8(normal).map_err(|_| PathError::ForbiddenByte)
}

fn decode_unreserved(path: &[u8], rejects_slashes: bool) -> Result<Vec<u8>, PathError> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(percent) = memchr::memchr(b'%', rest) {
        decoded.extend_from_slice(&rest[..percent]);
        let &[_, high, low, ..] = &rest[percent..] else { return Err(PathError::PercentEncoding) };
        let (Some(high_value), Some(low_value)) = (hex_digit(high), hex_digit(low)) else {
            return Err(PathError::PercentEncoding);
        };
        match high_value << 4 | low_value {
            0 => return Err(PathError::EncodedNul),
            b'/' | b'\\' if rejects_slashes => return Err(PathError::EncodedSlash),
            byte if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') => {
                decoded.push(byte)
            }
            _ => decoded.extend_from_slice(&[b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]),
        }
        rest = &rest[percent + 3..];
    }
    decoded.extend_from_slice(rest);
    Ok(decoded)
}

/// RFC 3986 §5.2.4 for a path that starts with `/`: `..` takes the segment before it away, an empty one too
/// unless empty segments are merged.
fn remove_dot_segments(path: &[u8], merges: bool) -> Result<Vec<u8>, PathError> {
    let mut output = Vec::with_capacity(path.len());
    let mut segments = path[1..].split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"." | b".." => {
                if segment == b".." {
                    let parent = memchr::memrchr(b'/', &output).unwrap_or(0);
                    output.truncate(parent);
                }
                if is_last {
                    output.push(b'/');
                }
            }
            b"" if merges && !is_last => {}
            _ if hides_dot_segment(segment) => return Err(PathError::HiddenDotSegment),
            _ => {
                output.push(b'/');
                output.extend_from_slice(segment);
            }
        }
    }
    Ok(output)
}

/// Whether an origin would find a dot segment in this one, which is none itself. The origin may take
/// parameters off, or decode once more before it splits the path.
fn hides_dot_segment(segment: &[u8]) -> bool {
    let mut part = segment;
    loop {
        if let [b'.', b'.', rest @ ..] | [b'.', rest @ ..] = part
            && ends_segment(rest)
        {
            return true;
        }
        let Some(slash) = memchr::memchr_iter(b'%', part).find(|&at| is_encoded_slash(&part[at..])) else {
            return false;
        };
        part = &part[slash + 3..];
    }
}

/// Whether nothing follows, or a byte that ends a segment: a slash, or `;`, `?` or `#`, maybe encoded.
fn ends_segment(rest: &[u8]) -> bool {
    matches!(rest, [] | [b';', ..] | [b'%', b'3', b'B' | b'F', ..] | [b'%', b'2', b'3', ..])
        || is_encoded_slash(rest)
}

/// Escapes have upper-case digits here.
const fn is_encoded_slash(text: &[u8]) -> bool {
    matches!(text, [b'%', b'2', b'F', ..] | [b'%', b'5', b'C', ..])
}

#[cfg(test)]
mod tests;
