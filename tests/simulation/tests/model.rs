//! Exhaustive search of the ownership machine, and proof that it notices what is switched off.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use shard_ownership::hash::ShardCount;
use simulation::Sabotage;
use simulation::model::{Opening, OwnershipModel};
use simulation::objects::ObjectsModel;
use stateright::{Checker, Model};

/// A machine that is very busy gets no further than this.
const TIME_MAX: Duration = Duration::from_secs(120);

fn number(name: &str, default: usize) -> usize {
    let given = std::env::var(name).ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn model(sabotage: Sabotage, faults_max: u8, tampers: bool) -> OwnershipModel {
    OwnershipModel {
        replicas: 3,
        shards: ShardCount::new(2).unwrap(),
        faults_max,
        tampers,
        table_faults: false,
        counts: Vec::new(),
        revisions: Vec::new(),
        opening: Opening::AtRest,
        sabotage,
    }
}

/// Searches; returns the first violation, and how much was searched.
fn search(model: OwnershipModel, depth: usize) -> (Option<String>, usize, usize) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let time_max = Duration::from_secs(number("MODEL_SECONDS", TIME_MAX.as_secs() as usize) as u64);
    let checker = model
        .checker()
        .threads(threads)
        .target_max_depth(depth)
        .timeout(time_max)
        .spawn_bfs()
        .join();
    let found = checker.discovery("the promises are kept").map(|path| {
        let last = path.last_state().violation.clone();
        format!("{} after {:?}", last.unwrap(), path.into_actions())
    });
    (found, checker.max_depth(), checker.unique_state_count())
}

fn keeps_its_promises(model: OwnershipModel, depth: usize) {
    let depth = depth + number("MODEL_DEEPER", 0);
    let began = Instant::now();
    let counts: Vec<u16> = model.counts.iter().map(|count| count.get()).collect();
    let what = format!(
        "{} replicas, {} shards, {:?}, revisions {:?}, shards {counts:?}, up to {} faults, Leases deleted by hand: {}, \
         faults of the table: {}",
        model.replicas,
        model.shards.get(),
        model.opening,
        model.revisions,
        model.faults_max,
        model.tampers,
        model.table_faults
    );
    let (found, depth, states) = search(model, depth);
    println!(
        "{what}: depth {depth}, {states} unique states, {:.1} s",
        began.elapsed().as_secs_f64()
    );
    assert_eq!(found, None);
    assert!(states > 1000, "only {states} states were searched");
}

#[test]
fn promises_are_kept_with_any_three_faults_close_together() {
    keeps_its_promises(model(Sabotage::default(), 3, false), 5);
}

#[test]
fn promises_are_kept_with_any_two_faults_further_apart() {
    keeps_its_promises(model(Sabotage::default(), 2, false), 7);
}

#[test]
fn promises_are_kept_with_any_fault_at_any_time() {
    keeps_its_promises(model(Sabotage::default(), 1, true), 11);
}

#[test]
fn promises_are_kept_when_leases_are_deleted_by_hand() {
    keeps_its_promises(model(Sabotage::default(), 3, true), 5);
}

fn scene(opening: Opening, faults_max: u8, sabotage: Sabotage) -> OwnershipModel {
    OwnershipModel {
        opening,
        ..model(sabotage, faults_max, false)
    }
}

#[test]
fn promises_are_kept_with_late_requests_of_a_previous_incarnation() {
    keeps_its_promises(scene(Opening::LateAfterResume, 2, Sabotage::default()), 5);
}

#[test]
fn promises_are_kept_with_a_stale_second_api_server() {
    keeps_its_promises(scene(Opening::SecondServer, 2, Sabotage::default()), 5);
}

#[test]
fn promises_are_kept_in_two_handovers_in_a_row() {
    keeps_its_promises(scene(Opening::TwoHandovers, 2, Sabotage::default()), 5);
}

#[test]
fn promises_are_kept_while_replicas_of_two_revisions_are_alive() {
    let mixed = OwnershipModel {
        revisions: vec!["1", "2", "2"],
        ..model(Sabotage::default(), 2, false)
    };
    keeps_its_promises(mixed, 5);
}

/// With all faults of the table, beside those of Leases.
fn with_table(faults_max: u8, tampers: bool, sabotage: Sabotage) -> OwnershipModel {
    OwnershipModel {
        table_faults: true,
        ..model(sabotage, faults_max, tampers)
    }
}

#[test]
fn promises_are_kept_with_any_change_of_the_table() {
    keeps_its_promises(with_table(2, false, Sabotage::default()), 5);
}

#[test]
fn promises_are_kept_when_table_and_leases_are_deleted_by_hand() {
    keeps_its_promises(with_table(2, true, Sabotage::default()), 4);
}

fn conversion(opening: Opening, [old, new]: [u64; 2], faults_max: u8) -> OwnershipModel {
    OwnershipModel {
        opening,
        counts: [old, new, new]
            .map(|count| ShardCount::new(count).unwrap())
            .to_vec(),
        ..with_table(faults_max, false, Sabotage::default())
    }
}

#[test]
fn promises_are_kept_while_the_number_of_shards_grows() {
    keeps_its_promises(conversion(Opening::Conversion, [2, 4], 2), 4);
}

#[test]
fn promises_are_kept_while_the_number_of_shards_falls() {
    keeps_its_promises(conversion(Opening::Conversion, [4, 2], 2), 4);
}

#[test]
fn promises_are_kept_when_a_conversion_is_aborted() {
    keeps_its_promises(conversion(Opening::ConversionAfterCrash, [2, 4], 1), 6);
}

#[test]
fn promises_are_kept_when_a_conversion_to_fewer_shards_is_aborted() {
    keeps_its_promises(conversion(Opening::ConversionAfterCrash, [4, 2], 1), 6);
}

fn batch_refused(sabotage: Sabotage) -> OwnershipModel {
    OwnershipModel {
        replicas: 2,
        shards: ShardCount::new(8).unwrap(),
        opening: Opening::BatchRefused,
        ..with_table(1, false, sabotage)
    }
}

#[test]
fn promises_are_kept_when_one_of_several_entries_is_rejected() {
    keeps_its_promises(batch_refused(Sabotage::default()), 5);
}

/// The first violation in a fleet with a part of its protection disabled.
fn noticed(sabotage: Sabotage, faults_max: u8, tampers: bool, depth: usize) {
    noticed_in(model(sabotage, faults_max, tampers), depth);
}

fn noticed_in(model: OwnershipModel, depth: usize) {
    let began = Instant::now();
    let off = format!("{:?}", model.sabotage);
    let off: Vec<&str> = off.split([' ', ',']).collect();
    let off = off
        .windows(2)
        .filter(|pair| pair[1] == "true")
        .map(|pair| pair[0]);
    let what = format!("{:?}, {:?}", model.opening, off.collect::<Vec<_>>());
    let (found, depth, states) = search(model, depth);
    let seconds = began.elapsed().as_secs_f64();
    let found = found.unwrap_or_else(|| panic!("not noticed in {states} states: {what}"));
    println!("{what}: depth {depth}, {states} states, {seconds:.1} s: {found}");
}

#[test]
fn fence_without_comparison_is_detected_by_a_late_write_of_a_previous_incarnation() {
    let sabotage = Sabotage {
        no_fence: true,
        ..Sabotage::default()
    };
    noticed_in(scene(Opening::LateAfterResume, 1, sabotage), 5);
}

#[test]
fn missing_compare_and_swap_is_detected_with_stale_reads() {
    let sabotage = Sabotage {
        no_compare: true,
        ..Sabotage::default()
    };
    noticed_in(scene(Opening::SecondServer, 1, sabotage), 9);
}

#[test]
fn missing_wait_for_work_is_detected_in_two_handovers_in_a_row() {
    let sabotage = Sabotage {
        no_drain_wait: true,
        ..Sabotage::default()
    };
    noticed_in(scene(Opening::TwoHandovers, 2, sabotage), 4);
}

#[test]
fn missing_compare_and_swap_is_detected() {
    let sabotage = Sabotage {
        no_compare: true,
        ..Sabotage::default()
    };
    noticed(sabotage, 2, false, 6);
}

#[test]
fn compare_and_swap_without_uid_is_detected() {
    let sabotage = Sabotage {
        no_uid: true,
        ..Sabotage::default()
    };
    noticed(sabotage, 2, true, 6);
}

#[test]
fn work_beyond_lease_validity_is_detected() {
    let sabotage = Sabotage {
        no_validity: true,
        ..Sabotage::default()
    };
    noticed(sabotage, 1, false, 8);
}

#[test]
fn reused_incarnation_is_detected() {
    let sabotage = Sabotage {
        no_incarnation: true,
        ..Sabotage::default()
    };
    noticed(sabotage, 2, false, 5);
}

#[test]
fn epoch_that_does_not_rise_is_detected() {
    let sabotage = Sabotage {
        no_epoch_bump: true,
        ..Sabotage::default()
    };
    noticed(sabotage, 2, false, 5);
}

#[test]
fn unknown_outcome_treated_as_success_is_detected() {
    let sabotage = Sabotage {
        unknown_is_done: true,
        ..Sabotage::default()
    };
    noticed(sabotage, 3, false, 6);
}

#[test]
fn handover_without_waiting_for_work_is_detected() {
    let sabotage = Sabotage {
        no_drain_wait: true,
        ..Sabotage::default()
    };
    noticed(sabotage, 3, false, 5);
}

#[test]
fn handover_to_a_successor_without_a_list_is_detected() {
    let sabotage = Sabotage {
        no_warmth: true,
        ..Sabotage::default()
    };
    noticed(sabotage, 2, false, 5);
}

#[test]
fn entry_before_the_compare_and_swap_of_its_lease_is_detected() {
    let sabotage = Sabotage {
        entry_before_lease: true,
        ..Sabotage::default()
    };
    noticed_in(with_table(1, false, sabotage), 4);
}

#[test]
fn entries_without_an_incarnation_are_detected() {
    let sabotage = Sabotage {
        no_entry_incarnation: true,
        ..Sabotage::default()
    };
    noticed_in(with_table(1, false, sabotage), 4);
}

#[test]
fn table_uid_in_the_order_rule_is_detected_by_a_late_write_of_a_previous_incarnation() {
    let sabotage = Sabotage {
        order_needs_table: true,
        ..Sabotage::default()
    };
    noticed_in(scene(Opening::LateAfterResume, 1, sabotage), 5);
}

#[test]
fn work_under_a_deleted_table_is_detected() {
    let sabotage = Sabotage {
        no_stop_on_new_table: true,
        ..Sabotage::default()
    };
    noticed_in(with_table(1, false, sabotage), 4);
}

#[test]
fn batch_resent_unchanged_is_detected() {
    let sabotage = Sabotage {
        batch_resent_unchanged: true,
        ..Sabotage::default()
    };
    noticed_in(batch_refused(sabotage), 5);
}

#[test]
fn work_before_the_entry_is_written_is_detected() {
    let sabotage = Sabotage {
        work_before_entry: true,
        ..Sabotage::default()
    };
    noticed_in(with_table(1, false, sabotage), 4);
}

/// Searches the model of objects.
fn search_objects(edits_max: u8, sabotage: Sabotage, depth: usize) -> (Option<String>, usize) {
    let began = Instant::now();
    let model = ObjectsModel {
        edits_max,
        sabotage,
    };
    let depth = depth + number("MODEL_DEEPER", 0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = model
        .checker()
        .threads(threads)
        .target_max_depth(depth)
        .spawn_bfs()
        .join();
    let found = checker.discovery("the promises are kept").map(|path| {
        let last = path.last_state().violation.clone();
        format!("{} after {:?}", last.unwrap(), path.into_actions())
    });
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "objects, up to {edits_max} edits: depth {depth}, {states} unique states, {seconds:.1} s: {found:?}"
    );
    (found, states)
}

#[test]
fn promises_are_kept_on_objects_with_stale_caches_and_user_edits() {
    let (found, states) = search_objects(2, Sabotage::default(), 8);
    assert_eq!(found, None);
    assert!(states > 1000, "only {states} states were searched");
}

#[test]
fn tokens_without_their_cluster_uid_are_detected_on_objects() {
    let sabotage = Sabotage {
        no_cluster_uid: true,
        ..Sabotage::default()
    };
    let (found, _) = search_objects(1, sabotage, 7);
    assert!(found.is_some());
}

#[test]
fn table_uid_in_the_order_rule_is_detected_on_objects() {
    let sabotage = Sabotage {
        order_needs_table: true,
        ..Sabotage::default()
    };
    let (found, _) = search_objects(0, sabotage, 7);
    assert!(found.is_some());
}
