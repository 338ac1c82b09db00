//! What a replica reports about itself: the HTTP server's sources, health, and statistics for
//! heartbeats.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::fleet::fence::TABLE_CHECK;
use crate::fleet::state::Standing;
use crate::fleet::tenure::boottime_ms;
use crate::telemetry::figures;
use crate::telemetry::fleet_trouble::KIND_CHECK;
use crate::telemetry::fleet_view::{FleetView, ObserverView};
use crate::telemetry::liveness::{CHECK_EVERY, Progress, essential, monitor};
use crate::telemetry::server::Server;

/// Serves HTTP until `stop`, on a thread of its own: requests compete with each other, and not with
/// heartbeats. Returns when the server ends.
pub(super) fn serve(
    shared: &Arc<Shared>,
    listener: std::net::TcpListener,
    stop: &CancellationToken,
) -> std::io::Result<oneshot::Receiver<()>> {
    let (figures, fleet) = (Arc::clone(shared), Arc::clone(shared));
    let server = Server::new(Arc::clone(&shared.metrics), Arc::clone(&shared.health))
        .with_refresh(Box::new(move || figures.refresh()))
        .with_fleet(Box::new(move || fleet.fleet_view()))
        .with_log_level(Arc::clone(&shared.log_level));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = {
        let _registered_there = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let (checks, health) = (Arc::clone(shared), Arc::clone(&shared.health));
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

/// Updates health and the metrics of slow changes periodically.
pub(super) async fn health_loop(shared: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(CHECK_EVERY);
    let mut agent = Progress::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        shared.checks.fetch_add(1, Ordering::Relaxed);
        shared.reconciler.refresh_metrics().await;
        shared.pool.add_missing(|shard| shared.store.keys(shard));
        let standing = shared.fleet.standing();
        if agent.has_stopped(standing.steps) {
            let why = "the task that renews our Lease has not run for half a minute";
            shared.health.give_up(why);
        }
        if !shared.pool.is_scheduling() && !stop.is_cancelled() {
            shared
                .health
                .give_up("the task that starts reconciles has ended");
        }
        match &standing.watch_error {
            Some(line) => shared.api_errors.report("leases", line.clone()),
            None if standing.settled => shared.api_errors.clear("leases"),
            None => {}
        }
        let waiting = "our member Lease is not valid: the API server does not accept renewals";
        if standing.settled {
            shared.health.ok("leases");
        } else {
            shared.health.set("leases", Err(waiting));
        }
        match table_problem(&standing) {
            None => shared.health.ok(TABLE_CHECK),
            Some(problem) => shared.health.set(TABLE_CHECK, Err(problem)),
        }
        match shared.reconciler.refused_shards() {
            None => shared.health.ok("writes"),
            Some(problem) => shared.health.set("writes", Err(problem)),
        }
        let missing = standing.table_kind_missing;
        match missing.or_else(|| shared.api_errors.missing_kind()) {
            None => shared.health.ok(KIND_CHECK),
            Some(problem) => shared.health.set(KIND_CHECK, Err(problem)),
        }
        match shared.api_errors.summary() {
            Some(line) => shared.health.set("api-server", Err(line)),
            None => shared.health.ok("api-server"),
        }
        let standby = match standing.other_namespaces {
            true => format!(
                "standing by: replicas that watch other namespaces than --watch-namespaces {} are at work",
                shared.namespaces
            ),
            false => format!(
                "standing by: another number of shards than --shards {} is at work",
                shared.shards.get()
            ),
        };
        let role = if standing.standby {
            Err(standby)
        } else {
            Ok(())
        };
        shared.health.inform("shards", role);
    }
}

/// Why the shard table keeps this replica from working, if it does.
fn table_problem(standing: &Standing) -> Option<String> {
    if standing.table_refused {
        let problem = "the API server refuses our writes of the shard table: see the log, and apply \
                       deploy/base/rbac.yaml and deploy/base/fence.yaml";
        return Some(problem.to_owned());
    }
    let error = standing.table_error.as_ref();
    match (error, standing.has_table || standing.standby) {
        (Some(error), _) => Some(format!("the shard table cannot be watched: {error}")),
        (None, true) => None,
        (None, false) => Some("there is no shard table for our number of shards yet".to_owned()),
    }
}

impl Shared {
    /// Runs a part without which the process cannot work.
    pub(super) fn part(
        &self,
        name: &'static str,
        part: impl Future<Output = ()> + Send + 'static,
        stop: &CancellationToken,
    ) -> tokio::task::JoinHandle<()> {
        let health = Arc::clone(&self.health);
        tokio::spawn(essential(name, part, health, stop.clone()))
    }

    /// Updates the metrics that change with time; for each scrape and heartbeat.
    fn refresh(&self) {
        self.process.refresh();
        self.pool.refresh_metrics();
        let now_ms = boottime_ms();
        let renewed_ms = self.fleet.standing().last_renewal_ms;
        let age_ms = renewed_ms.map_or(0, |at_ms| now_ms.saturating_sub(at_ms));
        let age = Duration::from_millis(age_ms);
        self.metrics.heartbeat_age_seconds.set(age.as_secs_f64());
        self.metrics
            .set_fleet(self.fleet.overview((self.shards, &self.namespaces), now_ms));
        for (phase, number) in self.store.phases() {
            let gauge = self.metrics.clusters.with_label_values(&[phase.label()]);
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
        self.metrics.set_objects(&self.store.counts());
    }

    /// The statistics that a heartbeat carries.
    pub(super) fn stats(&self) -> String {
        self.refresh();
        let ready = self.health.readyz().ok;
        figures::stats(&self.metrics, &self.rates, ready, boottime_ms())
    }

    /// The fleet as this replica observes it; `None` while it has not observed the Leases.
    fn fleet_view(&self) -> Option<FleetView> {
        let leases = self.fleet.leases();
        if leases.is_empty() {
            return None;
        }
        let (now, now_ms) = (jiff::Timestamp::now(), boottime_ms());
        let table = self.fleet.table();
        let view = FleetView::from_leases(leases.iter().map(AsRef::as_ref), Some(now))
            .with_table(table.as_deref());
        let (view, since_ms) = self
            .fleet
            .recall(|history| (view.with_history(history, now_ms), history.since_ms()));
        let watching_ms = since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
        let observer = ObserverView {
            identity: self.identity.clone(),
            version: env!("CARGO_PKG_VERSION"),
            ready: self.health.readyz().ok,
            checks: self.health.checks(),
            watching_seconds: watching_ms as f64 / 1000.0,
            at: now.to_string(),
        };
        Some(view.with_observer(observer).with_problems())
    }
}
