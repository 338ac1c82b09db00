//! `version`: of the plugin, and of the operator as its Deployments show it.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde::Serialize;

use super::access::Session;
use super::args::{Access, Format};
use super::failure::Failure;
use super::output::{self, Printable as _};
use crate::api::names::NAMES;
use sharded_controller::text::safe;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: &'static str,
    /// Image of each Deployment of the operator in its namespace.
    operator: Vec<Deployed>,
    api_server: Option<String>,
    unavailable: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Deployed {
    namespace: String,
    deployment: String,
    image: String,
}

impl output::Printable for Versions {
    type Data = Self;

    fn data(&self) -> &Self {
        self
    }

    fn text(&self, _wide: bool) -> String {
        let mut text = format!("plugin:     {}\n", self.client);
        for deployed in &self.operator {
            let Deployed {
                namespace,
                deployment,
                image,
            } = deployed;
            text.push_str(&format!("operator:   {image} ({namespace}/{deployment})\n"));
        }
        if let Some(version) = &self.api_server {
            text.push_str(&format!("API server: {version}\n"));
        }
        for why in &self.unavailable {
            text.push_str(&format!("not available: {why}\n"));
        }
        text
    }

    fn names(&self) -> Vec<String> {
        vec![format!("kubectl-dbc/{}", self.client)]
    }
}

/// Prints the versions. The plugin's own is printed in any case.
pub(crate) async fn version(
    access: &Access,
    format: Option<Format>,
    client_only: bool,
) -> Result<(), Failure> {
    let mut versions = Versions {
        client: super::VERSION,
        operator: Vec::new(),
        api_server: None,
        unavailable: Vec::new(),
    };
    if !client_only {
        match Session::open(access, true).await {
            Ok(session) => ask(&session, &mut versions).await,
            Err(failure) => versions.unavailable.push(failure.to_string()),
        }
    }
    output::print(&versions.print(format)?)?;
    Ok(())
}

async fn ask(session: &Session, versions: &mut Versions) {
    match session.client.apiserver_version().await {
        Ok(info) => versions.api_server = Some(safe(&info.git_version, 100)),
        Err(error) => {
            let failure = Failure::request("ask the API server for its version", &error);
            versions.unavailable.push(failure.to_string());
            return;
        }
    }
    let namespace = &session.operator_namespace;
    let api: Api<Deployment> = Api::namespaced(session.client.clone(), namespace);
    let (label, app) = NAMES.app_label();
    let params = ListParams::default()
        .labels(&format!("{label}={app}"))
        .limit(20);
    match api.list(&params).await {
        Ok(found) if found.items.is_empty() => {
            let why = format!(
                "the operator's version: there is no Deployment of it in namespace {namespace}"
            );
            versions.unavailable.push(why);
        }
        Ok(found) => versions.operator = found.items.iter().filter_map(deployed).collect(),
        Err(error) => {
            let what = format!("list the Deployments in namespace {namespace}");
            let failure = Failure::request(what, &error);
            versions
                .unavailable
                .push(format!("the operator's version: {failure}"));
        }
    }
}

fn deployed(deployment: &Deployment) -> Option<Deployed> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    let image = pod.containers.first()?.image.as_deref()?;
    Some(Deployed {
        namespace: deployment.namespace().unwrap_or_default(),
        deployment: deployment.name_any(),
        image: safe(image, 300),
    })
}
