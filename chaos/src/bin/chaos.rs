//! Runs scenarios, judges them, and reports: `chaos run`, `chaos judge`, `chaos list`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use chaos::evidence::Evidence;
use chaos::judge::{self, Judgement};
use chaos::progress::Progress;
use chaos::scenario::{Scenario, Set};
use chaos::{catalogue, report, runner};
use clap::{Parser, Subcommand, ValueEnum};

/// Breaks a real fleet and lets a judge decide.
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
        /// How often; each time with the next seed.
        #[arg(long, default_value_t = 1)]
        repeat: u64,
        /// Where evidence and reports go.
        #[arg(long, default_value = ".run/chaos")]
        out: PathBuf,
    },
    /// Judge what earlier runs left in these folders.
    Judge {
        /// Folders below the one of `run --out`.
        folders: Vec<PathBuf>,
    },
    /// List all scenarios.
    List,
}

#[derive(Clone, Copy, ValueEnum)]
enum SetName {
    Ci,
    Quick,
    Full,
}

#[tokio::main]
async fn main() -> ExitCode {
    let work = execute(Cli::parse().command);
    let result = tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => return ExitCode::from(130),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn execute(command: Command) -> Result<bool> {
    match command {
        Command::List => {
            for scenario in catalogue::all()? {
                println!("{:28} {}", scenario.name, scenario.about);
            }
            Ok(true)
        }
        Command::Judge { folders } => {
            let mut passed = !folders.is_empty();
            for folder in folders {
                let (evidence, history) = Evidence::read(&folder)?;
                passed &= tell(&judge::judge(&evidence, &history));
            }
            Ok(passed)
        }
        Command::Run {
            names,
            set,
            seed,
            repeat,
            out,
        } => {
            let mut scenarios = match names.is_empty() {
                true => catalogue::of_set(match set {
                    SetName::Ci => Set::Ci,
                    SetName::Quick => Set::Quick,
                    SetName::Full => Set::Full,
                })?,
                false => named(&names)?,
            };
            for scenario in &mut scenarios {
                scenario.seed = seed.unwrap_or(scenario.seed);
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

async fn run_all(scenarios: &[Scenario], repeat: u64, out: &std::path::Path) -> Result<bool> {
    if scenarios.is_empty() || repeat == 0 {
        bail!("there is no scenario to run");
    }
    let started = Instant::now();
    let mut judgements = Vec::new();
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
            let outcome = runner::run(&scenario, &folder, Progress::new(false)).await?;
            tell(&outcome.judgement);
            judgements.push(outcome.judgement);
        }
    }
    report::write_json(&judgements, &out.join("report.json"))?;
    Ok(sum_up(&judgements, started, out))
}

fn tell(judgement: &Judgement) -> bool {
    for line in report::lines(judgement) {
        println!("{line}");
    }
    judgement.passed()
}

fn sum_up(judgements: &[Judgement], started: Instant, out: &std::path::Path) -> bool {
    let failed: Vec<&Judgement> = judgements
        .iter()
        .filter(|judgement| !judgement.passed())
        .collect();
    println!(
        "\n{} runs in {:.0} s, {} not as they should be; {}",
        judgements.len(),
        started.elapsed().as_secs_f64(),
        failed.len(),
        out.display()
    );
    for judgement in &failed {
        println!("  {}: {}", judgement.scenario, judgement.word());
    }
    let takeovers: Vec<f64> = judgements
        .iter()
        .flat_map(|j| j.figures.takeover_seconds.iter().copied())
        .collect();
    if !takeovers.is_empty() {
        println!("  takeover of a shard: {}", judge::distribution(&takeovers));
    }
    failed.is_empty()
}
