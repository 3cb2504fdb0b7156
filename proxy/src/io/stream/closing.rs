//! The end of a stream: its phase, and how far the close of its socket has come.

use std::time::Duration;

use crate::io::flow::ClosingPlace;
use crate::io::settings::Settings;
use crate::io::timer::TimerKey;
use crate::time::Time;

/// Where a stream is in its life.
///
/// ```text
/// Connecting -> Open -> Closing (flush, FIN, discard) -> Ending (cancel, then close) -> Closed
///      \----------\-------\-------------------------------^
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::io) enum Phase {
    Connecting,
    Open,
    Closing,
    Ending { reset: bool },
    Closed,
}

/// How the connection ends once everything queued is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::io) enum Manner {
    /// FIN, then the discarding.
    #[default]
    Fin,
    /// The peer ends it: its FIN is waited for. If that does not come, a reset.
    Yield,
    /// A reset.
    Reset,
}

/// The close of a stream's socket.
#[derive(Default)]
pub(in crate::io) struct Closing {
    /// The close of the descriptor is in flight.
    pub(in crate::io) is_submitted: bool,
    /// The peer has promised to send nothing more.
    pub(in crate::io) is_last: bool,
    pub(in crate::io) manner: Manner,
    /// Only after `Stream::close`, or shortly before.
    course: Option<Box<Course>>,
}

/// How far the flush, and after our FIN the discarding, of a closed stream have come.
#[derive(Default)]
pub(in crate::io) struct Course {
    /// Bounds both.
    pub(in crate::io) timer: Option<TimerKey>,
    /// The place among the streams that are closing.
    pub(in crate::io) place: Option<ClosingPlace>,
    /// Bytes sent when the timer was armed.
    sent: u64,
    /// Bytes discarded so far.
    discarded: usize,
    /// Bytes discarded when the timer was armed.
    seen: usize,
    /// The peer broke the rules: it gets less time and fewer bytes. See `Settings::refused_max`.
    is_refused: bool,
    /// The peer's end came after it had broken the rules, which stays the reason.
    is_ended: bool,
    /// When discarding ends, however much still comes; set with our FIN.
    until: Time,
}

impl Closing {
    /// The peer broke the rules.
    pub(in crate::io) fn refuse(&mut self) {
        self.course_mut().is_refused = true;
    }

    pub(in crate::io) fn course_mut(&mut self) -> &mut Course {
        self.course.get_or_insert_default()
    }

    /// Takes the timer's key, to disarm it or because it fired.
    pub(in crate::io) fn take_timer(&mut self) -> Option<TimerKey> {
        self.course.as_mut()?.timer.take()
    }

    /// Takes the place among the streams that are closing, to give it up.
    pub(in crate::io) fn take_place(&mut self) -> Option<ClosingPlace> {
        self.course.as_mut()?.place.take()
    }

    /// Whether the timer is armed.
    #[cfg(test)]
    pub(in crate::io) fn is_timed(&self) -> bool {
        self.course.as_ref().is_some_and(|course| course.timer.is_some())
    }

    /// Whether the timer still bounds the flush.
    pub(in crate::io) fn times_flush(&self) -> bool {
        self.course.as_ref().is_some_and(|course| course.timer.is_some() && course.until == Time::default())
    }

    /// Counts bytes that came after the close.
    pub(in crate::io) fn discard(&mut self, bytes: usize) {
        self.course_mut().discarded += bytes;
    }

    /// Whether the peer sent more after the close than is discarded of it.
    pub(in crate::io) fn is_spent(&self, settings: &Settings) -> bool {
        self.course.as_ref().is_some_and(|course| {
            let most = if course.is_refused { settings.refused_bytes } else { settings.discard_bytes };
            course.discarded > most
        })
    }

    /// Notes the end of a peer that had broken the rules before.
    pub(in crate::io) const fn note_end(&mut self) {
        if let Some(course) = &mut self.course {
            course.is_ended = true;
        }
    }

    /// Whether `note_end` was called while the stream was closing.
    pub(in crate::io) fn saw_end(&self) -> bool {
        self.course.as_ref().is_some_and(|course| course.is_ended)
    }

    /// The timer fired after the flush: whether the peer was quiet since it was armed, or may send no longer.
    /// A peer that is still sending has not read our last bytes yet.
    pub(in crate::io) fn is_quiet(&mut self, now: Time) -> bool {
        let Some(course) = &mut self.course else { return true };
        let is_quiet = std::mem::replace(&mut course.seen, course.discarded) == course.discarded;
        is_quiet || now >= course.until
    }

    /// The timer fired within the flush: whether the peer took too little of it since then.
    pub(in crate::io) fn is_stuck(&self, sent: u64, settings: &Settings) -> bool {
        sent - self.course.as_ref().map_or(0, |course| course.sent) < settings.close_bytes
    }
}

impl Course {
    /// How long the next timer runs, which is about to be armed.
    pub(in crate::io) fn begin_wait(
        &mut self,
        is_flushed: bool,
        sent: u64,
        now: Time,
        settings: &Settings,
    ) -> Duration {
        let (flush_max, discard_max) = if self.is_refused {
            (settings.close_timeout.min(settings.refused_max), settings.refused_max)
        } else {
            (settings.close_timeout, settings.discard_max)
        };
        self.sent = sent;
        if !is_flushed {
            return flush_max;
        }
        if self.until == Time::default() {
            self.until = now + discard_max;
        }
        settings.discard_quiet
    }
}
