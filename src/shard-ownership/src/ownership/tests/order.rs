//! One state machine, and a test that chooses when each request arrives, is answered and is
//! observed.

use std::collections::BTreeSet;

use super::*;
use crate::hash::{ShardCount, ShardId};
use crate::lease::{MemberChange, MemberWrite, ShardWrite, Successor, Version};
use crate::table::{ShardTable, TableWrite, carried_out};

const SHARD: ShardId = ShardId(0);

/// A replica among two shards, "me". Its member Lease is written as it asks, unless the test says otherwise.
struct SingleReplica {
    machine: Ownership,
    now_ms: u64,
    revision: u64,
    loses_member_writes: bool,
    /// Held back writes of its member Lease.
    held_back: Option<Vec<(WriteId, MemberWrite)>>,
    member: Option<MemberLease>,
    /// How its member Lease was ended.
    ended: Option<MemberChange>,
    table: Option<ShardTable>,
    sent: Vec<(WriteId, ShardWrite)>,
    did: Vec<Action>,
}

impl SingleReplica {
    fn new() -> Self {
        Self::living("me-1")
    }

    fn living(incarnation: &str) -> Self {
        let settings = Settings::new("me", ShardCount::new(2).unwrap());
        Self {
            machine: Ownership::new(settings, incarnation.into(), 0),
            now_ms: 0,
            revision: 0,
            loses_member_writes: false,
            held_back: None,
            member: None,
            ended: None,
            table: None,
            sent: Vec::new(),
            did: Vec::new(),
        }
    }

    /// Has observed all Leases, and may act.
    fn joined(others: Vec<MemberLease>, shards: Vec<ShardLease>) -> Self {
        Self::new().joins(others, shards)
    }

    fn joins(mut self, members: Vec<MemberLease>, shards: Vec<ShardLease>) -> Self {
        self.send(Event::Listed { members, shards });
        self.pass(100);
        self
    }

    /// Both shards are ours and run in epoch 1.
    fn at_work() -> Self {
        let mut me = Self::joined(Vec::new(), Vec::new());
        me.pass(2000);
        for (id, write) in std::mem::take(&mut me.sent) {
            let lease = me.lease(&write, &format!("uid-{}", write.shard));
            me.send(Event::ShardWritten(id, WriteResult::Done(lease.clone())));
            me.send(Event::ShardObserved(lease));
            me.send(Event::Warm(write.shard));
        }
        assert_eq!(me.machine.running().count(), 2);
        me
    }

    fn version(&mut self, uid: &str) -> Version {
        self.revision += 1;
        Version {
            uid: uid.to_owned(),
            resource_version: self.revision.to_string(),
        }
    }

    fn lease(&mut self, write: &ShardWrite, uid: &str) -> ShardLease {
        ShardLease {
            shard: write.shard,
            version: self.version(uid),
            holder: write.holder.clone(),
            incarnation: write.incarnation.clone(),
            epoch: write.epoch,
            shards: 2,
            successor: write.successor.clone(),
        }
    }

    fn lease_of(&mut self, holder: &str, epoch: u32, uid: &str) -> ShardLease {
        ShardLease {
            shard: SHARD,
            version: self.version(uid),
            holder: holder.to_owned(),
            incarnation: format!("{holder}-1"),
            epoch,
            shards: 2,
            successor: None,
        }
    }

    /// As `lease_of`, with another replica as planned successor.
    fn planned(&mut self, holder: &str, epoch: u32, next: &str) -> ShardLease {
        let mut lease = self.lease_of(holder, epoch, "uid-0");
        lease.successor = Some(Successor {
            identity: next.to_owned(),
            incarnation: format!("{next}-1"),
        });
        lease
    }

    fn member(&mut self, identity: &str) -> MemberLease {
        MemberLease {
            identity: identity.to_owned(),
            version: self.version(&format!("uid-{identity}")),
            holder: identity.to_owned(),
            incarnation: format!("{identity}-1"),
            renewal: 1,
            lease_ms: 6000,
            pod_uid: String::new(),
            revision: String::new(),
            shards: 2,
            draining: false,
            barred: false,
            drain_requested: false,
            warm: BTreeSet::new(),
            created_seconds: 0,
        }
    }

    fn send(&mut self, event: Event) {
        for action in self.machine.handle(self.now_ms, event) {
            match action {
                Action::WriteShard(id, write) => self.sent.push((id, write)),
                Action::WriteMember(id, write) => match self.held_back.as_mut() {
                    Some(held_back) => held_back.push((id, write)),
                    None => self.write_member(id, &write),
                },
                Action::NeedIncarnation => self.send(Event::Reincarnate("me-2".into())),
                Action::WriteTable(id, write) => self.write_table(id, &write),
                Action::ReadTable => self.send(Event::TableRead(Ok(self.table.clone()))),
                Action::ReadMember(identity) => {
                    let read = self
                        .member
                        .clone()
                        .filter(|lease| lease.identity == identity);
                    self.send(Event::MemberRead(identity, Ok(read)));
                }
                other => self.did.push(other),
            }
        }
    }

    fn write_member(&mut self, id: WriteId, write: &MemberWrite) {
        let MemberChange::Renew {
            incarnation,
            renewal,
            draining,
            ..
        } = &write.change
        else {
            self.ended = Some(write.change.clone());
            return;
        };
        let result = if self.loses_member_writes {
            WriteResult::Unknown
        } else if write.base.is_some() && self.member.is_none() {
            WriteResult::Conflict
        } else {
            let mut lease = self.member("me");
            lease.incarnation.clone_from(incarnation);
            (lease.renewal, lease.draining) = (*renewal, *draining);
            self.member = Some(lease.clone());
            WriteResult::Done(Some(lease))
        };
        self.send(Event::MemberWritten(id, result));
    }

    fn write_table(&mut self, id: WriteId, write: &TableWrite) {
        let (shards, entries) = carried_out(self.table.as_ref(), write).unwrap();
        let table = ShardTable {
            version: self.version("table"),
            shards,
            entries,
        };
        self.table = Some(table.clone());
        self.send(Event::TableWritten(id, WriteResult::Done(table)));
    }

    fn pass(&mut self, for_ms: u64) {
        for _ in 0..for_ms / 25 {
            self.now_ms += 25;
            self.send(Event::Tick);
        }
    }

    /// The only write of the shard that was sent since the last one was taken.
    fn write(&mut self) -> (WriteId, ShardWrite) {
        let mine = self.sent.iter().filter(|(_, write)| write.shard == SHARD);
        assert_eq!(mine.count(), 1, "{:?}", self.sent);
        let position = self.sent.iter().position(|(_, write)| write.shard == SHARD);
        self.sent.remove(position.unwrap())
    }

    fn writes_nothing(&self) -> bool {
        self.sent.iter().all(|(_, write)| write.shard != SHARD)
    }

    fn watched_end(&mut self, uid: &str) {
        self.send(Event::ShardDeleted {
            shard: SHARD,
            uid: uid.to_owned(),
        });
    }

    fn runs(&self) -> Option<u32> {
        let mut running = self.machine.running();
        running.find(|(id, _)| *id == SHARD).map(|(_, epoch)| epoch)
    }

    fn has_read(&mut self) -> bool {
        let has_read = self.did.contains(&Action::ReadShard(SHARD));
        self.did.clear();
        has_read
    }
}

/// A Lease is taken, seen and deleted, and only then comes the reply to the taking.
fn taken_and_ended_before_the_reply(incarnation: &str) -> (SingleReplica, ShardLease) {
    let mut me = SingleReplica::living(incarnation).joins(Vec::new(), Vec::new());
    let vacant = me.lease_of("", 3, "uid-0");
    me.send(Event::ShardObserved(vacant));
    me.pass(2000);
    let (id, write) = me.write();
    let lease = me.lease(&write, "uid-0");
    me.send(Event::ShardObserved(lease.clone()));
    me.watched_end("uid-0");
    me.did.clear();
    me.send(Event::ShardWritten(id, WriteResult::Done(lease.clone())));
    (me, lease)
}

#[test]
fn late_reply_for_a_deleted_lease_starts_nothing() {
    let (mut me, lease) = taken_and_ended_before_the_reply("me-1");
    assert!(me.has_read(), "it must be asked whether the Lease is there");
    me.send(Event::Warm(SHARD));
    assert_eq!(me.runs(), None);
    me.send(Event::ShardRead(SHARD, Ok(None)));
    me.pass(500);
    let (_, again) = me.write();
    assert_eq!(again.base, None);
    assert!(again.epoch > lease.epoch, "{again:?}");
}

#[test]
fn lease_read_after_its_deletion_was_observed_exists_again() {
    let (mut me, lease) = taken_and_ended_before_the_reply("me-1");
    assert!(me.has_read());
    // Restored from a backup, it has the uid that it had.
    me.send(Event::ShardRead(SHARD, Ok(Some(lease.clone()))));
    me.pass(100);
    me.send(Event::Warm(SHARD));
    assert_eq!(me.runs(), Some(lease.epoch));
}

#[test]
fn a_write_without_an_answer_is_not_repeated_once_the_lease_moved_on() {
    let other = SingleReplica::new().member("other");
    let mut me = SingleReplica::joined(vec![other], Vec::new());
    me.pass(3000);
    me.pass(100);
    let (id, first) = me.write();
    let theirs = me.lease_of("other", first.epoch + 100, "uid-0");
    me.send(Event::ShardObserved(theirs.clone()));
    me.send(Event::ShardWritten(id, WriteResult::Unknown));
    me.pass(1000);
    assert!(me.writes_nothing(), "{:?}", me.sent);
    // No old request is left that could take effect once the Lease is deleted.
    me.watched_end("uid-0");
    me.pass(100);
    assert!(me.writes_nothing(), "{:?}", me.sent);
}

#[test]
fn replica_with_an_unanswered_create_vacates_its_lease_instead_of_deleting_it() {
    for (unanswered, lives, end) in [
        (false, 1, MemberChange::Delete),
        (true, 1, MemberChange::Vacate),
        (true, 2, MemberChange::Vacate),
    ] {
        let mut me = SingleReplica::new();
        me.loses_member_writes = unanswered;
        let members = vec![me.member("other")];
        let mut shards = vec![
            me.lease_of("other", 1, "uid-0"),
            me.lease_of("other", 1, "uid-1"),
        ];
        shards[1].shard = ShardId(1);
        me.send(Event::Listed { members, shards });
        me.loses_member_writes = false;
        me.pass(1000);
        if lives == 2 {
            me.member = None;
            me.pass(2000);
        }
        let now = me.member.as_ref().map(|lease| lease.incarnation.clone());
        assert_eq!(now, Some(format!("me-{lives}")));
        me.send(Event::Shutdown);
        me.pass(3000);
        assert_eq!(
            me.ended,
            Some(end),
            "unanswered: {unanswered}, lives: {lives}"
        );
    }
}

#[test]
fn shard_received_while_leaving_is_handed_over_and_not_vacated() {
    let other = SingleReplica::new().member("other");
    let mut me = SingleReplica::joined(vec![other], Vec::new());
    let theirs = me.planned("other", 5, "me");
    me.send(Event::ShardObserved(theirs));
    me.held_back = Some(Vec::new());
    me.send(Event::Shutdown);
    let given = me.lease_of("me", 6, "uid-0");
    me.send(Event::ShardObserved(given));
    me.pass(200);
    assert!(
        me.writes_nothing(),
        "no member knows yet that we leave: {:?}",
        me.sent
    );
    for (id, write) in me.held_back.take().unwrap() {
        me.write_member(id, &write);
    }
    let mine = me.member.clone().unwrap();
    assert!(mine.draining);
    me.send(Event::MemberObserved(mine));
    me.pass(100);
    let (_, write) = me.write();
    assert_eq!(write.holder, "other");
}

#[test]
fn leaving_of_a_former_incarnation_does_not_apply_to_the_current_one() {
    let mut former = SingleReplica::new().member("me");
    (former.incarnation, former.draining) = ("me-0".into(), true);
    let mut me = SingleReplica::at_work();
    me.send(Event::MemberObserved(former));
    me.send(Event::Shutdown);
    me.pass(200);
    assert!(me.member.as_ref().unwrap().draining);
    let drain = Action::Drain(SHARD);
    assert!(!me.did.contains(&drain), "newcomers were not observed yet");
    let mine = me.member.clone().unwrap();
    me.send(Event::MemberObserved(mine));
    assert!(me.did.contains(&drain), "{:?}", me.did);
    me.send(Event::Drained(SHARD));
    me.pass(100);
    assert_eq!(me.write().1.holder, "");
}

/// Plans the shard for another, who has or has not listed it.
fn plan(me: &mut SingleReplica, next: &str, warm: bool) {
    let mut member = me.member(next);
    member.warm = warm.then_some(SHARD).into_iter().collect();
    me.did.clear();
    me.send(Event::MemberObserved(member));
    let epoch = me.runs().unwrap();
    let lease = me.planned("me", epoch, next);
    me.send(Event::ShardObserved(lease));
}

#[test]
fn plan_changed_while_draining_resumes_work_until_the_new_successor_is_warm() {
    let mut me = SingleReplica::at_work();
    plan(&mut me, "other", true);
    assert!(me.did.contains(&Action::Drain(SHARD)), "{:?}", me.did);
    plan(&mut me, "third", false);
    assert!(me.did.contains(&Action::Resume(SHARD)), "{:?}", me.did);
    me.send(Event::Drained(SHARD));
    me.pass(100);
    assert!(me.writes_nothing(), "{:?}", me.sent);
    plan(&mut me, "third", true);
    assert!(me.did.contains(&Action::Drain(SHARD)), "{:?}", me.did);
    me.send(Event::Drained(SHARD));
    assert_eq!(me.write().1.holder, "third");
}

/// The fleet leader's change of the plan, for one who has not listed the shard, comes before our write.
fn another_plan_came_first(me: &mut SingleReplica, (id, write): (WriteId, &ShardWrite)) {
    me.send(Event::ShardWritten(id, WriteResult::Conflict));
    let lease = me.planned("me", write.epoch - 1, "third");
    let third = me.member("third");
    me.send(Event::MemberObserved(third));
    me.send(Event::ShardRead(SHARD, Ok(Some(lease))));
}

#[test]
fn plan_changed_after_draining_resumes_work_until_the_new_successor_is_warm() {
    let mut me = SingleReplica::at_work();
    plan(&mut me, "other", true);
    me.send(Event::Drained(SHARD));
    let (id, write) = me.write();
    assert_eq!(write.holder, "other");
    another_plan_came_first(&mut me, (id, &write));
    assert!(me.did.contains(&Action::Resume(SHARD)), "{:?}", me.did);
    assert!(me.writes_nothing(), "{:?}", me.sent);
    assert!(me.runs().is_some());
}

#[test]
fn cancelled_work_is_not_resumed_and_its_shard_moves() {
    let mut me = SingleReplica::at_work();
    plan(&mut me, "other", true);
    me.did.clear();
    me.pass(10_500);
    let halted = Action::Halt(SHARD, Reason::HandedOver);
    assert!(me.did.contains(&halted), "{:?}", me.did);
    let (id, write) = me.write();
    assert_eq!(write.holder, "other");
    another_plan_came_first(&mut me, (id, &write));
    assert!(!me.did.contains(&Action::Resume(SHARD)), "{:?}", me.did);
    assert_eq!(me.write().1.holder, "third");
}

#[test]
fn leaving_replica_waits_briefly_for_shards_handed_to_it() {
    let other = SingleReplica::new().member("other");
    let mut me = SingleReplica::joined(vec![other], Vec::new());
    let theirs = me.planned("other", 5, "me");
    me.send(Event::ShardObserved(theirs));
    let mut second = me.lease_of("other", 5, "uid-1");
    second.shard = ShardId(1);
    me.send(Event::ShardObserved(second));
    me.send(Event::Shutdown);
    me.pass(500);
    assert_eq!(me.ended, None);
    // By now its holder knows about the leave, and keeps the shard.
    let kept = me.lease_of("other", 5, "uid-0");
    me.send(Event::ShardObserved(kept));
    assert_eq!(me.ended, Some(MemberChange::Delete));
}
