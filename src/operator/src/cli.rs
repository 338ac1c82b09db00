//! The command line: its commands, and what each runs.

use std::process::ExitCode;

use crate::config::{DEFAULT_NAMESPACE, RunArgs};
use crate::fence::fence_yaml;
use crate::plugin::fleet::{Output, fleet_command};
use crate::telemetry::log;
use crate::{api, replica};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use sharded_controller::process;

/// Measurements of a build without optimization are useless, so the version names it.
const VERSION: &str = if cfg!(debug_assertions) {
    concat!(env!("CARGO_PKG_VERSION"), " (debug build)")
} else {
    env!("CARGO_PKG_VERSION")
};

/// A sharded, highly available operator for DatabaseClusters.
#[derive(Parser)]
#[command(version = VERSION)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a replica of the operator.
    Run(Box<RunArgs>),
    /// Print the CustomResourceDefinitions.
    Crd,
    /// Print the admission policies of the fence.
    Fence {
        /// Namespace of the operator.
        #[arg(long, short = 'n', env = "DBC_NAMESPACE", default_value = DEFAULT_NAMESPACE)]
        namespace: String,
    },
    /// Show which replica holds which shard, from the Leases.
    Fleet {
        /// Namespace of the operator.
        #[arg(long, short = 'n', env = "DBC_NAMESPACE", default_value = DEFAULT_NAMESPACE)]
        namespace: String,
        /// Form of the output.
        #[arg(long, short = 'o', value_enum, default_value = "table")]
        output: Output,
    },
}

/// Runs the program: parses the command line and executes the command.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: all causes in sequence.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reports a bad flag in one line; help and version as usual.
fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| match error.kind() {
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let text = error.render().to_string();
            let lines: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !line.is_empty())
                .collect();
            eprintln!("{}", lines.join(" "));
            ExitCode::from(2)
        }
        _ => {
            let _closed_output = error.print();
            ExitCode::from(if error.use_stderr() { 2 } else { 0 })
        }
    })
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Crd => {
            print!("{}", api::crd_yaml()?);
            Ok(())
        }
        Command::Fence { namespace } => {
            print!("{}", fence_yaml(&namespace));
            Ok(())
        }
        Command::Fleet { namespace, output } => runtime()?.block_on(async {
            install_crypto();
            let client = kube::Client::try_default().await?;
            fleet_command(client, &namespace, output).await
        }),
        Command::Run(args) => {
            let log_level = log::init(args.log_format)?;
            process::count_panics();
            install_crypto();
            Ok(runtime()?.block_on(replica::run(*args, log_level))?)
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// An error means that a provider is installed already, which is fine.
fn install_crypto() {
    let _installed = rustls::crypto::ring::default_provider().install_default();
}
