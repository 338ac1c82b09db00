//! Who owns which shard: a pure state machine over Leases and a fencing table.
//!
//! ```text
//!   API server                     this crate                       the caller
//!
//!   member Leases  ──┐                                     ┌──►  requests: read or write a Lease
//!   shard Leases   ──┼─ Event ─►  Ownership::handle  ─ Action ──►  work: Watch, Admit, Drain, Halt
//!   shard table    ──┘           ▲  (now, event)           └──►  ValidUntil: stop by yourself then
//!         ▲                      │                                    │
//!         │                      └──── Event: outcome, Warm, Drained ─┤
//!         └───────────────────────────── requests ────────────────────┘
//! ```
//!
//! Several replicas of one program divide work that lies in *shards*. Each replica keeps one *member
//! Lease* alive. Each shard has a *shard Lease*, which is its lock and names the holder, and an entry
//! in the *shard table*, which is what a fence compares writes with. This crate decides, for one
//! replica, when to read and write these objects and in which shards it may work. It sends nothing
//! itself and reads no clock, so that a simulation can run whole fleets through every fault.
//!
//! # How to drive it
//!
//! Create an [`Ownership`] with a fresh random nonce, and give it every [`Event`] with the time at
//! which it is handled. Carry out the [`Action`]s in the order in which they are returned. Requests
//! may run concurrently; each has exactly one outcome, which is an event of its own. Send
//! [`Event::Tick`] when no event has come by the time that [`Ownership::next_wakeup_ms`] returns.
//!
//! A replica that is alone, from its start until it works in its only shard:
//!
//! ```
//! use std::collections::VecDeque;
//!
//! use shard_ownership::hash::ShardCount;
//! use shard_ownership::lease::{MemberChange, MemberLease, ShardLease, Version};
//! use shard_ownership::ownership::{Action, Event, Ownership, Settings, WriteResult};
//! use shard_ownership::table::{ShardTable, carried_out};
//!
//! let settings = Settings::new("replica-a", ShardCount::new(1)?);
//! let mut machine = Ownership::new(settings, "nonce-1".into(), 0);
//!
//! // An API server in which nothing is stored yet, and which stores whatever it is sent.
//! let (mut revision, mut table) = (0, None);
//! let mut version = |uid: &str| {
//!     revision += 1;
//!     Version { uid: uid.into(), resource_version: revision.to_string() }
//! };
//! let first_lists = [Event::Listed { members: vec![], shards: vec![] }, Event::TableListed(None)];
//! let mut events = VecDeque::from(first_lists);
//!
//! let mut now_ms = 0;
//! let admitted = 'running: loop {
//!     let event = events.pop_front().unwrap_or_else(|| {
//!         now_ms = machine.next_wakeup_ms();
//!         Event::Tick
//!     });
//!     for action in machine.handle(now_ms, event) {
//!         events.push_back(match action {
//!             Action::ReadMember(identity) => Event::MemberRead(identity, Ok(None)),
//!             Action::ReadTable => Event::TableRead(Ok(table.clone())),
//!             Action::WriteMember(id, write) => {
//!                 let MemberChange::Renew { incarnation, renewal, draining, barred, drain_requested, warm } = write.change
//!                 else { unreachable!("nobody else is there, and we do not leave") };
//!                 let lease = MemberLease {
//!                     identity: write.identity.clone(),
//!                     version: version("member"),
//!                     holder: write.identity,
//!                     incarnation,
//!                     renewal,
//!                     lease_ms: 6000,
//!                     pod_uid: String::new(),
//!                     revision: String::new(),
//!                     shards: 1,
//!                     draining,
//!                     barred,
//!                     drain_requested,
//!                     warm,
//!                     created_seconds: 0,
//!                 };
//!                 Event::MemberWritten(id, WriteResult::Done(Some(lease)))
//!             }
//!             Action::WriteShard(id, write) => {
//!                 let lease = ShardLease {
//!                     shard: write.shard,
//!                     version: version("shard"),
//!                     holder: write.holder,
//!                     incarnation: write.incarnation,
//!                     epoch: write.epoch,
//!                     shards: 1,
//!                     successor: write.successor,
//!                 };
//!                 Event::ShardWritten(id, WriteResult::Done(lease))
//!             }
//!             Action::WriteTable(id, write) => {
//!                 let (shards, entries) = carried_out(table.as_ref(), &write).expect("a valid write");
//!                 let stored = ShardTable { version: version("table"), shards, entries };
//!                 table = Some(stored.clone());
//!                 Event::TableWritten(id, WriteResult::Done(stored))
//!             }
//!             Action::Watch(shard) => Event::Warm(shard),
//!             Action::ValidUntil(until_ms) => {
//!                 assert!(until_ms > now_ms);
//!                 continue;
//!             }
//!             admit @ Action::Admit { .. } => break 'running admit,
//!             other => unreachable!("{other:?}"),
//!         });
//!     }
//! };
//! assert!(matches!(admitted, Action::Admit { epoch: 1, .. }));
//! assert!(machine.is_valid(now_ms));
//! # Ok::<(), shard_ownership::hash::BadShardCount>(())
//! ```
//!
//! # Guarantees
//!
//! Each has a test beside it, in the simulation or in the model (`tests/simulation`).
//!
//! - A shard is started only when its Lease and its entry in the shard table name this incarnation
//!   under one epoch.
//! - It is stopped at once when holder, incarnation, epoch or uid of the Lease change, when the table
//!   is another, or when validity ends. Validity ends before any other replica can conclude that this
//!   one is dead.
//! - Epochs only rise. No two incarnations work in one shard under the same epoch.
//! - Every write is a compare-and-swap on uid and resourceVersion. A write whose outcome is unknown is
//!   settled by another one from the same version, and what depends on it stays stopped until then.
//! - After every event, the decision depends on the objects in their current state, and not on the
//!   events that led there: an event that is lost is made good by the next list.
//!
//! # Assumptions
//!
//! - The time counts suspended time and never jumps. Clocks need not agree; their rates differ by less
//!   than [`Settings::margin_ms`] in [`Settings::lease_ms`].
//! - Every incarnation has a nonce that no other has.
//! - The caller stops all work by the time that [`Action::ValidUntil`] reports, even if no event is
//!   handled meanwhile.
//! - The API server carries out compare-and-swap, and resource versions of one object can be compared
//!   as numbers. A restored backup, a Lease that is edited or deleted by hand and a stalled watch are
//!   expected.
//!
//! # What it does not do
//!
//! - It does not reject writes. When Leases are edited or deleted by hand, two replicas may for a
//!   moment work in one shard, under different epochs; the fence of the caller compares the epochs
//!   ([`token`]).
//! - It does not plan moves for balance. A fleet leader does, with [`planner`], and it may be missing
//!   or exist twice.
//! - It does not remove Leases of dead members ([`dead_members`]).
//! - It reads no objects of a shard, and does not know what the work is.
//!
//! [`Ownership`]: ownership::Ownership
//! [`Event`]: ownership::Event
//! [`Event::Tick`]: ownership::Event::Tick
//! [`Action`]: ownership::Action
//! [`Action::ValidUntil`]: ownership::Action::ValidUntil
//! [`Ownership::next_wakeup_ms`]: ownership::Ownership::next_wakeup_ms
//! [`Settings::margin_ms`]: ownership::Settings::margin_ms
//! [`Settings::lease_ms`]: ownership::Settings::lease_ms

#[doc(hidden)]
pub mod benchmarks;
pub mod dead_members;
pub mod hash;
pub mod lease;
pub mod liveness;
pub mod members;
pub mod ownership;
pub mod planner;
pub mod resource_version;
mod ring;
pub mod table;
pub mod token;
