//! The clock of a replica, which its controller passes to whatever compares times with it.
//!
//! It also counts while the machine is suspended, and nobody sets it: a permit must end in time on a machine
//! that slept, so no other clock is compared with its validity.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

use crate::failpoints::{ClockRate, clock_rate};

/// A clock: all clones show the same time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    /// `CLOCK_BOOTTIME`, from its first reading on at the rate of a failpoint.
    Kernel {
        first_ms: u64,
        rate: ClockRate,
    },
    Manual(ManualClock),
}

impl Clock {
    /// The clock of this machine.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::Kernel {
            first_ms: boottime_ms(),
            rate: clock_rate(),
        })
    }

    /// Milliseconds since the machine was started: counts suspended time and never jumps.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        match &self.0 {
            Source::Kernel { first_ms, rate } => {
                let elapsed_ms = boottime_ms().saturating_sub(*first_ms);
                first_ms + elapsed_ms * rate.parts / rate.whole
            }
            Source::Manual(manual) => manual.first_ms.saturating_add(manual.elapsed_ms()),
        }
    }

    /// The wall clock: for people and for the API server, never for the right to act.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::Kernel { .. } => Timestamp::now(),
            Source::Manual(manual) => {
                let elapsed_ms = i64::try_from(manual.elapsed_ms()).unwrap_or(i64::MAX);
                let elapsed = SignedDuration::from_millis(elapsed_ms);
                manual
                    .first
                    .saturating_add(elapsed)
                    .unwrap_or(Timestamp::MAX)
            }
        }
    }
}

/// Sets the time of a [`Clock`] in tests.
#[derive(Clone, Debug)]
pub struct ManualClock {
    first_ms: u64,
    first: Timestamp,
    elapsed_ms: Arc<AtomicU64>,
}

impl ManualClock {
    /// Stands still at these times, in milliseconds since the start of the machine and on the wall clock.
    #[must_use]
    pub fn new(now_ms: u64, now: Timestamp) -> Self {
        Self {
            first_ms: now_ms,
            first: now,
            elapsed_ms: Arc::default(),
        }
    }

    /// The clock that shows this time.
    #[must_use]
    pub fn clock(&self) -> Clock {
        Clock(Source::Manual(self.clone()))
    }

    /// Advances both times.
    pub fn advance(&self, by: Duration) {
        let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.elapsed_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    fn elapsed_ms(&self) -> u64 {
        self.elapsed_ms.load(Ordering::SeqCst)
    }
}

/// The clock that counts suspended time.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;
/// Replicas run on Linux. Elsewhere the crate is only compiled, for the kubectl plugin.
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

/// `CLOCK_BOOTTIME` in milliseconds.
fn boottime_ms() -> u64 {
    let now = clock_gettime(CLOCK);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * 1000 + nanos / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_of_a_clock_move_together() {
        let manual = ManualClock::new(5, Timestamp::UNIX_EPOCH);
        let clock = manual.clock().clone();
        manual.advance(Duration::from_millis(7));
        assert_eq!(clock.now_ms(), 12);
        assert_eq!(clock.now().as_millisecond(), 7);
    }
}
