//! The identity of a client that showed a certificate, for endpoints: the value of X-Forwarded-Client-Cert in
//! Envoy's form.
//!
//! `Hash=…;Subject="…";URI=…;DNS=…`: SHA-256 of the certificate, its subject as RFC 4514 writes it, and its
//! alternative names, each key as often as there are such names. For every certificate the value is of
//! visible ASCII, and no byte of a name ends it. No quoted text holds a quotation mark or ends with a
//! backslash: such bytes are written as their numbers.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::{FromDer as _, GeneralName};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// The longest value; names that would make it longer are left out, the subject too.
pub const VALUE_BYTES_MAX: usize = 4096;

/// A client's identity, and what it was verified by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The value of the field.
    pub value: Box<str>,
    /// `ServerTls::print` of then.
    pub(super) print: [u8; 32],
}

/// The value for a leaf's DER, which was verified.
#[must_use]
pub fn forwarded(leaf: &[u8]) -> String {
    let mut value = String::from("Hash=");
    hexadecimal(&mut value, digest::digest(&digest::SHA256, leaf).as_ref());
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return value };
    let subject = subject(certificate.subject());
    add(&mut value, "Subject", &format!("\"{subject}\""));
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        let names = &alternative.value.general_names;
        for name in names {
            if let GeneralName::URI(uri) = name {
                add(&mut value, "URI", &quoted(uri));
            }
        }
        for name in names {
            if let GeneralName::DNSName(name) = name {
                add(&mut value, "DNS", &quoted(name));
            }
        }
    }
    value
}

fn add(value: &mut String, key: &str, text: &str) {
    if value.len() + key.len() + text.len() + 2 <= VALUE_BYTES_MAX {
        let _ = write!(value, ";{key}={text}");
    }
}

/// A name as it is, in quotation marks if something in it could end it.
fn quoted(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        // Neither may be in a DNS name or in a URI, nor may a byte that is not visible ASCII.
        if matches!(byte, b'"' | b'\\') || !byte.is_ascii_graphic() {
            let _ = write!(text, "%{byte:02X}");
        } else {
            text.push(char::from(byte));
        }
    }
    if text.contains([',', ';', '=']) { format!("\"{text}\"") } else { text }
}

/// The last part first, as RFC 4514 has it.
fn subject(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for part in parts.into_iter().rev() {
        if !text.is_empty() {
            text.push(',');
        }
        for (index, attribute) in part.iter().enumerate() {
            if index > 0 {
                text.push('+');
            }
            attribute_text(&mut text, attribute);
        }
    }
    text
}

fn attribute_text(text: &mut String, attribute: &AttributeTypeAndValue<'_>) {
    const NAMES: [(&str, &str); 11] = [
        ("2.5.4.3", "CN"),
        ("2.5.4.5", "serialNumber"),
        ("2.5.4.6", "C"),
        ("2.5.4.7", "L"),
        ("2.5.4.8", "ST"),
        ("2.5.4.9", "STREET"),
        ("2.5.4.10", "O"),
        ("2.5.4.11", "OU"),
        ("0.9.2342.19200300.100.1.1", "UID"),
        ("0.9.2342.19200300.100.1.25", "DC"),
        ("1.2.840.113549.1.9.1", "emailAddress"),
    ];
    let kind = attribute.attr_type().to_id_string();
    let known = NAMES.iter().find(|(oid, _)| *oid == kind);
    text.push_str(known.map_or(&kind, |(_, name)| name));
    text.push('=');
    match (known, attribute.as_str()) {
        (Some(_), Ok(value)) => value_text(text, value),
        // A value without a text: `#` and its DER.
        _ => {
            text.push('#');
            let value = attribute.attr_value();
            let mut der = vec![value.header.tag().0 as u8];
            match value.data.len() {
                length @ 0..=127 => der.push(length as u8),
                length => {
                    let bytes = length.to_be_bytes();
                    let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
                    der.push(0x80 | significant.len() as u8);
                    der.extend_from_slice(significant);
                }
            }
            der.extend_from_slice(value.data);
            hexadecimal(text, &der);
        }
    }
}

/// Escaped by number wherever RFC 4514 asks for an escape, so that no character of the value stands in the
/// header as itself that means something there.
fn value_text(text: &mut String, value: &str) {
    let last = value.len().saturating_sub(1);
    for (index, byte) in value.bytes().enumerate() {
        let at_edge = index == 0 || index == last;
        let is_plain = match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'=' | b'\\' => false,
            b' ' => !at_edge,
            b'#' => index > 0,
            _ => byte.is_ascii_graphic(),
        };
        if is_plain {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "\\{byte:02X}");
        }
    }
}

fn hexadecimal(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
}

#[cfg(test)]
mod tests;
