//! The clock of ownership: milliseconds that also count while the machine is suspended, and that nobody sets.
//!
//! A permit must end in time on a machine that slept, so no other clock is compared with its validity.

use rustix::time::{ClockId, clock_gettime};

use crate::failpoints::clock_ms;

/// Milliseconds on a clock that counts suspended time and never jumps (`CLOCK_BOOTTIME`).
#[must_use]
pub fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    clock_ms(seconds * 1000 + nanos / 1_000_000)
}
