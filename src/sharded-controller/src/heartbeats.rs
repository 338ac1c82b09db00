//! The thread of the heartbeats: it runs ownership and the fleet leader, and drives their connections.
//!
//! Nothing else runs on it, so that no list, no reconcile and no scrape can delay a renewal.

use std::future::Future;
use std::pin::Pin;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The thread; it ends when its work is done, or when this is dropped before there is any.
pub(crate) struct HeartbeatThread {
    runtime: Handle,
    job: oneshot::Sender<Job>,
}

impl HeartbeatThread {
    /// Starts the thread, which waits for its work and runs what is spawned on its runtime.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (job, has_job) = oneshot::channel::<Job>();
        std::thread::Builder::new()
            .name("heartbeats".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    if let Ok(job) = has_job.await {
                        job.await;
                    }
                });
            })?;
        Ok(Self {
            runtime: handle,
            job,
        })
    }

    /// Its runtime: a client that is created within it is driven by this thread alone.
    pub(crate) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs the work there. The result is an error if it panicked.
    pub(crate) fn run<T: Send + 'static>(
        self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (done, result) = oneshot::channel();
        let job = async move {
            let _no_receiver = done.send(work.await);
        };
        // The thread waits for nothing else; if it is gone, the result is an error.
        let _ended = self.job.send(Box::pin(job));
        result
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::{Duration, Instant};

    #[tokio::test]
    async fn work_runs_on_the_thread_and_its_panic_is_reported() {
        let name = || std::thread::current().name().map(str::to_owned);
        let thread = HeartbeatThread::start().unwrap();
        let ran_on = thread.run(async move { name() }).await.unwrap();
        assert_eq!(ran_on.as_deref(), Some("heartbeats"));
        let thread = HeartbeatThread::start().unwrap();
        let ended = thread
            .run(async { std::panic::resume_unwind(Box::new("planned")) })
            .await;
        assert!(ended.is_err());
    }

    #[tokio::test]
    async fn work_is_not_delayed_by_a_busy_main_thread() {
        let thread = HeartbeatThread::start().unwrap();
        let begun = Instant::now();
        let beat = thread.run(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            begun.elapsed()
        });
        // Nothing else can run on this test's runtime meanwhile.
        std::thread::sleep(Duration::from_secs(2));
        assert!(beat.await.unwrap() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn thread_without_work_ends_when_it_is_dropped() {
        let thread = HeartbeatThread::start().unwrap();
        let waiting = thread.runtime().spawn(std::future::pending::<()>());
        drop(thread);
        assert!(waiting.await.unwrap_err().is_cancelled());
    }
}
