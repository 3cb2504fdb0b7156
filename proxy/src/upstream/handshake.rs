//! The TLS handshake with an endpoint, step by step as loop turns have time for it. After it the stream of
//! the connection carries records.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::io::handshakes::{Handshakes, With};
use crate::io::{Chunk, Io, Stream};
use crate::time::Time;
use crate::tls::handshake::{Failure, Handshake, Progress};

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// Either side gave it up.
    #[error("{0}")]
    Failed(#[from] Failure),
    /// The endpoint closed or reset the connection.
    #[error("the endpoint closed the connection")]
    Closed,
    /// It was not over in time.
    #[error("not over in time")]
    Timeout,
}

/// Makes the handshake, which is to be over at `due`.
pub(super) async fn shake_hands(
    io: &Io,
    handshakes: &Handshakes,
    stream: &Stream,
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
    due: Time,
) -> Result<(), HandshakeError> {
    // Making the keys of the hello is most of our work in a handshake.
    let hello = || {
        let (mut handshake, mut hello) = (Handshake::client(config, name)?, Vec::new());
        handshake.advance(&mut hello)?;
        Ok::<_, Failure>((handshake, hello))
    };
    let hello = io.timeout_at(due, handshakes.step(With::Endpoint, hello)).await;
    let (mut handshake, hello) = hello.map_err(|_| HandshakeError::Timeout)??;
    stream.write(Chunk::from_vec(hello));
    loop {
        let received = io.timeout_at(due, stream.read()).await.map_err(|_| HandshakeError::Timeout)?;
        let Ok(Some(chunk)) = received else { return Err(HandshakeError::Closed) };
        handshake.receive(&chunk)?;
        drop(chunk);
        if !handshake.has_record() {
            continue;
        }
        let mut out = Vec::new();
        let step = io.timeout_at(due, handshakes.step(With::Endpoint, || handshake.advance(&mut out))).await;
        // After an error too: then it is the alert.
        stream.write(Chunk::from_vec(out));
        if let Progress::Done(established) = step.map_err(|_| HandshakeError::Timeout)?? {
            // If a response ends with its connection, only the endpoint's closing alert tells that from a
            // cut.
            stream.secure(*established, true);
            return Ok(());
        }
    }
}
