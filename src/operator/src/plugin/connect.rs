//! `logs` and `psql`: into the containers of a database.

use std::io::IsTerminal as _;
use std::process::{ExitCode, ExitStatus};

use futures::stream::BoxStream;
use futures::{AsyncBufReadExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt as _};

use super::access::{Session, no_kubectl};
use super::args::Logs;
use super::clusters;
use super::failure::{Exit, Failure};
use super::output::print;
use crate::postgres::{selector_text, statefulset_name};

const PODS_MAX: u32 = 100;

/// psql as the superuser, who has no password and can be used inside the Pod only, in the applications' database.
const PSQL: &str = r#"PGDATABASE=$(tr -d '\r\n' <"$SECRET_DIR/dbname") exec psql -U postgres "$@""#;

/// Prints the logs.
pub(crate) async fn logs(session: &Session, logs: &Logs) -> Result<(), Failure> {
    let mut all = lines(session, logs).await?;
    while let Some(line) = all.next().await {
        if !print(&line?)? {
            break;
        }
    }
    Ok(())
}

/// The lines of the logs, as they are printed.
async fn lines(
    session: &Session,
    logs: &Logs,
) -> Result<BoxStream<'static, Result<String, Failure>>, Failure> {
    let pods = pods(session, logs).await?;
    let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let seconds = logs.since.map(|since| since.as_secs().max(1));
    let params = LogParams {
        container: Some(logs.container.clone()),
        follow: logs.follow,
        previous: logs.previous,
        tail_lines: logs.tail.map(i64::from),
        since_seconds: seconds.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX)),
        ..LogParams::default()
    };
    let mut streams = Vec::new();
    for pod in &pods {
        let stream = api.log_stream(pod, &params).await;
        let stream =
            stream.map_err(|error| Failure::request(format!("read the log of {pod}"), &error))?;
        let prefix = match logs.all_instances {
            true => format!("{pod}: "),
            false => String::new(),
        };
        let lines = stream.lines().map(move |line| match line {
            Ok(line) => Ok(format!("{prefix}{line}\n")),
            Err(error) => Err(Failure::new(
                Exit::Failed,
                format!("the log ended: {error}"),
            )),
        });
        streams.push(lines.boxed());
    }
    Ok(match logs.follow {
        true => futures::stream::select_all(streams).boxed(),
        // In order, as `kubectl logs` prints them.
        false => futures::stream::iter(streams).flatten().boxed(),
    })
}

/// The Pods whose logs are meant; an error when there is none.
async fn pods(session: &Session, logs: &Logs) -> Result<Vec<String>, Failure> {
    clusters::get(session, &logs.name).await?;
    let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let params = ListParams::default()
        .labels(&selector_text(&logs.name))
        .limit(PODS_MAX);
    let found = api.list(&params).await;
    let found = found.map_err(|error| Failure::request("list the Pods", &error))?;
    let mut names: Vec<String> = found.items.iter().map(Pod::name_any).collect();
    names.sort();
    if !logs.all_instances {
        let wanted = instance(&logs.name, logs.instance);
        names.retain(|name| *name == wanted);
    }
    if names.is_empty() {
        return Err(no_instance(session, &logs.name));
    }
    Ok(names)
}

fn instance(cluster: &str, number: u32) -> String {
    format!("{}-{number}", statefulset_name(cluster))
}

fn no_instance(session: &Session, name: &str) -> Failure {
    let namespace = &session.namespace;
    let message =
        format!("that instance of {name} has no Pod: kubectl dbc explain -n {namespace} {name}");
    Failure::new(Exit::NotFound, message)
}

/// Runs psql in a Pod, and ends as it ends.
pub(crate) async fn psql(
    session: &Session,
    name: &str,
    number: u32,
    arguments: &[String],
) -> Result<ExitCode, Failure> {
    clusters::get(session, name).await?;
    let pod = instance(name, number);
    let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    match api.get_metadata_opt(&pod).await {
        Ok(Some(_)) => {}
        Ok(None) => return Err(no_instance(session, name)),
        Err(error) => return Err(Failure::request(format!("get Pod {pod}"), &error)),
    }
    let has_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let flags: &[&str] = if has_terminal {
        &["--stdin", "--tty"]
    } else {
        &["--stdin"]
    };
    let mut command = vec!["sh", "-c", PSQL, "psql"];
    command.extend(arguments.iter().map(String::as_str));
    let mut kubectl = session
        .kubectl
        .exec((&session.namespace, &pod), flags, &command);
    let ended = kubectl.status().await;
    let ended = ended.map_err(|error| Failure::new(Exit::Failed, no_kubectl(&error)))?;
    Ok(code(ended))
}

/// The code of psql, which kubectl passes on; 1 if a signal ended it.
fn code(ended: ExitStatus) -> ExitCode {
    let code = ended.code().and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::access::Kubectl;
    use super::super::args::{Cli, Command};
    use super::*;
    use clap::Parser as _;
    use futures::TryStreamExt as _;
    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use serde_json::json;
    use std::convert::Infallible;

    /// An API server with the DatabaseCluster `orders` of two instances; a log has its own address.
    async fn answer(request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let uri = request.uri().to_string();
        let body = if uri.contains("/log?") {
            format!("started\n{uri}\n")
        } else if uri.contains("/databaseclusters/orders") {
            json!({"apiVersion": "database.io/v1", "kind": "DatabaseCluster", "metadata": {"name": "orders"}}).to_string()
        } else {
            let pod = |name: &str| json!({"metadata": {"name": name}});
            let pods = [pod("orders-db-1"), pod("orders-db-0")];
            json!({"metadata": {}, "items": pods}).to_string()
        };
        Ok(Response::new(Body::from(body.into_bytes())))
    }

    async fn printed(arguments: &[&str]) -> Result<String, Failure> {
        let words = ["kubectl-dbc", "logs", "orders"].iter().chain(arguments);
        let cli = Cli::try_parse_from(words).unwrap();
        let Command::Logs(wanted) = cli.command else {
            return Err(Failure::new(Exit::Usage, "another command"));
        };
        let session = Session {
            client: Client::new(tower::service_fn(answer), "default"),
            namespace: "shop".to_owned(),
            operator_namespace: "system".to_owned(),
            kubectl: Kubectl::new(&cli.access),
        };
        let lines: Vec<String> = lines(&session, &wanted).await?.try_collect().await?;
        Ok(lines.concat())
    }

    #[tokio::test]
    async fn log_of_the_primary_is_printed_with_the_flags_of_kubectl() {
        let flags = [
            "--tail",
            "5",
            "--since",
            "10m",
            "--previous",
            "-c",
            "prepare",
        ];
        let text = printed(&flags).await.unwrap();
        assert!(text.starts_with("started\n"), "{text}");
        assert!(
            text.contains("/namespaces/shop/pods/orders-db-0/log?"),
            "{text}"
        );
        for part in [
            "tailLines=5",
            "sinceSeconds=600",
            "previous=true",
            "container=prepare",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[tokio::test]
    async fn logs_of_all_instances_are_in_order_and_name_their_pod() {
        let text = printed(&["--all-instances"]).await.unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(
            (lines[0], lines[2]),
            ("orders-db-0: started", "orders-db-1: started")
        );
        let text = printed(&["--all-instances", "--follow"]).await.unwrap();
        assert!(text.contains("follow=true"), "{text}");
    }

    #[tokio::test]
    async fn instance_without_a_pod_is_an_error() {
        let failure = printed(&["--instance", "7"]).await.unwrap_err();
        assert_eq!(failure.code(), Exit::NotFound as u8);
        assert!(
            failure
                .to_string()
                .contains("kubectl dbc explain -n shop orders")
        );
    }
}
