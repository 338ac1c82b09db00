//! One more replica whose clocks are off: a time namespace shifts the boot-time clock, libfaketime the wall clock.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use testbed::fleet::{OPERATOR_NAMESPACE, ReplicaOptions};

use super::Active;
use crate::arena::{Arena, READY_TIMEOUT};
use crate::evidence::{now_micros, seconds};

const LIBRARY: &str = "faketime/libfaketime.so.1";
const FOLDERS: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
];

pub(super) async fn begin(
    arena: &mut Arena<'_>,
    active: &mut Active,
    wall_seconds: f64,
    boot_seconds: u64,
    rate: f64,
) -> Result<()> {
    let mut options = ReplicaOptions::default();
    if boot_seconds > 0 {
        let words = ["unshare", "--time", "--boottime", &boot_seconds.to_string()];
        options.through = words.map(str::to_owned).to_vec();
    }
    let wall_is_off = wall_seconds != 0.0 || (rate - 1.0).abs() > 1e-9;
    if wall_is_off {
        let library = library()?;
        let mut faked = format!("{wall_seconds:+}s");
        if (rate - 1.0).abs() > 1e-9 {
            faked = format!("{faked} x{rate}");
        }
        options
            .env
            .push(("LD_PRELOAD".into(), library.display().to_string()));
        options.env.push(("FAKETIME".into(), faked));
    }
    let index = arena.start(options).await?;
    let replica = arena.fleet.replica(index)?;
    replica.wait_ready(READY_TIMEOUT).await?;
    let pod = replica.name().to_owned();
    active.injected.what = format!(
        "{pod} comes, its wall clock {wall_seconds:+} s and its boot-time clock {boot_seconds:+} s off, rate {rate}"
    );
    active.injected.bites = 0;
    if boot_seconds > 0 {
        must_be_shifted(replica.pid(), boot_seconds)?;
        active.injected.bites += 1;
    }
    if wall_is_off {
        let off = wall_clock_off(arena, &pod).await?;
        if wall_seconds != 0.0 && (off - wall_seconds).abs() > wall_seconds.abs() / 2.0 {
            bail!(
                "the wall clock of {pod} is {off:.1} s off, not {wall_seconds}: libfaketime does not work here"
            );
        }
        active.injected.bites += 1;
    }
    active.injected.pods = vec![pod];
    Ok(())
}

fn library() -> Result<PathBuf> {
    let all = FOLDERS.iter().map(|folder| Path::new(folder).join(LIBRARY));
    let found = all.into_iter().find(|path| path.is_file());
    found.context("libfaketime is missing: install it (Debian: apt-get install libfaketime)")
}

/// The kernel's own word on how far the clock of a process is shifted.
fn must_be_shifted(pid: u32, wanted: u64) -> Result<()> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/timens_offsets"))
        .context("read the clock's offset")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("boottime"))
        .unwrap_or_default();
    let found = line
        .split_whitespace()
        .next()
        .and_then(|word| word.parse::<u64>().ok());
    if found != Some(wanted) {
        bail!("the boot-time clock of process {pid} is {found:?} s off, not {wanted}");
    }
    Ok(())
}

/// How far the time that the replica writes into its Lease is from ours.
async fn wall_clock_off(arena: &Arena<'_>, pod: &str) -> Result<f64> {
    let leases: Api<Lease> = Api::namespaced(arena.control_plane.client(), OPERATOR_NAMESPACE);
    let lease = leases.get(&format!("databasecluster-member-{pod}")).await?;
    let renewed = lease
        .spec
        .and_then(|spec| spec.renew_time)
        .context("its Lease has no renewTime")?;
    Ok(seconds(renewed.0.as_microsecond() - now_micros()))
}
