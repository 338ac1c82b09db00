//! A real control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and kwok for fake nodes.
//!
//! It lives in a temporary folder of its own and listens on loopback only; several run side by side. It goes
//! without a trace when dropped, and also when its owner is killed (see [`crate::guardian`]).

mod binaries;
mod components;
mod config;
mod etcd;
mod options;
mod prepare;
mod second;
mod verify;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

pub use components::Component;
pub use etcd::Stored;
pub use options::{AuditLevel, ControlPlaneOptions};
pub(crate) use prepare::typed as prepare_typed;
pub use second::SecondApiServer;

use crate::audit::{self, AuditEvent};
use crate::error::{Context, Error, Result, failed};
use crate::guardian::Guardian;
use config::Ports;

const NAME: &str = "testbed";
const START_TIMEOUT: Duration = Duration::from_secs(120);
const ATTEMPTS: u32 = 4;

/// A running control plane. Dropping it ends it.
pub struct ControlPlane {
    client: Client,
    guardian: Guardian,
    bin: PathBuf,
    ports: Ports,
    options: ControlPlaneOptions,
}

impl ControlPlane {
    /// Starts a control plane and waits until it serves and its fake nodes take Pods.
    ///
    /// # Errors
    /// When its programs cannot be built or started, with the end of the logs.
    pub async fn start(options: ControlPlaneOptions) -> Result<Self> {
        let options = keep_audit(options);
        let bin = binaries::folder().await?;
        let mut attempt = 1;
        loop {
            match Self::attempt(&options, &bin, Ports::choose()?).await {
                Ok(control_plane) => return Ok(control_plane),
                // Somebody else took one of the ports between choosing and using it: choose others.
                Err(error)
                    if attempt < ATTEMPTS && error.to_string().contains(components::PORT_TAKEN) =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn attempt(options: &ControlPlaneOptions, bin: &Path, ports: Ports) -> Result<Self> {
        let guardian = Guardian::start("testbed")?;
        write_files(options, &ports, bin, guardian.folder())?;
        tokio::select! {
            created = run_kwokctl(&guardian, bin, &["create", "cluster", "--wait", "60s"]) => created?,
            // Without this it would wait for minutes for a server that cannot start.
            lost = components::lost_port(workdir(guardian.folder())) => return failed(lost),
        }
        let client = admin_client(guardian.folder()).await?;
        let control_plane = Self {
            client,
            guardian,
            bin: bin.to_owned(),
            ports,
            options: options.clone(),
        };
        control_plane.verify_listening().await?;
        control_plane.prepare().await?;
        control_plane.link_audit_log()?;
        Ok(control_plane)
    }

    /// A client with the administrator's certificate.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client of a user that has only the rights that are bound to this name.
    ///
    /// # Errors
    /// When the administrator's kubeconfig cannot be read.
    pub async fn client_of_user(&self, name: &str) -> Result<Client> {
        let mut config = config_from(&admin_kubeconfig(self.folder())).await?;
        config.auth_info.impersonate = Some(name.to_owned());
        Client::try_from(config).context(format!("a client of the user {name}"))
    }

    /// What it was started with.
    #[must_use]
    pub fn options(&self) -> &ControlPlaneOptions {
        &self.options
    }

    /// The administrator's kubeconfig file.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder().join("kubeconfig")
    }

    /// The kubectl of the same version.
    #[must_use]
    pub fn kubectl(&self) -> PathBuf {
        self.bin.join("kubectl")
    }

    /// The temporary folder, which is removed with the control plane.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.guardian.folder()
    }

    /// Where the API server listens.
    #[must_use]
    pub fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.api_server)
    }

    /// The certificate authority's file.
    #[must_use]
    pub fn certificate_authority(&self) -> PathBuf {
        self.workdir().join("pki").join("ca.crt")
    }

    /// The guardian that ends everything after the owner; register processes and files here.
    #[must_use]
    pub fn guardian(&self) -> &Guardian {
        &self.guardian
    }

    /// Runs kubectl as administrator and returns what it prints.
    ///
    /// # Errors
    /// When it fails, with its output.
    pub async fn run_kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.run_kubectl_as(&self.kubeconfig(), arguments).await
    }

    /// As [`ControlPlane::run_kubectl`], with the credentials in this kubeconfig.
    ///
    /// # Errors
    /// When it fails, with its output.
    pub async fn run_kubectl_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.kubectl());
        // Tests name files as users do, from the top folder.
        command.current_dir(crate::fleet::repository());
        command.arg("--kubeconfig").arg(kubeconfig).args(arguments);
        command.env("KUBECACHEDIR", self.folder().join("kubectl-cache"));
        output(command, format!("kubectl {}", arguments.join(" "))).await
    }

    /// Everything that the audit log holds so far, oldest first by completion.
    ///
    /// # Errors
    /// When the log is off or cannot be read.
    pub fn audit(&self) -> Result<Vec<AuditEvent>> {
        audit::read(&self.audit_log()?)
    }

    /// The file of the audit log, for reading piece by piece with [`audit::Reader`].
    ///
    /// # Errors
    /// When the log is off.
    pub fn audit_log(&self) -> Result<PathBuf> {
        if self.options.audit == AuditLevel::Off {
            return failed("the audit log is off: set ControlPlaneOptions::audit");
        }
        Ok(self.workdir().join("logs").join("audit.log"))
    }

    /// Ends it and waits until everything has ended.
    ///
    /// # Errors
    /// When something stays behind.
    pub async fn stop(mut self) -> Result<()> {
        let finished = tokio::task::spawn_blocking(move || self.guardian.finish());
        finished.await.context("wait for the clean-up")?
    }

    /// Gives the audit log a second name, under which it outlives this control plane.
    fn link_audit_log(&self) -> Result<()> {
        let Some(kept) = kept_audit_logs() else {
            return Ok(());
        };
        let name = self.folder().file_name().unwrap_or_default();
        let link = kept.join(name).with_extension("log");
        let log = self.workdir().join("logs").join("audit.log");
        std::fs::hard_link(&log, &link).context(format!(
            "link {} to {}",
            link.display(),
            log.display()
        ))
    }

    fn workdir(&self) -> PathBuf {
        workdir(self.folder())
    }
}

/// Where audit logs are kept (`AUDIT_KEEP`), on the file system of the temporary folders.
fn kept_audit_logs() -> Option<PathBuf> {
    std::env::var_os("AUDIT_KEEP")
        .map(PathBuf::from)
        .filter(|path| !path.as_os_str().is_empty())
}

/// Where audit logs are kept, every control plane writes one.
fn keep_audit(mut options: ControlPlaneOptions) -> ControlPlaneOptions {
    if options.audit == AuditLevel::Off && kept_audit_logs().is_some() {
        options.audit = AuditLevel::Metadata;
    }
    options
}

fn workdir(folder: &Path) -> PathBuf {
    folder.join("clusters").join(NAME)
}

fn write_files(
    options: &ControlPlaneOptions,
    ports: &Ports,
    bin: &Path,
    folder: &Path,
) -> Result<()> {
    let files = [
        ("kwokctl.yaml", config::kwokctl(options, ports, bin, folder)),
        (
            "audit-policy.yaml",
            config::audit_policy(options.audit, &options.operator).to_string(),
        ),
        ("scheduler.yaml", config::scheduler(options).to_string()),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text).context(format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Runs kwokctl with an environment of its own, so that no setting or file of the user applies.
async fn run_kwokctl(guardian: &Guardian, bin: &Path, arguments: &[&str]) -> Result<()> {
    let folder = guardian.folder();
    let mut command = Command::new(bin.join("kwokctl"));
    command
        .args(arguments)
        .args(["--name", NAME])
        .arg("--config")
        .arg(folder.join("kwokctl.yaml"))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder)
        .env("KUBECONFIG", folder.join("kubeconfig"))
        .env("KWOK_WORKDIR", folder)
        .env(guardian.mark().0, guardian.mark().1)
        .current_dir(folder);
    if arguments.contains(&"create") {
        command.arg("--kubeconfig").arg(folder.join("kubeconfig"));
    }
    let result = output(command, format!("kwokctl {}", arguments.join(" "))).await;
    match result {
        Ok(_) => Ok(()),
        Err(error) => failed(format!(
            "{error}\n{}",
            components::log_tails(&workdir(folder))
        )),
    }
}

/// Runs a command to its end, off the runtime's own threads, and returns what it printed.
async fn output(mut command: Command, what: String) -> Result<String> {
    use std::os::unix::process::CommandExt;
    command.stdin(Stdio::null()).process_group(0);
    let running = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(START_TIMEOUT, running)
        .await
        .map_err(|_| Error::Failed(format!("{what} did not end within {START_TIMEOUT:?}")))?
        .context(format!("wait for {what}"))?
        .context(format!("start {what}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        return failed(format!(
            "{what}: {}: {}",
            output.status,
            text(&output.stderr)
        ));
    }
    Ok(text(&output.stdout))
}

fn admin_kubeconfig(folder: &Path) -> PathBuf {
    folder.join("kubeconfig")
}

async fn admin_client(folder: &Path) -> Result<Client> {
    client_from(&admin_kubeconfig(folder)).await
}

/// A client from a kubeconfig file.
///
/// # Errors
/// When the file cannot be read or parsed.
pub async fn client_from(kubeconfig: &Path) -> Result<Client> {
    let what = || format!("use {}", kubeconfig.display());
    let config = config_from(kubeconfig).await?;
    Client::try_from(config).context(what())
}

async fn config_from(kubeconfig: &Path) -> Result<kube::Config> {
    let what = || format!("use {}", kubeconfig.display());
    let text = Kubeconfig::read_from(kubeconfig).context(what())?;
    let options = KubeConfigOptions::default();
    install_crypto_provider();
    kube::Config::from_custom_kubeconfig(text, &options)
        .await
        .context(what())
}

/// Sets the cryptography provider of the TLS library once; a second call changes nothing.
fn install_crypto_provider() {
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::net::TcpListener;
    use std::time::Instant;

    #[tokio::test]
    async fn occupied_port_is_reported_at_once() {
        let ports = Ports::choose().unwrap();
        let bin = binaries::folder().await.unwrap();
        let started = Instant::now();
        let thief = TcpListener::bind(("127.0.0.1", ports.etcd)).unwrap();
        let options = ControlPlaneOptions::default();
        let Err(error) = ControlPlane::attempt(&options, &bin, ports).await else {
            panic!("it started on a port that was taken");
        };
        let error = error.to_string();
        assert!(
            error.contains(components::PORT_TAKEN) && error.contains(&ports.etcd.to_string()),
            "{error}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{:?}",
            started.elapsed()
        );
        drop(thief);
    }
}
