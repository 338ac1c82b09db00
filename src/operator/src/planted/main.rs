//! The operator as in `src/main.rs`, built so that faults can be planted in it. For experiments only.

#[path = "../main.rs"]
mod operator;

fn main() -> std::process::ExitCode {
    operator::main()
}
