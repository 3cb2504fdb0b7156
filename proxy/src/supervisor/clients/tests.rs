//! Tests of `supervisor::clients`.

use std::io::{BufRead, BufReader};

use super::*;

struct Bench {
    _directory: tempfile::TempDir,
    path: std::path::PathBuf,
    listener: UnixListener,
    clients: Clients,
}

const NOW: Time = Time::from_nanos(1);

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("bind");
        listener.set_nonblocking(true).expect("nonblocking");
        Self { _directory: directory, path, listener, clients: Clients::default() }
    }

    fn connect(&mut self) -> (UnixStream, ClientId) {
        let stream = UnixStream::connect(&self.path).expect("connect");
        self.clients.accept(&self.listener, NOW);
        (stream, ClientId(self.clients.next_id))
    }
}

fn line(stream: UnixStream) -> String {
    let mut text = String::new();
    BufReader::new(stream).read_line(&mut text).expect("read");
    text
}

#[test]
fn a_request_in_pieces_gets_its_answer_and_the_connection_ends() {
    let mut bench = Bench::new();
    let (mut stream, id) = bench.connect();
    stream.write_all(b"\"sta").expect("write");
    assert_eq!(bench.clients.ready(id, NOW), None);
    stream.write_all(b"tus\"\n").expect("write");
    assert_eq!(bench.clients.ready(id, NOW), Some(Request::Status));
    bench.clients.answer(id, &Response::Done("well".into()), NOW);
    assert_eq!(bench.clients.ready(id, NOW), None);
    assert_eq!(bench.clients.clients.len(), 0);
    assert_eq!(line(stream), "{\"done\":\"well\"}\n");
}

#[test]
fn a_client_hears_that_its_request_is_in_work_before_the_outcome() {
    let mut bench = Bench::new();
    let (mut stream, id) = bench.connect();
    stream.write_all(b"\"drain\"\n").expect("write");
    assert_eq!(bench.clients.ready(id, NOW), Some(Request::Drain));
    bench.clients.begun(id, Duration::from_secs(30));
    assert_eq!(bench.clients.next_deadline(), None, "it waits");
    bench.clients.answer(id, &Response::Done("well".into()), NOW);
    let lines: Vec<_> = BufReader::new(stream).lines().take(2).map(|line| line.expect("read")).collect();
    assert_eq!(lines, ["{\"begun\":{\"within_ms\":30000}}", "{\"done\":\"well\"}"]);
}

#[test]
fn an_answer_larger_than_the_socket_arrives_whole() {
    let mut bench = Bench::new();
    let (mut stream, id) = bench.connect();
    stream.write_all(b"\"stop\"\n").expect("write");
    assert_eq!(bench.clients.ready(id, NOW), Some(Request::Stop));
    let text = "x".repeat(3 << 20);
    bench.clients.answer(id, &Response::Done(text.clone()), NOW);
    assert_eq!(bench.clients.clients.len(), 1, "it waits for the reader");
    let reader = std::thread::spawn(move || line(stream));
    while !bench.clients.clients.is_empty() {
        let mut fds: Vec<_> =
            bench.clients.interests().map(|(_, fd, events)| nix::poll::PollFd::new(fd, events)).collect();
        assert_eq!(nix::poll::poll(&mut fds, 5_000_u16).expect("poll"), 1);
        bench.clients.ready(id, NOW);
    }
    assert_eq!(reader.join().expect("reader").len(), text.len() + "{\"done\":\"\"}\n".len());
}

#[test]
fn nonsense_too_long_lines_and_silence_end_the_client() {
    let mut bench = Bench::new();
    for nonsense in [b"\"dance\"\n".to_vec(), b"\xff\x00\n".to_vec(), vec![b'['; REQUEST_BYTES_MAX]] {
        let (mut stream, id) = bench.connect();
        stream.write_all(&nonsense).expect("write");
        assert_eq!(bench.clients.ready(id, NOW), None);
        assert_eq!(bench.clients.ready(id, NOW), None);
        assert!(line(stream).starts_with("{\"failed\":"));
    }
    let (stream, id) = bench.connect();
    drop(stream);
    assert_eq!(bench.clients.ready(id, NOW), None);
    assert!(bench.clients.clients.is_empty());
    let (_silent, _) = bench.connect();
    assert_eq!(bench.clients.next_deadline(), Some(NOW + PATIENCE));
    bench.clients.expire(NOW + PATIENCE);
    assert!(bench.clients.clients.is_empty());
}

#[test]
fn the_number_of_clients_is_bounded_and_the_others_wait() {
    let mut bench = Bench::new();
    let streams: Vec<_> =
        (0..CLIENTS_MAX + 3).map(|_| UnixStream::connect(&bench.path).expect("connect")).collect();
    bench.clients.accept(&bench.listener, NOW);
    assert_eq!(bench.clients.clients.len(), CLIENTS_MAX);
    drop(streams);
    for id in 1..=CLIENTS_MAX as u64 {
        bench.clients.ready(ClientId(id), NOW);
    }
    bench.clients.accept(&bench.listener, NOW);
    assert_eq!(bench.clients.clients.len(), 3, "the rest's turn");
}
