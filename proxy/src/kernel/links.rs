//! A network interface as the kernel describes it, with its XDP program, however that was attached:
//! rtnetlink(7), RTM_GETLINK, IFLA_XDP. Also whether its driver takes XDP programs: generic netlink, family
//! `netdev` (Linux 6.3, Documentation/netlink/specs/netdev.yaml).

use std::io;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, Nla,
    NlaBuffer, NlasIterator, Parseable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage, LinkXdp, XdpAttached};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockProtocol;

use super::netlink;

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Driver,
    /// In the generic hook, after the kernel allocated the packet.
    Generic,
}

impl XdpMode {
    /// The name of the mode in `guard.mode` and `/status`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Generic => "generic",
        }
    }
}

/// The program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Occupied {
    /// How it is attached; `None` if it is in the hardware or several programs are attached.
    pub(super) mode: Option<XdpMode>,
    /// The program's id; 0 where several are attached.
    pub(super) program: u32,
}

/// An interface of this thread's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Its number, which no other interface gets while it lives.
    pub(super) index: u32,
    /// Its name now.
    pub(super) name: String,
    /// Of its frames (ARPHRD_…).
    kind: LinkLayerType,
    /// Its XDP program.
    pub(super) xdp: Option<Occupied>,
}

impl Device {
    /// Asks for the interface with this number.
    ///
    /// # Errors
    /// ENODEV: there is none. Else when netlink is refused.
    pub(super) fn read(index: u32) -> io::Result<Self> {
        let mut question = LinkMessage::default();
        question.header.index = index;
        match netlink::ask(SockProtocol::NetlinkRoute, RouteNetlinkMessage::GetLink(question))? {
            RouteNetlinkMessage::NewLink(link) => Ok(Self::of(link)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn of(message: LinkMessage) -> Self {
        let (mut name, mut xdp) = (String::new(), None);
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(found) => name = found,
                LinkAttribute::Xdp(found) => xdp = occupied(&found),
                _ => {}
            }
        }
        Self { index: message.header.index, name, kind: message.header.link_layer_type, xdp }
    }

    /// Its frames begin with no Ethernet header, which the guard reads: the kind of its frames.
    pub(super) fn foreign_frames(&self) -> Option<LinkLayerType> {
        (!matches!(self.kind, LinkLayerType::Ether | LinkLayerType::Loopback)).then_some(self.kind)
    }
}

fn occupied(xdp: &[LinkXdp]) -> Option<Occupied> {
    let attached = xdp.iter().find_map(|part| match part {
        LinkXdp::Attached(attached) => Some(*attached),
        _ => None,
    })?;
    let program = xdp.iter().find_map(|part| match part {
        LinkXdp::ProgId(program) => Some(*program),
        _ => None,
    });
    let mode = match attached {
        XdpAttached::None => return None,
        XdpAttached::Driver => Some(XdpMode::Driver),
        XdpAttached::SocketBuffer => Some(XdpMode::Generic),
        _ => None,
    };
    Some(Occupied { mode, program: program.unwrap_or(0) })
}

/// Says why an interface cannot be guarded, whatever `guard.mode` is: its frames begin with no Ethernet
/// header. `None`: it can be, there is none of this name here, or the kernel does not tell.
#[must_use]
pub fn without_ethernet(name: &str) -> Option<String> {
    let link = Device::read(if_nametoindex(name).ok()?).ok()?;
    link.foreign_frames().map(explain_frames)
}

/// Whether an interface is the loopback.
#[must_use]
pub fn is_loopback(index: u32) -> bool {
    Device::read(index).is_ok_and(|device| device.kind == LinkLayerType::Loopback)
}

pub(super) fn explain_frames(kind: LinkLayerType) -> String {
    let example = match kind {
        LinkLayerType::None => "as tun and WireGuard have it",
        LinkLayerType::Ppp => "as ppp has it",
        _ => "as tunnels have it",
    };
    format!(
        "its packets have no Ethernet header (type {}, {example}), which the guard reads: take it out of \
         guard.interfaces, and guard the interface that carries it",
        u16::from(kind)
    )
}

/// GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, CTRL_ATTR_FAMILY_ID.
const CONTROL: (u16, u8, u16, u16) = (0x10, 3, 2, 1);
/// NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, NETDEV_A_DEV_XDP_FEATURES.
const DEVICE: (u8, u16, u16) = (1, 1, 3);
/// NETDEV_XDP_ACT_BASIC: aborted, dropped, passed, sent back.
const BASIC: u64 = 1;

/// Whether the driver runs XDP programs.
///
/// # Errors
/// When the kernel is older than 6.3 or does not know the interface.
pub fn driver_mode(index: u32) -> io::Result<bool> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let (control, get_family, family_name, family_id) = CONTROL;
    let family = Generic::ask(control, get_family, family_name, b"netdev\0", family_id)?;
    let family = u16::from_ne_bytes(family.try_into().map_err(invalid)?);
    let (get_device, by_index, features) = DEVICE;
    let features = Generic::ask(family, get_device, by_index, &index.to_ne_bytes(), features)?;
    Ok(u64::from_ne_bytes(features.try_into().map_err(invalid)?) & BASIC != 0)
}

/// A message of generic netlink: a command with attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Generic {
    family: u16,
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl Generic {
    /// Bytes of `struct genlmsghdr`.
    const HEADER: usize = 4;

    /// One question with one attribute; the wanted attribute of the answer.
    fn ask(family: u16, command: u8, key: u16, value: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
        let attributes = vec![DefaultNla::new(key, value.to_vec())];
        let question = Self { family, command, attributes };
        let answer = netlink::ask(SockProtocol::NetlinkGeneric, question)?;
        let found = answer.attributes.into_iter().find(|attribute| attribute.kind() == wanted);
        let found = found.ok_or(io::ErrorKind::NotFound)?;
        let mut value = vec![0; found.value_len()];
        found.emit_value(&mut value);
        Ok(value)
    }
}

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        Self::HEADER + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        if let Some((header, rest)) = buffer.split_at_mut_checked(Self::HEADER) {
            header.copy_from_slice(&[self.command, 1, 0, 0]);
            self.attributes.as_slice().emit(rest);
        }
    }
}

impl NetlinkDeserializable for Generic {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let short = || DecodeError::buffer_too_small(payload.len(), Self::HEADER);
        let (&[command, ..], rest) = payload.split_first_chunk::<{ Self::HEADER }>().ok_or_else(short)?;
        let attributes = NlasIterator::new(rest)
            .map(|attribute| DefaultNla::parse(&NlaBuffer::new(attribute?.into_inner())))
            .collect::<Result<_, _>>()?;
        Ok(Self { family: header.message_type, command, attributes })
    }
}

#[cfg(test)]
mod tests;
