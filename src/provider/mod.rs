//! Sources of configuration files, and when they change.

pub mod file;
