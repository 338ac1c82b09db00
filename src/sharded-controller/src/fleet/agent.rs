//! Runs the ownership state machine: sends it the state of the Leases and the shard table, and
//! executes its actions.
//!
//! One task owns the machine. Requests run concurrently, each with its own deadline, so a slow one
//! delays nothing else.

mod requests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::leases::{HeartbeatReport, LeaseStore, ObservedLease};
use super::shard_table::ShardTable;
use super::state::FleetState;
use super::table::{self, TableStore};
use crate::clock::Clock;
use crate::failpoints::{Failpoint, is_active};
use crate::metrics::{GIVEN_UP, Metrics};
use crate::names::Names;
use crate::permit::{ShardPermit, Validity};
use shard_ownership::hash::ShardId;
use shard_ownership::ownership::{Action, Event, Ownership, Reason, Settings};
use shard_ownership::token::FencingToken;

/// Capacity of the machine's event channel. It empties in microseconds; a full channel makes
/// senders wait.
const EVENTS_MAX: usize = 1024;

/// The actions of this process when it gains, drains and loses a shard.
pub(crate) trait ShardHost: Send + 'static {
    /// Watch a shard; send [`Event::Warm`] when everything is listed.
    fn watch(&mut self, shard: ShardId);
    /// Stop watching, and forget all objects of the shard.
    fn unwatch(&mut self, shard: ShardId);
    /// Begin to work on it.
    fn admit(&mut self, permit: ShardPermit);
    /// Start no more work; send [`Event::Drained`] when none runs.
    fn drain(&mut self, shard: ShardId);
    /// Resume a shard that was draining.
    fn resume(&mut self, shard: ShardId);
    /// Cancel its work now. The permit has ended already.
    fn halt(&mut self, shard: ShardId);
    /// What a heartbeat reports of the work.
    fn report(&self) -> HeartbeatReport;
}

/// Sends events to the machine from outside: warm, drained, shutdown.
#[derive(Clone, Debug)]
pub struct AgentHandle {
    events: mpsc::Sender<Event>,
}

impl AgentHandle {
    /// Sends an event; it is lost only if the agent has ended.
    pub async fn send(&self, event: Event) {
        let _ended = self.events.send(event).await;
    }
}

/// Creates the event channel of an agent.
#[must_use]
pub fn channel() -> (AgentHandle, mpsc::Receiver<Event>) {
    let (events, receiver) = mpsc::channel(EVENTS_MAX);
    (AgentHandle { events }, receiver)
}

/// Why the agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitReason {
    /// Everything was handed back.
    HandedBack,
    /// Another process uses our identity.
    IdentityTaken,
    /// It panicked.
    Panicked,
}

/// The parts of an agent.
pub(crate) struct AgentParts<H> {
    /// Names of the operator.
    pub names: Names,
    /// What this replica is.
    pub settings: Settings,
    /// The Leases, for reading and writing.
    pub store: LeaseStore,
    /// The shard table, for reading and writing.
    pub table: TableStore,
    /// The Leases, for watching.
    pub watch_api: Api<Lease>,
    /// The shard table, for watching.
    pub watch_table: Api<ShardTable>,
    /// Notified when shards are gained and lost.
    pub host: H,
    /// The clock of ownership.
    pub clock: Clock,
    /// Until when we may act, by that clock.
    pub validity: Arc<Validity>,
    /// State of the fleet, for other parts of the process.
    pub state: Arc<FleetState>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Events from other parts of the process.
    pub events: mpsc::Receiver<Event>,
}

struct Agent<H> {
    parts: AgentParts<H>,
    machine: Ownership,
    requests: JoinSet<Event>,
    permits: BTreeMap<ShardId, CancellationToken>,
    /// Since when shards are being given up, in boot-time milliseconds.
    draining_since_ms: BTreeMap<ShardId, u64>,
    listing: Vec<Lease>,
    table_listing: Option<ShardTable>,
    ended: Option<ExitReason>,
}

/// Runs until everything was handed back after [`Event::Shutdown`].
pub(crate) async fn run<H: ShardHost>(parts: AgentParts<H>) -> ExitReason {
    if is_active(Failpoint::Agent) {
        std::future::pending::<()>().await;
    }
    let machine = Ownership::new(
        parts.settings.clone(),
        nonce(&parts.clock),
        parts.clock.now_ms(),
    );
    let mut leases = watch(parts.names, parts.watch_api.clone());
    let mut tables = watch_table(parts.names, parts.watch_table.clone());
    let mut agent = Agent {
        machine,
        requests: JoinSet::new(),
        permits: BTreeMap::new(),
        draining_since_ms: BTreeMap::new(),
        listing: Vec::new(),
        table_listing: None,
        ended: None,
        parts,
    };
    loop {
        let event = tokio::select! {
            () = tokio::time::sleep(agent.until_wakeup()) => Some(Event::Tick),
            Some(done) = agent.requests.join_next() => agent.answered(done),
            Some(seen) = leases.next() => agent.observe(seen),
            Some(observed) = tables.next() => agent.table_observed(observed),
            Some(event) = agent.parts.events.recv() => Some(event),
        };
        if let Some(event) = event {
            agent.step(event);
        }
        if let Some(ended) = agent.ended {
            return ended;
        }
    }
}

type LeaseEvent = Result<watcher::Event<Lease>, watcher::Error>;

fn watch(names: Names, api: Api<Lease>) -> BoxStream<'static, LeaseEvent> {
    let (label, app) = names.app_label();
    let selector = format!("{label}={app}");
    let config = watcher::Config::default().labels(&selector);
    watcher(api, config)
        .modify(|lease| lease.metadata.managed_fields = None)
        .default_backoff()
        .boxed()
}

type WatchedTable = Result<watcher::Event<ShardTable>, watcher::Error>;

fn watch_table(names: Names, api: Api<ShardTable>) -> BoxStream<'static, WatchedTable> {
    let name = format!("metadata.name={}", names.shard_table());
    let config = watcher::Config::default().fields(&name);
    watcher(api, config).default_backoff().boxed()
}

/// Whether the API server does not serve the watched kind.
fn is_kind_missing(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == 404,
        // kube 4.2 reads the answer to a watch without checking its status: "404 page not found"
        // becomes a number that is not an event.
        watcher::Error::WatchFailed(kube::Error::SerdeError(error)) => {
            error.to_string().contains("integer `404`")
        }
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

fn kind_missing(names: &Names) -> String {
    format!(
        "the CRD shardtables.{} is missing; apply {}/crd.yaml",
        names.domain, names.manifests
    )
}

/// A nonce that no other life of any replica has: 128 bits from the operating system.
fn nonce(clock: &Clock) -> String {
    if is_active(Failpoint::Incarnation) {
        return "always-the-same".to_owned();
    }
    let mut bytes = [0u8; 16];
    if getrandom::fill(&mut bytes).is_err() {
        // Without a source of randomness, the clock and the process id still distinguish two
        // incarnations.
        let fallback = format!("{}-{}", clock.now_ms(), std::process::id());
        return fallback;
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl<H: ShardHost> Agent<H> {
    fn answered(&mut self, done: Result<Event, tokio::task::JoinError>) -> Option<Event> {
        match done {
            Ok(event) => Some(event),
            Err(error) => {
                tracing::error!(%error, "a Lease request ended without an answer");
                None
            }
        }
    }

    fn observe(&mut self, seen: LeaseEvent) -> Option<Event> {
        let error = seen.as_ref().err().map(ToString::to_string);
        self.parts.state.stand(|own| own.watch_error = error);
        match seen {
            Ok(watcher::Event::Init) => {
                self.listing.clear();
                None
            }
            Ok(watcher::Event::InitApply(lease)) => {
                self.listing.push(lease);
                None
            }
            Ok(watcher::Event::InitDone) => Some(self.listed()),
            Ok(watcher::Event::Apply(lease)) => {
                let event = self
                    .parts
                    .store
                    .codec()
                    .decode(&lease)
                    .map(|seen| match seen {
                        ObservedLease::Member(member) => Event::MemberObserved(member),
                        ObservedLease::Shard(shard) => Event::ShardObserved(shard),
                    });
                self.parts.state.remember(lease);
                event
            }
            Ok(watcher::Event::Delete(lease)) => {
                let name = lease.metadata.name.clone().unwrap_or_default();
                self.parts.state.forget(&name);
                match self.parts.store.codec().decode(&lease)? {
                    ObservedLease::Member(m) => Some(Event::MemberDeleted {
                        identity: m.identity,
                        uid: m.version.uid,
                    }),
                    ObservedLease::Shard(s) => Some(Event::ShardDeleted {
                        shard: s.shard,
                        uid: s.version.uid,
                    }),
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the watch of the Leases failed; retrying");
                None
            }
        }
    }

    fn listed(&mut self) -> Event {
        let listing = std::mem::take(&mut self.listing);
        let (members, shards) = self.parts.store.codec().decode_all(&listing);
        self.parts.state.listed(listing);
        Event::Listed { members, shards }
    }

    fn table_observed(&mut self, observed: WatchedTable) -> Option<Event> {
        let error = observed.as_ref().err().map(ToString::to_string);
        let is_missing = observed.as_ref().is_err_and(is_kind_missing);
        self.parts.state.stand(|own| {
            own.table_error = error;
            own.table_kind_missing = is_missing.then(|| kind_missing(&self.parts.names));
        });
        match observed {
            Ok(watcher::Event::Init) => {
                self.table_listing = None;
                None
            }
            Ok(watcher::Event::InitApply(table)) => {
                self.table_listing = Some(table);
                None
            }
            Ok(watcher::Event::InitDone) => {
                let table = self.table_listing.take();
                let event = Event::TableListed(table.as_ref().and_then(table::decode));
                self.parts.state.set_table(table);
                Some(event)
            }
            Ok(watcher::Event::Apply(table)) => {
                let event = table::decode(&table).map(Event::TableObserved);
                self.parts.state.set_table(Some(table));
                event
            }
            Ok(watcher::Event::Delete(table)) => {
                self.parts.state.set_table(None);
                table.metadata.uid.map(Event::TableDeleted)
            }
            Err(error) => {
                tracing::debug!(%error, "the watch of the shard table failed; retrying");
                None
            }
        }
    }

    fn step(&mut self, event: Event) {
        let now_ms = self.parts.clock.now_ms();
        for action in self.machine.handle(now_ms, event) {
            self.execute(action);
        }
        self.publish(now_ms);
    }

    /// How long the machine can do without the time.
    fn until_wakeup(&self) -> Duration {
        let wakeup_ms = self.machine.next_wakeup_ms();
        Duration::from_millis(wakeup_ms.saturating_sub(self.parts.clock.now_ms()))
    }

    fn publish(&self, now_ms: u64) {
        let metrics = &self.parts.metrics;
        let eligible = self
            .machine
            .members()
            .eligible(self.parts.settings.shards.get());
        metrics
            .fleet
            .members
            .set(i64::try_from(eligible.count()).unwrap_or(i64::MAX));
        let failures = self.machine.renewal_failures();
        metrics
            .fleet
            .heartbeat_failures_total
            .inc_by(failures.saturating_sub(metrics.fleet.heartbeat_failures_total.get()));
        self.parts.state.stand(|own| {
            own.settled = self.machine.is_settled(now_ms);
            own.standby = self.machine.is_standby();
            own.other_namespaces = self.machine.members().other_namespaces_are_alive();
            own.has_table = self.machine.table_uid().is_some();
            own.table_refused = self.machine.is_table_refused();
            own.last_renewal_ms = self.machine.last_renewal_ms();
            own.steps = own.steps.wrapping_add(1);
        });
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::WriteMember(id, write) => self.write_member(id, write),
            Action::WriteShard(id, write) => self.write_shard(id, write),
            Action::WriteTable(id, write) => self.write_table(id, write),
            Action::ReadMember(identity) => self.read_member(identity),
            Action::ReadShard(shard) => self.read_shard(shard),
            Action::ReadTable => self.read_table(),
            Action::ProbeTable => self.probe_table(),
            Action::ValidUntil(until_ms) => self.parts.validity.set_until_ms(until_ms),
            Action::Watch(shard) => self.parts.host.watch(shard),
            Action::Unwatch(shard) => {
                self.end_permit(shard);
                self.handed_over(shard);
                self.parts.host.unwatch(shard);
            }
            Action::Admit {
                shard,
                table,
                epoch,
                reason,
                waited_ms,
            } => {
                let token = FencingToken {
                    table: table.into(),
                    shard,
                    epoch,
                    holder: self.machine.identity().into(),
                };
                self.admit(token, reason, waited_ms);
            }
            Action::Drain(shard) => {
                tracing::info!(%shard, "handing the shard over: draining its work first");
                self.count_move(GIVEN_UP);
                self.draining_since_ms
                    .insert(shard, self.parts.clock.now_ms());
                self.parts.host.drain(shard);
            }
            Action::Resume(shard) => {
                tracing::info!(%shard, "resuming the shard: its successor no longer exists, or another one is planned that is not ready");
                self.draining_since_ms.remove(&shard);
                self.parts.host.resume(shard);
            }
            Action::Halt(shard, reason) => self.halt(shard, reason),
            Action::NeedIncarnation => {
                tracing::warn!("this incarnation is dead: starting a new one");
                let fresh = nonce(&self.parts.clock);
                self.requests
                    .spawn(async move { Event::Reincarnate(fresh) });
            }
            Action::IdentityTaken => {
                let identity = self.machine.identity();
                tracing::error!(
                    identity,
                    "another replica uses the identity of this one; give each replica its own --identity"
                );
                self.ended = Some(ExitReason::IdentityTaken);
            }
            Action::Exit => self.ended = Some(ExitReason::HandedBack),
        }
    }

    fn admit(&mut self, token: FencingToken, reason: Reason, waited_ms: u64) {
        let (shard, epoch) = (token.shard, token.epoch);
        let ended = CancellationToken::new();
        self.end_permit(shard);
        self.draining_since_ms.remove(&shard);
        self.permits.insert(shard, ended.clone());
        tracing::info!(%shard, epoch, reason = reason.label(), "working on the shard");
        self.count_move(reason.label());
        let metrics = &self.parts.metrics;
        let waited = Duration::from_millis(waited_ms).as_secs_f64();
        if reason == Reason::Takeover {
            metrics.fleet.takeover_duration_seconds.observe(waited);
            // It was silent for its whole lifetime before anybody could know.
            let lifetime = Duration::from_millis(self.parts.settings.lease_ms);
            metrics
                .fleet
                .shard_unowned_seconds_total
                .inc_by(waited + lifetime.as_secs_f64());
        } else if reason == Reason::Vacant {
            metrics.fleet.shard_unowned_seconds_total.inc_by(waited);
        }
        let label = shard.to_string();
        metrics
            .fleet
            .shard_owned
            .with_label_values(&[&label])
            .set(1);
        metrics
            .fleet
            .shard_epoch
            .with_label_values(&[&label])
            .set(i64::from(epoch));
        let validity = Arc::clone(&self.parts.validity);
        self.parts
            .host
            .admit(ShardPermit::new(token, validity, ended));
    }

    fn halt(&mut self, shard: ShardId, reason: Reason) {
        if reason == Reason::Lapsed && is_active(Failpoint::Validity) {
            return;
        }
        tracing::warn!(%shard, reason = reason.label(), "shard stopped at once");
        self.count_move(reason.label());
        // When a drain times out, the shard is handed over regardless; otherwise it was lost
        // meanwhile.
        if !matches!(reason, Reason::HandedOver | Reason::Leaving) {
            self.draining_since_ms.remove(&shard);
        }
        self.end_permit(shard);
        self.parts.host.halt(shard);
    }

    /// A shard that was being given up is watched no more: somebody else has it.
    fn handed_over(&mut self, shard: ShardId) {
        if let Some(since_ms) = self.draining_since_ms.remove(&shard) {
            let took = Duration::from_millis(self.parts.clock.now_ms().saturating_sub(since_ms));
            self.parts
                .metrics
                .fleet
                .handover_duration_seconds
                .observe(took.as_secs_f64());
        }
    }

    fn end_permit(&mut self, shard: ShardId) {
        if let Some(ended) = self.permits.remove(&shard) {
            ended.cancel();
            let label = shard.to_string();
            let metrics = &self.parts.metrics;
            // An error means that there is no such series: nothing to remove.
            let _absent = metrics.fleet.shard_owned.remove_label_values(&[&label]);
            let _absent = metrics.fleet.shard_epoch.remove_label_values(&[&label]);
            let _absent = metrics.fleet.shard_objects.remove_label_values(&[&label]);
        }
    }

    fn count_move(&self, reason: &str) {
        self.parts
            .metrics
            .fleet
            .shard_moves_total
            .with_label_values(&[reason])
            .inc();
    }
}
