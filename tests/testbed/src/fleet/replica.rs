//! One operator process: started, queried, signalled, and ended.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::Launcher;
use super::identity::Identity;
use crate::control_plane::ControlPlane;
use crate::error::{Context, Error, Result, failed};
use crate::http_get::{self, Answer};
use crate::metrics::Metrics;
use crate::process::{ProcessId, ProcessUsage};
use crate::wait::{Progress, wait_for};

/// A free port of loopback, which the replica logs.
const LISTEN: &str = "127.0.0.1:0";
const LISTEN_TIMEOUT: Duration = Duration::from_secs(20);
const LOG_TAIL_LINES: usize = 15;

/// All that is needed to start a process, or to start it again.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub(super) binary: PathBuf,
    pub(super) launcher: Launcher,
    /// The operator's namespace.
    pub(super) namespace: &'static str,
    /// What is run instead, with the binary as its last argument; nothing: the binary itself.
    pub(super) through: Vec<String>,
    pub(super) identity: Identity,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
}

/// One operator process. Dropping it kills it.
#[derive(Debug)]
pub struct Replica {
    launch: Launch,
    process: ProcessId,
    /// Guards the handle during one check whether the process has ended.
    child: Mutex<Child>,
    url: String,
    log: PathBuf,
}

impl Launch {
    /// Passes on the identity, and where to listen.
    fn introduce(&self, command: &mut Command) {
        let Identity { name, pod_uid, .. } = &self.identity;
        match self.launcher {
            Launcher::Flags => command
                .arg("run")
                .args(["--namespace", self.namespace])
                .args(["--identity", name])
                .args(["--pod-uid", pod_uid])
                .args(["--listen", LISTEN]),
            Launcher::Environment => command
                .env("POD_NAMESPACE", self.namespace)
                .env("POD_NAME", name)
                .env("POD_UID", pod_uid)
                .env("LISTEN", LISTEN),
        };
    }

    pub(super) async fn start(self, control_plane: &ControlPlane) -> Result<Replica> {
        let log = control_plane
            .folder()
            .join(format!("{}.log", self.identity.name));
        let what = format!("start {} ({})", self.identity.name, self.binary.display());
        // Each life of the replica appends; its own part begins here.
        let log_start = std::fs::metadata(&log).map_or(0, |file| file.len());
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .context(what.clone())?;
        let mut command = match self.through.split_first() {
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        self.introduce(&mut command);
        let child = command
            .args(&self.args)
            .env("KUBECONFIG", &self.identity.kubeconfig)
            .env("NO_COLOR", "1")
            .env(
                control_plane.guardian().mark().0,
                control_plane.guardian().mark().1,
            )
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(control_plane.folder())
            .stdin(Stdio::null())
            .stdout(file.try_clone().context(what.clone())?)
            .stderr(file)
            // A group of its own: Ctrl-C in the terminal is for the owner, who ends replicas in order.
            .process_group(0)
            .spawn()
            .context(what)?;
        let process = ProcessId::of(child.id())?;
        control_plane.guardian().register(process)?;
        let mut replica = Replica {
            launch: self,
            process,
            child: Mutex::new(child),
            url: String::new(),
            log,
        };
        replica.url = replica.wait_listening(log_start).await?;
        Ok(replica)
    }
}

impl Replica {
    /// Its identity, which is its Pod's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.launch.identity.name
    }

    /// Its Pod's uid.
    #[must_use]
    pub fn pod_uid(&self) -> &str {
        &self.launch.identity.pod_uid
    }

    /// Its kubeconfig, with its own token.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.launch.identity.kubeconfig
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Where it serves `/metrics`, `/readyz` and so on.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its log's file.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether the process runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    /// The CPU and memory it has used.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> Result<ProcessUsage> {
        self.process.usage()
    }

    /// Asks it over HTTP.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        http_get::get(&self.url, path, "application/json, text/plain, */*").await
    }

    /// Its metrics now.
    ///
    /// # Errors
    /// When it does not answer with them.
    pub async fn metrics(&self) -> Result<Metrics> {
        let answer = self.get("/metrics").await?;
        match answer.status {
            200 => Ok(Metrics::parse(&answer.body)),
            status => failed(format!("{}/metrics answered {status}", self.url)),
        }
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// When it does not in time, or the process has ended.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let waited = wait_for(format!("{} to be ready", self.name()), timeout, || async {
            self.must_run()?;
            Ok(match self.get("/readyz").await {
                Ok(answer) if answer.status == 200 => Progress::Done(()),
                Ok(answer) => Progress::pending(format!(
                    "/readyz answers {}: {}",
                    answer.status,
                    answer.body.trim()
                )),
                Err(error) => Progress::pending(error),
            })
        });
        self.with_log(waited.await)
    }

    /// Kills it (SIGKILL) and returns when it has ended.
    ///
    /// # Errors
    /// When it has ended before.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.wait_end(Duration::from_secs(10)).await.map(drop)
    }

    /// Asks it to end (SIGTERM) and does not wait.
    ///
    /// # Errors
    /// When it has ended before.
    pub fn ask_to_end(&self) -> Result<()> {
        self.process.signal(Signal::TERM)
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// When it has ended before, or does not end in time.
    pub async fn term(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.process.signal(Signal::TERM)?;
        self.wait_end(timeout).await
    }

    /// Stops it in its tracks (SIGSTOP).
    ///
    /// # Errors
    /// When it has ended.
    pub fn stop(&self) -> Result<()> {
        self.process.freeze()
    }

    /// Resumes it after [`Replica::stop`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn cont(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn wait_end(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let waited = wait_for(format!("the end of {}", self.name()), timeout, || async {
            let status = self.exit_status()?;
            Ok(status.map_or_else(|| Progress::pending("it still runs"), Progress::Done))
        });
        self.with_log(waited.await)
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    pub(super) fn launch(&self) -> &Launch {
        &self.launch
    }

    fn exit_status(&self) -> Result<Option<ExitStatus>> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child
            .try_wait()
            .context(format!("wait for {}", self.name()))
    }

    fn must_run(&self) -> Result<()> {
        match self.exit_status()? {
            Some(status) => failed(format!("{} has ended by itself ({status})", self.name())),
            None => Ok(()),
        }
    }

    async fn wait_listening(&self, log_start: u64) -> Result<String> {
        let waited = wait_for(
            format!("{} to listen", self.name()),
            LISTEN_TIMEOUT,
            || async {
                self.must_run()?;
                let text = std::fs::read(&self.log).context("read the replica's log")?;
                let own = text
                    .get(usize::try_from(log_start).unwrap_or(0)..)
                    .unwrap_or_default();
                let url = listening_url(&String::from_utf8_lossy(own));
                Ok(url.map_or_else(
                    || Progress::pending("its log does not contain the address"),
                    Progress::Done,
                ))
            },
        );
        self.with_log(waited.await)
    }

    /// Adds the end of the log to a failure.
    fn with_log<T>(&self, result: Result<T>) -> Result<T> {
        let message = |error| {
            format!(
                "{error}\n--- the end of {}'s log:\n{}",
                self.name(),
                self.log_tail()
            )
        };
        result.map_err(|error| Error::Failed(message(error)))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        // A stopped process is killed as well as a running one; one that has ended returns an error, which is ignored.
        if child.kill().is_ok() {
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(5)
                && !matches!(child.try_wait(), Ok(Some(_)))
            {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// The address in the log line of the listening replica.
fn listening_url(log: &str) -> Option<String> {
    const SCHEME: &str = "http://";
    let line = log
        .lines()
        .find(|line| line.contains("listening") && line.contains(SCHEME))?;
    let address = &line[line.find(SCHEME)? + SCHEME.len()..];
    let end = address.find(|c: char| !(c.is_ascii_alphanumeric() || ".:[]".contains(c)));
    Some(format!(
        "{SCHEME}{}",
        &address[..end.unwrap_or(address.len())]
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn address_is_found_in_plain_and_quoted_log_lines() {
        let plain = "start\n2026 INFO listening url=http://127.0.0.1:4711 more=1\n";
        assert_eq!(listening_url(plain).unwrap(), "http://127.0.0.1:4711");
        let quoted = r#"{"message":"listening","url":"http://127.0.0.1:1"}"#;
        assert_eq!(listening_url(quoted).unwrap(), "http://127.0.0.1:1");
        assert_eq!(
            listening_url("INFO connecting to http://127.0.0.1:6443\n"),
            None
        );
    }
}
