//! Another process that uses our identity: its Lease is observed until its owner is certain.

use super::Settings;
use crate::lease::MemberLease;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rival {
    lease: MemberLease,
    silent_ms: u64,
    read_at_ms: u64,
}

/// The Lease under our identity that is not ours, if there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct IdentityConflict {
    rival: Option<Rival>,
}

impl IdentityConflict {
    /// Takes in a read of the Lease under our identity. Returns whether it has not been renewed for
    /// its whole lifetime, so that it may be replaced.
    ///
    /// Time between two reads counts only as far as a healthy API server would have let the other
    /// one renew in it.
    pub(super) fn is_silent(
        &mut self,
        now_ms: u64,
        lease: Option<&MemberLease>,
        settings: &Settings,
    ) -> bool {
        let most_ms = settings.renew_ms + settings.tick_max_ms;
        let (Some(rival), Some(lease)) = (self.rival.as_mut(), lease) else {
            return false;
        };
        if rival.lease.version != lease.version {
            return false;
        }
        rival.silent_ms += now_ms.saturating_sub(rival.read_at_ms).min(most_ms);
        rival.read_at_ms = now_ms;
        rival.silent_ms >= rival.lease.lease_ms
    }

    /// Takes in a Lease that is not ours. Returns whether it was renewed since the last read: then
    /// another process is alive under our identity.
    pub(super) fn observe(&mut self, now_ms: u64, lease: &MemberLease) -> bool {
        let known = self.rival.as_ref();
        let is_renewed = known.is_some_and(|rival| rival.lease.version != lease.version);
        if is_renewed || known.is_none() {
            self.rival = Some(Rival {
                lease: lease.clone(),
                silent_ms: 0,
                read_at_ms: now_ms,
            });
        }
        is_renewed
    }
}
