//! Determines how the API server can be watched, at the start and whenever there is evidence
//! against the result.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::Client;
use tokio::sync::Notify;

use super::api_errors::ApiErrors;
use super::kinds::{ShardCache, WatchedKind};
use super::reflector::Inner;
use super::selector::probe;
use crate::health::Health;
use crate::watch::watch_mode::{ModeChooser, WatchMode};

/// Minimum pause between two probes.
const PROBE_AGAIN: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// A periodic probe is delayed by up to this part of the interval, so that the replicas of a fleet
/// do not probe in step.
const PROBE_JITTER: f64 = 0.2;

/// Evidence against the current watch mode.
#[derive(Debug, Default)]
pub struct FilterDoubts {
    received_unfiltered: AtomicBool,
    raised: Notify,
}

impl FilterDoubts {
    /// A watch failed: it may be another API server that answers next.
    pub fn failed(&self) {
        self.raised.notify_one();
    }

    /// An object came that the API server had been asked to leave out.
    pub(crate) fn received_unfiltered(&self) {
        if !self.received_unfiltered.swap(true, Ordering::AcqRel) {
            self.raised.notify_one();
        }
    }

    async fn raised(&self) {
        self.raised.notified().await;
    }

    fn take_received_unfiltered(&self) -> bool {
        self.received_unfiltered.swap(false, Ordering::AcqRel)
    }
}

/// Waits for the API server and finds out how to watch; where the server is not to filter, only waits.
pub async fn detect_mode<C: ShardCache>(
    client: &Client,
    namespaces: &[String],
    may_shard: bool,
    api_errors: &ApiErrors,
    health: &Health,
) -> WatchMode {
    loop {
        match probe_filtering::<C>(client, namespaces, api_errors).await {
            Ok(filters) => {
                api_errors.clear(C::Owner::PLURAL);
                return match may_shard && filters {
                    true => WatchMode::Sharded,
                    false => WatchMode::Filtered,
                };
            }
            Err(line) => {
                health.set("api-server", Err(&line));
                api_errors.report(C::Owner::PLURAL, line);
            }
        }
        tokio::time::sleep(PROBE_AGAIN).await;
    }
}

async fn probe_filtering<C: ShardCache>(
    client: &Client,
    namespaces: &[String],
    api_errors: &ApiErrors,
) -> Result<bool, String> {
    let path = C::Owner::path(namespaces.first().map(String::as_str));
    match tokio::time::timeout(PROBE_TIMEOUT, probe(client, &path)).await {
        Ok(answer) => answer.map_err(|error| api_errors.explain(C::Owner::PLURAL, &error)),
        Err(_) => Err(format!(
            "the API server does not answer ({})",
            C::Owner::PLURAL
        )),
    }
}

/// Keeps the way of watching right, until the feeds are dropped.
pub(super) async fn monitor_mode<C: ShardCache>(inner: Arc<Inner<C>>, mut chooser: ModeChooser) {
    let parts = &inner.parts;
    loop {
        let wait_ms = chooser.probe_due_ms().saturating_sub(parts.clock.now_ms());
        let wait = Duration::from_millis(wait_ms).mul_f64(1.0 + PROBE_JITTER * fastrand::f64());
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = parts.doubts.raised() => {}
            () = tokio::time::sleep(wait) => {}
        }
        if parts.doubts.take_received_unfiltered() {
            inner.set_mode(chooser.received_unfiltered(parts.clock.now_ms()));
        }
        match probe_filtering::<C>(&parts.client, &parts.namespaces, &parts.api_errors).await {
            Ok(filters) => inner.set_mode(chooser.probed(parts.clock.now_ms(), filters)),
            // The watches report the error.
            Err(_) => parts.doubts.failed(),
        }
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(PROBE_AGAIN.mul_f64(1.0 + fastrand::f64())) => {}
        }
    }
}
