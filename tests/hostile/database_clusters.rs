//! A user with write access to DatabaseClusters of one namespace, and no other rights.

use serde_json::{Value, json};
use testbed::load;

use crate::checker::Checker;
use crate::environment::*;
use crate::requests::*;

pub(crate) async fn attacks(environment: &Environment<'_>, checker: &mut Checker) {
    // The rights of databasecluster-edit, without those of the role edit into which it aggregates.
    let roles = ["databasecluster-view", "databasecluster-edit"];
    let tenant = environment.tenant("only-clusters", &roles).await;
    what_is_the_operators(&tenant).await;
    checker
        .unharmed(environment, "DatabaseClusters: status and children")
        .await;
    forged_tokens(environment, &tenant).await;
    checker
        .unharmed(environment, "DatabaseClusters: forged tokens")
        .await;
    odd_metadata(environment, &tenant).await;
    checker
        .unharmed(environment, "DatabaseClusters: labels, owners, names")
        .await;
    blocked_deletions(environment, &tenant).await;
    checker
        .unharmed(
            environment,
            "DatabaseClusters: deletions that finalizers block",
        )
        .await;
    oversized(&tenant).await;
    checker
        .unharmed(
            environment,
            "DatabaseClusters: 30 with 2,000 labels and 250 kB of annotations",
        )
        .await;
}

fn cluster(metadata: Value) -> Value {
    json!({"metadata": metadata, "spec": load::spec(1)})
}

async fn created(tenant: &Tenant, name: &str, metadata: Value) {
    let at = at("DatabaseCluster", tenant.namespace, name);
    let_through(name, create(&tenant.client, at, cluster(metadata)).await);
}

async fn what_is_the_operators(tenant: &Tenant) {
    created(tenant, "plain", json!({})).await;
    let own = at("DatabaseCluster", tenant.namespace, "plain");
    let status = json!({"status": {"shard": {"epoch": EPOCH_MAX}}});
    refused(
        "a status",
        merge_status(&tenant.client, own, status).await,
        "cannot patch",
    );
    for (kind, namespace, name) in [
        ("DatabaseCluster", QUIET, "db-000"),
        ("StatefulSet", tenant.namespace, "plain-db"),
        ("Secret", tenant.namespace, "plain-app"),
        (
            "ShardTable",
            "databasecluster-system",
            "databasecluster-shards",
        ),
        (
            "Lease",
            "databasecluster-system",
            "databasecluster-shard-000",
        ),
    ] {
        let what = format!("{kind} {namespace}/{name}");
        let changed = merge(&tenant.client, at(kind, namespace, name), annotation("x")).await;
        refused(&what, changed, "cannot patch");
    }
}

/// The token on the DatabaseCluster itself stops what the operator writes there: its finalizer. The message says how
/// to continue, and the tenant may do that.
async fn forged_tokens(environment: &Environment<'_>, tenant: &Tenant) {
    for (number, shard) in environment.table.entries.keys().enumerate() {
        let name = format!("forged-{number}");
        let victim = &environment.victims[number % environment.victims.len()];
        let forged = environment.forged(shard, &victim.uid);
        created(tenant, &name, annotation(forged)["metadata"].take()).await;
    }
    until_ready(&environment.admin, tenant.namespace, "plain").await;
    let own = at("DatabaseCluster", tenant.namespace, "plain");
    let object = let_through("plain", get(&tenant.client, own).await);
    let uid = object.metadata.uid.unwrap();
    for shard in environment.table.entries.keys() {
        let change = annotation(environment.forged(shard, &uid));
        let_through("its own token", merge(&tenant.client, own, change).await);
    }
    let_through("its deletion", delete(&tenant.client, own).await);
    let reason = "FencingTokenAhead";
    let message = until_degraded(&environment.admin, tenant.namespace, "plain", reason).await;
    run_cure(environment, tenant, &message).await;
    until_gone(environment, tenant, "plain").await;
}

async fn odd_metadata(environment: &Environment<'_>, tenant: &Tenant) {
    let victim = &environment.victims[0];
    created(
        tenant,
        "owned",
        json!({"ownerReferences": owned_by(&victim.uid, &victim.name)}),
    )
    .await;
    for (number, labels) in [
        json!({"database.io/bucket": "7"}),
        json!({"database.io/bucket": "x"}),
        json!({"database.io/cluster-uid": victim.uid}),
        json!({"app.kubernetes.io/name": "databasecluster-operator", "database.io/role": "shard"}),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("labelled-{number}");
        created(tenant, &name, json!({"labels": labels})).await;
        until_ready(&environment.admin, tenant.namespace, &name).await;
    }
    let annotations = json!({
        "database.io/generation": "999999999", "database.io/fingerprint": "0", "database.io/claims": "1Ei/99",
        "database.io/deletion": "allowed", "database.io/stamp": "x/2146435071/h",
    });
    created(tenant, "annotated", json!({"annotations": annotations})).await;
    until_ready(&environment.admin, tenant.namespace, "annotated").await;
    // Names that give the children of one cluster the names of another's.
    for name in ["db", "db-db", "db-000", "db-000-db"] {
        created(tenant, name, json!({})).await;
        until_ready(&environment.admin, tenant.namespace, name).await;
    }
    for name in ["../victims", "a/b", "A", &"x".repeat(300)] {
        let at = at("DatabaseCluster", tenant.namespace, name);
        let answer = create(&tenant.client, at, cluster(json!({}))).await;
        refused(name, answer, "nvalid");
    }
}

async fn blocked_deletions(environment: &Environment<'_>, tenant: &Tenant) {
    for number in 0..10 {
        let name = format!("blocked-{number}");
        created(tenant, &name, json!({"finalizers": ["example.com/block"]})).await;
        let at = at("DatabaseCluster", tenant.namespace, &name);
        let_through("its deletion", delete(&tenant.client, at).await);
    }
    // The operator does its part and leaves the rest to the owner of the other finalizer.
    for number in 0..10 {
        let name = format!("blocked-{number}");
        let what = "without the operator's finalizer";
        until(
            &environment.admin,
            tenant.namespace,
            &name,
            what,
            |cluster| {
                cluster.metadata.finalizers.as_deref() == Some(&["example.com/block".to_owned()])
            },
        )
        .await;
    }
    let finalizer = |number: usize| json!(format!("example.com/{number}"));
    let many: Value = (0..2_000).map(finalizer).collect();
    created(tenant, "many", json!({"finalizers": many})).await;
    let reason = "TooManyFinalizers";
    until_degraded(&environment.admin, tenant.namespace, "many", reason).await;
    created(tenant, "unfinished", json!({})).await;
    let at = at("DatabaseCluster", tenant.namespace, "unfinished");
    for _ in 0..20 {
        let change = json!({"metadata": {"finalizers": null}});
        let_through("no finalizer", merge(&tenant.client, at, change).await);
    }
    until_ready(&environment.admin, tenant.namespace, "unfinished").await;
}

async fn oversized(tenant: &Tenant) {
    for number in 0..30 {
        let label = |n: usize| (format!("l{n}"), json!("x".repeat(60)));
        let labels: serde_json::Map<String, Value> = (0..2_000).map(label).collect();
        let annotations = json!({"database.io/fencing-token": "x".repeat(250_000)});
        let metadata = json!({"labels": labels, "annotations": annotations});
        created(tenant, &format!("oversized-{number}"), metadata).await;
    }
}
