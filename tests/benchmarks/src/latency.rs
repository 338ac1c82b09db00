//! What replicas add where the API server is far away: the same changes by one replica and by several, each behind a
//! proxy that delays its requests.
//!
//! A replica's rate counts from its first write to its last, and the rates are added. By the time until all changes are
//! carried out, the replica whose shards happen to have the most clusters would decide.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chaos::proxy::{Proxy, Rules};
use serde_json::json;
use testbed::audit::{AuditEvent, Reader};
use testbed::fleet::{OPERATOR_USER, ReplicaOptions};
use testbed::{Fleet, FleetOptions, load, shards};

use super::goal::{profile, verdict};
use super::{BALANCE_TIMEOUT, NAMESPACES, READY_TIMEOUT, SETTLE, control_plane};

/// The least share of what so many times one replica would do.
const GOAL: f64 = 0.95;
/// From this share of the machine on, its cores are what limits.
const BUSY: f64 = 0.8;

/// One fleet.
struct Row {
    replicas: usize,
    changes_per_second: f64,
    /// Share of the machine's cores that did something.
    busy: f64,
}

pub(crate) async fn latency(
    clusters: usize,
    fleets: &[usize],
    delay: Duration,
    concurrency: usize,
) -> Result<()> {
    if clusters == 0 || fleets.contains(&0) {
        bail!("CLUSTERS={clusters}, FLEETS={fleets:?}: there is nothing to measure");
    }
    println!(
        "{clusters} DatabaseClusters, every spec changed, {} ms added to each request but watches, --concurrency {concurrency} ({})",
        delay.as_millis(),
        profile()?
    );
    println!(
        "{:>8} {:>13} {:>14} {:>16}",
        "replicas", "changes per s", "times one", "all cores busy"
    );
    let mut rows: Vec<Row> = Vec::new();
    for replicas in fleets {
        let row = measure(clusters, *replicas, delay, concurrency).await?;
        let times = rows.iter().find(|row| row.replicas == 1);
        let times = times.map_or_else(
            || "-".to_owned(),
            |one| format!("{:.2}", row.changes_per_second / one.changes_per_second),
        );
        println!(
            "{:>8} {:>13.2} {times:>14} {:>14.0} %",
            row.replicas,
            row.changes_per_second,
            100.0 * row.busy
        );
        rows.push(row);
    }
    goal(&rows);
    Ok(())
}

fn goal(rows: &[Row]) {
    let (Some(one), Some(most)) = (
        rows.iter().find(|row| row.replicas == 1),
        rows.iter().max_by_key(|row| row.replicas),
    ) else {
        return;
    };
    let Ok(replicas) = u32::try_from(most.replicas) else {
        return;
    };
    let share = most.changes_per_second / (one.changes_per_second * f64::from(replicas));
    println!(
        "{replicas} replicas reach {:.0} % of {replicas} times one   goal {:.0} %: {}",
        100.0 * share,
        100.0 * GOAL,
        verdict(share >= GOAL)
    );
    if most.busy >= BUSY {
        println!(
            "  with as many, this machine is what limits, and not the delay: a longer one (DELAY_MS) shows more"
        );
    }
}

async fn measure(
    clusters: usize,
    replicas: usize,
    delay: Duration,
    concurrency: usize,
) -> Result<Row> {
    let control_plane = control_plane().await?;
    let options = FleetOptions {
        extra_args: vec!["--concurrency".to_owned(), concurrency.to_string()],
        ..FleetOptions::default()
    };
    let mut fleet = Fleet::install(&control_plane, options).await?;
    let mut proxies = Vec::new();
    for _ in 0..replicas {
        let proxy = Proxy::start(&control_plane).await?;
        let options = ReplicaOptions {
            endpoint: Some((proxy.url(), proxy.authority())),
            ..ReplicaOptions::default()
        };
        fleet.start_replica_with(options).await?;
        proxies.push(proxy);
    }
    fleet.wait_ready(BALANCE_TIMEOUT).await?;
    shards::wait_balanced(&fleet, BALANCE_TIMEOUT).await?;
    let client = control_plane.client();
    let samples = load::samples(clusters, &NAMESPACES);
    let keys = samples
        .iter()
        .map(|sample| (sample.namespace.clone(), sample.name.clone()))
        .collect();
    load::create(&control_plane, samples).await?;
    load::wait_all_ready(&client, clusters, READY_TIMEOUT).await?;
    tokio::time::sleep(SETTLE).await;
    for proxy in &proxies {
        proxy.set(Rules {
            late: delay,
            ..Rules::default()
        });
    }
    let mut reader = Reader::from_end(control_plane.audit_log()?)?;
    let before = machine_ticks()?;
    load::patch(
        &client,
        keys,
        json!({"spec": {"resources": {"cpu": "300m"}}}),
    )
    .await?;
    load::wait_all_ready(&client, clusters, READY_TIMEOUT).await?;
    let after = machine_ticks()?;
    let busy = (after.0 - before.0) / (after.1 - before.1).max(1.0);
    let events = reader.next_events()?;
    Ok(Row {
        replicas,
        changes_per_second: rates(&events).into_values().sum(),
        busy,
    })
}

/// What a replica wrote.
struct Work<'a> {
    /// Those whose status it wrote.
    clusters: BTreeSet<(&'a str, &'a str)>,
    from_micros: i64,
    until_micros: i64,
}

/// For each replica, the clusters whose status it wrote per second, from its first write to its last.
fn rates(events: &[AuditEvent]) -> BTreeMap<&str, f64> {
    let mut replicas: BTreeMap<&str, Work<'_>> = BTreeMap::new();
    for event in events {
        let Some(pod) = event.pod_name.as_deref() else {
            continue;
        };
        let is_own = event.user == OPERATOR_USER && event.resource != "leases";
        if !is_own || !event.is_accepted_write() {
            continue;
        }
        let work = replicas.entry(pod).or_insert(Work {
            clusters: BTreeSet::new(),
            from_micros: event.received_micros,
            until_micros: event.completed_micros,
        });
        work.from_micros = event.received_micros.min(work.from_micros);
        work.until_micros = event.completed_micros.max(work.until_micros);
        if event.resource == "databaseclusters" && event.subresource == "status" {
            work.clusters.insert((&event.namespace, &event.name));
        }
    }
    let rate = |(pod, work): (_, Work<'_>)| {
        let micros = work.until_micros - work.from_micros;
        let micros = u32::try_from(micros).unwrap_or(u32::MAX).max(1);
        let count = u32::try_from(work.clusters.len()).unwrap_or(u32::MAX);
        (pod, f64::from(count) * 1e6 / f64::from(micros))
    };
    replicas.into_iter().map(rate).collect()
}

/// Ticks for which all cores together have been busy, and of all their time, since the machine started (proc(5)).
fn machine_ticks() -> Result<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|n| n.parse().ok())
        .collect();
    let [_, _, _, idle, waiting, ..] = ticks.as_slice() else {
        bail!("/proc/stat begins with {line:?}");
    };
    let all: f64 = ticks.iter().sum();
    Ok((all - idle - waiting, all))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_rate_counts_clusters_once_over_the_time_at_work() {
        let event = |pod: &str, name: &str, second: i64| AuditEvent {
            user: OPERATOR_USER.to_owned(),
            pod_name: Some(pod.to_owned()),
            verb: "patch".to_owned(),
            resource: "databaseclusters".to_owned(),
            subresource: "status".to_owned(),
            name: name.to_owned(),
            code: 200,
            received_micros: second * 1_000_000,
            completed_micros: second * 1_000_000,
            ..AuditEvent::default()
        };
        let mut lease = event("a", "lease", 99);
        lease.resource = "leases".to_owned();
        let events = [
            event("a", "x", 10),
            event("a", "x", 11),
            event("a", "y", 12),
            event("b", "z", 10),
            event("b", "v", 14),
            lease,
        ];
        let rates = rates(&events);
        assert_eq!(
            rates.into_iter().collect::<Vec<_>>(),
            [("a", 1.0), ("b", 0.5)]
        );
    }
}
