//! Leases in the API server: decoding them into records, writing them by compare-and-swap.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use tokio::time::timeout;

use super::careless;
use crate::core::hash::{ShardCount, ShardId};
use crate::core::lease::{
    MemberChange, MemberLease, MemberWrite, OTHER_NAMESPACES, ShardLease, ShardWrite, Successor,
    Version, bucket_range, identity_of, member_lease_name, shard_lease_name, shard_of,
};
use crate::core::ownership::{ReadFailed, WriteResult};

/// Label that all Leases of the operator carry.
pub const NAME_LABEL: (&str, &str) = ("app.kubernetes.io/name", "databasecluster-operator");
pub(super) const ROLE_LABEL: &str = "database.io/role";
const INCARNATION: &str = "database.io/incarnation";
const RENEWAL: &str = "database.io/renewal";
const POD_UID: &str = "database.io/pod-uid";
const REVISION: &str = "database.io/revision";
const SHARDS: &str = "database.io/shards";
const NAMESPACES: &str = "database.io/namespaces";
const DRAINING: &str = "database.io/draining";
const BARRED: &str = "database.io/barred";
const STATS: &str = "database.io/stats";
pub(super) const BUCKETS: &str = "database.io/buckets";
const SUCCESSOR: &str = "database.io/successor";
const SUCCESSOR_INCARNATION: &str = "database.io/successor-incarnation";
const WARM: &str = "database.io/warm";

/// Timeout of one Lease request.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// A decoded Lease of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObservedLease {
    /// A replica's heartbeat.
    Member(MemberLease),
    /// A shard's lock.
    Shard(ShardLease),
}

/// Decodes a Lease from the view of a replica that watches these namespaces ([`served_text`]);
/// `None` if its name is not one of the operator's, or if it was never stored.
///
/// [`served_text`]: crate::core::lease::served_text
#[must_use]
pub fn decode(lease: &Lease, namespaces: &str) -> Option<ObservedLease> {
    let name = lease.metadata.name.as_deref()?;
    if let Some(identity) = identity_of(name) {
        return decode_member(identity, lease, namespaces).map(ObservedLease::Member);
    }
    let shard = shard_of(name)?;
    let spec = lease.spec.as_ref();
    Some(ObservedLease::Shard(ShardLease {
        shard,
        version: version(lease)?,
        holder: spec
            .and_then(|s| s.holder_identity.clone())
            .unwrap_or_default(),
        incarnation: annotation(lease, INCARNATION).to_owned(),
        epoch: spec
            .and_then(|s| s.lease_transitions)
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0),
        shards: shards(lease, namespaces),
        successor: successor(lease),
    }))
}

/// The number of shards, unless the Lease is for replicas that watch other namespaces. A Lease that
/// does not name namespaces, as from an older version, is for ours.
fn shards(lease: &Lease, namespaces: &str) -> u16 {
    let served = annotation(lease, NAMESPACES);
    match served.is_empty() || served == namespaces {
        true => annotation(lease, SHARDS).parse().unwrap_or(0),
        false => OTHER_NAMESPACES,
    }
}

fn decode_member(identity: &str, lease: &Lease, namespaces: &str) -> Option<MemberLease> {
    let spec = lease.spec.as_ref();
    let lease_seconds = spec.and_then(|s| s.lease_duration_seconds).unwrap_or(0);
    Some(MemberLease {
        identity: identity.to_owned(),
        version: version(lease)?,
        holder: spec
            .and_then(|s| s.holder_identity.clone())
            .unwrap_or_default(),
        incarnation: annotation(lease, INCARNATION).to_owned(),
        renewal: annotation(lease, RENEWAL).parse().unwrap_or(0),
        lease_ms: u64::try_from(lease_seconds).unwrap_or(0) * 1000,
        pod_uid: annotation(lease, POD_UID).to_owned(),
        revision: annotation(lease, REVISION).to_owned(),
        shards: shards(lease, namespaces),
        draining: annotation(lease, DRAINING) == "true",
        barred: annotation(lease, BARRED) == "true",
        warm: annotation(lease, WARM)
            .split(',')
            .filter_map(|n| n.parse().ok())
            .map(ShardId)
            .collect(),
        created_seconds: lease
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |created| created.0.as_second()),
    })
}

fn successor(lease: &Lease) -> Option<Successor> {
    let identity = annotation(lease, SUCCESSOR);
    (!identity.is_empty()).then(|| Successor {
        identity: identity.to_owned(),
        incarnation: annotation(lease, SUCCESSOR_INCARNATION).to_owned(),
    })
}

fn version(lease: &Lease) -> Option<Version> {
    Some(Version {
        uid: lease.metadata.uid.clone()?,
        resource_version: lease.metadata.resource_version.clone()?,
    })
}

fn annotation<'a>(lease: &'a Lease, key: &str) -> &'a str {
    lease
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(key))
        .map_or("", String::as_str)
}

/// What a replica reports about itself with every renewal.
#[derive(Clone, Debug)]
pub struct SelfDescription {
    /// Lifetime of the member Lease, in whole seconds.
    pub lease_seconds: i32,
    /// Uid of the Pod, or empty.
    pub pod_uid: String,
    /// Revision of the ReplicaSet, or empty.
    pub revision: String,
    /// Number of shards.
    pub shards: ShardCount,
    /// The namespaces that it watches, as text.
    pub namespaces: String,
}

/// The Leases of one namespace, over a client of their own that never retries on its own.
#[derive(Clone)]
pub struct LeaseStore {
    api: Api<Lease>,
    me: SelfDescription,
}

impl LeaseStore {
    /// The Leases behind this API.
    #[must_use]
    pub fn new(api: Api<Lease>, me: SelfDescription) -> Self {
        Self { api, me }
    }

    /// The API itself, for watching.
    #[must_use]
    pub fn api(&self) -> &Api<Lease> {
        &self.api
    }

    /// Decodes a Lease; `None` if its name is not one of the operator's, or if it was never stored.
    #[must_use]
    pub fn decode(&self, lease: &Lease) -> Option<ObservedLease> {
        decode(lease, &self.me.namespaces)
    }

    /// Writes a member Lease; `stats` is stored with our own heartbeat.
    pub async fn write_member(
        &self,
        write: &MemberWrite,
        stats: String,
    ) -> WriteResult<MemberLease> {
        let name = member_lease_name(&write.identity);
        match &write.change {
            MemberChange::Renew {
                incarnation,
                renewal,
                draining,
                barred,
                warm,
            } => {
                let flags = [(DRAINING, *draining), (BARRED, *barred)];
                let lease = self.member(write, incarnation, *renewal, flags, warm, stats);
                self.put(&name, &lease)
                    .await
                    .and_then_decode(|lease| self.member_of(lease))
            }
            MemberChange::Vacate => {
                let patch = Patch::Merge(serde_json::json!({
                    "metadata": write.base.as_ref().map(|base| serde_json::json!({
                        "uid": base.uid, "resourceVersion": base.resource_version,
                    })),
                    "spec": { "holderIdentity": "", "renewTime": now() },
                }));
                let params = PatchParams::default();
                let sent = self.api.patch(&name, &params, &patch);
                settle(timeout(CALL_TIMEOUT, sent).await)
                    .and_then_decode(|lease| self.member_of(lease))
            }
            MemberChange::Delete => self.delete_member(write).await,
        }
    }

    /// Writes a shard Lease.
    pub async fn write_shard(&self, write: &ShardWrite) -> WriteResult<ShardLease> {
        let name = shard_lease_name(write.shard);
        let lease = self.shard(write);
        self.put(&name, &lease)
            .await
            .and_then_decode(|lease| self.shard_from(lease))
    }

    /// Plans the next holder of a shard, or withdraws the plan: for the fleet leader.
    pub async fn plan(
        &self,
        shard: &ShardLease,
        next: Option<&Successor>,
    ) -> WriteResult<ShardLease> {
        let patch = Patch::Merge(serde_json::json!({
            "metadata": {
                "uid": shard.version.uid,
                "resourceVersion": shard.version.resource_version,
                "annotations": {
                    SUCCESSOR: next.map(|next| &next.identity),
                    SUCCESSOR_INCARNATION: next.map(|next| &next.incarnation),
                },
            },
            "spec": { "renewTime": now() },
        }));
        let (name, params) = (shard_lease_name(shard.shard), PatchParams::default());
        let sent = self.api.patch(&name, &params, &patch);
        settle(timeout(CALL_TIMEOUT, sent).await).and_then_decode(|lease| self.shard_from(lease))
    }

    /// Reads a Lease from the API server.
    ///
    /// # Errors
    /// When the API server did not answer in time, or with something other than the Lease or 404.
    pub async fn read(&self, name: &str) -> Result<Option<ObservedLease>, ReadFailed> {
        match timeout(CALL_TIMEOUT, self.api.get_opt(name)).await {
            Ok(Ok(found)) => Ok(found.as_ref().and_then(|lease| self.decode(lease))),
            Ok(Err(error)) => {
                tracing::debug!(lease = name, %error, "could not read a Lease");
                Err(ReadFailed)
            }
            Err(_) => Err(ReadFailed),
        }
    }

    async fn put(&self, name: &str, lease: &Lease) -> WriteResult<Lease> {
        let params = PostParams::default();
        let sent = async {
            if careless::skips_preconditions() {
                careless::write_unchecked(&self.api, name, lease).await
            } else if lease.metadata.uid.is_some() {
                self.api.replace(name, &params, lease).await
            } else {
                self.api.create(&params, lease).await
            }
        };
        let result = settle(timeout(CALL_TIMEOUT, sent).await);
        tracing::debug!(lease = name, result = label(&result), "wrote a Lease");
        result
    }

    async fn delete_member(&self, write: &MemberWrite) -> WriteResult<MemberLease> {
        let params = DeleteParams {
            preconditions: write.base.as_ref().map(|base| Preconditions {
                uid: Some(base.uid.clone()),
                resource_version: Some(base.resource_version.clone()),
            }),
            ..DeleteParams::default()
        };
        let name = member_lease_name(&write.identity);
        let sent = self.api.delete(&name, &params);
        match settle(timeout(CALL_TIMEOUT, sent).await) {
            // The answer to a deletion may be a mere status: all that counts is that the Lease is
            // deleted.
            WriteResult::Done(_) => WriteResult::Conflict,
            WriteResult::Conflict => WriteResult::Conflict,
            WriteResult::Rejected => WriteResult::Rejected,
            WriteResult::Unknown => WriteResult::Unknown,
        }
    }

    fn member(
        &self,
        write: &MemberWrite,
        incarnation: &str,
        renewal: u64,
        flags: [(&'static str, bool); 2],
        warm: &BTreeSet<ShardId>,
        stats: String,
    ) -> Lease {
        let warm: Vec<String> = warm.iter().map(ShardId::to_string).collect();
        let annotations = [
            (WARM, warm.join(",")),
            (INCARNATION, incarnation.to_owned()),
            (RENEWAL, renewal.to_string()),
            (POD_UID, self.me.pod_uid.clone()),
            (REVISION, self.me.revision.clone()),
            (SHARDS, self.me.shards.get().to_string()),
            (NAMESPACES, self.me.namespaces.clone()),
            (STATS, stats),
        ]
        .into_iter()
        .chain(flags.map(|(name, is_so)| (name, is_so.to_string())));
        let spec = LeaseSpec {
            holder_identity: Some(write.identity.clone()),
            lease_duration_seconds: Some(self.me.lease_seconds),
            renew_time: Some(now()),
            ..LeaseSpec::default()
        };
        let name = member_lease_name(&write.identity);
        object(name, "member", write.base.as_ref(), annotations, spec)
    }

    fn member_of(&self, lease: &Lease) -> Option<MemberLease> {
        match self.decode(lease)? {
            ObservedLease::Member(member) => Some(member),
            ObservedLease::Shard(_) => None,
        }
    }

    fn shard_from(&self, lease: &Lease) -> Option<ShardLease> {
        match self.decode(lease)? {
            ObservedLease::Shard(shard) => Some(shard),
            ObservedLease::Member(_) => None,
        }
    }

    fn shard(&self, write: &ShardWrite) -> Lease {
        let mut annotations = vec![
            (INCARNATION, write.incarnation.clone()),
            (BUCKETS, bucket_range(self.me.shards, write.shard)),
            (SHARDS, self.me.shards.get().to_string()),
            (NAMESPACES, self.me.namespaces.clone()),
        ];
        if let Some(next) = &write.successor {
            annotations.push((SUCCESSOR, next.identity.clone()));
            annotations.push((SUCCESSOR_INCARNATION, next.incarnation.clone()));
        }
        let spec = LeaseSpec {
            holder_identity: Some(write.holder.clone()),
            lease_transitions: Some(i32::try_from(write.epoch).unwrap_or(i32::MAX)),
            acquire_time: Some(now()),
            renew_time: Some(now()),
            ..LeaseSpec::default()
        };
        let name = shard_lease_name(write.shard);
        object(name, "shard", write.base.as_ref(), annotations, spec)
    }
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

fn object<'a>(
    name: String,
    role: &str,
    base: Option<&Version>,
    annotations: impl IntoIterator<Item = (&'a str, String)>,
    spec: LeaseSpec,
) -> Lease {
    let labels = [NAME_LABEL, (ROLE_LABEL, role)];
    Lease {
        metadata: ObjectMeta {
            name: Some(name),
            uid: base.map(|base| base.uid.clone()),
            resource_version: base.map(|base| base.resource_version.clone()),
            labels: Some(BTreeMap::from(
                labels.map(|(k, v)| (k.to_owned(), v.to_owned())),
            )),
            annotations: Some(
                annotations
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
    }
}

trait AndThenDecode {
    fn and_then_decode<L>(self, decode: impl Fn(&Lease) -> Option<L>) -> WriteResult<L>;
}

impl AndThenDecode for WriteResult<Lease> {
    fn and_then_decode<L>(self, decode: impl Fn(&Lease) -> Option<L>) -> WriteResult<L> {
        match self {
            // An answer that cannot be decoded does not show what is stored.
            Self::Done(lease) => decode(&lease).map_or(WriteResult::Unknown, WriteResult::Done),
            Self::Conflict => WriteResult::Conflict,
            Self::Rejected => WriteResult::Rejected,
            Self::Unknown => WriteResult::Unknown,
        }
    }
}

fn label<L>(result: &WriteResult<L>) -> &'static str {
    match result {
        WriteResult::Done(_) => "done",
        WriteResult::Conflict => "conflict",
        WriteResult::Rejected => "rejected",
        WriteResult::Unknown => "unknown",
    }
}

/// What an answer, or its absence, shows about the write: only 2xx and 4xx are certain.
pub(super) fn settle<T>(
    answer: Result<Result<T, kube::Error>, tokio::time::error::Elapsed>,
) -> WriteResult<T> {
    match answer {
        Ok(Ok(value)) => WriteResult::Done(value),
        Ok(Err(kube::Error::Api(status))) => match status.code {
            404 | 409 => WriteResult::Conflict,
            400..=499 => {
                tracing::warn!(code = status.code, message = %status.message, "a write of a Lease or of the shard table was refused");
                WriteResult::Rejected
            }
            _ => WriteResult::Unknown,
        },
        Ok(Err(error)) => {
            tracing::debug!(%error, "a write of a Lease or of the shard table was not answered");
            WriteResult::Unknown
        }
        Err(_) => WriteResult::Unknown,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn stored(mut lease: Lease) -> Lease {
        lease.metadata.uid = Some("uid".into());
        lease.metadata.resource_version = Some("5".into());
        lease
    }

    fn store() -> LeaseStore {
        let me = SelfDescription {
            lease_seconds: 6,
            pod_uid: "pod".into(),
            revision: "r1".into(),
            shards: ShardCount::new(32).unwrap(),
            namespaces: "a,b".into(),
        };
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("no network here"))
        });
        LeaseStore::new(Api::namespaced(kube::Client::new(service, "ns"), "ns"), me)
    }

    #[tokio::test]
    async fn written_leases_read_back_unchanged() {
        let write = ShardWrite {
            shard: ShardId(31),
            base: None,
            holder: "a".into(),
            incarnation: "n".into(),
            epoch: 9,
            successor: Some(Successor {
                identity: "b".into(),
                incarnation: "m".into(),
            }),
        };
        let lease = stored(store().shard(&write));
        assert_eq!(
            lease.metadata.annotations.as_ref().unwrap()[BUCKETS],
            "248-255"
        );
        let Some(ObservedLease::Shard(seen)) = store().decode(&lease) else {
            panic!("no shard Lease");
        };
        assert_eq!((seen.shard, seen.epoch, seen.shards), (ShardId(31), 9, 32));
        assert_eq!(
            (seen.holder.as_str(), seen.incarnation.as_str()),
            ("a", "n")
        );
        assert_eq!(seen.successor, write.successor);
    }

    #[tokio::test]
    async fn replicas_watching_other_namespaces_belong_to_another_fleet() {
        let renew = MemberWrite {
            identity: "a".into(),
            base: None,
            change: MemberChange::Renew {
                incarnation: "n".into(),
                renewal: 1,
                draining: false,
                barred: false,
                warm: BTreeSet::new(),
            },
        };
        let MemberChange::Renew {
            incarnation, warm, ..
        } = &renew.change
        else {
            panic!("{renew:?}");
        };
        let flags = [(DRAINING, false), (BARRED, false)];
        let lease = store().member(&renew, incarnation, 1, flags, warm, String::new());
        let mut lease = stored(lease);
        let count = |lease: &Lease, namespaces: &str| match decode(lease, namespaces) {
            Some(ObservedLease::Member(member)) => member.shards,
            other => panic!("{other:?}"),
        };
        assert_eq!(count(&lease, "a,b"), 32);
        assert_eq!(count(&lease, "*"), OTHER_NAMESPACES);
        assert_eq!(count(&lease, "a"), OTHER_NAMESPACES);
        // As written by a version that did not name namespaces.
        let annotations = lease.metadata.annotations.as_mut().unwrap();
        annotations.remove(NAMESPACES);
        assert_eq!(count(&lease, "*"), 32);
    }

    #[tokio::test]
    async fn a_write_without_an_answer_is_unknown() {
        let write = ShardWrite {
            shard: ShardId(0),
            base: None,
            holder: "a".into(),
            incarnation: "n".into(),
            epoch: 1,
            successor: None,
        };
        assert_eq!(store().write_shard(&write).await, WriteResult::Unknown);
    }

    #[tokio::test]
    async fn empty_lease_is_decoded_as_vacant() {
        let bare = Lease {
            metadata: ObjectMeta {
                name: Some("databasecluster-shard-000".into()),
                ..ObjectMeta::default()
            },
            spec: None,
        };
        let Some(ObservedLease::Shard(seen)) = store().decode(&stored(bare)) else {
            panic!("no shard Lease");
        };
        assert_eq!((seen.holder.as_str(), seen.epoch, seen.shards), ("", 0, 0));
    }
}
