//! Schemes that authenticate a connection instead of a request, against RFC 9110 §11.1. An endpoint takes
//! every later request on such a connection for the same user's.

use super::grammar::list;
use super::message::{RequestHead, ResponseHead};
use super::names::Name;

/// NTLM and Negotiate (RFC 4559 §6), Negotiate's successor ([MS-N2HT]), and what Windows Remote Management
/// takes besides ([MS-WSMV] §2.2.9.1).
const SCHEMES: [&[u8]; 5] = [b"ntlm", b"negotiate", b"nego2", b"kerberos", b"credssp"];

/// Whether a request brings credentials that may authenticate its connection.
#[must_use]
#[inline]
pub fn request_binds_connection(head: &RequestHead) -> bool {
    head.fields.names().contains(Name::Authorization)
        && head.fields.all_known(Name::Authorization).any(names_such_a_scheme)
}

/// Whether a response asks for such credentials, or goes on with them.
#[must_use]
#[inline]
pub fn response_binds_connection(head: &ResponseHead) -> bool {
    head.fields.names().contains(Name::WwwAuthenticate)
        && head.fields.all_known(Name::WwwAuthenticate).any(names_such_a_scheme)
}

/// A comma within a quoted parameter may show a scheme that is none: the connection is kept from others then
/// without need.
fn names_such_a_scheme(value: &[u8]) -> bool {
    list(value).any(|element| {
        let scheme = element.split(|byte| matches!(byte, b' ' | b'\t')).next().unwrap_or_default();
        SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_found_in_lists_and_in_any_case() {
        for value in [
            "NTLM",
            "ntlm TlRM",
            "Negotiate oYIB",
            "Basic realm=\"a\", nEGOTIATE",
            "Digest a=b,\tNTLM",
            "NTLM\tTlRM",
            "Kerberos YII",
            "Basic realm=\"WSMAN\", CredSSP",
            "nego2 a",
        ] {
            assert!(names_such_a_scheme(value.as_bytes()), "{value}");
        }
        for value in ["", "Basic bnRsbQ==", "Bearer NTLM", "NTLMv2 a", "Digest realm=\"NTLM\"", "Negotiated"]
        {
            assert!(!names_such_a_scheme(value.as_bytes()), "{value}");
        }
    }
}
