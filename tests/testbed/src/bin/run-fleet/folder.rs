//! The folder `.run`: locked while a fleet is up, it names what runs, for scripts and for the user's shell.
//!
//! | entry | content |
//! | --- | --- |
//! | `fleet.json` | the [`Journal`] |
//! | `kubeconfig` | the administrator's, under a short name |
//! | `bin` | kubectl, the plugin and its completion |
//!
//! The entries go when the fleet does.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use testbed::fleet::{plugin_binary, repository};
use testbed::{ControlPlane, Fleet};

use crate::journal::Journal;

/// The folder; the system lets go of its lock when the process ends, however it ends.
pub(crate) struct Folder {
    path: PathBuf,
    _held: File,
}

/// What the folder names; dropping it removes that.
pub(crate) struct Entries(Vec<PathBuf>);

impl Folder {
    /// Takes the folder.
    ///
    /// # Errors
    /// When a fleet is up in it.
    pub(crate) fn take(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        match lock(&path)? {
            Some(held) => Ok(Self { path, _held: held }),
            None => bail!(
                "a fleet of this working copy is already up (.run/fleet.json names it): end it with Ctrl-C first"
            ),
        }
    }

    /// Whether a fleet is up in this folder.
    pub(crate) fn is_taken(path: &Path) -> Result<bool> {
        Ok(path.is_dir() && lock(path)?.is_none())
    }

    /// Names what runs. Whatever ends this program, the guardian of the control plane removes the entries.
    pub(crate) fn enter(&self, control_plane: &ControlPlane, fleet: &Fleet<'_>) -> Result<Entries> {
        let programs = self.programs();
        fs::create_dir_all(&programs).with_context(|| format!("create {}", programs.display()))?;
        let links = [
            (control_plane.kubeconfig(), self.kubeconfig()),
            (control_plane.kubectl(), programs.join("kubectl")),
            (plugin_binary()?, programs.join("kubectl-dbc")),
            (
                repository().join("deploy/plugin/kubectl_complete-dbc"),
                programs.join("kubectl_complete-dbc"),
            ),
        ];
        let mut entries = Entries(vec![Journal::path(&self.path)]);
        entries.0.extend(links.iter().map(|(_, link)| link.clone()));
        for entry in &entries.0 {
            control_plane.guardian().register_file(entry)?;
        }
        for (target, link) in &links {
            replace_link(target, link)?;
        }
        self.write_journal(fleet)?;
        Ok(entries)
    }

    /// Names the replicas as they run now.
    pub(crate) fn write_journal(&self, fleet: &Fleet<'_>) -> Result<()> {
        Journal::of(fleet).write(&self.path)
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path.join("kubeconfig")
    }

    /// A folder for the user's PATH.
    pub(crate) fn programs(&self) -> PathBuf {
        self.path.join("bin")
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        for entry in &self.0 {
            // The guardian removes it again, so a failure here is of no consequence.
            let _removed = fs::remove_file(entry);
        }
    }
}

/// `None`: it is locked.
fn lock(path: &Path) -> Result<Option<File>> {
    let held = File::open(path).with_context(|| format!("open {}", path.display()))?;
    match held.try_lock() {
        Ok(()) => Ok(Some(held)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => bail!("lock {}: {error}", path.display()),
    }
}

/// One that an earlier run left, killed together with its guardian, leads nowhere.
fn replace_link(target: &Path, link: &Path) -> Result<()> {
    let what = || format!("link {} to {}", link.display(), target.display());
    match fs::remove_file(link) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(what)?,
        _ => symlink(target, link).with_context(what),
    }
}
