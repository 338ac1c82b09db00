//! What the tests of the deployment share: running the tools, and objects by kind and name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use testbed::{ControlPlane, ControlPlaneOptions};

/// Long enough for a busy machine; a test that needs it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
pub(crate) const NAMESPACE: &str = "databasecluster-system";
pub(crate) const NAME: &str = "databasecluster-operator";

/// Objects by kind, namespace and name.
pub(crate) type Objects = BTreeMap<(String, String, String), Value>;

pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

pub(crate) fn deploy(file: &str) -> String {
    root().join("deploy").join(file).display().to_string()
}

/// The objects of a text with several YAML documents; each exists once.
pub(crate) fn objects(text: &str) -> Objects {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    let mut found = Objects::new();
    for mut object in documents.into_iter().filter(|object| !object.is_null()) {
        plain_numbers(&mut object);
        let text = |pointer: &str| {
            let value = object.pointer(pointer).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        let key = (
            text("/kind"),
            text("/metadata/namespace"),
            text("/metadata/name"),
        );
        assert!(!key.0.is_empty() && !key.2.is_empty(), "{object}");
        assert!(
            found.insert(key.clone(), object).is_none(),
            "{key:?} exists twice"
        );
    }
    found
}

/// 1.0 is 1: tools write one or the other.
fn plain_numbers(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(plain_numbers),
        Value::Object(fields) => fields.values_mut().for_each(plain_numbers),
        Value::Number(number) => {
            let whole = number
                .as_f64()
                .filter(|n| n.fract() == 0.0 && n.abs() < 1e15);
            if let (Some(whole), true) = (whole, number.is_f64()) {
                *value = (whole as i64).into();
            }
        }
        _ => {}
    }
}

pub(crate) fn object<'a>(objects: &'a Objects, kind: &str, name: &str) -> &'a Value {
    let found: Vec<_> = objects
        .iter()
        .filter(|((k, _, n), _)| k == kind && n == name)
        .collect();
    assert_eq!(found.len(), 1, "{kind} {name}: {} of them", found.len());
    found[0].1
}

pub(crate) fn of_kind<'a>(objects: &'a Objects, kind: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|((k, ..), _)| k == kind)
        .map(|(_, object)| object)
        .collect()
}

pub(crate) fn installed() -> Objects {
    objects(&std::fs::read_to_string(deploy("install.yaml")).unwrap())
}

pub(crate) fn deployment(objects: &Objects) -> &Value {
    object(objects, "Deployment", NAME)
}

pub(crate) fn pod_spec(objects: &Objects) -> &Value {
    &deployment(objects)["spec"]["template"]["spec"]
}

pub(crate) fn arguments(objects: &Objects) -> Vec<String> {
    let all = pod_spec(objects)["containers"][0]["args"]
        .as_array()
        .unwrap();
    all.iter()
        .map(|argument| argument.as_str().unwrap().to_owned())
        .collect()
}

/// A tool whose build script prints a folder or a path on its last line, built on first use.
fn built(script: &str, argument: &str) -> PathBuf {
    let mut command = Command::new("bash");
    let output = command
        .arg(root().join(script))
        .arg(argument)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

pub(crate) fn helm() -> Command {
    static HELM: OnceLock<PathBuf> = OnceLock::new();
    let mut command =
        Command::new(HELM.get_or_init(|| built("tests/chart-tools/build.sh", "helm")));
    // The user's own configuration does not apply.
    let nowhere = std::env::temp_dir().join("databasecluster-helm-of-tests");
    for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(folder, &nowhere);
    }
    command
        .env_remove("KUBECONFIG")
        .env("HELM_PLUGINS", nowhere.join("plugins"));
    command
}

pub(crate) fn prometheus_crds() -> PathBuf {
    built("tests/chart-tools/build.sh", "schemas")
}

pub(crate) fn snapshot_crds() -> PathBuf {
    built("tests/chart-tools/build.sh", "snapshot-schemas")
}

pub(crate) fn olm_crds() -> PathBuf {
    built("tests/chart-tools/build.sh", "olm-schemas")
}

pub(crate) fn kubectl() -> Command {
    static KUBECTL: OnceLock<PathBuf> = OnceLock::new();
    Command::new(KUBECTL.get_or_init(|| built("tests/control-plane/build.sh", "").join("kubectl")))
}

/// Standard output of a command that succeeds.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", both(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The output of a command that fails.
pub(crate) fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        !output.status.success(),
        "{command:?} succeeded: {}",
        both(&output)
    );
    both(&output)
}

fn both(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    format!("{}\n{}", text(&output.stdout), text(&output.stderr))
}

pub(crate) fn kustomize(folder: &Path) -> Objects {
    objects(&run(kubectl().arg("kustomize").arg(folder)))
}

pub(crate) async fn control_plane(options: ControlPlaneOptions) -> ControlPlane {
    ControlPlane::start(options)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// kubectl as administrator, for commands that may fail.
pub(crate) fn kubectl_of(control_plane: &ControlPlane) -> Command {
    let mut command = Command::new(control_plane.kubectl());
    command.arg("--kubeconfig").arg(control_plane.kubeconfig());
    command.env("KUBECACHEDIR", control_plane.folder().join("kubectl-cache"));
    command.current_dir(root());
    command
}
