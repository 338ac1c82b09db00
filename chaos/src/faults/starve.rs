//! Not enough CPU or memory for one replica, by a control group of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Active, Undo};
use crate::environment::Environment;
use crate::evidence::{Injected, now_micros};
use crate::scenario::Who;

const ROOT: &str = "/sys/fs/cgroup";
const PERIOD_MICROS: u64 = 100_000;
const KIB: u64 = 1024;

/// The created groups, and the group of the process before.
pub(super) struct Group {
    made: Vec<Made>,
}

struct Made {
    folder: PathBuf,
    parent: PathBuf,
}

pub(super) async fn begin(
    environment: &mut Environment<'_>,
    active: &mut Active,
    who: Who,
    cpu_percent: u32,
    memory_kib: u64,
) -> Result<()> {
    let chosen = environment.choose(who).await?;
    let injected = &mut active.injected;
    injected.pods = environment.names(&chosen);
    let cpu = if cpu_percent > 0 {
        format!("{cpu_percent} % of a CPU")
    } else {
        String::new()
    };
    let memory = if memory_kib > 0 {
        format!("{memory_kib} KiB more memory")
    } else {
        String::new()
    };
    injected.what = format!("{} gets {cpu}{memory}", injected.pods.join(", "));
    injected.delays_requests = true;
    injected.from = now_micros();
    let mut group = Group { made: Vec::new() };
    for index in &chosen {
        let pid = environment.fleet.replica(*index)?.pid();
        if cpu_percent > 0 {
            let quota = PERIOD_MICROS * u64::from(cpu_percent) / 100;
            let limits = [
                ("cpu.cfs_period_us", PERIOD_MICROS.to_string()),
                ("cpu.cfs_quota_us", quota.to_string()),
            ];
            let limits_v2 = [("cpu.max", format!("{quota} {PERIOD_MICROS}"))];
            group.made.push(confine(pid, "cpu", &limits, &limits_v2)?);
        }
        if memory_kib > 0 {
            let bytes = (memory_kib * KIB).to_string();
            let limits = [("memory.limit_in_bytes", bytes.clone())];
            let limits_v2 = [("memory.max", bytes)];
            group
                .made
                .push(confine(pid, "memory", &limits, &limits_v2)?);
        }
    }
    active.undo = Undo::Feed(chosen, group);
    Ok(())
}

pub(super) fn end(
    environment: &mut Environment<'_>,
    injected: &mut Injected,
    who: &[usize],
    group: &Group,
) -> Result<()> {
    injected.bites = group.made.iter().map(Made::bites).sum();
    for made in &group.made {
        made.release();
    }
    for index in who {
        if !environment.fleet.replica(*index)?.is_alive() {
            environment.died(*index, now_micros())?;
        }
    }
    injected.recover_from = Some(now_micros());
    Ok(())
}

fn confine(
    pid: u32,
    controller: &str,
    limits: &[(&str, String)],
    limits_v2: &[(&str, String)],
) -> Result<Made> {
    let (parent, unified) = group_of(pid, controller)?;
    let folder = parent.join(format!("databasecluster-chaos-{pid}"));
    let what = || {
        format!(
            "limit {controller} by {} (this needs root)",
            folder.display()
        )
    };
    fs::create_dir(&folder).with_context(what)?;
    let made = Made {
        folder: folder.clone(),
        parent,
    };
    for (file, value) in if unified { limits_v2 } else { limits } {
        if let Err(error) = fs::write(folder.join(file), value) {
            made.release();
            return Err(error).with_context(what);
        }
    }
    if let Err(error) = fs::write(folder.join("cgroup.procs"), pid.to_string()) {
        made.release();
        return Err(error).with_context(what);
    }
    Ok(made)
}

/// The group of a process, and whether the hierarchy is the unified one.
fn group_of(pid: u32, controller: &str) -> Result<(PathBuf, bool)> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/cgroup")).context("find the control group")?;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(names), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let path = path.trim_start_matches('/');
        if names.split(',').any(|name| name == controller) {
            for folder in [controller, names] {
                let group = Path::new(ROOT).join(folder).join(path);
                if group.is_dir() {
                    return Ok((group, false));
                }
            }
        }
        if names.is_empty() {
            let group = Path::new(ROOT).join(path);
            let there = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
            if there.split_whitespace().any(|name| name == controller) {
                return Ok((group, true));
            }
        }
    }
    bail!("this machine has no control group for {controller}")
}

impl Made {
    /// How often the limit took effect: periods without CPU, or allocations at the memory limit.
    fn bites(&self) -> u64 {
        let text = |file: &str| fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
        let stat = text("cpu.stat");
        let throttled = stat
            .lines()
            .find_map(|line| line.strip_prefix("nr_throttled "));
        let throttled = throttled.map_or(0, |count| number(count.to_owned()));
        let peak = fs::read_to_string(self.folder.join("memory.events")).unwrap_or_default();
        let at_limit = peak.lines().find_map(|line| line.strip_prefix("max "));
        throttled
            + number(text("memory.failcnt"))
            + at_limit.map_or(0, |count| number(count.to_owned()))
    }

    /// Moves the process back and removes the group; a process that has ended needs neither.
    fn release(&self) {
        let inside = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            let _ended_meanwhile = fs::write(self.parent.join("cgroup.procs"), pid);
        }
        let _stays_behind = fs::remove_dir(&self.folder);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.made
            .iter()
            .filter(|made| made.folder.exists())
            .for_each(Made::release);
    }
}
