//! Whose claims are: labels, growth, and what goes with a cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

const UID: &str = "database.io/cluster-uid";

fn sized(size: &str) -> Value {
    json!({
        "image": "postgres:18", "replicas": 2, "storage": {"size": size, "retain": "Delete"},
    })
}

fn path(ordinal: i32) -> String {
    format!("{CLAIMS}/data-orders-db-{ordinal}")
}

impl World {
    /// What the controller of StatefulSets does, with the labels of the template.
    fn create_claims(&self) {
        let set = self.object(STATEFULSET).unwrap();
        let labels = &set["spec"]["volumeClaimTemplates"][0]["metadata"]["labels"];
        for ordinal in 0..2 {
            self.claim(ordinal, labels.clone(), json!({}));
        }
    }

    fn claim(&self, ordinal: i32, labels: Value, annotations: Value) {
        let claim = json!({"metadata": {
            "name": format!("data-orders-db-{ordinal}"), "namespace": "shop",
            "labels": labels, "annotations": annotations,
        }});
        self.fake.with(|state| {
            state.objects.entry(path(ordinal)).or_insert(Value::Null);
            if state.objects[&path(ordinal)].is_null() {
                state.objects.remove(&path(ordinal));
                state.put(&path(ordinal), claim);
            }
        });
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

    /// As the former version left it: a StatefulSet whose claims have no label.
    fn older_version(&self) {
        self.change(STATEFULSET, |set| {
            set["spec"]["volumeClaimTemplates"][0]["metadata"] = json!({"name": "data"});
            set["metadata"]["generation"] = json!(1);
        });
        for ordinal in 0..2 {
            self.change(&path(ordinal), |claim| {
                claim["metadata"]["labels"] = json!({})
            });
        }
    }
}

fn writes(requests: &[String], of: &str) -> usize {
    let is_write = |line: &&String| !line.starts_with("GET") && line.contains(of);
    requests.iter().filter(is_write).count()
}

#[tokio::test]
async fn claims_are_labelled_by_their_template_and_cost_one_list_at_creation_and_no_write() {
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
    assert_eq!(lists.count(), 1, "{requests:?}");
    assert_eq!(writes(&requests, "claims"), 0, "{requests:?}");
    // Nothing more, ever: not after a takeover, and not in a sweep.
    let successor = World::on(world.fake.clone(), 2);
    successor.reconcile().await.unwrap();
    let reconciler = &successor.reconciler;
    reconciler.with_memory(&successor.cluster(), |memory| memory.swept(0));
    successor.reconcile().await.unwrap();
    let requests = successor.requests();
    assert!(
        !requests.iter().any(|line| line.contains("claims")),
        "{requests:?}"
    );
}

#[tokio::test]
async fn a_cluster_re_created_over_claims_that_were_grown_owns_them_and_can_grow_and_be_deleted() {
    for former in [json!({UID: "former", "database.io/bucket": "3"}), json!({})] {
        let world = World::new();
        let token = "table/004/77/operator-9/former";
        for ordinal in 0..3 {
            let annotations = json!({"database.io/fencing-token": token});
            world.claim(ordinal, former.clone(), annotations);
        }
        world.user_applies(sized("1Gi"));
        world.reconcile().await.unwrap();
        let uid = world.cluster().uid.to_string();
        let bucket = world.cluster().bucket.to_string();
        for ordinal in 0..3 {
            assert_eq!(world.label(ordinal), uid);
            let claim = world.object(&path(ordinal)).unwrap();
            assert_eq!(claim["metadata"]["labels"]["database.io/bucket"], bucket);
        }
        world.with_pods().await;
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
    assert_eq!(*done, format!("1Gi/2/{uid}"));
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
    // kubectl delete --cascade=orphan, apply, and ownerReferences that a person gave back.
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
    let told = notes
        .iter()
        .any(|note| note.contains("data-orders-db-1, data-orders-db-2 stay"));
    assert!(told, "{notes:?}");
}

#[tokio::test]
async fn a_claim_without_any_of_our_labels_is_found_by_its_name_to_grow() {
    let world = World::new();
    world.user_applies(sized("1Gi"));
    world.reconcile().await.unwrap();
    world.with_pods().await;
    // The list goes by labels: one that lost them is not in it.
    world.fake.with(|state| state.unlisted = vec![path(1)]);
    world.user_applies(sized("2Gi"));
    world.reconcile().await.unwrap();
    world.reconcile().await.unwrap();
    let claim = world.object(&path(1)).unwrap();
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
}
