//! The kubectl plugin `kubectl dbc`; its commands are in [`databasecluster_operator::plugin`].

use std::process::ExitCode;

fn main() -> ExitCode {
    databasecluster_operator::plugin::main()
}
