//! Installs the example operator as its tutorial does: its manifest, and what it prints itself.

use std::path::Path;
use std::process::Command;

use serde_json::json;
use testbed::{ControlPlane, Progress, wait_for};

use crate::{DERIVE, PATIENCE};

const MANIFEST: &str = "src/sharded-controller/examples/configmap.yaml";

pub(crate) async fn install(control_plane: &ControlPlane, binary: &Path) {
    let crd = printed(control_plane, binary, "crd");
    apply(control_plane, &crd).await;
    let established = [
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        "crd",
    ];
    let crd = format!("shardtables.{}", DERIVE.domain);
    let established = [&established[..], &[&crd]].concat();
    control_plane.run_kubectl(&established).await.unwrap();
    apply(control_plane, MANIFEST).await;
    let fence = printed(control_plane, binary, "fence");
    apply(control_plane, &fence).await;
    wait_in_force(control_plane).await;
}

/// Writes into a file what the program prints.
fn printed(control_plane: &ControlPlane, binary: &Path, command: &str) -> String {
    let output = Command::new(binary).arg(command).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    let file = control_plane.folder().join(format!("{command}.yaml"));
    std::fs::write(&file, output.stdout).unwrap();
    file.display().to_string()
}

async fn apply(control_plane: &ControlPlane, file: &str) {
    let apply = ["apply", "--server-side", "-f", file];
    control_plane.run_kubectl(&apply).await.unwrap();
}

/// A policy takes a second or two to be in force; the last one of the file, which is about the table, comes last.
async fn wait_in_force(control_plane: &ControlPlane) {
    let entry = json!({"epoch": 0, "holder": "", "incarnation": ""});
    let table = json!({
        "apiVersion": format!("{}/v1", DERIVE.domain), "kind": "ShardTable",
        "metadata": {"name": "another"}, "spec": {"shards": 1, "entries": {"000": entry}},
    });
    let unmarked =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "unmarked"}});
    let (namespace, user) = (DERIVE.namespace, DERIVE.user());
    let tables = format!(
        "apis/{}/v1/namespaces/{namespace}/shardtables",
        DERIVE.domain
    );
    for (path, object) in [
        ("api/v1/namespaces/default/configmaps".to_owned(), unmarked),
        (tables, table),
    ] {
        wait_for(format!("the fence on {path}"), PATIENCE, || async {
            let answer = control_plane
                .create_in_dry_run(&path, &object, Some(&user))
                .await?;
            let is_refused = answer.contains("derive-fence-");
            Ok(Progress::when(is_refused, (), || answer))
        })
        .await
        .unwrap();
    }
}
