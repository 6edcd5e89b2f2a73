//! A few invoice pods to try the proxy with, and the configuration that puts it in front of them.
//!
//! [`Demo::prepare`] starts the pods (processes of their own, so that one can be killed), finds free
//! ports and writes the working copy of the configuration; the caller then runs the proxy with it.
//! Reads and writes: the directory it is given, one temporary file for the invoices.
//! Never: a file that the user edited, an address other than loopback.

mod pod;
mod workfile;

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

pub use self::pod::{PodArgs, run_pod};
use self::workfile::WorkFile;

/// Why the demo cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// No port, file or directory could be had.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
    /// A pod ended, or said nothing, before it had an address.
    #[error("{name} did not start")]
    PodSilent {
        /// Which one.
        name: String,
    },
    /// Every name that the working copy could have is taken by an edited file.
    #[error("{}: too many edited demo files here; remove some or choose another --dir", dir.display())]
    NoFileName {
        /// Where they are.
        dir: PathBuf,
    },
}

/// A running demo, less the proxy: pods, ports and the working copy of the configuration.
///
/// The pods end when it is dropped, and also when its process dies in any other way.
#[derive(Debug)]
pub struct Demo {
    pods: Vec<Pod>,
    entry: SocketAddr,
    admin: SocketAddr,
    config: WorkFile,
    /// Held for its end only.
    _ledger: TempLedger,
}

impl Demo {
    /// Starts the pods and writes `sluicegate-demo.yaml` (or `-2`, `-3`, ...) into `dir`.
    ///
    /// `exe` is this very program: each pod is `exe demo-pod ...` (see [`PodArgs`]). Blocks for the
    /// milliseconds that the pods need to bind, at most 10 s each.
    pub fn prepare(dir: &Path, exe: &Path) -> Result<Self, DemoError> {
        Self::start(dir, |args| {
            let mut command = Command::new(exe);
            command.arg("demo-pod").args(args);
            command
        })
    }

    fn start(dir: &Path, pod_command: impl Fn(&[String]) -> Command) -> Result<Self, DemoError> {
        let ledger = TempLedger::create()?;
        let mut pods = Vec::with_capacity(POD_COUNT);
        for number in 1..=POD_COUNT {
            let name = format!("pod-{number}");
            let store = ledger.0.to_string_lossy().into_owned();
            let args = ["--name", &name, "--port", "0", "--store", &store].map(String::from);
            pods.push(Pod::start(name, pod_command(&args))?);
        }
        let entry = free_port(8080)?;
        let admin = free_port(9180)?;
        let addresses: Vec<SocketAddr> = pods.iter().map(|pod| pod.address).collect();
        let config = WorkFile::write(dir, &config(entry, admin, &addresses))?;
        Ok(Self { pods, entry, admin, config, _ledger: ledger })
    }

    /// The working copy: run the proxy with this file.
    pub fn config_path(&self) -> &Path {
        self.config.path()
    }

    /// Where the proxy will listen.
    pub fn entry(&self) -> SocketAddr {
        self.entry
    }

    /// What to print: where everything is, which file to edit, what to try.
    pub fn guide(&self) -> String {
        let Self { entry, admin, .. } = self;
        let file = self.config.path().display();
        let mut pods = String::new();
        for pod in &self.pods {
            pods += &format!("  {:<8} http://{}  pid {}\n", pod.name, pod.address, pod.child.id());
        }
        // `start` has made POD_COUNT of them; `get` rather than an index keeps that out of reach of a panic.
        let pid = self.pods.first().map_or(0, |pod| pod.child.id());
        let second = self.pods.get(1).map_or(*entry, |pod| pod.address);
        let kept = match self.config.kept() {
            Some(old) => format!("  ({} was edited, or is in use, and was left alone)\n", old.display()),
            None => String::new(),
        };
        format!(
            "\
Three invoice pods are running, with Sluicegate in front of them.

  entry    http://{entry}/invoices
  admin    http://{admin}/metrics   also /readyz and /api/rawdata
{pods}  config   {file}
{kept}
Edit that file and save it: the change is live within a second and costs no request.

Try, in a second terminal:
  curl -i http://{entry}/invoices/1
  curl -i http://{entry}/invoices -d '{{\"customer\":\"Ada\",\"amountCents\":4200}}'
  while sleep 0.1; do curl -s -o /dev/null -w '%{{http_code}} %header{{x-pod}}\\n' http://{entry}/invoices; done
and while that loop runs:
  kill {pid}      one pod dies; no request fails
  curl -X POST 'http://{second}/_switch?latency=300ms&fail=0.5'      another turns slow and fails half the time
  curl -X POST 'http://{second}/_switch?latency=0&fail=0'      and is well again

Ctrl-C ends it all.
"
        )
    }
}

/// An empty file that the pods share, as real pods share a database; removed with the demo.
#[derive(Debug)]
struct TempLedger(PathBuf);

impl TempLedger {
    fn create() -> Result<Self, DemoError> {
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let path = std::env::temp_dir().join(format!("sluicegate-demo-{}-{nanos}.jsonl", std::process::id()));
        // `create_new` follows no link that somebody else may have put there.
        match std::fs::File::create_new(&path) {
            Ok(_) => Ok(Self(path)),
            Err(cause) => Err(DemoError::Io { what: format!("cannot create {}", path.display()), cause }),
        }
    }
}

impl Drop for TempLedger {
    fn drop(&mut self) {
        // Best effort: it lies among temporary files.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// One pod's process.
#[derive(Debug)]
struct Pod {
    name: String,
    address: SocketAddr,
    child: Child,
}

impl Pod {
    fn start(name: String, mut command: Command) -> Result<Self, DemoError> {
        // The pipe to its standard input stays open as long as we live: a pod ends when it closes.
        // Its own process group keeps Ctrl-C for the proxy, which drains first.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let child =
            command.spawn().map_err(|cause| DemoError::Io { what: format!("cannot start {name}"), cause })?;
        let mut pod = Self { name, address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), child };
        match pod.announced_address() {
            Some(address) => {
                pod.address = address;
                Ok(pod)
            }
            None => Err(DemoError::PodSilent { name: pod.name.clone() }),
        }
    }

    fn announced_address(&mut self) -> Option<SocketAddr> {
        let stdout = self.child.stdout.take()?;
        let (send, receive) = mpsc::channel();
        // A thread, since a pipe has no read timeout; it ends with the line or with the pod.
        thread::spawn(move || {
            let mut line = String::new();
            if BufReader::new(stdout).read_line(&mut line).is_ok() {
                // Nobody listens any more when the pod was too slow.
                let _ = send.send(line);
            }
        });
        let line = receive.recv_timeout(POD_START).ok()?;
        line.trim().strip_prefix(pod::ANNOUNCEMENT)?.parse().ok()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // It may have been killed by the user before; then there is only the exit status to collect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fills the embedded template.
fn config(entry: SocketAddr, admin: SocketAddr, pods: &[SocketAddr]) -> String {
    let servers: Vec<String> = pods.iter().map(|pod| format!("          - url: \"http://{pod}\"")).collect();
    TEMPLATE
        .replace("{{entry}}", &entry.to_string())
        .replace("{{admin}}", &admin.to_string())
        .replace("{{servers}}", &servers.join("\n"))
}

/// The port that the documentation names if it is free, else any free one.
fn free_port(preferred: u16) -> Result<SocketAddr, DemoError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, preferred))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .and_then(|listener| listener.local_addr())
        .map_err(|cause| DemoError::Io { what: "cannot find a free port on 127.0.0.1".to_owned(), cause })
}

const TEMPLATE: &str = include_str!("demo.yaml");

/// Two are needed to see balancing, a third to see that one may die and there is still a choice.
const POD_COUNT: usize = 3;

/// How long a pod may take to bind its port; a loaded machine needs a second at most.
const POD_START: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    /// A pod that announces an address and lives until its standard input closes.
    fn fake_pod(_: &[String]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'listening on 127.0.0.1:4711'; read -r _"]);
        command
    }

    fn alive(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_pod_that_ends_at_once_is_named_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = Demo::start(dir.path(), |_| Command::new("true")).expect_err("it said nothing");
        assert!(matches!(&error, DemoError::PodSilent { name } if name == "pod-1"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error_with_its_cause() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = Demo::prepare(dir.path(), Path::new("/no/such/program")).expect_err("it is not there");
        assert!(error.to_string().starts_with("cannot start pod-1: No such file"), "{error}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let error = Demo::start(Path::new("/no/such/directory"), fake_pod).expect_err("it is not there");
        assert!(error.to_string().contains("/no/such/directory"), "{error}");
    }

    #[test]
    fn the_working_copy_names_every_pod_and_no_placeholder_is_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let demo = Demo::start(dir.path(), fake_pod).expect("it starts");
        let text = std::fs::read_to_string(demo.config_path()).expect("it is written");
        assert_eq!(text.matches("http://127.0.0.1:4711").count(), POD_COUNT);
        assert!(text.contains(&format!("\"{}\"", demo.entry())));
        assert!(!text.contains("{{"), "{text}");
        assert!(demo.guide().contains(&demo.config_path().display().to_string()));
    }

    #[test]
    fn pods_and_ledger_end_with_the_demo() {
        let dir = tempfile::tempdir().expect("a directory");
        let demo = Demo::start(dir.path(), fake_pod).expect("it starts");
        let pids: Vec<u32> = demo.pods.iter().map(|pod| pod.child.id()).collect();
        let ledger = demo._ledger.0.clone();
        assert!(pids.iter().all(|pid| alive(*pid)) && ledger.exists());
        drop(demo);
        assert!(!pids.iter().any(|pid| alive(*pid)) && !ledger.exists());
    }
}
