//! Volume claims: their names, whose they are, and when they have to grow.
//!
//! The claim template of a StatefulSet cannot be changed, so growing means patching each claim; a
//! claim that is created later has the template's size and is grown then. Each claim carries the uid
//! of its cluster as a label: from the template, or, where a StatefulSet is of an older version or of
//! a former cluster, by patching each claim once.

use super::digest::quantity_nano;
use super::observed::{ClusterRecord, StatefulSetRecord};

/// Name of the data volume; the claims are called `data-{pod}`.
pub const DATA_VOLUME: &str = "data";

/// Name of the claim of one instance.
#[must_use]
pub fn name(statefulset: &str, ordinal: i32) -> String {
    format!("{DATA_VOLUME}-{statefulset}-{ordinal}")
}

/// Whether a claim is that of an instance of this StatefulSet, also of a former one.
#[must_use]
pub fn belongs_to(claim: &str, statefulset: &str) -> bool {
    let ordinal = claim
        .strip_prefix(DATA_VOLUME)
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|rest| rest.strip_prefix(statefulset))
        .and_then(|rest| rest.strip_prefix('-'));
    ordinal.is_some_and(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
}

/// What has to be done for the claims of a StatefulSet that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// Whether the claims of all instances have to ask for the size in the spec.
    pub grow: bool,
    /// What to remember on the StatefulSet afterwards: `<size>/<number of claims>`, and
    /// `/<cluster uid>` where the claims were labelled one by one.
    pub done: String,
}

/// What was remembered on a StatefulSet, see [`Upkeep::done`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Remembered<'a> {
    size: &'a str,
    count: i32,
    uid: Option<&'a str>,
}

impl<'a> Remembered<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('/');
        Some(Self {
            size: parts.next()?,
            count: parts.next()?.parse().ok()?,
            uid: parts.next(),
        })
    }
}

/// What has to be done for the claims now; none when there is nothing. `again`: whether what is
/// remembered is not believed.
#[must_use]
pub fn upkeep(cluster: &ClusterRecord, set: &StatefulSetRecord, again: bool) -> Option<Upkeep> {
    let (spec, uid) = (&cluster.spec, &*cluster.uid);
    let template = set.claim.as_ref()?;
    let known = set.claims_done.as_deref().and_then(Remembered::parse);
    let known = known.unwrap_or_default();
    let grows = quantity_nano(&spec.storage.size)? > quantity_nano(&template.size)?;
    let labels = template.cluster_uid.as_deref() != Some(uid);
    // Claims of instances that do not exist yet cannot be patched.
    let all_exist = set.replicas >= spec.replicas;
    let may_grow = grows && all_exist && spec.replicas > 0;
    let is_grown = known.size == spec.storage.size && known.count == spec.replicas;
    let is_labelled = known.uid == Some(uid) && (!all_exist || known.count == spec.replicas);
    let grow = may_grow && (again || !is_grown);
    if !grow && !(labels && (again || !is_labelled)) {
        return None;
    }
    let size = if grows && !may_grow {
        &template.size
    } else {
        &spec.storage.size
    };
    let count = spec.replicas.min(set.replicas);
    let done = match labels {
        true => format!("{size}/{count}/{uid}"),
        false => format!("{size}/{count}"),
    };
    Some(Upkeep { grow, done })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;
    use crate::watch::observe;

    #[test]
    fn claims_are_told_from_those_of_clusters_with_longer_or_shorter_names() {
        assert!(belongs_to(&name("a-db", 12), "a-db"));
        for other in [
            "data-a-db-",
            "data-a-db-x",
            "data-a-db-1x",
            "data-a-db",
            "data-b-a-db-0",
            "data-a-db-b-db-0",
            "a-db-0",
        ] {
            assert!(!belongs_to(other, "a-db"), "{other}");
        }
    }

    fn cluster(size: &str, replicas: i32) -> ClusterRecord {
        let object = json!({
            "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
            "metadata": {"name": "a", "namespace": "n", "uid": "new", "resourceVersion": "1"},
            "spec": {"image": "postgres:18", "replicas": replicas, "storage": {"size": size}},
        });
        observe::cluster(&serde_json::from_value(object).unwrap()).unwrap()
    }

    /// A StatefulSet of 1 Gi each: whose template says this uid, with this number of Pods, of which
    /// this is remembered.
    fn set(uid: Option<&str>, pods: i32, done: Option<&str>) -> StatefulSetRecord {
        let labels = uid.map(|uid| json!({"database.io/cluster-uid": uid}));
        let annotations = done.map(|done| json!({"database.io/claims": done}));
        let object: Value = json!({
            "metadata": {
                "name": "a-db", "namespace": "n", "uid": "s", "resourceVersion": "1",
                "annotations": annotations,
            },
            "spec": {
                "selector": {}, "serviceName": "a-db", "template": {},
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data", "labels": labels},
                    "spec": {"resources": {"requests": {"storage": "1Gi"}}},
                }],
            },
            "status": {"replicas": pods},
        });
        observe::statefulset(&serde_json::from_value(object).unwrap(), None).unwrap()
    }

    #[test]
    fn claims_that_their_template_labels_are_touched_only_to_grow() {
        let ours = |pods, done| set(Some("new"), pods, done);
        let plan = |size, replicas, set: &StatefulSetRecord, again| {
            upkeep(&cluster(size, replicas), set, again)
        };
        assert_eq!(plan("1Gi", 2, &ours(2, None), true), None);
        let grow = |done: &str| {
            Some(Upkeep {
                grow: true,
                done: done.to_owned(),
            })
        };
        assert_eq!(plan("2Gi", 2, &ours(2, None), false), grow("2Gi/2"));
        assert_eq!(
            plan("2Gi", 2, &ours(1, None), false),
            None,
            "one is missing"
        );
        assert_eq!(plan("2Gi", 2, &ours(2, Some("2Gi/2")), false), None);
        assert_eq!(plan("2Gi", 2, &ours(2, Some("2Gi/2")), true), grow("2Gi/2"));
        assert_eq!(
            plan("2Gi", 3, &ours(3, Some("2Gi/2")), false),
            grow("2Gi/3")
        );
        assert_eq!(
            plan("3Gi", 2, &ours(2, Some("2Gi/2")), false),
            grow("3Gi/2")
        );
        assert_eq!(plan("2Gi", 0, &ours(0, None), true), None);
    }

    #[test]
    fn claims_of_older_and_of_former_statefulsets_are_labelled_once_for_each_number() {
        for template in [None, Some("former")] {
            let labels = |done: &str| {
                Some(Upkeep {
                    grow: false,
                    done: done.to_owned(),
                })
            };
            let plan = |size, replicas, pods, done| {
                upkeep(&cluster(size, replicas), &set(template, pods, done), false)
            };
            assert_eq!(plan("1Gi", 2, 2, None), labels("1Gi/2/new"));
            assert_eq!(plan("1Gi", 2, 2, Some("1Gi/2")), labels("1Gi/2/new"));
            assert_eq!(plan("1Gi", 2, 2, Some("1Gi/2/former")), labels("1Gi/2/new"));
            assert_eq!(plan("1Gi", 2, 2, Some("1Gi/2/new")), None);
            assert_eq!(
                plan("1Gi", 3, 2, Some("1Gi/2/new")),
                None,
                "not all are there"
            );
            assert_eq!(plan("1Gi", 3, 3, Some("1Gi/2/new")), labels("1Gi/3/new"));
            assert_eq!(plan("1Gi", 0, 0, None), labels("1Gi/0/new"), "a paused one");
            assert_eq!(
                plan("2Gi", 3, 1, None),
                labels("1Gi/1/new"),
                "and grown later"
            );
            let both = Some(Upkeep {
                grow: true,
                done: "2Gi/2/new".to_owned(),
            });
            assert_eq!(plan("2Gi", 2, 2, Some("1Gi/2/new")), both);
            assert_eq!(plan("2Gi", 2, 2, Some("2Gi/2/former")), labels("2Gi/2/new"));
            assert_eq!(plan("2Gi", 2, 2, Some("2Gi/2/new")), None);
        }
    }
}
