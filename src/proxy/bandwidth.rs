//! Bodies and tunnels, held to the rates of a `bandwidth` link.

use std::sync::Arc;

use super::exchange::Exchange;
use crate::http::body::Body;
use crate::http::pace::{Pace, Paced, Paces};
use crate::middleware::{Bandwidth, Lane};

/// What a tunnel has to wait for, each way.
#[derive(Debug, Default)]
pub struct TunnelPaces {
    /// From the client to the pod.
    pub up: Paces,
    /// From the pod to the client.
    pub down: Paces,
}

/// The request's body, no faster than the link lets it pass.
pub fn upload(exchange: &Exchange<'_>, link: &Bandwidth, body: Body) -> Body {
    match &link.upload {
        Some(lane) => hold(exchange, lane, body),
        None => body,
    }
}

/// The answer's body, likewise; or what flows both ways from here on.
pub fn download(exchange: &mut Exchange<'_>, link: &Bandwidth, body: &mut Body) {
    if let Body::Tunnel(_) = body {
        let mut paces = exchange.paces.take().unwrap_or_default();
        let lanes = [(&link.upload, &mut paces.up), (&link.download, &mut paces.down)];
        for (lane, paces) in lanes {
            if let Some(lane) = lane {
                paces.push(pace(exchange, lane));
            }
        }
        exchange.paces = Some(paces);
    } else if let Some(lane) = &link.download {
        *body = hold(exchange, lane, std::mem::take(body));
    }
}

fn hold(exchange: &Exchange<'_>, lane: &Lane, body: Body) -> Body {
    match &body {
        Body::Empty => body,
        // It would pass at once.
        Body::Full(bytes) if bytes.len() as u64 <= lane.rate.burst() => body,
        _ => Paced::body(body, pace(exchange, lane)),
    }
}

fn pace(exchange: &Exchange<'_>, lane: &Lane) -> Pace {
    Pace::new(lane.rate, exchange.core.timers.slot(), Arc::clone(&lane.counts))
}
