//! What this replica remembers of its own writes to one cluster, so that a watch that lags behind
//! them does not make it write twice, and so that a touched child is noticed; and what it worked
//! out about the children, so that a run that finds nothing to do costs next to nothing.

use std::sync::Arc;

use super::child::{ChildId, DesiredChild};
use super::observed::{ChildRecord, ClaimTemplate};
use super::version;

/// How long a watch may lag behind our own writes before what it shows is believed again.
pub const WATCH_LAG_MS_MAX: u64 = 10_000;

/// One write of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Write {
    resource_version: String,
    at_ms: u64,
    /// Whether the watch has shown it.
    seen: bool,
    /// What it left, apart from the status; none when that is not known.
    contents: Option<u64>,
}

impl Write {
    fn is_pending(&self, now_ms: u64) -> bool {
        !self.seen && now_ms.saturating_sub(self.at_ms) < WATCH_LAG_MS_MAX
    }
}

/// Memory of our writes to one cluster and its children, and of what these should be. Bounded by
/// the number of its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    uid: Arc<str>,
    cluster: Option<Write>,
    children: Vec<(ChildId, Write)>,
    swept_ms: u64,
    changing: Option<(i64, u64)>,
    secret: Secret,
    awaited_since_ms: Option<u64>,
    desired: Option<(Basis, Arc<[DesiredChild]>)>,
}

/// What is known of the Secret of one cluster, which can not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Secret {
    Unknown,
    /// One was in the way when it should have been made.
    InTheWay {
        since_ms: u64,
    },
    Made,
}

/// What the children of one cluster are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    /// The cluster's generation.
    pub generation: i64,
    /// The volume claim template that can not be changed any more.
    pub claim: Option<ClaimTemplate>,
    /// Whether the volume of the primary has data.
    pub initialized: bool,
}

/// How a child that was seen stands to what we remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is as our last write left it, or we remember nothing.
    Untouched,
    /// Someone wrote it after us.
    Touched,
    /// The watch has not shown our last write yet.
    Lagging,
}

impl Memory {
    /// Nothing is remembered of the cluster with this uid. `swept_ms` is when it counts as last
    /// swept.
    #[must_use]
    pub const fn new(uid: Arc<str>, swept_ms: u64) -> Self {
        Self {
            uid,
            cluster: None,
            children: Vec::new(),
            swept_ms,
            changing: None,
            secret: Secret::Unknown,
            awaited_since_ms: None,
            desired: None,
        }
    }

    /// Uid of the cluster that this is about.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Our write to the cluster returned this version.
    pub fn wrote_cluster(&mut self, resource_version: String, now_ms: u64) {
        self.cluster = Some(Write {
            resource_version,
            at_ms: now_ms,
            seen: false,
            contents: None,
        });
    }

    /// Whether the watch, which shows the cluster at this version, lags behind our last write.
    pub fn cluster_lags(&mut self, shown_version: &str, now_ms: u64) -> bool {
        let Some(write) = &mut self.cluster else {
            return false;
        };
        if !version::is_older(shown_version, &write.resource_version) {
            write.seen = true;
        }
        write.is_pending(now_ms)
    }

    /// Our write to a child returned this version and these contents.
    pub fn wrote_child(
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

    /// How a child that was seen stands to what we remember of it. What is seen for the first time
    /// is remembered as untouched.
    pub fn standing(&mut self, child: &ChildRecord, now_ms: u64) -> Standing {
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
        if version::is_older(shown, &write.resource_version) && write.is_pending(now_ms) {
            return Standing::Lagging;
        }
        write.seen = true;
        if child.contents.is_some() && child.contents == write.contents {
            // Only its status is another.
            return Standing::Untouched;
        }
        Standing::Touched
    }

    /// Whether a child that the watch does not show was written by us a moment ago. One that the
    /// watch showed and that is gone is not.
    #[must_use]
    pub fn expects(&self, id: &ChildId, now_ms: u64) -> bool {
        self.children
            .iter()
            .any(|(known, write)| known == id && write.is_pending(now_ms))
    }

    /// A child that is gone is not remembered.
    pub fn forget_child(&mut self, id: &ChildId) {
        self.children.retain(|(known, _)| known != id);
    }

    /// The children as they should be, made anew only when what they are made from is another.
    pub fn desired(
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
    pub const fn secret_made(&mut self) {
        self.secret = Secret::Made;
    }

    /// There was a Secret already, and nothing says whose it is.
    pub fn secret_in_the_way(&mut self, now_ms: u64) {
        if self.secret == Secret::Unknown {
            self.secret = Secret::InTheWay { since_ms: now_ms };
        }
    }

    /// Whether the Secret is known to be of this cluster.
    #[must_use]
    pub fn has_secret(&self) -> bool {
        self.secret == Secret::Made
    }

    /// Whether there is a Secret of which nothing says whose it is.
    #[must_use]
    pub const fn doubts_secret(&self) -> bool {
        matches!(self.secret, Secret::InTheWay { .. })
    }

    /// For how long a Secret has been in the way, in milliseconds.
    #[must_use]
    pub const fn secret_doubted_ms(&self, now_ms: u64) -> u64 {
        match self.secret {
            Secret::InTheWay { since_ms } => now_ms.saturating_sub(since_ms),
            Secret::Unknown | Secret::Made => 0,
        }
    }

    /// Something is awaited that no watch may report: for how long that has been so, in milliseconds.
    pub fn awaits(&mut self, now_ms: u64) -> u64 {
        let since_ms = *self.awaited_since_ms.get_or_insert(now_ms);
        now_ms.saturating_sub(since_ms)
    }

    /// Nothing is awaited any more that a watch may not report.
    pub const fn awaits_nothing(&mut self) {
        self.awaited_since_ms = None;
    }

    /// Whether everything was last applied so long ago that it is time to do it once more.
    #[must_use]
    pub fn sweep_is_due(&self, interval_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.swept_ms) >= interval_ms
    }

    /// Everything was applied. What the children are made from is looked at afresh after it: the
    /// API server's defaults for a spec may change without a new generation.
    pub fn swept(&mut self, now_ms: u64) {
        self.swept_ms = now_ms;
        self.desired = None;
    }

    /// A generation that is not carried out yet was seen.
    pub fn change_seen(&mut self, generation: i64, now_ms: u64) {
        if self.changing.is_none_or(|(known, _)| known != generation) {
            self.changing = Some((generation, now_ms));
        }
    }

    /// The change of this generation is carried out: how long it took, once.
    pub fn change_done(&mut self, generation: i64, now_ms: u64) -> Option<u64> {
        let (known, since_ms) = self.changing.take()?;
        (known == generation).then(|| now_ms.saturating_sub(since_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::child::ChildKind;
    use crate::core::object::ObjectKey;

    fn child(resource_version: &str) -> ChildRecord {
        ChildRecord {
            kind: ChildKind::Service,
            key: ObjectKey::new("shop", "a-db"),
            uid: "s".to_owned(),
            resource_version: resource_version.to_owned(),
            deleting: false,
            owner: None,
            bucket: None,
            token: None,
            fingerprint: None,
            made_from_generation: None,
            contents: None,
        }
    }

    #[test]
    fn a_watch_that_stays_behind_is_believed_again_in_the_end() {
        let mut memory = Memory::new("u".into(), 0);
        memory.wrote_cluster("10".to_owned(), 1_000);
        assert!(memory.cluster_lags("9", 1_001));
        assert!(memory.cluster_lags("9", 1_000 + WATCH_LAG_MS_MAX - 1));
        assert!(!memory.cluster_lags("9", 1_000 + WATCH_LAG_MS_MAX));
        memory.wrote_cluster("12".to_owned(), 20_000);
        assert!(!memory.cluster_lags("12", 20_001));
        assert!(!memory.cluster_lags("13", 20_001));
    }

    #[test]
    fn a_child_is_untouched_as_our_write_left_it_and_touched_after_that() {
        let mut memory = Memory::new("u".into(), 0);
        assert_eq!(
            memory.standing(&child("5"), 0),
            Standing::Untouched,
            "first sight"
        );
        assert_eq!(memory.standing(&child("6"), 0), Standing::Touched);
        memory.wrote_child(&child("").id(), "10".to_owned(), None, 1_000);
        assert_eq!(memory.standing(&child("6"), 1_001), Standing::Lagging);
        assert_eq!(memory.standing(&child("10"), 1_002), Standing::Untouched);
        assert_eq!(memory.standing(&child("11"), 1_003), Standing::Touched);
    }

    #[test]
    fn a_child_whose_status_alone_was_written_is_untouched() {
        let mut memory = Memory::new("u".into(), 0);
        let with = |version: &str, contents| ChildRecord {
            contents: Some(contents),
            ..child(version)
        };
        memory.wrote_child(&child("").id(), "10".to_owned(), Some(1), 1_000);
        assert_eq!(memory.standing(&with("11", 1), 1_001), Standing::Untouched);
        assert_eq!(memory.standing(&with("12", 2), 1_002), Standing::Touched);
        memory.wrote_child(&child("").id(), "13".to_owned(), None, 1_003);
        assert_eq!(memory.standing(&child("14"), 1_004), Standing::Touched);
    }

    #[test]
    fn a_child_that_was_written_a_moment_ago_is_expected_until_it_was_seen() {
        let mut memory = Memory::new("u".into(), 0);
        let id = child("").id();
        assert!(!memory.expects(&id, 0));
        memory.wrote_child(&id, "10".to_owned(), None, 1_000);
        assert!(memory.expects(&id, 1_001));
        assert!(!memory.expects(&id, 1_000 + WATCH_LAG_MS_MAX));
        memory.standing(&child("10"), 1_002);
        assert!(
            !memory.expects(&id, 1_003),
            "it was seen: if it is missing now, it is gone"
        );
    }

    #[test]
    fn a_wait_is_counted_from_its_beginning_until_it_ends() {
        let mut memory = Memory::new("u".into(), 0);
        assert_eq!(memory.awaits(1_000), 0);
        assert_eq!(memory.awaits(4_000), 3_000);
        memory.awaits_nothing();
        assert_eq!(memory.awaits(9_000), 0);
    }

    #[test]
    fn a_sweep_is_due_an_interval_after_the_last_one_also_if_that_lies_ahead() {
        let mut memory = Memory::new("u".into(), 500);
        assert!(!memory.sweep_is_due(1_000, 0));
        assert!(!memory.sweep_is_due(1_000, 1_499));
        assert!(memory.sweep_is_due(1_000, 1_500));
        memory.swept(1_500);
        assert!(!memory.sweep_is_due(1_000, 2_499));
    }

    #[test]
    fn children_are_worked_out_once_for_what_they_are_made_from() {
        let mut memory = Memory::new("u".into(), 0);
        let first = Basis {
            generation: 1,
            claim: None,
            initialized: false,
        };
        let made = std::cell::Cell::new(0);
        let make = || {
            made.set(made.get() + 1);
            Vec::new()
        };
        memory.desired(&first, make);
        memory.desired(&first, make);
        assert_eq!(made.get(), 1);
        for other in [
            Basis {
                generation: 2,
                ..first.clone()
            },
            Basis {
                initialized: true,
                ..first.clone()
            },
            Basis {
                claim: Some(ClaimTemplate {
                    size: "1Gi".to_owned(),
                    class_name: None,
                }),
                ..first.clone()
            },
        ] {
            let before = made.get();
            memory.desired(&other, make);
            assert_eq!(made.get(), before + 1, "{other:?}");
        }
        memory.swept(0);
        let before = made.get();
        memory.desired(&first, make);
        assert_eq!(made.get(), before + 1, "after a sweep");
    }

    #[test]
    fn a_change_is_timed_once_from_when_its_generation_was_first_seen() {
        let mut memory = Memory::new("u".into(), 0);
        memory.change_seen(2, 100);
        memory.change_seen(2, 200);
        assert_eq!(memory.change_done(2, 350), Some(250));
        assert_eq!(memory.change_done(2, 400), None);
        memory.change_seen(3, 500);
        assert_eq!(memory.change_done(2, 600), None);
    }
}
