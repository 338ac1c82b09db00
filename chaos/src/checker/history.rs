//! The audit log in terms of the protocol: writes with their fencing tokens, Leases and the shard table as they
//! were, users' changes, requests.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use testbed::audit::{AuditEvent, Reader};
use testbed::fencing::Token;
use testbed::names::OperatorNames;
use testbed::table::{self, Entry, Table};

use crate::evidence::Micros;

/// Events that are held in memory with their bodies.
const BATCH: usize = 2_000;
const CHILDREN: [&str; 7] = [
    "statefulsets",
    "services",
    "configmaps",
    "poddisruptionbudgets",
    "secrets",
    "persistentvolumeclaims",
    "pods",
];

/// The label by which a claim names the uid of its DatabaseCluster.
const CLUSTER_LABEL: &str = "/metadata/labels/database.io~1cluster-uid";

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Created,
    Changed,
    Deleted,
}

/// A write of a DatabaseCluster or of a child by a replica.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) received: Micros,
    pub(super) completed: Micros,
    pub(super) pod: String,
    /// `resource/namespace/name`, without the subresource.
    pub(super) object: String,
    /// The cluster that it is about: `namespace/name`.
    pub(super) cluster: Option<String>,
    /// The uid of the cluster that owns it.
    pub(super) owner: Option<String>,
    pub(super) operation: Operation,
    /// The fencing token of the request.
    pub(super) token: Option<Token>,
    /// The store's revision after it.
    pub(super) version: Option<u64>,
    pub(super) code: u16,
    /// Whether the fence refused it.
    pub(super) fenced: bool,
}

impl Write {
    pub(super) fn accepted(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// Whether it may have been executed though the log does not show it.
    pub(super) fn indeterminate(&self) -> bool {
        indeterminate(self.code)
    }
}

/// An accepted write of a Lease, by any client.
#[derive(Clone, Debug, Default)]
pub(super) struct LeaseWrite {
    /// What it is for, by its name.
    pub(super) of: LeaseOf,
    pub(super) received: Micros,
    pub(super) completed: Micros,
    pub(super) name: String,
    /// The replica; none: another client.
    pub(super) pod: Option<String>,
    pub(super) holder: String,
    pub(super) incarnation: String,
    pub(super) epoch: i64,
    pub(super) version: Option<u64>,
    pub(super) deleted: bool,
    pub(super) created: bool,
    /// Whether the request named the uid and the version that it was to replace.
    pub(super) compared: bool,
    /// The version that the request named.
    pub(super) basis: Option<u64>,
}

/// What a Lease of the operator is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum LeaseOf {
    Shard,
    /// The replica of this name.
    Member(String),
    #[default]
    Other,
}

impl LeaseOf {
    fn of(operator: &OperatorNames, lease: &str) -> Self {
        match (operator.shard_of(lease), operator.member_of(lease)) {
            (Some(_), _) => Self::Shard,
            (None, Some(pod)) => Self::Member(pod.to_owned()),
            (None, None) => Self::Other,
        }
    }
}

impl LeaseWrite {
    pub(super) fn is_shard(&self) -> bool {
        self.of == LeaseOf::Shard
    }

    pub(super) fn is_member(&self) -> bool {
        matches!(self.of, LeaseOf::Member(_))
    }
}

/// Where an object keeps a fencing token. The two are compared only with themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Register {
    Annotation,
    Status,
}

/// An accepted write of an object that can hold a fencing token, by any client.
#[derive(Clone, Debug)]
pub(super) struct TokenWrite {
    pub(super) version: u64,
    /// The replica; none: another client.
    pub(super) pod: Option<String>,
    /// `resource/namespace/name`.
    pub(super) object: String,
    pub(super) uid: String,
    /// The uid of the DatabaseCluster for which a token on this object counts, as far as the write shows it.
    pub(super) cluster_uid: Option<String>,
    pub(super) register: Register,
    /// The token afterwards.
    pub(super) token: Option<Token>,
}

/// A write of the shard table, by any client, that was accepted or may have been executed.
#[derive(Clone, Debug, Default)]
pub(super) struct TableWrite {
    pub(super) received: Micros,
    pub(super) completed: Micros,
    /// The replica; none: another client.
    pub(super) pod: Option<String>,
    /// The uid of the table; empty: not known.
    pub(super) uid: String,
    /// The entries that the request sets.
    pub(super) set: BTreeMap<String, Entry>,
    /// The table afterwards, if the answer shows it.
    pub(super) after: Option<Table>,
    pub(super) version: Option<u64>,
    pub(super) deleted: bool,
}

/// A change of a DatabaseCluster by a client other than the operator.
#[derive(Clone, Debug)]
pub(super) struct UserChange {
    pub(super) at: Micros,
    pub(super) cluster: String,
    pub(super) operation: Operation,
}

/// The parsed audit log.
#[derive(Debug, Default)]
pub struct History {
    /// The operator whose requests these are.
    pub(super) operator: OperatorNames,
    /// In the order of the store's revision, as far as it is known.
    pub(super) writes: Vec<Write>,
    pub(super) leases: Vec<LeaseWrite>,
    /// Writes of Leases that may have been executed though the log does not show it.
    pub(super) indeterminate_leases: Vec<LeaseWrite>,
    /// Writes of the shard table, in the order of the store.
    pub(super) tables: Vec<TableWrite>,
    /// Writes of the shard table that may have been executed though the log does not show it.
    pub(super) indeterminate_tables: Vec<TableWrite>,
    /// What became of the fencing tokens on objects, in the order of the store's revision.
    pub(super) tokens: Vec<TokenWrite>,
    pub(super) changes: Vec<UserChange>,
    /// Children deleted by a client that is neither the operator nor a controller: `resource/namespace/name`.
    pub(super) children_deleted_by_hand: BTreeMap<String, u64>,
    /// Requests of each replica in each second since 1970.
    pub(super) requests: BTreeMap<String, BTreeMap<i64, u64>>,
    /// All writes of the operator but heartbeats: when, and what.
    pub(super) beside_heartbeats: Vec<(Micros, String)>,
}

impl History {
    /// Reads a log of the DatabaseCluster operator, piece by piece: a long one does not fit into memory.
    ///
    /// # Errors
    /// When it cannot be read or parsed.
    pub fn from_log(path: &Path) -> testbed::Result<Self> {
        Self::from_log_of(path, OperatorNames::DATABASE_CLUSTERS)
    }

    /// As [`History::from_log`], of another operator.
    ///
    /// # Errors
    /// As [`History::from_log`].
    pub fn from_log_of(path: &Path, operator: OperatorNames) -> testbed::Result<Self> {
        let mut reader = Reader::from_start(path.to_owned());
        let mut history = Self {
            operator,
            ..Self::default()
        };
        loop {
            let events = reader.next_events_at_most(BATCH)?;
            if events.is_empty() {
                return Ok(history.ordered());
            }
            events.iter().for_each(|event| history.note(event));
        }
    }

    /// From events.
    #[must_use]
    pub fn read(events: &[AuditEvent]) -> Self {
        let mut history = Self::default();
        events.iter().for_each(|event| history.note(event));
        history.ordered()
    }

    fn ordered(self) -> Self {
        let mut history = self;
        history
            .writes
            .sort_by_key(|write| (write.version.unwrap_or(u64::MAX), write.completed));
        history.leases.sort_by_key(|lease| lease.completed);
        history.leases = in_order_of_store(history.leases, |lease| lease.version);
        history.tables.sort_by_key(|write| write.completed);
        history.tables = in_order_of_store(history.tables, |write| write.version);
        history.tokens.sort_by_key(|write| write.version);
        history.changes.sort_by_key(|change| change.at);
        history
    }

    fn note(&mut self, event: &AuditEvent) {
        let operator = self.operator;
        let by_operator = operator.is_user(&event.user);
        if by_operator && let Some(pod) = &event.pod_name {
            let second = event.received_micros.div_euclid(1_000_000);
            *self
                .requests
                .entry(pod.clone())
                .or_default()
                .entry(second)
                .or_insert(0) += 1;
        }
        if !is_write(event) || event.uri.contains("dryRun=") {
            return;
        }
        let heartbeat = event.resource == "leases" && operator.shard_of(&event.name).is_none();
        if by_operator && !heartbeat {
            let what = format!(
                "{} {}/{}/{}",
                event.verb, event.resource, event.namespace, event.name
            );
            self.beside_heartbeats.push((event.received_micros, what));
        }
        if event.resource == "leases" && event.namespace == operator.namespace {
            if event.is_accepted_write() {
                let answer = event.response.as_ref();
                self.leases
                    .push(lease_write(&operator, event, by_operator, answer));
            } else if indeterminate(event.code)
                && matches!(event.verb.as_str(), "create" | "update")
            {
                let asked = event.request.as_ref();
                self.indeterminate_leases
                    .push(lease_write(&operator, event, by_operator, asked));
            }
            return;
        }
        if event.resource == table::RESOURCE && event.namespace == operator.namespace {
            if event.is_accepted_write() {
                self.tables.push(table_write(event, by_operator));
            } else if indeterminate(event.code) && event.verb != "delete" {
                self.indeterminate_tables
                    .push(table_write(event, by_operator));
            }
            return;
        }
        let is_cluster = event.resource == "databaseclusters";
        let is_child = CHILDREN.contains(&event.resource.as_str());
        if is_cluster || is_child {
            self.tokens
                .extend(token_writes(&operator, event, by_operator));
        }
        if by_operator && (is_cluster || is_child) && event.namespace != operator.namespace {
            self.writes.push(write(&operator, event));
        } else if is_cluster && event.subresource.is_empty() && may_count(event) {
            self.note_change(event);
        } else if is_child && event.verb == "delete" && event.is_accepted_write() && by_hand(event)
        {
            let object = format!("{}/{}/{}", event.resource, event.namespace, event.name);
            *self.children_deleted_by_hand.entry(object).or_insert(0) += 1;
        }
    }

    fn note_change(&mut self, event: &AuditEvent) {
        let operation = match event.verb.as_str() {
            "create" => Operation::Created,
            "delete" | "deletecollection" => Operation::Deleted,
            _ => Operation::Changed,
        };
        let name = match event.name.as_str() {
            "" => body_text(event.response.as_ref(), "/metadata/name"),
            name => name.to_owned(),
        };
        self.changes.push(UserChange {
            at: match event.is_accepted_write() {
                true => event.completed_micros,
                false => event.received_micros,
            },
            cluster: format!("{}/{name}", event.namespace),
            operation,
        });
    }

    /// The Lease writes of each shard, in order; none for one of which all that is known was not answered.
    pub(super) fn shards(&self) -> BTreeMap<&str, Vec<&LeaseWrite>> {
        let mut shards: BTreeMap<&str, Vec<&LeaseWrite>> = BTreeMap::new();
        for lease in self
            .indeterminate_leases
            .iter()
            .filter(|lease| lease.is_shard())
        {
            shards.entry(&lease.name).or_default();
        }
        for lease in self.leases.iter().filter(|lease| lease.is_shard()) {
            shards.entry(&lease.name).or_default().push(lease);
        }
        shards
    }

    /// The accepted renewals of each replica's member Lease by itself: when, and as which incarnation.
    pub(super) fn renewals(&self) -> BTreeMap<&str, Vec<(Micros, &str)>> {
        let mut renewals: BTreeMap<&str, Vec<(Micros, &str)>> = BTreeMap::new();
        for lease in self
            .leases
            .iter()
            .filter(|lease| lease.is_member() && !lease.deleted)
        {
            let Some(pod) = &lease.pod else { continue };
            let is_own = matches!(&lease.of, LeaseOf::Member(of) if of == pod);
            if lease.holder == *pod && is_own {
                renewals
                    .entry(pod)
                    .or_default()
                    .push((lease.received, &lease.incarnation));
            }
        }
        for times in renewals.values_mut() {
            times.sort_unstable();
        }
        renewals
    }
}

/// Writes in the order of the store, given in the order of their answers; a deletion, which has no revision, stays
/// where its time puts it.
fn in_order_of_store<T>(writes: Vec<T>, version: impl Fn(&T) -> Option<u64>) -> Vec<T> {
    let mut last = 0;
    let mut keyed: Vec<(u64, T)> = Vec::new();
    for write in writes {
        last = version(&write).unwrap_or(last);
        keyed.push((last, write));
    }
    keyed.sort_by_key(|(version, _)| *version);
    keyed.into_iter().map(|(_, write)| write).collect()
}

fn is_write(event: &AuditEvent) -> bool {
    matches!(
        event.verb.as_str(),
        "create" | "update" | "patch" | "delete" | "deletecollection"
    )
}

/// A change by a user that was accepted, or a deletion that was not answered and may have been executed.
fn may_count(event: &AuditEvent) -> bool {
    event.is_accepted_write() || (event.verb == "delete" && indeterminate(event.code))
}

/// Whether this is a user, and not a part of the control plane.
fn by_hand(event: &AuditEvent) -> bool {
    !event.user.starts_with("system:") && !event.user_agent.starts_with("kube-")
}

fn body_text(body: Option<&Value>, pointer: &str) -> String {
    optional_text(body, pointer).unwrap_or_default()
}

fn optional_text(body: Option<&Value>, pointer: &str) -> Option<String> {
    let text = body?.pointer(pointer)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

fn number(body: Option<&Value>, pointer: &str) -> Option<i64> {
    body?.pointer(pointer)?.as_i64()
}

fn version(event: &AuditEvent) -> Option<u64> {
    optional_text(event.response.as_ref(), "/metadata/resourceVersion")?
        .parse()
        .ok()
}

/// The API server timed out, or its client was gone: such a request may still be executed.
fn indeterminate(code: u16) -> bool {
    code == 0 || code >= 500
}

/// `answer` is the Lease as it is afterwards.
fn lease_write(
    operator: &OperatorNames,
    event: &AuditEvent,
    by_operator: bool,
    answer: Option<&Value>,
) -> LeaseWrite {
    let deleted = event.verb == "delete" || event.verb == "deletecollection";
    let asked = event.request.as_ref();
    let named = |field: &str| optional_text(asked, field).is_some();
    let compared = match deleted {
        true => named("/preconditions/uid") && named("/preconditions/resourceVersion"),
        false => named("/metadata/uid") && named("/metadata/resourceVersion"),
    };
    let name = match event.name.as_str() {
        "" => body_text(answer, "/metadata/name"),
        name => name.to_owned(),
    };
    LeaseWrite {
        received: event.received_micros,
        completed: event.completed_micros,
        of: LeaseOf::of(operator, &name),
        name,
        pod: event.pod_name.clone().filter(|_| by_operator),
        holder: if deleted {
            String::new()
        } else {
            body_text(answer, "/spec/holderIdentity")
        },
        incarnation: answer
            .and_then(|lease| operator.annotation(lease, "incarnation"))
            .unwrap_or_default()
            .to_owned(),
        epoch: number(answer, "/spec/leaseTransitions").unwrap_or(0),
        version: version(event).filter(|_| !deleted),
        deleted,
        created: event.code == 201,
        compared,
        basis: optional_text(asked, "/metadata/resourceVersion").and_then(|text| text.parse().ok()),
    }
}

fn write(operator: &OperatorNames, event: &AuditEvent) -> Write {
    let asked = event.request.as_ref();
    let operation = match (event.verb.as_str(), event.code) {
        ("delete" | "deletecollection", _) => Operation::Deleted,
        (_, 201) => Operation::Created,
        _ => Operation::Changed,
    };
    // A deletion carries no token: what counts is the one on the object.
    let token = match operation {
        Operation::Deleted => None,
        _ => asked.and_then(|body| token_of(operator, body, register(event))),
    };
    let name = match event.name.as_str() {
        "" => body_text(asked, "/metadata/name"),
        name => name.to_owned(),
    };
    Write {
        received: event.received_micros,
        completed: event.completed_micros,
        pod: event.pod_name.clone().unwrap_or_default(),
        cluster: cluster_of(&event.resource, &event.namespace, &name),
        object: format!("{}/{}/{name}", event.resource, event.namespace),
        owner: optional_text(asked, "/metadata/ownerReferences/0/uid"),
        operation,
        token,
        version: version(event),
        code: event.code,
        // The log does not contain the answer of admission, but nothing else rejects here what RBAC allows.
        fenced: event.code == 403 && !event.refused_by_rbac,
    }
}

fn register(event: &AuditEvent) -> Register {
    match event.subresource.as_str() {
        "status" => Register::Status,
        _ => Register::Annotation,
    }
}

fn token_of(operator: &OperatorNames, object: &Value, register: Register) -> Option<Token> {
    match register {
        Register::Annotation => operator.token_of_annotation(object),
        Register::Status => operator.token_of_status(object),
    }
}

/// What an accepted write left in the registers of its object. A write of one register leaves the other as it is, and
/// so does a client that is neither a user nor the operator and has no body in the log.
fn token_writes(
    operator: &OperatorNames,
    event: &AuditEvent,
    by_operator: bool,
) -> Option<TokenWrite> {
    let accepted = event.is_accepted_write() && !event.verb.starts_with("delete");
    let answer = event.response.as_ref().filter(|_| accepted)?;
    let register = register(event);
    // Some responses contain only what the client asked for.
    let shown = token_of(operator, answer, register);
    let asked = event.request.as_ref().filter(|_| by_operator);
    let token = shown.or_else(|| asked.and_then(|body| token_of(operator, body, register)));
    let bodies = [Some(answer), event.request.as_ref()];
    let cluster_uid = bodies
        .into_iter()
        .flatten()
        .find_map(|body| cluster_uid(&event.resource, body));
    let name = match event.name.as_str() {
        "" => body_text(Some(answer), "/metadata/name"),
        name => name.to_owned(),
    };
    Some(TokenWrite {
        version: version(event)?,
        pod: event.pod_name.clone().filter(|_| by_operator),
        object: format!("{}/{}/{name}", event.resource, event.namespace),
        uid: optional_text(Some(answer), "/metadata/uid")?,
        cluster_uid,
        register,
        token,
    })
}

/// The uid of the DatabaseCluster for which a token on this object counts: its own, its controller's, or that on a
/// claim.
fn cluster_uid(resource: &str, object: &Value) -> Option<String> {
    let object = Some(object);
    match resource {
        "databaseclusters" => optional_text(object, "/metadata/uid"),
        "persistentvolumeclaims" => optional_text(object, CLUSTER_LABEL),
        "pods" => None,
        _ => optional_text(object, "/metadata/ownerReferences/0/uid"),
    }
}

/// A deletion answers with a status that names the uid.
fn table_write(event: &AuditEvent, by_operator: bool) -> TableWrite {
    let (asked, answer) = (event.request.as_ref(), event.response.as_ref());
    let deleted = event.verb.starts_with("delete");
    let accepted = event.is_accepted_write();
    let after = answer
        .filter(|_| accepted && !deleted)
        .and_then(Table::of)
        .filter(|table| !table.entries.is_empty());
    let uid = ["/metadata/uid", "/details/uid"]
        .iter()
        .find_map(|pointer| optional_text(answer, pointer));
    TableWrite {
        received: event.received_micros,
        completed: event.completed_micros,
        pod: event.pod_name.clone().filter(|_| by_operator),
        uid: uid.unwrap_or_default(),
        set: asked
            .filter(|_| !deleted)
            .map(table::entries)
            .unwrap_or_default(),
        after,
        version: version(event).filter(|_| !deleted),
        deleted,
    }
}

/// The cluster that an object belongs to, by its name.
fn cluster_of(resource: &str, namespace: &str, name: &str) -> Option<String> {
    let cluster = match resource {
        "databaseclusters" => name,
        "secrets" => name.strip_suffix("-app")?,
        "services" => ["-db", "-rw", "-r"]
            .iter()
            .find_map(|end| name.strip_suffix(end))?,
        "statefulsets" | "configmaps" | "poddisruptionbudgets" => name.strip_suffix("-db")?,
        _ => return None,
    };
    Some(format!("{namespace}/{cluster}"))
}
