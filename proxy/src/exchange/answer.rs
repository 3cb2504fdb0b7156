//! Responses of our own: refusals, and the redirects and fixed responses of routes without an upstream.

use super::body::{BodyPart, BodySource, SourceError};
use super::outcome::Outcome;
use super::scene::Scene;
use super::sink::{ResponseSink, SinkError};
use crate::error::RefusalReason;
use crate::http::date::imf_fixdate;
use crate::http::edit::Edits;
use crate::http::forward;
use crate::http::message::{BodyLength, Fields, RequestHead, ResponseHead, Version};
use crate::http::redirect::Target;
use crate::http::status::reason_phrase;
use crate::io::Chunk;
use crate::route::{Action, Route};

/// Body bytes that are read and thrown away so that the connection can go on; beyond them closing it is
/// cheaper.
const DISCARDED_BYTES_MAX: usize = 64 << 10;

/// Answers a request with its route's redirect or fixed response; the route must not lead to an upstream.
/// `body_expected`: the client sends its body unasked, if it has one.
pub(super) async fn answer<U>(
    route: &Route,
    head: &RequestHead,
    body_expected: bool,
    source: &mut impl BodySource,
    sink: &mut impl ResponseSink,
    scene: &Scene<'_, U>,
) -> Outcome {
    let edits = route.response_headers.as_deref();
    let request_id = forward::request_id_of(head);
    if body_expected {
        match discard(head, source).await {
            Ok(()) => {}
            Err(SourceError::Aborted) => return Outcome::Undeliverable(SinkError::Aborted),
            Err(SourceError::Refused(reason)) => {
                return refuse(sink, reason, request_id, edits).await;
            }
        }
    }
    let answer = match &route.action {
        Action::Redirect(redirect) => {
            let (authority, path_and_query) = (&*head.authority, &*head.path_and_query);
            let Some(location) =
                redirect.to.render(&Target { scheme: scene.scheme(), authority, path_and_query })
            else {
                return refuse(sink, RefusalReason::BadHost, request_id, edits).await;
            };
            let body = format!("{} {}\n", redirect.status, reason_phrase(redirect.status)).into_bytes();
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
            return refuse(sink, RefusalReason::NoRoute, request_id, edits).await;
        }
    };
    send(sink, answer, None).await
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
    request_id: &[u8],
    edits: Option<&Edits>,
) -> (ResponseHead, Chunk) {
    let mut fields = Fields::with_capacity(240 + location.map_or(0, <[u8]>::len), 5);
    // An origin server with a clock must send Date (RFC 9110 §6.6.1).
    fields.push(b"Date", &imf_fixdate(super::unix_micros() / 1_000_000));
    if let Some(location) = location {
        fields.push(b"Location", location);
    }
    if !body.is_empty() {
        fields.push(b"Content-Type", content_type.as_bytes());
    }
    // The response to HEAD carries the length that GET would get. For other methods the framing says it.
    if !matches!(status, 204 | 304) {
        fields.push(b"Content-Length", itoa::Buffer::new().format(body.len()).as_bytes());
    }
    fields.push(b"X-Request-Id", request_id);
    if let Some(edits) = edits {
        edits.apply(&mut fields);
    }
    let head = ResponseHead {
        status,
        version: Version::Http11,
        reason: reason_phrase(status).as_bytes().into(),
        fields,
        body: BodyLength::Known(body.len() as u64),
    };
    (head, Chunk::from_vec(body.to_vec()))
}

/// Answers a request whose body cannot be read on, unless the client is gone.
pub(super) async fn refuse_body(
    sink: &mut impl ResponseSink,
    error: SourceError,
    request_id: &[u8],
    edits: Option<&Edits>,
) -> Outcome {
    match error {
        SourceError::Aborted => Outcome::Undeliverable(SinkError::Aborted),
        SourceError::Refused(reason) => refuse(sink, reason, request_id, edits).await,
    }
}

/// Answers a request ourselves; its response must not have begun. `edits`: the route's changes to the
/// response.
pub async fn refuse(
    sink: &mut impl ResponseSink,
    reason: RefusalReason,
    request_id: &[u8],
    edits: Option<&Edits>,
) -> Outcome {
    send(sink, refusal(reason, request_id, edits), Some(reason)).await
}

fn refusal(reason: RefusalReason, request_id: &[u8], edits: Option<&Edits>) -> (ResponseHead, Chunk) {
    let status = reason.status();
    let body = format!("{status} {}: {}\n", reason_phrase(status), reason.label());
    generated(status, ("text/plain; charset=utf-8", body.as_bytes()), None, request_id, edits)
}

/// Hands a response of our own to the sink.
pub(super) async fn send(
    sink: &mut impl ResponseSink,
    (head, body): (ResponseHead, Chunk),
    refused: Option<RefusalReason>,
) -> Outcome {
    let sent = async {
        sink.head(&head).await?;
        sink.data(body).await?;
        sink.finish(Fields::new()).await
    };
    match sent.await {
        Ok(()) => Outcome::Answered { status: head.status, refused },
        Err(error) => Outcome::Undeliverable(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::{Parsed, Recipient, ResponseDecoder, encode};
    use crate::http::limits::Limits;
    use crate::http::message::Method;

    #[test]
    fn every_refusal_is_a_response_that_we_parse() {
        let client = Recipient { version: Version::Http11, is_head: false, keep_alive: true };
        for &reason in RefusalReason::ALL {
            for recipient in [
                client,
                Recipient { version: Version::Http10, ..client },
                Recipient { is_head: true, ..client },
                Recipient::UNKNOWN,
            ] {
                let (head, body) = refusal(reason, b"id-1", None);
                let mut out = Vec::new();
                let sent = encode::response(&head, recipient, &mut out);
                let method = if recipient.is_head { Method::Head } else { Method::Get };
                let parsed = ResponseDecoder::new().parse(&out, &method, &Limits::UPSTREAM);
                let Ok(Parsed::Head { head, consumed, keep_alive }) = parsed else { panic!("{parsed:?}") };
                assert_eq!((consumed, head.status), (out.len(), reason.status()));
                assert_eq!((keep_alive, sent.keep_alive), (recipient.keep_alive, recipient.keep_alive));
                assert!(!head.reason.is_empty(), "{reason:?}");
                assert_eq!(head.fields.first(b"x-request-id"), Some(&b"id-1"[..]));
                assert!(head.fields.first(b"date").is_some());
                if !recipient.is_head {
                    assert_eq!(head.body, BodyLength::Known(body.len() as u64));
                }
                let text = std::str::from_utf8(&body).expect("text");
                assert!(text.ends_with(&format!(": {}\n", reason.label())), "{text:?}");
            }
        }
    }
}
