//! Two replicas of which only the tokens exist, two shards, and what each of them may not do.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ObjectMeta, Patch,
    PatchParams, PostParams, Preconditions,
};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use testbed::fleet::{OPERATOR_ACCOUNT, OPERATOR_NAMESPACE};
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, load, wait_for};

/// Long enough for a busy machine; a test that needs it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
pub(crate) const NAMESPACE: &str = "shop";
/// Shard 0 holds the buckets 0 to 7 and is alpha's, shard 1 those from 8 to 15 and is beta's.
pub(crate) const ALPHAS: &str = "databasecluster-shard-000/5/alpha";
pub(crate) const BETAS: &str = "databasecluster-shard-001/3/beta";

/// An API server with the fence, and clients of several people.
pub(crate) struct World<'a> {
    pub(crate) control_plane: &'a ControlPlane,
    pub(crate) admin: Client,
    pub(crate) alpha: Client,
    pub(crate) beta: Client,
    /// Keeps what was installed.
    _fleet: Fleet<'a>,
}

pub(crate) async fn control_plane() -> ControlPlane {
    ControlPlane::start(ControlPlaneOptions::default())
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

impl<'a> World<'a> {
    pub(crate) async fn new(control_plane: &'a ControlPlane) -> Self {
        let fleet = Fleet::install(control_plane, FleetOptions::default())
            .await
            .unwrap();
        grant_everything(control_plane).await;
        load::create(control_plane, vec![cluster("orders")])
            .await
            .unwrap();
        let world = Self {
            control_plane,
            admin: control_plane.client(),
            alpha: fleet.client_of_pod("alpha").await.unwrap(),
            beta: fleet.client_of_pod("beta").await.unwrap(),
            _fleet: fleet,
        };
        let leases = world.leases(&world.admin);
        for (shard, buckets, holder, epoch) in [(0, "0-7", "alpha", 5), (1, "8-15", "beta", 3)] {
            let lease = lease(shard, buckets, holder, epoch);
            leases.create(&PostParams::default(), &lease).await.unwrap();
        }
        world.until_the_holder_may_write().await;
        world
    }

    pub(crate) fn leases(&self, client: &Client) -> Api<Lease> {
        Api::namespaced(client.clone(), OPERATOR_NAMESPACE)
    }

    pub(crate) async fn uid(&self, name: &str) -> String {
        let api = load::clusters_in(self.admin.clone(), NAMESPACE);
        api.get(name).await.unwrap().uid().unwrap()
    }

    /// The parameters of a policy come from a cache inside the API server.
    pub(crate) async fn until_the_holder_may_write(&self) {
        for (client, stamp, bucket, wrong) in [
            (
                &self.alpha,
                ALPHAS,
                "1",
                "databasecluster-shard-000/4/alpha",
            ),
            (&self.beta, BETAS, "9", "databasecluster-shard-001/4/beta"),
        ] {
            wait_for("the fence to know the shard Leases", PATIENCE, || async {
                let right = self.child("ConfigMap", "probe", stamp, bucket).await;
                let stale = self.child("ConfigMap", "probe", wrong, bucket).await;
                let (right, stale) = (dry(client, right).await, dry(client, stale).await);
                Ok(Progress::when(right.is_ok() && stale.is_err(), (), || {
                    format!("{right:?}, {stale:?}")
                }))
            })
            .await
            .unwrap();
        }
    }

    /// A child of the cluster `orders`.
    pub(crate) async fn child(&self, kind: &str, name: &str, stamp: &str, bucket: &str) -> Value {
        let uid = self.uid("orders").await;
        let mut object = json!({
            "apiVersion": api_version(kind), "kind": kind,
            "metadata": {
                "name": name, "namespace": NAMESPACE,
                "labels": {"database.io/bucket": bucket},
                "annotations": {"database.io/stamp": stamp, "database.io/generation": "7"},
                "ownerReferences": [{
                    "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "name": "orders",
                    "uid": uid, "controller": true,
                }],
            },
        });
        match body(kind) {
            Value::Null => {}
            spec => object["spec"] = spec,
        }
        object
    }
}

/// The rights that the operator has, and all that it might be given by mistake.
async fn grant_everything(control_plane: &ControlPlane) {
    let rights = [
        [
            "create",
            "clusterrole",
            "fence-test",
            "--verb=*",
            "--resource=*.*",
        ]
        .as_slice(),
        &[
            "create",
            "clusterrole",
            "fence-test-more",
            "--verb=*",
            "--resource=statefulsets.apps/scale,pods/eviction,databaseclusters.database.io/status",
        ],
    ];
    for arguments in rights {
        control_plane.run_kubectl(arguments).await.unwrap();
    }
    for role in ["fence-test", "fence-test-more"] {
        let role_flag = format!("--clusterrole={role}");
        let account = format!("--serviceaccount={OPERATOR_NAMESPACE}:{OPERATOR_ACCOUNT}");
        let arguments = ["create", "clusterrolebinding", role, &role_flag, &account];
        control_plane.run_kubectl(&arguments).await.unwrap();
    }
}

pub(crate) fn cluster(name: &str) -> load::NewCluster {
    load::NewCluster {
        namespace: NAMESPACE.to_owned(),
        name: name.to_owned(),
        spec: load::spec(1),
    }
}

pub(crate) fn lease(shard: u16, buckets: &str, holder: &str, epoch: i32) -> Lease {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": format!("databasecluster-shard-{shard:03}"), "namespace": OPERATOR_NAMESPACE,
            "labels": {
                "app.kubernetes.io/name": "databasecluster-operator", "database.io/role": "shard",
            },
            "annotations": {
                "database.io/shards": "32", "database.io/buckets": buckets,
                "database.io/incarnation": format!("{holder}-1"),
            },
        },
        "spec": {"holderIdentity": holder, "leaseTransitions": epoch},
    });
    serde_json::from_value(lease).unwrap()
}

fn api_version(kind: &str) -> &'static str {
    match kind {
        "StatefulSet" => "apps/v1",
        "PodDisruptionBudget" => "policy/v1",
        "DatabaseCluster" => "database.io/v1",
        _ => "v1",
    }
}

fn body(kind: &str) -> Value {
    let template = json!({
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "fake"}]},
    });
    match kind {
        "StatefulSet" => json!({
            "replicas": 0, "serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
            "template": template,
        }),
        "Service" => json!({"clusterIP": "None", "ports": [{"port": 1}]}),
        "PodDisruptionBudget" => json!({"maxUnavailable": 1}),
        "Pod" => json!({"nodeName": "fake-0", "containers": [{"name": "c", "image": "fake"}]}),
        "PersistentVolumeClaim" => json!({
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        }),
        _ => Value::Null,
    }
}

pub(crate) fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let version = api_version(kind);
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Api::namespaced_with(client.clone(), NAMESPACE, &resource)
}

/// What a write came to: the object's metadata, or what the API server said.
pub(crate) type Answer = Result<ObjectMeta, String>;

fn answer(answer: kube::Result<DynamicObject>) -> Answer {
    answer
        .map(|object| object.metadata)
        .map_err(|error| error.to_string())
}

pub(crate) async fn create(client: &Client, object: Value) -> Answer {
    let kind = object["kind"].as_str().unwrap().to_owned();
    let object = serde_json::from_value(object).unwrap();
    let api = api(client, &kind);
    answer(api.create(&PostParams::default(), &object).await)
}

/// As `create`, without effect.
pub(crate) async fn dry(client: &Client, object: Value) -> Answer {
    let kind = object["kind"].as_str().unwrap().to_owned();
    let object = serde_json::from_value(object).unwrap();
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    answer(api(client, &kind).create(&params, &object).await)
}

pub(crate) async fn apply(client: &Client, object: Value) -> Answer {
    let kind = object["kind"].as_str().unwrap().to_owned();
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let params = PatchParams::apply("databasecluster-operator").force();
    answer(
        api(client, &kind)
            .patch(&name, &params, &Patch::Apply(&object))
            .await,
    )
}

pub(crate) async fn merge(client: &Client, kind: &str, name: &str, change: Value) -> Answer {
    let params = PatchParams::default();
    answer(
        api(client, kind)
            .patch(name, &params, &Patch::Merge(&change))
            .await,
    )
}

pub(crate) async fn merge_status(client: &Client, name: &str, change: Value) -> Answer {
    let params = PatchParams::default();
    let api = api(client, "DatabaseCluster");
    answer(
        api.patch_status(name, &params, &Patch::Merge(&change))
            .await,
    )
}

/// A deletion with the preconditions that are given.
pub(crate) async fn delete(
    client: &Client,
    kind: &str,
    name: &str,
    (uid, resource_version): (Option<String>, Option<String>),
) -> Result<(), String> {
    let given = uid.is_some() || resource_version.is_some();
    let params = DeleteParams {
        preconditions: given.then_some(Preconditions {
            uid,
            resource_version,
        }),
        ..DeleteParams::default()
    };
    let done = api(client, kind).delete(name, &params).await;
    done.map(drop).map_err(|error| error.to_string())
}

/// Asserts that the fence refused, and why.
pub(crate) fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, String>, why: &str) {
    let error = answer.expect_err(&format!("{what} was let through"));
    let error = error
        .split(": Forbidden (Status")
        .next()
        .unwrap_or_default();
    assert!(
        error.contains("databasecluster-fence-") && error.contains(why),
        "{what}: expected a refusal because {why:?}: {error}"
    );
}

pub(crate) fn let_through<T>(what: &str, answer: Result<T, String>) -> T {
    answer.unwrap_or_else(|error| panic!("{what} was refused: {error}"))
}

/// How often each policy refused, by the API server's own count.
pub(crate) async fn refusals(world: &World<'_>, policy: &str) -> f64 {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = world.admin.request_text(request).await.unwrap();
    let metrics = testbed::metrics::Metrics::parse(&text);
    let counted = metrics.of("apiserver_validating_admission_policy_check_total");
    let denials = counted.filter(|sample| {
        let is = |label: &str, value: &str| sample.labels.get(label).is_some_and(|l| l == value);
        is("enforcement_action", "deny") && is("policy", policy)
    });
    denials.map(|sample| sample.value).sum()
}
