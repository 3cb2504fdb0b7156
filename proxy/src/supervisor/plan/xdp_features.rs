//! Whether an interface takes XDP in its driver, asked of the kernel without attaching anything: generic
//! netlink, family `netdev`, attribute XDP_FEATURES (Linux 6.3, Documentation/netlink/specs/netdev.yaml).

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// NLMSG_ERROR.
const ERROR: u16 = 2;
/// NLM_F_REQUEST.
const REQUEST: u16 = 1;
/// GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, CTRL_ATTR_FAMILY_ID.
const CONTROL: (u16, u8, u16, u16) = (0x10, 3, 2, 1);
/// NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, NETDEV_A_DEV_XDP_FEATURES.
const DEVICE: (u8, u16, u16) = (1, 1, 3);
/// NETDEV_XDP_ACT_BASIC: aborted, dropped, passed, sent back.
const BASIC: u64 = 1;
/// nlmsghdr and genlmsghdr.
const HEADERS: usize = 16 + 4;

/// Whether the driver runs XDP programs. An error when the kernel is older than 6.3 or does not know the
/// interface.
pub(super) fn driver_mode(interface_index: u32) -> io::Result<bool> {
    let (control, get_family, family_name, family_id) = CONTROL;
    let family = ask(control, get_family, family_name, b"netdev\0", family_id)?;
    let family =
        u16::from_ne_bytes(family.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?);
    let (get_device, index, features) = DEVICE;
    let features = ask(family, get_device, index, &interface_index.to_ne_bytes(), features)?;
    let features =
        u64::from_ne_bytes(features.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?);
    Ok(features & BASIC != 0)
}

/// One request with one attribute; the wanted attribute of the answer.
fn ask(family: u16, command: u8, key: u16, value: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
    let netlink =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkGeneric)?;
    // The kernel answers within the send; a wait would be a bug that must not hang `plan`.
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::seconds(1))?;
    let request = encode(family, command, key, value);
    sendmsg(
        netlink.as_raw_fd(),
        &[IoSlice::new(&request)],
        &[],
        MsgFlags::empty(),
        Some(&NetlinkAddr::new(0, 0)),
    )?;
    let mut answer = [0; 8192];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    decode(answer.get(..length).unwrap_or_default(), wanted)
}

fn encode(family: u16, command: u8, key: u16, value: &[u8]) -> Vec<u8> {
    let attribute = 4 + value.len();
    let mut message = Vec::with_capacity(HEADERS + attribute + 3);
    message.extend(((HEADERS + attribute.next_multiple_of(4)) as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]); // sequence and port: one request on one socket
    message.extend([command, 1, 0, 0]);
    message.extend((attribute as u16).to_ne_bytes());
    message.extend(key.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

fn decode(message: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let header: &[u8; 16] = message.first_chunk().ok_or_else(short)?;
    if u16::from_ne_bytes([header[4], header[5]]) == ERROR {
        let code: [u8; 4] = message.get(16..20).and_then(|code| code.try_into().ok()).ok_or_else(short)?;
        return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(code).saturating_neg()));
    }
    let mut rest = message.get(HEADERS..).ok_or_else(short)?;
    while let Some(&[length_low, length_high, key_low, key_high]) = rest.first_chunk() {
        let length = usize::from(u16::from_ne_bytes([length_low, length_high]));
        let value = rest.get(4..length).ok_or_else(short)?;
        // The top two bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
        if u16::from_ne_bytes([key_low, key_high]) & 0x3fff == wanted {
            return Ok(value.to_vec());
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_write_we_parse() {
        for value in [&b"x"[..], b"four", b"netdev\0"] {
            assert_eq!(decode(&encode(0x10, 3, 7, value), 7).expect("there"), value);
            assert_eq!(
                decode(&encode(0x10, 3, 7, value), 8).expect_err("not there").kind(),
                io::ErrorKind::NotFound
            );
        }
    }

    #[test]
    fn an_answer_cut_anywhere_is_an_error_and_no_panic() {
        let message = encode(0x10, 3, 7, b"value");
        for length in 0..HEADERS + 4 + 5 {
            assert!(decode(&message[..length], 7).is_err(), "{length}");
        }
        let mut looping = message;
        looping[HEADERS] = 0;
        looping[HEADERS + 1] = 0;
        assert!(decode(&looping, 7).is_err(), "a length of zero ends");
    }

    #[test]
    fn an_error_answer_carries_its_code() {
        let mut message = encode(ERROR, 0, 0, &[0; 12]);
        message[16..20].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(decode(&message, 1).expect_err("an error").raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn loopback_takes_no_driver_mode() {
        match driver_mode(1) {
            Ok(possible) => assert!(!possible, "lo refuses it"),
            // Before Linux 6.3 there is no such family; a sandbox may refuse netlink.
            Err(error) => assert!(
                matches!(
                    error.raw_os_error(),
                    Some(
                        libc::ENOENT
                            | libc::EPERM
                            | libc::EACCES
                            | libc::EAFNOSUPPORT
                            | libc::EPROTONOSUPPORT
                    )
                ),
                "{error}"
            ),
        }
        assert!(driver_mode(u32::MAX >> 1).is_err(), "no such interface");
    }
}
