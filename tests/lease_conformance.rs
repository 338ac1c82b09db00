//! The Leases that the simulation and the model assume behave as the real API server's: the same random
//! operations on both end the same way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use databasecluster_operator::core::hash::{ShardCount, ShardId};
use databasecluster_operator::core::lease::{
    MemberChange, MemberWrite, ShardWrite, Version, member_lease_name,
};
use databasecluster_operator::core::ownership::WriteResult;
use databasecluster_operator::fleet::leases::{LeaseStore, SelfDescription};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::PostParams;
use simulation::core as assumed;
use simulation::{MemberMeta, Random, Sabotage, Server};
use testbed::{ControlPlane, ControlPlaneOptions};

const OPERATIONS: usize = 400;
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
        let real = self.store.write_member(&real, "{}".into()).await;
        let model = self.model.write_member(&model, &self.meta);
        self.agree(&what, kind(&real), assumed_kind(&model));
        if let (WriteResult::Done(real), assumed::ownership::WriteResult::Done(model)) =
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
            .read(&member_lease_name("m"))
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
                    warm: BTreeSet::new(),
                };
                let model = assumed::lease::MemberChange::Renew {
                    incarnation,
                    renewal,
                    draining: false,
                    barred: false,
                    warm: BTreeSet::new(),
                };
                (real, model)
            }
        }
    }
}

#[tokio::test]
async fn random_operations_end_alike_on_the_model_and_on_the_real_api_server() {
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
    let mut pair = Pair::new(LeaseStore::new(api.clone(), me));
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

/// What the model's switch "no uid" stands for, and why every write changes `renewTime`.
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
