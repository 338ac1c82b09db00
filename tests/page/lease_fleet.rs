//! A fleet that exists in Leases only: three replicas, 32 shards, and their failures.

use databasecluster_operator::api::names::NAMES;
use databasecluster_operator::telemetry::fleet_view::{
    CheckView, FleetView, LastCount, ObserverView,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::{Value, json};
use sharded_controller::fleet::history::History;

const SHARDS: u16 = 32;

/// The Leases, and what one replica saw of them.
pub(crate) struct Fleet {
    members: Vec<Value>,
    shards: Vec<Value>,
    history: History,
    now_ms: u64,
    problem: Option<String>,
    /// The check that has it.
    check: &'static str,
    last_count: Option<LastCount>,
}

fn lease(name: &str, holder: &str, at_ms: u64, annotations: Value) -> Value {
    let at = Timestamp::UNIX_EPOCH + SignedDuration::from_millis(i64::try_from(at_ms).unwrap());
    let at = format!("{at:.6}");
    json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "holderIdentity": holder, "leaseDurationSeconds": 6, "leaseTransitions": 1,
            "renewTime": at, "acquireTime": at,
        },
    })
}

impl Fleet {
    /// Three healthy replicas.
    pub(crate) fn sound() -> Self {
        let names = (0..3).map(|n| format!("databasecluster-operator-{n}"));
        Self::of(&names.collect::<Vec<_>>(), None)
    }

    /// One replica whose name, and everything else, is an attack.
    pub(crate) fn named(name: &str) -> Self {
        let attack = "\"</script><script>alert(1)</script>";
        let mut fleet = Self::of(&[name.to_owned()], Some(attack.to_owned()));
        fleet.shards[3]["metadata"]["annotations"]["database.io/successor"] =
            json!("javascript:alert(1)");
        fleet.members[0]["metadata"]["annotations"]["database.io/revision"] = json!(attack);
        fleet
    }

    fn of(names: &[String], problem: Option<String>) -> Self {
        let stats = json!({
            "ready": 1, "cpu_seconds": 1.5, "cpu_cores": 0.12, "memory_bytes": 35_000_000,
            "memory_limit_bytes": 268_435_456, "queue_depth": 0, "busy": 1, "workers": 10,
            "clusters_ready": 20, "objects": 20,
        });
        let members = names.iter().map(|name| {
            let annotations = json!({
                "database.io/incarnation": "life", "database.io/shards": SHARDS.to_string(),
                "database.io/revision": "7c9d8f6b5", "database.io/stats": stats.to_string(),
            });
            lease(
                &format!("databasecluster-member-{name}"),
                name,
                0,
                annotations,
            )
        });
        let shards = (0..SHARDS).map(|shard| {
            let buckets = format!("{}-{}", shard * 8, shard * 8 + 7);
            let annotations = json!({
                "database.io/incarnation": "life", "database.io/shards": SHARDS.to_string(),
                "database.io/buckets": buckets,
            });
            let holder = &names[usize::from(shard) % names.len()];
            lease(
                &format!("databasecluster-shard-{shard:03}"),
                holder,
                0,
                annotations,
            )
        });
        let mut fleet = Self {
            members: members.collect(),
            shards: shards.collect(),
            history: History::new(NAMES),
            now_ms: 1_000,
            problem,
            check: "fence",
            last_count: None,
        };
        fleet.note();
        fleet.history.all_noted(|_| true);
        fleet.renew();
        fleet
    }

    fn leases(&self) -> Vec<Lease> {
        let leader = self.members[0]["spec"]["holderIdentity"].as_str().unwrap();
        let leader = lease("databasecluster-leader", leader, self.now_ms, json!({}));
        let all = self.members.iter().chain(&self.shards).chain([&leader]);
        all.map(|lease| serde_json::from_value(lease.clone()).unwrap())
            .collect()
    }

    fn note(&mut self) {
        for lease in self.leases() {
            self.history
                .note(&lease, self.now_ms, Timestamp::UNIX_EPOCH);
        }
    }

    /// All live replicas renew their Leases, a second later.
    fn renew(&mut self) {
        self.now_ms += 1_000;
        let at = lease("", "", self.now_ms, json!({}));
        for member in &mut self.members {
            if member["metadata"]["silent"].is_null() {
                member["spec"]["renewTime"] = at["spec"]["renewTime"].clone();
            }
        }
        self.note();
    }

    /// A replica has been silent for its whole lifetime.
    pub(crate) fn kill(&mut self, member: usize) {
        self.members[member]["metadata"]["silent"] = json!(true);
        for _ in 0..8 {
            self.renew();
        }
    }

    /// It is declared dead and removed, and another one takes all its shards.
    pub(crate) fn take_over(&mut self, member: usize, by: usize) {
        let dead = self.members[member]["spec"]["holderIdentity"].clone();
        let next = self.members[by]["spec"]["holderIdentity"].clone();
        self.members.remove(member);
        self.history.forget(&format!(
            "databasecluster-member-{}",
            dead.as_str().unwrap()
        ));
        for shard in &mut self.shards {
            if shard["spec"]["holderIdentity"] == dead {
                shard["spec"]["holderIdentity"] = next.clone();
                shard["spec"]["leaseTransitions"] = json!(2);
            }
        }
        self.renew();
    }

    /// The kind is gone: one of the replica's own checks fails.
    pub(crate) fn lose_kind(&mut self) {
        self.check = "crd";
        self.problem = Some("the CRD databaseclusters.database.io is missing".to_owned());
    }

    /// Two DatabaseClusters of a replica are Degraded.
    pub(crate) fn degrade(&mut self, member: usize) {
        let annotations = &mut self.members[member]["metadata"]["annotations"];
        let stats = json!({"ready": 1, "clusters_ready": 18, "clusters_degraded": 2});
        annotations["database.io/stats"] = json!(stats.to_string());
        annotations["database.io/unhealthy"] =
            json!("shop/orders=ImagePullFailed,billing/b=SecretInvalid");
    }

    /// The view of a replica.
    pub(crate) fn view(&mut self) -> FleetView {
        self.renew();
        let leases = self.leases();
        let observer = ObserverView {
            identity: "databasecluster-operator-0".into(),
            version: "test",
            ready: true,
            checks: vec![CheckView {
                name: self.check,
                gate: false,
                problem: self.problem.clone(),
            }],
            watching_seconds: 60.0,
            at: Timestamp::UNIX_EPOCH.to_string(),
        };
        FleetView::from_leases(&leases, Some(Timestamp::UNIX_EPOCH))
            .with_history(&self.history, self.now_ms)
            .with_unknown(&mut self.last_count, self.now_ms)
            .with_observer(observer)
            .with_problems()
    }
}
