//! Netlink sockets (netlink(7)): questions to the kernel with their answers, and its notices of changes. The
//! messages are types of netlink-packet-core and netlink-packet-route.
#![allow(unsafe_code, reason = "nix does not know NETLINK_GET_STRICT_CHK")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// No datagram of the kernel is longer: it cuts dumps into parts of 32 KiB.
pub(super) const BYTES_MAX: usize = 1 << 16;
/// What changes during a dump makes it incomplete. So often it is begun anew.
const DUMPS_MAX: u32 = 5;

/// A netlink socket of this thread's network namespace.
#[derive(Debug)]
pub(super) struct Netlink {
    fd: OwnedFd,
}

impl Netlink {
    /// For questions.
    pub(super) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // The kernel answers within the send. A longer wait would be a bug, and must not hang us.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(1))?;
        Ok(Self { fd })
    }

    /// For the notices of these groups of NETLINK_ROUTE, a bit each. Receiving never waits.
    pub(super) fn follow(groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { fd })
    }

    /// The kernel filters a dump by what the question names (Linux 4.20). Before, it ignored that.
    fn check_strictly(&self) -> io::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: the option's value is an int, which outlives the call, and its length is said.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_GET_STRICT_CHK,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        Errno::result(result)?;
        Ok(())
    }

    /// Sends one message.
    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        sendto(self.fd.as_raw_fd(), message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// The kernel's next datagram. ENOBUFS: some are lost.
    pub(super) fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        loop {
            let (length, sender) = recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), buffer)?;
            // Another process may have found our number.
            if sender.is_some_and(|sender| sender.pid() == 0) {
                return Ok(buffer.get(..length).unwrap_or_default());
            }
        }
    }

    /// Asks, and gives every answer.
    fn ask<M>(&self, question: M, flags: u16) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut message =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(question));
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.send(&bytes)?;
        let (mut answers, mut is_whole) = (Vec::new(), true);
        let mut buffer = vec![0; BYTES_MAX];
        loop {
            for answer in messages(self.receive(&mut buffer)?) {
                let answer = answer?;
                is_whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Done(_) if !is_whole => return Err(io::ErrorKind::Interrupted.into()),
                    NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(answers),
                    _ => {}
                }
            }
            if flags & NLM_F_DUMP == 0 && !answers.is_empty() {
                return Ok(answers);
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Asks one question and gives its answer.
pub(super) fn ask<M>(protocol: SockProtocol, question: M) -> io::Result<M>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    let answers = Netlink::open(protocol)?.ask(question, 0)?;
    answers.into_iter().next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Asks for everything that fits the question.
pub(super) fn dump<M>(protocol: SockProtocol, question: &M) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable + Clone,
{
    let mut tries = 0;
    loop {
        // A socket for each try: the rest of the last dump waits in the old one.
        let netlink = Netlink::open(protocol)?;
        netlink.check_strictly()?;
        tries += 1;
        match netlink.ask(question.clone(), NLM_F_DUMP) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < DUMPS_MAX => {}
            result => return result,
        }
    }
}

/// The messages of a datagram. After one that cannot be understood there are no more.
pub(super) fn messages<M>(datagram: &[u8]) -> impl Iterator<Item = io::Result<NetlinkMessage<M>>>
where
    M: NetlinkDeserializable,
{
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkMessage::<M>::deserialize(rest);
        let length = message.as_ref().map_or(0, |message| message.header.length as usize);
        rest = if length == 0 { &[] } else { rest.get(length.next_multiple_of(4)..).unwrap_or_default() };
        Some(message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)))
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    fn two() -> Vec<u8> {
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(LinkMessage::default()));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes.repeat(2)
    }

    #[test]
    fn a_datagram_is_cut_into_its_messages() {
        let read = |bytes: &[u8]| messages::<RouteNetlinkMessage>(bytes).collect::<io::Result<Vec<_>>>();
        assert_eq!(read(&two()).expect("whole").len(), 2);
        assert_eq!(read(&[]).expect("whole").len(), 0);
    }

    #[test]
    fn a_datagram_cut_or_changed_anywhere_ends_without_a_panic() {
        let whole = two();
        for length in 0..whole.len() {
            assert!(messages::<RouteNetlinkMessage>(&whole[..length]).count() <= 2, "{length}");
        }
        for (at, value) in (0..whole.len()).flat_map(|at| [0, 1, 0x7f, 0xff].map(|value| (at, value))) {
            let mut changed = whole.clone();
            changed[at] = value;
            assert!(messages::<RouteNetlinkMessage>(&changed).count() <= 3, "{at} {value}");
        }
    }
}
