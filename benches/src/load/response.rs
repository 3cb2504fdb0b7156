//! Reads responses to GET, one after the other on a connection (RFC 9112): their status and where the body
//! ends.

use httparse::Status;

const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 64 << 10;

/// The facts about a response that the load needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    /// The server will close the connection.
    pub(super) close: bool,
}

/// The response is malformed, so the connection cannot be read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

#[derive(Debug, Default)]
enum Part {
    #[default]
    Head,
    Body {
        left: u64,
    },
    ChunkLine,
    Chunk {
        left: u64,
    },
    Trailers,
}

/// The state between two pieces of a response.
#[derive(Debug)]
pub(super) struct Reader {
    part: Part,
    /// A head, chunk line or trailer that is incomplete.
    line: Vec<u8>,
    response: Response,
}

impl Default for Reader {
    fn default() -> Self {
        Self { part: Part::Head, line: Vec::new(), response: Response { status: 0, close: false } }
    }
}

impl Reader {
    /// Whether nothing of a response has come yet.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self.part, Part::Head) && self.line.is_empty()
    }

    /// Takes the next bytes. Returns the response when they complete it. Further bytes are an error: the
    /// client asked for nothing more.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<Option<Response>, Malformed> {
        loop {
            let ended = match &mut self.part {
                Part::Head => {
                    let (used, part) = self.head(bytes)?;
                    bytes = &bytes[used..];
                    let Some(part) = part else { return Ok(None) };
                    self.part = part;
                    matches!(self.part, Part::Body { left: 0 })
                }
                Part::Body { left } => {
                    bytes = take(bytes, left);
                    *left == 0
                }
                Part::ChunkLine => {
                    let Some(rest) = self.whole_line(bytes)? else { return Ok(None) };
                    bytes = rest;
                    let size = chunk_size(&self.line)?;
                    self.line.clear();
                    // A line end follows a chunk's data.
                    self.part = if size == 0 { Part::Trailers } else { Part::Chunk { left: size + 2 } };
                    false
                }
                Part::Chunk { left } => {
                    bytes = take(bytes, left);
                    if *left == 0 {
                        self.part = Part::ChunkLine;
                    }
                    false
                }
                Part::Trailers => {
                    let Some(rest) = self.whole_line(bytes)? else { return Ok(None) };
                    bytes = rest;
                    let is_last = self.line == b"\r\n";
                    self.line.clear();
                    is_last
                }
            };
            if ended {
                self.part = Part::Head;
                return if bytes.is_empty() { Ok(Some(self.response)) } else { Err(Malformed) };
            }
            if bytes.is_empty() {
                return Ok(None);
            }
        }
    }

    /// How many of `bytes` belong to the head, and the part that follows it.
    fn head(&mut self, bytes: &[u8]) -> Result<(usize, Option<Part>), Malformed> {
        let before = self.line.len();
        let text = if before == 0 {
            bytes
        } else {
            self.line.extend_from_slice(bytes);
            &self.line
        };
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut headers);
        match parsed.parse(text).map_err(|_| Malformed)? {
            Status::Partial if text.len() > HEAD_BYTES_MAX => Err(Malformed),
            Status::Partial => {
                if before == 0 {
                    self.line.extend_from_slice(bytes);
                }
                Ok((bytes.len(), None))
            }
            Status::Complete(length) => {
                self.response.status = parsed.code.unwrap_or(0);
                let (part, close) = framing(&parsed)?;
                self.response.close = close;
                self.line.clear();
                Ok((length - before, Some(part)))
            }
        }
    }

    /// Adds bytes to `line` up to its end. Returns the rest if the line is complete.
    fn whole_line<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, Malformed> {
        let end = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1);
        self.line.extend_from_slice(&bytes[..end]);
        if self.line.len() > HEAD_BYTES_MAX {
            return Err(Malformed);
        }
        Ok(self.line.ends_with(b"\n").then_some(&bytes[end..]))
    }
}

fn take<'a>(bytes: &'a [u8], left: &mut u64) -> &'a [u8] {
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= count as u64;
    &bytes[count..]
}

fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let text = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let digits = text.split([';', '\r', '\n']).next().unwrap_or_default().trim();
    u64::from_str_radix(digits, 16).ok().filter(|&size| size < 1 << 62).ok_or(Malformed)
}

/// The part that follows a head, and whether the connection ends after it. The load never requests a body
/// that only the connection's end delimits.
fn framing(head: &httparse::Response<'_, '_>) -> Result<(Part, bool), Malformed> {
    let mut close = head.version == Some(0);
    let mut part = matches!(head.code, Some(204 | 304)).then_some(Part::Body { left: 0 });
    for header in &*head.headers {
        let value = std::str::from_utf8(header.value).map_err(|_| Malformed)?.trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            part = part.or(Some(Part::Body { left: value.parse().map_err(|_| Malformed)? }));
        } else if header.name.eq_ignore_ascii_case("transfer-encoding")
            && value.eq_ignore_ascii_case("chunked")
        {
            part = Some(Part::ChunkLine);
        } else if header.name.eq_ignore_ascii_case("connection") {
            close = value.eq_ignore_ascii_case("close");
        }
    }
    part.map(|part| (part, close)).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIMPLE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    const CHUNKED: &[u8] =
        b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3;x=y\r\nabc\r\nA\r\n\
          0123456789\r\n0\r\nT: v\r\n\r\n";
    const EMPTY: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

    #[test]
    fn any_split_gives_the_same() {
        for (text, status, close) in [(SIMPLE, 200, false), (CHUNKED, 503, true), (EMPTY, 204, false)] {
            let wanted = Some(Response { status, close });
            assert_eq!(Reader::default().feed(text), Ok(wanted));
            for at in 1..text.len() {
                let mut reader = Reader::default();
                assert_eq!(reader.feed(&text[..at]), Ok(None), "{at}");
                assert!(!reader.is_fresh(), "{at}");
                assert_eq!(reader.feed(&text[at..]), Ok(wanted), "{at}");
                assert!(reader.is_fresh(), "ready for the next");
                for (index, byte) in text.iter().enumerate() {
                    let last = index + 1 == text.len();
                    assert_eq!(
                        reader.feed(std::slice::from_ref(byte)),
                        Ok(wanted.filter(|_| last)),
                        "{index}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_no_response_is_refused() {
        for text in [
            "HELLO\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ng\r\n",
        ] {
            assert_eq!(Reader::default().feed(text.as_bytes()), Err(Malformed), "{text}");
        }
    }
}
