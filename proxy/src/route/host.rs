//! Hosts that routes name: a domain name, all names under one, or an IPv6 address.

use std::net::Ipv6Addr;

/// One host of a route, in the form it is looked up in: lower case, no trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Exactly this name or IPv4 address.
    Name(Box<str>),
    /// `*.` and this: every name with at least one label before it.
    Under(Box<str>),
    /// `[…]`, however it is spelt.
    Ipv6(Ipv6Addr),
}

impl std::fmt::Display for Host {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => formatter.write_str(name),
            Self::Under(name) => write!(formatter, "*.{name}"),
            Self::Ipv6(address) => write!(formatter, "[{address}]"),
        }
    }
}

/// Why a text names no host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing, or `*`.
    #[error("names no host")]
    Empty,
    /// Letters beyond ASCII.
    #[error("is not ASCII: clients send an internationalised name as its A-label")]
    NotAscii,
    /// `example.com:80`
    #[error("has a port, which routes do not look at")]
    Port,
    /// An address that lacks its brackets, or that is none.
    #[error("is no IPv6 address in brackets")]
    Ipv6,
    /// `*` elsewhere than in `*.` at the start.
    #[error("has a wildcard that is not the whole first label")]
    Wildcard,
    /// A character that no host name has.
    #[error("has {0:?}, which a host name never does")]
    Character(char),
    /// Two dots in a row, or one at the start.
    #[error("has an empty label")]
    EmptyLabel,
    /// RFC 1035 §2.3.4.
    #[error("has a label longer than 63 bytes, or more than 253 in all")]
    TooLong,
}

impl Host {
    /// From the spelling in a configuration.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if matches!(text, "" | "*" | "." | "*.") {
            return Err(HostError::Empty);
        }
        if !text.is_ascii() {
            return Err(HostError::NotAscii);
        }
        if let Some(inner) = text.strip_prefix('[') {
            let Some((address, rest)) = inner.split_once(']') else { return Err(HostError::Ipv6) };
            let address = address.parse().map_err(|_| HostError::Ipv6)?;
            return if rest.is_empty() { Ok(Self::Ipv6(address)) } else { Err(HostError::Port) };
        }
        if text.parse::<Ipv6Addr>().is_ok() {
            return Err(HostError::Ipv6);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let (name, is_wildcard) = match name.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        if text.rsplit_once(':').is_some_and(|(_, port)| is_port(port)) {
            return Err(HostError::Port);
        }
        if name.contains('*') {
            return Err(HostError::Wildcard);
        }
        let is_host =
            |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '.' | '_' | '~');
        if let Some(letter) = name.chars().find(|letter| !is_host(*letter)) {
            return Err(HostError::Character(letter));
        }
        if name.split('.').any(str::is_empty) {
            return Err(HostError::EmptyLabel);
        }
        if name.len() > 253 || name.split('.').any(|label| label.len() > 63) {
            return Err(HostError::TooLong);
        }
        let name = name.to_ascii_lowercase().into();
        Ok(if is_wildcard { Self::Under(name) } else { Self::Name(name) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_wildcards_and_addresses() {
        for (text, shown) in [
            ("example.com", "example.com"),
            ("EXAMPLE.com.", "example.com"),
            ("*.Example.com", "*.example.com"),
            ("*.com.", "*.com"),
            ("localhost", "localhost"),
            ("a_b-c.d", "a_b-c.d"),
            ("127.0.0.1", "127.0.0.1"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("[::1]", "[::1]"),
            ("[2001:DB8:0:0:0:0:0:1]", "[2001:db8::1]"),
        ] {
            assert_eq!(Host::parse(text).map(|host| host.to_string()), Ok(shown.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_says_why() {
        use HostError::*;
        let long = format!("{}.example", "a".repeat(64));
        let longer = "a.".repeat(130);
        for (text, error) in [
            ("", Empty),
            ("*", Empty),
            ("bücher.example", NotAscii),
            ("example.com:80", Port),
            ("[::1]:80", Port),
            ("::1", Ipv6),
            ("[::1", Ipv6),
            ("[127.0.0.1]", Ipv6),
            ("*example.com", Wildcard),
            ("a.*.com", Wildcard),
            ("**.com", Wildcard),
            ("*.*.com", Wildcard),
            ("https://example.com", Character(':')),
            ("example.com/", Character('/')),
            ("a b", Character(' ')),
            ("a..b", EmptyLabel),
            (".a", EmptyLabel),
            ("a..", EmptyLabel),
            ("*..a", EmptyLabel),
            (&long, TooLong),
            (&longer, TooLong),
        ] {
            assert_eq!(Host::parse(text), Err(error), "{text}");
        }
    }
}
