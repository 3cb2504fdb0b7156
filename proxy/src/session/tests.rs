//! Whole sessions over the simulated ring, by the thousand: random clients and origins, random faults. Every
//! request is answered once and in order or its connection ends, bytes are conserved, and everything is freed
//! at the end.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, RefusalReason};
use crate::exchange::testing::{Running, Session, begin};
use crate::exchange::{BodyPart, Outcome, Signal};
use crate::http::h1::{BodyDecoder, Parsed, RequestDecoder, ResponseDecoder, Step};
use crate::http::limits::Limits;
use crate::http::message::{BodyLength, Fields, Method, RequestHead, ResponseHead, Version};
use crate::http::path::Rules;
use crate::io::Chunk;
use crate::io::simulated::{Faults, Peer, Script, take_front};
use crate::session::context::Worker;
use crate::worker::testing::{self, Bench, origin_address};

/// xorshift64*
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as usize % bound
    }
}

/// Bytes that tell their stream and place; eight at a time, for the sake of debug builds.
fn pattern(id: usize, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        let word = (id as u64) << 32 | bytes.len() as u64;
        bytes.extend_from_slice(&word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}

/// How an origin answers; part of the path, so that the origin needs to know nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Length,
    Chunked,
    UntilClose,
    LengthThenClose,
    /// Ends within the body.
    Cut,
    /// Closes without an answer.
    Nothing,
    /// No HTTP at all.
    Garbage,
    /// An interim response first.
    Interim,
    Empty,
}

const MODES: [Mode; 9] = [
    Mode::Length,
    Mode::Chunked,
    Mode::UntilClose,
    Mode::LengthThenClose,
    Mode::Cut,
    Mode::Nothing,
    Mode::Garbage,
    Mode::Interim,
    Mode::Empty,
];

/// Decodes messages of either direction as they come in.
struct Incoming<H> {
    bytes: Vec<u8>,
    body: Option<(H, BodyDecoder, Vec<u8>)>,
}

impl<H> Incoming<H> {
    const fn new() -> Self {
        Self { bytes: Vec::new(), body: None }
    }

    fn next(
        &mut self,
        mut head: impl FnMut(&[u8]) -> Option<(H, BodyLength, usize)>,
    ) -> Option<(H, Vec<u8>)> {
        loop {
            if self.body.is_none() {
                let (head, length, consumed) = head(&self.bytes)?;
                self.bytes.drain(..consumed);
                self.body = Some((head, BodyDecoder::new(length), Vec::new()));
            }
            let (_, decoder, body) = self.body.as_mut()?;
            match decoder.decode(&self.bytes).expect("well-formed body") {
                Step::Data { skip, len } => {
                    body.extend_from_slice(&self.bytes[skip..skip + len]);
                    self.bytes.drain(..skip + len);
                }
                Step::NeedMore { .. } => {
                    self.bytes.clear();
                    return None;
                }
                Step::End { consumed, .. } => {
                    self.bytes.drain(..consumed);
                    return self.body.take().map(|(head, _, body)| (head, body));
                }
            }
        }
    }
}

/// An origin's side of one connection. Answers with the sum of the request body, then a pattern.
fn origin_script(mut random: Random) -> Script {
    let mut incoming = Incoming::new();
    let mut outgoing: VecDeque<u8> = VecDeque::new();
    let mut closing = false;
    Box::new(move |peer: &Peer| {
        incoming.bytes.extend(peer.read());
        while !closing {
            let parse = |bytes: &[u8]| match RequestDecoder::new()
                .parse(bytes, &LIMITS)
                .expect("we send good requests")
            {
                Parsed::Head { head, consumed, .. } => {
                    let body = head.body;
                    Some((head, body, consumed))
                }
                Parsed::NeedMore => None,
            };
            let Some((head, body)) = incoming.next(parse) else { break };
            let (response, close) = answer(&head, &body, &mut random);
            outgoing.extend(response);
            closing = close;
        }
        let n = outgoing.len().min(1 + random.below(6000));
        let bytes = take_front(&mut outgoing, n);
        peer.write(&bytes);
        if closing && outgoing.is_empty() {
            peer.close();
        }
    })
}

const LIMITS: Limits = Limits { header_bytes: 16 << 10, fields: 64, uri_bytes: 4 << 10, paths: Rules::KEEP };

fn answer(head: &RequestHead, body: &[u8], random: &mut Random) -> (Vec<u8>, bool) {
    let mut parts =
        head.path_and_query.split('/').skip(1).map(|part| part.parse::<usize>().expect("our path"));
    let (id, mode, length) =
        (parts.next().expect("id"), MODES[parts.next().expect("mode")], parts.next().expect("length"));
    let mut content = sum(body).to_be_bytes().to_vec();
    content.extend(pattern(id, length));
    let mut out = Vec::new();
    match mode {
        Mode::Nothing => return (out, true),
        Mode::Garbage => return (b"220 mail.example ESMTP\r\n\r\n".to_vec(), true),
        Mode::Empty => return (b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(), false),
        Mode::Interim => out.extend(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"),
        _ => {}
    }
    let framing = match mode {
        Mode::Chunked => "Transfer-Encoding: chunked".to_owned(),
        Mode::UntilClose => "Connection: close".to_owned(),
        // Said, since a request that meets an unannounced close may not be repeated.
        Mode::LengthThenClose | Mode::Cut => {
            format!("Connection: close\r\nContent-Length: {}", content.len())
        }
        _ => format!("Content-Length: {}", content.len()),
    };
    out.extend(format!("HTTP/1.1 200 OK\r\nX-Id: {id}\r\n{framing}\r\n\r\n").bytes());
    if head.method == Method::Head {
        // A connection that would have been closed still is.
    } else if mode == Mode::Chunked {
        for chunk in content.chunks(1 + random.below(3000)) {
            out.extend(format!("{:x}\r\n", chunk.len()).bytes());
            out.extend(chunk);
            out.extend(b"\r\n");
        }
        out.extend(b"0\r\nX-Trailer: yes\r\n\r\n");
    } else if mode == Mode::Cut {
        out.extend(&content[..content.len() / 2]);
    } else {
        out.extend(&content);
    }
    (out, matches!(mode, Mode::UntilClose | Mode::LengthThenClose | Mode::Cut))
}

#[derive(Clone, Debug)]
struct Planned {
    id: usize,
    method: Method,
    mode: Mode,
    length: usize,
    body: usize,
    chunked: bool,
}

impl Planned {
    fn random(id: usize, random: &mut Random) -> Self {
        let method =
            [Method::Get, Method::Get, Method::Post, Method::Put, Method::Head][random.below(5)].clone();
        let sizes = [0, 1, 100, 3000, 20_000, 100_000];
        let has_body = matches!(method, Method::Post | Method::Put);
        let mode =
            if random.below(3) == 0 { MODES[random.below(MODES.len())] } else { MODES[random.below(2)] };
        Self {
            id,
            mode,
            length: sizes[random.below(sizes.len())],
            body: if has_body { sizes[random.below(sizes.len())] } else { 0 },
            chunked: has_body && random.below(2) == 0,
            method,
        }
    }

    fn bytes(&self, random: &mut Random) -> Vec<u8> {
        let mode = MODES.iter().position(|&mode| mode == self.mode).expect("one of them");
        let mut out = format!(
            "{} /{}/{mode}/{} HTTP/1.1\r\nHost: example.com\r\n",
            self.method.as_str(),
            self.id,
            self.length
        )
        .into_bytes();
        let body = pattern(self.id + 1000, self.body);
        if self.chunked {
            out.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in body.chunks(1 + random.below(5000)) {
                out.extend(format!("{:x};a=b\r\n", chunk.len()).bytes());
                out.extend(chunk);
                out.extend(b"\r\n");
            }
            out.extend(b"0\r\n\r\n");
        } else {
            if matches!(self.method, Method::Post | Method::Put) {
                out.extend(format!("Content-Length: {}\r\n", self.body).bytes());
            }
            out.extend(b"\r\n");
            out.extend(body);
        }
        out
    }

    /// What a whole answer must be. Without faults an origin that breaks is the only excuse.
    fn check(&self, head: &ResponseHead, body: &[u8], faulty: bool) {
        let expected: &[u16] = match self.mode {
            Mode::Nothing | Mode::Garbage => &[502],
            Mode::Empty => &[204],
            _ => &[200],
        };
        if faulty && matches!(head.status, 502..=504) {
            return;
        }
        assert!(expected.contains(&head.status), "{} to {self:?}", head.status);
        if head.status != 200 || self.method == Method::Head {
            return;
        }
        assert_eq!(head.fields.first(b"x-id"), Some(self.id.to_string().as_bytes()), "answers are in order");
        assert_eq!(
            body[..8],
            sum(&pattern(self.id + 1000, self.body)).to_be_bytes(),
            "the request body of {self:?} arrived whole"
        );
        assert!(body[8..] == pattern(self.id, self.length), "the response body of {self:?} arrived whole");
    }
}

/// What became of a client.
#[derive(Debug, Default)]
struct Report {
    answered: usize,
    /// Its connection ended before every request was answered.
    cut: bool,
    done: bool,
}

struct Plan {
    requests: Vec<Planned>,
    pipelined: bool,
    /// Goes away after this many answers, within a request if more follow.
    aborts_after: Option<usize>,
    faulty: bool,
}

fn client_script(peer: &Peer, plan: Plan, mut random: Random) -> Rc<RefCell<Report>> {
    let report = Rc::new(RefCell::new(Report::default()));
    let shared = Rc::clone(&report);
    let mut incoming: Incoming<ResponseHead> = Incoming::new();
    let mut outgoing: VecDeque<u8> = VecDeque::new();
    let mut sent = 0;
    peer.script(move |peer| {
        let mut report = shared.borrow_mut();
        if report.done {
            return;
        }
        incoming.bytes.extend(peer.read());
        while let Some(request) = plan.requests.get(report.answered) {
            let parse = |bytes: &[u8]| match ResponseDecoder::new()
                .parse(bytes, &request.method, &LIMITS)
                .expect("good responses")
            {
                Parsed::Head { head, consumed, .. } => {
                    let body = head.body;
                    Some((head, body, consumed))
                }
                Parsed::NeedMore => None,
            };
            let Some((head, body)) = incoming.next(parse) else { break };
            if head.status < 200 {
                assert_eq!(head.status, 103);
                continue;
            }
            request.check(&head, &body, plan.faulty);
            report.answered += 1;
        }
        // Last, since the world may stand still until the next timer when nobody wrote anything.
        if sent < plan.requests.len() && outgoing.is_empty() && (plan.pipelined || sent == report.answered) {
            outgoing.extend(plan.requests[sent].bytes(&mut random));
            sent += 1;
        }
        let n = outgoing.len().min(1 + random.below(8000));
        let bytes = take_front(&mut outgoing, n);
        peer.write(&bytes);
        let finished = report.answered == plan.requests.len();
        if finished {
            assert!(incoming.bytes.is_empty(), "an answer that nobody asked for");
        }
        if plan.aborts_after == Some(report.answered) {
            report.done = true;
            if random.below(2) == 0 { peer.reset() } else { peer.close() }
        } else if finished || peer.is_ended() || peer.is_reset() {
            report.cut = !finished;
            report.done = true;
            peer.close();
        }
    });
    report
}

fn simulate(seed: u64, faults: Faults) -> Vec<(Vec<Planned>, Rc<RefCell<Report>>)> {
    let mut random = Random::new(seed);
    let mut config = testing::config(&[origin_address(1), origin_address(2)]);
    let mut listener = testing::listener();
    let minute = Duration::from_secs(60);
    listener.timeouts = crate::listen::Timeouts {
        request_header: minute,
        request_body: minute,
        keep_alive: minute,
        send: minute,
        tunnel_idle: minute,
        min_rate: None,
    };
    config.listeners = vec![Arc::new(listener)];
    let buffer_request = [0, 5_000, 1 << 20][random.below(3)];
    let route = crate::route::model::Route {
        timeout: minute,
        body_timeout: minute,
        buffer_request,
        ..(*config.routes.routes()[0]).clone()
    };
    config.routes = crate::route::RouteTable::new(vec![Arc::new(route)]);
    let mut bench = Bench::new(seed, faults, config);
    for index in 1..=2 {
        let mut origin_random = Random::new(seed ^ u64::from(index) << 32);
        bench.sim.serve(origin_address(index), move || {
            origin_random.below(2);
            origin_script(origin_random.clone())
        });
    }
    let faulty = faults.reset > 0;
    let mut reports = Vec::new();
    for client in 0..1 + random.below(4) {
        let requests: Vec<_> =
            (0..1 + random.below(5)).map(|n| Planned::random(client * 10 + n, &mut random)).collect();
        let aborts_after = (random.below(5) == 0).then(|| random.below(requests.len()));
        let plan = Plan { requests: requests.clone(), pipelined: random.below(2) == 0, aborts_after, faulty };
        let peer = bench.sim.connect(bench.listener);
        reports.push((requests, client_script(&peer, plan, Random::new(seed + client as u64))));
    }
    bench.run_out();
    bench.check_freed(&format!("seed {seed}"));
    if std::env::var_os("SLUICE_SHOW").is_some() {
        let shown = |reason: &CloseReason| (reason.label(), bench.value(Counter::Closed(*reason)));
        eprintln!(
            "seed {seed}: {:?}",
            CloseReason::ALL.iter().map(shown).filter(|(_, count)| *count > 0).collect::<Vec<_>>()
        );
        eprintln!("{} accepted, {} shed", bench.value(Plain::Accepted), bench.shed());
        for (requests, report) in &reports {
            eprintln!("{requests:#?} {:?}", report.borrow());
        }
    }
    reports
}

/// `SLUICE_SEEDS` overrides how many, `SLUICE_SEED` chooses one, `SLUICE_SHOW` tells what became of it.
fn seeds(default: u64) -> std::ops::Range<u64> {
    if let Some(seed) = std::env::var("SLUICE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return seed..seed + 1;
    }
    0..std::env::var("SLUICE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(default)
}

/// An answer after which the client must not expect another: the origin broke it off in sight of the client.
fn breaks(request: &Planned) -> bool {
    request.mode == Mode::Cut && request.method != Method::Head
}

#[test]
fn sessions_in_a_rough_world_lose_nothing() {
    let mut answered = 0;
    let seeds = seeds(700);
    let expected = (seeds.end - seeds.start) as usize / 2;
    for seed in seeds {
        let faults = if seed % 2 == 0 { Faults::mild() } else { Faults::rough() };
        for (requests, report) in simulate(seed, faults) {
            let report = report.borrow();
            answered += report.answered;
            if report.cut {
                assert!(
                    breaks(&requests[report.answered]),
                    "seed {seed}: cut at {:?}",
                    requests[report.answered]
                );
            }
        }
    }
    assert!(answered >= expected, "{answered} answers, fewer than {expected}");
}

#[test]
fn sessions_in_a_hostile_world_leak_nothing() {
    for seed in seeds(700) {
        simulate(seed, Faults::hostile());
    }
}

// Exchanges without a downstream protocol.

/// Starts an exchange as a session that multiplexes would: with its own source, sink and cancel.
fn start(worker: &Rc<Worker>, method: Method, path: &str, body: BodyLength) -> Running {
    let head = RequestHead {
        method,
        version: Version::Http2,
        authority: "example.com".into(),
        path_and_query: path.into(),
        fields: Fields::new(),
        body,
    };
    let upstreams = Rc::new(worker.snapshot().upstreams.clone());
    begin(worker, upstreams, &Session::unlimited(), head, &Signal::default())
}

#[test]
fn two_exchanges_share_a_session_and_one_is_reset_without_harm_to_the_other() {
    for seed in 0..200 {
        let mut bench = Bench::new(seed, Faults::mild(), testing::config(&[origin_address(1)]));
        let mut random = Random::new(seed);
        bench.sim.serve(origin_address(1), move || {
            random.below(2);
            origin_script(random.clone())
        });
        let worker = Rc::clone(bench.events.worker());
        let length = 50_000;
        let left = start(&worker, Method::Post, &format!("/1/0/{length}"), BodyLength::Known(20_000));
        let right = start(&worker, Method::Post, &format!("/2/1/{length}"), BodyLength::Unknown);
        let body = pattern(7, 20_000);
        left.source.feed(BodyPart::Data(Chunk::from_vec(body[..10_000].to_vec())));
        right.source.feed(BodyPart::Data(Chunk::from_vec(body[..15_000].to_vec())));
        bench.run_until(|events| events.worker().counters.value(Plain::UpstreamConnects) == 2);
        assert_eq!(bench.value(Plain::Active), 2);
        left.cancel.give();
        bench.run_until(|_| left.outcome().is_some());
        assert_eq!(left.outcome(), Some(Outcome::Cancelled));
        assert_eq!(bench.value(Plain::Active), 1);
        right.source.feed(BodyPart::Data(Chunk::from_vec(body[15_000..].to_vec())));
        right.source.feed(BodyPart::End(Fields::new()));
        bench.run_until(|_| right.outcome().is_some());
        assert_eq!(right.outcome(), Some(Outcome::Answered { status: 200, refused: None }));
        let taken = right.sink.taken();
        assert!(taken.is_finished);
        assert_eq!(taken.body[..8], sum(&body).to_be_bytes());
        assert!(taken.body[8..] == pattern(2, length));
        assert_eq!(left.sink.taken().status, None);
        drop(taken);
        bench.run_out();
        bench.check_freed(&format!("seed {seed}"));
    }
}

#[test]
fn only_what_may_be_repeated_is_sent_again() {
    // The origin closes each connection without an answer.
    let attempts = |method: Method, body: &[u8]| {
        let mut bench =
            Bench::new(1, Faults::mild(), testing::config(&[origin_address(1), origin_address(2)]));
        for index in 1..=2 {
            bench.sim.serve(origin_address(index), || origin_script(Random::new(5)));
        }
        let worker = Rc::clone(bench.events.worker());
        let mode = MODES.iter().position(|&mode| mode == Mode::Nothing).expect("there");
        let length = if body.is_empty() { BodyLength::None } else { BodyLength::Known(body.len() as u64) };
        let running = start(&worker, method, &format!("/1/{mode}/0"), length);
        if !body.is_empty() {
            running.source.feed(BodyPart::Data(Chunk::from_vec(body.to_vec())));
        }
        running.source.feed(BodyPart::End(Fields::new()));
        bench.run_out();
        let refused = Some(RefusalReason::UpstreamReset);
        assert_eq!(running.outcome(), Some(Outcome::Answered { status: 502, refused }));
        bench.check_freed("");
        bench.value(Plain::UpstreamConnects)
    };
    assert_eq!(attempts(Method::Get, b""), 2);
    assert_eq!(attempts(Method::Put, b"small and kept"), 2);
    assert_eq!(attempts(Method::Put, &[0; 100_000]), 1, "too large to be kept");
    assert_eq!(attempts(Method::Post, b""), 1, "not idempotent");
    assert_eq!(attempts(Method::Post, b"body"), 1);
}

#[test]
fn a_silent_upstream_and_a_slow_client_meet_their_own_time_limits() {
    // No answer within the route's 5 s after the request was sent.
    let mut bench = Bench::new(1, Faults::mild(), testing::config(&[origin_address(1)]));
    bench.sim.origin(origin_address(1));
    let worker = Rc::clone(bench.events.worker());
    let running = start(&worker, Method::Get, "/", BodyLength::None);
    running.source.feed(BodyPart::End(Fields::new()));
    let begun = bench.sim.now();
    bench.run_until(|_| running.outcome().is_some());
    let refused = Some(RefusalReason::UpstreamTimeout);
    assert_eq!(running.outcome(), Some(Outcome::Answered { status: 504, refused }));
    let took = bench.sim.now().since(begun);
    assert!((Duration::from_secs(5)..Duration::from_secs(6)).contains(&took), "{took:?}");

    // An endpoint is not blamed while the client is what we wait for.
    let running = start(&worker, Method::Post, "/", BodyLength::Known(10));
    running.source.feed(BodyPart::Data(Chunk::from_vec(b"half".to_vec())));
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_secs(30));
    assert_eq!(running.outcome(), None);
    running.source.feed(BodyPart::Data(Chunk::from_vec(b"second".to_vec())));
    running.source.feed(BodyPart::End(Fields::new()));
    let begun = bench.sim.now();
    bench.run_until(|_| running.outcome().is_some());
    let took = bench.sim.now().since(begun);
    assert!((Duration::from_secs(4)..Duration::from_secs(11)).contains(&took), "{took:?}");

    // A connect that never completes.
    bench.sim.silence(origin_address(1));
    let running = start(&worker, Method::Get, "/", BodyLength::None);
    running.source.feed(BodyPart::End(Fields::new()));
    bench.run_out();
    let refused = Some(RefusalReason::ConnectTimeout);
    assert_eq!(running.outcome(), Some(Outcome::Answered { status: 504, refused }));
    bench.check_freed("");
}
