//! Plain traffic.
