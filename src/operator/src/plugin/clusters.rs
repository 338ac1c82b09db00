//! DatabaseClusters as the plugin finds them: which are meant, and everything that is known of one.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, ListParams, ObjectMeta};
use kube::{Api, Client, ResourceExt as _};
use serde::Serialize;

use super::access::Session;
use super::args::Which;
use super::failure::{Exit, Failure};
use super::fleet;
use super::instances::{Measured, measure};
use crate::api::names::{FIELD_MANAGER, FINALIZER, KIND, NAMES};
use crate::api::{
    Condition, ConditionStatus, ConditionType, DatabaseCluster, DatabaseClusterStatus,
};
use crate::postgres::{secret_name, selector_text, statefulset_name};
use crate::telemetry::fleet_view::FleetView;
use shard_ownership::hash::{Bucket, ShardCount, ShardId};
use sharded_controller::text::safe;

const PAGE: u32 = 500;
/// Pages of a list of DatabaseClusters: 20,000 of them.
const PAGES_MAX: usize = 40;
const PODS_MAX: u32 = 100;
const EVENT_PAGES_MAX: usize = 4;
/// Events that are kept of one DatabaseCluster.
pub(crate) const EVENTS_MAX: usize = 30;
const TEXT_CHARS_MAX: usize = 600;

fn resource() -> ApiResource {
    ApiResource::erase::<DatabaseCluster>(&())
}

/// The DatabaseClusters of a namespace.
pub(crate) fn api(client: Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client, namespace, &resource())
}

fn api_all(client: Client) -> Api<DynamicObject> {
    Api::all_with(client, &resource())
}

/// The DatabaseClusters that are meant; an error when there is none, or one of the names does not exist.
pub(crate) async fn select(
    session: &Session,
    which: &Which,
) -> Result<Vec<DynamicObject>, Failure> {
    if !which.names.is_empty() {
        let mut found = Vec::new();
        for name in &which.names {
            found.push(get(session, name).await?);
        }
        return Ok(found);
    }
    let (api, place) = match which.all_namespaces {
        true => (
            api_all(session.client.clone()),
            "in any namespace".to_owned(),
        ),
        false => (
            api(session.client.clone(), &session.namespace),
            format!("in namespace {}", session.namespace),
        ),
    };
    let found = list(&api, &ListParams::default(), PAGES_MAX)
        .await
        .map_err(|error| listing(&place, &error))?;
    if !found.is_empty() {
        return Ok(found);
    }
    let hint = match which.all_namespaces {
        true => "create one, or check the context".to_owned(),
        false => elsewhere(session, None).await,
    };
    let message = format!("there are no DatabaseClusters {place}: {hint}");
    Err(Failure::new(Exit::NotFound, message))
}

fn listing(place: &str, error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) if status.code == 404 => not_served(),
        _ => Failure::request(format!("list the DatabaseClusters {place}"), error),
    }
}

fn not_served() -> Failure {
    let message = "the API server does not serve databaseclusters.database.io: install the operator, or check the context";
    Failure::new(Exit::NotFound, message)
}

/// One DatabaseCluster of the namespace.
pub(crate) async fn get(session: &Session, name: &str) -> Result<DynamicObject, Failure> {
    let (client, namespace) = (session.client.clone(), &session.namespace);
    let found = api(client, namespace).get_opt(name).await;
    let found = found.map_err(|error| match &error {
        // Of an object that is missing this is no error: the kind is.
        kube::Error::Api(status) if status.code == 404 => not_served(),
        _ => {
            let what = format!("get DatabaseCluster {name} in namespace {namespace}");
            Failure::request(what, &error)
        }
    })?;
    match found {
        Some(object) => Ok(object),
        None => {
            let name = safe(name, 100);
            let hint = elsewhere(session, Some(&name)).await;
            let message =
                format!("there is no DatabaseCluster {name} in namespace {namespace}: {hint}");
            Err(Failure::new(Exit::NotFound, message))
        }
    }
}

/// Where to find what is not in the namespace, as far as the user may know.
async fn elsewhere(session: &Session, name: Option<&str>) -> String {
    let all = api_all(session.client.clone());
    let mut params = ListParams::default().limit(PAGE);
    if let Some(name) = name {
        params = params.fields(&format!("metadata.name={name}"));
    }
    let found = match all.list(&params).await {
        Ok(found) => found.items,
        Err(kube::Error::Api(status)) if status.code == 404 => return not_served().to_string(),
        Err(_) => Vec::new(),
    };
    let mut namespaces: Vec<String> = found.iter().filter_map(DynamicObject::namespace).collect();
    namespaces.sort();
    namespaces.dedup();
    namespaces.truncate(5);
    if let Some(first) = namespaces.first() {
        let what = if name.is_some() {
            "it is"
        } else {
            "there are some"
        };
        let all = namespaces.join(", ");
        return format!("{what} in namespace {all}: add -n {first}");
    }
    let api: Api<Namespace> = Api::all(session.client.clone());
    match api.get_metadata_opt(&session.namespace).await {
        Ok(None) => "the namespace does not exist".to_owned(),
        Ok(Some(_)) | Err(_) => "check the name, the namespace and the context".to_owned(),
    }
}

async fn list<K>(api: &Api<K>, params: &ListParams, pages_max: usize) -> kube::Result<Vec<K>>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let mut params = params.clone().limit(PAGE);
    let mut found = Vec::new();
    for _ in 0..pages_max {
        let page = api.list(&params).await?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    Ok(found)
}

/// Everything that is known of one DatabaseCluster.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterView {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) phase: Option<&'static str>,
    pub(crate) ready: bool,
    pub(crate) deleting: bool,
    pub(crate) replicas: i64,
    pub(crate) ready_replicas: i32,
    pub(crate) image: String,
    pub(crate) generation: i64,
    pub(crate) observed_generation: i64,
    pub(crate) has_status: bool,
    pub(crate) waits_for_finalizers: Vec<String>,
    pub(crate) conditions: Vec<Condition>,
    /// Who reconciles it.
    pub(crate) operator: OperatorView,
    /// Filled in for a DatabaseCluster that was named.
    pub(crate) instances: Vec<InstanceView>,
    pub(crate) children: Vec<ChildView>,
    pub(crate) events: Vec<EventView>,
    /// What could not be read, and why: it is not guessed.
    pub(crate) unavailable: Vec<String>,
    /// Seconds since its creation, by the local clock.
    pub(crate) age_seconds: Option<i64>,
}

/// The replica that reconciles a DatabaseCluster.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OperatorView {
    pub(crate) namespace: String,
    pub(crate) shard: Option<u16>,
    pub(crate) replica: Option<String>,
    pub(crate) epoch: Option<u32>,
    /// Why no replica reconciles it, as far as the Leases show.
    pub(crate) problem: Option<String>,
    /// The last write to it or to one of its children.
    pub(crate) last_write: Option<String>,
    pub(crate) last_write_seconds_ago: Option<i64>,
    /// The replica that wrote the status last.
    pub(crate) last_status_by: Option<String>,
}

/// One instance.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InstanceView {
    pub(crate) pod: String,
    pub(crate) role: &'static str,
    pub(crate) state: String,
    pub(crate) ready: bool,
    pub(crate) restarts: i32,
    pub(crate) node: Option<String>,
    #[serde(flatten)]
    pub(crate) measured: Option<Measured>,
    /// Why lag and volume use are not known.
    pub(crate) unmeasured: Option<String>,
    /// What keeps it from being ready: reason and message.
    pub(crate) problem: Option<String>,
}

/// One child.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ChildView {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) state: String,
}

/// One Event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventView {
    pub(crate) at: Option<String>,
    pub(crate) seconds_ago: Option<i64>,
    #[serde(rename = "type")]
    pub(crate) type_: String,
    pub(crate) reason: String,
    pub(crate) object: String,
    pub(crate) message: String,
}

impl ClusterView {
    /// What the object itself and the fleet show.
    pub(crate) fn of(
        object: &DynamicObject,
        fleet: &Result<FleetView, String>,
        operator_namespace: &str,
        now: Timestamp,
    ) -> Self {
        let status = object.data.get("status").cloned();
        let has_status = status.is_some();
        let status: DatabaseClusterStatus = status
            .and_then(|status| serde_json::from_value(status).ok())
            .unwrap_or_default();
        let uid = object.uid().unwrap_or_default();
        let last_write = last_write(object.managed_fields());
        let spec = |field: &str| object.data.pointer(field);
        let deleting = object.metadata.deletion_timestamp.is_some();
        let finalizers = object.finalizers().iter();
        Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            phase: status.phase.map(|phase| phase.label()),
            ready: is_true(&status, ConditionType::Ready, object.metadata.generation),
            deleting,
            replicas: spec("/spec/replicas").and_then(|n| n.as_i64()).unwrap_or(1),
            ready_replicas: status.ready_replicas,
            image: safe(
                spec("/spec/image")
                    .and_then(|image| image.as_str())
                    .unwrap_or_default(),
                TEXT_CHARS_MAX,
            ),
            generation: object.metadata.generation.unwrap_or_default(),
            observed_generation: status.observed_generation,
            has_status,
            waits_for_finalizers: finalizers
                .filter(|name| deleting && *name != FINALIZER)
                .map(|name| safe(name, 100))
                .collect(),
            operator: OperatorView {
                last_write: last_write.map(|at| at.to_string()),
                last_write_seconds_ago: seconds_since(last_write, now),
                last_status_by: status.shard.map(|shard| safe(&shard.holder, 100)),
                ..operator(&uid, fleet, operator_namespace)
            },
            conditions: status.conditions.into_iter().map(shown).collect(),
            age_seconds: seconds_since(object.creation_timestamp().map(|time| time.0), now),
            uid,
            ..Self::default()
        }
    }

    /// The condition of this type.
    pub(crate) fn condition(&self, kind: &ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|found| found.type_ == *kind)
    }

    /// Reads children, Pods and Events.
    pub(crate) async fn read_details(&mut self, session: &Session, now: Timestamp) {
        let client = &session.client;
        self.read_children(client, now).await;
        let pods = self.read_pods(client).await;
        self.read_events(client, &pods, now).await;
    }

    /// Measures the instances that run.
    pub(crate) async fn measure(&mut self, session: &Session) {
        let running: Vec<String> = self
            .instances
            .iter()
            .filter(|instance| instance.state == "Running")
            .map(|instance| instance.pod.clone())
            .collect();
        let measured = measure(&session.kubectl, &self.namespace, &running).await;
        for (pod, measured) in running.iter().zip(measured) {
            let instance = self.instances.iter_mut().find(|found| found.pod == *pod);
            let Some(instance) = instance else { continue };
            match measured {
                Ok(measured) => instance.measured = Some(measured),
                Err(why) => instance.unmeasured = Some(why),
            }
        }
    }

    async fn read_children(&mut self, client: &Client, now: Timestamp) {
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        let set = statefulset_name(&name);
        let sets: Api<StatefulSet> = Api::namespaced(client.clone(), &namespace);
        let found = sets.get_opt(&set).await;
        if let Ok(Some(found)) = &found {
            self.note_write(&found.metadata, now);
        }
        let state = match found {
            Ok(Some(found)) => workload(&found),
            Ok(None) => "missing".to_owned(),
            Err(error) => unreadable(&error),
        };
        self.children.push(ChildView {
            kind: "StatefulSet",
            name: set.clone(),
            state,
        });
        for service in [&set, &format!("{name}-rw"), &format!("{name}-r")] {
            self.read_child::<Service>(client, "Service", service, now)
                .await;
        }
        self.read_child::<Secret>(client, "Secret", &secret_name(&name), now)
            .await;
        self.read_child::<ConfigMap>(client, "ConfigMap", &set, now)
            .await;
        if self.replicas > 1 {
            let kind = "PodDisruptionBudget";
            self.read_child::<PodDisruptionBudget>(client, kind, &set, now)
                .await;
        }
    }

    /// Reads the metadata only: of a Secret, nothing else is ever asked for.
    async fn read_child<K>(
        &mut self,
        client: &Client,
        kind: &'static str,
        name: &str,
        now: Timestamp,
    ) where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(client.clone(), &self.namespace);
        let state = match api.get_metadata_opt(name).await {
            Ok(Some(found)) => {
                self.note_write(&found.metadata, now);
                match found.metadata.deletion_timestamp {
                    Some(_) => "being deleted".to_owned(),
                    None => "exists".to_owned(),
                }
            }
            Ok(None) => "missing".to_owned(),
            Err(error) => unreadable(&error),
        };
        self.children.push(ChildView {
            kind,
            name: name.to_owned(),
            state,
        });
    }

    fn note_write(&mut self, metadata: &ObjectMeta, now: Timestamp) {
        let found = last_write(metadata.managed_fields.as_deref().unwrap_or_default());
        let known = self.operator.last_write.as_deref();
        let known: Option<Timestamp> = known.and_then(|known| known.parse().ok());
        if found > known {
            self.operator.last_write = found.map(|at| at.to_string());
            self.operator.last_write_seconds_ago = seconds_since(found, now);
        }
    }

    async fn read_pods(&mut self, client: &Client) -> Vec<String> {
        let api: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let params = ListParams::default()
            .labels(&selector_text(&self.name))
            .limit(PODS_MAX);
        match api.list(&params).await {
            Ok(found) => self.instances = found.items.iter().map(instance).collect(),
            Err(error) => {
                let failure = Failure::request("list the Pods", &error);
                self.unavailable.push(format!("instances: {failure}"));
            }
        }
        let ordinal = |pod: &str| pod.rsplit('-').next().and_then(|n| n.parse::<u32>().ok());
        self.instances
            .sort_by_key(|instance| ordinal(&instance.pod));
        self.instances
            .iter()
            .map(|instance| instance.pod.clone())
            .collect()
    }

    async fn read_events(&mut self, client: &Client, pods: &[String], now: Timestamp) {
        let api: Api<Event> = Api::namespaced(client.clone(), &self.namespace);
        let events = match list(&api, &ListParams::default(), EVENT_PAGES_MAX).await {
            Ok(events) => events,
            Err(error) => {
                let failure = Failure::request("list the Events", &error);
                self.unavailable.push(format!("Events: {failure}"));
                return;
            }
        };
        let set = statefulset_name(&self.name);
        let claim = format!("data-{set}-");
        let is_about = |event: &Event| {
            let object = &event.involved_object;
            let name = object.name.as_deref().unwrap_or_default();
            match object.kind.as_deref().unwrap_or_default() {
                KIND => {
                    name == self.name && object.uid.as_deref().is_none_or(|uid| uid == self.uid)
                }
                "Pod" => pods.iter().any(|pod| pod == name),
                "PersistentVolumeClaim" => name.starts_with(&claim),
                _ => name == set,
            }
        };
        let mut events: Vec<(Option<Timestamp>, EventView)> = events
            .iter()
            .filter(|event| is_about(event))
            .map(|event| event_view(event, now))
            .collect();
        events.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        events.truncate(EVENTS_MAX);
        self.events = events.into_iter().map(|(_, event)| event).collect();
    }
}

/// The fleet, or why it is not known.
pub(crate) async fn read_fleet(session: &Session) -> Result<FleetView, String> {
    let namespace = &session.operator_namespace;
    let read = fleet::read(session.client.clone(), namespace, "--operator-namespace").await;
    read.map_err(|failure| failure.to_string())
}

/// Which replica reconciles the object with this uid.
fn operator(uid: &str, fleet: &Result<FleetView, String>, namespace: &str) -> OperatorView {
    let mut found = OperatorView {
        namespace: namespace.to_owned(),
        ..OperatorView::default()
    };
    let fleet = match fleet {
        Ok(fleet) => fleet,
        Err(why) => {
            found.problem = Some(why.clone());
            return found;
        }
    };
    let count = fleet
        .shard_count
        .and_then(|count| ShardCount::new(count.into()).ok());
    let Some(ShardId(shard)) = count.map(|count| count.shard_of(Bucket::of(uid))) else {
        found.problem = Some("there are no shard Leases: no replica has run yet".to_owned());
        return found;
    };
    found.shard = Some(shard);
    let lease = NAMES.shard_lease(ShardId(shard));
    let Some(row) = fleet.shards.iter().find(|row| row.shard == Some(shard)) else {
        found.problem = Some(format!(
            "there is no Lease {lease}: no replica holds shard {shard}"
        ));
        return found;
    };
    found.replica.clone_from(&row.holder);
    found.epoch = row.epoch;
    let holder = row.holder.as_deref();
    let member = fleet
        .members
        .iter()
        .find(|member| Some(member.identity.as_str()) == holder);
    found.problem = match (holder, member) {
        (None, _) => Some(format!("no replica holds shard {shard}")),
        (Some(holder), None) => Some(format!(
            "replica {holder}, which holds shard {shard}, is dead"
        )),
        (Some(holder), Some(_)) if row.orphaned => Some(format!(
            "the incarnation of {holder} that holds shard {shard} is dead"
        )),
        (Some(holder), Some(member)) if fleet::is_silent(member) => Some(format!(
            "replica {holder}, which holds shard {shard}, has not renewed its Lease within its lifetime"
        )),
        (Some(holder), Some(_)) if row.granted == Some(false) => Some(format!(
            "the shard table does not grant shard {shard} to {holder}"
        )),
        (Some(_), Some(_)) => None,
    };
    found
}

fn is_true(status: &DatabaseClusterStatus, kind: ConditionType, generation: Option<i64>) -> bool {
    let condition = status.condition(kind);
    condition.is_some_and(|found| {
        found.status == ConditionStatus::True
            && generation.is_none_or(|generation| found.observed_generation >= generation)
    })
}

fn shown(condition: Condition) -> Condition {
    Condition {
        type_: ConditionType::from(safe(condition.type_.label(), 100)),
        reason: safe(&condition.reason, 100),
        message: safe(&condition.message, TEXT_CHARS_MAX),
        last_transition_time: safe(&condition.last_transition_time, 40),
        ..condition
    }
}

/// When the operator last wrote an object, which the API server records in whole seconds.
fn last_write(fields: &[ManagedFieldsEntry]) -> Option<Timestamp> {
    let ours = fields
        .iter()
        .filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
    ours.filter_map(|entry| entry.time.as_ref().map(|time| time.0))
        .max()
}

pub(crate) fn seconds_since(then: Option<Timestamp>, now: Timestamp) -> Option<i64> {
    then.map(|then| now.duration_since(then).as_secs())
}

fn unreadable(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            "not readable: you may not get it".to_owned()
        }
        other => safe(&format!("not readable: {other}"), TEXT_CHARS_MAX),
    }
}

fn workload(set: &StatefulSet) -> String {
    let wanted = set
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let status = set.status.clone().unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or(0);
    let updated = status.updated_replicas.unwrap_or(0);
    let mut text = format!("{ready}/{wanted} ready");
    if status.current_revision != status.update_revision && updated < wanted {
        text.push_str(&format!(
            ", restarting: {updated} of {wanted} have the newest template"
        ));
    }
    if set.metadata.deletion_timestamp.is_some() {
        text.push_str(", being deleted");
    }
    text
}

fn instance(pod: &Pod) -> InstanceView {
    let name = pod.name_any();
    let status = pod.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let has = |kind: &str| conditions.iter().find(|c| c.type_ == kind);
    let containers = status.container_statuses.unwrap_or_default();
    let prepares = status.init_container_statuses.unwrap_or_default();
    let waiting = prepares.iter().chain(&containers).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting
            .reason
            .as_deref()
            .filter(|reason| *reason != "PodInitializing")?;
        Some(format!(
            "{reason}: {}",
            waiting.message.as_deref().unwrap_or("no message")
        ))
    });
    let unscheduled = has("PodScheduled")
        .filter(|c| c.status == "False")
        .map(|c| {
            let reason = c.reason.as_deref().unwrap_or("Unscheduled");
            format!("{reason}: {}", c.message.as_deref().unwrap_or("no message"))
        });
    let phase = status.phase.unwrap_or_else(|| "Unknown".to_owned());
    InstanceView {
        role: match name.ends_with("-db-0") {
            true => "primary",
            false => "replica",
        },
        state: match pod.metadata.deletion_timestamp {
            Some(_) => "Terminating".to_owned(),
            None => safe(&phase, 40),
        },
        ready: has("Ready").is_some_and(|c| c.status == "True"),
        restarts: containers
            .iter()
            .map(|container| container.restart_count)
            .sum(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        problem: waiting
            .or(unscheduled)
            .map(|text| safe(&text, TEXT_CHARS_MAX)),
        pod: name,
        ..InstanceView::default()
    }
}

fn event_view(event: &Event, now: Timestamp) -> (Option<Timestamp>, EventView) {
    let series = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref());
    let at = series
        .map(|time| time.0)
        .or_else(|| event.last_timestamp.as_ref().map(|time| time.0))
        .or_else(|| event.event_time.as_ref().map(|time| time.0))
        .or_else(|| {
            event
                .metadata
                .creation_timestamp
                .as_ref()
                .map(|time| time.0)
        });
    let object = &event.involved_object;
    let text = |text: &Option<String>| safe(text.as_deref().unwrap_or_default(), TEXT_CHARS_MAX);
    let view = EventView {
        at: at.map(|at| at.to_string()),
        seconds_ago: seconds_since(at, now),
        type_: text(&event.type_),
        reason: text(&event.reason),
        object: format!("{}/{}", text(&object.kind), text(&object.name)),
        message: text(&event.message),
    };
    (at, view)
}
