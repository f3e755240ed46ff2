//! The `seawall` program: reads the command line, sets up what a process has once, runs the command, says how it ended.

use seawall::cli::{self, Cli, Command, LogFormat};
use seawall::commands::exit::{Ending, ExitRule, render_error};
use seawall::commands::{dispatch, print, progress};
use seawall::config::Settings;
use seawall::error::{Error, Kind, Result};
use seawall::runtime;
use seawall::secret;
use seawall::store::DiskThreads;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// So many threads may block beside those that stores in directories may have: what one of those never answers takes none of them.
const BLOCKING_THREADS_MAX: usize = 512;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let rule = ExitRule::of(&arguments);
    rule.exit_on_panic();
    ExitCode::from(rule.guard(|| start(arguments, rule)))
}

/// Parses and runs; the result is the exit code.
fn start(arguments: Vec<OsString>, rule: ExitRule) -> u8 {
    // Usage errors come before there is a parsed flag to ask.
    let asked_for_json = arguments.iter().any(|argument| argument == "--json");
    let cli = match cli::parse(arguments) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            return match print::stdout(&error.render().to_string()) {
                Ok(()) => rule.ended(Ending::Done),
                Err(error) => fail(&error, rule, asked_for_json),
            };
        }
        Err(error) if asked_for_json => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            return fail(&Error::new(Kind::Usage, line.trim_start_matches("error: ")), rule, true);
        }
        Err(error) => {
            let _ = error.print();
            return rule.failed(Kind::Usage);
        }
    };
    let as_json = cli.command.json();
    match run(cli, rule) {
        Ok(ending) => rule.ended(ending),
        Err(error) => fail(&error, rule, as_json),
    }
}

fn fail(error: &Error, rule: ExitRule, as_json: bool) -> u8 {
    // Nobody is left to tell if standard error is closed.
    let _ = std::io::stderr().write_all(render_error(error, rule, as_json).as_bytes());
    rule.failed(error.kind())
}

fn run(cli: Cli, rule: ExitRule) -> Result<Ending> {
    let clusters = Settings::load_all(&cli, &|name| std::env::var_os(name))?;
    // The same for all of them.
    start_logging(&cli, clusters.first().map(|settings| settings.log_format).unwrap_or_default())?;
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| Error::new(Kind::Internal, "a TLS provider was installed already"))?;
    // The other half is for what computes: it has threads of its own. Where there are two processors, one thread for all
    // sockets wakes nobody else with each message.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((runtime::processors() / 2).max(1))
        .max_blocking_threads(BLOCKING_THREADS_MAX + clusters.len() * DiskThreads::MOST)
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Local, "cannot start threads").because(error))?;
    rule.unwind_on_panic();
    let result = runtime.block_on(dispatch(cli, clusters));
    // Work that may not be interrupted has no say in when the process ends.
    runtime.shutdown_background();
    // Nor do programs that were asked for secrets outlive it.
    secret::end_all();
    result
}

/// Log lines go to standard error. Libraries speak of requests and credentials: below warnings only Seawall is heard.
fn start_logging(cli: &Cli, format: LogFormat) -> Result<()> {
    let level = match (&cli.command, cli.common.verbose) {
        (Command::Run(_), 0) => LevelFilter::INFO,
        (_, 0) => LevelFilter::WARN,
        (_, 1) => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // How far a long command is, where there is no terminal for a bar.
    let lines_of_progress = level.max(LevelFilter::INFO);
    let filter = Targets::new()
        .with_target("seawall", level)
        .with_target(progress::TARGET, lines_of_progress)
        .with_default(LevelFilter::WARN);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Json => tracing_subscriber::registry().with(filter).with(lines.json()).try_init(),
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let lines = lines.with_ansi(colours).with_target(false);
            tracing_subscriber::registry().with(filter).with(lines).try_init()
        }
    };
    started.map_err(|error| Error::new(Kind::Internal, "cannot start logging").because(error))
}
