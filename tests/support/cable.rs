//! Two network namespaces and a cable between them: clients at one end, an origin and Sluice with XDP at the
//! other. Every test may use the same addresses, since no other test sees them.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::client::{Client, Dial};
use crate::netns::Netns;
use crate::origin::{Origin, Response};
use crate::sluice::{Setup, Sluice};

/// Shorter than one second, after which a client sends a lost SYN again.
const AT_ONCE: Duration = Duration::from_millis(700);

/// Sluice's address, on the interface `edge`.
pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
/// The clients' addresses, on the interface `out`.
pub const CLIENTS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2)),
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 3)),
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 4)),
];

/// The outcome of a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The origin's response came.
    Served,
    /// The packet passed, but no socket listens there.
    Refused,
    /// Nothing answered.
    Dropped,
}

/// Both ends of the cable, with the origin.
#[derive(Debug)]
pub struct Cable {
    /// The namespace of Sluice and the origin.
    pub server: Arc<Netns>,
    /// The namespace of the clients.
    pub clients: Netns,
    /// Answers everything with `inside`.
    pub origin: Origin,
}

impl Cable {
    /// Makes the namespaces and joins them; needs root.
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

    /// The setup of [`Self::setup`] in another XDP mode.
    #[must_use]
    pub fn setup_in(&self, mode: &str, guard: &str) -> Setup {
        let guard = format!("interfaces = [\"edge\"]\nmode = \"{mode}\"\n{guard}");
        Setup::to(self.origin.address()).inside(&self.server, SERVER).with("guard", &guard)
    }

    /// Connects from one of the clients' addresses. A server that does not answer at once counts as one that
    /// never answers.
    pub fn dial(&self, source: IpAddr, address: SocketAddr) -> io::Result<Client> {
        let dial = Dial { source: Some(source), receive_buffer: None };
        Client::over(self.clients.run(|| dial.connect(address, AT_ONCE))?)
    }

    /// Connects from one of the clients' addresses and sends a request if the connect succeeds.
    #[must_use]
    pub fn reach(&self, source: IpAddr, address: SocketAddr) -> Reached {
        match self.dial(source, address) {
            Ok(mut client) => match client.try_get("/") {
                Ok(response) => {
                    assert_eq!(response.text(), "inside");
                    Reached::Served
                }
                // The source was denied or banned between the handshake and the request.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    Reached::Dropped
                }
                Err(error) => panic!("{error}"),
            },
            Err(error) if error.kind() == ErrorKind::TimedOut => Reached::Dropped,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Reached::Refused,
            Err(error) => panic!("{error}"),
        }
    }

    /// Whether Sluice serves a client with this address. If not, its packets were dropped.
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

/// How many packets of a running Sluice got this verdict.
#[must_use]
pub fn verdict(sluice: &Sluice, label: &str) -> u64 {
    sluice.verdicts().get(label).copied().unwrap_or(0)
}
