//! `kubectl dbc`: the kubectl plugin for users of DatabaseClusters and for administrators of their operator.
//!
//! It has the rights of the user's kubeconfig and no others. It reads objects, Leases, the shard table and Events; what is
//! inside the containers it asks through `kubectl exec`. What could not be read is reported as that, and never guessed.

mod access;
mod args;
mod changes;
mod clusters;
mod complete;
mod connect;
mod explain;
mod failure;
pub mod fleet;
mod instances;
mod moves;
pub(crate) mod output;
mod redact;
mod reference;
mod report;
mod status;
mod version;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use self::access::Session;
use self::args::{Cli, Command, Show, Which};
use self::explain::{Explanations, explain};
use self::failure::{Exit, Failure};
use self::status::Details;

pub use reference::reference;

/// Version of the program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the plugin: parses the command line and executes the command.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _closed_output = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(Exit::Usage as u8),
            };
        }
    };
    // An error means that a provider is installed already, which is fine.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(Box::pin(execute(cli))),
        Err(error) => Err(Failure::new(
            Exit::Failed,
            format!("cannot start the program: {error}"),
        )),
    };
    match ended {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

/// Whether `--namespace` names the operator's namespace.
const fn is_about_fleet(command: &Command) -> bool {
    match command {
        Command::Fleet { .. }
        | Command::Shards { .. }
        | Command::Replicas { .. }
        | Command::Top { .. }
        | Command::Move { .. }
        | Command::Drain { .. } => true,
        Command::Status { .. }
        | Command::Explain { .. }
        | Command::Logs(_)
        | Command::Psql { .. }
        | Command::Pause(_)
        | Command::Resume { .. }
        | Command::Restart(_)
        | Command::Report { .. }
        | Command::Version { .. }
        | Command::Complete { .. } => false,
    }
}

async fn execute(cli: Cli) -> Result<ExitCode, Failure> {
    match &cli.command {
        Command::Complete { words } => {
            let text = complete::complete(&Cli::command(), words, &cli.access).await;
            output::print(&text)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Version { output, client } => {
            version::version(&cli.access, *output, *client).await?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let mut access = cli.access;
    if matches!(&cli.command, Command::Logs(logs) if logs.follow) {
        // A log may be silent for as long as it likes.
        access.request_timeout = std::time::Duration::from_secs(86_400);
    }
    let session = Session::open(&access, is_about_fleet(&cli.command)).await?;
    run(&session, cli.command).await
}

async fn run(session: &Session, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Status { which, show } => {
            let details = match which.names.is_empty() {
                true => Details::None,
                false => Details::All,
            };
            let read = || status::read(session, &which, details);
            output::show(show, read).await?;
        }
        Command::Explain { which, show } => return explain_all(session, which, show).await,
        Command::Logs(logs) => connect::logs(session, &logs).await?,
        Command::Psql {
            name,
            instance,
            arguments,
        } => return connect::psql(session, &name, instance, &arguments).await,
        Command::Pause(change) => changes::pause(session, &change).await?,
        Command::Resume { change, replicas } => {
            changes::resume(session, &change, replicas).await?;
        }
        Command::Restart(change) => changes::restart(session, &change).await?,
        Command::Fleet { show } => {
            let namespace = &session.operator_namespace;
            let read = || fleet::read(session.client.clone(), namespace, "-n");
            output::show(show, read).await?;
        }
        Command::Shards { fleets, show } => {
            let read = || fleet::read_fleets(session, fleets.all_namespaces);
            let read = || async { Ok(fleet::shards(read().await?)) };
            output::show(show, read).await?;
        }
        Command::Replicas { fleets, show } => {
            let read = || fleet::read_fleets(session, fleets.all_namespaces);
            let read = || async { Ok(fleet::replicas(read().await?)) };
            output::show(show, read).await?;
        }
        Command::Top { fleets, show } => {
            let read = || fleet::read_fleets(session, fleets.all_namespaces);
            let read = || async { Ok(fleet::top(read().await?)) };
            output::show(show, read).await?;
        }
        Command::Move {
            shard,
            replica,
            timeout,
        } => moves::move_shard(session, shard, &replica, timeout).await?,
        Command::Drain {
            replica,
            undo: true,
            ..
        } => moves::undo_drain(session, &replica).await?,
        Command::Drain {
            replica, timeout, ..
        } => moves::drain(session, &replica, timeout).await?,
        Command::Report { names, file } => report::report(session, &names, file).await?,
        Command::Version { .. } | Command::Complete { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Explains, and ends with a code of its own if a DatabaseCluster is not Ready.
async fn explain_all(session: &Session, which: Which, show: Show) -> Result<ExitCode, Failure> {
    let read = || async {
        let clusters = status::read(session, &which, Details::OfUnready).await?;
        Ok(Explanations(clusters.views.iter().map(explain).collect()))
    };
    let explanations = output::show(show, read).await?;
    let is_ready = explanations.0.iter().all(|found| found.ready);
    Ok(match is_ready {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(Exit::NotReady as u8),
    })
}
