//! The `fleet` command: which replica holds which shard, read from the Leases and the shard table.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client};

use super::fleet_table;
use super::fleet_view::FleetView;
use crate::api::names::NAMES;
use sharded_controller::fleet::shard_table::ShardTable;
use sharded_controller::text::safe;

const PAGE: u32 = 500;
const PAGES_MAX: usize = 8;
const WHY_CHARS_MAX: usize = 200;
const PATIENCE: Duration = Duration::from_secs(30);

/// How the command prints the fleet.
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
    let reading = read_fleet(client, namespace);
    let (leases, table) = tokio::time::timeout(PATIENCE, reading)
        .await
        .with_context(|| {
            format!(
                "the API server did not answer within {} s; check the kubeconfig and the network",
                PATIENCE.as_secs()
            )
        })??;
    let text = render(&leases, &table, Timestamp::now(), output)?;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // A pager that was quit early is not an error.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

fn render(
    leases: &[Lease],
    table: &Result<Option<ShardTable>, String>,
    now: Timestamp,
    output: Output,
) -> anyhow::Result<String> {
    let mut view = FleetView::from_leases(leases, Some(now));
    match table {
        Ok(table) => view = view.with_table(table.as_ref()),
        Err(why) => view.notes.push(why.clone()),
    }
    match output {
        Output::Table => Ok(fleet_table::render(&view)),
        Output::Json => Ok(serde_json::to_string_pretty(&view)? + "\n"),
    }
}

/// The Leases and the shard table. A namespace without either has no fleet, not a dead one: a
/// stopped fleet leaves its shard Leases behind.
async fn read_fleet(
    client: Client,
    namespace: &str,
) -> anyhow::Result<(Vec<Lease>, Result<Option<ShardTable>, String>)> {
    let leases = read_leases(client.clone(), namespace).await?;
    let table = read_table(client.clone(), namespace).await;
    if leases.is_empty() && !matches!(table, Ok(Some(_))) {
        let hint = hint(client).await;
        anyhow::bail!("namespace {namespace} has no Leases of the operator: {hint}");
    }
    Ok((leases, table))
}

/// The namespace of the operator's Leases, as far as the user may read it.
async fn hint(client: Client) -> String {
    let api: Api<Lease> = Api::all(client);
    let params = ListParams::default().labels(&operators_label()).limit(1);
    match api
        .list(&params)
        .await
        .map(|page| page.items.into_iter().next())
    {
        Ok(Some(lease)) => {
            let found = lease.metadata.namespace.unwrap_or_default();
            format!("they are in namespace {found}: add -n {found}")
        }
        Ok(None) => {
            "no other namespace has any either; is the operator installed, and is this the \
                     right cluster?"
                .to_owned()
        }
        Err(_) => {
            "name the operator's namespace with -n, and check that the kubeconfig is for the \
                   right cluster"
                .to_owned()
        }
    }
}

fn operators_label() -> String {
    let (label, app) = NAMES.app_label();
    format!("{label}={app}")
}

/// The operator's Leases and the fleet leader's, which the election library creates without labels.
async fn read_leases(client: Client, namespace: &str) -> anyhow::Result<Vec<Lease>> {
    let api: Api<Lease> = Api::namespaced(client, namespace);
    let what = || {
        format!(
            "cannot read the Leases in namespace {namespace}; is it the operator's, and may you \
             get and list leases.coordination.k8s.io there?"
        )
    };
    let mut params = ListParams::default().labels(&operators_label()).limit(PAGE);
    let mut leases = Vec::new();
    for _ in 0..PAGES_MAX {
        let page = api.list(&params).await.with_context(what)?;
        leases.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    leases.extend(
        api.get_opt(&NAMES.leader_lease())
            .await
            .with_context(what)?,
    );
    Ok(leases)
}

/// The shard table. The Leases alone show which replica holds which shard, so its absence is not an
/// error.
async fn read_table(client: Client, namespace: &str) -> Result<Option<ShardTable>, String> {
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
    use super::super::fleet_view::tests::whole_fleet;
    use super::*;
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
        let table = render(&leases, &Ok(None), now, Output::Table).unwrap();
        assert!(
            table.starts_with("fleet leader: op-1 (renewed 1.2s ago)"),
            "{table}"
        );
        let json: Value =
            serde_json::from_str(&render(&leases, &Ok(None), now, Output::Json).unwrap()).unwrap();
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
        let (leases, table) = read_fleet(client(), "system").await.unwrap();
        assert_eq!((leases.len(), table), (whole_fleet().len(), Ok(None)));
    }

    #[tokio::test]
    async fn refused_request_reports_what_to_check() {
        let error = read_leases(client(), "forbidden").await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("in namespace forbidden"), "{text}");
    }
}
