//! The operator built with failpoints. For fault injection only.

fn main() -> std::process::ExitCode {
    databasecluster_operator::cli::main()
}
