//! `.run/fleet.json`: what runs, for scripts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use testbed::Fleet;

/// The content of the file.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Journal {
    /// The administrator's.
    pub(crate) kubeconfig: PathBuf,
    pub(crate) kubectl: PathBuf,
    pub(crate) replicas: Vec<Entry>,
    /// Pid of this program. SIGUSR1 starts the replicas again that have ended.
    pub(crate) runner: u32,
}

/// One replica, as it ran last.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Entry {
    pub(crate) identity: String,
    pub(crate) pid: u32,
    pub(crate) url: String,
}

impl Journal {
    /// Its file in the folder of a fleet.
    pub(crate) fn path(folder: &Path) -> PathBuf {
        folder.join("fleet.json")
    }

    /// What runs now.
    pub(crate) fn of(fleet: &Fleet<'_>) -> Self {
        let replica = |replica: &testbed::Replica| Entry {
            identity: replica.name().to_owned(),
            pid: replica.pid(),
            url: replica.url().to_owned(),
        };
        let control_plane = fleet.control_plane();
        Self {
            kubeconfig: control_plane.kubeconfig(),
            kubectl: control_plane.kubectl(),
            replicas: fleet.replicas().iter().map(replica).collect(),
            runner: std::process::id(),
        }
    }

    /// Writes it atomically, so that no reader gets a part of it.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = Self::path(folder);
        let part = path.with_extension("json.part");
        let what = || format!("write {}", path.display());
        fs::write(&part, serde_json::to_string_pretty(self)? + "\n").with_context(what)?;
        fs::rename(&part, &path).with_context(what)
    }

    /// Reads it.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = Self::path(folder);
        let what = || format!("read {}", path.display());
        let text = fs::read_to_string(&path).with_context(what)?;
        serde_json::from_str(&text).with_context(what)
    }
}
