//! Exchanges without a downstream protocol, for tests. Their session carries many: each has its own source
//! and sink, and all sinks share a window of bytes that the client takes, as streams of HTTP/2 do.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::lease::Upstreams;
use super::tunnel::TunnelEnd;
use super::{
    BodyPart, BodySource, Client, Downstream, Local, Outcome, ResponseSink, Scene, Signal, SinkError,
    SourceError, exchange,
};
use crate::http::message::{Fields, RequestHead, ResponseHead};
use crate::io::Chunk;
use crate::listen::ListenerId;
use crate::session::context::Worker;
use crate::time::Time;

/// See the module. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Session(Rc<Shared>);

#[derive(Default)]
struct Shared {
    /// Bytes that the client still takes, over all streams.
    window: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

impl Session {
    /// Lets the client take so many bytes, of any of its streams.
    pub(crate) fn with_window(bytes: usize) -> Self {
        let session = Self::default();
        session.0.window.set(bytes);
        session
    }

    /// A client that takes everything.
    pub(crate) fn unlimited() -> Self {
        Self::with_window(usize::MAX)
    }

    /// Lets it take so many more.
    pub(crate) fn take(&self, bytes: usize) {
        self.0.window.set(self.0.window.get() + bytes);
        self.0.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// A stream of it.
    pub(crate) fn stream(&self) -> (Source, Sink) {
        let sink = Sink { session: self.clone(), state: Rc::default(), stalled: Rc::default() };
        (Source::default(), sink)
    }

    fn poll_window(&self, cx: &Context<'_>, wanted: usize) -> Poll<usize> {
        match self.0.window.get().min(wanted) {
            0 => {
                self.0.waiting.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
            given => {
                self.0.window.set(self.0.window.get() - given);
                Poll::Ready(given)
            }
        }
    }
}

/// A body that tests feed.
#[derive(Clone, Default)]
pub(crate) struct Source(Rc<RefCell<Fed>>);

#[derive(Default)]
struct Fed {
    parts: VecDeque<BodyPart>,
    waker: Option<Waker>,
}

impl Source {
    pub(crate) fn feed(&self, part: BodyPart) {
        let mut fed = self.0.borrow_mut();
        fed.parts.push_back(part);
        fed.waker.take().into_iter().for_each(Waker::wake);
    }

    /// A whole body, in pieces.
    pub(crate) fn feed_all(&self, body: &[u8]) {
        body.chunks(3_000).for_each(|piece| self.feed(BodyPart::Data(Chunk::from_vec(piece.to_vec()))));
        self.feed(BodyPart::End(Fields::new()));
    }
}

impl BodySource for Source {
    fn is_whole(&self, _length: u64) -> bool {
        false
    }

    fn awaits_continue(&self) -> bool {
        false
    }

    fn poll_arrived(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    async fn next(&mut self) -> Result<BodyPart, SourceError> {
        poll_fn(|cx| {
            let mut fed = self.0.borrow_mut();
            fed.waker = Some(cx.waker().clone());
            fed.parts.pop_front().map_or(Poll::Pending, |part| Poll::Ready(Ok(part)))
        })
        .await
    }
}

/// A response as a stream's client gets it.
#[derive(Clone)]
pub(crate) struct Sink {
    session: Session,
    state: Rc<RefCell<Taken>>,
    /// This stream's client takes nothing, whatever the session's window says.
    stalled: Rc<Cell<bool>>,
}

#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) status: Option<u16>,
    pub(crate) body: Vec<u8>,
    pub(crate) is_finished: bool,
    pub(crate) tunnel: Option<Box<dyn TunnelEnd>>,
}

impl Sink {
    /// Stops this stream, or lets it go on.
    pub(crate) fn stall(&self, stalled: bool) {
        self.stalled.set(stalled);
        self.session.take(0);
    }

    pub(crate) fn taken(&self) -> std::cell::RefMut<'_, Taken> {
        self.state.borrow_mut()
    }
}

impl ResponseSink for Sink {
    fn read_ahead(&mut self, _bytes: usize) {}

    fn switch(&mut self, head: &ResponseHead, endpoint: Box<dyn TunnelEnd>) {
        let mut taken = self.state.borrow_mut();
        taken.status = Some(head.status);
        taken.tunnel = Some(endpoint);
    }

    async fn informational(&mut self, _head: &ResponseHead) -> Result<(), SinkError> {
        Ok(())
    }

    async fn head(&mut self, head: &ResponseHead) -> Result<(), SinkError> {
        assert!(self.state.borrow_mut().status.replace(head.status).is_none(), "two heads");
        Ok(())
    }

    async fn data(&mut self, mut chunk: Chunk) -> Result<(), SinkError> {
        while !chunk.is_empty() {
            let given = poll_fn(|cx| {
                if self.stalled.get() {
                    self.session.0.waiting.borrow_mut().push(cx.waker().clone());
                    return Poll::Pending;
                }
                self.session.poll_window(cx, chunk.len())
            })
            .await;
            self.state.borrow_mut().body.extend_from_slice(&chunk.split_to(given));
        }
        Ok(())
    }

    async fn finish(&mut self, _trailers: Fields) -> Result<(), SinkError> {
        self.state.borrow_mut().is_finished = true;
        Ok(())
    }

    fn flush(&mut self) {}

    async fn taken(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// A stream of a session that carries many: its own end says nothing about its client.
#[derive(Debug)]
struct OfMany;

impl Downstream for OfMany {
    fn poll_gone(&self, _cx: &Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn ended_at(&self) -> Option<Time> {
        None
    }
}

/// An exchange as its session sees it.
pub(crate) struct Running {
    pub(crate) source: Source,
    pub(crate) sink: Sink,
    pub(crate) cancel: Signal,
    outcome: Rc<Cell<Option<Outcome>>>,
}

impl Running {
    /// How it ended; `None`: it goes on.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.outcome.get()
    }
}

/// Begins an exchange on a stream of `session`, as a task of the worker.
pub(crate) fn begin<U: Upstreams + 'static>(
    worker: &Rc<Worker>,
    upstreams: Rc<U>,
    session: &Session,
    mut head: RequestHead,
    cancel: &Signal,
) -> Running {
    let (source, sink) = session.stream();
    let running = Running { source, sink, cancel: cancel.clone(), outcome: Rc::default() };
    let (mut source, mut sink, cancel) =
        (running.source.clone(), running.sink.clone(), running.cancel.clone());
    let (outcome, worker) = (Rc::clone(&running.outcome), Rc::clone(worker));
    worker.io.clone().spawn(async move {
        let snapshot = worker.snapshot();
        let listener = snapshot.traffic.listeners.get(ListenerId::FIRST).expect("the only one");
        let peer = ([192, 0, 2, 1], 1234).into();
        let scene = Scene {
            io: &worker.io,
            counters: &worker.counters,
            routes: &snapshot.traffic.routes,
            upstreams: &*upstreams,
            listener,
            client: Client { peer, local: Local::Known(peer), fallback: &[] },
            downstream: &OfMany,
            identity: None,
            is_early: false,
            new_request_id: worker.request_id(),
            record: None,
        };
        outcome.set(Some(exchange(&mut head, &mut source, &mut sink, &cancel, &scene).await));
    });
    running
}
