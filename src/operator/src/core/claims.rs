//! Volume claims: their names and owners, when to resize them, and which must not be lost.
//!
//! The claim template of a StatefulSet cannot be changed, so growing means patching each claim; a
//! claim that is created later has the template's size and is grown then. Each claim carries the uid
//! of its cluster as a label: from the template, or, where a StatefulSet is of an older version, of a
//! former cluster or over claims of one, by patching each claim once.

use super::digest::quantity_nano;
use super::observed::{ClusterRecord, Selector, StatefulSetRecord};

/// Name of the data volume; the claims are called `data-{pod}`.
pub(crate) const DATA_VOLUME: &str = "data";

/// Annotations that keep Argo CD from pruning a claim, from deleting it with an application, and from
/// reporting an application as out of sync because of it.
pub(crate) const HANDS_OFF: [(&str, &str); 2] = [
    ("argocd.argoproj.io/compare-options", "IgnoreExtraneous"),
    (
        "argocd.argoproj.io/sync-options",
        "Prune=false,Delete=false",
    ),
];

/// Name of the claim of one instance.
#[must_use]
pub(crate) fn name(statefulset: &str, ordinal: i32) -> String {
    format!("{DATA_VOLUME}-{statefulset}-{ordinal}")
}

/// The ordinal of a StatefulSet's claim, also of a former StatefulSet of that name; none if it is not
/// a claim of it.
#[must_use]
pub(crate) fn ordinal(claim: &str, statefulset: &str) -> Option<i32> {
    let text = claim
        .strip_prefix(DATA_VOLUME)?
        .strip_prefix('-')?
        .strip_prefix(statefulset)?
        .strip_prefix('-')?;
    let number: i32 = text.parse().ok()?;
    (name(statefulset, number) == claim && number >= 0).then_some(number)
}

/// Observed state of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// `metadata.name`.
    pub name: String,
    /// Ordinal of the instance that uses it.
    pub ordinal: i32,
    /// Uid of the cluster that it is labelled with.
    pub cluster_uid: Option<String>,
    /// Whether it has the operator's own label and [`HANDS_OFF`].
    pub is_marked: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it has a volume. Until then its size cannot be changed.
    pub is_bound: bool,
    /// Name of its volume.
    pub volume: Option<String>,
    /// Requested size.
    pub asks: Option<String>,
    /// Size of its volume.
    pub has: Option<String>,
}

impl Claim {
    /// Whether it is labelled as a claim of this cluster.
    #[must_use]
    pub(crate) fn is_of(&self, cluster: &ClusterRecord) -> bool {
        self.is_marked && self.cluster_uid.as_deref() == Some(&*cluster.uid)
    }

    /// Whether it requests less than this size. A larger claim is left alone, also one that a user has
    /// resized.
    #[must_use]
    pub(crate) fn is_smaller_than(&self, size: &str) -> bool {
        let asks = self.asks.as_deref().and_then(quantity_nano);
        matches!((asks, quantity_nano(size)), (Some(asks), Some(size)) if asks < size)
    }
}

/// The first claim of a replica, if the claim of the primary is not among these: a StatefulSet that
/// is created over them starts with an empty primary.
#[must_use]
pub(crate) fn without_primary(claims: &[Claim]) -> Option<&Claim> {
    let stay = || claims.iter().filter(|claim| !claim.deleting);
    match stay().any(|claim| claim.ordinal == 0) {
        true => None,
        false => stay().min_by_key(|claim| claim.ordinal),
    }
}

/// The first claim of an instance that is being deleted.
#[must_use]
pub(crate) fn terminating(claims: &[Claim], instances: i32) -> Option<&Claim> {
    let used = claims.iter().filter(|claim| claim.ordinal < instances);
    used.filter(|claim| claim.deleting)
        .min_by_key(|claim| claim.ordinal)
}

/// The size of the smallest volume of the instances.
#[must_use]
pub(crate) fn smallest(claims: &[Claim], instances: i32) -> Option<&str> {
    let used = claims.iter().filter(|claim| claim.ordinal < instances);
    let sizes = used.filter_map(|claim| {
        let size = claim.has.as_deref().or(claim.asks.as_deref())?;
        Some((quantity_nano(size)?, size))
    });
    sizes.min().map(|(_, size)| size)
}

/// What to do about a claim that cannot be resized, according to the API server's message; the volumes
/// have `size`.
#[must_use]
pub(crate) fn remedy(refusal: &str, size: &str) -> String {
    let remedy = if refusal.contains("support resize") {
        "set allowVolumeExpansion of its StorageClass"
    } else if refusal.contains("exceeded quota") {
        "raise the quota"
    } else {
        "remove the cause"
    };
    format!("{remedy}, or set spec.storage.size back to {size}")
}

/// What has to be done for the claims of an existing StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimMaintenance {
    /// Whether claims may be there that no template of ours labelled.
    pub label: bool,
    /// Whether the claims of all instances have to request the size in the spec.
    pub grow: bool,
    /// What to record on the StatefulSet afterwards: `<size>/<number of claims>`, and `/<cluster
    /// uid>/marked` if the claims were labelled one by one.
    pub done: String,
}

/// What was remembered on a StatefulSet, see [`ClaimMaintenance::done`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Remembered<'a> {
    size: &'a str,
    count: i32,
    uid: Option<&'a str>,
    /// An earlier version labelled claims with the uid alone.
    is_marked: bool,
}

impl<'a> Remembered<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('/');
        Some(Self {
            size: parts.next()?,
            count: parts.next()?.parse().ok()?,
            uid: parts.next(),
            is_marked: parts.next() == Some("marked"),
        })
    }
}

/// What has to be done for the claims now; none if nothing has to. `again`: whether to ignore what
/// is recorded.
#[must_use]
pub(crate) fn maintenance(
    cluster: &ClusterRecord,
    set: &StatefulSetRecord,
    again: bool,
) -> Option<ClaimMaintenance> {
    let (spec, uid) = (&cluster.spec, &*cluster.uid);
    let template = set.claim.as_ref()?;
    let known = set.claims_done.as_deref().and_then(Remembered::parse);
    let known = known.unwrap_or_default();
    let grows = quantity_nano(&spec.storage.size)? > quantity_nano(&template.size)?;
    let label = template.cluster_uid.as_deref() != Some(uid) || template.selector != Selector::Own;
    // Claims of instances that do not exist yet cannot be patched.
    let all_exist = set.replicas >= spec.replicas;
    let may_grow = grows && all_exist && spec.replicas > 0;
    let is_grown = known.size == spec.storage.size && known.count == spec.replicas;
    let is_labelled =
        known.is_marked && known.uid == Some(uid) && (!all_exist || known.count == spec.replicas);
    let grow = may_grow && (again || !is_grown);
    if !grow && !(label && (again || !is_labelled)) {
        return None;
    }
    let size = if grows && !may_grow {
        &template.size
    } else {
        &spec.storage.size
    };
    let count = spec.replicas.min(set.replicas);
    let done = match label {
        true => format!("{size}/{count}/{uid}/marked"),
        false => format!("{size}/{count}"),
    };
    Some(ClaimMaintenance { label, grow, done })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;
    use crate::watch::observe;

    #[test]
    fn claims_of_clusters_with_longer_or_shorter_names_are_not_confused() {
        assert_eq!(ordinal(&name("a-db", 12), "a-db"), Some(12));
        for other in [
            "data-a-db-",
            "data-a-db-01",
            "data-a-db-+1",
            "data-a-db--1",
            "data-a-db-99999999999",
            "data-a-db-x",
            "data-a-db-1x",
            "data-a-db",
            "data-b-a-db-0",
            "data-a-db-b-db-0",
            "a-db-0",
        ] {
            assert_eq!(ordinal(other, "a-db"), None, "{other}");
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

    /// A StatefulSet of 1 Gi each whose template has this uid, with this number of Pods and this
    /// record.
    fn set(uid: Option<&str>, pods: i32, done: Option<&str>) -> StatefulSetRecord {
        let labels = uid.map(|uid| json!({"database.io/cluster-uid": uid}));
        let annotations = done.map(|done| json!({"database.io/claims": done}));
        let object: Value = json!({
            "metadata": {
                "name": "a-db", "namespace": "n", "uid": "s", "resourceVersion": "1",
                "annotations": annotations,
            },
            "spec": {
                "selector": {"matchLabels": {"database.io/cluster": "a"}}, "serviceName": "a-db", "template": {},
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
            maintenance(&cluster(size, replicas), set, again)
        };
        assert_eq!(plan("1Gi", 2, &ours(2, None), true), None);
        let grow = |done: &str| {
            Some(ClaimMaintenance {
                label: false,
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
                Some(ClaimMaintenance {
                    label: true,
                    grow: false,
                    done: format!("{done}/marked"),
                })
            };
            let plan = |size, replicas, pods, done| {
                maintenance(&cluster(size, replicas), &set(template, pods, done), false)
            };
            assert_eq!(plan("1Gi", 2, 2, None), labels("1Gi/2/new"));
            assert_eq!(plan("1Gi", 2, 2, Some("1Gi/2")), labels("1Gi/2/new"));
            assert_eq!(plan("1Gi", 2, 2, Some("1Gi/2/former")), labels("1Gi/2/new"));
            assert_eq!(
                plan("1Gi", 2, 2, Some("1Gi/2/new")),
                labels("1Gi/2/new"),
                "by an earlier version, with the uid alone"
            );
            assert_eq!(plan("1Gi", 2, 2, Some("1Gi/2/new/marked")), None);
            assert_eq!(
                plan("1Gi", 3, 2, Some("1Gi/2/new/marked")),
                None,
                "not all exist"
            );
            assert_eq!(
                plan("1Gi", 3, 3, Some("1Gi/2/new/marked")),
                labels("1Gi/3/new")
            );
            assert_eq!(plan("1Gi", 0, 0, None), labels("1Gi/0/new"), "a paused one");
            assert_eq!(
                plan("2Gi", 3, 1, None),
                labels("1Gi/1/new"),
                "and grown later"
            );
            let both = Some(ClaimMaintenance {
                label: true,
                grow: true,
                done: "2Gi/2/new/marked".to_owned(),
            });
            assert_eq!(plan("2Gi", 2, 2, Some("1Gi/2/new/marked")), both);
            assert_eq!(
                plan("2Gi", 2, 2, Some("2Gi/2/former/marked")),
                labels("2Gi/2/new")
            );
            assert_eq!(plan("2Gi", 2, 2, Some("2Gi/2/new/marked")), None);
        }
    }

    #[test]
    fn claims_of_a_statefulset_with_recommended_labels_are_marked_once() {
        let mut old = set(Some("new"), 2, None);
        old.claim.as_mut().unwrap().selector = Selector::Recommended;
        let plan = |old: &StatefulSetRecord| maintenance(&cluster("1Gi", 2), old, false);
        assert_eq!(plan(&old).unwrap().done, "1Gi/2/new/marked");
        old.claims_done = Some("1Gi/2/new/marked".to_owned());
        assert_eq!(plan(&old), None);
    }

    fn claim(ordinal: i32, asks: &str, has: Option<&str>) -> Claim {
        Claim {
            name: name("a-db", ordinal),
            ordinal,
            cluster_uid: Some("new".to_owned()),
            is_marked: true,
            deleting: false,
            is_bound: true,
            volume: None,
            asks: Some(asks.to_owned()),
            has: has.map(str::to_owned),
        }
    }

    #[test]
    fn a_claim_that_asks_for_more_is_never_lowered() {
        for (asks, size, grows) in [
            ("1Gi", "2Gi", true),
            ("2048Mi", "2Gi", false),
            ("50Gi", "15Gi", false),
            ("nonsense", "15Gi", false),
        ] {
            assert_eq!(claim(0, asks, None).is_smaller_than(size), grows, "{asks}");
        }
        let mut unknown = claim(0, "1Gi", None);
        unknown.asks = None;
        assert!(!unknown.is_smaller_than("2Gi"));
    }

    #[test]
    fn missing_primary_claim_is_detected_only_among_claims_that_stay() {
        let (first, second) = (claim(0, "1Gi", None), claim(1, "1Gi", None));
        let mut terminating_first = first.clone();
        terminating_first.deleting = true;
        let mut terminating_second = second.clone();
        terminating_second.deleting = true;
        let missed = |claims: &[Claim]| without_primary(claims).map(|claim| claim.ordinal);
        assert_eq!(missed(&[]), None);
        assert_eq!(missed(&[second.clone(), first.clone()]), None);
        assert_eq!(missed(&[claim(2, "1Gi", None), second.clone()]), Some(1));
        assert_eq!(
            missed(&[terminating_first.clone(), second.clone()]),
            Some(1)
        );
        assert_eq!(
            missed(&[terminating_first.clone(), terminating_second.clone()]),
            None
        );
        let terminating_ordinal =
            |claims: &[Claim], instances| terminating(claims, instances).map(|c| c.ordinal);
        assert_eq!(terminating_ordinal(&[first, second], 2), None);
        assert_eq!(
            terminating_ordinal(&[terminating_second.clone(), terminating_first], 2),
            Some(0)
        );
        assert_eq!(
            terminating_ordinal(&[terminating_second], 1),
            None,
            "no instance uses it"
        );
    }

    #[test]
    fn the_smallest_volume_counts_as_far_as_instances_use_it() {
        let claims = [
            claim(0, "10Ti", Some("2Gi")),
            claim(1, "3Gi", None),
            claim(2, "1Gi", Some("1Gi")),
        ];
        assert_eq!(smallest(&claims, 2), Some("2Gi"));
        assert_eq!(smallest(&claims, 3), Some("1Gi"));
        assert_eq!(smallest(&claims, 0), None);
    }

    #[test]
    fn remedy_for_a_claim_follows_from_the_api_servers_message() {
        let class = "only dynamically provisioned pvc can be resized and the storageclass that \
                     provisions the pvc must support resize";
        assert!(remedy(class, "1Gi").contains("allowVolumeExpansion"));
        let quota = remedy("exceeded quota: small", "1Gi");
        assert!(quota.contains("quota") && !quota.contains("allowVolumeExpansion"));
        for refusal in [class, "exceeded quota: small", "no"] {
            assert!(remedy(refusal, "1Gi").ends_with("set spec.storage.size back to 1Gi"));
        }
    }
}
