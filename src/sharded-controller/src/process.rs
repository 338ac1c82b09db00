//! Statistics of this process, its cgroup and its runtime, read when metrics are scraped.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::cgroup;
use crate::metrics::Metrics;

/// Source revision that was passed to the build, if any.
const REVISION: &str = match option_env!("DBC_BUILD_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Oldest values of the cgroup in a heartbeat. Its limits rarely change, and reading them takes several
/// files.
const CGROUP_AGE_MAX: Duration = Duration::from_secs(30);

static PANICS: AtomicU64 = AtomicU64::new(0);

/// From now on counts the panics of this process, and reports them as before.
pub fn count_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(panic);
    }));
}

/// The values in `/proc/self/stat`, in base units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ProcessStats {
    /// CPU time, user and system.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Virtual memory.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Start, counted from the start of the machine.
    pub started_seconds: f64,
}

/// Units in which the kernel counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelUnits {
    /// Clock ticks in a second.
    pub ticks_per_second: u64,
    /// Bytes in a page.
    pub page_bytes: u64,
}

impl KernelUnits {
    /// The units of the kernel that runs this process.
    #[must_use]
    pub(crate) fn of_this_kernel() -> Self {
        Self {
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1),
            page_bytes: rustix::param::page_size() as u64,
        }
    }
}

/// Parses the text of `/proc/<pid>/stat`; `None` if it does not have that format.
#[must_use]
pub(crate) fn parse_stat(text: &str, units: KernelUnits) -> Option<ProcessStats> {
    // The name of the program stands in parentheses and may itself hold spaces and parentheses.
    let (_, after_name) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    // proc(5) counts fields from 1 and the first one here is its third.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let seconds = |ticks: u64| ticks as f64 / units.ticks_per_second as f64;
    Some(ProcessStats {
        cpu_seconds: seconds(field(14)?.checked_add(field(15)?)?),
        threads: field(20)?,
        started_seconds: seconds(field(22)?),
        virtual_bytes: field(23)?,
        resident_bytes: field(24)?.checked_mul(units.page_bytes)?,
    })
}

/// Seconds since the Unix epoch at which the machine started, from the text of `/proc/stat`.
#[must_use]
pub(crate) fn parse_boot_time(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

/// Copies the statistics into the metrics.
pub(crate) struct ProcessCollector {
    root: PathBuf,
    units: KernelUnits,
    metrics: Arc<Metrics>,
    runtime: Handle,
    /// When the cgroup was last read. Scrapes may overlap, and a counter is only ever added to: it is
    /// locked while anything is read.
    cgroup_read: Mutex<Option<Instant>>,
}

impl ProcessCollector {
    /// A collector for this process, whose tasks run on `runtime`.
    #[must_use]
    pub(crate) fn new(metrics: Arc<Metrics>, runtime: Handle) -> Self {
        Self::with_root(Path::new("/"), metrics, runtime)
    }

    fn with_root(root: &Path, metrics: Arc<Metrics>, runtime: Handle) -> Self {
        metrics
            .process
            .build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION"), REVISION])
            .set(1);
        Self {
            root: root.to_owned(),
            units: KernelUnits::of_this_kernel(),
            metrics,
            runtime,
            cgroup_read: Mutex::new(None),
        }
    }

    /// Reads all values again. What cannot be read keeps its last value.
    pub(crate) fn refresh(&self) {
        let mut cgroup_read = self.cgroup_read.lock();
        *cgroup_read = Some(Instant::now());
        self.refresh_process();
        self.refresh_cgroup();
        self.refresh_runtime();
    }

    /// Reads CPU time and memory again, and the cgroup when its last values are old.
    pub(crate) fn refresh_usage(&self) {
        let mut cgroup_read = self.cgroup_read.lock();
        self.refresh_stat();
        if cgroup_read.is_none_or(|at| at.elapsed() >= CGROUP_AGE_MAX) {
            *cgroup_read = Some(Instant::now());
            self.refresh_cgroup();
        }
    }

    fn refresh_stat(&self) -> Option<ProcessStats> {
        let metrics = &self.metrics.process;
        let stat = fs::read_to_string(self.root.join("proc/self/stat")).ok();
        let stats = stat.and_then(|text| parse_stat(&text, self.units))?;
        raise(&metrics.process_cpu_seconds_total, stats.cpu_seconds);
        set(&metrics.process_resident_memory_bytes, stats.resident_bytes);
        set(&metrics.process_virtual_memory_bytes, stats.virtual_bytes);
        set(&metrics.process_threads, stats.threads);
        Some(stats)
    }

    fn refresh_process(&self) {
        let metrics = &self.metrics.process;
        if let Some(stats) = self.refresh_stat() {
            let boot = fs::read_to_string(self.root.join("proc/stat")).ok();
            if let Some(boot) = boot.and_then(|text| parse_boot_time(&text)) {
                let started = boot + stats.started_seconds;
                metrics.process_start_time_seconds.set(started);
            }
        }
        if let Ok(entries) = fs::read_dir(self.root.join("proc/self/fd")) {
            // The listing itself holds one descriptor.
            let open = entries.count().saturating_sub(1);
            set(&metrics.process_open_fds, open as u64);
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        set(&metrics.process_max_fds, limit.current.unwrap_or(u64::MAX));
    }

    fn refresh_cgroup(&self) {
        let stats = cgroup::read(&self.root);
        let metrics = &self.metrics.process;
        set(
            &metrics.cgroup_memory_usage_bytes,
            stats.memory_usage_bytes.unwrap_or(0),
        );
        set(
            &metrics.cgroup_memory_limit_bytes,
            stats.memory_limit_bytes.unwrap_or(0),
        );
        set(
            &metrics.cgroup_memory_working_set_bytes,
            stats.memory_working_set_bytes.unwrap_or(0),
        );
        let cores = stats.cpu_limit_cores.unwrap_or(0.0);
        metrics.cgroup_cpu_limit_cores.set(cores);
        let used = stats.cpu_seconds.unwrap_or(0.0);
        raise(&metrics.cgroup_cpu_seconds_total, used);
        let throttled = stats.cpu_throttled_seconds.unwrap_or(0.0);
        raise(&metrics.cgroup_cpu_throttled_seconds_total, throttled);
    }

    fn refresh_runtime(&self) {
        let runtime = self.runtime.metrics();
        let metrics = &self.metrics.process;
        set(&metrics.tokio_workers, runtime.num_workers() as u64);
        set(&metrics.tokio_alive_tasks, runtime.num_alive_tasks() as u64);
        set(
            &metrics.tokio_global_queue_depth,
            runtime.global_queue_depth() as u64,
        );
        let busy = |worker| runtime.worker_total_busy_duration(worker).as_secs_f64();
        let busy = (0..runtime.num_workers()).map(busy).sum();
        raise(&metrics.tokio_busy_seconds_total, busy);
        let panics = PANICS.load(Ordering::Relaxed);
        let new = panics.saturating_sub(metrics.panics_total.get());
        metrics.panics_total.inc_by(new);
    }
}

/// A counter only ever increases, whatever was read.
fn raise(counter: &prometheus::Counter, value: f64) {
    let more = value - counter.get();
    if more > 0.0 {
        counter.inc_by(more);
    }
}

fn set(gauge: &prometheus::IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::names::testing::NAMES;
    use prometheus::Registry;

    const UNITS: KernelUnits = KernelUnits {
        ticks_per_second: 100,
        page_bytes: 4096,
    };

    fn stat_line(name: &str, utime: u64, stime: u64) -> String {
        format!(
            "42 ({name}) S 1 42 42 0 -1 4194304 9 0 0 0 {utime} {stime} 0 0 20 0 7 0 250 8192 3 \
             18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0\n"
        )
    }

    #[test]
    fn stat_keeps_fractions_of_a_second_and_bears_any_program_name() {
        for name in ["operator", "a) S 1 2 (b", "x y", ""] {
            let stats = parse_stat(&stat_line(name, 123, 4), UNITS).unwrap();
            assert_eq!(
                stats,
                ProcessStats {
                    cpu_seconds: 1.27,
                    resident_bytes: 3 * 4096,
                    virtual_bytes: 8192,
                    threads: 7,
                    started_seconds: 2.5,
                },
                "{name:?}"
            );
        }
    }

    #[test]
    fn malformed_stat_text_yields_nothing() {
        let huge = stat_line("a", u64::MAX, u64::MAX);
        for text in ["", "42", "42 (a) S 1", "42 (a", ") ", huge.as_str()] {
            assert_eq!(parse_stat(text, UNITS), None, "{text:?}");
        }
        assert_eq!(parse_boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1.7e9));
        assert_eq!(parse_boot_time("cpu 1 2\n"), None);
    }

    #[tokio::test]
    async fn a_counter_never_falls_and_other_figures_follow() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/self/fd")).unwrap();
        let metrics = Arc::new(Metrics::register(Registry::new(), NAMES).unwrap());
        let collector =
            ProcessCollector::with_root(root.path(), Arc::clone(&metrics), Handle::current());
        let ticks = collector.units.ticks_per_second;
        for (utime, expected) in [(3 * ticks, 3.0), (ticks, 3.0), (5 * ticks, 5.0)] {
            fs::write(root.path().join("proc/self/stat"), stat_line("a", utime, 0)).unwrap();
            collector.refresh();
            assert_eq!(metrics.process.process_cpu_seconds_total.get(), expected);
        }
        fs::remove_file(root.path().join("proc/self/stat")).unwrap();
        collector.refresh();
        assert_eq!(metrics.process.process_threads.get(), 7);
    }

    #[tokio::test]
    async fn process_stats_match_the_kernel() {
        let metrics = Arc::new(Metrics::register(Registry::new(), NAMES).unwrap());
        let collector = ProcessCollector::new(Arc::clone(&metrics), Handle::current());
        collector.refresh();
        let before = metrics.process.process_cpu_seconds_total.get();
        let deadline = Instant::now() + Duration::from_secs(20);
        while metrics.process.process_cpu_seconds_total.get() < before + 0.05 {
            assert!(
                Instant::now() < deadline,
                "waited for 50 ms of CPU time to be counted"
            );
            std::hint::black_box((0..100_000_u64).fold(0_u64, u64::wrapping_add));
            collector.refresh();
        }
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let of_status = |name: &str| -> f64 {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let resident = metrics.process.process_resident_memory_bytes.get() as f64;
        let expected = of_status("VmRSS:") * 1024.0;
        assert!(
            (resident / expected - 1.0).abs() < 0.25,
            "{resident} {expected}"
        );
        assert!(metrics.process.process_open_fds.get() >= 3);
        assert!(metrics.process.process_max_fds.get() >= metrics.process.process_open_fds.get());
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let age = now - metrics.process.process_start_time_seconds.get();
        assert!((-2.0..86_400.0).contains(&age), "started {age} s ago");
        assert_eq!(metrics.process.tokio_workers.get(), 1);
    }

    #[tokio::test]
    async fn a_panic_that_was_caught_counts() {
        let metrics = Arc::new(Metrics::register(Registry::new(), NAMES).unwrap());
        let collector = ProcessCollector::new(Arc::clone(&metrics), Handle::current());
        count_panics();
        collector.refresh();
        let before = metrics.process.panics_total.get();
        assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
        collector.refresh();
        // Tests beside this one may panic on purpose, too.
        assert!(metrics.process.panics_total.get() > before);
    }
}
