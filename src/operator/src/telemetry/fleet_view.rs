//! The fleet according to its Leases: a pure view for the fleet page and the `fleet` command.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::fleet_problems::Problem;
use crate::api::Phase;
use crate::api::names::NAMES;
use shard_ownership::hash::{ShardCount, ShardId};
use shard_ownership::lease::bucket_range;
use shard_ownership::liveness::{has_expired, is_live_holder};
use shard_ownership::token::EPOCH_MAX;
use sharded_controller::fleet::history::{Age, History};
use sharded_controller::fleet::leases::{LeaseFields, Subject};
use sharded_controller::fleet::shard_table::ShardTable;
pub use sharded_controller::health::CheckView;
use sharded_controller::text::safe;

/// 256 shards and as many replicas fit; a longer page would not be useful.
const LEASES_MAX: usize = 1024;
const NAME_CHARS_MAX: usize = 100;
const STATS_CHARS_MAX: usize = 1000;
const STATS_MAX: usize = 32;
/// DatabaseClusters that are named, of all members together.
const UNHEALTHY_MAX: usize = 100;
/// Key of [`FleetView::clusters`] for those of which no live replica has reported.
pub(crate) const UNKNOWN: &str = "Unknown";
/// After a shard has moved, its new holder needs this long to list its objects and to report their number.
const COUNT_SETTLES_SECONDS: f64 = 6.0;
/// A count that no view has used for longer is no longer compared with.
const LAST_COUNT_MS_MAX: u64 = 30_000;
/// Prefix of the statistic for each phase in the stats of a member, such as `clusters_ready`.
const CLUSTERS_PREFIX: &str = "clusters_";

/// The fleet according to its Leases. All text is safe to print.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FleetView {
    /// The fleet leader's Lease, if there is one.
    pub leader: Option<LeaderView>,
    /// One for each member Lease, by identity.
    pub members: Vec<MemberView>,
    /// One for each shard Lease, by number; those without a number come last.
    pub shards: Vec<ShardView>,
    /// The shard table, if the reader has read it and there is one.
    pub table: Option<ShardTableView>,
    /// Problems of the whole fleet, such as shards without a Lease.
    pub notes: Vec<String>,
    /// Number of shards, if the Leases show it.
    pub shard_count: Option<u16>,
    /// The watched namespaces (`*`: all), if the shard Leases show them.
    pub namespaces: Option<String>,
    /// DatabaseClusters by phase, as counted by the members that are alive; `Unknown` are those that existed a
    /// moment ago and that no live member has counted yet.
    pub clusters: BTreeMap<&'static str, u64>,
    /// Some of the DatabaseClusters that are Degraded, by name, as named by the members that are alive.
    pub unhealthy: Vec<UnhealthyView>,
    /// Moves of shards that the reader observed, the latest first.
    pub moves: Vec<MoveView>,
    /// What is wrong, the worst first; filled in by [`FleetView::with_problems`].
    pub problems: Vec<Problem>,
    /// The replica that created this view; none: the reader is not a replica.
    pub observer: Option<ObserverView>,
}

/// One DatabaseCluster that is Degraded.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct UnhealthyView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Reason of its condition `Degraded`.
    pub reason: String,
    /// The replica that reports it.
    pub replica: String,
}

/// How many DatabaseClusters there were when all of them were counted.
#[derive(Clone, Copy, Debug)]
pub struct LastCount {
    total: u64,
    seen_ms: u64,
}

/// The replica that created a view.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ObserverView {
    /// Its identity.
    pub identity: String,
    /// Version of the program.
    pub version: &'static str,
    /// Whether it is ready.
    pub ready: bool,
    /// Its checks, as `/readyz` has them.
    pub checks: Vec<CheckView>,
    /// How long it has watched the Leases, in seconds.
    pub watching_seconds: f64,
    /// When it created the view, by its own clock.
    pub at: String,
}

/// A shard that changed hands.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MoveView {
    /// Number of the shard.
    pub shard: u16,
    /// The former holder; none: it was vacant.
    pub from: Option<String>,
    /// The new holder; none: it is vacant.
    pub to: Option<String>,
    /// The new epoch.
    pub epoch: u32,
    /// How long ago the reader observed it, in seconds.
    pub seconds_ago: f64,
    /// When that was, by the reader's clock.
    pub at: String,
    /// The reason, in one word.
    pub why: &'static str,
}

/// The fleet leader according to its Lease. Whether it is alive cannot be determined from the Lease
/// alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeaderView {
    /// The holder of the Lease, if any.
    pub identity: Option<String>,
    /// Age of the last renewal by the reader's own clock, in seconds.
    pub renewed_seconds_ago: Option<f64>,
    /// Whether it is alive, if the reader has watched it for long enough to know.
    pub live: Option<bool>,
    /// Lifetime of the Lease without a renewal, in seconds.
    pub lease_seconds: Option<i32>,
}

/// One member Lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemberView {
    /// Identity of the replica.
    pub identity: String,
    /// Whether it is alive, if the reader has watched it for long enough to know.
    pub live: Option<bool>,
    /// The Lease has no holder: that incarnation is dead.
    pub vacated: bool,
    /// It is about to stop, and hands its shards over.
    pub draining: bool,
    /// The API server refuses its writes of the shard table: it receives no shards.
    pub barred: bool,
    /// A user asked that it receives no shards and gives up those that it holds.
    pub drain_requested: bool,
    /// Its current incarnation.
    pub incarnation: Option<String>,
    /// Revision of its rollout.
    pub revision: Option<String>,
    /// Number of shards that it is configured for.
    pub shards: Option<u16>,
    /// The namespaces that it is configured for (`*`: all).
    pub namespaces: Option<String>,
    /// Shards whose Lease names it.
    pub held: u16,
    /// Shards that it has warmed up for a handover.
    pub warm: Option<String>,
    /// Age of the last renewal by the reader's own clock, in seconds.
    pub renewed_seconds_ago: Option<f64>,
    /// Time since the reader observed a renewal, or first observed the Lease, in seconds.
    pub heartbeat_age_seconds: Option<f64>,
    /// Lifetime of the Lease without a renewal, in seconds.
    pub lease_seconds: Option<i32>,
    /// Statistics that it publishes about itself.
    pub stats: BTreeMap<String, f64>,
    /// DatabaseClusters that it names; shown by [`FleetView::unhealthy`].
    #[serde(skip)]
    pub(crate) unhealthy: Vec<UnhealthyView>,
    /// Problems of the Lease.
    pub damage: Option<String>,
}

impl MemberView {
    /// Whether what it reports about itself still holds, as far as the reader knows.
    #[must_use]
    pub(crate) fn is_current(&self) -> bool {
        !self.vacated && self.live != Some(false)
    }
}

/// One shard Lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ShardView {
    /// Name of the Lease.
    pub lease: String,
    /// Number of the shard, if the name has one.
    pub shard: Option<u16>,
    /// Its holder; none: vacant.
    pub holder: Option<String>,
    /// The holder's incarnation.
    pub incarnation: Option<String>,
    /// Its epoch.
    pub epoch: Option<u32>,
    /// Its range of buckets.
    pub buckets: Option<String>,
    /// The planned next holder.
    pub successor: Option<String>,
    /// How long the holder has held it, by the reader's clock against the writer's, in seconds.
    pub held_seconds: Option<f64>,
    /// The holder's member Lease names another incarnation, or there is none.
    pub orphaned: bool,
    /// The epoch of its entry in the shard table.
    pub table_epoch: Option<u32>,
    /// The holder of its entry in the shard table; none: no replica may write.
    pub table_holder: Option<String>,
    /// Whether the shard table grants the shard to its holder under its epoch, if there is a table.
    pub granted: Option<bool>,
    /// Problems of the Lease.
    pub damage: Option<String>,
}

/// The shard table, which the API server's fence reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ShardTableView {
    /// Its uid, the first part of every fencing token.
    pub uid: String,
    /// Number of shards.
    pub shards: i32,
    /// Shards that it does not grant to the holders of their Leases: for some milliseconds after each
    /// move, and longer only if there is a problem.
    pub not_granted: Vec<u16>,
}

impl FleetView {
    /// The view of these Leases. With `now`, ages are computed by that clock.
    #[must_use]
    pub fn from_leases<'a>(
        leases: impl IntoIterator<Item = &'a Lease>,
        now: Option<Timestamp>,
    ) -> Self {
        let mut view = Self::default();
        let mut members = Vec::new();
        let mut shards = Vec::new();
        let shard_prefix = NAMES.shard_lease_prefix();
        for (count, lease) in leases.into_iter().enumerate() {
            if count == LEASES_MAX {
                view.notes
                    .push(format!("only the first {LEASES_MAX} Leases are shown"));
                break;
            }
            let fields = LeaseFields::new(&NAMES, lease);
            match fields.subject() {
                Some(Subject::Leader) => view.leader = Some(leader(fields, now)),
                Some(Subject::Member(identity)) => members.push((identity, fields)),
                Some(Subject::Shard(shard)) => shards.push((Some(shard), fields)),
                None if fields.name().starts_with(&shard_prefix) => shards.push((None, fields)),
                None => {}
            }
        }
        members.sort_by_key(|(identity, _)| *identity);
        for (identity, fields) in &members {
            let mut row = member(identity, *fields, now);
            let held = shards
                .iter()
                .filter(|(_, shard)| shard.holder().identity == *identity);
            row.held = u16::try_from(held.count()).unwrap_or(u16::MAX);
            view.members.push(row);
        }
        for (number, fields) in &shards {
            let mut row = shard(*number, *fields, now);
            let holder = fields.holder();
            row.orphaned = !holder.is_nobody()
                && !members.iter().any(|(identity, member)| {
                    *identity == holder.identity && is_live_holder(holder, member.holder())
                });
            view.shards.push(row);
        }
        view.shards
            .sort_by_key(|row| (row.shard.is_none(), row.shard, row.lease.clone()));
        let shards: Vec<LeaseFields<'_>> = shards.into_iter().map(|(_, fields)| fields).collect();
        view.note_missing_shards(&shards);
        let held = shards.iter().filter(|shard| !shard.holder().is_nobody());
        view.namespaces = held
            .chain(&shards)
            .find_map(|shard| shown(shard.namespaces()));
        view.count_clusters();
        view
    }

    /// Fills in the grants of the shard table; `None`: there is no table.
    #[must_use]
    pub fn with_table(mut self, table: Option<&ShardTable>) -> Self {
        let Some(table) = table else {
            let note = "there is no shard table: until a replica creates it, no replica works";
            self.notes.push(note.to_owned());
            return self;
        };
        let mut not_granted = Vec::new();
        for row in &mut self.shards {
            let Some(shard) = row.shard else { continue };
            let entry = table.spec.entries.get(&format!("{shard:03}"));
            row.table_epoch = entry.and_then(|entry| u32::try_from(entry.epoch).ok());
            row.table_holder = entry
                .filter(|entry| !entry.holder.is_empty())
                .map(|entry| safe(&entry.holder, NAME_CHARS_MAX));
            if row.holder.is_some() {
                let is_granted = row.table_epoch == row.epoch
                    && row.table_holder == row.holder
                    && entry.map(|entry| entry.incarnation.as_str()) == row.incarnation.as_deref();
                row.granted = Some(is_granted);
                if !is_granted {
                    not_granted.push(shard);
                }
            }
        }
        self.table = Some(ShardTableView {
            uid: table.metadata.uid.clone().unwrap_or_default(),
            shards: table.spec.shards,
            not_granted,
        });
        self
    }

    /// Fills in what the reader has observed itself.
    #[must_use]
    pub fn with_history(mut self, history: &History, now_ms: u64) -> Self {
        for member in &mut self.members {
            let age = history.age(&NAMES.member_lease(&member.identity), now_ms);
            member.heartbeat_age_seconds = age.map(|age| seconds(age.age_ms));
            member.live = match (member.vacated, age) {
                (true, _) => Some(false),
                (false, age) => live(age, member.lease_seconds),
            };
        }
        // The counts of a dead member are those of the past.
        self.count_clusters();
        if let Some(leader) = &mut self.leader {
            let age = history.age(&NAMES.leader_lease(), now_ms);
            leader.live = live(age, leader.lease_seconds);
        }
        let shown = history.moves().map(|seen| MoveView {
            shard: seen.shard,
            from: (!seen.from.is_empty()).then(|| seen.from.clone()),
            to: (!seen.to.is_empty()).then(|| seen.to.clone()),
            epoch: seen.epoch,
            seconds_ago: seconds(now_ms.saturating_sub(seen.seen_ms)),
            at: seen.seen_at.to_string(),
            why: seen.why.label(),
        });
        self.moves = shown.collect();
        self
    }

    /// Fills in the replica that created the view.
    #[must_use]
    pub fn with_observer(mut self, observer: ObserverView) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Whether a live replica holds the shard, as far as the reader knows.
    #[must_use]
    pub(crate) fn is_owned(&self, shard: &ShardView) -> bool {
        let Some(holder) = shard.holder.as_deref().filter(|_| !shard.orphaned) else {
            return false;
        };
        let member = self.members.iter().find(|m| m.identity == holder);
        member.is_some_and(|member| member.live != Some(false))
    }

    /// Fills in the DatabaseClusters that no live member has counted: those that are missing from the last complete
    /// count, or if there was no view of the fleet lately, those that dead members with shards have counted last.
    #[must_use]
    pub fn with_unknown(mut self, last: &mut Option<LastCount>, now_ms: u64) -> Self {
        let counted: u64 = self.clusters.values().sum();
        last.take_if(|last| now_ms.saturating_sub(last.seen_ms) > LAST_COUNT_MS_MAX);
        let total = match (self.is_count_complete(), &*last) {
            (true, _) => counted,
            (false, Some(last)) => last.total,
            (false, None) => {
                let silent = self.members.iter().filter(|member| !member.is_current());
                let orphaned = silent.filter(|member| member.held > 0);
                counted.saturating_add(clusters_of(orphaned))
            }
        };
        *last = Some(LastCount {
            total,
            seen_ms: now_ms,
        });
        self.clusters.insert(UNKNOWN, total.saturating_sub(counted));
        self
    }

    /// Whether every DatabaseCluster is among those that live members have counted.
    fn is_count_complete(&self) -> bool {
        let count = usize::from(self.shard_count.unwrap_or(0));
        let owned = self.shards.iter().filter(|shard| self.is_owned(shard));
        let settled = self
            .moves
            .iter()
            .all(|seen| seen.seconds_ago > COUNT_SETTLES_SECONDS);
        owned.count() >= count && settled
    }

    fn count_clusters(&mut self) {
        let current = self.members.iter().filter(|member| member.is_current());
        let mut unhealthy: Vec<UnhealthyView> = current
            .flat_map(|member| member.unhealthy.iter().cloned())
            .collect();
        unhealthy.sort_unstable();
        // During a handover two replicas know it.
        unhealthy
            .dedup_by(|one, other| (&one.namespace, &one.name) == (&other.namespace, &other.name));
        unhealthy.truncate(UNHEALTHY_MAX);
        self.unhealthy = unhealthy;
        for phase in Phase::ALL {
            let stat = format!("{CLUSTERS_PREFIX}{}", phase.label().to_lowercase());
            let current = self.members.iter().filter(|member| member.is_current());
            let count = current
                .filter_map(|member| member.stats.get(&stat))
                .map(|count| whole(*count))
                .fold(0, u64::saturating_add);
            self.clusters.insert(phase.label(), count);
        }
        self.clusters.entry(UNKNOWN).or_insert(0);
    }

    fn note_missing_shards(&mut self, leases: &[LeaseFields<'_>]) {
        let counts: Vec<u64> = leases
            .iter()
            .filter_map(|lease| lease.shards()?.parse().ok())
            .collect();
        let Some(count) = counts.iter().copied().max() else {
            return;
        };
        if counts.iter().any(|other| *other != count) {
            self.notes
                .push("the shard Leases differ in the number of shards".to_owned());
        }
        let Ok(count) = ShardCount::new(count) else {
            return;
        };
        self.shard_count = Some(count.get());
        let missing: Vec<String> = count
            .shards()
            .filter(|shard| !self.shards.iter().any(|row| row.shard == Some(shard.0)))
            .map(|shard| shard.to_string())
            .collect();
        if !missing.is_empty() {
            self.notes
                .push(format!("no Lease for shard {}", missing.join(", ")));
        }
    }
}

/// The DatabaseClusters that these members have counted.
fn clusters_of<'a>(members: impl Iterator<Item = &'a MemberView>) -> u64 {
    let stats = members.flat_map(|member| &member.stats);
    stats
        .filter(|(name, _)| name.starts_with(CLUSTERS_PREFIX))
        .map(|(_, count)| whole(*count))
        .fold(0, u64::saturating_add)
}

/// A negative or absurd figure counts as none, or as very many: it harms nobody.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(count: f64) -> u64 {
    count as u64
}

fn shown(text: Option<&str>) -> Option<String> {
    text.map(|text| safe(text, NAME_CHARS_MAX))
}

fn shown_holder(fields: LeaseFields<'_>) -> Option<String> {
    let holder = fields.holder();
    shown((!holder.is_nobody()).then_some(holder.identity))
}

fn shown_incarnation(fields: LeaseFields<'_>) -> Option<String> {
    let incarnation = fields.holder().incarnation;
    shown((!incarnation.is_empty()).then_some(incarnation))
}

fn age_seconds(then: Option<Timestamp>, now: Option<Timestamp>) -> Option<f64> {
    let age = now?.duration_since(then?);
    Some((age.as_secs_f64() * 1000.0).round() / 1000.0)
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// `None`: not watched for long enough to know.
fn live(age: Option<Age>, lease_seconds: Option<i32>) -> Option<bool> {
    let (age, lease_seconds) = (age?, u64::try_from(lease_seconds?).ok()?);
    if has_expired(age.age_ms, lease_seconds * 1000) {
        return Some(false);
    }
    age.renewed.then_some(true)
}

fn leader(fields: LeaseFields<'_>, now: Option<Timestamp>) -> LeaderView {
    LeaderView {
        identity: shown_holder(fields),
        renewed_seconds_ago: age_seconds(fields.renew_time(), now),
        live: None,
        lease_seconds: fields.lease_seconds(),
    }
}

fn member(identity: &str, fields: LeaseFields<'_>, now: Option<Timestamp>) -> MemberView {
    let mut damage = Vec::new();
    let holder = fields.holder();
    let shards = fields
        .shards()
        .map(|text| text.parse().map(ShardCount::new));
    let shards = match shards {
        Some(Ok(Ok(count))) => Some(count.get()),
        Some(_) => {
            damage.push("annotation database.io/shards is no number of shards");
            None
        }
        None => None,
    };
    if holder.incarnation.is_empty() {
        damage.push("annotation database.io/incarnation is missing");
    }
    if !holder.is_nobody() && holder.identity != identity {
        damage.push("its holder is not the replica in its name");
    }
    if !holder.is_nobody() && fields.renew_time().is_none() {
        damage.push("renewTime is missing");
    }
    MemberView {
        identity: safe(identity, NAME_CHARS_MAX),
        live: None,
        vacated: holder.is_nobody(),
        draining: fields.is_draining(),
        barred: fields.is_barred(),
        drain_requested: fields.is_drain_requested(),
        incarnation: shown_incarnation(fields),
        revision: shown(fields.revision()),
        shards,
        namespaces: shown(fields.namespaces()),
        held: 0,
        warm: shown(fields.warm()),
        renewed_seconds_ago: age_seconds(fields.renew_time(), now),
        heartbeat_age_seconds: None,
        lease_seconds: fields.lease_seconds(),
        stats: stats(fields.stats().unwrap_or_default()),
        unhealthy: unhealthy(identity, fields),
        damage: joined(&damage),
    }
}

/// Statistics as a JSON object of numbers; other values are ignored.
fn stats(text: &str) -> BTreeMap<String, f64> {
    if text.len() > STATS_CHARS_MAX {
        return BTreeMap::new();
    }
    let stats: BTreeMap<String, f64> = serde_json::from_str(text).unwrap_or_default();
    let bounded = stats.into_iter().take(STATS_MAX);
    bounded
        .map(|(name, value)| (safe(&name, NAME_CHARS_MAX), value))
        .collect()
}

fn unhealthy(identity: &str, fields: LeaseFields<'_>) -> Vec<UnhealthyView> {
    let named = fields.unhealthy();
    named
        .map(|(namespace, name, reason)| UnhealthyView {
            namespace: safe(namespace, NAME_CHARS_MAX),
            name: safe(name, NAME_CHARS_MAX),
            reason: safe(reason, NAME_CHARS_MAX),
            replica: safe(identity, NAME_CHARS_MAX),
        })
        .collect()
}

fn shard(number: Option<ShardId>, fields: LeaseFields<'_>, now: Option<Timestamp>) -> ShardView {
    let mut damage = Vec::new();
    if number.is_none() {
        damage.push("the name does not end in three digits below 256");
    }
    let epoch = fields.epoch();
    if epoch.is_none() {
        damage.push("leaseTransitions, the epoch, is missing or negative");
    }
    if epoch.is_some_and(|epoch| epoch >= EPOCH_MAX) {
        damage.push("no epoch is left above leaseTransitions: delete this Lease");
    }
    let holder = fields.holder();
    if !holder.is_nobody() && holder.incarnation.is_empty() {
        damage.push("annotation database.io/incarnation is missing");
    }
    let count = fields.shards().and_then(|text| text.parse().ok());
    match (number, count.map(ShardCount::new)) {
        (Some(shard), Some(Ok(count))) if shard.0 < count.get() => {
            if fields.buckets() != Some(bucket_range(count, shard).as_str()) {
                damage.push("annotation database.io/buckets is not the range of this shard");
            }
        }
        (Some(_), _) => damage.push("annotation database.io/shards does not fit the name"),
        (None, _) => {}
    }
    ShardView {
        lease: safe(fields.name(), NAME_CHARS_MAX),
        shard: number.map(|shard| shard.0),
        holder: shown_holder(fields),
        incarnation: shown_incarnation(fields),
        epoch,
        buckets: shown(fields.buckets()),
        successor: shown(fields.successor()),
        held_seconds: age_seconds(fields.acquire_time(), now),
        orphaned: false,
        table_epoch: None,
        table_holder: None,
        granted: None,
        damage: joined(&damage),
    }
}

fn joined(damage: &[&str]) -> Option<String> {
    (!damage.is_empty()).then(|| damage.join("; "))
}

#[cfg(test)]
#[path = "fleet_view_tests.rs"]
pub(crate) mod tests;
