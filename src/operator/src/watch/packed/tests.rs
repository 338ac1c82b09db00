//! What is packed comes back as it was, whatever users wrote into it.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::DatabaseClusterSpec;

/// Texts as the API server writes them, and such as it never would.
fn uid() -> impl Strategy<Value = String> {
    let usual = any::<[u8; 16]>().prop_map(|bytes| uid_text(&bytes));
    prop_oneof![
        usual,
        "[0-9A-Fa-f-]{36}",
        ".{0,40}",
        Just("00000000-0000-0000-0000-00000000000G".to_owned())
    ]
}

fn version() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<u64>().prop_map(|number| number.to_string()),
        Just("007".to_owned()),
        Just("+7".to_owned()),
        Just("18446744073709551616".to_owned()),
        ".{0,10}"
    ]
}

fn time() -> impl Strategy<Value = String> {
    prop_oneof![
        (-377_705_023_201_i64..253_402_207_200)
            .prop_map(|second| Timestamp::from_second(second).unwrap().to_string()),
        Just("2026-01-01T00:00:00.5Z".to_owned()),
        Just("2026-01-01T01:00:00+01:00".to_owned()),
        ".{0,10}"
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,4}(-db|-rw|-r|)", Just("-db".to_owned()), ".{0,9}"]
}

fn owner() -> impl Strategy<Value = Option<Owner>> {
    let ours = (name(), uid())
        .prop_map(|(name, uid)| Owner::new(names::API_VERSION, names::KIND, &name, &uid));
    let other = (".{0,9}", ".{0,9}", name(), uid())
        .prop_map(|(version, kind, name, uid)| Owner::new(&version, &kind, &name, &uid));
    proptest::option::of(prop_oneof![ours, other])
}

fn child() -> impl Strategy<Value = ChildRecord> {
    let kind = prop::sample::select(ChildKind::ALL.to_vec());
    let text = (kind, name(), uid(), version(), owner());
    let flags = any::<(bool, bool, bool)>();
    let numbers = any::<(
        Option<u8>,
        Option<u64>,
        Option<u64>,
        Option<i64>,
        Option<u64>,
    )>();
    (text, flags, numbers).prop_map(|(text, flags, numbers)| {
        let (kind, name, uid, resource_version, owner) = text;
        let (bucket, token, fingerprint, rendered_from_generation, contents) = numbers;
        ChildRecord {
            kind,
            key: ObjectKey::new("shop", &name),
            uid,
            resource_version,
            deleting: flags.0,
            owner,
            is_marked: flags.1,
            reports_initialized: flags.2,
            bucket: bucket.map(Bucket),
            token,
            fingerprint: fingerprint.map(Fingerprint),
            rendered_from_generation,
            contents,
        }
    })
}

fn claim() -> impl Strategy<Value = ClaimTemplate> {
    let optional = proptest::option::of::<BoxedStrategy<String>>;
    let texts = (
        ".{0,9}",
        optional(".{0,9}".boxed()),
        optional(uid().boxed()),
        optional(uid().boxed()),
    );
    (texts, any::<bool>()).prop_map(|((size, class_name, cluster_uid, created_for), own)| {
        ClaimTemplate {
            size,
            class_name,
            cluster_uid: cluster_uid.map(Into::into),
            selector: match own {
                true => Selector::Own,
                false => Selector::Recommended,
            },
            created_for: created_for.map(Into::into),
        }
    })
}

fn statefulset() -> impl Strategy<Value = StatefulSetRecord> {
    let texts = (".{0,9}", proptest::option::of(".{0,9}"), ".{0,9}", ".{0,9}");
    let claim = proptest::option::of(claim());
    let numbers = any::<(i64, i64, u64, u64, [i32; 5], [bool; 2])>();
    (child(), texts, claim, numbers).prop_map(|(mut child, texts, claim, numbers)| {
        child.kind = ChildKind::StatefulSet;
        let (image, claims_done, current, update) = texts;
        let (generation, observed_generation, spec_digest, labels_digest, counts, usual) = numbers;
        let [usual, settled] = usual;
        let current_revision = match usual {
            true => format!("{}-{current}", child.key.name),
            false => current,
        };
        StatefulSetRecord {
            child,
            generation,
            spec_digest,
            labels_digest,
            image,
            tls_secret: claims_done.as_deref().map(Into::into),
            claims_done,
            claim,
            spec_replicas: counts[0],
            observed_generation,
            replicas: counts[1],
            ready_replicas: counts[2],
            updated_replicas: counts[3],
            available_replicas: counts[4],
            update_revision: match settled {
                true => current_revision.clone(),
                false => update,
            },
            current_revision,
        }
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    let type_ = prop_oneof!["Ready|Progressing|Degraded|Available|Initialized", ".{0,9}"];
    let statuses = vec![
        ConditionStatus::True,
        ConditionStatus::False,
        ConditionStatus::Unknown,
    ];
    let status = prop::sample::select(statuses);
    let rest = (".{0,9}", ".{0,200}", any::<i64>(), time());
    (type_, status, rest).prop_map(|(type_, status, rest)| Condition {
        type_: type_.into(),
        status,
        reason: rest.0,
        message: rest.1,
        observed_generation: rest.2,
        last_transition_time: rest.3,
    })
}

fn shard(own_uid: String) -> impl Strategy<Value = ShardStatus> {
    let lease = prop_oneof![
        any::<u16>().prop_map(|number| names::NAMES.shard_lease(ShardId(number))),
        ".{0,9}",
        Just("databasecluster-shard-1".to_owned())
    ];
    let about = prop_oneof![Just(own_uid), uid()];
    let texts = (uid(), lease, ".{0,9}", about);
    (texts, any::<(i64, i32)>()).prop_map(|((table, lease, holder, uid), (epoch, bucket))| {
        ShardStatus {
            table,
            lease,
            holder,
            epoch,
            bucket,
            uid,
        }
    })
}

fn specs() -> Vec<DatabaseClusterSpec> {
    let specs = [
        json!({"image": "postgres:18"}),
        json!({"replicas": 3, "image": "postgres:18", "resources": {"cpu": "250m", "memory": "256Mi"},
            "storage": {"size": "1Gi", "className": "fast", "retain": "Delete"}}),
        json!({"image": "p", "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
            "tolerations": [{"operator": "Exists"}], "nodeSelector": {"a": "b"},
            "podMetadata": {"labels": {"a": "b"}}}),
    ];
    specs
        .into_iter()
        .map(|spec| serde_json::from_value(spec).unwrap())
        .collect()
}

fn cluster() -> impl Strategy<Value = ClusterRecord> {
    let finalizer = prop_oneof![Just(names::FINALIZER.to_owned()), ".{0,9}"];
    let texts = (
        name(),
        version(),
        prop::collection::vec(finalizer, 0..4),
        prop::sample::select(specs()),
        prop::collection::vec(condition(), 0..6),
    );
    let selector = proptest::option::of(".{0,9}");
    let status = (
        selector,
        proptest::option::of(".{0,9}"),
        any::<(i32, i32, i64, Option<u8>)>(),
    );
    let own = uid().prop_flat_map(|own| (Just(own.clone()), proptest::option::of(shard(own))));
    (own, texts, status, any::<(u8, i64, [bool; 3])>()).prop_map(
        |((uid, shard), texts, status, numbers)| {
            let (name, resource_version, finalizers, spec, conditions) = texts;
            let (selector, storage_size, (replicas, ready_replicas, observed, phase)) = status;
            let phase = phase.and_then(|code| Phase::ALL.get(usize::from(code % 6)).copied());
            ClusterRecord {
                status: DatabaseClusterStatus {
                    replicas,
                    ready_replicas,
                    selector: selector.unwrap_or_else(|| postgres::selector_text(&name)),
                    storage_size,
                    observed_generation: observed,
                    phase,
                    conditions,
                    shard,
                },
                key: ObjectKey::new("shop", &name),
                uid: uid.into(),
                bucket: Bucket(numbers.0),
                generation: numbers.1,
                resource_version,
                deleting: numbers.2[0],
                finalizers,
                allows_empty_primary: numbers.2[1],
                has_excess_finalizers: numbers.2[2],
                spec,
            }
        },
    )
}

proptest! {
    #[test]
    fn cluster_comes_back_as_it_was(record in cluster()) {
        let packed = PackedCluster::new(&record).unwrap();
        prop_assert_eq!(packed.record(record.key.clone()), Some(record.clone()));
        prop_assert_eq!(packed.bucket(), record.bucket);
        prop_assert_eq!(packed.phase(), record.status.phase);
        prop_assert!(packed.has_uid(&record.uid) && !packed.has_uid("another"));
    }

    #[test]
    fn children_come_back_as_they_were(children in prop::collection::vec(child(), 0..9)) {
        let mut all = Dependents::default();
        let group = "orders";
        let mut expected: Vec<(Slot, ChildRecord)> = Vec::new();
        for mut record in children {
            // In one group, as the store puts them.
            let (slot, _) = Slot::of(record.kind, &record.key.name);
            record.key.name = slot.name(group);
            all.insert(slot, &pack_child(&record, group));
            expected.retain(|(known, _)| *known != slot);
            expected.push((slot, record));
        }
        prop_assert_eq!(all.iter().count(), expected.len());
        for (slot, record) in &expected {
            let packed = all.get(*slot).unwrap();
            prop_assert_eq!(packed.bucket(), record.bucket);
            prop_assert!(packed.has_uid(&record.uid) && !packed.has_uid("another"));
            let unpacked = packed.child(record.kind, record.key.clone(), group);
            prop_assert_eq!(unpacked.as_ref(), Some(record));
        }
        all.retain(|slot, _| expected.first().is_some_and(|(first, _)| *first == slot));
        prop_assert_eq!(all.iter().count(), expected.len().min(1));
    }

    #[test]
    fn statefulset_comes_back_as_it_was(record in statefulset()) {
        let (slot, group) = Slot::of(ChildKind::StatefulSet, &record.child.key.name);
        prop_assert_eq!(&slot.name(group), &record.child.key.name);
        let mut all = Dependents::default();
        all.insert(slot, &pack_statefulset(&record, group));
        let packed = all.get(slot).unwrap();
        prop_assert_eq!(packed.bucket(), record.child.bucket);
        prop_assert_eq!(packed.statefulset(record.child.key.clone(), group), Some(record.clone()));
    }

    #[test]
    fn cut_off_bytes_give_no_record_and_no_panic(record in cluster(), length in 0_usize..400) {
        let mut packed = PackedCluster::new(&record).unwrap();
        let bytes = packed.0.get(..length.min(packed.0.len() - 1)).unwrap();
        packed = PackedCluster(bytes.into());
        prop_assert_eq!(packed.record(record.key.clone()), None);
    }
}
