//! One check of one endpoint: a fresh connection, and what [`Mode`] asks on it.
//!
//! Never: deciding what the answer means for the endpoint. Bodies are read only where something is expected of them.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, TE, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::endpoint::Endpoint;
use crate::endpoint::url::Scheme;
use crate::health::{ExpectedStatus, HealthSettings, Mode, Redirects};
use crate::tls::client::ClientTls;

/// Redirections followed in one check, as in Traefik.
const MAX_REDIRECTS: usize = 10;

/// Largest head of an answer, in bytes: what is larger is no answer to a health check.
const MAX_HEAD: usize = 64 * 1024;

/// Fields of the connection that `http` has no name for; HTTP/2 has none of them (RFC 9113 §8.2.2).
const OF_THE_CONNECTION: [HeaderName; 2] =
    [HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection")];

/// What is read of an answer's body, where something is expected of it.
const MAX_BODY: usize = 64 * 1024;

/// Why an endpoint is not well.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Its name or address could not be connected to.
    #[error("connect failed: {0}")]
    Connect(#[source] io::Error),
    /// The two sides do not agree on TLS.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// It answered with something that is not HTTP/1, or closed the connection.
    #[error("no valid response: {0}")]
    Http(#[source] hyper::Error),
    /// The same where HTTP/2 is spoken.
    #[error("no valid response of HTTP/2: {0}")]
    Http2(#[source] h2::Error),
    /// Its answer is another than expected.
    #[error("status {}, expected {expected}", status.as_u16())]
    Status {
        /// What it answered.
        status: StatusCode,
        /// What it should have.
        expected: ExpectedStatus,
    },
    /// Its answer's body does not hold what is expected.
    #[error("body without {0:?}")]
    Body(std::sync::Arc<str>),
    /// What it says is not gRPC's health protocol.
    #[error("no valid gRPC response: {0}")]
    Grpc(#[source] h2::Error),
    /// gRPC's health protocol says so.
    #[error("{0}")]
    NotServing(String),
    /// It did not answer in time.
    #[error("no response within {0:?}")]
    Timeout(Duration),
    /// A redirection without a usable `Location`.
    #[error("redirected to nowhere")]
    BadRedirect,
    /// More redirections than are followed.
    #[error("more than {MAX_REDIRECTS} redirects")]
    TooManyRedirects,
    /// The settings make no request that could be sent.
    #[error("request cannot be built: {0}")]
    Request(#[source] http::Error),
}

/// Asks an endpoint once.
///
/// A redirection to the same host (as asked, or as in `Host`; the same port) is followed on a fresh
/// connection. One to elsewhere is not, because another host's health says nothing of this one: it is
/// the answer, and passes if its status is expected.
pub async fn probe(endpoint: &Endpoint, settings: &HealthSettings) -> Result<(), ProbeError> {
    match tokio::time::timeout(settings.timeout, ask(endpoint, settings)).await {
        Ok(result) => result,
        Err(_) => Err(ProbeError::Timeout(settings.timeout)),
    }
}

async fn ask(endpoint: &Endpoint, settings: &HealthSettings) -> Result<(), ProbeError> {
    let target = Target::new(endpoint, settings);
    match &settings.mode {
        Mode::Http => ask_http(&target, settings).await,
        Mode::Grpc(service) => ask_grpc(&target, settings, service).await,
        Mode::Tcp => target.connect().await.map(drop).map_err(ProbeError::Connect),
    }
}

async fn ask_http(target: &Target<'_>, settings: &HealthSettings) -> Result<(), ProbeError> {
    let (mut method, mut path) = (settings.method.clone(), settings.path.clone());
    for _ in 0..=MAX_REDIRECTS {
        let (status, headers, body) = exchange(target, &method, &path, settings).await?;
        let next = match settings.redirects {
            Redirects::Follow if is_followed(status) => {
                target.redirection(&path, headers.get(LOCATION).ok_or(ProbeError::BadRedirect)?)?
            }
            Redirects::Follow | Redirects::Answer => None,
        };
        let Some(next) = next else {
            if !settings.expected.includes(status) {
                return Err(ProbeError::Status { status, expected: settings.expected.clone() });
            }
            return match &settings.expected_body {
                Some(wanted) if memchr::memmem::find(&body, wanted.as_bytes()).is_none() => {
                    Err(ProbeError::Body(wanted.clone()))
                }
                _ => Ok(()),
            };
        };
        path = next;
        let keeps_method = matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
        if !keeps_method && method != Method::HEAD {
            // What clients do, and RFC 9110 §15.4 allows or asks for.
            method = Method::GET;
        }
    }
    Err(ProbeError::TooManyRedirects)
}

fn is_followed(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    )
}

/// Whom a check asks.
struct Target<'a> {
    endpoint: &'a Endpoint,
    port: u16,
    /// Host and port as asked, in the form of a url.
    authority: String,
    host: Option<HeaderValue>,
    scheme: Scheme,
    tls: Option<&'a ClientTls>,
}

/// What a connection speaks.
#[derive(Clone, Copy)]
enum Spoken {
    Http1,
    Http2,
}

/// What a check is spoken on.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl<'a> Target<'a> {
    fn new(endpoint: &'a Endpoint, settings: &'a HealthSettings) -> Self {
        let url = endpoint.url();
        let authority = match settings.port {
            None => url.authority().as_str().to_owned(),
            Some(port) if url.host().contains(':') => format!("[{}]:{port}", url.host()),
            Some(port) => format!("{}:{port}", url.host()),
        };
        let port = settings.port.unwrap_or_else(|| url.port());
        let host = settings.hostname.clone().or_else(|| HeaderValue::from_str(&authority).ok());
        let scheme = settings.scheme.unwrap_or(url.scheme());
        Self { endpoint, port, authority, host, scheme, tls: settings.tls.as_deref() }
    }

    /// A fresh connection, and what is spoken on it: what requests of users would speak, or `only`.
    async fn open(&self, only: Option<Spoken>) -> Result<(Box<dyn Wire>, Spoken), ProbeError> {
        let stream = self.connect().await.map_err(ProbeError::Connect)?;
        match self.scheme {
            Scheme::Http => return Ok((Box::new(stream), only.unwrap_or(Spoken::Http1))),
            Scheme::H2c => return Ok((Box::new(stream), Spoken::Http2)),
            Scheme::Https => {}
        }
        let tls = self.tls.ok_or_else(|| ProbeError::Tls("no transport says how".to_owned()))?;
        let offer: &[&[u8]] = match only {
            Some(Spoken::Http2) => &[b"h2"],
            None if tls.offers_http2() => &[b"h2", b"http/1.1"],
            Some(Spoken::Http1) | None => &[b"http/1.1"],
        };
        let (connector, name) = tls
            .connector(self.endpoint.url().host(), offer)
            .map_err(|error| ProbeError::Tls(error.to_string()))?;
        match connector.connect(name, stream).await {
            Ok(stream) => {
                let chosen = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let spoken = if chosen { Spoken::Http2 } else { Spoken::Http1 };
                Ok((Box::new(stream), only.unwrap_or(spoken)))
            }
            Err(error) => Err(ProbeError::Tls(error.to_string())),
        }
    }

    /// The scheme as a request has it: how a connection begins is nothing that its messages name.
    fn scheme(&self) -> &'static str {
        match self.scheme {
            Scheme::Http | Scheme::H2c => "http",
            Scheme::Https => "https",
        }
    }

    /// A url as a request of HTTP/2 names it.
    fn url(&self, path: &str) -> String {
        let authority = self.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(&self.authority);
        format!("{}://{authority}{path}", self.scheme())
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        match self.endpoint.url().address() {
            Some(address) => TcpStream::connect((address.ip(), self.port)).await,
            None => TcpStream::connect((self.endpoint.url().host(), self.port)).await,
        }
    }

    /// Where on this host a redirection leads; `None` when it leads elsewhere.
    fn redirection(
        &self,
        from: &PathAndQuery,
        location: &HeaderValue,
    ) -> Result<Option<PathAndQuery>, ProbeError> {
        let bad = |_| ProbeError::BadRedirect;
        let location = location.to_str().map_err(|_| ProbeError::BadRedirect)?;
        let location = location.split('#').next().unwrap_or("");
        let absolute = if location.starts_with("//") {
            format!("{}:{location}", self.scheme())
        } else {
            location.into()
        };
        if absolute.contains("://") && !absolute.starts_with(['/', '?', '.']) {
            let uri: Uri = absolute.parse().map_err(bad)?;
            let here = uri.scheme_str() == Some(self.scheme())
                && uri.authority().is_some_and(|to| self.is(to.as_str()));
            return Ok(here.then(|| uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"))));
        }
        let joined = match location.as_bytes().first() {
            Some(b'/') => location.to_owned(),
            Some(b'?') => format!("{}{location}", from.path()),
            None => from.to_string(),
            Some(_) => {
                let directory = from.path().rfind('/').map_or("/", |slash| &from.path()[..=slash]);
                format!("{directory}{location}")
            }
        };
        joined.parse().map(Some).map_err(bad)
    }

    fn is(&self, authority: &str) -> bool {
        let with_port = |text: &str| {
            let has_port = text.rfind(':') > text.rfind(']');
            if has_port {
                text.to_ascii_lowercase()
            } else {
                format!("{}:{}", text.to_ascii_lowercase(), self.scheme.default_port())
            }
        };
        let to = with_port(authority);
        let host = self.host.as_ref().and_then(|host| host.to_str().ok());
        to == with_port(&self.authority) || host.is_some_and(|host| to == with_port(host))
    }
}

async fn exchange(
    target: &Target<'_>,
    method: &Method,
    path: &PathAndQuery,
    settings: &HealthSettings,
) -> Result<(StatusCode, HeaderMap, Vec<u8>), ProbeError> {
    let (stream, spoken) = target.open(None).await?;
    match spoken {
        Spoken::Http1 => exchange_http1(target, method, path, settings, stream).await,
        Spoken::Http2 => exchange_http2(target, method, path, settings, stream).await,
    }
}

async fn exchange_http1(
    target: &Target<'_>,
    method: &Method,
    path: &PathAndQuery,
    settings: &HealthSettings,
    stream: Box<dyn Wire>,
) -> Result<(StatusCode, HeaderMap, Vec<u8>), ProbeError> {
    let request = request(target, method, path, settings).map_err(ProbeError::Request)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(ProbeError::Http)?;
    let response = sender.send_request(request);
    tokio::pin!(response, connection);
    // The connection runs here and not in a task of its own, so that it ends with the check.
    let mut open = true;
    let response = tokio::select! {
        biased;
        response = &mut response => response,
        // Its end may come together with the answer, or be the reason why there is none.
        _ = &mut connection => {
            open = false;
            response.await
        }
    };
    let (head, body) = response.map_err(ProbeError::Http)?.into_parts();
    if settings.expected_body.is_none() {
        return Ok((head.status, head.headers, Vec::new()));
    }
    let body = read_beginning(body);
    tokio::pin!(body);
    let body = tokio::select! {
        biased;
        body = &mut body => body,
        _ = &mut connection, if open => body.await,
    };
    Ok((head.status, head.headers, body?))
}

async fn read_beginning(mut body: Incoming) -> Result<Vec<u8>, ProbeError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(ProbeError::Http)?.into_data() {
            let room = MAX_BODY - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
            if bytes.len() == MAX_BODY {
                break;
            }
        }
    }
    Ok(bytes)
}

async fn exchange_http2(
    target: &Target<'_>,
    method: &Method,
    path: &PathAndQuery,
    settings: &HealthSettings,
    stream: Box<dyn Wire>,
) -> Result<(StatusCode, HeaderMap, Vec<u8>), ProbeError> {
    let mut request = Request::builder()
        .method(method)
        .uri(target.url(path.as_str()))
        .body(())
        .map_err(ProbeError::Request)?;
    *request.headers_mut() = fields(settings);
    over_http2(stream, ProbeError::Http2, |sender| async move {
        let mut sender = sender.ready().await.map_err(ProbeError::Http2)?;
        let (response, _) = sender.send_request(request, true).map_err(ProbeError::Http2)?;
        let (head, mut body) = response.await.map_err(ProbeError::Http2)?.into_parts();
        let mut bytes = Vec::new();
        while settings.expected_body.is_some()
            && bytes.len() < MAX_BODY
            && let Some(data) = body.data().await
        {
            let data = data.map_err(ProbeError::Http2)?;
            // Given back at once: what is read here is bounded.
            let _ = body.flow_control().release_capacity(data.len());
            bytes.extend_from_slice(&data[..data.len().min(MAX_BODY - bytes.len())]);
        }
        Ok((head.status, head.headers, bytes))
    })
    .await
}

/// Has something asked over HTTP/2, on a connection that ends with it. `failed` says what it means that the
/// connection fails.
async fn over_http2<T, F>(
    stream: Box<dyn Wire>,
    failed: fn(h2::Error) -> ProbeError,
    ask: impl FnOnce(SendRequest<Bytes>) -> F,
) -> Result<T, ProbeError>
where
    F: Future<Output = Result<T, ProbeError>>,
{
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).max_header_list_size(MAX_HEAD as u32);
    let (sender, connection) = builder.handshake(stream).await.map_err(failed)?;
    let asking = ask(sender);
    tokio::pin!(asking, connection);
    tokio::select! {
        biased;
        result = &mut asking => result,
        ended = &mut connection => match ended {
            Err(error) => Err(failed(error)),
            Ok(()) => asking.await,
        },
    }
}

/// Asks as gRPC's health protocol has it: `grpc.health.v1.Health/Check`, over HTTP/2 with prior knowledge.
async fn ask_grpc(target: &Target<'_>, settings: &HealthSettings, service: &str) -> Result<(), ProbeError> {
    let (stream, _) = target.open(Some(Spoken::Http2)).await?;
    over_http2(stream, ProbeError::Grpc, |mut sender| async move {
        let (response, mut body) =
            sender.send_request(grpc_request(target, settings)?, false).map_err(ProbeError::Grpc)?;
        body.send_data(grpc_message(service), true).map_err(ProbeError::Grpc)?;
        let (head, mut answer) = response.await.map_err(ProbeError::Grpc)?.into_parts();
        if head.status != StatusCode::OK {
            return Err(ProbeError::NotServing(format!("status {} instead of gRPC", head.status.as_u16())));
        }
        let mut bytes = Vec::new();
        while let Some(data) = answer.data().await {
            let data = data.map_err(ProbeError::Grpc)?;
            // Given back at once: what is read here is bounded.
            let _ = answer.flow_control().release_capacity(data.len());
            bytes.extend_from_slice(&data);
            if bytes.len() > MAX_BODY {
                return Err(ProbeError::NotServing("answer too large".to_owned()));
            }
        }
        let trailers = answer.trailers().await.map_err(ProbeError::Grpc)?;
        let status = trailers.as_ref().unwrap_or(&head.headers).get("grpc-status");
        grpc_verdict(status, &bytes)
    })
    .await
}

fn grpc_request(target: &Target<'_>, settings: &HealthSettings) -> Result<Request<()>, ProbeError> {
    let url = target.url("/grpc.health.v1.Health/Check");
    let mut request = Request::post(url).body(()).map_err(ProbeError::Request)?;
    let headers = request.headers_mut();
    *headers = fields(settings);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    Ok(request)
}

/// The fields of a check, without those about the connection and its framing.
fn fields(settings: &HealthSettings) -> HeaderMap {
    let mut fields = settings.headers.clone();
    for ours in [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE, TE] {
        fields.remove(ours);
    }
    for ours in OF_THE_CONNECTION {
        fields.remove(ours);
    }
    fields.entry(USER_AGENT).or_insert(HeaderValue::from_static("sluicegate-health-check"));
    fields
}

/// `HealthCheckRequest { service = 1 }` in a message of its own: not compressed, its length, and the one field.
fn grpc_message(service: &str) -> Bytes {
    let mut field = Vec::new();
    if !service.is_empty() {
        field.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            field.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        field.push(length as u8);
        field.extend_from_slice(service.as_bytes());
    }
    let mut message = vec![0];
    message.extend_from_slice(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
    message.extend(field);
    message.into()
}

/// Whether `HealthCheckResponse { status = 1 }` is `SERVING` (1).
fn grpc_verdict(status: Option<&HeaderValue>, answer: &[u8]) -> Result<(), ProbeError> {
    match status.map(HeaderValue::as_bytes) {
        Some(b"0") => {}
        Some(b"12") => {
            return Err(ProbeError::NotServing("it does not know grpc.health.v1.Health".to_owned()));
        }
        Some(b"5") => return Err(ProbeError::NotServing("it does not know the service".to_owned())),
        Some(code) => {
            let code = String::from_utf8_lossy(code);
            return Err(ProbeError::NotServing(format!("grpc-status {code}, expected 0")));
        }
        None => return Err(ProbeError::NotServing("no grpc-status".to_owned())),
    }
    let says = match answer.get(5..) {
        Some([0x08, status, ..]) => *status,
        // The default of the field is UNKNOWN.
        _ => 0,
    };
    let word = match says {
        1 => return Ok(()),
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    };
    Err(ProbeError::NotServing(format!("it says {word}, expected SERVING")))
}

fn request(
    target: &Target<'_>,
    method: &Method,
    path: &PathAndQuery,
    settings: &HealthSettings,
) -> Result<Request<Empty<Bytes>>, http::Error> {
    let mut request = Request::builder().method(method).uri(path.as_str()).body(Empty::new())?;
    let headers = request.headers_mut();
    *headers = fields(settings);
    headers.extend(target.host.clone().map(|host| (HOST, host)));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::endpoint::PathUse;
    use crate::endpoint::url::ServerUrl;

    fn redirection(from: &str, location: &str) -> Option<String> {
        let endpoint =
            Endpoint::new(ServerUrl::parse("http://Pod.test:8080/x").expect("a url"), PathUse::Ignored);
        let mut settings = HealthSettings::new(PathAndQuery::from_static("/"));
        settings.hostname = Some(HeaderValue::from_static("www.test"));
        let target = Target::new(&endpoint, &settings);
        let from = from.parse().expect("a path");
        let location = HeaderValue::from_str(location).expect("a value");
        target.redirection(&from, &location).expect("a usable location").map(|path| path.to_string())
    }

    #[test]
    fn a_redirection_stays_on_the_host_or_is_not_followed() {
        for (location, to) in [
            ("/ok?x=1#f", Some("/ok?x=1")),
            ("ok", Some("/a/ok")),
            ("?y", Some("/a/b?y")),
            ("", Some("/a/b?q")),
            ("http://pod.test:8080", Some("/")),
            ("http://www.test/ok", Some("/ok")),
            ("//WWW.test:80/ok", Some("/ok")),
            ("/login?next=http://other.test/", Some("/login?next=http://other.test/")),
            ("http://pod.test/ok", None),
            ("http://other.test/ok", None),
            ("https://www.test/ok", None),
            ("//other.test/ok", None),
        ] {
            assert_eq!(redirection("/a/b?q", location).as_deref(), to, "{location}");
        }
    }

    #[test]
    fn grpc_says_serving_or_why_not() {
        let says = |status: &'static str, answer: &[u8]| {
            grpc_verdict(Some(&HeaderValue::from_static(status)), answer).map_err(|error| error.to_string())
        };
        assert_eq!(says("0", &[0, 0, 0, 0, 2, 8, 1]), Ok(()));
        assert_eq!(says("0", &[0, 0, 0, 0, 2, 8, 2]), Err("it says NOT_SERVING, expected SERVING".into()));
        assert_eq!(says("0", &[]), Err("it says UNKNOWN, expected SERVING".into()));
        assert_eq!(says("12", &[]), Err("it does not know grpc.health.v1.Health".into()));
        assert_eq!(grpc_message(""), &[0, 0, 0, 0, 0][..]);
        assert_eq!(grpc_message("ab"), &[0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b'][..]);
    }

    /// A gRPC server that answers one check with these bytes and this status.
    async fn grpc_server(answer: &'static [u8], status: &'static str) -> Arc<Endpoint> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a check");
            let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let head = http::Response::builder().header(CONTENT_TYPE, "application/grpc").body(());
                let mut body = respond.send_response(head.expect("a head"), false).expect("open");
                body.send_data(Bytes::from_static(answer), false).expect("open");
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static(status));
                body.send_trailers(trailers).expect("open");
            }
        });
        Endpoint::new(ServerUrl::parse(&url).expect("a url"), PathUse::Ignored)
    }

    #[tokio::test]
    async fn grpc_is_asked_as_its_health_protocol_has_it() {
        let mut settings = HealthSettings::new(PathAndQuery::from_static("/"));
        settings.mode = Mode::Grpc("invoices".into());
        let well = grpc_server(&[0, 0, 0, 0, 2, 8, 1], "0").await;
        probe(&well, &settings).await.expect("it serves");
        let ill = grpc_server(&[0, 0, 0, 0, 2, 8, 2], "0").await;
        assert!(matches!(probe(&ill, &settings).await, Err(ProbeError::NotServing(_))));
    }

    #[tokio::test]
    async fn a_body_without_what_is_expected_is_not_well() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nall well").await;
            }
        });
        let endpoint = Endpoint::new(ServerUrl::parse(&url).expect("a url"), PathUse::Ignored);
        let mut settings = HealthSettings::new(PathAndQuery::from_static("/"));
        settings.expected_body = Some("well".into());
        probe(&endpoint, &settings).await.expect("it is there");
        settings.expected_body = Some("ready".into());
        assert!(matches!(probe(&endpoint, &settings).await, Err(ProbeError::Body(_))));
    }
}
