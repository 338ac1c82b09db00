//! The claims that a new cluster finds under its name, listed for several clusters at once: a burst of
//! new clusters costs two lists for each few dozen of them, not two each.
//!
//! Guarantees: what a cluster gets was listed after that cluster was observed, at most
//! [`LISTED_MS_MAX`] ago, and it gets it once; the number of clusters for which something is kept is
//! bounded.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Reconciler;
use super::apply::Refused;
use crate::core::claims::Claim;
use crate::core::observed::ClusterRecord;
use shard_ownership::resource_version::is_older;

/// How long ago claims may have been listed when the StatefulSet over them is created. Claims that
/// matter are older than their cluster: a former cluster left them, or a user restored them for it.
const LISTED_MS_MAX: u64 = 30_000;
/// Most clusters for which one list asks. Their names have to fit into an address.
const TOGETHER_MAX: usize = 48;
/// Most clusters for which something is kept.
const KEPT_MAX: usize = 1_024;

/// What was listed for clusters that have not asked yet, by uid.
#[derive(Debug, Default)]
pub(super) struct FormerClaims {
    /// Locked for one look-up or insertion, never over an await.
    listed: Mutex<HashMap<Arc<str>, Listed>>,
}

#[derive(Debug)]
struct Listed {
    claims: Vec<Claim>,
    at_ms: u64,
}

impl Listed {
    const fn is_fresh(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.at_ms) < LISTED_MS_MAX
    }
}

impl FormerClaims {
    fn take(&self, uid: &str, now_ms: u64) -> Option<Vec<Claim>> {
        let listed = self.listed.lock().remove(uid)?;
        listed.is_fresh(now_ms).then_some(listed.claims)
    }

    fn has(&self, uid: &str, now_ms: u64) -> bool {
        let listed = self.listed.lock();
        listed.get(uid).is_some_and(|known| known.is_fresh(now_ms))
    }

    fn keep(&self, uid: &Arc<str>, claims: Vec<Claim>, at_ms: u64) {
        let mut listed = self.listed.lock();
        if listed.len() >= KEPT_MAX {
            listed.retain(|_, known| known.is_fresh(at_ms));
        }
        if listed.len() < KEPT_MAX {
            listed.insert(Arc::clone(uid), Listed { claims, at_ms });
        }
    }
}

impl Reconciler {
    /// The claims of the name of a cluster that has no StatefulSet yet. With `others_wait`, they are
    /// listed for other new clusters of its namespace too.
    pub(super) async fn former_claims(
        &self,
        cluster: &Arc<ClusterRecord>,
        others_wait: bool,
    ) -> Result<Vec<Claim>, Refused> {
        let now_ms = self.clock.now_ms();
        if let Some(claims) = self.former.take(&cluster.uid, now_ms) {
            return Ok(claims);
        }
        let mut together = vec![Arc::clone(cluster)];
        if others_wait {
            together.extend(self.new_clusters_beside(cluster, now_ms));
        }
        let listed = self.writer.claims_of(&together).await;
        let listed = listed.map_err(|refusal| Refused::by(refusal, "listing the claims"))?;
        let mut of_each = listed.into_iter();
        let claims = of_each.next().unwrap_or_default();
        for (other, claims) in together.iter().skip(1).zip(of_each) {
            self.former.keep(&other.uid, claims, now_ms);
        }
        Ok(claims)
    }

    /// Other new clusters of the namespace, oldest first: the order in which they are reconciled.
    fn new_clusters_beside(&self, cluster: &ClusterRecord, now_ms: u64) -> Vec<Arc<ClusterRecord>> {
        let mut new = self.store.without_statefulset(&cluster.key.namespace);
        new.retain(|other| {
            other.uid != cluster.uid && !other.deleting && !self.former.has(&other.uid, now_ms)
        });
        new.sort_by(|one, other| {
            let (one, other) = (&one.resource_version, &other.resource_version);
            is_older(other, one).cmp(&is_older(one, other))
        });
        new.truncate(TOGETHER_MAX - 1);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_listed_is_given_once_and_only_while_it_is_fresh() {
        let former = FormerClaims::default();
        let uid: Arc<str> = "u".into();
        former.keep(&uid, Vec::new(), 1_000);
        assert!(former.has("u", 1_000) && !former.has("other", 1_000));
        assert_eq!(
            former.take("u", 1_000 + LISTED_MS_MAX - 1),
            Some(Vec::new())
        );
        assert_eq!(former.take("u", 1_000), None, "it may have changed");
        former.keep(&uid, Vec::new(), 1_000);
        assert!(!former.has("u", 1_000 + LISTED_MS_MAX));
        assert_eq!(former.take("u", 1_000 + LISTED_MS_MAX), None);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_old_makes_room() {
        let former = FormerClaims::default();
        for number in 0..2 * KEPT_MAX {
            former.keep(&number.to_string().into(), Vec::new(), 0);
        }
        assert_eq!(former.listed.lock().len(), KEPT_MAX);
        former.keep(&"late".into(), Vec::new(), LISTED_MS_MAX);
        assert!(former.has("late", LISTED_MS_MAX));
        assert_eq!(former.listed.lock().len(), 1);
    }
}
