//! A client that writes exactly the bytes it is told to and reads responses one at a time.

use std::io::{self, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use crate::message::{self, Fields, Framing};

/// TCP's maximum segment size on an Ethernet that has a tunnel in it, in bytes.
const SEGMENT: u32 = 1400;
/// How long any read or write may take, unless a test says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A response, read whole.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its status code.
    pub status: u16,
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub version: String,
    /// Its fields.
    pub fields: Fields,
    /// Its body, decoded.
    pub body: Vec<u8>,
    /// How the body ended.
    pub framing: Framing,
    /// Its trailers.
    pub trailers: Fields,
}

impl Response {
    /// The first field of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        message::field(&self.fields, name)
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics if it is not JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A connection to Sluice.
#[derive(Debug)]
pub struct Client<S: Read = TcpStream> {
    stream: BufReader<S>,
}

impl Client {
    /// Connects; panics if that fails.
    #[must_use]
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    /// Connects within [`PATIENCE`].
    pub fn try_connect(address: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect_timeout(&address, PATIENCE)?)
    }

    /// A client on a stream that is already connected.
    pub fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self::new(stream))
    }

    /// The socket, for tests that change it directly.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Whether the peer has neither sent anything nor closed within `time`.
    pub fn stays_silent(&mut self, time: Duration) -> bool {
        self.socket().set_read_timeout(Some(time)).expect("timeout");
        let silent = self.stream.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.socket().set_read_timeout(Some(PATIENCE)).expect("timeout");
        silent
    }

    /// Sends FIN: the client will send nothing more.
    pub fn finish(&self) {
        self.socket().shutdown(Shutdown::Write).expect("shutdown");
    }

    /// Closes with a reset.
    pub fn reset(self) {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(self.socket(), sockopt::Linger, &linger).expect("SO_LINGER");
    }
}

impl<S: Read + Write> Client<S> {
    /// A client on a stream that is ready, such as one over TLS.
    pub fn new(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// The stream, for tests that use it directly.
    pub fn stream(&mut self) -> &mut S {
        self.stream.get_mut()
    }

    /// Writes bytes; panics if that fails.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("send");
    }

    /// Writes bytes.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes.as_ref())
    }

    /// Sends a GET with a Host and reads the response; panics if either fails.
    pub fn get(&mut self, target: &str) -> Response {
        self.try_get(target).unwrap_or_else(|error| panic!("GET {target}: {error}"))
    }

    /// Sends a GET with a Host and reads the response.
    pub fn try_get(&mut self, target: &str) -> io::Result<Response> {
        self.try_send(format!("GET {target} HTTP/1.1\r\nHost: test.example\r\n\r\n"))?;
        self.try_response("GET")
    }

    /// Reads the final response to a request of this method. Interim responses (1xx) are skipped. Panics if
    /// none comes.
    pub fn response(&mut self, method: &str) -> Response {
        self.try_response(method).unwrap_or_else(|error| panic!("response to {method}: {error}"))
    }

    /// Reads the final response to a request of this method. Interim responses are skipped.
    pub fn try_response(&mut self, method: &str) -> io::Result<Response> {
        loop {
            let response = self.try_any_response(method)?;
            if !(100..200).contains(&response.status) || response.status == 101 {
                return Ok(response);
            }
        }
    }

    /// Reads the next response, whether interim or final.
    pub fn try_any_response(&mut self, method: &str) -> io::Result<Response> {
        let head = message::read_head(&mut self.stream)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "closed instead of a response"))?;
        let mut parts = head.start.splitn(3, ' ');
        let version = parts.next().unwrap_or_default().to_owned();
        let status = parts.next().and_then(|status| status.parse().ok());
        let status: u16 =
            status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, head.start.clone()))?;
        let framing = match status {
            100..200 | 204 | 304 => Framing::Empty,
            _ if method == "HEAD" => Framing::Empty,
            _ => message::framing(&head.fields, Framing::Close)?,
        };
        let mut body = Vec::new();
        let trailers = message::read_body(&mut self.stream, framing, &mut body)?;
        Ok(Response { status, version, fields: head.fields, body, framing, trailers })
    }

    /// Reads until the peer closes and returns the bytes; a reset counts as closing. Panics if the connection
    /// stays open for [`PATIENCE`].
    pub fn until_closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("still open: {error}"),
            _ => rest,
        }
    }
}

/// Socket options that must be set before the socket connects.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dial {
    /// The address to connect from.
    pub source: Option<IpAddr>,
    /// `SO_RCVBUF`, in bytes. It also limits segments to a network's size. With the loopback's 64 KiB
    /// segments the sender's kernel would buffer more than a megabyte for each connection. A thousand of them
    /// exhaust the memory of all TCP sockets of the machine, which then lose segments.
    pub receive_buffer: Option<usize>,
}

impl Dial {
    /// Connects within `limit`.
    pub fn connect(self, address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        let stream = self.start(address)?;
        let mut poll =
            [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&stream), nix::poll::PollFlags::POLLOUT)];
        let milliseconds = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        if nix::poll::poll(&mut poll, milliseconds)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// Starts to connect and returns the non-blocking socket at once.
    pub fn start(self, address: SocketAddr) -> io::Result<TcpStream> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket =
            socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        if let Some(bytes) = self.receive_buffer {
            setsockopt(&socket, sockopt::RcvBuf, &bytes)?;
            setsockopt(&socket, sockopt::TcpMaxSeg, &SEGMENT)?;
        }
        if let Some(source) = self.source {
            bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
        }
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
            Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(TcpStream::from(socket)),
            Err(error) => Err(error.into()),
        }
    }
}
