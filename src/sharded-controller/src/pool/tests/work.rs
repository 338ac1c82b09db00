//! Bounds and order of the work, and its metrics.

use super::*;
use crate::queue::AddError;

#[tokio::test(start_paused = true)]
async fn never_more_reconciles_run_at_once_than_allowed_and_all_permits_are_used() {
    let stage = stage(config(3), |_, _| settles(1));
    (0..20).for_each(|n| stage.add(n));
    stage.settled().await;
    assert_eq!(stage.run_log.lock().peak, 3);
    assert_eq!(stage.runs(), 20);
    assert_eq!(stage.began.elapsed().as_secs(), 7);
    assert_eq!(stage.results("success"), 20);
}

#[tokio::test(start_paused = true)]
async fn run_reports_whether_other_objects_wait() {
    let stage = stage(config(3), |_, _| settles(1));
    (0..8).for_each(|n| stage.add(n));
    stage
        .pool
        .enqueue(SHARD, &key(8), Duration::from_secs(3600))
        .unwrap();
    stage.settled().await;
    // Two rounds of three had others behind them; none waits for one that is due in an hour.
    assert_eq!(stage.runs(), 8);
    assert_eq!(stage.run_log.lock().crowded, 6);
}

#[tokio::test(start_paused = true)]
async fn queue_metrics_match_a_known_queue_state() {
    let stage = stage(config(2), |_, _| settles(10));
    assert_eq!((stage.depth(), stage.active()), (0, 0));
    (0..9).for_each(|n| stage.add(n));
    for n in 9..13 {
        stage
            .pool
            .enqueue(SHARD, &key(n), Duration::from_secs(3600))
            .unwrap();
    }
    stage.until_running(2).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((stage.depth(), stage.active()), (7, 2));
    let metrics = &stage.metrics;
    assert_eq!(metrics.pool.queue_delayed.get(), 4);
    let head_age = metrics.pool.queue_head_age_seconds.get();
    assert!((4.0..4.1).contains(&head_age), "{head_age}");
    let longest = metrics
        .pool
        .workqueue_longest_running_processor_seconds
        .with_label_values(&[CONTROLLER, CONTROLLER])
        .get();
    assert!((4.0..4.1).contains(&longest), "{longest}");
    let unfinished = metrics
        .pool
        .workqueue_unfinished_work_seconds
        .with_label_values(&[CONTROLLER, CONTROLLER])
        .get();
    assert!((8.0..8.2).contains(&unfinished), "{unfinished}");
    let adds = metrics
        .pool
        .workqueue_adds_total
        .with_label_values(&[CONTROLLER, CONTROLLER]);
    assert_eq!(adds.get(), 13);

    stage.settled().await;
    assert_eq!((stage.depth(), stage.active()), (0, 0));
    assert_eq!(metrics.pool.queue_delayed.get(), 13);
    assert!(metrics.pool.queue_head_age_seconds.get() < 0.001);
    assert!(
        metrics
            .pool
            .workqueue_unfinished_work_seconds
            .with_label_values(&[CONTROLLER, CONTROLLER])
            .get()
            < 0.001
    );
    let waits = metrics
        .pool
        .workqueue_queue_duration_seconds
        .with_label_values(&[CONTROLLER, CONTROLLER]);
    assert_eq!(waits.get_sample_count(), 9);
    // Two start at once, then two each ten seconds, and one at the end.
    assert!(
        (waits.get_sample_sum() - 160.0).abs() < 0.1,
        "{}",
        waits.get_sample_sum()
    );
}

#[tokio::test(start_paused = true)]
async fn one_object_never_runs_twice_at_once_and_a_change_during_its_run_runs_it_once_more() {
    let stage = stage(config(5), |_, _| settles(1));
    for _ in 0..10 {
        stage.add(1);
    }
    stage.until_running(1).await;
    for _ in 0..10 {
        stage.add(1);
    }
    stage.settled().await;
    assert_eq!(stage.run_log.lock().peak_of_one, 1);
    assert_eq!(stage.runs(), 2);
}

#[tokio::test(start_paused = true)]
async fn ready_object_is_reconciled_again_after_about_five_minutes() {
    let stage = stage(config(1), |_, _| settles(0));
    stage.add(1);
    tokio::time::sleep(Duration::from_secs(331)).await;
    let starts = stage.starts(1);
    assert_eq!(starts.len(), 2, "{starts:?}");
    assert!((270.0..=331.0).contains(&starts[1]), "{starts:?}");
}

#[tokio::test(start_paused = true)]
async fn forgotten_object_is_not_reconciled_again() {
    let stage = stage(config(1), |_, _| {
        let next = Next::Forget;
        end_after(0, Ok(Outcome { wrote: true, next }))
    });
    stage.add(1);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(stage.runs(), 1);
    assert_eq!(stage.results("success"), 1);
}

#[tokio::test(start_paused = true)]
async fn full_queue_refuses_new_objects_and_counts_them() {
    let config = PoolConfig {
        queue_capacity: 2,
        ..config(1)
    };
    let stage = stage(config, |_, _| settles(1));
    stage.add(1);
    stage.add(2);
    let refused = stage.pool.enqueue(SHARD, &key(3), NOW);
    assert_eq!(refused, Err(AddError::Full { capacity: 2 }));
    assert_eq!(stage.metrics.pool.queue_refused_total.get(), 1);
    stage.add(2);
    stage.settled().await;
    assert_eq!(stage.runs(), 2);
}

#[tokio::test(start_paused = true)]
async fn rate_limiter_slows_only_the_frequently_changing_object() {
    let config = PoolConfig {
        rate_limit: "5/50s".parse().unwrap(),
        ..config(2)
    };
    let stage = stage(config, |_, _| settles(0));
    for _ in 0..100 {
        stage.add(1);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let calm_from = stage.began.elapsed().as_secs_f64();
    stage.add(2);
    stage.settled().await;
    let starts = stage.starts(1);
    // Five at once, then one each ten seconds.
    assert_eq!(starts.len(), 7, "{starts:?}");
    assert_eq!(stage.metrics.pool.storm_deferred_total.get(), 3);
    assert!(stage.starts(2)[0] - calm_from < 0.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_real_threads_no_object_runs_twice_at_once_and_every_change_is_followed_by_a_run() {
    let config = PoolConfig {
        rate_limit: "1000000/1s".parse().unwrap(),
        ..config(4)
    };
    let stage = Arc::new(stage(config, |_, _| settles(0)));
    let mut adders = Vec::new();
    for adder in 0..4 {
        let stage = Arc::clone(&stage);
        adders.push(tokio::spawn(async move {
            for n in 0..500 {
                stage.add((n * 7 + adder) % 20);
                if n % 16 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }));
    }
    for adder in adders {
        adder.await.unwrap();
    }
    let last_change = Instant::now();
    (0..20).for_each(|n| stage.add(n));
    let settled = tokio::time::timeout(Duration::from_secs(60), stage.is_settled());
    assert!(
        settled.await.is_ok(),
        "waited a minute for the pool to settle"
    );
    let run_log = stage.run_log.lock();
    assert_eq!(run_log.peak_of_one, 1);
    assert!(run_log.peak <= 4);
    for n in 0..20 {
        let last = run_log.runs.iter().rfind(|run| run.key == key(n)).unwrap();
        assert!(
            last.from >= last_change,
            "db-{n} did not run after its last change"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn number_of_metric_series_is_independent_of_object_count() {
    let series = |stage: &Stage| -> usize {
        let text = stage.metrics.render().unwrap();
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    let stage = stage(config(100), |_, _| settles(1));
    (0..10).for_each(|n| stage.add(n));
    stage.settled().await;
    let few = series(&stage);
    (0..10_000).for_each(|n| stage.add(n));
    stage.settled().await;
    assert_eq!(stage.results("success"), 10_010);
    assert_eq!(series(&stage), few);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_too_small_for_all_objects_loses_none() {
    let config = PoolConfig {
        queue_capacity: 3,
        ..config(1)
    };
    let stage = stage(config, |_, _| settles(0));
    let all = || (0..8).map(key).collect::<Vec<_>>();
    for n in 0..8 {
        // What is refused temporarily is offered again.
        let _full = stage.pool.enqueue(SHARD, &key(n), NOW);
    }
    let starts = || -> Vec<usize> { (0..8).map(|n| stage.starts(n).len()).collect() };
    for round in 0.. {
        stage.settled().await;
        let starts = starts();
        if starts.iter().all(|runs| *runs >= 2) {
            break;
        }
        assert!(round < 200, "{starts:?}");
        stage.pool.add_missing(|_| all());
        tokio::time::sleep(Duration::from_secs(61)).await;
    }
    let starts = starts();
    // All have run, and one that changes now replaces one that only waits.
    stage.add(5);
    stage.settled().await;
    assert_eq!(stage.starts(5).len(), starts[5] + 1);
}

#[tokio::test(start_paused = true)]
async fn refused_objects_are_queued_as_soon_as_there_is_room() {
    let config = PoolConfig {
        queue_capacity: 2,
        ..config(2)
    };
    let gone = || Outcome {
        wrote: false,
        next: Next::Forget,
    };
    let stage = stage(config, move |_, _| end_after(5, Ok(gone())));
    stage.add(0);
    stage.add(1);
    stage.until_running(2).await;
    let refused = stage.pool.enqueue(SHARD, &key(2), NOW);
    assert!(matches!(refused, Err(AddError::Full { .. })));
    stage.pool.add_missing(|_| vec![key(2)]);
    assert_eq!(stage.runs(), 2, "there is no room yet");
    stage.settled().await;
    stage.pool.add_missing(|_| vec![key(2)]);
    stage.settled().await;
    assert_eq!(stage.starts(2).len(), 1);
    stage.pool.add_missing(|_| panic!("nothing is missing"));
}
