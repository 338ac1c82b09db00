//! Processes by pid and start time: alive, signalled, measured, and the addresses on which they listen.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::error::{Context, Error, Result, failed};

/// One process: a pid may belong to another process by now; together with its start time it is unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId {
    /// The process's number.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did.
    pub start_ticks: u64,
}

/// How long a process may take to stop.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessUsage {
    /// User and system time of all its threads.
    pub cpu_seconds: f64,
    /// Memory resident now.
    pub resident_bytes: u64,
    /// The most memory that was ever resident.
    pub peak_resident_bytes: u64,
    /// How often its threads have gone to sleep.
    pub sleeps: u64,
}

struct Stat {
    state: char,
    cpu_ticks: u64,
    start_ticks: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            pid,
            start_ticks: stat(pid)?.start_ticks,
        })
    }

    /// Whether it still runs. A zombie does not, once its last thread has ended: until then its files and ports are
    /// open.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_ok_and(|stat| {
            let ended = match stat.state {
                'X' => true,
                'Z' => threads(self.pid) <= 1,
                _ => false,
            };
            stat.start_ticks == self.start_ticks && !ended
        })
    }

    /// Sends a signal to this very process.
    ///
    /// # Errors
    /// When it has ended or may not be signalled.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return failed(format!("process {} has ended", self.pid));
        }
        let raw = i32::try_from(self.pid).context("pid")?;
        let pid = Pid::from_raw(raw).ok_or_else(|| Error::Failed("pid 0".into()))?;
        kill_process(pid, signal).context(format!("signal {signal:?} to process {}", self.pid))
    }

    /// Stops it (SIGSTOP), and returns when each of its threads has stopped: until
    /// then, one that runs on another core may answer a request.
    ///
    /// # Errors
    /// When it has ended, may not be signalled or does not stop in time.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        while !self.stands_still()? {
            if Instant::now() >= deadline {
                return failed(format!("process {} does not stand still", self.pid));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn stands_still(&self) -> Result<bool> {
        let folder = format!("/proc/{}/task", self.pid);
        let threads = fs::read_dir(&folder).context(format!("read {folder}"))?;
        Ok(threads.flatten().all(|thread| {
            // A thread that has ended meanwhile does nothing any more.
            let Ok(text) = fs::read_to_string(thread.path().join("stat")) else {
                return true;
            };
            let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
            rest.starts_with(['T', 't', 'Z', 'X'])
        }))
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> Result<ProcessUsage> {
        let stat = stat(self.pid)?;
        if stat.start_ticks != self.start_ticks {
            return failed(format!("process {} has ended", self.pid));
        }
        let status = read(self.pid, "status")?;
        #[allow(clippy::cast_precision_loss)]
        let cpu_seconds = stat.cpu_ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Ok(ProcessUsage {
            cpu_seconds,
            resident_bytes: status_bytes(&status, "VmRSS:"),
            peak_resident_bytes: status_bytes(&status, "VmHWM:"),
            sleeps: sleeps(self.pid)?,
        })
    }

    /// The TCP addresses on which it listens.
    ///
    /// # Errors
    /// When it has ended.
    pub fn listens_on(&self) -> Result<Vec<SocketAddr>> {
        let inodes = socket_inodes(self.pid)?;
        let mut addresses = Vec::new();
        for table in ["net/tcp", "net/tcp6"] {
            let text = read(self.pid, table).unwrap_or_default();
            let rows = text.lines().skip(1).filter_map(listening_row);
            addresses.extend(
                rows.filter(|(_, inode)| inodes.contains(inode))
                    .map(|row| row.0),
            );
        }
        Ok(addresses)
    }
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).context(format!("read {path}"))
}

fn stat(pid: u32) -> Result<Stat> {
    let text = read(pid, "stat")?;
    // The name in brackets may hold spaces and brackets itself; the last one ends it.
    let after = text.rsplit_once(')').map_or("", |(_, after)| after);
    let fields: Vec<&str> = after.split_whitespace().collect();
    let number = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<u64>().ok())
    };
    match (number(11), number(12), number(19)) {
        (Some(user), Some(system), Some(start_ticks)) => Ok(Stat {
            state: fields.first().and_then(|f| f.chars().next()).unwrap_or('?'),
            cpu_ticks: user + system,
            start_ticks,
        }),
        _ => failed(format!("/proc/{pid}/stat cannot be parsed: {text}")),
    }
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Voluntary context switches of all threads that are alive.
fn sleeps(pid: u32) -> Result<u64> {
    let folder = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&folder).context(format!("read {folder}"))?;
    let of_thread = |thread: fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).ok()?;
        let name = "voluntary_ctxt_switches:";
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    Ok(threads.flatten().filter_map(of_thread).sum())
}

fn status_bytes(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kibibytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

fn socket_inodes(pid: u32) -> Result<BTreeSet<u64>> {
    let folder = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&folder).context(format!("read {folder}"))?;
    let inode = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        let number = target
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?;
        number.parse().ok()
    };
    Ok(entries.filter_map(|entry| inode(entry.ok()?)).collect())
}

/// The address and the socket's inode, when the row is of a listening socket.
fn listening_row(row: &str) -> Option<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = row.split_whitespace().collect();
    if *fields.get(3)? != LISTEN {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(address)?)),
        32 => {
            let mut bytes = [0u8; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(address.get(index * 8..index * 8 + 8)?)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some((SocketAddr::new(address, port), fields.get(9)?.parse().ok()?))
}

/// The kernel prints each 32-bit word of an address in the machine's own byte order.
fn word(hex: &str) -> Option<[u8; 4]> {
    u32::from_str_radix(hex, 16).ok().map(u32::to_ne_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn process_is_identified_by_pid_and_start_time() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        let impostor = ProcessId {
            start_ticks: me.start_ticks + 1,
            ..me
        };
        assert!(!impostor.is_alive());
        assert!(impostor.usage().is_err());
        assert!(impostor.signal(Signal::CONT).is_err());
    }

    #[test]
    fn resource_usage_grows_with_work() {
        let me = ProcessId::of(std::process::id()).unwrap();
        let before = me.usage().unwrap();
        let mut sum = 0u64;
        while me.usage().unwrap().cpu_seconds < before.cpu_seconds + 0.05 {
            sum = (0..200_000u64).fold(sum, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
        }
        assert!(me.usage().unwrap().peak_resident_bytes >= before.resident_bytes);
        assert_ne!(sum, 1);
    }

    #[test]
    fn listening_addresses_are_found_for_ipv4_and_ipv6() {
        let me = ProcessId::of(std::process::id()).unwrap();
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(
            me.listens_on()
                .unwrap()
                .contains(&four.local_addr().unwrap())
        );
        if let Ok(six) = TcpListener::bind("[::1]:0") {
            assert!(
                me.listens_on()
                    .unwrap()
                    .contains(&six.local_addr().unwrap())
            );
        }
    }
}
