//! The integration tests: the real binary between raw clients and raw origins on real sockets.
//!
//! Each test owns a proxy process, a directory and its ports, so all of them run side by side.

mod harness;

mod access_log;
mod admin;
mod balancing;
mod bandwidth;
mod basic;
mod cli;
mod dns;
mod faults;
mod floods;
mod forwarded;
mod framing;
mod grpc;
mod h2_answers;
mod h2_floods;
mod h2_flows;
mod h2_frames;
mod h2_pods;
mod h2_tls;
mod large_bodies;
mod limits;
mod middlewares;
mod outbound;
mod queues;
mod redis;
mod redis_script;
mod refusals;
mod reload;
mod resilience;
mod routing;
mod services;
mod shutdown;
mod timeouts;
mod tls;
mod upstream_faults;
mod websocket;
