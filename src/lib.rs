//! Sluicegate: a reverse proxy and edge rate limiter that makes unreliable pods look reliable.

pub mod admin;
pub mod app;
pub mod balance;
pub mod cli;
pub mod common;
pub mod config;
pub mod demo;
pub mod endpoint;
pub mod health;
pub mod http;
pub mod limit;
pub mod matcher;
pub mod middleware;
pub mod provider;
pub mod proxy;
pub mod reload;
pub mod server;
pub mod snapshot;
pub mod status;
pub mod telemetry;
pub mod upstream;
