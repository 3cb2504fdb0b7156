//! Response heads from upstreams (RFC 9112 §4, §6.3), as strict as for requests: an upstream that is confused, or made to be,
//! must not confuse the client.

use std::mem::MaybeUninit;

use super::head::{AT_ONCE_FIELDS, Framing, Lines, with_headers};
use super::scan::{Bounds, Scanner};
use super::{HeadError, Parsed};
use crate::http::grammar::is_field_content;
use crate::http::limits::{Limits, STATUS_LINE_BYTES};
use crate::http::message::{BodyLength, Method, ResponseHead, Version};

/// Reads the response heads of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResponseDecoder {
    scanner: Scanner,
}

impl ResponseDecoder {
    /// Before the first byte of a response.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks for a head at the start of `buf`: the same bytes as in the last call, with more at their end. `method` is that of the
    /// request it answers. Interim heads (1xx, 101 too) come out like final ones: read on after them.
    pub fn parse(&mut self, buf: &[u8], method: &Method, limits: &Limits) -> Result<Parsed<ResponseHead>, HeadError> {
        let bounds = Bounds {
            bytes: limits.header_bytes,
            first_line: STATUS_LINE_BYTES,
            lines: limits.fields.saturating_add(1),
            too_long: HeadError::TooLarge,
            leading_empty_line: false,
        };
        // What speaks another protocol may wait for us before its head would end: its first bytes give it away. An empty line is
        // the scanner's to name.
        if !matches!(buf, [b'\r' | b'\n', ..]) && !buf.iter().zip(b"HTTP/1.").all(|(byte, expected)| byte == expected) {
            return Err(HeadError::StartLine);
        }
        if self.scanner.is_new()
            && let Some((head, consumed)) = at_once(buf, method, limits)
        {
            return Ok(Parsed::Head { head, consumed });
        }
        let Some(section) = self.scanner.scan(buf, &bounds)? else { return Ok(Parsed::NeedMore) };
        self.scanner = Scanner::default();
        let head = with_headers(section.lines - 1, |headers| {
            let mut response = httparse::Response::new(&mut []);
            let bytes = &buf[..section.end];
            let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, headers);
            match parsed {
                Ok(httparse::Status::Complete(length)) if length == bytes.len() => {
                    let (line, lines) = (&bytes[..section.first_line_end], &bytes[section.first_line_end + 2..]);
                    interpret(response.headers, line, lines, method)
                }
                Ok(_) => Err(HeadError::StartLine),
                Err(error) => Err(error.into()),
            }
        })?;
        Ok(Parsed::Head { head, consumed: section.end })
    }
}

/// A head that lies whole at the start of `buf` and is as the RFC has it, like `request::at_once`.
fn at_once(buf: &[u8], method: &Method, limits: &Limits) -> Option<(ResponseHead, usize)> {
    let mut headers = [const { MaybeUninit::uninit() }; AT_ONCE_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let visible = &buf[..buf.len().min(limits.header_bytes)];
    let room = &mut headers[..limits.fields.min(AT_ONCE_FIELDS)];
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, visible, room);
    let Ok(httparse::Status::Complete(end)) = parsed else { return None };
    // The line's own check finds a bare LF in it.
    let (line, rest) = visible[..end].split_at(memchr::memchr(b'\r', &visible[..end])?);
    let lines = rest.strip_prefix(b"\r\n")?;
    let head = interpret(response.headers, line, lines, method).ok()?;
    (line.len() <= STATUS_LINE_BYTES).then_some((head, end))
}

/// Version, status and reason of a status line (RFC 9112 §4), whose reason may be missing with its space.
fn status_line(line: &[u8]) -> Option<(Version, u16, &[u8])> {
    let (version, rest) = line.split_at_checked(9)?;
    let version = match version {
        b"HTTP/1.0 " => Version::Http10,
        b"HTTP/1.1 " => Version::Http11,
        _ => return None,
    };
    let (code, reason) = match rest {
        code if code.len() == 3 => (code, &[][..]),
        _ => {
            let (code, reason) = rest.split_at_checked(3)?;
            (code, reason.strip_prefix(b" ")?)
        }
    };
    if !code.iter().all(u8::is_ascii_digit) || !reason.iter().all(|&byte| is_field_content(byte)) {
        return None;
    }
    let status = code.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    (status >= 100).then_some((version, status, reason))
}

/// `line` is the status line, `lines` what follows it.
fn interpret(headers: &[httparse::Header<'_>], line: &[u8], lines: &[u8], method: &Method) -> Result<ResponseHead, HeadError> {
    const ADDED_BYTES: usize = 32;
    const ADDED_FIELDS: usize = 1;
    let (version, status, reason) = status_line(line).ok_or(HeadError::StartLine)?;
    let mut framing = Framing::default();
    let mut lines = Lines::new(lines, headers.len(), ADDED_BYTES, ADDED_FIELDS);
    for header in headers {
        let name = lines.take(header).ok_or(HeadError::BareLineFeed)?;
        framing.note(name, header.value)?;
    }
    let fields = lines.finish().ok_or(HeadError::BareLineFeed)?;
    let length = framing.length(version)?;
    let (body, mut keep_alive) = if matches!(status, 100..=199 | 204 | 304) || *method == Method::Head {
        (BodyLength::None, framing.persists(version))
    } else {
        let body = length.unwrap_or(BodyLength::UntilClose);
        (body, body != BodyLength::UntilClose && framing.persists(version))
    };
    // A 1xx or 204 that announces a body has none (RFC 9112 §6.3), but its sender may see that differently: no second exchange.
    if matches!(status, 100..=199 | 204) && !matches!(length, None | Some(BodyLength::Known(0))) {
        keep_alive = false;
    }
    Ok(ResponseHead { status, version, reason: reason.into(), fields, body, keep_alive })
}

#[cfg(test)]
mod tests;
