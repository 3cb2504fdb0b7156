//! The little HTTP that the harness itself needs. It asks whether a proxy answers, how many requests the
//! origin has served, and for /metrics. It also has a sink for request bodies.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};

const WAIT: Duration = Duration::from_secs(5);

/// A connection for requests one after the other.
pub(super) struct Client {
    address: SocketAddr,
    stream: TcpStream,
}

impl Client {
    pub(super) fn connect(address: SocketAddr) -> Result<Self, String> {
        let told = |error: std::io::Error| format!("{address}: {error}");
        let stream = TcpStream::connect_timeout(&address, WAIT).map_err(told)?;
        stream.set_read_timeout(Some(WAIT)).map_err(told)?;
        stream.set_nodelay(true).map_err(told)?;
        Ok(Self { address, stream })
    }

    /// The body of a 200 response that has a Content-Length.
    pub(super) fn get(&mut self, path: &str) -> Result<String, String> {
        self.exchange(path).map_err(|error| format!("http://{}{path}: {error}", self.address))
    }

    fn exchange(&mut self, path: &str) -> Result<String, String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address);
        self.stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
        let mut received = Vec::new();
        loop {
            if let Some((status, head, length)) = response_head(&received)
                && received.len() >= head + length
            {
                let body = String::from_utf8_lossy(&received[head..head + length]).into_owned();
                return if status == 200 { Ok(body) } else { Err(format!("status {status}: {body}")) };
            }
            let mut part = [0; 16 << 10];
            match self.stream.read(&mut part).map_err(|error| error.to_string())? {
                0 => return Err("closed within the response".into()),
                count => received.extend_from_slice(&part[..count]),
            }
        }
    }
}

/// Makes one request on a new connection.
pub(super) fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    Client::connect(address)?.get(path)
}

/// The status, the length of the head and the length of the body, once the head is complete.
fn response_head(bytes: &[u8]) -> Option<(u16, usize, usize)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, end, content_length(head).unwrap_or(0)))
}

fn content_length(head: &str) -> Option<usize> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })
}

/// The requests begun so far, from nginx's stub_status. The request for this page counts too.
pub(super) fn requests_in_stub_status(text: &str) -> Option<u64> {
    let mut lines = text.lines().skip_while(|line| !line.contains("requests"));
    lines.next()?;
    lines.next()?.split_whitespace().nth(2)?.parse().ok()
}

/// The sum of a counter over its labels in an OpenMetrics text.
pub(super) fn metric(text: &str, name: &str) -> Option<u64> {
    let values: Vec<u64> = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// Takes request bodies of known length and answers once they are complete. nginx's `return` would answer
/// when a body begins. Each connection has a thread, which lives until the proxy closes the connection.
pub(super) fn start_sink() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| format!("sink: {error}"))?;
    let address = listener.local_addr().map_err(|error| format!("sink: {error}"))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || swallow(stream));
        }
    });
    Ok(address)
}

/// Reads requests until the other side ends or sends something else. Then the connection closes, and the
/// measurement sees an error.
fn swallow(mut stream: TcpStream) {
    let mut received = Vec::new();
    let mut space = vec![0; 256 << 10];
    let _ = stream.set_nodelay(true);
    loop {
        let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else {
            match stream.read(&mut space) {
                Ok(count @ 1..) if received.len() < 1 << 20 => received.extend_from_slice(&space[..count]),
                _ => return,
            }
            continue;
        };
        let Ok(head) = std::str::from_utf8(&received[..end + 4]) else { return };
        if head.to_ascii_lowercase().contains("transfer-encoding") {
            return;
        }
        let length = content_length(head).unwrap_or(0);
        let there = (received.len() - end - 4).min(length);
        received.drain(..end + 4 + there);
        let mut left = length - there;
        while left > 0 {
            // MSG_TRUNC makes the kernel drop the bytes instead of copying them.
            let size = left.min(space.len());
            match recv(stream.as_raw_fd(), &mut space[..size], MsgFlags::MSG_TRUNC) {
                Ok(count @ 1..) => left -= count,
                _ => return,
            }
        }
        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n").is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_origin_and_sluice_say_is_read() {
        let status = "Active connections: 2 \nserver accepts handled requests\n 16 17 3107 \n\
            Reading: 0 Writing: 1 Waiting: 1 \n";
        assert_eq!(requests_in_stub_status(status), Some(3107));
        assert_eq!(requests_in_stub_status("hello"), None);
        let metrics =
            "# TYPE a counter\na_total{worker=\"0\"} 3\na_total{worker=\"1\"} 4\na_total_more 9\n# EOF\n";
        assert_eq!(metric(metrics, "a_total"), Some(7));
        assert_eq!(metric(metrics, "b_total"), None);
    }

    #[test]
    fn the_sink_answers_after_the_whole_body() {
        let sink = start_sink().unwrap();
        let mut stream = TcpStream::connect(sink).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        for _ in 0..2 {
            stream.write_all(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n").unwrap();
            stream.write_all(&[b'x'; 99_999]).unwrap();
            assert!(stream.read(&mut [0; 1]).is_err(), "a byte is still missing");
            stream.write_all(b"x").unwrap();
            stream.set_read_timeout(Some(WAIT)).unwrap();
            let mut answer = [0; 41];
            stream.read_exact(&mut answer).unwrap();
            assert!(answer.ends_with(b"\r\n\r\nok\n"), "{}", String::from_utf8_lossy(&answer));
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        }
        assert_eq!(get(sink, "/").unwrap(), "ok\n");
    }
}
