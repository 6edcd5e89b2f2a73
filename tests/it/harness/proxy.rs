//! The program under test, as a process: its configuration on disk, its log, its admin listener, its end.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use super::client::{Client, Response};
use super::origin::Origin;
use super::{DEADLINE, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sluicegate");

/// Begins a proxy with one entry point `web`, an admin listener and a JSON log.
pub fn proxy() -> ProxyBuilder {
    ProxyBuilder::default()
}

/// A directory of a test's own.
pub fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("sluicegate-it-").tempdir().expect("a temporary directory")
}

/// What a proxy will be started with.
#[derive(Default)]
pub struct ProxyBuilder {
    routes: Vec<Route>,
    config: Option<String>,
    extra: Vec<String>,
    web: String,
    names: Vec<(String, String)>,
    file: Option<PathBuf>,
    hosts: Option<(&'static [&'static str], PathBuf)>,
}

struct Route {
    rule: String,
    url: String,
    middlewares: String,
}

impl ProxyBuilder {
    /// Adds a router with a service of its own.
    #[must_use]
    pub fn route(self, rule: &str, origin: &Origin) -> Self {
        self.route_through(rule, "", origin)
    }

    /// Adds a router with middlewares (`limit, headers`) and a service of its own.
    #[must_use]
    pub fn route_through(mut self, rule: &str, middlewares: &str, origin: &Origin) -> Self {
        let (rule, middlewares) = (rule.to_owned(), middlewares.to_owned());
        self.routes.push(Route { rule, url: origin.url(), middlewares });
        self
    }

    /// Sends everything to one origin.
    #[must_use]
    pub fn all_to(self, origin: &Origin) -> Self {
        self.route("PathPrefix(`/`)", origin)
    }

    /// Gives the document's `http` and whatever else it needs. What it does not say of `entryPoints`, `admin`,
    /// `providers` and `log` is added; `{name}` stands for what [`Self::name`] gave.
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// Adds top-level text beside the routes: `accessLog: { ... }`.
    #[must_use]
    pub fn with(mut self, text: &str) -> Self {
        self.extra.push(text.to_owned());
        self
    }

    /// Adds keys to the entry point `web`, as the inside of a flow map.
    #[must_use]
    pub fn web(mut self, keys: &str) -> Self {
        self.web = format!(", {keys}");
        self
    }

    /// Lets `{name}` in the configuration stand for an address.
    #[must_use]
    pub fn name(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.names.push((format!("{{{name}}}"), value.as_ref().to_owned()));
        self
    }

    /// Lets `{name}` in the configuration stand for an origin's URL.
    #[must_use]
    pub fn origin(self, name: &str, origin: &Origin) -> Self {
        let url = origin.url();
        self.name(name, url)
    }

    /// Starts with a file that stands elsewhere, written by the test.
    #[must_use]
    pub fn file(mut self, path: &Path) -> Self {
        self.file = Some(path.to_owned());
        self
    }

    /// Lets the process see another `/etc/hosts`, in a mount namespace that `unshare` makes when it is asked this way.
    #[must_use]
    pub fn hosts(mut self, way: &'static [&'static str], hosts: &Path) -> Self {
        self.hosts = Some((way, hosts.to_owned()));
        self
    }

    /// Starts the process without waiting for anything.
    pub fn launch(self) -> Proxy {
        let dir = scratch();
        let path = self.file.clone().unwrap_or_else(|| dir.path().join("sluicegate.yaml"));
        let template = Template { web: self.web.clone(), names: self.names.clone() };
        if self.file.is_none() {
            let text = self.config.clone().unwrap_or_else(|| self.routed());
            std::fs::write(&path, template.complete(&text)).expect("a writable directory");
        }
        let mut command = match &self.hosts {
            None => Command::new(PROGRAM),
            Some((way, hosts)) => {
                let mut command = Command::new("unshare");
                let script = r#"mount --bind "$0" /etc/hosts && exec "$@""#;
                command.args(*way).args(["sh", "-c", script]).arg(hosts).arg(PROGRAM);
                command
            }
        };
        let mut child = command
            .arg("--config")
            .arg(&path)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {PROGRAM}: {error}"));
        let output = Output::default();
        output.collect(child.stderr.take().expect("a piped stderr"), Stream::Err);
        output.collect(child.stdout.take().expect("a piped stdout"), Stream::Out);
        Proxy { child, dir, path, template, output }
    }

    /// Starts the process and waits until it is ready.
    #[track_caller]
    pub fn start(self) -> Proxy {
        let mut proxy = self.launch();
        let since = Instant::now();
        loop {
            if let Some(status) = proxy.child.try_wait().expect("a child of ours") {
                panic!("the proxy ended with {status} before it was ready:\n{}", proxy.output.shown());
            }
            if proxy.admin_if_known().is_some_and(is_ready) {
                return proxy;
            }
            assert!(since.elapsed() < DEADLINE, "the proxy is not ready:\n{}", proxy.output.shown());
            std::thread::sleep(super::POLL);
        }
    }

    fn routed(&self) -> String {
        let mut text = self.extra.join("\n");
        text.push_str("\nhttp:\n  routers:\n");
        for (index, Route { rule, middlewares, .. }) in self.routes.iter().enumerate() {
            text.push_str(&format!(
                "    r{index}: {{ rule: \"{}\", service: s{index}, middlewares: [{middlewares}] }}\n",
                rule.replace('"', "\\\"")
            ));
        }
        text.push_str("  services:\n");
        for (index, Route { url, .. }) in self.routes.iter().enumerate() {
            text.push_str(&format!(
                "    s{index}: {{ loadBalancer: {{ servers: [{{ url: \"{url}\" }}] }} }}\n"
            ));
        }
        for line in &self.extra {
            assert!(!line.starts_with("http:"), "give the whole document by config()");
        }
        text
    }
}

fn is_ready(admin: SocketAddr) -> bool {
    let mut client = match Client::try_connect(admin, "admin") {
        Ok(client) => client,
        Err(_) => return false,
    };
    client.try_get("/readyz").is_ok_and(|response| response.status == 200)
}

/// What every document of a test has in common.
struct Template {
    web: String,
    names: Vec<(String, String)>,
}

impl Template {
    fn complete(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in &self.names {
            text = text.replace(name, value);
        }
        let said = |key: &str| text.lines().any(|line| line.starts_with(key));
        let mut head = String::new();
        if !said("entryPoints:") {
            head.push_str(&format!("entryPoints: {{ web: {{ address: \"127.0.0.1:0\"{} }} }}\n", self.web));
        }
        if !said("admin:") {
            head.push_str("admin: { address: \"127.0.0.1:0\" }\n");
        }
        if !said("providers:") {
            // Tests reload far more often than people do.
            head.push_str("providers: { providersThrottleDuration: 10ms }\n");
        }
        if !said("log:") {
            head.push_str("log: { format: json, level: INFO }\n");
        }
        head + &text
    }
}

/// A running proxy; killed when it is dropped, and its log shown when the test has failed.
pub struct Proxy {
    child: Child,
    dir: TempDir,
    path: PathBuf,
    template: Template,
    output: Output,
}

impl Proxy {
    /// Where an entry point listens, by its newest announcement.
    #[track_caller]
    pub fn address(&self, entry_point: &str) -> SocketAddr {
        let mut address = None;
        eventually(&format!("entry point {entry_point} listens"), || {
            address = self.announced("listening", Some(entry_point));
            address.is_some()
        });
        address.expect("just seen")
    }

    /// Where the admin listener is.
    #[track_caller]
    pub fn admin(&self) -> SocketAddr {
        self.admin_if_known().unwrap_or_else(|| panic!("no admin listener:\n{}", self.output.shown()))
    }

    fn admin_if_known(&self) -> Option<SocketAddr> {
        self.announced("admin listening", None)
    }

    fn announced(&self, message: &str, entry_point: Option<&str>) -> Option<SocketAddr> {
        let lines = self.log_lines();
        let line = lines.iter().rev().find(|line| {
            line.message() == message
                && entry_point.is_none_or(|name| line.text("entry_point").as_deref() == Some(name))
        })?;
        line.text("address")?.parse().ok()
    }

    /// A new connection to `web`.
    #[track_caller]
    pub fn client(&self, host: &str) -> Client {
        Client::connect(self.address("web"), host)
    }

    /// One GET on a connection of its own.
    #[track_caller]
    pub fn get(&self, host: &str, target: &str) -> Response {
        self.client(host).get(target)
    }

    /// One GET of the admin listener.
    #[track_caller]
    pub fn admin_get(&self, target: &str) -> Response {
        Client::connect(self.admin(), "admin").get(target)
    }

    /// The sum of all series that a selector names: `name` or `name{label="value"}`. 0 when there is none.
    #[track_caller]
    pub fn metric(&self, selector: &str) -> f64 {
        let exposition = self.admin_get("/metrics").expect(200).text();
        let (name, labels) = selector.split_once('{').unwrap_or((selector, "}"));
        let wanted: Vec<&str> =
            labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()).collect();
        let series = exposition.lines().filter_map(|line| line.rsplit_once(' '));
        series
            .filter(|(series, _)| {
                let (found, labels) = series.split_once('{').unwrap_or((series, ""));
                found == name && wanted.iter().all(|label| labels.contains(label))
            })
            .map(|(_, value)| value.parse::<f64>().expect("a number"))
            .sum()
    }

    /// The number of the configuration in force.
    #[track_caller]
    pub fn generation(&self) -> u64 {
        self.metric("sluicegate_config_generation") as u64
    }

    /// How many documents were refused so far.
    #[track_caller]
    pub fn refusals(&self) -> u64 {
        self.metric("sluicegate_config_reloads_total{outcome=\"refused\"}") as u64
    }

    /// Memory that the process holds, in kB.
    #[track_caller]
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a figure");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// The directory in which the process runs, where its file is.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The configuration file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The document that a test's text becomes.
    pub fn complete(&self, text: &str) -> String {
        self.template.complete(text)
    }

    /// Replaces the file by renaming a new one over it.
    pub fn write_config(&self, text: &str) {
        let next = self.path.with_extension("next");
        std::fs::write(&next, self.complete(text)).expect("a writable directory");
        std::fs::rename(&next, &self.path).expect("a rename within one directory");
    }

    /// Replaces the file's content in place.
    pub fn write_in_place(&self, text: &str) {
        std::fs::write(&self.path, self.complete(text)).expect("a writable file");
    }

    /// Replaces the file and waits until it is in force.
    #[track_caller]
    pub fn reload(&self, text: &str) {
        let before = self.generation();
        self.write_config(text);
        self.await_generation(before + 1);
    }

    /// Replaces the file by one that has to be refused, and waits until it is.
    #[track_caller]
    pub fn reload_refused(&self, text: &str) {
        let before = self.refusals();
        self.write_config(text);
        self.await_refusals(before + 1);
    }

    /// Waits until a generation, or a later one, is in force.
    #[track_caller]
    pub fn await_generation(&self, number: u64) {
        let what = format!("generation {number}");
        self.eventually(&what, || self.generation() >= number);
    }

    /// Waits until so many documents were refused.
    #[track_caller]
    pub fn await_refusals(&self, count: u64) {
        let what = format!("{count} refused documents");
        self.eventually(&what, || self.refusals() >= count);
    }

    /// Waits until a metric has a value.
    #[track_caller]
    pub fn await_metric(&self, selector: &str, expected: f64) {
        super::eventually_equal(selector, expected, || self.metric(selector));
    }

    /// Waits for a log line whose message begins like that.
    #[track_caller]
    pub fn await_log(&self, message: &str) -> LogLine {
        let mut found = None;
        eventually(&format!("a log line {message:?}"), || {
            found = self.log_lines().into_iter().find(|line| line.message().starts_with(message));
            found.is_some()
        });
        found.expect("just seen")
    }

    #[track_caller]
    fn eventually(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let since = Instant::now();
        while !holds() {
            assert!(since.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
            std::thread::sleep(super::POLL);
        }
    }

    /// The log so far, on whichever stream; lines that are no JSON objects are left out.
    pub fn log_lines(&self) -> Vec<LogLine> {
        let lines = self.output.lines(Stream::Out).into_iter().chain(self.output.lines(Stream::Err));
        lines.collect::<Vec<_>>().iter().filter_map(|line| LogLine::parse(line)).collect()
    }

    /// What the process wrote to its standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.output.lines(Stream::Out)
    }

    /// Sends a signal by name: `TERM`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        // The shell's own `kill`, because a slim image has no program of that name.
        let kill = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status();
        assert!(kill.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// Whether the process still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(since.elapsed() < DEADLINE * 2, "the proxy still runs:\n{}", self.output.shown());
            std::thread::sleep(super::POLL);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the proxy's output\n{}", self.output.shown());
        }
    }
}

/// One line of the log.
#[derive(Clone, Debug)]
pub struct LogLine(Value);

impl LogLine {
    fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok().filter(Value::is_object).map(Self)
    }

    /// A field, whether it stands at the top or under `fields`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).or_else(|| self.0.get("fields")?.get(name))
    }

    /// A field as text, without quotes.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    /// The message.
    pub fn message(&self) -> &str {
        self.get("message").or_else(|| self.get("msg")).and_then(Value::as_str).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stream {
    Out,
    Err,
}

/// Everything the process wrote, line by line.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<(Stream, String)>>>);

impl Output {
    fn collect(&self, pipe: impl Read + Send + 'static, stream: Stream) {
        let lines = Arc::clone(&self.0);
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                lines.lock().unwrap_or_else(PoisonError::into_inner).push((stream, line));
            }
        });
    }

    fn lines(&self, stream: Stream) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|(from, _)| *from == stream).map(|(_, line)| line.clone()).collect()
    }

    fn shown(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n")
    }
}

/// A finished run of the program.
pub struct Finished {
    /// Its exit code.
    pub code: Option<i32>,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Finished {
    /// Fails unless the exit code is the expected one, and shows the output then.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }
}

/// Runs the program in a directory to its end.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(dir: &Path, arguments: impl IntoIterator<Item = A>) -> Finished {
    let output = Command::new(PROGRAM)
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("start {PROGRAM}: {error}"));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Finished { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}
