//! `.run/fleet.json`: what runs, for scripts; it is removed when the demonstration ends.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;
use testbed::{ControlPlane, Fleet};

/// The written file; dropping it removes it.
pub(crate) struct Journal(PathBuf);

/// Writes the file atomically, so that no reader gets a part of it.
pub(crate) fn write(
    path: PathBuf,
    control_plane: &ControlPlane,
    fleet: &Fleet<'_>,
) -> Result<Journal> {
    let replica = |replica: &testbed::Replica| json!({"identity": replica.name(), "pid": replica.pid(), "url": replica.url()});
    let journal = json!({
        "kubeconfig": control_plane.kubeconfig(),
        "kubectl": control_plane.kubectl(),
        "replicas": fleet.replicas().iter().map(replica).collect::<Vec<_>>(),
    });
    let part = path.with_extension("json.part");
    let what = || format!("write {}", path.display());
    fs::write(&part, serde_json::to_string_pretty(&journal)? + "\n").with_context(what)?;
    fs::rename(&part, &path).with_context(what)?;
    Ok(Journal(path))
}

impl Drop for Journal {
    fn drop(&mut self) {
        // The guardian removes it again, so a failure here is of no consequence.
        let _removed = fs::remove_file(&self.0);
    }
}
