//! The fleet, read from the Leases and the shard table: `shards`, `replicas`, `top`, and the command `fleet` of the
//! operator's own program.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client};
use serde::Serialize;

use super::access::Session;
use super::failure::{Exit, Failure};
use super::output::{self, Printable, bytes, columns};
use crate::api::names::NAMES;
use crate::telemetry::fleet_table;
use crate::telemetry::fleet_view::{FleetView, MemberView, ShardView};
use sharded_controller::fleet::shard_table::ShardTable;
use sharded_controller::text::safe;

const PAGE: u32 = 500;
const PAGES_MAX: usize = 8;
const WHY_CHARS_MAX: usize = 200;
const PATIENCE: Duration = Duration::from_secs(30);

/// How the operator's own command prints the fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns for display.
    #[default]
    Table,
    /// One JSON object for programs.
    Json,
}

/// Prints which replica holds which shard. Whether a member is alive cannot be determined from a
/// single read of its Lease, so the age of its last renewal is shown, by the local clock.
///
/// # Errors
/// When the Leases cannot be read, when the namespace has none of the operator's, or when standard
/// output cannot be written.
pub async fn fleet_command(client: Client, namespace: &str, output: Output) -> anyhow::Result<()> {
    let reading = read(client, namespace, "-n");
    let view = tokio::time::timeout(PATIENCE, reading)
        .await
        .with_context(|| {
            format!(
                "the API server did not answer within {} s; check the kubeconfig and the network",
                PATIENCE.as_secs()
            )
        })??;
    let text = match output {
        Output::Table => fleet_table::render(&view),
        Output::Json => output::json(&view)?,
    };
    output::print(&text)?;
    Ok(())
}

/// The fleet of one namespace. A namespace without Leases and table has no fleet, not a dead one: a stopped fleet leaves
/// its shard Leases behind.
///
/// `flag` is how the caller's user names the namespace.
pub(crate) async fn read(
    client: Client,
    namespace: &str,
    flag: &str,
) -> Result<FleetView, Failure> {
    let leases = read_leases(client.clone(), namespace).await?;
    let table = read_table(client.clone(), namespace).await;
    if leases.is_empty() && !matches!(table, Ok(Some(_))) {
        let hint = hint(client, flag).await;
        let message = format!("namespace {namespace} has no Leases of the operator: {hint}");
        return Err(Failure::new(Exit::NotFound, message));
    }
    Ok(view(&leases, &table, Timestamp::now()))
}

fn view(leases: &[Lease], table: &Result<Option<ShardTable>, String>, now: Timestamp) -> FleetView {
    let mut view = FleetView::from_leases(leases, Some(now));
    match table {
        Ok(table) => view = view.with_table(table.as_ref()),
        Err(why) => view.notes.push(why.clone()),
    }
    view
}

/// The fleets of all namespaces, or of the operator's, by namespace.
pub(crate) async fn read_fleets(session: &Session, all: bool) -> Result<Vec<Fleet>, Failure> {
    let mut namespaces = vec![session.operator_namespace.clone()];
    if all {
        namespaces = namespaces_with_fleets(session.client.clone()).await?;
    }
    let mut fleets = Vec::new();
    for namespace in namespaces {
        let view = read(session.client.clone(), &namespace, "-n").await?;
        fleets.push(Fleet { namespace, view });
    }
    Ok(fleets)
}

async fn namespaces_with_fleets(client: Client) -> Result<Vec<String>, Failure> {
    let api: Api<Lease> = Api::all(client);
    let leases = list(&api, &operators_label())
        .await
        .map_err(|error| Failure::request("read the Leases of all namespaces", &error))?;
    let mut found: Vec<String> = leases
        .into_iter()
        .filter_map(|lease| lease.metadata.namespace)
        .collect();
    found.sort();
    found.dedup();
    if found.is_empty() {
        let message = "no namespace has Leases of the operator; is the operator installed, and is this the right cluster?";
        return Err(Failure::new(Exit::NotFound, message));
    }
    Ok(found)
}

/// One fleet and its namespace.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Fleet {
    pub(crate) namespace: String,
    #[serde(flatten)]
    pub(crate) view: FleetView,
}

/// Rows of fleets, of one kind.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct Rows<T> {
    rows: Vec<Row<T>>,
}

#[derive(Serialize)]
struct Row<T> {
    namespace: String,
    #[serde(flatten)]
    of: T,
}

impl<T> Rows<T> {
    fn collect(fleets: Vec<Fleet>, rows: impl Fn(FleetView) -> Vec<T>) -> Self {
        let rows = fleets.into_iter().flat_map(|fleet| {
            let namespace = fleet.namespace;
            let rows = rows(fleet.view).into_iter();
            rows.map(move |of| Row {
                namespace: namespace.clone(),
                of,
            })
        });
        Self {
            rows: rows.collect(),
        }
    }

    /// A table, with the namespace as its first column if there are several.
    fn table(&self, head: &[&str], cells: impl Fn(&T) -> Vec<String>) -> String {
        let first = self.rows.first().map(|row| &row.namespace);
        let has_several = self.rows.iter().any(|row| Some(&row.namespace) != first);
        let mut names = head.to_vec();
        if has_several {
            names.insert(0, "NAMESPACE");
        }
        let rows = self.rows.iter().map(|row| {
            let mut cells = cells(&row.of);
            if has_several {
                cells.insert(0, row.namespace.clone());
            }
            cells
        });
        let mut text = String::new();
        columns(&mut text, &names, rows.collect());
        text
    }
}

/// The whole fleet.
impl Printable for FleetView {
    type Data = Self;

    fn data(&self) -> &Self {
        self
    }

    fn text(&self, _wide: bool) -> String {
        fleet_table::render(self)
    }

    fn names(&self) -> Vec<String> {
        let members = self.members.iter().map(member_name);
        members.chain(self.shards.iter().map(shard_name)).collect()
    }
}

fn member_name(member: &MemberView) -> String {
    let lease = NAMES.member_lease(&member.identity);
    format!("lease.coordination.k8s.io/{lease}")
}

fn shard_name(shard: &ShardView) -> String {
    format!("lease.coordination.k8s.io/{}", shard.lease)
}

/// The shards.
pub(crate) fn shards(fleets: Vec<Fleet>) -> Rows<ShardView> {
    Rows::collect(fleets, |view| view.shards)
}

impl Printable for Rows<ShardView> {
    type Data = Self;

    fn data(&self) -> &Self {
        self
    }

    fn text(&self, wide: bool) -> String {
        let mut head = fleet_table::SHARD_COLUMNS.to_vec();
        if wide {
            head.extend(["HELD FOR", "LEASE", "INCARNATION"]);
        }
        self.table(&head, |shard| {
            let mut row = fleet_table::shard_row(shard);
            if wide {
                #[allow(clippy::cast_possible_truncation)]
                let held = shard.held_seconds.map(|held| output::span(held as i64));
                row.push(held.unwrap_or_default());
                row.push(shard.lease.clone());
                row.push(shard.incarnation.clone().unwrap_or_default());
            }
            row
        })
    }

    fn names(&self) -> Vec<String> {
        self.rows.iter().map(|row| shard_name(&row.of)).collect()
    }
}

/// A replica, as `replicas` shows it.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct Replica(MemberView);

/// The replicas.
pub(crate) fn replicas(fleets: Vec<Fleet>) -> Rows<Replica> {
    Rows::collect(fleets, |view| {
        view.members.into_iter().map(Replica).collect()
    })
}

impl Printable for Rows<Replica> {
    type Data = Self;

    fn data(&self) -> &Self {
        self
    }

    fn text(&self, wide: bool) -> String {
        let mut head = vec![
            "REPLICA", "SHARDS", "OBJECTS", "STATE", "REVISION", "RENEWED",
        ];
        if wide {
            head.extend(["NAMESPACES", "WARM", "INCARNATION"]);
        }
        self.table(&head, |Replica(member)| {
            let objects = member.stats.get("objects").map(f64::to_string);
            let mut row = vec![
                member.identity.clone(),
                member.held.to_string(),
                objects.unwrap_or_default(),
                state(member),
                member.revision.clone().unwrap_or_default(),
                fleet_table::ago(member.renewed_seconds_ago),
            ];
            if wide {
                row.push(member.namespaces.clone().unwrap_or_default());
                row.push(member.warm.clone().unwrap_or_default());
                row.push(member.incarnation.clone().unwrap_or_default());
            }
            row
        })
    }

    fn names(&self) -> Vec<String> {
        let names = self.rows.iter().map(|row| member_name(&row.of.0));
        names.collect()
    }
}

/// The state of a replica in words. Whether it is alive cannot be determined from a single read, so a Lease that has not
/// been renewed for longer than its lifetime is reported as that.
fn state(member: &MemberView) -> String {
    let states = fleet_table::member_state(member);
    if !states.is_empty() {
        return states;
    }
    match is_silent(member) {
        true => "not renewed within its lifetime".to_owned(),
        false => "serving".to_owned(),
    }
}

/// Whether its Lease is older than its lifetime, by the local clock.
pub(crate) fn is_silent(member: &MemberView) -> bool {
    let lifetime = member.lease_seconds.map(f64::from);
    matches!((member.renewed_seconds_ago, lifetime), (Some(age), Some(lifetime)) if age > lifetime)
}

/// What a replica uses, as `top` shows it.
#[derive(Serialize)]
pub(crate) struct Usage {
    replica: String,
    shards: u16,
    stats: BTreeMap<String, f64>,
}

impl Usage {
    fn stat(&self, name: &str) -> Option<f64> {
        self.stats.get(name).copied()
    }
}

/// What the replicas use, the busiest first: by CPU, then by the depth of the queue.
pub(crate) fn top(fleets: Vec<Fleet>) -> Rows<Usage> {
    let mut rows = Rows::collect(fleets, |view| {
        let members = view.members.into_iter().filter(|member| !member.vacated);
        let usage = members.map(|member| Usage {
            replica: member.identity,
            shards: member.held,
            stats: member.stats,
        });
        usage.collect()
    });
    let load = |row: &Row<Usage>| {
        let stat = |name| row.of.stat(name).unwrap_or(0.0);
        (stat("cpu_cores"), stat("queue_depth"))
    };
    rows.rows.sort_by(|a, b| {
        let (a, b) = (load(a), load(b));
        b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1))
    });
    rows
}

impl Printable for Rows<Usage> {
    type Data = Self;

    fn data(&self) -> &Self {
        self
    }

    fn text(&self, wide: bool) -> String {
        let mut head = vec![
            "REPLICA", "SHARDS", "OBJECTS", "CPU", "MEMORY", "QUEUE", "BUSY", "FAILED",
        ];
        if wide {
            head.extend(["OLDEST", "LONGEST RUN", "CPU TIME"]);
        }
        self.table(&head, |usage| {
            let number = |name| usage.stat(name).map(|n| n.to_string()).unwrap_or_default();
            let seconds = |name| {
                usage
                    .stat(name)
                    .map(|n| format!("{n:.1}s"))
                    .unwrap_or_default()
            };
            let cpu = usage
                .stat("cpu_cores")
                .map(|cores| format!("{:.0}m", cores * 1000.0));
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let memory = usage.stat("memory_bytes").map(|n| bytes(n.max(0.0) as u64));
            let mut row = vec![
                usage.replica.clone(),
                usage.shards.to_string(),
                number("objects"),
                cpu.unwrap_or_default(),
                memory.unwrap_or_default(),
                number("queue_depth"),
                format!("{}/{}", number("busy"), number("workers")),
                number("failures_last_minute"),
            ];
            if wide {
                row.push(seconds("queue_head_age_seconds"));
                row.push(seconds("longest_run_seconds"));
                row.push(seconds("cpu_seconds"));
            }
            row
        })
    }

    fn names(&self) -> Vec<String> {
        let name = |row: &Row<Usage>| {
            let lease = NAMES.member_lease(&row.of.replica);
            format!("lease.coordination.k8s.io/{lease}")
        };
        self.rows.iter().map(name).collect()
    }
}

/// The namespace of the operator's Leases, as far as the user may read it.
async fn hint(client: Client, flag: &str) -> String {
    let api: Api<Lease> = Api::all(client);
    let params = ListParams::default().labels(&operators_label()).limit(1);
    match api
        .list(&params)
        .await
        .map(|page| page.items.into_iter().next())
    {
        Ok(Some(lease)) => {
            let found = lease.metadata.namespace.unwrap_or_default();
            format!("they are in namespace {found}: add {flag} {found}")
        }
        Ok(None) => {
            "no other namespace has any either; is the operator installed, and is this the \
                     right cluster?"
                .to_owned()
        }
        Err(_) => {
            format!(
                "name the operator's namespace with {flag}, and check that the kubeconfig is for the right cluster"
            )
        }
    }
}

fn operators_label() -> String {
    let (label, app) = NAMES.app_label();
    format!("{label}={app}")
}

/// All pages of a list, up to a bound.
async fn list(api: &Api<Lease>, labels: &str) -> kube::Result<Vec<Lease>> {
    let mut params = ListParams::default().labels(labels).limit(PAGE);
    let mut leases = Vec::new();
    for _ in 0..PAGES_MAX {
        let page = api.list(&params).await?;
        leases.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    Ok(leases)
}

/// The operator's Leases and the fleet leader's, which the election library creates without labels.
pub(crate) async fn read_leases(client: Client, namespace: &str) -> Result<Vec<Lease>, Failure> {
    let api: Api<Lease> = Api::namespaced(client, namespace);
    let failure = |error: kube::Error| {
        let what = format!("read the Leases in namespace {namespace}; is it the operator's?");
        Failure::request(what, &error)
    };
    let mut leases = list(&api, &operators_label()).await.map_err(failure)?;
    leases.extend(api.get_opt(&NAMES.leader_lease()).await.map_err(failure)?);
    Ok(leases)
}

/// The shard table. The Leases alone show which replica holds which shard, so its absence is not an
/// error.
pub(crate) async fn read_table(
    client: Client,
    namespace: &str,
) -> Result<Option<ShardTable>, String> {
    let api: Api<ShardTable> = Api::namespaced_with(client, namespace, &NAMES);
    let table = api.get_opt(&NAMES.shard_table()).await;
    table.map_err(|error| {
        let why = safe(&error.to_string(), WHY_CHARS_MAX);
        format!("the shard table cannot be read ({why}); may you get shardtables.database.io?")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::args::Format;
    use super::*;
    use crate::telemetry::fleet_view::tests::whole_fleet;
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use std::convert::Infallible;

    /// An API server that knows the Leases of `whole_fleet` and pages them by two.
    async fn answer(request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let uri = request.uri().to_string();
        let leases = whole_fleet();
        let (status, body) = if uri.contains("/namespaces/forbidden/") {
            (
                403,
                json!({"kind": "Status", "code": 403, "reason": "Forbidden"}),
            )
        } else if uri.contains("/namespaces/system/leases/databasecluster-leader") {
            (200, json!(leases[0]))
        } else if uri.contains("/shardtables/") || uri.contains("/leases/databasecluster-leader") {
            (
                404,
                json!({"kind": "Status", "code": 404, "reason": "NotFound"}),
            )
        } else if uri.contains("/namespaces/empty/") {
            (200, json!({"metadata": {}, "items": []}))
        } else if uri.contains("/v1/leases?") {
            let mut lease = json!(leases[1]);
            lease["metadata"]["namespace"] = json!("system");
            (200, json!({"metadata": {}, "items": [lease]}))
        } else if uri.contains("continue=next") {
            (200, json!({"metadata": {}, "items": leases[3..]}))
        } else {
            let right =
                uri.contains("labelSelector=app.kubernetes.io%2Fname%3Ddatabasecluster-operator");
            let items: &[_] = if right { &leases[1..3] } else { &[] };
            (
                200,
                json!({"metadata": {"continue": "next"}, "items": items}),
            )
        };
        let body = Body::from(body.to_string().into_bytes());
        Ok(Response::builder().status(status).body(body).unwrap())
    }

    fn client() -> Client {
        Client::new(tower::service_fn(answer), "default")
    }

    #[tokio::test]
    async fn all_pages_and_the_leader_are_read() {
        let leases = read_leases(client(), "system").await.unwrap();
        assert_eq!(leases.len(), whole_fleet().len());
        let now = Timestamp::UNIX_EPOCH;
        let view = view(&leases, &Ok(None), now);
        let table = view.print(None).unwrap();
        assert!(
            table.starts_with("fleet leader: op-1 (renewed 1.2s ago)"),
            "{table}"
        );
        let json: Value = serde_json::from_str(&view.print(Some(Format::Json)).unwrap()).unwrap();
        assert_eq!(json["shards"][1]["holder"], "op-1");
        assert_eq!(json["members"][1]["held"], 1);
        assert!(table.contains("note: there is no shard table"), "{table}");
    }

    #[tokio::test]
    async fn namespace_without_leases_is_an_error_naming_the_right_one() {
        let error = fleet_command(client(), "empty", Output::Json)
            .await
            .unwrap_err();
        let text = format!("{error:#}");
        for part in ["namespace empty has no Leases", "add -n system"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let view = read(client(), "system", "-n").await.unwrap();
        assert_eq!(view.members.len(), 2);
    }

    #[tokio::test]
    async fn refused_request_reports_what_to_check() {
        let error = read_leases(client(), "forbidden").await.unwrap_err();
        assert_eq!(error.code(), Exit::Refused as u8);
        let text = error.to_string();
        assert!(text.contains("in namespace forbidden"), "{text}");
    }
}
