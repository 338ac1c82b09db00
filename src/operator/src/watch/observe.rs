//! Conversion of API objects into the stored records.

use std::collections::BTreeMap;

use super::kinds::Ours;
use crate::api::{DatabaseCluster, names};
use crate::core::child::{ChildKind, Fingerprint};
use crate::core::claims::DATA_VOLUME;
use crate::core::digest;
use crate::core::observed::{
    ChildRecord, ClaimTemplate, ClusterRecord, FINALIZERS_MAX, Owner, Selector, StatefulSetRecord,
};
use crate::postgres;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use shard_ownership::hash::{Bucket, Fnv1a64, fnv1a64};
use sharded_controller::object::ObjectKey;
use sharded_controller::watch::wire::Annotations as _;

/// The record of a `DatabaseCluster`; none if it lacks what every stored object has.
#[must_use]
pub fn cluster(object: &DatabaseCluster) -> Option<ClusterRecord> {
    let meta = &object.metadata;
    let uid = meta.uid.as_deref()?;
    let finalizers = meta.finalizers.as_deref().unwrap_or_default();
    Some(ClusterRecord {
        key: key(meta)?,
        uid: uid.into(),
        bucket: Bucket::of(uid),
        generation: meta.generation.unwrap_or_default(),
        resource_version: meta.resource_version.clone()?,
        deleting: meta.deletion_timestamp.is_some(),
        finalizers: finalizers.iter().take(FINALIZERS_MAX).cloned().collect(),
        allows_empty_primary: annotation(meta, names::EMPTY_PRIMARY_ANNOTATION) == Some(uid),
        has_excess_finalizers: finalizers.len() > FINALIZERS_MAX,
        spec: object.spec.clone(),
        status: object.status.clone().unwrap_or_default(),
    })
}

/// The record of a child's metadata; none if it lacks what every stored object has.
#[must_use]
pub fn child(kind: ChildKind, meta: &ObjectMeta) -> Option<ChildRecord> {
    let bucket = bucket(meta);
    let fingerprint = annotation(meta, names::FINGERPRINT_ANNOTATION).and_then(Fingerprint::parse);
    let managed_by = text(meta.labels.as_ref(), names::MANAGED_BY_LABEL);
    Some(ChildRecord {
        kind,
        key: key(meta)?,
        uid: meta.uid.clone()?,
        resource_version: meta.resource_version.clone()?,
        deleting: meta.deletion_timestamp.is_some(),
        owner: owner(meta),
        is_marked: managed_by == Some(names::MANAGED_BY)
            && bucket.is_some()
            && fingerprint.is_some(),
        reports_initialized: annotation(meta, names::INITIALIZED_ANNOTATION) == Some("true"),
        bucket,
        token: annotation(meta, names::FENCING_TOKEN_ANNOTATION)
            .map(|text| fnv1a64(text.as_bytes())),
        fingerprint,
        rendered_from_generation: annotation(meta, names::GENERATION_ANNOTATION)
            .and_then(|text| text.parse().ok()),
        contents: contents(meta),
    })
}

/// Digest of everything but the status, which others write without changing our fields, and annotations of
/// others.
#[must_use]
pub fn contents(meta: &ObjectMeta) -> Option<u64> {
    let generation = meta.generation?;
    let mut hash = Fnv1a64::default();
    hash.write(&generation.to_le_bytes());
    let labels = meta.labels.iter().flatten();
    let annotations = meta.annotations.iter().flatten();
    let ours = annotations.filter(|(name, _)| name.starts_with(Ours::PREFIX));
    for (kind, (name, value)) in labels
        .map(|label| (b"l", label))
        .chain(ours.map(|one| (b"a", one)))
    {
        hash.write(kind);
        digest::write_text(name, &mut hash);
        digest::write_text(value, &mut hash);
    }
    for owner in meta.owner_references.iter().flatten() {
        hash.write(&[
            b'o',
            u8::from(owner.controller == Some(true)),
            u8::from(owner.block_owner_deletion == Some(true)),
        ]);
        for text in [&owner.api_version, &owner.kind, &owner.name, &owner.uid] {
            digest::write_text(text, &mut hash);
        }
    }
    hash.write(&[b'd', u8::from(meta.deletion_timestamp.is_some())]);
    Some(hash.finish())
}

/// The record of a StatefulSet; none if it lacks what every stored object has.
///
/// `previous` is the stored record: while its generation stays, so do the fields of its spec, which
/// need not be present then.
#[must_use]
pub fn statefulset(
    object: &StatefulSet,
    previous: Option<&StatefulSetRecord>,
) -> Option<StatefulSetRecord> {
    let child = child(ChildKind::StatefulSet, &object.metadata)?;
    let generation = object.metadata.generation.unwrap_or_default();
    let unchanged = previous.filter(|known| same_spec(&object.metadata, known));
    let labels = object.metadata.labels.as_ref();
    let spec = object.spec.as_ref();
    let status = object.status.clone().unwrap_or_default();
    Some(StatefulSetRecord {
        child,
        generation,
        spec_digest: match unchanged {
            Some(known) => known.spec_digest,
            None => postgres::statefulset_spec_digest(spec),
        },
        labels_digest: postgres::labels_digest(labels),
        image: match unchanged {
            Some(known) => known.image.clone(),
            None => {
                let image = spec.and_then(container).and_then(|c| c.image.as_deref());
                bounded(image.unwrap_or_default())
            }
        },
        claims_done: annotation(&object.metadata, names::CLAIMS_ANNOTATION).map(bounded),
        claim: match unchanged {
            Some(known) => known.claim.clone(),
            None => claim(object),
        },
        tls_secret: match unchanged {
            Some(known) => known.tls_secret.clone(),
            None => spec.and_then(tls_secret).map(|name| cut(name).into()),
        },
        spec_replicas: match unchanged {
            Some(known) => known.spec_replicas,
            None => spec.and_then(|spec| spec.replicas).unwrap_or(1),
        },
        observed_generation: status.observed_generation.unwrap_or_default(),
        replicas: status.replicas,
        ready_replicas: status.ready_replicas.unwrap_or_default(),
        updated_replicas: status.updated_replicas.unwrap_or_default(),
        available_replicas: status.available_replicas.unwrap_or_default(),
        current_revision: status.current_revision.unwrap_or_default(),
        update_revision: status.update_revision.unwrap_or_default(),
    })
}

/// Whether a StatefulSet's spec is the known one: of the same object, and of the same generation.
#[must_use]
pub(crate) fn same_spec(meta: &ObjectMeta, known: &StatefulSetRecord) -> bool {
    meta.uid.as_deref() == Some(&known.child.uid)
        && meta.generation.unwrap_or_default() == known.generation
}

/// By name: other components may inject containers, also before ours.
fn container(set: &StatefulSetSpec) -> Option<&Container> {
    let containers = &set.template.spec.as_ref()?.containers;
    containers
        .iter()
        .find(|container| container.name == postgres::CONTAINER)
}

fn claim(object: &StatefulSet) -> Option<ClaimTemplate> {
    let set = object.spec.as_ref()?;
    let templates = set.volume_claim_templates.as_ref()?;
    let template = templates
        .iter()
        .find(|template| template.metadata.name.as_deref() == Some(DATA_VOLUME))?;
    let spec = template.spec.as_ref()?;
    let requests = spec.resources.as_ref()?.requests.as_ref()?;
    Some(ClaimTemplate {
        size: requests.get("storage")?.0.clone(),
        class_name: spec.storage_class_name.clone(),
        cluster_uid: text(template.metadata.labels.as_ref(), names::CLUSTER_UID_LABEL)
            .map(Into::into),
        selector: match text(set.selector.match_labels.as_ref(), names::CLUSTER_LABEL) {
            Some(_) => Selector::Own,
            None => Selector::Recommended,
        },
        created_for: created_for(set).map(|uid| cut(uid).into()),
    })
}

fn created_for(set: &StatefulSetSpec) -> Option<&str> {
    let mut environment = container(set)?.env.iter().flatten();
    let uid = environment.find(|variable| variable.name == postgres::CLUSTER_UID)?;
    uid.value.as_deref()
}

fn tls_secret(set: &StatefulSetSpec) -> Option<&str> {
    let mut volumes = set.template.spec.as_ref()?.volumes.iter().flatten();
    let volume = volumes.find(|volume| volume.name == postgres::TLS_VOLUME)?;
    let mut sources = volume.projected.as_ref()?.sources.iter().flatten();
    let secret = sources.find_map(|source| source.secret.as_ref())?;
    Some(&secret.name)
}

/// Namespace and name; none if either is missing.
#[must_use]
pub fn key(meta: &ObjectMeta) -> Option<ObjectKey> {
    Some(ObjectKey::new(
        meta.namespace.as_deref()?,
        meta.name.as_deref()?,
    ))
}

fn text<'a>(map: Option<&'a BTreeMap<String, String>>, name: &str) -> Option<&'a str> {
    map?.get(name).map(String::as_str)
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    text(meta.annotations.as_ref(), name)
}

fn bucket(meta: &ObjectMeta) -> Option<Bucket> {
    let text = text(meta.labels.as_ref(), names::BUCKET_LABEL)?;
    text.parse().ok().map(Bucket)
}

fn owner(meta: &ObjectMeta) -> Option<Owner> {
    let reference = meta
        .owner_references
        .as_ref()?
        .iter()
        .find(|reference| reference.controller == Some(true))?;
    Some(Owner::new(
        cut(&reference.api_version),
        cut(&reference.kind),
        cut(&reference.name),
        cut(&reference.uid),
    ))
}

/// Maximum stored length of text that users can write, in bytes: longer than any text that is
/// compared with it, so that a truncated one equals none of them.
const TEXT_LENGTH_MAX: usize = 600;

fn cut(text: &str) -> &str {
    let end = text.floor_char_boundary(TEXT_LENGTH_MAX);
    text.get(..end).unwrap_or_default()
}

fn bounded(text: &str) -> String {
    cut(text).to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_and_claim_templates_are_found_by_name_wherever_they_are() {
        let claim = |name: &str, size: &str| {
            json!({
                "metadata": {"name": name},
                "spec": {"resources": {"requests": {"storage": size}}},
            })
        };
        let of = |containers: serde_json::Value, claims: serde_json::Value| {
            let object: StatefulSet = serde_json::from_value(json!({
                "metadata": {"name": "a-db", "namespace": "shop", "uid": "u", "resourceVersion": "1"},
                "spec": {
                    "serviceName": "a-db", "selector": {}, "volumeClaimTemplates": claims,
                    "template": {"spec": {"containers": containers}},
                },
            }))
            .unwrap();
            let record = statefulset(&object, None).unwrap();
            (record.image, record.claim.map(|claim| claim.size))
        };
        let ours = json!({"name": "postgres", "image": "postgres:18"});
        let other = json!({"name": "filebeat", "image": "filebeat:9.1.0"});
        let (data, logs) = (claim("data", "10Gi"), claim("logs", "1Gi"));
        let expected = ("postgres:18".to_owned(), Some("10Gi".to_owned()));
        let reversed = of(json!([other, ours]), json!([logs, data]));
        assert_eq!(reversed, expected);
        assert_eq!(of(json!([ours, other]), json!([data, logs])), expected);
        let without = of(json!([other]), json!([logs]));
        assert_eq!(without, (String::new(), None), "none of it is ours");
    }
}
