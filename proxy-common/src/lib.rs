//! Types that cross the boundary between Sluice's eBPF programs and its user side.
//!
//! Everything here is `#[repr(C)]`, free of padding, and has its size asserted, because both sides
//! read the same bytes. Nothing here needs `std`.
#![no_std]

pub mod guard;
pub mod steer;
