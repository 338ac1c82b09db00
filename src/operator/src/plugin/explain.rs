//! `explain`: why a DatabaseCluster is not Ready, and the next step. Decided by a pure function from what was read.

use serde::Serialize;

use super::clusters::{ClusterView, InstanceView};
use super::output::{Printable, span};
use crate::api::{ConditionStatus, ConditionType};
use crate::core::lifecycle::reason;

/// A replica needs this long to take a change in, at most: later it is a finding.
const REACTION_SECONDS: i64 = 15;

/// One cause, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    pub(crate) cause: String,
    pub(crate) next_step: String,
}

/// The explanation of one DatabaseCluster.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) ready: bool,
    /// The causes, the first one first to repair; empty if it is Ready and nothing is wrong.
    pub(crate) findings: Vec<Finding>,
    /// What could not be read.
    pub(crate) unavailable: Vec<String>,
}

/// Explanations of several.
pub(crate) struct Explanations(pub(crate) Vec<Explanation>);

impl Printable for Explanations {
    type Data = Vec<Explanation>;

    fn data(&self) -> &Vec<Explanation> {
        &self.0
    }

    fn text(&self, _wide: bool) -> String {
        self.0.iter().map(text).collect()
    }

    fn names(&self) -> Vec<String> {
        let name = |found: &Explanation| format!("databasecluster.database.io/{}", found.name);
        self.0.iter().map(name).collect()
    }
}

fn text(explanation: &Explanation) -> String {
    let ready = if explanation.ready {
        "Ready"
    } else {
        "not Ready"
    };
    let mut text = format!(
        "{}/{} is {ready}.\n",
        explanation.namespace, explanation.name
    );
    for finding in &explanation.findings {
        text.push_str(&format!(
            "  cause: {}\n  next:  {}\n",
            finding.cause, finding.next_step
        ));
    }
    for why in &explanation.unavailable {
        text.push_str(&format!("  not available: {why}\n"));
    }
    text
}

/// Explains one DatabaseCluster.
pub(crate) fn explain(view: &ClusterView) -> Explanation {
    let mut findings = Vec::new();
    findings.extend(nobody_reconciles(view));
    findings.extend(deletion(view));
    findings.extend(degraded(view));
    if findings.is_empty() && !view.ready {
        findings.extend(behind(view));
        findings.extend(view.instances.iter().filter_map(|found| pod(view, found)));
    }
    if findings.is_empty() && !view.ready {
        findings.push(in_progress(view));
    }
    if findings.is_empty() && view.replicas == 0 {
        findings.push(Finding {
            cause: "it is paused: spec.replicas is 0, and no instance runs".to_owned(),
            next_step: format!("kubectl dbc resume -n {} {}", view.namespace, view.name),
        });
    }
    Explanation {
        namespace: view.namespace.clone(),
        name: view.name.clone(),
        ready: view.ready,
        findings,
        unavailable: view.unavailable.clone(),
    }
}

/// No replica reconciles it. That matters for one that is Ready as well: the next change has no effect.
fn nobody_reconciles(view: &ClusterView) -> Option<Finding> {
    let operator = &view.operator;
    let problem = operator.problem.as_ref()?;
    Some(Finding {
        cause: format!("no replica reconciles it: {problem}"),
        next_step: match operator.shard {
            Some(_) => format!(
                "kubectl dbc replicas -n {0}; a takeover takes some seconds; then see the logs of the Pods in namespace {0}",
                operator.namespace
            ),
            None => format!(
                "kubectl get pods -n {}, or name the operator's namespace with --operator-namespace",
                operator.namespace
            ),
        },
    })
}

fn deletion(view: &ClusterView) -> Option<Finding> {
    if !view.deleting {
        return None;
    }
    let waiting = &view.waits_for_finalizers;
    Some(match waiting.is_empty() {
        true => Finding {
            cause: "it is being deleted: its Pods have up to 300 seconds to shut down".to_owned(),
            next_step: format!("wait; kubectl get pods -n {}", view.namespace),
        },
        false => Finding {
            cause: format!(
                "it is being deleted and waits for other programs' finalizers: {}",
                waiting.join(", ")
            ),
            next_step: "check the programs that set these finalizers".to_owned(),
        },
    })
}

fn degraded(view: &ClusterView) -> Option<Finding> {
    let found = view.condition(&ConditionType::Degraded)?;
    if found.status != ConditionStatus::True {
        return None;
    }
    Some(Finding {
        cause: format!("{}: {}", found.reason, found.message),
        next_step: filled(advice(&found.reason), view),
    })
}

/// The operator has not reported on the newest spec.
fn behind(view: &ClusterView) -> Option<Finding> {
    if view.has_status && view.observed_generation == view.generation {
        return None;
    }
    let is_new = view.age_seconds.is_some_and(|age| age < REACTION_SECONDS);
    let replica = view.operator.replica.as_deref().unwrap_or("the operator");
    Some(Finding {
        cause: match view.has_status {
            true => format!(
                "{replica} has reported on generation {} and not yet on {}",
                view.observed_generation, view.generation
            ),
            false => format!("{replica} has not reported on it yet"),
        },
        next_step: match is_new {
            true => "wait some seconds: it was just created".to_owned(),
            false => format!(
                "kubectl dbc top -n {0} (a long queue, failures?), then the log of {replica} in namespace {0}",
                view.operator.namespace
            ),
        },
    })
}

fn pod(view: &ClusterView, instance: &InstanceView) -> Option<Finding> {
    let problem = instance.problem.as_ref()?;
    let reason = problem.split(':').next().unwrap_or_default();
    Some(Finding {
        cause: format!("{}: {problem}", instance.pod),
        next_step: filled(advice(reason), view),
    })
}

fn in_progress(view: &ClusterView) -> Finding {
    let progressing = view.condition(&ConditionType::Progressing);
    let since = progressing.and_then(|found| found.last_transition_time.parse().ok());
    let now = k8s_openapi::jiff::Timestamp::now();
    let since = super::clusters::seconds_since(since, now).map(span);
    let ready = view.condition(&ConditionType::Ready);
    let (reason, message) = ready.map_or(("", "no condition is reported"), |found| {
        (found.reason.as_str(), found.message.as_str())
    });
    let since = since.map(|span| format!(" for {span}")).unwrap_or_default();
    Finding {
        cause: format!("a change is being applied{since}: {message}"),
        next_step: match advice(reason) {
            UNKNOWN => filled(
                "wait; a change that takes 10 minutes is reported as Degraded: kubectl dbc status -n {namespace} {name} --watch",
                view,
            ),
            known => filled(known, view),
        },
    }
}

const UNKNOWN: &str = "act on the message; docs/reference/databasecluster.md lists the reasons";

/// The next step for each reason of a condition or of a container that waits.
const ADVICE: &[(&str, &str)] = &[
    (
        reason::PARAMETERS,
        "correct what the message names in spec.postgresql: kubectl edit -n {namespace} dbc {name}",
    ),
    (
        reason::WAITING,
        "wait; if the object that is named stays, delete it",
    ),
    (
        reason::REPAIRING,
        "wait; if it repeats, find out who changes the object: kubectl get -o yaml --show-managed-fields",
    ),
    (
        reason::NOT_READY,
        "kubectl dbc logs -n {namespace} {name} --all-instances --tail 50",
    ),
    (
        reason::DEADLINE,
        "kubectl dbc status -n {namespace} {name}, and the log: kubectl dbc logs -n {namespace} {name}",
    ),
    (
        reason::MAJOR_VERSION,
        "set spec.image back to the major version of the data; to upgrade, dump and restore into a new DatabaseCluster",
    ),
    (
        reason::SECRET_MISSING,
        "restore the Secret {name}-app from a backup, or create it with the passwords that the database has",
    ),
    (
        reason::SECRET_INVALID,
        "add the missing key to the Secret {name}-app",
    ),
    (
        reason::TLS_MISSING,
        "create the Secret that spec.tls.secretName names; with cert-manager: kubectl describe certificate -n {namespace}",
    ),
    (
        reason::TLS_INVALID,
        "correct what the message names in the Secret of spec.tls; with cert-manager: kubectl describe certificate -n {namespace}",
    ),
    (
        reason::STORAGE,
        "do what the message asks for, or set spec.storage.size back to the size that it names",
    ),
    (
        reason::PRIMARY_VOLUME,
        "docs/how-to/restore.md, \"Missing volume of the primary\": restore the claim of instance 0 first",
    ),
    (
        reason::CLAIM_DELETED,
        "run the command in the message to keep the volume",
    ),
    (
        reason::FOREIGN_CHILD,
        "delete or rename the object that is named, or create the DatabaseCluster under another name",
    ),
    (
        reason::INVALID,
        "correct the field of the spec that the message names",
    ),
    (
        reason::FORBIDDEN,
        "ask the administrator of the policy or quota that the message names",
    ),
    (
        reason::TOKEN_AHEAD,
        "run the command in the message, which removes the edited fencing token",
    ),
    (
        reason::WRITE_REFUSED,
        "see docs/runbooks/DatabaseClusterWritesFenced.md",
    ),
    (
        reason::API_SERVER_ERROR,
        "check the API server and the webhook that the message names; the operator tries again by itself",
    ),
    (
        reason::MISSING_RIGHTS,
        "apply deploy/base/rbac.yaml of the version that runs",
    ),
    (
        reason::RECONCILE_FAILED,
        "see the message and the log of the replica; attach the archive of kubectl dbc report to a bug report",
    ),
    (
        reason::FINALIZERS,
        "remove finalizers of the DatabaseCluster until 63 are left",
    ),
    (
        "Unschedulable",
        "kubectl get nodes, and compare spec.resources, affinity and the claims with what the message says",
    ),
    (
        "FailedMount",
        "kubectl describe pod -n {namespace} -l app.kubernetes.io/instance={name}",
    ),
    (
        "FailedCreate",
        "raise the quota, or correct the policy, that the message names",
    ),
    (
        "ProbeFailed",
        "do what the last line of the probe says; kubectl dbc logs -n {namespace} {name}",
    ),
    (
        "ImagePullBackOff",
        "correct spec.image, or add spec.imagePullSecrets",
    ),
    (
        "ErrImagePull",
        "correct spec.image, or add spec.imagePullSecrets",
    ),
    ("InvalidImageName", "correct spec.image"),
    (
        "CrashLoopBackOff",
        "kubectl dbc logs -n {namespace} {name} --previous",
    ),
    (
        "CreateContainerConfigError",
        "add the key or object that the message names",
    ),
    (
        "CreateContainerError",
        "kubectl describe pod -n {namespace} -l app.kubernetes.io/instance={name}",
    ),
    (
        "RunContainerError",
        "kubectl describe pod -n {namespace} -l app.kubernetes.io/instance={name}",
    ),
];

fn advice(reason: &str) -> &'static str {
    let found = ADVICE.iter().find(|(known, _)| *known == reason);
    found.map_or(UNKNOWN, |(_, advice)| advice)
}

fn filled(advice: &str, view: &ClusterView) -> String {
    advice
        .replace("{namespace}", &view.namespace)
        .replace("{name}", &view.name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::api::Condition;

    fn condition(type_: ConditionType, status: ConditionStatus, reason: &str) -> Condition {
        Condition {
            type_,
            status,
            reason: reason.to_owned(),
            message: format!("the message of {reason}"),
            observed_generation: 2,
            last_transition_time: "2026-01-01T00:00:00Z".to_owned(),
        }
    }

    fn view() -> ClusterView {
        ClusterView {
            namespace: "shop".to_owned(),
            name: "orders".to_owned(),
            replicas: 3,
            generation: 2,
            observed_generation: 2,
            has_status: true,
            age_seconds: Some(900),
            ..ClusterView::default()
        }
    }

    fn first(view: &ClusterView) -> Finding {
        explain(view).findings.first().unwrap().clone()
    }

    #[test]
    fn every_degraded_reason_of_the_documentation_has_a_next_step() {
        let page = include_str!("../../../../docs/reference/databasecluster.md");
        let rows = page.lines().filter(|line| line.contains("| Degraded"));
        let reasons: Vec<&str> = rows
            .flat_map(|row| row.split('|').nth(1).unwrap_or_default().split(','))
            .map(|name| name.trim().trim_matches('`'))
            .filter(|name| name.starts_with(char::is_uppercase) && !name.contains(' '))
            .filter(|name| *name != "Degraded")
            .collect();
        assert!(reasons.len() > 20, "{reasons:?}");
        for reason in reasons {
            assert_ne!(advice(reason), UNKNOWN, "{reason}");
        }
    }

    #[test]
    fn ready_cluster_needs_no_explanation() {
        let mut view = view();
        view.ready = true;
        assert_eq!(explain(&view).findings, []);
        view.replicas = 0;
        assert!(first(&view).cause.contains("paused"));
        assert_eq!(first(&view).next_step, "kubectl dbc resume -n shop orders");
    }

    #[test]
    fn missing_operator_comes_first() {
        let mut view = view();
        view.conditions = vec![condition(
            ConditionType::Degraded,
            ConditionStatus::True,
            reason::STORAGE,
        )];
        view.operator.problem = Some("no replica holds shard 7".to_owned());
        let findings = explain(&view).findings;
        assert_eq!(findings.len(), 2);
        assert!(findings[0].cause.contains("no replica holds shard 7"));
        assert!(
            findings[1]
                .cause
                .starts_with("StorageNotGrown: the message")
        );
        assert!(findings[1].next_step.contains("spec.storage.size"));
    }

    #[test]
    fn cause_of_a_waiting_pod_is_reported_before_the_operator_diagnoses_it() {
        let mut view = view();
        view.instances = vec![InstanceView {
            pod: "orders-db-0".to_owned(),
            problem: Some("ErrImagePull: no such image".to_owned()),
            ..InstanceView::default()
        }];
        let found = first(&view);
        assert_eq!(found.cause, "orders-db-0: ErrImagePull: no such image");
        assert!(found.next_step.starts_with("correct spec.image"));
    }

    #[test]
    fn generation_that_nobody_reported_on_is_a_cause() {
        let mut view = view();
        view.observed_generation = 1;
        view.operator.replica = Some("op-1".to_owned());
        let found = first(&view);
        assert_eq!(
            found.cause,
            "op-1 has reported on generation 1 and not yet on 2"
        );
        view.has_status = false;
        assert_eq!(first(&view).cause, "op-1 has not reported on it yet");
    }

    #[test]
    fn change_under_way_is_no_failure_of_the_explanation() {
        let mut view = view();
        view.conditions = vec![
            condition(
                ConditionType::Ready,
                ConditionStatus::False,
                reason::SCALING,
            ),
            condition(
                ConditionType::Progressing,
                ConditionStatus::True,
                reason::SCALING,
            ),
        ];
        let found = first(&view);
        assert!(
            found.cause.starts_with("a change is being applied for "),
            "{}",
            found.cause
        );
        assert!(found.next_step.contains("--watch"), "{}", found.next_step);
    }

    #[test]
    fn deletion_names_the_finalizers_of_others() {
        let mut view = view();
        view.deleting = true;
        assert!(first(&view).cause.contains("300 seconds"));
        view.waits_for_finalizers = vec!["example.com/hold".to_owned()];
        assert!(first(&view).cause.contains("example.com/hold"));
    }
}
