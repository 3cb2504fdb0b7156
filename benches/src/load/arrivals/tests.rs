//! Tests of `load::arrivals`.

use std::net::TcpListener;
use std::thread;

use super::*;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn settings(target: SocketAddr, rate: u32, connections: u32) -> Settings {
    Settings {
        target,
        path: "/".into(),
        rate,
        connections,
        duration: Duration::from_millis(1200),
        warm_up: Duration::from_millis(200),
    }
}

/// A server that sends `answer(n)` to the n-th request of a connection. It closes after `requests`
/// requests, or if the answer is `None`.
fn serve(requests: usize, answer: impl Fn(usize) -> Option<Vec<u8>> + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                for number in 0..requests {
                    if !matches!(stream.read(&mut buffer), Ok(1..)) {
                        return;
                    }
                    let Some(bytes) = answer(number) else { return };
                    stream.write_all(&bytes).unwrap();
                }
            });
        }
    });
    address
}

#[test]
fn all_are_answered_at_the_rate() {
    let report = run(&settings(serve(usize::MAX, |_| Some(ANSWER.to_vec())), 500, 4)).unwrap();
    assert_eq!((report.scheduled, report.completed, report.errors), (500, 500, 0));
    assert!((450.0..=550.0).contains(&report.rate), "{}", report.rate);
    assert_eq!(report.latencies.count(), 500);
}

#[test]
fn a_pause_of_the_server_is_seen_by_all_that_it_made_wait() {
    // One connection, 200 requests a second: the 100th answer comes 300 ms late, and about 60 requests
    // become due meanwhile.
    let address = serve(usize::MAX, |number| {
        if number == 100 {
            thread::sleep(Duration::from_millis(300));
        }
        Some(ANSWER.to_vec())
    });
    let report = run(&settings(address, 200, 1)).unwrap();
    assert_eq!((report.completed, report.errors), (200, 0));
    // The waits spread evenly over the pause: a tenth of all requests waited for 200 ms or longer.
    assert!(report.latencies.quantile(0.91) > 150_000_000, "{}", report.latencies.quantile(0.91));
    assert!(report.latencies.max() >= 295_000_000);
}

#[test]
fn a_server_too_slow_is_not_flattered() {
    let address = serve(usize::MAX, |_| {
        thread::sleep(Duration::from_millis(10));
        Some(ANSWER.to_vec())
    });
    let report = run(&settings(address, 1000, 1)).unwrap();
    assert!(report.rate < 110.0, "{}", report.rate);
    assert!(report.unfinished > 500, "{}", report.unfinished);
    assert_eq!(report.completed + report.errors, report.scheduled);
    assert!(report.latencies.quantile(0.5) > 500_000_000, "{}", report.latencies.quantile(0.5));
}

#[test]
fn closing_idle_connections_is_no_error_and_a_bad_status_is() {
    let closing = serve(10, |_| Some(ANSWER.to_vec()));
    let report = run(&settings(closing, 500, 4)).unwrap();
    assert_eq!((report.completed, report.errors), (500, 0));
    let polite = serve(usize::MAX, |_| {
        Some(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec())
    });
    let report = run(&settings(polite, 300, 4)).unwrap();
    assert_eq!((report.completed, report.errors), (300, 0));
    let failing =
        serve(usize::MAX, |_| Some(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n".to_vec()));
    let report = run(&settings(failing, 300, 4)).unwrap();
    assert_eq!((report.completed, report.errors), (0, 300));
    let silent = serve(usize::MAX, |_| None);
    let report = run(&settings(silent, 300, 4)).unwrap();
    assert_eq!((report.completed, report.errors), (0, 300));
}
