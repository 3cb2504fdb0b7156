//! TLS with an endpoint: the handshake, after which the connection's stream carries records.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::io::{Chunk, Io, Stream};
use crate::time::Time;
use crate::tls::handshake::{Failure, Handshake, Progress};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The handshake failed.
    #[error("{0}")]
    Failed(#[from] Failure),
    /// The endpoint closed or reset within it.
    #[error("the endpoint closed the connection")]
    Closed,
    /// It was not over in time.
    #[error("not over in time")]
    Timeout,
}

/// Makes the handshake, which is to be over at `due`.
pub(super) async fn shake_hands(
    io: &Io,
    stream: &Stream,
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
    due: Time,
) -> Result<(), Error> {
    let mut handshake = Handshake::client(config, name)?;
    loop {
        let mut out = Vec::new();
        let progress = handshake.advance(&mut out);
        // Also beside an error: the alert.
        stream.write(Chunk::from_vec(out));
        if let Progress::Done(established) = progress? {
            // Where nothing else says where a response ends, only the endpoint's word tells its end from a cut.
            stream.secure(established.records, established.rest, true);
            return Ok(());
        }
        let received = io.timeout_at(due, stream.read()).await.map_err(|_| Error::Timeout)?;
        let Ok(Some(chunk)) = received else { return Err(Error::Closed) };
        handshake.receive(&chunk)?;
    }
}
