//! Just enough of HTTP/1.1 (RFC 9112) to read the messages that Sluice sends to either side. The reader is
//! strict and shares no code with Sluice's own parser, so neither hides the other's mistakes.

use std::io::{self, BufRead, Read, Write};

/// Field names and values, in the order in which they came.
pub type Fields = Vec<(String, String)>;

/// The length at which a head is refused, in bytes.
const HEAD_MAX: u64 = 1 << 20;

/// A start line with its fields.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// Request line or status line, without its line end.
    pub start: String,
    /// The fields.
    pub fields: Fields,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// After this many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// When the connection ends.
    Close,
}

/// The first field of that name, compared without regard to case.
#[must_use]
pub fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    fields.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The value of every field of that name.
#[must_use]
pub fn values<'a>(fields: &'a Fields, name: &str) -> Vec<&'a str> {
    fields
        .iter()
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
        .collect()
}

/// Reads a head; `None` if the peer closed before its first byte.
pub fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut reader = reader.take(HEAD_MAX);
    let Some(start) = read_line(&mut reader)? else { return Ok(None) };
    let fields = read_fields(&mut reader)?;
    Ok(Some(Head { start, fields }))
}

/// The framing that a message's own fields declare, or `otherwise` if they declare none.
pub fn framing(fields: &Fields, otherwise: Framing) -> io::Result<Framing> {
    let lengths = values(fields, "content-length");
    let codings = values(fields, "transfer-encoding");
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Ok(otherwise),
        ([length], []) => {
            length.parse().map(Framing::Length).map_err(|_| broken(format!("Content-Length: {length}")))
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        _ => Err(broken(format!("ambiguous framing: {lengths:?} {codings:?}"))),
    }
}

/// Copies a body into `sink` and returns its trailers.
pub fn read_body(reader: &mut impl BufRead, framing: Framing, sink: &mut impl Write) -> io::Result<Fields> {
    match framing {
        Framing::Empty => {}
        Framing::Close => {
            io::copy(reader, sink)?;
        }
        Framing::Length(length) => copy_exactly(reader, length, sink)?,
        Framing::Chunked => loop {
            let line = read_line(reader)?.ok_or_else(cut_short)?;
            let size = line.split(';').next().unwrap_or_default();
            let size = u64::from_str_radix(size, 16).map_err(|_| broken(format!("chunk size {line:?}")))?;
            if size == 0 {
                return read_fields(reader);
            }
            copy_exactly(reader, size, sink)?;
            match read_line(reader)? {
                Some(end) if end.is_empty() => {}
                end => return Err(broken(format!("chunk ends with {end:?}"))),
            }
        },
    }
    Ok(Vec::new())
}

fn copy_exactly(reader: &mut impl BufRead, length: u64, sink: &mut impl Write) -> io::Result<()> {
    let copied = io::copy(&mut reader.take(length), sink)?;
    if copied == length { Ok(()) } else { Err(cut_short()) }
}

fn read_fields(reader: &mut impl BufRead) -> io::Result<Fields> {
    let mut fields = Vec::new();
    loop {
        let line = read_line(reader)?.ok_or_else(cut_short)?;
        if line.is_empty() {
            return Ok(fields);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| broken(format!("field {line:?}")))?;
        fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
    }
}

/// Reads a line without its CRLF. A bare LF is an error. `None`: the stream ended before the first byte.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    match line.strip_suffix(b"\r\n") {
        Some(text) => Ok(Some(String::from_utf8_lossy(text).into_owned())),
        None if line.ends_with(b"\n") => {
            Err(broken(format!("bare LF after {:?}", String::from_utf8_lossy(&line))))
        }
        None => Err(cut_short()),
    }
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the message was cut short")
}
