//! The maps of the programs that judge where the data plane connects to.

/// The most data planes at a time.
pub const PLANES_MAX: u32 = 16;
/// The most destinations: those of the configuration in force, and of earlier ones while they are in use.
pub const DESTINATIONS_MAX: u32 = 65_536;

/// `Destination::protocol`: IPPROTO_TCP.
pub const TCP: u16 = 6;

/// A destination. IPv4 is written as IPv4-mapped IPv6, so an IPv4 socket and an IPv6 socket that connect to
/// the same endpoint have the same key.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The address in network order.
    pub address: [u8; 16],
    /// The port in host order.
    pub port: u16,
    /// The socket's protocol.
    pub protocol: u16,
}

const _: () = assert!(core::mem::size_of::<Destination>() == 20);

/// The namespace in which the process ids of data planes count, as stat(2) describes `/proc/self/ns/pid`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidNamespace {
    /// The device of its file system, encoded as the kernel does: the major number above 20 bits.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

const _: () = assert!(core::mem::size_of::<PidNamespace>() == 16);

/// How a connect of a data plane was judged. Connects of other processes are not counted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It went to a destination.
    Allowed,
    /// It failed with EPERM.
    Refused,
}

impl Judged {
    /// Every judgement, in counter order.
    pub const ALL: &'static [Self] = &[Self::Allowed, Self::Refused];
}

/// The number of judgements, and so of entries in the counter array.
pub const JUDGEMENTS: u32 = Judged::ALL.len() as u32;
