//! A client and an origin of HTTP/2 by the `h2` crate, for tests that are about flows and not about frames.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::DEADLINE;
use super::tls::{Pair, serving};

/// Runs a test's own client to its end, within the deadline.
#[track_caller]
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(async { tokio::time::timeout(DEADLINE, future).await }) {
        Ok(value) => value,
        Err(_) => panic!("not within {DEADLINE:?}"),
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.as_ref()?.get(name).map(|value| value.to_str().expect("text"))
    }
}

/// Opens a connection, whose task runs beside the test.
pub async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    speak(TcpStream::connect(address).await.expect("a listener")).await
}

/// The same through TLS, where the proxy must choose HTTP/2.
pub async fn connect_tls(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.expect("a listener");
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await.expect("TLS");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    speak(stream).await
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    // Room for streams beside one that is not read.
    builder.initial_connection_window_size(1 << 20);
    let (send, connection) = builder.handshake(stream).await.expect("a handshake");
    tokio::spawn(async move {
        // Tests see on their streams what becomes of it.
        let _ = connection.await;
    });
    send
}

/// A request to `a.test`.
pub fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://a.test{path}"))
}

/// Sends a request with content and reads the whole answer.
pub async fn ask(
    send: &mut SendRequest<Bytes>,
    request: http::request::Builder,
    body: impl Into<Bytes>,
) -> Result<Answer, h2::Error> {
    let body = body.into();
    let request = request.body(()).expect("a request");
    let mut ready = send.clone().ready().await?;
    let (response, mut stream) = ready.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        send_all(&mut stream, body, true).await?;
    }
    read(response.await?).await
}

/// Sends as the other side takes it.
pub async fn send_all(stream: &mut SendStream<Bytes>, mut body: Bytes, end: bool) -> Result<(), h2::Error> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let ready = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let room = match ready {
            Some(room) => room?.min(body.len()),
            None => return Err(h2::Reason::CANCEL.into()),
        };
        let part = body.split_to(room);
        let last = end && body.is_empty();
        stream.send_data(part, last)?;
    }
    Ok(())
}

/// Reads an answer to its end.
pub async fn read(response: Response<RecvStream>) -> Result<Answer, h2::Error> {
    let (parts, mut stream) = response.into_parts();
    let body = read_body(&mut stream).await?;
    let trailers = stream.trailers().await?;
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body, trailers })
}

/// Reads content to its end.
pub async fn read_body(stream: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(body.into())
}

type Handling = Pin<Box<dyn Future<Output = Result<(), h2::Error>> + Send>>;
type Handler = Arc<dyn Fn(Request<RecvStream>, SendResponse<Bytes>) -> Handling + Send + Sync>;

/// What an origin is told while it runs.
enum Told {
    /// Say GOAWAY on every connection.
    GoAway,
    /// End every connection at once.
    Cut,
}

/// What an origin with TLS puts into its side of ALPN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speaks {
    Both,
    Http1,
    Http2,
    /// It has never heard of ALPN, and speaks HTTP/1.1.
    Nothing,
}

/// TLS of an origin; what it speaks can be changed for connections to come.
struct Secure {
    pair: Pair,
    config: Mutex<Arc<ServerConfig>>,
}

impl Secure {
    fn speak(&self, what: Speaks) {
        let alpn: &[&str] = match what {
            Speaks::Both => &["h2", "http/1.1"],
            Speaks::Http1 => &["http/1.1"],
            Speaks::Http2 => &["h2"],
            Speaks::Nothing => &[],
        };
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = serving(&self.pair, alpn);
    }

    fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

/// An origin of HTTP/2: with prior knowledge, or with TLS, and then of HTTP/1.1 where the client wants that.
pub struct H2Origin {
    address: SocketAddr,
    secure: Option<Arc<Secure>>,
    seen: Arc<Seen>,
    told: mpsc::UnboundedSender<Told>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    http1: AtomicUsize,
    requests: Mutex<Vec<Request<()>>>,
}

/// Starts an origin that handles each request by a future.
pub fn h2_origin<F>(
    handler: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
) -> H2Origin
where
    F: Future<Output = Result<(), h2::Error>> + Send + 'static,
{
    h2_origin_with(h2::server::Builder::new(), handler)
}

/// The same, with settings.
pub fn h2_origin_with<F>(
    builder: h2::server::Builder,
    handler: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
) -> H2Origin
where
    F: Future<Output = Result<(), h2::Error>> + Send + 'static,
{
    start(builder, None, Arc::new(move |request, respond| Box::pin(handler(request, respond))))
}

/// Starts an origin with TLS that speaks what the client and `speaks` agree on. Over HTTP/1.1 it answers with
/// `HTTP/1.1` and the target, and a WebSocket's bytes come back as they are.
pub fn h2_origin_tls<F>(
    pair: &Pair,
    speaks: Speaks,
    handler: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
) -> H2Origin
where
    F: Future<Output = Result<(), h2::Error>> + Send + 'static,
{
    let secure = Secure { pair: pair.clone(), config: Mutex::new(serving(pair, &[])) };
    secure.speak(speaks);
    let handler: Handler = Arc::new(move |request, respond| Box::pin(handler(request, respond)));
    start(h2::server::Builder::new(), Some(Arc::new(secure)), handler)
}

fn start(builder: h2::server::Builder, secure: Option<Arc<Secure>>, handler: Handler) -> H2Origin {
    let seen = Arc::<Seen>::default();
    let (told, orders) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel();
    let (bound, listening) = std::sync::mpsc::channel();
    let of_thread = Arc::clone(&seen);
    let tls = secure.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            bound.send(listener.local_addr().expect("an address")).expect("the test waits");
            tokio::select! {
                () = accept(listener, builder, tls, handler, of_thread, orders) => {}
                _ = stopped => {}
            }
        });
    });
    let address = listening.recv().expect("an address");
    H2Origin { address, secure, seen, told, stop: Some(stop), thread: Some(thread) }
}

async fn accept(
    listener: TcpListener,
    builder: h2::server::Builder,
    secure: Option<Arc<Secure>>,
    handler: Handler,
    seen: Arc<Seen>,
    mut orders: mpsc::UnboundedReceiver<Told>,
) {
    let (tell, _) = tokio::sync::broadcast::channel::<bool>(16);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => return,
            },
            Some(order) = orders.recv() => {
                // Nobody may be connected.
                let _ = tell.send(matches!(order, Told::Cut));
                continue;
            }
        };
        seen.connections.fetch_add(1, Ordering::AcqRel);
        let (builder, handler, seen) = (builder.clone(), Arc::clone(&handler), Arc::clone(&seen));
        let told = tell.subscribe();
        let acceptor = secure.as_ref().map(|secure| secure.acceptor());
        tokio::spawn(async move {
            let Some(acceptor) = acceptor else { return serve(stream, builder, handler, seen, told).await };
            let Ok(stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                serve(stream, builder, handler, seen, told).await;
            } else {
                // The proxy may close it at any moment.
                let _ = serve_http1(stream, &seen, told).await;
            }
        });
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    builder: h2::server::Builder,
    handler: Handler,
    seen: Arc<Seen>,
    mut told: tokio::sync::broadcast::Receiver<bool>,
) {
    let Ok(mut connection) = builder.handshake(stream).await else { return };
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                let (parts, body) = request.into_parts();
                let shown = Request::from_parts(parts.clone(), ());
                seen.requests.lock().unwrap_or_else(PoisonError::into_inner).push(shown);
                let handling = handler(Request::from_parts(parts, body), respond);
                tokio::spawn(async move {
                    // The proxy may have given it up.
                    let _ = handling.await;
                });
            }
            Ok(cut) = told.recv() => {
                if cut {
                    return;
                }
                connection.graceful_shutdown();
            }
        }
    }
}

async fn serve_http1(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    seen: &Seen,
    mut told: tokio::sync::broadcast::Receiver<bool>,
) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            tokio::select! {
                byte = stream.read_u8() => head.push(byte?),
                // It knows no other way to say that it goes.
                Ok(_) = told.recv() => return Ok(()),
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        seen.http1.fetch_add(1, Ordering::AcqRel);
        if let Some(key) = super::tls::field(&head, "sec-websocket-key") {
            let accept = derive_accept_key(key.as_bytes());
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await?;
            let (mut read, mut write) = tokio::io::split(stream);
            tokio::io::copy(&mut read, &mut write).await?;
            return write.shutdown().await;
        }
        let body = format!("HTTP/1.1 {}", head.split(' ').nth(1).unwrap_or_default());
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
    }
}

impl H2Origin {
    /// As a server's `url`.
    pub fn url(&self) -> String {
        let scheme = if self.secure.is_some() { "https" } else { "h2c" };
        format!("{scheme}://{}", self.address)
    }

    /// Connections to come are agreed on with this.
    pub fn speak(&self, what: Speaks) {
        self.secure.as_ref().expect("it has TLS").speak(what);
    }

    /// How many requests came over HTTP/1.1.
    pub fn http1_hits(&self) -> usize {
        self.seen.http1.load(Ordering::Acquire)
    }

    /// How many requests came over HTTP/2.
    pub fn hits(&self) -> usize {
        self.seen.requests.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The heads of all requests.
    pub fn requests(&self) -> Vec<Request<()>> {
        let requests = self.seen.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests
            .iter()
            .map(|request| {
                let mut copy = Request::new(());
                *copy.method_mut() = request.method().clone();
                *copy.uri_mut() = request.uri().clone();
                *copy.headers_mut() = request.headers().clone();
                copy
            })
            .collect()
    }

    /// How many connections were ever accepted.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Acquire)
    }

    /// Says GOAWAY on every connection there is.
    pub fn go_away(&self) {
        self.told.send(Told::GoAway).expect("it runs");
    }

    /// Ends every connection there is at once.
    pub fn cut(&self) {
        self.told.send(Told::Cut).expect("it runs");
    }
}

impl Drop for H2Origin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A call of gRPC: sends every message back as it comes, and ends well.
pub async fn echo_call(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let mut stream = request.into_body();
    let head = Response::builder().header("content-type", "application/grpc").body(()).expect("an answer");
    let mut send = respond.send_response(head, false)?;
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        send_all(&mut send, data, false).await?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    send.send_trailers(trailers)
}

/// Echoes content, and trailers where the request had some.
pub async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let (parts, mut stream) = request.into_parts();
    let mut builder = Response::builder().status(200);
    if let Some(kind) = parts.headers.get("content-type") {
        builder = builder.header("content-type", kind);
    }
    let mut send = respond.send_response(builder.body(()).expect("an answer"), false)?;
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        send_all(&mut send, data, false).await?;
    }
    match stream.trailers().await? {
        Some(trailers) => send.send_trailers(trailers),
        None => send.send_data(Bytes::new(), true),
    }
}
