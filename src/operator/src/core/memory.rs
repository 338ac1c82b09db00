//! What this replica remembers of its own writes to one cluster, so that a lagging watch does not
//! make it write twice, and so that a modified child is detected; and what it computed about the
//! children, so that a run without changes costs next to nothing.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::child::{ChildId, ChildKind, DesiredChild};
use super::lifecycle::ConditionReason;
use super::observed::{ChildRecord, Selector};
use shard_ownership::hash::fnv1a64;
use shard_ownership::resource_version::is_older;

/// How long a watch may lag behind our own writes before what it shows is trusted again.
pub(crate) const WATCH_LAG_MS_MAX: u64 = 10_000;

/// Two times that are no further apart are the same next retry, as two runs compute it.
const SAME_TRY: SignedDuration = SignedDuration::from_secs(2);

/// A resource version: in nearly all cases a number, in 16 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    /// Written as the API server writes numbers.
    Number(u64),
    Text(Box<str>),
}

impl Version {
    fn of(text: &str) -> Self {
        let number = text.parse::<u64>().ok();
        let is_plain = !text.starts_with(['+', '0']);
        match number.filter(|_| is_plain) {
            Some(number) => Self::Number(number),
            None => Self::Text(text.into()),
        }
    }

    fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Number(number) => number.to_string().into(),
            Self::Text(text) => Cow::Borrowed(text),
        }
    }

    fn is_older(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number(own), Self::Number(other)) => own < other,
            (own, other) => is_older(&own.text(), &other.text()),
        }
    }
}

/// One write of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Write {
    version: Version,
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

/// Most clusters have so many children that are watched.
const CHILDREN: usize = 6;

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
    desired: Option<(Basis, Arc<[DesiredChild]>)>,
    /// Whether a claim of an instance was being deleted when claims were last looked up.
    is_claim_terminating: bool,
    rare: Option<Box<Rare>>,
}

/// What is remembered of few clusters only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rare {
    awaited_since_ms: Option<u64>,
    /// Our generation of the cluster, and since when a child reports a newer one.
    newer_since: Option<(i64, u64)>,
    /// Objects of which the fence keeps refusing our writes, as last reported. Bounded by the number
    /// of objects that belong to the cluster.
    refused: Vec<Box<str>>,
    /// The time that was reported for the next retry.
    next_try: Option<Timestamp>,
    /// The generation that was applied and is not Ready as far as reported, and when it was applied or
    /// its progress was last reported.
    applied: Option<(i64, u64)>,
    /// The last check of the Secret that `spec.tls` names.
    tls: Option<TlsCheck>,
}

/// What a check of the Secret that `spec.tls` names has found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TlsCheck {
    generation: i64,
    at_ms: u64,
    problem: Option<ConditionReason>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Basis {
    generation: i64,
    /// How the StatefulSet selects its Pods, and a digest of the uid in their template.
    pods: (Selector, u64),
    initialized: bool,
}

impl Basis {
    /// The input of a cluster's generation: how its StatefulSet selects Pods and the uid in their template,
    /// and whether the volume of the primary has data. The volume claim template does not belong to it:
    /// it cannot be changed, so it is not compared.
    #[must_use]
    pub(crate) fn new(
        generation: i64,
        (selector, created_for): (Selector, &str),
        initialized: bool,
    ) -> Self {
        Self {
            generation,
            pods: (selector, fnv1a64(created_for.as_bytes())),
            initialized,
        }
    }

    /// Whether a child of this kind is rendered the same from both.
    fn gives_same(&self, other: &Self, kind: ChildKind) -> bool {
        self.generation == other.generation
            && match kind {
                ChildKind::StatefulSet => self.pods == other.pods,
                ChildKind::ConfigMap => self.initialized == other.initialized,
                ChildKind::PodDisruptionBudget | ChildKind::Secret | ChildKind::Service => true,
            }
    }
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
            desired: None,
            is_claim_terminating: false,
            rare: None,
        }
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Changes what is remembered of few clusters, if there is any.
    fn change_rare(&mut self, change: impl FnOnce(&mut Rare)) {
        if let Some(rare) = &mut self.rare {
            change(rare);
            if **rare == Rare::default() {
                self.rare = None;
            }
        }
    }

    /// Uid of the cluster.
    #[must_use]
    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }

    /// Our write to the cluster returned this version.
    pub(crate) fn wrote_cluster(&mut self, resource_version: &str, now_ms: u64) {
        self.cluster = Some(Write {
            version: Version::of(resource_version),
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
        if !Version::of(shown_version).is_older(&write.version) {
            write.seen = true;
        }
        write.is_pending(now_ms)
    }

    /// Our write to a child returned this version and these contents.
    pub(crate) fn wrote_child(
        &mut self,
        id: &ChildId,
        resource_version: &str,
        contents: Option<u64>,
        now_ms: u64,
    ) {
        let write = Write {
            version: Version::of(resource_version),
            at_ms: now_ms,
            seen: false,
            contents,
        };
        self.remember(id, write);
    }

    fn remember(&mut self, id: &ChildId, write: Write) {
        match self.children.iter_mut().find(|(known, _)| known == id) {
            Some((_, known)) => *known = write,
            None => {
                if self.children.is_empty() {
                    self.children.reserve_exact(CHILDREN);
                }
                // The name that the desired child has, which is kept anyway.
                let desired = self
                    .desired
                    .iter()
                    .flat_map(|(_, children)| children.iter());
                let known = desired.map(|child| &child.id).find(|known| *known == id);
                self.children.push((known.unwrap_or(id).clone(), write));
            }
        }
    }

    /// How an observed child compares with what we remember of it. A child that is observed for the
    /// first time is remembered as untouched.
    pub(crate) fn standing(&mut self, child: &ChildRecord, now_ms: u64) -> Standing {
        let id = child.id();
        let shown = Version::of(&child.resource_version);
        let Some((_, write)) = self.children.iter_mut().find(|(known, _)| *known == id) else {
            let write = Write {
                version: shown,
                at_ms: now_ms,
                seen: true,
                contents: child.contents,
            };
            self.remember(&id, write);
            return Standing::Untouched;
        };
        if shown == write.version {
            write.seen = true;
            write.contents = child.contents;
            return Standing::Untouched;
        }
        if shown.is_older(&write.version) && write.is_pending(now_ms) {
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

    /// The desired children. Those whose input has changed are rendered again: `make` gets the others.
    pub(crate) fn desired(
        &mut self,
        basis: Basis,
        make: impl FnOnce(&[DesiredChild], &dyn Fn(ChildKind) -> bool) -> Vec<DesiredChild>,
    ) -> Arc<[DesiredChild]> {
        let (former, known) = match &self.desired {
            Some((known, children)) if *known == basis => return Arc::clone(children),
            Some((former, children)) => (Some(*former), Arc::clone(children)),
            None => (None, Arc::default()),
        };
        let stays = |kind| former.is_some_and(|former| former.gives_same(&basis, kind));
        let children: Arc<[DesiredChild]> = make(&known, &stays).into();
        self.desired = Some((basis, Arc::clone(&children)));
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
        let since_ms = *self.rare().awaited_since_ms.get_or_insert(now_ms);
        now_ms.saturating_sub(since_ms)
    }

    /// Ends the wait for something that no watch may report.
    pub(crate) fn awaits_nothing(&mut self) {
        self.change_rare(|rare| rare.awaited_since_ms = None);
    }

    /// A child reports that it was rendered from a newer generation than this one, which is the
    /// newest that the watch has shown. Returns how long to wait for that generation, in
    /// milliseconds; none once the watch had enough time, because then the child is wrong.
    pub(crate) fn awaits_newer(&mut self, generation: i64, now_ms: u64) -> Option<u64> {
        let newer_since = &mut self.rare().newer_since;
        let since_ms = match *newer_since {
            Some((known, since_ms)) if known == generation => since_ms,
            _ => now_ms,
        };
        *newer_since = Some((generation, since_ms));
        let rest_ms = WATCH_LAG_MS_MAX.saturating_sub(now_ms.saturating_sub(since_ms));
        (rest_ms > 0).then_some(rest_ms)
    }

    /// No child reports a newer generation.
    pub(crate) fn awaits_no_newer(&mut self) {
        self.change_rare(|rare| rare.newer_since = None);
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
            self.rare().refused.push(object.into());
        }
        is_new
    }

    /// Whether the fence kept refusing our writes of an object when they were last tried.
    #[must_use]
    pub(crate) fn is_refused(&self, object: &str) -> bool {
        let mut refused = self.rare.iter().flat_map(|rare| &rare.refused);
        refused.any(|known| **known == *object)
    }

    /// Records that only our writes of these objects are still refused.
    pub(crate) fn refused_only(&mut self, objects: &[String]) {
        self.change_rare(|rare| {
            rare.refused
                .retain(|known| objects.iter().any(|object| **object == **known));
        });
    }

    /// The time to report for a next retry at about this time, so that the same retry is not reported
    /// with two times.
    pub(crate) fn next_try(&mut self, at: Timestamp) -> Timestamp {
        let is_same = |known: &Timestamp| known.duration_since(at).abs() <= SAME_TRY;
        let next_try = &mut self.rare().next_try;
        let known = next_try.filter(is_same);
        *next_try.insert(known.unwrap_or(at))
    }

    /// Records that a generation was applied that is not reported yet.
    pub(crate) fn applied(&mut self, generation: i64, now_ms: u64) {
        let applied = &mut self.rare().applied;
        if applied.is_none_or(|(known, _)| known != generation) {
            *applied = Some((generation, now_ms));
        }
    }

    /// Records that what was applied is reported; `is_progress`: as not Ready yet.
    pub(crate) fn reported(&mut self, generation: i64, is_progress: bool, now_ms: u64) {
        match is_progress {
            true => self.rare().applied = Some((generation, now_ms)),
            false => self.change_rare(|rare| rare.applied = None),
        }
    }

    /// For how much longer a generation that was applied need not be reported, if nothing but its
    /// progress could be, in milliseconds; none once it was applied or last reported `delay_ms` ago,
    /// and when that is not known.
    #[must_use]
    pub(crate) fn report_rest_ms(
        &self,
        generation: i64,
        delay_ms: u64,
        now_ms: u64,
    ) -> Option<u64> {
        let (known, since_ms) = self.rare.as_ref()?.applied?;
        let rest_ms = delay_ms.saturating_sub(now_ms.saturating_sub(since_ms));
        (known == generation && rest_ms > 0).then_some(rest_ms)
    }

    /// Remembers what is wrong with the Secret that `spec.tls` names.
    pub(crate) fn tls_check(
        &mut self,
        generation: i64,
        problem: Option<ConditionReason>,
        now_ms: u64,
    ) {
        self.rare().tls = Some(TlsCheck {
            generation,
            at_ms: now_ms,
            problem,
        });
    }

    /// What was found when the Secret was checked for this generation no longer than `fresh_ms` ago; none if it was
    /// not.
    #[must_use]
    pub(crate) fn tls_checked(
        &self,
        generation: i64,
        fresh_ms: u64,
        now_ms: u64,
    ) -> Option<Option<ConditionReason>> {
        let check = self.rare.as_ref()?.tls.as_ref()?;
        let is_fresh = now_ms.saturating_sub(check.at_ms) < fresh_ms;
        (check.generation == generation && is_fresh).then(|| check.problem.clone())
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
