//! Connecting: a socket is opened and connected, then prepared.

use std::rc::Rc;

use super::{Flow, token};
use crate::io::handle::ConnectError;
use crate::io::seam::{Op, Ring};
use crate::io::stream::{Inner, Phase, State};
use crate::io::token::Kind;

impl Flow {
    pub(super) fn start_connect<R: Ring>(&self, state: &Rc<State>, inner: &mut Inner, ring: &mut R) {
        if inner.connecting {
            return;
        }
        match ring.open(inner.peer.address()) {
            Ok(fd) => {
                inner.fd = fd;
                inner.connecting = true;
                ring.submit(token(state, Kind::Connect), Op::Connect { fd, address: inner.peer.address() });
            }
            Err(errno) => {
                inner.connect_error = Some(ConnectError::from_errno(errno));
                inner.end(false);
            }
        }
    }

    pub(super) fn connected<R: Ring>(&self, inner: &mut Inner, result: i32, ring: &mut R) {
        inner.connecting = false;
        if inner.phase != Phase::Connecting {
            return;
        }
        let prepared = if result < 0 { Err(-result) } else { ring.prepare(inner.fd, false) };
        match prepared {
            Ok(_) => {
                inner.phase = Phase::Open;
                let now = self.shared.now.get();
                (inner.progress.received_at, inner.progress.sent_at) = (now, now);
                inner.wake_all();
            }
            Err(errno) => {
                inner.connect_error = Some(ConnectError::from_errno(errno));
                inner.end(false);
            }
        }
    }
}
