//! WebSocket messages: a generator that plays ping-pong over many connections, and the pod that sends them back.
//!
//! One message of each connection is under way at a time, so the figures are those of the way there and back. Blocking
//! sockets and a thread each: plain code, and for both sides the same cost whatever stands between them. Standard
//! library only.
//!
//! `messages serve 127.0.0.1:9001 127.0.0.1:9002`
//! `messages send 127.0.0.1:8080 [--conns 64] [--secs 5] [--bytes 64]`

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

type Failure = Box<dyn Error + Send + Sync>;

/// The key of RFC 6455 §1.3 and its answer: so neither side needs SHA-1.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Largest payload whose length fits the first two bytes of a frame (RFC 6455 §5.2).
const LARGEST: usize = 125;
const STACK: usize = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => serve(arguments),
        Some("send") => send(arguments),
        _ => {
            Err("messages serve ADDRESS... | messages send ADDRESS [--conns N] [--secs N] [--bytes N]".into())
        }
    }
}

// ---------------------------------------------------------------- the pod
fn serve(addresses: impl Iterator<Item = String>) -> Result<(), Failure> {
    let acceptors: Vec<_> = addresses
        .map(|address| {
            let listener = TcpListener::bind(&address)?;
            Ok(thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    // A connection that cannot be served is the generator's to count.
                    let _ = thread::Builder::new().stack_size(STACK).spawn(move || echo(stream));
                }
            }))
        })
        .collect::<io::Result<_>>()?;
    for acceptor in acceptors {
        acceptor.join().map_err(|_| "an acceptor panicked")?;
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let head = read_head(&mut stream)?;
    if !head.to_ascii_lowercase().contains("\r\nupgrade: websocket\r\n") {
        // What asks whether a proxy is ready.
        return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    }
    let switch = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    );
    stream.write_all(switch.as_bytes())?;
    let mut frame = [0; 2 + 4 + LARGEST];
    loop {
        stream.read_exact(&mut frame[..2])?;
        let length = usize::from(frame[1] & 0x7f);
        if frame[1] & 0x80 == 0 || length > LARGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        stream.read_exact(&mut frame[2..6 + length])?;
        let mask = [frame[2], frame[3], frame[4], frame[5]];
        let mut answer = [0; 2 + LARGEST];
        answer[0] = frame[0];
        answer[1] = length as u8;
        for place in 0..length {
            answer[2 + place] = frame[6 + place] ^ mask[place % 4];
        }
        stream.write_all(&answer[..2 + length])?;
    }
}

// ---------------------------------------------------------------- the generator
#[derive(Clone)]
struct Plan {
    target: SocketAddr,
    conns: usize,
    secs: u64,
    bytes: usize,
}

impl Plan {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let target = arguments.next().ok_or("send: no address")?.parse()?;
        let mut plan = Self { target, conns: 64, secs: 5, bytes: 64 };
        while let Some(key) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{key}: no value"))?;
            match key.as_str() {
                "--conns" => plan.conns = value.parse()?,
                "--secs" => plan.secs = value.parse()?,
                "--bytes" => plan.bytes = value.parse::<usize>()?.min(LARGEST),
                _ => return Err(format!("unknown option {key}").into()),
            }
        }
        Ok(plan)
    }
}

#[derive(Default)]
struct Outcome {
    latencies_us: Vec<u32>,
    errors: u64,
}

fn send(arguments: impl Iterator<Item = String>) -> Result<(), Failure> {
    let plan = Plan::parse(arguments)?;
    let sockets = (0..plan.conns).map(|_| open(&plan)).collect::<io::Result<Vec<_>>>()?;
    let start = Instant::now();
    let until = start + Duration::from_secs(plan.secs);
    let lanes: Vec<_> = sockets
        .into_iter()
        .map(|socket| {
            let bytes = plan.bytes;
            thread::Builder::new().stack_size(STACK).spawn(move || play(socket, bytes, until))
        })
        .collect::<io::Result<_>>()?;
    let (mut latencies, mut errors) = (Vec::new(), 0);
    for lane in lanes {
        let outcome = lane.join().map_err(|_| "a lane panicked")?;
        latencies.extend(outcome.latencies_us);
        errors += outcome.errors;
    }
    let seconds = start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| {
        let rank = (share * latencies.len() as f64) as usize;
        latencies.get(rank.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    println!(
        "{{\"requests\":{},\"errors\":{errors},\"rps\":{:.1},\"p50\":{},\"p99\":{},\"p999\":{}}}",
        latencies.len(),
        latencies.len() as f64 / seconds,
        at(0.5),
        at(0.99),
        at(0.999),
    );
    Ok(())
}

fn open(plan: &Plan) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(plan.target)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: h007.example.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    socket.write_all(request.as_bytes())?;
    let head = read_head(&mut socket)?;
    if head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT) {
        Ok(socket)
    } else {
        Err(io::Error::other(format!("no switch: {}", head.lines().next().unwrap_or_default())))
    }
}

fn play(mut socket: TcpStream, bytes: usize, until: Instant) -> Outcome {
    let mut outcome = Outcome::default();
    let mask = [0x12, 0x34, 0x56, 0x78];
    // FIN and binary; masked, as all that clients send.
    let mut frame = vec![0x82, 0x80 | bytes as u8];
    frame.extend(mask);
    frame.extend((0..bytes).map(|place| b'x' ^ mask[place % 4]));
    let mut answer = vec![0; 2 + bytes];
    loop {
        let sent = Instant::now();
        if sent >= until {
            return outcome;
        }
        let round = socket.write_all(&frame).and_then(|()| socket.read_exact(&mut answer));
        if round.is_err() || answer[2..].iter().any(|byte| *byte != b'x') {
            outcome.errors += 1;
            return outcome;
        }
        outcome.latencies_us.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
}

fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
