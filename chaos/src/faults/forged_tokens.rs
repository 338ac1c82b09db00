//! A user with the role `edit` in one namespace forges fencing tokens there, at high epochs, all the time. It harms its
//! own clusters, the victims, and must harm nothing else.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use testbed::fencing::{self, Token};
use testbed::load::{self, NewCluster};
use testbed::{ControlPlane, Progress, table, wait_for};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Active, Undo};
use crate::environment::Environment;
use crate::evidence::{Injected, now_micros};
use crate::state::api;

const USER: &str = "mallory";
const NAMESPACE: &str = "mallory";
const VICTIMS: usize = 3;
/// The lowest forged epoch: no fleet reaches it otherwise.
const EPOCH_MIN: i64 = 1 << 24;
/// The highest value that anything in the cluster accepts as an epoch.
const EPOCH_MAX: i64 = (1 << 31) - (1 << 20) - 1;
/// One in this many forgeries is a token of this length.
const LONG_EVERY: u32 = 10;
const LONG_BYTES: usize = 64 << 10;
const LABEL: &str = "example.com/forged";
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const NEEDED_CPU: &str = "777m";
const REPORT_TIMEOUT: Duration = Duration::from_secs(20);
/// The reason of the condition Degraded by which the operator reports a forged token.
const REASON: &str = "FencingTokenAhead";

/// The user that forges tokens.
pub(super) struct Forger {
    stop: CancellationToken,
    task: JoinHandle<u64>,
    victims: Vec<Victim>,
}

/// A cluster of the forger's own.
#[derive(Clone)]
struct Victim {
    name: String,
    uid: String,
}

pub(super) async fn begin(
    environment: &mut Environment<'_>,
    active: &mut Active,
    per_second: f64,
) -> Result<()> {
    let victims = create_victims(environment).await?;
    let client = user_with_role_edit(environment.control_plane).await?;
    let forgeries = Forgeries {
        client,
        admin: environment.control_plane.client(),
        victims: victims.clone(),
        rng: environment.rng.fork(),
        count: 0,
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(forgeries.go_on(per_second, stop.clone()));
    let injected = &mut active.injected;
    injected.what = format!("{USER} forges fencing tokens, {per_second} times a second");
    injected.from = now_micros();
    injected.forged_epoch = Some(EPOCH_MIN);
    let keys = victims
        .iter()
        .map(|victim| format!("{NAMESPACE}/{}", victim.name));
    injected.victims = keys.collect();
    active.undo = Undo::RemoveForgeries(Forger {
        stop,
        task,
        victims,
    });
    Ok(())
}

async fn create_victims(environment: &Environment<'_>) -> Result<Vec<Victim>> {
    // Users get to know the victims once these are repaired: until then their changes could not be applied.
    let new = (0..VICTIMS).map(|number| NewCluster {
        namespace: NAMESPACE.to_owned(),
        name: format!("victim-{number}"),
        spec: load::spec(1),
    });
    load::create(environment.control_plane, new.collect()).await?;
    let clusters = load::clusters_in(environment.control_plane.client(), NAMESPACE);
    let found = wait_for("the victims to be Ready", READY_TIMEOUT, || async {
        let all = clusters.list(&ListParams::default()).await;
        let all = testbed::Context::context(all, "list the victims")?.items;
        let why = all.iter().find_map(load::why_not_ready);
        Ok(Progress::when(why.is_none(), all, || {
            why.clone().unwrap_or_default()
        }))
    })
    .await?;
    let victim = |cluster: &kube::api::DynamicObject| Victim {
        name: cluster.name_any(),
        uid: cluster.uid().unwrap_or_default(),
    };
    Ok(found.iter().map(victim).collect())
}

/// A client with the rights of the cluster's own role `edit` in the namespace, DatabaseClusters included.
async fn user_with_role_edit(control_plane: &ControlPlane) -> Result<Client> {
    let path = testbed::fleet::repository().join("deploy/base/users.yaml");
    let path = path.display().to_string();
    let words = ["apply", "--server-side", "--force-conflicts", "-f", &path];
    control_plane.run_kubectl(&words).await?;
    for role in ["edit", "databasecluster-edit"] {
        let (name, role, user) = (
            format!("{USER}-{role}"),
            format!("--clusterrole={role}"),
            format!("--user={USER}"),
        );
        let words = [
            "create",
            "rolebinding",
            "-n",
            NAMESPACE,
            &name,
            &role,
            &user,
        ];
        control_plane.run_kubectl(&words).await?;
    }
    let client = control_plane.client_of_user(USER).await?;
    let words = "the user's rights to be in force";
    wait_for(words, READY_TIMEOUT, || async {
        let config_maps = api(&client, "v1", "ConfigMap", NAMESPACE);
        let listed = config_maps.list(&ListParams::default().limit(1)).await;
        Ok(Progress::when(listed.is_ok(), (), || format!("{listed:?}")))
    })
    .await?;
    Ok(client)
}

struct Forgeries {
    client: Client,
    admin: Client,
    victims: Vec<Victim>,
    rng: fastrand::Rng,
    count: u32,
}

impl Forgeries {
    /// Returns how many the API server accepted.
    async fn go_on(mut self, per_second: f64, stop: CancellationToken) -> u64 {
        let mut accepted = 0;
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second.max(0.1)));
        loop {
            tokio::select! {
                () = stop.cancelled() => return accepted,
                _ = ticks.tick() => {}
            }
            accepted += u64::from(self.one().await.is_ok());
        }
    }

    async fn one(&mut self) -> Result<()> {
        self.count += 1;
        let index = self.rng.usize(..self.victims.len().max(1));
        let victim = self
            .victims
            .get(index)
            .context("there are victims")?
            .clone();
        let token = self.token(&victim).await?;
        match self.count % 4 {
            // An object of the user in any bucket, which may even claim to be a child of the victim.
            0 | 1 => self.create(&victim, &token).await,
            2 => {
                let set = format!("{}-db", victim.name);
                self.annotate("apps/v1", "StatefulSet", &set, &token).await
            }
            _ => {
                self.annotate("database.io/v1", "DatabaseCluster", &victim.name, &token)
                    .await
            }
        }
    }

    /// A token of the current table, with any shard, any existing holder, and a high epoch.
    async fn token(&mut self, victim: &Victim) -> Result<String> {
        let table = table::get(&self.admin).await?.unwrap_or_default();
        let index = self.rng.usize(..table.entries.len().max(1));
        let (shard, entry) = table.entries.into_iter().nth(index).unwrap_or_default();
        let epoch = match self.rng.bool() {
            true => EPOCH_MAX,
            false => self.rng.i64(EPOCH_MIN..EPOCH_MAX),
        };
        let token = Token {
            table: table.uid,
            shard,
            epoch,
            holder: entry.holder,
            cluster: victim.uid.clone(),
        };
        Ok(token.to_string())
    }

    async fn create(&mut self, victim: &Victim, token: &str) -> Result<()> {
        let name = format!("forged-{}", self.count);
        let mut token = token.to_owned();
        if self.count.is_multiple_of(4 * LONG_EVERY) {
            token.push_str(&"x".repeat(LONG_BYTES));
        }
        let mut object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "labels": {LABEL: "yes", "database.io/bucket": self.rng.u8(..).to_string()},
                "annotations": {fencing::ANNOTATION: token},
            },
        });
        if self.rng.bool() {
            object["metadata"]["ownerReferences"] = json!([{
                "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
                "name": victim.name, "uid": victim.uid, "controller": true,
            }]);
        }
        let object = serde_json::from_value(object)?;
        api(&self.client, "v1", "ConfigMap", NAMESPACE)
            .create(&PostParams::default(), &object)
            .await?;
        Ok(())
    }

    async fn annotate(&self, version: &str, kind: &str, name: &str, token: &str) -> Result<()> {
        let change = json!({"metadata": {"annotations": {fencing::ANNOTATION: token}}});
        api(&self.client, version, kind, NAMESPACE)
            .patch(name, &PatchParams::default(), &Patch::Merge(&change))
            .await?;
        Ok(())
    }
}

impl Forger {
    /// Stops, waits until the operator has reported the forgeries, and repairs the victims as the report says.
    pub(super) async fn end(
        self,
        environment: &Environment<'_>,
        injected: &mut Injected,
    ) -> Result<()> {
        self.stop.cancel();
        injected.bites = self.task.await?;
        let client = environment.control_plane.client();
        // A change of its spec makes each victim's StatefulSet worth a write, which the forged token forbids.
        let keys = self
            .victims
            .iter()
            .map(|victim| (NAMESPACE.to_owned(), victim.name.clone()));
        let mut spec = load::spec(1);
        spec["resources"]["cpu"] = json!(NEEDED_CPU);
        load::patch(&client, keys.collect(), json!({"spec": spec})).await?;
        let what = format!("a victim to be reported with the reason {REASON}");
        let reported = wait_for(what, REPORT_TIMEOUT, || async {
            let all = load::clusters_in(client.clone(), NAMESPACE)
                .list(&ListParams::default())
                .await;
            let all = testbed::Context::context(all, "list the victims")?.items;
            let conditions: Vec<&Value> = all
                .iter()
                .filter_map(|cluster| cluster.data.pointer("/status/conditions"))
                .collect();
            let seen = conditions
                .iter()
                .any(|all| all.to_string().contains(REASON));
            Ok(Progress::when(seen, (), || format!("{conditions:?}")))
        });
        if let Err(error) = reported.await {
            injected.unexpected.push(error.to_string());
        }
        cure(&client, &self.victims).await?;
        let cured = self.victims.iter().map(|victim| NewCluster {
            namespace: NAMESPACE.to_owned(),
            name: victim.name.clone(),
            spec: spec.clone(),
        });
        environment.users.own(&cured.collect::<Vec<NewCluster>>());
        Ok(())
    }
}

async fn cure(client: &Client, victims: &[Victim]) -> Result<()> {
    let forged = ListParams::default().labels(LABEL);
    api(client, "v1", "ConfigMap", NAMESPACE)
        .delete_collection(&DeleteParams::default(), &forged)
        .await?;
    let cure = json!({"metadata": {"annotations": {fencing::ANNOTATION: null}}});
    for victim in victims {
        for (version, kind, end) in [
            ("apps/v1", "StatefulSet", "-db"),
            ("database.io/v1", "DatabaseCluster", ""),
        ] {
            let name = format!("{}{end}", victim.name);
            api(client, version, kind, NAMESPACE)
                .patch(&name, &PatchParams::default(), &Patch::Merge(&cure))
                .await
                .with_context(|| format!("remove the token of {kind} {name}"))?;
        }
    }
    Ok(())
}
