//! A user with all rights on ConfigMaps of one namespace, and no others.

use futures::{StreamExt, stream};
use serde_json::{Value, json};
use testbed::fencing;

use crate::checker::Checker;
use crate::environment::{EPOCH_MAX, Environment, Tenant, owned_by};
use crate::requests::*;

/// The API server takes 256 KiB of annotations for one object.
const OVERSIZE: usize = 250_000;
const OVERSIZED: usize = 300;
const CONCURRENCY: usize = 8;
/// Annotations and labels that the operator uses.
const KNOWN: [&str; 6] = [
    fencing::ANNOTATION,
    "database.io/fingerprint",
    "database.io/generation",
    "database.io/claims",
    "database.io/stamp",
    "example.com/note",
];

pub(crate) async fn attacks(environment: &Environment<'_>, checker: &mut Checker) {
    environment
        .control_plane
        .run_kubectl(&[
            "create",
            "clusterrole",
            "only-config-maps",
            "--verb=*",
            "--resource=configmaps",
        ])
        .await
        .unwrap();
    let tenant = environment
        .tenant("only-config-maps", &["only-config-maps"])
        .await;
    nothing_else_is_theirs(&tenant).await;
    checker
        .unharmed(environment, "ConfigMaps: writes of other kinds")
        .await;
    forged_tokens(environment, &tenant).await;
    checker
        .unharmed(environment, "ConfigMaps: forged tokens of every shard")
        .await;
    labels_of_the_operator(&tenant).await;
    checker
        .unharmed(environment, "ConfigMaps: labels of the operator")
        .await;
    oversized(&tenant).await;
    checker
        .unharmed(environment, "ConfigMaps: 300 with 250 kB of annotations")
        .await;
    many_references(environment, &tenant).await;
    checker
        .unharmed(
            environment,
            "ConfigMaps: 9 with thousands of labels, owners or finalizers",
        )
        .await;
    blocked_deletions(&tenant).await;
    checker
        .unharmed(environment, "ConfigMaps: deletions that finalizers block")
        .await;
}

async fn nothing_else_is_theirs(tenant: &Tenant) {
    let system = "databasecluster-system";
    for (kind, namespace, name) in [
        ("ShardTable", system, "databasecluster-shards"),
        ("Lease", system, "databasecluster-shard-000"),
        (
            "Lease",
            system,
            "databasecluster-member-databasecluster-operator-0",
        ),
        ("DatabaseCluster", "victims", "db-000"),
        ("ConfigMap", "victims", "db-000-db"),
        ("StatefulSet", tenant.namespace, "db-000-db"),
    ] {
        let what = format!("{kind} {namespace}/{name}");
        let at = at(kind, namespace, name);
        let change = json!({"metadata": {"labels": {"database.io/bucket": "1"}}});
        refused(
            &what,
            merge(&tenant.client, at, change).await,
            "cannot patch",
        );
        refused(&what, delete(&tenant.client, at).await, "cannot delete");
        refused(
            &what,
            create(&tenant.client, at, json!({"metadata": {}})).await,
            "cannot create",
        );
    }
    let at = at("ConfigMap", tenant.namespace, "kube-root-ca.crt");
    let_through("its own ConfigMap", get(&tenant.client, at).await);
}

fn labelled(bucket: impl ToString, annotations: Value) -> Value {
    json!({"metadata": {"labels": {"database.io/bucket": bucket.to_string()}, "annotations": annotations}})
}

/// For every shard: a token of the present holder, of its own victim, and as the old version wrote it.
async fn forged_tokens(environment: &Environment<'_>, tenant: &Tenant) {
    for (number, shard) in environment.table.entries.keys().enumerate() {
        let bucket = number * 8;
        let victim = &environment.victims[number % environment.victims.len()];
        let token = environment.forged(shard, &victim.uid);
        let old = format!(
            "databasecluster-shard-{shard}/{EPOCH_MAX}/{}",
            victim.holder
        );
        let tokens = json!({fencing::ANNOTATION: token, "database.io/stamp": old});
        let names = [
            format!("{}-db", victim.name),
            format!("forged-{number}"),
            format!("owned-{number}"),
        ];
        let mut plain = labelled(bucket, tokens.clone());
        if number < environment.victims.len() {
            let at = at("ConfigMap", tenant.namespace, &names[0]);
            let_through(
                "a ConfigMap",
                create(&tenant.client, at, plain.clone()).await,
            );
        }
        plain["metadata"]["annotations"]["database.io/generation"] = json!("999999999");
        let at = |name| at("ConfigMap", tenant.namespace, name);
        let_through(
            "a ConfigMap",
            create(&tenant.client, at(&names[1]), plain).await,
        );
        let mut owned = labelled(bucket, tokens);
        owned["metadata"]["ownerReferences"] = owned_by(&victim.uid, &victim.name);
        let_through(
            "a ConfigMap",
            create(&tenant.client, at(&names[2]), owned).await,
        );
    }
    for (number, text) in [
        "x/2146435071/h",
        "////",
        "t/000/99999999999999999999/h/c",
        "\u{0}/\n/\u{202e}/é/💥",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("malformed-{number}");
        let object = labelled(
            number * 8,
            json!({fencing::ANNOTATION: text, "database.io/stamp": text}),
        );
        let at = at("ConfigMap", tenant.namespace, &name);
        let_through("a ConfigMap", create(&tenant.client, at, object).await);
    }
}

async fn labels_of_the_operator(tenant: &Tenant) {
    for (number, (key, value)) in [
        ("database.io/bucket", "256"),
        ("database.io/bucket", "99999999999999999999"),
        ("database.io/bucket", "007"),
        ("database.io/bucket", ""),
        ("database.io/bucket", "x"),
        ("database.io/role", "shard"),
        ("database.io/role", "member"),
        ("app.kubernetes.io/name", "databasecluster-operator"),
        ("app.kubernetes.io/managed-by", "databasecluster-operator"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("labelled-{number}");
        let at = at("ConfigMap", tenant.namespace, &name);
        let object = json!({"metadata": {"labels": {key: value}}});
        let_through("a ConfigMap", create(&tenant.client, at, object).await);
    }
}

async fn each_of<F: Future<Output = ()>>(count: usize, work: impl Fn(usize) -> F) {
    stream::iter(0..count)
        .map(work)
        .buffer_unordered(CONCURRENCY)
        .collect::<Vec<()>>()
        .await;
}

/// Created, and changed again: both pass through every watch.
async fn oversized(tenant: &Tenant) {
    each_of(OVERSIZED, |number| async move {
        let name = format!("oversized-{number}");
        let at = at("ConfigMap", tenant.namespace, &name);
        let text = number
            .to_string()
            .repeat(OVERSIZE / number.to_string().len());
        let object = labelled(number % 256, json!({KNOWN[number % KNOWN.len()]: text}));
        let_through(
            "an oversized ConfigMap",
            create(&tenant.client, at, object).await,
        );
        let change = json!({"data": {"a": "b"}});
        let_through("its change", merge(&tenant.client, at, change).await);
    })
    .await;
}

/// Labels, owners and finalizers have no limit but that of the object.
async fn many_references(environment: &Environment<'_>, tenant: &Tenant) {
    let uid = &environment.victims[0].uid;
    each_of(9, |number| async move {
        let name = format!("many-{number}");
        let at = at("ConfigMap", tenant.namespace, &name);
        let mut object = labelled(number % 256, json!({}));
        match number % 3 {
            0 => {
                let label = |n: usize| (format!("l{n}"), json!("x".repeat(60)));
                let labels: serde_json::Map<String, Value> = (0..4_000).map(label).collect();
                object["metadata"]["labels"] = labels.into();
                object["metadata"]["labels"]["database.io/bucket"] = json!(number.to_string());
            }
            1 => {
                let owner = |n: usize| json!({
                    "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "name": format!("n{n}"), "uid": uid,
                });
                object["metadata"]["ownerReferences"] = (0..1_500).map(owner).collect();
            }
            _ => {
                let finalizer = |n: usize| json!(format!("example.com/{n}-{}", "x".repeat(40)));
                object["metadata"]["finalizers"] = (0..1_500).map(finalizer).collect();
            }
        }
        let created = create(&tenant.client, at, object).await;
        let_through("a ConfigMap with many references", created);
    })
    .await;
}

async fn blocked_deletions(tenant: &Tenant) {
    for number in 0..20 {
        let name = format!("blocked-{number}");
        let at = at("ConfigMap", tenant.namespace, &name);
        let mut object = labelled(number * 8, json!({}));
        object["metadata"]["finalizers"] = json!(["example.com/block", "database.io/operator"]);
        let_through("a ConfigMap", create(&tenant.client, at, object).await);
        let_through("its deletion", delete(&tenant.client, at).await);
    }
}
