//! HTTP, sans-IO: protocol-neutral messages, the strict HTTP/1.1 codec of both sides, and the changes that a
//! proxy makes on the way (hop-by-hop fields, Via, X-Forwarded-*).

pub mod authentication;
pub mod authority;
pub mod date;
pub mod edit;
pub mod fields;
pub mod forward;
pub mod grammar;
pub mod h1;
pub mod limits;
pub mod message;
pub mod names;
pub mod path;
pub mod redirect;
pub mod status;
pub mod underscores;
pub mod upgrade;
