//! A replica of an operator, assembled: clients, watches, pool, ownership, HTTP.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use kube::{Api, Client};
use prometheus::Registry;
use shard_ownership::lease::served_text;
use shard_ownership::ownership::Settings;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::client::{ClientKind, build_client};
use crate::clock::Clock;
use crate::config::{Config, ConfigError};
use crate::credentials::is_bound_to_pod;
use crate::failpoints;
use crate::fleet::agent::{self, AgentHandle, AgentParts, ExitReason};
use crate::fleet::fence::{FenceMonitor, FenceProbe, LeaseRefresher, TABLE_CHECK};
use crate::fleet::leader::{Leader, LeaderParts};
use crate::fleet::leases::{LeaseCodec, LeaseStore, SelfDescription};
use crate::fleet::state::FleetState;
use crate::fleet::table::TableStore;
use crate::health::Health;
use crate::heartbeats::HeartbeatThread;
use crate::host::{Host, Work};
use crate::liveness::essential;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::object::ObjectKey;
use crate::permit::Validity;
use crate::pool::{Pool, Reconcile};
use crate::process::ProcessCollector;
use crate::reporting;
use crate::server::ExtraRoutes;
use crate::shutdown::{self, Signals};
use crate::stats::Rates;
use crate::watch::api_errors::ApiErrors;
use crate::watch::first_reconcile::FirstReconcileTimer;
use crate::watch::kinds::ShardCache;
use crate::watch::lists::Lists;
use crate::watch::mode::{FilterDoubts, detect_mode};
use crate::watch::reflector::{ReflectorParts, ShardReflector};
use crate::watch::watch_mode::WatchMode;
use crate::write::GuardedClient;

/// A replica could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// A value that does not fit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The name of a failpoint is unknown; only in builds with the feature `failpoints`.
    #[error("{0}")]
    Failpoint(String),
    /// Two families share a name.
    #[error("two metrics share a name")]
    Metrics(#[source] prometheus::Error),
    /// Neither a kubeconfig nor a service account.
    #[error("no way to the API server: set KUBECONFIG, or run in a Pod with a service account")]
    NoConfiguration(#[source] kube::config::InferConfigError),
    /// A client could not be built from the configuration.
    #[error("the configuration of the API server's client cannot be used")]
    Client(#[source] kube::Error),
    /// The fence does not hold for these credentials.
    #[error(
        "the credentials are not a token that is bound to a Pod, so that the API server's fence does not apply to \
         this replica: run it as a Pod, or pass --allow-unfenced to join the fleet in namespace {namespace} all the same"
    )]
    Unfenced {
        /// Namespace of the fleet.
        namespace: String,
    },
    /// The address of the HTTP server is taken, or not of this machine.
    #[error("--listen {address}: the address cannot be used")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A thread or a signal handler could not be set up.
    #[error("the process cannot be set up")]
    Process(#[source] std::io::Error),
    /// The thread of the heartbeats panicked, which is a bug; its message is in the log.
    #[error("the part that renews our Lease panicked, which is a bug; restart this process")]
    Panicked,
    /// Two replicas have one identity.
    #[error("another replica uses the identity {identity}; give each replica its own --identity")]
    IdentityTaken {
        /// The identity.
        identity: String,
    },
}

/// A client for each kind of traffic, so that none can delay another.
struct Clients {
    lease: Client,
    /// Watches of Leases and shard table.
    fleet: Client,
    watch: Client,
    write: Client,
}

/// A replica that can reach the API server and has not begun to act.
pub struct Controller<C> {
    settings: Settings,
    clients: Clients,
    heartbeats: HeartbeatThread,
    listener: std::net::TcpListener,
    url: String,
    parts: Arc<Parts<C>>,
    routes: ExtraRoutes,
}

/// What the parts of a replica share.
pub(crate) struct Parts<C> {
    pub(crate) names: Names,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    /// The namespaces that are served, as text.
    pub(crate) served: String,
    pub(crate) rates: Rates,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
    /// How often the health loop has run.
    pub(crate) checks: AtomicU64,
    pub(crate) api_errors: Arc<ApiErrors>,
    pub(crate) process: ProcessCollector,
    pub(crate) fleet: Arc<FleetState>,
    pub(crate) cache: Arc<C>,
    pub(crate) client: GuardedClient,
    pub(crate) refresher: OnceLock<LeaseRefresher>,
    pub(crate) first_reconciles: Arc<FirstReconcileTimer>,
}

impl<C: ShardCache> Controller<C> {
    /// Sets everything up and sends nothing yet. `cache` is empty, for as many shards as `config` has.
    /// The metrics are registered with `registry`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the replica cannot start; see [`ControllerError`].
    pub async fn new(
        names: Names,
        config: Config,
        cache: Arc<C>,
        registry: Registry,
    ) -> Result<Self, ControllerError> {
        failpoints::check().map_err(ControllerError::Failpoint)?;
        let settings = config.settings()?;
        let metrics = Metrics::register(registry, names).map_err(ControllerError::Metrics)?;
        let metrics = Arc::new(metrics);
        set_limits(&metrics, &config);
        let heartbeats = HeartbeatThread::start().map_err(ControllerError::Process)?;
        let clients = clients(&config, &metrics, heartbeats.runtime()).await?;
        let address = config.listen;
        let listener = TcpListener::bind(address)
            .await
            .and_then(TcpListener::into_std)
            .map_err(|source| ControllerError::Listen { address, source })?;
        let bound = listener.local_addr().map_err(ControllerError::Process)?;
        let served = served_text(&config.served);
        let runtime = tokio::runtime::Handle::current();
        let clock = Clock::system();
        let parts = Parts {
            names,
            rates: Rates::default(),
            health: Arc::new(Health::new(&["api-server", "leases", TABLE_CHECK])),
            checks: AtomicU64::new(0),
            api_errors: Arc::new(ApiErrors::new::<C>(&names, clock.clone())),
            process: ProcessCollector::new(Arc::clone(&metrics), runtime),
            fleet: Arc::new(FleetState::new(names, &served, clock.clone())),
            cache,
            client: GuardedClient::new(
                clients.write.clone(),
                names,
                Arc::clone(&metrics),
                clock.clone(),
            ),
            refresher: OnceLock::new(),
            first_reconciles: Arc::default(),
            config,
            clock,
            served,
            metrics,
        };
        Ok(Self {
            settings,
            clients,
            heartbeats,
            listener,
            url: format!("http://{bound}"),
            parts: Arc::new(parts),
            routes: ExtraRoutes::default(),
        })
    }

    /// The API server, for the reconciler.
    #[must_use]
    pub fn client(&self) -> GuardedClient {
        self.parts.client.clone()
    }

    /// The clock of this replica.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.parts.clock.clone()
    }

    /// The checks of this replica.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.parts.health)
    }

    /// What this replica knows of the fleet.
    #[must_use]
    pub fn fleet(&self) -> Arc<FleetState> {
        Arc::clone(&self.parts.fleet)
    }

    /// Adds routes to the HTTP server, which are at these paths.
    #[must_use]
    pub fn with_routes(mut self, routes: Router, paths: &[&'static str]) -> Self {
        self.routes = ExtraRoutes {
            router: routes,
            paths: paths.to_vec(),
        };
        self
    }

    /// Runs until SIGTERM or SIGINT, and hands every shard back.
    ///
    /// # Errors
    /// When the process cannot be set up, or another replica lives under this identity.
    pub async fn run<R: Reconcile>(self, reconcile: R) -> Result<(), ControllerError> {
        let Self {
            settings,
            clients,
            heartbeats,
            listener,
            url,
            parts,
            routes,
        } = self;
        let config = &parts.config;
        let (identity, shards) = (&config.identity, config.shards.get());
        tracing::info!(identity, url, shards, "listening");
        let work = Work::new(reconcile, Arc::clone(&parts));
        let limits = parts.config.pool;
        let pool = Pool::start(limits, work.clone(), Arc::clone(&parts.metrics));
        let replica = Replica {
            clients,
            pool: Arc::new(pool),
            work,
            parts,
        };
        let config = &replica.parts.config;
        let stop = CancellationToken::new();
        let serving = reporting::serve(&replica, listener, routes, &stop)
            .map_err(ControllerError::Process)?;
        let signals = shutdown::signals(config.drain_timeout).map_err(ControllerError::Process)?;
        let ended = replica.live(settings, heartbeats, &signals, &stop).await;
        stop.cancel();
        replica.pool.shutdown().await;
        let _ended = serving.await;
        match ended {
            Some(ExitReason::IdentityTaken) => {
                return Err(ControllerError::IdentityTaken {
                    identity: config.identity.clone(),
                });
            }
            Some(ExitReason::Panicked) => return Err(ControllerError::Panicked),
            Some(ExitReason::HandedBack) | None => {}
        }
        let cut_short = replica.parts.metrics.pool.reconcile_cancelled_total.get();
        tracing::info!(reconciles_cut_short = cut_short, "stopped");
        Ok(())
    }
}

/// A replica at work.
pub(crate) struct Replica<C, R> {
    clients: Clients,
    pub(crate) pool: Arc<Pool<Work<C, R>>>,
    pub(crate) work: Work<C, R>,
    pub(crate) parts: Arc<Parts<C>>,
}

impl<C: ShardCache, R: Reconcile> Replica<C, R> {
    /// Finds out how to watch, and takes part in the fleet until everything was handed back. `None`:
    /// that was not possible in time.
    async fn live(
        &self,
        settings: Settings,
        heartbeats: HeartbeatThread,
        signals: &Signals,
        stop: &CancellationToken,
    ) -> Option<ExitReason> {
        let parts = &self.parts;
        let mode = detect_mode::<C>(
            &self.clients.watch,
            &parts.config.served,
            parts.config.sharded_watch,
            &parts.api_errors,
            &parts.health,
        );
        let mode = tokio::select! {
            mode = mode => mode,
            () = signals.asked() => return Some(ExitReason::HandedBack),
        };
        tracing::info!(mode = mode.label(), "watching");
        let mut fence = self.fence();
        tokio::select! {
            () = fence.before_start() => {}
            () = signals.asked() => return Some(ExitReason::HandedBack),
        }
        let fencing = self.part("the fence's monitor", fence.run(stop.child_token()), stop);
        let reporting = reporting::health_loop(
            Arc::clone(parts),
            Arc::clone(&self.pool),
            self.work.clone(),
            stop.child_token(),
        );
        let reporting = self.part("the health loop", reporting, stop);
        let (handle, events) = agent::channel();
        let agent = self.agent(settings, mode, handle.clone(), events);
        let leading = self.leader(agent.store.clone()).run(stop.child_token());
        let stopped = stop.child_token();
        let health = Arc::clone(&parts.health);
        let leading = essential("the leader's part", leading, health, stop.clone());
        let (ended, has_ended) = oneshot::channel();
        let owning = async move {
            tokio::select! {
                reason = agent::run(agent) => {
                    let _no_receiver = ended.send(reason);
                }
                () = stopped.cancelled() => {}
            }
        };
        let beating = heartbeats.run(async move { tokio::join!(owning, leading) });
        let ended = shutdown::until_handed_back(has_ended, handle, signals, &parts.health).await;
        stop.cancel();
        let _ended = beating.await;
        for task in [reporting, fencing] {
            let _ended = task.await;
        }
        ended
    }

    /// Runs a part without which the process is no use.
    fn part(
        &self,
        name: &'static str,
        part: impl Future<Output = ()> + Send + 'static,
        stop: &CancellationToken,
    ) -> tokio::task::JoinHandle<()> {
        let health = Arc::clone(&self.parts.health);
        tokio::spawn(essential(name, part, health, stop.clone()))
    }

    fn fence(&self) -> FenceMonitor {
        let parts = &self.parts;
        let config = &parts.config;
        let client = self.clients.write.clone();
        let owner = C::owner_type();
        let probe = FenceProbe::new(client, &config.namespace, parts.names, owner);
        let (health, metrics) = (Arc::clone(&parts.health), Arc::clone(&parts.metrics));
        FenceMonitor::new(probe, health, metrics, config.require_fence)
    }

    fn leader(&self, store: LeaseStore) -> Leader {
        let (parts, config) = (&self.parts, &self.parts.config);
        Leader::new(LeaderParts {
            names: parts.names,
            client: self.clients.lease.clone(),
            namespace: config.namespace.clone(),
            identity: config.identity.clone(),
            lease: config.lease_duration,
            renew: config.renew_interval,
            shards: config.shards,
            clock: parts.clock.clone(),
            store,
            state: Arc::clone(&parts.fleet),
            metrics: Arc::clone(&parts.metrics),
        })
    }

    /// The agent's parts; from now on a refused write has ownership read afresh.
    fn agent(
        &self,
        settings: Settings,
        mode: WatchMode,
        handle: AgentHandle,
        events: tokio::sync::mpsc::Receiver<shard_ownership::ownership::Event>,
    ) -> AgentParts<Host<C, R>> {
        let (parts, config) = (&self.parts, &self.parts.config);
        let (names, namespace) = (parts.names, &config.namespace);
        let me = SelfDescription {
            lease_seconds: i32::try_from(config.lease_duration.as_secs()).unwrap_or(i32::MAX),
            pod_uid: config.pod_uid.clone(),
            revision: config.revision.clone(),
            shards: config.shards,
        };
        let stores = |client: &Client| {
            let codec = LeaseCodec::new(names, parts.served.clone());
            let api = Api::namespaced(client.clone(), namespace);
            let store = LeaseStore::new(api, codec, me.clone());
            (store, TableStore::new(client.clone(), namespace, names))
        };
        let (store, table) = stores(&self.clients.lease);
        // Reconciles call it, and their requests are not to be driven by the thread of the heartbeats.
        let (read_store, read_table) = stores(&self.clients.write);
        let fleet = Arc::clone(&parts.fleet);
        let refresher = LeaseRefresher::new(
            names,
            read_store,
            read_table,
            handle.clone(),
            fleet,
            parts.clock.clone(),
        );
        let _set_once = parts.refresher.set(refresher);
        AgentParts {
            names,
            settings,
            store,
            table,
            watch_api: Api::namespaced(self.clients.fleet.clone(), namespace),
            watch_table: Api::namespaced_with(self.clients.fleet.clone(), namespace, &names),
            host: Host::new(
                self.reflector(handle.clone(), mode),
                Arc::clone(&self.pool),
                self.work.clone(),
                handle,
            ),
            clock: parts.clock.clone(),
            validity: Arc::new(Validity::new(parts.clock.clone())),
            state: Arc::clone(&parts.fleet),
            metrics: Arc::clone(&parts.metrics),
            events,
        }
    }

    fn reflector(&self, agent: AgentHandle, mode: WatchMode) -> ShardReflector<C> {
        let (parts, pool) = (&self.parts, Arc::clone(&self.pool));
        let config = &parts.config;
        // A shard that is not admitted yet takes nothing: all its objects are queued when it is. What
        // a full queue refuses is counted there, and offered to it again by the health loop.
        let on_change = move |shard, key: &ObjectKey| {
            let _not_now = pool.enqueue(shard, key, Duration::ZERO);
        };
        let feed = ReflectorParts {
            names: parts.names,
            client: self.clients.watch.clone(),
            namespaces: config.served.clone(),
            count: config.shards,
            store: Arc::clone(&parts.cache),
            clock: parts.clock.clone(),
            api_errors: Arc::clone(&parts.api_errors),
            metrics: Arc::clone(&parts.metrics),
            on_change: Box::new(on_change),
            agent,
            lists: Lists::default(),
            doubts: FilterDoubts::default(),
            first_reconciles: Arc::clone(&parts.first_reconciles),
        };
        ShardReflector::new(Arc::new(feed), mode, config.sharded_watch)
    }
}

/// Those that the heartbeats need are driven by the runtime of their thread.
async fn clients(
    config: &Config,
    metrics: &Arc<Metrics>,
    heartbeats: &Handle,
) -> Result<Clients, ControllerError> {
    let kubeconfig = kube::Config::infer().await;
    let kubeconfig = kubeconfig.map_err(ControllerError::NoConfiguration)?;
    if !config.allow_unfenced && !is_bound_to_pod(&kubeconfig.auth_info) {
        return Err(ControllerError::Unfenced {
            namespace: config.namespace.clone(),
        });
    }
    let client = |kind| {
        build_client(&kubeconfig, kind, &config.identity, Arc::clone(metrics))
            .map_err(ControllerError::Client)
    };
    let (lease, fleet) = {
        let _driven_there = heartbeats.enter();
        (client(ClientKind::Lease)?, client(ClientKind::Fleet)?)
    };
    Ok(Clients {
        lease,
        fleet,
        watch: client(ClientKind::Watch)?,
        write: client(ClientKind::Write)?,
    })
}

/// Exports the limits that this replica was started with.
fn set_limits(metrics: &Metrics, config: &Config) {
    let capacity = i64::try_from(config.pool.queue_capacity).unwrap_or(i64::MAX);
    metrics.pool.queue_capacity.set(capacity);
    let deadline = config.pool.reconcile_timeout.as_secs_f64();
    metrics.pool.reconcile_timeout_seconds.set(deadline);
    metrics.fleet.shards.set(i64::from(config.shards.get()));
    let lifetime = config.lease_duration.as_secs_f64();
    metrics.fleet.lease_duration_seconds.set(lifetime);
}
