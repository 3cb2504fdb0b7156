//! The start of a TLS connection as far as a router needs it, sans-IO: records (RFC 8446 §5.1) with a
//! `ClientHello` (§4.1.2), which names the server (RFC 6066 §3) and the protocols to speak (RFC 7301).
//! Nothing is decrypted, and nothing is judged that the server itself judges.

use std::net::IpAddr;

use rustls::pki_types::ServerName;

/// Bytes of the handshake message, its header included. A hello has some hundreds, with post-quantum key
/// shares below 2,000.
pub const MESSAGE_BYTES_MAX: usize = 16 << 10;
/// All that IANA lists are fewer.
const EXTENSIONS_MAX: usize = 128;

const RECORD_HEADER: usize = 5;
/// Of a record's fragment. An empty one is forbidden for handshake messages, so that a flood of them cannot
/// be.
const FRAGMENT_BYTES: std::ops::RangeInclusive<usize> = 1..=1 << 14;
const MESSAGE_HEADER: usize = 4;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const EARLY_DATA: u16 = 42;
const HOST_NAME: u8 = 0;
/// Types that IANA has given to nobody, more than there may be extensions. Of those that are for private use.
const UNKNOWN: std::ops::RangeInclusive<u16> = 0xff60..=0xffef;

/// The content of a client's first message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The name it looks for, in lower case and without a trailing dot; `None`: it named none, or none that a
    /// server can have.
    pub server_name: Option<Box<str>>,
    /// Whether early data may follow (RFC 8446 §4.2.10).
    pub(super) offers_early_data: bool,
    /// The place of a name that rustls takes for none.
    pub(super) hidden: Option<Hidden>,
    /// `ProtocolNameList`'s entries as sent.
    alpn: Box<[u8]>,
}

/// How to hide an extension in a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hidden {
    /// Where its type begins in the message.
    pub(super) at: usize,
    /// A type that is not in the hello, and that nobody knows.
    pub(super) kind: u16,
}

impl Hello {
    /// The protocols it speaks, the one it likes best first; none: it did not say.
    pub fn alpn(&self) -> impl Iterator<Item = &[u8]> {
        let mut left = Input(&self.alpn);
        std::iter::from_fn(move || left.vector8())
    }
}

/// Why bytes are no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// A letter comes first: text, such as HTTP without TLS.
    #[error("plain text, such as HTTP, in place of TLS")]
    PlainText,
    /// A hello in the form of SSL 2.0.
    #[error("a hello of SSL 2.0")]
    Sslv2,
    /// No handshake record.
    #[error("not TLS: {0:#04x} where a handshake record begins")]
    NotTls(u8),
    /// Neither SSL 3.0 nor any TLS. DTLS, say.
    #[error("version {0:#06x}, which no TLS has")]
    Version(u16),
    /// A record that is empty, or longer than 2^14 bytes.
    #[error("a record of {0} bytes")]
    RecordLength(u16),
    /// Another handshake message.
    #[error("handshake message {0} in place of a ClientHello")]
    NotClientHello(u8),
    /// Longer than `MESSAGE_BYTES_MAX`.
    #[error("a ClientHello of {0} bytes")]
    TooLarge(u32),
    /// The length of this field does not fit its surroundings.
    #[error("a ClientHello whose {0} is malformed")]
    Malformed(&'static str),
    /// More extensions than anybody has.
    #[error("a ClientHello with more than {EXTENSIONS_MAX} extensions")]
    ExtensionCount,
    /// An extension twice.
    #[error("a ClientHello with extension {0} twice")]
    DuplicateExtension(u16),
    /// Several names to look for.
    #[error("a ClientHello with several server names")]
    SeveralNames,
}

impl HelloError {
    /// The description of the alert that tells the client (RFC 8446 §6); `None`: it would not understand one.
    #[must_use]
    pub const fn alert(self) -> Option<u8> {
        match self {
            Self::PlainText | Self::Sslv2 | Self::NotTls(_) => None,
            Self::Version(_) => Some(70),
            Self::RecordLength(_) => Some(22),
            Self::NotClientHello(_) => Some(10),
            Self::TooLarge(_)
            | Self::Malformed(_)
            | Self::ExtensionCount
            | Self::DuplicateExtension(_)
            | Self::SeveralNames => Some(50),
        }
    }
}

/// Reads a hello from the start of a connection, in pieces of any size. Each of its bytes is looked at once,
/// and no byte behind it.
#[derive(Debug, Default)]
pub struct Reader {
    /// The record's header as far as it is here.
    header: [u8; RECORD_HEADER],
    header_len: usize,
    /// Bytes of the record's fragment that are still to come.
    fragment_left: usize,
    /// The message as far as it is here. Empty while it sits in one piece of one record, as nearly all do.
    message: Vec<u8>,
}

impl Reader {
    /// Takes more bytes. `None`: more are needed. After a hello or an error nothing more may be given.
    ///
    /// # Errors
    /// As soon as it is sure that no hello will come.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Option<Hello>, HelloError> {
        let mut left = bytes;
        loop {
            if self.fragment_left == 0 {
                while self.header_len < RECORD_HEADER {
                    let Some((&byte, rest)) = left.split_first() else { return Ok(None) };
                    self.header[self.header_len] = byte;
                    self.header_len += 1;
                    left = rest;
                    self.check_header()?;
                }
                self.fragment_left = self.record_length();
            }
            if left.is_empty() {
                return Ok(None);
            }
            let (fragment, rest) = left.split_at(left.len().min(self.fragment_left));
            left = rest;
            self.fragment_left -= fragment.len();
            if self.message.is_empty() && self.is_whole(fragment)? {
                return body(&fragment[MESSAGE_HEADER..]).map(Some);
            }
            self.message.extend_from_slice(fragment);
            if self.is_whole(&self.message)? {
                return body(&self.message[MESSAGE_HEADER..]).map(Some);
            }
            if self.fragment_left == 0 {
                self.header_len = 0;
            }
        }
    }

    const fn record_length(&self) -> usize {
        u16::from_be_bytes([self.header[3], self.header[4]]) as usize
    }

    /// Judges the bytes of a record's header that are there, its last byte included.
    fn check_header(&self) -> Result<(), HelloError> {
        let is_first = self.message.is_empty();
        match (self.header_len, self.header) {
            (1, [first, ..]) if is_first && first.is_ascii_alphabetic() => Err(HelloError::PlainText),
            // Two bytes of a length, whose highest bit is set, then the message's type.
            (1 | 2, [first, ..]) if is_first && first >= 0x80 => Ok(()),
            (3, [first, _, CLIENT_HELLO, ..]) if is_first && first >= 0x80 => Err(HelloError::Sslv2),
            (1..=3, [first, ..]) if first != HANDSHAKE => Err(HelloError::NotTls(first)),
            // The minor version says nothing (RFC 8446 §5.1).
            (3, [_, major, minor, ..]) if major != 3 => {
                Err(HelloError::Version(u16::from_be_bytes([major, minor])))
            }
            (5, [.., high, low]) if !FRAGMENT_BYTES.contains(&self.record_length()) => {
                Err(HelloError::RecordLength(u16::from_be_bytes([high, low])))
            }
            _ => Ok(()),
        }
    }

    /// Whether `message`, all that there is of it, is whole.
    fn is_whole(&self, message: &[u8]) -> Result<bool, HelloError> {
        let Some((&kind, rest)) = message.split_first() else { return Ok(false) };
        if kind != CLIENT_HELLO {
            return Err(HelloError::NotClientHello(kind));
        }
        let Some(&[high, middle, low]) = rest.first_chunk::<3>() else { return Ok(false) };
        let length = u32::from_be_bytes([0, high, middle, low]);
        let total = length as usize + MESSAGE_HEADER;
        if total > MESSAGE_BYTES_MAX {
            return Err(HelloError::TooLarge(length));
        }
        // Nobody may say more before the server has answered, and early data comes in records of another
        // type.
        if message.len() + self.fragment_left > total {
            return Err(HelloError::Malformed("length"));
        }
        Ok(message.len() == total)
    }
}

/// A `ClientHello` without the message's header.
fn body(bytes: &[u8]) -> Result<Hello, HelloError> {
    let malformed = |field| move || HelloError::Malformed(field);
    let mut input = Input(bytes);
    let version = input.u16().ok_or_else(malformed("legacy_version"))?;
    if version >> 8 != 3 {
        return Err(HelloError::Version(version));
    }
    input.take(32).ok_or_else(malformed("random"))?;
    input.vector8().filter(|id| id.len() <= 32).ok_or_else(malformed("legacy_session_id"))?;
    let is_list = |suites: &&[u8]| suites.len() >= 2 && suites.len().is_multiple_of(2);
    input.vector16().filter(is_list).ok_or_else(malformed("cipher_suites"))?;
    input
        .vector8()
        .filter(|methods| !methods.is_empty())
        .ok_or_else(malformed("legacy_compression_methods"))?;
    // Before TLS 1.3 there need not be any.
    if input.0.is_empty() {
        return Ok(Hello::default());
    }
    let extensions = input.vector16().filter(|_| input.0.is_empty()).ok_or_else(malformed("extensions"))?;
    // They are the last of the message.
    read_extensions(Input(extensions), MESSAGE_HEADER + bytes.len())
}

/// `end`: where they end in the message.
fn read_extensions(mut input: Input<'_>, end: usize) -> Result<Hello, HelloError> {
    let mut hello = Hello::default();
    let mut odd_name = None;
    let mut seen = [0; EXTENSIONS_MAX];
    let mut count = 0;
    while !input.0.is_empty() {
        let at = end - input.0.len();
        let kind = input.u16().ok_or(HelloError::Malformed("extension"))?;
        let data = input.vector16().ok_or(HelloError::Malformed("extension"))?;
        if seen[..count].contains(&kind) {
            return Err(HelloError::DuplicateExtension(kind));
        }
        *seen.get_mut(count).ok_or(HelloError::ExtensionCount)? = kind;
        count += 1;
        match kind {
            SERVER_NAME => {
                let name = server_name(data)?;
                hello.server_name = normal(name);
                odd_name = ServerName::try_from(name).is_err().then_some(at);
            }
            ALPN => hello.alpn = protocols(data)?.into(),
            EARLY_DATA => hello.offers_early_data = true,
            _ => {}
        }
    }
    // More types to choose from than extensions.
    let free = UNKNOWN.into_iter().find(|kind| !seen[..count].contains(kind));
    hello.hidden = odd_name.zip(free).map(|(at, kind)| Hidden { at, kind });
    Ok(hello)
}

/// The name in a `ServerNameList`, as sent. There is one type of name, and one name of each type; the meaning
/// of a second entry is not defined.
fn server_name(data: &[u8]) -> Result<&[u8], HelloError> {
    let malformed = HelloError::Malformed("server_name");
    let mut input = Input(data);
    let mut list = Input(input.vector16().filter(|_| input.0.is_empty()).ok_or(malformed)?);
    let kind = list.take(1).ok_or(malformed)?;
    let name = list.vector16().filter(|name| kind == [HOST_NAME] && !name.is_empty()).ok_or(malformed)?;
    if !list.0.is_empty() {
        return Err(HelloError::SeveralNames);
    }
    Ok(name)
}

/// The name as names are compared; `None`: it can be nobody's. RFC 6066 forbids addresses.
fn normal(name: &[u8]) -> Option<Box<str>> {
    let name = std::str::from_utf8(name).ok()?;
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.parse::<IpAddr>().is_ok() {
        return None;
    }
    let is_label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(allowed)
    };
    (name.len() <= 253 && name.split('.').all(is_label)).then(|| name.to_ascii_lowercase().into())
}

/// A `ProtocolNameList`; its entries.
fn protocols(data: &[u8]) -> Result<&[u8], HelloError> {
    const MALFORMED: HelloError = HelloError::Malformed("application_layer_protocol_negotiation");
    let mut input = Input(data);
    let entries =
        input.vector16().filter(|entries| input.0.is_empty() && !entries.is_empty()).ok_or(MALFORMED)?;
    let mut left = Input(entries);
    while !left.0.is_empty() {
        left.vector8().filter(|name| !name.is_empty()).ok_or(MALFORMED)?;
    }
    Ok(entries)
}

/// The unread part of a structure in TLS's presentation language (RFC 8446 §3).
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        let (&bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(bytes))
    }

    /// A vector with a length of one byte.
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    /// A vector with a length of two bytes.
    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
pub(crate) mod tests;
