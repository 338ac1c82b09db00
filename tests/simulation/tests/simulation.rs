//! Many seeds of the simulation, and proof that it notices what is switched off.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use simulation::{Ending, Plan, Sabotage, Summary, simulate};

/// Seeds that every run of the tests takes; `make model` takes many more.
const SEEDS: u64 = 400;
const SEEDS_OF_HALF_AN_UPDATE: u64 = 20;
/// Seeds within which sabotage must be detected.
const SEEDS_TO_NOTICE: u64 = 200;

fn run(plan: Plan, seeds: std::ops::Range<u64>) -> (Summary, Vec<String>) {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let (mut sum, mut failures) = (Summary::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return (sum, failures);
            }
            match simulate(plan, seed) {
                Ok(summary) => sum = sum.and(summary),
                Err(failure) => failures.push(failure),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let results = workers.into_iter().map(|worker| worker.join().unwrap());
        results.fold(
            (Summary::default(), Vec::new()),
            |(sum, mut all), (summary, failures)| {
                all.extend(failures);
                (sum.and(summary), all)
            },
        )
    })
}

#[test]
fn five_replicas_keep_their_promises_under_random_faults() {
    let chosen = std::env::var("SIM_SEED").ok();
    let seeds = match chosen.and_then(|text| text.parse::<u64>().ok()) {
        Some(seed) => seed..seed + 1,
        None => 1..SEEDS + 1,
    };
    let count = seeds.end - seeds.start;
    let began = Instant::now();
    let (sum, failures) = run(Plan::default(), seeds);
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{count} seeds, {:.0} a minute: {sum:?}",
        count as f64 * 60.0 / seconds
    );
    assert!(
        failures.is_empty(),
        "replay with SIM_SEED=<seed> SIM_TRACE=1 cargo test -p simulation --test simulation five:\n{}",
        failures.join("\n")
    );
    assert!(
        sum.edits >= count && (sum.reports > 0 || count < 100),
        "hardly any token was forged: {sum:?}"
    );
    assert!(
        sum.faults >= count && sum.accepted >= count && (sum.updates * 4 >= count || count < 100),
        "hardly anything happened: {sum:?}"
    );
}

#[test]
fn seed_reproduces_the_same_run() {
    for seed in [3, 4] {
        let text = || format!("{:?}", simulate(Plan::default(), seed));
        assert_eq!(text(), text());
    }
}

/// Two minutes and more for each seed, so a few of them, with few objects.
#[test]
fn new_replica_waits_for_the_rollout_for_at_most_two_minutes() {
    let plan = Plan {
        objects: 32,
        ending: Some(Ending::HalfAnUpdate),
        ..Plan::default()
    };
    let (_, failures) = run(plan, 1..SEEDS_OF_HALF_AN_UPDATE + 1);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The first failure of a fleet without some part of its protection.
fn noticed(sabotage: Sabotage) -> String {
    noticed_in(Plan {
        sabotage,
        ..Plan::default()
    })
}

/// The same with few objects, each of which is written often, and for longer.
fn noticed_on_few_objects(sabotage: Sabotage) -> String {
    noticed_in(Plan {
        objects: 32,
        fault_ms: 40_000,
        sabotage,
        ..Plan::default()
    })
}

fn noticed_in(plan: Plan) -> String {
    let found = (1..=SEEDS_TO_NOTICE).find_map(|seed| simulate(plan, seed).err());
    let found = found.unwrap_or_else(|| {
        panic!(
            "not noticed in {SEEDS_TO_NOTICE} seeds: {:?}",
            plan.sabotage
        )
    });
    println!("{found}");
    found
}

#[test]
fn missing_compare_and_swap_is_detected() {
    noticed(Sabotage {
        no_compare: true,
        ..Sabotage::default()
    });
}

#[test]
fn compare_and_swap_without_uid_is_detected() {
    noticed(Sabotage {
        no_uid: true,
        ..Sabotage::default()
    });
}

#[test]
fn work_beyond_lease_validity_is_detected() {
    noticed(Sabotage {
        no_validity: true,
        ..Sabotage::default()
    });
}

#[test]
fn reused_incarnation_is_detected() {
    noticed(Sabotage {
        no_incarnation: true,
        ..Sabotage::default()
    });
}

#[test]
fn epoch_that_does_not_rise_is_detected() {
    noticed(Sabotage {
        no_epoch_bump: true,
        ..Sabotage::default()
    });
}

#[test]
fn unknown_outcome_treated_as_success_is_detected() {
    noticed(Sabotage {
        unknown_is_done: true,
        ..Sabotage::default()
    });
}

#[test]
fn handover_without_waiting_for_work_is_detected() {
    noticed(Sabotage {
        no_drain_wait: true,
        ..Sabotage::default()
    });
}

#[test]
fn unpublished_revision_is_detected() {
    let found = noticed(Sabotage {
        no_revision: true,
        ..Sabotage::default()
    });
    assert!(found.contains("did not move once"), "{found}");
}

#[test]
fn fence_without_comparison_is_detected() {
    let found = noticed_on_few_objects(Sabotage {
        no_fence: true,
        ..Sabotage::default()
    });
    assert!(found.contains("an object was written under"), "{found}");
}

#[test]
fn entry_before_the_compare_and_swap_of_its_lease_is_detected() {
    noticed(Sabotage {
        entry_before_lease: true,
        ..Sabotage::default()
    });
}

#[test]
fn entries_without_an_incarnation_are_detected() {
    noticed(Sabotage {
        no_entry_incarnation: true,
        ..Sabotage::default()
    });
}

#[test]
fn table_uid_in_the_order_rule_is_detected() {
    noticed_on_few_objects(Sabotage {
        order_needs_table: true,
        ..Sabotage::default()
    });
}

#[test]
fn tokens_without_their_cluster_uid_are_detected() {
    noticed_on_few_objects(Sabotage {
        no_cluster_uid: true,
        ..Sabotage::default()
    });
}

#[test]
fn work_under_a_deleted_table_is_detected() {
    noticed(Sabotage {
        no_stop_on_new_table: true,
        ..Sabotage::default()
    });
}

#[test]
fn batch_resent_unchanged_is_detected() {
    noticed(Sabotage {
        batch_resent_unchanged: true,
        ..Sabotage::default()
    });
}

#[test]
fn work_before_the_entry_is_written_is_detected() {
    noticed(Sabotage {
        work_before_entry: true,
        ..Sabotage::default()
    });
}
