//! A small API server in memory, for tests: server-side apply, merge patches, preconditions,
//! deletion with finalizers, the fence's rules of order and of claims, and a log of every request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Method, Request, Response};
use kube::Client;
use parking_lot::Mutex;
use prometheus::Registry;
use sharded_controller::clock::Clock;
use sharded_controller::metrics::Metrics;
use sharded_controller::write::GuardedClient;

use crate::api::names::NAMES;
use kube::client::Body;
use serde_json::{Value, json};

use shard_ownership::token::ObservedToken;

/// Resources that the operator lists.
const LISTED: [&str; 3] = ["/pods", "/persistentvolumeclaims", "/events"];

/// The server's state.
#[derive(Default)]
pub(super) struct State {
    /// Objects by path.
    pub(super) objects: BTreeMap<String, Value>,
    /// `METHOD path` of every request, in order.
    pub(super) log: Vec<String>,
    /// The same with their bodies.
    pub(super) bodies: Vec<(String, Value)>,
    /// Prepared answers: the next request whose text has this prefix is not executed.
    pub(super) refusals: Vec<(String, Value)>,
    /// Objects without the labels by which lists select.
    pub(super) unlisted: Vec<String>,
    version: u64,
    uids: u64,
}

/// Handle of the server.
#[derive(Clone, Default)]
pub(super) struct Fake(pub(super) Arc<Mutex<State>>);

fn status(code: u16, message: &str) -> Value {
    let reason = if code == 404 { "NotFound" } else { "" };
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": message,
    })
}

fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                if value.is_null() {
                    target.remove(name);
                } else {
                    merge(target.entry(name.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

/// Whether an object is in a list, by the label that distinguishes new claims from older ones.
fn is_selected(query: &str, object: &Value) -> bool {
    let label = &object["metadata"]["labels"]["database.io/cluster"];
    let without = query.contains("%21database.io%2Fcluster");
    let selects = ["database.io%2Fcluster%3D", "database.io%2Fcluster+in+"];
    let with = !without && selects.iter().any(|text| query.contains(text));
    match (with, without) {
        (true, _) => label.is_string(),
        (_, true) => label.is_null(),
        _ => true,
    }
}

/// The uid of the cluster for which a token counts on an object.
fn cluster_of<'a>(path: &str, object: &'a Value) -> &'a str {
    let meta = &object["metadata"];
    let uid = if path.contains("/databaseclusters/") {
        &meta["uid"]
    } else if path.contains("/persistentvolumeclaims/") {
        &meta["labels"]["database.io/cluster-uid"]
    } else {
        &meta["ownerReferences"][0]["uid"]
    };
    uid.as_str().unwrap_or_default()
}

/// The token on an object: its table, its epoch, and the uid that it is for.
fn token<'a>(path: &str, object: &'a Value, is_status: bool) -> Option<(&'a str, u64, &'a str)> {
    if is_status {
        let shard = &object["status"]["shard"];
        let (table, uid) = (shard["table"].as_str()?, shard["uid"].as_str()?);
        return Some((table, shard["epoch"].as_u64()?, uid));
    }
    let text = object["metadata"]["annotations"]["database.io/fencing-token"].as_str()?;
    let token = ObservedToken::parse(text)?;
    let counts = token.cluster == cluster_of(path, object);
    counts.then_some((token.table, u64::from(token.epoch), token.cluster))
}

/// The fence's refusal of a write of the operator; none if it admits the write.
fn fence(path: &str, old: &Value, new: &Value, is_status: bool) -> Option<String> {
    let denied = |why: String| {
        Some(format!(
            "ValidatingAdmissionPolicy 'databasecluster-fence-order' denied request: {why}"
        ))
    };
    if path.contains("/pods/") {
        return None;
    }
    let Some((table, epoch, uid)) = token(path, new, is_status) else {
        return denied("no fencing token that counts".to_owned());
    };
    if path.contains("/persistentvolumeclaims/") && uid != cluster_of(path, new) {
        return denied("the claim is another cluster's".to_owned());
    }
    match token(path, old, is_status) {
        Some((old_table, old_epoch, old_uid))
            if (old_table, old_uid) == (table, uid) && old_epoch > epoch =>
        {
            denied(format!(
                "epoch {epoch} is older than the one on the object, {old_epoch}"
            ))
        }
        _ => None,
    }
}

impl State {
    /// Stores an object as a new version; its generation increases when anything but metadata and
    /// status changes.
    pub(super) fn put(&mut self, path: &str, mut object: Value) -> Value {
        let old = self.objects.get(path).cloned();
        if let Some(old) = &old
            && old == &object
        {
            return object;
        }
        // As in etcd, no object ever has version 1.
        self.version = self.version.max(1) + 1;
        let generation = match &old {
            None => {
                self.uids += 1;
                let uid = object["metadata"]["uid"].as_str();
                let uid = uid.map_or_else(|| format!("uid-{}", self.uids), str::to_owned);
                object["metadata"]["uid"] = json!(uid);
                1
            }
            Some(old) => {
                let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
                let desired = |object: &Value| {
                    let mut object = object.clone();
                    let fields = object.as_object_mut().unwrap();
                    fields.remove("metadata");
                    fields.remove("status");
                    object
                };
                generation + i64::from(desired(old) != desired(&object))
            }
        };
        object["metadata"]["generation"] = json!(generation);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let gone = object["metadata"]["deletionTimestamp"].is_string()
            && object["metadata"]["finalizers"]
                .as_array()
                .is_none_or(Vec::is_empty);
        if gone {
            self.objects.remove(path);
        } else {
            self.objects.insert(path.to_owned(), object.clone());
        }
        object
    }

    fn patch(&mut self, path: &str, is_apply: bool, body: &Value) -> (u16, Value) {
        let (target, subresource) = match path.strip_suffix("/status") {
            Some(target) => (target, true),
            None => (path, false),
        };
        let meta = body["metadata"].clone();
        let Some(old) = self.objects.get(target).cloned() else {
            if !is_apply {
                return (404, status(404, "not found"));
            }
            if meta["uid"].is_string() {
                return (409, status(409, "uid mismatch"));
            }
            let mut new = body.clone();
            new["metadata"]
                .as_object_mut()
                .unwrap()
                .remove("resourceVersion");
            return (201, self.put(target, new));
        };
        let version = &meta["resourceVersion"];
        if version.is_string() && *version != old["metadata"]["resourceVersion"] {
            return (409, status(409, "the object has been modified"));
        }
        let uid = &meta["uid"];
        if uid.is_string() && *uid != old["metadata"]["uid"] {
            let mut answer = status(422, "metadata.uid: field is immutable");
            answer["details"] =
                json!({"causes": [{"field": "metadata.uid", "reason": "FieldValueInvalid"}]});
            return (422, answer);
        }
        let mut new = old.clone();
        if subresource {
            merge(&mut new["status"], &body["status"]);
        } else {
            merge(&mut new, body);
        }
        if let Some(refusal) = fence(target, &old, &new, subresource) {
            return (403, status(403, &refusal));
        }
        (200, self.put(target, new))
    }

    fn delete(&mut self, path: &str, body: &Value) -> (u16, Value) {
        let Some(mut object) = self.objects.get(path).cloned() else {
            return (404, status(404, "not found"));
        };
        for field in ["uid", "resourceVersion"] {
            let wanted = &body["preconditions"][field];
            assert!(wanted.is_string(), "a delete without {field}: {body}");
            if *wanted != object["metadata"][field] {
                return (409, status(409, "precondition failed"));
            }
        }
        if let Some(refusal) = fence(path, &object, &object, false) {
            return (403, status(403, &refusal));
        }
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        if body["propagationPolicy"] == "Foreground" {
            object["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
        }
        assert!(body["gracePeriodSeconds"].is_null(), "by force: {body}");
        (200, self.put(path, object))
    }

    fn answer(&mut self, method: &Method, path: &str, query: &str, body: &Value) -> (u16, Value) {
        let line = format!("{method} {path}");
        self.log.push(line.clone());
        self.bodies.push((line.clone(), body.clone()));
        let refusal = self
            .refusals
            .iter()
            .position(|(prefix, _)| line.starts_with(prefix));
        if let Some(index) = refusal {
            let (_, answer) = self.refusals.remove(index);
            let code = u16::try_from(answer["code"].as_u64().unwrap()).unwrap();
            return (code, answer);
        }
        match *method {
            Method::PATCH => {
                let is_ours = query.contains("fieldManager=databasecluster-operator");
                assert!(is_ours || path.contains("/events/"), "{line}?{query}");
                self.patch(path, query.contains("force=true"), body)
            }
            Method::DELETE => self.delete(path, body),
            Method::POST => {
                let name = body["metadata"]["name"].as_str().expect("a name");
                let path = format!("{path}/{name}");
                if self.objects.contains_key(&path) {
                    return (409, status(409, "already exists"));
                }
                match query.contains("dryRun=All") {
                    true => (201, body.clone()),
                    false => (201, self.put(&path, body.clone())),
                }
            }
            Method::GET if LISTED.iter().any(|kind| path.ends_with(kind)) => {
                let name = query
                    .split('&')
                    .find_map(|part| part.strip_prefix("fieldSelector=metadata.name%3D"));
                let found: Vec<_> = self
                    .objects
                    .iter()
                    .filter(|(known, _)| known.starts_with(&format!("{path}/")))
                    .filter(|(known, _)| {
                        name.is_none_or(|name| known.ends_with(&format!("/{name}")))
                    })
                    .filter(|(known, _)| name.is_some() || !self.unlisted.contains(known))
                    .filter(|(_, object)| is_selected(query, object))
                    .map(|(_, object)| object.clone())
                    .collect();
                (
                    200,
                    json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": found}),
                )
            }
            Method::GET => match self.objects.get(path) {
                Some(object) => (200, object.clone()),
                None => (404, status(404, "not found")),
            },
            _ => panic!("unexpected {line}"),
        }
    }
}

impl Fake {
    /// The client of a reconciler, with its metrics.
    pub(super) fn guarded(
        &self,
        registry: Registry,
        clock: Clock,
    ) -> (GuardedClient, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::register(registry, NAMES).unwrap());
        let client = GuardedClient::new(self.client(), NAMES, Arc::clone(&metrics), clock);
        (client, metrics)
    }

    fn client(&self) -> Client {
        let state = Arc::clone(&self.0);
        let service = tower::service_fn(move |request: Request<Body>| {
            let state = Arc::clone(&state);
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect_bytes().await.expect("a body");
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let query = parts.uri.query().unwrap_or_default();
                let (code, answer) =
                    state
                        .lock()
                        .answer(&parts.method, parts.uri.path(), query, &body);
                let body = Body::from(serde_json::to_vec(&answer).expect("JSON"));
                Ok::<_, std::convert::Infallible>(
                    Response::builder()
                        .status(code)
                        .body(body)
                        .expect("a response"),
                )
            }
        });
        Client::new(service, "default")
    }

    /// Accesses the state.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock())
    }
}
