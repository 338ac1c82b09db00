//! How many requests a DatabaseCluster costs, and that nothing is lost by what is not asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use databasecluster_operator::api::{DatabaseClusterSpec, DatabaseClusterStatus};
use databasecluster_operator::core::observed::ClusterRecord;
use databasecluster_operator::postgres::Source;
use http::Request;
use serde_json::{Value, json};
use shard_ownership::hash::{Bucket, ShardId};
use shard_ownership::token::FencingToken;
use sharded_controller::object::ObjectKey;
use testbed::audit::{AuditEvent, Reader};
use testbed::fleet::OPERATOR_USER;
use testbed::{AuditLevel, ControlPlaneOptions, load};

use crate::support::*;

const CLUSTERS: usize = 40;
/// What follows the last Ready ends within this time.
const TAIL: Duration = Duration::from_secs(5);
/// Ten and three, and some lists of claims. A slow machine writes the status of some clusters once more.
const MOST: [(&str, f64); 2] = [("created", 11.7), ("changed", 3.7)];

/// The operator's requests since then, without Leases and watches.
async fn since(reader: &mut Reader) -> Vec<AuditEvent> {
    tokio::time::sleep(TAIL).await;
    let mut events = reader.next_events().unwrap();
    events.retain(|event| {
        event.user == OPERATOR_USER && event.verb != "watch" && event.resource != "leases"
    });
    events
}

/// Requests for each cluster, by verb and resource.
fn by_kind(events: &[AuditEvent]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for event in events {
        let kind = format!("{} {}", event.verb, event.full_resource());
        *counts.entry(kind).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn creating_and_changing_a_cluster_cost_few_requests() {
    let control_plane = control_plane(ControlPlaneOptions {
        audit: AuditLevel::Metadata,
        statefulset_stage: true,
        ..options()
    })
    .await;
    let _fleet = fleet_of_three(&control_plane).await;
    let client = control_plane.client();
    let mut reader = Reader::from_end(control_plane.audit_log().unwrap()).unwrap();
    load::create(&control_plane, singles("few", CLUSTERS))
        .await
        .unwrap();
    load::wait_all_ready(&client, CLUSTERS, PATIENCE)
        .await
        .unwrap();
    let created = since(&mut reader).await;
    let keys = (0..CLUSTERS).map(|number| ("few".to_owned(), format!("db-{number:03}")));
    let change = json!({"spec": {"resources": {"cpu": "300m"}}});
    load::patch(&client, keys.collect(), change).await.unwrap();
    load::wait_all_ready(&client, CLUSTERS, PATIENCE)
        .await
        .unwrap();
    let changed = since(&mut reader).await;
    for ((what, most), events) in MOST.into_iter().zip([created, changed]) {
        let each = events.len() as f64 / CLUSTERS as f64;
        let kinds = by_kind(&events);
        assert!(
            each <= most,
            "{each} requests for each that was {what}: {kinds:?}"
        );
        // A dry run that finds the Secret conflicts with it, as it should.
        let mut stored = events.iter().filter(|event| !event.uri.contains("dryRun="));
        assert!(stored.all(|event| event.code != 409), "{kinds:?}");
    }
}

#[tokio::test]
async fn no_child_has_a_field_that_the_api_server_does_not_know() {
    let control_plane = control_plane(options()).await;
    let mut spec = load::spec(3);
    let fields = spec.as_object_mut().unwrap();
    fields.extend(crate::fields::pod_fields().as_object().unwrap().clone());
    fields.extend(crate::fields::object_fields().as_object().unwrap().clone());
    for spec in [load::spec(1), spec] {
        for child in children(&spec) {
            let kind = child["kind"].as_str().unwrap().to_owned();
            let (group, plural) = match &*kind {
                "ConfigMap" => ("api/v1", "configmaps"),
                "Service" => ("api/v1", "services"),
                "StatefulSet" => ("apis/apps/v1", "statefulsets"),
                "PodDisruptionBudget" => ("apis/policy/v1", "poddisruptionbudgets"),
                other => panic!("the test knows no {other}"),
            };
            let post = |mut child: Value, unknown: bool| {
                if unknown {
                    child["metadata"]["unknown"] = json!(true);
                }
                let query = "dryRun=All&fieldValidation=Strict";
                let uri = format!("/{group}/namespaces/default/{plural}?{query}");
                let body = serde_json::to_vec(&child).unwrap();
                let request = Request::post(uri).header("Content-Type", "application/json");
                let (client, request) = (control_plane.client(), request.body(body).unwrap());
                async move { client.request::<Value>(request).await }
            };
            let answer = post(child.clone(), true).await.unwrap_err();
            assert!(
                answer.to_string().contains("unknown field"),
                "{kind}: {answer}"
            );
            let answer = post(child, false).await;
            assert!(answer.is_ok(), "{kind}: {answer:?}");
        }
    }
}

/// The children of a cluster with this spec, as the operator renders them.
fn children(spec: &Value) -> Vec<Value> {
    let spec: DatabaseClusterSpec = serde_json::from_value(spec.clone()).unwrap();
    let cluster = ClusterRecord {
        key: ObjectKey::new("default", "db"),
        bucket: Bucket::of("u"),
        uid: "u".into(),
        generation: 1,
        resource_version: "1".into(),
        deleting: false,
        finalizers: Vec::new(),
        allows_empty_primary: false,
        has_excess_finalizers: false,
        spec,
        status: DatabaseClusterStatus::default(),
    };
    let token = FencingToken {
        table: "table".into(),
        shard: ShardId(0),
        epoch: 1,
        holder: "test".into(),
    };
    let source = Source {
        cluster: &cluster,
        claim: None,
        initialized: true,
    };
    let children = source.children();
    let manifests = children.iter().map(|child| source.manifest(child, &token));
    manifests.map(Option::unwrap).collect()
}
