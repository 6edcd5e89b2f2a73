//! WebSocket: by `Upgrade` over HTTP/1.1 with a real client, by extended CONNECT over HTTP/2.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::Response;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::harness::h2::{connect, run, send_all};
use crate::harness::origin::{Peer, Received};
use crate::harness::{Origin, origin, proxy};

fn switch(request: &Received, peer: &mut Peer) {
    let key = request.head.get("Sec-WebSocket-Key").unwrap_or_default();
    let accept = derive_accept_key(key.as_bytes());
    peer.write(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    ));
}

/// Echoes bytes as they are, once switched.
fn pod() -> Origin {
    origin()
        .on("/chat", |request, peer| {
            switch(request, peer);
            while let Ok(byte) = peer.read_exactly(1) {
                peer.write(byte);
            }
            peer.close();
        })
        .on("/bye", |request, peer| {
            switch(request, peer);
            peer.write("bye").close();
        })
        .on("/wrong", |_, peer| {
            peer.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n");
            peer.hang();
        })
        .on("/forbidden", |_, peer| peer.respond("403 Forbidden", &[], "no"))
        .start()
}

type Opened = (Response<RecvStream>, SendStream<Bytes>);

async fn open(send: &SendRequest<Bytes>, protocol: &'static str, path: &str) -> Result<Opened, h2::Error> {
    let mut send = send.clone().ready().await?;
    while !send.is_extended_connect_protocol_enabled() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut request = http::Request::builder()
        .method("CONNECT")
        .uri(format!("http://a.test{path}"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .header("origin", "http://a.test")
        .body(())
        .expect("a request");
    request.extensions_mut().insert(Protocol::from_static(protocol));
    let (response, stream) = send.send_request(request, false)?;
    Ok((response.await?, stream))
}

#[test]
fn an_extended_connect_becomes_a_websocket_of_http1() {
    let pod = pod();
    let proxy = proxy().all_to(&pod).start();
    run(async {
        let send = connect(proxy.address("web")).await;
        let (mut response, mut stream) = open(&send, "websocket", "/chat?x=y").await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        assert!(!response.headers().contains_key("sec-websocket-accept"));
        for text in ["hello", "and", "again"] {
            send_all(&mut stream, Bytes::from(text), false).await.unwrap();
            let mut got = Vec::new();
            while got.len() < text.len() {
                let data = response.body_mut().data().await.unwrap().unwrap();
                response.body_mut().flow_control().release_capacity(data.len()).unwrap();
                got.extend_from_slice(&data);
            }
            assert_eq!(got, text.as_bytes());
        }
        stream.send_data(Bytes::new(), true).unwrap();
        let rest = crate::harness::h2::read_body(response.body_mut()).await.unwrap();
        assert_eq!(rest, "", "the pod's end is the stream's end");
    });
    let request = pod.last();
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/chat?x=y"));
    assert_eq!(request.head.get("Upgrade"), Some("websocket"));
    assert!(request.head.lists("Connection", "upgrade"));
    assert_eq!(request.head.get("Sec-WebSocket-Version"), Some("13"));
    assert_eq!(request.head.get("X-Forwarded-Proto"), Some("ws"));
    proxy.await_metric("sluicegate_entrypoint_requests_total{protocol=\"websocket\"}", 1.0);
}

#[test]
fn a_tunnel_ends_with_the_pods_end() {
    let pod = pod();
    let proxy = proxy().all_to(&pod).start();
    run(async {
        let send = connect(proxy.address("web")).await;
        let (mut response, mut stream) = open(&send, "websocket", "/bye").await.unwrap();
        let body = crate::harness::h2::read_body(response.body_mut()).await.unwrap();
        assert_eq!(body, "bye");
        stream.send_data(Bytes::new(), true).unwrap();
    });
    proxy.await_metric("sluicegate_entrypoint_requests_total{protocol=\"websocket\"}", 1.0);
}

#[test]
fn a_reset_of_the_stream_ends_the_pods_connection() {
    let pod = pod();
    let proxy = proxy().all_to(&pod).start();
    run(async {
        let send = connect(proxy.address("web")).await;
        let (_response, mut stream) = open(&send, "websocket", "/chat").await.unwrap();
        stream.send_reset(Reason::CANCEL);
        while pod.open_connections() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn what_is_no_switch_is_never_taken_for_one() {
    let pod = pod();
    let proxy = proxy().all_to(&pod).start();
    run(async {
        let send = connect(proxy.address("web")).await;
        let (response, _) = open(&send, "websocket", "/forbidden").await.unwrap();
        assert_eq!(response.status(), 403);
        let (response, _) = open(&send, "websocket", "/answers-200").await.unwrap();
        assert_eq!(response.status(), 502);
        let (response, _) = open(&send, "websocket", "/wrong").await.unwrap();
        assert_eq!(response.status(), 502);
        let (response, _) = open(&send, "connect-udp", "/chat").await.unwrap();
        assert_eq!(response.status(), 501);
    });
}

/// A pod that echoes messages, on a thread of its own for one connection.
fn message_pod() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let Ok((stream, _)) = listener.accept() else { return };
        let Ok(mut socket) = tungstenite::accept(stream) else { return };
        while let Ok(message) = socket.read() {
            if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
                return;
            }
        }
    });
    address
}

#[test]
fn a_websocket_over_http1_carries_messages_both_ways() {
    let proxy = proxy()
        .config(&format!(
            "http:\n  routers: {{ r: {{ rule: 'PathPrefix(`/`)', service: s }} }}\n  \
             services: {{ s: {{ loadBalancer: {{ servers: [{{ url: 'http://{}' }}] }} }} }}\n",
            message_pod()
        ))
        .start();
    let stream = std::net::TcpStream::connect(proxy.address("web")).expect("a listener");
    stream.set_read_timeout(Some(crate::harness::DEADLINE)).expect("a span");
    let (mut socket, response) = tungstenite::client("ws://a.test/chat", stream).expect("a handshake");
    assert_eq!(response.status(), 101);
    for size in [1, 125, 126, 65_535, 65_536, 1 << 20] {
        let sent = tungstenite::Message::binary(vec![b'x'; size]);
        socket.send(sent.clone()).expect("sent");
        assert_eq!(socket.read().expect("an echo"), sent);
    }
    socket.close(None).expect("a close");
    while socket.read().is_ok() {}
    drop(socket);
    proxy.await_metric("sluicegate_entrypoint_requests_total{protocol=\"websocket\"}", 1.0);
}

#[test]
fn a_websocket_over_http2_goes_on_through_a_shutdown_and_ends_when_it_wants() {
    let pod = pod();
    let mut proxy = proxy()
        .all_to(&pod)
        .web("transport: { lifeCycle: { requestAcceptGraceTimeout: 0s, graceTimeOut: 60s } }")
        .start();
    run(async {
        let send = connect(proxy.address("web")).await;
        let (mut response, mut stream) = open(&send, "websocket", "/chat").await.unwrap();
        proxy.signal("TERM");
        // GOAWAY has come.
        while send.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        send_all(&mut stream, Bytes::from("still"), false).await.unwrap();
        let mut got = Vec::new();
        while got.len() < 5 {
            let data = response.body_mut().data().await.unwrap().unwrap();
            response.body_mut().flow_control().release_capacity(data.len()).unwrap();
            got.extend_from_slice(&data);
        }
        assert_eq!(got, b"still");
        stream.send_data(Bytes::new(), true).unwrap();
        crate::harness::h2::read_body(response.body_mut()).await.unwrap();
    });
    assert!(proxy.wait_exit().success());
}

#[test]
fn a_websocket_over_http2_does_not_outlast_the_grace() {
    let pod = pod();
    let mut proxy = proxy()
        .all_to(&pod)
        .web("transport: { lifeCycle: { requestAcceptGraceTimeout: 0s, graceTimeOut: 500ms } }")
        .start();
    run(async {
        let send = connect(proxy.address("web")).await;
        let (mut response, _stream) = open(&send, "websocket", "/chat").await.unwrap();
        proxy.signal("TERM");
        let end = response.body_mut().data().await;
        assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    });
    assert!(proxy.wait_exit().success());
}

#[test]
fn a_websocket_to_an_h2c_server_is_a_502_that_says_why() {
    let pod = crate::harness::h2::h2_origin(crate::harness::h2::echo);
    let proxy = proxy()
        .config(&format!(
            "http:\n  routers: {{ r: {{ rule: 'PathPrefix(`/`)', service: s }} }}\n  \
             services: {{ s: {{ loadBalancer: {{ servers: [{{ url: '{}' }}] }} }} }}\naccessLog: {{ format: json }}\n",
            pod.url()
        ))
        .start();
    run(async {
        let send = connect(proxy.address("web")).await;
        let (response, _) = open(&send, "websocket", "/chat").await.unwrap();
        assert_eq!(response.status(), 502);
    });
    let mut client = proxy.client("a.test");
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Key", "x")];
    client.request("GET", "/chat", &upgrade, b"").expect(502);
    let other = [("Connection", "Upgrade"), ("Upgrade", "other")];
    client.request("GET", "/x", &other, b"").expect(200);
    proxy.await_metric("sluicegate_refusals_total{code=\"no_websocket\"}", 2.0);
    assert_eq!(pod.hits(), 1);
}
