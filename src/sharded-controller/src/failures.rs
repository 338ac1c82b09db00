//! Aggregates failures into one log line per minute: the number of clusters by cause, and a few
//! names.

use std::collections::BTreeMap;
use std::fmt;

use crate::object::ObjectKey;
use crate::outcome::Cause;

/// Shortest time between two lines.
pub(crate) const LINE_EVERY_MS: u64 = 60_000;
/// How long the first failure after a quiet period waits for others to be logged with it.
pub(crate) const GATHER_MS: u64 = 1_000;
const NAMES_MAX: usize = 5;
const CLUSTERS_MAX: usize = 1024;
const MESSAGE_MAX_CHARS: usize = 300;

/// Failures since the last line; bounded.
#[derive(Debug, Default)]
pub(crate) struct FailureLog {
    clusters: BTreeMap<ObjectKey, Cause>,
    overflowed: bool,
    example: Option<(ObjectKey, String)>,
    first_ms: Option<u64>,
    last_line_ms: Option<u64>,
}

/// The failures of one log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// How many clusters failed.
    pub clusters: usize,
    /// Whether more clusters failed than are remembered.
    pub at_least: bool,
    /// Number of clusters by their latest cause.
    pub by_cause: BTreeMap<Cause, usize>,
    /// A few of them.
    pub names: Vec<ObjectKey>,
    /// The latest failure, with its message.
    pub example: Option<(ObjectKey, String)>,
}

impl FailureLog {
    /// Records a failure.
    pub(crate) fn record(&mut self, key: &ObjectKey, cause: Cause, message: &str, now_ms: u64) {
        self.first_ms.get_or_insert(now_ms);
        if self.clusters.len() < CLUSTERS_MAX || self.clusters.contains_key(key) {
            self.clusters.insert(key.clone(), cause);
        } else {
            self.overflowed = true;
        }
        self.example = Some((key.clone(), one_line(message)));
    }

    /// When the next line is due; `None` while nothing failed.
    #[must_use]
    pub(crate) fn next_line_ms(&self) -> Option<u64> {
        let gathered_ms = self.first_ms?.saturating_add(GATHER_MS);
        let allowed_ms = self
            .last_line_ms
            .map_or(0, |last_ms| last_ms.saturating_add(LINE_EVERY_MS));
        Some(gathered_ms.max(allowed_ms))
    }

    /// The line that is due now, if any; what it reports is forgotten.
    pub(crate) fn take(&mut self, now_ms: u64) -> Option<Summary> {
        if self.next_line_ms()? > now_ms {
            return None;
        }
        self.last_line_ms = Some(now_ms);
        self.first_ms = None;
        let clusters = std::mem::take(&mut self.clusters);
        let mut by_cause = BTreeMap::new();
        for cause in clusters.values() {
            *by_cause.entry(*cause).or_insert(0) += 1;
        }
        Some(Summary {
            clusters: clusters.len(),
            at_least: std::mem::take(&mut self.overflowed),
            by_cause,
            names: clusters.into_keys().take(NAMES_MAX).collect(),
            example: self.example.take(),
        })
    }
}

/// A message from outside must neither break the line nor flood the log.
fn one_line(message: &str) -> String {
    let tame = |c: char| if c.is_control() { ' ' } else { c };
    message.chars().map(tame).take(MESSAGE_MAX_CHARS).collect()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_least = if self.at_least { "at least " } else { "" };
        let plural = if self.clusters == 1 { "" } else { "s" };
        write!(
            f,
            "failed to reconcile {at_least}{} object{plural} (",
            self.clusters
        )?;
        for (i, (cause, count)) in self.by_cause.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{} {count}", cause.label())?;
        }
        f.write_str("): ")?;
        for (i, name) in self.names.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name}")?;
        }
        if self.at_least || self.clusters > self.names.len() {
            f.write_str(" and others")?;
        }
        match &self.example {
            Some((key, message)) => write!(f, "; latest: {key}: {message}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(n: usize) -> ObjectKey {
        ObjectKey::new("shop", &format!("db-{n:05}"))
    }

    #[test]
    fn many_failures_produce_one_log_line_per_minute() {
        let mut log = FailureLog::default();
        let mut lines_ms = Vec::new();
        for now_ms in (0..600_000).step_by(100) {
            log.record(&key(now_ms % 70), Cause::Forbidden, "no", now_ms as u64);
            if log.take(now_ms as u64).is_some() {
                lines_ms.push(now_ms);
            }
        }
        assert_eq!(lines_ms[0], 1000);
        assert_eq!(lines_ms.len(), 10);
        assert!(lines_ms.windows(2).all(|w| w[1] - w[0] == 60_000));
    }

    #[test]
    fn the_line_names_clusters_by_cause_and_five_of_them() {
        let mut log = FailureLog::default();
        for n in 0..7 {
            log.record(&key(n), Cause::Forbidden, "RBAC", 0);
        }
        log.record(&key(0), Cause::Timeout, "took over\n60 s", 10);
        let line = log.take(1000).unwrap().to_string();
        assert_eq!(
            line,
            "failed to reconcile 7 objects (forbidden 6, timeout 1): shop/db-00000, shop/db-00001, \
             shop/db-00002, shop/db-00003, shop/db-00004 and others; latest: shop/db-00000: took \
             over 60 s"
        );
    }

    #[test]
    fn a_cluster_that_fails_often_counts_once() {
        let mut log = FailureLog::default();
        for now_ms in 0..10 {
            log.record(&key(1), Cause::Other, "x", now_ms);
        }
        let line = log.take(1000).unwrap().to_string();
        assert_eq!(
            line,
            "failed to reconcile 1 object (other 1): shop/db-00001; latest: shop/db-00001: x"
        );
    }

    #[test]
    fn nothing_is_logged_without_failures_and_nothing_is_logged_twice() {
        let mut log = FailureLog::default();
        assert_eq!(log.next_line_ms(), None);
        assert_eq!(log.take(u64::MAX), None);
        log.record(&key(1), Cause::Other, "x", 500);
        assert_eq!(log.next_line_ms(), Some(1500));
        assert_eq!(log.take(1499), None);
        assert!(log.take(1500).is_some());
        assert_eq!(log.take(u64::MAX), None);
        log.record(&key(1), Cause::Other, "x", 2000);
        assert_eq!(log.next_line_ms(), Some(61_500));
    }

    #[test]
    fn failure_log_is_bounded_and_reports_what_it_dropped() {
        let mut log = FailureLog::default();
        for n in 0..5000 {
            log.record(&key(n), Cause::Other, &"é".repeat(5000), 0);
        }
        assert_eq!(log.clusters.len(), CLUSTERS_MAX);
        let summary = log.take(1000).unwrap();
        assert!(
            summary
                .to_string()
                .starts_with("failed to reconcile at least 1024 objects")
        );
        assert_eq!(
            summary.example.unwrap().1.chars().count(),
            MESSAGE_MAX_CHARS
        );
        log.record(&key(1), Cause::Other, "x", 2000);
        assert!(!log.take(100_000).unwrap().at_least);
    }
}
