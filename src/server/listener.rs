//! Listening sockets: bound before a document is taken, accepted from until it is replaced.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use tokio::net::TcpListener;

use super::connection::Accepted;
use super::cores::Cores;
use crate::config::entry_point::ListenAddress;
use crate::proxy::guard::{Seat, Welcome};
use crate::snapshot::ListenerId;

/// Connections that the kernel holds for us; the system caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// While that goes on, it is said so often.
const ACCEPT_WARNING: Duration = Duration::from_secs(10);

/// An address that is ours, though nobody listens yet: connections to it go on to the socket that this one
/// may replace, and none is lost if the document is refused after all.
#[derive(Debug)]
pub struct Bound(Socket);

impl Bound {
    /// Begins to listen.
    ///
    /// # Errors
    /// Another socket listens there, which was bound at the same time.
    pub fn listen(self) -> io::Result<TcpListener> {
        self.0.listen(BACKLOG)?;
        TcpListener::from_std(self.0.into())
    }
}

/// Binds an address.
///
/// # Errors
/// What the system says; in use, not allowed, no such address.
pub fn bind(address: ListenAddress, reuse_port: bool) -> io::Result<Bound> {
    let wanted = address.socket_addr();
    match bind_exactly(wanted, reuse_port) {
        // No IPv6 on this host: all IPv4 addresses then.
        Err(error)
            if address.ip.is_none() && matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL)) =>
        {
            bind_exactly((Ipv4Addr::UNSPECIFIED, address.port).into(), reuse_port)
        }
        result => result,
    }
}

const EAFNOSUPPORT: i32 = 97;
const EADDRNOTAVAIL: i32 = 99;

fn bind_exactly(address: SocketAddr, reuse_port: bool) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A port whose old connections are still in TIME_WAIT can be bound again.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(Bound(socket))
}

/// Lets no new connection begin, while those whose handshake is under way still come to be accepted. A
/// socket that is just closed resets them; a client whose first packet is dropped sends it again after a
/// second, to whoever listens by then.
///
/// # Errors
/// The kernel takes no filters; then closing resets a few.
pub fn turn_away(listener: &TcpListener) -> io::Result<()> {
    // Byte 13 of the TCP header holds the flags, the filter's view begins with that header.
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(BPF_LOAD_BYTE, 0, 0, 13),
        SockFilter::new(BPF_JUMP_IF_SET, 0, 1, TCP_SYN),
        SockFilter::new(BPF_RETURN, 0, 0, 0),
        SockFilter::new(BPF_RETURN, 0, 0, u32::MAX),
    ])
}

/// `BPF_LD | BPF_B | BPF_ABS`.
const BPF_LOAD_BYTE: u16 = 0x30;
/// `BPF_JMP | BPF_JSET | BPF_K`.
const BPF_JUMP_IF_SET: u16 = 0x45;
/// `BPF_RET | BPF_K`: how much of the packet is let through.
const BPF_RETURN: u16 = 0x06;
const TCP_SYN: u32 = 0x02;

/// Lets another of our own sockets bind an address that overlaps this one's, for the moment in which one
/// replaces the other.
pub fn allow_overlap(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).set_reuse_port(true)
}

/// Connections that an entry point has turned away, by the limit that they were over.
#[derive(Debug, Default)]
pub struct TurnedAway {
    /// `maxConnections`.
    pub max: AtomicU64,
    /// `maxConnectionsPerClient`.
    pub max_per_client: AtomicU64,
}

/// How many connections a listener has and may have.
#[derive(Debug, Default)]
pub struct Admissions {
    open: AtomicU32,
    turned_away: Arc<TurnedAway>,
    /// 0: no limit.
    pub max: AtomicU32,
    /// Of them, of one client address; 0: no limit.
    pub max_per_client: AtomicU32,
    clients: Mutex<HashMap<IpAddr, u32>>,
}

impl Admissions {
    /// Counts what it turns away in `turned_away`.
    pub fn new(turned_away: Arc<TurnedAway>) -> Self {
        Self { turned_away, ..Self::default() }
    }

    /// Connections that are open.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Ticket> {
        let max = self.max.load(Ordering::Relaxed);
        if self.open.fetch_add(1, Ordering::Relaxed) >= max && max > 0 {
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.turned_away.max.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let mut ticket = Ticket { admissions: Arc::clone(self), client: None };
        let max_per_client = self.max_per_client.load(Ordering::Relaxed);
        if max_per_client > 0 {
            let client = one_client(client);
            let mut clients = self.clients.lock();
            let open = clients.entry(client).or_default();
            if *open >= max_per_client {
                self.turned_away.max_per_client.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            *open += 1;
            ticket.client = Some(client);
        }
        Some(ticket)
    }
}

/// Whom an address belongs to: a client of IPv6 has a whole /64 to choose from (RFC 4291 §2.5.4).
fn one_client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (!0 << 64)).into(),
        address => address,
    }
}

/// One place among a listener's connections.
#[derive(Debug)]
struct Ticket {
    admissions: Arc<Admissions>,
    client: Option<IpAddr>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admissions.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(client) = self.client {
            let mut clients = self.admissions.clients.lock();
            if let Some(open) = clients.get_mut(&client) {
                *open -= 1;
                if *open == 0 {
                    clients.remove(&client);
                }
            }
        }
    }
}

/// A connection's place: with its listener, in the process, and on its core.
#[derive(Debug)]
pub struct Admission {
    _ticket: Ticket,
    _seat: Seat,
    live: Arc<AtomicUsize>,
}

impl Admission {
    fn new(ticket: Ticket, seat: Seat, live: Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::Relaxed);
        Self { _ticket: ticket, _seat: seat, live }
    }
}

#[cfg(test)]
impl Admission {
    /// The place of a connection that nobody has accepted.
    pub(super) fn of_a_test() -> Self {
        let ticket = Arc::new(Admissions::default()).enter(Ipv4Addr::LOCALHOST.into()).expect("no limit");
        let guard = Arc::new(crate::proxy::guard::Guard::default());
        let Welcome::Served(seat) = guard.welcome() else { panic!("no limit") };
        Self::new(ticket, seat, Arc::default())
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts what waits on a socket that is about to be closed, so that no client finds its connection reset.
pub fn accept_waiting(listener: &TcpListener, id: ListenerId, admissions: &Arc<Admissions>, cores: &Cores) {
    while let Ok((stream, peer)) = SockRef::from(listener).accept() {
        if let (Ok(()), Some(peer)) = (stream.set_nonblocking(true), peer.as_socket()) {
            hand_out(stream.into(), peer, id, admissions, cores);
        }
    }
}

/// Accepts for ever and hands each connection to the least loaded core. Ends when it is aborted.
pub async fn accept(
    listener: Arc<TcpListener>,
    id: ListenerId,
    admissions: Arc<Admissions>,
    cores: Arc<Cores>,
) {
    let mut warned: Option<Instant> = None;
    loop {
        // A core registers the socket with its own reactor.
        match listener.accept().await.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
            Ok((stream, peer)) => hand_out(stream, peer, id, &admissions, &cores),
            // The client was gone before we came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                let now = Instant::now();
                if warned.is_none_or(|at| now > at + ACCEPT_WARNING) {
                    warned = Some(now);
                    tracing::warn!(%error, "no connection can be accepted for the moment");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn hand_out(
    stream: std::net::TcpStream,
    peer: SocketAddr,
    listener: ListenerId,
    admissions: &Arc<Admissions>,
    cores: &Cores,
) {
    // Without a place the socket is dropped, which closes it.
    let Some(ticket) = admissions.enter(peer.ip().to_canonical()) else { return };
    let (seat, unwelcome) = match cores.guard().welcome() {
        Welcome::Served(seat) => (seat, false),
        Welcome::Told(seat) => (seat, true),
        Welcome::Closed => return,
    };
    cores.hand_out(|live| {
        let admission = Admission::new(ticket, seat, live);
        Accepted { stream, peer, listener, admission, unwelcome }
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let of = |text: &str| super::one_client(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.2"), of("192.0.2.1"));
    }

    use std::net::TcpStream;

    use super::*;

    fn at(ip: Ipv4Addr, port: u16) -> ListenAddress {
        ListenAddress { ip: Some(ip.into()), port }
    }

    fn try_connect(port: u16) -> io::Result<TcpStream> {
        let address = (Ipv4Addr::LOCALHOST, port).into();
        TcpStream::connect_timeout(&address, Duration::from_millis(200))
    }

    /// A listener on all addresses, and its port.
    fn listening() -> (TcpListener, u16) {
        let listener =
            bind(at(Ipv4Addr::UNSPECIFIED, 0), false).and_then(Bound::listen).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        (listener, port)
    }

    #[tokio::test]
    async fn a_bound_address_takes_no_connection_from_the_running_listener() {
        let (old, port) = listening();
        allow_overlap(&old).expect("the system has it");
        let new = bind(at(Ipv4Addr::LOCALHOST, port), true).expect("an overlap");

        let _client = try_connect(port).expect("a listener");
        assert!(SockRef::from(&old).accept().is_ok());

        let new = new.listen().expect("an overlap");
        let _client = try_connect(port).expect("a listener");
        assert!(SockRef::from(&old).accept().is_err());
        assert!(SockRef::from(&new).accept().is_ok());
    }

    #[tokio::test]
    async fn turned_away_are_new_connections_and_not_those_that_wait() {
        let (listener, port) = listening();
        let mut waiting = try_connect(port).expect("a listener");

        turn_away(&listener).expect("the system has filters");

        assert_eq!(try_connect(port).map(drop).map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        let (accepted, _) = SockRef::from(&listener).accept().expect("one waits");
        io::Write::write_all(&mut waiting, b"x").expect("open");
        let mut byte = [0; 1];
        io::Read::read_exact(&mut std::net::TcpStream::from(accepted), &mut byte).expect("open");
    }
}
