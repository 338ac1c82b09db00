//! What the release workflow relies on, as far as it can be checked without running it.

use std::process::Command;

use serde_json::Value;

use crate::support::*;

const WORKFLOW: &str = ".github/workflows/release.yml";

fn workflow() -> String {
    std::fs::read_to_string(root().join(WORKFLOW)).unwrap()
}

#[test]
fn actions_are_pinned_by_commit() {
    let text = workflow();
    let used: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once("uses: "))
        .map(|(_, used)| used)
        .collect();
    assert!(used.len() > 5, "{used:?}");
    for action in used {
        let (_, version) = action.split_once('@').unwrap();
        let (commit, release) = version.split_once(" # v").unwrap_or((version, ""));
        let is_commit = commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
        assert!(
            is_commit && !release.is_empty(),
            "{action}: pin it by commit, name the release"
        );
    }
}

#[test]
fn scripts_of_the_workflow_exist() {
    let workflow: Value = serde_saphyr::from_str(&workflow()).unwrap();
    let mut scripts = 0;
    for job in workflow["jobs"].as_object().unwrap().values() {
        for step in job["steps"].as_array().unwrap() {
            let text = step["run"].as_str().unwrap_or_default();
            let words = text.split(|c: char| c.is_whitespace() || "()\"".contains(c));
            for script in words.filter(|word| word.ends_with(".sh")) {
                assert!(root().join(script).is_file(), "{script}");
                scripts += 1;
            }
            let check = Command::new("bash")
                .args(["-n", "-c", text])
                .output()
                .unwrap();
            assert!(check.status.success(), "{text}: {check:?}");
        }
    }
    assert!(scripts >= 3, "{scripts}");
}

#[test]
fn released_manifests_name_the_image_and_the_project() {
    let folder = tempfile::tempdir().unwrap();
    run(Command::new("cp")
        .arg("-r")
        .arg(deploy(""))
        .arg(folder.path().join("deploy")));
    std::fs::copy(root().join("Cargo.toml"), folder.path().join("Cargo.toml")).unwrap();
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let (image, address) = (
        "registry.test/own/operator",
        "https://forge.test/own/operator",
    );
    let script = folder.path().join("deploy/image/released.sh");
    run(Command::new(script).args([image, &digest, address]));
    let read =
        |file: &str| std::fs::read_to_string(folder.path().join("deploy").join(file)).unwrap();
    let named = format!("{image}@{digest}");
    let installed = objects(&read("install.yaml"));
    assert_eq!(
        pod_spec(&installed)["containers"][0]["image"],
        named.as_str()
    );
    let chart = folder.path().join("deploy/chart");
    let made = run(helm()
        .args(["template", "release", "--namespace", NAMESPACE])
        .arg(&chart));
    assert_eq!(
        pod_spec(&objects(&made))["containers"][0]["image"],
        named.as_str()
    );
    run(helm().args(["lint", "--strict"]).arg(&chart));
    let version = read("olm/manifests/databasecluster-operator.clusterserviceversion.yaml");
    for text in [read("chart/Chart.yaml"), version] {
        assert!(text.contains(&named) && text.contains(address), "{text}");
        assert!(
            !text.contains("https://example.com/databasecluster-operator"),
            "{text}"
        );
    }
}

#[test]
fn chart_has_what_artifact_hub_shows() {
    let text = std::fs::read_to_string(deploy("chart/Chart.yaml")).unwrap();
    let chart: Value = serde_saphyr::from_str(&text).unwrap();
    for field in [
        "home",
        "icon",
        "sources",
        "maintainers",
        "keywords",
        "kubeVersion",
    ] {
        assert!(!chart[field].is_null(), "{field}");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        (&chart["version"], &chart["appVersion"]),
        (&version.into(), &version.into())
    );
    // Each of these is YAML in a text.
    for name in ["changes", "crds", "crdsExamples", "images", "links"] {
        let text = chart["annotations"][format!("artifacthub.io/{name}")]
            .as_str()
            .unwrap();
        let value: Value = serde_saphyr::from_str(text).unwrap();
        assert!(!value.as_array().unwrap().is_empty(), "{name}");
    }
    let changes = chart["annotations"]["artifacthub.io/changes"]
        .as_str()
        .unwrap();
    let changes: Vec<Value> = serde_saphyr::from_str(changes).unwrap();
    let kinds = [
        "added",
        "changed",
        "deprecated",
        "removed",
        "fixed",
        "security",
    ];
    assert!(
        changes
            .iter()
            .all(|change| kinds.contains(&change["kind"].as_str().unwrap()))
    );
}
