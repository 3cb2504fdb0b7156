//! Tests of `demo`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::*;

struct Client {
    stream: BufReader<TcpStream>,
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Client {
    /// A server on a thread that ends with the test process, and a connection to it.
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        listener.set_nonblocking(true).expect("settable");
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                serve(tokio::net::TcpListener::from_std(listener).expect("registers")).await
            })
        });
        let stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("settable");
        Self { stream: BufReader::new(stream) }
    }

    fn send(&mut self, request: &str) {
        self.stream.get_mut().write_all(request.as_bytes()).expect("sent");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a line");
        line
    }

    fn exactly(&mut self, length: usize) -> Vec<u8> {
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("a body");
        body
    }

    /// One response on a connection that stays open.
    fn answer(&mut self, has_body: bool) -> Answer {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head += &self.line();
        }
        let head = head.to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map(|length| length.parse().expect("a number"));
        let mut body = Vec::new();
        if has_body && let Some(length) = length {
            body = self.exactly(length);
        } else if has_body && head.contains("transfer-encoding: chunked") {
            loop {
                let length = usize::from_str_radix(self.line().trim_end(), 16).expect("a chunk size");
                body.extend(self.exactly(length));
                assert_eq!(self.line(), "\r\n");
                if length == 0 {
                    break;
                }
            }
        }
        Answer { status, head, body }
    }

    fn get(&mut self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: demo\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"));
        self.answer(true)
    }
}

#[test]
fn one_connection_serves_every_path() {
    let mut client = Client::start();
    let hello = client.get("/a/path?x=1");
    let text = String::from_utf8(hello.body).expect("text");
    assert_eq!(hello.status, 200);
    assert!(
        text.contains("GET /a/path?x=1 HTTP/1.1\n") && text.contains("x-forwarded-for: 192.0.2.1\n"),
        "{text}"
    );
    for (path, status) in [
        ("/status/200", 200),
        ("/status/404", 404),
        ("/status/503", 503),
        ("/status/99", 400),
        ("/status/101", 400),
    ] {
        assert_eq!(client.get(path).status, status, "{path}");
    }
    client.send("GET /status/204 HTTP/1.1\r\nHost: demo\r\n\r\n");
    assert_eq!(client.answer(false).status, 204);
    assert_eq!(client.get("/slow?ms=soon").status, 400);
    let start = Instant::now();
    assert_eq!(client.get("/slow?ms=60").status, 200);
    assert!(start.elapsed() >= Duration::from_millis(60));
    assert_eq!(client.get("/").status, 200, "and is still open");
}

#[test]
fn bytes_have_a_length_and_a_pattern() {
    let mut client = Client::start();
    for count in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 17] {
        let answer = client.get(&format!("/bytes/{count}"));
        assert!(answer.head.contains(&format!("content-length: {count}\r\n")), "{}", answer.head);
        assert!(answer.body.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at % PERIOD));
        assert_eq!(answer.body.len(), count);
    }
    client.send("HEAD /bytes/1073741824 HTTP/1.1\r\nHost: demo\r\n\r\n");
    assert!(client.answer(false).head.contains("content-length: 1073741824"));
    assert_eq!(client.get("/bytes/many").status, 400);
}

#[test]
fn echo_streams_while_it_receives() {
    let mut client = Client::start();
    client.send("POST /echo HTTP/1.1\r\nHost: demo\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
    while client.line() != "\r\n" {}
    assert_eq!(client.line(), "5\r\n", "the first chunk comes back before the second is sent");
    assert_eq!(client.exactly(7), b"first\r\n");
    client.send("6\r\nsecond\r\n0\r\n\r\n");
    assert_eq!(client.line(), "6\r\n");
    assert_eq!(client.exactly(8), b"second\r\n");
    assert_eq!(client.exactly(5), b"0\r\n\r\n");
    client.send("POST /echo HTTP/1.1\r\nHost: demo\r\nContent-Type: x/y\r\nContent-Length: 3\r\n\r\nabc");
    let answer = client.answer(true);
    assert_eq!(answer.body, b"abc");
    assert!(answer.head.contains("content-type: x/y"));
}

/// This process starts one that starts the demo, prints its id and ends: the demo must end with it.
#[test]
fn it_ends_with_its_parent() {
    const MARK: &str = "SLUICE_TEST_DEMO";
    let again = |role: &str| {
        let mut command = std::process::Command::new(std::env::current_exe().expect("our path"));
        command.args(["--exact", "demo::tests::it_ends_with_its_parent", "--nocapture"]).env(MARK, role);
        command
    };
    match std::env::var(MARK).as_deref() {
        Ok("demo") => {
            let address = "127.0.0.1:0".parse().expect("an address");
            panic!("{:?}", run(address));
        }
        Ok("parent") => {
            let mut demo = again("demo").stdout(std::process::Stdio::null()).spawn().expect("starts");
            // Given time to ask for the signal, it still runs: it did not end by itself.
            std::thread::sleep(Duration::from_millis(300));
            assert!(demo.try_wait().expect("a child").is_none());
            println!("demo={}", demo.id());
            return;
        }
        _ => {}
    }
    let output = again("parent").stderr(std::process::Stdio::null()).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let id =
        text.split_once("demo=").and_then(|(_, id)| id.lines().next()).unwrap_or_else(|| panic!("{text}"));
    let runs = || {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
    };
    let give_up = Instant::now() + Duration::from_secs(5);
    while runs() {
        assert!(Instant::now() < give_up, "process {id} outlived its parent");
        std::thread::sleep(Duration::from_millis(5));
    }
}
