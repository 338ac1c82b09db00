//! `status`: DatabaseClusters in a table, or one in full.

use k8s_openapi::jiff::Timestamp;

use super::access::Session;
use super::args::Which;
use super::clusters::{self, ClusterView, InstanceView, seconds_since};
use super::failure::Failure;
use super::output::{Printable, bytes, columns, span};
use crate::api::ConditionType;

/// Events that are shown unless the output is wide.
const EVENTS_SHOWN: usize = 8;

/// What is read beside the DatabaseClusters themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Details {
    /// Nothing.
    None,
    /// Children, Pods and Events of those that are not Ready.
    OfUnready,
    /// Children, Pods and Events of each, and what is measured inside its instances.
    All,
}

/// DatabaseClusters, with details.
pub(crate) struct Clusters {
    pub(crate) views: Vec<ClusterView>,
    details: Details,
    has_several_namespaces: bool,
}

/// Reads the DatabaseClusters that are meant.
pub(crate) async fn read(
    session: &Session,
    which: &Which,
    details: Details,
) -> Result<Clusters, Failure> {
    let objects = clusters::select(session, which).await?;
    let fleet = clusters::read_fleet(session).await;
    let now = Timestamp::now();
    let mut views = Vec::new();
    for object in &objects {
        let mut view = ClusterView::of(object, &fleet, &session.operator_namespace, now);
        match details {
            Details::None => {}
            Details::OfUnready => {
                if !view.ready {
                    view.read_details(session, now).await;
                }
            }
            Details::All => {
                view.read_details(session, now).await;
                view.measure(session).await;
            }
        }
        views.push(view);
    }
    Ok(Clusters {
        views,
        details,
        has_several_namespaces: which.all_namespaces,
    })
}

impl Printable for Clusters {
    type Data = Vec<ClusterView>;

    fn data(&self) -> &Vec<ClusterView> {
        &self.views
    }

    fn text(&self, wide: bool) -> String {
        if self.details == Details::All {
            let texts: Vec<String> = self.views.iter().map(|view| detailed(view, wide)).collect();
            return texts.join("\n");
        }
        self.table(wide)
    }

    fn names(&self) -> Vec<String> {
        let name = |view: &ClusterView| format!("databasecluster.database.io/{}", view.name);
        self.views.iter().map(name).collect()
    }
}

impl Clusters {
    fn table(&self, wide: bool) -> String {
        let mut head = vec![
            "NAME",
            "PHASE",
            "READY",
            "INSTANCES",
            "REPLICA",
            "LAST WRITE",
            "AGE",
        ];
        if self.has_several_namespaces {
            head.insert(0, "NAMESPACE");
        }
        if wide {
            head.extend(["SHARD", "IMAGE", "REASON"]);
        }
        let rows = self.views.iter().map(|view| {
            let ready = view.condition(&ConditionType::Ready);
            let mut row = vec![
                view.name.clone(),
                view.phase.unwrap_or_default().to_owned(),
                yes(view.ready).to_owned(),
                format!("{}/{}", view.ready_replicas, view.replicas),
                reconciler(view),
                ago(view.operator.last_write_seconds_ago),
                view.age_seconds.map(span).unwrap_or_default(),
            ];
            if self.has_several_namespaces {
                row.insert(0, view.namespace.clone());
            }
            if wide {
                let shard = view.operator.shard.map(|shard| shard.to_string());
                row.push(shard.unwrap_or_default());
                row.push(view.image.clone());
                row.push(ready.map(|found| found.reason.clone()).unwrap_or_default());
            }
            row
        });
        let mut text = String::new();
        columns(&mut text, &head, rows.collect());
        text
    }
}

const fn yes(is_so: bool) -> &'static str {
    if is_so { "True" } else { "False" }
}

fn ago(seconds: Option<i64>) -> String {
    seconds
        .map(|seconds| format!("{} ago", span(seconds)))
        .unwrap_or_default()
}

/// The replica that reconciles it, in one word.
fn reconciler(view: &ClusterView) -> String {
    match (&view.operator.replica, &view.operator.problem) {
        (Some(replica), None) => replica.clone(),
        (Some(replica), Some(_)) => format!("{replica} (?)"),
        (None, _) => "nobody".to_owned(),
    }
}

/// Everything of one DatabaseCluster.
fn detailed(view: &ClusterView, wide: bool) -> String {
    let mut text = summary(view);
    text.push_str("\nInstances:\n");
    if view.instances.is_empty() {
        text.push_str("  none\n");
    } else {
        instances(view, wide, &mut text);
    }
    text.push_str("\nChildren:\n");
    let rows = view.children.iter();
    let rows = rows.map(|child| {
        vec![
            child.kind.to_owned(),
            child.name.clone(),
            child.state.clone(),
        ]
    });
    indented(&mut text, &["KIND", "NAME", "STATE"], rows.collect());
    text.push_str("\nConditions:\n");
    if view.conditions.is_empty() {
        text.push_str("  none: no replica has reported on it yet\n");
    } else {
        conditions(view, &mut text);
    }
    text.push_str("\nLast Events:\n");
    events(view, wide, &mut text);
    for why in &view.unavailable {
        text.push_str(&format!("\nnot available: {why}\n"));
    }
    text
}

fn summary(view: &ClusterView) -> String {
    let primary = view
        .instances
        .iter()
        .find(|instance| instance.role == "primary");
    let primary = match primary {
        Some(primary) if primary.ready => format!("{} (ready)", primary.pod),
        Some(primary) => format!("{} (not ready: {})", primary.pod, primary.state),
        None if view.replicas == 0 => "none: it is paused".to_owned(),
        None => "none: its Pod does not exist".to_owned(),
    };
    let operator = &view.operator;
    let mut by = match (&operator.replica, operator.shard, operator.epoch) {
        (Some(replica), Some(shard), Some(epoch)) => {
            format!(
                "{replica} (shard {shard}, epoch {epoch}, namespace {})",
                operator.namespace
            )
        }
        _ => "nobody".to_owned(),
    };
    if let Some(problem) = &operator.problem {
        by.push_str(&format!("; {problem}"));
    }
    let last = match (&operator.last_write, operator.last_write_seconds_ago) {
        (Some(at), seconds) => format!(
            "{at} ({}); the operator writes only what differs; status last written by {}",
            ago(seconds),
            operator.last_status_by.as_deref().unwrap_or("nobody")
        ),
        (None, _) => "never".to_owned(),
    };
    let phase = match (view.phase, view.deleting) {
        (Some(phase), _) => phase,
        (None, true) => "Terminating",
        (None, false) => "none yet",
    };
    let rows = [
        ("Name", format!("{}/{}", view.namespace, view.name)),
        (
            "Phase",
            format!(
                "{phase}, {} of {} instances ready",
                view.ready_replicas, view.replicas
            ),
        ),
        ("Image", view.image.clone()),
        ("Primary", primary),
        ("Generation", generation(view)),
        ("Reconciled by", by),
        ("Last write", last),
    ];
    let line = |(name, value): &(&str, String)| format!("{:15}{value}\n", format!("{name}:"));
    rows.iter().map(line).collect()
}

fn generation(view: &ClusterView) -> String {
    match view.observed_generation == view.generation {
        true => format!("{}, reported on", view.generation),
        false => format!(
            "{}, of which {} is reported on",
            view.generation, view.observed_generation
        ),
    }
}

fn instances(view: &ClusterView, wide: bool, text: &mut String) {
    let mut head = vec!["POD", "ROLE", "STATE", "READY", "LAG", "VOLUME", "RESTARTS"];
    if wide {
        head.extend(["NODE", "RECEIVER"]);
    }
    let rows = view.instances.iter().map(|instance| {
        let mut row = vec![
            instance.pod.clone(),
            instance.role.to_owned(),
            instance.state.clone(),
            yes(instance.ready).to_owned(),
            lag(instance),
            volume(instance),
            instance.restarts.to_string(),
        ];
        if wide {
            let measured = instance.measured.as_ref();
            row.push(instance.node.clone().unwrap_or_default());
            row.push(
                measured
                    .and_then(|found| found.receiver.clone())
                    .unwrap_or_default(),
            );
        }
        row
    });
    indented(text, &head, rows.collect());
    for instance in &view.instances {
        if let Some(problem) = &instance.problem {
            text.push_str(&format!("  {}: {problem}\n", instance.pod));
        }
    }
    let unmeasured = view.instances.iter().filter_map(|instance| {
        let why = instance.unmeasured.as_ref()?;
        Some((instance.pod.as_str(), why.as_str()))
    });
    for (pod, why) in unmeasured {
        text.push_str(&format!(
            "  {pod}: lag and volume use are not available: {why}\n"
        ));
    }
}

fn lag(instance: &InstanceView) -> String {
    let Some(measured) = &instance.measured else {
        return "?".to_owned();
    };
    match (instance.role, measured.lag_bytes, measured.lag_seconds) {
        ("primary", _, _) => String::new(),
        (_, Some(behind), Some(seconds)) if seconds > 0 => {
            format!(
                "{}, {}",
                bytes(behind),
                span(i64::try_from(seconds).unwrap_or(i64::MAX))
            )
        }
        (_, Some(behind), _) => bytes(behind),
        (_, None, _) => "?".to_owned(),
    }
}

fn volume(instance: &InstanceView) -> String {
    let measured = instance.measured.as_ref();
    let used = measured.and_then(|found| {
        let (used, size) = (found.volume_used_bytes?, found.volume_size_bytes?);
        Some((used, size, found.volume_percent()?))
    });
    match used {
        Some((used, size, percent)) => format!("{percent}% ({} of {})", bytes(used), bytes(size)),
        None => "?".to_owned(),
    }
}

fn conditions(view: &ClusterView, text: &mut String) {
    let now = Timestamp::now();
    let rows = view.conditions.iter().map(|found| {
        let since = seconds_since(found.last_transition_time.parse().ok(), now);
        vec![
            found.type_.label().to_owned(),
            format!("{:?}", found.status),
            since.map(span).unwrap_or_default(),
            found.reason.clone(),
            found.message.clone(),
        ]
    });
    indented(
        text,
        &["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"],
        rows.collect(),
    );
}

fn events(view: &ClusterView, wide: bool, text: &mut String) {
    let shown = if wide {
        clusters::EVENTS_MAX
    } else {
        EVENTS_SHOWN
    };
    let rows: Vec<Vec<String>> = view
        .events
        .iter()
        .take(shown)
        .map(|event| {
            vec![
                ago(event.seconds_ago),
                event.type_.clone(),
                event.reason.clone(),
                event.object.clone(),
                event.message.clone(),
            ]
        })
        .collect();
    if rows.is_empty() {
        text.push_str("  none: Kubernetes keeps them for an hour by default\n");
    } else {
        indented(
            text,
            &["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"],
            rows,
        );
    }
}

fn indented(text: &mut String, head: &[&str], rows: Vec<Vec<String>>) {
    let mut table = String::new();
    columns(&mut table, head, rows);
    for line in table.lines() {
        text.push_str(&format!("  {line}\n"));
    }
}
