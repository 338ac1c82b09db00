//! A fleet of three, clusters of other tenants, and accounts for the attackers.

use std::path::PathBuf;
use std::time::Duration;

use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use testbed::control_plane::client_from;
use testbed::fencing::{self, Token};
use testbed::fleet::repository;
use testbed::table::Table;
use testbed::{ControlPlane, Fleet, FleetOptions, Progress, accounts, load, wait_for};

/// Long enough for a busy machine; a test that needs it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The highest value that is accepted as an epoch.
pub(crate) const EPOCH_MAX: i64 = (1 << 31) - (1 << 20) - 1;
/// Clusters that do not change.
pub(crate) const QUIET: &str = "victims";
/// Clusters whose specs change all the time.
pub(crate) const BUSY: &str = "progress";
const QUIET_CLUSTERS: usize = 12;
pub(crate) const BUSY_CLUSTERS: usize = 24;

/// Who has rights in one namespace only.
pub(crate) struct Tenant {
    pub(crate) namespace: &'static str,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) client: Client,
}

/// A cluster of another tenant.
#[derive(Clone, Debug)]
pub(crate) struct Victim {
    pub(crate) name: String,
    pub(crate) uid: String,
    /// The key of its shard's entry.
    pub(crate) shard: String,
    /// The replica that holds its shard.
    pub(crate) holder: String,
}

pub(crate) struct Environment<'a> {
    pub(crate) control_plane: &'a ControlPlane,
    pub(crate) fleet: Fleet<'a>,
    pub(crate) admin: Client,
    pub(crate) table: Table,
    pub(crate) victims: Vec<Victim>,
}

fn clusters(namespace: &str, count: usize) -> Vec<load::NewCluster> {
    let one = |number| load::NewCluster {
        namespace: namespace.to_owned(),
        name: format!("db-{number:03}"),
        spec: load::spec(2),
    };
    (0..count).map(one).collect()
}

impl<'a> Environment<'a> {
    pub(crate) async fn start(control_plane: &'a ControlPlane) -> Self {
        let fleet = Fleet::start(control_plane, 3, FleetOptions::default())
            .await
            .unwrap();
        for file in ["users.yaml", "guard.yaml"] {
            let path = repository().join("deploy/base").join(file);
            let path = path.display().to_string();
            control_plane
                .run_kubectl(&["apply", "-f", &path])
                .await
                .unwrap();
        }
        // Shows that the suite notices when a policy is not in force.
        if let Ok(binding) = std::env::var("WITHOUT_BINDING") {
            let without = ["delete", "validatingadmissionpolicybinding", &binding];
            control_plane.run_kubectl(&without).await.unwrap();
        }
        testbed::shards::wait_balanced(&fleet, PATIENCE)
            .await
            .unwrap();
        let mut new = clusters(QUIET, QUIET_CLUSTERS);
        new.extend(clusters(BUSY, BUSY_CLUSTERS));
        load::create(control_plane, new).await.unwrap();
        let admin = control_plane.client();
        load::wait_all_ready(&admin, QUIET_CLUSTERS + BUSY_CLUSTERS, PATIENCE)
            .await
            .unwrap();
        let table = testbed::table::get(&admin).await.unwrap().unwrap();
        let victims = victims(&admin, &table).await;
        Self {
            control_plane,
            fleet,
            admin,
            table,
            victims,
        }
    }

    /// An account in a namespace of its own, in which it has these ClusterRoles.
    pub(crate) async fn tenant(&self, namespace: &'static str, roles: &[&str]) -> Tenant {
        let kubectl = async |words: &[&str]| self.control_plane.run_kubectl(words).await.unwrap();
        kubectl(&["create", "namespace", namespace]).await;
        let kubeconfig = accounts::create(self.control_plane, namespace, "tenant")
            .await
            .unwrap();
        let account = format!("--serviceaccount={namespace}:tenant");
        for role in roles {
            let role_flag = format!("--clusterrole={role}");
            kubectl(&[
                "-n",
                namespace,
                "create",
                "rolebinding",
                role,
                &role_flag,
                &account,
            ])
            .await;
        }
        let client = client_from(&kubeconfig).await.unwrap();
        Tenant {
            namespace,
            kubeconfig,
            client,
        }
    }

    /// The highest token of a shard, for a cluster.
    pub(crate) fn forged(&self, shard: &str, cluster: &str) -> String {
        let token = Token {
            table: self.table.uid.clone(),
            shard: shard.to_owned(),
            epoch: EPOCH_MAX,
            holder: self.table.entries[shard].holder.clone(),
            cluster: cluster.to_owned(),
        };
        token.to_string()
    }

    /// The token under which the holder of the victim's shard writes.
    pub(crate) fn token(&self, victim: &Victim) -> Token {
        let entry = &self.table.entries[&victim.shard];
        Token {
            table: self.table.uid.clone(),
            shard: victim.shard.clone(),
            epoch: entry.epoch,
            holder: entry.holder.clone(),
            cluster: victim.uid.clone(),
        }
    }
}

async fn victims(admin: &Client, table: &Table) -> Vec<Victim> {
    let clusters = load::clusters_in(admin.clone(), QUIET);
    let clusters = clusters.list(&Default::default()).await.unwrap();
    let victim = |cluster: &kube::api::DynamicObject| {
        let uid = cluster.uid().unwrap();
        let bucket = u64::from(testbed::shards::bucket(&uid));
        let shard = format!("{:03}", bucket * table.shards / 256);
        Victim {
            name: cluster.name_any(),
            holder: table.entries[&shard].holder.clone(),
            shard,
            uid,
        }
    };
    clusters.items.iter().map(victim).collect()
}

/// Another tenant's DatabaseCluster as the controller of an object.
pub(crate) fn owned_by(uid: &str, name: &str) -> Value {
    json!([{
        "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "name": name, "uid": uid,
        "controller": true, "blockOwnerDeletion": true,
    }])
}

pub(crate) fn annotation(value: impl Into<Value>) -> Value {
    json!({"metadata": {"annotations": {fencing::ANNOTATION: value.into()}}})
}

/// Waits until the cluster is Ready for its present generation.
pub(crate) async fn until_ready(client: &Client, namespace: &str, name: &str) {
    until(client, namespace, name, "Ready", |cluster| {
        load::why_not_ready(cluster).is_none()
    })
    .await;
}

/// Waits until the cluster is as it should be.
pub(crate) async fn until(
    client: &Client,
    namespace: &str,
    name: &str,
    what: &str,
    is: impl Fn(&kube::api::DynamicObject) -> bool,
) -> kube::api::DynamicObject {
    let api = load::clusters_in(client.clone(), namespace);
    wait_for(format!("{namespace}/{name}: {what}"), PATIENCE, || async {
        let cluster = api.get(name).await.unwrap();
        Ok(match is(&cluster) {
            true => Progress::Done(cluster),
            false => Progress::pending(cluster.data["status"].to_string()),
        })
    })
    .await
    .unwrap()
}

/// Waits until the tenant's cluster is deleted.
pub(crate) async fn until_gone(environment: &Environment<'_>, tenant: &Tenant, name: &str) {
    let api = load::clusters_in(environment.admin.clone(), tenant.namespace);
    wait_for(format!("{name} to be deleted"), PATIENCE, || async {
        let found = api.get_opt(name).await.unwrap();
        Ok(Progress::when(found.is_none(), (), || {
            format!("{:?}", found.map(|one| one.data))
        }))
    })
    .await
    .unwrap();
}

/// Waits until the cluster is Degraded for this reason; returns the message.
pub(crate) async fn until_degraded(
    client: &Client,
    namespace: &str,
    name: &str,
    reason: &str,
) -> String {
    let message = |cluster: &kube::api::DynamicObject| {
        let conditions = cluster.data.pointer("/status/conditions")?.as_array()?;
        let found = conditions.iter().find(|one| {
            one["type"] == "Degraded" && one["status"] == "True" && one["reason"] == reason
        })?;
        Some(found["message"].as_str()?.to_owned())
    };
    let cluster = until(client, namespace, name, reason, |cluster| {
        message(cluster).is_some()
    })
    .await;
    message(&cluster).unwrap()
}

/// Runs the command that a message names, with the tenant's own credentials.
pub(crate) async fn run_cure(environment: &Environment<'_>, tenant: &Tenant, message: &str) {
    let (_, command) = message
        .split_once("kubectl ")
        .unwrap_or_else(|| panic!("no command in {message:?}"));
    let words: Vec<&str> = command.split_whitespace().collect();
    let done = environment
        .control_plane
        .run_kubectl_as(&tenant.kubeconfig, &words)
        .await;
    done.unwrap_or_else(|error| panic!("{message}: {error}"));
}
