//! Runs scenarios, checks them, and reports: `chaos run`, `chaos check`, `chaos list`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use chaos::checker::{self, CheckResult};
use chaos::evidence::Evidence;
use chaos::progress::Progress;
use chaos::scenario::{Scenario, Set};
use chaos::{catalogue, report, runner};
use clap::{Parser, Subcommand, ValueEnum};
use maud::Markup;

/// Injects faults into a real fleet and checks what it did.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run scenarios: those that are named (by name or file), or a set.
    Run {
        /// Names of scenarios, or files.
        names: Vec<String>,
        /// The set, when none is named.
        #[arg(long, value_enum, default_value = "full")]
        set: SetName,
        /// Another seed than the file's.
        #[arg(long)]
        seed: Option<u64>,
        /// Number of runs; each uses the next seed.
        #[arg(long, default_value_t = 1)]
        repeat: u64,
        /// How many times all faults of a file are injected in one run.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=50))]
        times: u32,
        /// Seconds between these repetitions.
        #[arg(long, default_value_t = 25.0)]
        every_seconds: f64,
        /// Only the scenarios with failpoints, with the failpoints disabled: each has to pass.
        #[arg(long)]
        control: bool,
        /// Where evidence and reports go.
        #[arg(long, default_value = ".run/chaos")]
        out: PathBuf,
    },
    /// Check the evidence that earlier runs left in these folders.
    Check {
        /// Folders below the one of `run --out`.
        folders: Vec<PathBuf>,
        /// A file for the results, like `report.json`.
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// Print the results of one or several `report.json` as a table in Markdown.
    Table {
        /// Files that `run` wrote; of several runs of a scenario all count.
        reports: Vec<PathBuf>,
    },
    /// List all scenarios.
    List,
}

#[derive(Clone, Copy, ValueEnum)]
enum SetName {
    Ci,
    Quick,
    Full,
    Large,
}

#[tokio::main]
async fn main() -> ExitCode {
    chaos::exit_code("chaos", Box::pin(execute(Cli::parse().command))).await
}

async fn execute(command: Command) -> Result<bool> {
    match command {
        Command::List => {
            for scenario in catalogue::all()? {
                println!("{:28} {}", scenario.name, scenario.about);
            }
            Ok(true)
        }
        Command::Table { reports } => {
            let mut results = Vec::new();
            for path in reports {
                results.extend(report::read_json(&path)?);
            }
            print!("{}", report::table(&results));
            Ok(!results.is_empty())
        }
        Command::Check { folders, report } => {
            let mut results = Vec::new();
            for folder in folders {
                let (evidence, history) = Evidence::read(&folder)?;
                results.push(checker::check(&evidence, &history));
            }
            // Not `all`, which would leave out those after the first that failed.
            let failed = results.iter().filter(|one| !print_result(one)).count();
            if let Some(path) = report {
                report::write_json(&results.iter().collect::<Vec<_>>(), &path)?;
            }
            Ok(failed == 0 && !results.is_empty())
        }
        Command::Run {
            names,
            set,
            seed,
            repeat,
            times,
            every_seconds,
            control,
            out,
        } => {
            let mut scenarios = match names.is_empty() {
                true => catalogue::of_set(match set {
                    SetName::Ci => Set::Ci,
                    SetName::Quick => Set::Quick,
                    SetName::Full => Set::Full,
                    SetName::Large => Set::Large,
                })?,
                false => named(&names)?,
            };
            if control {
                scenarios = scenarios.iter().filter_map(Scenario::control).collect();
            }
            for scenario in &mut scenarios {
                scenario.seed = seed.unwrap_or(scenario.seed);
                *scenario = scenario.with_faults_again(times, every_seconds);
            }
            run_all(&scenarios, repeat, &out).await
        }
    }
}

fn named(names: &[String]) -> Result<Vec<Scenario>> {
    let all = catalogue::all()?;
    let find = |name: &String| match all.iter().find(|scenario| scenario.name == *name) {
        Some(scenario) => Ok(scenario.clone()),
        None => Scenario::read(&PathBuf::from(name)),
    };
    names.iter().map(find).collect()
}

/// The results of the runs so far.
#[derive(Default)]
struct Batch {
    results: Vec<(u64, CheckResult)>,
    sections: Vec<Markup>,
    /// Runs that ended before there was anything to check.
    not_run: Vec<String>,
}

async fn run_all(scenarios: &[Scenario], repeat: u64, out: &Path) -> Result<bool> {
    if scenarios.is_empty() || repeat == 0 {
        bail!("there is no scenario to run");
    }
    let started = Instant::now();
    let mut batch = Batch::default();
    for (number, scenario) in scenarios.iter().enumerate() {
        for round in 0..repeat {
            let mut scenario = scenario.clone();
            scenario.seed += round;
            println!(
                "\n{} of {}: {} (seed {})",
                number + 1,
                scenarios.len(),
                scenario.name,
                scenario.seed
            );
            println!("  {}", scenario.about);
            let folder = match repeat {
                1 => out.join(&scenario.name),
                _ => out.join(format!("{}-{round:02}", scenario.name)),
            };
            batch.run(&scenario, &folder).await;
            // After each run, so that a report exists when a later run fails.
            batch.write(out)?;
        }
    }
    Ok(batch.sum_up(started, out))
}

impl Batch {
    async fn run(&mut self, scenario: &Scenario, folder: &Path) {
        match runner::run(scenario, folder, Progress::new(false)).await {
            Ok(outcome) => {
                print_result(&outcome.result);
                let shards = checker::timeline(&outcome.evidence, &outcome.history);
                let (evidence, result) = (&outcome.evidence, &outcome.result);
                self.sections
                    .push(report::section(evidence, result, &shards));
                self.results.push((scenario.seed, outcome.result));
            }
            Err(error) => {
                println!("{}: NOT RUN: {error:#}", scenario.name);
                self.not_run.push(format!("{}: {error:#}", scenario.name));
            }
        }
    }

    fn write(&self, out: &Path) -> Result<()> {
        std::fs::create_dir_all(out)?;
        let page = report::page(&self.results, &self.sections, &self.not_run);
        report::write(&out.join("report.html"), &page)?;
        let results: Vec<&CheckResult> = self.results.iter().map(|(_, one)| one).collect();
        report::write_json(&results, &out.join("report.json"))
    }

    fn sum_up(&self, started: Instant, out: &Path) -> bool {
        let all = || self.results.iter().map(|(_, result)| result);
        let failed: Vec<&CheckResult> = all().filter(|result| !result.passed()).collect();
        println!(
            "\n{} runs in {:.0} s, {} with unexpected results; {}",
            self.results.len() + self.not_run.len(),
            started.elapsed().as_secs_f64(),
            failed.len() + self.not_run.len(),
            out.join("report.html").display()
        );
        for result in &failed {
            println!("  {}: {}", result.scenario, result.word());
        }
        for why in &self.not_run {
            println!("  not run: {why}");
        }
        let takeovers = all().flat_map(|one| one.stats.takeover_seconds.iter().copied());
        let takeovers: Vec<f64> = takeovers.collect();
        if !takeovers.is_empty() {
            println!(
                "  takeover of a shard: {}",
                checker::distribution(&takeovers)
            );
        }
        failed.is_empty() && self.not_run.is_empty()
    }
}

fn print_result(result: &CheckResult) -> bool {
    for line in report::lines(result) {
        println!("{line}");
    }
    result.passed()
}
