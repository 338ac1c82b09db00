//! The conditions that are reported for a lifecycle stage.

use jiff::{Timestamp, Unit};

use super::stage::{Stage, reason};
use crate::api::{Condition, ConditionStatus, ConditionType};

use ConditionStatus::{False, True};

/// Facts that are reported in addition to the stage.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Whether the primary has accepted connections at least once.
    pub initialized: bool,
    /// Whether the primary serves; none keeps what was reported before.
    pub primary: Option<bool>,
    /// Whether the load balancers have addresses.
    pub exposure: Exposure,
    /// Generation of the spec.
    pub generation: i64,
    /// The current time.
    pub now: Timestamp,
}

/// Whether the load balancers of a cluster's Services have addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// No Service asks for one.
    NotAsked,
    /// It could not be read: what was reported before is kept.
    Unknown,
    /// These Services have none yet, as text.
    Pending(String),
    /// Each has one.
    Assigned,
}

/// The conditions for a stage, and those that are independent of the stage: whether the primary
/// serves, and whether the cluster is initialized. A condition that keeps its status keeps its
/// `lastTransitionTime`; conditions of unknown types stay as they are.
#[must_use]
pub(crate) fn conditions(stage: &Stage, facts: &Facts, before: &[Condition]) -> Vec<Condition> {
    let why = stage.why();
    let (ready, progressing, degraded) = match stage {
        Stage::Creating(_) | Stage::Scaling(_) => (False, True, False),
        Stage::Ready(_) => (True, False, False),
        Stage::Degraded(_) => (False, False, True),
        Stage::Terminating(_) if why.reason == reason::TERMINATING => (False, True, False),
        // Something blocks the deletion.
        Stage::Terminating(_) => (False, False, True),
    };
    let as_expected = ("AsExpected", String::new());
    let reported = (why.reason.as_str(), why.message.clone());
    let settled = match stage {
        Stage::Ready(_) => (reason::SETTLED, String::new()),
        Stage::Creating(_) | Stage::Scaling(_) | Stage::Degraded(_) | Stage::Terminating(_) => {
            reported.clone()
        }
    };
    let degraded_why = if degraded == True {
        reported.clone()
    } else {
        as_expected
    };
    let mut known = vec![
        (ConditionType::Ready, ready, reported),
        (ConditionType::Progressing, progressing, settled),
        (ConditionType::Degraded, degraded, degraded_why),
    ];
    known.extend(available(stage, facts.primary, before));
    known.extend(exposed(&facts.exposure, before));
    if facts.initialized {
        let text = "the volume of the primary has data".to_owned();
        known.push((
            ConditionType::Initialized,
            True,
            (reason::INITIALIZED, text),
        ));
    }
    if is_stalled(stage) {
        let reported = (why.reason.as_str(), why.message.clone());
        known.push((ConditionType::Stalled, True, reported));
    }
    let ours = known
        .into_iter()
        .map(|(type_, status, (reason, message))| Condition {
            last_transition_time: transition_time(before, &type_, status, facts.now),
            type_,
            status,
            reason: reason.to_owned(),
            message,
            observed_generation: facts.generation,
        });
    let others = before
        .iter()
        .filter(|c| matches!(c.type_, ConditionType::Other(_)));
    ours.chain(others.cloned()).collect()
}

/// Whether somebody has to correct something: tools that follow kstatus stop waiting then. What may pass by itself, such
/// as an instance that restarts or an API server that fails, is no reason to.
fn is_stalled(stage: &Stage) -> bool {
    let passes = |reason: &str| {
        reason == reason::NOT_READY
            || reason == reason::PROBE_FAILED
            || reason::PERSISTENT.contains(&reason)
    };
    matches!(stage, Stage::Degraded(_)) && !passes(&stage.why().reason)
}

type Reported<'a> = (ConditionType, ConditionStatus, (&'a str, String));

fn available<'a>(
    stage: &Stage,
    primary: Option<bool>,
    before: &'a [Condition],
) -> Option<Reported<'a>> {
    let (status, reason, message) = match (primary, stage.why().reason.as_str()) {
        (_, reason::TERMINATING) => (False, reason::TERMINATING, "being deleted"),
        (Some(true), _) => (True, reason::PRIMARY_READY, "the primary serves"),
        (Some(false), reason::PAUSED) => (False, reason::PAUSED, "no instances are asked for"),
        (Some(false), _) => (
            False,
            reason::PRIMARY_NOT_READY,
            "the primary does not accept connections",
        ),
        (None, _) => {
            let mut before = before.iter();
            let known = before.find(|c| c.type_ == ConditionType::Available)?;
            (known.status, known.reason.as_str(), known.message.as_str())
        }
    };
    Some((
        ConditionType::Available,
        status,
        (reason, message.to_owned()),
    ))
}

/// Exists only while a Service asks for a load balancer.
fn exposed<'a>(exposure: &Exposure, before: &'a [Condition]) -> Option<Reported<'a>> {
    let (status, reason, message) = match exposure {
        Exposure::NotAsked => return None,
        Exposure::Unknown => {
            let known = before.iter().find(|c| c.type_ == ConditionType::Exposed)?;
            (known.status, known.reason.as_str(), known.message.clone())
        }
        Exposure::Pending(services) => (
            False,
            reason::ADDRESS_PENDING,
            format!(
                "no load balancer has given an address to {services}: see the Events of `kubectl describe service`, \
                 and whether something serves its loadBalancerClass"
            ),
        ),
        Exposure::Assigned => (True, reason::ADDRESS_ASSIGNED, String::new()),
    };
    Some((ConditionType::Exposed, status, (reason, message)))
}

fn transition_time(
    before: &[Condition],
    type_: &ConditionType,
    status: ConditionStatus,
    now: Timestamp,
) -> String {
    let unchanged = before
        .iter()
        .find(|c| c.type_ == *type_ && c.status == status && !c.last_transition_time.is_empty());
    match unchanged {
        Some(condition) => condition.last_transition_time.clone(),
        // The API server keeps times in whole seconds.
        None => now.round(Unit::Second).unwrap_or(now).to_string(),
    }
}
