//! The krew manifest of a release.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use flate2::read::GzDecoder;
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

/// Name and mode of each file.
fn packed(archive: &Path) -> Vec<(String, u32)> {
    // A small program packs quickly.
    let program = archive.with_extension("program");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    let run = Command::new(repository().join("deploy/image/archive.sh"))
        .arg("kubectl-dbc")
        .args([archive, &program])
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    let file = File::open(archive).unwrap();
    let mut content = tar::Archive::new(GzDecoder::new(file));
    let entries = content.entries().unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            (name, entry.header().mode().unwrap())
        })
        .collect()
}

#[test]
fn archive_has_the_program_of_the_manifest_and_its_completion() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("kubectl-dbc-0.1.0-linux-amd64.tar.gz");
    let files = packed(&archive);
    let expected = [
        ("LICENSE", 0o644),
        ("kubectl-dbc", 0o755),
        ("kubectl_complete-dbc", 0o755),
    ];
    assert_eq!(files, expected.map(|(name, mode)| (name.to_owned(), mode)));
    let (code, out, error) = run("v0.1.0", folder.path());
    assert_eq!((code, error.as_str()), (Some(0), ""));
    let manifest: Value = serde_saphyr::from_str(&out).unwrap();
    let program = manifest["spec"]["platforms"][0]["bin"].as_str().unwrap();
    assert!(files.iter().any(|(name, _)| name == program), "{program}");
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
