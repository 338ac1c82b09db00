//! The control plane's processes: found by their pid files, paused, killed and started again.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{ControlPlane, config, run_kwokctl};
use crate::error::{Context, Error, Result, failed};
use crate::process::ProcessId;
use crate::wait::{Progress, wait_for};

/// The programs, in the order in which they start.
pub(super) const NAMES: [&str; 5] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kwok-controller",
];
/// What a program logs when another one has its port.
pub(super) const PORT_TAKEN: &str = "address already in use";
/// The API server's answer when a policy names a kind of parameter that it has not discovered yet.
const UNUSABLE_POLICY: &str = "failed to configure policy";
const PORT_CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// An API server reads all that there is before it serves.
const RESTART_TIMEOUT: Duration = Duration::from_secs(180);
const LOG_TAIL_LINES: usize = 8;

/// One program of the control plane.
#[derive(Clone, Debug)]
pub struct Component {
    /// The program's name, such as `kube-apiserver`.
    pub name: String,
    /// Its process.
    pub process: ProcessId,
}

impl ControlPlane {
    /// All programs that run.
    ///
    /// # Errors
    /// When one of them does not run.
    pub fn components(&self) -> Result<Vec<Component>> {
        NAMES.iter().map(|name| self.component(name)).collect()
    }

    /// One program by name.
    ///
    /// # Errors
    /// When it does not run.
    pub fn component(&self, name: &str) -> Result<Component> {
        let path = self.workdir().join("pids").join(format!("{name}.pid"));
        let text = std::fs::read_to_string(&path)
            .context(format!("{name} does not run: read {}", path.display()))?;
        let pid = text.trim().parse().context(format!("pid of {name}"))?;
        let process = ProcessId::of(pid)?;
        // The pid may belong to another program since the file was written.
        let program = self.workdir().join("bin").join(name);
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.split(|byte| *byte == 0).next() != Some(program.as_os_str().as_bytes()) {
            return failed(format!("{name} has ended"));
        }
        Ok(Component {
            name: name.to_owned(),
            process,
        })
    }

    /// Stops a program in its tracks (SIGSTOP); its connections stay open and nothing answers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, name: &str) -> Result<()> {
        self.component(name)?.process.freeze()
    }

    /// Resumes a paused program.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self, name: &str) -> Result<()> {
        self.component(name)?.process.signal(Signal::CONT)
    }

    /// Kills a program and waits until it has ended.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&self, name: &str) -> Result<()> {
        let process = self.component(name)?.process;
        process.signal(Signal::KILL)?;
        wait_for(format!("the end of {name}"), RESTART_TIMEOUT, || async {
            Ok(Progress::when(!process.is_alive(), (), || {
                "it still runs".into()
            }))
        })
        .await?;
        // Who takes its place must be able to listen at once.
        wait_for(format!("the ports of {name}"), RESTART_TIMEOUT, || async {
            let taken = self.ports.of(name).into_iter();
            let taken: Vec<u16> = taken.filter(|port| !is_free(*port)).collect();
            Ok(Progress::when(taken.is_empty(), (), || {
                format!("{taken:?} are in use")
            }))
        })
        .await?;
        // kwokctl takes a pid that is in use for a program that runs.
        let path = self.workdir().join("pids").join(format!("{name}.pid"));
        std::fs::remove_file(&path).context(format!("remove {}", path.display()))
    }

    /// Starts again whatever was killed, on the same ports, and waits until the API server serves.
    ///
    /// # Errors
    /// When it does not.
    pub async fn start_again(&self) -> Result<()> {
        run_kwokctl(&self.guardian, &self.bin, &["start", "cluster"]).await?;
        self.verify_listening().await?;
        self.wait_until_serving(RESTART_TIMEOUT).await?;
        self.wait_until_policies_are_usable().await
    }

    /// Waits until no admission policy rejects every request because the API server has not discovered the kind of its
    /// parameter: it may report ready before it has read its CRDs, and reads them again every 30 seconds.
    ///
    /// # Errors
    /// When one still does after a while.
    pub async fn wait_until_policies_are_usable(&self) -> Result<()> {
        let labels = json!({"database.io/bucket": "0"});
        let child = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "probe", "labels": labels},
        });
        let cluster = json!({
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
            "metadata": {"name": "probe"}, "spec": {"replicas": 1, "version": "17"},
        });
        for (path, object) in [
            ("api/v1/namespaces/default/configmaps", child),
            (
                "apis/database.io/v1/namespaces/default/databaseclusters",
                cluster,
            ),
        ] {
            let what = format!("the policies on {path} to be usable");
            wait_for(what, RESTART_TIMEOUT, || async {
                let answer = self.create_in_dry_run(path, &object, None).await?;
                // Whether the object itself is welcome does not matter.
                let is_usable = !answer.contains(UNUSABLE_POLICY);
                Ok(Progress::when(is_usable, (), || answer))
            })
            .await?;
        }
        Ok(())
    }

    /// Ends the API server and starts it again with the gate `ShardedListAndWatch` on or off, as an
    /// upgrade or a downgrade would.
    ///
    /// # Errors
    /// When it does not become ready again.
    pub async fn restart_api_server(&self, sharded: bool) -> Result<()> {
        self.kill("kube-apiserver").await?;
        let path = self.workdir().join("kwok.yaml");
        let what = || format!("change the feature gates in {}", path.display());
        let text = std::fs::read_to_string(&path).context(what())?;
        let changed = text.replace(&config::sharding(!sharded), &config::sharding(sharded));
        if !changed.contains(&config::sharding(sharded)) {
            return failed(format!("{}: it does not name the gate", what()));
        }
        std::fs::write(&path, changed).context(what())?;
        self.start_again().await
    }

    /// Waits until the API server reports ready.
    ///
    /// # Errors
    /// When it does not within `timeout`.
    pub async fn wait_until_serving(&self, timeout: Duration) -> Result<()> {
        wait_for("the API server to be ready", timeout, || async {
            let request = http::Request::get("/readyz").body(Vec::new());
            let request = request.map_err(|error| Error::Failed(error.to_string()))?;
            Ok(match self.client.request_text(request).await {
                Ok(_) => Progress::Done(()),
                Err(error) => Progress::pending(error),
            })
        })
        .await
    }

    /// What the API server answers to the creation of an object in a dry run, as text, refusals included. `path`
    /// names the collection, without a leading slash; `user` is impersonated.
    ///
    /// # Errors
    /// When the request cannot be built.
    pub async fn create_in_dry_run(
        &self,
        path: &str,
        object: &Value,
        user: Option<&str>,
    ) -> Result<String> {
        let mut request = http::Request::post(format!("/{path}?dryRun=All"));
        if let Some(user) = user {
            request = request.header("Impersonate-User", user);
        }
        let request = request
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(object.to_string().into_bytes())
            .context("build a request")?;
        let answer = self.client.request_text(request).await;
        Ok(answer.unwrap_or_else(|error| error.to_string()))
    }

    /// The last lines of each program's log, for messages.
    #[must_use]
    pub fn log_tails(&self) -> String {
        log_tails(&self.workdir())
    }
}

pub(super) fn log_tails(workdir: &Path) -> String {
    let tail = |name: &&str| {
        let path = workdir.join("logs").join(format!("{name}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // What matters most may be long past, such as a port that was taken.
        let taken = text.lines().rfind(|line| line.contains(PORT_TAKEN));
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!(
            "--- {name}\n{}{}",
            taken.map_or(String::new(), |line| format!("{line}\n")),
            last.join("\n")
        )
    };
    NAMES.iter().map(tail).collect::<Vec<_>>().join("\n")
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Completes when a program has lost its port to another one, with the logs.
pub(super) async fn lost_port(workdir: PathBuf) -> String {
    loop {
        let logs = log_tails(&workdir);
        if logs.contains(PORT_TAKEN) {
            return format!("a port of the control plane was taken by another program\n{logs}");
        }
        tokio::time::sleep(PORT_CHECK_INTERVAL).await;
    }
}
