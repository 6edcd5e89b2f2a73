//! The admin listener's sockets.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::admin::{AdminView, answer};

/// Connections at once; more wait in the listener's queue. Probes, scrapers and people need a handful.
const MAX_CONNECTIONS: usize = 256;

/// For a whole request head, the wait for the next one included. Longer than the usual interval
/// of a probe or half of a scrape's would hold places for nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Life of a connection; then it ends after its answer. So nobody who reads slowly holds a place for ever.
const MAX_AGE: Duration = Duration::from_secs(300);

/// For running answers once their connection shall end.
const GRACE: Duration = Duration::from_secs(5);

/// Rest after a failed accept, which mostly means that no descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the admin listener until `shutdown` is done, then lets running answers end for up to 5 s.
///
/// Needs a tokio runtime with timers. Answers that grow with the configuration run on its blocking pool.
///
/// # Errors
/// None so far: failed accepts are logged and tried again.
pub async fn serve(
    listener: TcpListener,
    view: Arc<dyn AdminView>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let (view, stopped) = (Arc::clone(&view), stopped.clone());
                connections.spawn(async move {
                    connection(stream, view, stopped).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin listener cannot accept");
                tokio::select! {
                    () = &mut shutdown => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
        // Takes out what has ended, so that the set does not grow.
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    drop(stop);
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn connection(stream: TcpStream, view: Arc<dyn AdminView>, mut stopped: watch::Receiver<()>) {
    // Answers go out in one write each.
    drop(stream.set_nodelay(true));
    let service = service_fn(move |request| {
        let view = Arc::clone(&view);
        async move { Ok::<_, Infallible>(respond(view, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return ended(result),
        // The sender goes; it never sends.
        _ = stopped.changed() => {}
        () = tokio::time::sleep(MAX_AGE) => {}
    }
    connection.as_mut().graceful_shutdown();
    if let Ok(result) = tokio::time::timeout(GRACE, connection).await {
        ended(result);
    }
}

fn ended(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "admin connection ended early");
    }
}

async fn respond(view: Arc<dyn AdminView>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    // No request has a body that matters; hyper closes the connection if one is left unread.
    drop(body);
    let path = head.uri.path();
    // Probes must be quick even while a large page is made.
    let response = if matches!(path, "/livez" | "/readyz" | "/ping") {
        answer(view.as_ref(), &head.method, path, head.uri.query())
    } else {
        let made = tokio::task::spawn_blocking(move || {
            answer(view.as_ref(), &head.method, head.uri.path(), head.uri.query())
        });
        made.await.unwrap_or_else(|error| {
            tracing::error!(%error, "admin answer failed");
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        })
    };
    response.map(Full::new)
}
