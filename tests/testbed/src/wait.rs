//! Waiting for a condition, with a deadline and a description; never sleep-and-hope.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The result of one check of a condition.
#[derive(Debug)]
pub enum Progress<T> {
    /// It is met.
    Done(T),
    /// It is not met yet; the text names what is missing.
    Pending(String),
}

impl<T> Progress<T> {
    /// Not met yet, because of this.
    pub fn pending(why: impl Display) -> Self {
        Self::Pending(why.to_string())
    }

    /// Met when `met`, else pending for the reason that `why` returns.
    pub fn when(met: bool, value: T, why: impl FnOnce() -> String) -> Self {
        if met {
            Self::Done(value)
        } else {
            Self::Pending(why())
        }
    }
}

/// The pause between two checks.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Calls `check` until it is done, fails, or `timeout` is over.
///
/// # Errors
/// The error of `check`, or [`Error::Deadline`] with the condition and what was missing.
pub async fn wait_for<T, F>(
    what: impl Into<String>,
    timeout: Duration,
    mut check: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<Progress<T>>>,
{
    let what = what.into();
    let started = Instant::now();
    let mut last = String::from("never checked");
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        match tokio::time::timeout(left.max(CHECK_INTERVAL), check()).await {
            Ok(Ok(Progress::Done(value))) => return Ok(value),
            Ok(Ok(Progress::Pending(why))) => last = why,
            Ok(Err(error)) => return Err(error),
            Err(_) => last = format!("the last check did not end (before it: {last})"),
        }
        if started.elapsed() >= timeout {
            return Err(Error::Deadline {
                what,
                waited_seconds: started.elapsed().as_secs_f64(),
                last,
            });
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn met_condition_ends_the_wait_with_its_value() {
        let mut checks = 0;
        let value = wait_for("the third check", Duration::from_secs(5), || {
            checks += 1;
            let now = checks;
            async move { Ok(Progress::when(now == 3, now, || format!("check {now}"))) }
        })
        .await
        .unwrap();
        assert_eq!(value, 3);
    }

    #[tokio::test]
    async fn missed_deadline_reports_the_condition_and_what_was_missing() {
        let error = wait_for::<(), _>("the moon", Duration::from_millis(120), || async {
            Ok(Progress::pending("still day"))
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("the moon") && error.contains("still day"),
            "{error}"
        );
    }
}
