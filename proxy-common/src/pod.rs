//! The user side: tells aya that these types may be copied to and from a map as bytes.
#![allow(
    unsafe_code,
    reason = "aya::Pod is an unsafe marker trait; the types are plain numbers without padding"
)]

use aya::Pod;

use crate::ListenerKey;
use crate::cookie::CookieConfig;
use crate::destinations::{Destination, PidNamespace};
use crate::guard::GuardConfig;
use crate::sources::{Armed, CountConfig};
use crate::steer::{SteerConfig, SteerListener, WorkerSlot};

/// Does not compile if the fields do not fill the type, that is if there is padding.
macro_rules! pod {
    ($($type:ty = $fields:expr;)*) => {$(
        const _: () = assert!(core::mem::size_of::<$type>() == $fields);
        // SAFETY: the type is `#[repr(C)]`, `Copy` and `'static`, and made of integers that accept any bit
        // pattern. It has no padding: the sizes of its fields add up to its own (asserted above).
        unsafe impl Pod for $type {}
    )*};
}

pod! {
    ListenerKey = 16 + 4;
    GuardConfig = 4 + 4 + 8 + 8 + 2 * 8 + 2 * 8 + 2 * 8 + 4 + 4;
    CookieConfig = 4 + 4 + 4 + 4 + 8 + 8;
    Destination = 16 + 2 + 2;
    PidNamespace = 8 + 8;
    CountConfig = 8 + 8 + 2 * 8;
    Armed = 8 + 8 + 8 + 5 * 8;
    SteerConfig = 4 + 4 + 8;
    SteerListener = 4 + 2 * 4;
    WorkerSlot = 4 + 4 + 8 + 4 + 4 + 10 * 4;
}
