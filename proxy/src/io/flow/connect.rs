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
        let address = inner.peer.address();
        match ring.open(address) {
            Ok(fd) => inner.fd = fd,
            Err(errno) => return connect_failed(inner, StreamError::Os(errno)),
        }
        if let Some(source) = inner.peer.source()
            && let Err(errno) = ring.bind(inner.fd, source)
        {
            return connect_failed(inner, StreamError::Unbound(errno));
        }
        inner.connect = ConnectOp::Armed;
        ring.submit(token(state, Kind::Connect), Op::Connect { fd: inner.fd, address });
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
            Err(errno) => connect_failed(inner, StreamError::Os(errno)),
        }
    }
}

/// `Stream::poll_connected` makes its own error of this one.
fn connect_failed(inner: &mut Inner, error: StreamError) {
    inner.sending.fail(error);
    inner.end(false);
}
