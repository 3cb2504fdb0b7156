//! A request body on its way to an endpoint. It is read whole before the first attempt if its route asks for
//! that. It is kept for a second attempt as far as one is allowed.

use std::task::{Context, Poll};

use super::body::{BodyPart, BodySource, SourceError};
use crate::http::message::Fields;
use crate::io::{Chunk, Io};

/// A body source that can begin again as long as it gave no more than it keeps.
#[derive(Debug)]
pub(super) struct Replay<'a, B> {
    source: &'a mut B,
    /// Parts that were read ahead.
    ahead: Vec<Chunk>,
    /// Bytes that were given after those parts; meaningless once `lost`.
    kept: Vec<u8>,
    kept_max: usize,
    /// The end was taken from the source, with these trailers.
    ended: Option<Fields>,
    /// More was given than is kept.
    lost: bool,
    /// The index of the next part of `ahead` to give.
    at: usize,
    /// `kept` is to be given after them.
    again: bool,
}

impl<'a, B: BodySource> Replay<'a, B> {
    /// Wraps `source`. Of the bytes that are not read ahead, up to `kept_max` are kept.
    pub(super) fn new(source: &'a mut B, kept_max: usize) -> Self {
        Self {
            source,
            ahead: Vec::new(),
            kept: Vec::new(),
            kept_max,
            ended: None,
            lost: false,
            at: 0,
            again: false,
        }
    }

    /// Reads the whole body, under the worker's buffer budget. `false`: the budget has no room for it. The
    /// parts read so far are then given first, and the rest as it arrives.
    pub(super) async fn read_ahead(&mut self, io: &Io) -> Result<bool, SourceError> {
        loop {
            match self.source.next().await? {
                BodyPart::Data(chunk) => {
                    if let Err(chunk) = io.gather(&mut self.ahead, chunk) {
                        self.ahead.push(chunk);
                        return Ok(false);
                    }
                }
                BodyPart::End(trailers) => {
                    self.ended = Some(trailers);
                    return Ok(true);
                }
            }
        }
    }

    /// Begins again; `false` when that is impossible.
    pub(super) fn rewind(&mut self) -> bool {
        self.at = 0;
        self.again = !self.kept.is_empty();
        !self.lost
    }

    fn keep(&mut self, chunk: &[u8]) {
        if self.kept.len() + chunk.len() > self.kept_max {
            self.lost = true;
            self.kept = Vec::new();
        } else if !self.lost {
            self.kept.extend_from_slice(chunk);
        }
    }

    const fn has_kept(&self) -> bool {
        self.at < self.ahead.len() || self.again || self.ended.is_some()
    }
}

impl<B: BodySource> BodySource for Replay<'_, B> {
    fn is_whole(&self, length: u64) -> bool {
        self.ended.is_some() || self.source.is_whole(length)
    }

    fn awaits_continue(&self) -> bool {
        !self.has_kept() && self.source.awaits_continue()
    }

    fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_kept() { Poll::Ready(()) } else { self.source.poll_arrived(cx) }
    }

    async fn next(&mut self) -> Result<BodyPart, SourceError> {
        if let Some(chunk) = self.ahead.get_mut(self.at) {
            self.at += 1;
            return Ok(BodyPart::Data(chunk.share()));
        }
        if std::mem::take(&mut self.again) {
            return Ok(BodyPart::Data(Chunk::from_vec(self.kept.clone())));
        }
        if let Some(trailers) = &self.ended {
            return Ok(BodyPart::End(trailers.clone()));
        }
        // A source that failed took bytes that it never gave, so the body cannot begin again.
        let part = self.source.next().await.inspect_err(|_| self.lost = true)?;
        match &part {
            BodyPart::Data(chunk) => self.keep(chunk),
            BodyPart::End(trailers) => self.ended = Some(trailers.clone()),
        }
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use super::*;
    use crate::error::RefusalReason;

    /// Gives a part, fails, and would then go on behind the bytes that it never gave.
    struct Failing(u8);

    impl BodySource for Failing {
        fn is_whole(&self, _: u64) -> bool {
            false
        }

        fn awaits_continue(&self) -> bool {
            false
        }

        fn poll_arrived(&mut self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Ready(())
        }

        async fn next(&mut self) -> Result<BodyPart, SourceError> {
            self.0 += 1;
            match self.0 {
                2 => Err(SourceError::Refused(RefusalReason::BodyTooLarge)),
                _ => Ok(BodyPart::Data(Chunk::from_static(b"part"))),
            }
        }
    }

    #[test]
    fn nothing_begins_again_behind_a_source_that_failed() {
        let mut failing = Failing(0);
        let mut source = Replay::new(&mut failing, 100);
        let mut next = |is_fine| {
            let polled = pin!(source.next()).poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Ready(result) if result.is_ok() == is_fine));
        };
        next(true);
        next(false);
        assert!(!source.rewind());
    }
}
