//! Volume claims: their names, and when they have to grow.
//!
//! The claim template of a StatefulSet can not be changed, so growing means patching each claim; a
//! claim that is made later has the template's size and is grown then.

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

/// What has to be remembered on the StatefulSet once its claims have grown; none when there is
/// nothing to grow now. `again`: whether what is remembered is not believed.
#[must_use]
pub fn to_grow(cluster: &ClusterRecord, set: &StatefulSetRecord, again: bool) -> Option<String> {
    let spec = &cluster.spec;
    let made = set.claim.as_ref()?;
    let grows = quantity_nano(&spec.storage.size)? > quantity_nano(&made.size)?;
    let grown = format!("{}/{}", spec.storage.size, spec.replicas);
    // Claims of instances that do not exist yet can not be patched.
    let all_exist = spec.replicas > 0 && set.replicas >= spec.replicas;
    let is_done = set.grown.as_ref() == Some(&grown) && !again;
    (grows && all_exist && !is_done).then_some(grown)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
