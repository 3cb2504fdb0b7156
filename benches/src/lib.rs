//! What the side-by-side measurements need besides the proxies.

pub mod relay;
