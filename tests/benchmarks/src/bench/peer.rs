//! A peer as processes: one leads, the others are on standby.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use testbed::process::ProcessId;
use testbed::{ControlPlane, Progress, wait_for};

use super::children;

/// The peer as the API server knows it.
pub(super) const USER: &str = "system:serviceaccount:default:peer";
const NAMESPACE: &str = "default";
/// Its ServiceAccount, and its Lease.
const NAME: &str = "peer";
/// A leader that was killed is waited for as long as it may take to be replaced, and more.
const LEAD_TIMEOUT: Duration = Duration::from_secs(90);
const END_TIMEOUT: Duration = Duration::from_secs(10);
const TOKEN_SECONDS: i64 = 24 * 3600;

/// Which program, and how it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Go,
    GoTypical,
    KubeRs,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::Go | Self::GoTypical => "peer",
            Self::KubeRs => "peer-kube-rs",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::GoTypical => &["--typical"],
            Self::Go | Self::KubeRs => &[],
        }
    }
}

/// Peers against one control plane, in the order in which they lead. Dropping it kills them.
pub(super) struct Peers<'a> {
    control_plane: &'a ControlPlane,
    kind: Kind,
    program: PathBuf,
    kubeconfig: PathBuf,
    children: PathBuf,
    started: usize,
    peers: Vec<Peer>,
}

/// One process.
struct Peer {
    process: ProcessId,
    child: Child,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl<'a> Peers<'a> {
    /// Installs what peers need.
    pub(super) async fn install(control_plane: &'a ControlPlane, kind: Kind) -> Result<Self> {
        let crd = testbed::fleet::repository().join("deploy/base/crd.yaml");
        let crd = crd.display().to_string();
        control_plane
            .run_kubectl(&["apply", "--server-side", "-f", &crd])
            .await?;
        let established = [
            "wait",
            "--for=condition=Established",
            "--timeout=30s",
            "-f",
            &crd,
        ];
        control_plane.run_kubectl(&established).await?;
        let children = control_plane.folder().join("peer-children.json");
        std::fs::write(&children, children::templates()?.to_string())
            .with_context(|| format!("write {}", children.display()))?;
        Ok(Self {
            control_plane,
            kind,
            program: program(kind).await?,
            kubeconfig: kubeconfig(control_plane).await?,
            children,
            started: 0,
            peers: Vec::new(),
        })
    }

    /// Starts one more; it leads at once when there is no other, or is on standby.
    pub(super) async fn add(&mut self) -> Result<()> {
        let log = self.control_plane.folder();
        let log = log.join(format!("peer-{}.log", self.started));
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        self.started += 1;
        let guardian = self.control_plane.guardian();
        let child = Command::new(&self.program)
            .arg("--children")
            .arg(&self.children)
            .args(self.kind.arguments())
            .env("KUBECONFIG", &self.kubeconfig)
            .env(guardian.mark().0, guardian.mark().1)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let process = ProcessId::of(child.id())?;
        let peer = Peer { process, child };
        guardian.register(process)?;
        self.peers.push(peer);
        if self.peers.len() == 1 {
            let leases: Api<Lease> = Api::namespaced(self.control_plane.client(), NAMESPACE);
            let what = format!("the peer to lead; its log is {}", log.display());
            wait_for(what, LEAD_TIMEOUT, || async {
                let lease = leases.get_opt(NAME).await;
                let lease = lease.map_err(|error| testbed::Error::Failed(error.to_string()))?;
                let holder = lease.and_then(|lease| lease.spec?.holder_identity);
                let led = holder.is_some_and(|holder| !holder.is_empty());
                let alive = process.is_alive();
                Ok(Progress::when(led, (), || {
                    format!("its process runs: {alive}")
                }))
            })
            .await?;
        }
        Ok(())
    }

    /// Kills the leader (SIGKILL), and returns when its process has ended.
    pub(super) async fn kill_leader(&mut self) -> Result<()> {
        if self.peers.is_empty() {
            bail!("no peer runs");
        }
        let mut peer = self.peers.remove(0);
        peer.child.kill().context("kill the peer")?;
        let process = peer.process;
        let ended = wait_for("the end of the peer", END_TIMEOUT, || {
            let reaped = peer.child.try_wait();
            async move {
                let reaped = reaped.map_err(|error| testbed::Error::Failed(error.to_string()))?;
                Ok(Progress::when(reaped.is_some(), (), || {
                    format!("process {} still runs", process.pid)
                }))
            }
        });
        Ok(ended.await?)
    }

    /// Kills all, and deletes their Lease: the next ones need not wait until it has run out.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.peers.clear();
        let leases: Api<Lease> = Api::namespaced(self.control_plane.client(), NAMESPACE);
        let deleted = leases.delete(NAME, &DeleteParams::default()).await;
        deleted.map(drop).context("delete the Lease of the peers")
    }

    pub(super) fn processes(&self) -> Vec<ProcessId> {
        self.peers.iter().map(|peer| peer.process).collect()
    }
}

/// Where the program is; it is built when it is not there yet.
async fn program(kind: Kind) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = script.join(kind.folder()).join("build.sh");
    let mut command = tokio::process::Command::new("bash");
    command.arg(&script).stdin(Stdio::null());
    let output = command.stderr(Stdio::inherit()).output().await?;
    if !output.status.success() {
        bail!("{} failed; see the lines above", script.display());
    }
    Ok(PathBuf::from(
        String::from_utf8_lossy(&output.stdout).trim(),
    ))
}

/// A ServiceAccount that may do everything, and a kubeconfig with its token.
async fn kubeconfig(control_plane: &ControlPlane) -> Result<PathBuf> {
    let client = control_plane.client();
    let made: [Value; 2] = [
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": NAME, "namespace": NAMESPACE}}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}]}),
    ];
    let file = control_plane.folder().join("peer-account.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": made});
    std::fs::write(&file, list.to_string())?;
    let path = file.display().to_string();
    control_plane
        .run_kubectl(&["apply", "--server-side", "-f", &path])
        .await?;
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
        Api::namespaced(client, NAMESPACE);
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [], "expirationSeconds": TOKEN_SECONDS}});
    let answer: k8s_openapi::api::authentication::v1::TokenRequest = accounts
        .create_subresource("token", NAME, &PostParams::default(), &request)
        .await
        .context("create a token for the peer")?;
    let token = answer.status.context("the answer holds no token")?.token;
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": NAME,
        "clusters": [{"name": NAME, "cluster": {
            "server": control_plane.server(),
            "certificate-authority": control_plane.certificate_authority(),
        }}],
        "users": [{"name": NAME, "user": {"token": token}}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME, "namespace": NAMESPACE}}],
    });
    // In the control plane's folder, which no other user may read.
    let path = control_plane.folder().join("peer.kubeconfig");
    std::fs::write(&path, text.to_string())?;
    Ok(path)
}
