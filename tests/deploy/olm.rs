//! The bundle for the Operator Lifecycle Manager: its files by OLM's own schema, and by the objects of install.yaml.

use serde_json::{Value, json};
use testbed::{ControlPlaneOptions, Progress, wait_for};

use crate::support::*;

/// The kinds that OLM installs from a bundle (operator-registry, pkg/lib/bundle/supported_resources.go), as far as the
/// bundle uses them.
const SUPPORTED: [&str; 5] = [
    "ClusterRole",
    "ClusterServiceVersion",
    "CustomResourceDefinition",
    "PodDisruptionBudget",
    "PriorityClass",
];

fn bundle() -> Objects {
    let mut all = Objects::new();
    for entry in std::fs::read_dir(deploy("olm/manifests")).unwrap() {
        all.extend(objects(
            &std::fs::read_to_string(entry.unwrap().path()).unwrap(),
        ));
    }
    all
}

fn version(bundle: &Objects) -> &Value {
    of_kind(bundle, "ClusterServiceVersion")[0]
}

#[test]
fn bundle_has_only_kinds_that_olm_installs() {
    let bundle = bundle();
    for (kind, namespace, name) in bundle.keys() {
        assert!(SUPPORTED.contains(&kind.as_str()), "{kind} {name}");
        assert_eq!(namespace, "", "OLM sets the namespace of {kind} {name}");
    }
    for (key, object) in &installed() {
        if key.0 == "CustomResourceDefinition" {
            assert_eq!(&bundle[key], object, "{key:?}");
        }
    }
}

#[test]
fn deployment_and_rights_are_those_of_install_yaml() {
    let (bundle, installed) = (bundle(), installed());
    let install = &version(&bundle)["spec"]["install"]["spec"];
    let mut spec = install["deployments"][0]["spec"].clone();
    let environment = spec["template"]["spec"]["containers"][0]["env"]
        .as_array_mut()
        .unwrap();
    let served = environment.pop().unwrap();
    assert_eq!(served["name"], "DBC_WATCH_NAMESPACES");
    assert_eq!(spec, deployment(&installed)["spec"]);
    for (field, kind) in [
        ("clusterPermissions", "ClusterRole"),
        ("permissions", "Role"),
    ] {
        let given = &install[field][0];
        assert_eq!(given["serviceAccountName"], NAME);
        assert_eq!(
            given["rules"],
            object(&installed, kind, NAME)["rules"],
            "{kind}"
        );
    }
}

#[test]
fn metadata_matches_the_labels_of_the_bundle_image() {
    let read = |file: &str| std::fs::read_to_string(deploy(file)).unwrap();
    let annotations: Value =
        serde_saphyr::from_str(&read("olm/metadata/annotations.yaml")).unwrap();
    let labels: serde_json::Map<String, Value> = read("olm/bundle.Dockerfile")
        .lines()
        .filter_map(|line| line.strip_prefix("LABEL ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    assert_eq!(annotations["annotations"], Value::Object(labels));
}

#[tokio::test]
async fn service_version_matches_the_schema_of_olm() {
    let control_plane = control_plane(ControlPlaneOptions::default()).await;
    let crd = olm_crds().join("operators.coreos.com_clusterserviceversions.yaml");
    run(kubectl_of(&control_plane).args(["create", "-f"]).arg(crd));
    let file = control_plane.folder().join("version.yaml");
    let strict = || {
        let mut command = kubectl_of(&control_plane);
        command.args([
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "-f",
        ]);
        command.arg(&file);
        command
    };
    let bundle = bundle();
    std::fs::write(&file, version(&bundle).to_string()).unwrap();
    wait_for("the API server to accept the version", PATIENCE, || async {
        let output = strict().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Nothing but the start of the new kind is waited for.
        assert!(
            output.status.success() || said.contains("no matches for kind"),
            "{said}"
        );
        Ok(Progress::when(output.status.success(), (), || said))
    })
    .await
    .unwrap();
    // An unknown field, and a required one that is missing, are rejected.
    let mut wrong = version(&bundle).clone();
    wrong["spec"]["installMode"] = json!([]);
    std::fs::write(&file, wrong.to_string()).unwrap();
    assert!(refused(&mut strict()).contains("installMode"));
    let mut wrong = version(&bundle).clone();
    wrong["spec"].as_object_mut().unwrap().remove("displayName");
    std::fs::write(&file, wrong.to_string()).unwrap();
    assert!(refused(&mut strict()).contains("displayName"));
}
