//! Ports that no other test uses. They lie below the kernel's ephemeral range. An abstract Unix socket holds
//! the lease, so the lease ends with its process, even if the process is killed.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_000;
const COUNT: u32 = 20_000;

/// A leased port; keep it as long as something may listen there.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lease: UnixListener,
}

impl Port {
    /// Leases a port on which nothing listens.
    #[must_use]
    pub fn lease() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..COUNT {
            let offset =
                std::process::id().wrapping_mul(37).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))
                    % COUNT;
            let number = u16::try_from(FIRST + offset).expect("below 65536");
            let name =
                UnixAddr::from_abstract_name(format!("sluice-test-port-{number}")).expect("a short name");
            let Ok(lease) = UnixListener::bind_addr(&name) else { continue };
            if TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok() {
                return Self { number, _lease: lease };
            }
        }
        panic!("no free port");
    }

    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn loopback(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}
