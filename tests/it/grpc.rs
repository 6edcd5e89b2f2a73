//! Calls of gRPC as they are on the wire: framed messages, trailers, deadlines, errors of the proxy's own.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};

use crate::harness::h2::{
    Answer, H2Origin, ask, connect, echo_call, h2_origin, read, request, run, send_all,
};
use crate::harness::{Proxy, Refused, origin, proxy};

/// A message as gRPC frames it.
fn message(text: &str) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(text.len() as u32);
    bytes.extend_from_slice(text.as_bytes());
    bytes.freeze()
}

fn call(path: &str) -> http::request::Builder {
    request("POST", path).header("content-type", "application/grpc").header("te", "trailers")
}

fn before(url: &str, router: &str, rest: &str) -> Proxy {
    proxy()
        .config(&format!(
            "http:\n  routers: {{ r: {{ rule: 'PathPrefix(`/test.`)', service: s{router} }} }}\n  \
             services: {{ s: {{ loadBalancer: {{ servers: [{{ url: '{url}' }}] }} }} }}\n{rest}"
        ))
        .start()
}

/// A pod with an echo, an error without content, and a method that never answers.
fn pod() -> H2Origin {
    h2_origin(|request, mut respond| async move {
        let head = || Response::builder().header("content-type", "application/grpc");
        match request.uri().path() {
            "/test.Echo/Fail" => {
                let answer = head().header("grpc-status", "5").header("grpc-message", "no").body(()).unwrap();
                respond.send_response(answer, true).map(|_| ())
            }
            "/test.Echo/Never" => {
                std::future::pending::<()>().await;
                Ok(())
            }
            "/test.Echo/Stuck" => {
                let mut send = respond.send_response(head().body(()).unwrap(), false)?;
                send_all(&mut send, message("one"), false).await?;
                std::future::pending::<()>().await;
                Ok(())
            }
            _ => {
                assert_eq!(request.headers()["te"], "trailers");
                echo_call(request, respond).await
            }
        }
    })
}

fn code(answer: &Answer) -> Option<&str> {
    answer.trailer("grpc-status").or(answer.header("grpc-status"))
}

#[test]
fn a_unary_call_passes_with_its_trailers() {
    let pod = pod();
    let proxy = before(&pod.url(), "", "");
    run(async {
        let mut send = connect(proxy.address("web")).await;
        let got = ask(&mut send, call("/test.Echo/Unary"), message("hello")).await.unwrap();
        assert_eq!((got.status, &got.body, got.trailer("grpc-status")), (200, &message("hello"), Some("0")));
        assert_eq!(got.header("content-length"), None);
        let got = ask(&mut send, call("/test.Echo/Fail"), message("hello")).await.unwrap();
        assert_eq!(
            (got.status, got.header("grpc-status"), got.header("grpc-message")),
            (200, Some("5"), Some("no"))
        );
    });
    assert_eq!(proxy.metric("sluicegate_entrypoint_requests_total{protocol=\"grpc\"}"), 2.0);
}

#[test]
fn messages_stream_both_ways_as_they_come() {
    let pod = pod();
    let proxy = before(&pod.url(), "", "");
    run(async {
        let mut send = connect(proxy.address("web")).await.ready().await.unwrap();
        let (response, mut stream) =
            send.send_request(call("/test.Echo/Stream").body(()).unwrap(), false).unwrap();
        let mut response = response.await.unwrap();
        for number in 0..20 {
            let sent = message(&format!("number {number}"));
            send_all(&mut stream, sent.clone(), false).await.unwrap();
            let mut got = BytesMut::new();
            while got.len() < sent.len() {
                let data = response.body_mut().data().await.unwrap().unwrap();
                response.body_mut().flow_control().release_capacity(data.len()).unwrap();
                got.extend_from_slice(&data);
            }
            assert_eq!(got, sent);
        }
        stream.send_data(Bytes::new(), true).unwrap();
        let got = read(response).await.unwrap();
        assert_eq!(code(&got), Some("0"));
    });
}

#[test]
fn what_the_proxy_answers_itself_is_an_error_of_grpc() {
    let pod = pod();
    let refused = Refused::new();
    let dead = refused.url().replace("http://", "h2c://");
    let limited = before(
        &pod.url(),
        ", middlewares: [limit]",
        "  middlewares: { limit: { rateLimit: { average: 1, period: 1h, burst: 1 } } }\n",
    );
    let unreachable = before(&dead, "", "");
    run(async {
        let mut send = connect(limited.address("web")).await;
        let got = ask(&mut send, call("/other.Echo/Unary"), message("x")).await.unwrap();
        assert_eq!((got.status, code(&got)), (200, Some("12")), "no router: {got:?}");
        assert_eq!(got.header("content-type"), Some("application/grpc"));
        ask(&mut send, call("/test.Echo/Unary"), message("x")).await.unwrap();
        let got = ask(&mut send, call("/test.Echo/Unary"), message("x")).await.unwrap();
        assert_eq!((got.status, code(&got)), (200, Some("8")), "limited: {got:?}");
        assert!(got.header("retry-after").is_some());
        let mut send = connect(unreachable.address("web")).await;
        let got = ask(&mut send, call("/test.Echo/Unary"), message("x")).await.unwrap();
        assert_eq!((got.status, code(&got)), (200, Some("14")), "no pod: {got:?}");
        let got = ask(&mut send, request("GET", "/nothing"), "").await.unwrap();
        assert_eq!(got.status, 404, "who does not speak gRPC gets a status");
    });
}

#[test]
fn the_deadline_of_a_call_is_kept() {
    let pod = pod();
    let proxy = before(&pod.url(), "", "");
    run(async {
        let mut send = connect(proxy.address("web")).await;
        let never = call("/test.Echo/Never").header("grpc-timeout", "200m");
        let got = ask(&mut send, never, message("x")).await.unwrap();
        assert_eq!((got.status, code(&got)), (200, Some("4")), "{got:?}");
        let stuck = call("/test.Echo/Stuck").header("grpc-timeout", "300m");
        let got = ask(&mut send, stuck, message("x")).await.unwrap();
        assert_eq!((&got.body, got.trailer("grpc-status")), (&message("one"), Some("4")), "{got:?}");
    });
}

#[test]
fn a_call_may_stream_for_longer_than_a_body_may_take() {
    let pod = pod();
    let proxy = proxy()
        .web("transport: { respondingTimeouts: { readTimeout: 200ms } }")
        .config(&format!(
            "http:\n  routers: {{ r: {{ rule: 'PathPrefix(`/`)', service: s }} }}\n  \
             services: {{ s: {{ loadBalancer: {{ servers: [{{ url: '{}' }}] }} }} }}\n",
            pod.url()
        ))
        .start();
    run(async {
        let mut send = connect(proxy.address("web")).await.ready().await.unwrap();
        let (response, mut stream) =
            send.send_request(call("/test.Echo/Stream").body(()).unwrap(), false).unwrap();
        for _ in 0..5 {
            send_all(&mut stream, message("x"), false).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stream.send_data(Bytes::new(), true).unwrap();
        let got = read(response.await.unwrap()).await.unwrap();
        assert_eq!((got.body.len(), code(&got)), (30, Some("0")));
    });
}

#[test]
fn a_call_to_a_pod_that_speaks_http1_only_passes_without_trailers_lost() {
    let origin = origin()
        .raw(
            "/test.Echo/Unary",
            "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nabc\r\n0\r\nGrpc-Status: 0\r\n\r\n",
        )
        .start();
    let proxy = before(&origin.url(), "", "");
    run(async {
        let mut send = connect(proxy.address("web")).await;
        let got = ask(&mut send, call("/test.Echo/Unary"), message("x")).await.unwrap();
        assert_eq!((got.text().as_str(), got.trailer("grpc-status")), ("abc", Some("0")));
    });
}

#[test]
fn a_pod_whose_calls_end_badly_is_taken_out_wherever_it_says_so() {
    for bad in ["/test.Echo/Fields", "/test.Echo/Trailers"] {
        let well = h2_origin(|_, mut respond| async move { end_with(&mut respond, "0", true).await });
        let ill = h2_origin(|request, mut respond| async move {
            let in_trailers = request.uri().path() == "/test.Echo/Trailers";
            end_with(&mut respond, "14", in_trailers).await
        });
        let proxy = proxy()
            .config(&format!(
                "http:\n  routers: {{ r: {{ rule: 'PathPrefix(`/test.`)', service: s }} }}\n  \
                 services: {{ s: {{ loadBalancer: {{ servers: [{{ url: '{}' }}, {{ url: '{}' }}] }} }} }}\n",
                well.url(),
                ill.url()
            ))
            .start();
        run(async {
            let mut send = connect(proxy.address("web")).await;
            for _ in 0..40 {
                ask(&mut send, call(bad), message("x")).await.unwrap();
            }
        });
        proxy.await_metric(
            "sluicegate_service_endpoint_ejections_total{service=\"s\",reason=\"gateway_errors\"}",
            1.0,
        );
        run(async {
            let mut send = connect(proxy.address("web")).await;
            for _ in 0..10 {
                let got = ask(&mut send, call(bad), message("x")).await.unwrap();
                assert_eq!(code(&got), Some("0"), "{bad}");
            }
        });
    }
}

/// An answer with this status: in trailers after a message, or alone.
async fn end_with(
    respond: &mut h2::server::SendResponse<Bytes>,
    status: &'static str,
    in_trailers: bool,
) -> Result<(), h2::Error> {
    let head = || Response::builder().header("content-type", "application/grpc");
    if !in_trailers {
        let answer = head().header("grpc-status", status).body(()).unwrap();
        return respond.send_response(answer, true).map(|_| ());
    }
    let mut send = respond.send_response(head().body(()).unwrap(), false)?;
    send_all(&mut send, message("one"), false).await?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    send.send_trailers(trailers)
}
