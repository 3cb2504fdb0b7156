//! Writes HTTP/1.1 heads and body framing (RFC 9112 §2–4, §6–7). Body bytes never pass through here: the
//! framing around them is written, so that received chunks go out without a copy.

use crate::http::message::{BodyLength, Fields, Method, RequestHead, ResponseHead, Version};
use crate::http::names::{Name, NameSet};

/// The interim response that lets a client send its body (RFC 9110 §15.2.1). Not for HTTP/1.0.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How a body that we write is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body at all: nothing may be written.
    None,
    /// Exactly this many bytes, as they are.
    Length(u64),
    /// Each run of bytes between `before_data` and `after_data`, then `end`.
    Chunked,
    /// Bytes as they are; closing the connection ends them.
    UntilClose,
}

impl Framing {
    /// The bytes before `len` bytes of body. 0 writes nothing, since an empty chunk would end the body.
    pub fn before_data(self, len: usize, out: &mut Vec<u8>) {
        if self == Self::Chunked && len > 0 {
            hexadecimal(len, out);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// The bytes after them.
    #[must_use]
    pub const fn after_data(self) -> &'static [u8] {
        if matches!(self, Self::Chunked) { b"\r\n" } else { b"" }
    }

    /// The bytes after the last data. Trailers that the framing cannot carry are dropped; they must have
    /// passed `forward::trailers`.
    pub fn end(self, trailers: &Fields, out: &mut Vec<u8>) {
        if self == Self::Chunked {
            out.extend_from_slice(b"0\r\n");
            trailers.write(NameSet::default(), out);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Fields that belong to one connection: right on one side, wrong on the other.
const PER_CONNECTION: NameSet = NameSet::of(&[Name::Connection, Name::TransferEncoding]);

/// Room for the encoders' own bytes: framing, persistence, and a start line without the parts that a peer
/// chose.
const ADDED_BYTES: usize = 128;

/// Writes a request head for an upstream. Host comes from `authority`, framing from `body`.
pub fn request(head: &RequestHead, out: &mut Vec<u8>) -> Framing {
    const LEFT_OUT: NameSet = PER_CONNECTION.with(Name::Host).with(Name::ContentLength);
    let method = head.method.as_str();
    out.reserve(
        ADDED_BYTES + method.len() + head.path_and_query.len() + head.authority.len() + head.fields.bytes(),
    );
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.path_and_query.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(head.authority.as_bytes());
    out.extend_from_slice(b"\r\n");
    let framing = match head.body {
        BodyLength::None => Framing::None,
        BodyLength::Known(length) => Framing::Length(length),
        // A request cannot end with the connection. Chunks carry a body of any length.
        BodyLength::Unknown | BodyLength::UntilClose => Framing::Chunked,
    };
    framing_fields(framing, out);
    head.fields.write(LEFT_OUT, out);
    // Both are hop-by-hop and have to say so (RFC 9110 §7.8, §10.1.4).
    let names = head.fields.names();
    if names.meets(NameSet::of(&[Name::Te, Name::Upgrade])) {
        out.extend_from_slice(match (names.contains(Name::Te), names.contains(Name::Upgrade)) {
            (true, true) => &b"Connection: TE, Upgrade\r\n"[..],
            (true, false) => b"Connection: TE\r\n",
            _ => b"Connection: Upgrade\r\n",
        });
    }
    out.extend_from_slice(b"\r\n");
    framing
}

/// The receiver of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The version of the request.
    pub version: Version,
    /// Whether it was HEAD.
    pub is_head: bool,
    /// Whether the connection may go on, as far as request and session are concerned.
    pub keep_alive: bool,
}

impl Recipient {
    /// Of the response to something that was no request.
    pub const UNKNOWN: Self = Self { version: Version::Http11, is_head: false, keep_alive: false };

    /// Of the response to `head`.
    #[must_use]
    pub fn of(head: &RequestHead, keep_alive: bool) -> Self {
        Self { version: head.version, is_head: head.method == Method::Head, keep_alive }
    }
}

/// The promises of a response head that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// How to write the body.
    pub framing: Framing,
    /// Whether the connection goes on after it.
    pub keep_alive: bool,
}

/// Writes a final response head. A body of unknown length is chunked, or closes the connection of an HTTP/1.0
/// client.
pub fn response(head: &ResponseHead, recipient: Recipient, out: &mut Vec<u8>) -> Sent {
    let bodiless = recipient.is_head || matches!(head.status, 100..=199 | 204 | 304);
    let framing = match head.body {
        _ if bodiless => Framing::None,
        BodyLength::None => Framing::Length(0),
        BodyLength::Known(length) => Framing::Length(length),
        BodyLength::Unknown | BodyLength::UntilClose if recipient.version == Version::Http10 => {
            Framing::UntilClose
        }
        BodyLength::Unknown | BodyLength::UntilClose => Framing::Chunked,
    };
    let keep_alive = recipient.keep_alive && framing != Framing::UntilClose;
    status_line(head, out);
    framing_fields(framing, out);
    // For HEAD and 304 the length is not framing: it is the length that a GET would get. 1xx and 204 have
    // none (RFC 9110 §8.6).
    let keeps_length = head.status == 304 || (recipient.is_head && !matches!(head.status, 100..=199 | 204));
    let mut left_out = if keeps_length { PER_CONNECTION } else { PER_CONNECTION.with(Name::ContentLength) };
    let has_upgrade = head.fields.names().contains(Name::Upgrade);
    if has_upgrade && recipient.version == Version::Http10 {
        left_out = left_out.with(Name::Upgrade);
    }
    head.fields.write(left_out, out);
    out.extend_from_slice(match (keep_alive, recipient.version) {
        (false, Version::Http11) if has_upgrade => &b"Connection: close, Upgrade\r\n"[..],
        (true, Version::Http11) if has_upgrade => b"Connection: Upgrade\r\n",
        (false, _) => b"Connection: close\r\n",
        (true, Version::Http10) => b"Connection: keep-alive\r\n",
        (true, _) => b"",
    });
    out.extend_from_slice(b"\r\n");
    Sent { framing, keep_alive }
}

/// Writes an interim response. Not for HTTP/1.0 clients (RFC 9110 §15.2).
pub fn informational(head: &ResponseHead, out: &mut Vec<u8>) {
    status_line(head, out);
    head.fields.write(PER_CONNECTION.with(Name::ContentLength), out);
    out.extend_from_slice(b"\r\n");
}

/// Writes a 101 that has passed `upgrade::switch`. Another protocol follows it.
pub fn switching(head: &ResponseHead, out: &mut Vec<u8>) {
    status_line(head, out);
    head.fields.write(PER_CONNECTION.with(Name::ContentLength), out);
    out.extend_from_slice(b"Connection: Upgrade\r\n\r\n");
}

fn status_line(head: &ResponseHead, out: &mut Vec<u8>) {
    out.reserve(ADDED_BYTES + head.reason.len() + head.fields.bytes());
    out.extend_from_slice(b"HTTP/1.1 ");
    decimal(u64::from(head.status), out);
    out.push(b' ');
    out.extend_from_slice(&head.reason);
    out.extend_from_slice(b"\r\n");
}

fn framing_fields(framing: Framing, out: &mut Vec<u8>) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            decimal(length, out);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
}

fn decimal(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn hexadecimal(number: usize, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    out.extend((0..digits).rev().map(|digit| DIGITS[number >> (4 * digit) & 15]));
}

#[cfg(test)]
mod tests;
