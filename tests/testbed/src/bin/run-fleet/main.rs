//! The demonstration: a control plane, three replicas, sample DatabaseClusters, and the fleet live until all are Ready.

mod folder;
mod hints;
mod journal;
mod restart;
mod screen;
mod snapshot;
mod view;

use std::cell::Cell;
use std::future::pending;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use clap::builder::FalseyValueParser;
use rustix::process::Signal;
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, load};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use folder::Folder;
use screen::Screen;
use snapshot::{Observer, Snapshot};

const NAMESPACES: [&str; 3] = ["shop", "billing", "analytics"];
const REDRAW_INTERVAL: Duration = Duration::from_millis(500);
/// How long `/metrics` may lag behind the API before the last frame is drawn all the same.
const FIGURES_LAG: Duration = Duration::from_secs(5);
const TERM_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs a fleet of operator replicas against a local control plane, with sample DatabaseClusters.
#[derive(Parser)]
struct Arguments {
    /// DatabaseClusters, over three namespaces.
    #[arg(long, env = "CLUSTERS", default_value_t = 60)]
    clusters: usize,
    /// Operator replicas.
    #[arg(long, env = "REPLICAS", default_value_t = 3)]
    replicas: usize,
    /// End with status 0 once all are Ready, with another one and the reason otherwise.
    #[arg(long, env = "ONCE", value_parser = FalseyValueParser::new())]
    once: bool,
    /// End when the parent process does.
    #[arg(long)]
    end_with_parent: bool,
    /// Seconds until all must be Ready; by default 120 and half a second for each cluster.
    #[arg(long, env = "READY_TIMEOUT_SECONDS")]
    ready_timeout_seconds: Option<u64>,
    /// Start the replicas that have ended again, in the fleet that runs already.
    #[arg(long)]
    start_ended: bool,
    /// Folder that names what runs, one fleet each; by default `.run` of the repository.
    #[arg(long, env = "RUN_FOLDER", hide = true)]
    folder: Option<PathBuf>,
}

impl Arguments {
    fn ready_timeout(&self) -> Duration {
        let default = 120 + self.clusters as u64 / 2;
        Duration::from_secs(self.ready_timeout_seconds.unwrap_or(default))
    }

    fn folder(&self) -> PathBuf {
        let default = || testbed::fleet::repository().join(".run");
        self.folder.clone().unwrap_or_else(default)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (what, start_ended) = match arguments.start_ended {
        true => ("make start-replicas", true),
        false => ("make run", false),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{what}: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        match start_ended {
            true => restart::request(&arguments.folder()).await,
            false => run(arguments).await,
        }
    });
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{what}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    if arguments.replicas == 0 {
        bail!("REPLICAS=0: at least one replica is needed");
    }
    let folder = Folder::take(arguments.folder())?;
    let all_ready = Cell::new(false);
    let once = arguments.once;
    // Whatever ends the demonstration, what was started is dropped, and with that ended.
    tokio::select! {
        result = demonstrate(&arguments, &folder, &all_ready) => result.map(|()| ExitCode::SUCCESS),
        signal = interrupted(arguments.end_with_parent) => {
            println!("\n{}: everything was taken down", signal?);
            let complete = all_ready.get() && !once;
            Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(130) })
        }
    }
}

/// Completes with the reason when the user, the system or the parent ends the program.
async fn interrupted(with_parent: bool) -> Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "the terminal was closed",
        () = parent_gone(with_parent) => "the parent process has ended",
    })
}

async fn parent_gone(watched: bool) {
    if !watched {
        pending::<()>().await;
    }
    let parent = rustix::process::getppid();
    while rustix::process::getppid() == parent {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn demonstrate(arguments: &Arguments, folder: &Folder, all_ready: &Cell<bool>) -> Result<()> {
    // From now on: without a handler the signal would end the program.
    let requests = signal(SignalKind::user_defined1())?;
    println!(
        "A control plane, {} operator replicas and {} DatabaseClusters, on this machine only.",
        arguments.replicas, arguments.clusters
    );
    let mut started = Instant::now();
    let control_plane = ControlPlane::start(ControlPlaneOptions {
        sharded_list_and_watch: true,
        lift_client_limits: true,
        ..ControlPlaneOptions::default()
    })
    .await?;
    step(
        &mut started,
        "control plane: etcd, API server, controller manager, scheduler, 3 fake nodes",
    );
    let options = FleetOptions {
        guard: true,
        ..FleetOptions::default()
    };
    let mut fleet = Fleet::install(&control_plane, options).await?;
    step(&mut started, "what the operator needs, from deploy/");
    for _ in 0..arguments.replicas {
        fleet.start_replica(&[]).await?;
    }
    let entries = folder.enter(&control_plane, &fleet)?;
    step(
        &mut started,
        "replicas, each with a token bound to a Pod of its own",
    );
    let mut screen = Screen::new();
    reach_ready(arguments, &control_plane, &fleet, &mut screen).await?;
    all_ready.set(true);
    if !arguments.once {
        println!("{}", hints::text(folder, &fleet, &NAMESPACES));
        stay_up(arguments, folder, &mut fleet, &mut screen, requests).await?;
    }
    drop(entries);
    take_down(fleet).await;
    control_plane.stop().await?;
    Ok(())
}

/// Shows the fleet, and starts replicas again on request, until the program is ended.
async fn stay_up(
    arguments: &Arguments,
    folder: &Folder,
    fleet: &mut Fleet<'_>,
    screen: &mut Screen,
    mut requests: Signals,
) -> Result<()> {
    let mut observer = Observer::new(arguments.clusters);
    let mut tick = tokio::time::interval(REDRAW_INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => screen.draw(&observer.snapshot(fleet).await),
            request = requests.recv() => {
                if request.is_none() {
                    bail!("the system delivers no more signals");
                }
                let report = restart::start_ended(fleet).await;
                screen.finish();
                println!("{report}");
                folder.write_journal(fleet)?;
            }
        }
    }
}

/// Creates the samples and shows the fleet until all are Ready.
async fn reach_ready(
    arguments: &Arguments,
    control_plane: &ControlPlane,
    fleet: &Fleet<'_>,
    screen: &mut Screen,
) -> Result<()> {
    println!(
        "  {} DatabaseClusters in the namespaces {}\n",
        arguments.clusters,
        NAMESPACES.join(", ")
    );
    let asked = Instant::now();
    let client = control_plane.client();
    let work = async {
        load::create(
            control_plane,
            load::samples(arguments.clusters, &NAMESPACES),
        )
        .await?;
        load::wait_all_ready(&client, arguments.clusters, arguments.ready_timeout()).await
    };
    let mut observer = Observer::new(arguments.clusters);
    let waited = run_until(work, &mut observer, fleet, screen).await?;
    if let Err(error) = waited {
        bail!("{error}\n{}", log_tails(fleet));
    }
    let seconds = asked.elapsed().as_secs_f64();
    show_last_frame(&mut observer, fleet, screen).await;
    screen.finish();
    println!(
        "\nAll {} DatabaseClusters are Ready, {seconds:.1} s after the first was asked for.\n",
        arguments.clusters
    );
    Ok(())
}

/// Redraws until `work` completes.
///
/// # Errors
/// When every replica has ended before, with the last lines of their logs.
async fn run_until<T>(
    work: impl Future<Output = T>,
    observer: &mut Observer,
    fleet: &Fleet<'_>,
    screen: &mut Screen,
) -> Result<T> {
    tokio::pin!(work);
    let mut tick = tokio::time::interval(REDRAW_INTERVAL);
    loop {
        tokio::select! {
            result = &mut work => return Ok(result),
            _ = tick.tick() => {
                screen.draw(&observer.snapshot(fleet).await);
                if fleet.alive().next().is_none() {
                    screen.finish();
                    bail!("every replica has ended:\n{}", log_tails(fleet));
                }
            }
        }
    }
}

fn step(started: &mut Instant, what: &str) {
    println!("  [{:4.1} s] {what}", started.elapsed().as_secs_f64());
    *started = Instant::now();
}

/// The table reads only `/metrics`, which may be a moment behind the API.
async fn show_last_frame(observer: &mut Observer, fleet: &Fleet<'_>, screen: &mut Screen) {
    let started = Instant::now();
    let mut snapshot: Snapshot = observer.snapshot(fleet).await;
    while snapshot.ready() < snapshot.expected && started.elapsed() < FIGURES_LAG {
        tokio::time::sleep(REDRAW_INTERVAL).await;
        snapshot = observer.snapshot(fleet).await;
    }
    screen.draw_last(&snapshot);
}

fn log_tails(fleet: &Fleet<'_>) -> String {
    let tail =
        |replica: &testbed::Replica| format!("--- {}\n{}", replica.name(), replica.log_tail());
    fleet
        .replicas()
        .iter()
        .map(tail)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Stops the replicas gracefully; those that do not end are killed when the fleet is dropped.
async fn take_down(mut fleet: Fleet<'_>) {
    let running: Vec<bool> = fleet
        .replicas()
        .iter()
        .map(|replica| replica.process().signal(Signal::TERM).is_ok())
        .collect();
    for (index, asked) in running.into_iter().enumerate() {
        if let Ok(replica) = fleet.replica_mut(index)
            && asked
            && let Err(error) = replica.wait_end(TERM_TIMEOUT).await
        {
            eprintln!("{error}");
        }
    }
}
