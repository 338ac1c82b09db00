//! A user with the cluster's role `edit` in one namespace, to which `databasecluster-edit` belongs.

use kube::ResourceExt;
use serde_json::{Value, json};
use testbed::{Progress, load, wait_for};

use crate::checker::Checker;
use crate::environment::*;
use crate::requests::*;

const OWN: &str = "own";
/// The children of the cluster `own` that carry a token.
const CHILDREN: [(&str, &str); 6] = [
    ("StatefulSet", "own-db"),
    ("Service", "own-db"),
    ("Service", "own-rw"),
    ("Service", "own-r"),
    ("ConfigMap", "own-db"),
    ("PodDisruptionBudget", "own-db"),
];

pub(crate) async fn attacks(environment: &Environment<'_>, checker: &mut Checker) {
    let tenant = environment.tenant("edits", &["edit"]).await;
    until_aggregated(&tenant).await;
    own(&tenant, OWN).await;
    until_ready(&environment.admin, tenant.namespace, OWN).await;
    edited_labels(environment, &tenant).await;
    checker
        .unharmed(
            environment,
            "edit: buckets and generations of its own children",
        )
        .await;
    forged_tokens(environment, &tenant).await;
    checker
        .unharmed(environment, "edit: forged tokens on its own children")
        .await;
    others_claims(environment, &tenant).await;
    checker
        .unharmed(environment, "edit: claims with the uid of others")
        .await;
    names_of_children(environment, &tenant).await;
    checker
        .unharmed(environment, "edit: objects with the names of children")
        .await;
    forged_orphan(environment, &tenant).await;
    checker
        .unharmed(
            environment,
            "edit: a forged orphan with a privileged container",
        )
        .await;
    leases_of_its_own(&tenant).await;
    checker
        .unharmed(environment, "edit: Leases and accounts of its own")
        .await;
    blocked_children(environment, &tenant).await;
    checker
        .unharmed(environment, "edit: children that finalizers block")
        .await;
}

/// The controller manager adds the operator's roles to the cluster's.
async fn until_aggregated(tenant: &Tenant) {
    wait_for(
        "the role edit to include DatabaseClusters",
        PATIENCE,
        || async {
            let at = at("DatabaseCluster", tenant.namespace, "nobody");
            let answer = delete(&tenant.client, at).await.unwrap_err();
            Ok(Progress::when(answer.contains("not found"), (), || answer))
        },
    )
    .await
    .unwrap();
}

async fn own(tenant: &Tenant, name: &str) {
    let at = at("DatabaseCluster", tenant.namespace, name);
    let object = json!({"metadata": {}, "spec": load::spec(2)});
    let_through(name, create(&tenant.client, at, object).await);
}

async fn change(tenant: &Tenant, name: &str, spec: Value) {
    let at = at("DatabaseCluster", tenant.namespace, name);
    let_through(name, merge(&tenant.client, at, json!({"spec": spec})).await);
}

async fn edited_labels(environment: &Environment<'_>, tenant: &Tenant) {
    let admin = &environment.admin;
    for (kind, name) in CHILDREN {
        let at = at(kind, tenant.namespace, name);
        let bucket = get(admin, at).await.unwrap().labels()["database.io/bucket"].clone();
        let other: u32 = (bucket.parse::<u32>().unwrap() + 128) % 256;
        for edited in [json!(other.to_string()), json!("x"), Value::Null] {
            let edit = json!({"metadata": {"labels": {"database.io/bucket": edited}}});
            let_through("an edit", merge(&tenant.client, at, edit).await);
            wait_for(
                format!("the bucket of {name} to be restored"),
                PATIENCE,
                || async {
                    let labels = get(admin, at).await.unwrap().labels().clone();
                    let right = labels.get("database.io/bucket") == Some(&bucket);
                    Ok(Progress::when(right, (), || format!("{labels:?}")))
                },
            )
            .await
            .unwrap();
        }
    }
    // Each delays the next change by some seconds, in the hope of a newer version of the DatabaseCluster.
    for (kind, name) in [CHILDREN[0], CHILDREN[4]] {
        let edit = json!({"metadata": {"annotations": {"database.io/generation": "999999999"}}});
        let at = at(kind, tenant.namespace, name);
        let_through("an edit", merge(&tenant.client, at, edit).await);
    }
    change(tenant, OWN, json!({"replicas": 3})).await;
    until_replicas(environment, tenant, 3).await;
    until_ready(admin, tenant.namespace, OWN).await;
}

async fn until_replicas(environment: &Environment<'_>, tenant: &Tenant, wanted: u64) {
    let at = at("StatefulSet", tenant.namespace, "own-db");
    wait_for("the StatefulSet to follow its spec", PATIENCE, || async {
        let set = get(&environment.admin, at).await.unwrap();
        let replicas = set.data["spec"]["replicas"].as_u64();
        Ok(Progress::when(replicas == Some(wanted), (), || {
            format!("{replicas:?}")
        }))
    })
    .await
    .unwrap();
}

/// One after the other: the message names the object and a command that the tenant may run.
async fn forged_tokens(environment: &Environment<'_>, tenant: &Tenant) {
    let admin = &environment.admin;
    let own = at("DatabaseCluster", tenant.namespace, OWN);
    let uid = get(admin, own).await.unwrap().uid().unwrap();
    let bucket = u64::from(testbed::shards::bucket(&uid));
    let shard = format!("{:03}", bucket * environment.table.shards / 256);
    for (replicas, (kind, name)) in (4..).zip(CHILDREN) {
        let mut edit = annotation(environment.forged(&shard, &uid));
        edit["metadata"]["annotations"]["database.io/fingerprint"] = json!("0");
        edit["metadata"]["labels"] = json!({"app.kubernetes.io/part-of": "x"});
        let at = at(kind, tenant.namespace, name);
        let_through("an edit", merge(&tenant.client, at, edit).await);
        change(tenant, OWN, json!({"replicas": replicas})).await;
        let reason = "FencingTokenAhead";
        let message = until_degraded(admin, tenant.namespace, OWN, reason).await;
        assert!(message.contains(name), "{message}");
        run_cure(environment, tenant, &message).await;
        until_replicas(environment, tenant, replicas).await;
        until_ready(admin, tenant.namespace, OWN).await;
    }
    let events = [
        "get",
        "events",
        "-n",
        tenant.namespace,
        "-o",
        "jsonpath={.items[*].message}",
    ];
    let events = environment
        .control_plane
        .run_kubectl_as(&tenant.kubeconfig, &events);
    let events = events.await.unwrap();
    assert!(
        events.contains("kubectl annotate"),
        "no Event names the remedy: {events}"
    );
}

/// Claims labelled as another cluster's: of another namespace, and of another one in this namespace.
async fn others_claims(environment: &Environment<'_>, tenant: &Tenant) {
    let admin = &environment.admin;
    own(tenant, "neighbour").await;
    own(tenant, "doomed").await;
    until_ready(admin, tenant.namespace, "neighbour").await;
    let neighbour = at("DatabaseCluster", tenant.namespace, "neighbour");
    let neighbour = get(admin, neighbour).await.unwrap().uid().unwrap();
    let victim = &environment.victims[0];
    let claims = [
        ("data-neighbour-db-0", neighbour.as_str(), "neighbour"),
        ("data-doomed-db-0", &neighbour, "doomed"),
        ("data-doomed-db-1", &victim.uid, "doomed"),
        ("data-db-000-db-0", &victim.uid, "db-000"),
    ];
    for (name, uid, instance) in claims {
        let bucket = testbed::shards::bucket(uid).to_string();
        let claim = json!({
            "metadata": {
                "labels": {
                    "database.io/cluster-uid": uid, "database.io/bucket": bucket,
                    "app.kubernetes.io/name": "postgresql", "app.kubernetes.io/instance": instance,
                    "app.kubernetes.io/component": "database",
                },
                "annotations": annotation(environment.forged(&victim.shard, uid))["metadata"]["annotations"],
            },
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        });
        let at = at("PersistentVolumeClaim", tenant.namespace, name);
        let_through(name, create(&tenant.client, at, claim).await);
    }
    let storage = json!({"storage": {"size": "1Gi", "retain": "Delete"}});
    change(tenant, "doomed", storage).await;
    let doomed = at("DatabaseCluster", tenant.namespace, "doomed");
    let_through("its deletion", delete(&tenant.client, doomed).await);
    until_gone(environment, tenant, "doomed").await;
    for (name, uid, _) in claims
        .iter()
        .filter(|(_, _, instance)| *instance != "doomed")
    {
        let at = at("PersistentVolumeClaim", tenant.namespace, name);
        let claim = get(admin, at)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(claim.labels()["database.io/cluster-uid"], **uid, "{name}");
    }
}

/// Objects that have a child's name, alone and with another cluster as their owner.
async fn names_of_children(environment: &Environment<'_>, tenant: &Tenant) {
    let admin = &environment.admin;
    let own_uid = at("DatabaseCluster", tenant.namespace, OWN);
    let own_uid = get(admin, own_uid).await.unwrap().uid().unwrap();
    for (name, owner) in [("taken", Value::Null), ("stolen", owned_by(&own_uid, OWN))] {
        let child = format!("{name}-db");
        let mut object =
            json!({"metadata": {"labels": {"database.io/bucket": "9"}}, "data": {"a": "b"}});
        object["metadata"]["annotations"] =
            annotation(environment.forged("001", &own_uid))["metadata"]["annotations"].take();
        if !owner.is_null() {
            object["metadata"]["ownerReferences"] = owner;
        }
        let at = at("ConfigMap", tenant.namespace, &child);
        let_through(&child, create(&tenant.client, at, object).await);
        own(tenant, name).await;
        let message = until_degraded(admin, tenant.namespace, name, "ForeignChild").await;
        assert!(message.contains(&child), "{message}");
        let theirs = get(admin, at).await.unwrap();
        assert_eq!(
            theirs.data["data"],
            json!({"a": "b"}),
            "the operator wrote {child}"
        );
        let_through(&child, delete(&tenant.client, at).await);
        // Otherwise it is tried again after half a minute.
        change(tenant, name, json!({"resources": {"cpu": "300m"}})).await;
        until_ready(admin, tenant.namespace, name).await;
    }
    until_ready(admin, tenant.namespace, OWN).await;
}

/// A StatefulSet disguised as an orphan of the operator, so that the operator runs its privileged container.
async fn forged_orphan(environment: &Environment<'_>, tenant: &Tenant) {
    let admin = &environment.admin;
    let labels = json!({"database.io/cluster": "forged"});
    let container = json!({"name": "mine", "image": "x", "securityContext": {"privileged": true}});
    let set = json!({
        "metadata": {
            "labels": {"database.io/bucket": "9", "app.kubernetes.io/managed-by": "databasecluster-operator"},
            "annotations": {"database.io/fingerprint": "0123456789abcdef"},
        },
        "spec": {
            "replicas": 0, "serviceName": "forged-db", "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            // Everything that cannot be changed is as the operator has it.
            "volumeClaimTemplates": [{
                "metadata": {"name": "data", "annotations": {
                    "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
                    "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
                }},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    });
    let at = at("StatefulSet", tenant.namespace, "forged-db");
    let_through("forged-db", create(&tenant.client, at, set).await);
    own(tenant, "forged").await;
    let message = until_degraded(admin, tenant.namespace, "forged", "WriteRefused").await;
    assert!(message.contains("allowPrivilegeEscalation"), "{message}");
    let theirs = get(admin, at).await.unwrap();
    let containers = &theirs.data["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers.as_array().unwrap().len(), 1, "{containers}");
    assert_eq!(theirs.data["spec"]["replicas"], 0);
    let_through("forged-db", delete(&tenant.client, at).await);
    change(tenant, "forged", json!({"resources": {"cpu": "300m"}})).await;
    until_ready(admin, tenant.namespace, "forged").await;
}

/// Leases with the names and labels of the operator's, and an account of its name.
async fn leases_of_its_own(tenant: &Tenant) {
    for (name, role) in [
        ("databasecluster-shard-000", "shard"),
        (
            "databasecluster-member-databasecluster-operator-0",
            "member",
        ),
        ("databasecluster-leader", "leader"),
    ] {
        let lease = json!({
            "metadata": {
                "labels": {"app.kubernetes.io/name": "databasecluster-operator", "database.io/role": role},
                "annotations": {
                    "database.io/shards": "32", "database.io/buckets": "0-7", "database.io/incarnation": "mine",
                },
            },
            "spec": {"holderIdentity": "mine", "leaseTransitions": EPOCH_MAX},
        });
        let own = at("Lease", tenant.namespace, name);
        let _ = create(&tenant.client, own, lease.clone()).await;
        let theirs = at("Lease", "databasecluster-system", name);
        refused(
            name,
            merge(&tenant.client, theirs, lease).await,
            "cannot patch",
        );
        refused(name, delete(&tenant.client, theirs).await, "cannot delete");
    }
    let table = json!({"metadata": {}, "spec": {"shards": 1, "entries": {}}});
    for namespace in [tenant.namespace, "databasecluster-system"] {
        let at = at("ShardTable", namespace, "databasecluster-shards");
        refused(
            namespace,
            create(&tenant.client, at, table.clone()).await,
            "cannot create",
        );
        refused(
            namespace,
            merge(&tenant.client, at, annotation("x")).await,
            "cannot patch",
        );
        refused(namespace, delete(&tenant.client, at).await, "cannot delete");
    }
    // An account of the operator's name, in another namespace, is another user: it has no rights.
    let account = at(
        "ServiceAccount",
        tenant.namespace,
        "databasecluster-operator",
    );
    let_through(
        "an account",
        create(&tenant.client, account, json!({"metadata": {}})).await,
    );
}

async fn blocked_children(environment: &Environment<'_>, tenant: &Tenant) {
    let admin = &environment.admin;
    for (kind, name) in CHILDREN {
        let edit = json!({"metadata": {"finalizers": ["example.com/block"]}});
        let at = at(kind, tenant.namespace, name);
        let_through("a finalizer", merge(&tenant.client, at, edit).await);
        let_through("a deletion", delete(&tenant.client, at).await);
    }
    change(tenant, OWN, json!({"replicas": 1})).await;
    let own = at("DatabaseCluster", tenant.namespace, OWN);
    let_through("its deletion", delete(&tenant.client, own).await);
    until_ready(admin, tenant.namespace, "neighbour").await;
    change(tenant, "neighbour", json!({"replicas": 1})).await;
    until_ready(admin, tenant.namespace, "neighbour").await;
}
