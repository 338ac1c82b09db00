//! Answers to fresh reads of member Leases: our own, that of a holder to confirm, and those after a
//! restore from backup.

use super::heartbeat::OwnLease;
use super::{Action, Ownership, ReadFailed};
use crate::lease::MemberLease;

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
        let found = read.ok().flatten();
        let silent = self
            .identity_conflict
            .is_silent(now_ms, found, &self.settings);
        match self.heartbeat.read(now_ms, read, &self.settings, silent) {
            OwnLease::Usable => {}
            OwnLease::Dead => self.die(),
            OwnLease::Taken => {
                if found.is_some_and(|lease| self.identity_conflict.observe(now_ms, lease)) {
                    self.out.push(Action::IdentityTaken);
                }
            }
        }
    }
}
