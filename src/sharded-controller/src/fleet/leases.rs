//! Leases in the API server: decoding them into records, writing them by compare-and-swap.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use tokio::time::timeout;

use super::unchecked;
use crate::names::Names;
use shard_ownership::hash::{ShardCount, ShardId};
use shard_ownership::lease::{
    MemberChange, MemberLease, MemberWrite, OTHER_NAMESPACES, ShardLease, ShardWrite, Successor,
    Version, bucket_range,
};
use shard_ownership::ownership::{ReadFailed, WriteResult};

/// Value of the label `<domain>/role` and its name.
pub(super) const ROLE: &str = "role";
// Names of annotations, below the operator's domain.
const INCARNATION: &str = "incarnation";
const RENEWAL: &str = "renewal";
const POD_UID: &str = "pod-uid";
const REVISION: &str = "revision";
const SHARDS: &str = "shards";
const NAMESPACES: &str = "namespaces";
const DRAINING: &str = "draining";
const BARRED: &str = "barred";
const STATS: &str = "stats";
const BUCKETS: &str = "buckets";
const SUCCESSOR: &str = "successor";
const SUCCESSOR_INCARNATION: &str = "successor-incarnation";
const WARM: &str = "warm";

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

impl ObservedLease {
    /// The member Lease, if it is one.
    pub(super) fn into_member(self) -> Option<MemberLease> {
        match self {
            Self::Member(member) => Some(member),
            Self::Shard(_) => None,
        }
    }

    /// The shard Lease, if it is one.
    pub(super) fn into_shard(self) -> Option<ShardLease> {
        match self {
            Self::Shard(shard) => Some(shard),
            Self::Member(_) => None,
        }
    }
}

/// Reads Leases of one operator, as a replica that serves certain namespaces has to take them.
#[derive(Clone, Debug)]
pub struct LeaseCodec {
    names: Names,
    /// The namespaces, as text.
    namespaces: String,
}

impl LeaseCodec {
    /// For a replica that serves these namespaces ([`served_text`]).
    ///
    /// [`served_text`]: shard_ownership::lease::served_text
    #[must_use]
    pub fn new(names: Names, namespaces: String) -> Self {
        Self { names, namespaces }
    }

    /// Reads a Lease; `None` when its name is none of this operator's, or it was never stored.
    #[must_use]
    pub fn decode(&self, lease: &Lease) -> Option<ObservedLease> {
        let name = lease.metadata.name.as_deref()?;
        if let Some(identity) = self.names.identity_of(name) {
            return self
                .decode_member(identity, lease)
                .map(ObservedLease::Member);
        }
        let shard = self.names.shard_of(name)?;
        let spec = lease.spec.as_ref();
        Some(ObservedLease::Shard(ShardLease {
            shard,
            version: version(lease)?,
            holder: spec
                .and_then(|s| s.holder_identity.clone())
                .unwrap_or_default(),
            incarnation: self.annotation(lease, INCARNATION).to_owned(),
            epoch: spec
                .and_then(|s| s.lease_transitions)
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(0),
            shards: self.shards(lease),
            successor: self.successor(lease),
        }))
    }

    /// All member and shard Leases among these.
    #[must_use]
    pub fn decode_all<'a>(
        &self,
        leases: impl IntoIterator<Item = &'a Lease>,
    ) -> (Vec<MemberLease>, Vec<ShardLease>) {
        let (mut members, mut shards) = (Vec::new(), Vec::new());
        for lease in leases {
            match self.decode(lease) {
                Some(ObservedLease::Member(member)) => members.push(member),
                Some(ObservedLease::Shard(shard)) => shards.push(shard),
                None => {}
            }
        }
        (members, shards)
    }

    /// An annotation in the operator's domain, or the empty text.
    pub(super) fn annotation<'a>(&self, lease: &'a Lease, name: &str) -> &'a str {
        let annotations = lease.metadata.annotations.as_ref();
        let value = annotations.and_then(|annotations| annotations.get(&self.names.label(name)));
        value.map_or("", String::as_str)
    }

    /// The number of shards, unless it is for replicas that serve other namespaces. One that does not
    /// name namespaces, as an older version wrote it, is for ours.
    fn shards(&self, lease: &Lease) -> u16 {
        let served = self.annotation(lease, NAMESPACES);
        match served.is_empty() || served == self.namespaces {
            true => self.annotation(lease, SHARDS).parse().unwrap_or(0),
            false => OTHER_NAMESPACES,
        }
    }

    fn decode_member(&self, identity: &str, lease: &Lease) -> Option<MemberLease> {
        let spec = lease.spec.as_ref();
        let lease_seconds = spec.and_then(|s| s.lease_duration_seconds).unwrap_or(0);
        Some(MemberLease {
            identity: identity.to_owned(),
            version: version(lease)?,
            holder: spec
                .and_then(|s| s.holder_identity.clone())
                .unwrap_or_default(),
            incarnation: self.annotation(lease, INCARNATION).to_owned(),
            renewal: self.annotation(lease, RENEWAL).parse().unwrap_or(0),
            lease_ms: u64::try_from(lease_seconds).unwrap_or(0) * 1000,
            pod_uid: self.annotation(lease, POD_UID).to_owned(),
            revision: self.annotation(lease, REVISION).to_owned(),
            shards: self.shards(lease),
            draining: self.annotation(lease, DRAINING) == "true",
            barred: self.annotation(lease, BARRED) == "true",
            warm: self
                .annotation(lease, WARM)
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

    fn successor(&self, lease: &Lease) -> Option<Successor> {
        let identity = self.annotation(lease, SUCCESSOR);
        (!identity.is_empty()).then(|| Successor {
            identity: identity.to_owned(),
            incarnation: self.annotation(lease, SUCCESSOR_INCARNATION).to_owned(),
        })
    }
}

fn version(lease: &Lease) -> Option<Version> {
    Some(Version {
        uid: lease.metadata.uid.clone()?,
        resource_version: lease.metadata.resource_version.clone()?,
    })
}

/// What a replica says of itself with every renewal.
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
}

/// The Leases of one namespace, over a client of their own that never retries on its own.
#[derive(Clone)]
pub struct LeaseStore {
    api: Api<Lease>,
    codec: LeaseCodec,
    me: SelfDescription,
}

impl LeaseStore {
    /// The Leases behind this API.
    #[must_use]
    pub fn new(api: Api<Lease>, codec: LeaseCodec, me: SelfDescription) -> Self {
        Self { api, codec, me }
    }

    /// Decodes a Lease; `None` if its name is not one of the operator's, or if it was never stored.
    #[must_use]
    pub fn decode(&self, lease: &Lease) -> Option<ObservedLease> {
        self.codec.decode(lease)
    }

    /// Writes a member Lease; `stats` is stored with our own heartbeat.
    pub async fn write_member(
        &self,
        write: &MemberWrite,
        stats: String,
    ) -> WriteResult<MemberLease> {
        let name = self.codec.names.member_lease(&write.identity);
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
                    .and_then_decode(|lease| self.decode(lease)?.into_member())
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
                    .and_then_decode(|lease| self.decode(lease)?.into_member())
            }
            MemberChange::Delete => self.delete_member(write).await,
        }
    }

    /// Writes a shard Lease.
    pub async fn write_shard(&self, write: &ShardWrite) -> WriteResult<ShardLease> {
        let name = self.codec.names.shard_lease(write.shard);
        let lease = self.shard(write);
        self.put(&name, &lease)
            .await
            .and_then_decode(|lease| self.decode(lease)?.into_shard())
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
                    self.codec.names.label(SUCCESSOR): next.map(|next| &next.identity),
                    self.codec.names.label(SUCCESSOR_INCARNATION): next.map(|next| &next.incarnation),
                },
            },
            "spec": { "renewTime": now() },
        }));
        let (name, params) = (
            self.codec.names.shard_lease(shard.shard),
            PatchParams::default(),
        );
        let sent = self.api.patch(&name, &params, &patch);
        settle(timeout(CALL_TIMEOUT, sent).await)
            .and_then_decode(|lease| self.decode(lease)?.into_shard())
    }

    /// Reads a Lease from the API server.
    ///
    /// # Errors
    /// When the API server did not answer in time, or with something else than the Lease or 404.
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
            if unchecked::skips_preconditions() {
                unchecked::write_unchecked(&self.api, name, lease).await
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
        let name = self.codec.names.member_lease(&write.identity);
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
            (NAMESPACES, self.codec.namespaces.clone()),
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
        let name = self.codec.names.member_lease(&write.identity);
        self.object(name, "member", write.base.as_ref(), annotations, spec)
    }

    fn object<'a>(
        &self,
        name: String,
        role: &str,
        base: Option<&Version>,
        annotations: impl IntoIterator<Item = (&'a str, String)>,
        spec: LeaseSpec,
    ) -> Lease {
        let names = &self.codec.names;
        let annotations = annotations
            .into_iter()
            .map(|(name, value)| (names.label(name), value));
        Lease {
            metadata: ObjectMeta {
                name: Some(name),
                uid: base.map(|base| base.uid.clone()),
                resource_version: base.map(|base| base.resource_version.clone()),
                labels: Some(labels(names, role)),
                annotations: Some(annotations.collect()),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
        }
    }

    fn shard(&self, write: &ShardWrite) -> Lease {
        let mut annotations = vec![
            (INCARNATION, write.incarnation.clone()),
            (BUCKETS, bucket_range(self.me.shards, write.shard)),
            (SHARDS, self.me.shards.get().to_string()),
            (NAMESPACES, self.codec.namespaces.clone()),
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
        let name = self.codec.names.shard_lease(write.shard);
        self.object(name, "shard", write.base.as_ref(), annotations, spec)
    }
}

/// The labels of an object of the operator's own, with its role.
pub(super) fn labels(names: &Names, role: &str) -> BTreeMap<String, String> {
    let (app, value) = names.app_label();
    BTreeMap::from([
        (app.to_owned(), value.to_owned()),
        (names.label(ROLE), role.to_owned()),
    ])
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
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
    use crate::names::testing::NAMES;

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
        };
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("no network here"))
        });
        LeaseStore::new(
            Api::namespaced(kube::Client::new(service, "ns"), "ns"),
            LeaseCodec::new(NAMES, "a,b".into()),
            me,
        )
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
            lease.metadata.annotations.as_ref().unwrap()[&NAMES.label(BUCKETS)],
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
        let count =
            |lease: &Lease, namespaces: &str| match LeaseCodec::new(NAMES, namespaces.to_owned())
                .decode(lease)
            {
                Some(ObservedLease::Member(member)) => member.shards,
                other => panic!("{other:?}"),
            };
        assert_eq!(count(&lease, "a,b"), 32);
        assert_eq!(count(&lease, "*"), OTHER_NAMESPACES);
        assert_eq!(count(&lease, "a"), OTHER_NAMESPACES);
        // As written by a version that did not name namespaces.
        let annotations = lease.metadata.annotations.as_mut().unwrap();
        annotations.remove(&NAMES.label(NAMESPACES));
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
                name: Some(NAMES.shard_lease(ShardId(0))),
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
