//! What the kernel lets this process have: memory and CPU of its cgroup, versions 1 and 2.

use std::fs;
use std::path::{Path, PathBuf};

/// Version 1 writes "no limit" as the highest page-aligned number; nobody has this much memory.
const NO_LIMIT_BYTES_MIN: u64 = 1 << 60;
const CGROUP_ROOT: &str = "sys/fs/cgroup";

/// Limits and use of one cgroup; `None`: no limit, or not known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CgroupFigures {
    /// Memory charged to the cgroup, page cache included.
    pub memory_usage_bytes: Option<u64>,
    /// Lowest memory limit from the cgroup upwards.
    pub memory_limit_bytes: Option<u64>,
    /// Lowest CPU limit from the cgroup upwards.
    pub cpu_limit_cores: Option<f64>,
}

/// Where the lines of `/proc/self/cgroup` say that a controller accounts for this process.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    V1(String),
    V2(String),
}

/// Reads the figures of this process; `root` is `/` but in tests.
#[must_use]
pub fn read(root: &Path) -> CgroupFigures {
    let Ok(membership) = fs::read_to_string(root.join("proc/self/cgroup")) else {
        return CgroupFigures::default();
    };
    let mut figures = CgroupFigures::default();
    match place(&membership, "memory") {
        Some(Place::V1(path)) => {
            let folders = folders(&root.join(CGROUP_ROOT).join("memory"), &path);
            figures.memory_usage_bytes = usage(&folders, "memory.usage_in_bytes");
            figures.memory_limit_bytes = lowest_limit(&folders, "memory.limit_in_bytes");
        }
        Some(Place::V2(path)) => {
            let folders = folders(&root.join(CGROUP_ROOT), &path);
            figures.memory_usage_bytes = usage(&folders, "memory.current");
            figures.memory_limit_bytes = lowest_limit(&folders, "memory.max");
        }
        None => {}
    }
    figures.cpu_limit_cores = match place(&membership, "cpu") {
        Some(Place::V1(path)) => lowest_cores(
            &folders(&root.join(CGROUP_ROOT).join("cpu"), &path),
            |folder| {
                parse_cpu_v1(
                    &text(folder, "cpu.cfs_quota_us")?,
                    &text(folder, "cpu.cfs_period_us")?,
                )
            },
        ),
        Some(Place::V2(path)) => lowest_cores(&folders(&root.join(CGROUP_ROOT), &path), |folder| {
            parse_cpu_v2(&text(folder, "cpu.max")?)
        }),
        None => None,
    };
    figures
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

fn usage(folders: &[PathBuf], file: &str) -> Option<u64> {
    text(folders.first()?, file)?.trim().parse().ok()
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
            ("sys/fs/cgroup/kubepods/pod1/c1/memory.max", "max\n"),
            ("sys/fs/cgroup/kubepods/pod1/memory.max", "67108864\n"),
            ("sys/fs/cgroup/kubepods/memory.max", "134217728\n"),
            ("sys/fs/cgroup/kubepods/pod1/c1/cpu.max", "50000 100000\n"),
            ("sys/fs/cgroup/kubepods/pod1/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(
            read(root.path()),
            CgroupFigures {
                memory_usage_bytes: Some(1 << 20),
                memory_limit_bytes: Some(64 << 20),
                cpu_limit_cores: Some(0.5),
            }
        );
    }

    #[test]
    fn version_1_is_read_from_its_own_mounts_even_beside_version_2() {
        let root = tree(&[
            (
                "proc/self/cgroup",
                "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n",
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
            CgroupFigures {
                memory_usage_bytes: Some(4096),
                memory_limit_bytes: Some(8192),
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
        let figures = read(root.path());
        assert_eq!(figures.memory_usage_bytes, Some(12));
        assert_eq!(figures.memory_limit_bytes, Some(34));
    }

    #[test]
    fn nonsense_is_no_figure_and_no_panic() {
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
            ]);
            assert_eq!(read(root.path()), CgroupFigures::default(), "{content:?}");
        }
        assert_eq!(read(Path::new("/nowhere")), CgroupFigures::default());
    }
}
