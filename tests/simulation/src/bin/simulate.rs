//! Runs many seeds of the simulation and prints how many, how fast, and which failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use simulation::{Plan, Summary, simulate};

fn argument(position: usize, default: u64) -> u64 {
    let given = std::env::args().nth(position);
    given.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() -> std::process::ExitCode {
    let (seeds, first) = (argument(1, 1000), argument(2, 1));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(first);
    let began = Instant::now();
    let results: Vec<(Summary, Vec<String>)> = std::thread::scope(|scope| {
        let work = || {
            let (mut sum, mut failures) = (Summary::default(), Vec::new());
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + seeds {
                    return (sum, failures);
                }
                match simulate(Plan::default(), seed) {
                    Ok(summary) => sum = sum.and(summary),
                    Err(failure) => {
                        println!("{failure}");
                        failures.push(failure);
                    }
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().ok())
            .collect()
    });
    if results.len() < threads {
        println!("a thread ended before its seeds were run, see above: nothing is proven");
        return std::process::ExitCode::FAILURE;
    }
    let failed: usize = results.iter().map(|(_, failures)| failures.len()).sum();
    let sum = results
        .iter()
        .fold(Summary::default(), |sum, (summary, _)| sum.and(*summary));
    let seconds = began.elapsed().as_secs_f64();
    let per_minute = seeds as f64 / seconds * 60.0;
    println!(
        "{seeds} seeds in {seconds:.1} s on {threads} threads: {per_minute:.0} seeds a minute, {failed} failed"
    );
    println!("{sum:?}");
    if failed == 0 {
        std::process::ExitCode::SUCCESS
    } else {
        println!("replay one with: SIM_SEED=<seed> cargo test -p simulation one_seed");
        std::process::ExitCode::FAILURE
    }
}
