//! Ownership of claims: labels, resizing, and deletion with a cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::core::child::DesiredChild;
use crate::core::observed::{ClaimTemplate, Selector};
use crate::postgres::Source;

const UID: &str = "database.io/cluster-uid";

const CLUSTER_LABEL: &str = "database.io/cluster";

/// The labels by which an earlier version selected Pods.
fn recommended() -> Value {
    json!({
        "app.kubernetes.io/name": "postgresql", "app.kubernetes.io/instance": "orders",
        "app.kubernetes.io/component": "database",
    })
}

fn sized(size: &str) -> Value {
    json!({
        "image": "postgres:18", "replicas": 2, "storage": {"size": size, "retain": "Delete"},
    })
}

fn path(ordinal: i32) -> String {
    format!("{CLAIMS}/data-orders-db-{ordinal}")
}

impl World {
    /// What the controller of StatefulSets does, with what the template and the selector have.
    fn create_claims(&self) {
        let set = self.object(STATEFULSET).unwrap();
        let template = &set["spec"]["volumeClaimTemplates"][0]["metadata"];
        let mut labels = template["labels"].clone();
        let selector = set["spec"]["selector"]["matchLabels"].as_object();
        for (name, value) in selector.unwrap() {
            labels[name] = value.clone();
        }
        for ordinal in 0..2 {
            self.claim(ordinal, labels.clone(), template["annotations"].clone());
        }
    }

    fn claim(&self, ordinal: i32, labels: Value, annotations: Value) {
        self.claim_named(&format!("data-orders-db-{ordinal}"), &labels, &annotations);
    }

    fn label(&self, ordinal: i32) -> Value {
        self.object(&path(ordinal)).unwrap()["metadata"]["labels"][UID].clone()
    }

    fn delete_cluster(&self) {
        self.change(CLUSTER, |c| {
            c["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
        });
    }

    async fn with_pods(&self) {
        self.create_claims();
        self.set_pods(2, 2);
        self.reconcile().await.unwrap();
    }

    /// As an earlier version left it: its selector copied the recommended labels to its claims, and
    /// no label shows to which cluster these belong.
    fn older_version(&self) {
        let cluster = self.cluster();
        let claim = ClaimTemplate {
            size: "1Gi".to_owned(),
            class_name: None,
            cluster_uid: None,
            selector: Selector::Recommended,
            created_for: None,
        };
        let source = Source {
            cluster: &cluster,
            claim: Some(&claim),
            initialized: true,
        };
        let children = source.children();
        let is_set = |child: &&DesiredChild| child.id.kind == ChildKind::StatefulSet;
        let set = children.iter().find(is_set).unwrap();
        let older = source.manifest(set, self.permit.token()).unwrap();
        self.change(STATEFULSET, |set| {
            set["spec"] = older["spec"].clone();
            set["metadata"]["annotations"] = older["metadata"]["annotations"].clone();
        });
        for ordinal in 0..2 {
            self.change(&path(ordinal), |claim| {
                claim["metadata"]["labels"] = recommended();
                claim["metadata"]["annotations"] = json!({});
            });
        }
    }
}

fn writes(requests: &[String], of: &str) -> usize {
    let is_write = |line: &&String| !line.starts_with("GET") && line.contains(of);
    requests.iter().filter(is_write).count()
}

#[tokio::test]
async fn claims_are_labelled_by_their_template_and_cost_two_lists_at_creation_and_no_write() {
    let world = World::new();
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    let uid = world.cluster().uid.to_string();
    let set = world.object(STATEFULSET).unwrap();
    let template = &set["spec"]["volumeClaimTemplates"][0]["metadata"];
    assert_eq!(template["labels"], json!({UID: uid}));
    world.with_pods().await;
    world.reconcile().await.unwrap();
    let requests = world.requests();
    let lists = requests
        .iter()
        .filter(|line| **line == format!("GET {CLAIMS}"));
    assert_eq!(lists.count(), 2, "{requests:?}");
    assert_eq!(writes(&requests, "claims"), 0, "{requests:?}");
    // No more requests: none after a takeover, and in a sweep one list, because claims are not
    // watched.
    let successor = World::on(world.fake.clone(), 2);
    successor.reconcile().await.unwrap();
    assert_eq!(successor.requests(), [""; 0]);
    successor.sweep();
    successor.reconcile().await.unwrap();
    let requests = successor.requests();
    let of_claims = requests.iter().filter(|line| line.contains("claims"));
    assert_eq!(of_claims.collect::<Vec<_>>(), [&format!("GET {CLAIMS}")]);
}

fn of_claims(requests: &[String]) -> usize {
    let lists = format!("GET {CLAIMS}");
    requests.iter().filter(|line| **line == lists).count()
}

#[tokio::test]
async fn new_clusters_that_wait_are_looked_up_together_and_each_finds_its_own_claims() {
    let world = World::new();
    let path = |name: &str| CLUSTER.replace("orders", name);
    let set = |name: &str| STATEFULSET.replace("orders", name);
    world.user_applies(sized("1Gi"));
    for name in ["plain", "lost", "again"] {
        let object = json!({
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
            "metadata": {"name": name, "namespace": "shop"}, "spec": sized("1Gi"),
        });
        world.fake.with(|state| state.put(&path(name), object));
    }
    // One whose primary has lost its volume, and one over the claims of an earlier version.
    let labels = json!({UID: "former", CLUSTER_LABEL: "lost"});
    world.claim_named("data-lost-db-1", &labels, &json!({}));
    let mut labels = recommended();
    labels["app.kubernetes.io/instance"] = json!("again");
    world.claim_named("data-again-db-0", &labels, &json!({}));
    world.reconcile_beside(&CROWDED).await.unwrap();
    assert_eq!(of_claims(&world.requests()), 2);
    let reconcile = |name: &'static str| {
        world.watch();
        let key = ObjectKey::new("shop", name);
        let (reconciler, permit) = (&world.reconciler, &world.permit);
        async move { reconciler.reconcile(&key, permit, &CROWDED).await }
    };
    reconcile("plain").await.unwrap();
    reconcile("again").await.unwrap();
    assert_eq!(
        of_claims(&world.requests()),
        0,
        "the first one has listed them"
    );
    let template = |name: &str| {
        let set = world.object(&set(name)).unwrap();
        set["spec"]["volumeClaimTemplates"][0]["metadata"]["labels"][UID].clone()
    };
    assert!(template("plain").is_string());
    assert_eq!(
        template("again"),
        Value::Null,
        "they are labelled one by one"
    );
    // The primary's claim is looked up by its name.
    reconcile("lost").await.unwrap_err();
    assert_eq!(of_claims(&world.requests()), 1);
    assert_eq!(world.object(&set("lost")), None);
    // The next run lists again: what was found may be gone.
    world
        .fake
        .with(|state| state.objects.remove(&format!("{CLAIMS}/data-lost-db-1")));
    reconcile("lost").await.unwrap();
    assert_eq!(of_claims(&world.requests()), 2);
    assert!(world.object(&set("lost")).is_some());
}

#[tokio::test]
async fn claims_are_looked_up_for_a_new_size_and_not_for_every_new_spec() {
    let world = World::new();
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    world.with_pods().await;
    world.requests();
    let mut spec = sized("1Gi");
    spec["image"] = json!("postgres:18.1");
    world.user_applies(spec);
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    assert_eq!(of_claims(&world.requests()), 0);
    world.user_applies(sized("2Gi"));
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    assert!(of_claims(&world.requests()) > 0);
    let claim = world.object(&path(0)).unwrap();
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
}

#[tokio::test]
async fn a_cluster_re_created_over_claims_that_were_grown_owns_them_and_can_grow_and_be_deleted() {
    let mut older = recommended();
    older["database.io/bucket"] = json!("3");
    for former in [
        json!({UID: "former", "database.io/bucket": "3", CLUSTER_LABEL: "orders"}),
        older,
    ] {
        let world = World::new();
        let token = "table/004/77/operator-9/former";
        for ordinal in 0..3 {
            let annotations = json!({"database.io/fencing-token": token});
            world.claim(ordinal, former.clone(), annotations);
        }
        world.user_applies(sized("1Gi"));
        world.reconcile().await.unwrap();
        // They belong to this cluster once it has the StatefulSet.
        assert_eq!(world.label(0), former[UID]);
        world.with_pods().await;
        let uid = world.cluster().uid.to_string();
        let bucket = world.cluster().bucket.to_string();
        for ordinal in 0..3 {
            assert_eq!(world.label(ordinal), uid);
            let claim = world.object(&path(ordinal)).unwrap();
            let meta = &claim["metadata"];
            assert_eq!(meta["labels"]["database.io/bucket"], bucket);
            assert_eq!(meta["labels"][CLUSTER_LABEL], "orders");
            assert_eq!(meta["labels"]["app.kubernetes.io/instance"], Value::Null);
            let option = &meta["annotations"]["argocd.argoproj.io/sync-options"];
            assert_eq!(option, "Prune=false,Delete=false");
        }
        world.user_applies(sized("2Gi"));
        world.reconcile().await.unwrap();
        world.reconcile().await.unwrap();
        let claim = world.object(&path(1)).unwrap();
        assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
        world.delete_cluster();
        world.reconcile().await.unwrap();
        world.fake.with(|state| state.objects.remove(STATEFULSET));
        assert_eq!(world.reconcile().await.unwrap().next, Next::Forget);
        for ordinal in 0..3 {
            assert_eq!(world.object(&path(ordinal)), None);
        }
    }
}

#[tokio::test]
async fn the_claims_of_a_statefulset_of_an_older_version_are_labelled_once_and_it_is_not_changed() {
    let world = World::new();
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    world.with_pods().await;
    world.older_version();
    world.set_pods(2, 2);
    let spec = world.object(STATEFULSET).unwrap()["spec"].clone();
    world.requests();
    let successor = World::on(world.fake.clone(), 2);
    for _ in 0..3 {
        let outcome = successor.reconcile().await.unwrap();
        assert_eq!(outcome.next, Next::Ready, "no drift is reported");
    }
    let requests = successor.requests();
    assert_eq!(writes(&requests, CLAIMS), 2, "{requests:?}");
    assert_eq!(writes(&requests, STATEFULSET), 1, "{requests:?}");
    assert_eq!(writes(&requests, ""), 3, "{requests:?}");
    let uid = world.cluster().uid.to_string();
    assert_eq!((world.label(0), world.label(1)), (json!(uid), json!(uid)));
    let set = world.object(STATEFULSET).unwrap();
    assert_eq!(set["spec"], spec);
    let done = &set["metadata"]["annotations"]["database.io/claims"];
    assert_eq!(*done, format!("1Gi/2/{uid}/marked"));
    // It is never applied with another template, which the API server would refuse.
    successor.user_applies(sized("2Gi"));
    successor.reconcile().await.unwrap();
    successor.reconcile().await.unwrap();
    let set = world.object(STATEFULSET).unwrap();
    assert_eq!(
        set["spec"]["volumeClaimTemplates"],
        spec["volumeClaimTemplates"]
    );
    assert_eq!(set["spec"]["template"], spec["template"]);
    let claim = world.object(&path(0)).unwrap();
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
}

#[tokio::test]
async fn children_that_were_handed_back_to_a_new_cluster_bring_their_claims_along() {
    let world = World::new();
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    world.with_pods().await;
    let former = world.cluster().uid.to_string();
    // kubectl delete --cascade=orphan, apply, and ownerReferences that a user restored.
    world.fake.with(|state| state.objects.remove(CLUSTER));
    world.user_applies(sized("2Gi"));
    let uid = world.cluster().uid.to_string();
    assert_ne!(uid, former);
    for path in [STATEFULSET, CONFIG, SERVICE, READ, READ_WRITE, BUDGET] {
        world.change(path, |child| {
            child["metadata"]["ownerReferences"][0]["uid"] = json!(uid);
        });
    }
    let world = World::on(world.fake.clone(), 2);
    for _ in 0..4 {
        world.reconcile().await.unwrap();
        world.set_pods(2, 2);
    }
    assert_eq!(world.phase(), Phase::Ready);
    for ordinal in 0..2 {
        assert_eq!(world.label(ordinal), uid);
        let claim = world.object(&path(ordinal)).unwrap();
        assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
    }
    world.delete_cluster();
    world.reconcile().await.unwrap();
    world.fake.with(|state| state.objects.remove(STATEFULSET));
    assert_eq!(world.reconcile().await.unwrap().next, Next::Forget);
    assert_eq!(
        (world.object(&path(0)), world.object(&path(1))),
        (None, None)
    );
}

#[tokio::test]
async fn a_deletion_takes_no_claim_of_another_uid_and_labels_none() {
    let world = World::new();
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    world.with_pods().await;
    world.change(&path(1), |claim| {
        claim["metadata"]["labels"][UID] = json!("other")
    });
    world.claim(2, json!({}), json!({}));
    let others = (world.object(&path(1)), world.object(&path(2)));
    world.delete_cluster();
    world.reconcile().await.unwrap();
    world.fake.with(|state| state.objects.remove(STATEFULSET));
    assert_eq!(world.reconcile().await.unwrap().next, Next::Forget);
    assert_eq!(world.object(&path(0)), None);
    assert_eq!((world.object(&path(1)), world.object(&path(2))), others);
    let notes = world.notes();
    let reported = notes
        .iter()
        .any(|note| note.contains("data-orders-db-1, data-orders-db-2 stay"));
    assert!(reported, "{notes:?}");
}

#[tokio::test]
async fn a_claim_without_any_of_our_labels_is_found_by_its_name_to_grow() {
    let world = World::new();
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    world.with_pods().await;
    // The list selects by labels: a claim without them is not in it.
    world.fake.with(|state| state.unlisted = vec![path(1)]);
    world.user_applies(sized("2Gi"));
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    let claim = world.object(&path(1)).unwrap();
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
}

/// Owners of a StatefulSet of the cluster's name that is not its own.
fn strangers() -> [Value; 3] {
    let owner = |kind: &str, version: &str, uid: &str| json!([{"apiVersion": version, "kind": kind, "name": "orders", "uid": uid, "controller": true}]);
    [
        json!(null),
        owner("Kafka", "x/v1", "theirs"),
        owner("DatabaseCluster", "database.io/v1", "former"),
    ]
}

#[tokio::test]
async fn claims_are_neither_labelled_nor_deleted_beside_a_statefulset_that_is_not_ours() {
    for (owners, in_sight) in strangers()
        .into_iter()
        .flat_map(|o| [(o.clone(), true), (o, false)])
    {
        let world = World::new();
        for ordinal in 0..2 {
            world.claim(
                ordinal,
                json!({UID: "former", CLUSTER_LABEL: "orders"}),
                json!({}),
            );
        }
        let mut theirs = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "orders-db", "namespace": "shop", "ownerReferences": owners},
            "spec": {"theirs": true},
        });
        if in_sight {
            theirs["metadata"]["labels"] = json!({"database.io/bucket": "1"});
        }
        world.fake.with(|state| state.put(STATEFULSET, theirs));
        let before = (world.object(&path(0)), world.object(&path(1)));
        world.user_applies(sized("2Gi"));
        for _ in 0..3 {
            let _refused_or_waiting = world.reconcile().await;
        }
        world.delete_cluster();
        for _ in 0..3 {
            let _refused_or_waiting = world.reconcile().await;
        }
        assert_eq!(world.object(CLUSTER), None, "{owners} {in_sight}");
        let after = (world.object(&path(0)), world.object(&path(1)));
        assert_eq!(before, after, "{owners} {in_sight}");
        let notes = world.notes();
        let reported = notes.iter().any(|note| note.contains("all claims stay"));
        assert!(reported, "{notes:?}");
    }
}

/// Even if its claims are labelled as its own, as when it once had a StatefulSet.
#[tokio::test]
async fn a_deletion_leaves_its_own_claims_to_a_statefulset_that_took_its_name() {
    let world = World::new();
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    world.with_pods().await;
    world.change(STATEFULSET, |set| {
        set["metadata"]["ownerReferences"] = json!(null);
        set["metadata"]["labels"] = json!({});
    });
    let before = (world.object(&path(0)), world.object(&path(1)));
    world.delete_cluster();
    assert_eq!(world.reconcile().await.unwrap().next, Next::Forget);
    let after = (world.object(&path(0)), world.object(&path(1)));
    assert_eq!(before, after);
}

#[tokio::test]
async fn no_empty_primary_is_created_next_to_a_replica_volume() {
    for allowed_by in ["annotation", "deletion", "restore"] {
        let world = World::new();
        world.claim(
            1,
            json!({UID: "former", CLUSTER_LABEL: "orders"}),
            json!({}),
        );
        world.user_applies(sized("1Gi"));
        for _ in 0..2 {
            world.reconcile().await.unwrap_err();
        }
        assert_eq!(world.object(STATEFULSET), None);
        let (_, reason, message) = world.condition(ConditionType::Degraded);
        assert_eq!(reason, "PrimaryVolumeMissing");
        assert!(!message.to_lowercase().contains("delete"), "{message}");
        let uid = world.cluster().uid.to_string();
        let command = format!("databasecluster orders database.io/allow-empty-primary={uid}");
        assert!(message.ends_with(&command), "{message}");
        match allowed_by {
            "annotation" => world.change(CLUSTER, |cluster| {
                // An annotation that was copied from another object allows nothing.
                cluster["metadata"]["annotations"]["database.io/allow-empty-primary"] = json!("x");
            }),
            "deletion" => {
                world.fake.with(|state| state.objects.remove(&path(1)));
            }
            _ => {
                world.claim(0, json!({}), json!({}));
                world.fake.with(|state| state.unlisted = vec![path(0)]);
            }
        }
        if allowed_by == "annotation" {
            world.reconcile().await.unwrap_err();
            world.change(CLUSTER, |cluster| {
                cluster["metadata"]["annotations"]["database.io/allow-empty-primary"] = json!(uid);
            });
        }
        world.reconcile().await.unwrap();
        assert!(world.object(STATEFULSET).is_some(), "{allowed_by}");
    }
}

#[tokio::test]
async fn a_larger_claim_is_left_alone_and_a_size_can_be_set_back_to_what_the_volumes_have() {
    let world = World::new();
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    world.with_pods().await;
    assert_eq!(world.cluster().status.storage_size.as_deref(), Some("1Gi"));
    // A user has resized one; it must not be lowered.
    world.change(&path(1), |claim| {
        claim["spec"]["resources"]["requests"]["storage"] = json!("50Gi")
    });
    world.user_applies(sized("15Gi"));
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    let asks = |ordinal| {
        let claim = world.object(&path(ordinal)).unwrap();
        claim["spec"]["resources"]["requests"]["storage"].clone()
    };
    assert_eq!((asks(0), asks(1)), (json!("15Gi"), json!("50Gi")));
    assert_eq!(world.phase(), Phase::Ready);
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    assert_eq!((asks(0), asks(1)), (json!("15Gi"), json!("50Gi")));
    assert_eq!(world.phase(), Phase::Ready);
    // The size of the volumes is read in a sweep.
    for ordinal in 0..2 {
        world.change(&path(ordinal), |claim| {
            claim["status"]["capacity"]["storage"] = json!("15Gi")
        });
    }
    world.sweep();
    world.reconcile().await.unwrap();
    assert_eq!(world.cluster().status.storage_size.as_deref(), Some("15Gi"));
}

#[tokio::test]
async fn a_claim_without_a_volume_grows_once_it_has_one() {
    let world = World::new();
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    world.with_pods().await;
    world.change(&path(1), |claim| {
        claim["status"] = json!({"phase": "Pending"})
    });
    world.user_applies(sized("2Gi"));
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    let asks = |ordinal| {
        let claim = world.object(&path(ordinal)).unwrap();
        claim["spec"]["resources"]["requests"]["storage"].clone()
    };
    assert_eq!((asks(0), asks(1)), (json!("2Gi"), json!("1Gi")));
    world.change(&path(1), |claim| {
        claim["status"] = json!({"phase": "Bound"})
    });
    world.reconcile().await.unwrap();
    assert_eq!(asks(1), json!("2Gi"));
}

#[tokio::test]
async fn claim_deleted_under_its_pod_is_reported_until_resolved() {
    let world = World::new();
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    world.with_pods().await;
    world.reconcile().await.unwrap();
    world.change(&path(0), |claim| {
        claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        claim["metadata"]["finalizers"] = json!(["kubernetes.io/pvc-protection"]);
    });
    world.sweep();
    for _ in 0..3 {
        world.reconcile().await.unwrap_err();
        let (_, reason, message) = world.condition(ConditionType::Degraded);
        assert_eq!(reason, "ClaimBeingDeleted");
        assert!(message.contains("data-orders-db-0"), "{message}");
        assert!(
            message.contains("persistentvolume pv-of-data-orders-db-0 "),
            "{message}"
        );
        assert!(
            message.ends_with("dump the data before the Pod ends."),
            "{message}"
        );
    }
    let notes = world.notes();
    let reported = notes
        .iter()
        .filter(|note| note.contains("ClaimBeingDeleted"));
    assert_eq!(reported.count(), 1, "{notes:?}");
    world.fake.with(|state| state.objects.remove(&path(0)));
    world.create_claims();
    world.reconcile().await.unwrap();
    assert_eq!(world.phase(), Phase::Ready);
    world.requests();
    world.reconcile().await.unwrap();
    assert_eq!(world.requests(), [""; 0], "nothing is read any more");
}
