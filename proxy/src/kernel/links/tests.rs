//! Tests of `kernel::links`.

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};

use super::*;

fn is_refused(error: &io::Error) -> bool {
    // A sandbox may refuse netlink. Before Linux 6.3 there is no family `netdev`.
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EPERM | libc::EACCES | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT)
    )
}

#[test]
fn mode_and_program_are_read() {
    let read = |attached, program| {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.attributes = vec![
            LinkAttribute::IfName("eth0".to_owned()),
            LinkAttribute::Xdp(vec![LinkXdp::Attached(attached), LinkXdp::ProgId(program)]),
        ];
        let link = Device::of(message);
        assert_eq!((link.index, link.name.as_str()), (7, "eth0"));
        link.xdp
    };
    assert_eq!(read(XdpAttached::None, 0), None);
    let driver = Occupied { mode: Some(XdpMode::Driver), program: 77 };
    assert_eq!(read(XdpAttached::Driver, 77), Some(driver));
    let generic = Occupied { mode: Some(XdpMode::Generic), program: 1 << 20 };
    assert_eq!(read(XdpAttached::SocketBuffer, 1 << 20), Some(generic));
    assert_eq!(read(XdpAttached::Multiple, 0), Some(Occupied { mode: None, program: 0 }));
}

#[test]
fn only_ethernet_and_the_loopback_can_be_guarded() {
    let foreign = |kind| {
        let mut message = LinkMessage::default();
        message.header.link_layer_type = kind;
        Device::of(message).foreign_frames()
    };
    for kind in [LinkLayerType::Ether, LinkLayerType::Loopback] {
        assert_eq!(foreign(kind), None);
    }
    for kind in [LinkLayerType::None, LinkLayerType::Ppp, LinkLayerType::Tunnel, LinkLayerType::Sit] {
        assert_eq!(foreign(kind), Some(kind));
        assert!(explain_frames(kind).contains(&u16::from(kind).to_string()));
    }
}

#[test]
fn a_generic_message_is_read_as_it_was_written() {
    for value in [&b"x"[..], b"four", b"netdev\0"] {
        let attributes = vec![DefaultNla::new(7, value.to_vec())];
        let generic = Generic { family: 0x10, command: 3, attributes };
        let mut message =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(generic.clone()));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let read = NetlinkMessage::<Generic>::deserialize(&bytes).expect("whole");
        assert_eq!(read.payload, NetlinkPayload::InnerMessage(generic));
    }
}

#[test]
fn the_kernel_answers_for_the_loopback() {
    match Device::read(1) {
        Ok(link) => assert_eq!((link.name.as_str(), link.foreign_frames()), ("lo", None)),
        Err(error) => assert!(is_refused(&error), "{error}"),
    }
    match driver_mode(1) {
        Ok(possible) => assert!(!possible, "lo refuses it"),
        Err(error) => assert!(is_refused(&error), "{error}"),
    }
    assert!(Device::read(u32::MAX >> 1).is_err(), "no such interface");
    assert!(driver_mode(u32::MAX >> 1).is_err(), "no such interface");
}
