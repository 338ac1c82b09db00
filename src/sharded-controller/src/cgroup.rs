//! Limits and usage of this process according to the kernel: memory and CPU of its cgroup, versions 1 and
//! 2.

use std::fs;
use std::path::{Path, PathBuf};

/// Version 1 writes "no limit" as the highest page-aligned number; no machine has this much memory.
const NO_LIMIT_BYTES_MIN: u64 = 1 << 60;
const CGROUP_ROOT: &str = "sys/fs/cgroup";

/// Limits and usage of one cgroup; `None`: no limit, or not known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct CgroupStats {
    /// Memory charged to the cgroup, page cache included.
    pub memory_usage_bytes: Option<u64>,
    /// The part of it that cannot be reclaimed immediately; the kubelet evicts by this value.
    pub memory_working_set_bytes: Option<u64>,
    /// Lowest memory limit from the cgroup upwards.
    pub memory_limit_bytes: Option<u64>,
    /// CPU time used.
    pub cpu_seconds: Option<f64>,
    /// Time for which the CPU limit kept it from running.
    pub cpu_throttled_seconds: Option<f64>,
    /// Lowest CPU limit from the cgroup upwards.
    pub cpu_limit_cores: Option<f64>,
}

/// The location of a controller according to `/proc/self/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    V1(String),
    V2(String),
}

/// Reads the statistics of this process; `root` is `/` except in tests.
#[must_use]
pub(crate) fn read(root: &Path) -> CgroupStats {
    let Ok(membership) = fs::read_to_string(root.join("proc/self/cgroup")) else {
        return CgroupStats::default();
    };
    let mount = root.join(CGROUP_ROOT);
    let mut stats = CgroupStats::default();
    read_memory(&mount, &membership, &mut stats);
    read_cpu(&mount, &membership, &mut stats);
    stats
}

fn read_memory(mount: &Path, membership: &str, stats: &mut CgroupStats) {
    let (folders, usage_file, limit_file, inactive) = match place(membership, "memory") {
        Some(Place::V1(path)) => (
            folders(&mount.join("memory"), &path),
            "memory.usage_in_bytes",
            "memory.limit_in_bytes",
            "total_inactive_file",
        ),
        Some(Place::V2(path)) => (
            folders(mount, &path),
            "memory.current",
            "memory.max",
            "inactive_file",
        ),
        None => return,
    };
    stats.memory_limit_bytes = lowest_limit(&folders, limit_file);
    let Some(own) = folders.first() else { return };
    stats.memory_usage_bytes = text(own, usage_file).and_then(|text| text.trim().parse().ok());
    let inactive = stat(own, "memory.stat", inactive);
    stats.memory_working_set_bytes = stats
        .memory_usage_bytes
        .map(|usage| usage.saturating_sub(inactive.unwrap_or(0)));
}

fn read_cpu(mount: &Path, membership: &str, stats: &mut CgroupStats) {
    match place(membership, "cpu") {
        Some(Place::V1(path)) => {
            let folders = folders(&mount.join("cpu"), &path);
            stats.cpu_limit_cores = lowest_cores(&folders, |folder| {
                let (quota, period) = ("cpu.cfs_quota_us", "cpu.cfs_period_us");
                parse_cpu_v1(&text(folder, quota)?, &text(folder, period)?)
            });
            let throttled = |own: &PathBuf| stat(own, "cpu.stat", "throttled_time");
            stats.cpu_throttled_seconds = folders.first().and_then(throttled).map(from_nanos);
        }
        Some(Place::V2(path)) => {
            let folders = folders(mount, &path);
            stats.cpu_limit_cores =
                lowest_cores(&folders, |folder| parse_cpu_v2(&text(folder, "cpu.max")?));
            let Some(own) = folders.first() else { return };
            let seconds = |key| stat(own, "cpu.stat", key).map(from_micros);
            stats.cpu_seconds = seconds("usage_usec");
            stats.cpu_throttled_seconds = seconds("throttled_usec");
        }
        None => {}
    }
    // Version 1 counts usage in a controller of its own, which may be mounted elsewhere.
    if let Some(Place::V1(path)) = place(membership, "cpuacct") {
        let own = folders(&mount.join("cpuacct"), &path).into_iter().next();
        let used = own.and_then(|own| text(&own, "cpuacct.usage")?.trim().parse().ok());
        stats.cpu_seconds = used.map(from_nanos);
    }
}

fn from_nanos(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn from_micros(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// A controller that version 1 has mounted is not in version 2's tree, so version 1 goes first.
fn place(membership: &str, controller: &str) -> Option<Place> {
    let mut unified = None;
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if controllers.split(',').any(|name| name == controller) {
            return Some(Place::V1(path.to_owned()));
        }
        if id == "0" && controllers.is_empty() {
            unified = Some(Place::V2(path.to_owned()));
        }
    }
    unified
}

/// The cgroup's folder and its parents up to the mount. In a container the path may be the host's
/// and absent here: then the mount itself is the container's cgroup.
fn folders(mount: &Path, path: &str) -> Vec<PathBuf> {
    let relative = Path::new(path.trim_start_matches('/'));
    relative
        .ancestors()
        .filter(|part| {
            part.components()
                .all(|c| matches!(c, std::path::Component::Normal(_)))
        })
        .map(|part| mount.join(part))
        .filter(|folder| folder.is_dir())
        .collect()
}

fn text(folder: &Path, file: &str) -> Option<String> {
    fs::read_to_string(folder.join(file)).ok()
}

/// One number of a file with lines of `key number`.
fn stat(folder: &Path, file: &str, key: &str) -> Option<u64> {
    let text = text(folder, file)?;
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(name, _)| *name == key)?.1.trim().parse().ok()
}

fn lowest_limit(folders: &[PathBuf], file: &str) -> Option<u64> {
    let limits = folders
        .iter()
        .filter_map(|folder| parse_limit(&text(folder, file)?));
    limits.min()
}

fn lowest_cores(folders: &[PathBuf], cores: impl Fn(&Path) -> Option<f64>) -> Option<f64> {
    let limits = folders.iter().filter_map(|folder| cores(folder));
    limits.min_by(f64::total_cmp)
}

/// A memory limit of either version.
fn parse_limit(text: &str) -> Option<u64> {
    let bytes = text.trim().parse().ok()?;
    (bytes < NO_LIMIT_BYTES_MIN).then_some(bytes)
}

/// `cpu.max`: quota or `max`, then period.
fn parse_cpu_v2(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    cores(quota.parse().ok()?, period.parse().ok()?)
}

/// `cpu.cfs_quota_us` (-1: none) and `cpu.cfs_period_us`.
fn parse_cpu_v1(quota: &str, period: &str) -> Option<f64> {
    cores(quota.trim().parse().ok()?, period.trim().parse().ok()?)
}

fn cores(quota: f64, period: f64) -> Option<f64> {
    let cores = quota / period;
    (quota > 0.0 && period > 0.0 && cores.is_finite()).then_some(cores)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn version_2_takes_the_lowest_limit_up_the_tree() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/kubepods/pod1/c1\n"),
            ("sys/fs/cgroup/kubepods/pod1/c1/memory.current", "1048576\n"),
            (
                "sys/fs/cgroup/kubepods/pod1/c1/memory.stat",
                "anon 7\ninactive_file 48576\nactive_file 9\n",
            ),
            ("sys/fs/cgroup/kubepods/pod1/c1/memory.max", "max\n"),
            ("sys/fs/cgroup/kubepods/pod1/memory.max", "67108864\n"),
            ("sys/fs/cgroup/kubepods/memory.max", "134217728\n"),
            ("sys/fs/cgroup/kubepods/pod1/c1/cpu.max", "50000 100000\n"),
            ("sys/fs/cgroup/kubepods/pod1/cpu.max", "max 100000\n"),
            (
                "sys/fs/cgroup/kubepods/pod1/c1/cpu.stat",
                "usage_usec 1500000\nuser_usec 1\nnr_throttled 3\nthrottled_usec 250000\n",
            ),
        ]);
        assert_eq!(
            read(root.path()),
            CgroupStats {
                memory_usage_bytes: Some(1 << 20),
                memory_working_set_bytes: Some(1_000_000),
                memory_limit_bytes: Some(64 << 20),
                cpu_seconds: Some(1.5),
                cpu_throttled_seconds: Some(0.25),
                cpu_limit_cores: Some(0.5),
            }
        );
    }

    #[test]
    fn version_1_is_read_from_its_own_mounts_even_beside_version_2() {
        let root = tree(&[
            (
                "proc/self/cgroup",
                "5:memory:/docker/abc\n4:cpu:/docker/abc\n3:cpuacct:/docker/abc\n0::/\n",
            ),
            (
                "sys/fs/cgroup/memory/docker/abc/memory.stat",
                "inactive_file 1\ntotal_inactive_file 96\n",
            ),
            (
                "sys/fs/cgroup/cpu/docker/abc/cpu.stat",
                "nr_periods 2\nthrottled_time 500000000\n",
            ),
            (
                "sys/fs/cgroup/cpuacct/docker/abc/cpuacct.usage",
                "2250000000\n",
            ),
            (
                "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes",
                "4096",
            ),
            (
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes",
                "9223372036854771712",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "8192\n"),
            ("sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us", "150000\n"),
            ("sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(
            read(root.path()),
            CgroupStats {
                memory_usage_bytes: Some(4096),
                memory_working_set_bytes: Some(4000),
                memory_limit_bytes: Some(8192),
                cpu_seconds: Some(2.25),
                cpu_throttled_seconds: Some(0.5),
                cpu_limit_cores: Some(1.5),
            }
        );
    }

    #[test]
    fn a_path_of_the_host_falls_back_to_the_mount() {
        let root = tree(&[
            (
                "proc/self/cgroup",
                "0::/../../system.slice/docker-abc.scope\n",
            ),
            ("sys/fs/cgroup/memory.current", "12"),
            ("sys/fs/cgroup/memory.max", "34"),
        ]);
        let stats = read(root.path());
        assert_eq!(stats.memory_usage_bytes, Some(12));
        assert_eq!(stats.memory_limit_bytes, Some(34));
    }

    #[test]
    fn malformed_cgroup_files_yield_no_value_and_no_panic() {
        for content in [
            "",
            "max",
            "-1",
            "x y",
            "0 0",
            "nan 1",
            "1 0",
            "99999999999999999999",
        ] {
            let root = tree(&[
                ("proc/self/cgroup", "::\nx\n0::/a\n"),
                ("sys/fs/cgroup/a/memory.current", content),
                ("sys/fs/cgroup/a/memory.max", content),
                ("sys/fs/cgroup/a/cpu.max", content),
                ("sys/fs/cgroup/a/cpu.stat", content),
                ("sys/fs/cgroup/a/memory.stat", content),
            ]);
            assert_eq!(read(root.path()), CgroupStats::default(), "{content:?}");
        }
        assert_eq!(read(Path::new("/nowhere")), CgroupStats::default());
    }
}
