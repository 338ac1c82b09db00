//! Why the Pods of a cluster are not ready, as messages that stay the same while the cause does.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Event, Pod,
};

use super::dependents::ObjectRef;
use crate::core::claims::DATA_VOLUME;
use crate::core::lifecycle::{ConditionReason, reason};
use crate::core::observed::StatefulSetRecord;
use crate::postgres;

/// Longest text taken from a Pod, in bytes.
const TEXT_LENGTH_MAX: usize = 400;
/// How what `tls.sh` reports begins.
const ABOUT_TLS: &str = "TLS: ";
/// What it reports once nothing is wrong any more.
const TLS_IN_ORDER: &str = "the certificate is in order again";
/// It reports at least that often what is wrong with a certificate.
const TLS_REPORT_INTERVAL: SignedDuration = SignedDuration::from_mins(15);
/// Label of a Pod: the revision of its template.
const REVISION_LABEL: &str = "controller-revision-hash";

/// The first cause among these Pods, by the Pods' names; none if nothing keeps them from becoming
/// ready. `class_name` is the StorageClass that their claims request.
#[must_use]
pub(crate) fn diagnose(pods: &[Pod], class_name: Option<&str>) -> Option<ConditionReason> {
    let mut pods: Vec<&Pod> = pods.iter().collect();
    pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    pods.into_iter()
        .find_map(|pod| diagnose_pod(pod, class_name))
}

fn diagnose_pod(pod: &Pod, class_name: Option<&str>) -> Option<ConditionReason> {
    let name = pod.metadata.name.as_deref().unwrap_or("?");
    let status = pod.status.as_ref()?;
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let unschedulable = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    });
    if let Some(condition) = unschedulable {
        let text = shorten(condition.message.as_deref().unwrap_or("no reason given"));
        let lower = text.to_lowercase();
        let about_volume = ["persistentvolumeclaim", "storageclass", "persistent volume"]
            .iter()
            .any(|word| lower.contains(word));
        let class = match class_name {
            Some(class) => format!("the StorageClass {class:?} exists"),
            None => "there is a default StorageClass".to_owned(),
        };
        let hint = match about_volume {
            true => format!(
                "; see `kubectl describe pvc {}`, and whether {class}",
                claim_of(name)
            ),
            false => String::new(),
        };
        return Some(ConditionReason::new(
            "Unschedulable",
            format!("Pod {name} cannot be placed on a node: {text}{hint}"),
        ));
    }
    let init = status.init_container_statuses.iter().flatten();
    let containers = status.container_statuses.iter().flatten();
    let mut all: Vec<&ContainerStatus> = init.chain(containers).collect();
    // Injected containers come after ours.
    all.sort_by_key(|container| {
        let mut ours = postgres::CONTAINERS.iter();
        let place = ours.position(|name| *name == container.name);
        place.unwrap_or(usize::MAX)
    });
    all.into_iter().find_map(|container| {
        let (reason, text) = diagnose_container(container)?;
        let container = &container.name;
        if let Some(text) = text.strip_prefix(ABOUT_TLS) {
            let message = format!("Pod {name}: {text}");
            return Some(ConditionReason::new(reason::TLS_INVALID, message));
        }
        let hint = match container == postgres::EXPORTER_CONTAINER {
            true => ". It is no part of the database: correct spec.monitoring.exporter",
            false => "",
        };
        Some(ConditionReason::new(
            &reason,
            format!("Pod {name}: container {container}: {reason}: {text}{hint}"),
        ))
    })
}

fn claim_of(pod: &str) -> String {
    format!("{DATA_VOLUME}-{pod}")
}

/// Pods that will not become ready and do not have the newest template: the controller waits for
/// some of them instead of replacing them.
pub(super) fn stuck(pods: &[Pod], set: &StatefulSetRecord) -> Vec<ObjectRef> {
    if set.observed_generation < set.generation || set.update_revision.is_empty() {
        return Vec::new();
    }
    let is_former = |pod: &&Pod| {
        let labels = pod.metadata.labels.as_ref();
        let revision = labels.and_then(|labels| labels.get(REVISION_LABEL));
        revision.is_some_and(|revision| *revision != set.update_revision)
    };
    pods.iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter(is_former)
        // A server that runs is replaced by the controller, in its order.
        .filter(|pod| !is_container_ready(pod))
        .filter(|pod| diagnose_pod(pod, None).is_some())
        .filter_map(|pod| ObjectRef::of(&pod.metadata))
        .collect()
}

/// What the newest of these events of a StatefulSet says.
pub(super) fn explain_events(events: &[Event], set: &StatefulSetRecord) -> Option<ConditionReason> {
    let about_this = |event: &&Event| event.involved_object.uid.as_ref() == Some(&set.child.uid);
    let newest = newest(events.iter().filter(about_this))?;
    let text = shorten(newest.message.as_deref()?);
    Some(ConditionReason::new(
        "FailedCreate",
        format!("{} has no Pod to run in: {text}", set.child.id()),
    ))
}

/// The first Pod, by name, with a container that has started and is not ready.
pub(super) fn unready(pods: &[Pod]) -> Option<&Pod> {
    let is_unready = |pod: &&Pod| {
        let status = pod.status.as_ref();
        let containers = status.and_then(|status| status.container_statuses.as_ref());
        let started =
            |container: &ContainerStatus| container.started == Some(true) && !container.ready;
        pod.metadata.deletion_timestamp.is_none()
            && containers.is_some_and(|all| all.iter().any(started))
    };
    first(pods.iter().filter(is_unready))
}

/// The first Pod, by name, that has a node and whose containers wait for its volumes.
pub(super) fn unmounted(pods: &[Pod]) -> Option<&Pod> {
    let is_unmounted = |pod: &&Pod| {
        let Some(status) = &pod.status else {
            return false;
        };
        let init = status.init_container_statuses.iter().flatten();
        let mut containers = init.chain(status.container_statuses.iter().flatten());
        let has_run = |container: &ContainerStatus| {
            let states = [&container.state, &container.last_state];
            states
                .into_iter()
                .flatten()
                .any(|state| state.running.is_some() || state.terminated.is_some())
        };
        pod.metadata.deletion_timestamp.is_none()
            && has_condition(pod, "PodScheduled")
            && !has_condition(pod, "PodReadyToStartContainers")
            && !containers.any(has_run)
    };
    first(pods.iter().filter(is_unmounted))
}

/// Why the volumes of a Pod cannot be mounted, by its events. That the Secret is missing is not
/// reported here: the operator creates it, or reports that it is gone.
pub(super) fn explain_mount(events: &[Event], pod: &Pod, secret: &str) -> Option<ConditionReason> {
    const MISSING_KEY: &str = "references non-existent secret key: ";
    let missing_secret = format!("secret \"{secret}\" not found");
    let reported = |event: &&Event| {
        let text = event.message.as_deref().unwrap_or_default();
        event.involved_object.uid == pod.metadata.uid && !text.contains(&missing_secret)
    };
    let name = pod.metadata.name.as_deref().unwrap_or("?");
    // The kubelet also reports, later, that its time for the mount ran out.
    let keys = events.iter().filter(reported).filter(|event| {
        let text = event.message.as_deref();
        text.is_some_and(|text| text.contains(MISSING_KEY))
    });
    let missing = newest(keys).and_then(|event| event.message.as_deref()?.split_once(MISSING_KEY));
    if let Some((_, key)) = missing {
        let key = shorten(key.split_whitespace().next().unwrap_or_default());
        return Some(ConditionReason::new(
            reason::SECRET_INVALID,
            format!(
                "Secret {secret} has no key {key}, so Pod {name} is not started with it. It needs \
                 the keys username, password, dbname and replication-password: add them, or use \
                 another name for the DatabaseCluster if the Secret is not meant for it"
            ),
        ));
    }
    let text = newest(events.iter().filter(reported))?.message.as_deref()?;
    Some(ConditionReason::new(
        "FailedMount",
        format!("Pod {name} cannot mount its volumes: {}", shorten(text)),
    ))
}

/// Whether a Pod receives traffic.
pub(super) fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && has_condition(pod, "Ready")
}

/// Whether PostgreSQL's container is ready, whatever the others do.
pub(super) fn is_container_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let mut containers = status
        .and_then(|status| status.container_statuses.as_ref())
        .into_iter()
        .flatten();
    pod.metadata.deletion_timestamp.is_none()
        && containers.any(|container| container.name == postgres::CONTAINER && container.ready)
}

fn has_condition(pod: &Pod, kind: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == kind && condition.status == "True")
}

/// The first of these Pods, by name.
fn first<'a>(pods: impl Iterator<Item = &'a Pod>) -> Option<&'a Pod> {
    pods.min_by(|a, b| a.metadata.name.cmp(&b.metadata.name))
}

/// What the readiness probe of a Pod said last, by the newest of its events; none when it failed
/// without a word, as it does while PostgreSQL starts.
pub(super) fn explain_probe(events: &[Event], pod: &Pod) -> Option<ConditionReason> {
    let about_this = |event: &&Event| event.involved_object.uid == pod.metadata.uid;
    let event = newest(events.iter().filter(about_this))?;
    let reported = event
        .message
        .as_deref()?
        .strip_prefix("Readiness probe failed:")?
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())?;
    let name = pod.metadata.name.as_deref().unwrap_or("?");
    if let Some(text) = reported.strip_prefix(ABOUT_TLS) {
        return Some(ConditionReason::new(
            reason::TLS_INVALID,
            format!("Pod {name}: {}", shorten(text)),
        ));
    }
    let path = event.involved_object.field_path.as_deref();
    let whose = match path.and_then(container_in) {
        Some(container) if container != postgres::CONTAINER => format!("container {container}: "),
        _ => String::new(),
    };
    Some(ConditionReason::new(
        reason::PROBE_FAILED,
        format!(
            "Pod {name} runs and is not ready: {whose}{}",
            shorten(reported)
        ),
    ))
}

/// What the instance in this Pod, which may be ready, reported last of its certificate; none if it is in order, or if that
/// was so long ago that it would have been reported again.
pub(super) fn explain_tls(events: &[Event], pod: &str, now: Timestamp) -> Option<ConditionReason> {
    let about_tls = events.iter().filter(|event| {
        let message = event.message.as_deref().unwrap_or_default();
        message.contains(ABOUT_TLS)
    });
    let event = newest(about_tls)?;
    let at = event.last_timestamp.as_ref().map(|time| time.0);
    let at = at.or_else(|| event.event_time.as_ref().map(|time| time.0))?;
    if now.duration_since(at) > TLS_REPORT_INTERVAL {
        return None;
    }
    let (_, text) = event.message.as_deref()?.split_once(ABOUT_TLS)?;
    let text = text.lines().next().unwrap_or_default().trim();
    (!text.starts_with(TLS_IN_ORDER))
        .then(|| ConditionReason::new(reason::TLS_INVALID, format!("Pod {pod}: {}", shorten(text))))
}

/// The container that an event is about: `spec.containers{postgres}`.
fn container_in(field_path: &str) -> Option<&str> {
    let (_, rest) = field_path.split_once('{')?;
    rest.strip_suffix('}')
}

fn newest<'a>(events: impl Iterator<Item = &'a Event>) -> Option<&'a Event> {
    events.max_by_key(|event| {
        let last = event.last_timestamp.as_ref().map(|time| time.0);
        last.or_else(|| event.event_time.as_ref().map(|time| time.0))
    })
}

fn diagnose_container(container: &ContainerStatus) -> Option<(String, String)> {
    let state = container.state.as_ref()?;
    // Between two attempts: the same as waiting for the next one.
    if let Some(end) = state.terminated.as_ref().filter(|end| end.exit_code != 0) {
        return Some(("CrashLoopBackOff".to_owned(), explain_end(end)));
    }
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    match reason {
        // Both alternate while the kubelet retries.
        "ErrImagePull" | "ImagePullBackOff" => Some((
            "ImagePullBackOff".to_owned(),
            format!("image {:?} cannot be pulled", container.image),
        )),
        "InvalidImageName" => Some((
            reason.to_owned(),
            format!("{:?} is not the name of an image", container.image),
        )),
        // The message contains an increasing time.
        "CrashLoopBackOff" => Some((reason.to_owned(), last_exit(container))),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            let text = waiting.message.as_deref().unwrap_or("no reason given");
            Some((reason.to_owned(), shorten(text)))
        }
        _ => None,
    }
}

fn last_exit(container: &ContainerStatus) -> String {
    let terminated = container
        .last_state
        .as_ref()
        .and_then(|state: &ContainerState| state.terminated.as_ref());
    match terminated {
        Some(end) => explain_end(end),
        None => "it keeps ending; see its log".to_owned(),
    }
}

/// Its last log line is the most informative: the Pods are configured to hand over the end of their
/// logs.
fn explain_end(end: &ContainerStateTerminated) -> String {
    let last_line = end
        .message
        .as_deref()
        .and_then(|text| text.lines().rev().find(|line| !line.trim().is_empty()));
    if let Some(line) = last_line {
        return shorten(line.trim());
    }
    let reason = end.reason.as_deref().unwrap_or("Error");
    let code = end.exit_code;
    format!("it keeps ending with exit code {code} ({reason}); see its log")
}

fn shorten(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_LENGTH_MAX);
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn diagnose(pods: &[Pod]) -> Option<ConditionReason> {
        super::diagnose(pods, Some("fast"))
    }

    fn pod(name: &str, status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name}, "status": status})).unwrap()
    }

    fn waiting(reason: &str, message: &str) -> Value {
        json!({"containerStatuses": [{
            "name": "postgres", "image": "postgres:0", "imageID": "", "ready": false,
            "restartCount": 3,
            "state": {"waiting": {"reason": reason, "message": message}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
        }]})
    }

    #[test]
    fn unpullable_image_is_named() {
        let why = diagnose(&[pod("x-db-0", waiting("ErrImagePull", "…"))]).unwrap();
        assert_eq!(why.reason, "ImagePullBackOff");
        assert_eq!(
            why.message,
            "Pod x-db-0: container postgres: ImagePullBackOff: image \"postgres:0\" cannot be pulled"
        );
    }

    #[test]
    fn the_text_stays_the_same_while_the_kubelet_waits_longer_and_longer() {
        for (a, b) in [
            ("back-off 10s restarting", "back-off 20s restarting"),
            ("back-off 20s restarting", "back-off 5m0s restarting"),
        ] {
            let a = diagnose(&[pod("x-db-0", waiting("CrashLoopBackOff", a))]);
            let b = diagnose(&[pod("x-db-0", waiting("CrashLoopBackOff", b))]);
            assert!(a.is_some());
            assert_eq!(a, b);
        }
        let pulling = diagnose(&[pod("x-db-0", waiting("ErrImagePull", "a"))]);
        let backing_off = diagnose(&[pod("x-db-0", waiting("ImagePullBackOff", "b"))]);
        assert_eq!(pulling, backing_off);
    }

    #[test]
    fn unscheduled_pod_is_explained() {
        let status = json!({"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient cpu.",
        }]});
        let why = diagnose(&[pod("x-db-1", status)]).unwrap();
        assert_eq!(why.reason, "Unschedulable");
        assert!(why.message.contains("Insufficient cpu"), "{}", why.message);
    }

    #[test]
    fn unprovisioned_volume_is_named_with_its_claim() {
        for text in [
            "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
            "storageclass.storage.k8s.io \"nope\" not found",
        ] {
            let status = json!({"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": text,
            }]});
            let why = diagnose(&[pod("x-db-1", status)]).unwrap();
            assert!(why.message.contains(text), "{}", why.message);
            assert!(why.message.contains("pvc data-x-db-1"), "{}", why.message);
            assert!(why.message.contains("\"fast\""), "{}", why.message);
        }
    }

    #[test]
    fn last_container_message_is_reported_between_restarts() {
        let end = json!({"exitCode": 1, "message": "waiting\nthe Secret has no key\n"});
        let of = |state: Value, last: Value| {
            let status = json!({"initContainerStatuses": [{
                "name": "prepare", "image": "x", "imageID": "", "ready": false, "restartCount": 1,
                "state": state, "lastState": last,
            }]});
            diagnose(&[pod("x-db-1", status)]).unwrap()
        };
        let ended = of(json!({"terminated": end}), json!({}));
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        assert_eq!(ended, of(waiting, json!({"terminated": end})));
        assert_eq!(
            ended.message,
            "Pod x-db-1: container prepare: CrashLoopBackOff: the Secret has no key"
        );
    }

    #[test]
    fn own_containers_are_diagnosed_before_injected_ones() {
        let failing = |name: &str, words: &str| {
            json!({
                "name": name, "image": "x", "imageID": "", "ready": false, "restartCount": 1,
                "state": {"terminated": {"exitCode": 1, "message": words}},
            })
        };
        let words = "the data is of PostgreSQL 17 and the image is PostgreSQL 18";
        let status = |kind: &str, ours: &str| {
            let both = [failing("filebeat", "no input"), failing(ours, words)];
            diagnose(&[pod("x-db-0", json!({kind: both}))])
                .unwrap()
                .message
        };
        for (kind, ours) in [
            ("initContainerStatuses", "prepare"),
            ("containerStatuses", "postgres"),
        ] {
            let reported = status(kind, ours);
            assert!(
                reported.contains(&format!("container {ours}:")),
                "{reported}"
            );
            assert!(reported.ends_with(words), "{reported}");
        }
        let exporter = json!({"containerStatuses": [
            failing("filebeat", "no input"), failing("exporter", "no password"),
        ]});
        let reported = diagnose(&[pod("x-db-0", exporter)]).unwrap().message;
        assert!(reported.contains("container exporter:"), "{reported}");
        assert!(
            reported.ends_with(
                "no password. It is no part of the database: correct spec.monitoring.exporter"
            ),
            "{reported}"
        );
        let alone = json!({"containerStatuses": [failing("filebeat", "no input")]});
        let reported = diagnose(&[pod("x-db-0", alone)]).unwrap().message;
        assert!(reported.contains("container filebeat:"), "{reported}");
    }

    #[test]
    fn lowest_failing_pod_is_reported_and_starting_pods_are_not() {
        let starting = pod("x-db-0", waiting("ContainerCreating", ""));
        assert_eq!(diagnose(std::slice::from_ref(&starting)), None);
        let pods = [
            pod("x-db-2", waiting("ErrImagePull", "")),
            pod("x-db-1", waiting("CrashLoopBackOff", "")),
            starting,
        ];
        assert_eq!(diagnose(&pods).unwrap().reason, "CrashLoopBackOff");
    }

    #[test]
    fn mount_failure_names_the_missing_secret_key() {
        let of = |name: &str, conditions: Value, state: Value| {
            let mut pod = pod(
                name,
                json!({"conditions": conditions, "initContainerStatuses": [{
                    "name": "prepare", "image": "x", "imageID": "", "restartCount": 0,
                    "ready": false, "state": state,
                }]}),
            );
            pod.metadata.uid = Some(format!("uid of {name}"));
            pod
        };
        let scheduled = json!([{"type": "PodScheduled", "status": "True"}]);
        let waiting = json!({"waiting": {"reason": "PodInitializing"}});
        let mounted = json!([
            {"type": "PodScheduled", "status": "True"},
            {"type": "PodReadyToStartContainers", "status": "True"},
        ]);
        let pods = [
            of("x-db-0", json!([]), waiting.clone()),
            of("x-db-1", mounted, waiting.clone()),
            of("x-db-2", scheduled.clone(), json!({"running": {}})),
            of("x-db-3", scheduled, waiting),
        ];
        let hangs = unmounted(&pods).unwrap();
        assert_eq!(hangs.metadata.name.as_deref(), Some("x-db-3"));
        assert!(unmounted(&pods[..3]).is_none());
        let event = |minute: u32, uid: &str, message: &str| -> Event {
            serde_json::from_value(json!({
                "metadata": {}, "involvedObject": {"uid": uid}, "message": message,
                "lastTimestamp": format!("2026-01-01T00:0{minute}:00Z"),
            }))
            .unwrap()
        };
        let uid = "uid of x-db-3";
        let mut events = vec![event(1, uid, "secret \"x-app\" not found")];
        assert_eq!(explain_mount(&events, hangs, "x-app"), None);
        events.push(event(2, "uid of a former one", "no"));
        events.push(event(1, uid, "Multi-Attach error"));
        let why = explain_mount(&events, hangs, "x-app").unwrap();
        assert_eq!(
            (why.reason.as_str(), why.message.as_str()),
            (
                "FailedMount",
                "Pod x-db-3 cannot mount its volumes: Multi-Attach error"
            )
        );
        let reported = "MountVolume.SetUp failed for volume \"secret\" : references non-existent \
                    secret key: dbname";
        events.push(event(3, uid, reported));
        events.push(event(
            4,
            uid,
            "Unable to attach or mount volumes: timed out",
        ));
        let why = explain_mount(&events, hangs, "x-app").unwrap();
        assert_eq!(why.reason, reason::SECRET_INVALID);
        assert!(
            why.message
                .starts_with("Secret x-app has no key dbname, so"),
            "{}",
            why.message
        );
    }

    #[test]
    fn what_an_instance_reports_of_its_certificate_counts_until_it_is_in_order_or_old() {
        let event = |minute: u32, message: &str| -> Event {
            serde_json::from_value(json!({
                "metadata": {}, "involvedObject": {}, "message": message,
                "lastTimestamp": format!("2026-01-01T00:{minute:02}:00Z"),
            }))
            .unwrap()
        };
        let at = |minute: u32| format!("2026-01-01T00:{minute:02}:00Z").parse().unwrap();
        let mut events = vec![
            event(1, "Readiness probe failed: it has not followed"),
            event(
                2,
                "Readiness probe failed: TLS: the Secret x has no key tls.key: add it\n",
            ),
        ];
        let found = |events: &[Event], minute| explain_tls(events, "x-db-0", at(minute));
        let why = found(&events, 5).unwrap();
        assert_eq!(why.reason, reason::TLS_INVALID);
        assert_eq!(
            why.message,
            "Pod x-db-0: the Secret x has no key tls.key: add it"
        );
        assert_eq!(found(&events, 18), None);
        events.push(event(
            3,
            "Readiness probe failed: TLS: the certificate is in order again",
        ));
        assert_eq!(found(&events, 5), None);
        assert_eq!(found(&events[..1], 5), None);
    }

    #[test]
    fn unready_pod_is_explained_by_its_last_probe_message() {
        let running = |name: &str, ready: bool, started: bool| {
            let mut pod = pod(
                name,
                json!({"containerStatuses": [{
                    "name": "postgres", "image": "x", "imageID": "", "restartCount": 0,
                    "ready": ready, "started": started, "state": {"running": {}},
                }]}),
            );
            pod.metadata.uid = Some(format!("uid of {name}"));
            pod
        };
        let pods = [
            running("x-db-2", false, true),
            running("x-db-1", false, true),
            running("x-db-0", true, true),
        ];
        let unready = unready(&pods).unwrap();
        assert_eq!(unready.metadata.name.as_deref(), Some("x-db-1"));
        assert!(super::unready(&[running("x-db-0", false, false)]).is_none());
        let event = |minute: u32, uid: &str, message: &str| -> Event {
            serde_json::from_value(json!({
                "metadata": {}, "involvedObject": {"uid": uid}, "message": message,
                "lastTimestamp": format!("2026-01-01T00:0{minute}:00Z"),
            }))
            .unwrap()
        };
        let mut events = vec![
            event(
                1,
                "uid of x-db-1",
                "Readiness probe failed: it was otherwise",
            ),
            event(3, "uid of a former one", "Readiness probe failed: no"),
            event(
                2,
                "uid of x-db-1",
                "Readiness probe failed: it has not followed\n",
            ),
        ];
        let why = explain_probe(&events, unready).unwrap();
        assert_eq!(
            why.message,
            "Pod x-db-1 runs and is not ready: it has not followed"
        );
        events[2].involved_object.field_path = Some("spec.containers{filebeat}".to_owned());
        assert_eq!(
            explain_probe(&events, unready).unwrap().message,
            "Pod x-db-1 runs and is not ready: container filebeat: it has not followed"
        );
        events.push(event(4, "uid of x-db-1", "Readiness probe failed: "));
        assert_eq!(explain_probe(&events, unready), None, "it is starting");
    }
}
