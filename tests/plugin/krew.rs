//! The krew manifest of a release.

use std::fs;
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};
use testbed::fleet::repository;

fn run(version: &str, folder: &std::path::Path) -> (Option<i32>, String, String) {
    let run = Command::new(repository().join("deploy/plugin/krew.sh"))
        .args([version, "https://example.com/owner/name"])
        .arg(folder)
        .output()
        .unwrap();
    let [out, error] = [run.stdout, run.stderr].map(|text| String::from_utf8(text).unwrap());
    (run.status.code(), out, error)
}

#[test]
fn manifest_names_each_archive_with_its_digest() {
    let folder = tempfile::tempdir().unwrap();
    let platforms = ["darwin-amd64", "darwin-arm64", "linux-amd64", "linux-arm64"];
    for platform in platforms {
        let file = format!("kubectl-dbc-0.1.0-{platform}.tar.gz");
        fs::write(folder.path().join(file), platform).unwrap();
    }
    let (code, out, error) = run("v0.1.0", folder.path());
    assert_eq!((code, error.as_str()), (Some(0), ""));
    let manifest: Value = serde_saphyr::from_str(&out).unwrap();
    assert_eq!(manifest["metadata"]["name"], "dbc");
    assert_eq!(manifest["spec"]["version"], "v0.1.0");
    let found = manifest["spec"]["platforms"].as_array().unwrap();
    assert_eq!(found.len(), platforms.len());
    for (platform, name) in found.iter().zip(platforms) {
        let labels = &platform["selector"]["matchLabels"];
        let (os, arch) = name.split_once('-').unwrap();
        assert_eq!((&labels["os"], &labels["arch"]), (&os.into(), &arch.into()));
        assert_eq!(platform["bin"], "kubectl-dbc");
        let digest: String = Sha256::digest(name)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(platform["sha256"], digest);
        let uri = platform["uri"].as_str().unwrap();
        assert!(
            uri.ends_with(&format!(
                "/releases/download/v0.1.0/kubectl-dbc-0.1.0-{name}.tar.gz"
            )),
            "{uri}"
        );
    }
    let short = manifest["spec"]["shortDescription"].as_str().unwrap();
    assert!(
        short.len() <= 60 && !short.ends_with('.'),
        "krew's rules: {short}"
    );
}

#[test]
fn release_without_archives_or_version_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, error) = run("v0.1.0", folder.path());
    assert_eq!(code, Some(1));
    assert!(error.contains("has no kubectl-dbc-0.1.0-"), "{error}");
    let (code, out, _) = run("0.1.0", folder.path());
    assert_eq!((code, out.as_str()), (Some(2), ""));
}
