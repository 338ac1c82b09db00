//! `report`: an archive for a bug report, redacted before anything of it is written.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::{Timestamp, Unit};
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::access::Session;
use super::clusters::{self, ClusterView, read_fleet};
use super::explain::{Explanations, explain};
use super::failure::{Exit, Failure};
use super::output::{Printable as _, print, yaml};
use super::{fleet, redact};
use crate::api::names::NAMES;
use crate::postgres::{selector_text, statefulset_name};

/// Objects of one kind that are included.
const OBJECTS_MAX: u32 = 500;
/// Pods of the operator whose logs are included.
const LOGS_MAX: usize = 20;
const LOG_LINES_MAX: i64 = 5_000;
const LOG_BYTES_MAX: i64 = 2 << 20;

const README: &str = "\
Written by `kubectl dbc report`, for a bug report about databasecluster-operator.

Left out: Secrets (never read), values of environment variables, contents of ConfigMaps, logs of the databases
(statements may have passwords in them). Passwords and tokens in other texts are replaced by (redacted), as far as their
form shows them. Names of objects, images, nodes and namespaces are in it: read it before you publish it.

unavailable.txt lists what could not be read.
";

/// The files of the archive, in memory: all are redacted before the first is written.
struct Archive {
    folder: String,
    files: Vec<(String, String)>,
    unavailable: Vec<String>,
}

impl Archive {
    fn add(&mut self, name: impl Into<String>, text: &str) {
        self.files.push((name.into(), redact::text(text)));
    }

    /// Adds objects as YAML, redacted field by field.
    fn add_objects(
        &mut self,
        name: impl Into<String>,
        objects: &impl Serialize,
    ) -> Result<(), Failure> {
        let mut value = serde_json::to_value(objects)
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot write YAML: {error}")))?;
        redact::object(&mut value);
        let text = yaml(&value)?;
        self.files.push((name.into(), text));
        Ok(())
    }

    fn lacks(&mut self, what: impl std::fmt::Display, error: &kube::Error) {
        let failure = Failure::request(format!("read {what}"), error);
        self.unavailable.push(failure.to_string());
    }

    /// Adds the objects of a kind that a list selects.
    async fn add_list<K>(
        &mut self,
        session: &Session,
        namespace: &str,
        params: ListParams,
        name: &str,
    ) -> Result<(), Failure>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(session.client.clone(), namespace);
        match api.list(&params.limit(OBJECTS_MAX)).await {
            Ok(found) => self.add_objects(name, &found.items),
            Err(error) => {
                self.lacks(name, &error);
                Ok(())
            }
        }
    }

    /// Writes the archive. The file must not exist: nothing is overwritten.
    fn write(mut self, path: &Path) -> std::io::Result<usize> {
        let unavailable = match self.unavailable.is_empty() {
            true => "everything could be read\n".to_owned(),
            false => super::output::lines(&self.unavailable),
        };
        self.add("unavailable.txt", &unavailable);
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        for (name, text) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(u64::try_from(text.len()).unwrap_or(u64::MAX));
            header.set_mode(0o600);
            header.set_cksum();
            tar.append_data(
                &mut header,
                format!("{}/{name}", self.folder),
                text.as_bytes(),
            )?;
        }
        tar.into_inner()?.finish()?.flush()?;
        Ok(self.files.len())
    }
}

/// Writes the archive and prints its path.
pub(crate) async fn report(
    session: &Session,
    names: &[String],
    file: Option<PathBuf>,
) -> Result<(), Failure> {
    let now = Timestamp::now();
    let at = now
        .round(Unit::Second)
        .unwrap_or(now)
        .to_string()
        .replace(':', "-");
    let folder = format!("kubectl-dbc-report-{at}");
    let path = file.unwrap_or_else(|| PathBuf::from(format!("{folder}.tar.gz")));
    let mut archive = Archive {
        folder,
        files: Vec::new(),
        unavailable: Vec::new(),
    };
    archive.add("README.txt", README);
    archive.add("version.txt", &format!("plugin: {}\n", super::VERSION));
    // A misspelt name fails before anything is written.
    let mut objects = Vec::new();
    for name in names {
        objects.push(clusters::get(session, name).await?);
    }
    operator(session, &mut archive).await?;
    let fleet = read_fleet(session).await;
    if let Err(why) = &fleet {
        archive.unavailable.push(why.clone());
    }
    let mut views = Vec::new();
    for object in &objects {
        let mut view = ClusterView::of(object, &fleet, &session.operator_namespace, now);
        view.read_details(session, now).await;
        view.measure(session).await;
        cluster(session, object, &mut archive).await?;
        views.push(view);
    }
    if !views.is_empty() {
        archive.add_objects("status.yaml", &views)?;
        let explained = Explanations(views.iter().map(explain).collect());
        archive.add("explain.txt", &explained.text(true));
    }
    let lacking = archive.unavailable.len();
    let written = archive.write(&path).map_err(|error| {
        let path = path.display();
        Failure::new(
            Exit::Failed,
            format!("cannot write {path}: {error}; choose another with --file"),
        )
    })?;
    print(&format!("{}\n", path.display()))?;
    eprintln!(
        "{written} files, redacted; {lacking} parts could not be read (unavailable.txt). Read it before you publish it."
    );
    Ok(())
}

/// Everything of the operator itself.
async fn operator(session: &Session, archive: &mut Archive) -> Result<(), Failure> {
    let namespace = session.operator_namespace.clone();
    match fleet::read(session.client.clone(), &namespace, "--operator-namespace").await {
        Ok(view) => {
            archive.add("operator/fleet.txt", &view.text(true));
            archive.add_objects("operator/fleet.yaml", &view)?;
        }
        Err(failure) => archive.unavailable.push(failure.to_string()),
    }
    match fleet::read_leases(session.client.clone(), &namespace).await {
        Ok(leases) => archive.add_objects("operator/leases.yaml", &leases)?,
        Err(failure) => archive.unavailable.push(failure.to_string()),
    }
    match fleet::read_table(session.client.clone(), &namespace).await {
        Ok(table) => archive.add_objects("operator/shard-table.yaml", &table)?,
        Err(why) => archive.unavailable.push(why),
    }
    let (label, app) = NAMES.app_label();
    let ours = ListParams::default().labels(&format!("{label}={app}"));
    archive
        .add_list::<Deployment>(
            session,
            &namespace,
            ours.clone(),
            "operator/deployments.yaml",
        )
        .await?;
    archive
        .add_list::<Pod>(session, &namespace, ours.clone(), "operator/pods.yaml")
        .await?;
    archive
        .add_list::<Event>(
            session,
            &namespace,
            ListParams::default(),
            "operator/events.yaml",
        )
        .await?;
    logs(session, &namespace, &ours, archive).await;
    Ok(())
}

async fn logs(session: &Session, namespace: &str, ours: &ListParams, archive: &mut Archive) {
    let api: Api<Pod> = Api::namespaced(session.client.clone(), namespace);
    let pods = match api.list_metadata(&ours.clone().limit(OBJECTS_MAX)).await {
        Ok(pods) => pods.items,
        // Reported with the Pods themselves.
        Err(_) => return,
    };
    let params = LogParams {
        tail_lines: Some(LOG_LINES_MAX),
        limit_bytes: Some(LOG_BYTES_MAX),
        timestamps: true,
        ..LogParams::default()
    };
    for pod in pods.iter().take(LOGS_MAX).map(|pod| pod.name_any()) {
        match api.logs(&pod, &params).await {
            Ok(text) => archive.add(format!("operator/logs/{pod}.log"), &text),
            Err(error) => archive.lacks(format!("the log of {pod}"), &error),
        }
    }
}

/// One DatabaseCluster with its children.
async fn cluster(
    session: &Session,
    object: &kube::api::DynamicObject,
    archive: &mut Archive,
) -> Result<(), Failure> {
    let (namespace, name) = (session.namespace.clone(), object.name_any());
    let folder = format!("{namespace}/{name}");
    let set = statefulset_name(&name);
    let path = |file: &str| format!("{folder}/{file}.yaml");
    let labelled = ListParams::default().labels(&selector_text(&name));
    let named = ListParams::default().fields(&format!("metadata.name={set}"));
    let all = ListParams::default();
    let value: Value = serde_json::to_value(object).unwrap_or_default();
    archive.add_objects(path("databasecluster"), &value)?;
    archive
        .add_list::<StatefulSet>(session, &namespace, named.clone(), &path("statefulset"))
        .await?;
    archive
        .add_list::<ConfigMap>(session, &namespace, named.clone(), &path("configmap"))
        .await?;
    archive
        .add_list::<PodDisruptionBudget>(session, &namespace, named, &path("budget"))
        .await?;
    archive
        .add_list::<Service>(session, &namespace, labelled.clone(), &path("services"))
        .await?;
    archive
        .add_list::<Pod>(session, &namespace, labelled, &path("pods"))
        .await?;
    let claims =
        ListParams::default().labels(&format!("{}={name}", crate::api::names::CLUSTER_LABEL));
    archive
        .add_list::<PersistentVolumeClaim>(session, &namespace, claims, &path("claims"))
        .await?;
    archive
        .add_list::<Event>(session, &namespace, all, &path("events"))
        .await
}
