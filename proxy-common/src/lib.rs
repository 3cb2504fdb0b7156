//! Types that cross the boundary between Sluice's eBPF programs and its user side.
//!
//! Everything here is `#[repr(C)]` and free of padding, and has its size asserted, because both sides read
//! the same bytes. Nothing here needs `std`.
#![no_std]

pub mod cookie;
pub mod destinations;
pub mod filter;
pub mod guard;
#[cfg(feature = "user")]
mod pod;
pub mod sources;
pub mod steer;

/// A listener's address as the guard and steering look it up. IPv4 is written as IPv4-mapped IPv6, so
/// `0.0.0.0` (`::ffff:0.0.0.0`) and `::` are different keys.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// The address in network order.
    pub address: [u8; 16],
    /// The port in host order.
    pub port: u32,
}

const _: () = assert!(core::mem::size_of::<ListenerKey>() == 20);
