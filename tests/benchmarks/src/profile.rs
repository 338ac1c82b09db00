//! Where one replica's CPU time and memory go: programs side by side, with `perf` or `heaptrack` on request.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use testbed::process::{ProcessId, ProcessUsage};
use testbed::{Fleet, FleetOptions, load, shards};

use super::{BALANCE_TIMEOUT, NAMESPACES, READY_TIMEOUT, control_plane};

/// Work after the last Ready ends within this time.
const TAIL: Duration = Duration::from_secs(5);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Samples per second; not a divisor of the timers' periods.
const SAMPLES_PER_SECOND: &str = "1999";
/// Functions below this share are left out of the table.
const PERCENT_MIN: &str = "0.3";
const HEAPTRACK: &str = "/usr/lib/heaptrack/libheaptrack_preload.so";
const INTERPRET: &str = "/usr/lib/heaptrack/libexec/heaptrack_interpret";

/// What records a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profiler {
    /// Nothing: CPU time and memory of the process alone.
    None,
    /// `perf record`: where the CPU time goes.
    Perf,
    /// `heaptrack`: which code allocates, and what is still allocated in the end. Needs a program with the C
    /// library's allocator.
    Heap,
}

/// Creates and changes DatabaseClusters with each program in turn, `rounds` times.
pub(crate) async fn profile(
    clusters: usize,
    rounds: usize,
    profiler: Profiler,
    folder: &Path,
    programs: &[PathBuf],
) -> Result<()> {
    if clusters == 0 || rounds == 0 {
        bail!("CLUSTERS={clusters}, ROUNDS={rounds}: there is nothing to measure");
    }
    profiler.check()?;
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let operator = testbed::fleet::operator_binary();
    let programs = match programs {
        [] => vec![operator.context("build the operator first")?],
        some => some.to_vec(),
    };
    println!("{clusters} DatabaseClusters, one replica with all shards");
    println!(
        "{:32} {:>12} {:>12} {:>10} {:>12} {:>10}",
        "program", "created, ms", "changed, ms", "wall, s", "at rest, MB", "peak, MB"
    );
    for round in 0..rounds {
        for program in &programs {
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            let profile = folder.join(format!("profile-{name}-{round}"));
            let used = measure(clusters, profiler, program, &profile).await;
            let used = used.with_context(|| format!("measure {}", program.display()))?;
            println!("{name:32} {used}");
        }
    }
    Ok(())
}

/// What one program has used.
struct Used {
    create_ms: f64,
    change_ms: f64,
    /// How long both took: on a slow machine, more of the CPU time is that of a replica at rest.
    wall: Duration,
    end: ProcessUsage,
}

impl std::fmt::Display for Used {
    #[allow(clippy::cast_precision_loss)]
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let (rest, peak) = (self.end.resident_bytes, self.end.peak_resident_bytes);
        write!(
            f,
            "{:12.2} {:12.2} {:10.1} {:12.1} {:10.1}",
            self.create_ms,
            self.change_ms,
            self.wall.as_secs_f64(),
            megabytes(rest),
            megabytes(peak)
        )
    }
}

async fn measure(
    clusters: usize,
    profiler: Profiler,
    program: &Path,
    profile: &Path,
) -> Result<Used> {
    let control_plane = control_plane().await?;
    let mut options = FleetOptions {
        binary: Some(program.to_owned()),
        ..FleetOptions::default()
    };
    let heap = profile.with_extension("heap.raw");
    if profiler == Profiler::Heap {
        let output = heap.display().to_string();
        options.extra_env = vec![
            ("LD_PRELOAD".to_owned(), HEAPTRACK.to_owned()),
            ("DUMP_HEAPTRACK_OUTPUT".to_owned(), output),
        ];
    }
    let mut fleet = Fleet::start(&control_plane, 1, options).await?;
    shards::wait_balanced(&fleet, BALANCE_TIMEOUT).await?;
    let process = fleet.replica(0)?.process();
    let recording = match profiler {
        Profiler::Perf => Some(Recording::start(process, profile)?),
        Profiler::None | Profiler::Heap => None,
    };
    let client = control_plane.client();
    let (started, before) = (Instant::now(), process.usage()?);
    let (created, ready) = tokio::join!(
        load::create(&control_plane, load::samples(clusters, &NAMESPACES)),
        load::wait_all_ready(&client, clusters, READY_TIMEOUT)
    );
    created?;
    ready?;
    tokio::time::sleep(TAIL).await;
    let created = process.usage()?;
    if let Some(recording) = recording {
        recording.end()?;
    }
    let all = load::all_clusters(client.clone());
    let all = all.list(&ListParams::default()).await?.items;
    let keys = all
        .iter()
        .map(|object| (object.namespace().unwrap_or_default(), object.name_any()));
    let between = process.usage()?;
    let spec = json!({"spec": {"resources": {"cpu": "300m"}}});
    load::patch(&client, keys.collect(), spec).await?;
    load::wait_all_ready(&client, clusters, READY_TIMEOUT).await?;
    tokio::time::sleep(TAIL).await;
    let end = process.usage()?;
    fleet.replica_mut(0)?.term(STOP_TIMEOUT).await?;
    if profiler == Profiler::Heap {
        heap_table(&heap, profile)?;
    }
    let count = f64::from(u32::try_from(clusters)?);
    Ok(Used {
        create_ms: (created.cpu_seconds - before.cpu_seconds) * 1e3 / count,
        wall: started.elapsed(),
        change_ms: (end.cpu_seconds - between.cpu_seconds) * 1e3 / count,
        end,
    })
}

impl Profiler {
    /// # Errors
    /// When its program is missing, with what to install.
    fn check(self) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Perf => {
                let found = Command::new("perf").arg("--version").output();
                let found = found.is_ok_and(|output| output.status.success());
                ensure!(
                    found,
                    "perf is missing or does not fit the kernel: install the package linux-perf (Debian) or \
                     linux-tools-generic (Ubuntu), and set kernel.perf_event_paranoid to 2 or less"
                );
                Ok(())
            }
            Self::Heap => {
                let all = [HEAPTRACK, INTERPRET].map(|file| Path::new(file).exists());
                ensure!(
                    all == [true, true],
                    "heaptrack is missing: install the package heaptrack"
                );
                Ok(())
            }
        }
    }
}

/// `perf record` of a process.
struct Recording {
    perf: Child,
    data: PathBuf,
    profile: PathBuf,
}

impl Recording {
    fn start(process: ProcessId, profile: &Path) -> Result<Self> {
        let data = profile.with_extension("perf.data");
        let perf = Command::new("perf")
            .args(["record", "--quiet", "--call-graph", "dwarf,16384"])
            .args([
                "-F",
                SAMPLES_PER_SECOND,
                "-p",
                &process.pid.to_string(),
                "-o",
            ])
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(File::create(profile.with_extension("perf.log"))?)
            .spawn()
            .context("start perf")?;
        Ok(Self {
            perf,
            data,
            profile: profile.to_owned(),
        })
    }

    /// Ends the recording, and writes two tables: by function alone, and with everything that it calls.
    fn end(mut self) -> Result<()> {
        // perf writes its data when it is interrupted.
        ProcessId::of(self.perf.id())?.signal(testbed::process::Signal::INT)?;
        self.perf.wait().context("wait for perf")?;
        for (table, order) in [("self", "--no-children"), ("total", "--children")] {
            let path = self.profile.with_extension(format!("{table}.txt"));
            let status = Command::new("perf")
                .args(["report", "--stdio", "--no-inline", order, "-g", "none"])
                .args(["--sort", "symbol", "--percent-limit", PERCENT_MIN, "-i"])
                .arg(&self.data)
                .stdout(File::create(&path)?)
                .stderr(Stdio::null())
                .status()
                .context("run perf report")?;
            ensure!(status.success(), "perf report failed: {status}");
            eprintln!("written: {}", path.display());
        }
        Ok(())
    }
}

fn heap_table(raw: &Path, profile: &Path) -> Result<()> {
    let data = profile.with_extension("heap.data");
    let status = Command::new(INTERPRET)
        .stdin(File::open(raw).with_context(|| format!("open {}", raw.display()))?)
        .stdout(File::create(&data)?)
        .status()
        .context("run heaptrack_interpret")?;
    ensure!(status.success(), "heaptrack_interpret failed: {status}");
    std::fs::remove_file(raw)?;
    let path = profile.with_extension("heap.txt");
    let status = Command::new("heaptrack_print")
        .arg(&data)
        .stdout(File::create(&path)?)
        .status()
        .context("run heaptrack_print")?;
    ensure!(status.success(), "heaptrack_print failed: {status}");
    eprintln!("written: {}", path.display());
    Ok(())
}
