//! `benchmarks bench` with few clusters, in a debug build: every cell of the table has a value, and what can be counted
//! is right. Times are not checked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use serde_json::Value;

const CLUSTERS: u32 = 30;
const SIDES: [&str; 5] = ["operator", "operator-alone", "go", "go-typical", "kube-rs"];
const BENCHMARKS: [&str; 12] = [
    "create_seconds",
    "create_cpu_ms",
    "create_api_server_cpu_ms",
    "create_requests",
    "peak_memory_mb",
    "all_memory_mb",
    "rest_cpu_ms_per_second",
    "rest_requests_per_second",
    "change_seconds",
    "change_cpu_ms",
    "change_api_server_cpu_ms",
    "change_requests",
];
/// Finalizer, two statuses, an Event, and a Secret and at least five other children.
const REQUESTS_MIN: f64 = 7.0;
/// A loop would have hundreds.
const REQUESTS_MAX: f64 = 40.0;

#[test]
fn smoke_run_fills_every_cell_of_the_table() {
    let folder = std::env::temp_dir().join(format!("bench-smoke-{}", std::process::id()));
    let json = folder.join("bench.json");
    let mut run = Command::new(env!("CARGO_BIN_EXE_benchmarks"));
    run.args(["bench", "--smoke", "--rounds", "1"])
        .args(["--clusters", &CLUSTERS.to_string()])
        .arg("--json")
        .arg(&json)
        .env("PEER_PROFILE", "dev")
        .env_remove("SIDES")
        .env_remove("LOADING")
        .env_remove("CHECK");
    let output = run.output().unwrap();
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let results = std::fs::read_to_string(&json);
    let picture = std::fs::read_to_string(folder.join("bench.svg"));
    let _removed = std::fs::remove_dir_all(&folder);
    // Goals are missed by a debug build, which fails nothing without CHECK=1.
    assert!(
        output.status.success(),
        "{}\n{table}\n{errors}",
        output.status
    );
    let results: Value = serde_json::from_str(&results.unwrap()).unwrap();
    let size = &results["sizes"][0];
    assert_eq!(size["clusters"], CLUSTERS);
    for side in SIDES {
        for benchmark in BENCHMARKS {
            let cell = &size["sides"][side][benchmark];
            assert_eq!(
                cell["values"].as_array().map(Vec::len),
                Some(1),
                "{side}: {benchmark}\n{table}"
            );
            assert!(
                cell["median"].as_f64().is_some_and(|value| value >= 0.0),
                "{side}: {benchmark}: {cell}"
            );
        }
        let median = |benchmark: &str| size["sides"][side][benchmark]["median"].as_f64().unwrap();
        for benchmark in ["create_requests", "change_requests"] {
            let requests = median(benchmark);
            assert!(requests <= REQUESTS_MAX, "{side}: {benchmark}: {requests}");
        }
        assert!(
            median("create_requests") >= REQUESTS_MIN,
            "{side}: {}",
            median("create_requests")
        );
        assert!(
            median("change_requests") >= 1.0,
            "{side}: {}",
            median("change_requests")
        );
        assert!(
            median("all_memory_mb") >= median("peak_memory_mb") / 2.0,
            "{side}"
        );
    }
    let rows = table.lines().filter(|line| {
        line.contains("created cluster") && !line.contains(" met") && !line.contains(" missed")
    });
    assert_eq!(rows.count(), 3, "{table}");
    assert!(
        table.contains("30 DatabaseClusters") && table.contains("kube-rs peer"),
        "{table}"
    );
    assert!(picture.unwrap().contains("kube-rs peer"));
}

#[test]
fn a_bench_of_nothing_is_refused() {
    let mut run = Command::new(env!("CARGO_BIN_EXE_benchmarks"));
    let output = run.args(["bench", "--rounds", "0"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing to measure"));
}
