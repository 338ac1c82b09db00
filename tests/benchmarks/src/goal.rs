//! Goals: each is printed with its verdict, and with `CHECK=1` one that was missed shows in the exit status.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};

static MISSED: AtomicUsize = AtomicUsize::new(0);

/// The word for it; a miss is remembered.
pub(crate) fn verdict(met: bool) -> &'static str {
    if met {
        "met"
    } else {
        MISSED.fetch_add(1, Ordering::Relaxed);
        "MISSED"
    }
}

/// How many goals were missed so far.
pub(crate) fn missed() -> usize {
    MISSED.load(Ordering::Relaxed)
}

/// How the measured operator was built, by its `--version`.
///
/// # Errors
/// When there is no operator, or it does not run.
pub(crate) fn profile() -> Result<&'static str> {
    let program = testbed::fleet::operator_binary()?;
    let output = std::process::Command::new(&program)
        .arg("--version")
        .output()
        .with_context(|| format!("run {} --version", program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && !said.trim().is_empty(),
        "{} --version prints nothing",
        program.display()
    );
    Ok(if said.contains("debug") {
        "debug build: of no use as a figure"
    } else {
        "release build"
    })
}
