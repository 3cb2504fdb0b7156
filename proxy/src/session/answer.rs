//! Requests that a route answers itself, without an upstream: redirects and fixed responses.

use super::exchange::{self, BodyPart, BodySource, Outcome, ResponseSink, Scene, SinkError, SourceError};
use crate::config::model::{Action, Route};
use crate::error::RefusalReason;
use crate::http::date::imf_fixdate;
use crate::http::edit::Edits;
use crate::http::h1::encode;
use crate::http::message::{BodyLength, Fields, RequestHead, ResponseHead, Version};
use crate::http::redirect::Target;
use crate::io::Chunk;

/// Body bytes that are read and thrown away so that the connection can go on; beyond them closing it is
/// cheaper.
const DISCARDED_BYTES_MAX: usize = 64 << 10;

/// Answers a request as its route says; a route that leads to an upstream is not for here. `body_expected`:
/// the client sends its body unasked, if it has one.
pub(super) async fn answer(
    route: &Route,
    head: &RequestHead,
    body_expected: bool,
    source: &mut impl BodySource,
    sink: &mut impl ResponseSink,
    scene: &Scene<'_>,
) -> Outcome {
    let edits = route.response_headers.as_deref();
    let request_id = head.request_id().unwrap_or_default();
    if body_expected {
        match discard(head, source).await {
            Ok(()) => {}
            Err(SourceError::Aborted) => return Outcome::Undeliverable(SinkError::Aborted),
            Err(SourceError::Refused(reason)) => {
                return exchange::refuse(sink, reason, request_id, edits).await;
            }
        }
    }
    let answer = match &route.action {
        Action::Redirect(redirect) => {
            let (authority, path_and_query) = (&*head.authority, &*head.path_and_query);
            let Some(location) =
                redirect.to.render(&Target { scheme: scene.scheme(), authority, path_and_query })
            else {
                return exchange::refuse(sink, RefusalReason::BadHost, request_id, edits).await;
            };
            let body =
                format!("{} {}\n", redirect.status, encode::reason_phrase(redirect.status)).into_bytes();
            generated(
                redirect.status,
                ("text/plain; charset=utf-8", &body),
                Some(&location),
                request_id,
                edits,
            )
        }
        Action::Respond(respond) => {
            generated(respond.status, (&respond.content_type, &respond.body), None, request_id, edits)
        }
        Action::Upstream(_) => {
            return exchange::refuse(sink, RefusalReason::NoRoute, request_id, edits).await;
        }
    };
    exchange::send(sink, answer, None).await
}

/// Reads a short body to its end.
async fn discard(head: &RequestHead, source: &mut impl BodySource) -> Result<(), SourceError> {
    let is_long = matches!(head.body, BodyLength::Known(length) if length > DISCARDED_BYTES_MAX as u64);
    if matches!(head.body, BodyLength::None) || is_long {
        return Ok(());
    }
    let mut room = DISCARDED_BYTES_MAX;
    while let BodyPart::Data(chunk) = source.next().await? {
        match room.checked_sub(chunk.len()) {
            Some(left) => room = left,
            None => break,
        }
    }
    Ok(())
}

/// A response of our own.
pub(super) fn generated(
    status: u16,
    (content_type, body): (&str, &[u8]),
    location: Option<&[u8]>,
    request_id: &str,
    edits: Option<&Edits>,
) -> (ResponseHead, Chunk) {
    let mut fields = Fields::with_capacity(240 + location.map_or(0, <[u8]>::len), 5);
    // Whoever makes a response and has a clock says when (RFC 9110 §6.6.1).
    fields.push(b"Date", &imf_fixdate(super::unix_micros() / 1_000_000));
    if let Some(location) = location {
        fields.push(b"Location", location);
    }
    if !body.is_empty() {
        fields.push(b"Content-Type", content_type.as_bytes());
    }
    // HEAD is told what a GET would get; elsewhere the framing says it.
    if !matches!(status, 204 | 304) {
        fields.push(b"Content-Length", itoa::Buffer::new().format(body.len()).as_bytes());
    }
    fields.push(b"X-Request-Id", request_id.as_bytes());
    if let Some(edits) = edits {
        edits.apply(&mut fields);
    }
    let head = ResponseHead {
        status,
        version: Version::Http11,
        reason: encode::reason_phrase(status).as_bytes().into(),
        fields,
        body: BodyLength::Known(body.len() as u64),
        keep_alive: true,
    };
    (head, Chunk::from_vec(body.to_vec()))
}
