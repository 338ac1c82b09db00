//! When to reconcile an object again: periodic resync, backoff after failures, and immediate retries
//! after a conflict.

use crate::outcome::{Cause, Failure, Next, Outcome};

/// Resync interval of a Ready object, in addition to the watch.
pub(crate) const READY_MS: u64 = 300_000;
/// Resync interval of an object that waits for a change that a watch reports.
pub(crate) const WAITING_MS: u64 = 60_000;
/// Shortest and longest pause before a reconcile for something that no watch reports.
pub(crate) const AFTER_MS: (u64, u64) = (1_000, 60_000);
/// Pause after the right to act was lost: the heartbeat may bring it back.
pub(crate) const LOST_MS: u64 = 1_000;
/// Pauses of the retries in a row after a conflict or a write that the fence refused; one more is a failure.
pub(crate) const RETRY_MS: [u64; 5] = [50, 100, 250, 500, 1_000];
/// Longest pause that a 429 is granted for its object.
pub(crate) const THROTTLE_MAX_MS: u64 = 600_000;
/// Shortest pause after a 429 response. `Retry-After` is in whole seconds, so 0 means that it was
/// absent.
pub(crate) const THROTTLE_MIN_MS: u64 = 1_000;
/// Longest pause that one 429 response imposes on the whole pool.
pub(crate) const THROTTLE_POOL_MAX_MS: u64 = 1_000;

/// Attempts of an object since its last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// Failures since the last success.
    pub failures: u32,
    /// Retries since the last failure.
    pub retries: u32,
    /// When the last failure is to be tried again. What brings the object here sooner, such as the
    /// echo of our own write, does not count as that try.
    pub retry_ms: Option<u64>,
}

/// What a run may know of the attempts before and after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Attempts before this run.
    pub attempts: Attempts,
    /// Whether the run started before the pause after the last failure was over.
    pub is_early: bool,
    /// When the object is retried if this run fails, in milliseconds from now.
    pub retry_in_ms: u64,
}

impl Attempts {
    /// Whether one more retry counts as a failure.
    #[must_use]
    pub const fn are_retries_spent(self) -> bool {
        self.retries as usize >= RETRY_MS.len()
    }

    /// When a failure at `now_ms` is retried: after the pause of its backoff tier. A failure before
    /// the previous pause was over does not move the next retry.
    #[must_use]
    pub(crate) fn retry_due_ms(self, now_ms: u64, random: f64) -> u64 {
        match self.retry_ms {
            Some(retry_ms) if now_ms < retry_ms => retry_ms,
            _ => now_ms.saturating_add(jittered_ms(tier_ms(self.failures), random)),
        }
    }

    /// What a run that is active at `now_ms` may know.
    #[must_use]
    pub fn outlook(self, now_ms: u64, random: f64) -> Outlook {
        Outlook {
            attempts: self,
            is_early: self.retry_ms.is_some_and(|retry_ms| now_ms < retry_ms),
            retry_in_ms: self.retry_due_ms(now_ms, random).saturating_sub(now_ms),
        }
    }

    /// The counts after a run with this verdict.
    #[must_use]
    pub const fn after(self, verdict: Verdict) -> Self {
        match verdict {
            Verdict::Settled { .. } | Verdict::Gone => Self {
                failures: 0,
                retries: 0,
                retry_ms: None,
            },
            Verdict::Failed { due_ms } => Self {
                failures: match self.retry_ms {
                    Some(retry_ms) if retry_ms == due_ms => self.failures,
                    _ => self.failures.saturating_add(1),
                },
                retries: 0,
                retry_ms: Some(due_ms),
            },
            Verdict::Retry { .. } => Self {
                failures: self.failures,
                retries: self.retries.saturating_add(1),
                retry_ms: self.retry_ms,
            },
            Verdict::Throttled { .. } | Verdict::Again { .. } => self,
        }
    }
}

/// What the result of a run means for the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Success: the counts are reset.
    Settled {
        /// When to reconcile again.
        due_ms: u64,
    },
    /// The object no longer exists: nothing is kept unless it changed during the run.
    Gone,
    /// One more failure.
    Failed {
        /// When to retry.
        due_ms: u64,
    },
    /// One more retry.
    Retry {
        /// When to try again.
        due_ms: u64,
    },
    /// The API server asked for a pause, which changes do not cut short.
    Throttled {
        /// When the pause ends.
        until_ms: u64,
    },
    /// The result says nothing about the object: run it again and keep the counts.
    Again {
        /// When to run again.
        due_ms: u64,
    },
}

/// A time within 10 % of `base_ms`; `random` lies in 0 to 1.
#[must_use]
pub(crate) fn jittered_ms(base_ms: u64, random: f64) -> u64 {
    let tenth_ms = base_ms / 10;
    base_ms - tenth_ms + share_ms(2 * tenth_ms, random)
}

fn share_ms(whole_ms: u64, random: f64) -> u64 {
    (whole_ms as f64 * random.clamp(0.0, 1.0)) as u64
}

/// Pause after one more failure of an object with `failures` earlier ones.
#[must_use]
pub(crate) const fn tier_ms(failures: u32) -> u64 {
    match failures {
        0..=2 => 30_000,
        3..=5 => 120_000,
        6..=10 => 300_000,
        _ => 600_000,
    }
}

/// Converts a retry whose attempts are exhausted into a failure.
#[must_use]
pub fn bounded(failure: Failure, attempts: Attempts) -> Failure {
    match failure {
        Failure::Retry { message, .. } if attempts.are_retries_spent() => {
            let tries = attempts.retries + 1;
            let message = format!(
                "refused {tries} times in a row, something else keeps writing this object: {message}"
            );
            let cause = Cause::Other;
            Failure::Failed { cause, message }
        }
        other => other,
    }
}

/// What the result of a run at `now_ms` means for the queue; pass failures through [`bounded`]
/// first.
#[must_use]
pub fn verdict(
    result: &Result<Outcome, Failure>,
    attempts: Attempts,
    now_ms: u64,
    random: f64,
) -> Verdict {
    let in_about = |base_ms| now_ms.saturating_add(jittered_ms(base_ms, random));
    match result {
        Ok(outcome) => match outcome.next {
            Next::Ready => Verdict::Settled {
                due_ms: in_about(READY_MS),
            },
            Next::Waiting => Verdict::Settled {
                due_ms: in_about(WAITING_MS),
            },
            Next::RequeueAfter { ms } => Verdict::Settled {
                due_ms: in_about(ms.clamp(AFTER_MS.0, AFTER_MS.1)),
            },
            Next::Forget => Verdict::Gone,
        },
        Err(Failure::Lost) => Verdict::Again {
            due_ms: in_about(LOST_MS),
        },
        Err(Failure::Retry { .. }) => {
            let step = (attempts.retries as usize).min(RETRY_MS.len() - 1);
            Verdict::Retry {
                due_ms: in_about(RETRY_MS[step]),
            }
        }
        Err(Failure::Throttled { retry_after }) => {
            let asked_ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
            let pause_ms = asked_ms.clamp(THROTTLE_MIN_MS, THROTTLE_MAX_MS);
            // Jittered, but never before the requested time.
            let spread_ms = share_ms(pause_ms / 10, random);
            Verdict::Throttled {
                until_ms: now_ms.saturating_add(pause_ms + spread_ms),
            }
        }
        Err(Failure::Failed { .. }) => Verdict::Failed {
            due_ms: attempts.retry_due_ms(now_ms, random),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::time::Duration;

    use super::*;

    const MIDDLE: f64 = 0.5;

    fn failed() -> Result<Outcome, Failure> {
        Err(Failure::Failed {
            cause: Cause::Other,
            message: String::new(),
        })
    }

    fn retry() -> Failure {
        Failure::Retry {
            fenced: false,
            message: "the object has been modified".into(),
        }
    }

    fn ended(next: Next) -> Result<Outcome, Failure> {
        Ok(Outcome { wrote: false, next })
    }

    #[test]
    fn the_tiers_are_half_a_minute_two_five_and_ten_minutes() {
        let tiers: Vec<u64> = (0..=12).map(tier_ms).collect();
        let expected = [30, 30, 30, 120, 120, 120, 300, 300, 300, 300, 300, 600, 600];
        assert_eq!(tiers, expected.map(|seconds: u64| seconds * 1000));
        assert_eq!(tier_ms(u32::MAX), 600_000);
    }

    #[test]
    fn the_next_failure_waits_for_the_tier_of_the_failures_before_it() {
        for (failures, due_ms) in [(0, 31_000), (3, 121_000), (6, 301_000), (11, 601_000)] {
            let attempts = Attempts {
                failures,
                ..Attempts::default()
            };
            let got = verdict(&failed(), attempts, 1000, MIDDLE);
            assert_eq!(got, Verdict::Failed { due_ms });
        }
    }

    #[test]
    fn a_failure_before_its_time_neither_counts_nor_moves_the_next_try() {
        let run = |attempts: Attempts, now_ms: u64| {
            let outlook = attempts.outlook(now_ms, MIDDLE);
            let verdict = verdict(&failed(), attempts, now_ms, MIDDLE);
            let Verdict::Failed { due_ms } = verdict else {
                panic!("{verdict:?}");
            };
            assert_eq!(outlook.retry_in_ms, due_ms - now_ms, "as announced");
            (outlook.is_early, due_ms, attempts.after(verdict))
        };
        let (early, due_ms, attempts) = run(Attempts::default(), 1_000);
        assert_eq!((early, due_ms, attempts.failures), (false, 31_000, 1));
        // Watch events of writes from before the failure.
        let mut echoed = attempts;
        for now_ms in [1_010, 1_500, 30_999] {
            let (early, due_ms, after) = run(echoed, now_ms);
            assert_eq!((early, due_ms, after.failures), (true, 31_000, 1));
            echoed = after;
        }
        let (early, due_ms, attempts) = run(echoed, 31_000);
        assert_eq!((early, due_ms, attempts.failures), (false, 61_000, 2));
        let settled = attempts.after(Verdict::Settled { due_ms: 0 });
        assert_eq!(settled, Attempts::default());
    }

    #[test]
    fn jitter_stays_within_ten_percent_and_reaches_both_ends() {
        assert_eq!(jittered_ms(30_000, 0.0), 27_000);
        assert_eq!(jittered_ms(30_000, 1.0), 33_000);
        for odd in [-1.0, 2.0, f64::NAN, f64::INFINITY] {
            assert!(
                (27_000..=33_000).contains(&jittered_ms(30_000, odd)),
                "{odd}"
            );
        }
    }

    #[test]
    fn both_safety_nets_are_spread() {
        for (next, low_ms, high_ms) in [
            (Next::Ready, 270_000, 330_000),
            (Next::Waiting, 54_000, 66_000),
        ] {
            let at = |random| verdict(&ended(next), Attempts::default(), 0, random);
            assert_eq!(at(0.0), Verdict::Settled { due_ms: low_ms });
            assert_eq!(at(1.0), Verdict::Settled { due_ms: high_ms });
        }
        let gone = verdict(&ended(Next::Forget), Attempts::default(), 0, MIDDLE);
        assert_eq!(gone, Verdict::Gone);
    }

    #[test]
    fn requeue_after_is_honored_within_bounds() {
        for (ms, due_ms) in [(0, 1_000), (5_000, 5_000), (u64::MAX, 60_000)] {
            let got = verdict(
                &ended(Next::RequeueAfter { ms }),
                Attempts::default(),
                0,
                MIDDLE,
            );
            assert_eq!(got, Verdict::Settled { due_ms });
        }
    }

    #[test]
    fn retry_is_granted_five_times_with_growing_pauses_then_counts_as_failure() {
        let mut pauses_ms = Vec::new();
        for retries in 0..5 {
            let attempts = Attempts {
                retries,
                ..Attempts::default()
            };
            let failure = bounded(retry(), attempts);
            match verdict(&Err(failure), attempts, 0, MIDDLE) {
                Verdict::Retry { due_ms } => pauses_ms.push(due_ms),
                other => panic!("retry {retries} became {other:?}"),
            }
        }
        assert_eq!(pauses_ms, [50, 100, 250, 500, 1000]);
        let spent = Attempts {
            retries: 5,
            ..Attempts::default()
        };
        let Failure::Failed { cause, message } = bounded(retry(), spent) else {
            panic!("the sixth retry in a row must be a failure");
        };
        assert_eq!(cause, Cause::Other);
        assert!(
            message.contains("the object has been modified"),
            "{message}"
        );
    }

    #[test]
    fn a_throttled_object_waits_at_least_as_long_as_asked_but_not_for_ever() {
        for (asked_seconds, low_ms, high_ms) in [
            (0, 1_000, 1_100),
            (7, 7_000, 7_700),
            (1_000_000, 600_000, 660_000),
        ] {
            let throttled = Err(Failure::Throttled {
                retry_after: Duration::from_secs(asked_seconds),
            });
            for (random, until_ms) in [(0.0, low_ms), (1.0, high_ms)] {
                let got = verdict(&throttled, Attempts::default(), 0, random);
                assert_eq!(got, Verdict::Throttled { until_ms });
            }
        }
    }

    #[test]
    fn lost_permit_does_not_count_as_failure_of_the_object() {
        let got = verdict(&Err(Failure::Lost), Attempts::default(), 0, MIDDLE);
        assert_eq!(got, Verdict::Again { due_ms: 1000 });
    }
}
