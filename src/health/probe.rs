//! One check of one endpoint: a fresh connection, one request, the head of its answer.
//!
//! Never: deciding what the answer means for the endpoint; the body of the answer is not read.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, LOCATION, TRANSFER_ENCODING, UPGRADE, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::endpoint::Endpoint;
use crate::health::{ExpectedStatus, HealthSettings, Redirects};

/// Redirections followed in one check, as in Traefik.
const MAX_REDIRECTS: usize = 10;

/// Largest head of an answer, in bytes: what is larger is no answer to a health check.
const MAX_HEAD: usize = 64 * 1024;

/// Why an endpoint is not well.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Its name or address could not be connected to.
    #[error("connect failed: {0}")]
    Connect(#[source] io::Error),
    /// It answered with something that is not HTTP/1, or closed the connection.
    #[error("no valid response: {0}")]
    Http(#[source] hyper::Error),
    /// Its answer is another than expected.
    #[error("status {}, expected {expected}", status.as_u16())]
    Status {
        /// What it answered.
        status: StatusCode,
        /// What it should have.
        expected: ExpectedStatus,
    },
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
    let (mut method, mut path) = (settings.method.clone(), settings.path.clone());
    for _ in 0..=MAX_REDIRECTS {
        let (status, headers) = exchange(&target, &method, &path, settings).await?;
        let next = match settings.redirects {
            Redirects::Follow if is_followed(status) => {
                target.redirection(&path, headers.get(LOCATION).ok_or(ProbeError::BadRedirect)?)?
            }
            Redirects::Follow | Redirects::Answer => None,
        };
        let Some(next) = next else {
            return match settings.expected {
                expected if expected.includes(status) => Ok(()),
                expected => Err(ProbeError::Status { status, expected }),
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
}

impl<'a> Target<'a> {
    fn new(endpoint: &'a Endpoint, settings: &HealthSettings) -> Self {
        let url = endpoint.url();
        let authority = match settings.port {
            None => url.authority().as_str().to_owned(),
            Some(port) if url.host().contains(':') => format!("[{}]:{port}", url.host()),
            Some(port) => format!("{}:{port}", url.host()),
        };
        let port = settings.port.unwrap_or_else(|| url.port());
        let host = settings.hostname.clone().or_else(|| HeaderValue::from_str(&authority).ok());
        Self { endpoint, port, authority, host }
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
        let absolute = if location.starts_with("//") { format!("http:{location}") } else { location.into() };
        if absolute.contains("://") && !absolute.starts_with(['/', '?', '.']) {
            let uri: Uri = absolute.parse().map_err(bad)?;
            let here =
                uri.scheme_str() == Some("http") && uri.authority().is_some_and(|to| self.is(to.as_str()));
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
            if has_port { text.to_ascii_lowercase() } else { format!("{}:80", text.to_ascii_lowercase()) }
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
) -> Result<(StatusCode, HeaderMap), ProbeError> {
    let request = request(target, method, path, settings).map_err(ProbeError::Request)?;
    let stream = target.connect().await.map_err(ProbeError::Connect)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(ProbeError::Http)?;
    let response = sender.send_request(request);
    tokio::pin!(response, connection);
    // The connection runs here and not in a task of its own, so that it ends with the check.
    let response = tokio::select! {
        biased;
        response = &mut response => response,
        // Its end may come together with the answer, or be the reason why there is none.
        _ = &mut connection => response.await,
    };
    let (head, _) = response.map_err(ProbeError::Http)?.into_parts();
    Ok((head.status, head.headers))
}

fn request(
    target: &Target<'_>,
    method: &Method,
    path: &PathAndQuery,
    settings: &HealthSettings,
) -> Result<Request<Empty<Bytes>>, http::Error> {
    let mut request = Request::builder().method(method).uri(path.as_str()).body(Empty::new())?;
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static("sluicegate-health-check"));
    for (name, value) in &settings.headers {
        headers.remove(name);
        headers.append(name, value.clone());
    }
    for ours in [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(ours);
    }
    headers.extend(target.host.clone().map(|host| (HOST, host)));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

#[cfg(test)]
mod tests {
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
}
