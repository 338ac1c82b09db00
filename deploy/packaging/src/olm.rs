//! The bundle for the Operator Lifecycle Manager (OLM), from the same objects as install.yaml. OLM knows neither
//! admission policies nor flow control, so the bundle's description has the commands that apply them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::image::NAME;

/// Where the project is found; the release workflow replaces it.
const HOME: &str = "https://example.com/databasecluster-operator";
/// The kinds of a bundle, of those that install.yaml has, without the ones that the ClusterServiceVersion contains.
const BUNDLED: [&str; 3] = ["ClusterRole", "PodDisruptionBudget", "PriorityClass"];
const HEADER: &str = "# Generated from deploy/base, do not edit: run `make manifests`.\n";
const DESCRIPTION: &str = "\
Runs PostgreSQL clusters that are declared as DatabaseClusters. Several replicas work at the same time, each on its own \
shards, and the API server refuses writes of a replica that does not hold the shard.

**Before the Subscription is created**, apply what OLM cannot install: the CustomResourceDefinitions, then the admission \
policies for the namespace in which the operator will run. Without them no replica starts to work.

    databasecluster-operator crd | kubectl apply --server-side -f -
    databasecluster-operator fence --namespace NAMESPACE | kubectl apply -f -

DatabaseClusters in the operator's own namespace are not served.
";

/// All files of the bundle, by their path below `deploy/`. `install` is the text of install.yaml, `example` a
/// DatabaseCluster, `icon` a picture in SVG.
///
/// # Errors
/// When an object is missing.
pub fn bundle(install: &str, example: &str, icon: &[u8]) -> Result<BTreeMap<String, String>> {
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(install).context("deploy/install.yaml")?;
    let example: Value = serde_saphyr::from_str(example).context("deploy/samples/smallest.yaml")?;
    let version = env!("CARGO_PKG_VERSION");
    let mut files = BTreeMap::new();
    let mut add = |name: String, object: &Value| -> Result<()> {
        let text = HEADER.to_owned() + &serde_saphyr::to_string(object)?;
        files.insert(format!("olm/manifests/{name}.yaml"), text);
        Ok(())
    };
    for object in &objects {
        let name = text(object, "/metadata/name");
        match text(object, "/kind") {
            "CustomResourceDefinition" => add(format!("{name}.crd"), object)?,
            // OLM creates the operator's own role from the ClusterServiceVersion.
            "ClusterRole" if name == NAME => {}
            kind if BUNDLED.contains(&kind) => {
                let mut object = object.clone();
                if let Some(metadata) = object["metadata"].as_object_mut() {
                    metadata.remove("namespace");
                }
                add(format!("{name}.{}", kind.to_lowercase()), &object)?;
            }
            _ => {}
        }
    }
    let version_object = cluster_service_version(&objects, &example, icon, version)?;
    add(format!("{NAME}.clusterserviceversion"), &version_object)?;
    files.insert("olm/metadata/annotations.yaml".to_owned(), annotations());
    Ok(files)
}

fn cluster_service_version(
    objects: &[Value],
    example: &Value,
    icon: &[u8],
    version: &str,
) -> Result<Value> {
    let rules = |kind: &str| -> Result<Value> {
        Ok(json!([{"serviceAccountName": NAME, "rules": find(objects, kind)?["rules"]}]))
    };
    let mut deployment = find(objects, "Deployment")?["spec"].clone();
    let container = &mut deployment["template"]["spec"]["containers"][0];
    let image = container["image"].clone();
    let Some(environment) = container["env"].as_array_mut() else {
        bail!("the Deployment's container has no env");
    };
    // What the OperatorGroup selects; empty: all namespaces.
    let served = json!({"fieldRef": {"fieldPath": "metadata.annotations['olm.targetNamespaces']"}});
    environment.push(json!({"name": "DBC_WATCH_NAMESPACES", "valueFrom": served}));
    let mode = |kind: &str, is_supported: bool| json!({"type": kind, "supported": is_supported});
    Ok(json!({
        "apiVersion": "operators.coreos.com/v1alpha1",
        "kind": "ClusterServiceVersion",
        "metadata": {
            "name": format!("{NAME}.v{version}"),
            "annotations": {
                "alm-examples": json!([example]).to_string(),
                "capabilities": "Seamless Upgrades",
                "categories": "Database",
                "containerImage": image,
                "description": "A sharded, fenced, highly available operator for PostgreSQL clusters",
                "repository": HOME,
                "operatorframework.io/suggested-namespace": "databasecluster-system",
            },
        },
        "spec": {
            "displayName": "DatabaseCluster operator",
            "description": DESCRIPTION,
            "version": version,
            "maturity": "alpha",
            "minKubeVersion": "1.30.0",
            "keywords": ["database", "postgresql", "operator"],
            "provider": {"name": "The authors of databasecluster-operator"},
            "maintainers": [{"name": "databasecluster-operator", "email": "maintainers@example.com"}],
            "links": [{"name": "Documentation", "url": HOME}],
            "icon": [{"base64data": base64(icon), "mediatype": "image/svg+xml"}],
            // Its own namespace is closed to DatabaseClusters by the admission policies.
            "installModes": [
                mode("OwnNamespace", false), mode("SingleNamespace", true),
                mode("MultiNamespace", true), mode("AllNamespaces", true),
            ],
            "customresourcedefinitions": {"owned": [
                {"name": "databaseclusters.database.io", "kind": "DatabaseCluster", "version": "v1",
                 "displayName": "DatabaseCluster", "description": "A PostgreSQL cluster: a primary and its replicas."},
                {"name": "shardtables.database.io", "kind": "ShardTable", "version": "v1",
                 "displayName": "ShardTable", "description": "Which replica of the operator may write in which shard."},
            ]},
            "install": {"strategy": "deployment", "spec": {
                "clusterPermissions": rules("ClusterRole")?,
                "permissions": rules("Role")?,
                "deployments": [{"name": NAME, "spec": deployment}],
            }},
            "relatedImages": [{"name": "operator", "image": image}],
        },
    }))
}

/// The operator's object of this kind.
fn find<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    let is_it =
        |object: &&Value| text(object, "/kind") == kind && text(object, "/metadata/name") == NAME;
    let found = objects.iter().find(is_it);
    found.with_context(|| format!("install.yaml has no {kind} {NAME}"))
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn annotations() -> String {
    let prefix = "operators.operatorframework.io.bundle";
    format!(
        "{HEADER}annotations:\n  {prefix}.channel.default.v1: alpha\n  {prefix}.channels.v1: alpha\n  \
         {prefix}.manifests.v1: manifests/\n  {prefix}.mediatype.v1: registry+v1\n  \
         {prefix}.metadata.v1: metadata/\n  {prefix}.package.v1: {NAME}\n"
    )
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let number = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for place in 0..4 {
            let digit = DIGITS[(number >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn base64_pads_as_the_standard_does() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn bundle_without_a_deployment_is_an_error() {
        let error = bundle("kind: Role\n", "kind: X\n", b"").unwrap_err();
        assert!(error.to_string().contains("no Deployment"), "{error}");
    }
}
