//! `mirroring`: copies of requests for services whose answers nobody waits for.
//!
//! A mirror never delays and never fails the request that it copies: the copy is made while the body passes,
//! sent by a task of its own, and dropped wherever a bound is reached. The task ends by its own deadline.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::core::Core;
use super::exchange::{Beginning, Exchange};
use super::forward::forward;
use crate::common::clock::{self, Millis};
use crate::common::timer::deadline;
use crate::http::authority::Checked;
use crate::http::body::Body;
use crate::http::copy::{Copied, Copying, NotCopied};
use crate::http::forwarded::Peer;
use crate::http::head::{Request, RequestHead};
use crate::snapshot::{ListenerId, MirrorPlace, Mirroring, Service};
use crate::telemetry::metrics::MirrorOutcome;

/// Begins to mirror a request as its service says; the body of `request` is copied from now on.
pub(super) fn start(exchange: &Exchange<'_>, mirroring: &Mirroring, request: &mut Request) {
    // Another try of the same request is no other request, and a changed protocol cannot be copied.
    if exchange.attempts != exchange.attempts_before || exchange.upgrade.is_some() {
        return;
    }
    let mut taken: SmallVec<[(&Arc<Service>, MirrorPlace); 2]> = SmallVec::new();
    for mirror in mirroring.mirrors.iter().filter(|mirror| mirror.percent.takes()) {
        match mirroring.places.take() {
            Some(place) => taken.push((&mirror.service, place)),
            None => exchange.core.metrics.mirrored(mirror.service.label, MirrorOutcome::Busy),
        }
    }
    if taken.is_empty() {
        return;
    }
    let copies = copies(mirroring, &mut request.body, taken.len());
    for ((service, place), copy) in taken.into_iter().zip(copies) {
        let mirrored = Mirrored {
            core: Rc::clone(exchange.core),
            listener: exchange.entry.listener,
            service: Arc::clone(service),
            peer: exchange.peer.clone(),
            authority: exchange.authority.clone(),
            named: exchange.named.clone(),
            drop_forwarded_for: exchange.links.drop_forwarded_for,
            head: request.head.clone(),
            until: deadline(clock::recent(), mirroring.timeout),
        };
        tokio::task::spawn_local(mirrored.run(copy, place));
    }
}

/// The body for each mirror.
enum Copy {
    /// None, or one that was there whole.
    Now(Body),
    /// What will be copied.
    Later(oneshot::Receiver<Result<Arc<Copied>, NotCopied>>),
}

fn copies(mirroring: &Mirroring, body: &mut Body, count: usize) -> Vec<Copy> {
    let Some(limit) = mirroring.body_limit else {
        return (0..count).map(|_| Copy::Now(Body::Empty)).collect();
    };
    match body {
        Body::Empty => return (0..count).map(|_| Copy::Now(Body::Empty)).collect(),
        Body::Full(bytes) if bytes.len() as u64 <= limit => {
            return (0..count).map(|_| Copy::Now(Body::Full(bytes.clone()))).collect();
        }
        _ => {}
    }
    let (copying, copied) = Copying::begin(std::mem::take(body), limit, &mirroring.room);
    *body = copying;
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| oneshot::channel()).unzip();
    tokio::task::spawn_local(async move {
        // When the body breaks off, the senders are dropped and the mirrors with them.
        let Ok(copied) = copied.await else { return };
        let copied = copied.map(Arc::new);
        for sender in senders {
            // A mirror that has ended needs no body.
            let _ = sender.send(copied.clone());
        }
    });
    receivers.into_iter().map(Copy::Later).collect()
}

/// One copy of a request, with all that it needs to outlive what it copies.
struct Mirrored {
    core: Rc<Core>,
    listener: ListenerId,
    service: Arc<Service>,
    peer: Peer,
    authority: Checked,
    named: SmallVec<[http::HeaderName; 1]>,
    drop_forwarded_for: bool,
    head: Box<RequestHead>,
    until: Millis,
}

impl Mirrored {
    async fn run(self, copy: Copy, place: MirrorPlace) {
        let (core, label) = (Rc::clone(&self.core), self.service.label);
        let outcome = match copy {
            Copy::Now(body) => self.send(body).await,
            Copy::Later(copied) => match copied.await {
                Ok(Ok(copied)) => self.send(copied.body()).await,
                Ok(Err(NotCopied::TooLarge)) => MirrorOutcome::TooLarge,
                Ok(Err(NotCopied::NoRoom)) => MirrorOutcome::NoRoom,
                Err(_) => MirrorOutcome::Incomplete,
            },
        };
        core.metrics.mirrored(label, outcome);
        drop(place);
    }

    async fn send(self, body: Body) -> MirrorOutcome {
        let snapshot = self.core.snapshot();
        let Some(entry) = snapshot.entry_point(self.listener) else { return MirrorOutcome::Failed };
        let slot = self.core.timers.slot();
        let copy = Beginning::of_copy(&self.core, entry, &self.peer, &self.authority, &slot, self.named);
        let mut exchange = Exchange::new(copy);
        exchange.deadline = self.until;
        exchange.links.drop_forwarded_for = self.drop_forwarded_for;
        let request = Request { head: self.head, body };
        let Ok(mut response) = Box::pin(forward(&mut exchange, &self.service, request)).await else {
            return MirrorOutcome::Failed;
        };
        // Read to its end, so that the connection can be used again.
        let read = async { while let Some(Ok(_)) = poll_fn(|cx| response.body.poll_piece(cx)).await {} };
        match slot.within(self.until, read).await {
            Ok(()) => MirrorOutcome::Answered,
            Err(_) => MirrorOutcome::Failed,
        }
    }
}
