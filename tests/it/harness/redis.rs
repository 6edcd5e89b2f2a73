//! Redis servers of a test's own, that it may stop, hold up and spoil.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{DEADLINE, scratch};

const PROGRAM: &str = "redis-server";

/// A server on a free port of 127.0.0.1; killed when it is dropped.
pub struct RedisServer {
    child: Option<Child>,
    dir: TempDir,
    port: u16,
    arguments: Vec<String>,
}

impl RedisServer {
    /// Starts one that keeps nothing on disk.
    #[track_caller]
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts one with more arguments (`--maxmemory 2mb`).
    #[track_caller]
    pub fn with(arguments: &[&str]) -> Self {
        Self::choose(arguments, |port| vec!["--port".to_owned(), port.to_string()])
    }

    /// Starts one that speaks TLS on its port and nothing else.
    #[track_caller]
    pub fn with_tls(arguments: &[&str]) -> Self {
        Self::choose(arguments, |port| {
            ["--port", "0", "--tls-port", &port.to_string()].map(str::to_owned).to_vec()
        })
    }

    /// Starts a sentinel with this configuration, which it writes to.
    #[track_caller]
    pub fn sentinel(config: &std::path::Path) -> Self {
        let file = config.to_str().expect("a plain path");
        Self::choose(&["--sentinel"], |port| vec![file.to_owned(), "--port".to_owned(), port.to_string()])
    }

    #[track_caller]
    fn choose(arguments: &[&str], port_arguments: impl Fn(u16) -> Vec<String>) -> Self {
        let mut dir = scratch();
        // Another process may take a port between the look and the start: then another one is tried.
        for _ in 0..20 {
            let port = free_port();
            let mut all = port_arguments(port);
            all.extend(arguments.iter().map(|argument| (*argument).replace("{port}", &port.to_string())));
            let mut server = Self { child: None, dir, port, arguments: all };
            if server.launch() {
                return server;
            }
            dir = server.into_dir();
        }
        panic!("no port for {PROGRAM} in 20 tries");
    }

    fn into_dir(mut self) -> TempDir {
        self.kill();
        std::mem::replace(&mut self.dir, scratch())
    }

    /// Whether it came up.
    #[track_caller]
    fn launch(&mut self) -> bool {
        let mut command = Command::new(PROGRAM);
        command.args(&self.arguments).args([
            "--bind",
            "127.0.0.1",
            "--daemonize",
            "no",
            "--loglevel",
            "warning",
        ]);
        if !self.arguments.iter().any(|argument| argument == "--sentinel") {
            command.args(["--save", "", "--appendonly", "no"]);
        }
        let child = command
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("{PROGRAM} cannot be started ({error}): `make test` installs it, or: apt-get install redis-server")
        });
        let child = self.child.insert(child);
        let since = Instant::now();
        loop {
            if child.try_wait().expect("a child of ours").is_some() {
                self.child = None;
                return false;
            }
            // Whoever answers may be somebody else: then ours has not come up.
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && child.try_wait().expect("a child of ours").is_none()
            {
                return true;
            }
            if since.elapsed() > DEADLINE / 4 {
                self.kill();
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        SocketAddr::from(([127, 0, 0, 1], self.port)).to_string()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it at once; what it knew is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        // What the one before had open may hold the port for a moment.
        let started = (0..20).any(|_| {
            let started = self.launch();
            if !started {
                std::thread::sleep(Duration::from_millis(50));
            }
            started
        });
        assert!(started, "{PROGRAM} does not start again");
    }

    /// Holds the process up: connections stay, and nothing is answered.
    #[track_caller]
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    #[track_caller]
    pub fn resume(&self) {
        self.signal("CONT");
    }

    #[track_caller]
    fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("it runs").id();
        let kill = Command::new("sh").args(["-c", &format!("kill -{name} {id}")]).status();
        assert!(kill.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// A connection of the test's own.
    #[track_caller]
    pub fn connect(&self) -> redis::Connection {
        let client = redis::Client::open(("127.0.0.1", self.port)).expect("an address");
        let connection = client.get_connection_with_timeout(DEADLINE).expect("it listens");
        connection.set_read_timeout(Some(DEADLINE)).expect("a socket");
        connection
    }

    /// Runs a command: `command(&["CONFIG", "SET", "maxmemory", "1"])`.
    #[track_caller]
    pub fn command(&self, words: &[&str]) -> redis::Value {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut self.connect()).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// All its keys.
    #[track_caller]
    pub fn keys(&self) -> Vec<String> {
        redis::cmd("KEYS").arg("*").query(&mut self.connect()).expect("a list of keys")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody has, and that no outgoing connection takes while the server starts: below those that the system
/// gives out by itself. Cluster nodes take the port 10,000 above as well.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 11_000;
    const PORTS: u32 = 10_000;
    // Test binaries that run at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(7_919);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + begin.wrapping_add(step) % PORTS) as u16;
        if [port, port + 10_000].iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()) {
            return port;
        }
    }
}
