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
use crate::object::ObjectKey;
use shard_ownership::hash::{ShardCount, ShardId};
use shard_ownership::lease::{
    MemberChange, MemberLease, MemberWrite, OTHER_NAMESPACES, ShardLease, ShardWrite, Successor,
    Version, bucket_range,
};
use shard_ownership::liveness::Holder;
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
/// Annotation of a member Lease, below the operator's domain: `true` is a user's request that the replica receives no
/// shards and gives up those that it holds. It stays as long as the Lease.
pub const DRAIN: &str = "drain";
const STATS: &str = "stats";
/// Objects with problems, as `namespace/name=Reason`, with commas between them.
const UNHEALTHY: &str = "unhealthy";
/// How many of them one heartbeat names: every replica reads them all.
pub(crate) const UNHEALTHY_MAX: usize = 8;
/// Longest value that is read; ours are shorter.
const UNHEALTHY_BYTES_MAX: usize = 4096;
const REASON_CHARS_MAX: usize = 64;
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
        let fields = LeaseFields::new(&self.names, lease);
        match fields.subject()? {
            Subject::Member(identity) => self
                .decode_member(identity, fields)
                .map(ObservedLease::Member),
            Subject::Shard(shard) => self.decode_shard(shard, fields).map(ObservedLease::Shard),
            Subject::Leader => None,
        }
    }

    /// All member and shard Leases among these.
    #[must_use]
    pub(crate) fn decode_all<'a>(
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

    /// The number of shards, unless it is for replicas that serve other namespaces. One that does not
    /// name namespaces, as an older version wrote it, is for ours.
    fn shards(&self, fields: LeaseFields<'_>) -> u16 {
        match fields.namespaces() {
            Some(served) if served != self.namespaces => OTHER_NAMESPACES,
            Some(_) | None => fields
                .shards()
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
        }
    }

    fn decode_shard(&self, shard: ShardId, fields: LeaseFields<'_>) -> Option<ShardLease> {
        Some(ShardLease {
            shard,
            version: version(fields.lease)?,
            holder: fields.holder().identity.to_owned(),
            incarnation: fields.holder().incarnation.to_owned(),
            epoch: fields.epoch().unwrap_or(0),
            shards: self.shards(fields),
            successor: fields.successor().map(|identity| Successor {
                identity: identity.to_owned(),
                incarnation: fields.text(SUCCESSOR_INCARNATION).to_owned(),
            }),
        })
    }

    fn decode_member(&self, identity: &str, fields: LeaseFields<'_>) -> Option<MemberLease> {
        Some(MemberLease {
            identity: identity.to_owned(),
            version: version(fields.lease)?,
            holder: fields.holder().identity.to_owned(),
            incarnation: fields.holder().incarnation.to_owned(),
            renewal: fields.text(RENEWAL).parse().unwrap_or(0),
            lease_ms: fields.lease_ms().unwrap_or(0),
            pod_uid: fields.text(POD_UID).to_owned(),
            revision: fields.revision().unwrap_or_default().to_owned(),
            shards: self.shards(fields),
            draining: fields.is_draining(),
            barred: fields.is_barred(),
            drain_requested: fields.is_drain_requested(),
            warm: fields
                .warm()
                .unwrap_or_default()
                .split(',')
                .filter_map(|n| n.parse().ok())
                .map(ShardId)
                .collect(),
            created_seconds: fields
                .lease
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |created| created.0.as_second()),
        })
    }
}

/// What a Lease is about, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The leadership of the fleet.
    Leader,
    /// The replica of this identity.
    Member(&'a str),
    /// A shard.
    Shard(ShardId),
}

/// The fields of a Lease of the operator, each as far as it can be read: the others may be damaged.
/// An empty annotation is as good as none.
#[derive(Clone, Copy, Debug)]
pub struct LeaseFields<'a> {
    names: &'a Names,
    lease: &'a Lease,
}

impl<'a> LeaseFields<'a> {
    /// The fields of this Lease.
    #[must_use]
    pub fn new(names: &'a Names, lease: &'a Lease) -> Self {
        Self { names, lease }
    }

    /// Name of the Lease, or the empty text.
    #[must_use]
    pub fn name(self) -> &'a str {
        self.lease.metadata.name.as_deref().unwrap_or_default()
    }

    /// What the Lease is about; `None` if its name is none of the operator's.
    #[must_use]
    pub fn subject(self) -> Option<Subject<'a>> {
        let name = self.name();
        if name == self.names.leader_lease() {
            return Some(Subject::Leader);
        }
        let member = self.names.identity_of(name).map(Subject::Member);
        member.or_else(|| self.names.shard_of(name).map(Subject::Shard))
    }

    /// Its holder, which may be nobody, and the holder's incarnation, which may be missing.
    #[must_use]
    pub fn holder(self) -> Holder<'a> {
        let identity = self.spec().and_then(|spec| spec.holder_identity.as_deref());
        Holder {
            identity: identity.unwrap_or_default(),
            incarnation: self.text(INCARNATION),
        }
    }

    /// The epoch of a shard; `None` if it is missing or negative.
    #[must_use]
    pub fn epoch(self) -> Option<u32> {
        let transitions = self.spec()?.lease_transitions?;
        u32::try_from(transitions).ok()
    }

    /// Lifetime without a renewal, in seconds.
    #[must_use]
    pub fn lease_seconds(self) -> Option<i32> {
        self.spec()?.lease_duration_seconds
    }

    /// Lifetime without a renewal, in milliseconds; `None` if it is missing or negative.
    #[must_use]
    pub fn lease_ms(self) -> Option<u64> {
        let seconds = u64::try_from(self.lease_seconds()?).ok()?;
        Some(seconds * 1000)
    }

    /// When it was renewed, by its holder's clock.
    #[must_use]
    pub fn renew_time(self) -> Option<Timestamp> {
        self.spec()?.renew_time.as_ref().map(|time| time.0)
    }

    /// When its holder acquired it, by the holder's clock.
    #[must_use]
    pub fn acquire_time(self) -> Option<Timestamp> {
        self.spec()?.acquire_time.as_ref().map(|time| time.0)
    }

    /// Identity of the planned next holder of a shard.
    #[must_use]
    pub fn successor(self) -> Option<&'a str> {
        self.annotation(SUCCESSOR)
    }

    /// Range of buckets of a shard, as text.
    #[must_use]
    pub fn buckets(self) -> Option<&'a str> {
        self.annotation(BUCKETS)
    }

    /// Number of shards, as text.
    #[must_use]
    pub fn shards(self) -> Option<&'a str> {
        self.annotation(SHARDS)
    }

    /// The served namespaces, as text.
    #[must_use]
    pub fn namespaces(self) -> Option<&'a str> {
        self.annotation(NAMESPACES)
    }

    /// Revision of a replica's rollout.
    #[must_use]
    pub fn revision(self) -> Option<&'a str> {
        self.annotation(REVISION)
    }

    /// Shards that a replica has warmed up, as text.
    #[must_use]
    pub fn warm(self) -> Option<&'a str> {
        self.annotation(WARM)
    }

    /// Statistics of a replica, as JSON.
    #[must_use]
    pub fn stats(self) -> Option<&'a str> {
        self.annotation(STATS)
    }

    /// Objects with problems that a replica names: namespace, name and reason of each, a bounded number.
    pub fn unhealthy(self) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
        let text = self.text(UNHEALTHY);
        let text = if text.len() > UNHEALTHY_BYTES_MAX {
            ""
        } else {
            text
        };
        let entries = text.split(',').filter_map(|entry| {
            let (key, reason) = entry.split_once('=')?;
            let (namespace, name) = key.split_once('/')?;
            Some((namespace, name, reason))
        });
        entries.take(UNHEALTHY_MAX)
    }

    /// Whether a replica is about to leave.
    #[must_use]
    pub fn is_draining(self) -> bool {
        self.text(DRAINING) == "true"
    }

    /// Whether a replica may not write the shard table.
    #[must_use]
    pub fn is_barred(self) -> bool {
        self.text(BARRED) == "true"
    }

    /// Whether a user asked that a replica receives no shards.
    #[must_use]
    pub fn is_drain_requested(self) -> bool {
        self.text(DRAIN) == "true"
    }

    fn spec(self) -> Option<&'a LeaseSpec> {
        self.lease.spec.as_ref()
    }

    fn annotation(self, name: &str) -> Option<&'a str> {
        Some(self.text(name)).filter(|text| !text.is_empty())
    }

    fn text(self, name: &str) -> &'a str {
        let annotations = self.lease.metadata.annotations.as_ref();
        let value = annotations.and_then(|annotations| annotations.get(&self.names.label(name)));
        value.map_or("", String::as_str)
    }
}

fn version(lease: &Lease) -> Option<Version> {
    Some(Version {
        uid: lease.metadata.uid.clone()?,
        resource_version: lease.metadata.resource_version.clone()?,
    })
}

/// The annotations of a shard Lease that plan its next holder, or withdraw the plan, for a merge patch.
#[must_use]
pub fn plan_annotations(names: &Names, next: Option<&Successor>) -> serde_json::Value {
    serde_json::json!({
        names.label(SUCCESSOR): next.map(|next| &next.identity),
        names.label(SUCCESSOR_INCARNATION): next.map(|next| &next.incarnation),
    })
}

/// What a heartbeat reports of the work of its replica.
#[derive(Clone, Debug, Default)]
pub struct HeartbeatReport {
    /// Statistics, as short JSON.
    pub stats: String,
    /// Some of the objects with problems, with a reason each.
    pub unhealthy: Vec<(ObjectKey, String)>,
}

impl HeartbeatReport {
    /// The value of the annotation; empty if there are none.
    fn unhealthy_text(&self) -> String {
        let plain = |c: &char| c.is_ascii_alphanumeric();
        let entries = self.unhealthy.iter().take(UNHEALTHY_MAX);
        let entries = entries.map(|(key, reason)| {
            let reason: String = reason
                .chars()
                .filter(plain)
                .take(REASON_CHARS_MAX)
                .collect();
            format!("{}/{}={reason}", key.namespace, key.name)
        });
        entries.collect::<Vec<_>>().join(",")
    }
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

    /// Reads Leases.
    #[must_use]
    pub(crate) fn codec(&self) -> &LeaseCodec {
        &self.codec
    }

    /// Writes a member Lease; `report` is stored with our own heartbeat. `None` in the result: the Lease was deleted.
    pub async fn write_member(
        &self,
        write: &MemberWrite,
        report: HeartbeatReport,
    ) -> WriteResult<Option<MemberLease>> {
        let name = self.codec.names.member_lease(&write.identity);
        match &write.change {
            MemberChange::Renew {
                incarnation,
                renewal,
                draining,
                barred,
                drain_requested,
                warm,
            } => {
                let flags = [
                    (DRAINING, *draining),
                    (BARRED, *barred),
                    (DRAIN, *drain_requested),
                ];
                let lease = self.member(write, incarnation, *renewal, flags, warm, report);
                self.put(&name, &lease)
                    .await
                    .and_then_decode(|lease| self.codec.decode(lease)?.into_member())
                    .map(Some)
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
                    .and_then_decode(|lease| self.codec.decode(lease)?.into_member())
                    .map(Some)
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
            .and_then_decode(|lease| self.codec.decode(lease)?.into_shard())
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
                "annotations": plan_annotations(&self.codec.names, next),
            },
            "spec": { "renewTime": now() },
        }));
        let (name, params) = (
            self.codec.names.shard_lease(shard.shard),
            PatchParams::default(),
        );
        let sent = self.api.patch(&name, &params, &patch);
        settle(timeout(CALL_TIMEOUT, sent).await)
            .and_then_decode(|lease| self.codec.decode(lease)?.into_shard())
    }

    /// Reads a Lease from the API server.
    ///
    /// # Errors
    /// When the API server did not answer in time, or with something else than the Lease or 404.
    pub async fn read(&self, name: &str) -> Result<Option<ObservedLease>, ReadFailed> {
        match timeout(CALL_TIMEOUT, self.api.get_opt(name)).await {
            Ok(Ok(found)) => Ok(found.as_ref().and_then(|lease| self.codec.decode(lease))),
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

    async fn delete_member(&self, write: &MemberWrite) -> WriteResult<Option<MemberLease>> {
        let params = DeleteParams {
            preconditions: write.base.as_ref().map(|base| Preconditions {
                uid: Some(base.uid.clone()),
                resource_version: Some(base.resource_version.clone()),
            }),
            ..DeleteParams::default()
        };
        let name = self.codec.names.member_lease(&write.identity);
        let sent = self.api.delete(&name, &params);
        // The answer to a deletion may be a mere status: all that counts is that the Lease is deleted.
        settle(timeout(CALL_TIMEOUT, sent).await).map(|_| None)
    }

    fn member(
        &self,
        write: &MemberWrite,
        incarnation: &str,
        renewal: u64,
        flags: impl IntoIterator<Item = (&'static str, bool)>,
        warm: &BTreeSet<ShardId>,
        report: HeartbeatReport,
    ) -> Lease {
        let warm: Vec<String> = warm.iter().map(ShardId::to_string).collect();
        let unhealthy = Some(report.unhealthy_text()).filter(|text| !text.is_empty());
        let annotations = [
            (WARM, warm.join(",")),
            (INCARNATION, incarnation.to_owned()),
            (RENEWAL, renewal.to_string()),
            (POD_UID, self.me.pod_uid.clone()),
            (REVISION, self.me.revision.clone()),
            (SHARDS, self.me.shards.get().to_string()),
            (NAMESPACES, self.codec.namespaces.clone()),
            (STATS, report.stats),
        ]
        .into_iter()
        .chain(unhealthy.map(|text| (UNHEALTHY, text)))
        // A request is there or not, as users write it.
        .chain(
            flags
                .into_iter()
                .filter(|(name, is_so)| *is_so || *name != DRAIN)
                .map(|(name, is_so)| (name, is_so.to_string())),
        );
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
        let Some(ObservedLease::Shard(seen)) = store().codec.decode(&lease) else {
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
                drain_requested: false,
                warm: BTreeSet::new(),
            },
        };
        let MemberChange::Renew {
            incarnation, warm, ..
        } = &renew.change
        else {
            panic!("{renew:?}");
        };
        let flags = [(DRAINING, false), (BARRED, false), (DRAIN, false)];
        let lease = store().member(
            &renew,
            incarnation,
            1,
            flags,
            warm,
            HeartbeatReport::default(),
        );
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
    async fn heartbeat_names_a_bounded_number_of_unhealthy_objects() {
        let renew = |unhealthy: Vec<(ObjectKey, String)>| {
            let report = HeartbeatReport {
                stats: "{}".to_owned(),
                unhealthy,
            };
            let write = MemberWrite {
                identity: "a".into(),
                base: None,
                change: MemberChange::Vacate,
            };
            store().member(&write, "n", 1, [], &BTreeSet::new(), report)
        };
        let read = |lease: &Lease| -> Vec<String> {
            let entries = LeaseFields::new(&NAMES, lease).unhealthy();
            entries
                .map(|(namespace, name, reason)| format!("{namespace} {name} {reason}"))
                .collect()
        };
        let none = renew(Vec::new());
        let annotations = none.metadata.annotations.as_ref().unwrap();
        assert!(!annotations.contains_key(&NAMES.label(UNHEALTHY)));
        assert!(read(&none).is_empty());

        let longest = |n: usize| {
            let key = ObjectKey::new(&"n".repeat(63), &format!("{n}{}", "a".repeat(252)));
            (key, "Reason, with a comma=".repeat(9))
        };
        let mut many: Vec<_> = (0..20).map(longest).collect();
        many[0] = (
            ObjectKey::new("shop", "orders"),
            "ImagePullFailed".to_owned(),
        );
        let lease = renew(many);
        let found = read(&lease);
        assert_eq!(found.len(), UNHEALTHY_MAX);
        assert_eq!(found[0], "shop orders ImagePullFailed");
        assert!(found[1].len() < 63 + 253 + REASON_CHARS_MAX + 3);

        let mut edited = lease;
        for (text, expected) in [
            ("no slash=x,a/b,=,a/b=C", 1),
            (&"a/b=C,".repeat(1000), 0),
            ("", 0),
        ] {
            let annotations = edited.metadata.annotations.as_mut().unwrap();
            annotations.insert(NAMES.label(UNHEALTHY), text.to_owned());
            assert_eq!(read(&edited).len(), expected, "{text:.20}");
        }
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
        let Some(ObservedLease::Shard(seen)) = store().codec.decode(&stored(bare)) else {
            panic!("no shard Lease");
        };
        assert_eq!((seen.holder.as_str(), seen.epoch, seen.shards), ("", 0, 0));
    }
}
