//! Where a redirect leads: a URL with placeholders for parts of the request, compiled once.
//!
//! The URL has the host that the template names, which may be the request's own validated host. No request
//! can lead elsewhere, or end the header line. Three rules of a template ensure that. It begins with
//! `https://`, `http://`, `{scheme}://` or a path of its own. Its host comes before anything of the request's
//! path or query. A query never stands where a host would go on.
//!
//! Past a `?`, `{uri}` and `{path}` are percent-encoded: they are one value there.

use super::authority;

/// A request, as its redirect sees it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Normalised; empty only for an HTTP/1.0 request without Host.
    pub authority: &'a str,
    /// Normalised, or `*`.
    pub path_and_query: &'a str,
}

/// A compiled URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Scheme,
    Host,
    Authority,
    Uri { encoded: bool },
    Path { encoded: bool },
    Query,
}

/// The names of placeholders, for messages.
pub const PLACEHOLDERS: [&str; 6] = ["scheme", "host", "authority", "uri", "path", "query"];

/// Placeholders in one template: a request's target comes back no more often than this.
pub const PLACEHOLDERS_MAX: usize = 8;

/// The longest template, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 2048;

/// Errors of a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Beyond `TEMPLATE_BYTES_MAX`.
    #[error("is longer than {TEMPLATE_BYTES_MAX} bytes")]
    TooLong,
    /// Beyond `PLACEHOLDERS_MAX`.
    #[error("has more than {PLACEHOLDERS_MAX} placeholders")]
    TooManyPlaceholders,
    /// `{` without `}`, or the reverse.
    #[error("has a brace without its other half")]
    Brace,
    /// A placeholder that is none.
    #[error("has an unknown placeholder {{{0}}}")]
    Unknown(String),
    /// A character that no URL holds.
    #[error("has {0:?}, which a URL never does")]
    Character(char),
    /// `%` without two hexadecimal digits.
    #[error("has a malformed percent-encoding")]
    PercentEncoding,
    /// Neither a URL with a host nor a path of its own.
    #[error("could lead to whatever host a client names")]
    NotAnchored,
    /// No host behind `//`.
    #[error("has no host")]
    NoHost,
    /// Something after the host that would be read as part of it, or of a user's name before it.
    #[error("has {0} where it would be read as part of the host")]
    InHost(String),
}

/// The part of the URL that comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing yet.
    Start,
    /// After `{scheme}`.
    Scheme,
    /// Within the host; empty while nothing of it is there.
    Host { empty: bool },
    /// After `{authority}`, which has a port of its own maybe.
    HostEnd,
    /// In the path.
    Path,
    /// Past the first `?`.
    Query,
}

impl Template {
    /// Compiles a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::TooLong);
        }
        let mut parts = Vec::new();
        let mut place = Place::Start;
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.find(['{', '}']).unwrap_or(rest.len());
            let (literal, after) = rest.split_at(end);
            if !literal.is_empty() {
                place = check_literal(place, literal, after)?;
                parts.push(Part::Text(literal.into()));
            }
            rest = after;
            if let Some(inner) = rest.strip_prefix('{') {
                let (name, after) = inner.split_once('}').ok_or(TemplateError::Brace)?;
                let (part, next) = placeholder(name, place)?;
                parts.push(part);
                place = next;
                rest = after;
            } else if !rest.is_empty() {
                return Err(TemplateError::Brace);
            }
        }
        match place {
            Place::Start | Place::Scheme => return Err(TemplateError::NotAnchored),
            Place::Host { empty: true } => return Err(TemplateError::NoHost),
            _ => {}
        }
        let placeholders = parts.iter().filter(|part| !matches!(part, Part::Text(_))).count();
        if placeholders > PLACEHOLDERS_MAX {
            Err(TemplateError::TooManyPlaceholders)
        } else {
            Ok(Self { parts })
        }
    }

    /// The URL for a request; `None`: the host is part of it and the request has none.
    #[must_use]
    pub fn render(&self, target: &Target<'_>) -> Option<Vec<u8>> {
        // `OPTIONS *` has no path.
        let uri = if target.path_and_query == "*" { "/" } else { target.path_and_query };
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let mut url = Vec::with_capacity(64 + uri.len());
        for part in &self.parts {
            match part {
                Part::Text(text) => url.extend_from_slice(text.as_bytes()),
                Part::Scheme => url.extend_from_slice(target.scheme.as_bytes()),
                Part::Host | Part::Authority if target.authority.is_empty() => return None,
                Part::Host => url.extend_from_slice(authority::host(target.authority).as_bytes()),
                Part::Authority => url.extend_from_slice(target.authority.as_bytes()),
                Part::Uri { encoded: false } => url.extend_from_slice(uri.as_bytes()),
                Part::Uri { encoded: true } => encode(uri, &mut url),
                Part::Path { encoded: false } => url.extend_from_slice(path.as_bytes()),
                Part::Path { encoded: true } => encode(path, &mut url),
                Part::Query => url.extend_from_slice(query.as_bytes()),
            }
        }
        Some(url)
    }
}

/// The place after a literal; `after` is the text behind it.
fn check_literal(place: Place, literal: &str, after: &str) -> Result<Place, TemplateError> {
    let is_reserved = |letter: char| ":/?#[]@!$&'()*+,;=".contains(letter);
    let is_url =
        |letter: char| letter.is_ascii_alphanumeric() || "-._~%".contains(letter) || is_reserved(letter);
    if let Some(letter) = literal.chars().find(|letter| !is_url(*letter)) {
        return Err(TemplateError::Character(letter));
    }
    let is_escape = |at: usize| {
        literal.as_bytes().get(at + 1..at + 3).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    };
    if memchr::memchr_iter(b'%', literal.as_bytes()).any(|at| !is_escape(at)) {
        return Err(TemplateError::PercentEncoding);
    }
    match place {
        Place::Start => {
            let lower = literal.get(..8).unwrap_or(literal).to_ascii_lowercase();
            if lower.starts_with("https://") {
                within_host(true, &literal[8..])
            } else if lower.starts_with("http://") {
                within_host(true, &literal[7..])
            } else if literal.starts_with('/')
                && !literal.starts_with("//")
                && (literal.len() > 1 || after.is_empty())
            {
                Ok(past_host(literal))
            } else {
                Err(TemplateError::NotAnchored)
            }
        }
        Place::Scheme => within_host(true, literal.strip_prefix("://").ok_or(TemplateError::NotAnchored)?),
        Place::Host { empty } => within_host(empty, literal),
        Place::HostEnd if literal.starts_with(['/', '?', '#']) => Ok(past_host(literal)),
        Place::HostEnd => Err(TemplateError::InHost(format!("{literal:?}"))),
        Place::Path => Ok(past_host(literal)),
        Place::Query => Ok(Place::Query),
    }
}

fn within_host(empty: bool, literal: &str) -> Result<Place, TemplateError> {
    let end = literal.find(['/', '?', '#']).unwrap_or(literal.len());
    let (host, rest) = literal.split_at(end);
    let is_host = |letter: char| letter.is_ascii_alphanumeric() || "-._~:[]".contains(letter);
    if let Some(letter) = host.chars().find(|letter| !is_host(*letter)) {
        return Err(TemplateError::InHost(format!("{letter:?}")));
    }
    let empty = empty && host.is_empty();
    match (rest.is_empty(), empty) {
        (true, _) => Ok(Place::Host { empty }),
        (false, true) => Err(TemplateError::NoHost),
        (false, false) => Ok(past_host(rest)),
    }
}

fn past_host(literal: &str) -> Place {
    if literal.contains('?') { Place::Query } else { Place::Path }
}

fn placeholder(name: &str, place: Place) -> Result<(Part, Place), TemplateError> {
    let encoded = place == Place::Query;
    let part = match name {
        "scheme" => Part::Scheme,
        "host" => Part::Host,
        "authority" => Part::Authority,
        "uri" => Part::Uri { encoded },
        "path" => Part::Path { encoded },
        "query" => Part::Query,
        _ => return Err(TemplateError::Unknown(name.chars().take(40).collect())),
    };
    let in_host = || Err(TemplateError::InHost(format!("{{{name}}}")));
    let next = match (&part, place) {
        (Part::Scheme, Place::Start) => Place::Scheme,
        (_, Place::Start | Place::Scheme) => return Err(TemplateError::NotAnchored),
        (Part::Host, Place::Host { .. }) => Place::Host { empty: false },
        (Part::Authority, Place::Host { .. }) => Place::HostEnd,
        (Part::Uri { .. } | Part::Path { .. }, Place::Host { empty: true }) => {
            return Err(TemplateError::NoHost);
        }
        // Both begin with a slash, which ends the host. `{uri}` may bring a query, after which nothing is a
        // path.
        (Part::Uri { .. }, Place::Host { .. } | Place::HostEnd | Place::Path) => Place::Query,
        (Part::Path { .. }, Place::Host { .. } | Place::HostEnd | Place::Path) => Place::Path,
        (_, Place::Host { .. } | Place::HostEnd) => return in_host(),
        (_, place) => place,
    };
    Ok((part, next))
}

/// Everything but unreserved characters and `/` percent-encoded: fit for one value of a query.
fn encode(text: &str, url: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if super::grammar::is_unreserved(byte) || byte == b'/' {
            url.push(byte);
        } else {
            url.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
}

#[cfg(test)]
mod tests;
