//! HTTP as the proxy sees it: heads, bodies, and what the RFCs say about them.
//!
//! [`head`] and [`body`] are what every other module works on, whichever protocol carried them.

pub mod authority;
pub mod body;
pub mod client_ip;
pub mod copy;
pub mod error;
pub mod fields;
pub mod forwarded;
pub mod h1;
pub mod h2;
pub mod head;
pub mod limited;
pub mod pace;
pub mod path;
pub mod retry_after;
pub mod text;
pub mod value;
