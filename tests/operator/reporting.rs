//! What replicas report, on a real control plane: no secret, a takeover as it happens, more log on request.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Secret};
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;
use testbed::fleet::ReplicaOptions;
use testbed::{
    AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, Replica,
    http_get, load, wait_for,
};

use crate::support::*;
use crate::{bad_clients, exported};

/// The log filter that enables everything in the program and its libraries.
const ALL: &str = "trace,kube=trace,kube_client=trace,kube_runtime=trace,kube_client::client=trace,\
                   kube_client::client::tls=trace,kube_client::client::builder=trace,\
                   hyper=trace,hyper_util=trace,h2=trace,tower=trace,rustls=trace";

fn log(replica: &Replica) -> String {
    std::fs::read_to_string(replica.log()).unwrap()
}

/// Secret values: passwords, everything that contains one, tokens; plain and in base64.
async fn secrets(control_plane: &testbed::ControlPlane, fleet: &Fleet<'_>) -> BTreeSet<String> {
    let all: Api<Secret> = Api::all(control_plane.client());
    let listed = all.list(&ListParams::default()).await.unwrap();
    let mut found = BTreeSet::new();
    for secret in listed.items {
        let name = secret.metadata.name.clone().unwrap_or_default();
        if !name.ends_with("-app") {
            continue;
        }
        let encoded = serde_json::to_value(&secret).unwrap()["data"].clone();
        for (key, value) in secret.data.unwrap_or_default() {
            if key.contains("password") || key == "uri" {
                found.insert(String::from_utf8(value.0).unwrap());
                found.insert(encoded[&key].as_str().unwrap().to_owned());
            }
        }
    }
    for replica in fleet.replicas() {
        let kubeconfig = std::fs::read_to_string(replica.kubeconfig()).unwrap();
        let token = kubeconfig.split("token").nth(1).unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let token = token.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let end = token.find(|c: char| !plain(c)).unwrap_or(token.len());
        assert!(end > 100, "no token in {}", replica.kubeconfig().display());
        found.insert(token[..end].to_owned());
    }
    found
}

#[tokio::test]
async fn no_secret_is_logged_at_any_level() {
    let control_plane = control_plane(options()).await;
    let options = FleetOptions {
        extra_env: vec![("RUST_LOG".into(), ALL.into())],
        ..FleetOptions::default()
    };
    let mut fleet = Fleet::start(&control_plane, 1, options).await.unwrap();
    let json = ["--log-format=json".to_owned()];
    fleet.start_replica(&json).await.unwrap();
    fleet.wait_ready(PATIENCE).await.unwrap();
    testbed::shards::wait_balanced(&fleet, PATIENCE)
        .await
        .unwrap();
    let client = control_plane.client();
    load::create(&control_plane, singles("secret", 8))
        .await
        .unwrap();
    load::wait_all_ready(&client, 8, PATIENCE).await.unwrap();

    let secrets = secrets(&control_plane, &fleet).await;
    assert!(
        secrets.len() >= 8 * 4,
        "only {} secrets to search for",
        secrets.len()
    );
    let mut revealed = Vec::new();
    for replica in fleet.replicas() {
        let text = log(replica);
        assert!(
            text.contains("secret/db-00"),
            "the log contains no reconcile"
        );
        assert!(
            text.contains("TRACE"),
            "the log does not contain trace lines"
        );
        revealed.push((format!("the log of {}", replica.name()), text));
        for path in ["/metrics", "/fleet", "/readyz"] {
            let answer = replica.get(path).await.unwrap();
            revealed.push((path.to_owned(), answer.body));
        }
    }
    let events: Api<Event> = Api::all(client.clone());
    let events = events.list(&ListParams::default()).await.unwrap();
    revealed.push(("Events".to_owned(), serde_json::to_string(&events).unwrap()));
    let clusters = load::all_clusters(client);
    let clusters = clusters.list(&ListParams::default()).await.unwrap();
    revealed.push((
        "objects".to_owned(),
        serde_json::to_string(&clusters).unwrap(),
    ));
    for (what, text) in &revealed {
        let found = secrets
            .iter()
            .filter(|secret| text.contains(*secret))
            .count();
        assert_eq!(
            found,
            0,
            "{what} reveals {found} of {} secrets",
            secrets.len()
        );
    }

    let in_reconcile = log(&fleet.replicas()[1])
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|event| event["span"]["name"] == "reconcile" || event["span"]["object"].is_string());
    let span = in_reconcile.expect("a line of a reconcile")["span"].clone();
    for field in ["object", "shard", "epoch", "attempt"] {
        assert!(!span[field].is_null(), "{field} is missing in {span}");
    }
}

async fn fleet_json(replica: &Replica) -> testbed::Result<Value> {
    let answer = replica.get("/fleet").await?;
    Ok(serde_json::from_str(&answer.body).unwrap_or(Value::Null))
}

/// One fleet for all: starting one takes longer than the checks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleet_page_reports_every_fault() {
    let control_plane = control_plane(ControlPlaneOptions {
        audit: AuditLevel::Metadata,
        ..options()
    })
    .await;
    let mut fleet = fleet_of_three(&control_plane).await;
    // Its liveness fails after half a minute: it is checked at the end.
    let mut broken = broken_fleet(&control_plane).await;
    start_without(&mut broken, "agent").await;
    load::create(&control_plane, singles("reported", 12))
        .await
        .unwrap();
    load::wait_all_ready(&control_plane.client(), 12, PATIENCE)
        .await
        .unwrap();
    healthy_fleet_is_reported_healthy(&fleet).await;
    exported::is_what_is_documented(&fleet).await;
    debug_can_be_asked_for(fleet.replica(0).unwrap()).await;
    bad_clients::disturb_nothing(&control_plane, fleet.replica(0).unwrap()).await;
    takeover_is_reported_as_it_happens(&mut fleet).await;
    start_without(&mut broken, "scheduler").await;
    start_without(&mut broken, "election").await;
    let reasons = [
        "the task that renews our Lease has not run",
        "the task that starts reconciles has ended",
        "the leader's part ended",
    ];
    for (replica, why) in broken.replicas().iter().zip(reasons) {
        gives_up(replica, why).await;
    }
}

async fn healthy_fleet_is_reported_healthy(fleet: &Fleet<'_>) {
    wait_for("the fleet to be reported as healthy", PATIENCE, || async {
        let view = fleet_json(fleet.replica(0)?).await?;
        let calm = view["problems"]
            .as_array()
            .is_some_and(|all| all.iter().all(|problem| problem["severity"] == "note"));
        let met = calm && view["clusters"]["Ready"] == 12;
        Ok(Progress::when(met, (), || {
            format!("{} {}", view["problems"], view["clusters"])
        }))
    })
    .await
    .unwrap();
}

async fn debug_can_be_asked_for(replica: &Replica) {
    let level = async |request| {
        let path = ("PUT", "/log-level");
        let timeout = Duration::from_secs(5);
        let answer = http_get::send(replica.url(), path, "", request, timeout).await;
        answer.unwrap().status
    };
    assert!(!log(replica).contains("DEBUG"), "debug without being asked");
    assert_eq!(level("debug 1m").await, 200);
    assert_eq!(level("h2=trace").await, 400);
    wait_for("a line at debug", PATIENCE, || async {
        let debug = log(replica).contains("DEBUG");
        Ok(Progress::when(debug, (), || "none yet".to_owned()))
    })
    .await
    .unwrap();
    assert_eq!(level("default").await, 200);
}

async fn takeover_is_reported_as_it_happens(fleet: &mut Fleet<'_>) {
    let victim = fleet.replica(1).unwrap().name().to_owned();
    fleet.replica_mut(1).unwrap().kill().await.unwrap();
    let late = AtomicBool::new(false);
    let replica = fleet.replica(0).unwrap();
    wait_for(
        "the death and the takeover to be reported",
        PATIENCE,
        || async {
            let view = fleet_json(replica).await?;
            let problems = view["problems"].to_string();
            if problems.contains(&format!("{victim} is late")) {
                late.store(true, Ordering::Relaxed);
            }
            let taken = view["moves"].as_array().map_or(0, |moves| {
                let by = |m: &&Value| m["from"] == victim.as_str() && m["why"] == "takeover";
                moves.iter().filter(by).count()
            });
            Ok(Progress::when(taken >= 10, (), || {
                format!("{taken} taken over; {problems}")
            }))
        },
    )
    .await
    .unwrap();
    let late = late.load(Ordering::Relaxed);
    assert!(late, "the late heartbeat was not reported");
}

/// Replicas in which parts end at once, or never run; none yet.
async fn broken_fleet(control_plane: &ControlPlane) -> Fleet<'_> {
    let options = FleetOptions {
        binary: Some(testbed::fleet::failpoints_binary().unwrap()),
        name_prefix: Some("broken".to_owned()),
        ..FleetOptions::default()
    };
    Fleet::install(control_plane, options).await.unwrap()
}

async fn start_without(fleet: &mut Fleet<'_>, part: &str) {
    let options = ReplicaOptions {
        env: vec![("DBC_FAILPOINTS".to_owned(), part.to_owned())],
        ..ReplicaOptions::default()
    };
    fleet.start_replica_with(options).await.unwrap();
}

/// Waits until /livez fails for this reason, so that the kubelet restarts it.
async fn gives_up(replica: &Replica, why: &str) {
    let what = format!("/livez of {} to fail", replica.name());
    let reason = wait_for(what, PATIENCE, || async {
        let answer = replica.get("/livez").await?;
        let met = answer.status == 503;
        Ok(Progress::when(met, answer.body.clone(), || answer.body))
    })
    .await
    .unwrap();
    assert!(reason.contains(why), "{reason}");
    let ready = replica.get("/readyz").await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains(why), "{}", ready.body);
}
