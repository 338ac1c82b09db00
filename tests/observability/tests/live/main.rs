//! A real Prometheus scrapes a fleet of three under load and a crash; every query runs on it and returns data.
#![allow(clippy::unwrap_used, clippy::panic)]

mod runbooks;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use observability::catalogue::Catalogue;
use observability::custom_resource_state::Config;
use observability::linter::{list, text};
use observability::prometheus::{JOB, Prometheus};
use observability::promql::Query;
use observability::{alerts, file, files, stem};
use serde_json::{Value, json};
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, load, wait_for};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Long enough for a busy machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(120);
const CLUSTERS: usize = 30;
/// Covers the whole test, so that a rate sees what happened in it.
const RANGE: &str = "10m";

/// Queries, or parts of them, that may return nothing here, with the reason.
const EMPTY_IN_HEALTH: [(&str, &str); 8] = [
    ("cgroup_memory_limit_bytes", "this machine may set no limit"),
    ("cgroup_cpu_limit_cores", "this machine may set no limit"),
    ("absent(databasecluster_shards)", "there are replicas"),
    (
        "reason=\"PrimaryNotReady\"",
        "every primary that was available is",
    ),
    (
        "max by (cluster, job, shard) (databasecluster_shard_writes_refused)",
        "no shard has all of its writes refused",
    ),
    ("turn=\"again\"", "no watch breaks"),
    ("code=\"429\"", "nothing is throttled"),
    ("code!~\"[123]..\"", "no request need fail"),
];

/// Prefixes of the series that Prometheus itself creates for each target and each alert.
const MADE_BY_PROMETHEUS: [&str; 3] = ["up", "scrape_", "ALERTS"];

struct Bench<'a> {
    fleet: Fleet<'a>,
    prometheus: Prometheus,
}

/// Three replicas that are scraped, with work done, a shard handed over and one taken over.
async fn bench(control_plane: &ControlPlane) -> Bench<'_> {
    let prometheus = Prometheus::start(control_plane.guardian()).await.unwrap();
    prometheus
        .scrape_databases(&serve_databases().await)
        .unwrap();
    let options = FleetOptions {
        extra_args: vec!["--cluster-metrics=100".to_owned()],
        ..FleetOptions::default()
    };
    let fleet = Fleet::start(control_plane, 3, options).await.unwrap();
    let urls: Vec<&str> = fleet.replicas().iter().map(testbed::Replica::url).collect();
    prometheus.scrape(&urls).unwrap();
    let client = control_plane.client();
    testbed::shards::wait_balanced(&fleet, PATIENCE)
        .await
        .unwrap();
    until(&prometheus, "count(up == 1)", |n| n == 3.0).await;
    load::create(control_plane, load::samples(CLUSTERS, &["a", "b"]))
        .await
        .unwrap();
    load::wait_all_ready(&client, CLUSTERS, PATIENCE)
        .await
        .unwrap();
    Bench { fleet, prometheus }
}

/// Serves what postgres_exporter and a kubelet export, with counters that grow. Its address.
async fn serve_databases() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let page = fs::read_to_string(file("tests/observability/exporter.txt")).unwrap();
    tokio::spawn(async move {
        for count in 1.. {
            let (mut client, _) = listener.accept().await.unwrap();
            let _request = client.read(&mut [0; 4096]).await;
            let body = page.replace("COUNT", &(count * 100).to_string());
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _sent = client.write_all(answer.as_bytes()).await;
        }
    });
    format!("http://{address}")
}

/// Waits until the only value of a query is as it should be.
async fn until(prometheus: &Prometheus, query: &str, met: impl Fn(f64) -> bool) {
    wait_for(format!("{query} in Prometheus"), PATIENCE, || async {
        let found = prometheus.ask(query).await?;
        let value = found.first().and_then(number);
        Ok(Progress::when(value.is_some_and(&met), (), || {
            format!("{value:?}")
        }))
    })
    .await
    .unwrap();
}

fn number(series: &Value) -> Option<f64> {
    series["value"][1].as_str()?.parse().ok()
}

/// One query with its location.
struct Asked {
    place: String,
    query: String,
}

fn of_panels() -> Vec<Asked> {
    let mut found = Vec::new();
    for path in files("dashboards", "json").unwrap() {
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for panel in list(&dashboard, "/panels") {
            for target in list(panel, "/targets") {
                let query = text(target, "/expr").replace("$__rate_interval", RANGE);
                let variables = ["$job", "$instance", "$namespace", "$database"];
                found.push(Asked {
                    place: format!("{}: {}", stem(&path), text(panel, "/title")),
                    query: variables
                        .iter()
                        .fold(query, |query, variable| query.replace(variable, ".+")),
                });
            }
        }
    }
    found
}

/// What alerts measure; only the comparison with the limit returns nothing while the fleet is healthy.
fn of_alerts() -> Vec<Asked> {
    let mut found = Vec::new();
    for alert in alerts::all().unwrap() {
        for query in Query::read(&alert.expr).unwrap().measured() {
            let place = alert.alert.clone();
            found.push(Asked { place, query });
        }
    }
    found
}

/// Those that return nothing, or nothing but "not a number", and may not.
async fn without_data(prometheus: &Prometheus, asked: &[Asked]) -> Vec<String> {
    let mut found = Vec::new();
    for Asked { place, query } in asked {
        let series = prometheus.ask(query).await.unwrap();
        let has_data = series.iter().filter_map(number).any(|n| !n.is_nan());
        let excused = EMPTY_IN_HEALTH.iter().any(|(part, _)| query.contains(part));
        if !has_data && !excused {
            found.push(format!("{place}: {query}"));
        }
    }
    found
}

/// Which alerts are met, those that do not fire yet among them or not.
async fn alerts_met(prometheus: &Prometheus, pending: bool) -> BTreeSet<String> {
    let data = prometheus.get("/api/v1/alerts").await.unwrap();
    let alerts = list(&data, "/alerts").iter();
    let counted = alerts.filter(|alert| pending || alert["state"] == "firing");
    let name = |alert: &Value| text(alert, "/labels/alertname").to_owned();
    counted.map(name).collect()
}

#[tokio::test]
async fn every_query_returns_data_and_shows_a_crash() {
    // Requests to a node stay on loopback, and are refused there.
    let nodes_by_address = [
        "kube-apiserver",
        "kubelet-preferred-address-types",
        "InternalIP",
    ];
    let [component, flag, value] = nodes_by_address.map(str::to_owned);
    let options = ControlPlaneOptions {
        lift_client_limits: true,
        extra_args: vec![(component, flag, value)],
        ..ControlPlaneOptions::default()
    };
    let control_plane = ControlPlane::start(options)
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    let Bench {
        mut fleet,
        prometheus,
    } = bench(&control_plane).await;
    a_healthy_fleet_alerts_nobody(&prometheus).await;
    runbooks::commands_work(&control_plane, &fleet.replicas()[0]).await;

    a_crash_is_seen(&mut fleet, &prometheus).await;

    // A planned handover, of one shard at least.
    fleet.start_replica(&[]).await.unwrap();
    let urls: Vec<&str> = fleet.replicas().iter().map(testbed::Replica::url).collect();
    prometheus.scrape(&urls).unwrap();
    testbed::shards::wait_balanced(&fleet, PATIENCE)
        .await
        .unwrap();
    until(
        &prometheus,
        "sum(databasecluster_handover_duration_seconds_count)",
        |n| n > 0.0,
    )
    .await;

    let mut asked = of_panels();
    asked.extend(of_alerts());
    assert!(asked.len() > 90, "only {} queries", asked.len());
    wait_for("data for every query", PATIENCE, || async {
        let without = without_data(&prometheus, &asked).await;
        Ok(Progress::when(without.is_empty(), (), || {
            format!("{without:#?}")
        }))
    })
    .await
    .unwrap();
    for (part, reason) in EMPTY_IN_HEALTH {
        let is_used = asked.iter().any(|asked| asked.query.contains(part));
        assert!(is_used, "{part} ({reason}) is in no query");
    }
    scraped_metrics_are_documented(&prometheus).await;
    kube_state_metrics_would_export_the_same(&control_plane, &prometheus).await;
}

/// The operator's metrics with the names of DatabaseClusters are those that the configuration of kube-state-metrics
/// makes of the same objects.
async fn kube_state_metrics_would_export_the_same(
    control_plane: &ControlPlane,
    prometheus: &Prometheus,
) {
    let config = Config::read().unwrap();
    let name = "databasecluster_database_condition";
    wait_for("both to be the same", PATIENCE, || async {
        let list = ["get", "dbc", "-A", "-o", "json"];
        let objects: Value =
            serde_json::from_str(&control_plane.run_kubectl(&list).await?).unwrap();
        let mut wanted = BTreeSet::new();
        for object in self::list(&objects, "/items") {
            for series in config.metrics(object).unwrap() {
                let exported = ["Available", "Degraded", "Initialized"];
                let is_exported = |kind: &String| exported.contains(&kind.as_str());
                if series.name == name && series.labels.get("type").is_some_and(is_exported) {
                    wanted.insert((json!(series.labels).to_string(), series.value.to_string()));
                }
            }
        }
        let mut found = BTreeSet::new();
        for series in prometheus.ask(name).await? {
            let mut labels = series["metric"].clone();
            let fields = labels.as_object_mut().unwrap();
            fields.retain(|label, _| !["__name__", "instance", "job"].contains(&label.as_str()));
            found.insert((labels.to_string(), text(&series, "/value/1").to_owned()));
        }
        let same = !wanted.is_empty() && found == wanted;
        Ok(Progress::when(same, (), || {
            format!("{found:?}\n{wanted:?}")
        }))
    })
    .await
    .unwrap();
}

/// Both ways, by what Prometheus itself has under the name of the job.
async fn scraped_metrics_are_documented(prometheus: &Prometheus) {
    let (catalogue, databases) = (
        Catalogue::read().unwrap(),
        Catalogue::read_databases().unwrap(),
    );
    let names = prometheus.names(JOB).await.unwrap();
    let own = |name: &&String| {
        !MADE_BY_PROMETHEUS
            .iter()
            .any(|begin| name.starts_with(begin))
    };
    let scraped: BTreeSet<&String> = names.iter().filter(own).collect();
    let unknown: Vec<_> = scraped
        .iter()
        .filter(|name| catalogue.family_of(name).is_none() && databases.family_of(name).is_none())
        .collect();
    assert!(unknown.is_empty(), "exported, not documented: {unknown:?}");
    let missing: Vec<String> = catalogue
        .0
        .iter()
        .filter(|(_, family)| !family.on_occasion)
        .flat_map(|(name, family)| family.series_of(name))
        .filter(|name| !names.contains(name))
        .collect();
    assert!(missing.is_empty(), "documented, not exported: {missing:?}");
}

/// The survivors take over, and the alert about the dead one names it.
async fn a_crash_is_seen(fleet: &mut Fleet<'_>, prometheus: &Prometheus) {
    let gone = fleet.replica_mut(0).unwrap();
    let gone_url = gone.url().trim_start_matches("http://").to_owned();
    gone.kill().await.unwrap();
    until(
        prometheus,
        "sum(databasecluster_takeover_duration_seconds_count)",
        |n| n > 0.0,
    )
    .await;
    until(prometheus, "sum(databasecluster_shard_owned)", |n| {
        n == 32.0
    })
    .await;
    wait_for("the alert about the dead replica", PATIENCE, || async {
        let met = alerts_met(prometheus, true).await;
        let seen = met.contains("DatabaseClusterReplicaDown");
        Ok(Progress::when(seen, (), || format!("{met:?}")))
    })
    .await
    .unwrap();
    let down = prometheus
        .ask("ALERTS{alertname=\"DatabaseClusterReplicaDown\"}")
        .await
        .unwrap();
    assert_eq!(down[0]["metric"]["instance"], json!(gone_url));
}

async fn a_healthy_fleet_alerts_nobody(prometheus: &Prometheus) {
    let rules = prometheus.get("/api/v1/rules").await.unwrap();
    let groups = list(&rules, "/groups").iter();
    let rules: Vec<&Value> = groups.flat_map(|group| list(group, "/rules")).collect();
    assert_eq!(rules.len(), alerts::all().unwrap().len());
    wait_for(
        "all rules to be evaluated, and none to fire",
        PATIENCE,
        || async {
            let rules = prometheus.get("/api/v1/rules").await?;
            let groups = list(&rules, "/groups").iter();
            let ill = groups
                .flat_map(|group| list(group, "/rules"))
                .filter(|r| r["health"] != "ok");
            let ill: Vec<String> = ill.map(ToString::to_string).collect();
            // A burst of work may have met a condition that must last for minutes before it fires.
            let firing = alerts_met(prometheus, false).await;
            let well = ill.is_empty() && firing.is_empty();
            Ok(Progress::when(well, (), || format!("{ill:?} {firing:?}")))
        },
    )
    .await
    .unwrap();
}
