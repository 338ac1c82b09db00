//! Lookups of what is not watched: one bounded cache that evicts the least recently used entry, and
//! whose entries have a time to live.
//!
//! Guarantees: no lock is held across a request; entries are removed with their shard; what is
//! cached about a cluster is not used once its StatefulSet has changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use kube::api::ListParams;
use moka::Expiry;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use sharded_controller::write::GuardedClient;

use super::dependents::ObjectRef;
use super::diagnosis::{
    diagnose, explain_events, explain_mount, explain_probe, explain_tls, is_container_ready,
    is_ready, stuck, unmounted, unready,
};
use crate::core::lifecycle::ConditionReason;
use crate::core::observed::{ClusterRecord, StatefulSetRecord};
use crate::postgres;
use crate::telemetry::metrics::ReconcilerMetrics;
use shard_ownership::hash::{Bucket, ShardCount, ShardId};

/// Maximum number of Pods of a cluster that are read.
const PODS_MAX: u32 = 100;
/// Maximum number of events that are read.
const EVENTS_MAX: u32 = 50;
/// A result without a problem is cached for no longer than this: a later problem is not announced.
const NOTHING_FOUND_TTL: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    bucket: Bucket,
    uid: Arc<str>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Version of the StatefulSet for which this was read.
    version: Arc<str>,
    diagnosis: Arc<PodDiagnosis>,
}

/// Result of reading the Pods of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodDiagnosis {
    /// Why they are not ready.
    pub(super) why: Option<ConditionReason>,
    /// Pods that hang on a former template.
    pub(super) stuck: Vec<ObjectRef>,
}

struct TimeToLive(Duration);

impl Expiry<Key, Entry> for TimeToLive {
    fn expire_after_create(&self, _: &Key, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(match entry.diagnosis.why {
            Some(_) => self.0,
            None => self.0.min(NOTHING_FOUND_TTL),
        })
    }

    fn expire_after_update(
        &self,
        key: &Key,
        entry: &Entry,
        updated_at: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, entry, updated_at)
    }
}

/// The Events with one reason about one object.
struct EventsOf<'a> {
    kind: &'a str,
    name: &'a str,
    reason: &'a str,
}

/// The lookups and their cache.
pub(super) struct Lookups {
    client: GuardedClient,
    metrics: Arc<ReconcilerMetrics>,
    cache: Cache<Key, Entry>,
}

impl Lookups {
    pub(super) fn new(
        client: GuardedClient,
        metrics: Arc<ReconcilerMetrics>,
        entries_max: u64,
        time_to_live: Duration,
    ) -> Self {
        let cache = Cache::builder()
            .max_capacity(entries_max)
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(TimeToLive(time_to_live))
            .build();
        Self {
            client,
            metrics,
            cache,
        }
    }

    /// Why the Pods of a cluster are not ready.
    pub(super) async fn pods(
        &self,
        cluster: &ClusterRecord,
        set: &StatefulSetRecord,
    ) -> kube::Result<Arc<PodDiagnosis>> {
        let version = set.child.resource_version.as_str();
        let key = Key {
            bucket: cluster.bucket,
            uid: Arc::clone(&cluster.uid),
        };
        let known = self.cache.get(&key).await;
        if let Some(entry) = known.filter(|entry| *entry.version == *version) {
            self.metrics.cache_hits_total.inc();
            return Ok(entry.diagnosis);
        }
        self.metrics.cache_misses_total.inc();
        let params = ListParams::default()
            .labels(&postgres::selector_text(&cluster.key.name))
            .limit(PODS_MAX)
            .match_any();
        let pods = self
            .client
            .list::<Pod>(&cluster.key.namespace, &params)
            .await?;
        let claim = set.claim.as_ref();
        let class_name = claim.and_then(|claim| claim.class_name.as_deref());
        let mut diagnosis = PodDiagnosis {
            why: diagnose(&pods, class_name),
            stuck: stuck(&pods, set),
        };
        if diagnosis.why.is_none() && set.replicas < set.spec_replicas {
            diagnosis.why = self.not_created(set).await?;
        }
        if diagnosis.why.is_none()
            && let Some(pod) = unmounted(&pods)
        {
            diagnosis.why = self.not_mounted(cluster, pod).await?;
        }
        if diagnosis.why.is_none()
            && let Some(pod) = unready(&pods)
        {
            diagnosis.why = self.probe_failed(pod).await?;
        }
        let entry = Entry {
            version: version.into(),
            diagnosis: Arc::new(diagnosis),
        };
        self.cache.insert(key, entry.clone()).await;
        Ok(entry.diagnosis)
    }

    /// Whether clients reach the primary: its Pod is ready, or, `by_container`, PostgreSQL's container is. Never
    /// cached: readiness can move from one Pod to another without a change of the counts.
    pub(super) async fn is_primary_ready(
        &self,
        set: &StatefulSetRecord,
        by_container: bool,
    ) -> kube::Result<bool> {
        let key = &set.child.key;
        // A list, as the operator has no right to get Pods.
        let fields = format!("metadata.name={}-0", key.name);
        let params = ListParams::default().fields(&fields).match_any();
        let pods = self.client.list::<Pod>(&key.namespace, &params).await?;
        let serves = match by_container {
            true => is_container_ready,
            false => is_ready,
        };
        Ok(pods.iter().any(serves))
    }

    /// Whether this Service has an address of a load balancer. Never cached: it is asked for once a minute at most.
    pub(super) async fn has_address(&self, namespace: &str, name: &str) -> kube::Result<bool> {
        let params = ListParams::default()
            .fields(&format!("metadata.name={name}"))
            .match_any();
        let found = self.client.list::<Service>(namespace, &params).await?;
        let mut addresses = found.iter().flat_map(|service| {
            let balancer = service.status.as_ref()?.load_balancer.as_ref()?;
            balancer.ingress.as_ref()
        });
        Ok(addresses.any(|all| !all.is_empty()))
    }

    /// Why the controller of StatefulSets cannot create Pods or claims, as its events say.
    async fn not_created(&self, set: &StatefulSetRecord) -> kube::Result<Option<ConditionReason>> {
        let key = &set.child.key;
        let about = EventsOf {
            kind: "StatefulSet",
            name: &key.name,
            reason: "FailedCreate",
        };
        let events = self.events(&key.namespace, about).await?;
        Ok(explain_events(&events, set))
    }

    /// Why the volumes of a Pod are not mounted, as the events of the kubelet say.
    async fn not_mounted(
        &self,
        cluster: &ClusterRecord,
        pod: &Pod,
    ) -> kube::Result<Option<ConditionReason>> {
        let Some(name) = &pod.metadata.name else {
            return Ok(None);
        };
        let about = EventsOf {
            kind: "Pod",
            name,
            reason: "FailedMount",
        };
        let events = self.events(&cluster.key.namespace, about).await?;
        let secret = postgres::secret_name(&cluster.key.name);
        Ok(explain_mount(&events, pod, &secret))
    }

    /// Why a Pod that runs is not ready, as the events of its probe say.
    async fn probe_failed(&self, pod: &Pod) -> kube::Result<Option<ConditionReason>> {
        let meta = &pod.metadata;
        let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else {
            return Ok(None);
        };
        let events = self
            .events(
                namespace,
                EventsOf {
                    kind: "Pod",
                    name,
                    reason: "Unhealthy",
                },
            )
            .await?;
        Ok(explain_probe(&events, pod))
    }

    /// What the primary, which may be ready, reports of its certificate.
    pub(super) async fn tls_report(
        &self,
        set: &StatefulSetRecord,
        now: Timestamp,
    ) -> kube::Result<Option<ConditionReason>> {
        let key = &set.child.key;
        let pod = format!("{}-0", key.name);
        let about = EventsOf {
            kind: "Pod",
            name: &pod,
            reason: "Unhealthy",
        };
        let events = self.events(&key.namespace, about).await?;
        Ok(explain_tls(&events, &pod, now))
    }

    async fn events(&self, namespace: &str, about: EventsOf<'_>) -> kube::Result<Vec<Event>> {
        let EventsOf { kind, name, reason } = about;
        let fields =
            format!("involvedObject.kind={kind},involvedObject.name={name},reason={reason}");
        let params = ListParams::default().fields(&fields).limit(EVENTS_MAX);
        self.client.list::<Event>(namespace, &params).await
    }

    /// Drops what is cached about the clusters of a shard.
    pub(super) async fn invalidate_shard(&self, shards: ShardCount, shard: ShardId) {
        let gone: Vec<Arc<Key>> = self
            .cache
            .iter()
            .map(|(key, _)| key)
            .filter(|key| shards.shard_of(key.bucket) == shard)
            .collect();
        for key in gone {
            self.cache.invalidate(&*key).await;
        }
    }

    /// Number of entries, after expired ones were evicted.
    pub(super) async fn entries(&self) -> u64 {
        self.cache.run_pending_tasks().await;
        self.cache.entry_count()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use serde_json::json;

    use super::super::fake::Fake;
    use super::*;
    use crate::api::DatabaseCluster;
    use crate::api::names::NAMES;
    use crate::watch::observe;
    use prometheus::Registry;
    use sharded_controller::clock::Clock;

    fn cluster(uid: &str) -> ClusterRecord {
        let object: DatabaseCluster = serde_json::from_value(json!({
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
            "metadata": {"name": "a", "namespace": "shop", "uid": uid, "resourceVersion": "5"},
            "spec": {"image": "postgres:18"},
        }))
        .unwrap();
        observe::cluster(&object).unwrap()
    }

    fn set(version: &str) -> StatefulSetRecord {
        let object = serde_json::from_value(json!({
            "metadata": {"name": "a-db", "namespace": "shop", "uid": "s", "resourceVersion": version},
        }));
        observe::statefulset(&object.unwrap(), None).unwrap()
    }

    /// A server with one Pod whose image cannot be pulled.
    fn server() -> Fake {
        let fake = Fake::default();
        let pod = json!({
            "metadata": {"name": "a-db-0", "namespace": "shop"},
            "status": {"containerStatuses": [{
                "name": "postgres", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ErrImagePull"}},
            }]},
        });
        fake.with(|state| state.put("/api/v1/namespaces/shop/pods/a-db-0", pod));
        fake
    }

    fn lookups(
        fake: &Fake,
        entries_max: u64,
        time_to_live: Duration,
    ) -> (Lookups, Arc<ReconcilerMetrics>) {
        let registry = Registry::new();
        let metrics = Arc::new(ReconcilerMetrics::register(&registry, &NAMES).unwrap());
        let (client, _) = fake.guarded(registry, Clock::system());
        let lookups = Lookups::new(client, Arc::clone(&metrics), entries_max, time_to_live);
        (lookups, metrics)
    }

    async fn look_up(lookups: &Lookups, uid: &str, version: &str) -> Option<String> {
        let diagnosis = lookups.pods(&cluster(uid), &set(version)).await.unwrap();
        diagnosis.why.as_ref().map(|why| why.reason.clone())
    }

    fn requests(fake: &Fake) -> usize {
        fake.with(|state| state.log.len())
    }

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn second_lookup_hits_the_cache_until_the_statefulset_changes() {
        let fake = server();
        let (lookups, metrics) = lookups(&fake, 8, LONG);
        for _ in 0..3 {
            let reason = look_up(&lookups, "u", "1").await;
            assert_eq!(reason.as_deref(), Some("ImagePullBackOff"));
        }
        assert_eq!(requests(&fake), 1);
        look_up(&lookups, "u", "2").await;
        assert_eq!(requests(&fake), 2);
        assert_eq!(metrics.cache_hits_total.get(), 2);
        assert_eq!(metrics.cache_misses_total.get(), 2);
        assert_eq!(lookups.entries().await, 1, "the older answer is replaced");
    }

    #[tokio::test]
    async fn a_full_cache_evicts_what_was_least_recently_used() {
        let fake = server();
        let (lookups, _) = lookups(&fake, 3, LONG);
        for uid in ["a", "b", "c"] {
            look_up(&lookups, uid, "1").await;
            lookups.entries().await;
        }
        look_up(&lookups, "a", "1").await;
        assert_eq!(requests(&fake), 3);
        look_up(&lookups, "d", "1").await;
        assert_eq!(lookups.entries().await, 3);
        look_up(&lookups, "a", "1").await;
        assert_eq!(requests(&fake), 4, "a was used more recently than b");
        look_up(&lookups, "b", "1").await;
        assert_eq!(requests(&fake), 5, "b went");
    }

    #[tokio::test]
    async fn an_entry_expires() {
        let fake = server();
        let (lookups, _) = lookups(&fake, 8, Duration::from_millis(50));
        look_up(&lookups, "u", "1").await;
        let deadline = Instant::now() + Duration::from_secs(10);
        while requests(&fake) < 2 {
            assert!(
                Instant::now() < deadline,
                "the entry did not expire within 10 s"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
            look_up(&lookups, "u", "1").await;
        }
    }

    #[tokio::test]
    async fn entries_go_with_their_shard() {
        let fake = server();
        let (lookups, _) = lookups(&fake, 64, LONG);
        let shards = ShardCount::new(32).unwrap();
        let uids: Vec<String> = (0..20).map(|n| format!("uid-{n}")).collect();
        for uid in &uids {
            look_up(&lookups, uid, "1").await;
        }
        let shard = shards.shard_of(Bucket::of("uid-0"));
        let gone = uids
            .iter()
            .filter(|uid| shards.shard_of(Bucket::of(uid)) == shard)
            .count();
        lookups.invalidate_shard(shards, shard).await;
        assert_eq!(lookups.entries().await, (uids.len() - gone) as u64);
        look_up(&lookups, "uid-0", "1").await;
        assert_eq!(requests(&fake), uids.len() + 1);
    }

    #[test]
    fn negative_result_expires_early() {
        let ttl = TimeToLive(LONG);
        let key = Key {
            bucket: Bucket(0),
            uid: "u".into(),
        };
        let entry = |why| Entry {
            version: "1".into(),
            diagnosis: Arc::new(PodDiagnosis {
                why,
                stuck: Vec::new(),
            }),
        };
        let now = Instant::now();
        let found = entry(Some(ConditionReason::new("R", "m")));
        assert_eq!(ttl.expire_after_create(&key, &found, now), Some(LONG));
        assert_eq!(
            ttl.expire_after_update(&key, &entry(None), now, Some(LONG)),
            Some(NOTHING_FOUND_TTL)
        );
    }
}
