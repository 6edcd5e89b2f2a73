//! A raw origin: one thread a connection, a script for what it answers, a record of what it got.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::wire::{Content, Failure, Head, Wire, latin1};
use super::{DEADLINE, eventually};

/// One request, as the origin got it.
#[derive(Clone, Debug)]
pub struct Received {
    /// From the request line.
    pub method: String,
    /// From the request line.
    pub target: String,
    /// Its head.
    pub head: Head,
    /// Its content, without framing.
    pub body: Vec<u8>,
    /// The fields after the last chunk.
    pub trailers: Vec<(String, String)>,
    /// On which connection, from 1.
    pub connection: usize,
}

impl Received {
    /// The content as text.
    pub fn text(&self) -> String {
        latin1(&self.body)
    }
}

type Answer = Arc<dyn Fn(&Received, &mut Peer) + Send + Sync>;
type Takeover = Arc<dyn Fn(&mut Peer) + Send + Sync>;

/// The origin's side of one connection.
pub struct Peer {
    wire: Wire,
    shared: Arc<Shared>,
    number: usize,
    over: bool,
}

impl Peer {
    /// Writes exactly these bytes; the proxy may have gone, so a failure only ends the connection.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.over |= self.wire.write(bytes).is_err();
        self
    }

    /// Answers with a body of known length.
    pub fn respond(&mut self, status: &str, fields: &[(&str, &str)], body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut bytes = (head + "\r\n").into_bytes();
        bytes.extend_from_slice(body);
        self.write(bytes);
    }

    /// Writes one chunk; an empty one ends the body.
    pub fn chunk(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.write(chunk)
    }

    /// Reads a head, for scripts that take over a connection; it is recorded without a body.
    pub fn read_head(&mut self) -> Result<Head, Failure> {
        let head = self.wire.read_head()?;
        self.record(&head, Content::default());
        Ok(head)
    }

    /// Reads a whole request and records it.
    pub fn read_request(&mut self) -> Result<Received, Failure> {
        let head = self.wire.read_head()?;
        let content = self.wire.read_content(&head, false)?;
        Ok(self.record(&head, content))
    }

    /// Reads the body that a head announces.
    pub fn read_content(&mut self, head: &Head) -> Result<Content, Failure> {
        self.wire.read_content(head, false)
    }

    /// Reads so many bytes as they are.
    pub fn read_exactly(&mut self, count: usize) -> Result<Vec<u8>, Failure> {
        self.wire.read_exactly(count)
    }

    /// Reads until the proxy ends the connection in any way.
    pub fn rest(&mut self) -> Result<Vec<u8>, Failure> {
        self.wire.rest()
    }

    /// Reads nothing and answers nothing until the proxy goes away or the origin stops.
    pub fn hang(&mut self) {
        let _ = self.wire.rest();
        self.over = true;
    }

    /// Lets time pass, less of it when the origin stops.
    pub fn pause(&mut self, span: Duration) {
        let since = Instant::now();
        while since.elapsed() < span && !self.shared.stopping.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(2).min(span));
        }
    }

    /// Ends our direction only.
    pub fn half_close(&self) {
        self.wire.half_close();
    }

    /// Closes in an orderly way once the script returns.
    pub fn close(&mut self) {
        self.over = true;
    }

    /// Closes with a reset once the script returns.
    pub fn reset(&mut self) {
        self.wire.reset_on_close();
        self.over = true;
    }

    fn record(&self, head: &Head, content: Content) -> Received {
        let received = Received {
            method: head.word(0).to_owned(),
            target: head.word(1).to_owned(),
            head: head.clone(),
            body: content.bytes,
            trailers: content.trailers,
            connection: self.number,
        };
        self.shared.received().push(received.clone());
        received
    }
}

/// Begins an origin that answers everything with 200 and `METHOD target`.
pub fn origin() -> OriginBuilder {
    OriginBuilder { routes: Vec::new(), otherwise: Arc::new(echo), takeover: None }
}

fn echo(request: &Received, peer: &mut Peer) {
    peer.respond("200 OK", &[], format!("{} {}", request.method, request.target));
}

/// What an origin will do.
pub struct OriginBuilder {
    routes: Vec<(String, Answer)>,
    otherwise: Answer,
    takeover: Option<Takeover>,
}

impl OriginBuilder {
    /// Answers one path with a text.
    #[must_use]
    pub fn get(self, path: &str, text: &'static str) -> Self {
        self.on(path, move |_, peer| peer.respond("200 OK", &[], text))
    }

    /// Answers one path with exactly these bytes.
    #[must_use]
    pub fn raw(self, path: &str, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        self.on(path, move |_, peer| {
            peer.write(&bytes);
        })
    }

    /// Answers one path by a script. The query is no part of a path.
    #[must_use]
    pub fn on(mut self, path: &str, answer: impl Fn(&Received, &mut Peer) + Send + Sync + 'static) -> Self {
        self.routes.push((path.to_owned(), Arc::new(answer)));
        self
    }

    /// Answers everything else by a script.
    #[must_use]
    pub fn otherwise(mut self, answer: impl Fn(&Received, &mut Peer) + Send + Sync + 'static) -> Self {
        self.otherwise = Arc::new(answer);
        self
    }

    /// Answers everything else with a text, such as a name.
    #[must_use]
    pub fn always(self, text: &'static str) -> Self {
        self.otherwise(move |_, peer| peer.respond("200 OK", &[], text))
    }

    /// Hands whole connections to a script, from the first byte on.
    #[must_use]
    pub fn connection(mut self, takeover: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        self.takeover = Some(Arc::new(takeover));
        self
    }

    /// Listens on a free port of the loopback.
    pub fn start(self) -> Origin {
        self.start_on(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port")
    }

    /// Listens there.
    ///
    /// # Errors
    /// Somebody else does.
    pub fn start_on(self, address: SocketAddr) -> io::Result<Origin> {
        let shared = Arc::new(Shared {
            script: self,
            received: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            streams: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let (address, acceptor) = listen(address, &shared)?;
        Ok(Origin { shared, address, acceptor: Some(acceptor) })
    }
}

struct Shared {
    script: OriginBuilder,
    received: Mutex<Vec<Received>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    streams: Mutex<Vec<(usize, TcpStream)>>,
    stopping: AtomicBool,
}

impl Shared {
    fn received(&self) -> MutexGuard<'_, Vec<Received>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> MutexGuard<'_, Vec<(usize, TcpStream)>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(self: &Arc<Self>, stream: TcpStream, number: usize) {
        let mut peer = Peer { wire: Wire::new(stream), shared: Arc::clone(self), number, over: false };
        // Kept-alive connections may rest for as long as a test lasts.
        peer.wire.patience(Duration::from_secs(120));
        match &self.script.takeover {
            Some(takeover) => takeover(&mut peer),
            None => self.answer(&mut peer),
        }
    }

    fn answer(&self, peer: &mut Peer) {
        while !peer.over {
            let Ok(request) = peer.read_request() else { return };
            let path = request.target.split('?').next().unwrap_or_default();
            let route = self.script.routes.iter().find(|(route, _)| route == path);
            let answer = route.map_or(&self.script.otherwise, |(_, answer)| answer);
            answer(&request, peer);
            // RFC 9112 §9.3: the last answer of a connection that the client wants closed.
            if request.head.lists("Connection", "close") {
                return;
            }
        }
    }
}

fn listen(address: SocketAddr, shared: &Arc<Shared>) -> io::Result<(SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    shared.stopping.store(false, Ordering::Release);
    let shared = Arc::clone(shared);
    let acceptor = std::thread::spawn(move || {
        for stream in listener.incoming() {
            if shared.stopping.load(Ordering::Acquire) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let Ok(twin) = stream.try_clone() else { continue };
            let number = shared.connections.fetch_add(1, Ordering::AcqRel) + 1;
            shared.streams().push((number, twin));
            shared.open.fetch_add(1, Ordering::AcqRel);
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                shared.serve(stream, number);
                shared.streams().retain(|(other, _)| *other != number);
                shared.open.fetch_sub(1, Ordering::AcqRel);
            });
        }
    });
    Ok((address, acceptor))
}

/// A running origin; it stops when it is dropped.
pub struct Origin {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Origin {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As a server's `url`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests came.
    pub fn hits(&self) -> usize {
        self.shared.received().len()
    }

    /// How many connections were ever accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }

    /// How many connections are open now.
    pub fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }

    /// All requests, in the order in which they were read.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received().clone()
    }

    /// The newest request.
    ///
    /// # Panics
    /// When none came.
    #[track_caller]
    pub fn last(&self) -> Received {
        self.shared.received().last().cloned().expect("the origin got no request")
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.shared.received().clear();
    }

    /// Dies like a killed pod: refuses from now on, and every connection ends with a reset.
    pub fn kill(&mut self) {
        self.close_listener();
        for (_, stream) in self.shared.streams().iter() {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            // Wakes the thread that reads, and sends nothing.
            let _ = stream.shutdown(Shutdown::Read);
        }
        self.shared.streams().clear();
        let shared = Arc::clone(&self.shared);
        eventually("the origin's connections end", || shared.open.load(Ordering::Acquire) == 0);
    }

    /// Closes every connection in an orderly way and goes on listening.
    pub fn close_connections(&self) {
        for (_, stream) in self.shared.streams().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Listens again on the same port.
    pub fn revive(&mut self) {
        let mut acceptor = None;
        eventually("the origin's port is free again", || {
            acceptor = listen(self.address, &self.shared).ok();
            acceptor.is_some()
        });
        self.acceptor = acceptor.map(|(_, acceptor)| acceptor);
    }

    fn close_listener(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        if let Some(acceptor) = self.acceptor.take() {
            // Wakes the thread that accepts.
            let _ = TcpStream::connect_timeout(&self.address, DEADLINE);
            let _ = acceptor.join();
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.close_listener();
        for (_, stream) in self.shared.streams().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A port that is taken but refuses every connection.
pub struct Refused(Socket);

impl Refused {
    /// Takes a port and does not listen on it.
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        Self(socket)
    }

    /// As a server's `url`.
    pub fn url(&self) -> String {
        let address = self.0.local_addr().expect("a bound socket");
        format!("http://{}", address.as_socket().expect("an IP address"))
    }
}

/// A port on which connections never come to be: its queue is full, so the kernel drops every SYN.
pub struct BlackHole {
    socket: Socket,
    _queue: Vec<TcpStream>,
}

impl BlackHole {
    /// Listens with the shortest queue and fills it.
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        socket.listen(0).expect("a bound socket");
        let address = socket.local_addr().expect("a bound socket").as_socket().expect("an IP address");
        let mut queue = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queue.push(stream);
            assert!(queue.len() < 100, "the queue of {address} never fills");
        }
        Self { socket, _queue: queue }
    }

    /// As a server's `url`.
    pub fn url(&self) -> String {
        let address = self.socket.local_addr().expect("a bound socket");
        format!("http://{}", address.as_socket().expect("an IP address"))
    }
}
