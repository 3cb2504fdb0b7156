//! HTTP/1.1 as the simulation's clients and origins read it: a second, slow and strict implementation (RFC
//! 9112), so that an error of ours that reader and writer share does not go unseen.

/// A start line and fields, as they came.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) start: String,
    pub(super) fields: Vec<(String, String)>,
}

/// How a message's head frames its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    Known(u64),
    Chunked,
    UntilClose,
}

/// An event of a reader.
#[derive(Debug)]
pub(super) enum Event {
    /// Answer it with `Reader::body`.
    Head(Head),
    Data(Vec<u8>),
    /// With trailers.
    End(Vec<(String, String)>),
}

/// Reads the messages of one direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Reader {
    bytes: Vec<u8>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    AwaitsLength,
    Known(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers(Vec<(String, String)>),
    UntilClose,
}

impl Head {
    /// The value of a field that may come once at most.
    pub(super) fn field<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let mut values = self.all(name);
        let first = values.next();
        assert!(values.next().is_none(), "{name} comes twice in {self:?}");
        first
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let found = self.fields.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Whether the comma-separated list in `name` has this member.
    pub(super) fn lists(&self, name: &str, member: &str) -> bool {
        self.all(name).flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(member))
    }

    /// RFC 9112 §6.3. `None`: neither length nor chunks.
    pub(super) fn length(&self) -> Result<Option<Length>, String> {
        let coding = self.field("transfer-encoding");
        let length = self.field("content-length");
        match (coding, length) {
            (Some(_), Some(_)) => Err(format!("two lengths in {self:?}")),
            (Some("chunked"), None) => Ok(Some(Length::Chunked)),
            (Some(_), None) => Err(format!("an unknown coding in {self:?}")),
            (None, Some(length)) => {
                let length = length.parse().map_err(|_| format!("a malformed length in {self:?}"))?;
                Ok(Some(Length::Known(length)))
            }
            (None, None) => Ok(None),
        }
    }
}

impl Reader {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// How the body of the head just given is framed.
    pub(super) fn body(&mut self, length: Length) {
        assert!(matches!(self.state, State::AwaitsLength));
        self.state = match length {
            Length::Known(length) => State::Known(length),
            Length::Chunked => State::ChunkSize,
            Length::UntilClose => State::UntilClose,
        };
    }

    /// Whether a message has begun and not ended.
    pub(super) fn is_within(&self) -> bool {
        !matches!(self.state, State::Head) || !self.bytes.is_empty()
    }

    /// Whether the end of the connection is the end of the message.
    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self.state, State::UntilClose)
    }

    /// The bytes received behind the last message: they belong to another protocol.
    pub(super) fn take_rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    pub(super) fn next(&mut self) -> Result<Option<Event>, String> {
        loop {
            match &mut self.state {
                State::Head => {
                    let Some(section) = self.take_section()? else { return Ok(None) };
                    let mut lines = section.into_iter();
                    let start = lines.next().ok_or("an empty line instead of a head")?;
                    let fields = lines.map(|line| field(&line)).collect::<Result<_, _>>()?;
                    self.state = State::AwaitsLength;
                    return Ok(Some(Event::Head(Head { start, fields })));
                }
                State::AwaitsLength => return Ok(None),
                State::Known(0) => {
                    self.state = State::Head;
                    return Ok(Some(Event::End(Vec::new())));
                }
                State::Known(left) | State::Chunk(left) => {
                    if self.bytes.is_empty() {
                        return Ok(None);
                    }
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(self.bytes.len());
                    *left -= n as u64;
                    if matches!(self.state, State::Chunk(0)) {
                        self.state = State::ChunkEnd;
                    }
                    return Ok(Some(Event::Data(self.bytes.drain(..n).collect())));
                }
                State::UntilClose => {
                    let bytes = std::mem::take(&mut self.bytes);
                    return Ok((!bytes.is_empty()).then_some(Event::Data(bytes)));
                }
                State::ChunkSize => {
                    let Some(line) = self.take_line()? else { return Ok(None) };
                    let is_hexadecimal =
                        !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_hexdigit());
                    let size = u64::from_str_radix(&line, 16).ok().filter(|_| is_hexadecimal);
                    self.state = match size.ok_or_else(|| format!("a malformed chunk size: {line:?}"))? {
                        0 => State::Trailers(Vec::new()),
                        size => State::Chunk(size),
                    };
                }
                State::ChunkEnd => {
                    let Some(line) = self.take_line()? else { return Ok(None) };
                    if !line.is_empty() {
                        return Err(format!("a chunk is longer than it says: {line:?}"));
                    }
                    self.state = State::ChunkSize;
                }
                State::Trailers(_) => {
                    let Some(line) = self.take_line()? else { return Ok(None) };
                    let State::Trailers(trailers) = &mut self.state else { return Ok(None) };
                    if line.is_empty() {
                        let trailers = std::mem::take(trailers);
                        self.state = State::Head;
                        return Ok(Some(Event::End(trailers)));
                    }
                    trailers.push(field(&line)?);
                }
            }
        }
    }

    /// The lines up to an empty one, which is taken too.
    fn take_section(&mut self) -> Result<Option<Vec<String>>, String> {
        let Some(end) = self.bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return match self.bytes.len() {
                0..100_000 => Ok(None),
                _ => Err("a head without an end".into()),
            };
        };
        let section: Vec<u8> = self.bytes.drain(..end + 4).collect();
        let text = String::from_utf8(section).map_err(|_| "a head that is not text")?;
        let lines: Vec<String> = text.trim_end_matches("\r\n").split("\r\n").map(str::to_owned).collect();
        match lines.iter().find(|line| line.contains(|c: char| c.is_ascii_control())) {
            Some(line) => Err(format!("a control character in {line:?}")),
            None => Ok(Some(lines)),
        }
    }

    fn take_line(&mut self) -> Result<Option<String>, String> {
        let Some(end) = self.bytes.iter().position(|&byte| byte == b'\n') else {
            return if self.bytes.len() < 10_000 { Ok(None) } else { Err("a line without an end".into()) };
        };
        let line: Vec<u8> = self.bytes.drain(..=end).collect();
        let line = line
            .strip_suffix(b"\r\n")
            .ok_or_else(|| format!("a bare line feed after {}", line.escape_ascii()))?;
        Ok(Some(String::from_utf8_lossy(line).into_owned()))
    }
}

fn field(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or_else(|| format!("a field without a colon: {line:?}"))?;
    let is_token = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
    if !is_token {
        return Err(format!("a malformed field name: {line:?}"));
    }
    Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}
