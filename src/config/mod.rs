//! The document as written: YAML to a tree with positions, items from the tree, files merged.

pub mod admin;
pub mod balancing;
pub mod check;
pub mod de;
pub mod document;
pub mod entry_point;
#[cfg(test)]
mod example;
pub mod expand;
pub mod load;
pub mod observability;
pub mod overload;
pub mod providers;
pub mod render;
pub mod router;
pub mod schema;
pub mod service;
pub mod tls;
pub mod transport;
pub mod tree;
pub mod unsupported;
