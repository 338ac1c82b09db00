//! A holder that is frozen for twice its lease, in the middle of a reconcile, and then continues.

use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use testbed::fencing::{self, Token};
use testbed::shards::Shard;
use testbed::{ControlPlane, Fleet, FleetOptions, Progress, load, wait_for};

use crate::proxy::{Hold, Passed, Proxy, Side, assert_refused};
use crate::support::*;

const LEASE: Duration = Duration::from_secs(3);
const CLUSTERS: usize = 16;
/// Children whose metadata another client changes, so that one reconcile has several to apply.
const TOUCHED: [&str; 3] = ["db", "rw", "r"];

/// The fault beside the pause.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    AsShipped,
    /// The replica does not check its own clock, and gets no events of the Leases for a while.
    WithoutValidity,
    /// A write was already on its way when the replica stopped.
    HeldBack,
}

#[tokio::test]
async fn validity_check_lets_no_stale_write_leave_the_process() {
    let control_plane = control_plane().await;
    let scene = Scene::set(&control_plane, Variant::AsShipped).await;
    let refused = refusals(&control_plane.client()).await;
    let resumed = scene.resume().await;
    scene.until_it_lives_again().await;
    let stale = scene.stale_writes(resumed);
    assert!(
        stale.is_empty(),
        "stale writes left the process: {stale:#?}"
    );
    let since = refusals(&control_plane.client()).await - refused;
    assert!(since == 0.0, "the fence had to refuse {since} writes");
    scene.ends_well().await;
}

#[tokio::test]
async fn fence_rejects_stale_writes_without_the_validity_check() {
    let control_plane = control_plane().await;
    let scene = Scene::set(&control_plane, Variant::WithoutValidity).await;
    let refused = refusals(&control_plane.client()).await;
    let resumed = scene.resume().await;
    let stale = scene.until_a_stale_write_is_answered(resumed).await;
    assert_refused(&stale);
    let since = refusals(&control_plane.client()).await - refused;
    assert!(since >= 1.0, "the API server counted no refusal");
    scene.leases_are_silent.as_ref().unwrap().release();
    scene.until_it_lives_again().await;
    let counted = metric(
        scene.fleet.replica(0).unwrap(),
        "databasecluster_fenced_writes_total",
    )
    .await;
    assert!(counted >= 1.0, "the replica did not count what was refused");
    assert_refused(&scene.stale_writes(resumed));
    scene.ends_well().await;
}

#[tokio::test]
async fn delayed_write_is_rejected_on_arrival() {
    let control_plane = control_plane().await;
    let scene = Scene::set(&control_plane, Variant::HeldBack).await;
    let refused = refusals(&control_plane.client()).await;
    let resumed = scene.resume().await;
    let late = wait_for("the late write to be answered", PATIENCE, || async {
        let late = scene.proxy.passed().into_iter();
        let late = late.filter(|p| scene.is_of_the_cluster(p) && p.epoch() == Some(scene.epoch));
        let late: Vec<Passed> = late.filter(|p| p.at >= scene.held_at).collect();
        let answered = !late.is_empty() && late.iter().all(|p| p.status.is_some());
        Ok(Progress::when(answered, late.clone(), || {
            format!("{late:?}")
        }))
    })
    .await
    .unwrap();
    assert_refused(&late);
    let since = refusals(&control_plane.client()).await - refused;
    assert!(since >= 1.0, "the API server counted no refusal");
    scene.until_it_lives_again().await;
    let stale = scene.stale_writes(resumed);
    assert!(
        stale.is_empty(),
        "more stale writes left the process: {stale:#?}"
    );
    scene.ends_well().await;
}

/// A replica behind a proxy, frozen in the middle of a reconcile; another has taken over.
struct Scene<'a> {
    control_plane: &'a ControlPlane,
    proxy: Proxy,
    /// The frozen replica.
    fleet: Fleet<'a>,
    _others: Fleet<'a>,
    /// The cluster in question.
    name: String,
    /// The epoch under which it was worked on before the pause.
    epoch: i32,
    incarnation: String,
    hold: Hold,
    held_at: Instant,
    leases_are_silent: Option<Hold>,
}

impl<'a> Scene<'a> {
    async fn set(control_plane: &'a ControlPlane, variant: Variant) -> Self {
        let client = control_plane.client();
        let proxy = Proxy::start(control_plane, "held-0").await;
        let fleet = paused_one(control_plane, &proxy, variant).await;
        let others = others(control_plane).await;
        clusters(control_plane, CLUSTERS).await;
        let (blocker, name, epoch) = two_of_its_clusters(&fleet, &others).await;

        // One worker, busy with another cluster until all changes are queued.
        let path = format!("/{blocker}-db");
        let mut busy = proxy.hold(Side::Answer, move |p| {
            p.is_object_write() && p.path.contains(&path)
        });
        change(&client, &blocker, "200m").await;
        busy.has_caught(1, PATIENCE).await;
        let received = received(&fleet).await;
        touch(control_plane, &name).await;
        change(&client, &name, "210m").await;
        let more = TOUCHED.len() as f64 + 1.0;
        wait_for("the replica to know of every change", PATIENCE, || async {
            let now = crate::pauses::received(&fleet).await;
            Ok(Progress::when(now >= received + more, (), || {
                format!("{received} then, {now} now")
            }))
        })
        .await
        .unwrap();
        let side = if variant == Variant::HeldBack {
            Side::Request
        } else {
            Side::Answer
        };
        let own = name.clone();
        let held_at = Instant::now();
        let mut hold = proxy.hold(side, move |p| p.is_object_write() && of_cluster(p, &own));
        busy.release();
        hold.has_caught(1, PATIENCE).await;
        let of_ownership =
            |p: &Passed| p.path.contains("/leases") || p.path.contains("/shardtables");
        let silent = || proxy.hold(Side::Answer, of_ownership);
        let leases_are_silent = (variant == Variant::WithoutValidity).then(silent);
        let incarnation = incarnation(&client).await;
        fleet.replica(0).unwrap().stop().unwrap();
        let scene = Self {
            control_plane,
            proxy,
            fleet,
            _others: others,
            name,
            epoch,
            incarnation,
            hold,
            held_at,
            leases_are_silent,
        };
        scene.until_another_did_the_work().await;
        scene
    }

    /// Twice the lease later, another replica has applied the cluster's newest spec.
    async fn until_another_did_the_work(&self) {
        let client = self.control_plane.client();
        let stopped = Instant::now();
        let held = "held-0".to_owned();
        until_shards(&client, "another replica to take over", |shards| {
            !shards.is_empty()
                && shards
                    .values()
                    .all(|shard| shard.holder != held && !shard.holder.is_empty())
        })
        .await;
        change(&client, &self.name, "220m").await;
        load::wait_all_ready(&client, CLUSTERS, PATIENCE)
            .await
            .unwrap();
        // The pause has to be this long.
        tokio::time::sleep((2 * LEASE).saturating_sub(stopped.elapsed())).await;
    }

    /// The held requests arrive, and the replica continues.
    async fn resume(&self) -> Instant {
        let resumed = Instant::now();
        self.hold.release();
        self.fleet.replica(0).unwrap().cont().unwrap();
        resumed
    }

    fn is_of_the_cluster(&self, passed: &Passed) -> bool {
        passed.is_object_write() && of_cluster(passed, &self.name)
    }

    /// Writes of the cluster under the former epoch.
    fn stale_writes(&self, since: Instant) -> Vec<Passed> {
        let writes = self.proxy.writes_since(since).into_iter();
        writes
            .filter(|p| {
                of_cluster(p, &self.name) && p.epoch().is_none_or(|epoch| epoch <= self.epoch)
            })
            .collect()
    }

    async fn until_a_stale_write_is_answered(&self, since: Instant) -> Vec<Passed> {
        wait_for("a stale write to be answered", PATIENCE, || async {
            let stale = self.stale_writes(since);
            let answered = stale.iter().any(|p| p.status.is_some());
            let done: Vec<Passed> = stale
                .iter()
                .filter(|p| p.status.is_some())
                .cloned()
                .collect();
            Ok(Progress::when(answered, done, || format!("{stale:?}")))
        })
        .await
        .unwrap()
    }

    /// It detected that its Lease had expired and began a new incarnation.
    async fn until_it_lives_again(&self) {
        let client = self.control_plane.client();
        wait_for("the replica to begin a new life", PATIENCE, || async {
            let now = incarnation(&client).await;
            Ok(Progress::when(
                !now.is_empty() && now != self.incarnation,
                (),
                || now,
            ))
        })
        .await
        .unwrap();
    }

    async fn ends_well(&self) {
        let client = self.control_plane.client();
        load::wait_all_ready(&client, CLUSTERS, PATIENCE)
            .await
            .unwrap();
        let all: kube::Api<k8s_openapi::api::apps::v1::StatefulSet> =
            kube::Api::namespaced(client.clone(), NAMESPACE);
        let set = all.get(&format!("{}-db", self.name)).await.unwrap();
        let pod = set.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        let wanted = pod
            .containers
            .iter()
            .filter_map(|c| c.resources.as_ref())
            .any(|r| {
                let cpu = r.requests.as_ref().and_then(|requests| requests.get("cpu"));
                cpu.is_some_and(|cpu| cpu.0 == "220m")
            });
        assert!(
            wanted,
            "the last change is not in the StatefulSet: {:?}",
            pod.containers
        );
        let token: Token = set.annotations()[fencing::ANNOTATION].parse().unwrap();
        let former = token.holder == "held-0" && token.epoch == i64::from(self.epoch);
        assert!(!former, "{token}");
        assert_epochs_never_fall(self.control_plane);
    }
}

async fn paused_one<'a>(
    control_plane: &'a ControlPlane,
    proxy: &Proxy,
    variant: Variant,
) -> Fleet<'a> {
    let kubeconfig = proxy.kubeconfig.display().to_string();
    let mut options = FleetOptions {
        name_prefix: Some("held".to_owned()),
        // The proxy has its token.
        extra_args: short_lease(&["--concurrency=1", "--allow-unfenced"]),
        extra_env: vec![("KUBECONFIG".to_owned(), kubeconfig)],
        ..FleetOptions::default()
    };
    if variant == Variant::WithoutValidity {
        options.binary = Some(testbed::fleet::failpoints_binary().unwrap());
        let failpoint = ("DBC_FAILPOINTS".to_owned(), "validity".to_owned());
        options.extra_env.push(failpoint);
    }
    Fleet::start(control_plane, 1, options).await.unwrap()
}

async fn others(control_plane: &ControlPlane) -> Fleet<'_> {
    let options = FleetOptions {
        extra_args: short_lease(&[]),
        ..FleetOptions::default()
    };
    Fleet::start(control_plane, 1, options).await.unwrap()
}

fn short_lease(more: &[&str]) -> Vec<String> {
    let lease = ["--shards=4", "--lease-duration=3s", "--renew-interval=1s"];
    lease
        .iter()
        .chain(more)
        .map(|&flag| flag.to_owned())
        .collect()
}

/// Two clusters that the replica of the first fleet holds, once both fleets share the shards, and the
/// epoch of the second.
async fn two_of_its_clusters(fleet: &Fleet<'_>, others: &Fleet<'_>) -> (String, String, i32) {
    let client = fleet.control_plane().client();
    let (held, other) = (
        fleet.replica(0).unwrap().name(),
        others.replica(0).unwrap().name(),
    );
    let of = |shards: &std::collections::BTreeMap<String, Shard>, who: &str| {
        shards.values().filter(|shard| shard.holder == who).count()
    };
    let shards = until_shards(&client, "two replicas to share four shards", |shards| {
        of(shards, held) == 2 && of(shards, other) == 2
    })
    .await;
    let all = load::clusters_in(client, NAMESPACE)
        .list(&ListParams::default())
        .await
        .unwrap();
    let mut own = all.iter().filter_map(|object| {
        let uid = object.metadata.uid.as_deref()?;
        let shard = shards
            .values()
            .find(|s| s.holder == held && s.covers(uid))?;
        Some((object.name_any(), shard.epoch))
    });
    let (first, second) = (own.next().unwrap(), own.next().unwrap());
    (first.0, second.0, second.1)
}

async fn change(client: &kube::Client, name: &str, cpu: &str) {
    let key = (NAMESPACE.to_owned(), name.to_owned());
    let change = json!({"spec": {"resources": {"cpu": cpu}}});
    load::patch(client, vec![key], change).await.unwrap();
}

/// Another client sets a label on three Services.
async fn touch(control_plane: &ControlPlane, name: &str) {
    for suffix in TOUCHED {
        let service = format!("service/{name}-{suffix}");
        let arguments = ["label", "-n", NAMESPACE, &service, "touched=yes"];
        control_plane.run_kubectl(&arguments).await.unwrap();
    }
}

async fn received(fleet: &Fleet<'_>) -> f64 {
    let metrics = fleet.replica(0).unwrap().metrics().await.unwrap();
    let by_kind = metrics.by_label("databasecluster_objects_received_total", "kind");
    let of = |kind: &str| by_kind.get(kind).copied().unwrap_or(0.0);
    of("services") + of("databaseclusters")
}

async fn incarnation(client: &kube::Client) -> String {
    let lease = leases(client)
        .get_opt("databasecluster-member-held-0")
        .await
        .unwrap();
    let Some(lease) = lease else {
        return String::new();
    };
    let holder = lease
        .spec
        .as_ref()
        .and_then(|spec| spec.holder_identity.clone());
    match holder.as_deref() {
        None | Some("") => String::new(),
        Some(_) => lease.annotations()["database.io/incarnation"].clone(),
    }
}

fn of_cluster(passed: &Passed, name: &str) -> bool {
    let path = passed.path.split('?').next().unwrap_or_default();
    path.split('/').any(|part| {
        part == name
            || part
                .strip_prefix(name)
                .is_some_and(|rest| ["-db", "-rw", "-r"].contains(&rest))
    })
}
