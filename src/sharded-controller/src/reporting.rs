//! What a replica reports: the HTTP server, the health loop, and values for heartbeats and scrapes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::controller::{Parts, Replica};
use crate::fleet::fence::TABLE_CHECK;
use crate::fleet::leases::{HeartbeatReport, UNHEALTHY_MAX};
use crate::fleet::state::Standing;
use crate::health::{Health, KIND_CHECK};
use crate::host::Work;
use crate::liveness::{CHECK_EVERY, Progress, monitor};
use crate::metrics::Metrics;
use crate::names::Names;
use crate::pool::{Pool, Reconcile};
use crate::refused_writes::RefusedWrites;
use crate::server::{ExtraRoutes, Server};
use crate::watch::kinds::ShardCache;

/// Serves HTTP until `stop`, on a thread of its own: requests, however many and however large, compete
/// with each other, and not with heartbeats. Gives the end of it.
pub(crate) fn serve<C: ShardCache, R: Reconcile>(
    replica: &Replica<C, R>,
    listener: std::net::TcpListener,
    routes: ExtraRoutes,
    stop: &CancellationToken,
) -> std::io::Result<oneshot::Receiver<()>> {
    let parts = &replica.parts;
    let (source, pool) = (Arc::clone(parts), Arc::clone(&replica.pool));
    let reconcile = Arc::clone(&replica.work.reconcile);
    let server = Server::new(
        Arc::clone(&parts.metrics),
        Arc::clone(&parts.health),
        Box::new(move || refresh(&source, &pool, &*reconcile)),
        routes,
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = {
        let _registered_there = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let (checks, health) = (Arc::clone(parts), Arc::clone(&parts.health));
    let checks = move || checks.checks.load(Ordering::Relaxed);
    let monitoring = monitor(checks, health, stop.child_token());
    let serving = server.serve(listener, stop.child_token());
    let (ended, has_ended) = oneshot::channel();
    // Not one of the runtime's own blocking threads: the end of the process would wait for those.
    std::thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || {
            runtime.block_on(async { tokio::join!(serving, monitoring) });
            let _no_receiver = ended.send(());
        })?;
    Ok(has_ended)
}

/// Keeps health, and gauges that are slow to compute, up to date.
pub(crate) async fn health_loop<C: ShardCache, R: Reconcile>(
    parts: Arc<Parts<C>>,
    pool: Arc<Pool<Work<C, R>>>,
    work: Work<C, R>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(CHECK_EVERY);
    let mut agent = Progress::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        parts.checks.fetch_add(1, Ordering::Relaxed);
        work.reconcile.maintain().await;
        pool.add_missing(|shard| parts.cache.keys(shard));
        let standing = parts.fleet.standing();
        if agent.has_stopped(standing.steps) {
            let why = "the task that renews our Lease has not run for half a minute";
            parts.health.give_up(why);
        }
        if !pool.is_scheduling() && !stop.is_cancelled() {
            parts
                .health
                .give_up("the task that starts reconciles has ended");
        }
        match &standing.watch_error {
            Some(line) => parts.api_errors.report("leases", line.clone()),
            None if standing.settled => parts.api_errors.clear("leases"),
            None => {}
        }
        let waiting = "our member Lease is not valid: the API server does not accept renewals";
        if standing.settled {
            parts.health.ok("leases");
        } else {
            parts.health.set("leases", Err(waiting));
        }
        match table_problem(&parts.names, &standing) {
            None => parts.health.ok(TABLE_CHECK),
            Some(problem) => parts.health.set(TABLE_CHECK, Err(problem)),
        }
        report_refused_writes(
            parts.client.refused(),
            &parts.metrics,
            &parts.health,
            parts.clock.now_ms(),
        );
        let missing = standing.table_kind_missing.as_deref();
        match missing.or_else(|| parts.api_errors.missing_kind()) {
            None => parts.health.ok(KIND_CHECK),
            Some(problem) => parts.health.set(KIND_CHECK, Err(problem)),
        }
        match parts.api_errors.summary() {
            Some(line) => parts.health.set("api-server", Err(line)),
            None => parts.health.ok("api-server"),
        }
        let role = if standing.standby {
            Err(standby(&parts, &standing))
        } else {
            Ok(())
        };
        parts.health.inform("shards", role);
    }
}

/// Why this replica stands by.
fn standby<C>(parts: &Parts<C>, standing: &Standing) -> String {
    match standing.other_namespaces {
        true => format!(
            "standing by: replicas that watch other namespaces than --watch-namespaces {} are at work",
            parts.served
        ),
        false => format!(
            "standing by: another number of shards than --shards {} is at work",
            parts.config.shards.get()
        ),
    }
}

/// Reports the shards in which every write is refused.
fn report_refused_writes(refused: &RefusedWrites, metrics: &Metrics, health: &Health, now_ms: u64) {
    let refused = refused.all_refused(now_ms);
    let gauge = &metrics.fleet.shard_writes_refused;
    gauge.reset();
    for (shard, _) in &refused {
        gauge.with_label_values(&[&shard.0.to_string()]).set(1);
    }
    let Some((shard, message)) = refused.first() else {
        health.ok("writes");
        return;
    };
    let others = match refused.len() - 1 {
        0 => String::new(),
        others => format!(" and {others} more"),
    };
    let problem = format!("the API server refuses all writes in shard {shard}{others}: {message}");
    health.set("writes", Err(problem));
}

/// Why the shard table keeps this replica from working, if it does.
fn table_problem(names: &Names, standing: &Standing) -> Option<String> {
    if standing.table_refused {
        return Some(format!(
            "the API server refuses our writes of the shard table: see the log, and apply \
             {0}/rbac.yaml and {0}/fence.yaml",
            names.manifests
        ));
    }
    let error = standing.table_error.as_ref();
    match (error, standing.has_table || standing.standby) {
        (Some(error), _) => Some(format!("the shard table cannot be watched: {error}")),
        (None, true) => None,
        (None, false) => Some("there is no shard table for our number of shards yet".to_owned()),
    }
}

/// Copies what changes by itself into the metrics; for each scrape.
fn refresh<C: ShardCache, R: Reconcile>(parts: &Parts<C>, pool: &Pool<Work<C, R>>, reconcile: &R) {
    parts.process.refresh();
    pool.refresh_metrics();
    let now_ms = parts.clock.now_ms();
    let renewed_ms = parts.fleet.standing().last_renewal_ms;
    let age_ms = renewed_ms.map_or(0, |at_ms| now_ms.saturating_sub(at_ms));
    let fleet = &parts.metrics.fleet;
    let age = Duration::from_millis(age_ms);
    fleet.heartbeat_age_seconds.set(age.as_secs_f64());
    fleet.set_fleet(parts.fleet.overview(parts.config.shards));
    fleet.set_objects(&parts.cache.counts());
    reconcile.refresh_metrics();
}

/// What a heartbeat carries. Only what the statistics are computed from is read again.
pub(crate) fn heartbeat<C: ShardCache, R: Reconcile>(
    parts: &Parts<C>,
    pool: &Pool<Work<C, R>>,
    reconcile: &R,
) -> HeartbeatReport {
    parts.process.refresh_usage();
    pool.refresh_metrics();
    let objects = parts.cache.counts().iter().sum();
    let ready = parts.health.readyz().ok;
    let more = reconcile.stats();
    let stats = crate::stats::stats(
        &parts.metrics,
        &parts.rates,
        ready,
        objects,
        more,
        parts.clock.now_ms(),
    );
    HeartbeatReport {
        stats,
        unhealthy: reconcile.unhealthy(UNHEALTHY_MAX),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prometheus::Registry;
    use shard_ownership::hash::ShardId;

    use super::*;
    use crate::names::testing::NAMES;
    use crate::refusal::{Refusal, Rule};

    #[test]
    fn shard_in_which_all_writes_are_refused_is_reported_until_one_is_accepted() {
        let (refused, health) = (RefusedWrites::default(), Health::new(&[]));
        let metrics = Metrics::register(Registry::new(), NAMES).unwrap();
        let report = |now_ms| {
            report_refused_writes(&refused, &metrics, &health, now_ms);
            (health.readyz(), metrics.render().unwrap())
        };
        let refusal = Refusal::Fenced {
            rule: Rule::Holder,
            message: "not yours".to_owned(),
        };
        let line = "example_shard_writes_refused{shard=\"0\"} 1\n";
        refused.refused(ShardId(0), &refusal, 0);
        assert!(report(0).0.ok, "one refusal says nothing about the others");
        refused.refused(ShardId(0), &refusal, 11_000);
        let (verdict, text) = report(11_000);
        assert!(!verdict.ok);
        assert!(verdict.text.contains("shard 0: not yours"), "{verdict:?}");
        assert!(text.contains(line), "{text}");
        refused.accepted(ShardId(0));
        let (verdict, text) = report(11_001);
        assert!(verdict.ok && !text.contains(line), "{verdict:?}");
    }
}
