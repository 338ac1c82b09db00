//! Problems of a fleet, derived from its view: pure rules, the most severe first, each with a
//! remedy.

use std::collections::BTreeMap;

use serde::Serialize;

use sharded_controller::health::KIND_CHECK;

use super::fleet_view::{FleetView, MemberView, ShardView};

/// Severity of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// DatabaseClusters are not reconciled.
    Critical,
    /// Something is slow, or about to fail.
    Warning,
    /// Informational: it resolves by itself.
    Note,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Severity of the problem.
    pub severity: Severity,
    /// Description of the problem.
    pub what: String,
    /// What it means, or what to do; code is between backticks.
    pub hint: &'static str,
    /// The DatabaseClusters that it is about, as `namespace/name`: some of those in [`FleetView::unhealthy`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<String>,
}

const PROBLEMS_MAX: usize = 40;
const NAMED_MAX: usize = 12;
/// A queue whose oldest due object waits for longer is slow: the usual objective is 1 s for 99 %.
const HEAD_AGE_SECONDS_MAX: f64 = 5.0;
const RUN_SECONDS_MAX: f64 = 30.0;
/// Share of the memory or CPU limit from which a warning is shown.
const SHARE_MAX: f64 = 0.9;

impl FleetView {
    /// Fills in the problems.
    #[must_use]
    pub fn with_problems(mut self) -> Self {
        let mut findings = Findings::default();
        // First of all: the others follow from it.
        findings.check_kinds(&self);
        findings.check_shards(&self);
        for member in &self.members {
            findings.check_member(member, &self);
            findings.check_stats(member);
        }
        findings.check_fleet(&self);
        findings.check_observer(&self);
        findings.problems.sort_by_key(|problem| problem.severity);
        findings.problems.truncate(PROBLEMS_MAX);
        self.problems = findings.problems;
        self
    }
}

#[derive(Default)]
struct Findings {
    problems: Vec<Problem>,
}

impl Findings {
    fn add(&mut self, severity: Severity, what: impl Into<String>, hint: &'static str) {
        self.problems.push(Problem {
            severity,
            what: what.into(),
            hint,
            clusters: Vec::new(),
        });
    }

    fn check_kinds(&mut self, view: &FleetView) {
        let checks = view.observer.iter().flat_map(|observer| &observer.checks);
        let problem = checks
            .filter(|check| check.name == KIND_CHECK)
            .find_map(|check| check.problem.clone());
        if let Some(problem) = problem {
            let hint = "No DatabaseCluster is reconciled until it exists. Other problems may be consequences.";
            self.add(Severity::Critical, problem, hint);
        }
    }

    fn check_shards(&mut self, view: &FleetView) {
        let numbers = |pick: &dyn Fn(&ShardView) -> bool| {
            let picked = view.shards.iter().filter(|shard| pick(shard));
            picked.filter_map(|shard| shard.shard).collect::<Vec<u16>>()
        };
        let mut unowned = numbers(&|shard| !view.is_owned(shard));
        for number in 0..view.shard_count.unwrap_or(0) {
            if !view.shards.iter().any(|shard| shard.shard == Some(number)) {
                unowned.push(number);
            }
        }
        unowned.sort_unstable();
        if !unowned.is_empty() {
            let what = format!("No live replica holds {}", shards(&unowned));
            let hint = "Their DatabaseClusters are not reconciled. Another replica takes them over within \
                 the lease's lifetime and a second; if none does, check the replicas.";
            self.add(Severity::Critical, what, hint);
        }
        let damaged = view.shards.iter().filter_map(|shard| {
            let damage = shard.damage.as_ref()?;
            Some(format!("Lease {} is damaged: {damage}", shard.lease))
        });
        for what in damaged {
            let hint = "It was edited manually. Its holder repairs what it can.";
            self.add(Severity::Warning, what, hint);
        }
    }

    fn check_member(&mut self, member: &MemberView, view: &FleetView) {
        let name = &member.identity;
        if let Some(damage) = &member.damage {
            let hint = "It was edited manually. The replica repairs it with its next heartbeat.";
            self.add(
                Severity::Warning,
                format!("Member Lease of {name}: {damage}"),
                hint,
            );
        }
        let age = member.heartbeat_age_seconds.unwrap_or(0.0);
        let lifetime = f64::from(member.lease_seconds.unwrap_or(0));
        if member.vacated {
            let hint =
                "It stopped renewing, and others declared it dead. Its Lease is removed soon.";
            self.add(Severity::Note, format!("{name} is dead"), hint);
        } else if member.live == Some(false) {
            let what = format!(
                "{name} is silent: no heartbeat for {age:.0} s, its lifetime is {lifetime:.0} s"
            );
            let hint = "Its process, its node or its connection to the API server has failed. Others declare it dead now.";
            self.add(Severity::Warning, what, hint);
        } else if lifetime > 0.0 && age > lifetime / 2.0 {
            let what = format!("{name} is late: its last heartbeat was {age:.1} s ago");
            let hint = "It is declared dead when its whole lifetime has passed without one.";
            self.add(Severity::Warning, what, hint);
        }
        if member.draining && !member.vacated {
            let hint = "It was asked to stop, and hands its shards to others.";
            self.add(Severity::Note, format!("{name} is leaving"), hint);
        }
        let count = view.shard_count;
        if member.shards.is_some() && count.is_some() && member.shards != count {
            let what = format!("{name} stands by: it is configured for another number of shards");
            let hint = "It holds nothing until the others have stopped. Give all replicas the same --shards.";
            self.add(Severity::Warning, what, hint);
        }
        if serves_others(member, view) {
            let served = member.namespaces.as_deref().unwrap_or_default();
            let what = format!("{name} stands by: it watches other namespaces ({served})");
            let hint = "It holds nothing until the others have stopped. Give all replicas the same --watch-namespaces.";
            self.add(Severity::Warning, what, hint);
        }
    }

    fn check_stats(&mut self, member: &MemberView) {
        if !member.is_current() {
            return;
        }
        let name = &member.identity;
        let stat = |name: &str| member.stats.get(name).copied();
        let over = |used: &str, limit: &str| {
            let (used, limit) = (stat(used)?, stat(limit)?);
            (limit > 0.0 && used > SHARE_MAX * limit).then_some(100.0 * used / limit)
        };
        if stat("ready") == Some(0.0) {
            let hint = "Its /readyz lists the reasons.";
            self.add(Severity::Warning, format!("{name} is not ready"), hint);
        }
        if let Some(age) = stat("queue_head_age_seconds").filter(|age| *age > HEAD_AGE_SECONDS_MAX)
        {
            let depth = stat("queue_depth").unwrap_or(0.0);
            let what =
                format!("{name} is behind: {depth:.0} objects wait, the oldest for {age:.0} s");
            let hint = "Many simultaneous changes, a slow API server, or too low a --concurrency.";
            self.add(Severity::Warning, what, hint);
        }
        if let Some(age) = stat("longest_run_seconds").filter(|age| *age > RUN_SECONDS_MAX) {
            let what = format!("A reconcile on {name} has run for {age:.0} s");
            let hint = "It is cancelled at --reconcile-timeout; is the API server slow?";
            self.add(Severity::Warning, what, hint);
        }
        if let Some(failed) = stat("failures_last_minute").filter(|failed| *failed > 0.0) {
            let what = format!("{failed:.0} reconciles failed on {name} within a minute");
            let hint = "Its log names the objects and the causes once a minute; `kubectl dbc status -A` shows them.";
            self.add(Severity::Warning, what, hint);
        }
        if let Some(percent) = over("memory_bytes", "memory_limit_bytes") {
            let what = format!("{name} uses {percent:.0} % of its memory limit");
            let hint = "At the limit the kernel kills it, and others take its shards over. Raise the limit.";
            self.add(Severity::Warning, what, hint);
        }
        if let Some(percent) = over("cpu_cores", "cpu_limit_cores") {
            let what = format!("{name} uses {percent:.0} % of its CPU limit");
            let hint =
                "Throttled for long enough, it misses heartbeats. Raise the limit, or remove it.";
            self.add(Severity::Warning, what, hint);
        }
    }

    fn check_fleet(&mut self, view: &FleetView) {
        for note in &view.notes {
            // Shards without a Lease are among those without a holder.
            if !note.starts_with("no Lease") {
                self.add(Severity::Warning, note.clone(), "");
            }
        }
        let leads = view
            .leader
            .as_ref()
            .filter(|leader| leader.identity.is_some());
        if leads.is_none_or(|leader| leader.live == Some(false)) {
            let hint = "Nothing is rebalanced until one is elected. Takeovers do not need one.";
            self.add(Severity::Warning, "No fleet leader", hint);
        }
        let working: Vec<&MemberView> = view.members.iter().filter(|m| works(m, view)).collect();
        let held = || working.iter().map(|member| member.held);
        let (most, least) = (held().max().unwrap_or(0), held().min().unwrap_or(0));
        if most > least + 1 {
            let what = format!("Shards are unevenly distributed: from {least} to {most}");
            let hint = "The fleet leader plans moves, a few at a time.";
            self.add(Severity::Note, what, hint);
        }
        let mut revisions: BTreeMap<&str, usize> = BTreeMap::new();
        for revision in working
            .iter()
            .filter_map(|member| member.revision.as_deref())
        {
            *revisions.entry(revision).or_insert(0) += 1;
        }
        if revisions.len() > 1 {
            let each = revisions
                .iter()
                .map(|(name, count)| format!("{name} × {count}"));
            let what = format!("Replicas of {} revisions: {}", revisions.len(), named(each));
            let hint = "An update is in progress: older replicas receive no shards.";
            self.add(Severity::Note, what, hint);
        }
        let degraded = view.clusters.get("Degraded").copied().unwrap_or(0);
        if degraded > 0 {
            let all: u64 = view.clusters.values().sum();
            let what = format!("{degraded} of {all} DatabaseClusters are Degraded");
            let hint = "`kubectl dbc explain -A` shows the cause and the next step of each.";
            let named = view.unhealthy.iter().take(NAMED_MAX);
            self.problems.push(Problem {
                severity: Severity::Warning,
                what,
                hint,
                clusters: named
                    .map(|found| format!("{}/{}", found.namespace, found.name))
                    .collect(),
            });
        }
    }

    fn check_observer(&mut self, view: &FleetView) {
        let Some(observer) = &view.observer else {
            return;
        };
        let seen = view.members.iter().filter(|member| !member.vacated);
        let mut seen = seen.map(|member| member.live).peekable();
        if seen.peek().is_some() && seen.all(|live| live == Some(false)) {
            let what = format!(
                "{} observes no heartbeat at all: this view is stale",
                observer.identity
            );
            let hint =
                "The API server is down, or this replica cannot reach it. Query another replica.";
            self.add(Severity::Critical, what, hint);
        }
        for check in observer.checks.iter().filter(|c| c.name != KIND_CHECK) {
            if let Some(problem) = &check.problem {
                let severity = match check.gate {
                    true => Severity::Warning,
                    false => Severity::Note,
                };
                let what = format!("{}: {}: {problem}", observer.identity, check.name);
                self.add(severity, what, "");
            }
        }
    }
}

/// Whether the planner assigns shards to this member.
fn works(member: &MemberView, view: &FleetView) -> bool {
    let fits = view.shard_count.is_none() || member.shards == view.shard_count;
    fits && !serves_others(member, view)
        && !member.vacated
        && !member.draining
        && member.live != Some(false)
}

/// Whether a member watches other namespaces than the fleet.
fn serves_others(member: &MemberView, view: &FleetView) -> bool {
    member.namespaces.is_some() && view.namespaces.is_some() && member.namespaces != view.namespaces
}

fn shards(numbers: &[u16]) -> String {
    let word = if numbers.len() == 1 {
        "shard"
    } else {
        "shards"
    };
    format!("{word} {}", named(numbers.iter().map(u16::to_string)))
}

/// A list of bounded length.
fn named(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let mut text = names.take(NAMED_MAX).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
#[path = "fleet_problems_tests.rs"]
mod tests;
