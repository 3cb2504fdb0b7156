//! Request targets in origin form: the path that is routed is the path that is forwarded (RFC 3986 §5.2.4,
//! §6.2.2).
//!
//! Percent-encoded unreserved characters are decoded, so that `/%61dmin` cannot pass a route for `/admin`,
//! other escapes get upper-case digits, then dot segments are resolved. `//` is kept; a query is checked but
//! never changed.

use std::borrow::Cow;

use super::grammar::hex_digit;

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
    /// A dot segment with parameters (`/..;x/`): some servers resolve it, so it has two readings.
    #[error("a dot segment with parameters")]
    DotSegmentParameters,
}

/// Checks and normalises `path [ "?" query ]`. Idempotent; the result starts with `/` and never climbs above
/// it.
pub fn normalise(target: &[u8]) -> Result<Cow<'_, str>, PathError> {
    match check(target)? {
        Form::Normal => std::str::from_utf8(target).map(Cow::Borrowed).map_err(|_| PathError::ForbiddenByte),
        Form::Other { path_end } => resolve(target, path_end).map(Cow::Owned),
    }
}

/// The same for text.
pub(super) fn normalise_text(target: &str) -> Result<Cow<'_, str>, PathError> {
    match check(target.as_bytes())? {
        Form::Normal => Ok(Cow::Borrowed(target)),
        Form::Other { path_end } => resolve(target.as_bytes(), path_end).map(Cow::Owned),
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

/// Refuses bytes that a target cannot hold.
fn check(target: &[u8]) -> Result<Form, PathError> {
    if target.first() != Some(&b'/') {
        return Err(PathError::NotAbsolute);
    }
    let mut needs_work = false;
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
            b'\\' => return Err(PathError::ForbiddenByte),
            _ if !is_target_byte(byte) => return Err(PathError::ForbiddenByte),
            _ => {}
        }
        previous = byte;
    }
    if !target[path_end..].iter().all(|&byte| is_target_byte(byte)) {
        return Err(PathError::ForbiddenByte);
    }
    Ok(if needs_work { Form::Other { path_end } } else { Form::Normal })
}

const fn is_target_byte(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && byte != b'#'
}

fn resolve(target: &[u8], path_end: usize) -> Result<String, PathError> {
    let (path, query) = target.split_at(path_end);
    let mut normal = remove_dot_segments(&decode_unreserved(path)?)?;
    normal.extend_from_slice(query);
    String::from_utf8(normal).map_err(|_| PathError::ForbiddenByte)
}

fn decode_unreserved(path: &[u8]) -> Result<Vec<u8>, PathError> {
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

/// RFC 3986 §5.2.4 for a path that starts with `/`: `..` takes the segment before it away, an empty one too.
fn remove_dot_segments(path: &[u8]) -> Result<Vec<u8>, PathError> {
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
            [b'.', b';', ..] | [b'.', b'.', b';', ..] => return Err(PathError::DotSegmentParameters),
            _ => {
                output.push(b'/');
                output.extend_from_slice(segment);
            }
        }
    }
    Ok(output)
}

#[cfg(test)]
mod tests;
