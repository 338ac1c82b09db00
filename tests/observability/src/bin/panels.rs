//! Draws docs/pictures/panels-*.svg: a real Prometheus's data of a fleet under load, a crash and a new replica.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use observability::drawing::{Event, Line, Panel, draw};
use observability::linter::{list, text};
use observability::prometheus::Prometheus;
use serde_json::Value;
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, load, shards};

const CLUSTERS: usize = 60;
const PATIENCE: Duration = Duration::from_secs(180);
/// What is seen before the first event, and between two.
const CALM: Duration = Duration::from_secs(15);
const RATE_INTERVAL: &str = "10s";
const PICTURES: [(&str, [&str; 4]); 3] = [
    (
        "fleet",
        [
            "Shards by replica",
            "Imbalance and shards without a holder",
            "Shard moves",
            "Heartbeat age",
        ],
    ),
    (
        "replica",
        [
            "CPU",
            "Memory",
            "Queue wait, p99",
            "Requests to the API server",
        ],
    ),
    (
        "databases",
        [
            "DatabaseClusters by phase",
            "Time from a change to Ready",
            "Reconciles",
            "Seen of the API server",
        ],
    ),
];
/// Of these, only the first query: the replicas share a cgroup here, with everything else that runs.
const FIRST_ONLY: [(&str, &str); 1] = [("Memory", "Memory (resident)")];

#[tokio::main]
async fn main() -> Result<()> {
    tokio::select! {
        result = work() => result,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

async fn work() -> Result<()> {
    let control_plane = ControlPlane::start(ControlPlaneOptions::default()).await?;
    let prometheus = Prometheus::start(control_plane.guardian()).await?;
    let mut fleet = Fleet::start(&control_plane, 3, FleetOptions::default()).await?;
    scrape(&prometheus, &fleet)?;
    shards::wait_balanced(&fleet, PATIENCE).await?;
    let start = now()?;
    let events = events(&control_plane, &mut fleet, &prometheus, start).await?;
    for (name, titles) in PICTURES {
        let panels = panels(&prometheus, &fleet, name, &titles, start).await?;
        let file = format!("docs/pictures/panels-{name}.svg");
        let heading = format!(
            "Panels of the dashboard \"{name}\", drawn by make pictures from Prometheus's data; no screenshots of Grafana"
        );
        draw(&observability::file(&file), &heading, &panels, &events)?;
        println!("{file}: {} panels", panels.len());
    }
    Ok(())
}

/// What happens to the fleet.
async fn events(
    control_plane: &ControlPlane,
    fleet: &mut Fleet<'_>,
    prometheus: &Prometheus,
    start: f64,
) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    let mut mark = |what: String| -> Result<()> {
        let second = now()? - start;
        events.push(Event { second, what });
        Ok(())
    };
    let client = control_plane.client();
    tokio::time::sleep(CALM).await;
    mark(format!("{CLUSTERS} DatabaseClusters are created"))?;
    load::create(control_plane, load::samples(CLUSTERS, &["shop", "billing"])).await?;
    load::wait_all_ready(&client, CLUSTERS, PATIENCE).await?;
    mark("all are Ready".to_owned())?;
    tokio::time::sleep(CALM).await;
    mark("replica 0 is killed".to_owned())?;
    fleet.replica_mut(0)?.kill().await?;
    tokio::time::sleep(2 * CALM).await;
    mark("replica 3 starts".to_owned())?;
    fleet.start_replica(&[]).await?;
    scrape(prometheus, fleet)?;
    shards::wait_balanced(fleet, PATIENCE).await?;
    mark("the fleet is balanced".to_owned())?;
    tokio::time::sleep(CALM).await;
    Ok(events)
}

fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

fn scrape(prometheus: &Prometheus, fleet: &Fleet<'_>) -> Result<()> {
    let urls: Vec<&str> = fleet.replicas().iter().map(testbed::Replica::url).collect();
    Ok(prometheus.scrape(&urls)?)
}

/// Panels of a dashboard, with the data of their own queries.
async fn panels(
    prometheus: &Prometheus,
    fleet: &Fleet<'_>,
    dashboard: &str,
    titles: &[&str],
    start: f64,
) -> Result<Vec<Panel>> {
    let path = observability::file(&format!("dashboards/{dashboard}.json"));
    let dashboard: Value = serde_json::from_str(&read(&path)?)?;
    let mut found = Vec::new();
    for title in titles {
        let mut all = list(&dashboard, "/panels").iter();
        let panel = all.find(|panel| panel["title"] == *title);
        let panel = panel.with_context(|| format!("no panel {title:?}"))?;
        let mut lines = Vec::new();
        let first_only = FIRST_ONLY.iter().find(|(name, _)| name == title);
        let queries = if first_only.is_some() { 1 } else { usize::MAX };
        for target in list(panel, "/targets").iter().take(queries) {
            let query = text(target, "/expr").replace("$__rate_interval", RATE_INTERVAL);
            let query = query.replace("$job", ".+").replace("$instance", ".+");
            let series = prometheus.ask_over_time(&query, start, now()?).await?;
            let legend = text(target, "/legendFormat");
            lines.extend(series.iter().map(|one| line(one, legend, fleet, start)));
        }
        lines.retain(|line| !line.points.is_empty());
        found.push(Panel {
            title: first_only.map_or(*title, |(_, own)| own).to_owned(),
            unit: text(panel, "/fieldConfig/defaults/unit").to_owned(),
            lines,
        });
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Its name contains the replica's number instead of an address.
fn line(series: &Value, legend: &str, fleet: &Fleet<'_>, start: f64) -> Line {
    let mut name = legend.to_owned();
    for (label, value) in series["metric"].as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        name = name.replace(&format!("{{{{{label}}}}}"), value);
    }
    for (i, replica) in fleet.replicas().iter().enumerate() {
        let address = replica.url().trim_start_matches("http://");
        name = name.replace(address, &format!("replica {i}"));
    }
    let point = |pair: &Value| {
        let value: f64 = pair[1].as_str()?.parse().ok()?;
        let second = pair[0].as_f64()? - start;
        value.is_finite().then_some((second, value))
    };
    let points = list(series, "/values").iter().filter_map(point).collect();
    Line { name, points }
}
