//! What each request of a reconcile costs the API server, by the way in which it is sent.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use databasecluster_operator::api::{DatabaseClusterSpec, DatabaseClusterStatus};
use databasecluster_operator::core::observed::ClusterRecord;
use databasecluster_operator::postgres::{Password, Source, secret};
use http::Request;
use http::header::{ACCEPT, CONTENT_TYPE};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Map, Value, json};
use shard_ownership::hash::{Bucket, ShardId};
use shard_ownership::token::FencingToken;
use sharded_controller::object::ObjectKey;
use testbed::statistics::Sorted;
use testbed::{ControlPlane, Fleet, FleetOptions, load};

use super::fence::tables;
use super::start_control_plane;

const NAMESPACE: &str = "measured";
const OWNER: &str = "owner";
const REPLICA: &str = "measured";
const SHARDS: u16 = 32;
const MANAGER: &str = "databasecluster-operator";
const ROUNDS: usize = 5;
/// As the operator asks for answers whose content it does not need.
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// How a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Server-side apply.
    Apply,
    /// The same, and the API server is asked not to look for unknown fields.
    ApplyUnchecked,
    Post,
    PostUnchecked,
    DryRun,
    Merge,
    MergeUnchecked,
    List,
    ListFromCache,
}

impl Way {
    const fn label(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::ApplyUnchecked => "apply, fieldValidation=Ignore",
            Self::Post => "POST",
            Self::PostUnchecked => "POST, fieldValidation=Ignore",
            Self::DryRun => "POST, dry run",
            Self::Merge => "merge patch",
            Self::MergeUnchecked => "merge patch, fieldValidation=Ignore",
            Self::List => "list by label",
            Self::ListFromCache => "list by label, resourceVersion=0",
        }
    }
}

/// One row of the table: a kind of request.
struct Row {
    what: &'static str,
    way: Way,
    /// Of the API server for each request, one value for each round.
    cpu_millis: Vec<f64>,
}

struct Subject {
    cluster: ClusterRecord,
    token: FencingToken,
}

/// Sends `requests` of each kind in each round, and prints the API server's CPU for one.
pub(crate) async fn writes(requests: usize) -> Result<()> {
    if requests == 0 {
        bail!("--requests 0: there is nothing to measure");
    }
    // No controller of StatefulSets: its writes would be counted.
    let control_plane = start_control_plane(testbed::ControlPlaneOptions {
        statefulset_stage: true,
        lift_client_limits: true,
        ..testbed::ControlPlaneOptions::default()
    })
    .await?;
    let fleet = Fleet::install(&control_plane, FleetOptions::default()).await?;
    let client = fleet.client_of_pod(REPLICA).await?;
    let subject = subject(&control_plane, &client).await?;
    let mut rows = rows(&subject);
    for round in 0..ROUNDS {
        for (index, row) in rows.iter_mut().enumerate() {
            eprintln!(
                "round {} of {ROUNDS}: {}, {}",
                round + 1,
                row.what,
                row.way.label()
            );
            let number = round * 100 + index;
            let cpu = measure(&control_plane, &client, &subject, row, number, requests).await?;
            eprintln!("  {cpu:.2} ms");
            row.cpu_millis.push(cpu);
        }
    }
    print!("{}", table(&rows, requests));
    Ok(())
}

fn rows(subject: &Subject) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |what, ways: &[Way]| {
        rows.extend(ways.iter().map(|way| Row {
            what,
            way: *way,
            cpu_millis: Vec::new(),
        }));
    };
    let creations = [
        Way::Apply,
        Way::ApplyUnchecked,
        Way::Post,
        Way::PostUnchecked,
    ];
    for name in CHILDREN.iter().take(children(subject, false).len()) {
        add(name, &creations);
    }
    add(
        "ConfigMap with data",
        &[Way::ApplyUnchecked, Way::MergeUnchecked],
    );
    add("Secret", &[Way::Post, Way::PostUnchecked, Way::DryRun]);
    add("finalizer", &[Way::Merge, Way::MergeUnchecked]);
    add("status", &[Way::Merge, Way::MergeUnchecked]);
    add("Event", &[Way::Post, Way::PostUnchecked]);
    add("claims", &[Way::List, Way::ListFromCache]);
    rows
}

/// What a ConfigMap lacks until there is data.
const WITH_DATA: &str = "ConfigMap with data";
/// The children as the operator renders them, in its order.
const CHILDREN: [&str; 6] = [
    "ConfigMap",
    "Service, headless",
    "Service, primary",
    "Service, all",
    "PodDisruptionBudget",
    "StatefulSet",
];

fn children(subject: &Subject, initialized: bool) -> Vec<Value> {
    let source = Source {
        cluster: &subject.cluster,
        claim: None,
        initialized,
    };
    let children = source.children();
    let manifests = children.iter();
    manifests
        .filter_map(|child| source.manifest(child, &subject.token))
        .collect()
}

async fn subject(control_plane: &ControlPlane, client: &Client) -> Result<Subject> {
    let owner = load::NewCluster {
        namespace: NAMESPACE.to_owned(),
        name: OWNER.to_owned(),
        spec: load::spec(3),
    };
    let spec: DatabaseClusterSpec = serde_json::from_value(owner.spec.clone())?;
    load::create(control_plane, vec![owner]).await?;
    let clusters = load::clusters_in(control_plane.client(), NAMESPACE);
    let object = clusters.get(OWNER).await?;
    let uid = object.uid().unwrap_or_default();
    let entries: Map<String, Value> = (0..SHARDS)
        .map(|shard| {
            let entry = json!({"epoch": 0, "holder": "", "incarnation": ""});
            (format!("{shard:03}"), entry)
        })
        .collect();
    let table = serde_json::from_value(json!({
        "apiVersion": "database.io/v1", "kind": "ShardTable",
        "metadata": {"name": "databasecluster-shards"},
        "spec": {"shards": SHARDS, "entries": entries},
    }))?;
    let made = tables(client)
        .create(&PostParams::default(), &table)
        .await?;
    let bucket = Bucket::of(&uid);
    let shard = u16::from(bucket.0) * SHARDS / 256;
    let entry = json!({"epoch": 1, "holder": REPLICA, "incarnation": REPLICA});
    let change = json!({"spec": {"entries": {format!("{shard:03}"): entry}}});
    tables(client)
        .patch(
            "databasecluster-shards",
            &PatchParams::default(),
            &Patch::Merge(change),
        )
        .await?;
    // The fence's own view of it may lag behind.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    Ok(Subject {
        token: FencingToken {
            table: made.uid().unwrap_or_default().into(),
            shard: ShardId(shard),
            epoch: 1,
            holder: REPLICA.into(),
        },
        cluster: ClusterRecord {
            key: ObjectKey::new(NAMESPACE, OWNER),
            bucket,
            uid: Arc::from(uid),
            generation: 1,
            resource_version: String::new(),
            deleting: false,
            finalizers: Vec::new(),
            allows_empty_primary: false,
            has_excess_finalizers: false,
            spec,
            status: DatabaseClusterStatus::default(),
        },
    })
}

async fn measure(
    control_plane: &ControlPlane,
    client: &Client,
    subject: &Subject,
    row: &Row,
    number: usize,
    count: usize,
) -> Result<f64> {
    let requests = (0..count).map(|index| request(subject, row, &format!("m{number}-{index}")));
    let requests = requests.collect::<Result<Vec<_>>>()?;
    let server = control_plane.component("kube-apiserver")?.process;
    let before = server.usage()?.cpu_seconds;
    for request in requests {
        let what = || format!("{}, {}", row.what, row.way.label());
        client.request::<Value>(request).await.with_context(what)?;
    }
    let used = server.usage()?.cpu_seconds - before;
    #[allow(clippy::cast_precision_loss)]
    let cpu_millis = 1e3 * used / count as f64;
    Ok(cpu_millis)
}

/// A request of this row about an object of this name.
fn request(subject: &Subject, row: &Row, name: &str) -> Result<Request<Vec<u8>>> {
    let (path, mut body) = object(subject, row, name)?;
    let name = body["metadata"]["name"].as_str().unwrap_or_default();
    let name = name.to_owned();
    let mut query = format!("fieldManager={MANAGER}");
    let unchecked = [Way::ApplyUnchecked, Way::PostUnchecked, Way::MergeUnchecked];
    if unchecked.contains(&row.way) {
        query.push_str("&fieldValidation=Ignore");
    }
    let selector = "labelSelector=database.io%2Fcluster%3Downer";
    let (method, path, content) = match row.way {
        Way::Apply | Way::ApplyUnchecked => {
            query.push_str("&force=true");
            if row.what != WITH_DATA {
                body["metadata"]["resourceVersion"] = json!("1");
            }
            (
                "PATCH",
                format!("{path}/{name}"),
                "application/apply-patch+yaml",
            )
        }
        Way::Post | Way::PostUnchecked => ("POST", path, "application/json"),
        Way::DryRun => {
            query.push_str("&dryRun=All");
            ("POST", path, "application/json")
        }
        Way::Merge | Way::MergeUnchecked => {
            let path = match row.what {
                "status" => format!("{path}/status"),
                "finalizer" => path,
                _ => format!("{path}/{name}"),
            };
            ("PATCH", path, "application/merge-patch+json")
        }
        Way::List => {
            query = format!("{selector}&limit=500");
            ("GET", path, "application/json")
        }
        Way::ListFromCache => {
            query = format!("{selector}&resourceVersion=0");
            ("GET", path, "application/json")
        }
    };
    let builder = Request::builder()
        .method(method)
        .uri(format!("/{path}?{query}"))
        .header(CONTENT_TYPE, content);
    let whole = ["Event", "claims"].contains(&row.what);
    let builder = match whole {
        true => builder,
        false => builder.header(ACCEPT, METADATA_ONLY),
    };
    let body = match body {
        Value::Null => Vec::new(),
        body => serde_json::to_vec(&body)?,
    };
    Ok(builder.body(body)?)
}

/// The path of the request, apart from the name, and its body, apart from what its way adds.
fn object(subject: &Subject, row: &Row, name: &str) -> Result<(String, Value)> {
    let in_namespace = |group: &str, plural| format!("{group}/namespaces/{NAMESPACE}/{plural}");
    Ok(match row.what {
        "finalizer" | "status" => {
            let path = in_namespace("apis/database.io/v1", "databaseclusters");
            (format!("{path}/{OWNER}"), of_cluster(subject, row, name))
        }
        "claims" => (
            in_namespace("api/v1", "persistentvolumeclaims"),
            Value::Null,
        ),
        "Event" => (
            in_namespace("apis/events.k8s.io/v1", "events"),
            event(subject, name),
        ),
        "Secret" => {
            let password = || Password::from_random(&[7; _]).context("it is random enough");
            let secret = secret(&subject.cluster, &password()?, &password()?, &subject.token);
            let mut secret = secret;
            secret["metadata"]["name"] = json!(format!("{name}-app"));
            (in_namespace("api/v1", "secrets"), secret)
        }
        WITH_DATA => {
            let child = children(subject, true).into_iter().next();
            let mut child = child.context("the operator renders it")?;
            // Those that the first row of the round created.
            let (number, index) = name.split_once('-').context("it has a number")?;
            let round = number.trim_start_matches('m').parse::<usize>()? / 100 * 100;
            child["metadata"]["name"] = json!(format!("m{round}-{index}-db"));
            if row.way == Way::MergeUnchecked {
                child["data"] = json!({"initialized": name});
                let metadata = child["metadata"].as_object_mut();
                metadata
                    .context("it has metadata")?
                    .remove("ownerReferences");
            }
            (in_namespace("api/v1", "configmaps"), child)
        }
        child => {
            let index = CHILDREN.iter().position(|known| *known == child);
            let children = children(subject, false).into_iter();
            let child = children.into_iter().nth(index.context("a child")?);
            let child = child.context("the operator renders it")?;
            // The names of objects that refer to each other follow, the ownerReference stays.
            let child = child.to_string().replace("owner-", &format!("{name}-"));
            let child: Value = serde_json::from_str(&child)?;
            let path = match child["kind"].as_str().unwrap_or_default() {
                "ConfigMap" => in_namespace("api/v1", "configmaps"),
                "Service" => in_namespace("api/v1", "services"),
                "StatefulSet" => in_namespace("apis/apps/v1", "statefulsets"),
                _ => in_namespace("apis/policy/v1", "poddisruptionbudgets"),
            };
            (path, child)
        }
    })
}

/// A write of the DatabaseCluster itself; `name` makes each different.
fn of_cluster(subject: &Subject, row: &Row, name: &str) -> Value {
    let uid = &subject.cluster.uid;
    if row.what == "finalizer" {
        // Set and removed in turns: the fence lets the operator change no other one.
        let is_set = name.ends_with(['0', '2', '4', '6', '8']);
        let finalizers = if is_set {
            vec!["database.io/operator"]
        } else {
            Vec::new()
        };
        return json!({"metadata": {
            "finalizers": finalizers,
            "annotations": {"database.io/fencing-token": subject.token.for_cluster(uid)},
        }});
    }
    let condition = |kind: &str| {
        json!({
            "type": kind, "status": "True", "reason": "Measured", "message": name, "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let kinds = [
        "Ready",
        "Progressing",
        "Degraded",
        "Available",
        "Initialized",
    ];
    json!({"status": {
        "replicas": 3, "readyReplicas": 3, "observedGeneration": 1, "phase": "Ready",
        "selector": "app.kubernetes.io/instance=owner",
        "conditions": kinds.map(condition),
        "shard": {
            "table": *subject.token.table, "lease": format!("databasecluster-shard-{:03}", subject.token.shard.0),
            "holder": REPLICA, "epoch": 1, "bucket": subject.cluster.bucket.0, "uid": **uid,
        },
    }})
}

fn event(subject: &Subject, name: &str) -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "type": "Normal", "reason": "DatabaseReady", "action": "Reconciling", "note": "ready with 3 replicas",
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "database-controller", "reportingInstance": REPLICA,
        "regarding": {
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster", "namespace": NAMESPACE,
            "name": OWNER, "uid": *subject.cluster.uid,
        },
    })
}

fn table(rows: &[Row], requests: usize) -> String {
    let mut text = format!(
        "CPU of the API server for one request of the operator, ms: median (least to most) of {ROUNDS} rounds of \
         {requests}\n"
    );
    for row in rows {
        let sorted = Sorted::new(row.cpu_millis.iter().copied());
        let of = |percent| sorted.percentile(percent).unwrap_or_default();
        let _infallible = writeln!(
            text,
            "{:20} {:36} {:6.2} ({:.2} to {:.2})",
            row.what,
            row.way.label(),
            of(50),
            of(0),
            of(100)
        );
    }
    text
}
