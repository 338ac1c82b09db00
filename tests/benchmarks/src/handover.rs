//! Rolling restarts of all replicas under load: how long each shard has no work, and which reconciles are cancelled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DynamicObject, ListParams};
use serde_json::{Value, json};
use testbed::audit::{AuditEvent, Reader};
use testbed::statistics::Sorted;
use testbed::{AuditLevel, ControlPlaneOptions, Fleet, FleetOptions, load, shards};

use super::start_control_plane;
use crate::goal::{profile, verdict};
use crate::{BALANCE_TIMEOUT, READY_TIMEOUT, REPLICAS, own};

const NAMESPACE: &str = "handover";
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const BETWEEN_CHANGES: Duration = Duration::from_millis(25);
const GOAL_MILLIS: f64 = 100.0;
const HANDOVERS_MIN: usize = 200;
/// A change is near a handover of its shard when it arrived at most this long before or after.
const NEAR_MICROS: i64 = 250_000;

/// One move of a shard, as the audit log has it.
struct Handover {
    lease: String,
    epoch: i64,
    /// When the former holder's write arrived: it works no longer.
    given_micros: i64,
    /// When the API server had answered it.
    answered_micros: i64,
    /// Whether the former holder wrote it.
    planned: bool,
    /// For how long the Lease named no holder, before.
    vacant_micros: i64,
    /// When the write of the shard table's entry arrived, and when the API server had answered it.
    entry_micros: Option<(i64, i64)>,
}

/// A line of a replica's log.
#[derive(Default)]
struct Logged {
    /// Lease's number and epoch: when work began.
    working: BTreeMap<(u16, i64), i64>,
    /// When a shard was to be given up, in order.
    draining: BTreeMap<u16, Vec<i64>>,
    cut_short: u64,
    ended: usize,
}

pub(crate) async fn handover(rounds: usize, clusters: usize) -> Result<()> {
    let options = ControlPlaneOptions {
        audit: AuditLevel::RequestResponse,
        statefulset_stage: true,
        lift_client_limits: true,
        ..ControlPlaneOptions::default()
    };
    let control_plane = start_control_plane(options).await?;
    let client = control_plane.client();
    let options = FleetOptions {
        extra_args: vec!["--log-format=json".to_owned()],
        ..FleetOptions::default()
    };
    let mut fleet = Fleet::install(&control_plane, options).await?;
    for _ in 0..REPLICAS {
        start(&mut fleet, 0).await?;
    }
    shards::wait_balanced(&fleet, BALANCE_TIMEOUT).await?;
    load::create(&control_plane, load::samples(clusters, &[NAMESPACE])).await?;
    load::wait_all_ready(&client, clusters, READY_TIMEOUT).await?;
    let all = load::clusters_in(client.clone(), NAMESPACE)
        .list(&ListParams::default())
        .await?;
    let bucket = |object: &DynamicObject| shards::bucket(&object.uid().unwrap_or_default());
    let buckets: BTreeMap<String, u8> = all.iter().map(|o| (o.name_any(), bucket(o))).collect();
    let mut reader = Reader::from_end(control_plane.audit_log()?)?;
    let before = shards::list(&client).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let users = tokio::spawn(change(
        client.clone(),
        buckets.keys().cloned().collect(),
        Arc::clone(&stop),
    ));
    restart_all(&mut fleet, rounds).await?;
    stop.store(true, Ordering::Relaxed);
    let changes = users.await??;
    load::wait_all_ready(&client, clusters, READY_TIMEOUT).await?;
    let events = reader.next_events()?;
    // The last replicas log cancelled reconciles when they end, like the others.
    for index in rounds * REPLICAS..(rounds + 1) * REPLICAS {
        fleet.replica_mut(index)?.term(STOP_TIMEOUT).await?;
    }
    let logged = logged(&fleet)?;
    let reactions = reactions(&events, &buckets);
    let own = own(events);
    let entries = entries(&own);
    let handovers = handovers(own, &before, &entries);
    let measured = Measured {
        handovers,
        logged,
        reactions,
        shards: before.len(),
        replicas: fleet.replicas().len(),
    };
    println!(
        "\n{rounds} rolling restarts of {REPLICAS} replicas, one more and one less at a time; {clusters} \
         DatabaseClusters, {changes} changes of them meanwhile ({})",
        profile()?
    );
    print(measured, rounds)
}

/// What a run showed.
struct Measured {
    handovers: Vec<Handover>,
    logged: Logged,
    reactions: Vec<(u8, i64, i64)>,
    shards: usize,
    replicas: usize,
}

fn print(measured: Measured, rounds: usize) -> Result<()> {
    let logged = &measured.logged;
    print_moves(&measured.handovers, logged, measured.shards, rounds);
    print_reactions(measured.reactions, &measured.handovers);
    if logged.ended != measured.replicas {
        bail!(
            "{} replicas ran, {} logged their cancelled reconciles",
            measured.replicas,
            logged.ended
        );
    }
    println!(
        "reconciles cut short{:>50}   goal 0: {}",
        logged.cut_short,
        verdict(logged.cut_short == 0)
    );
    Ok(())
}

/// As a Deployment does it: one more of the next revision, then one less.
async fn restart_all(fleet: &mut Fleet<'_>, rounds: usize) -> Result<()> {
    for round in 1..=rounds {
        for old in 0..REPLICAS {
            start(fleet, round).await?;
            let index = (round - 1) * REPLICAS + old;
            let status = fleet.replica_mut(index)?.term(STOP_TIMEOUT).await?;
            if !status.success() {
                bail!("a replica ended with {status}");
            }
        }
        shards::wait_balanced(fleet, BALANCE_TIMEOUT).await?;
    }
    Ok(())
}

async fn start(fleet: &mut Fleet<'_>, revision: usize) -> Result<()> {
    let index = fleet
        .start_replica(&[format!("--revision={}", revision + 1)])
        .await?;
    fleet.replica(index)?.wait_ready(READY_TIMEOUT).await?;
    Ok(())
}

/// Changes one cluster after the other until `stop`.
async fn change(client: kube::Client, names: Vec<String>, stop: Arc<AtomicBool>) -> Result<usize> {
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        for name in &names {
            let cpu = format!("{}m", 100 + changes / names.len() % 400);
            let spec = json!({"spec": {"resources": {"cpu": cpu}}});
            load::patch(&client, vec![(NAMESPACE.to_owned(), name.clone())], spec).await?;
            changes += 1;
            tokio::time::sleep(BETWEEN_CHANGES).await;
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    Ok(changes)
}

/// The moves of shards, from the Leases as the API server answered that they are.
fn handovers(
    mut events: Vec<AuditEvent>,
    before: &[shards::Shard],
    entries: &BTreeMap<(u16, i64), (i64, i64)>,
) -> Vec<Handover> {
    events.sort_by_key(|event| event.completed_micros);
    let mut known: BTreeMap<String, (String, i64, i64)> = before
        .iter()
        .map(|shard| {
            (
                shard.lease.clone(),
                (shard.holder.clone(), i64::from(shard.epoch), 0),
            )
        })
        .collect();
    let mut found = Vec::new();
    for event in &events {
        let Some(lease) = event
            .response
            .as_ref()
            .filter(|_| event.is_accepted_write())
        else {
            continue;
        };
        let Some(name) = lease["metadata"]["name"].as_str() else {
            continue;
        };
        let Some((holder, epoch, since)) = known.get_mut(name) else {
            continue;
        };
        let now = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let risen = lease["spec"]["leaseTransitions"]
            .as_i64()
            .unwrap_or_default();
        if risen <= *epoch {
            continue;
        }
        if now != holder && !now.is_empty() {
            found.push(Handover {
                lease: name.to_owned(),
                epoch: risen,
                given_micros: event.received_micros,
                answered_micros: event.completed_micros,
                planned: event.pod_name.as_deref() == Some(holder.as_str()),
                vacant_micros: if holder.is_empty() {
                    event.completed_micros - *since
                } else {
                    0
                },
                entry_micros: number(name).and_then(|shard| entries.get(&(shard, risen)).copied()),
            });
        }
        (*holder, *epoch, *since) = (now.to_owned(), risen, event.completed_micros);
    }
    found
}

/// The first accepted write of each shard's entry under each epoch: when it arrived and was answered.
fn entries(events: &[AuditEvent]) -> BTreeMap<(u16, i64), (i64, i64)> {
    let mut found = BTreeMap::new();
    let patches = events
        .iter()
        .filter(|event| event.resource == "shardtables" && event.is_accepted_write());
    for event in patches {
        let sent = event.request.as_ref();
        let Some(sent) = sent.and_then(|body| body["spec"]["entries"].as_object()) else {
            continue;
        };
        for (shard, entry) in sent {
            if let (Ok(shard), Some(epoch)) = (shard.parse(), entry["epoch"].as_i64()) {
                let times = (event.received_micros, event.completed_micros);
                found.entry((shard, epoch)).or_insert(times);
            }
        }
    }
    found
}

/// The number of a shard, from its Lease's name.
fn number(lease: &str) -> Option<u16> {
    lease.rsplit('-').next()?.parse().ok()
}

fn logged(fleet: &Fleet<'_>) -> Result<Logged> {
    let mut logged = Logged::default();
    for replica in fleet.replicas() {
        let log = std::fs::read_to_string(replica.log()).context("read a replica's log")?;
        for line in log.lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let fields = if line["fields"].is_object() {
                &line["fields"]
            } else {
                &line
            };
            let message = fields["message"].as_str().unwrap_or_default();
            if message == "stopped" {
                logged.ended += 1;
                logged.cut_short += fields["reconciles_cut_short"].as_u64().unwrap_or_default();
            }
            let at: Option<Timestamp> = line["timestamp"]
                .as_str()
                .and_then(|text| text.parse().ok());
            let shard = fields["shard"]
                .as_str()
                .and_then(|text| text.parse::<u16>().ok());
            let (Some(at), Some(shard)) = (at, shard) else {
                continue;
            };
            if message == "working on the shard" {
                let epoch = fields["epoch"].as_i64().unwrap_or_default();
                logged.working.insert((shard, epoch), at.as_microsecond());
            } else if message.starts_with("handing the shard over") {
                logged
                    .draining
                    .entry(shard)
                    .or_default()
                    .push(at.as_microsecond());
            }
        }
    }
    Ok(logged)
}

fn print_moves(handovers: &[Handover], logged: &Logged, shards: usize, rounds: usize) {
    let millis = |micros: i64| micros as f64 / 1e3;
    let began = |h: &Handover| logged.working.get(&(number(&h.lease)?, h.epoch)).copied();
    let still = handovers
        .iter()
        .filter_map(|h| Some(millis(began(h)? - h.given_micros)));
    let closed = handovers.iter().filter_map(|h| {
        let drains = logged.draining.get(&number(&h.lease)?)?;
        let last = drains.iter().filter(|at| **at <= h.given_micros).max()?;
        Some(millis(began(h)? - last))
    });
    let written = handovers
        .iter()
        .map(|h| millis(h.answered_micros - h.given_micros));
    let observed = handovers
        .iter()
        .filter_map(|h| Some(millis(h.entry_micros?.0 - h.answered_micros)));
    let granted = handovers.iter().filter_map(|h| {
        let (received, answered) = h.entry_micros?;
        Some(millis(answered - received))
    });
    let noticed = handovers
        .iter()
        .filter_map(|h| Some(millis(began(h)? - h.entry_micros?.1)));
    let vacant = handovers.iter().map(|h| millis(h.vacant_micros));
    let planned = handovers.iter().filter(|h| h.planned).count();
    println!(
        "handovers {}, of which planned {planned}; each of {shards} shards has to move {rounds} times: \
         least possible {}",
        handovers.len(),
        shards * rounds
    );
    println!(
        "{:44} {:>6} {:>8} {:>8} {:>8}",
        "milliseconds", "n", "p50", "p99", "max"
    );
    let unowned = Sorted::new(still);
    row("unowned: handed over until worked on", &unowned);
    row("  the API server writes the Lease", &Sorted::new(written));
    row(
        "  from its answer until the entry is sent",
        &Sorted::new(observed),
    );
    row("  the API server writes the entry", &Sorted::new(granted));
    row("  from its answer until worked on", &Sorted::new(noticed));
    row("  of that, the Lease names no holder", &Sorted::new(vacant));
    row(
        "no new work: draining until worked on",
        &Sorted::new(closed),
    );
    let enough = handovers.len() >= HANDOVERS_MIN && unowned.count() == handovers.len();
    let p99 = unowned.percentile(99).unwrap_or(f64::MAX);
    println!(
        "unowned, p99{p99:>58.1}   goal {GOAL_MILLIS} ms over {HANDOVERS_MIN} handovers: {}",
        verdict(enough && p99 <= GOAL_MILLIS)
    );
}

fn row(what: &str, sorted: &Sorted) {
    let of = |value: Option<f64>| value.unwrap_or_default();
    println!(
        "{what:44} {:>6} {:>8.1} {:>8.1} {:>8.1}",
        sorted.count(),
        of(sorted.percentile(50)),
        of(sorted.percentile(99)),
        of(sorted.max())
    );
}

/// From a change of a cluster to the operator's first write for it: bucket, when, and how long.
fn reactions(events: &[AuditEvent], buckets: &BTreeMap<String, u8>) -> Vec<(u8, i64, i64)> {
    let mut writes: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    let is_ours = |event: &&AuditEvent| event.user == testbed::fleet::OPERATOR_USER;
    for event in events
        .iter()
        .filter(is_ours)
        .filter(|event| event.resource == "statefulsets")
    {
        if let Some(name) = event
            .name
            .strip_suffix("-db")
            .filter(|_| event.is_accepted_write())
        {
            writes.entry(name).or_default().push(event.received_micros);
        }
    }
    writes.values_mut().for_each(|times| times.sort_unstable());
    let changes = events.iter().filter(|event| {
        !is_ours(event) && event.resource == "databaseclusters" && event.verb == "patch"
    });
    changes
        .filter_map(|event| {
            let bucket = *buckets.get(&event.name)?;
            let times = writes.get(event.name.as_str())?;
            let first = times.iter().find(|at| **at >= event.received_micros)?;
            Some((bucket, event.received_micros, first - event.received_micros))
        })
        .collect()
}

fn print_reactions(reactions: Vec<(u8, i64, i64)>, handovers: &[Handover]) {
    let moved = |bucket: u8, at: i64| {
        handovers.iter().any(|h| {
            // 32 shards of 8 buckets.
            number(&h.lease) == Some(u16::from(bucket) / 8)
                && (at - h.given_micros).abs() <= NEAR_MICROS
        })
    };
    let (near, far): (Vec<_>, Vec<_>) =
        reactions.into_iter().partition(|(b, at, _)| moved(*b, *at));
    let millis = |all: Vec<(u8, i64, i64)>| {
        Sorted::new(all.into_iter().map(|(_, _, took)| took as f64 / 1e3))
    };
    row("change to first write, near a handover", &millis(near));
    row("change to first write, at other times", &millis(far));
}

/// Shards moved when replicas join one after the other, against the least possible.
pub(crate) async fn join(most: usize) -> Result<()> {
    let options = ControlPlaneOptions::default();
    let control_plane = start_control_plane(options).await?;
    let client = control_plane.client();
    let mut fleet = Fleet::start(&control_plane, 1, FleetOptions::default()).await?;
    shards::wait_balanced(&fleet, BALANCE_TIMEOUT).await?;
    println!("\nShards moved when a replica joins ({})", profile()?);
    println!(
        "{:>10} {:>8} {:>16} {:>10}",
        "replicas", "moved", "least possible", "goal"
    );
    for size in 2..=most {
        let before = shards::list(&client).await?;
        fleet.start_replica(&[]).await?;
        shards::wait_balanced(&fleet, BALANCE_TIMEOUT).await?;
        let after = shards::list(&client).await?;
        let rise =
            |shards: &[shards::Shard]| shards.iter().map(|s| i64::from(s.epoch)).sum::<i64>();
        let moved = usize::try_from(rise(&after) - rise(&before))?;
        let share = before.len().div_ceil(size);
        let over: usize = shards::by_holder(&before)
            .values()
            .map(|held| held.saturating_sub(share))
            .sum();
        let least = over.max(before.len() / size);
        let replicas = format!("{} to {size}", size - 1);
        println!(
            "{replicas:>10} {moved:>8} {least:>16} {:>10}",
            verdict(moved == least)
        );
    }
    Ok(())
}
