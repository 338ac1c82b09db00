//! Shards that start, drain, stop and end.

use std::sync::OnceLock;

use futures::FutureExt as _;

use super::*;

const OTHER: ShardId = ShardId(7);

#[tokio::test(start_paused = true)]
async fn stopping_a_shard_cancels_its_runs_at_once_and_drops_its_objects() {
    let stage = stage(config(2), |_, _| settles(30));
    stage
        .pool
        .start_shard(permit(OTHER, 1, &CancellationToken::new()));
    stage.pool.enqueue(OTHER, &key(100), NOW).unwrap();
    (0..5).for_each(|n| stage.add(n));
    stage.until_running(2).await;
    stage.pool.stop_shard(SHARD);
    assert!(within("the cancelled run to end", stage.pool.drain_shard(SHARD)).await);
    assert_eq!(stage.on_stage(), 1, "the other shard's run goes on");
    assert!(stage.began.elapsed() < Duration::from_secs(1));
    assert!(stage.pool.enqueue(SHARD, &key(1), NOW).is_err());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    stage.settled().await;
    let others = stage.starts(100).len();
    assert_eq!(
        stage.runs(),
        others + 1,
        "nothing of the stopped shard runs again"
    );
    assert_eq!(stage.metrics.pool.reconcile_cancelled_total.get(), 1);
    assert_eq!(stage.results("success"), others as u64);
}

#[tokio::test(start_paused = true)]
async fn permit_that_ends_cancels_its_runs_and_starts_no_more() {
    let stage = stage(config(1), |_, _| settles(30));
    let ended = CancellationToken::new();
    stage.pool.start_shard(permit(OTHER, 3, &ended));
    for n in 0..4 {
        stage.pool.enqueue(OTHER, &key(n), NOW).unwrap();
    }
    stage.until_running(1).await;
    ended.cancel();
    stage.settled().await;
    assert!(stage.began.elapsed() < Duration::from_secs(1));
    assert_eq!(stage.runs(), 1);
    assert_eq!(stage.metrics.pool.reconcile_cancelled_total.get(), 1);
    assert_eq!(stage.run_log.lock().completed, 0);
    assert_eq!(
        (stage.depth(), stage.metrics.pool.queue_delayed.get()),
        (0, 0)
    );

    stage
        .pool
        .start_shard(permit(OTHER, 4, &CancellationToken::new()));
    stage.pool.enqueue(OTHER, &key(0), NOW).unwrap();
    stage.settled().await;
    assert_eq!(stage.run_log.lock().runs[1].epoch, 4);
}

#[tokio::test(start_paused = true)]
async fn result_of_a_run_ending_during_the_stop_is_discarded() {
    let stopped: Arc<OnceLock<Pool<Actor>>> = Arc::default();
    let stop = Arc::clone(&stopped);
    let stage = stage(config(1), move |_, _| {
        // Nothing is awaited after this, so the result is available in the same poll.
        stop.get().unwrap().stop_shard(SHARD);
        Behavior::Give(NOW, failed("too late"))
    });
    stopped.set(stage.pool.clone()).unwrap();
    stage.add(1);
    stage.settled().await;
    assert_eq!((stage.runs(), stage.run_log.lock().completed), (1, 1));
    assert_eq!(stage.metrics.pool.reconcile_cancelled_total.get(), 1);
    assert_eq!(stage.results("error"), 0);
    assert_eq!(
        (stage.depth(), stage.metrics.pool.queue_delayed.get()),
        (0, 0)
    );
    within("the shutdown", stage.pool.shutdown()).await;
}

#[tokio::test(start_paused = true)]
async fn new_permit_reruns_what_the_old_one_started() {
    let stage = stage(config(1), |_, nth| settles(if nth == 1 { 30 } else { 1 }));
    stage.add(1);
    stage.until_running(1).await;
    stage
        .pool
        .start_shard(permit(SHARD, 2, &CancellationToken::new()));
    stage.settled().await;
    let epochs: Vec<u32> = stage
        .run_log
        .lock()
        .runs
        .iter()
        .map(|run| run.epoch)
        .collect();
    assert_eq!(epochs, [1, 2]);
    assert_eq!(stage.run_log.lock().peak_of_one, 1);
    assert!(stage.began.elapsed() < Duration::from_secs(2));
    assert_eq!(stage.metrics.pool.reconcile_cancelled_total.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn drain_starts_nothing_waits_for_running_work_and_keeps_changes() {
    let stage = stage(config(2), |_, _| settles(10));
    (0..4).for_each(|n| stage.add(n));
    stage.until_running(2).await;
    let drain = {
        let pool = stage.pool.clone();
        tokio::spawn(async move { pool.drain_shard(SHARD).await })
    };
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!drain.is_finished(), "two reconciles still run");
    stage.add(9);
    stage.add(0);
    assert!(within("the drain", drain).await.unwrap());
    assert_eq!(stage.began.elapsed().as_secs(), 10);
    assert_eq!((stage.on_stage(), stage.runs()), (0, 2));
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!((stage.runs(), stage.depth()), (2, 4));

    stage.pool.resume_shard(SHARD);
    stage.settled().await;
    assert_eq!((stage.runs(), stage.depth()), (6, 0));
}

#[tokio::test(start_paused = true)]
async fn cancelled_drain_reports_that_it_was_cancelled() {
    let stage = stage(config(1), |_, _| settles(10));
    stage.add(1);
    stage.until_running(1).await;
    let drain = {
        let pool = stage.pool.clone();
        tokio::spawn(async move { pool.drain_shard(SHARD).await })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    stage.pool.resume_shard(SHARD);
    assert!(!within("the drain", drain).await.unwrap());
    assert_eq!(stage.on_stage(), 1);
}

#[tokio::test(start_paused = true)]
async fn resuming_a_stopped_shard_does_not_open_it() {
    let stage = stage(config(1), |_, _| settles(1));
    stage.pool.stop_shard(SHARD);
    stage.pool.resume_shard(SHARD);
    assert!(stage.pool.enqueue(SHARD, &key(1), NOW).is_err());
}

#[tokio::test(start_paused = true)]
async fn object_recreated_in_another_shard_runs_there_after_its_current_run() {
    let stage = stage(config(4), |_, _| settles(10));
    stage
        .pool
        .start_shard(permit(OTHER, 50, &CancellationToken::new()));
    stage.add(1);
    stage.until_running(1).await;
    stage.pool.enqueue(OTHER, &key(1), NOW).unwrap();
    stage.settled().await;
    let run_log = stage.run_log.lock();
    let epochs: Vec<u32> = run_log.runs.iter().map(|run| run.epoch).collect();
    assert_eq!(epochs, [1, 50]);
    assert_eq!(run_log.peak_of_one, 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_leaves_nothing_running() {
    let stage = stage(config(3), |_, _| settles(1000));
    (0..9).for_each(|n| stage.add(n));
    stage.until_running(3).await;
    within("the shutdown", stage.pool.shutdown()).await;
    assert_eq!(stage.on_stage(), 0);
    assert!(stage.began.elapsed() < Duration::from_secs(1));
    assert_eq!(stage.pool.shared.tasks.len(), 0);
    assert!(stage.is_settled().now_or_never().is_some());
    assert!(stage.pool.enqueue(SHARD, &key(1), NOW).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_last_clone_is_dropped_ends_its_tasks() {
    let stage = stage(config(3), |_, _| settles(1000));
    stage.add(1);
    stage.until_running(1).await;
    let shared = Arc::downgrade(&stage.pool.shared);
    drop(stage.pool.clone());
    assert_eq!(stage.run_log.lock().now[&key(1)], 1);
    drop(stage.pool);
    within("the tasks to end", async {
        while shared.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert!(stage.began.elapsed() < Duration::from_secs(1));
}
