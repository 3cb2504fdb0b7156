//! Response heads from upstreams (RFC 9112 §4, §6.3), as strict as for requests: an upstream that is
//! confused, or made to be, must not confuse the client.

use std::mem::MaybeUninit;

use super::head::{AT_ONCE_FIELDS, Framing, collect, with_headers};
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

    /// Looks for a head at the start of `buf`: the same bytes as in the last call, with more at their end.
    /// `method` is the answered request's. Interim heads (1xx, 101 too) come out like final ones: read on
    /// after them.
    pub fn parse(
        &mut self,
        buf: &[u8],
        method: &Method,
        limits: &Limits,
    ) -> Result<Parsed<ResponseHead>, HeadError> {
        let bounds = Bounds {
            bytes: limits.header_bytes,
            first_line: STATUS_LINE_BYTES,
            lines: limits.fields.saturating_add(1),
            too_long: HeadError::TooLarge,
            leading_empty_line: false,
        };
        if self.scanner.is_new()
            && let Some(parsed) = at_once(buf, method, limits)
        {
            return Ok(parsed);
        }
        // A speaker of another protocol may wait for us before its head would end, so its first bytes decide.
        // The scanner names an empty line.
        if !matches!(buf, [b'\r' | b'\n', ..])
            && !buf.iter().zip(b"HTTP/1.").all(|(byte, expected)| byte == expected)
        {
            return Err(HeadError::StartLine);
        }
        let Some(section) = self.scanner.scan(buf, &bounds)? else { return Ok(Parsed::NeedMore) };
        self.scanner = Scanner::default();
        with_headers(section.lines - 1, |headers| {
            let mut response = httparse::Response::new(&mut []);
            let bytes = &buf[..section.end];
            let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
                &mut response,
                bytes,
                headers,
            );
            match parsed {
                Ok(httparse::Status::Complete(length)) if length == bytes.len() => {
                    let line = status_line(bytes)
                        .filter(|line| line.end == section.first_line_end)
                        .ok_or(HeadError::StartLine)?;
                    interpret(response.headers, &line, bytes, method)
                }
                Ok(_) => Err(HeadError::StartLine),
                Err(error) => Err(error.into()),
            }
        })
    }
}

/// A head that lies whole at the start of `buf` and is as the RFC has it, like `request::at_once`.
#[inline]
fn at_once(buf: &[u8], method: &Method, limits: &Limits) -> Option<Parsed<ResponseHead>> {
    let mut headers = [const { MaybeUninit::uninit() }; AT_ONCE_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let visible = &buf[..buf.len().min(limits.header_bytes)];
    let room = &mut headers[..limits.fields.min(AT_ONCE_FIELDS)];
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, visible, room);
    let Ok(httparse::Status::Complete(end)) = parsed else { return None };
    let line = status_line(visible)?;
    if line.end > STATUS_LINE_BYTES {
        return None;
    }
    interpret(response.headers, &line, &visible[..end], method).ok()
}

/// A status line (RFC 9112 §4), whose reason may be missing with its space.
struct StatusLine<'b> {
    version: Version,
    status: u16,
    reason: &'b [u8],
    /// Its length without its CRLF.
    end: usize,
}

/// That at the start of `bytes`, if it ends there.
fn status_line(bytes: &[u8]) -> Option<StatusLine<'_>> {
    const CODE: usize = 9;
    let (start, rest) = bytes.split_first_chunk::<{ CODE + 3 }>()?;
    let version = match &start[..CODE] {
        b"HTTP/1.0 " => Version::Http10,
        b"HTTP/1.1 " => Version::Http11,
        _ => return None,
    };
    let mut status = 0;
    for digit in &start[CODE..] {
        if !digit.is_ascii_digit() {
            return None;
        }
        status = status * 10 + u16::from(digit - b'0');
    }
    let line_end = rest.iter().position(|&byte| !is_field_content(byte))?;
    let (line, after) = rest.split_at(line_end);
    let reason = if line.is_empty() { line } else { line.strip_prefix(b" ")? };
    (status >= 100 && after.starts_with(b"\r\n")).then_some(StatusLine {
        version,
        status,
        reason,
        end: start.len() + line_end,
    })
}

/// `buf` is the head.
fn interpret(
    headers: &[httparse::Header<'_>],
    &StatusLine { version, status, reason, end }: &StatusLine<'_>,
    buf: &[u8],
    method: &Method,
) -> Result<Parsed<ResponseHead>, HeadError> {
    /// Bytes and fields that `forward` adds.
    const ADDED: (usize, usize) = (32, 1);
    let mut framing = Framing::default();
    let fields =
        collect(&buf[end + 2..], headers, ADDED, Framing::NAMES, |name, value| framing.note(name, value))?;
    let length = framing.length(version)?;
    let (body, mut keep_alive) = if matches!(status, 100..=199 | 204 | 304) || *method == Method::Head {
        (BodyLength::None, framing.persists(version))
    } else {
        let body = length.unwrap_or(BodyLength::UntilClose);
        (body, body != BodyLength::UntilClose && framing.persists(version))
    };
    // A 1xx or 204 that announces a body has none (RFC 9112 §6.3), but its sender may see that differently:
    // no second exchange.
    if matches!(status, 100..=199 | 204) && !matches!(length, None | Some(BodyLength::Known(0))) {
        keep_alive = false;
    }
    let head = ResponseHead { status, version, reason: reason.into(), fields, body };
    Ok(Parsed::Head { head, consumed: buf.len(), keep_alive })
}

#[cfg(test)]
mod tests;
