//! Character classes and lists of HTTP fields (RFC 9110 §5.6).

const TCHAR: u8 = 1;
const FIELD_CONTENT: u8 = 2;
const REQUEST_ID: u8 = 4;
const UNRESERVED: u8 = 8;

const CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let c = byte as u8;
        if c.is_ascii_alphanumeric()
            || matches!(
                c,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            )
        {
            table[byte] |= TCHAR;
        }
        if c == b'\t' || (c >= b' ' && c != 0x7f) {
            table[byte] |= FIELD_CONTENT;
        }
        if c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=' | b':') {
            table[byte] |= REQUEST_ID;
        }
        if c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'~') {
            table[byte] |= UNRESERVED;
        }
        byte += 1;
    }
    table
};

/// Whether `byte` may be part of a token (RFC 9110 §5.6.2).
#[must_use]
pub const fn is_tchar(byte: u8) -> bool {
    CLASSES[byte as usize] & TCHAR != 0
}

/// Whether `bytes` is a token: never empty.
#[must_use]
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| is_tchar(byte))
}

/// Whether `byte` may be part of a field value or reason phrase: HTAB, SP, VCHAR and obs-text (RFC 9110
/// §5.5).
#[must_use]
pub const fn is_field_content(byte: u8) -> bool {
    CLASSES[byte as usize] & FIELD_CONTENT != 0
}

/// Whether `byte` may be part of an X-Request-Id that is taken over from a client.
#[must_use]
pub const fn is_request_id_byte(byte: u8) -> bool {
    CLASSES[byte as usize] & REQUEST_ID != 0
}

/// Whether `byte` may be part of a host that is no IPv6 address: unreserved (RFC 3986 §2.3).
#[must_use]
pub const fn is_unreserved(byte: u8) -> bool {
    CLASSES[byte as usize] & UNRESERVED != 0
}

/// `bytes` without the spaces and tabs around it.
#[must_use]
pub fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The elements of a comma-separated list, trimmed, empty ones left out (RFC 9110 §5.6.1.2).
///
/// Quoted strings are not understood: meant for lists of tokens.
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim).filter(|element| !element.is_empty())
}

/// The value of a hexadecimal digit.
#[must_use]
pub const fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// A decimal number as Content-Length has it: digits only, at most 19 of them, so that it cannot overflow.
#[must_use]
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0, |number: u64, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_skip_empty_elements() {
        let elements: Vec<_> = list(b" a ,,\tb\t, ,c,").collect();
        assert_eq!(elements, [b"a", b"b", b"c"]);
        assert_eq!(list(b" , ").count(), 0);
    }

    #[test]
    fn decimals_are_digits_and_never_overflow() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"9999999999999999999"), Some(9_999_999_999_999_999_999));
        for bad in [
            &b""[..],
            b"10000000000000000000",
            b"+1",
            b"-1",
            b"0x1",
            b"1 ",
            b" 1",
            b"1,1",
            b"1.0",
            b"1_0",
            "١".as_bytes(),
        ] {
            assert_eq!(decimal(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn classes() {
        for byte in 0..=255_u8 {
            assert_eq!(is_field_content(byte), byte == 9 || (byte >= 32 && byte != 127), "{byte}");
            let expected = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(is_tchar(byte), expected, "{byte}");
            let expected = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            assert_eq!(is_unreserved(byte), expected, "{byte}");
            assert_eq!(is_request_id_byte(byte), expected || b"+/=:".contains(&byte), "{byte}");
        }
    }
}
