//! The program of the operator; its commands are in [`databasecluster_operator::cli`].

use std::process::ExitCode;

// docs/decisions/libraries.md#decision-27
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    databasecluster_operator::cli::main()
}
