//! One replica: clients, watches, pool, ownership, HTTP; and the handling of a shard in this
//! process.

mod telling;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use kube::{Api, Client, Config};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{RunArgs, ShardedWatch};
use crate::core::hash::{ShardCount, ShardId};
use crate::core::lease::served_text;
use crate::core::object::ObjectKey;
use crate::core::outcome::{Failure, Outcome};
use crate::core::ownership::{Event, Settings};
use crate::core::watch_mode::WatchMode;
use crate::credentials::is_bound_to_pod;
use crate::fleet::agent::{self, AgentHandle, AgentParts, ExitReason, ShardHost};
use crate::fleet::fence::{FenceMonitor, FenceProbe, LeaseRefresher, TABLE_CHECK};
use crate::fleet::leader::{Leader, LeaderParts};
use crate::fleet::leases::{LeaseStore, SelfDescription};
use crate::fleet::state::FleetState;
use crate::fleet::table::TableStore;
use crate::fleet::tenure::{Tenure, Validity};
use crate::planted::{self, Failpoint, is_active};
use crate::pool::{Backlog, Pool, PoolConfig, Reconcile};
use crate::reconcile::{Reconciler, ReconcilerConfig};
use crate::shutdown::{self, Signals};
use crate::telemetry::client::{ClientKind, build_client};
use crate::telemetry::figures::Rates;
use crate::telemetry::health::Health;
use crate::telemetry::log_level::LogLevel;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::process::ProcessCollector;
use crate::watch::feed::{ReflectorParts, ShardReflector};
use crate::watch::firsts::FirstReconcileTimer;
use crate::watch::lists::Lists;
use crate::watch::mode::{FilterDoubts, detect_mode};
use crate::watch::store::Store;
use crate::watch::trouble::ApiErrors;

/// How often everything is applied once more, for drift that no watch reported.
const SWEEP: Duration = Duration::from_secs(3600);

/// The work of the pool: reconciles; a refusal by the fence triggers a fresh read of ownership.
struct Work {
    reconciler: Arc<Reconciler>,
    first_reconciles: Arc<FirstReconcileTimer>,
    metrics: Arc<Metrics>,
    refresher: Arc<OnceLock<LeaseRefresher>>,
}

impl Reconcile for Work {
    async fn reconcile(
        &self,
        key: &ObjectKey,
        tenure: &Tenure,
        backlog: &dyn Backlog,
    ) -> Result<Outcome, Failure> {
        if let Some(took) = self.first_reconciles.run(tenure.shard()) {
            let histogram = &self.metrics.shard_first_reconcile_seconds;
            histogram.observe(took.as_secs_f64());
        }
        let ended = self.reconciler.reconcile(key, tenure, backlog).await;
        if matches!(&ended, Err(failure) if failure.is_by_fence())
            && let Some(refresher) = self.refresher.get()
        {
            refresher.refresh(tenure.shard()).await;
        }
        ended
    }
}

/// State that is shared by the parts of a replica.
struct Shared {
    identity: String,
    shards: ShardCount,
    /// The watched namespaces, as text.
    namespaces: String,
    rates: Rates,
    log_level: Arc<LogLevel>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// Number of iterations of the health loop.
    checks: AtomicU64,
    api_errors: Arc<ApiErrors>,
    process: Arc<ProcessCollector>,
    fleet: Arc<FleetState>,
    store: Arc<Store>,
    pool: Arc<Pool<Work>>,
    reconciler: Arc<Reconciler>,
    refresher: Arc<OnceLock<LeaseRefresher>>,
    first_reconciles: Arc<FirstReconcileTimer>,
}

/// Runs a replica until it is asked to stop and has handed over all shards.
///
/// # Errors
/// When it cannot start (no configuration, address in use), or another replica uses its identity.
pub async fn run(args: RunArgs, log_level: Arc<LogLevel>) -> anyhow::Result<()> {
    planted::check().map_err(anyhow::Error::msg)?;
    let identity = args.given_identity().unwrap_or_else(generated_identity);
    let settings = args.settings(identity.clone())?;
    let metrics = Arc::new(Metrics::new().context("two metrics share a name")?);
    metrics.set_limits(&args);
    let clients = clients(&args, &identity, &metrics).await?;
    let health = Arc::new(Health::new(&["api-server", "leases", TABLE_CHECK]));
    let listener = TcpListener::bind(args.listen)
        .await
        .and_then(TcpListener::into_std)
        .with_context(|| format!("--listen {}: the address cannot be used", args.listen))?;
    let url = format!("http://{}", listener.local_addr()?);
    tracing::info!(identity, url, shards = args.shards.get(), "listening");
    let reporting = (&metrics, &health, log_level);
    let shared = share(&args, &identity, reporting, clients.write.clone());

    let stop = CancellationToken::new();
    let serving = telling::serve(&shared, listener, &stop).context("start the HTTP server")?;
    let signals = shutdown::signals(&args)?;
    let (namespaces, may_shard) = (args.namespaces(), may_shard(&args));
    let mode = detect_mode(
        &clients.watch,
        &namespaces,
        may_shard,
        &shared.api_errors,
        &shared.health,
    );
    let mode = tokio::select! {
        mode = mode => Some(mode),
        () = signals.asked() => None,
    };
    let ended = match mode {
        Some(mode) => work(&args, settings, &clients, &shared, mode, &signals, &stop).await,
        None => Some(ExitReason::HandedBack),
    };
    stop.cancel();
    shared.pool.shutdown().await;
    let _ended = serving.await;
    anyhow::ensure!(
        ended != Some(ExitReason::IdentityTaken),
        "another replica uses the identity {identity}; give each replica its own --identity"
    );
    let cut_short = metrics.reconcile_cancelled_total.get();
    tracing::info!(reconciles_cut_short = cut_short, "stopped");
    Ok(())
}

/// A client for each kind of traffic, so that none can delay another.
struct Clients {
    lease: Client,
    watch: Client,
    write: Client,
}

async fn clients(
    args: &RunArgs,
    identity: &str,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Clients> {
    let config = Config::infer().await.context(
        "no way to the API server: set KUBECONFIG, or run in a Pod with a service account",
    )?;
    anyhow::ensure!(
        args.allow_unfenced || is_bound_to_pod(&config.auth_info),
        "the credentials are not a token that is bound to a Pod, so that the API server's fence does not apply to \
         this replica: run it as a Pod, or pass --allow-unfenced to join the fleet in namespace {} regardless",
        args.own_namespace()
    );
    let client = |kind| build_client(&config, kind, identity, Arc::clone(metrics));
    Ok(Clients {
        lease: client(ClientKind::Lease)?,
        watch: client(ClientKind::Watch)?,
        write: client(ClientKind::Write)?,
    })
}

/// Takes part in the fleet until all shards were handed back. `None`: the handover did not complete
/// in time.
async fn work(
    args: &RunArgs,
    settings: Settings,
    clients: &Clients,
    shared: &Arc<Shared>,
    mode: WatchMode,
    signals: &Signals,
    stop: &CancellationToken,
) -> Option<ExitReason> {
    tracing::info!(mode = mode.label(), "watching");
    let namespace = args.own_namespace();
    let probe = FenceProbe::new(clients.write.clone(), &namespace);
    let (to_health, to_metrics) = (Arc::clone(&shared.health), Arc::clone(&shared.metrics));
    let mut fence = FenceMonitor::new(probe, to_health, to_metrics, args.require_fence);
    tokio::select! {
        () = fence.before_start() => {}
        () = signals.asked() => return Some(ExitReason::HandedBack),
    }
    let fencing = shared.part("the fence's monitor", fence.run(stop.child_token()), stop);
    let (handle, events) = agent::channel();
    let health_loop = telling::health_loop(Arc::clone(shared), stop.child_token());
    let health_loop = shared.part("the health keeper", health_loop, stop);
    let me = description(args, shared);
    let store = LeaseStore::new(Api::namespaced(clients.lease.clone(), &namespace), me);
    let leader = Leader::new(LeaderParts {
        client: clients.lease.clone(),
        namespace: namespace.clone(),
        identity: settings.identity.clone(),
        lease: args.lease_duration,
        renew: args.renew_interval,
        shards: args.shards,
        namespaces: shared.namespaces.clone(),
        store: store.clone(),
        state: Arc::clone(&shared.fleet),
        metrics: Arc::clone(&shared.metrics),
    });
    let leading = shared.part("the leader's part", leader.run(stop.child_token()), stop);
    let table = TableStore::new(clients.lease.clone(), &namespace);
    let fleet = Arc::clone(&shared.fleet);
    let refresher = LeaseRefresher::new(store.clone(), table.clone(), handle.clone(), fleet);
    let _set_once = shared.refresher.set(refresher);
    let parts = AgentParts {
        settings,
        store,
        table,
        watch_api: Api::namespaced(clients.watch.clone(), &namespace),
        watch_table: Api::namespaced(clients.watch.clone(), &namespace),
        host: Host {
            reflector: reflector(args, shared, clients.watch.clone(), handle.clone(), mode),
            shared: Arc::clone(shared),
            agent: handle.clone(),
            tasks: TaskTracker::new(),
        },
        validity: Arc::new(Validity::default()),
        state: Arc::clone(&shared.fleet),
        metrics: Arc::clone(&shared.metrics),
        events,
    };
    let ended = shutdown::run_until_handed_back(parts, handle, signals, &shared.health).await;
    stop.cancel();
    for task in [leading, health_loop, fencing] {
        let _ended = task.await;
    }
    ended
}

/// What this replica reports about itself in its Leases.
fn description(args: &RunArgs, shared: &Shared) -> SelfDescription {
    SelfDescription {
        lease_seconds: i32::try_from(args.lease_duration.as_secs()).unwrap_or(i32::MAX),
        pod_uid: args.pod_uid(),
        revision: args.revision(),
        shards: args.shards,
        namespaces: shared.namespaces.clone(),
    }
}

fn share(
    args: &RunArgs,
    identity: &str,
    (metrics, health, log_level): (&Arc<Metrics>, &Arc<Health>, Arc<LogLevel>),
    client: Client,
) -> Arc<Shared> {
    let store = Arc::new(Store::new(args.shards));
    let config = ReconcilerConfig {
        identity: identity.to_owned(),
        cache_entries: args.cache_entries,
        cache_ttl: args.cache_ttl,
        sweep_interval: SWEEP,
    };
    let reconciler = Arc::new(Reconciler::new(
        client,
        Arc::clone(&store),
        Arc::clone(metrics),
        &config,
    ));
    let limits = PoolConfig {
        concurrency: args.concurrency,
        reconcile_timeout: args.reconcile_timeout,
        rate_limit: args.rate_limit,
        rate_limit_scope: args.rate_limit_scope,
        queue_capacity: args.queue_capacity.get(),
    };
    let refresher = Arc::new(OnceLock::new());
    let first_reconciles = Arc::new(FirstReconcileTimer::default());
    let work = Work {
        reconciler: Arc::clone(&reconciler),
        first_reconciles: Arc::clone(&first_reconciles),
        metrics: Arc::clone(metrics),
        refresher: Arc::clone(&refresher),
    };
    let pool = Pool::start(limits, work, Arc::clone(metrics));
    let runtime = tokio::runtime::Handle::current();
    Arc::new(Shared {
        identity: identity.to_owned(),
        shards: args.shards,
        namespaces: served_text(&args.namespaces()),
        rates: Rates::default(),
        log_level,
        metrics: Arc::clone(metrics),
        health: Arc::clone(health),
        checks: AtomicU64::new(0),
        api_errors: Arc::new(ApiErrors::default()),
        process: Arc::new(ProcessCollector::new(Arc::clone(metrics), runtime)),
        fleet: Arc::new(FleetState::default()),
        store,
        pool: Arc::new(pool),
        reconciler,
        refresher,
        first_reconciles,
    })
}

fn reflector(
    args: &RunArgs,
    shared: &Arc<Shared>,
    client: Client,
    agent: AgentHandle,
    mode: WatchMode,
) -> ShardReflector {
    let pool = Arc::clone(&shared.pool);
    let parts = ReflectorParts {
        client,
        namespaces: args.namespaces(),
        count: args.shards,
        store: Arc::clone(&shared.store),
        api_errors: Arc::clone(&shared.api_errors),
        metrics: Arc::clone(&shared.metrics),
        // A shard that is not admitted yet accepts nothing: all its objects are queued when it is.
        // What a full queue refuses is counted there, and offered to it again by the health loop.
        on_change: Box::new(move |shard, key| {
            let _not_now = pool.enqueue(shard, key, Duration::ZERO);
        }),
        agent,
        lists: Lists::default(),
        doubts: FilterDoubts::default(),
        first_reconciles: Arc::clone(&shared.first_reconciles),
    };
    ShardReflector::new(Arc::new(parts), mode, may_shard(args))
}

fn may_shard(args: &RunArgs) -> bool {
    args.sharded_watch == ShardedWatch::Auto
}

/// The handling of a shard in this process: watches, queue, workers.
struct Host {
    reflector: ShardReflector,
    shared: Arc<Shared>,
    agent: AgentHandle,
    tasks: TaskTracker,
}

impl ShardHost for Host {
    fn watch(&mut self, shard: ShardId) {
        self.reflector.watch(shard);
    }

    fn unwatch(&mut self, shard: ShardId) {
        self.shared.pool.stop_shard(shard);
        self.reflector.unwatch(shard);
        let reconciler = Arc::clone(&self.shared.reconciler);
        self.tasks
            .spawn(async move { reconciler.invalidate_shard(shard).await });
    }

    fn admit(&mut self, tenure: Tenure) {
        let shard = tenure.shard();
        self.reflector.admitted(shard);
        self.shared.pool.start_shard(tenure);
        if is_active(Failpoint::Resync) {
            return;
        }
        for key in self.shared.store.keys(shard) {
            let _offered_again_if_full = self.shared.pool.enqueue(shard, &key, Duration::ZERO);
        }
    }

    fn drain(&mut self, shard: ShardId) {
        let (shared, agent) = (Arc::clone(&self.shared), self.agent.clone());
        self.tasks.spawn(async move {
            if is_active(Failpoint::Drain) || shared.pool.drain_shard(shard).await {
                agent.send(Event::Drained(shard)).await;
            }
        });
    }

    fn resume(&mut self, shard: ShardId) {
        self.shared.pool.resume_shard(shard);
    }

    fn halt(&mut self, shard: ShardId) {
        self.shared.pool.stop_shard(shard);
    }

    fn stats(&self) -> String {
        self.shared.stats()
    }
}

/// Host name and a random suffix: outside a cluster nothing else guarantees that a name is unique.
fn generated_identity() -> String {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy().to_lowercase();
    let fits = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-';
    let host: String = host.chars().filter(fits).take(60).collect();
    let host = host.trim_matches('-');
    let suffix: String = std::iter::repeat_with(|| fastrand::alphanumeric().to_ascii_lowercase())
        .take(6)
        .collect();
    format!(
        "{}-{suffix}",
        if host.is_empty() { "replica" } else { host }
    )
}
