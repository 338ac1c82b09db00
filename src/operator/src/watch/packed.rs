//! Records as they are stored: packed into bytes, which take less than a quarter of the memory.
//!
//! A number takes as many bytes as it needs, a uid 16, a time 5; what follows from the name of the cluster, such as
//! the names of its children, is not stored. A record is unpacked when it is read. Nothing outside of this process
//! sees the bytes, so they need no version.
//!
//! Each record is taken apart without `..`: a new field that is not packed does not compile.

use std::sync::Arc;

use jiff::Timestamp;

use crate::api::{
    Condition, ConditionStatus, ConditionType, DatabaseClusterStatus, Phase, ShardStatus, names,
};
use crate::core::child::{ChildKind, Fingerprint};
use crate::core::observed::{
    ChildRecord, ClaimTemplate, ClusterRecord, Owner, Selector, StatefulSetRecord,
};
use crate::postgres;
use shard_ownership::hash::{Bucket, ShardId};
use sharded_controller::object::ObjectKey;

/// Length of a uid as text, and where its dashes are.
const UID_LENGTH: usize = 36;
const UID_DASHES: [usize; 4] = [8, 13, 18, 23];

/// Where a child's name comes from: its cluster's name and a suffix, or the name as it is.
const SUFFIXES: [&str; 4] = ["-db", "-rw", "-r", ""];

/// Which dependent of a group: its kind, and by which suffix its name follows from the group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) kind: ChildKind,
    suffix: u8,
}

impl Slot {
    /// The slot of a dependent, and the name of its group.
    pub(super) fn of(kind: ChildKind, name: &str) -> (Self, &str) {
        let mut suffixes = (0..).zip(SUFFIXES);
        let found = suffixes.find_map(|(place, text)| Some((place, name.strip_suffix(text)?)));
        // The last one fits every name.
        let (suffix, group) = found.unwrap_or((3, name));
        (Self { kind, suffix }, group)
    }

    /// The name of the dependent, by that of its group.
    pub(super) fn name(self, group: &str) -> Arc<str> {
        let suffix = SUFFIXES.get(usize::from(self.suffix));
        [group, suffix.copied().unwrap_or_default()].concat().into()
    }

    const fn code(self) -> u8 {
        let kind = match self.kind {
            ChildKind::ConfigMap => 0,
            ChildKind::PodDisruptionBudget => 1,
            ChildKind::Secret => 2,
            ChildKind::Service => 3,
            ChildKind::StatefulSet => 4,
        };
        kind << 2 | self.suffix
    }

    fn by_code(code: u8) -> Option<Self> {
        let kind = *ChildKind::ALL.get(usize::from(code >> 2))?;
        let suffix = code & 3;
        Some(Self { kind, suffix })
    }
}

/// The dependents of one group, one after the other in one allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dependents(Box<[u8]>);

impl Dependents {
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, PackedChild<'_>)> {
        let mut rest = Reader(&self.0);
        std::iter::from_fn(move || {
            let slot = Slot::by_code(rest.byte()?)?;
            let length = usize::try_from(rest.number()?).ok()?;
            Some((slot, PackedChild(rest.take(length)?)))
        })
    }

    pub(super) fn get(&self, slot: Slot) -> Option<PackedChild<'_>> {
        self.iter()
            .find_map(|(known, child)| (known == slot).then_some(child))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts a dependent into its slot.
    pub(super) fn insert(&mut self, slot: Slot, packed: &[u8]) {
        self.rebuild(|known, _| known != slot, Some((slot, packed)));
    }

    /// Drops those that are not to stay.
    pub(super) fn retain(&mut self, stays: impl Fn(Slot, PackedChild<'_>) -> bool) {
        if !self.iter().all(|(slot, child)| stays(slot, child)) {
            self.rebuild(stays, None);
        }
    }

    fn rebuild(
        &mut self,
        stays: impl Fn(Slot, PackedChild<'_>) -> bool,
        new: Option<(Slot, &[u8])>,
    ) {
        let mut all = Writer(Vec::with_capacity(
            self.0.len() + new.map_or(0, |(_, packed)| packed.len() + 4),
        ));
        let kept = self.iter().filter(|(slot, child)| stays(*slot, *child));
        for (slot, packed) in kept.map(|(slot, child)| (slot, child.0)).chain(new) {
            all.byte(slot.code());
            all.number(packed.len() as u64);
            all.0.extend_from_slice(packed);
        }
        self.0 = all.0.into();
    }
}

/// A child, or a StatefulSet with more after what every child has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackedChild<'a>(&'a [u8]);

const DELETING: u8 = 1;
const MARKED: u8 = 1 << 1;
const INITIALIZED: u8 = 1 << 2;
const BUCKET: u8 = 1 << 3;
const TOKEN: u8 = 1 << 4;
const FINGERPRINT: u8 = 1 << 5;
const GENERATION: u8 = 1 << 6;
const CONTENTS: u8 = 1 << 7;

pub(super) fn pack_child(record: &ChildRecord, group: &str) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(96));
    write_child(record, group, &mut out);
    out.0
}

fn write_child(record: &ChildRecord, group: &str, out: &mut Writer) {
    let ChildRecord {
        // By the slot.
        kind: _,
        key: _,
        uid,
        resource_version,
        deleting,
        owner,
        is_marked,
        reports_initialized,
        bucket,
        token,
        fingerprint,
        rendered_from_generation,
        contents,
    } = record;
    let flags = [
        (*deleting, DELETING),
        (*is_marked, MARKED),
        (*reports_initialized, INITIALIZED),
        (bucket.is_some(), BUCKET),
        (token.is_some(), TOKEN),
        (fingerprint.is_some(), FINGERPRINT),
        (rendered_from_generation.is_some(), GENERATION),
        (contents.is_some(), CONTENTS),
    ];
    let flags = flags.iter().filter(|(is_set, _)| *is_set);
    out.byte(flags.fold(0, |all, (_, flag)| all | flag));
    if let Some(bucket) = bucket {
        out.byte(bucket.0);
    }
    out.uid(uid);
    out.version(resource_version);
    match owner {
        None => out.byte(0),
        Some(owner) if is_group_owner(owner, group) => {
            out.byte(1);
            out.uid(owner.uid());
        }
        Some(owner) => {
            out.byte(2);
            for text in [owner.api_version(), owner.kind(), owner.name()] {
                out.text(text);
            }
            out.uid(owner.uid());
        }
    }
    let digests = [*token, fingerprint.map(|one| one.0), *contents];
    for digest in digests.into_iter().flatten() {
        out.0.extend_from_slice(&digest.to_le_bytes());
    }
    if let Some(generation) = rendered_from_generation {
        out.signed(*generation);
    }
}

fn is_group_owner(owner: &Owner, group: &str) -> bool {
    owner.api_version() == names::API_VERSION
        && owner.kind() == names::KIND
        && owner.name() == group
}

impl<'a> PackedChild<'a> {
    /// Its bucket, without unpacking the rest.
    pub(super) fn bucket(self) -> Option<Bucket> {
        let mut from = Reader(self.0);
        let flags = from.byte()?;
        (flags & BUCKET != 0).then(|| from.byte().map(Bucket))?
    }

    /// Whether it has this uid.
    pub(super) fn has_uid(self, uid: &str) -> bool {
        let mut from = Reader(self.0);
        let flags = from.byte().unwrap_or_default();
        if flags & BUCKET != 0 {
            let _bucket = from.byte();
        }
        from.uid().is_some_and(|known| known == uid)
    }

    pub(super) fn child(self, kind: ChildKind, key: ObjectKey, group: &str) -> Option<ChildRecord> {
        read_child(&mut Reader(self.0), kind, key, group)
    }

    pub(super) fn statefulset(self, key: ObjectKey, group: &str) -> Option<StatefulSetRecord> {
        let mut from = Reader(self.0);
        let child = read_child(&mut from, ChildKind::StatefulSet, key, group)?;
        let (generation, observed_generation) = (from.signed()?, from.signed()?);
        let mut count = || i32::try_from(from.signed()?).ok();
        let (spec_replicas, replicas, ready_replicas) = (count()?, count()?, count()?);
        let (updated_replicas, available_replicas) = (count()?, count()?);
        let (spec_digest, labels_digest) = (from.digest()?, from.digest()?);
        let (image, claims_done) = (from.text()?.to_owned(), from.maybe_text()?);
        let claim = match from.byte()? {
            0 => None,
            _ => Some(read_claim(&mut from)?),
        };
        let tls_secret = from.maybe_text()?;
        let prefix = [&*child.key.name, "-"].concat();
        let current_revision = from.text_after(&prefix)?;
        let update_revision = match from.byte()? {
            0 => current_revision.clone(),
            _ => from.text_after(&prefix)?,
        };
        Some(StatefulSetRecord {
            child,
            generation,
            spec_digest,
            labels_digest,
            image,
            claims_done: claims_done.map(str::to_owned),
            claim,
            tls_secret: tls_secret.map(Into::into),
            spec_replicas,
            observed_generation,
            replicas,
            ready_replicas,
            updated_replicas,
            available_replicas,
            current_revision,
            update_revision,
        })
    }
}

fn read_child(
    from: &mut Reader<'_>,
    kind: ChildKind,
    key: ObjectKey,
    group: &str,
) -> Option<ChildRecord> {
    let flags = from.byte()?;
    let has = |flag: u8| flags & flag != 0;
    let bucket = match has(BUCKET) {
        true => Some(Bucket(from.byte()?)),
        false => None,
    };
    let (uid, resource_version) = (from.uid()?, from.version()?);
    let owner = match from.byte()? {
        0 => None,
        1 => Some(Owner::new(
            names::API_VERSION,
            names::KIND,
            group,
            &from.uid()?,
        )),
        _ => {
            let (api_version, kind, name) = (from.text()?, from.text()?, from.text()?);
            Some(Owner::new(api_version, kind, name, &from.uid()?))
        }
    };
    let mut digest = |flag: u8| match has(flag) {
        true => from.digest().map(Some),
        false => Some(None),
    };
    let (token, fingerprint, contents) = (digest(TOKEN)?, digest(FINGERPRINT)?, digest(CONTENTS)?);
    let rendered_from_generation = match has(GENERATION) {
        true => Some(from.signed()?),
        false => None,
    };
    Some(ChildRecord {
        kind,
        key,
        uid,
        resource_version,
        deleting: has(DELETING),
        owner,
        is_marked: has(MARKED),
        reports_initialized: has(INITIALIZED),
        bucket,
        token,
        fingerprint: fingerprint.map(Fingerprint),
        rendered_from_generation,
        contents,
    })
}

pub(super) fn pack_statefulset(record: &StatefulSetRecord, group: &str) -> Vec<u8> {
    let StatefulSetRecord {
        child,
        generation,
        spec_digest,
        labels_digest,
        image,
        claims_done,
        claim,
        tls_secret,
        spec_replicas,
        observed_generation,
        replicas,
        ready_replicas,
        updated_replicas,
        available_replicas,
        current_revision,
        update_revision,
    } = record;
    let mut out = Writer(Vec::with_capacity(256));
    write_child(child, group, &mut out);
    out.signed(*generation);
    out.signed(*observed_generation);
    for count in [
        spec_replicas,
        replicas,
        ready_replicas,
        updated_replicas,
        available_replicas,
    ] {
        out.signed(i64::from(*count));
    }
    out.0.extend_from_slice(&spec_digest.to_le_bytes());
    out.0.extend_from_slice(&labels_digest.to_le_bytes());
    out.text(image);
    out.maybe_text(claims_done.as_deref());
    match claim {
        None => out.byte(0),
        Some(claim) => {
            out.byte(1);
            write_claim(claim, &mut out);
        }
    }
    out.maybe_text(tls_secret.as_deref());
    let prefix = [&*child.key.name, "-"].concat();
    out.text_after(&prefix, current_revision);
    if update_revision == current_revision {
        out.byte(0);
    } else {
        out.byte(1);
        out.text_after(&prefix, update_revision);
    }
    out.0
}

fn write_claim(claim: &ClaimTemplate, out: &mut Writer) {
    let ClaimTemplate {
        size,
        class_name,
        cluster_uid,
        selector,
        created_for,
    } = claim;
    out.text(size);
    out.maybe_text(class_name.as_deref());
    out.byte(match selector {
        Selector::Own => 0,
        Selector::Recommended => 1,
    });
    for uid in [cluster_uid, created_for] {
        match uid {
            None => out.byte(0),
            Some(uid) => {
                out.byte(1);
                out.uid(uid);
            }
        }
    }
}

fn read_claim(from: &mut Reader<'_>) -> Option<ClaimTemplate> {
    let size = from.text()?.to_owned();
    let class_name = from.maybe_text()?.map(str::to_owned);
    let selector = match from.byte()? {
        0 => Selector::Own,
        _ => Selector::Recommended,
    };
    let mut uid = || {
        Some(match from.byte()? {
            0 => None,
            _ => Some(from.uid()?.into_boxed_str()),
        })
    };
    Some(ClaimTemplate {
        size,
        class_name,
        cluster_uid: uid()?,
        selector,
        created_for: uid()?,
    })
}

/// A cluster. Its bucket and its phase come first, and can be read without the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackedCluster(Box<[u8]>);

const EMPTY_PRIMARY: u8 = 1 << 1;
const EXCESS_FINALIZERS: u8 = 1 << 2;
/// Codes of a phase: its place in [`Phase::ALL`], or this.
const NO_PHASE: u8 = u8::MAX;

impl PackedCluster {
    /// Packs a record; none if its spec cannot be written as JSON, which no spec that was read from JSON causes.
    pub(super) fn new(record: &ClusterRecord) -> Option<Self> {
        let ClusterRecord {
            // The key of the group.
            key,
            uid,
            bucket,
            generation,
            resource_version,
            deleting,
            finalizers,
            allows_empty_primary,
            has_excess_finalizers,
            spec,
            status,
        } = record;
        let mut out = Writer(Vec::with_capacity(640));
        out.byte(bucket.0);
        let phase = Phase::ALL
            .iter()
            .position(|known| Some(*known) == status.phase);
        let phase = phase.and_then(|place| u8::try_from(place).ok());
        out.byte(phase.unwrap_or(NO_PHASE));
        let flags = [
            (*deleting, DELETING),
            (*allows_empty_primary, EMPTY_PRIMARY),
            (*has_excess_finalizers, EXCESS_FINALIZERS),
        ];
        let flags = flags.iter().filter(|(is_set, _)| *is_set);
        out.byte(flags.fold(0, |all, (_, flag)| all | flag));
        out.uid(uid);
        out.version(resource_version);
        out.signed(*generation);
        out.number(finalizers.len() as u64);
        for finalizer in finalizers {
            out.text_or(finalizer, || names::FINALIZER.to_owned());
        }
        // Not field by field: few are set, and users see the same names.
        let spec = serde_json::to_vec(spec).ok()?;
        out.number(spec.len() as u64);
        out.0.extend_from_slice(&spec);
        write_status(status, &key.name, uid, &mut out);
        Some(Self(out.0.into()))
    }

    pub(super) fn bucket(&self) -> Bucket {
        Bucket(self.0.first().copied().unwrap_or_default())
    }

    pub(super) fn phase(&self) -> Option<Phase> {
        let code = self.0.get(1)?;
        Phase::ALL.get(usize::from(*code)).copied()
    }

    pub(super) fn has_uid(&self, uid: &str) -> bool {
        let mut from = Reader(self.0.get(3..).unwrap_or_default());
        from.uid().is_some_and(|known| known == uid)
    }

    /// Its status, without unpacking the rest.
    pub(super) fn status(&self, name: &str) -> Option<DatabaseClusterStatus> {
        let mut from = Reader(self.0.get(3..)?);
        let (uid, _version, _generation) = (from.uid()?, from.version()?, from.signed()?);
        for _ in 0..from.number()? {
            from.text_or(String::new)?;
        }
        let length = usize::try_from(from.number()?).ok()?;
        from.take(length)?;
        read_status(&mut from, self.phase(), name, &uid)
    }

    pub(super) fn record(&self, key: ObjectKey) -> Option<ClusterRecord> {
        let mut from = Reader(&self.0);
        let (bucket, _phase, flags) = (from.byte()?, from.byte()?, from.byte()?);
        let (uid, resource_version) = (from.uid()?, from.version()?);
        let generation = from.signed()?;
        let count = from.number()?;
        let finalizers = (0..count).map(|_| from.text_or(|| names::FINALIZER.to_owned()));
        let finalizers = finalizers.collect::<Option<Vec<_>>>()?;
        let length = usize::try_from(from.number()?).ok()?;
        let spec = serde_json::from_slice(from.take(length)?).ok()?;
        let status = read_status(&mut from, self.phase(), &key.name, &uid)?;
        Some(ClusterRecord {
            key,
            uid: uid.into(),
            bucket: Bucket(bucket),
            generation,
            resource_version,
            deleting: flags & DELETING != 0,
            finalizers,
            allows_empty_primary: flags & EMPTY_PRIMARY != 0,
            has_excess_finalizers: flags & EXCESS_FINALIZERS != 0,
            spec,
            status,
        })
    }
}

fn write_status(status: &DatabaseClusterStatus, cluster: &str, uid: &str, out: &mut Writer) {
    let DatabaseClusterStatus {
        replicas,
        ready_replicas,
        selector,
        storage_size,
        observed_generation,
        // Near the beginning of the record.
        phase: _,
        conditions,
        shard,
    } = status;
    out.signed(i64::from(*replicas));
    out.signed(i64::from(*ready_replicas));
    out.text_or(selector, || postgres::selector_text(cluster));
    out.maybe_text(storage_size.as_deref());
    out.signed(*observed_generation);
    out.number(conditions.len() as u64);
    for condition in conditions {
        write_condition(condition, out);
    }
    match shard {
        None => out.byte(0),
        Some(shard) => {
            out.byte(1);
            write_shard(shard, uid, out);
        }
    }
}

fn read_status(
    from: &mut Reader<'_>,
    phase: Option<Phase>,
    cluster: &str,
    uid: &str,
) -> Option<DatabaseClusterStatus> {
    let replicas = i32::try_from(from.signed()?).ok()?;
    let ready_replicas = i32::try_from(from.signed()?).ok()?;
    let selector = from.text_or(|| postgres::selector_text(cluster))?;
    let storage_size = from.maybe_text()?.map(str::to_owned);
    let observed_generation = from.signed()?;
    let count = from.number()?;
    let conditions = (0..count).map(|_| read_condition(from));
    let conditions = conditions.collect::<Option<Vec<_>>>()?;
    let shard = match from.byte()? {
        0 => None,
        _ => Some(read_shard(from, uid)?),
    };
    Some(DatabaseClusterStatus {
        replicas,
        ready_replicas,
        selector,
        storage_size,
        observed_generation,
        phase,
        conditions,
        shard,
    })
}

fn write_condition(condition: &Condition, out: &mut Writer) {
    let Condition {
        type_,
        status,
        reason,
        message,
        observed_generation,
        last_transition_time,
    } = condition;
    let code = match type_ {
        ConditionType::Ready => 0,
        ConditionType::Progressing => 1,
        ConditionType::Degraded => 2,
        ConditionType::Available => 3,
        ConditionType::Initialized => 4,
        ConditionType::Other(_) => 5,
        ConditionType::Stalled => 6,
        ConditionType::Exposed => 7,
    };
    let status = match status {
        ConditionStatus::True => 0,
        ConditionStatus::False => 1,
        ConditionStatus::Unknown => 2,
    };
    out.byte(code << 2 | status);
    if let ConditionType::Other(text) = type_ {
        out.text(text);
    }
    out.text(reason);
    out.text(message);
    out.signed(*observed_generation);
    out.time(last_transition_time);
}

fn read_condition(from: &mut Reader<'_>) -> Option<Condition> {
    let code = from.byte()?;
    let type_ = match code >> 2 {
        0 => ConditionType::Ready,
        1 => ConditionType::Progressing,
        2 => ConditionType::Degraded,
        3 => ConditionType::Available,
        4 => ConditionType::Initialized,
        6 => ConditionType::Stalled,
        7 => ConditionType::Exposed,
        _ => ConditionType::Other(from.text()?.to_owned()),
    };
    let status = match code & 3 {
        0 => ConditionStatus::True,
        1 => ConditionStatus::False,
        _ => ConditionStatus::Unknown,
    };
    Some(Condition {
        type_,
        status,
        reason: from.text()?.to_owned(),
        message: from.text()?.to_owned(),
        observed_generation: from.signed()?,
        last_transition_time: from.time()?,
    })
}

fn write_shard(shard: &ShardStatus, own_uid: &str, out: &mut Writer) {
    let ShardStatus {
        table,
        lease,
        holder,
        epoch,
        bucket,
        uid,
    } = shard;
    out.uid(table);
    let number = lease.rsplit('-').next().and_then(|text| text.parse().ok());
    let number = number.filter(|number| names::NAMES.shard_lease(ShardId(*number)) == *lease);
    match number {
        Some(number) => {
            out.byte(1);
            out.number(u64::from(number));
        }
        None => {
            out.byte(0);
            out.text(lease);
        }
    }
    out.text(holder);
    out.signed(*epoch);
    out.signed(i64::from(*bucket));
    if uid == own_uid {
        out.byte(0);
    } else {
        out.byte(1);
        out.uid(uid);
    }
}

fn read_shard(from: &mut Reader<'_>, own_uid: &str) -> Option<ShardStatus> {
    let table = from.uid()?;
    let lease = match from.byte()? {
        1 => {
            let number = u16::try_from(from.number()?).ok()?;
            names::NAMES.shard_lease(ShardId(number))
        }
        _ => from.text()?.to_owned(),
    };
    let holder = from.text()?.to_owned();
    let epoch = from.signed()?;
    let bucket = i32::try_from(from.signed()?).ok()?;
    let uid = match from.byte()? {
        0 => own_uid.to_owned(),
        _ => from.uid()?,
    };
    Some(ShardStatus {
        table,
        lease,
        holder,
        epoch,
        bucket,
        uid,
    })
}

/// Appends values.
struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    /// Seven bits in each byte; the eighth: more follow.
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// Numbers near zero are short, whatever their sign.
    fn signed(&mut self, number: i64) {
        self.number((number << 1 ^ number >> 63) as u64);
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn maybe_text(&mut self, text: Option<&str>) {
        self.number(text.map_or(0, |text| text.len() as u64 + 1));
        self.0
            .extend_from_slice(text.unwrap_or_default().as_bytes());
    }

    /// A text that is nearly always the same as the one that is `usual`.
    fn text_or(&mut self, text: &str, usual: impl FnOnce() -> String) {
        match text == usual() {
            true => self.maybe_text(None),
            false => self.maybe_text(Some(text)),
        }
    }

    /// A text that nearly always has this prefix.
    fn text_after(&mut self, prefix: &str, text: &str) {
        let rest = text.strip_prefix(prefix);
        self.byte(u8::from(rest.is_some()));
        self.text(rest.unwrap_or(text));
    }

    fn uid(&mut self, uid: &str) {
        match uid_bytes(uid) {
            Some(bytes) => {
                self.byte(1);
                self.0.extend_from_slice(&bytes);
            }
            None => {
                self.byte(0);
                self.text(uid);
            }
        }
    }

    fn version(&mut self, version: &str) {
        match version
            .parse::<u64>()
            .ok()
            .filter(|n| n.to_string() == version)
        {
            Some(number) => {
                self.byte(1);
                self.number(number);
            }
            None => {
                self.byte(0);
                self.text(version);
            }
        }
    }

    fn time(&mut self, time: &str) {
        let at = time.parse::<Timestamp>().ok();
        match at.filter(|at| at.subsec_nanosecond() == 0 && at.to_string() == time) {
            Some(at) => {
                self.byte(1);
                self.signed(at.as_second());
            }
            None => {
                self.byte(0);
                self.text(time);
            }
        }
    }
}

/// Reads values in the order in which they were appended.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn digest(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*bytes))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        std::str::from_utf8(self.take(length)?).ok()
    }

    fn maybe_text(&mut self) -> Option<Option<&'a str>> {
        match usize::try_from(self.number()?).ok()?.checked_sub(1) {
            None => Some(None),
            Some(length) => std::str::from_utf8(self.take(length)?).ok().map(Some),
        }
    }

    fn text_or(&mut self, usual: impl FnOnce() -> String) -> Option<String> {
        Some(self.maybe_text()?.map_or_else(usual, str::to_owned))
    }

    fn text_after(&mut self, prefix: &str) -> Option<String> {
        Some(match self.byte()? {
            0 => self.text()?.to_owned(),
            _ => [prefix, self.text()?].concat(),
        })
    }

    fn uid(&mut self) -> Option<String> {
        match self.byte()? {
            0 => self.text().map(str::to_owned),
            _ => {
                let (bytes, rest) = self.0.split_first_chunk()?;
                self.0 = rest;
                Some(uid_text(bytes))
            }
        }
    }

    fn version(&mut self) -> Option<String> {
        match self.byte()? {
            0 => self.text().map(str::to_owned),
            _ => self.number().map(|number| number.to_string()),
        }
    }

    fn time(&mut self) -> Option<String> {
        match self.byte()? {
            0 => self.text().map(str::to_owned),
            _ => {
                let at = Timestamp::from_second(self.signed()?).ok()?;
                Some(at.to_string())
            }
        }
    }
}

/// The 16 bytes of a uid as the API server writes it; none for any other text.
fn uid_bytes(uid: &str) -> Option<[u8; 16]> {
    if uid.len() != UID_LENGTH {
        return None;
    }
    let mut bytes = [0_u8; 16];
    let mut digits = 0_usize;
    for (place, byte) in uid.bytes().enumerate() {
        if UID_DASHES.contains(&place) {
            (byte == b'-').then_some(())?;
            continue;
        }
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        let target = bytes.get_mut(digits / 2)?;
        *target = *target << 4 | digit;
        digits += 1;
    }
    Some(bytes)
}

fn uid_text(bytes: &[u8; 16]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    let mut text = String::with_capacity(UID_LENGTH);
    for byte in bytes {
        if UID_DASHES.contains(&text.len()) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 0xf] {
            text.extend(DIGITS.get(usize::from(digit)));
        }
    }
    text
}

#[cfg(test)]
mod tests;
