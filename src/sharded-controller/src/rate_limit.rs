//! The rate limiter: how many runs an object, or a whole replica, may start in a period.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use crate::duration;

const NANOS_PER_MS: u64 = 1_000_000;
const RUNS_MAX: u32 = 1_000_000;
const PERIOD_MAX_SECONDS: u64 = 3600;

/// A number of runs per period, all of which may come at once: a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    runs: NonZeroU32,
    period_seconds: u64,
}

/// The scope of the bucket of a [`RateLimit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Each object has a bucket of its own.
    #[default]
    Object,
    /// The whole replica shares one.
    Replica,
}

/// The text is not a rate limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a rate limit: write <runs>/<time>, such as 100/60s, with 1 to {RUNS_MAX} runs and \
     a time of 1s to 1h (units s, m, h)"
)]
pub struct BadRateLimit(String);

/// The text names no scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a scope of the rate limit: write object or replica")]
pub struct BadScope(String);

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            runs: NonZeroU32::MIN.saturating_add(99),
            period_seconds: 60,
        }
    }
}

impl RateLimit {
    /// A limit of so many runs per period. Numbers beyond those that the text form allows are brought into its range.
    #[must_use]
    pub const fn new(runs: NonZeroU32, period_seconds: u64) -> Self {
        Self {
            runs: match NonZeroU32::new(RUNS_MAX) {
                Some(most) if runs.get() > most.get() => most,
                _ => runs,
            },
            period_seconds: match period_seconds {
                0 => 1,
                PERIOD_MAX_SECONDS.. => PERIOD_MAX_SECONDS,
                _ => period_seconds,
            },
        }
    }
}

impl FromStr for RateLimit {
    type Err = BadRateLimit;

    fn from_str(text: &str) -> Result<Self, BadRateLimit> {
        parse(text).ok_or_else(|| BadRateLimit(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<RateLimit> {
    let (runs, time) = text.split_once('/')?;
    let runs = NonZeroU32::new(plain_number(runs)?.try_into().ok()?)?;
    let period = duration::parse(time)?;
    let (period_seconds, is_whole) = (period.as_secs(), period.subsec_nanos() == 0);
    let allowed = (1..=PERIOD_MAX_SECONDS).contains(&period_seconds);
    (is_whole && allowed && runs.get() <= RUNS_MAX).then_some(RateLimit {
        runs,
        period_seconds,
    })
}

/// `str::parse` alone would take a sign as well.
fn plain_number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
    text.parse().ok()
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}s", self.runs, self.period_seconds)
    }
}

impl FromStr for Scope {
    type Err = BadScope;

    fn from_str(text: &str) -> Result<Self, BadScope> {
        match text {
            "object" => Ok(Self::Object),
            "replica" => Ok(Self::Replica),
            _ => Err(BadScope(text.to_owned())),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Object => "object",
            Self::Replica => "replica",
        })
    }
}

/// Fill level of one bucket, in one number; a new one is full.
/// It is the "theoretical arrival time" of the generic cell rate algorithm, in nanoseconds: eight
/// bytes that are stored in the queue's own entry, so that they are removed with the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    arrival_nanos: u64,
}

impl RateLimit {
    /// Takes one run out of the bucket.
    ///
    /// # Errors
    /// When it is empty: the time, in milliseconds, from which on the next run is allowed.
    pub fn take(self, bucket: &mut Allowance, now_ms: u64) -> Result<(), u64> {
        let period_nanos = self.period_seconds * 1000 * NANOS_PER_MS;
        let interval_nanos = period_nanos / u64::from(self.runs.get());
        let burst_nanos = interval_nanos * u64::from(self.runs.get() - 1);
        let now_nanos = now_ms.saturating_mul(NANOS_PER_MS);
        let arrival_nanos = bucket.arrival_nanos.max(now_nanos);
        if arrival_nanos - now_nanos > burst_nanos {
            return Err((arrival_nanos - burst_nanos).div_ceil(NANOS_PER_MS));
        }
        bucket.arrival_nanos = arrival_nanos.saturating_add(interval_nanos);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_is_a_hundred_runs_a_minute() {
        assert_eq!(RateLimit::default(), "100/60s".parse().unwrap());
        assert_eq!(RateLimit::default().to_string(), "100/60s");
        assert_eq!(RateLimit::default(), "100/1m".parse().unwrap());
    }

    #[test]
    fn invalid_rate_limit_error_lists_the_allowed_format() {
        for text in [
            "",
            "100",
            "/",
            "100/",
            "/60s",
            "0/60s",
            "100/0s",
            "-1/60s",
            "+1/60s",
            "1/60",
            "1/60d",
            "1/1h1s",
            "1/3601s",
            "1/2h",
            "1000001/1s",
            "99999999999/1s",
            "1 /1s",
            "1/s",
            "1/99999999999999999999s",
            "1/18446744073709551615h",
        ] {
            let error = text.parse::<RateLimit>().unwrap_err().to_string();
            assert!(error.contains("such as 100/60s"), "{text:?}: {error}");
        }
        assert!("1/1h".parse::<RateLimit>().is_ok());
        assert!("1000000/1s".parse::<RateLimit>().is_ok());
    }

    #[test]
    fn a_limit_of_numbers_is_one_that_a_text_can_say() {
        for (runs, seconds, text) in [
            (10, 10, "10/10s"),
            (1, 0, "1/1s"),
            (u32::MAX, u64::MAX, "1000000/1h"),
        ] {
            let limit = RateLimit::new(NonZeroU32::new(runs).unwrap(), seconds);
            assert_eq!(limit, text.parse().unwrap());
        }
    }

    #[test]
    fn a_scope_is_object_or_replica() {
        for scope in [Scope::Object, Scope::Replica] {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        assert!("Object".parse::<Scope>().is_err());
    }

    #[test]
    fn a_burst_passes_and_the_next_run_waits_for_one_interval() {
        let limit: RateLimit = "100/60s".parse().unwrap();
        let mut bucket = Allowance::default();
        for run in 0..100 {
            assert_eq!(limit.take(&mut bucket, 5000), Ok(()), "run {run}");
        }
        assert_eq!(limit.take(&mut bucket, 5000), Err(5600));
        assert_eq!(limit.take(&mut bucket, 5599), Err(5600));
        assert_eq!(limit.take(&mut bucket, 5600), Ok(()));
        assert_eq!(limit.take(&mut bucket, 5600), Err(6200));
    }

    #[test]
    fn a_bucket_is_full_again_after_one_period_of_rest() {
        let limit: RateLimit = "3/10s".parse().unwrap();
        let mut bucket = Allowance::default();
        for start_ms in [0, 10_000] {
            for _ in 0..3 {
                assert_eq!(limit.take(&mut bucket, start_ms), Ok(()));
            }
            assert!(limit.take(&mut bucket, start_ms).is_err());
        }
    }

    proptest! {
        #[test]
        fn rate_never_exceeds_bucket_size_plus_refill(
            runs in 1_u32..50,
            period_seconds in 1_u64..100,
            steps_ms in prop::collection::vec(0_u64..3000, 1..300),
        ) {
            let limit: RateLimit = format!("{runs}/{period_seconds}s").parse().unwrap();
            let mut bucket = Allowance::default();
            let mut now_ms = 0;
            let mut taken_ms = Vec::new();
            for step_ms in steps_ms {
                now_ms += step_ms;
                match limit.take(&mut bucket, now_ms) {
                    Ok(()) => taken_ms.push(now_ms),
                    Err(allowed_ms) => {
                        prop_assert!(allowed_ms > now_ms);
                        let mut later = bucket;
                        prop_assert_eq!(limit.take(&mut later, allowed_ms), Ok(()));
                        let mut early = bucket;
                        prop_assert!(limit.take(&mut early, allowed_ms - 1).is_err());
                    }
                }
            }
            for (i, from_ms) in taken_ms.iter().enumerate() {
                for (n, to_ms) in taken_ms[i..].iter().enumerate() {
                    // One more for each interval, and one for the rounding of the interval itself.
                    let dripped = (to_ms - from_ms) * u64::from(runs) / (period_seconds * 1000);
                    prop_assert!((n as u64) < u64::from(runs) + dripped + 1);
                }
            }
        }
    }
}
