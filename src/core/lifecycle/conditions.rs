//! From a stage of life to the conditions that are reported.

use jiff::{Timestamp, Unit};

use super::stage::{Stage, reason};
use crate::api::{Condition, ConditionStatus, ConditionType};

use ConditionStatus::{False, True};

/// The conditions that a stage is reported as, and that the cluster is initialized. A condition that keeps its status keeps its
/// `lastTransitionTime`; conditions of types that we do not know stay as they are.
#[must_use]
pub fn conditions(
    stage: &Stage,
    initialized: bool,
    before: &[Condition],
    generation: i64,
    now: Timestamp,
) -> Vec<Condition> {
    let why = stage.why();
    let (ready, progressing, degraded) = match stage {
        Stage::Creating(_) | Stage::Scaling(_) => (False, True, False),
        Stage::Ready(_) => (True, False, False),
        Stage::Degraded(_) => (False, False, True),
        Stage::Terminating(_) if why.reason == reason::TERMINATING => (False, True, False),
        // Something keeps the deletion from being carried out.
        Stage::Terminating(_) => (False, False, True),
    };
    let calm = ("AsExpected", String::new());
    let told = (why.reason.as_str(), why.message.clone());
    let settled = match stage {
        Stage::Ready(_) => (reason::SETTLED, String::new()),
        _ => told.clone(),
    };
    let degraded_why = if degraded == True { told.clone() } else { calm };
    let mut known = vec![
        (ConditionType::Ready, ready, told),
        (ConditionType::Progressing, progressing, settled),
        (ConditionType::Degraded, degraded, degraded_why),
    ];
    if initialized {
        let text = "the volume of the primary has data".to_owned();
        known.push((
            ConditionType::Initialized,
            True,
            (reason::INITIALIZED, text),
        ));
    }
    let ours = known
        .into_iter()
        .map(|(type_, status, (reason, message))| Condition {
            last_transition_time: transition_time(before, &type_, status, now),
            type_,
            status,
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
        });
    let others = before
        .iter()
        .filter(|c| matches!(c.type_, ConditionType::Other(_)));
    ours.chain(others.cloned()).collect()
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
