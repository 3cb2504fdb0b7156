//! The guard: the XDP program that judges packets before the kernel allocates anything for them.

mod settings;

pub use settings::{BAN_FOR, Guard, GuardMode, SynCookies};
