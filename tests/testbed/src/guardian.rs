//! The guardian: a process of its own that cleans up after its owner has ended.
//!
//! The guardian is a small shell script that reads from a pipe. The pipe closes when the owner lets go of it or
//! dies in any way, SIGKILL included. Then the guardian ends the registered processes (the same pid and the same
//! start time) and every process that carries the test bed's mark in its environment, and removes the folder.

use std::fs::DirBuilder;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result, failed};
use crate::process::ProcessId;

const SCRIPT: &str = include_str!("guardian.sh");
/// The name of the environment variable that marks processes of a test bed; its value is the folder.
pub const MARK: &str = "DATABASECLUSTER_TESTBED";
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(20);

/// A private temporary folder and everything that runs in it; both go when this is dropped.
#[derive(Debug)]
pub struct Guardian {
    folder: PathBuf,
    child: Child,
    /// Guards the pipe's writing end, for the time of one line; `None` once let go.
    pipe: Mutex<Option<ChildStdin>>,
}

impl Guardian {
    /// Makes a folder of its own under the system's temporary folder, and the guardian that watches it.
    ///
    /// # Errors
    /// When the folder cannot be created or `sh` cannot be started.
    pub fn start(label: &str) -> Result<Self> {
        let random = RandomState::new().hash_one(label);
        let name = format!(
            "databasecluster-{label}-{}-{random:016x}",
            std::process::id()
        );
        let folder = std::env::temp_dir().join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .context(format!("create {}", folder.display()))?;
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT, "databasecluster-guardian"])
            .arg(&folder)
            .arg(mark(&folder))
            .env_remove(MARK)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C in the terminal must not end the guardian with its owner.
            .process_group(0)
            .spawn()
            .context("start sh as guardian")?;
        let pipe = Mutex::new(child.stdin.take());
        Ok(Self {
            folder,
            child,
            pipe,
        })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The guardian's own process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The name and value that a process must have in its environment to belong to this test bed.
    #[must_use]
    pub fn mark(&self) -> (&'static str, &Path) {
        (MARK, &self.folder)
    }

    /// Registers a process to be ended.
    ///
    /// # Errors
    /// When the guardian has ended.
    pub fn register(&self, process: ProcessId) -> Result<()> {
        self.send(&format!("pid {} {}\n", process.pid, process.start_ticks))
    }

    /// Registers a file outside the folder to be removed.
    ///
    /// # Errors
    /// When the guardian has ended or the path does not fit in one line.
    pub fn register_file(&self, path: &Path) -> Result<()> {
        match path.to_str().filter(|text| !text.contains('\n')) {
            Some(text) => self.send(&format!("file {text}\n")),
            None => failed(format!("{} is not a path for one line", path.display())),
        }
    }

    fn send(&self, line: &str) -> Result<()> {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = pipe.as_mut();
        let pipe = pipe.ok_or_else(|| Error::Failed("the guardian was let go".into()))?;
        pipe.write_all(line.as_bytes())
            .context("write to the guardian (did something end it?)")
    }

    /// Releases it, and waits until everything has ended. Blocks.
    ///
    /// # Errors
    /// When something is still there after 20 s.
    pub fn finish(&mut self) -> Result<()> {
        self.pipe
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let started = Instant::now();
        while started.elapsed() < CLEANUP_TIMEOUT {
            if self
                .child
                .try_wait()
                .context("wait for the guardian")?
                .is_some()
            {
                return match self.folder.exists() {
                    false => Ok(()),
                    true => failed(format!("{} could not be removed", self.folder.display())),
                };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        failed(format!(
            "the guardian of {} is still at work after {CLEANUP_TIMEOUT:?}",
            self.folder.display()
        ))
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            eprintln!("clean-up: {error}");
        }
    }
}

fn mark(folder: &Path) -> std::ffi::OsString {
    let mut mark = std::ffi::OsString::from(MARK);
    mark.push("=");
    mark.push(folder);
    mark
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use rustix::process::Signal;

    fn sleeper(marked: Option<(&str, &Path)>) -> Child {
        let mut command = Command::new("sleep");
        command.arg("600").stdout(Stdio::null()).envs(marked);
        command.spawn().unwrap()
    }

    #[test]
    fn only_registered_and_marked_processes_are_ended() {
        let mut guardian = Guardian::start("test").unwrap();
        let (mut registered, mut marked, mut other) =
            (sleeper(None), sleeper(Some(guardian.mark())), sleeper(None));
        guardian
            .register(ProcessId::of(registered.id()).unwrap())
            .unwrap();
        let impostor = ProcessId {
            pid: other.id(),
            start_ticks: 1,
        };
        guardian.register(impostor).unwrap();
        std::fs::write(guardian.folder().join("file"), "x").unwrap();
        let outside = std::env::temp_dir().join(format!("guardian test {}", std::process::id()));
        std::fs::write(&outside, "x").unwrap();
        guardian.register_file(&outside).unwrap();

        guardian.finish().unwrap();

        assert!(!guardian.folder().exists() && !outside.exists());
        assert!(!registered.wait().unwrap().success());
        assert!(!marked.wait().unwrap().success());
        let bystander = ProcessId::of(other.id()).unwrap();
        assert!(bystander.is_alive());
        bystander.signal(Signal::KILL).unwrap();
        other.wait().unwrap();
    }
}
