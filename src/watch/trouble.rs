//! What is wrong with the API server, in one clear line each: for the log and for /readyz.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::fleet::tenure::boottime_ms;

/// Least time between two lines about the same trouble.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Says what an error of the client means, and what to do about it. `what` is what was asked for.
#[must_use]
pub fn explain(what: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => match status.code {
            401 => format!(
                "the API server does not accept our token ({what}): {}",
                status.message
            ),
            403 => format!(
                "not allowed ({what}): {}; apply deploy/base/rbac.yaml",
                status.message
            ),
            404 if what == "databaseclusters" => {
                "the CRD databaseclusters.database.io is missing; apply deploy/base/crd.yaml"
                    .to_owned()
            }
            404 => format!("not found ({what}): {}", status.message),
            code => format!(
                "the API server answered {code} ({what}): {}",
                status.message
            ),
        },
        other => format!(
            "the API server can not be reached ({what}): {}",
            chain(other)
        ),
    }
}

/// An error with all its causes: the outer one alone often says only "client error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            // Writing to a String can not fail.
            let _infallible = write!(text, ": {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[derive(Debug)]
struct Entry {
    line: String,
    logged_ms: u64,
}

/// The troubles of this process, by what they concern: a bounded set of names.
///
/// The lock is held for a look-up only.
#[derive(Debug, Default)]
pub struct Troubles {
    entries: Mutex<BTreeMap<&'static str, Entry>>,
}

impl Troubles {
    /// Notes a trouble, and logs it unless it was logged a moment ago.
    pub fn report(&self, what: &'static str, line: String) {
        let now_ms = boottime_ms();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let last_ms = entries.get(what).map(|entry| entry.logged_ms);
        let every_ms = LINE_EVERY.as_millis() as u64;
        let due = last_ms.is_none_or(|last_ms| now_ms.saturating_sub(last_ms) >= every_ms);
        if due {
            tracing::warn!(what, "{line}");
        }
        let logged_ms = if due {
            now_ms
        } else {
            last_ms.unwrap_or(now_ms)
        };
        entries.insert(what, Entry { line, logged_ms });
    }

    /// It works again.
    pub fn clear(&self, what: &'static str) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.remove(what).is_some() {
            tracing::info!(what, "works again");
        }
    }

    /// All that is wrong now, in one line; `None` when nothing is.
    #[must_use]
    pub fn summary(&self) -> Option<String> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = entries.values().map(|entry| entry.line.as_str()).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}
