//! When a failure that the object does not cause is reported on the object.
//!
//! An unavailable webhook, a missing permission, an API server that answers with errors: the first
//! failure may pass by itself. A failure that persists after the pause is reported, with the time of
//! the next retry. Each attempt writes the status at most once, so the backoff tiers bound these
//! writes.

use super::lifecycle::reason;
use sharded_controller::backoff::{Outlook, bounded};
use sharded_controller::outcome::{Cause, Failure};

/// Number of consecutive failures, each after its pause, that are not reported: the next one is.
const UNREPORTED: u32 = 1;

/// The reason and message to report for a persistent failure. `is_reported`: the status already
/// reports a persistent failure, so it is kept up to date.
#[must_use]
pub(crate) fn persistent(
    failure: &Failure,
    outlook: &Outlook,
    is_reported: bool,
) -> Option<(&'static str, String)> {
    let Failure::Failed { cause, message } = bounded(failure.clone(), outlook.attempts) else {
        return None;
    };
    let is_due = !outlook.is_early && outlook.attempts.failures >= UNREPORTED;
    if !is_due && !is_reported {
        return None;
    }
    Some(match cause {
        Cause::Unavailable => (reason::API_SERVER_ERROR, message),
        Cause::Forbidden => (
            reason::MISSING_RIGHTS,
            format!("{message}; apply deploy/base/rbac.yaml"),
        ),
        Cause::Invalid
        | Cause::ForeignChild
        | Cause::TokenAhead
        | Cause::Fenced
        | Cause::Timeout
        | Cause::Panic
        | Cause::Other => (reason::RECONCILE_FAILED, message),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sharded_controller::backoff::Attempts;

    fn failed(cause: Cause) -> Failure {
        Failure::Failed {
            cause,
            message: "said".to_owned(),
        }
    }

    fn outlook(failures: u32, retries: u32, is_early: bool) -> Outlook {
        Outlook {
            attempts: Attempts {
                failures,
                retries,
                retry_ms: None,
            },
            is_early,
            retry_in_ms: 30_000,
        }
    }

    #[test]
    fn only_repeated_failures_are_reported() {
        let failure = failed(Cause::Unavailable);
        for (failures, is_early, is_reported, expected) in [
            (0, false, false, false),
            (1, true, false, false),
            (1, false, false, true),
            (9, true, false, false),
            (9, false, false, true),
            (1, true, true, true),
            (0, false, true, true),
        ] {
            let got = persistent(&failure, &outlook(failures, 0, is_early), is_reported);
            assert_eq!(
                got.is_some(),
                expected,
                "{failures} {is_early} {is_reported}"
            );
        }
    }

    #[test]
    fn conflicts_are_reported_only_when_retries_are_exhausted() {
        let conflict = Failure::Retry {
            fenced: false,
            message: "the object has been modified".to_owned(),
        };
        assert_eq!(persistent(&conflict, &outlook(3, 4, false), true), None);
        let (reason, message) = persistent(&conflict, &outlook(3, 5, false), false).unwrap();
        assert_eq!(reason, "ReconcileFailed");
        assert!(message.contains("has been modified"), "{message}");
        for failure in [
            Failure::Lost,
            Failure::Throttled {
                retry_after: std::time::Duration::from_secs(1),
            },
        ] {
            assert_eq!(persistent(&failure, &outlook(9, 5, false), true), None);
        }
    }

    #[test]
    fn reported_reason_follows_the_cause() {
        let reason = |cause| persistent(&failed(cause), &outlook(1, 0, false), false).unwrap();
        assert_eq!(reason(Cause::Unavailable).0, "ApiServerError");
        let (rights, message) = reason(Cause::Forbidden);
        assert_eq!(rights, "MissingRights");
        assert!(message.contains("rbac.yaml"), "{message}");
        assert_eq!(reason(Cause::Other).0, "ReconcileFailed");
    }
}
