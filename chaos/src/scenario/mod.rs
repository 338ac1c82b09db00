//! Scenario files: the faults of a fleet, and what must hold afterwards.
//!
//! One TOML file is one scenario. Every random choice comes from its seed, so that the same file does
//! the same things at the same times.

mod fault;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

pub use fault::{Answer, By, Direction, Fault, Kind, LeaseEdit, Program, Rate, Then, Watch, Who};

/// One scenario.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name, which is its file's.
    #[serde(default)]
    pub name: String,
    /// What it shows, in one sentence.
    pub about: String,
    /// The seed of every random choice.
    #[serde(default = "one")]
    pub seed: u64,
    /// In which sets it is run: `ci`, `quick`, `full`, `large`.
    pub sets: Vec<Set>,
    /// The fleet.
    #[serde(default)]
    pub fleet: FleetPart,
    /// What users do meanwhile.
    #[serde(default)]
    pub load: LoadPart,
    /// The faults, in order of time.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
    /// What must hold.
    #[serde(default)]
    pub expect: Expect,
    /// A protection that is disabled in the operator or in its installation, which the checker must find.
    #[serde(default)]
    pub failpoints: Option<Failpoints>,
}

/// When a scenario is run.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Set {
    /// With every test run.
    Ci,
    /// With `make chaos QUICK=1`.
    Quick,
    /// With `make chaos`.
    Full,
    /// By its name only: it needs more than a small machine has.
    Large,
}

/// The fleet.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FleetPart {
    /// Replicas at the start.
    pub replicas: usize,
    /// More arguments of `run`.
    pub args: Vec<String>,
    /// The lifetime of a member Lease.
    pub lease_seconds: u64,
    /// Whether the API server filters watches by shard.
    pub sharded_watch: bool,
    /// Whether each replica reaches the API server through a proxy of its own; faults of the network need it.
    pub proxied: bool,
    /// Whether StatefulSets have (fake) Pods; otherwise their status follows their spec at once.
    pub pods: bool,
}

impl Default for FleetPart {
    fn default() -> Self {
        Self {
            replicas: 3,
            args: Vec::new(),
            lease_seconds: 6,
            sharded_watch: true,
            proxied: false,
            pods: false,
        }
    }
}

/// What users do.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadPart {
    /// DatabaseClusters before the first fault.
    pub clusters: usize,
    /// Changes of specs in each second, from the first to the last second.
    pub changes_per_second: f64,
    /// Percentage of changes that delete a cluster, or re-create a deleted one.
    pub churn_percent: u8,
    /// How long users continue after the last fault has ended.
    pub after_seconds: f64,
}

impl Default for LoadPart {
    fn default() -> Self {
        Self {
            clusters: 60,
            changes_per_second: 5.0,
            churn_percent: 10,
            after_seconds: 9.0,
        }
    }
}

/// What must hold, beside the promises of every scenario.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// From the end of a fault until all that was asked for is done, beyond the Lease's lifetime and 1 s.
    pub work_seconds: f64,
    /// How long the runner waits for convergence after the users' last change; no promise, but an end.
    pub patience_seconds: f64,
    /// The most objects that may be due and waiting in one replica.
    pub queue_max: u64,
    /// The most memory of one replica.
    pub memory_mib_max: u64,
    /// The most requests of one replica in any one second.
    pub requests_per_second_max: u64,
    /// Changes by users that must have been accepted, or the run does not count.
    pub changes_min: u64,
    /// For each fault, how often it must have taken effect, or the run does not count.
    pub bites_min: u64,
    /// Writes that the fence must have rejected, or the run does not count.
    pub fenced_min: u64,
    /// The alert that would fire if the fault lasted.
    pub alert: Option<Alert>,
}

impl Default for Expect {
    fn default() -> Self {
        Self {
            work_seconds: 5.0,
            patience_seconds: 180.0,
            queue_max: 2_000,
            memory_mib_max: 200,
            requests_per_second_max: 1_000,
            changes_min: 20,
            bites_min: 1,
            fenced_min: 0,
            alert: None,
        }
    }
}

/// An alert that should fire: the condition of its rule on a metric, held for as long as the fault allows. The rules
/// wait for minutes, faults here last for seconds.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// Its name in `dashboards/alerts.yaml`.
    pub name: String,
    /// The metric of its rule, summed over its labels but for those that are given: `name{label="value"}`.
    pub metric: String,
    /// The growth of the metric counts as a share of the growth of this one.
    #[serde(default)]
    pub share_of: Option<String>,
    /// Which replicas' value.
    #[serde(default)]
    pub over: Over,
    /// The value that it must have exceeded.
    #[serde(default)]
    pub above: Option<f64>,
    /// The value that it must have been below.
    #[serde(default)]
    pub below: Option<f64>,
    /// For how long; 0: once.
    #[serde(default)]
    pub for_seconds: f64,
}

/// Which replicas' value an alert compares.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// That of each replica; one is enough.
    #[default]
    EachReplica,
    /// The greatest of all.
    Greatest,
    /// The sum of all.
    Sum,
}

/// Disabled protections, to show that the checker finds their absence.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Failpoints {
    /// Switches of an operator that was built with `failpoints`.
    #[serde(default)]
    pub switches: Vec<String>,
    /// Whether the fence is not installed.
    #[serde(default)]
    pub without_fence: bool,
    /// The rules by which the checker must find it; one of them at least.
    pub found_by: Vec<String>,
}

fn one() -> u64 {
    1
}

impl Scenario {
    /// Reads and checks a scenario file.
    ///
    /// # Errors
    /// When it cannot be read, or is inconsistent: the message explains why.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read the scenario {}", path.display()))?;
        let name = path
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default();
        Self::parse(&name, &text).with_context(|| format!("the scenario {}", path.display()))
    }

    /// Parses and checks the text of a scenario.
    ///
    /// # Errors
    /// As [`Scenario::read`].
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut scenario: Self = toml::from_str(text)?;
        scenario.name = name.to_owned();
        scenario.check()?;
        Ok(scenario)
    }

    /// Whether it needs the program with failpoints.
    #[must_use]
    pub fn needs_failpoints_program(&self) -> bool {
        let drifts = |fault: &Fault| matches!(fault.kind, Kind::Clocks { rate: Some(_), .. });
        let switches = |failpoints: &Failpoints| !failpoints.switches.is_empty();
        self.failpoints.as_ref().is_some_and(switches) || self.faults.iter().any(drifts)
    }

    /// The same without failpoints: a run that has to pass. None: it has no failpoints.
    #[must_use]
    pub fn control(&self) -> Option<Self> {
        self.failpoints.as_ref()?;
        let expect = Expect {
            patience_seconds: Expect::default().patience_seconds,
            ..self.expect.clone()
        };
        Some(Self {
            name: format!("{}-control", self.name),
            failpoints: None,
            expect,
            ..self.clone()
        })
    }

    /// The same with all its faults repeated in one run, this many seconds apart.
    #[must_use]
    pub fn with_faults_again(&self, times: u32, every_seconds: f64) -> Self {
        let mut again = self.clone();
        again.faults = (0..times)
            .flat_map(|round| {
                let later = f64::from(round) * every_seconds;
                self.faults.iter().map(move |fault| Fault {
                    at_seconds: fault.at_seconds + later,
                    ..fault.clone()
                })
            })
            .collect();
        again
            .faults
            .sort_by(|a, b| a.at_seconds.total_cmp(&b.at_seconds));
        again
    }

    /// The lifetime of a member Lease and 1 s: how long a crash may leave a shard without a holder.
    #[must_use]
    pub fn takeover_seconds(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let lease = self.fleet.lease_seconds as f64;
        lease + 1.0
    }

    fn check(&self) -> Result<()> {
        ensure!(
            (1..=16).contains(&self.fleet.replicas),
            "fleet.replicas is {}: 1 to 16",
            self.fleet.replicas
        );
        ensure!(
            (3..=60).contains(&self.fleet.lease_seconds),
            "fleet.lease_seconds is {}: 3 to 60",
            self.fleet.lease_seconds
        );
        ensure!(
            (1..=20_000).contains(&self.load.clusters),
            "load.clusters is {}: 1 to 20,000",
            self.load.clusters
        );
        ensure!(
            (0.0..=200.0).contains(&self.load.changes_per_second),
            "load.changes_per_second is {}: 0 to 200",
            self.load.changes_per_second
        );
        ensure!(
            self.load.churn_percent <= 100,
            "load.churn_percent is more than 100"
        );
        for pair in self.faults.windows(2) {
            ensure!(
                pair[0].at_seconds <= pair[1].at_seconds,
                "faults are not in order of time: {} s comes after {} s",
                pair[1].at_seconds,
                pair[0].at_seconds
            );
        }
        for fault in &self.faults {
            fault
                .check()
                .with_context(|| format!("fault {} at {} s", fault.label(), fault.at_seconds))?;
            if fault.needs_proxy() && !self.fleet.proxied {
                bail!(
                    "the fault {} needs `proxied = true` in [fleet]",
                    fault.label()
                );
            }
        }
        if let Some(alert) = &self.expect.alert {
            ensure!(
                alert.above.is_some() != alert.below.is_some(),
                "expect.alert needs either `above` or `below`"
            );
        }
        for set in &self.sets {
            ensure!(
                *set != Set::Ci || self.sets.contains(&Set::Full),
                "a scenario of the set ci belongs to full as well"
            );
        }
        if let Some(failpoints) = &self.failpoints {
            ensure!(
                failpoints.without_fence || !failpoints.switches.is_empty(),
                "no failpoint is given"
            );
            ensure!(
                !failpoints.found_by.is_empty(),
                "failpoints.found_by names no rule"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const SMALL: &str = r#"
        about = "kills the fleet leader"
        sets = ["full"]
        [[fault]]
        at_seconds = 5
        kind = "kill"
        who = "fleet-leader"
        then = "replace"
        after_seconds = 10
    "#;

    fn refused(text: &str) -> String {
        format!("{:#}", Scenario::parse("x", text).unwrap_err())
    }

    #[test]
    fn omitted_fields_have_defaults() {
        let scenario = Scenario::parse("x", SMALL).unwrap();
        assert_eq!((scenario.seed, scenario.fleet.replicas), (1, 3));
        assert!((scenario.takeover_seconds() - 7.0).abs() < 1e-9);
        assert_eq!(scenario.faults[0].label(), "kill");
        assert_eq!(scenario.faults[0].who(), Some(Who::FleetLeader));
    }

    #[test]
    fn unknown_fields_are_rejected_at_every_level() {
        for (from, to) in [
            ("about =", "abuot ="),
            ("who =", "whom ="),
            ("fleet-leader\"\n", "boss\"\n"),
            ("\"kill\"", "\"murder\""),
            ("[[fault]]", "[load]\nclutsers = 3\n[[fault]]"),
        ] {
            let text = SMALL.replacen(from, to, 1);
            assert_ne!(text, SMALL, "{from}");
            assert!(Scenario::parse("x", &text).is_err(), "{from} → {to}");
        }
    }

    #[test]
    fn inconsistent_scenario_is_rejected_with_a_reason() {
        let first = SMALL.replace("at_seconds = 5", "at_seconds = 50");
        let disorder = format!(
            "{first}\n[[fault]]\nat_seconds = 1\nkind = \"freeze\"\nwho = \"any\"\nseconds = 3\n"
        );
        assert!(refused(&disorder).contains("order of time"));
        let none = SMALL.replace("[[fault]]", "[fleet]\nreplicas = 0\n[[fault]]");
        assert!(refused(&none).contains("fleet.replicas is 0"));
        let bare = "about = \"x\"\nsets = [\"full\"]\n[[fault]]\nat_seconds = 1\nkind = \"watch\"\nwho = \"any\"\nhow = \"frozen\"\nseconds = 5\n";
        assert!(refused(bare).contains("proxied = true"));
        let ci = SMALL.replace("[\"full\"]", "[\"ci\"]");
        assert!(refused(&ci).contains("belongs to full"));
        let alert = "[expect.alert]\nname = \"x\"\nmetric = \"x\"\n[[fault]]";
        assert!(refused(&SMALL.replace("[[fault]]", alert)).contains("`above` or `below`"));
    }

    #[test]
    fn committed_scenario_files_parse() {
        let all = crate::catalogue::all().unwrap();
        assert!(all.len() >= 5, "only {} scenarios", all.len());
        for scenario in all {
            assert!(scenario.about.len() > 20, "{}", scenario.name);
            assert!(!scenario.sets.is_empty(), "{}", scenario.name);
        }
    }

    #[test]
    fn control_run_differs_only_in_its_failpoints() {
        assert!(Scenario::parse("x", SMALL).unwrap().control().is_none());
        let failpoints = "[failpoints]\nswitches = [\"fence\"]\nfound_by = [\"held\"]\n[[fault]]";
        let scenario = Scenario::parse("x", &SMALL.replace("[[fault]]", failpoints)).unwrap();
        let control = scenario.control().unwrap();
        assert_eq!(control.name, "x-control");
        assert!(control.failpoints.is_none());
        assert_eq!(control.faults.len(), scenario.faults.len());
    }

    #[test]
    fn repeated_faults_are_ordered_by_time() {
        let twice = SMALL.replace(
            "[[fault]]",
            "[[fault]]\nat_seconds = 1\nkind = \"roll\"\n[[fault]]",
        );
        let scenario = Scenario::parse("x", &twice).unwrap();
        let again = scenario.with_faults_again(2, 3.0);
        let times: Vec<f64> = again.faults.iter().map(|fault| fault.at_seconds).collect();
        assert_eq!(times, [1.0, 4.0, 5.0, 8.0]);
        again.check().unwrap();
    }

    #[test]
    fn alerts_match_the_dashboards_rules_and_metrics() {
        let path = testbed::fleet::repository().join("dashboards/alerts.yaml");
        let rules = std::fs::read_to_string(path).unwrap();
        let word = |character: char| character.is_alphanumeric() || character == '_';
        let mut checked = 0;
        for scenario in crate::catalogue::all().unwrap() {
            let Some(alert) = &scenario.expect.alert else {
                continue;
            };
            let rule = rules
                .split("- alert: ")
                .find(|rule| rule.lines().next() == Some(&*alert.name));
            let rule = rule.unwrap_or_else(|| panic!("{}: no {}", scenario.name, alert.name));
            let expression = rule.split("for:").next().unwrap();
            for metric in [Some(&alert.metric), alert.share_of.as_ref()]
                .into_iter()
                .flatten()
            {
                let name = metric.split('{').next().unwrap();
                let mut words = expression.split(|character| !word(character));
                assert!(words.any(|word| word == name), "{}: {name}", alert.name);
            }
            checked += 1;
        }
        assert!(checked >= 10, "only {checked} scenarios expect an alert");
    }
}
