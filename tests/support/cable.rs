//! Two network namespaces and a cable between them: clients at one end, an origin and Sluice with XDP at the
//! other. The addresses may be the same in every test, since nobody else sees them.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::client::{Client, Dial};
use crate::netns::Netns;
use crate::origin::{Origin, Response};
use crate::sluice::{Setup, Sluice};

/// Shorter than the second after which a client sends a lost SYN again.
const AT_ONCE: Duration = Duration::from_millis(700);

/// Sluice's address, on the interface `edge`.
pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
/// The clients' addresses, on the interface `out`.
pub const CLIENTS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2)),
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 3)),
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 4)),
];

/// What comes of a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Answered with what the origin says.
    Served,
    /// The packet passed, and nobody listens.
    Refused,
    /// Nothing answered.
    Dropped,
}

/// See the module.
#[derive(Debug)]
pub struct Cable {
    /// Where Sluice and the origin are.
    pub server: Arc<Netns>,
    /// Where the clients are.
    pub clients: Netns,
    /// Answers everything with `inside`.
    pub origin: Origin,
}

impl Cable {
    /// Lays one; needs root.
    #[must_use]
    pub fn new() -> Self {
        let (server, clients) = (Arc::new(Netns::new()), Netns::new());
        let [first, others @ ..] = CLIENTS.map(|address| format!("{address}/24"));
        server.join(("edge", &format!("{SERVER}/24")), &clients, ("out", &first));
        for address in others {
            clients.ip(&["address", "add", &address, "dev", "out"]);
        }
        let origin = server.run(|| Origin::http(|_| Response::ok("inside")));
        Self { server, clients, origin }
    }

    /// A Sluice that listens on the cable, with XDP in driver mode and these lines in `[guard]`.
    #[must_use]
    pub fn setup(&self, guard: &str) -> Setup {
        self.setup_in("driver", guard)
    }

    /// The same in another mode.
    #[must_use]
    pub fn setup_in(&self, mode: &str, guard: &str) -> Setup {
        let guard = format!("interfaces = [\"edge\"]\nmode = \"{mode}\"\n{guard}");
        Setup::to(self.origin.address()).inside(&self.server, SERVER).with("guard", &guard)
    }

    /// Connects from one of the clients' addresses; the server answers at once or, as far as a test waits,
    /// never.
    pub fn dial(&self, source: IpAddr, address: SocketAddr) -> io::Result<Client> {
        let dial = Dial { source: Some(source), receive_buffer: None };
        Client::over(self.clients.run(|| dial.connect(address, AT_ONCE))?)
    }

    /// Connects from there, and asks if it can.
    #[must_use]
    pub fn reach(&self, source: IpAddr, address: SocketAddr) -> Reached {
        match self.dial(source, address) {
            Ok(mut client) => {
                assert_eq!(client.get("/").text(), "inside");
                Reached::Served
            }
            Err(error) if error.kind() == ErrorKind::TimedOut => Reached::Dropped,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Reached::Refused,
            Err(error) => panic!("{error}"),
        }
    }

    /// Whether a client there is served; if not, its packets were dropped.
    #[must_use]
    pub fn is_served(&self, source: IpAddr, sluice: &Sluice) -> bool {
        let reached = self.reach(source, sluice.address());
        assert_ne!(reached, Reached::Refused, "a dropped packet answers nothing");
        reached == Reached::Served
    }
}

impl Default for Cable {
    fn default() -> Self {
        Self::new()
    }
}

/// Packets of a running Sluice with this verdict.
#[must_use]
pub fn verdict(sluice: &Sluice, label: &str) -> u64 {
    sluice.verdicts().get(label).copied().unwrap_or(0)
}
