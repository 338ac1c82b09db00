//! A finished DatabaseCluster with all its children, as patterns for copies.

use anyhow::{Context, Result, ensure};
use databasecluster_operator::api::{DatabaseCluster, names};
use databasecluster_operator::core::child::{ChildKind, DesiredChild};
use databasecluster_operator::core::observed::{ClaimTemplate, ClusterRecord};
use databasecluster_operator::core::status::is_initialized;
use databasecluster_operator::postgres::Source;
use databasecluster_operator::watch::observe;
use k8s_openapi::ByteString;
use kube::Client;
use serde_json::{Value, json};
use shard_ownership::hash::{Bucket, ShardCount};
use sharded_controller::object::ObjectKey;
use testbed::ControlPlane;
use testbed::control_plane::Stored;
use testbed::fencing::{self, Token};

use super::pattern::{Filling, Pattern, Place};

const CLUSTERS: Resource = Resource {
    kind: "DatabaseCluster",
    version: "database.io/v1",
    plural: "databaseclusters",
    folder: "/registry/database.io/databaseclusters",
};
/// Whatever a DatabaseCluster may own.
const CHILDREN: [Resource; 5] = [
    child(
        "StatefulSet",
        "apps/v1",
        "statefulsets",
        "/registry/statefulsets",
    ),
    child("Service", "v1", "services", "/registry/services/specs"),
    child("ConfigMap", "v1", "configmaps", "/registry/configmaps"),
    child("Secret", "v1", "secrets", "/registry/secrets"),
    child(
        "PodDisruptionBudget",
        "policy/v1",
        "poddisruptionbudgets",
        "/registry/poddisruptionbudgets",
    ),
];

/// Where objects of a kind are found, in the API and in etcd.
#[derive(Clone, Copy)]
struct Resource {
    kind: &'static str,
    version: &'static str,
    plural: &'static str,
    folder: &'static str,
}

const fn child(
    kind: &'static str,
    version: &'static str,
    plural: &'static str,
    folder: &'static str,
) -> Resource {
    Resource {
        kind,
        version,
        plural,
        folder,
    }
}

impl Resource {
    fn path(&self, namespace: &str) -> String {
        let root = if self.version == "v1" {
            "/api"
        } else {
            "/apis"
        };
        format!(
            "{root}/{}/namespaces/{namespace}/{}",
            self.version, self.plural
        )
    }
}

/// One of its objects.
struct Part {
    kind: &'static str,
    key: Pattern,
    text: Pattern,
    /// Which of the children it is, and of what fingerprint.
    name: String,
    fingerprint: Option<String>,
}

/// A finished DatabaseCluster.
pub(crate) struct Model {
    spec: Value,
    record: ClusterRecord,
    claim: Option<ClaimTemplate>,
    initialized: bool,
    parts: Vec<Part>,
}

impl Model {
    /// Reads a DatabaseCluster of this spec and everything that belongs to it.
    pub(crate) async fn read(
        control_plane: &ControlPlane,
        (namespace, name): (&str, &str),
        spec: Value,
        shards: ShardCount,
    ) -> Result<Self> {
        let client = control_plane.client();
        let path = format!("{}/{name}", CLUSTERS.path(namespace));
        let cluster = get(&client, &path).await?;
        let cluster_uid = text(&cluster, "/metadata/uid");
        let mut objects = vec![(CLUSTERS, cluster.clone())];
        for resource in CHILDREN {
            let list = get(&client, &resource.path(namespace)).await?;
            let items = list["items"].as_array().into_iter().flatten().cloned();
            let own = items.filter(|item| {
                item.pointer("/metadata/ownerReferences/0/uid") == Some(&json!(cluster_uid))
            });
            objects.extend(own.map(|item| (resource, item)));
        }
        let set = objects.iter().find(|(of, _)| of.kind == "StatefulSet");
        let set = serde_json::from_value(set.context("a StatefulSet")?.1.clone())?;
        let set = observe::statefulset(&set, None);
        let typed: DatabaseCluster = serde_json::from_value(cluster)?;
        let record = observe::cluster(&typed).context("read the DatabaseCluster")?;
        let mut model = Self {
            spec,
            initialized: is_initialized(&record, set.as_ref()),
            claim: set.and_then(|set| set.claim),
            record,
            parts: Vec::new(),
        };
        model.cut(&objects)?;
        model.check(control_plane, &objects, shards).await?;
        Ok(model)
    }

    /// The spec that was asked for.
    pub(crate) fn spec(&self) -> &Value {
        &self.spec
    }

    /// How many uids it takes.
    pub(crate) fn uids(&self) -> usize {
        self.parts.len()
    }

    /// Makes patterns of its objects.
    fn cut(&mut self, objects: &[(Resource, Value)]) -> Result<()> {
        let mut tokens = vec![
            (self.record.key.name.to_string(), Place::Name),
            (self.record.key.namespace.to_string(), Place::Namespace),
        ];
        for (number, (_, object)) in objects.iter().enumerate() {
            tokens.push((text(object, "/metadata/uid"), Place::Uid(number)));
        }
        let bucket = self.record.bucket.to_string();
        for (number, (resource, object)) in objects.iter().enumerate() {
            let name = text(object, "/metadata/name");
            let pointer = "/metadata/annotations/database.io~1fingerprint";
            let fingerprint = object.pointer(pointer).and_then(Value::as_str);
            let folder = resource.folder;
            let place = format!("{folder}/{}/{name}", self.record.key.namespace);
            self.parts.push(Part {
                kind: resource.kind,
                key: Pattern::of(&place, &tokens),
                text: pattern(resource, object.clone(), &bucket, number, &tokens)?,
                name,
                fingerprint: fingerprint.map(str::to_owned),
            });
        }
        Ok(())
    }

    /// A copy that differs in nothing must be what was read, also by what the operator computes.
    async fn check(
        &self,
        control_plane: &ControlPlane,
        objects: &[(Resource, Value)],
        shards: ShardCount,
    ) -> Result<()> {
        let mut filling = Filling::new();
        for (number, (_, object)) in objects.iter().enumerate() {
            filling.insert(Place::Uid(number), text(object, "/metadata/uid"));
        }
        let key = &self.record.key;
        filling.insert(Place::Name, key.name.to_string());
        filling.insert(Place::Namespace, key.namespace.to_string());
        self.compute(&mut filling, shards);
        for (stored, (resource, object)) in self.objects(&filling).iter().zip(objects) {
            let copy: Value = serde_json::from_str(&stored.text)?;
            let original = as_stored(resource, object.clone());
            ensure!(
                copy == original,
                "a copy of a model is not the model:\n{copy}\n{original}"
            );
            ensure!(
                control_plane.is_stored(&stored.key).await?,
                "etcd has nothing under {}",
                stored.key
            );
        }
        Ok(())
    }

    /// Adds what follows from names and uids.
    pub(crate) fn compute(&self, filling: &mut Filling, shards: ShardCount) {
        let of = |place| filling.get(&place).map_or("", String::as_str);
        let mut record = self.record.clone();
        record.key = ObjectKey::new(of(Place::Namespace), of(Place::Name));
        record.uid = of(Place::Uid(0)).into();
        record.bucket = Bucket::of(&record.uid);
        let mut claim = self.claim.clone();
        for uid in claim
            .iter_mut()
            .flat_map(|claim| [&mut claim.cluster_uid, &mut claim.created_for])
        {
            if uid.as_deref() == Some(&*self.record.uid) {
                *uid = Some((&*record.uid).into());
            }
        }
        let source = Source {
            cluster: &record,
            claim: claim.as_ref(),
            initialized: self.initialized,
        };
        for child in source.children() {
            if let Some(number) = self.number(&child, &record.key.name) {
                let fingerprint = child.fingerprint.to_string();
                filling.insert(Place::Fingerprint(number), fingerprint);
            }
        }
        // A Secret is created once and never compared.
        let secrets = self.parts.iter().enumerate();
        for (number, part) in secrets.filter(|(_, part)| part.kind == "Secret") {
            let fingerprint = part.fingerprint.clone().unwrap_or_default();
            filling.insert(Place::Fingerprint(number), fingerprint);
        }
        let lease = names::NAMES.shard_lease(shards.shard_of(record.bucket));
        filling.insert(Place::Shard, lease.trim_start_matches(LEASE).to_owned());
        filling.insert(Place::Bucket, record.bucket.to_string());
    }

    /// Which of the parts a child of the cluster `name` is.
    fn number(&self, child: &DesiredChild, name: &str) -> Option<usize> {
        let suffix = child.id.name.strip_prefix(name)?;
        let own = format!("{}{suffix}", self.record.key.name);
        let is_it = |part: &Part| ChildKind::label(child.id.kind) == part.kind && part.name == own;
        self.parts.iter().position(is_it)
    }

    /// The objects of a copy.
    pub(crate) fn objects(&self, filling: &Filling) -> Vec<Stored> {
        let stored = |part: &Part| Stored {
            key: part.key.fill(filling),
            text: part.text.fill(filling),
        };
        self.parts.iter().map(stored).collect()
    }
}

async fn get(client: &Client, path: &str) -> Result<Value> {
    let request = http::Request::get(path).body(Vec::new())?;
    let object = client.request(request).await;
    object.with_context(|| format!("read {path}"))
}

fn text(object: &Value, pointer: &str) -> String {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}

/// An object as etcd is to hold it. Services have no address: an API server that starts checks that each
/// was assigned once, and fails when that takes longer than a minute. The operator never requests it.
fn as_stored(resource: &Resource, mut object: Value) -> Value {
    object["apiVersion"] = json!(resource.version);
    object["kind"] = json!(resource.kind);
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    if let Some(spec) = object["spec"]
        .as_object_mut()
        .filter(|_| resource.kind == "Service")
    {
        spec.insert("clusterIP".to_owned(), json!("None"));
        spec.insert("clusterIPs".to_owned(), json!(["None"]));
    }
    object
}

/// Finds the places in an object's text.
fn pattern(
    resource: &Resource,
    object: Value,
    bucket: &str,
    number: usize,
    tokens: &[(String, Place)],
) -> Result<Pattern> {
    let mut object = as_stored(resource, object);
    let mut secrets = Vec::new();
    if resource.kind == "Secret" {
        for (name, value) in object["data"].as_object_mut().into_iter().flatten() {
            let bytes: ByteString = serde_json::from_value(value.clone())?;
            let inner = Pattern::of(&String::from_utf8(bytes.0)?, tokens);
            let token = format!("@data-{name}@");
            *value = json!(token);
            secrets.push((token, inner));
        }
    }
    mark(&mut object, bucket);
    let mut tokens = tokens.to_vec();
    tokens.push((BUCKET_NUMBER.to_owned(), Place::Bucket));
    tokens.push((BUCKET.to_owned(), Place::Bucket));
    tokens.push((SHARD.to_owned(), Place::Shard));
    tokens.push((FINGERPRINT.to_owned(), Place::Fingerprint(number)));
    let mut pattern = Pattern::of(&object.to_string(), &tokens);
    for (token, inner) in &secrets {
        pattern.embed(token, inner);
    }
    Ok(pattern)
}

const BUCKET: &str = "@bucket@";
/// With its quotation marks: it becomes a number.
const BUCKET_NUMBER: &str = "\"@bucket-number@\"";
const SHARD: &str = "@shard@";
/// Of whichever shard a copy is: its holder may write it.
const COPIED_EPOCH: i64 = 1;
const LEASE: &str = "databasecluster-shard-";
const FINGERPRINT: &str = "@fingerprint@";

/// Marks every value that depends on the uid, of which this is the bucket. Peers label everything with one bucket.
fn mark(value: &mut Value, bucket: &str) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), &*value) {
                    (names::BUCKET_LABEL, Value::String(own)) if own == bucket => {
                        *value = json!(BUCKET);
                    }
                    (names::FINGERPRINT_ANNOTATION, Value::String(_)) => {
                        *value = json!(FINGERPRINT);
                    }
                    (fencing::ANNOTATION, Value::String(text)) => {
                        if let Ok(token) = text.parse::<Token>() {
                            let copied = Token {
                                shard: SHARD.to_owned(),
                                epoch: COPIED_EPOCH,
                                ..token
                            };
                            *value = json!(copied.to_string());
                        }
                    }
                    ("shard", Value::Object(shard)) if shard.contains_key("lease") => {
                        value["lease"] = json!(format!("{LEASE}{SHARD}"));
                        value["epoch"] = json!(COPIED_EPOCH);
                        value["bucket"] = json!(BUCKET_NUMBER.trim_matches('"'));
                    }
                    _ => mark(value, bucket),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| mark(item, bucket)),
        _ => {}
    }
}
