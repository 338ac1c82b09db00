//! Who holds what, as the Leases say it: a pure view for the fleet page and the `fleet` command.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::text::safe;
use crate::core::hash::{ShardCount, ShardId};

/// Label that tells the operator's own Leases from others.
pub const APP_LABEL: (&str, &str) = ("app.kubernetes.io/name", "databasecluster-operator");
/// Name of the fleet leader's Lease.
pub const LEADER_LEASE: &str = "databasecluster-leader";

const MEMBER_PREFIX: &str = "databasecluster-member-";
const SHARD_PREFIX: &str = "databasecluster-shard-";
/// 256 shards and as many replicas fit; a page of more helps nobody.
const LEASES_MAX: usize = 1024;
const NAME_CHARS_MAX: usize = 100;
const STATS_CHARS_MAX: usize = 400;
const STATS_MAX: usize = 16;

/// The fleet as its Leases describe it. All text is safe to print.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FleetView {
    /// The fleet leader's Lease, if there is one.
    pub leader: Option<LeaderView>,
    /// One for each member Lease, by identity.
    pub members: Vec<MemberView>,
    /// One for each shard Lease, by number; those of no number come last.
    pub shards: Vec<ShardView>,
    /// What is wrong with the whole, such as shards without a Lease.
    pub notes: Vec<String>,
}

/// The fleet leader, as its Lease names it. Whether it still lives, the Lease alone does not tell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeaderView {
    /// The replica named, if any.
    pub identity: Option<String>,
    /// Age of the last renewal by the reader's own clock.
    pub renewed_seconds_ago: Option<f64>,
}

/// One member Lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemberView {
    /// The replica.
    pub identity: String,
    /// Whether it lives, if the reader has watched it for long enough to know.
    pub live: Option<bool>,
    /// Nobody is named in the Lease: that incarnation is dead.
    pub vacated: bool,
    /// It is about to stop, and hands its shards over.
    pub draining: bool,
    /// Its present life.
    pub incarnation: Option<String>,
    /// Which rollout it belongs to.
    pub revision: Option<String>,
    /// Number of shards that it is configured for.
    pub shards: Option<u16>,
    /// Shards whose Lease names it.
    pub held: u16,
    /// Shards that it has warmed up for a handover.
    pub warm: Option<String>,
    /// Age of the last renewal by the reader's own clock.
    pub renewed_seconds_ago: Option<f64>,
    /// Figures that it publishes about itself.
    pub stats: BTreeMap<String, f64>,
    /// What is wrong with the Lease.
    pub damage: Option<String>,
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
    /// The holder's life that took it.
    pub incarnation: Option<String>,
    /// Its epoch.
    pub epoch: Option<u32>,
    /// Its range of buckets.
    pub buckets: Option<String>,
    /// The planned next holder.
    pub successor: Option<String>,
    /// The holder's member Lease tells of another life, or there is none.
    pub orphaned: bool,
    /// What is wrong with the Lease.
    pub damage: Option<String>,
}

impl FleetView {
    /// The view of these Leases. With `now`, ages are told by that clock.
    #[must_use]
    pub fn from_leases<'a>(
        leases: impl IntoIterator<Item = &'a Lease>,
        now: Option<Timestamp>,
    ) -> Self {
        let mut view = Self::default();
        let mut members = Vec::new();
        let mut shards = Vec::new();
        for (count, lease) in leases.into_iter().enumerate() {
            if count == LEASES_MAX {
                view.notes
                    .push(format!("only the first {LEASES_MAX} Leases are shown"));
                break;
            }
            let name = lease.metadata.name.as_deref().unwrap_or_default();
            if name == LEADER_LEASE {
                view.leader = Some(leader(lease, now));
            } else if let Some(identity) = name.strip_prefix(MEMBER_PREFIX) {
                members.push((identity, lease));
            } else if name.starts_with(SHARD_PREFIX) {
                shards.push(lease);
            }
        }
        members.sort_by_key(|(identity, _)| *identity);
        for (identity, lease) in &members {
            let mut row = member(identity, lease, now);
            let held = shards
                .iter()
                .filter(|shard| holder(shard) == Some(identity));
            row.held = u16::try_from(held.count()).unwrap_or(u16::MAX);
            view.members.push(row);
        }
        for lease in &shards {
            let mut row = shard(lease);
            row.orphaned = holder(lease).is_some_and(|holder| {
                !members.iter().any(|(identity, member)| {
                    *identity == holder
                        && !vacated(member)
                        && annotation(member, "incarnation") == annotation(lease, "incarnation")
                })
            });
            view.shards.push(row);
        }
        view.shards
            .sort_by_key(|row| (row.shard.is_none(), row.shard, row.lease.clone()));
        view.note_missing_shards(&shards);
        view
    }

    /// Fills in what the reader has observed itself: `None` where it does not know.
    #[must_use]
    pub fn with_live(mut self, live: impl Fn(&str) -> Option<bool>) -> Self {
        for member in &mut self.members {
            member.live = live(&member.identity);
        }
        self
    }

    fn note_missing_shards(&mut self, leases: &[&Lease]) {
        let counts: Vec<u64> = leases
            .iter()
            .filter_map(|lease| annotation(lease, "shards")?.parse().ok())
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

fn annotation<'a>(lease: &'a Lease, name: &str) -> Option<&'a str> {
    let annotations = lease.metadata.annotations.as_ref()?;
    let value = annotations.get(&format!("database.io/{name}"))?;
    (!value.is_empty()).then_some(value.as_str())
}

fn shown(lease: &Lease, name: &str) -> Option<String> {
    annotation(lease, name).map(|text| safe(text, NAME_CHARS_MAX))
}

fn holder(lease: &Lease) -> Option<&str> {
    let holder = lease.spec.as_ref()?.holder_identity.as_deref()?;
    (!holder.is_empty()).then_some(holder)
}

fn vacated(lease: &Lease) -> bool {
    holder(lease).is_none()
}

fn renewed_seconds_ago(spec: Option<&LeaseSpec>, now: Option<Timestamp>) -> Option<f64> {
    let age = now?.duration_since(spec?.renew_time.as_ref()?.0);
    Some((age.as_secs_f64() * 1000.0).round() / 1000.0)
}

fn leader(lease: &Lease, now: Option<Timestamp>) -> LeaderView {
    LeaderView {
        identity: holder(lease).map(|holder| safe(holder, NAME_CHARS_MAX)),
        renewed_seconds_ago: renewed_seconds_ago(lease.spec.as_ref(), now),
    }
}

fn member(identity: &str, lease: &Lease, now: Option<Timestamp>) -> MemberView {
    let mut damage = Vec::new();
    let shards = annotation(lease, "shards").map(|text| text.parse().map(ShardCount::new));
    let shards = match shards {
        Some(Ok(Ok(count))) => Some(count.get()),
        Some(_) => {
            damage.push("annotation database.io/shards is no number of shards");
            None
        }
        None => None,
    };
    if annotation(lease, "incarnation").is_none() {
        damage.push("annotation database.io/incarnation is missing");
    }
    if holder(lease).is_some_and(|holder| holder != identity) {
        damage.push("it names another holder than the replica it is called after");
    }
    if !vacated(lease) && lease.spec.as_ref().is_none_or(|s| s.renew_time.is_none()) {
        damage.push("renewTime is missing");
    }
    MemberView {
        identity: safe(identity, NAME_CHARS_MAX),
        live: None,
        vacated: vacated(lease),
        draining: annotation(lease, "draining") == Some("true"),
        incarnation: shown(lease, "incarnation"),
        revision: shown(lease, "revision"),
        shards,
        held: 0,
        warm: shown(lease, "warm"),
        renewed_seconds_ago: renewed_seconds_ago(lease.spec.as_ref(), now),
        stats: stats(annotation(lease, "stats").unwrap_or_default()),
        damage: joined(&damage),
    }
}

/// Figures written as a JSON object of numbers; anything else is nothing.
fn stats(text: &str) -> BTreeMap<String, f64> {
    if text.len() > STATS_CHARS_MAX {
        return BTreeMap::new();
    }
    let figures: BTreeMap<String, f64> = serde_json::from_str(text).unwrap_or_default();
    let bounded = figures.into_iter().take(STATS_MAX);
    bounded
        .map(|(name, value)| (safe(&name, NAME_CHARS_MAX), value))
        .collect()
}

fn shard(lease: &Lease) -> ShardView {
    let name = lease.metadata.name.as_deref().unwrap_or_default();
    let spec = lease.spec.as_ref();
    let mut damage = Vec::new();
    let number = shard_number(name);
    if number.is_none() {
        damage.push("the name does not end in three digits below 256");
    }
    let epoch = spec.and_then(|spec| spec.lease_transitions);
    let epoch = epoch.and_then(|epoch| u32::try_from(epoch).ok());
    if epoch.is_none() {
        damage.push("leaseTransitions, the epoch, is missing or negative");
    }
    if holder(lease).is_some() && annotation(lease, "incarnation").is_none() {
        damage.push("annotation database.io/incarnation is missing");
    }
    let count = annotation(lease, "shards").and_then(|text| text.parse().ok());
    match (number, count.map(ShardCount::new)) {
        (Some(number), Some(Ok(count))) if number < count.get() => {
            let (first, last) = count.buckets(ShardId(number));
            let expected = format!("{first}-{last}");
            if annotation(lease, "buckets") != Some(expected.as_str()) {
                damage.push("annotation database.io/buckets is not the range of this shard");
            }
        }
        (Some(_), _) => damage.push("annotation database.io/shards does not fit the name"),
        (None, _) => {}
    }
    ShardView {
        lease: safe(name, NAME_CHARS_MAX),
        shard: number,
        holder: holder(lease).map(|holder| safe(holder, NAME_CHARS_MAX)),
        incarnation: shown(lease, "incarnation"),
        epoch,
        buckets: shown(lease, "buckets"),
        successor: shown(lease, "successor"),
        orphaned: false,
        damage: joined(&damage),
    }
}

fn shard_number(name: &str) -> Option<u16> {
    let digits = name.strip_prefix(SHARD_PREFIX)?;
    let plain = digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit());
    let number = digits.parse().ok()?;
    (plain && number < 256).then_some(number)
}

fn joined(damage: &[&str]) -> Option<String> {
    (!damage.is_empty()).then(|| damage.join("; "))
}

#[cfg(test)]
#[path = "fleet_view_tests.rs"]
pub(super) mod tests;
