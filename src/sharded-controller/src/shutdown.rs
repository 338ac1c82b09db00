//! The order of stopping: announce it, hand over every shard, then stop what served them.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::fleet::agent::{AgentHandle, ExitReason};
use crate::health::Health;
use shard_ownership::ownership::Event;

/// Time in addition to the drain, for announcing that we leave and for the Lease writes themselves.
const GRACE: Duration = Duration::from_secs(4);

/// Termination requests of the process, and the time it has to stop.
pub(crate) struct Signals {
    count: watch::Receiver<u32>,
    patience: Duration,
}

/// Listens to SIGTERM and SIGINT from now on.
///
/// # Errors
/// When the process may not handle signals.
pub(crate) fn signals(drain_timeout: Duration) -> std::io::Result<Signals> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, count) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = sender.closed() => return,
            }
            sender.send_modify(|count| *count += 1);
        }
    });
    Ok(Signals {
        count,
        patience: drain_timeout + GRACE,
    })
}

impl Signals {
    /// Completes when the process was asked to stop.
    pub(crate) async fn asked(&self) {
        self.asked_times(1).await;
    }

    async fn asked_times(&self, times: u32) {
        let mut count = self.count.clone();
        if count.wait_for(|count| *count >= times).await.is_err() {
            // No signal handler is active any more: no request will come.
            std::future::pending::<()>().await;
        }
    }
}

/// Waits for the end of the agent; when asked to stop, makes it hand over its shards. After a second
/// request, or the grace period, it is not waited for any longer: then other replicas wait for our Lease
/// to expire. `None`: it ended that way.
pub(crate) async fn until_handed_back(
    running: oneshot::Receiver<ExitReason>,
    handle: AgentHandle,
    signals: &Signals,
    health: &Health,
) -> Option<ExitReason> {
    let running = async {
        // Its sender is dropped only with the thread.
        running.await.unwrap_or(ExitReason::Panicked)
    };
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => return Some(ended),
        () = signals.asked() => {}
    }
    tracing::info!("asked to stop: handing over all shards");
    health.set("leaving", Err("asked to stop"));
    let hand_back = async {
        handle.send(Event::Shutdown).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = &mut running => Some(ended),
        () = hand_back => None,
        () = tokio::time::sleep(signals.patience) => {
            tracing::warn!("could not hand over all shards in time; our Lease will expire");
            None
        }
        () = signals.asked_times(2) => {
            tracing::warn!("asked twice: stopping immediately; our Lease will expire");
            None
        }
    }
}
