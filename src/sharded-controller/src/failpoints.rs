//! Failpoints: parts of the protection that fault injection switches off, to show that tests and
//! checkers notice.
//!
//! They exist only in a program that was built with the feature `failpoints`, which no release
//! is; elsewhere [`is_active`] is the constant `false` and what hangs on it is not compiled in.
//! There, `DBC_FAILPOINTS=validity,drain` activates them, for the whole life of the process.

/// One part of the protection, switched off; or a part of the program that does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    not(feature = "failpoints"),
    allow(dead_code, reason = "without the feature, no name of them is read")
)]
pub(crate) enum Failpoint {
    /// The replica goes on after its validity ended, until the Leases show it another holder.
    Validity,
    /// Lease writes name neither uid nor version: the last one wins.
    CompareAndSwap,
    /// Lease writes name a version but no uid: they re-create a deleted Lease.
    Uid,
    /// All incarnations of a replica have the same nonce.
    Incarnation,
    /// A handover does not wait for the work in the shard.
    Drain,
    /// The fence counts as proven, without a dry run. Whether the API server has none depends on
    /// the installation: leave `deploy/fence.yaml` out.
    Fence,
    /// A new holder reconciles what changes from now on, and not what exists.
    Resync,
    /// The replica plans for the fleet although another one was elected.
    Leader,
    /// The task of the ownership state machine never runs.
    Agent,
    /// The task that starts reconciles ends immediately.
    Scheduler,
    /// The task of the leader election ends immediately.
    Election,
    /// The clock by which the replica checks its validity runs a twentieth too slow, which the
    /// margin covers.
    SlowClock,
    /// The clock runs a twentieth too fast, which the margin covers.
    FastClock,
    /// The clock runs at half the rate, which nothing covers.
    HalfClock,
}

#[cfg(any(test, feature = "failpoints"))]
impl Failpoint {
    /// All of them, with their names.
    pub(crate) const ALL: [(Self, &'static str); 14] = [
        (Self::Validity, "validity"),
        (Self::CompareAndSwap, "compare-and-swap"),
        (Self::Uid, "uid"),
        (Self::Incarnation, "incarnation"),
        (Self::Drain, "drain"),
        (Self::Fence, "fence"),
        (Self::Resync, "resync"),
        (Self::Leader, "leader"),
        (Self::Agent, "agent"),
        (Self::Scheduler, "scheduler"),
        (Self::Election, "election"),
        (Self::SlowClock, "slow-clock"),
        (Self::FastClock, "fast-clock"),
        (Self::HalfClock, "half-clock"),
    ];
}

/// The rate of a clock, as a part of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockRate {
    pub(crate) parts: u64,
    pub(crate) whole: u64,
}

impl ClockRate {
    /// The kernel's own.
    const KERNEL: Self = Self { parts: 1, whole: 1 };
}

#[cfg(not(feature = "failpoints"))]
mod switch {
    use super::{ClockRate, Failpoint};

    /// Whether this failpoint is active: never in this build.
    #[must_use]
    pub(crate) const fn is_active(_: Failpoint) -> bool {
        false
    }

    /// The rate of the replica's clock: in this build always the kernel's.
    #[must_use]
    pub(crate) const fn clock_rate() -> ClockRate {
        ClockRate::KERNEL
    }

    /// Checks the configured failpoints: there are none in this build.
    ///
    /// # Errors
    /// Never in this build.
    pub(crate) const fn check() -> Result<(), String> {
        Ok(())
    }
}

#[cfg(feature = "failpoints")]
mod switch {
    use std::sync::LazyLock;

    use super::{ClockRate, Failpoint};

    const VARIABLE: &str = "DBC_FAILPOINTS";

    static ACTIVE: LazyLock<Result<Vec<Failpoint>, String>> =
        LazyLock::new(|| super::parse(&std::env::var(VARIABLE).unwrap_or_default()));

    /// Whether this failpoint is active.
    #[must_use]
    pub(crate) fn is_active(failpoint: Failpoint) -> bool {
        ACTIVE
            .as_ref()
            .is_ok_and(|active| active.contains(&failpoint))
    }

    /// The rate of the replica's clock.
    #[must_use]
    pub(crate) fn clock_rate() -> ClockRate {
        let rate = |parts, whole| ClockRate { parts, whole };
        let rates = [
            (Failpoint::SlowClock, rate(19, 20)),
            (Failpoint::FastClock, rate(21, 20)),
            (Failpoint::HalfClock, rate(1, 2)),
        ];
        let active = rates.iter().find(|(failpoint, _)| is_active(*failpoint));
        active.map_or(ClockRate::KERNEL, |(_, rate)| *rate)
    }

    /// Logs the active failpoints.
    ///
    /// # Errors
    /// When a name is not that of a failpoint: an experiment must not pass because of a typo.
    pub(crate) fn check() -> Result<(), String> {
        let active = ACTIVE
            .as_ref()
            .map_err(|why| format!("{VARIABLE}: {why}"))?;
        if !active.is_empty() {
            tracing::warn!(
                ?active,
                "failpoints are active: this replica is not to be trusted"
            );
        }
        Ok(())
    }
}

pub(crate) use switch::{check, clock_rate, is_active};

#[cfg(any(test, feature = "failpoints"))]
fn parse(text: &str) -> Result<Vec<Failpoint>, String> {
    let names = text
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    let failpoint = |name: &str| {
        let known = Failpoint::ALL.iter().find(|(_, known)| *known == name);
        known.map(|(failpoint, _)| *failpoint).ok_or_else(|| {
            let known: Vec<&str> = Failpoint::ALL.iter().map(|(_, name)| *name).collect();
            format!(
                "{name:?} is not a failpoint; the failpoints are {}",
                known.join(", ")
            )
        })
    };
    names.map(failpoint).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn all_failpoint_names_parse_and_no_others() {
        let all: Vec<&str> = Failpoint::ALL.iter().map(|(_, name)| *name).collect();
        let understood = parse(&all.join(" , ")).unwrap();
        assert_eq!(understood, Failpoint::ALL.map(|(failpoint, _)| failpoint));
        assert_eq!(parse("").unwrap(), []);
        assert!(
            parse("validty")
                .unwrap_err()
                .contains("\"validty\" is not a failpoint")
        );
    }

    #[test]
    #[cfg(not(feature = "failpoints"))]
    fn failpoints_are_inactive_without_the_feature() {
        assert!(
            Failpoint::ALL
                .iter()
                .all(|(failpoint, _)| !is_active(*failpoint))
        );
        assert_eq!(clock_rate(), ClockRate::KERNEL);
    }
}
