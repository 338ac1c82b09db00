//! The archive for a bug report: what is in it, and what must not be.

use std::fs::File;
use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::json;
use testbed::load;

use crate::support::*;

#[tokio::test]
async fn archive_has_the_state_and_no_secrets() {
    let control_plane = control_plane().await;
    let _fleet = fleet_of_three(&control_plane).await;
    let mut spec = load::spec(1);
    spec["metadata"] =
        json!({"annotations": {"example.com/uri": "postgres://app:s3cret-in-uri@db/app"}});
    let new = load::NewCluster {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        spec,
    };
    load::create(&control_plane, vec![new]).await.unwrap();
    load::wait_all_ready(&control_plane.client(), 1, PATIENCE)
        .await
        .unwrap();
    let user = User::administrator(&control_plane);
    // What must not be in it: the values in the Secret, of the environment, and passwords in texts.
    let secret = control_plane
        .run_kubectl(&["get", "secret", "-n", "shop", "orders-app", "-o", "json"])
        .await
        .unwrap();
    let encoded = json_of(&secret)["data"]["password"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = "go-template={{.data.password | base64decode}}";
    let password = control_plane
        .run_kubectl(&["get", "secret", "-n", "shop", "orders-app", "-o", path])
        .await
        .unwrap();
    assert!(password.len() > 20);

    let outcome = user.dbc(&["report", "-n", "shop", "orders", "--file", "report.tar.gz"]);
    assert_eq!(outcome.out, "report.tar.gz\n", "{outcome:?}");
    outcome.reports(&["redacted", "Read it before you publish it"]);
    let file = control_plane.folder().join("report.tar.gz");
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(&file).unwrap()));
    let mut files = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.push((name, text));
    }
    for wanted in [
        "README.txt",
        "version.txt",
        "unavailable.txt",
        "operator/fleet.txt",
        "operator/leases.yaml",
        "operator/shard-table.yaml",
        "operator/pods.yaml",
        "shop/orders/databasecluster.yaml",
        "shop/orders/statefulset.yaml",
        "shop/orders/configmap.yaml",
        "shop/orders/pods.yaml",
        "shop/orders/claims.yaml",
        "shop/orders/events.yaml",
        "status.yaml",
        "explain.txt",
    ] {
        let found = files
            .iter()
            .find(|(name, _)| name.ends_with(&format!("/{wanted}")));
        let (_, text) = found.unwrap_or_else(|| panic!("{wanted} is missing"));
        assert!(text.len() > 5, "{wanted} is empty");
    }
    for (name, text) in &files {
        for secret in [
            password.as_str(),
            &encoded,
            "s3cret-in-uri",
            "--auth-host=scram-sha-256",
            "managedFields:",
            "#!/bin/sh",
        ] {
            assert!(!text.contains(secret), "{secret} is in {name}");
        }
    }
    let all: String = files.iter().map(|(_, text)| text.as_str()).collect();
    assert!(
        all.contains("postgres://app:(redacted)@db/app"),
        "the rest of a text stays"
    );
    assert!(
        all.contains("POSTGRES_INITDB_ARGS"),
        "names of variables stay"
    );

    // Nothing is overwritten, and a misspelt name writes nothing.
    user.dbc(&["report", "-n", "shop", "orders", "--file", "report.tar.gz"])
        .fails(1, &["cannot write report.tar.gz", "--file"]);
    user.dbc(&["report", "-n", "shop", "misspelt", "--file", "other.tar.gz"])
        .fails(3, &["misspelt"]);
    assert!(!control_plane.folder().join("other.tar.gz").exists());
}
