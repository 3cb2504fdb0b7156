//! Exchanges as HTTP/2 and HTTP/3 need them: many over one session and one connection to an endpoint, each
//! with a fate of its own. Each case runs over a fake multiplexed endpoint, and over connections of HTTP/1.

mod h1;
mod multiplexed;

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use self::h1::Http1;
use self::multiplexed::Multiplexed;
use super::testing::{self, Running, Session};
use crate::counters::Plain;
use crate::error::RefusalReason;
use crate::exchange::lease::Upstreams;
use crate::exchange::{Outcome, Signal};
use crate::http::message::{BodyLength, Fields, Method, RequestHead, Version};
use crate::io::Chunk;
use crate::worker::testing::Bench;

/// A step of an endpoint's answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Say {
    /// A head, 200; a body of unknown length follows.
    Head,
    /// Some of the body, or of a tunnel.
    Data(&'static [u8]),
    /// The end of either.
    End,
    /// A 101.
    Switch,
    /// It ends this exchange, before or within its response.
    Reset,
    /// It goes away and did not process this request. HTTP/1 has no way to say so: there the connection just
    /// ends.
    Unprocessed,
}

/// An endpoint and the way to it. Requests are numbered in the order in which the endpoint hears of them.
trait World {
    type Upstreams: Upstreams;

    fn new() -> Self;
    fn bench(&mut self) -> &mut Bench;
    fn upstreams(&self) -> Rc<Self::Upstreams>;
    /// How many requests the endpoint heard of.
    fn heard(&mut self) -> usize;
    /// Lets the endpoint take up to `bytes` bytes of a request's body, which makes room for more. The `bool`:
    /// the body is whole.
    fn take(&mut self, request: usize, bytes: usize) -> (Vec<u8>, bool);
    fn say(&mut self, request: usize, what: Say);
    /// Whether we ended a request early.
    fn is_reset(&mut self, request: usize) -> bool;
    /// Bytes that came through a tunnel, and whether it ended.
    fn hear_in_tunnel(&mut self, request: usize) -> (Vec<u8>, bool);
    /// Connections made to the endpoint.
    fn connections(&mut self) -> usize;
    /// Nothing is left of any exchange.
    fn check_freed(&mut self);
}

const ANSWERED: Option<Outcome> = Some(Outcome::Answered { status: 200, refused: None });
/// The endpoint broke before its response.
const BROKEN: Option<Outcome> =
    Some(Outcome::Answered { status: 502, refused: Some(RefusalReason::UpstreamReset) });

/// Lets everything happen that can within a moment.
fn settle(bench: &mut Bench) {
    let Bench { engine, sim, events, .. } = bench;
    sim.settle(engine, events, Duration::from_millis(20));
}

fn head(method: Method, body: BodyLength) -> RequestHead {
    RequestHead {
        method,
        version: Version::Http11,
        authority: "example.com".into(),
        path_and_query: "/".into(),
        fields: Fields::new(),
        body,
    }
}

/// Begins an exchange on a stream of the session.
fn begin<W: World>(world: &mut W, session: &Session, head: RequestHead, cancel: &Signal) -> Running
where
    W::Upstreams: 'static,
{
    let (worker, upstreams) = (Rc::clone(world.bench().events.worker()), world.upstreams());
    let running = testing::begin(&worker, upstreams, session, head, cancel);
    settle(world.bench());
    running
}

fn get<W: World>(world: &mut W, session: &Session) -> Running
where
    W::Upstreams: 'static,
{
    begin(world, session, head(Method::Get, BodyLength::None), &Signal::default())
}

fn say<W: World>(world: &mut W, request: usize, all: &[Say]) {
    for &what in all {
        world.say(request, what);
    }
    settle(world.bench());
}

fn bytes(of: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| of.wrapping_add((at / 7) as u8)).collect()
}

/// Runs a case in both worlds.
macro_rules! in_both_worlds {
    ($($(#[$meta:meta])* $case:ident;)*) => {
        mod over_streams { $(#[test] fn $case() { super::$case::<super::Multiplexed>() })* }
        mod over_h1 { $(#[test] fn $case() { super::$case::<super::Http1>() })* }
    };
}

in_both_worlds! {
    uploads_share_the_window_of_their_connection;
    a_stalled_stream_holds_up_nobody;
    responses_share_the_window_of_their_session;
    a_reset_within_a_response_spares_the_others;
    a_client_that_resets_a_stream_spares_the_others;
    all_exchanges_of_a_session_hear_that_it_ends;
    a_tunnel_is_handed_over_and_ends_by_itself;
    an_unanswered_request_is_repeated_if_it_may_be;
}

fn uploads_share_the_window_of_their_connection<W: World>()
where
    W::Upstreams: 'static,
{
    const LENGTH: usize = 40_000;
    let (mut world, session) = (W::new(), Session::with_window(1 << 20));
    let bodies = [bytes(1, LENGTH), bytes(101, LENGTH)];
    let uploads = bodies.each_ref().map(|body| {
        let upload = begin(
            &mut world,
            &session,
            head(Method::Post, BodyLength::Known(LENGTH as u64)),
            &Signal::default(),
        );
        upload.source.feed_all(body);
        settle(world.bench());
        upload
    });
    assert_eq!(world.heard(), 2);
    let mut taken = [Vec::new(), Vec::new()];
    let mut is_whole = [false; 2];
    for _ in 0..30 {
        for request in [0, 1] {
            let (some, whole) = world.take(request, 3_000);
            taken[request].extend(some);
            is_whole[request] |= whole;
            settle(world.bench());
        }
    }
    assert_eq!(is_whole, [true; 2]);
    assert!(taken == bodies, "the bytes are each exchange's own");
    for request in [1, 0] {
        say(&mut world, request, &[Say::Head, Say::Data(b"got it"), Say::End]);
    }
    for upload in uploads {
        assert_eq!(upload.outcome(), ANSWERED);
        assert_eq!(upload.sink.taken().body, b"got it");
    }
    world.check_freed();
}

fn a_stalled_stream_holds_up_nobody<W: World>()
where
    W::Upstreams: 'static,
{
    let (mut world, session) = (W::new(), Session::with_window(1 << 20));
    let (stalled, other) = (get(&mut world, &session), get(&mut world, &session));
    stalled.sink.stall(true);
    for request in [0, 1] {
        say(&mut world, request, &[Say::Head, Say::Data(b"all of it"), Say::End]);
    }
    assert_eq!((stalled.outcome(), other.outcome()), (None, ANSWERED));
    let has = |taken: &testing::Taken| (taken.status, taken.body.len(), taken.is_finished);
    assert_eq!(has(&stalled.sink.taken()), (Some(200), 0, false));
    stalled.sink.stall(false);
    settle(world.bench());
    assert_eq!(stalled.outcome(), ANSWERED);
    assert_eq!(has(&stalled.sink.taken()), (Some(200), b"all of it".len(), true));
    world.check_freed();
}

fn responses_share_the_window_of_their_session<W: World>()
where
    W::Upstreams: 'static,
{
    let (mut world, session) = (W::new(), Session::with_window(10));
    let running = [get(&mut world, &session), get(&mut world, &session)];
    for request in [0, 1] {
        say(&mut world, request, &[Say::Head, Say::Data(b"0123456789"), Say::End]);
    }
    let taken = || running.iter().map(|one| one.sink.taken().body.len()).sum::<usize>();
    assert_eq!(taken(), 10, "the client took no more");
    session.take(10);
    settle(world.bench());
    assert_eq!(taken(), 20);
    assert!(running.iter().all(|one| one.outcome() == ANSWERED));
    world.check_freed();
}

fn a_reset_within_a_response_spares_the_others<W: World>()
where
    W::Upstreams: 'static,
{
    let (mut world, session) = (W::new(), Session::with_window(1 << 20));
    let (cut, other) = (get(&mut world, &session), get(&mut world, &session));
    say(&mut world, 1, &[Say::Head, Say::Data(b"half")]);
    say(&mut world, 0, &[Say::Head, Say::Data(b"half"), Say::Reset]);
    assert_eq!((cut.outcome(), other.outcome()), (Some(Outcome::Cut), None));
    say(&mut world, 1, &[Say::Data(b" and half"), Say::End]);
    assert_eq!(other.outcome(), ANSWERED);
    assert_eq!(other.sink.taken().body, b"half and half");
    assert_eq!(cut.sink.taken().body, b"half");
    world.check_freed();
}

fn a_client_that_resets_a_stream_spares_the_others<W: World>()
where
    W::Upstreams: 'static,
{
    let (mut world, session) = (W::new(), Session::with_window(1 << 20));
    let (gone, other) = (get(&mut world, &session), get(&mut world, &session));
    say(&mut world, 0, &[Say::Head, Say::Data(b"half")]);
    gone.cancel.give();
    settle(world.bench());
    assert_eq!(gone.outcome(), Some(Outcome::Cancelled));
    assert_eq!((world.is_reset(0), world.is_reset(1)), (true, false));
    say(&mut world, 1, &[Say::Head, Say::End]);
    assert_eq!(other.outcome(), ANSWERED);
    assert!(!world.is_reset(1));
    world.check_freed();
}

fn all_exchanges_of_a_session_hear_that_it_ends<W: World>()
where
    W::Upstreams: 'static,
{
    let (mut world, session) = (W::new(), Session::with_window(1 << 20));
    let gone = Signal::default();
    let running: Vec<_> =
        (0..5).map(|_| begin(&mut world, &session, head(Method::Get, BodyLength::None), &gone)).collect();
    let survivor = get(&mut world, &session);
    assert_eq!(world.bench().value(Plain::Active), 6);
    gone.give();
    settle(world.bench());
    assert!(running.iter().all(|one| one.outcome() == Some(Outcome::Cancelled)));
    assert!((0..5).all(|request| world.is_reset(request)));
    assert_eq!((survivor.outcome(), world.is_reset(5)), (None, false));
    say(&mut world, 5, &[Say::Head, Say::End]);
    assert_eq!(survivor.outcome(), ANSWERED);
    world.check_freed();
}

fn a_tunnel_is_handed_over_and_ends_by_itself<W: World>()
where
    W::Upstreams: 'static,
{
    let (mut world, session) = (W::new(), Session::with_window(1 << 20));
    let mut asking = head(Method::Get, BodyLength::None);
    asking.fields.push(b"Connection", b"Upgrade");
    asking.fields.push(b"Upgrade", b"echo");
    let tunnel = begin(&mut world, &session, asking, &Signal::default());
    let other = get(&mut world, &session);
    say(&mut world, 0, &[Say::Switch]);
    assert_eq!(tunnel.outcome(), Some(Outcome::Switched));
    let end = tunnel.sink.taken().tunnel.take().expect("the endpoint's end");
    say(&mut world, 0, &[Say::Data(b"from the endpoint"), Say::End]);
    let mut cx = Context::from_waker(Waker::noop());
    let mut heard = Vec::new();
    while let Poll::Ready(Ok(Some(chunk))) = end.duplex().poll_read(&mut cx) {
        heard.extend_from_slice(&chunk);
    }
    assert_eq!(heard, b"from the endpoint");
    assert!(matches!(end.duplex().poll_read(&mut cx), Poll::Ready(Ok(None))), "and its end");
    end.duplex().write(Chunk::from_static(b"from the client"));
    end.duplex().shutdown_write();
    settle(world.bench());
    assert_eq!(world.hear_in_tunnel(0), (b"from the client".to_vec(), true));
    end.close();
    settle(world.bench());
    assert!(!world.is_reset(0), "it ended in order");
    say(&mut world, 1, &[Say::Head, Say::End]);
    assert_eq!(other.outcome(), ANSWERED);
    world.check_freed();
}

fn an_unanswered_request_is_repeated_if_it_may_be<W: World>()
where
    W::Upstreams: 'static,
{
    // It may have been processed: only an idempotent one goes out again.
    let (mut world, session) = (W::new(), Session::with_window(1 << 20));
    let repeated = get(&mut world, &session);
    say(&mut world, 0, &[Say::Reset]);
    assert_eq!((repeated.outcome(), world.heard()), (None, 2));
    say(&mut world, 1, &[Say::Head, Say::End]);
    assert_eq!(repeated.outcome(), ANSWERED);
    let once = begin(&mut world, &session, head(Method::Post, BodyLength::None), &Signal::default());
    let heard = world.heard();
    say(&mut world, heard - 1, &[Say::Reset]);
    assert_eq!(once.outcome(), BROKEN);
    assert_eq!(world.heard(), heard);
    world.check_freed();
}

/// GOAWAY with a request above its last stream (RFC 9113 §6.8): any request goes out again, on another
/// connection, while those that the endpoint processes come to their end on the old one.
#[test]
fn a_request_that_was_surely_not_processed_goes_out_again_whatever_its_method() {
    let (mut world, session) = (Multiplexed::new(), Session::with_window(1 << 20));
    let staying = get(&mut world, &session);
    let moving = begin(&mut world, &session, head(Method::Post, BodyLength::None), &Signal::default());
    assert_eq!((world.heard(), world.connections()), (2, 1));
    say(&mut world, 1, &[Say::Unprocessed]);
    assert_eq!((world.heard(), world.connections()), (3, 2));
    say(&mut world, 2, &[Say::Head, Say::Data(b"after all"), Say::End]);
    assert_eq!(moving.outcome(), ANSWERED);
    assert_eq!(moving.sink.taken().body, b"after all");
    say(&mut world, 0, &[Say::Head, Say::End]);
    assert_eq!(staying.outcome(), ANSWERED);
    assert_eq!(world.bench().value(Plain::UpstreamRetries), 1);
    world.check_freed();
}

/// The same with a body: a body that was sent in part and not kept cannot go out again.
#[test]
fn a_body_that_is_not_kept_is_not_sent_again() {
    let (mut world, session) = (Multiplexed::new(), Session::with_window(1 << 20));
    let upload = begin(&mut world, &session, head(Method::Post, BodyLength::Unknown), &Signal::default());
    upload.source.feed_all(&bytes(3, 5_000));
    settle(world.bench());
    say(&mut world, 0, &[Say::Unprocessed]);
    assert_eq!(upload.outcome(), BROKEN);
    assert_eq!(world.heard(), 1);
    world.check_freed();
}

/// A live session hears of a drain, rather than looking for one at its next boundary.
#[test]
fn a_drain_reaches_sessions_that_are_waiting() {
    let mut world = Multiplexed::new();
    let worker = Rc::clone(world.bench().events.worker());
    let told = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let (waiter, told) = (worker.drain.waiter(), Rc::clone(&told));
        worker.io.spawn(async move {
            std::future::poll_fn(|cx| waiter.poll(cx)).await;
            told.set(told.get() + 1);
        });
    }
    settle(world.bench());
    assert_eq!(told.get(), 0);
    worker.start_draining();
    settle(world.bench());
    assert_eq!(told.get(), 3);
}
