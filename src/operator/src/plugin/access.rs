//! The way to the API server: the user's own kubeconfig, context, namespace and rights.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::process::Command;

use super::args::Access;
use super::failure::{Exit, Failure, chain};

/// A client with the user's rights, and the namespaces that are meant.
pub(crate) struct Session {
    pub(crate) client: Client,
    /// Namespace of DatabaseClusters.
    pub(crate) namespace: String,
    /// Namespace of the operator.
    pub(crate) operator_namespace: String,
    pub(crate) kubectl: Kubectl,
}

impl Session {
    /// Opens no connection yet. `is_about_fleet`: `--namespace` names the operator's.
    pub(crate) async fn open(access: &Access, is_about_fleet: bool) -> Result<Self, Failure> {
        let mut config = config(access).await?;
        config.connect_timeout = Some(access.request_timeout);
        config.read_timeout = Some(access.request_timeout);
        config.write_timeout = Some(access.request_timeout);
        if let Some(user) = &access.impersonate {
            config.auth_info.impersonate = Some(user.clone());
        }
        if !access.impersonate_groups.is_empty() {
            config.auth_info.impersonate_groups = Some(access.impersonate_groups.clone());
        }
        let namespace = access.namespace.clone();
        let operator_namespace = match &namespace {
            Some(namespace) if is_about_fleet => namespace.clone(),
            _ => access.operator_namespace.clone(),
        };
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| {
            let why = chain(&error);
            Failure::new(Exit::Failed, format!("cannot use the kubeconfig: {why}"))
        })?;
        Ok(Self {
            client,
            kubectl: Kubectl::new(access),
            namespace,
            operator_namespace,
        })
    }
}

async fn config(access: &Access) -> Result<Config, Failure> {
    let options = KubeConfigOptions {
        context: access.context.clone(),
        cluster: access.cluster.clone(),
        user: access.user.clone(),
    };
    let read = match &access.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let is_chosen = access.kubeconfig.is_some() || options.context.is_some();
    let config = match read {
        Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
        // In a Pod there is a service account instead.
        Err(error) if !is_chosen => match Config::incluster() {
            Ok(config) => Ok(config),
            Err(_) => Err(error),
        },
        Err(error) => Err(error),
    };
    config.map_err(|error| bad_kubeconfig(&error))
}

fn bad_kubeconfig(error: &KubeconfigError) -> Failure {
    let why = chain(error);
    Failure::new(
        Exit::Failed,
        format!("cannot read the kubeconfig: {why}; check --kubeconfig, $KUBECONFIG and --context"),
    )
}

/// Runs kubectl against the same cluster as the same user: it already handles terminals, and every way to reach a
/// container.
#[derive(Clone, Debug)]
pub(crate) struct Kubectl {
    flags: Vec<String>,
}

impl Kubectl {
    pub(crate) fn new(access: &Access) -> Self {
        let mut flags = Vec::new();
        let mut add = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                flags.push(format!("--{name}={value}"));
            }
        };
        let path = access.kubeconfig.as_deref().map(Path::to_string_lossy);
        add("kubeconfig", path.as_deref());
        add("context", access.context.as_deref());
        add("cluster", access.cluster.as_deref());
        add("user", access.user.as_deref());
        add("as", access.impersonate.as_deref());
        for group in &access.impersonate_groups {
            add("as-group", Some(group));
        }
        Self { flags }
    }

    /// `kubectl exec` of a command in a Pod; `flags` are of `exec` itself.
    pub(crate) fn exec(
        &self,
        (namespace, pod): (&str, &str),
        flags: &[&str],
        command: &[&str],
    ) -> Command {
        let mut kubectl = Command::new("kubectl");
        kubectl
            .arg("exec")
            .args(&self.flags)
            .args(["--namespace", namespace, pod])
            .args(["--container", crate::postgres::CONTAINER])
            .args(flags)
            .arg("--")
            .args(command);
        kubectl
    }

    /// The output of a command in a Pod, or one line that reports why there is none.
    pub(crate) async fn output(
        &self,
        pod: (&str, &str),
        command: &[&str],
        at_most: Duration,
    ) -> Result<String, String> {
        let mut kubectl = self.exec(pod, &[], command);
        kubectl.stdin(Stdio::null()).kill_on_drop(true);
        let output = match tokio::time::timeout(at_most, kubectl.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(no_kubectl(&error)),
            Err(_) => return Err(format!("no answer within {} s", at_most.as_secs())),
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().rev().find(|line| !line.trim().is_empty());
        Err(line.unwrap_or("kubectl exec failed").trim().to_owned())
    }
}

/// kubectl could not be started.
pub(crate) fn no_kubectl(error: &std::io::Error) -> String {
    format!("kubectl cannot be started ({error}): it must be in the PATH")
}
