//! The beginning of a connection where TLS is taken: told from plain HTTP by its first byte, then a handshake
//! under the options of the name that the client asks for.

use std::future::poll_fn;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::server::{Accepted, Acceptor};
use rustls::{Error, ServerConnection};
use tokio::net::TcpStream;

use super::connection::{Control, Drain, FIRST_REQUEST};
use super::h2::refuse;
use crate::common::clock::{self, Millis};
use crate::common::timer::{Slot, deadline};
use crate::http::error::ProxyError;
use crate::http::forwarded::Peer;
use crate::http::h1::io::Io;
use crate::proxy::core::Core;
use crate::snapshot::ListenerId;
use crate::telemetry::metrics::{CloseReason, EntryPointLabel, Handshake, TimeoutKind};
use crate::tls::session::TlsSession;

/// First byte of a TLS record that holds a handshake (RFC 8446 §5.1). No method begins with it.
const HANDSHAKE_RECORD: u8 = 22;

/// A connection ready for requests; the session where it is TLS.
pub(super) type Met = (Io, Option<Box<TlsSession>>);

/// Waits for the first byte and, where it begins a handshake, goes through with that.
pub(super) async fn meet(
    core: &Core,
    label: EntryPointLabel,
    listener: ListenerId,
    (tcp, peer): (TcpStream, SocketAddr),
    slot: &Slot,
    control: &Control,
) -> Result<Met, CloseReason> {
    let patience = {
        let snapshot = core.snapshot();
        let entry = snapshot.entry_point(listener).ok_or(CloseReason::Drained)?;
        entry.settings.head_timeout
    };
    let mut first = [0];
    let peeked = unless_drained(control, slot, at(patience), pin!(tcp.peek(&mut first))).await;
    match peeked {
        Err(CloseReason::Timeout) => return Err(CloseReason::Idle),
        Err(reason) => return Err(reason),
        Ok(Err(_) | Ok(0)) => return Err(CloseReason::Client),
        Ok(Ok(_)) if first[0] != HANDSHAKE_RECORD => return Ok((Io::new(tcp), None)),
        Ok(Ok(_)) => {}
    }
    let (patience, handshakes, max) = {
        let snapshot = core.snapshot();
        let entry = snapshot.entry_point(listener).ok_or(CloseReason::Drained)?;
        // Taken out of the configuration since it was accepted: HTTP will say what it thinks of the bytes.
        let Some(tls) = &entry.tls else { return Ok((Io::new(tcp), None)) };
        (tls.handshake_timeout, Arc::clone(&tls.handshakes), tls.max_handshakes)
    };
    let Some(mut place) = Place::take(core, label, handshakes, max) else {
        return Err(CloseReason::Refused);
    };
    match unless_drained(control, slot, at(patience), pin!(handshake(core, listener, tcp))).await {
        Ok(Ok((io, session))) => {
            place.outcome = if session.resumed { Handshake::Resumed } else { Handshake::Full };
            Ok((io, Some(session)))
        }
        Ok(Err(error)) => {
            place.outcome = outcome(&error);
            tracing::debug!(%error, outcome = place.outcome.as_str(), "TLS handshake failed");
            if is_clients_fault(place.outcome) {
                let error = ProxyError::Handshake(place.outcome.as_str());
                refuse(core, listener, &Peer::new(peer, true), &error);
            }
            Err(CloseReason::Handshake)
        }
        Err(CloseReason::Timeout) => {
            place.outcome = Handshake::Timeout;
            core.metrics.timed_out(TimeoutKind::Handshake);
            let error = ProxyError::Handshake(place.outcome.as_str());
            refuse(core, listener, &Peer::new(peer, true), &error);
            Err(CloseReason::Timeout)
        }
        Err(reason) => Err(reason),
    }
}

/// Waits for `beginning` until `at`, or for [`FIRST_REQUEST`] from when the connection is told to end: it was
/// accepted, so what it waits for is likely under way.
async fn unless_drained<T>(
    control: &Control,
    slot: &Slot,
    mut at: Millis,
    mut beginning: Pin<&mut impl Future<Output = T>>,
) -> Result<T, CloseReason> {
    let mut told = false;
    let result = poll_fn(|cx| {
        if let Poll::Ready(value) = beginning.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        control.wake_with(cx);
        if !told && control.drain.get() == Drain::Close {
            told = true;
            at = at.min(clock::now() + FIRST_REQUEST);
        }
        slot.poll_at(cx, at).map(|()| Err(if told { CloseReason::Drained } else { CloseReason::Timeout }))
    })
    .await;
    slot.clear();
    result
}

fn at(patience: Millis) -> Millis {
    deadline(clock::now(), (patience != 0).then(|| Duration::from_millis(patience)))
}

/// A handshake among those that may be under way; counted when it ends, however it does.
struct Place<'a> {
    core: &'a Core,
    label: EntryPointLabel,
    handshakes: Arc<AtomicU32>,
    outcome: Handshake,
}

impl<'a> Place<'a> {
    fn take(core: &'a Core, label: EntryPointLabel, handshakes: Arc<AtomicU32>, max: u32) -> Option<Self> {
        if handshakes.fetch_add(1, Ordering::Relaxed) >= max && max > 0 {
            handshakes.fetch_sub(1, Ordering::Relaxed);
            core.metrics.handshake_refused(label, Handshake::Busy);
            return None;
        }
        core.metrics.handshake_begun(label);
        Some(Self { core, label, handshakes, outcome: Handshake::Failed })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.handshakes.fetch_sub(1, Ordering::Relaxed);
        self.core.metrics.handshake_ended(self.label, self.outcome);
    }
}

async fn handshake(core: &Core, listener: ListenerId, tcp: TcpStream) -> io::Result<(Io, Box<TlsSession>)> {
    let accepted = hello(&tcp).await?;
    let (name, options) = {
        let snapshot = core.snapshot();
        let tls = snapshot.entry_point(listener).and_then(|entry| entry.tls.as_ref());
        let tls = tls.ok_or(io::ErrorKind::ConnectionAborted)?;
        let hello = accepted.client_hello();
        let name = hello.server_name();
        (name.map(Box::from), Arc::clone(tls.options.find(name)))
    };
    let session: ServerConnection = match accepted.into_connection(Arc::clone(&options.config)) {
        Ok(session) => session,
        Err((error, mut alert)) => {
            // If the socket does not take those seven bytes now, nobody is there to read them.
            let _ = alert.write(&mut Now(&tcp));
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
    };
    let io = Io::tls(tcp, session);
    poll_fn(|cx| io.poll_handshake(cx)).await?;
    let session = io.session(|session| TlsSession::of(session, name, &options));
    let session = session.ok_or(io::ErrorKind::InvalidData)?;
    Ok((io, Box::new(session)))
}

/// Reads the first message of a handshake; rustls bounds it at 64 KiB.
async fn hello(tcp: &TcpStream) -> io::Result<Accepted> {
    let mut acceptor = Acceptor::default();
    poll_fn(|cx| poll_hello(&mut acceptor, tcp, cx)).await
}

fn poll_hello(acceptor: &mut Acceptor, tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        match acceptor.read_tls(&mut Now(tcp)) {
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Poll::Ready(Err(error)),
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Poll::Ready(Ok(accepted)),
            Ok(None) => {}
            Err((error, mut alert)) => {
                // As above.
                let _ = alert.write(&mut Now(tcp));
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
    }
}

/// What the socket has or takes now.
struct Now<'a>(&'a TcpStream);

impl Read for Now<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl io::Write for Now<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a handshake failed, as it is counted.
fn outcome(error: &io::Error) -> Handshake {
    let Some(tls) = error.get_ref().and_then(|source| source.downcast_ref::<Error>()) else {
        return Handshake::Closed;
    };
    match tls {
        Error::PeerIncompatible(_) => Handshake::NothingInCommon,
        Error::NoApplicationProtocol => Handshake::NoProtocol,
        Error::NoCertificatesPresented => Handshake::NoClientCertificate,
        Error::InvalidCertificate(_) => Handshake::BadClientCertificate,
        Error::AlertReceived(_) => Handshake::RefusedByClient,
        Error::InvalidMessage(_) | Error::PeerMisbehaved(_) | Error::InappropriateMessage { .. } => {
            Handshake::Malformed
        }
        Error::InappropriateHandshakeMessage { .. } | Error::DecryptError => Handshake::Malformed,
        // The only general error of a server: its resolver has found no certificate.
        Error::General(_) => Handshake::UnknownName,
        _ => Handshake::Failed,
    }
}

/// Whether a handshake failed by what the client sent, or did not send. One who leaves, or does not trust us, is
/// not refused.
fn is_clients_fault(outcome: Handshake) -> bool {
    match outcome {
        Handshake::NothingInCommon
        | Handshake::NoProtocol
        | Handshake::NoClientCertificate
        | Handshake::BadClientCertificate
        | Handshake::Malformed
        | Handshake::UnknownName
        | Handshake::Timeout => true,
        Handshake::Full
        | Handshake::Resumed
        | Handshake::RefusedByClient
        | Handshake::Closed
        | Handshake::Busy
        | Handshake::Failed => false,
    }
}
