//! One invoice pod: a small JSON API with switches that make it slow, failing or unhealthy.
//!
//! Reads and writes the ledger, a file that all pods of a demo share as real ones share a database.
//! Never: an address other than loopback, anything after its parent is gone.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

use crate::common::units::HumanDuration;

/// Arguments of the hidden subcommand `demo-pod`.
#[derive(Clone, Debug, clap::Args)]
pub struct PodArgs {
    /// Name that each answer carries.
    #[arg(long)]
    pub name: String,
    /// Port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// File that the pods of one demo share.
    #[arg(long)]
    pub store: PathBuf,
}

/// Serves until it is killed or its standard input ends; prints `listening on ADDRESS` once bound.
///
/// Makes its own single-threaded runtime, so it must not be called from within one.
pub fn run_pod(args: &PodArgs) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await?;
        let mut out = io::stdout().lock();
        writeln!(out, "{ANNOUNCEMENT}{}", listener.local_addr()?)?;
        out.flush()?;
        drop(out);
        tokio::select! {
            served = serve(listener, Rc::new(InvoicePod::new(&args.name, &args.store))) => served,
            () = parent_gone() => Ok(()),
        }
    })
}

/// What a pod prints before its address.
pub(super) const ANNOUNCEMENT: &str = "listening on ";

/// Waits for the end of standard input: of the pipe that the demo holds open while it lives.
async fn parent_gone() {
    let (send, gone) = tokio::sync::oneshot::channel();
    // A plain thread, since this read blocks for as long as the pod lives.
    std::thread::spawn(move || {
        // An error ends the wait as the end of the pipe does.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = send.send(());
    });
    let _ = gone.await;
}

async fn serve(listener: TcpListener, pod: Rc<InvoicePod>) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let pod = Rc::clone(&pod);
        tokio::task::spawn_local(async move {
            let answer = service_fn(|request| {
                let pod = Rc::clone(&pod);
                async move { Ok::<_, Infallible>(pod.answer(request).await) }
            });
            // A client that goes away is nothing that a pod could mend or should print.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), answer)
                .await;
            drop(slot);
        });
    }
}

#[derive(Debug)]
struct InvoicePod {
    name: String,
    header: HeaderValue,
    ledger: Ledger,
    switches: RefCell<Switches>,
    seed: Cell<u64>,
}

impl InvoicePod {
    fn new(name: &str, store: &Path) -> Self {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos());
        Self {
            name: name.to_owned(),
            header: HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("pod")),
            ledger: Ledger(store.to_owned()),
            switches: RefCell::default(),
            // Odd, so that the generator never starts at 0, where it would stay.
            seed: Cell::new((nanos as u64) ^ (u64::from(std::process::id()) << 32) | 1),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, field, mut body) = match self.route(request).await {
            Ok(answer) => answer,
            Err((status, message)) => (status, None, json!({ "error": message })),
        };
        if let Value::Object(members) = &mut body {
            members.insert("pod".to_owned(), Value::String(self.name.clone()));
        }
        let mut response = Response::new(Full::from(format!("{body}\n")));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(HeaderName::from_static("x-pod"), self.header.clone());
        if let Some((name, value)) = field {
            headers.insert(name, value);
        }
        response
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        match path.as_str() {
            "/healthz" => return self.health(),
            "/_switch" => return self.switch(request.method(), &query),
            _ => self.misbehave(request.headers()).await?,
        }
        let id = path.strip_prefix("/invoices").ok_or((StatusCode::NOT_FOUND, "no such path".to_owned()))?;
        match (request.method(), id) {
            (&Method::GET | &Method::HEAD, "" | "/") => {
                Ok((StatusCode::OK, None, json!({ "invoices": self.ledger.all()? })))
            }
            (&Method::POST, "" | "/") => self.create(request).await,
            (&Method::GET | &Method::HEAD, _) => {
                let id: u64 = id.trim_start_matches('/').parse().map_err(|_| no_invoice())?;
                let found = self.ledger.all()?.into_iter().find(|invoice| invoice.id == id);
                Ok((StatusCode::OK, None, json!(found.ok_or_else(no_invoice)?)))
            }
            (_, "" | "/") => Ok(refuse_method("GET, HEAD, POST")),
            _ => Ok(refuse_method("GET, HEAD")),
        }
    }

    fn health(&self) -> Result<Answer, Refusal> {
        match self.switches.borrow().health {
            Health::Up => Ok((StatusCode::OK, None, json!({ "status": "up" }))),
            Health::Down => Ok((StatusCode::SERVICE_UNAVAILABLE, None, json!({ "status": "down" }))),
        }
    }

    fn switch(&self, method: &Method, query: &str) -> Result<Answer, Refusal> {
        match *method {
            Method::GET | Method::HEAD => {}
            Method::POST => {
                // Taken whole or not at all.
                let next =
                    self.switches.borrow().with(query).map_err(|why| (StatusCode::BAD_REQUEST, why))?;
                *self.switches.borrow_mut() = next;
            }
            _ => return Ok(refuse_method("GET, HEAD, POST")),
        }
        Ok((StatusCode::OK, None, json!(*self.switches.borrow())))
    }

    /// Waits and fails as the switches, or this request's own fields, say.
    async fn misbehave(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let switches = self.switches.borrow().clone();
        let latency = match headers.get("x-demo-latency") {
            Some(value) => {
                latency(value.to_str().unwrap_or_default()).map_err(|why| (StatusCode::BAD_REQUEST, why))?
            }
            None => switches.latency,
        };
        if !latency.0.is_zero() {
            tokio::time::sleep(latency.0).await;
        }
        if self.chance() < switches.fail {
            return Err((StatusCode::SERVICE_UNAVAILABLE, "switched to fail".to_owned()));
        }
        Ok(())
    }

    async fn create(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let body = Limited::new(request.into_body(), MAX_BODY)
            .collect()
            .await
            .map_err(|_| {
                (
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body must be whole and at most {MAX_BODY} bytes"),
                )
            })?
            .to_bytes();
        let new: NewInvoice = serde_json::from_slice(&body)
            .map_err(|error| (StatusCode::BAD_REQUEST, format!("not an invoice: {error}")))?;
        let invoice = self.ledger.add(new)?;
        let location = HeaderValue::from_str(&format!("/invoices/{}", invoice.id)).ok();
        Ok((StatusCode::CREATED, location.map(|value| (LOCATION, value)), json!(invoice)))
    }

    /// A number in [0, 1), by xorshift: a demo needs no better one.
    fn chance(&self) -> f64 {
        let mut x = self.seed.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.seed.set(x);
        // 53 bits fill a double's fraction exactly.
        (x >> 11) as f64 / (1_u64 << 53) as f64
    }
}

type Answer = (StatusCode, Option<(HeaderName, HeaderValue)>, Value);
type Refusal = (StatusCode, String);

fn no_invoice() -> Refusal {
    (StatusCode::NOT_FOUND, "no such invoice".to_owned())
}

fn refuse_method(allowed: &'static str) -> Answer {
    let field = (ALLOW, HeaderValue::from_static(allowed));
    (StatusCode::METHOD_NOT_ALLOWED, Some(field), json!({ "error": "method not allowed" }))
}

/// How the pod is told to behave; `/healthz` and `/_switch` themselves are never slow.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Switches {
    latency: HumanDuration,
    fail: f64,
    health: Health,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    #[default]
    Up,
    Down,
}

impl Switches {
    /// These switches, with those of `query` set.
    fn with(&self, query: &str) -> Result<Self, String> {
        let mut next = self.clone();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "latency" => next.latency = latency(value)?,
                "fail" => {
                    let share: f64 = value.parse().map_err(|_| format!("fail={value:?} is no number"))?;
                    if !(0.0..=1.0).contains(&share) {
                        return Err("fail must be between 0 and 1".to_owned());
                    }
                    next.fail = share;
                }
                "health" => {
                    next.health = match value {
                        "up" => Health::Up,
                        "down" => Health::Down,
                        _ => return Err("health must be up or down".to_owned()),
                    }
                }
                _ => return Err(format!("no switch {name:?}: there are latency, fail and health")),
            }
        }
        Ok(next)
    }
}

fn latency(text: &str) -> Result<HumanDuration, String> {
    let latency: HumanDuration = text.parse()?;
    match latency.0 <= MAX_LATENCY {
        true => Ok(latency),
        false => Err(format!("latency must be at most {}s", MAX_LATENCY.as_secs())),
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Invoice {
    id: u64,
    #[serde(flatten)]
    content: NewInvoice,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NewInvoice {
    customer: String,
    amount_cents: u64,
}

/// One invoice a line. The file's lock makes its writers wait for each other, whichever pod they are.
#[derive(Debug)]
struct Ledger(PathBuf);

impl Ledger {
    fn all(&self) -> Result<Vec<Invoice>, Refusal> {
        let mut file = File::open(&self.0).map_err(ledger_failed)?;
        file.lock_shared().map_err(ledger_failed)?;
        read(&mut file)
    }

    fn add(&self, content: NewInvoice) -> Result<Invoice, Refusal> {
        let mut file = OpenOptions::new().read(true).append(true).open(&self.0).map_err(ledger_failed)?;
        file.lock().map_err(ledger_failed)?;
        let known = read(&mut file)?;
        if known.len() >= MAX_INVOICES {
            return Err((StatusCode::INSUFFICIENT_STORAGE, format!("a demo holds {MAX_INVOICES} invoices")));
        }
        let invoice = Invoice { id: known.last().map_or(1, |last| last.id + 1), content };
        writeln!(file, "{}", json!(invoice)).map_err(ledger_failed)?;
        Ok(invoice)
    }
}

fn read(file: &mut File) -> Result<Vec<Invoice>, Refusal> {
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(ledger_failed)?;
    let added = text.lines().map(|line| serde_json::from_str(line).map_err(|e| ledger_failed(e.into())));
    SAMPLES
        .iter()
        .zip(1..)
        .map(|((customer, amount_cents), id)| {
            let content = NewInvoice { customer: (*customer).to_owned(), amount_cents: *amount_cents };
            Ok(Invoice { id, content })
        })
        .chain(added)
        .collect()
}

fn ledger_failed(cause: io::Error) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("the demo's ledger: {cause}"))
}

/// So that the first request has something to show.
const SAMPLES: [(&str, u64); 3] = [("Globex", 129_900), ("Initech", 45_050), ("Umbrella", 990_000)];

/// One invoice has a hundred bytes; this is generous and still bounded.
const MAX_BODY: usize = 64 * 1024;

/// All are read for each answer: more would make the pod slow without being told to.
const MAX_INVOICES: usize = 1_000;

/// Of one pod; a load generator beside the demo gets by with it.
const MAX_CONNECTIONS: usize = 1_024;

/// Long enough to meet every timeout of the proxy's defaults.
const MAX_LATENCY: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// Runs `test` against two pods that share a ledger.
    fn with_pods<F: Future<Output = ()>>(test: impl FnOnce(SocketAddr, SocketAddr) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let store = tempfile::NamedTempFile::new().expect("a file");
            let mut addresses = Vec::new();
            for name in ["one", "two"] {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
                addresses.push(listener.local_addr().expect("an address"));
                tokio::task::spawn_local(serve(listener, Rc::new(InvoicePod::new(name, store.path()))));
            }
            test(addresses[0], addresses[1]).await;
        });
    }

    async fn ask(pod: SocketAddr, head: &str, body: &str) -> String {
        let mut socket = TcpStream::connect(pod).await.expect("it accepts");
        let length = body.len();
        let request =
            format!("{head}\r\nHost: pod\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        socket.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("it answers");
        answer
    }

    #[test]
    fn what_is_no_invoice_is_refused() {
        with_pods(|one, _| async move {
            for (head, body, status) in [
                ("POST /invoices HTTP/1.1", "", "400"),
                ("POST /invoices HTTP/1.1", "{\"customer\":7}", "400"),
                ("POST /invoices HTTP/1.1", &"x".repeat(MAX_BODY + 1), "413"),
                ("DELETE /invoices/1 HTTP/1.1", "", "405"),
                ("GET /invoices/99 HTTP/1.1", "", "404"),
                ("GET /invoices/x HTTP/1.1", "", "404"),
                ("GET / HTTP/1.1", "", "404"),
            ] {
                let answer = ask(one, head, body).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
                assert!(answer.contains("\"error\":") && answer.contains("x-pod: one\r\n"), "{answer}");
            }
        });
    }

    #[test]
    fn a_bad_switch_changes_nothing() {
        with_pods(|one, _| async move {
            for query in
                ["fail=2", "fail=x", "fail=NaN", "latency=soon", "latency=1h", "fail=1&health=ill", "speed=9"]
            {
                let answer = ask(one, &format!("POST /_switch?{query} HTTP/1.1"), "").await;
                assert!(answer.starts_with("HTTP/1.1 400 "), "{query}: {answer}");
            }
            let answer = ask(one, "GET /_switch HTTP/1.1", "").await;
            assert!(answer.contains("\"fail\":0.0,\"health\":\"up\",\"latency\":\"0s\""), "{answer}");
        });
    }

    #[test]
    fn an_invoice_given_to_one_pod_is_known_to_the_other() {
        with_pods(|one, two| async move {
            let created =
                ask(one, "POST /invoices HTTP/1.1", "{\"customer\":\"Ada\",\"amountCents\":4200}").await;
            assert!(
                created.starts_with("HTTP/1.1 201 ") && created.contains("location: /invoices/4\r\n"),
                "{created}"
            );
            let found = ask(two, "GET /invoices/4 HTTP/1.1", "").await;
            assert!(found.contains("\"amountCents\":4200") && found.contains("\"pod\":\"two\""), "{found}");
            let all = ask(two, "GET /invoices HTTP/1.1", "").await;
            assert_eq!(all.matches("\"customer\"").count(), SAMPLES.len() + 1, "{all}");
        });
    }

    #[test]
    fn switches_turn_one_pod_failing_slow_and_unhealthy() {
        with_pods(|one, two| async move {
            ask(one, "POST /_switch?fail=1&health=down HTTP/1.1", "").await;
            assert!(ask(one, "GET /invoices HTTP/1.1", "").await.starts_with("HTTP/1.1 503 "));
            assert!(ask(one, "GET /healthz HTTP/1.1", "").await.starts_with("HTTP/1.1 503 "));
            assert!(ask(two, "GET /invoices HTTP/1.1", "").await.starts_with("HTTP/1.1 200 "));
            assert!(ask(two, "GET /healthz HTTP/1.1", "").await.starts_with("HTTP/1.1 200 "));
            let start = Instant::now();
            ask(two, "GET /invoices HTTP/1.1\r\nX-Demo-Latency: 60ms", "").await;
            assert!(start.elapsed() >= Duration::from_millis(60));
        });
    }
}
