//! The command line: one binary, one sub-command per thing an operator or data engineer does.
//!
//! Exit status: 0 done, 1 the thing asked for failed, 2 wrong usage or configuration. Results go to standard
//! output, logs and progress to standard error.

mod alerts;
mod audit;
mod ca;
mod check;
mod demo;
mod devices;
mod files;
mod flush;
mod groups;
mod pipelines;
mod provision;
mod query;
mod record;
mod remote;
mod repair;
mod run;
mod shadow;
mod shell;
mod simulate;
mod tap;
mod test;
mod tokens;
mod torture;
mod users;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Stream processing for device telemetry: devices publish over MQTT, SQL pipelines downsample, Parquet comes out.
#[derive(Debug, Parser)]
#[command(name = "weir", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What to log to standard error: error, warn, info, debug, trace, or a filter such as `weir=debug`.
    #[arg(
        long,
        global = true,
        env = "WEIR_LOG",
        default_value = "warn,weir=info,engine=info,actors=info,pipelines=info,storage=info,edge=warn"
    )]
    log: String,
    /// A file whose first line is the token to show to an engine (`--url`); without it $WEIR_TOKEN counts.
    #[arg(long, global = true, env = "WEIR_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<std::path::PathBuf>,
    /// Certificates of those to trust for https:// (PEM); without it those that Mozilla trusts.
    #[arg(long, global = true, env = "WEIR_CA", value_name = "FILE")]
    ca: Option<std::path::PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole system on this machine: engine, simulated fleet, sample pipelines, and a summary.
    Demo(demo::Args),
    /// The engine.
    Run(run::Args),
    /// Parse, plan and type-check SQL files, without a server.
    Check(check::Args),
    /// Run the tests that stand beside pipelines (`*.slt`), without a server and on a virtual clock.
    Test(test::Args),
    /// Telemetry from tables as lines of JSON, for tests.
    Record(record::Args),
    /// The pipelines of an engine: list, show, explain, what a change would do; repair, backfill, tap.
    Pipelines(pipelines::Args),
    /// Alerts that are not ok: list, show, acknowledge, silence; who is told; what rules would have done.
    Alerts(alerts::Args),
    /// Certificates of devices and users: make, list, revoke, renew.
    Ca(ca::Args),
    /// Devices that come for the first time: which may have a certificate.
    Provision(provision::Args),
    /// Devices: list, show, tell them to do something.
    Devices(devices::Args),
    /// What devices are wanted to be and say they are: show, set, delete.
    Shadow(shadow::Args),
    /// Groups of devices: who belongs to them, what is wanted of all, how far they are.
    Groups(groups::Args),
    /// One query over all tables, from files or through a running engine.
    Query(query::Args),
    /// An interactive SQL shell over all tables.
    Sql(shell::Args),
    /// Ask a running engine for a barrier; return when all files up to it are visible.
    Flush(flush::Args),
    /// The ledger: what became of every sequence number. Fails if any is missing or double.
    Audit(audit::Args),
    /// People and programs that may use the HTTP API, and what they may do: add, list, role, remove.
    Users(users::Args),
    /// Their tokens: create, list, revoke.
    Tokens(tokens::Args),
    /// A fleet of simulated devices against a running engine.
    Simulate(simulate::Args),
    /// Engine and agents as processes under kill, stop, full disk and a lying network; then a verdict.
    Torture(torture::Args),
}

/// Why a command ends with a status other than 0.
#[derive(Debug)]
enum Exit {
    /// The thing asked for failed: status 1.
    Failed(String),
    /// Wrong usage or configuration: status 2.
    Usage(String),
    /// Status 1, and everything has been said.
    Silent,
}

impl Exit {
    fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log);
    let filter = match filter {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("error: --log {:?}: {error}", cli.log);
            return ExitCode::from(2);
        }
    };
    // Colours are for terminals; a log file holds text.
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .init();
    if let Err(exit) = remote::identify(cli.token_file, cli.ca) {
        return end(Err(exit));
    }
    end(run(cli.command))
}

fn run(command: Command) -> Result<(), Exit> {
    match command {
        Command::Demo(args) => runtime(demo::main(args)),
        Command::Run(args) => runtime(run::main(args)),
        Command::Check(args) => check::main(&args),
        Command::Pipelines(args) => runtime(pipelines::main(args)),
        Command::Alerts(args) => runtime(alerts::main(&args)),
        Command::Ca(args) => ca::main(&args),
        Command::Provision(args) => provision::main(&args),
        Command::Devices(args) => devices::main(&args),
        Command::Shadow(args) => shadow::main(&args),
        Command::Groups(args) => groups::main(&args),
        Command::Test(args) => runtime(test::main(args)),
        Command::Record(args) => runtime(record::main(args)),
        Command::Query(args) => runtime(query::main(args)),
        Command::Sql(args) => runtime(shell::main(args)),
        Command::Flush(args) => flush::main(&args),
        Command::Audit(args) => runtime(audit::main(args)),
        Command::Simulate(args) => runtime(simulate::main(args)),
        Command::Torture(args) => runtime(torture::main(args)),
        Command::Users(args) => users::main(&args),
        Command::Tokens(args) => tokens::main(&args),
    }
}

fn end(result: Result<(), Exit>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit::Silent) => ExitCode::from(1),
        Err(Exit::Failed(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(1)
        }
        Err(Exit::Usage(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn runtime(work: impl Future<Output = Result<(), Exit>>) -> Result<(), Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("weir")
        // The query engine spawns tasks of its own, which evaluate expressions by recursion.
        .thread_stack_size(16 << 20)
        .build()
        .map_err(|e| Exit::Failed(format!("cannot start the runtime: {e}")))?;
    let result = runtime.block_on(work);
    // A query or upload that hangs must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

/// What SIGINT or SIGTERM cancels, from now on.
fn stop_at_signal() -> Result<CancellationToken, Exit> {
    let stop = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Exit::failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Exit::failed)?;
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stopped.cancel();
    });
    Ok(stop)
}

/// Text for people or JSON for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Writes to standard output. A reader that has gone away (`| head`) is no error.
fn print(text: &str) -> Result<(), Exit> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Exit::failed(error)),
        _ => Ok(()),
    }
}
