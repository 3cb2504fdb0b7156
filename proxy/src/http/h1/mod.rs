//! The HTTP/1 codec of both sides (RFC 9112), sans-IO: bytes in, decisions out; strict, so that nothing with
//! two readings passes.
//!
//! # Reading
//!
//! ```text
//! RequestDecoder::new().parse(&buf, &Limits)            -> Result<Parsed<RequestHead>, HeadError>
//! ResponseDecoder::new().parse(&buf, &method, &Limits)  -> Result<Parsed<ResponseHead>, HeadError>
//!     Parsed::NeedMore | Parsed::Head { head, consumed, keep_alive }
//!     HeadError::refusal(); a response's is always UpstreamMalformed
//! BodyDecoder::new(head.body).decode(&input)            -> Result<Step, BodyError>
//!     Step::Data { skip, len } | Step::NeedMore { consumed } | Step::End { consumed, trailers }
//! BodyDecoder::eof()                                    -> Result<(), BodyError>
//!     was the end of stream a clean end?
//! ```
//!
//! A head has to lie in one slice: while a decoder says `NeedMore`, append the next bytes to `buf` and call
//! `parse` again with the whole of it; the decoder remembers how far it looked, and never asks for more than
//! `limits.header_bytes`. `consumed` bytes belong to the head. Body or the next head follow them. After a
//! `Head` the decoder is ready for the next one, after an error it must not be used again: the connection
//! closes. A decoder is one small struct; drop it when the connection is idle.
//!
//! A body is decoded in place. `Data { skip, len }`: drop `skip` bytes of framing, pass `len` bytes on, call
//! again with the rest. `NeedMore { consumed }`: the whole input was framing (`consumed` is its length, maybe
//! 0). `End { consumed, trailers }`: drop `consumed`; the next message follows. Call `decode` at least once
//! for every body, with an empty slice if nothing is there yet: `None` and `Known(0)` end at once.
//!
//! # Writing
//!
//! ```text
//! encode::request(&head, &mut out)              -> Framing        Host, framing and TE are added here
//! encode::response(&head, Recipient, &mut out)  -> Sent { framing, keep_alive }
//! encode::informational(&head, &mut out)                          1xx; never to an HTTP/1.0 client
//! encode::CONTINUE                                                see RequestHead::expects_continue
//! Framing::before_data(len, &mut out)                             chunk size line, or nothing
//! Framing::after_data()                         -> &'static [u8]  end of a chunk, or nothing
//! Framing::end(&trailers, &mut out)                               last chunk with trailers, or nothing
//! ```
//!
//! Heads must have passed `http::forward` (or be our own): the encoders write neither hop-by-hop fields nor
//! Content-Length from `fields`, framing comes from `body` alone.

pub mod body;
pub mod encode;
mod head;
pub mod request;
pub mod response;
mod scan;

pub use body::{BodyDecoder, BodyError, Step};
pub use encode::{Framing, Recipient, Sent};
pub use head::HeadError;
pub use request::RequestDecoder;
pub use response::ResponseDecoder;

/// The outcome of a head decoder for its input.
#[derive(Clone, Debug)]
pub enum Parsed<H> {
    /// The head is not whole yet.
    NeedMore,
    /// A whole head.
    Head {
        /// It.
        head: H,
        /// How many bytes of the input it took.
        consumed: usize,
        /// Whether the connection may carry another exchange after this one (RFC 9112 §9.3).
        keep_alive: bool,
    },
}
