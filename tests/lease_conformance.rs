//! The Leases and the shard table that the simulation and the model assume behave as the real API server's: the same
//! random operations on both end the same way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use databasecluster_operator::api::names::NAMES;
use databasecluster_operator::api::shard_table_crd;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::PostParams;
use shard_ownership as assumed;
use shard_ownership::hash::{ShardCount, ShardId};
use shard_ownership::lease::{MemberChange, MemberWrite, ShardWrite, Version};
use shard_ownership::ownership::WriteResult;
use shard_ownership::table::{Entry, TableChange, TableWrite};
use shard_ownership::token::{EPOCH_MAX, EPOCH_STEP_MAX};
use sharded_controller::fleet::leases::{HeartbeatReport, LeaseCodec, LeaseStore, SelfDescription};
use sharded_controller::fleet::shard_table::ShardTable;
use sharded_controller::fleet::table::TableStore;
use simulation::{MemberMeta, Random, Sabotage, Server};
use testbed::{ControlPlane, ControlPlaneOptions, Progress, wait_for};

const OPERATIONS: usize = 400;
const TABLE_ROUNDS: usize = 4;
const OPERATIONS_OF_A_TABLE: usize = 150;
const SEED: u64 = 20_261_123;

/// How a write ended, without what it left.
fn kind<L>(result: &WriteResult<L>) -> &'static str {
    match result {
        WriteResult::Done(_) => "done",
        WriteResult::Conflict => "conflict",
        WriteResult::Rejected => "rejected",
        WriteResult::Unknown => "unknown",
    }
}

fn assumed_kind<L>(result: &assumed::ownership::WriteResult<L>) -> &'static str {
    match result {
        assumed::ownership::WriteResult::Done(_) => "done",
        assumed::ownership::WriteResult::Conflict => "conflict",
        assumed::ownership::WriteResult::Rejected => "rejected",
        assumed::ownership::WriteResult::Unknown => "unknown",
    }
}

/// A version as both sides know it.
type Both = (Version, assumed::lease::Version);

struct Pair {
    store: LeaseStore,
    model: Server,
    meta: MemberMeta,
    members: Vec<Both>,
    shards: Vec<Both>,
    random: Random,
    done: usize,
    conflicts: usize,
}

impl Pair {
    fn new(store: LeaseStore) -> Self {
        let meta = MemberMeta {
            lease_ms: 6000,
            pod_uid: "pod".into(),
            revision: String::new(),
            shards: 4,
        };
        Self {
            store,
            model: Server::new(Sabotage::default()),
            meta,
            members: Vec::new(),
            shards: Vec::new(),
            random: Random::new(SEED),
            done: 0,
            conflicts: 0,
        }
    }

    /// No version, the last one, or an older one.
    fn choose(&mut self, known: &[Both]) -> Option<Both> {
        match self.random.index(4) {
            0 => None,
            1 if !known.is_empty() => Some(known[self.random.index(known.len())].clone()),
            _ => known.last().cloned(),
        }
    }

    fn agree(&mut self, what: &str, real: &'static str, model: &'static str) {
        assert_eq!(
            real, model,
            "{what}: the real API server and the model differ"
        );
        self.done += usize::from(real == "done");
        self.conflicts += usize::from(real == "conflict");
    }

    async fn write_shard(&mut self, number: usize) {
        let base = self.choose(&self.shards.clone());
        let holder = format!("h{}", self.random.index(3));
        let epoch = number as u32 + 1;
        let real = ShardWrite {
            shard: ShardId(1),
            base: base.as_ref().map(|both| both.0.clone()),
            holder: holder.clone(),
            incarnation: "n".into(),
            epoch,
            successor: None,
        };
        let model = assumed::lease::ShardWrite {
            shard: assumed::hash::ShardId(1),
            base: base.map(|both| both.1),
            holder,
            incarnation: "n".into(),
            epoch,
            successor: None,
        };
        let (real, model) = (
            self.store.write_shard(&real).await,
            self.model.write_shard(&model, 4),
        );
        self.agree("shard Lease", kind(&real), assumed_kind(&model));
        if let (WriteResult::Done(real), assumed::ownership::WriteResult::Done(model)) =
            (real, model)
        {
            assert_eq!((&real.holder, real.epoch), (&model.holder, model.epoch));
            self.remember(true, (real.version, model.version));
        }
    }

    /// Each write that arrives makes a new version; a new uid means a new Lease on both sides.
    fn remember(&mut self, of_shard: bool, now: Both) {
        let known = if of_shard {
            &mut self.shards
        } else {
            &mut self.members
        };
        if let Some(last) = known.last() {
            assert_eq!(last.0.uid == now.0.uid, last.1.uid == now.1.uid);
            assert!(last.0.is_older_than(&now.0) && last.1.is_older_than(&now.1));
        }
        known.push(now);
    }

    async fn write_member(&mut self, number: usize) {
        let base = self.choose(&self.members.clone());
        let (change, assumed_change) = self.change(number);
        // Vacating and deleting always carry a version.
        let base = match change {
            MemberChange::Renew { .. } => base,
            _ => base.or_else(|| self.members.last().cloned()),
        };
        if base.is_none() && !matches!(change, MemberChange::Renew { .. }) {
            return;
        }
        let what = format!("member Lease {change:?}");
        let real = MemberWrite {
            identity: "m".into(),
            base: base.as_ref().map(|both| both.0.clone()),
            change,
        };
        let model = assumed::lease::MemberWrite {
            identity: "m".into(),
            base: base.map(|both| both.1),
            change: assumed_change,
        };
        let real = self
            .store
            .write_member(&real, HeartbeatReport::default())
            .await;
        let model = self.model.write_member(&model, &self.meta);
        self.agree(&what, kind(&real), assumed_kind(&model));
        if let (WriteResult::Done(Some(real)), assumed::ownership::WriteResult::Done(Some(model))) =
            (real, model)
        {
            assert_eq!(real.is_vacated(), model.is_vacated());
            assert_eq!(
                (real.renewal, &real.incarnation),
                (model.renewal, &model.incarnation)
            );
            self.remember(false, (real.version, model.version));
        }
        let exists = self
            .store
            .read(&NAMES.member_lease("m"))
            .await
            .unwrap()
            .is_some();
        assert_eq!(exists, self.model.members.contains_key("m"), "after {what}");
    }

    fn change(&mut self, number: usize) -> (MemberChange, assumed::lease::MemberChange) {
        match self.random.index(4) {
            0 => (MemberChange::Vacate, assumed::lease::MemberChange::Vacate),
            1 => (MemberChange::Delete, assumed::lease::MemberChange::Delete),
            _ => {
                let (incarnation, renewal) = (format!("i{}", number % 3), number as u64);
                let real = MemberChange::Renew {
                    incarnation: incarnation.clone(),
                    renewal,
                    draining: false,
                    barred: false,
                    drain_requested: false,
                    warm: BTreeSet::new(),
                };
                let model = assumed::lease::MemberChange::Renew {
                    incarnation,
                    renewal,
                    draining: false,
                    barred: false,
                    drain_requested: false,
                    warm: BTreeSet::new(),
                };
                (real, model)
            }
        }
    }
}

#[tokio::test]
async fn random_operations_match_between_model_and_real_api_server() {
    let control_plane = ControlPlane::start(ControlPlaneOptions::default())
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let api: Api<Lease> = Api::namespaced(control_plane.client(), "default");
    let me = SelfDescription {
        lease_seconds: 6,
        pod_uid: "pod".into(),
        revision: String::new(),
        shards: ShardCount::new(4).unwrap(),
    };
    let mut pair = Pair::new(LeaseStore::new(
        api.clone(),
        LeaseCodec::new(NAMES, "*".to_owned()),
        me,
    ));
    for number in 0..OPERATIONS {
        if pair.random.per_mille(400) {
            pair.write_shard(number).await;
        } else {
            pair.write_member(number).await;
        }
    }
    assert!(
        pair.done > 50 && pair.conflicts > 50,
        "{} writes succeeded, {} lost",
        pair.done,
        pair.conflicts
    );
    traps(&api).await;
}

/// The meaning of the model's switch "no uid", and the reason why every write changes `renewTime`.
async fn traps(api: &Api<Lease>) {
    let params = PostParams::default();
    let lease: Lease = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "trap"}, "spec": {"holderIdentity": "a", "leaseDurationSeconds": 6},
    }))
    .unwrap();
    let created = api.create(&params, &lease).await.unwrap();
    let same = api.replace("trap", &params, &created).await.unwrap();
    assert_eq!(
        created.metadata.resource_version, same.metadata.resource_version,
        "a PUT that changes nothing keeps its version"
    );
    api.delete("trap", &Default::default()).await.unwrap();
    let with_uid = api.replace("trap", &params, &created).await;
    assert!(
        matches!(&with_uid, Err(kube::Error::Api(status)) if [404, 409].contains(&status.code)),
        "{with_uid:?}"
    );
    let mut without_uid = created.clone();
    without_uid.metadata.uid = None;
    let back = api.replace("trap", &params, &without_uid).await.unwrap();
    assert_ne!(
        back.metadata.uid, created.metadata.uid,
        "resourceVersion alone re-creates it"
    );
}

/// The shard table, on both sides.
struct Tables {
    store: TableStore,
    model: Server,
    random: Random,
    /// What both sides have stored, by their own versions.
    versions: Vec<Both>,
    ends: BTreeMap<&'static str, usize>,
}

impl Tables {
    /// An epoch near one that is known, or near a limit.
    fn epoch(&mut self, known: u32) -> u32 {
        match self.random.index(8) {
            0 => known,
            1 => known.saturating_sub(1),
            2 => known.saturating_add(EPOCH_STEP_MAX),
            3 => known.saturating_add(EPOCH_STEP_MAX + 1),
            4 => EPOCH_MAX + self.random.index(2) as u32,
            _ => known + 1 + self.random.index(3) as u32,
        }
    }

    fn entry(&mut self, known: &assumed::table::Entry) -> Entry {
        let holder = ["", "a", "b"][self.random.index(3)];
        if self.random.per_mille(100) {
            return Entry {
                epoch: known.epoch,
                holder: known.holder.clone(),
                incarnation: known.incarnation.clone(),
            };
        }
        Entry {
            epoch: self.epoch(known.epoch),
            holder: holder.to_owned(),
            incarnation: ["", "n", "m"][self.random.index(3)].to_owned(),
        }
    }

    /// A write, with the version that it names as the model knows it.
    fn write(&mut self) -> (TableWrite, Option<assumed::lease::Version>) {
        let stored = self.model.table.clone();
        let shards = stored.as_ref().map_or(4, |table| table.shards);
        let other_count = [2, 4, 8][self.random.index(3)];
        let version = match self.random.index(5) {
            0 => self.versions.first().cloned(),
            _ => self.versions.last().cloned(),
        };
        let (Some((real, model)), false) = (version, self.random.per_mille(50)) else {
            let change = TableChange::Create;
            let shards = other_count;
            return (TableWrite { shards, change }, None);
        };
        if self.random.per_mille(150) {
            let highest = stored.as_ref().map_or(0, |table| table.highest_epoch());
            let epoch = self.epoch(highest);
            let change = TableChange::Convert { base: real, epoch };
            let shards = other_count;
            return (TableWrite { shards, change }, Some(model));
        }
        let mut entries = BTreeMap::new();
        for _ in 0..=self.random.index(3) {
            // Now and then one that there is not.
            let shard = ShardId(self.random.index(usize::from(shards) + 1) as u16);
            let known = stored.as_ref().and_then(|table| {
                let shard = assumed::hash::ShardId(shard.0);
                table.entries.get(&shard).cloned()
            });
            let entry = self.entry(&known.unwrap_or_default());
            entries.insert(shard, entry);
        }
        let table = real.uid;
        let late = self.random.per_mille(100);
        let shards = if late { other_count } else { shards };
        let change = TableChange::Entries { table, entries };
        (TableWrite { shards, change }, Some(model))
    }

    async fn step(&mut self) {
        let (write, version) = self.write();
        let assumed_write = as_assumed(&write, version);
        let real = self.store.write(&write).await;
        let model = self.model.write_table("r", &assumed_write);
        let (real_kind, model_kind) = (kind(&real), assumed_kind(&model));
        assert_eq!(
            real_kind, model_kind,
            "{write:?} on {:?}: the real API server and the model differ",
            self.model.table
        );
        *self.ends.entry(real_kind).or_default() += 1;
        if let (WriteResult::Done(real), assumed::ownership::WriteResult::Done(model)) =
            (real, model)
        {
            if let Some(last) = self.versions.last() {
                let same = (last.0 == real.version, last.1 == model.version);
                assert_eq!(same.0, same.1, "{write:?}: only one of them stored it");
                assert_eq!(
                    last.0.uid == real.version.uid,
                    last.1.uid == model.version.uid
                );
            }
            self.versions.push((real.version, model.version));
        }
        self.compare(&write).await;
    }

    /// Both have the same stored.
    async fn compare(&self, after: &TableWrite) {
        let real = self.store.read().await.unwrap();
        let text =
            |epoch: u32, holder: &str, incarnation: &str| format!("{epoch}/{holder}/{incarnation}");
        let real = real.map(|table| {
            let entries = table.entries.into_iter();
            let texts =
                entries.map(|(shard, e)| (shard.0, text(e.epoch, &e.holder, &e.incarnation)));
            (table.shards, texts.collect::<BTreeMap<_, _>>())
        });
        let model = self.model.table.clone().map(|table| {
            let entries = table.entries.into_iter();
            let texts =
                entries.map(|(shard, e)| (shard.0, text(e.epoch, &e.holder, &e.incarnation)));
            (table.shards, texts.collect::<BTreeMap<_, _>>())
        });
        assert_eq!(real, model, "after {after:?}");
    }
}

/// The same write for the model, which names another version.
fn as_assumed(
    write: &TableWrite,
    version: Option<assumed::lease::Version>,
) -> assumed::table::TableWrite {
    let version = version.unwrap_or(assumed::lease::Version {
        uid: String::new(),
        resource_version: String::new(),
    });
    let change = match &write.change {
        TableChange::Create => assumed::table::TableChange::Create,
        TableChange::Entries { entries, .. } => assumed::table::TableChange::Entries {
            table: version.uid,
            entries: entries
                .iter()
                .map(|(shard, entry)| {
                    let entry = assumed::table::Entry {
                        epoch: entry.epoch,
                        holder: entry.holder.clone(),
                        incarnation: entry.incarnation.clone(),
                    };
                    (assumed::hash::ShardId(shard.0), entry)
                })
                .collect(),
        },
        TableChange::Convert { epoch, .. } => assumed::table::TableChange::Convert {
            base: version,
            epoch: *epoch,
        },
    };
    assumed::table::TableWrite {
        shards: write.shards,
        change,
    }
}

#[tokio::test]
async fn random_table_writes_match_between_model_and_real_api_server() {
    let control_plane = ControlPlane::start(ControlPlaneOptions::default())
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let client = control_plane.client();
    let crd = shard_table_crd();
    Api::all(client.clone())
        .create(&PostParams::default(), &crd)
        .await
        .unwrap();
    let store = TableStore::new(client.clone(), "default", NAMES);
    wait_for("the kind ShardTable", Duration::from_secs(30), || async {
        let answer = store.probe().await;
        Ok(Progress::when(answer.is_ok(), (), || format!("{answer:?}")))
    })
    .await
    .unwrap();
    // The first write of a kind makes the API server compile its rules, for longer than a write may take.
    let api: Api<ShardTable> = Api::namespaced_with(client.clone(), "default", &NAMES);
    let create = TableWrite {
        shards: 2,
        change: TableChange::Create,
    };
    wait_for("the first table", Duration::from_secs(30), || async {
        let written = store.write(&create).await;
        let is_settled = !matches!(written, WriteResult::Unknown);
        Ok(Progress::when(is_settled, (), || format!("{written:?}")))
    })
    .await
    .unwrap();
    api.delete(&NAMES.shard_table(), &Default::default())
        .await
        .unwrap();
    let mut tables = Tables {
        store,
        model: Server::new(Sabotage::default()),
        random: Random::new(SEED),
        versions: Vec::new(),
        ends: BTreeMap::new(),
    };
    for round in 0..TABLE_ROUNDS {
        for _ in 0..OPERATIONS_OF_A_TABLE {
            tables.step().await;
        }
        if round + 1 < TABLE_ROUNDS {
            // Late writes of this table reach the next one.
            let api: Api<ShardTable> = Api::namespaced_with(client.clone(), "default", &NAMES);
            api.delete(&NAMES.shard_table(), &Default::default())
                .await
                .unwrap();
            tables.model.delete_table();
        }
    }
    println!("writes of the table: {:?}", tables.ends);
    let often = |end: &str| tables.ends.get(end).copied().unwrap_or(0) >= 30;
    assert!(
        often("done") && often("rejected") && often("conflict"),
        "{:?}",
        tables.ends
    );
}
