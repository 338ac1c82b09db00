//! ServiceAccounts of other users, each with credentials of its own.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, prepare_typed as typed};
use crate::error::{Context, Error, Result};
use crate::fleet::OPERATOR_NAMESPACE;

const TOKEN_SECONDS: i64 = 24 * 3600;

/// Where a kubeconfig leads.
pub(crate) struct Endpoint {
    /// The URL of the API server.
    pub(crate) server: String,
    /// The file of the authority that signed its certificate.
    pub(crate) authority: PathBuf,
}

/// Creates a ServiceAccount in a namespace that exists, and returns a kubeconfig with its token. It has no rights
/// until they are bound to it.
///
/// # Errors
/// When the API server refuses, or the file cannot be written.
pub async fn create(control_plane: &ControlPlane, namespace: &str, name: &str) -> Result<PathBuf> {
    let accounts: Api<ServiceAccount> = Api::namespaced(control_plane.client(), namespace);
    let account = typed(json!({"metadata": {"name": name}}))?;
    accounts
        .create(&PostParams::default(), &account)
        .await
        .context(format!("create ServiceAccount {namespace}/{name}"))?;
    let token = token(control_plane, (namespace, name), Value::Null).await?;
    let endpoint = Endpoint {
        server: control_plane.server(),
        authority: control_plane.certificate_authority(),
    };
    write_kubeconfig(
        control_plane,
        &format!("{namespace}-{name}"),
        &endpoint,
        &token,
    )
}

/// A token of a ServiceAccount, bound to an object, or to none when `bound` is null.
pub(crate) async fn token(
    control_plane: &ControlPlane,
    (namespace, account): (&str, &str),
    bound: Value,
) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(control_plane.client(), namespace);
    let what = || format!("create a token of ServiceAccount {namespace}/{account}");
    let mut spec = json!({"audiences": [], "expirationSeconds": TOKEN_SECONDS});
    if !bound.is_null() {
        spec["boundObjectRef"] = bound;
    }
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec,
    });
    let answer: TokenRequest = accounts
        .create_subresource("token", account, &PostParams::default(), &request)
        .await
        .context(what())?;
    let token = answer.status.and_then(|status| status.token);
    token.ok_or_else(|| Error::Failed(format!("{}: the answer holds no token", what())))
}

/// Writes a kubeconfig of this name with this token.
pub(crate) fn write_kubeconfig(
    control_plane: &ControlPlane,
    name: &str,
    endpoint: &Endpoint,
    token: &str,
) -> Result<PathBuf> {
    let kubeconfig = control_plane.folder().join(format!("{name}.kubeconfig"));
    let text = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "testbed",
        "clusters": [{"name": "testbed", "cluster": {
            "server": endpoint.server,
            "certificate-authority": endpoint.authority,
        }}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": "testbed", "context": {
            "cluster": "testbed", "user": name, "namespace": OPERATOR_NAMESPACE,
        }}],
    });
    let what = || format!("write {}", kubeconfig.display());
    let mut file = OpenOptions::new();
    let mut file = file
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&kubeconfig)
        .context(what())?;
    file.write_all(text.to_string().as_bytes())
        .context(what())?;
    Ok(kubeconfig)
}
