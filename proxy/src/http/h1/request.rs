//! Request heads from clients (RFC 9112 §2–3, §6, RFC 9110 §7): httparse splits lines into fields, everything
//! that it takes leniently is checked before or after it.

use std::mem::MaybeUninit;
use std::rc::Rc;

use super::head::{AT_ONCE_FIELDS, Framing, collect, with_headers};
use super::scan::{Bounds, Scanner};
use super::{HeadError, Parsed};
use crate::http::grammar::is_request_id_byte;
use crate::http::limits::{Limits, REQUEST_LINE_EXTRA};
use crate::http::message::{BodyLength, Method, RequestHead, Target, Version};
use crate::http::names::{Name, NameSet};
use crate::http::{authority, path};

/// Reads the request heads of one connection.
#[derive(Clone, Debug, Default)]
pub struct RequestDecoder {
    scanner: Scanner,
    /// The last request's host, which is mostly the next one's too.
    host: Option<Rc<str>>,
}

impl RequestDecoder {
    /// Before the first byte of a request.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks for a head at the start of `buf`: the same bytes as in the last call, with more at their end.
    pub fn parse(&mut self, buf: &[u8], limits: &Limits) -> Result<Parsed<RequestHead>, HeadError> {
        let bounds = Bounds {
            bytes: limits.header_bytes,
            first_line: limits.uri_bytes.saturating_add(REQUEST_LINE_EXTRA),
            lines: limits.fields.saturating_add(1),
            too_long: HeadError::UriTooLong,
            leading_empty_line: true,
        };
        if self.scanner.is_new()
            && let Some(parsed) = at_once(buf, limits, &mut self.host)
        {
            return Ok(parsed);
        }
        let Some(section) = self.scanner.scan(buf, &bounds)? else { return Ok(Parsed::NeedMore) };
        self.scanner = Scanner::default();
        with_headers(section.lines - 1, |headers| {
            let mut request = httparse::Request::new(&mut []);
            let bytes = &buf[section.start..section.end];
            match request.parse_with_uninit_headers(bytes, headers) {
                Ok(httparse::Status::Complete(length)) if length == bytes.len() => interpret(
                    &request,
                    section.first_line_end,
                    &buf[..section.end],
                    section.start,
                    limits,
                    &mut self.host,
                ),
                // The scanner saw the end of the head: if httparse sees another one, there are two readings.
                Ok(_) => Err(HeadError::StartLine),
                Err(httparse::Error::Version) => {
                    Err(version_error(&buf[section.start..section.first_line_end]))
                }
                Err(error) => Err(error.into()),
            }
        })
    }
}

/// A head that lies whole at the start of `buf` and is as the RFC has it. The places where httparse found its
/// parts answer the scanner's questions. `None` leaves everything else, refusals in particular, to scanner
/// and httparse one after the other.
#[inline]
fn at_once(buf: &[u8], limits: &Limits, known: &mut Option<Rc<str>>) -> Option<Parsed<RequestHead>> {
    if matches!(buf, [b'\r' | b'\n', ..]) {
        return None;
    }
    let mut headers = [const { MaybeUninit::uninit() }; AT_ONCE_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let visible = &buf[..buf.len().min(limits.header_bytes)];
    let room = &mut headers[..limits.fields.min(AT_ONCE_FIELDS)];
    let Ok(httparse::Status::Complete(end)) = request.parse_with_uninit_headers(visible, room) else {
        return None;
    };
    let line = request.method?.len() + 1 + request.path?.len() + VERSION.len();
    // A second space would leave the line's end further away, and a bare LF is another end.
    let ends = visible[..end].get(line..).is_some_and(|rest| rest.starts_with(b"\r\n"));
    if !ends || line > limits.uri_bytes.saturating_add(REQUEST_LINE_EXTRA) {
        return None;
    }
    interpret(&request, line, &visible[..end], 0, limits, known).ok()
}

/// Facts that decide about a request when it is read.
const NOTED: NameSet = Framing::NAMES.with(Name::Host).with(Name::Expect);

/// Bytes and fields that `forward` adds to a request, unless the authority is very long.
const ADDED: (usize, usize) = (256, 6);

/// The end of a request line.
const VERSION: &str = " HTTP/1.1";

/// Whether the version is one we do not speak, or none at all.
fn version_error(line: &[u8]) -> HeadError {
    let mut words = line.split(|&byte| byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (_, Some([_, ..]), Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None)
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            HeadError::Version
        }
        _ => HeadError::StartLine,
    }
}

/// `buf` is the head, which starts at `start` and whose first line ends, with CRLF, at `line_end`. `known` is
/// the last host.
fn interpret(
    request: &httparse::Request<'_, '_>,
    line_end: usize,
    buf: &[u8],
    start: usize,
    limits: &Limits,
    known: &mut Option<Rc<str>>,
) -> Result<Parsed<RequestHead>, HeadError> {
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(HeadError::StartLine);
    };
    // httparse skips white space where the grammar has exactly one space.
    if method.len() + 1 + target.len() + VERSION.len() != line_end - start {
        return Err(HeadError::StartLine);
    }
    if target.len() > limits.uri_bytes {
        return Err(HeadError::UriTooLong);
    }
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let method = Method::from_token(method);
    if method == Method::Connect {
        return Err(HeadError::Connect);
    }

    let mut framing = Framing::default();
    let mut host = None;
    let mut expects_other = false;
    let fields = collect(&buf[line_end + 2..], request.headers, ADDED, NOTED, |name, value| match name {
        Name::Host if host.is_some() => Err(HeadError::HostRepeated),
        Name::Host => {
            host = Some(value);
            Ok(())
        }
        Name::Expect => {
            expects_other |= !value.eq_ignore_ascii_case(b"100-continue");
            Ok(())
        }
        _ => framing.note(name, value),
    })?;
    let body = framing.length(version)?.unwrap_or(BodyLength::None);
    let host = match host {
        Some(value) => Some(normalised(value, known)?),
        None if version == Version::Http10 => None,
        None => return Err(HeadError::HostMissing),
    };
    let (authority, path_and_query) = resolve(&method, target, host, limits.paths)?;
    if expects_other {
        return Err(HeadError::Expectation);
    }
    let keep_alive = framing.persists(version);
    let head = RequestHead { method, version, authority, path_and_query, fields, body };
    Ok(Parsed::Head { head, consumed: buf.len(), keep_alive })
}

/// A Host as it is routed and forwarded: `known` if it is that one, else it becomes that.
fn normalised(host: &[u8], known: &mut Option<Rc<str>>) -> Result<Rc<str>, HeadError> {
    match known {
        // A host in normal form does not change.
        Some(known) if known.as_bytes() == host => Ok(known.clone()),
        _ => {
            let host: Rc<str> = authority::normalise(host).ok_or(HeadError::HostInvalid)?.into();
            Ok(known.insert(host).clone())
        }
    }
}

/// The authority and path that a target in any form stands for (RFC 9112 §3.2, §3.3).
fn resolve(
    method: &Method,
    target: &str,
    host: Option<Rc<str>>,
    rules: path::Rules,
) -> Result<(Rc<str>, Target), HeadError> {
    match target.as_bytes() {
        [b'/', ..] => Ok((host.unwrap_or_default(), (&*path::normalise_text(target, rules)?).into())),
        b"*" if *method == Method::Options => Ok((host.unwrap_or_default(), "*".into())),
        bytes => {
            let rest = strip_scheme(bytes).ok_or(HeadError::Target)?;
            let authority_end =
                rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
            let (raw_authority, path) = rest.split_at(authority_end);
            // Host is ignored beside an absolute-form target, once it was found valid (RFC 9112 §3.2.2).
            let authority = authority::normalise(raw_authority).ok_or(HeadError::HostInvalid)?;
            let path = match path {
                [] if *method == Method::Options => "*".into(),
                [] => "/".into(),
                [b'/', ..] => (&*path::normalise(path, rules)?).into(),
                _ => (&*path::normalise(&[b"/", path].concat(), rules)?).into(),
            };
            Ok((authority.into(), path))
        }
    }
}

fn strip_scheme(target: &[u8]) -> Option<&[u8]> {
    let colon = memchr::memchr(b':', target)?;
    let (scheme, rest) = target.split_at(colon);
    let known = scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"https");
    rest.strip_prefix(b"://").filter(|_| known)
}

impl RequestHead {
    /// Whether the client waits for "100 Continue" before it sends its body (RFC 9110 §10.1.1). The decoder
    /// has refused every other expectation.
    #[must_use]
    pub fn expects_continue(&self) -> bool {
        self.version > Version::Http10
            && !matches!(self.body, BodyLength::None | BodyLength::Known(0))
            && self.fields.names().contains(Name::Expect)
    }

    /// A client's X-Request-Id, if it is fit to be passed on: 1 to 128 letters, digits and `-._~+/=:`.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        let value = self.fields.all_known(Name::RequestId).next()?;
        let is_fit = (1..=crate::http::limits::REQUEST_ID_BYTES).contains(&value.len())
            && value.iter().all(|&byte| is_request_id_byte(byte));
        std::str::from_utf8(value).ok().filter(|_| is_fit)
    }
}

#[cfg(test)]
mod tests;
