//! Faults that experiments plant on purpose, to show that tests and judges notice them.
//!
//! They exist only in a program that was built with the feature `planted-faults`, which no release
//! is; elsewhere [`is_active`] is the constant `false` and what hangs on it is not compiled in.
//! There, `DBC_PLANTED_FAULTS=validity,drain` plants them, for the whole life of the process.

/// One part of the protection, switched off; or a part of the program that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failpoint {
    /// The replica goes on after its validity ended, until the Leases show it another holder.
    Validity,
    /// Lease writes name neither uid nor version: the last one wins.
    CompareAndSwap,
    /// Lease writes name a version but no uid: they bring a deleted Lease back.
    Uid,
    /// All lives of a replica have the same incarnation.
    Incarnation,
    /// A handover does not wait for the work in the shard.
    Drain,
    /// The fence is taken for proven, without asking. That the API server has none is up to who
    /// installs: leave `deploy/fence.yaml` out.
    Fence,
    /// A new holder works on what changes from now on, and not on what it finds.
    Resync,
    /// The replica plans for the fleet, whoever was elected.
    Leader,
    /// The task that owns the ownership machine never runs.
    Agent,
    /// The task that starts reconciles ends at once.
    Scheduler,
    /// The task that takes part in the election ends at once.
    Election,
    /// The clock by which the replica judges runs a twentieth too slow, which the margin allows for.
    SlowClock,
    /// It runs a twentieth too fast, which the margin allows for.
    FastClock,
    /// It runs at half the rate, which nothing allows for.
    HalfClock,
}

impl Failpoint {
    /// All of them, with their names.
    pub const ALL: [(Self, &'static str); 14] = [
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

#[cfg(not(feature = "planted-faults"))]
mod switch {
    use super::Failpoint;

    /// Whether this fault was planted: never in this build.
    #[must_use]
    pub const fn is_active(_: Failpoint) -> bool {
        false
    }

    /// What a clock shows: in this build always what the kernel's shows.
    #[must_use]
    pub const fn clock_ms(kernel_ms: u64) -> u64 {
        kernel_ms
    }

    /// What was planted, for the log: nothing in this build.
    ///
    /// # Errors
    /// Never in this build.
    pub const fn check() -> Result<(), String> {
        Ok(())
    }
}

#[cfg(feature = "planted-faults")]
mod switch {
    use std::sync::{LazyLock, OnceLock};

    use super::Failpoint;

    const VARIABLE: &str = "DBC_PLANTED_FAULTS";

    static ACTIVE: LazyLock<Result<Vec<Failpoint>, String>> =
        LazyLock::new(|| super::parse(&std::env::var(VARIABLE).unwrap_or_default()));

    /// Whether this fault was planted.
    #[must_use]
    pub fn is_active(failpoint: Failpoint) -> bool {
        ACTIVE
            .as_ref()
            .is_ok_and(|active| active.contains(&failpoint))
    }

    /// What a clock shows that may run at another rate than the kernel's, from its first reading on.
    #[must_use]
    pub fn clock_ms(kernel_ms: u64) -> u64 {
        static FIRST_MS: OnceLock<u64> = OnceLock::new();
        let rates = [
            (Failpoint::SlowClock, (19, 20)),
            (Failpoint::FastClock, (21, 20)),
            (Failpoint::HalfClock, (1, 2)),
        ];
        let active = rates.iter().find(|(failpoint, _)| is_active(*failpoint));
        let first_ms = *FIRST_MS.get_or_init(|| kernel_ms);
        active.map_or(kernel_ms, |(_, (parts, whole))| {
            first_ms + kernel_ms.saturating_sub(first_ms) * parts / whole
        })
    }

    /// Says in the log what was planted.
    ///
    /// # Errors
    /// When a name is none of a fault: an experiment must not pass because it was misspelt.
    pub fn check() -> Result<(), String> {
        let active = ACTIVE
            .as_ref()
            .map_err(|why| format!("{VARIABLE}: {why}"))?;
        if !active.is_empty() {
            tracing::warn!(
                ?active,
                "faults are planted: this replica is not to be trusted"
            );
        }
        Ok(())
    }
}

pub use switch::{check, clock_ms, is_active};

#[cfg(any(test, feature = "planted-faults"))]
fn parse(text: &str) -> Result<Vec<Failpoint>, String> {
    let names = text
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    let failpoint = |name: &str| {
        let known = Failpoint::ALL.iter().find(|(_, known)| *known == name);
        known.map(|(failpoint, _)| *failpoint).ok_or_else(|| {
            let known: Vec<&str> = Failpoint::ALL.iter().map(|(_, name)| *name).collect();
            format!("{name:?} is no fault; there are {}", known.join(", "))
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
                .contains("\"validty\" is no fault")
        );
    }

    #[test]
    #[cfg(not(feature = "planted-faults"))]
    fn failpoints_are_inactive_without_the_feature() {
        assert!(
            Failpoint::ALL
                .iter()
                .all(|(failpoint, _)| !is_active(*failpoint))
        );
        assert_eq!(clock_ms(7), 7);
    }
}
