//! Open-loop load: requests leave on a fixed schedule, however slow the answers are.
//!
//! Latency counts from the moment a request was due, not from when it was sent, so a stall is paid by
//! every request that it delayed (no coordinated omission). Prints one JSON line with counts and
//! percentiles in microseconds. Standard library only.
//!
//! `openloop 127.0.0.1:8080 [--rate 2000] [--conns 64] [--secs 5] [--path /]`

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let plan = Plan::parse(std::env::args().skip(1))?;
    // Connect everything before the clock starts; the first due moment is the same for all.
    let sockets = (0..plan.conns)
        .map(|_| {
            let socket = TcpStream::connect(plan.target)?;
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            Ok(socket)
        })
        .collect::<io::Result<Vec<_>>>()?;
    let start = Instant::now() + Duration::from_millis(50);
    let lanes: Vec<_> = sockets
        .into_iter()
        .enumerate()
        .map(|(lane, socket)| {
            let plan = plan.clone();
            thread::Builder::new().stack_size(64 * 1024).spawn(move || drive(&plan, lane, socket, start))
        })
        .collect::<io::Result<_>>()?;
    let mut latencies = Vec::new();
    let mut errors = 0;
    for lane in lanes {
        let outcome = lane.join().map_err(|_| "a lane panicked")?;
        latencies.extend(outcome.latencies_us);
        errors += outcome.errors;
    }
    latencies.sort_unstable();
    let at = |share: f64| {
        let rank = (share * latencies.len() as f64) as usize;
        latencies.get(rank.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    println!(
        "{{\"requests\":{},\"errors\":{errors},\"rps\":{:.1},\"p50\":{},\"p90\":{},\"p99\":{},\"p999\":{},\"max\":{}}}",
        latencies.len(),
        latencies.len() as f64 / start.elapsed().as_secs_f64(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0),
    );
    Ok(())
}

/// What to do; the same for every lane.
#[derive(Clone, Debug)]
struct Plan {
    target: SocketAddr,
    /// Requests per second over all lanes.
    rate: u32,
    /// Connections, each with one request at a time.
    conns: usize,
    secs: u32,
    path: String,
}

impl Plan {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let target =
            args.next().ok_or("usage: openloop ADDRESS [--rate N] [--conns N] [--secs N] [--path P]")?;
        let mut plan = Self { target: target.parse()?, rate: 2000, conns: 64, secs: 5, path: "/".to_owned() };
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--rate" => plan.rate = value.parse()?,
                "--conns" => plan.conns = value.parse()?,
                "--secs" => plan.secs = value.parse()?,
                "--path" => plan.path = value,
                _ => return Err(format!("unknown option {name}").into()),
            }
        }
        if !plan.target.ip().is_loopback() {
            return Err("the target must be on loopback".into());
        }
        if plan.rate == 0 || plan.conns == 0 || plan.conns > MAX_CONNS {
            return Err(format!("rate and conns must be above 0, conns at most {MAX_CONNS}").into());
        }
        Ok(plan)
    }
}

/// What one connection saw.
#[derive(Debug, Default)]
struct Outcome {
    latencies_us: Vec<u64>,
    errors: u64,
}

/// Sends request `lane`, `lane + conns`, ... of the common schedule.
fn drive(plan: &Plan, lane: usize, mut socket: TcpStream, start: Instant) -> Outcome {
    let request = format!("GET {} HTTP/1.1\r\nHost: open.example.test\r\n\r\n", plan.path);
    let gap = Duration::from_secs(1) / plan.rate;
    let total = plan.rate as usize * plan.secs as usize;
    let mut outcome = Outcome::default();
    let mut buffer = Vec::with_capacity(16 * 1024);
    for number in (lane..total).step_by(plan.conns) {
        let due = start + gap * u32::try_from(number).unwrap_or(u32::MAX);
        if let Some(wait) = due.checked_duration_since(Instant::now()) {
            thread::sleep(wait);
        }
        let answer =
            socket.write_all(request.as_bytes()).and_then(|()| read_answer(&mut socket, &mut buffer));
        match answer {
            Ok(200) => outcome.latencies_us.push(due.elapsed().as_micros() as u64),
            Ok(_) => outcome.errors += 1,
            Err(_) => {
                outcome.errors += 1;
                // One fresh connection a failure; a dead proxy then costs one error a request.
                match TcpStream::connect(plan.target) {
                    Ok(fresh) => socket = fresh,
                    Err(_) => continue,
                }
                if socket
                    .set_nodelay(true)
                    .and_then(|()| socket.set_read_timeout(Some(ANSWER_TIMEOUT)))
                    .is_err()
                {
                    continue;
                }
            }
        }
    }
    outcome
}

/// Reads one answer that has a Content-Length; gives its status.
fn read_answer(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<u16> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    buffer.clear();
    let mut chunk = [0; 8192];
    loop {
        let read = socket.read(&mut chunk)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.extend_from_slice(&chunk[..read]);
        let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
            if buffer.len() > MAX_HEAD {
                return Err(bad("the head is too long"));
            }
            continue;
        };
        let text = std::str::from_utf8(&buffer[..head]).map_err(|_| bad("the head is no text"))?;
        let status =
            text.get(9..12).and_then(|digits| digits.parse().ok()).ok_or_else(|| bad("no status"))?;
        let length = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, value)| value.trim().parse::<usize>().ok())
            .ok_or_else(|| bad("no Content-Length"))?;
        if buffer.len() >= head + 4 + length {
            return Ok(status);
        }
    }
}

/// A lane that waits longer counts an error instead of hanging the run.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A thread each; beyond this the generator measures itself.
const MAX_CONNS: usize = 512;

/// The backend's answer has a few hundred bytes.
const MAX_HEAD: usize = 16 * 1024;
