//! One replica of the model: its machine, its permits, and its faults.

use std::collections::{BTreeMap, BTreeSet};

use crate::server::MemberMeta;
use shard_ownership::hash::{ShardCount, ShardId};
use shard_ownership::lease::ShardLease;
use shard_ownership::ownership::{Event, Ownership, Settings, WriteResult};
use shard_ownership::table::TableWrite;
use shard_ownership::token::FencingToken;

/// What happens to the next request of a replica, of those for Leases or of those for the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NextRequest {
    /// It arrives, and its answer does.
    #[default]
    Arrives,
    /// It never arrives.
    IsLost,
    /// It arrives, and its answer does not.
    LosesItsReply,
    /// It arrives when its sender no longer waits.
    IsLate,
}

/// The right to act, as the workers see it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Permit {
    pub(crate) token: FencingToken,
    pub(crate) admitting: bool,
    pub(crate) busy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Up {
    Running,
    Paused,
    Crashed,
    Left,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Replica {
    pub(crate) identity: String,
    pub(crate) lives: u32,
    pub(crate) incarnation: String,
    pub(crate) machine: Ownership,
    pub(crate) meta: MemberMeta,
    pub(crate) valid_until_ms: u64,
    pub(crate) permits: BTreeMap<ShardId, Permit>,
    pub(crate) watching: BTreeSet<ShardId>,
    pub(crate) up: Up,
    pub(crate) cut: bool,
    pub(crate) leaving: bool,
    pub(crate) next: NextRequest,
    /// The same for requests for the table.
    pub(crate) next_of_table: NextRequest,
    /// The highest epoch of each shard under which it is known to have won the Lease, in this incarnation.
    pub(crate) won: BTreeMap<ShardId, u32>,
    /// Whether the API server ever refused it to write the table.
    pub(crate) was_refused: bool,
    /// Several entries that were refused together.
    pub(crate) refused_batch: Option<TableWrite>,
    /// Events that wait while the replica is frozen.
    pub(crate) inbox: Vec<Event>,
    /// What its watch holds back, while it does.
    pub(crate) held_back: Option<Vec<Event>>,
    /// What its watch of the table holds back, while it does.
    pub(crate) table_held_back: Option<Vec<Event>>,
}

/// Short times, so that a takeover is a few steps away.
pub(crate) fn settings(identity: &str, shards: ShardCount) -> Settings {
    Settings {
        pod_uid: format!("pod-{identity}"),
        lease_ms: 3000,
        renew_ms: 1000,
        retry_ms: 500,
        margin_ms: 1000,
        tick_max_ms: 1000,
        step_ms: 1000,
        drain_timeout_ms: 3000,
        ..Settings::new(identity, shards)
    }
}

impl Replica {
    pub(crate) fn new(
        identity: &str,
        incarnation: String,
        shards: ShardCount,
        now_ms: u64,
    ) -> Self {
        let settings = settings(identity, shards);
        Self {
            identity: identity.to_owned(),
            lives: 1,
            meta: MemberMeta {
                lease_ms: settings.lease_ms,
                pod_uid: settings.pod_uid.clone(),
                revision: String::new(),
                shards: shards.get(),
            },
            machine: Ownership::new(settings, incarnation.clone(), now_ms),
            incarnation,
            valid_until_ms: 0,
            permits: BTreeMap::new(),
            watching: BTreeSet::new(),
            up: Up::Running,
            cut: false,
            leaving: false,
            next: NextRequest::Arrives,
            next_of_table: NextRequest::Arrives,
            won: BTreeMap::new(),
            was_refused: false,
            refused_batch: None,
            inbox: Vec::new(),
            held_back: None,
            table_held_back: None,
        }
    }

    /// Remembers the Leases that it is shown to have won.
    pub(crate) fn note_won(&mut self, event: &Event) {
        let shown: &[ShardLease] = match event {
            Event::Listed { shards, .. } => shards,
            Event::ShardObserved(lease)
            | Event::ShardRead(_, Ok(Some(lease)))
            | Event::ShardWritten(_, WriteResult::Done(lease)) => std::slice::from_ref(lease),
            _ => &[],
        };
        for lease in shown {
            if lease.holder == self.identity && lease.incarnation == self.incarnation {
                let known = self.won.entry(lease.shard).or_default();
                *known = lease.epoch.max(*known);
            }
        }
    }

    pub(crate) fn is_there(&self) -> bool {
        matches!(self.up, Up::Running | Up::Paused)
    }

    /// The right under which its workers may write without a request.
    pub(crate) fn acts(
        &self,
        shard: ShardId,
        now_ms: u64,
        ignore_validity: bool,
    ) -> Option<&FencingToken> {
        let permit = self.permits.get(&shard)?;
        let valid = now_ms < self.valid_until_ms || (ignore_validity && self.up == Up::Running);
        (self.is_there() && valid && (permit.admitting || permit.busy)).then_some(&permit.token)
    }
}
