//! One JSON object on one line (RFC 8259), written into a buffer. Strings come out in ASCII alone. Control
//! characters and everything above ASCII are escaped, and bytes that are no UTF-8 become U+FFFD.

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The longest string in bytes of its source; a longer one is cut, between characters, and ends with U+2026.
pub const STRING_BYTES_MAX: usize = 64 << 10;

/// An object that is being written. Keys are our own and need no escape.
#[derive(Debug)]
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Object<'a> {
    /// Opens an object.
    pub fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    /// Closes the object.
    pub fn close(self) {
        self.out.push(b'}');
    }

    fn key(&mut self, key: &'static str) {
        if !std::mem::replace(&mut self.first, false) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A string, or null.
    pub fn string<'s>(&mut self, key: &'static str, value: impl Into<Option<&'s [u8]>>) {
        self.key(key);
        match value.into() {
            Some(bytes) => string(bytes, self.out),
            None => self.out.extend_from_slice(b"null"),
        }
    }

    /// A value that prints as plain ASCII, such as an address or a time.
    pub fn plain(&mut self, key: &'static str, print: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        self.out.push(b'"');
        print(self.out);
        self.out.push(b'"');
    }

    /// A number, or null.
    pub fn number(&mut self, key: &'static str, value: impl Into<Option<u64>>) {
        self.key(key);
        match value.into() {
            Some(number) => self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
            None => self.out.extend_from_slice(b"null"),
        }
    }

    /// `true`, `false` or null.
    pub fn boolean(&mut self, key: &'static str, value: Option<bool>) {
        self.key(key);
        self.out.extend_from_slice(match value {
            Some(true) => b"true",
            Some(false) => b"false",
            None => b"null",
        });
    }

    /// An object within.
    pub fn object(&mut self, key: &'static str) -> Object<'_> {
        self.key(key);
        Object::open(self.out)
    }
}

/// Appends a quoted string.
fn string(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let is_cut = bytes.len() > STRING_BYTES_MAX;
    let bytes = if is_cut { &bytes[..floor(bytes, STRING_BYTES_MAX)] } else { bytes };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| !is_plain(byte)) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        if rest[0] < 0x80 {
            escape(rest[0], out);
            rest = &rest[1..];
        } else {
            let end = rest.iter().position(u8::is_ascii).unwrap_or(rest.len());
            for character in String::from_utf8_lossy(&rest[..end]).chars() {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    four_digits(*unit, out);
                }
            }
            rest = &rest[end..];
        }
    }
    out.extend_from_slice(rest);
    if is_cut {
        four_digits(0x2026, out);
    }
    out.push(b'"');
}

const fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        _ => four_digits(u16::from(byte), out),
    }
}

fn four_digits(unit: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\\u");
    out.extend([12, 8, 4, 0].map(|shift| HEX[usize::from(unit >> shift & 15)]));
}

/// The last place at or before `at` where no character is cut.
fn floor(bytes: &[u8], at: usize) -> usize {
    (at.saturating_sub(3)..=at).rev().find(|&at| bytes[at] & 0xc0 != 0x80).unwrap_or(at)
}

#[cfg(test)]
mod tests;
