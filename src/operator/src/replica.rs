//! A replica of this operator: the library's controller with this operator's reconciler and pages.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::Registry;
use sharded_controller::clock::Clock;
use sharded_controller::controller::{Controller, ControllerError};
use sharded_controller::fleet::state::FleetState;
use sharded_controller::health::Health;
use sharded_controller::rate_limit::RateLimit;

use crate::api::names::NAMES;
use crate::config::RunArgs;
use crate::reconcile::{OwnPod, Reconciler, ReconcilerConfig};
use crate::telemetry::database_conditions::DatabaseConditions;
use crate::telemetry::fleet_view::{FleetView, LastCount, ObserverView};
use crate::telemetry::log_level::LogLevel;
use crate::telemetry::metrics::ReconcilerMetrics;
use crate::telemetry::routes::{PATHS, routes};
use crate::watch::store::Store;

/// How often everything is applied once more, for drift that no watch reports.
const SWEEP: Duration = Duration::from_secs(3600);
/// How long a new spec that was applied goes unreported, while there is nothing but its progress to report.
const REPORT_DELAY: Duration = Duration::from_secs(1);
/// How many reports of progress may be written at once; one more is allowed each second.
const REPORTS: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);
const REPORTS_PERIOD_SECONDS: u64 = 10;

/// Runs a replica until it is asked to stop and has handed everything back.
///
/// # Errors
/// When it cannot start (no configuration, address in use), or another replica lives under its
/// identity.
pub async fn run(args: RunArgs, log_level: Arc<LogLevel>) -> Result<(), ControllerError> {
    let config = args.config();
    let registry = Registry::new();
    let store = Arc::new(Store::new(config.shards));
    let controller =
        Controller::new(NAMES, config.clone(), Arc::clone(&store), registry.clone()).await?;
    let metrics = ReconcilerMetrics::register(&registry, &NAMES);
    let metrics = metrics.map_err(ControllerError::Metrics)?;
    metrics
        .cache_capacity
        .set(i64::try_from(args.cache_entries).unwrap_or(i64::MAX));
    if let Some(most) = usize::try_from(args.cluster_metrics)
        .ok()
        .filter(|n| *n > 0)
    {
        let conditions = DatabaseConditions::new(Arc::clone(&store), most)
            .and_then(|conditions| registry.register(Box::new(conditions)));
        conditions.map_err(ControllerError::Metrics)?;
    }
    let limits = ReconcilerConfig {
        identity: config.identity.clone(),
        cache_entries: args.cache_entries,
        cache_ttl: args.cache_ttl,
        sweep_interval: SWEEP,
        report_delay: REPORT_DELAY,
        report_rate: RateLimit::new(REPORTS, REPORTS_PERIOD_SECONDS),
    };
    let clock = controller.clock();
    let mut reconciler = Reconciler::new(
        controller.client(),
        store,
        Arc::new(metrics),
        &limits,
        clock.clone(),
    );
    if !config.pod_uid.is_empty() {
        let pod = OwnPod {
            namespace: config.namespace.clone(),
            name: config.identity.clone(),
            uid: config.pod_uid.clone(),
        };
        reconciler = reconciler.reporting_takeovers(controller.fleet(), pod);
    }
    let observer = Observer {
        last_count: Mutex::default(),
        clock,
        fleet: controller.fleet(),
        health: controller.health(),
        identity: config.identity,
    };
    let routes = routes(Box::new(move || observer.view()), log_level);
    controller.with_routes(routes, &PATHS).run(reconciler).await
}

/// Sees the fleet for the pages.
struct Observer {
    /// Locked to compare one view with those before it.
    last_count: Mutex<Option<LastCount>>,
    clock: Clock,
    fleet: Arc<FleetState>,
    health: Arc<Health>,
    identity: String,
}

impl Observer {
    /// The fleet as this replica sees it; `None` while it has not seen the Leases.
    fn view(&self) -> Option<FleetView> {
        let leases = self.fleet.leases();
        if leases.is_empty() {
            return None;
        }
        let (now, now_ms) = (self.clock.now(), self.clock.now_ms());
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
        let view = view.with_unknown(&mut self.last_count.lock(), now_ms);
        Some(view.with_observer(observer).with_problems())
    }
}
