//! HTTP/1 messages over a stream, for either side of an exchange: `h1` reads bodies and writes messages,
//! `pace` says how slow a peer may be.

pub mod h1;
pub mod pace;
