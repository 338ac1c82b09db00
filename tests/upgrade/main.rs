//! From version cc6f500, which has no shard table, to this one, by the commands in docs/how-to/operations.md, on a real API
//! server: each Pod restarts once, for the new template, nothing is created again, and everything works afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod earlier;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::api::{DeleteParams, DynamicObject, ListParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use testbed::fencing::Token;
use testbed::fleet::repository;
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, load, wait_for};

/// Long enough for a busy machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(120);
const NAMESPACE: &str = "shop";
const CLUSTERS: [&str; 3] = ["orders", "users", "carts"];
const HEADING: &str = "### Upgrade from a version without the shard table";

#[tokio::test]
async fn clusters_of_a_version_without_the_shard_table_are_adopted_and_restart_once() {
    let options = ControlPlaneOptions {
        lift_client_limits: true,
        ..ControlPlaneOptions::default()
    };
    let control_plane = ControlPlane::start(options)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    earlier::install(&control_plane).await;
    earlier::create_clusters(&control_plane, NAMESPACE, &CLUSTERS).await;
    let client = control_plane.client();
    let before = databases(&client).await;
    let epochs = epochs(&client).await;

    // The Pods of the Deployment are fake here: the last command, which waits for them, proves nothing.
    let commands = commands();
    for command in &commands[..commands.len() - 1] {
        let words = words(command);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        control_plane
            .run_kubectl(&words)
            .await
            .unwrap_or_else(|error| panic!("{command}: {error}"));
    }
    nothing_of_the_earlier_version_is_left(&control_plane).await;
    let fleet = Fleet::start(&control_plane, 3, FleetOptions::default())
        .await
        .unwrap();
    testbed::shards::wait_balanced(&fleet, PATIENCE)
        .await
        .unwrap();

    epochs_are_above_the_earlier_ones(&client, &epochs).await;
    claims_are_labelled(&client).await;
    load::wait_all_ready(&client, CLUSTERS.len(), PATIENCE)
        .await
        .unwrap();
    let after = restarted_once(&client, &before).await;
    changes_and_deletions_work(&control_plane, &after).await;
}

/// Only the Pod template of a database is new.
async fn restarted_once(
    client: &Client,
    before: &BTreeMap<String, Database>,
) -> BTreeMap<String, Database> {
    let after = wait_for("the new template in every Pod", PATIENCE, || async {
        let now = databases(client).await;
        let is_new = |name: &String| {
            let (then, now) = (&before[name], &now[name]);
            let is_new = |pod: &(String, Option<String>)| !then.pods.contains(pod);
            then.pods.len() == now.pods.len() && now.pods.iter().all(is_new)
        };
        let late = before.keys().find(|name| !is_new(name)).cloned();
        Ok(Progress::when(late.is_none(), now, || format!("{late:?}")))
    })
    .await
    .unwrap();
    load::wait_all_ready(client, CLUSTERS.len(), PATIENCE)
        .await
        .unwrap();
    for (name, then) in before {
        let now = &after[name];
        assert_eq!((&then.uid, &then.secret), (&now.uid, &now.secret), "{name}");
    }
    replicas_restarted_first(client).await;
    // Every Pod exists, created from the newest revision: one more restart would be another one.
    assert_eq!(
        after,
        databases(client).await,
        "a database has changed again"
    );
    after
}

/// A rollout ends with the primary, and begins no earlier with it than another instance is ready.
async fn replicas_restarted_first(client: &Client) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    for name in CLUSTERS {
        let mut created = Vec::new();
        for ordinal in [1, 0] {
            let pod = pods.get(&format!("{name}-db-{ordinal}")).await.unwrap();
            created.push(pod.metadata.creation_timestamp.unwrap().0);
        }
        assert!(created[0] <= created[1], "{name}: {created:?}");
    }
}

/// The commands that docs/how-to/operations.md has for this upgrade.
fn commands() -> Vec<String> {
    let text = std::fs::read_to_string(repository().join("docs/how-to/operations.md")).unwrap();
    let (_, section) = text.split_once(HEADING).expect("the section exists");
    let (_, block) = section.split_once("```sh\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let lines = block
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    let lines: Vec<String> = lines
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    assert!(lines.len() > 4, "{lines:?}");
    lines
}

/// The arguments of kubectl.
fn words(command: &str) -> Vec<String> {
    let command = command.replace("deploy/", &format!("{}/deploy/", repository().display()));
    // Only the first word after kubectl's flags may be a folder of this repository.
    let command = command.replace(
        &format!("{}/deploy/ment", repository().display()),
        "deploy/ment",
    );
    let mut words = command.split_whitespace().map(str::to_owned);
    assert_eq!(words.next().as_deref(), Some("kubectl"), "{command}");
    words.collect()
}

/// What restarts or replaces a database when it changes.
#[derive(Clone, Debug, PartialEq)]
struct Database {
    uid: Option<String>,
    template: Value,
    revision: Option<String>,
    secret: Option<String>,
    pods: Vec<(String, Option<String>)>,
}

async fn databases(client: &Client) -> BTreeMap<String, Database> {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), NAMESPACE);
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let mut found = BTreeMap::new();
    for name in CLUSTERS {
        let Some(set) = sets.get_opt(&format!("{name}-db")).await.unwrap() else {
            continue;
        };
        let of_cluster =
            ListParams::default().labels(&format!("app.kubernetes.io/instance={name}"));
        let pods = pods.list(&of_cluster).await.unwrap().items;
        let secret = secrets.get(&format!("{name}-app")).await.unwrap();
        let database = Database {
            uid: set.uid(),
            template: serde_json::to_value(&set.spec.as_ref().unwrap().template).unwrap(),
            revision: set
                .status
                .as_ref()
                .and_then(|status| status.update_revision.clone()),
            secret: secret.resource_version(),
            pods: pods.iter().map(|pod| (pod.name_any(), pod.uid())).collect(),
        };
        found.insert(name.to_owned(), database);
    }
    found
}

/// Every policy and binding is one of this version's.
async fn nothing_of_the_earlier_version_is_left(control_plane: &ControlPlane) {
    let text = std::fs::read_to_string(repository().join("deploy/install.yaml")).unwrap();
    for kind in [
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
    ] {
        let list = [
            "get",
            kind,
            "-o",
            "name",
            "-l",
            "app.kubernetes.io/name=databasecluster-operator",
        ];
        let found = control_plane.run_kubectl(&list).await.unwrap();
        assert!(found.lines().count() > 4, "{found}");
        for name in found.lines().filter_map(|line| line.rsplit('/').next()) {
            assert!(
                text.contains(&format!("  name: {name}\n")),
                "{kind} {name} is left over"
            );
        }
    }
}

/// The epoch of each shard Lease, by the shard's number.
async fn epochs(client: &Client) -> BTreeMap<String, i64> {
    let shards = testbed::shards::list(client).await.unwrap();
    let epoch = |shard: &testbed::shards::Shard| {
        let number = shard.lease.rsplit('-').next().unwrap_or_default();
        (number.to_owned(), i64::from(shard.epoch))
    };
    shards.iter().map(epoch).collect()
}

/// Also in the table, which begins with this version.
async fn epochs_are_above_the_earlier_ones(client: &Client, earlier: &BTreeMap<String, i64>) {
    assert_eq!(earlier.len(), 32);
    wait_for("an entry of every shard", PATIENCE, || async {
        let table = testbed::table::get(client).await?.unwrap();
        let entries = table.entries.iter();
        let held = |shard: &str| !table.entries[shard].holder.is_empty();
        for (shard, entry) in entries.filter(|(shard, _)| held(shard)) {
            assert!(entry.epoch > earlier[shard], "{shard}: {entry:?}");
        }
        let vacant = earlier.keys().find(|shard| !held(shard));
        Ok(Progress::when(vacant.is_none(), (), || {
            format!("{vacant:?} is vacant")
        }))
    })
    .await
    .unwrap();
    for (shard, epoch) in epochs(client).await {
        assert!(epoch > earlier[&shard], "{shard}: {epoch}");
    }
}

fn claims(client: &Client) -> Api<PersistentVolumeClaim> {
    Api::namespaced(client.clone(), NAMESPACE)
}

/// The earlier version did not record the owner on a claim.
async fn claims_are_labelled(client: &Client) {
    for name in CLUSTERS {
        let cluster = cluster(client, name).await;
        let claim = format!("data-{name}-db-0");
        wait_for(
            format!("{claim} to carry its cluster's uid"),
            PATIENCE,
            || async {
                let claim = claims(client).get(&claim).await.unwrap();
                let label = claim.labels().get("database.io/cluster-uid").cloned();
                Ok(Progress::when(label == cluster.uid(), (), || {
                    format!("{label:?}")
                }))
            },
        )
        .await
        .unwrap();
        // By the label of an earlier version, Argo CD takes a claim for an object of an application.
        let claim = claims(client).get(&claim).await.unwrap();
        assert!(!claim.labels().contains_key("app.kubernetes.io/instance"));
        assert_eq!(claim.labels()["database.io/cluster"], name);
        let options = &claim.annotations()["argocd.argoproj.io/sync-options"];
        assert_eq!(options, "Prune=false,Delete=false");
    }
}

async fn cluster(client: &Client, name: &str) -> DynamicObject {
    load::clusters_in(client.clone(), NAMESPACE)
        .get(name)
        .await
        .unwrap()
}

async fn change(client: &Client, name: &str, spec: Value) {
    let key = (NAMESPACE.to_owned(), name.to_owned());
    load::patch(client, vec![key], json!({"spec": spec}))
        .await
        .unwrap();
    load::wait_all_ready(client, 1, PATIENCE).await.unwrap();
}

async fn changes_and_deletions_work(
    control_plane: &ControlPlane,
    before: &BTreeMap<String, Database>,
) {
    let client = control_plane.client();
    // More instances: the Pods that were there stay. The new token replaces the old stamp.
    change(&client, CLUSTERS[0], json!({"replicas": 3})).await;
    let now = databases(&client).await;
    let (then, now) = (&before[CLUSTERS[0]], &now[CLUSTERS[0]]);
    assert_eq!(
        (&then.template, &then.revision),
        (&now.template, &now.revision)
    );
    assert!(
        then.pods.iter().all(|pod| now.pods.contains(pod)),
        "{then:?} {now:?}"
    );
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), NAMESPACE);
    let set = sets.get(&format!("{}-db", CLUSTERS[0])).await.unwrap();
    let annotations = set.annotations();
    assert!(
        !annotations.contains_key("database.io/stamp"),
        "{annotations:?}"
    );
    let token: Token = annotations[testbed::fencing::ANNOTATION].parse().unwrap();
    let table = testbed::table::get(&client).await.unwrap().unwrap();
    let owner = cluster(&client, CLUSTERS[0]).await;
    assert_eq!(
        (&token.table, Some(&token.cluster)),
        (&table.uid, owner.uid().as_ref())
    );
    let status = json!({"metadata": {}, "status": owner.data["status"]});
    let status = Token::of_status(&status).expect("a status with a token");
    assert_eq!(status.table, table.uid);

    // Volumes grow, a new template is applied, and a deletion removes what it should.
    let storage =
        json!({"storage": {"size": "3Gi", "retain": "Delete"}, "resources": {"cpu": "300m"}});
    change(&client, CLUSTERS[1], storage).await;
    let claim = format!("data-{}-db-0", CLUSTERS[1]);
    wait_for("the claim to be asked to grow", PATIENCE, || async {
        let found = claims(&client).get(&claim).await.unwrap();
        let spec = serde_json::to_value(&found.spec).unwrap();
        let grown = spec["resources"]["requests"]["storage"] == "3Gi";
        Ok(Progress::when(grown, (), || format!("{found:?}")))
    })
    .await
    .unwrap();
    for name in CLUSTERS {
        load::delete(&client, NAMESPACE, name, &DeleteParams::default(), PATIENCE)
            .await
            .unwrap();
    }
    let left = claims(&client)
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    let of = |name: &str| left.iter().any(|claim| claim.name_any().contains(name));
    assert!(of(CLUSTERS[0]) && !of(CLUSTERS[1]), "retain: {left:?}");
}
