//! The built-in demo upstream: `sluice demo-upstream`, hidden, so that `cargo xtask run` has something to answer behind the proxy.

use std::net::SocketAddr;

/// Serves until the process or its parent ends.
pub fn run(_address: SocketAddr) -> std::io::Result<()> {
    unimplemented!()
}
