//! Answers to fresh reads of member Leases: our own, that of a holder to confirm, and those after a
//! restore from backup.

use super::heartbeat::OwnLease;
use super::{Action, Ownership, ReadFailed};
use crate::lease::MemberLease;

/// A Lease under our identity that is not ours, observed until its owner is certain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct IdentityConflict {
    lease: MemberLease,
    silent_ms: u64,
    read_at_ms: u64,
}

impl Ownership {
    pub(super) fn member_read(
        &mut self,
        now_ms: u64,
        identity: &str,
        read: Result<Option<MemberLease>, ReadFailed>,
    ) {
        self.settle_rewound(now_ms, identity, &read);
        if let Ok(Some(lease)) = &read {
            self.members.observe(lease.clone());
        }
        if identity == self.settings.identity {
            self.own_lease_read(now_ms, read.as_ref().map(Option::as_ref).map_err(|e| *e));
        }
        if self.checking.remove(identity) {
            let now_is = match &read {
                Ok(Some(lease)) if !lease.is_vacated() => Some(lease.incarnation.clone()),
                Ok(Some(_)) => Some(String::new()),
                // It had its lifetime to come back, and is still missing.
                Ok(None) if self.members.is_long_gone(identity, self.settings.lease_ms) => {
                    Some(String::new())
                }
                Ok(None) | Err(ReadFailed) => None,
            };
            for shard in self.shards.values_mut() {
                shard.checked(identity, now_is.as_deref());
            }
        }
    }

    /// Reads the Leases for which a list showed an older version than was known.
    pub(super) fn ask_for_rewound(&mut self, now_ms: u64) {
        for (identity, (_, ask_ms)) in &mut self.rewound {
            // An answer to an earlier request would prove nothing.
            let asked = self.checking.contains(identity)
                || (*identity == self.settings.identity && self.heartbeat.is_reading());
            if now_ms >= *ask_ms && !asked {
                *ask_ms = u64::MAX;
                self.checking.insert(identity.clone());
                self.out.push(Action::ReadMember(identity.clone()));
            }
        }
    }

    fn settle_rewound(
        &mut self,
        now_ms: u64,
        identity: &str,
        read: &Result<Option<MemberLease>, ReadFailed>,
    ) {
        let Some((known, ask_ms)) = self.rewound.get_mut(identity) else {
            return;
        };
        if *ask_ms != u64::MAX {
            return;
        }
        match read {
            Ok(found) => {
                let older = |lease: &&MemberLease| lease.version.is_older_than(known);
                if let Some(lease) = found.as_ref().filter(older) {
                    // The API server went back in time, and this version is valid from now on.
                    self.members.go_back(lease.clone());
                }
                self.rewound.remove(identity);
            }
            Err(ReadFailed) => *ask_ms = now_ms + self.settings.retry_ms,
        }
    }

    fn own_lease_read(&mut self, now_ms: u64, read: Result<Option<&MemberLease>, ReadFailed>) {
        let silent = self.is_conflict_silent(now_ms, read.ok().flatten());
        match self.heartbeat.read(now_ms, read, &self.settings, silent) {
            OwnLease::Usable => {}
            OwnLease::Dead => self.die(),
            OwnLease::Taken => {
                if let Ok(Some(lease)) = read {
                    self.observe_conflict(now_ms, lease);
                }
            }
        }
    }

    /// Time between two reads counts only as far as a healthy API server would have let the other
    /// one renew in it.
    fn is_conflict_silent(&mut self, now_ms: u64, lease: Option<&MemberLease>) -> bool {
        let most_ms = self.settings.renew_ms + self.settings.tick_max_ms;
        let (Some(identity_conflict), Some(lease)) = (self.identity_conflict.as_mut(), lease)
        else {
            return false;
        };
        if identity_conflict.lease.version != lease.version {
            return false;
        }
        identity_conflict.silent_ms += now_ms
            .saturating_sub(identity_conflict.read_at_ms)
            .min(most_ms);
        identity_conflict.read_at_ms = now_ms;
        identity_conflict.silent_ms >= identity_conflict.lease.lease_ms
    }

    fn observe_conflict(&mut self, now_ms: u64, lease: &MemberLease) {
        let renewed = self
            .identity_conflict
            .as_ref()
            .is_some_and(|identity_conflict| identity_conflict.lease.version != lease.version);
        if renewed {
            self.out.push(Action::IdentityTaken);
        }
        if renewed || self.identity_conflict.is_none() {
            self.identity_conflict = Some(IdentityConflict {
                lease: lease.clone(),
                silent_ms: 0,
                read_at_ms: now_ms,
            });
        }
    }
}
