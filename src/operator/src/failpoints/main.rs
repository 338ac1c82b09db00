//! The operator as in `src/main.rs`, built with failpoints. For fault injection only.

#[path = "../main.rs"]
mod operator;

fn main() -> std::process::ExitCode {
    operator::main()
}
