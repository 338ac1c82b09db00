//! Tests of the plan while leftovers of a former cluster of the same name may exist.
#![allow(clippy::panic)]

use super::*;
use crate::api::{DatabaseClusterSpec, DatabaseClusterStatus, Resources, Storage};
use crate::core::child::Fingerprint;
use shard_ownership::hash::Bucket;
use sharded_controller::object::ObjectKey;

fn cluster() -> ClusterRecord {
    ClusterRecord {
        key: ObjectKey::new("shop", "orders"),
        uid: "new".into(),
        bucket: Bucket::of("new"),
        generation: 1,
        resource_version: "5".to_owned(),
        deleting: false,
        finalizers: vec![names::FINALIZER.to_owned()],
        allows_empty_primary: false,
        has_excess_finalizers: false,
        spec: DatabaseClusterSpec {
            replicas: 1,
            image: "postgres:18".to_owned(),
            resources: Resources::default(),
            storage: Storage::default(),
            customization: None,
        },
        status: DatabaseClusterStatus::default(),
    }
}

fn id(kind: ChildKind, name: &str) -> ChildId {
    ChildId {
        kind,
        name: name.into(),
    }
}

fn desired() -> Vec<DesiredChild> {
    let children = [
        id(ChildKind::Service, "orders-rw"),
        id(ChildKind::StatefulSet, "orders-db"),
    ];
    let desired = children.map(|id| DesiredChild {
        id,
        fingerprint: Fingerprint(1),
        spec_digest: 0,
        labels_digest: 0,
    });
    desired.into()
}

fn service_of(uid: &str) -> Arc<ChildRecord> {
    Arc::new(ChildRecord {
        kind: ChildKind::Service,
        key: ObjectKey::new("shop", "orders-rw"),
        uid: "s".to_owned(),
        resource_version: "4".to_owned(),
        deleting: false,
        owner: Some(Owner::new(names::API_VERSION, names::KIND, "orders", uid)),
        is_marked: true,
        reports_initialized: false,
        bucket: Some(Bucket::of("new")),
        token: None,
        fingerprint: Some(Fingerprint(1)),
        rendered_from_generation: Some(1),
        contents: None,
    })
}

/// The Secret's step and the kinds that are applied.
fn planned(
    children: &[Arc<ChildRecord>],
    initialized: bool,
    memory: &mut Memory,
    now_ms: u64,
) -> (SecretStep, Vec<ChildKind>) {
    let (cluster, desired) = (cluster(), desired());
    let observation = Observed {
        cluster: &cluster,
        statefulset: None,
        children,
        desired: &desired,
        initialized,
        sweep: false,
        now_ms,
    };
    let Plan::Keep { secret, apply, .. } = plan(&observation, memory) else {
        panic!("it lives");
    };
    let kinds = apply.iter().map(|step| desired[step.index].id.kind);
    (secret, kinds.collect())
}

#[test]
fn nothing_is_created_while_a_child_of_a_former_cluster_exists() {
    let mut memory = Memory::new("new".into(), 0);
    let former = planned(&[service_of("former")], false, &mut memory, 0);
    assert_eq!(former, (SecretStep::Leave, vec![]));
    let (secret, applied) = planned(&[service_of("new")], false, &mut memory, 0);
    assert_eq!(secret, SecretStep::Create { hold: true });
    assert_eq!(applied, [ChildKind::StatefulSet]);
}

#[test]
fn existing_secret_delays_the_statefulset() {
    let mut memory = Memory::new("new".into(), 0);
    let step = |memory: &mut Memory, now_ms| planned(&[], false, memory, now_ms).0;
    assert_eq!(step(&mut memory, 1_000), SecretStep::Create { hold: true });
    memory.secret_in_the_way(1_000);
    memory.secret_in_the_way(5_000);
    let last_ms = 1_000 + SECRET_HOLD_MS;
    let hold = |hold| SecretStep::Create { hold };
    assert_eq!(step(&mut memory, last_ms - 1), hold(true));
    assert_eq!(step(&mut memory, last_ms), hold(false));
}

#[test]
fn secret_created_by_the_operator_delays_nothing() {
    let mut memory = Memory::new("new".into(), 0);
    memory.secret_created();
    memory.secret_in_the_way(1_000);
    let (secret, _) = planned(&[], false, &mut memory, 1_000);
    assert_eq!(secret, SecretStep::Create { hold: false });
    let (secret, _) = planned(&[], true, &mut memory, 1_000);
    assert_eq!(secret, SecretStep::Probe, "there is data");
}

#[test]
fn refused_parameters_are_a_problem_of_the_object() {
    let mut cluster = cluster();
    let parameters = [("fsync".to_owned(), "off".to_owned())].into();
    let postgresql = crate::api::Postgresql {
        parameters,
        initdb: None,
    };
    cluster.spec.customization = Some(Box::new(crate::api::Customization {
        postgresql: Some(postgresql),
        ..crate::api::Customization::default()
    }));
    let desired = desired();
    let observation = Observed {
        cluster: &cluster,
        statefulset: None,
        children: &[],
        desired: &desired,
        initialized: false,
        sweep: false,
        now_ms: 0,
    };
    let mut memory = Memory::new("new".into(), 0);
    let Plan::Keep { problem, .. } = plan(&observation, &mut memory) else {
        panic!("it is kept");
    };
    let Some(Problem::Permanent(why)) = problem else {
        panic!("{problem:?}");
    };
    assert_eq!(why.reason, reason::PARAMETERS);
}
