//! A raw HTTP/1 client: sends exactly the bytes it is given and shows exactly what came back.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::wire::{Failure, Head, Wire, latin1};
use super::{DEADLINE, eventually};

/// One answer, with the interim ones before it.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// From the status line.
    pub status: u16,
    /// Its head.
    pub head: Head,
    /// Its content, without framing.
    pub body: Vec<u8>,
    /// The fields after the last chunk.
    pub trailers: Vec<(String, String)>,
    /// The 1xx answers before it.
    pub interim: Vec<Head>,
}

impl Response {
    /// The content as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The content as JSON.
    ///
    /// # Panics
    /// When it is something else.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The value of the only field of that name.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.get(name)
    }

    /// Fails unless the status is the expected one, and shows the answer then.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "answer: {:?} {:?}", self.head.raw, self.text());
        self
    }
}

/// One connection to the proxy, or to anything else.
pub struct Client {
    wire: Wire,
    host: String,
}

impl Client {
    /// Connects; requests built by this type carry `host`.
    #[track_caller]
    pub fn connect(address: SocketAddr, host: &str) -> Self {
        match Self::try_connect(address, host) {
            Ok(client) => client,
            Err(error) => panic!("connect to {address}: {error}"),
        }
    }

    /// Connects, where failing is an answer too.
    pub fn try_connect(address: SocketAddr, host: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        Ok(Self { wire: Wire::new(stream), host: host.to_owned() })
    }

    /// Our end of the connection.
    pub fn local_address(&self) -> SocketAddr {
        self.wire.stream().local_addr().expect("a connected socket")
    }

    /// The same connection, to write from another thread.
    pub fn twin(&self) -> TcpStream {
        self.wire.stream().try_clone().expect("a descriptor")
    }

    /// Sends exactly these bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        if let Err(error) = self.wire.write(&bytes) {
            panic!("could not send: {error}; came so far: {:?}", latin1(self.wire.seen()));
        }
        self
    }

    /// Sends bytes that the peer may refuse to take.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.write(bytes).is_ok()
    }

    /// The head of a request, with our host.
    pub fn head(&self, method: &str, target: &str, fields: &[(&str, &str)]) -> String {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head + "\r\n"
    }

    /// Asks for a target and reads the answer.
    #[track_caller]
    pub fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[], b"")
    }

    /// Asks for a target with more fields and reads the answer.
    #[track_caller]
    pub fn get_with(&mut self, target: &str, fields: &[(&str, &str)]) -> Response {
        self.request("GET", target, fields, b"")
    }

    /// Sends a request with a body of known length and reads the answer.
    #[track_caller]
    pub fn post(&mut self, target: &str, body: impl AsRef<[u8]>) -> Response {
        self.request("POST", target, &[], body.as_ref())
    }

    /// Sends a request and reads the answer; an empty body has no `Content-Length`.
    #[track_caller]
    pub fn request(&mut self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Response {
        self.send_request(method, target, fields, body);
        self.response_to(method)
    }

    /// Sends a request; an empty body has no `Content-Length`.
    #[track_caller]
    pub fn send_request(&mut self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) {
        let length = body.len().to_string();
        let mut fields = fields.to_vec();
        if !body.is_empty() {
            fields.push(("Content-Length", &length));
        }
        let mut bytes = self.head(method, target, &fields).into_bytes();
        bytes.extend_from_slice(body);
        self.send(bytes);
    }

    /// Reads the answer to a GET or to anything else that may have a body.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    /// Reads the answer to a request of that method.
    #[track_caller]
    pub fn response_to(&mut self, method: &str) -> Response {
        match self.try_response(method) {
            Ok(response) => response,
            Err(failure) => panic!("no whole answer: {failure}; all that came: {}", self.shown()),
        }
    }

    /// Reads an answer, where its absence is an answer too.
    pub fn try_response(&mut self, method: &str) -> Result<Response, Failure> {
        let mut interim = Vec::new();
        loop {
            let head = self.wire.read_head()?;
            let status = status(&head)?;
            if (100..200).contains(&status) && status != 101 {
                interim.push(head);
                continue;
            }
            let bodiless = method == "HEAD" || matches!(status, 101 | 204 | 304);
            let content = if bodiless { Default::default() } else { self.wire.read_content(&head, true)? };
            return Ok(Response { status, head, body: content.bytes, trailers: content.trailers, interim });
        }
    }

    /// Asks for a target, where the absence of an answer is one too.
    pub fn try_get(&mut self, target: &str) -> Result<Response, Failure> {
        let head = self.head("GET", target, &[]);
        if !self.try_send(head) {
            return Err(Failure::Reset(String::new()));
        }
        self.try_response("GET")
    }

    /// Reads one head, interim or final, and leaves what follows.
    #[track_caller]
    pub fn read_head(&mut self) -> Head {
        self.wire.read_head().unwrap_or_else(|failure| panic!("no head: {failure}"))
    }

    /// Reads one chunk of a chunked body; an empty one is the last.
    #[track_caller]
    pub fn read_chunk(&mut self) -> Vec<u8> {
        self.wire.read_chunk().unwrap_or_else(|failure| panic!("no chunk: {failure}"))
    }

    /// Reads so many bytes as they are.
    #[track_caller]
    pub fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        self.wire.read_exactly(count).unwrap_or_else(|failure| panic!("not {count} bytes: {failure}"))
    }

    /// Reads until the connection ends in any way.
    pub fn rest(&mut self) -> Result<Vec<u8>, Failure> {
        self.wire.rest()
    }

    /// Everything that ever came on this connection, to show.
    pub fn shown(&self) -> String {
        let seen = latin1(self.wire.seen());
        let cut = seen.char_indices().nth(2000).map_or(seen.len(), |(at, _)| at);
        format!("{:?}", &seen[..cut])
    }

    /// Fails unless the connection ends now, with nothing more on it.
    #[track_caller]
    pub fn assert_closed(&mut self) {
        match self.wire.rest() {
            Ok(rest) if rest.is_empty() => {}
            Ok(rest) => panic!("more came before the end: {:?}", latin1(&rest)),
            Err(failure) => panic!("the connection did not end: {failure}; all that came: {}", self.shown()),
        }
    }

    /// Fails when the connection ends, or anything comes on it, within the span.
    #[track_caller]
    pub fn assert_quiet(&mut self, span: Duration) {
        self.wire.patience(span);
        match self.wire.read_exactly(1) {
            Err(Failure::Silent(_)) => {}
            other => panic!("not quiet: {other:?}; all that came: {}", self.shown()),
        }
        self.wire.patience(DEADLINE);
    }

    /// Changes how long reads wait.
    pub fn patience(&self, span: Duration) {
        self.wire.patience(span);
    }

    /// Ends our direction only.
    pub fn half_close(&mut self) -> &mut Self {
        self.wire.half_close();
        self
    }

    /// Goes away with a reset.
    pub fn reset(self) {
        self.wire.reset_on_close();
    }
}

fn status(head: &Head) -> Result<u16, Failure> {
    let version = head.word(0);
    let code = head.word(1);
    let status = code.parse().ok().filter(|_| code.len() == 3);
    match status {
        Some(status) if matches!(version, "HTTP/1.1" | "HTTP/1.0") => Ok(status),
        _ => Err(Failure::Malformed("status line", head.raw.clone())),
    }
}

/// Waits until nobody listens at an address any more.
#[track_caller]
pub fn await_refusal(address: SocketAddr) {
    eventually(&format!("{address} refuses connections"), || {
        TcpStream::connect_timeout(&address, DEADLINE).is_err()
    });
}
