//! HTTP/1.1 on the wire (RFC 9112), both sides: heads, framing, connections.
//!
//! Our own codec, because what stands at an edge must see every byte: it refuses what two readers
//! could read in two ways, answers each refusal through our one table, holds no buffer for an idle
//! connection, and costs a fraction of a general library.

pub mod client;
pub mod encode;
pub mod framing;
pub mod io;
pub mod memory;
pub mod parse;
pub mod server;
mod splice;
mod tls;
