//! One more replica whose clocks are off: a time namespace of the kernel shifts its monotonic and boot-time clocks, or
//! it reads its boot-time clock at another rate, by a failpoint.

use anyhow::{Context, Result, bail};
use testbed::fleet::ReplicaOptions;
use testbed::shards;

use super::Active;
use crate::environment::{Environment, READY_TIMEOUT};
use crate::scenario::Rate;

pub(super) async fn begin(
    environment: &mut Environment<'_>,
    active: &mut Active,
    boot_seconds: u64,
    rate: Option<Rate>,
) -> Result<()> {
    match rate {
        None => shifted(environment, active, boot_seconds).await,
        Some(rate) => drifting(environment, active, rate).await,
    }
}

async fn drifting(
    environment: &mut Environment<'_>,
    active: &mut Active,
    rate: Rate,
) -> Result<()> {
    let (switch, word) = match rate {
        Rate::Slow => ("slow-clock", "slow"),
        Rate::Fast => ("fast-clock", "fast"),
    };
    let options = ReplicaOptions {
        env: vec![("DBC_FAILPOINTS".to_owned(), switch.to_owned())],
        ..ReplicaOptions::default()
    };
    let index = environment.start(options).await?;
    let replica = environment.fleet.replica(index)?;
    replica.wait_ready(READY_TIMEOUT).await?;
    // A program without failpoints ignores the variable.
    let log = std::fs::read_to_string(replica.log()).context("read the replica's log")?;
    if !log.contains("failpoints are active") {
        bail!("{}: the clock failpoint is not active", replica.name());
    }
    let pod = replica.name().to_owned();
    // One that holds nothing has nothing to stop.
    shards::wait_balanced(&environment.fleet, READY_TIMEOUT).await?;
    active.injected.what = format!("{pod} comes, its clock a twentieth too {word}");
    active.injected.pods = vec![pod];
    Ok(())
}

async fn shifted(
    environment: &mut Environment<'_>,
    active: &mut Active,
    boot_seconds: u64,
) -> Result<()> {
    let words = ["unshare", "--time", "--boottime", &boot_seconds.to_string()];
    let options = ReplicaOptions {
        through: words.map(str::to_owned).to_vec(),
        ..ReplicaOptions::default()
    };
    let index = environment.start(options).await?;
    let replica = environment.fleet.replica(index)?;
    replica.wait_ready(READY_TIMEOUT).await?;
    let pod = replica.name().to_owned();
    must_be_shifted(replica.pid(), boot_seconds)?;
    active.injected.what = format!("{pod} comes, its boot-time clock {boot_seconds} s ahead");
    active.injected.pods = vec![pod];
    Ok(())
}

/// How far the clock of a process is shifted, as the kernel reports it.
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
