//! One demonstration per working copy: the folder `.run` is locked while it lasts.

use std::fs::{self, File, TryLockError};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The lock; the system lets go of it when the process ends, however it ends.
pub(crate) struct Lock {
    folder: PathBuf,
    _held: File,
}

impl Lock {
    /// The file that names what runs.
    pub(crate) fn journal(&self) -> PathBuf {
        self.folder.join("fleet.json")
    }
}

/// Takes the lock, or names its owner in one line.
pub(crate) fn take() -> Result<Lock> {
    let folder = testbed::fleet::repository().join(".run");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let held = File::open(&folder).with_context(|| format!("open {}", folder.display()))?;
    match held.try_lock() {
        Ok(()) => Ok(Lock {
            folder,
            _held: held,
        }),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "a fleet of this working copy is already up (.run/fleet.json names it): end it with Ctrl-C first"
            )
        }
        Err(TryLockError::Error(error)) => bail!("lock {}: {error}", folder.display()),
    }
}
