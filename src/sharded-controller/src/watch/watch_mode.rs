//! How the sharded kind is watched: decided by what the API server was seen to do.

/// How the sharded kind is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchMode {
    /// One watch per shard: the API server filters.
    Sharded,
    /// One watch for everything: this process filters.
    Filtered,
}

impl WatchMode {
    /// Both modes.
    pub const ALL: [Self; 2] = [Self::Sharded, Self::Filtered];

    /// The value of the metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Sharded => "sharded",
            Self::Filtered => "filtered",
        }
    }
}

/// Time between two probes if nothing contradicts the last result.
pub(crate) const PROBE_EVERY_MS: u64 = 600_000;
/// How long to distrust an API server that reported that it filters and then did not. It doubles
/// each time, so that API servers of different configuration behind one address do not make a
/// replica list forever.
const DISTRUST_MIN_MS: u64 = 60_000;
const DISTRUST_MAX_MS: u64 = 3_600_000;

/// Chooses the mode from probe results and observed events.
#[derive(Clone, Debug)]
pub(crate) struct ModeChooser {
    mode: WatchMode,
    since_ms: u64,
    probed_ms: u64,
    distrust_ms: u64,
    distrust_until_ms: u64,
}

impl ModeChooser {
    /// Starts with the mode of a first probe.
    #[must_use]
    pub(crate) const fn new(now_ms: u64, mode: WatchMode) -> Self {
        Self {
            mode,
            since_ms: now_ms,
            probed_ms: now_ms,
            distrust_ms: DISTRUST_MIN_MS,
            distrust_until_ms: 0,
        }
    }

    /// The API server reported whether it filters.
    pub(crate) fn probed(&mut self, now_ms: u64, filters: bool) -> WatchMode {
        self.probed_ms = now_ms;
        let mode = if filters && now_ms >= self.distrust_until_ms {
            WatchMode::Sharded
        } else {
            WatchMode::Filtered
        };
        self.set(now_ms, mode)
    }

    /// It sent what it had been asked to leave out.
    pub(crate) fn received_unfiltered(&mut self, now_ms: u64) -> WatchMode {
        if self.mode == WatchMode::Filtered {
            // A late event from an abandoned watch.
            return self.mode;
        }
        if now_ms.saturating_sub(self.since_ms) >= DISTRUST_MAX_MS {
            self.distrust_ms = DISTRUST_MIN_MS;
        }
        self.distrust_until_ms = now_ms.saturating_add(self.distrust_ms);
        self.distrust_ms = self.distrust_ms.saturating_mul(2).min(DISTRUST_MAX_MS);
        self.set(now_ms, WatchMode::Filtered)
    }

    /// When to probe again, if nothing contradicts the last result before.
    #[must_use]
    pub(crate) fn probe_due_ms(&self) -> u64 {
        let regular_ms = self.probed_ms.saturating_add(PROBE_EVERY_MS);
        if self.distrust_until_ms > self.probed_ms {
            regular_ms.min(self.distrust_until_ms)
        } else {
            regular_ms
        }
    }

    fn set(&mut self, now_ms: u64, mode: WatchMode) -> WatchMode {
        if self.mode != mode {
            self.since_ms = now_ms;
            self.mode = mode;
        }
        mode
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_answer_switches_the_mode_immediately() {
        let mut chooser = ModeChooser::new(0, WatchMode::Sharded);
        assert_eq!(chooser.probed(10, false), WatchMode::Filtered);
        assert_eq!(chooser.probed(20, true), WatchMode::Sharded);
        assert_eq!(chooser.probe_due_ms(), 20 + PROBE_EVERY_MS);
    }

    #[test]
    fn server_that_ignored_the_selector_is_distrusted_for_increasing_periods() {
        let mut chooser = ModeChooser::new(0, WatchMode::Sharded);
        let mut now_ms = 1000;
        let mut waited = Vec::new();
        for _ in 0..9 {
            assert_eq!(chooser.received_unfiltered(now_ms), WatchMode::Filtered);
            assert_eq!(chooser.probed(now_ms + 1, true), WatchMode::Filtered);
            let begun_ms = now_ms;
            while chooser.probed(now_ms, true) == WatchMode::Filtered {
                assert!(chooser.probe_due_ms() > now_ms, "asked without a pause");
                now_ms = chooser.probe_due_ms();
            }
            waited.push(now_ms - begun_ms);
        }
        assert_eq!(waited[..3], [60_000, 120_000, 240_000]);
        assert_eq!(*waited.iter().max().unwrap_or(&0), DISTRUST_MAX_MS);
        // Much later, it is tried again.
        now_ms += DISTRUST_MAX_MS;
        chooser.received_unfiltered(now_ms);
        assert_eq!(
            chooser.probed(now_ms + DISTRUST_MIN_MS, true),
            WatchMode::Sharded
        );
    }

    #[test]
    fn late_event_from_an_abandoned_watch_is_ignored() {
        let mut chooser = ModeChooser::new(0, WatchMode::Filtered);
        assert_eq!(chooser.received_unfiltered(5), WatchMode::Filtered);
        assert_eq!(chooser.probed(6, true), WatchMode::Sharded);
    }
}
