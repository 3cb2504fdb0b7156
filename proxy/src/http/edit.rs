//! A route's changes to the fields of a head, compiled once into the lines that are sent. Names are left out,
//! and those lines are copied behind the remaining fields. Framing and the fields of one connection are the
//! proxy's own, and cannot be edited.

use super::grammar::{is_field_content, is_token, trim};
use super::message::Fields;
use super::names::{Name, NameSet};
use super::{authority, forward, underscores};

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
    /// Proxy of a request.
    #[error("makes programs that get fields as variables use another proxy (httpoxy)")]
    Proxy,
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
    /// All names to leave out of a request: those that collide with them go too.
    of_request: Vec<Box<[u8]>>,
    /// Lines that come at the end.
    added: Fields,
}

impl PartialEq for Edits {
    fn eq(&self, other: &Self) -> bool {
        (&self.host, self.known, &self.other, &self.of_request)
            == (&other.host, other.known, &other.other, &other.of_request)
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
        self.push(side, name, value)
    }

    /// Adds a value; fields of that name stay.
    pub fn add(&mut self, side: Side, name: &str, value: &str) -> Result<(), EditError> {
        check_name(side, name)?;
        self.push(side, name, value)
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
        if side == Side::Request {
            self.of_request.push(name.as_bytes().into());
        }
        Ok(())
    }

    fn push(&mut self, side: Side, name: &str, value: &str) -> Result<(), EditError> {
        if side == Side::Request && Name::of(name.as_bytes()) == Name::Proxy {
            return Err(EditError::Proxy);
        }
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
        let may_collide = !self.of_request.is_empty() && underscores::may_be_in(fields.names());
        if self.known.meets(fields.names()) || !self.other.is_empty() || may_collide {
            fields.retain(|name, text| {
                let is_other =
                    || !name.is_one() && self.other.iter().any(|other| other.eq_ignore_ascii_case(text));
                let collides =
                    || may_collide && self.of_request.iter().any(|other| underscores::collides(text, other));
                !self.known.contains(name) && !is_other() && !collides()
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
mod tests;
