//! Two replicas that exist only as credentials, two shards, and the writes that each must not make.

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
pub(crate) const TABLE: &str = "databasecluster-shards";
/// The messages of the policies for a write without a valid token, under another's token, and by another Pod.
pub(crate) const ORDER: &str = "a write of the operator must carry a token";
pub(crate) const NOT_THE_HOLDER: &str = "is not that of the present holder";
pub(crate) const OTHER_POD: &str = "names another replica than the Pod";
pub(crate) const EPOCH_MAX: i64 = 2_146_435_071;
/// No uid of anything.
pub(crate) const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// An API server with the fence, and clients of several users. Of 32 shards, shard 0 has the buckets 0 to 7 and is
/// alpha's under epoch 5, shard 1 has those from 8 to 15 and is beta's under epoch 3.
pub(crate) struct World<'a> {
    pub(crate) control_plane: &'a ControlPlane,
    pub(crate) admin: Client,
    pub(crate) alpha: Client,
    pub(crate) beta: Client,
    /// Uid of the shard table.
    pub(crate) table: String,
    /// Uid of the DatabaseCluster `orders`.
    pub(crate) orders: String,
    /// Keeps the installed fleet.
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
        let admin = control_plane.client();
        let (alpha, beta) = (
            fleet.client_of_pod("alpha").await.unwrap(),
            fleet.client_of_pod("beta").await.unwrap(),
        );
        let created = create(&alpha, table(32, 0)).await.unwrap();
        for (client, shard, epoch, holder) in
            [(&alpha, "000", 5, "alpha"), (&beta, "001", 3, "beta")]
        {
            write_entry(client, 32, shard, epoch, holder).await.unwrap();
        }
        let clusters = load::clusters_in(admin.clone(), NAMESPACE);
        let world = Self {
            control_plane,
            orders: clusters.get("orders").await.unwrap().uid().unwrap(),
            table: created.uid.unwrap(),
            admin,
            alpha,
            beta,
            _fleet: fleet,
        };
        world.until_the_holder_may_write().await;
        world
    }

    /// A fencing token for the cluster with this uid.
    pub(crate) fn token(&self, shard: &str, epoch: i64, holder: &str, cluster: &str) -> String {
        format!("{}/{shard}/{epoch}/{holder}/{cluster}", self.table)
    }

    /// Alpha's token for `orders`.
    pub(crate) fn alphas(&self) -> String {
        self.token("000", 5, "alpha", &self.orders)
    }

    /// Beta's token for `orders`.
    pub(crate) fn betas(&self) -> String {
        self.token("001", 3, "beta", &self.orders)
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
        for (client, token, bucket, wrong) in [
            (
                &self.alpha,
                self.alphas(),
                "1",
                self.token("000", 4, "alpha", &self.orders),
            ),
            (
                &self.beta,
                self.betas(),
                "9",
                self.token("001", 4, "beta", &self.orders),
            ),
        ] {
            wait_for("the fence to know the shard table", PATIENCE, || async {
                let right = dry(client, self.child("ConfigMap", "probe", &token, bucket)).await;
                let stale = dry(client, self.child("ConfigMap", "probe", &wrong, bucket)).await;
                Ok(Progress::when(right.is_ok() && stale.is_err(), (), || {
                    format!("{right:?}, {stale:?}")
                }))
            })
            .await
            .unwrap();
        }
    }

    /// A child, claim or Pod of the cluster `orders`.
    pub(crate) fn child(&self, kind: &str, name: &str, token: &str, bucket: &str) -> Value {
        self.child_of(("orders", &self.orders), kind, name, token, bucket)
    }

    /// The same of a cluster with this name and uid.
    pub(crate) fn child_of(
        &self,
        (cluster, uid): (&str, &str),
        kind: &str,
        name: &str,
        token: &str,
        bucket: &str,
    ) -> Value {
        let mut object = json!({
            "apiVersion": api_version(kind), "kind": kind,
            "metadata": {
                "name": name, "namespace": NAMESPACE,
                "labels": {"database.io/bucket": bucket, "database.io/cluster-uid": uid},
                "annotations": {"database.io/fencing-token": token, "database.io/generation": "7"},
            },
        });
        if !matches!(kind, "PersistentVolumeClaim" | "Pod") {
            object["metadata"]["ownerReferences"] = json!([{
                "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "name": cluster,
                "uid": uid, "controller": true,
            }]);
        }
        match body(kind) {
            Value::Null => {}
            spec => object["spec"] = spec,
        }
        object
    }

    /// Creates what replicas must not create: a Pod of `orders`, as its StatefulSet's controller would.
    pub(crate) async fn pod(&self, name: &str) {
        let mut pod = self.child("Pod", name, "", "3");
        pod["metadata"]["annotations"] = json!({});
        create(&self.admin, pod).await.unwrap();
    }
}

/// A vacant table.
pub(crate) fn table(shards: u16, epoch: i64) -> Value {
    let entries: serde_json::Map<String, Value> = (0..shards)
        .map(|shard| (format!("{shard:03}"), entry(epoch, "")))
        .collect();
    json!({
        "apiVersion": "database.io/v1", "kind": "ShardTable",
        "metadata": {"name": TABLE, "namespace": OPERATOR_NAMESPACE},
        "spec": {"shards": shards, "entries": entries},
    })
}

pub(crate) fn entry(epoch: i64, holder: &str) -> Value {
    let incarnation = if holder.is_empty() {
        String::new()
    } else {
        format!("{holder}-1")
    };
    json!({"epoch": epoch, "holder": holder, "incarnation": incarnation})
}

/// The merge patch of one entry, as a replica sends it.
pub(crate) async fn write_entry(
    client: &Client,
    shards: u16,
    shard: &str,
    epoch: i64,
    holder: &str,
) -> Answer {
    let change = json!({"spec": {"shards": shards, "entries": {shard: entry(epoch, holder)}}});
    merge(client, "ShardTable", TABLE, change).await
}

/// The rights that the operator has, and more that it might get by mistake.
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
        "DatabaseCluster" | "ShardTable" => "database.io/v1",
        _ => "v1",
    }
}

fn body(kind: &str) -> Value {
    let template = json!({
        "metadata": {"labels": {"a": "b"}},
        "spec": {
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "c", "image": "fake", "securityContext": {"allowPrivilegeEscalation": false},
            }],
        },
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
    let namespace = if kind == "ShardTable" {
        OPERATOR_NAMESPACE
    } else {
        NAMESPACE
    };
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// The result of a write: the object's metadata, or the API server's message.
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

/// A deletion with these preconditions.
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

/// Asserts that a policy refused, and why.
pub(crate) fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, String>, why: &str) {
    let error = answer.expect_err(&format!("{what} was let through"));
    let error = error
        .split(": Forbidden (Status")
        .next()
        .unwrap_or_default();
    assert!(
        error.contains("ValidatingAdmissionPolicy 'databasecluster-") && error.contains(why),
        "{what}: expected a refusal because {why:?}: {error}"
    );
}

/// Asserts that a rule of the schema rejected the write for this reason, for every writer.
pub(crate) fn invalid<T: std::fmt::Debug>(what: &str, answer: Result<T, String>, why: &str) {
    let error = answer.expect_err(&format!("{what} was let through"));
    assert!(
        error.contains("is invalid") && error.contains(why),
        "{what}: expected it to be invalid because {why:?}: {error}"
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
