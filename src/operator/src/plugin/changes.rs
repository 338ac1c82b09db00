//! `pause`, `resume` and `restart`: changes of the spec, which the operator carries out as any other.

use std::time::Duration;

use k8s_openapi::jiff::{Timestamp, Unit};
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use super::access::Session;
use super::args::Change;
use super::clusters::{self, ClusterView, read_fleet};
use super::failure::{Exit, Failure};
use super::output::{print, span};
use crate::api::ConditionType;

/// Annotation of a paused DatabaseCluster: its number of instances before.
const REPLICAS_BEFORE: &str = "kubectl-dbc/replicas-before-pause";
/// Annotation of the Pods of a restarted DatabaseCluster. A new value is a new template.
const RESTARTED_AT: &str = "kubectl-dbc/restarted-at";
/// Field manager of these changes.
const MANAGER: &str = "kubectl-dbc";
const POLL: Duration = Duration::from_millis(500);
/// Instances that `resume` may be asked for.
const REPLICAS_MAX: u32 = 99;

pub(crate) async fn pause(session: &Session, change: &Change) -> Result<(), Failure> {
    let object = clusters::get(session, &change.name).await?;
    let replicas = replicas(&object);
    if replicas == 0 {
        print(&format!(
            "databasecluster.database.io/{} is paused already\n",
            change.name
        ))?;
        return Ok(());
    }
    let patch = json!({
        "metadata": versioned(&object, json!({REPLICAS_BEFORE: replicas.to_string()})),
        "spec": {"replicas": 0},
    });
    let changed = send(session, &change.name, patch).await?;
    print(&format!(
        "databasecluster.database.io/{} paused: its {replicas} instances stop, and its volumes stay\n",
        change.name
    ))?;
    wait(session, change, &changed).await
}

pub(crate) async fn resume(
    session: &Session,
    change: &Change,
    given: Option<u32>,
) -> Result<(), Failure> {
    let object = clusters::get(session, &change.name).await?;
    if replicas(&object) != 0 {
        print(&format!(
            "databasecluster.database.io/{} is not paused\n",
            change.name
        ))?;
        return Ok(());
    }
    let annotations = object.metadata.annotations.as_ref();
    let before = annotations.and_then(|all| all.get(REPLICAS_BEFORE)?.parse().ok());
    let Some(replicas) = given.or(before) else {
        let message = format!(
            "{} was not paused by this command, so the number of its instances is not known: add --replicas",
            change.name
        );
        return Err(Failure::new(Exit::Usage, message));
    };
    if !(1..=REPLICAS_MAX).contains(&replicas) {
        let message = format!("--replicas {replicas}: allowed are 1 to {REPLICAS_MAX}");
        return Err(Failure::new(Exit::Usage, message));
    }
    let patch = json!({
        "metadata": versioned(&object, json!({REPLICAS_BEFORE: null})),
        "spec": {"replicas": replicas},
    });
    let changed = send(session, &change.name, patch).await?;
    print(&format!(
        "databasecluster.database.io/{} resumed with {replicas} instances\n",
        change.name
    ))?;
    wait(session, change, &changed).await
}

pub(crate) async fn restart(session: &Session, change: &Change) -> Result<(), Failure> {
    let object = clusters::get(session, &change.name).await?;
    if replicas(&object) == 0 {
        let message = format!(
            "{} is paused, there is nothing to restart: kubectl dbc resume",
            change.name
        );
        return Err(Failure::new(Exit::Failed, message));
    }
    let now = Timestamp::now();
    let now = now.round(Unit::Second).unwrap_or(now).to_string();
    let annotations = json!({"metadata": {"annotations": {RESTARTED_AT: now}}});
    let patch = json!({"spec": {"podTemplate": annotations}});
    let changed = send(session, &change.name, patch).await?;
    print(&format!(
        "databasecluster.database.io/{} restarted: one instance after the other, the primary last\n",
        change.name
    ))?;
    wait(session, change, &changed).await
}

fn replicas(object: &DynamicObject) -> u64 {
    let replicas = object.data.pointer("/spec/replicas");
    replicas.and_then(Value::as_u64).unwrap_or(1)
}

/// Metadata of a patch for exactly the version that was read: two users who pause and resume at once do not undo each
/// other unseen.
fn versioned(object: &DynamicObject, annotations: Value) -> Value {
    json!({
        "uid": object.metadata.uid,
        "resourceVersion": object.metadata.resource_version,
        "annotations": annotations,
    })
}

async fn send(session: &Session, name: &str, patch: Value) -> Result<DynamicObject, Failure> {
    let api = clusters::api(session.client.clone(), &session.namespace);
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let sent = api.patch(name, &params, &Patch::Merge(patch)).await;
    sent.map_err(|error| {
        let what = format!(
            "change DatabaseCluster {name} in namespace {}",
            session.namespace
        );
        match &error {
            kube::Error::Api(status) if status.code == 409 => Failure::new(
                Exit::Failed,
                format!("cannot {what}: it was changed at the same time; run the command again"),
            ),
            _ => Failure::request(what, &error),
        }
    })
}

/// Waits until the operator reports that the change has taken effect.
async fn wait(session: &Session, change: &Change, changed: &DynamicObject) -> Result<(), Failure> {
    if !change.wait {
        return Ok(());
    }
    let generation = changed.metadata.generation.unwrap_or_default();
    let started = tokio::time::Instant::now();
    let mut last = String::new();
    loop {
        let object = clusters::get(session, &change.name).await?;
        let fleet = read_fleet(session).await;
        let now = Timestamp::now();
        let view = ClusterView::of(&object, &fleet, &session.operator_namespace, now);
        let is_reported = view.observed_generation >= generation;
        let progress = progress(&view, is_reported);
        if progress != last {
            print(&format!("{progress}\n"))?;
            last = progress;
        }
        if is_reported && view.ready {
            return Ok(());
        }
        if started.elapsed() >= change.timeout {
            let seconds = i64::try_from(change.timeout.as_secs()).unwrap_or(i64::MAX);
            let message = format!(
                "not finished after {}: {last}; kubectl dbc explain -n {} {}",
                span(seconds),
                session.namespace,
                change.name
            );
            return Err(Failure::new(Exit::TimedOut, message));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn progress(view: &ClusterView, is_reported: bool) -> String {
    let ready = view.condition(&ConditionType::Ready);
    match (is_reported, ready, &view.operator.problem) {
        (_, _, Some(problem)) => format!("waiting: {problem}"),
        (false, _, _) | (_, None, _) => "waiting until the operator has seen the change".to_owned(),
        (true, Some(ready), _) => format!("{}: {}", ready.reason, ready.message),
    }
}
