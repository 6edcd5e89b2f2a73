//! Arguments and exit codes. Each command that is more than a call has a file of its own.

mod check;
mod explain;
mod healthcheck;

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::app::{self, Until};
use crate::common::units::HumanDuration;
use crate::config::render::{self, Colour};
use crate::config::schema;
use crate::demo::{Demo, PodArgs, run_pod};
use crate::reload::StartError;

/// Where the configuration is looked for when nobody says.
const DEFAULT_CONFIGS: [&str; 2] = ["./sluicegate.yaml", "/etc/sluicegate/config.yaml"];

const EXAMPLES: &str = "\
Examples:
  sluicegate --config sluicegate.yaml       run, and follow the file's changes
  sluicegate check *.yaml                   say everything that is wrong, and where
  sluicegate explain -H 'X-Team: a' http://api.example.com/v1/invoices
  sluicegate demo                           try it: pods and proxy on this machine";

/// Reverse proxy and edge rate limiter that makes unreliable pods look reliable.
#[derive(Debug, Parser)]
#[command(name = "sluicegate", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    run: Run,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Run {
    /// The configuration [default: ./sluicegate.yaml, then /etc/sluicegate/config.yaml].
    #[arg(long, short, value_name = "FILE", env = "SLUICEGATE_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Reads and compiles configurations as a run would; exits 1 if one has an error.
    Check(Check),
    /// Says which router takes a request, why the others do not, and where it goes.
    Explain(Explain),
    /// Prints the JSON Schema of the configuration.
    Schema,
    /// Asks a running proxy whether it is well; exits 0 if so. For containers without a shell.
    Healthcheck(Healthcheck),
    /// Starts a few invoice pods and the proxy in front of them, on this machine.
    Demo(DemoArgs),
    /// Prints completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    #[command(hide = true)]
    DemoPod(PodArgs),
}

#[derive(Debug, Args)]
struct Check {
    /// The files.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How problems are printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// With the lines of the file.
    Text,
    /// An array of objects.
    Json,
}

#[derive(Debug, Args)]
struct Explain {
    #[command(flatten)]
    run: Run,
    /// The request's method.
    #[arg(short = 'X', long = "request", value_name = "METHOD", default_value = "GET")]
    method: String,
    /// A field of the request; may be given again.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The entry point it comes through [default: all that fit].
    #[arg(long, value_name = "NAME")]
    entry_point: Option<String>,
    /// Shows every router that does not take the request, however many there are.
    #[arg(long)]
    all: bool,
    /// The client's address.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    client_ip: std::net::IpAddr,
    /// The admin listener of the running proxy, which knows what circuits are open [default: that of the
    /// configuration].
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<SocketAddr>,
    /// The request's URL.
    url: String,
}

#[derive(Debug, Args)]
struct Healthcheck {
    #[command(flatten)]
    run: Run,
    /// The admin listener [default: that of the configuration, or 127.0.0.1:9180].
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<SocketAddr>,
    /// Asks whether it is ready for requests, not only alive.
    #[arg(long)]
    ready: bool,
    /// How long an answer may take.
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    timeout: HumanDuration,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Where the working copy of the configuration is written.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Ends by itself after so long.
    #[arg(long, value_name = "DURATION")]
    duration: Option<HumanDuration>,
}

/// Does what the arguments say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => run(&cli.run),
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Explain(args)) => explain::run(&args),
        Some(Command::Schema) => print(&schema::json()),
        Some(Command::Healthcheck(args)) => healthcheck::run(&args),
        Some(Command::Demo(args)) => demo(&args),
        Some(Command::Completions { shell }) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sluicegate", &mut text);
            print(&String::from_utf8_lossy(&text))
        }
        Some(Command::DemoPod(args)) => {
            run_pod(&args).map(|()| ExitCode::SUCCESS).map_err(|error| error.to_string())
        }
    };
    result.unwrap_or_else(|message| {
        eprintln!("error: {message}");
        ExitCode::FAILURE
    })
}

fn run(args: &Run) -> Result<ExitCode, String> {
    let config = args.find()?;
    start(&config, Until::Signal, || {})
}

fn start(config: &Path, until: Until, ready: impl FnOnce()) -> Result<ExitCode, String> {
    match app::run(config, until, ready) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(StartError::Problems(problems, texts)) => {
            eprint!("{}", render::text(&problems, &texts, colour(&io::stderr())));
            Err(format!("{} is not used; nothing was started", config.display()))
        }
        Err(StartError::System(error)) => Err(format!("cannot start: {error}")),
    }
}

fn demo(args: &DemoArgs) -> Result<ExitCode, String> {
    let exe = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let demo = Demo::prepare(&args.dir, &exe).map_err(|error| error.to_string())?;
    let until = args.duration.map_or(Until::Signal, |duration| Until::Elapsed(duration.0));
    let guide = demo.guide();
    start(demo.config_path(), until, move || {
        // Nobody may be reading; the demo goes on.
        let _ = io::stdout().write_all(guide.as_bytes());
    })
}

impl Run {
    fn find(&self) -> Result<PathBuf, String> {
        if let Some(config) = &self.config {
            return Ok(config.clone());
        }
        DEFAULT_CONFIGS.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
            format!(
                "no configuration: neither {} exists; name one with --config FILE, or try `sluicegate demo`",
                DEFAULT_CONFIGS.join(" nor ")
            )
        })
    }
}

fn colour(stream: &impl IsTerminal) -> Colour {
    if stream.is_terminal() && std::env::var_os("NO_COLOR").is_none() { Colour::On } else { Colour::Off }
}

/// Prints, and does not mind that nobody reads (`| head`).
fn print(text: &str) -> Result<ExitCode, String> {
    let mut out = io::stdout().lock();
    match out
        .write_all(text.as_bytes())
        .and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") })
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// How long a healthcheck waits, for its file.
fn timeout(duration: HumanDuration) -> Duration {
    if duration.0.is_zero() { Duration::from_secs(5) } else { duration.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_file_that_is_named_is_taken_whether_it_exists_or_not() {
        let cli = Cli::parse_from(["sluicegate", "--config", "/nowhere.yaml"]);
        assert_eq!(cli.run.find(), Ok(PathBuf::from("/nowhere.yaml")));
    }
}
