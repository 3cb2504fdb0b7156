//! A route's changes to the fields of a head, compiled once into the lines that are sent. Names are left out,
//! and those lines are copied behind the remaining fields. Framing and the fields of one connection are the
//! proxy's own, and cannot be edited.

use super::grammar::{is_field_content, is_token, trim};
use super::message::Fields;
use super::names::{Name, NameSet};
use super::{authority, forward};

/// The kind of head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A request, on its way to an endpoint.
    Request,
    /// A response, on its way to a client.
    Response,
}

/// Why a field cannot be edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The name is no token.
    #[error("is not a field name")]
    Name,
    /// The value has a control byte.
    #[error("has a control character, which a field value never does")]
    Value,
    /// White space around the value, which every recipient takes off.
    #[error("has white space around it, which is not part of a field value")]
    OuterSpace,
    /// Content-Length, Transfer-Encoding, Trailer.
    #[error("says how the body is framed, which only the proxy that writes the body knows")]
    Framing,
    /// RFC 9110 §7.6.1.
    #[error("belongs to one connection and not to the message that is passed on")]
    HopByHop,
    /// Expect is answered here.
    #[error("is between the client and this proxy")]
    Expect,
    /// X-Request-Id of a request.
    #[error("ties a request to its log lines and error responses")]
    RequestId,
    /// Host other than by `set`.
    #[error("is in a request exactly once: `set` it to another value")]
    HostOnce,
    /// Host of a response.
    #[error("is a field of requests only")]
    HostInResponse,
    /// A Host that names no host.
    #[error("is not a host with an optional port")]
    HostValue,
}

/// Changes to the fields of one head. Removed and set fields go first; set and added ones then come at the
/// end.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    /// Replaces the authority.
    host: Option<Box<str>>,
    /// Names to leave out that stand for one field each.
    known: NameSet,
    /// Other names to leave out.
    other: Vec<Box<[u8]>>,
    /// Lines that come at the end.
    added: Fields,
}

impl PartialEq for Edits {
    fn eq(&self, other: &Self) -> bool {
        (&self.host, self.known, &self.other) == (&other.host, other.known, &other.other)
            && self.added.iter().eq(other.added.iter())
    }
}

impl Edits {
    /// Puts this value in the place of all that are there.
    pub fn set(&mut self, side: Side, name: &str, value: &str) -> Result<(), EditError> {
        if name.eq_ignore_ascii_case("host") && side == Side::Request {
            let host = authority::normalise(value.as_bytes()).ok_or(EditError::HostValue)?;
            self.host = Some(host.into());
            return Ok(());
        }
        self.remove(side, name)?;
        self.push(name, value)
    }

    /// Adds a value; fields of that name stay.
    pub fn add(&mut self, side: Side, name: &str, value: &str) -> Result<(), EditError> {
        check_name(side, name)?;
        self.push(name, value)
    }

    /// Takes all values away.
    pub fn remove(&mut self, side: Side, name: &str) -> Result<(), EditError> {
        check_name(side, name)?;
        let known = Name::of(name.as_bytes());
        if known.is_one() {
            self.known = self.known.with(known);
        } else {
            self.other.push(name.as_bytes().into());
        }
        Ok(())
    }

    fn push(&mut self, name: &str, value: &str) -> Result<(), EditError> {
        if !value.bytes().all(is_field_content) {
            return Err(EditError::Value);
        }
        if trim(value.as_bytes()).len() != value.len() {
            return Err(EditError::OuterSpace);
        }
        self.added.push(name.as_bytes(), value.as_bytes());
        Ok(())
    }

    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.host.is_none()
            && self.known == NameSet::default()
            && self.other.is_empty()
            && self.added.is_empty()
    }

    /// The host and port that a request gets instead of its own.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Changes a head's fields, after the proxy's own were set.
    pub fn apply(&self, fields: &mut Fields) {
        if self.known.meets(fields.names()) || !self.other.is_empty() {
            fields.retain(|name, text| {
                let is_other =
                    || !name.is_one() && self.other.iter().any(|other| other.eq_ignore_ascii_case(text));
                !self.known.contains(name) && !is_other()
            });
        }
        fields.append(&self.added);
    }
}

fn check_name(side: Side, name: &str) -> Result<(), EditError> {
    if !is_token(name.as_bytes()) {
        return Err(EditError::Name);
    }
    match Name::of(name.as_bytes()) {
        Name::ContentLength | Name::TransferEncoding => Err(EditError::Framing),
        Name::Host if side == Side::Request => Err(EditError::HostOnce),
        Name::Host => Err(EditError::HostInResponse),
        Name::Expect => Err(EditError::Expect),
        Name::RequestId if side == Side::Request => Err(EditError::RequestId),
        known if forward::HOP_BY_HOP.contains(known) => Err(EditError::HopByHop),
        _ if name.eq_ignore_ascii_case("trailer") => Err(EditError::Framing),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        pairs.iter().for_each(|(name, value)| fields.push(name.as_bytes(), value.as_bytes()));
        fields
    }

    fn shown(fields: &Fields) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        fields.iter().map(|(name, value)| format!("{}: {}", text(name), text(value))).collect()
    }

    #[test]
    fn sets_adds_and_removes_in_any_case() {
        let mut edits = Edits::default();
        assert!(edits.is_empty());
        edits.set(Side::Request, "x-tenant", "blue").expect("fit");
        edits.add(Side::Request, "Accept", "text/plain").expect("fit");
        edits.remove(Side::Request, "VIA").expect("fit");
        edits.remove(Side::Request, "X-Forwarded-For").expect("fit");
        edits.remove(Side::Request, "x-forwarded-port").expect("fit");
        edits.set(Side::Request, "hOsT", "Other.example:81").expect("fit");
        assert!(!edits.is_empty());
        let mut fields = fields(&[
            ("X-TENANT", "red"),
            ("Accept", "*/*"),
            ("Via", "1.1 sluice"),
            ("X-Tenant", "green"),
            ("X-Forwarded-For", "192.0.2.1"),
            ("X-Forwarded-Port", "80"),
            ("X-Forwarded-Proto", "http"),
        ]);
        edits.apply(&mut fields);
        assert_eq!(
            shown(&fields),
            ["Accept: */*", "X-Forwarded-Proto: http", "x-tenant: blue", "Accept: text/plain"]
        );
        assert_eq!(edits.host(), Some("other.example:81"));
        assert!(!fields.contains(b"via") && !fields.names().contains(Name::ForwardedFor));
        assert_eq!(fields.first(b"X-Tenant"), Some(&b"blue"[..]));
    }

    #[test]
    fn refuses_what_the_proxy_writes_and_what_is_no_field() {
        use EditError::*;
        for (name, value, request, response) in [
            ("", "a", Some(Name), Some(Name)),
            ("a b", "a", Some(Name), Some(Name)),
            ("a:", "a", Some(Name), Some(Name)),
            ("é", "a", Some(Name), Some(Name)),
            ("a\r\nb", "a", Some(Name), Some(Name)),
            ("a", "b\r\nc: d", Some(Value), Some(Value)),
            ("a", "\u{7f}", Some(Value), Some(Value)),
            ("a", "\0", Some(Value), Some(Value)),
            ("a", " b", Some(OuterSpace), Some(OuterSpace)),
            ("a", "b\t", Some(OuterSpace), Some(OuterSpace)),
            ("Content-Length", "1", Some(Framing), Some(Framing)),
            ("transfer-encoding", "chunked", Some(Framing), Some(Framing)),
            ("Trailer", "a", Some(Framing), Some(Framing)),
            ("Connection", "close", Some(HopByHop), Some(HopByHop)),
            ("TE", "trailers", Some(HopByHop), Some(HopByHop)),
            ("Upgrade", "h2c", Some(HopByHop), Some(HopByHop)),
            ("Proxy-Authorization", "a", Some(HopByHop), Some(HopByHop)),
            ("Expect", "100-continue", Some(Expect), Some(Expect)),
            ("X-Request-Id", "a", Some(RequestId), None),
            ("Host", "a b", Some(HostValue), Some(HostInResponse)),
            ("Host", "a", None, Some(HostInResponse)),
            ("a", "", None, None),
            ("Set-Cookie", "a=\u{e9}; b \t c", None, None),
        ] {
            for (side, expected) in [(Side::Request, request), (Side::Response, response)] {
                assert_eq!(Edits::default().set(side, name, value).err(), expected, "{name:?}: {value:?}");
                let only_set = name == "Host" && side == Side::Request;
                let expected = if only_set { Some(HostOnce) } else { expected };
                assert_eq!(Edits::default().add(side, name, value).err(), expected, "{name:?}: {value:?}");
                let expected = expected.filter(|error| !matches!(error, Value | OuterSpace));
                assert_eq!(Edits::default().remove(side, name).err(), expected, "{name:?}");
            }
        }
    }

    proptest! {
        /// Against the rules said plainly over a list of pairs.
        #[test]
        fn is_what_it_says(
            pairs in proptest::collection::vec(("(a|A|b|via|X-Real-IP|x-request-id)", "[a-c]{0,2}"), 0..8),
            set in proptest::collection::hash_map("(a|b|server)", "[x-z]{1,2}", 0..3),
            add in proptest::collection::vec(("(a|b|c|via)", "[x-z]{1,2}"), 0..3),
            remove in proptest::collection::vec("(A|via|X-REAL-IP|X-Request-ID|q)", 0..3),
        ) {
            let mut edits = Edits::default();
            remove.iter().for_each(|name| edits.remove(Side::Response, name).expect("fit"));
            set.iter().for_each(|(name, value)| edits.set(Side::Response, name, value).expect("fit"));
            add.iter().for_each(|(name, value)| edits.add(Side::Response, name, value).expect("fit"));
            let borrowed: Vec<(&str, &str)> =
                pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let mut fields = fields(&borrowed);
            edits.apply(&mut fields);

            let goes =
                |name: &str| remove.iter().chain(set.keys()).any(|other| other.eq_ignore_ascii_case(name));
            let kept =
                pairs.iter().filter(|(name, _)| !goes(name)).map(|(name, value)| format!("{name}: {value}"));
            let behind = set.iter().map(|(name, value)| format!("{name}: {value}"));
            let behind = behind.chain(add.iter().map(|(name, value)| format!("{name}: {value}")));
            prop_assert_eq!(shown(&fields), kept.chain(behind).collect::<Vec<_>>());
            for (name, _) in &pairs {
                let there = fields.iter().any(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes()));
                prop_assert_eq!(fields.contains(name.as_bytes()), there);
            }
        }
    }
}
