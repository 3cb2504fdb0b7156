//! The XDP program on an interface, however it was attached: rtnetlink(7), RTM_GETLINK, IFLA_XDP.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// NLMSG_ERROR, RTM_GETLINK, NLM_F_REQUEST.
const ERROR: u16 = 2;
const GET_LINK: u16 = 18;
const REQUEST: u16 = 1;
/// IFLA_XDP, and in it IFLA_XDP_ATTACHED and IFLA_XDP_PROG_ID.
const LINK_XDP: u16 = 43;
const ATTACHED: u16 = 2;
const PROGRAM: u16 = 4;
/// XDP_ATTACHED_DRV and XDP_ATTACHED_SKB.
const DRIVER: u8 = 1;
const GENERIC: u8 = 2;
/// Bytes of nlmsghdr and ifinfomsg.
const HEADERS: usize = 16 + 16;

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
    pub mode: Option<XdpMode>,
    /// The program's id; 0 where several are attached.
    pub program: u32,
}

/// The XDP program on the interface with this index, in this thread's network namespace. `None`: there is
/// none.
///
/// # Errors
/// When the interface does not exist or netlink is refused.
pub(super) fn occupied(index: u32) -> io::Result<Option<Occupied>> {
    let netlink =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    // The kernel answers within the send. A longer wait would be a bug, and must not hang a start.
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::seconds(1))?;
    let mut request = Vec::with_capacity(HEADERS);
    request.extend((HEADERS as u32).to_ne_bytes());
    request.extend(GET_LINK.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    request.extend([0; 8 + 4]); // sequence and port: one request on one socket; family, type
    request.extend(index.to_ne_bytes());
    request.extend([0; 8]); // flags and change
    sendmsg(
        netlink.as_raw_fd(),
        &[IoSlice::new(&request)],
        &[],
        MsgFlags::empty(),
        Some(&NetlinkAddr::new(0, 0)),
    )?;
    let mut answer = vec![0; 1 << 16];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    decode(answer.get(..length).unwrap_or_default())
}

fn decode(message: &[u8]) -> io::Result<Option<Occupied>> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let header: &[u8; 16] = message.first_chunk().ok_or_else(short)?;
    if u16::from_ne_bytes([header[4], header[5]]) == ERROR {
        let code: [u8; 4] = message.get(16..20).and_then(|code| code.try_into().ok()).ok_or_else(short)?;
        return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(code).saturating_neg()));
    }
    let Some(xdp) = attribute(message.get(HEADERS..).ok_or_else(short)?, LINK_XDP) else { return Ok(None) };
    let attached = attribute(xdp, ATTACHED).and_then(|value| value.first()).copied().unwrap_or(0);
    if attached == 0 {
        return Ok(None);
    }
    let program = attribute(xdp, PROGRAM)
        .and_then(|value| value.first_chunk())
        .map_or(0, |value| u32::from_ne_bytes(*value));
    let mode = match attached {
        DRIVER => Some(XdpMode::Driver),
        GENERIC => Some(XdpMode::Generic),
        _ => None,
    };
    Ok(Some(Occupied { mode, program }))
}

fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(&[length_low, length_high, key_low, key_high]) = rest.first_chunk() {
        let length = usize::from(u16::from_ne_bytes([length_low, length_high]));
        let value = rest.get(4..length)?;
        // The top two bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
        if u16::from_ne_bytes([key_low, key_high]) & 0x3fff == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute_of(key: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend(key.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(attached: u8, program: u32) -> Vec<u8> {
        let xdp =
            [attribute_of(ATTACHED, &[attached]), attribute_of(PROGRAM, &program.to_ne_bytes())].concat();
        let mut message = vec![0; HEADERS];
        message[4] = 16; // RTM_NEWLINK
        message.extend(attribute_of(3, b"eth0\0"));
        message.extend(attribute_of(LINK_XDP | 1 << 15, &xdp));
        message
    }

    #[test]
    fn mode_and_program_are_read() {
        let read = |attached, program| decode(&message(attached, program)).expect("whole");
        assert_eq!(read(0, 0), None);
        assert_eq!(read(1, 77), Some(Occupied { mode: Some(XdpMode::Driver), program: 77 }));
        assert_eq!(read(2, 1 << 20), Some(Occupied { mode: Some(XdpMode::Generic), program: 1 << 20 }));
        assert_eq!(read(4, 0), Some(Occupied { mode: None, program: 0 }));
    }

    #[test]
    fn an_answer_cut_anywhere_is_no_panic() {
        let message = message(1, 7);
        for length in 0..message.len() {
            let _ = decode(&message[..length]);
        }
        let mut error = vec![0; 36];
        error[4] = 2;
        error[16..20].copy_from_slice(&(-libc::ENODEV).to_ne_bytes());
        assert_eq!(decode(&error).expect_err("an error").raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn the_kernel_answers_for_the_loopback() {
        match occupied(1) {
            Ok(_) => {}
            // A sandbox may refuse netlink.
            Err(error) => {
                assert!(
                    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EAFNOSUPPORT)),
                    "{error}"
                )
            }
        }
        assert!(occupied(u32::MAX >> 1).is_err(), "no such interface");
    }
}
