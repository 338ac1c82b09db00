//! Where the control plane's programs are: built from pinned modules when they are not there yet.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::sync::OnceCell;

use crate::error::{Context, Result, failed};

static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();

/// The folder of the programs. `tests/control-plane/build.sh` defines it, and builds what is missing; its progress
/// goes to standard error.
pub(super) async fn folder() -> Result<PathBuf> {
    FOLDER.get_or_try_init(build).await.cloned()
}

async fn build() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-plane/build.sh");
    let mut command = Command::new("bash");
    command
        .arg(&script)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .context("wait for the control plane's build")?
        .context(format!("run {}", script.display()))?;
    if !output.status.success() {
        return failed(
            "the control plane's programs are missing: run `make control-plane`, which prints the reason",
        );
    }
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(PathBuf::from(folder))
}
