//! The sockets of targets that speak with the proxy's code: both ends in one process.

use std::net::TcpStream;
use std::os::fd::OwnedFd;

use sluicegate::http::h1::io::Io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Two ends of a connection.
pub fn pair() -> (Io, tokio::net::TcpStream) {
    let (near, far) =
        socket2::Socket::pair(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a pair");
    let stream = |socket: socket2::Socket| {
        socket.set_nonblocking(true).expect("a live socket");
        tokio::net::TcpStream::from_std(TcpStream::from(OwnedFd::from(socket))).expect("in a runtime")
    };
    (Io::new(stream(near)), stream(far))
}

/// Says it all, and gives what came back.
pub async fn talk(stream: tokio::net::TcpStream, says: Vec<u8>) -> Vec<u8> {
    let (mut read, mut write) = stream.into_split();
    let saying = tokio::task::spawn_local(async move {
        // The other side may have heard enough.
        let _ = write.write_all(&says).await;
        let _ = write.shutdown().await;
    });
    let mut got = Vec::new();
    // A reset ends it too.
    let _ = read.read_to_end(&mut got).await;
    saying.abort();
    got
}
