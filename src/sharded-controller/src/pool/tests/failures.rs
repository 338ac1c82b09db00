//! Runs that fail, and the consequences.

use std::io::{Write, sink};
use std::sync::OnceLock;

use tracing::Dispatch;
use tracing::subscriber::DefaultGuard;

use super::*;

fn failures(stage: &Stage, cause: Cause) -> u64 {
    let total = &stage.metrics.pool.reconcile_failures_total;
    total.with_label_values(&[cause.label()]).get()
}

#[tokio::test(start_paused = true)]
async fn hanging_reconcile_is_cancelled_at_its_deadline_and_retried() {
    let stage = stage(config(1), |_, nth| {
        settles(if nth == 1 { 100_000 } else { 0 })
    });
    stage.add(1);
    stage.add(2);
    within("the second object to wait for the first", async {
        while stage.starts(2).is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    assert!(
        (60.0..60.1).contains(&stage.starts(2)[0]),
        "{:?}",
        stage.starts(2)
    );
    tokio::time::sleep(Duration::from_secs(120)).await;
    let again = stage.starts(1)[1] - 60.0;
    assert!((27.0..=93.1).contains(&again), "{again}");
    let timeouts = stage
        .metrics
        .pool
        .reconcile_timeouts_total
        .with_label_values(&[CONTROLLER]);
    assert_eq!(timeouts.get(), 2);
    assert_eq!(failures(&stage, Cause::Timeout), 2);
    assert_eq!(stage.results("error"), 2);
}

#[tokio::test(start_paused = true)]
async fn panic_fails_only_its_own_object() {
    let stage = stage(config(1), |key, _| match &*key.name {
        "db-1" => Behavior::Panic(NOW),
        _ => settles(0),
    });
    (1..4).for_each(|n| stage.add(n));
    stage.settled().await;
    assert_eq!((stage.results("error"), stage.results("success")), (1, 2));
    tokio::time::sleep(Duration::from_secs(34)).await;
    let starts = stage.starts(1);
    assert_eq!(starts.len(), 2, "{starts:?}");
    assert!((27.0..=33.1).contains(&starts[1]), "{starts:?}");
    let panics = stage
        .metrics
        .pool
        .reconcile_panics_total
        .with_label_values(&[CONTROLLER]);
    assert_eq!(panics.get(), 2);
    assert_eq!(failures(&stage, Cause::Panic), 2);
    assert_eq!(stage.active(), 0);
}

#[tokio::test(start_paused = true)]
async fn panic_during_cancellation_neither_loses_the_object_nor_hot_loops() {
    let stage = stage(config(1), |_, nth| match nth {
        1 => Behavior::PanicOnDrop(Duration::from_secs(100)),
        _ => settles(0),
    });
    stage.add(1);
    tokio::time::sleep(Duration::from_secs(100)).await;
    let starts = stage.starts(1);
    assert_eq!(starts.len(), 2, "{starts:?}");
    assert!((87.0..=93.1).contains(&starts[1]), "{starts:?}");
    assert_eq!(failures(&stage, Cause::Panic), 1);
    assert_eq!(stage.active(), 0);
}

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_climb_the_tiers_and_a_success_resets_them() {
    let stage = stage(config(1), |_, nth| {
        end_after(0, if nth == 5 { Ok(ready()) } else { failed("no") })
    });
    stage.add(1);
    tokio::time::sleep(Duration::from_secs(800)).await;
    let starts = stage.starts(1);
    let pauses: Vec<f64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let expected = [30.0, 30.0, 30.0, 120.0, 300.0, 30.0];
    assert!(pauses.len() >= expected.len(), "{pauses:?}");
    for (pause, expected) in pauses.iter().zip(expected) {
        assert!(
            (expected * 0.89..=expected * 1.11).contains(pause),
            "{pauses:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_followed_at_once_although_the_object_failed() {
    let stage = stage(config(1), |_, _| end_after(0, failed("no")));
    stage.add(1);
    stage.settled().await;
    stage.add(1);
    stage.settled().await;
    assert_eq!(stage.runs(), 2);
    assert!(stage.began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn conflict_is_retried_five_times_before_it_counts_as_failure() {
    let conflict = || {
        Err(Failure::Retry {
            fenced: false,
            message: "the object has been modified".into(),
        })
    };
    let stage = stage(config(1), move |_, _| end_after(0, conflict()));
    stage.add(1);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let starts = stage.starts(1);
    assert_eq!(starts.len(), 6, "{starts:?}");
    assert!(starts[5] < 2.3, "{starts:?}");
    assert_eq!((stage.results("requeue"), stage.results("error")), (5, 1));
    assert_eq!(failures(&stage, Cause::Other), 1);
    let retries = stage
        .metrics
        .pool
        .workqueue_retries_total
        .with_label_values(&[CONTROLLER, CONTROLLER]);
    assert_eq!(retries.get(), 6);
}

#[tokio::test(start_paused = true)]
async fn throttled_object_waits_as_requested_and_others_briefly() {
    let throttled = || {
        let retry_after = Duration::from_secs(20);
        Err(Failure::Throttled { retry_after })
    };
    let stage = stage(config(1), move |key, nth| match (&*key.name, nth) {
        ("db-1", 1) => end_after(0, throttled()),
        _ => settles(0),
    });
    stage.add(1);
    stage.add(2);
    tokio::time::sleep(Duration::from_secs(5)).await;
    stage.add(1);
    tokio::time::sleep(Duration::from_secs(18)).await;
    let starts = stage.starts(1);
    assert_eq!(starts.len(), 2, "{starts:?}");
    assert!((20.0..=22.1).contains(&starts[1]), "{starts:?}");
    let other = stage.starts(2);
    assert!((1.0..1.1).contains(&other[0]), "{other:?}");
    assert_eq!(stage.results("error"), 0);
}

#[tokio::test(start_paused = true)]
async fn lost_permit_does_not_count_as_failure_and_the_object_runs_again() {
    let stage = stage(config(1), |_, nth| {
        end_after(
            0,
            if nth == 1 {
                Err(Failure::Lost)
            } else {
                Ok(ready())
            },
        )
    });
    stage.add(1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(stage.runs(), 2);
    assert_eq!((stage.results("requeue"), stage.results("error")), (1, 0));
    assert_eq!(stage.results("success"), 1);
}

#[derive(Clone, Default)]
struct Pages(Arc<Mutex<Vec<u8>>>);

impl Write for Pages {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Pages {
    /// Collects the log of this thread while the guard is alive.
    fn collect(&self) -> DefaultGuard {
        // While a process has only one subscriber, tracing asks any thread whether a subscriber is
        // interested, and caches its "no" for all threads: so keep two more.
        static ALSO_LISTENING: OnceLock<[Dispatch; 2]> = OnceLock::new();
        let listener = || Dispatch::new(tracing_subscriber::fmt().with_writer(sink).finish());
        ALSO_LISTENING.get_or_init(|| [listener(), listener()]);
        let pages = self.clone();
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || pages.clone())
            .finish();
        tracing::subscriber::set_default(log)
    }

    fn failure_lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains("failed to"));
        lines.map(str::to_owned).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn many_failures_give_at_most_one_line_a_minute() {
    let pages = Pages::default();
    let _log = pages.collect();
    let stage = stage(config(4), |_, _| end_after(0, failed("RBAC forbids it")));
    (0..40).for_each(|n| stage.add(n));
    tokio::time::sleep(Duration::from_secs(90)).await;
    let lines = pages.failure_lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let expected = "failed to reconcile 40 objects (forbidden 40): shop/db-0, ";
    assert!(
        lines[0].contains("WARN") && lines[0].contains(expected),
        "{}",
        lines[0]
    );
    assert!(stage.runs() >= 80, "{}", stage.runs());
}

#[tokio::test(start_paused = true)]
async fn log_line_contains_the_panic_message() {
    let pages = Pages::default();
    let _log = pages.collect();
    let stage = stage(config(1), |_, _| Behavior::Panic(NOW));
    stage.add(1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lines = pages.failure_lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("(panic 1): shop/db-1"), "{}", lines[0]);
    assert!(lines[0].contains("the script says so"), "{}", lines[0]);
}

#[tokio::test(start_paused = true)]
async fn early_runs_do_not_change_the_scheduled_retry() {
    let stage = stage(config(1), |_, _| end_after(0, failed("no")));
    stage.add(0);
    stage.settled().await;
    // Watch events of the writes before the failure.
    for _ in 0..9 {
        stage.add(0);
        stage.settled().await;
    }
    assert_eq!(stage.runs(), 10);
    tokio::time::sleep(Duration::from_secs(80)).await;
    let later: Vec<f64> = stage.starts(0).split_off(10);
    assert_eq!(later.len(), 2, "{later:?}");
    assert!((27.0..=33.1).contains(&later[0]), "{later:?}");
    assert!((54.0..=66.2).contains(&later[1]), "{later:?}");
}
