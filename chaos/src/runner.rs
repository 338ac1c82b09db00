//! Runs one scenario: a control plane, a fleet, users, faults at their times, and then quiet.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use testbed::fleet::{ReplicaOptions, failpoints_binary};
use testbed::{AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, load, shards};
use tokio::time::{Instant, sleep, sleep_until};

use crate::checker::{self, CheckResult, History};
use crate::environment::{Environment, READY_TIMEOUT};
use crate::evidence::{Evidence, LastState, Micros, now_micros};
use crate::faults::{self, Active};
use crate::progress::Progress;
use crate::recorder::{Recorder, Targets};
use crate::scenario::Scenario;
use crate::state;
use crate::users::{NAMESPACES, Users, wanted_keys};

const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);
const FAILPOINTS_TIMEOUT: Duration = Duration::from_secs(15);
const COAXED_MAX: usize = 3;
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Between convergence and the quiet time.
const BREATH: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_secs(8);
/// Clusters whose objects another manager marks.
const MARKED_MAX: usize = 20;

/// What a run left.
pub struct Outcome {
    /// The input of the checker.
    pub evidence: Evidence,
    /// The audit log.
    pub history: History,
    /// What the checker found.
    pub result: CheckResult,
}

/// Runs a scenario and checks it; the evidence is kept in `folder`.
///
/// # Errors
/// When not even the evidence could be gathered.
pub async fn run(scenario: &Scenario, folder: &Path, progress: Progress) -> Result<Outcome> {
    let control_plane = ControlPlane::start(ControlPlaneOptions {
        audit: AuditLevel::RequestResponse,
        lift_client_limits: true,
        sharded_list_and_watch: scenario.fleet.sharded_watch,
        statefulset_stage: !scenario.fleet.pods,
        ..ControlPlaneOptions::default()
    })
    .await?;
    progress.report("control plane: up");
    let evidence = experiment(scenario, &control_plane, folder, progress.clone()).await?;
    evidence.write(folder, &control_plane.audit_log()?)?;
    let history = History::from_log(&control_plane.audit_log()?)?;
    control_plane.stop().await?;
    let result = checker::check(&evidence, &history);
    Ok(Outcome {
        evidence,
        history,
        result,
    })
}

async fn experiment(
    scenario: &Scenario,
    control_plane: &ControlPlane,
    folder: &Path,
    progress: Progress,
) -> Result<Evidence> {
    let mut environment = enter(scenario, control_plane, progress).await?;
    let marked = settle(&mut environment).await?;
    let also = scenario
        .expect
        .alert
        .iter()
        .flat_map(|alert| [Some(alert.metric.clone()), alert.share_of.clone()])
        .flatten()
        .collect();
    let recorder = Recorder::begin(environment.targets.clone(), also);
    let mut evidence = empty(scenario);
    let asking = environment.users.begin(&scenario.load);
    let problem = go_through(&mut environment, &mut evidence).await.err();
    if problem.is_none() {
        sleep(Duration::from_secs_f64(scenario.load.after_seconds)).await;
    }
    asking.stop().await;
    evidence.load_ended = now_micros();
    evidence.problem = problem.map(|error| format!("{error:#}"));
    wait_for_convergence(&mut environment, &mut evidence, &marked).await?;
    evidence.samples = recorder.end().await;
    evidence.lives.clone_from(&environment.lives);
    keep_logs(&environment, folder)?;
    Ok(evidence)
}

/// For finding the cause of a verdict; the checker does not read them.
fn keep_logs(environment: &Environment<'_>, folder: &Path) -> Result<()> {
    let what = || format!("keep the replicas' logs in {}", folder.display());
    std::fs::create_dir_all(folder).with_context(what)?;
    for replica in environment.fleet.replicas() {
        let name = format!("{}.log", replica.name());
        std::fs::copy(replica.log(), folder.join(name)).with_context(what)?;
    }
    Ok(())
}

fn empty(scenario: &Scenario) -> Evidence {
    Evidence {
        scenario: scenario.clone(),
        begun: now_micros(),
        load_ended: 0,
        converged: None,
        quiet: None,
        lives: Vec::new(),
        faults: Vec::new(),
        asked: crate::evidence::Asked::default(),
        last: LastState::default(),
        samples: Vec::new(),
        problem: None,
    }
}

/// Installs and starts all replicas.
async fn enter<'a>(
    scenario: &'a Scenario,
    control_plane: &'a ControlPlane,
    progress: Progress,
) -> Result<Environment<'a>> {
    let failpoints = scenario.failpoints.as_ref();
    let switches = failpoints
        .map(|failpoints| failpoints.switches.clone())
        .unwrap_or_default();
    let mut extra_args = scenario.fleet.args.clone();
    extra_args.extend([
        "--lease-duration".to_owned(),
        format!("{}s", scenario.fleet.lease_seconds),
    ]);
    let mut options = FleetOptions {
        extra_args,
        without_fence: failpoints.is_some_and(|failpoints| failpoints.without_fence),
        ..FleetOptions::default()
    };
    if scenario.needs_failpoints_program() {
        options.binary = Some(failpoints_binary()?);
    }
    if !switches.is_empty() {
        options
            .extra_env
            .push(("DBC_FAILPOINTS".into(), switches.join(",")));
    }
    let mut environment = Environment {
        control_plane,
        fleet: Fleet::install(control_plane, options).await?,
        proxies: Vec::new(),
        users: Users::new(control_plane.client(), scenario.seed),
        scenario,
        rng: fastrand::Rng::with_seed(scenario.seed),
        lives: Vec::new(),
        targets: Targets::default(),
        progress,
        revision: 1,
    };
    for _ in 0..scenario.fleet.replicas {
        environment.start(ReplicaOptions::default()).await?;
    }
    environment.fleet.wait_ready(READY_TIMEOUT).await?;
    // The first replica holds everything for a while: objects created meanwhile would be handed over at once.
    balance(&environment).await?;
    environment
        .progress
        .report(format!("{} replicas: ready", scenario.fleet.replicas));
    Ok(environment)
}

/// Waits until each replica holds its part. A fleet with failpoints gets some time, and need not get there.
async fn balance(environment: &Environment<'_>) -> Result<()> {
    if environment.scenario.failpoints.is_none() {
        return Ok(shards::wait_balanced(&environment.fleet, SETTLE_TIMEOUT).await?);
    }
    if let Err(error) = shards::wait_balanced(&environment.fleet, FAILPOINTS_TIMEOUT).await {
        environment
            .progress
            .report(format!("continues all the same: {error}"));
    }
    Ok(())
}

/// Creates the clusters, waits until all is at rest, and lets another manager mark some objects; returns their uids.
async fn settle(environment: &mut Environment<'_>) -> Result<BTreeSet<String>> {
    let client = environment.control_plane.client();
    let count = environment.scenario.load.clusters;
    let clusters = load::samples(count, &NAMESPACES);
    environment.users.own(&clusters);
    load::create(environment.control_plane, clusters).await?;
    match environment.scenario.failpoints {
        Some(_) => prime(environment).await?,
        None => drop(load::wait_all_ready(&client, count, SETTLE_TIMEOUT * 3).await?),
    }
    balance(environment).await?;
    let keys = wanted_keys(&environment.users.asked());
    let few: Vec<_> = keys.into_iter().take(MARKED_MAX).collect();
    environment.users.mark(&few).await?;
    load::wait_all_ready(&client, count, SETTLE_TIMEOUT).await?;
    environment
        .progress
        .report(format!("{count} clusters: Ready; users begin"));
    state::marked(&client).await
}

/// What a failpoint missed before the first fault is no finding: users change something in all clusters, until
/// each is Ready.
async fn prime(environment: &Environment<'_>) -> Result<()> {
    let (client, count) = (
        environment.control_plane.client(),
        environment.scenario.load.clusters,
    );
    for _ in 0..COAXED_MAX {
        let Err(error) = load::wait_all_ready(&client, count, FAILPOINTS_TIMEOUT).await else {
            return Ok(());
        };
        environment
            .progress
            .report(format!("nudges all clusters: {error}"));
        environment.users.nudge().await?;
    }
    load::wait_all_ready(&client, count, FAILPOINTS_TIMEOUT).await?;
    Ok(())
}

/// A fault that begins, or one that ends.
enum Step {
    Begin(usize),
    End(Box<Active>),
}

/// All faults at their times.
async fn go_through(environment: &mut Environment<'_>, evidence: &mut Evidence) -> Result<()> {
    let began = Instant::now();
    let at = |seconds: f64| began + Duration::from_secs_f64(seconds);
    let scenario = environment.scenario;
    let mut steps: Vec<(Instant, Step)> = scenario
        .faults
        .iter()
        .enumerate()
        .map(|(index, fault)| (at(fault.at_seconds), Step::Begin(index)))
        .collect();
    while !steps.is_empty() {
        // The first of those that are due first: faults that begin together begin in the order of the file.
        let first = (0..steps.len())
            .min_by_key(|index| steps.get(*index).map(|(due, _)| *due))
            .unwrap_or(0);
        let (due, step) = steps.remove(first);
        sleep_until(due).await;
        match step {
            Step::Begin(index) => {
                let Some(fault) = scenario.faults.get(index) else {
                    continue;
                };
                let active = faults::begin(environment, fault)
                    .await
                    .with_context(|| format!("begin {}", fault.label()))?;
                let over = Instant::now() + Duration::from_secs_f64(fault.seconds());
                steps.push((over, Step::End(Box::new(active))));
            }
            Step::End(active) => {
                let label = active.injected.kind.clone();
                let injected = faults::end(environment, *active)
                    .await
                    .with_context(|| format!("end {label}"))?;
                environment.progress.report(format!(
                    "over: {} (bit {} times)",
                    injected.what, injected.bites
                ));
                evidence.faults.push(injected);
            }
        }
    }
    evidence.faults.sort_by_key(|fault| fault.from);
    Ok(())
}

/// Waits for convergence, and then checks that the fleet stays quiet.
async fn wait_for_convergence(
    environment: &mut Environment<'_>,
    evidence: &mut Evidence,
    marked: &BTreeSet<String>,
) -> Result<()> {
    let client = environment.control_plane.client();
    evidence.asked = environment.users.asked();
    let started = Instant::now();
    let timeout = Duration::from_secs_f64(environment.scenario.expect.patience_seconds);
    let mut reported = Instant::now();
    loop {
        // While an API server is starting it may reject even an administrator.
        match state::look(&client, |uid| marked.contains(uid)).await {
            Ok(last) => {
                let missing = checker::missing(&evidence.asked, &last);
                evidence.last = last;
                if missing.is_empty() {
                    evidence.converged = Some(now_micros());
                    break;
                }
                if reported.elapsed() > Duration::from_secs(5) {
                    reported = Instant::now();
                    environment.progress.report(format!(
                        "{} differences left, such as: {}",
                        missing.len(),
                        missing[0]
                    ));
                }
            }
            Err(error) => environment.progress.report(format!("{error:#}")),
        }
        if started.elapsed() > timeout {
            environment.progress.report("not converged in time");
            return Ok(());
        }
        sleep(CHECK_INTERVAL).await;
    }
    environment.progress.report(format!(
        "converged {:.1} s after the users' last change",
        started.elapsed().as_secs_f64()
    ));
    if let Err(error) = balance(environment).await {
        evidence.problem.get_or_insert(error.to_string());
        return Ok(());
    }
    // A failpoint is found before that, or not at all.
    if environment.scenario.failpoints.is_none() {
        sleep(BREATH).await;
        evidence.quiet = Some(quiet().await);
    }
    evidence.last = state::look(&client, |uid| marked.contains(uid)).await?;
    Ok(())
}

async fn quiet() -> (Micros, Micros) {
    let from = now_micros();
    sleep(QUIET).await;
    (from, now_micros())
}
