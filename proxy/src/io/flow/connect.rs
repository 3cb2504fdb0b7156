//! Connecting: a socket is opened and connected, then prepared.

use std::rc::Rc;

use super::{Flow, token};
use crate::io::seam::{Op, Ring};
use crate::io::stream::{ConnectOp, Inner, Phase, StreamError, StreamState};
use crate::io::token::Kind;

impl Flow {
    pub(super) fn start_connect<R: Ring>(&self, state: &Rc<StreamState>, inner: &mut Inner, ring: &mut R) {
        if inner.connect != ConnectOp::Idle {
            return;
        }
        match ring.open(inner.peer.address()) {
            Ok(fd) => {
                inner.fd = fd;
                inner.connect = ConnectOp::Armed;
                ring.submit(token(state, Kind::Connect), Op::Connect { fd, address: inner.peer.address() });
            }
            Err(errno) => connect_failed(inner, errno),
        }
    }

    pub(super) fn connected<R: Ring>(&self, inner: &mut Inner, result: i32, ring: &mut R) {
        inner.connect = ConnectOp::Idle;
        if inner.phase != Phase::Connecting {
            return;
        }
        let prepared = if result < 0 { Err(-result) } else { ring.prepare(inner.fd, false) };
        match prepared {
            Ok(_) => {
                inner.phase = Phase::Open;
                let now = self.shared.now.get();
                inner.receiving.connected(now);
                inner.sending.connected(now);
                inner.wake_all();
            }
            Err(errno) => connect_failed(inner, errno),
        }
    }
}

/// `Stream::poll_connected` makes its own error of the errno.
fn connect_failed(inner: &mut Inner, errno: i32) {
    inner.sending.fail(StreamError::Os(errno));
    inner.end(false);
}
