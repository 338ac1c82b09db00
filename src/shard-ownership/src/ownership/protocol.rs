//! The interface of the ownership state machine: settings, events, actions.

use crate::hash::{ShardCount, ShardId};
use crate::lease::{MemberLease, MemberWrite, ShardLease, ShardWrite};
use crate::table::{ShardTable, TableWrite};

/// Identifies one write, so that its outcome can be assigned to it.
pub type WriteId = u64;

/// Configuration of this replica. All times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Our identity: Pod name, or host name and a random suffix.
    pub identity: String,
    /// Uid of our Pod, or empty.
    pub pod_uid: String,
    /// Number of shards.
    pub shards: ShardCount,
    /// Lifetime of a member Lease without a renewal.
    pub lease_ms: u64,
    /// Time between renewals.
    pub renew_ms: u64,
    /// Pause before a failed renewal is retried.
    pub retry_ms: u64,
    /// Safety margin: subtracted from the lifetime of our own Lease, so that we stop before others
    /// start.
    pub margin_ms: u64,
    /// Longest tick that counts as silence of others.
    pub tick_max_ms: u64,
    /// Additional delay per rank before a replica takes a free shard.
    pub step_ms: u64,
    /// How long the work of a shard may take to finish before the shard is handed over regardless.
    pub drain_timeout_ms: u64,
}

impl Settings {
    /// The defaults for an identity: a lifetime of 6 s, renewed every 2 s.
    #[must_use]
    pub fn new(identity: &str, shards: ShardCount) -> Self {
        Self {
            identity: identity.to_owned(),
            pod_uid: String::new(),
            shards,
            lease_ms: 6000,
            renew_ms: 2000,
            retry_ms: 200,
            margin_ms: 1000,
            tick_max_ms: 500,
            step_ms: 500,
            drain_timeout_ms: 10_000,
        }
    }
}

/// The outcome of a write, as far as known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WriteResult<L> {
    /// Carried out; this is stored now.
    Done(L),
    /// Another version is stored (409), or none (404).
    Conflict,
    /// Rejected permanently (403, 422): nothing changed.
    Rejected,
    /// No reply: it may have taken effect, or may still do so.
    Unknown,
}

impl<L> WriteResult<L> {
    /// The same outcome, with what was stored in another form.
    pub fn map<M>(self, form: impl FnOnce(L) -> M) -> WriteResult<M> {
        match self {
            Self::Done(stored) => WriteResult::Done(form(stored)),
            Self::Conflict => WriteResult::Conflict,
            Self::Rejected => WriteResult::Rejected,
            Self::Unknown => WriteResult::Unknown,
        }
    }
}

/// A read failed: the API server did not answer, or answered with neither the object nor 404.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReadFailed;

/// An input of the state machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// All Leases, after a fresh list.
    Listed {
        /// All member Leases: a member that is missing here was deleted.
        members: Vec<MemberLease>,
        /// All shard Leases: one that is missing here does not exist, as far as the list shows.
        shards: Vec<ShardLease>,
    },
    /// A member Lease changed.
    MemberObserved(MemberLease),
    /// A member Lease was deleted.
    MemberDeleted {
        /// Identity of the replica whose Lease it was.
        identity: String,
        /// Uid of the deleted Lease, so that a later one is not taken for it.
        uid: String,
    },
    /// A shard Lease changed.
    ShardObserved(ShardLease),
    /// A shard Lease was deleted.
    ShardDeleted {
        /// The shard whose Lease it was.
        shard: ShardId,
        /// Uid of the deleted Lease, so that a later one is not taken for it.
        uid: String,
    },
    /// Outcome of [`Action::WriteMember`]; `None`: the Lease was deleted.
    MemberWritten(WriteId, WriteResult<Option<MemberLease>>),
    /// Outcome of [`Action::WriteShard`].
    ShardWritten(WriteId, WriteResult<ShardLease>),
    /// Answer to [`Action::ReadMember`].
    MemberRead(String, Result<Option<MemberLease>, ReadFailed>),
    /// Answer to [`Action::ReadShard`].
    ShardRead(ShardId, Result<Option<ShardLease>, ReadFailed>),
    /// The shard table, or its absence, after a fresh list.
    TableListed(Option<ShardTable>),
    /// The shard table changed.
    TableObserved(ShardTable),
    /// The shard table with this uid was deleted.
    TableDeleted(String),
    /// Outcome of [`Action::WriteTable`].
    TableWritten(WriteId, WriteResult<ShardTable>),
    /// Answer to [`Action::ReadTable`].
    TableRead(Result<Option<ShardTable>, ReadFailed>),
    /// Answer to [`Action::ProbeTable`]: whether we may write the table.
    TableProbed(bool),
    /// All objects of the shard have been listed.
    Warm(ShardId),
    /// No reconcile of the shard runs any more.
    Drained(ShardId),
    /// Leave: hand all shards back.
    Shutdown,
    /// Answer to [`Action::NeedIncarnation`]: a fresh random nonce.
    Reincarnate(String),
}

/// Why a shard changed hands, as a bounded set for a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Its Lease did not exist.
    Created,
    /// It was vacant.
    Vacant,
    /// Its holder died.
    Takeover,
    /// It was ours in a former incarnation.
    Resumed,
    /// It was handed over to us, or was ours already: validity had lapsed, or the Lease had not
    /// been read yet.
    Named,
    /// Handed over as planned.
    HandedOver,
    /// Handed back because we leave.
    Leaving,
    /// Our validity ended.
    Lapsed,
    /// The Lease no longer names us under the same epoch.
    Lost,
    /// Our incarnation is dead.
    Dead,
    /// The table is ahead of our Lease: the epoch is raised above it.
    Raised,
    /// The shard table was deleted or replaced.
    TableLost,
}

impl Reason {
    /// Every reason, for metrics that start at zero.
    pub const ALL: [Self; 12] = [
        Self::Created,
        Self::Vacant,
        Self::Takeover,
        Self::Resumed,
        Self::Named,
        Self::HandedOver,
        Self::Leaving,
        Self::Lapsed,
        Self::Lost,
        Self::Dead,
        Self::Raised,
        Self::TableLost,
    ];

    /// The value of the metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Vacant => "vacant",
            Self::Takeover => "takeover",
            Self::Resumed => "resumed",
            Self::Named => "named",
            Self::HandedOver => "handed_over",
            Self::Leaving => "leaving",
            Self::Lapsed => "lapsed",
            Self::Lost => "lost",
            Self::Dead => "dead",
            Self::Raised => "raised",
            Self::TableLost => "table_lost",
        }
    }
}

/// An output of the state machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write a member Lease; answer with [`Event::MemberWritten`].
    WriteMember(WriteId, MemberWrite),
    /// Write a shard Lease; answer with [`Event::ShardWritten`].
    WriteShard(WriteId, ShardWrite),
    /// Read a member Lease from the API server, not from a cache.
    ReadMember(String),
    /// Read a shard Lease from the API server, not from a cache.
    ReadShard(ShardId),
    /// Write the shard table; answer with [`Event::TableWritten`].
    WriteTable(WriteId, TableWrite),
    /// Read the shard table from the API server, not from a cache.
    ReadTable,
    /// Find out whether we may write the table, by a dry run.
    ProbeTable,
    /// We may act until this time.
    ValidUntil(u64),
    /// Watch the objects of a shard; answer with [`Event::Warm`] when all are listed.
    Watch(ShardId),
    /// Stop watching a shard and forget its objects.
    Unwatch(ShardId),
    /// Work on the shard under this epoch.
    Admit {
        /// The shard in which work may start.
        shard: ShardId,
        /// Uid of the shard table that grants the right.
        table: String,
        /// Number of this right, which every write carries in its fencing token.
        epoch: u32,
        /// How the shard became ours.
        reason: Reason,
        /// Time from observing that it was free to holding it, in milliseconds.
        waited_ms: u64,
    },
    /// Continue work on a draining shard: its successor no longer exists.
    Resume(ShardId),
    /// Start no more work in the shard; answer with [`Event::Drained`] when none runs.
    Drain(ShardId),
    /// Stop the shard immediately: cancel running work before its next write.
    Halt(ShardId, Reason),
    /// Our incarnation is dead: send [`Event::Reincarnate`] with a fresh nonce.
    NeedIncarnation,
    /// Another process uses our identity.
    IdentityTaken,
    /// Everything was handed back: exit.
    Exit,
}
