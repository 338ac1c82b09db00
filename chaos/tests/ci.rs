//! The scenarios of the set `ci`, on a real control plane: a kill that is survived, and failpoints that the checker
//! must find.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use chaos::progress::Progress;
use chaos::scenario::Set;
use chaos::{catalogue, report, runner};

async fn run(name: &str) {
    let all = catalogue::all().unwrap();
    let scenario = all.iter().find(|scenario| scenario.name == name);
    let scenario = scenario.unwrap_or_else(|| panic!("there is no scenario {name}"));
    assert!(scenario.sets.contains(&Set::Ci));
    let folder = tempfile::tempdir().unwrap();
    let outcome = runner::run(scenario, folder.path(), Progress::new(true))
        .await
        .unwrap();
    assert!(
        outcome.result.passed(),
        "{}",
        report::lines(&outcome.result).join("\n")
    );
}

/// One test for each, so that some run in parallel and each is reported by its name.
macro_rules! scenarios {
    ($($test:ident: $name:literal),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            run($name).await;
        })+

        #[test]
        fn each_ci_scenario_has_a_test() {
            let found: Vec<String> = catalogue::of_set(Set::Ci)
                .unwrap()
                .into_iter()
                .map(|scenario| scenario.name)
                .collect();
            assert_eq!(found, [$($name),+]);
        }
    };
}

scenarios! {
    missing_compare_and_swap_is_found: "failpoint-no-compare-and-swap",
    missing_fence_is_found: "failpoint-no-fence",
    missing_resync_is_found: "failpoint-no-resync",
    missing_validity_check_is_found: "failpoint-no-validity",
    a_killed_replica_is_replaced_in_time: "kill-shard-leader",
}
