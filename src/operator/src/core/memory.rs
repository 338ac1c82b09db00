//! What this replica remembers of its own writes to one cluster, so that a lagging watch does not
//! make it write twice, and so that a modified child is detected; and what it computed about the
//! children, so that a run without changes costs next to nothing.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::child::{ChildId, DesiredChild};
use super::observed::{ChildRecord, ClaimTemplate};
use shard_ownership::resource_version::is_older;

/// How long a watch may lag behind our own writes before what it shows is trusted again.
pub(crate) const WATCH_LAG_MS_MAX: u64 = 10_000;

/// Two times that are no further apart are the same next retry, as two runs compute it.
const SAME_TRY: SignedDuration = SignedDuration::from_secs(2);

/// One write of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Write {
    resource_version: String,
    at_ms: u64,
    /// Whether the watch has shown it.
    seen: bool,
    /// Digest of the object after the write, apart from the status; none if it is not known.
    contents: Option<u64>,
}

impl Write {
    fn is_pending(&self, now_ms: u64) -> bool {
        !self.seen && now_ms.saturating_sub(self.at_ms) < WATCH_LAG_MS_MAX
    }
}

/// Memory of our writes to one cluster and its children, and of their desired state. Bounded by the
/// number of its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    uid: Arc<str>,
    cluster: Option<Write>,
    children: Vec<(ChildId, Write)>,
    swept_ms: u64,
    changing: Option<(i64, u64)>,
    secret: Secret,
    awaited_since_ms: Option<u64>,
    desired: Option<(Basis, Arc<[DesiredChild]>)>,
    /// Our generation of the cluster, and since when a child reports a newer one.
    newer_since: Option<(i64, u64)>,
    /// Whether a claim of an instance was being deleted when claims were last looked up.
    is_claim_terminating: bool,
    /// Objects of which the fence keeps refusing our writes, as last reported. Bounded by the number
    /// of objects that belong to the cluster.
    refused: Vec<Box<str>>,
    /// The time that was reported for the next retry.
    next_try: Option<Timestamp>,
}

/// What is known of the Secret of one cluster, which the operator must not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Secret {
    Unknown,
    /// A Secret of that name existed before ours was created.
    InTheWay {
        since_ms: u64,
    },
    Made,
}

/// What the children of one cluster are rendered from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Basis {
    /// The cluster's generation.
    pub generation: i64,
    /// The volume claim template, which cannot be changed any more.
    pub claim: Option<ClaimTemplate>,
    /// Whether the volume of the primary has data.
    pub initialized: bool,
}

/// How an observed child compares with what we remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is as our last write left it, or we remember nothing.
    Untouched,
    /// Someone wrote it after us.
    Touched,
    /// The watch has not shown our last write yet.
    Lagging,
}

impl Memory {
    /// Empty memory of the cluster with this uid. `swept_ms` is when it counts as last swept.
    #[must_use]
    pub(crate) const fn new(uid: Arc<str>, swept_ms: u64) -> Self {
        Self {
            uid,
            cluster: None,
            children: Vec::new(),
            swept_ms,
            changing: None,
            secret: Secret::Unknown,
            awaited_since_ms: None,
            desired: None,
            newer_since: None,
            is_claim_terminating: false,
            refused: Vec::new(),
            next_try: None,
        }
    }

    /// Uid of the cluster.
    #[must_use]
    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }

    /// Our write to the cluster returned this version.
    pub(crate) fn wrote_cluster(&mut self, resource_version: String, now_ms: u64) {
        self.cluster = Some(Write {
            resource_version,
            at_ms: now_ms,
            seen: false,
            contents: None,
        });
    }

    /// Whether the watch, which shows the cluster at this version, lags behind our last write.
    pub(crate) fn cluster_lags(&mut self, shown_version: &str, now_ms: u64) -> bool {
        let Some(write) = &mut self.cluster else {
            return false;
        };
        if !is_older(shown_version, &write.resource_version) {
            write.seen = true;
        }
        write.is_pending(now_ms)
    }

    /// Our write to a child returned this version and these contents.
    pub(crate) fn wrote_child(
        &mut self,
        id: &ChildId,
        resource_version: String,
        contents: Option<u64>,
        now_ms: u64,
    ) {
        let write = Write {
            resource_version,
            at_ms: now_ms,
            seen: false,
            contents,
        };
        self.remember(id, write);
    }

    fn remember(&mut self, id: &ChildId, write: Write) {
        match self.children.iter_mut().find(|(known, _)| known == id) {
            Some((_, known)) => *known = write,
            None => self.children.push((id.clone(), write)),
        }
    }

    /// How an observed child compares with what we remember of it. A child that is observed for the
    /// first time is remembered as untouched.
    pub(crate) fn standing(&mut self, child: &ChildRecord, now_ms: u64) -> Standing {
        let id = child.id();
        let shown = &child.resource_version;
        let Some((_, write)) = self.children.iter_mut().find(|(known, _)| *known == id) else {
            let write = Write {
                resource_version: shown.clone(),
                at_ms: now_ms,
                seen: true,
                contents: child.contents,
            };
            self.remember(&id, write);
            return Standing::Untouched;
        };
        if *shown == write.resource_version {
            write.seen = true;
            write.contents = child.contents;
            return Standing::Untouched;
        }
        if is_older(shown, &write.resource_version) && write.is_pending(now_ms) {
            return Standing::Lagging;
        }
        write.seen = true;
        if child.contents.is_some() && child.contents == write.contents {
            // Only its status has changed.
            return Standing::Untouched;
        }
        Standing::Touched
    }

    /// Whether a child that the watch does not show was written by us a moment ago. A child that
    /// the watch showed and that was then deleted does not count.
    #[must_use]
    pub(crate) fn expects(&self, id: &ChildId, now_ms: u64) -> bool {
        self.children
            .iter()
            .any(|(known, write)| known == id && write.is_pending(now_ms))
    }

    /// Forgets a child that was deleted.
    pub(crate) fn forget_child(&mut self, id: &ChildId) {
        self.children.retain(|(known, _)| known != id);
    }

    /// The desired children, rendered again only if their input has changed.
    pub(crate) fn desired(
        &mut self,
        basis: &Basis,
        make: impl FnOnce() -> Vec<DesiredChild>,
    ) -> Arc<[DesiredChild]> {
        if let Some((known, children)) = &self.desired
            && known == basis
        {
            return Arc::clone(children);
        }
        let children: Arc<[DesiredChild]> = make().into();
        self.desired = Some((basis.clone(), Arc::clone(&children)));
        children
    }

    /// The Secret was created by us: no other of that name can be in the way.
    pub(crate) const fn secret_created(&mut self) {
        self.secret = Secret::Made;
    }

    /// Records that the Secret existed already, and that nothing shows which cluster it belongs to.
    pub(crate) fn secret_in_the_way(&mut self, now_ms: u64) {
        if self.secret == Secret::Unknown {
            self.secret = Secret::InTheWay { since_ms: now_ms };
        }
    }

    /// Whether the Secret is known to belong to this cluster.
    #[must_use]
    pub(crate) fn has_secret(&self) -> bool {
        self.secret == Secret::Made
    }

    /// Whether a Secret exists of which nothing shows which cluster it belongs to.
    #[must_use]
    pub(crate) const fn suspects_secret(&self) -> bool {
        matches!(self.secret, Secret::InTheWay { .. })
    }

    /// For how long a Secret of unknown origin has existed, in milliseconds.
    #[must_use]
    pub(crate) const fn secret_suspected_ms(&self, now_ms: u64) -> u64 {
        match self.secret {
            Secret::InTheWay { since_ms } => now_ms.saturating_sub(since_ms),
            Secret::Unknown | Secret::Made => 0,
        }
    }

    /// Records a wait for something that no watch may report, and returns how long it has lasted, in
    /// milliseconds.
    pub(crate) fn awaits(&mut self, now_ms: u64) -> u64 {
        let since_ms = *self.awaited_since_ms.get_or_insert(now_ms);
        now_ms.saturating_sub(since_ms)
    }

    /// Ends the wait for something that no watch may report.
    pub(crate) const fn awaits_nothing(&mut self) {
        self.awaited_since_ms = None;
    }

    /// A child reports that it was rendered from a newer generation than this one, which is the
    /// newest that the watch has shown. Returns how long to wait for that generation, in
    /// milliseconds; none once the watch had enough time, because then the child is wrong.
    pub(crate) fn awaits_newer(&mut self, generation: i64, now_ms: u64) -> Option<u64> {
        let since_ms = match self.newer_since {
            Some((known, since_ms)) if known == generation => since_ms,
            _ => now_ms,
        };
        self.newer_since = Some((generation, since_ms));
        let rest_ms = WATCH_LAG_MS_MAX.saturating_sub(now_ms.saturating_sub(since_ms));
        (rest_ms > 0).then_some(rest_ms)
    }

    /// No child reports a newer generation.
    pub(crate) const fn awaits_no_newer(&mut self) {
        self.newer_since = None;
    }

    /// Remembers whether a claim of an instance is being deleted.
    pub(crate) const fn set_claim_terminating(&mut self, terminating: bool) {
        self.is_claim_terminating = terminating;
    }

    /// Whether a claim of an instance was being deleted when claims were last looked up.
    #[must_use]
    pub(crate) const fn is_claim_terminating(&self) -> bool {
        self.is_claim_terminating
    }

    /// Records that the fence keeps refusing our writes of an object; returns whether that is new.
    pub(crate) fn refused(&mut self, object: &str) -> bool {
        let is_new = !self.is_refused(object);
        if is_new {
            self.refused.push(object.into());
        }
        is_new
    }

    /// Whether the fence kept refusing our writes of an object when they were last tried.
    #[must_use]
    pub(crate) fn is_refused(&self, object: &str) -> bool {
        self.refused.iter().any(|known| **known == *object)
    }

    /// Records that only our writes of these objects are still refused.
    pub(crate) fn refused_only(&mut self, objects: &[String]) {
        self.refused
            .retain(|known| objects.iter().any(|object| **object == **known));
    }

    /// The time to report for a next retry at about this time, so that the same retry is not reported
    /// with two times.
    pub(crate) fn next_try(&mut self, at: Timestamp) -> Timestamp {
        let is_same = |known: &Timestamp| known.duration_since(at).abs() <= SAME_TRY;
        let known = self.next_try.filter(is_same);
        *self.next_try.insert(known.unwrap_or(at))
    }

    /// Whether everything was last applied so long ago that it is time to do it once more.
    #[must_use]
    pub(crate) fn sweep_is_due(&self, interval_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.swept_ms) >= interval_ms
    }

    /// Records that everything was applied. The input of the children is computed again after it:
    /// the API server's defaults for a spec may change without a new generation.
    pub(crate) fn swept(&mut self, now_ms: u64) {
        self.swept_ms = now_ms;
        self.desired = None;
    }

    /// Records that a generation was observed that is not applied yet.
    pub(crate) fn change_seen(&mut self, generation: i64, now_ms: u64) {
        if self.changing.is_none_or(|(known, _)| known != generation) {
            self.changing = Some((generation, now_ms));
        }
    }

    /// Records that the change of this generation is applied; returns how long it took, once.
    pub(crate) fn change_done(&mut self, generation: i64, now_ms: u64) -> Option<u64> {
        let (known, since_ms) = self.changing.take()?;
        (known == generation).then(|| now_ms.saturating_sub(since_ms))
    }
}

#[cfg(test)]
mod tests;
