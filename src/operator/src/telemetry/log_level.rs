//! Changes the log level at run time: the level of our own code only, and for a limited time only.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sharded_controller::duration;

/// Our own crates in log directives.
const OWN_TARGETS: [&str; 3] = [
    "databasecluster_operator",
    "sharded_controller",
    "shard_ownership",
];
/// How long a change lasts when nothing else is asked for.
pub(crate) const DURATION_DEFAULT: Duration = Duration::from_secs(15 * 60);
/// The longest that a change lasts: nobody has to remember to take it back.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(4 * 3600);
/// How long a change may last.
const ALLOWED: RangeInclusive<Duration> = Duration::from_secs(30)..=DURATION_MAX;

/// Allowed levels. Directives for libraries are not allowed: some would log headers and bodies.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Applies directives, which come after those with which the process was started.
pub type Apply = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// The level of this process's own log lines.
pub struct LogLevel {
    apply: Apply,
    /// Locked for the time of one change, which does not block.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Increases with every change: a revert checks whether its change is still active.
    change: u64,
    level: Option<&'static str>,
}

/// A requested change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevelRequest {
    /// This level, for so long.
    Level(&'static str, Duration),
    /// The level with which the process was started.
    Default,
}

impl LogLevel {
    /// A level that is changed by `apply`.
    #[must_use]
    pub fn new(apply: Apply) -> Arc<Self> {
        Arc::new(Self {
            apply,
            state: Mutex::default(),
        })
    }

    /// A level that cannot be changed, if another component owns the log.
    #[must_use]
    pub fn fixed() -> Arc<Self> {
        Self::new(Box::new(|_| {
            Err("this process's log is not its own".to_owned())
        }))
    }

    /// The requested level, unless it is the one with which the process was started.
    #[must_use]
    pub(crate) fn changed_to(&self) -> Option<&'static str> {
        let state = self.state.lock();
        state.level
    }

    /// Executes a request, and reverts it after its duration. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// When the log refuses.
    pub fn execute(self: &Arc<Self>, request: LogLevelRequest) -> Result<(), String> {
        let LogLevelRequest::Level(level, lifetime) = request else {
            return self.change(None).map(drop);
        };
        let change = self.change(Some(level))?;
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(lifetime.min(DURATION_MAX)).await;
            if let Some(this) = this.upgrade()
                && this.is_current(change)
                && let Err(error) = this.change(None)
            {
                tracing::warn!(error, "the log level could not be reverted");
            }
        });
        Ok(())
    }

    fn is_current(&self, change: u64) -> bool {
        let state = self.state.lock();
        state.change == change
    }

    fn change(&self, level: Option<&'static str>) -> Result<u64, String> {
        let mut state = self.state.lock();
        let directives = level.map(|level| {
            let directives = OWN_TARGETS.map(|target| format!("{target}={level}"));
            directives.join(",")
        });
        // Before it counts, so that silence is announced too.
        tracing::warn!(
            level = level.unwrap_or("default"),
            "log level changed on request"
        );
        (self.apply)(directives.as_deref().unwrap_or_default())?;
        state.level = level;
        state.change += 1;
        Ok(state.change)
    }
}

/// Parses a request: `debug`, `debug 30m`, `default`.
///
/// # Errors
/// When it is none, in words that say what is allowed.
pub fn parse(text: &str) -> Result<LogLevelRequest, String> {
    let allowed = || {
        format!(
            "allowed: one of {}, with a duration if not 15m (30s to 4h: `debug 1h`); or \
             `default`, for the level at the start of the process",
            LEVELS.join(", ")
        )
    };
    let mut words = text.split_ascii_whitespace();
    let (level, lifetime) = (words.next().unwrap_or_default(), words.next());
    if words.next().is_some() {
        return Err(allowed());
    }
    if level == "default" && lifetime.is_none() {
        return Ok(LogLevelRequest::Default);
    }
    let level = LEVELS.into_iter().find(|known| *known == level);
    let lifetime = match lifetime {
        None => Some(DURATION_DEFAULT),
        Some(text) => duration::parse(text).filter(|lifetime| ALLOWED.contains(lifetime)),
    };
    match (level, lifetime) {
        (Some(level), Some(lifetime)) => Ok(LogLevelRequest::Level(level, lifetime)),
        _ => Err(allowed()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    type Applied = Arc<Mutex<Vec<String>>>;

    fn recorded() -> (Arc<LogLevel>, Applied) {
        let applied = Applied::default();
        let record = Arc::clone(&applied);
        let level = LogLevel::new(Box::new(move |directives| {
            record.lock().push(directives.to_owned());
            Ok(())
        }));
        (level, applied)
    }

    #[test]
    fn log_level_request_has_a_known_level_and_a_bounded_duration() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        assert_eq!(
            parse("debug\n"),
            Ok(LogLevelRequest::Level("debug", minutes(15)))
        );
        assert_eq!(
            parse(" trace 2h"),
            Ok(LogLevelRequest::Level("trace", minutes(120)))
        );
        assert_eq!(parse("default"), Ok(LogLevelRequest::Default));
        for bad in [
            "",
            "loud",
            "debug 5",
            "debug 5s",
            "debug 5h",
            "debug 5m x",
            "default 5m",
            "h2=trace",
            "info,kube_client=trace",
            "DEBUG",
            "debug -1m",
            "debug 99999999999999999999h",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(
                error.contains("off, error, warn, info, debug, trace"),
                "{bad}: {error}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn log_level_is_restored_after_its_duration() {
        let (level, applied) = recorded();
        level.execute(parse("debug 1m").unwrap()).unwrap();
        assert_eq!(level.changed_to(), Some("debug"));
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert_eq!(level.changed_to(), Some("debug"));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(level.changed_to(), None);
        assert_eq!(
            *applied.lock(),
            [
                "databasecluster_operator=debug,sharded_controller=debug,shard_ownership=debug",
                ""
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn later_log_level_is_not_reverted_by_an_earlier_request() {
        let (level, _) = recorded();
        level.execute(parse("debug 1m").unwrap()).unwrap();
        level.execute(parse("trace 2m").unwrap()).unwrap();
        tokio::time::sleep(Duration::from_secs(90)).await;
        assert_eq!(level.changed_to(), Some("trace"));
        level.execute(LogLevelRequest::Default).unwrap();
        assert_eq!(level.changed_to(), None);
    }

    #[tokio::test]
    async fn rejected_request_keeps_the_log_level() {
        let level = LogLevel::fixed();
        assert!(level.execute(parse("debug").unwrap()).is_err());
        assert_eq!(level.changed_to(), None);
    }
}
