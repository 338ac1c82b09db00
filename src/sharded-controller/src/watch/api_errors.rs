//! Errors of the API server, in one clear line each: for the log and for /readyz.

use std::collections::BTreeMap;
use std::fmt::Write;

use parking_lot::Mutex;

use super::kinds::{ShardCache, WatchedKind as _};
use crate::clock::Clock;
use crate::names::Names;

/// Minimum time between two equal lines about the same resource.
const LINE_EVERY_MS: u64 = 60_000;
/// Maximum number of lines about the same resource within that time.
const LINES_MAX: usize = 4;
const WORKS_AGAIN: &str = "works again";

/// An error with all its causes: the outer one alone often says only "client error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            // Writing to a String cannot fail.
            let _infallible = write!(text, ": {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[derive(Debug, Default)]
struct Entry {
    /// The current error.
    line: Option<String>,
    /// The lines that were logged recently.
    logged: Vec<(String, u64)>,
}

impl Entry {
    /// Whether to log a line: many sources report the same error, and some of them may work.
    fn may_log(&mut self, line: &str, now_ms: u64) -> bool {
        self.logged
            .retain(|(_, at_ms)| now_ms.saturating_sub(*at_ms) < LINE_EVERY_MS);
        let is_new = self.logged.len() < LINES_MAX && !self.logged.iter().any(|(l, _)| l == line);
        if is_new {
            self.logged.push((line.to_owned(), now_ms));
        }
        is_new
    }
}

/// The errors of this process, by resource: a bounded set of names.
///
/// The lock is held for a lookup only.
#[derive(Debug)]
pub struct ApiErrors {
    clock: Clock,
    manifests: &'static str,
    /// Plural of the sharded kind.
    owner: &'static str,
    /// What is wrong, and what to do, when the API server does not serve it.
    kind_missing: String,
    entries: Mutex<BTreeMap<&'static str, Entry>>,
}

impl ApiErrors {
    /// Nothing is wrong yet.
    #[must_use]
    pub fn new<C: ShardCache>(names: &Names, clock: Clock) -> Self {
        let (api_version, owner) = (C::owner_type().api_version, C::Owner::PLURAL);
        // The core group has no name, and its kinds no CRD.
        let (group, _) = api_version.split_once('/').unwrap_or_default();
        Self::of(names, group, owner, clock)
    }

    fn of(names: &Names, group: &str, owner: &'static str, clock: Clock) -> Self {
        Self {
            clock,
            manifests: names.manifests,
            owner,
            kind_missing: format!(
                "the CRD {owner}.{group} is missing; apply {}/crd.yaml",
                names.manifests
            ),
            entries: Mutex::default(),
        }
    }

    /// Says what an error of the client means, and what to do about it. `what` is what was asked for.
    #[must_use]
    pub fn explain(&self, what: &str, error: &kube::Error) -> String {
        match error {
            kube::Error::Api(status) => match status.code {
                401 => format!(
                    "the API server does not accept our token ({what}): {}",
                    status.message
                ),
                403 => format!(
                    "not allowed ({what}): {}; apply {}/rbac.yaml",
                    status.message, self.manifests
                ),
                404 if what == self.owner => self.kind_missing.clone(),
                404 => format!("not found ({what}): {}", status.message),
                code => format!(
                    "the API server answered {code} ({what}): {}",
                    status.message
                ),
            },
            other => format!(
                "the API server cannot be reached ({what}): {}",
                chain(other)
            ),
        }
    }

    /// Notes a trouble, and logs it unless the same was logged within a minute.
    pub fn report(&self, what: &'static str, line: String) {
        if self.note(what, line.clone(), self.clock.now_ms()) {
            tracing::warn!(what, "{line}");
        }
    }

    /// The resource works again.
    pub fn clear(&self, what: &'static str) {
        if self.note_end(what, self.clock.now_ms()) {
            tracing::info!(what, "{WORKS_AGAIN}");
        }
    }

    fn note(&self, what: &'static str, line: String, now_ms: u64) -> bool {
        let mut entries = self.entries.lock();
        let entry = entries.entry(what).or_default();
        let may_log = entry.may_log(&line, now_ms);
        entry.line = Some(line);
        may_log
    }

    fn note_end(&self, what: &'static str, now_ms: u64) -> bool {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(what) else {
            return false;
        };
        let may_log = entry.line.take().is_some() && entry.may_log(WORKS_AGAIN, now_ms);
        if may_log {
            // A later error is logged again, even if it is the same.
            entry.logged.retain(|(line, _)| line == WORKS_AGAIN);
        }
        may_log
    }

    /// That the sharded kind is missing, if it is: the cause of whatever else is wrong then.
    #[must_use]
    pub(crate) fn missing_kind(&self) -> Option<&str> {
        let entries = self.entries.lock();
        let line = entries.get(self.owner)?.line.as_deref()?;
        (line == self.kind_missing).then_some(self.kind_missing.as_str())
    }

    /// All current errors, in one line; `None` if there are none.
    #[must_use]
    pub fn summary(&self) -> Option<String> {
        let entries = self.entries.lock();
        let lines = entries.values().filter_map(|entry| entry.line.as_deref());
        let lines: Vec<&str> = lines.collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::testing::NAMES;

    const CLUSTERS: &str = "examples";
    const CRD_MISSING: &str = "the CRD examples.example.io is missing; apply deploy/crd.yaml";

    fn api_errors() -> ApiErrors {
        ApiErrors::of(&NAMES, "example.io", CLUSTERS, Clock::system())
    }

    #[test]
    fn same_error_is_logged_once_per_minute() {
        let api_errors = api_errors();
        let mut logged_ms = Vec::new();
        for now_ms in (0..150_000).step_by(100) {
            if api_errors.note(CLUSTERS, CRD_MISSING.to_owned(), now_ms) {
                logged_ms.push(now_ms);
            }
        }
        assert_eq!(logged_ms, [0, 60_000, 120_000]);
        assert_eq!(api_errors.missing_kind(), Some(CRD_MISSING));
        assert_eq!(api_errors.summary().as_deref(), Some(CRD_MISSING));
    }

    #[test]
    fn one_recovered_source_does_not_make_the_log_flap() {
        let api_errors = api_errors();
        let mut lines = 0;
        for now_ms in (0..37_000).step_by(100) {
            lines += usize::from(api_errors.note("services", "refused".to_owned(), now_ms));
            lines += usize::from(api_errors.note_end("services", now_ms));
        }
        assert_eq!(lines, 3, "that it is refused, that it works, and once more");
        assert_eq!(api_errors.summary(), None);
        assert!(!api_errors.note_end("services", 90_000), "it did work");
    }

    #[test]
    fn different_error_is_logged_immediately_and_bounded() {
        let api_errors = api_errors();
        assert!(api_errors.note("services", "refused".to_owned(), 0));
        assert!(api_errors.note("services", "forbidden".to_owned(), 1));
        assert!(api_errors.note("configmaps", "refused".to_owned(), 2));
        let mut lines = 2;
        for n in 0..100 {
            lines += usize::from(api_errors.note("services", format!("at {n}"), 3));
        }
        assert_eq!(lines, LINES_MAX);
    }
}
