//! The CustomResourceDefinitions, generated from the Rust types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use sharded_controller::fleet::shard_table::ShardTable;

use super::DatabaseCluster;
use super::names::NAMES;

const HEADER: &str = "# Generated, do not edit: change src/operator/src/api or src/sharded-controller/src/fleet/shard_table.rs and run `make manifests`.\n";

/// A CRD could not be written as YAML.
#[derive(Debug, thiserror::Error)]
#[error("could not write the CRDs as YAML: {0}; this is a bug in the operator")]
pub struct CrdError(#[from] serde_saphyr::ser::Error);

/// Labels of the CRDs. By `database.io/keep`, an uninstallation passes them over.
const LABELS: [(&str, &str); 2] = [
    ("app.kubernetes.io/name", "databasecluster-operator"),
    ("database.io/keep", "true"),
];

/// The CustomResourceDefinition of `DatabaseCluster`.
#[must_use]
pub fn cluster_crd() -> CustomResourceDefinition {
    labelled(DatabaseCluster::crd())
}

/// The CustomResourceDefinition of `ShardTable`.
#[must_use]
pub fn shard_table_crd() -> CustomResourceDefinition {
    labelled(ShardTable::crd(&NAMES))
}

fn labelled(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let labels = LABELS.map(|(name, value)| (name.to_owned(), value.to_owned()));
    crd.metadata.labels = Some(labels.into());
    for version in &mut crd.spec.versions {
        let schema = version.schema.as_mut();
        if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            drop_defaults(schema);
        }
    }
    crd
}

/// Drops `nullable: false`, which keeps kube from making an optional property nullable. The API server does not
/// store it, so a server-side apply by another manager would conflict over it.
fn drop_defaults(schema: &mut JSONSchemaProps) {
    schema.nullable = schema.nullable.filter(|nullable| *nullable);
    for property in schema
        .properties
        .iter_mut()
        .flat_map(|all| all.values_mut())
    {
        drop_defaults(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        drop_defaults(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        drop_defaults(values);
    }
}

/// Both CustomResourceDefinitions as the text of `deploy/base/crd.yaml`.
///
/// # Errors
/// When the YAML writer refuses a document.
pub fn crd_yaml() -> Result<String, CrdError> {
    let clusters = serde_saphyr::to_string(&cluster_crd())?;
    let tables = serde_saphyr::to_string(&shard_table_crd())?;
    Ok(format!("{HEADER}{clusters}---\n{tables}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::Value;

    use super::*;

    /// Every property below a schema, with its path.
    fn properties<'a>(schema: &'a Value, path: &str, found: &mut Vec<(String, &'a Value)>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            found.push((path.clone(), property));
            properties(property, &path, found);
            properties(&property["items"], &path, found);
            properties(&property["additionalProperties"], &path, found);
        }
    }

    fn schema_of(crd: &CustomResourceDefinition) -> Value {
        let crd = serde_json::to_value(crd).unwrap();
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
    }

    #[test]
    fn the_committed_crd_is_the_generated_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/base/crd.yaml");
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            std::fs::write(path, crd_yaml().unwrap()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(
            committed == crd_yaml().unwrap(),
            "deploy/base/crd.yaml differs from what the code generates: run `make manifests`"
        );
    }

    #[test]
    fn generated_yaml_matches_the_crds() {
        let text = crd_yaml().unwrap();
        let documents: Vec<Value> = text
            .split("---\n")
            .map(|document| serde_saphyr::from_str(document).unwrap())
            .collect();
        let expected = [cluster_crd(), shard_table_crd()];
        assert_eq!(
            documents,
            expected.map(|crd| serde_json::to_value(crd).unwrap())
        );
        assert!(text.len() < 256 * 1024, "{} bytes", text.len());
    }

    #[test]
    fn every_field_is_documented_for_kubectl_explain() {
        for (crd, least) in [(cluster_crd(), 20), (shard_table_crd(), 5)] {
            let schema = schema_of(&crd);
            let mut found = Vec::new();
            properties(&schema, "", &mut found);
            assert!(found.len() > least, "{found:?}");
            for (path, property) in found.iter().filter(|(path, _)| path != ".metadata") {
                let text = property["description"].as_str().unwrap_or_default();
                assert!(text.len() > 10, "{path} has no description");
            }
        }
    }

    #[test]
    fn the_shard_table_is_bounded_and_has_printer_columns() {
        let crd = serde_json::to_value(shard_table_crd()).unwrap();
        let version = &crd["spec"]["versions"][0];
        let columns: Vec<_> = version["additionalPrinterColumns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|column| column["name"].as_str().unwrap())
            .collect();
        assert_eq!(columns, ["Shards", "UID", "Age"]);
        let spec = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
        assert_eq!(
            spec["x-kubernetes-validations"].as_array().unwrap().len(),
            4
        );
        let entries = &spec["properties"]["entries"];
        assert_eq!(entries["maxProperties"], 256);
        let entry = &entries["additionalProperties"]["properties"];
        assert_eq!(entry["epoch"]["maximum"].as_f64(), Some(2_146_435_071.0));
        assert_eq!(entry["holder"]["maxLength"], 253);
        assert_eq!(entry["incarnation"]["maxLength"], 64);
    }

    #[test]
    fn conditions_merge_by_type_and_subresources_are_served() {
        let crd = serde_json::to_value(cluster_crd()).unwrap();
        let version = &crd["spec"]["versions"][0];
        let conditions = &version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
            ["conditions"];
        assert_eq!(conditions["x-kubernetes-list-type"], "map");
        assert_eq!(conditions["x-kubernetes-list-map-keys"][0], "type");
        let scale = &version["subresources"]["scale"];
        assert_eq!(scale["specReplicasPath"], ".spec.replicas");
        assert_eq!(scale["statusReplicasPath"], ".status.replicas");
        assert_eq!(scale["labelSelectorPath"], ".status.selector");
        assert!(version["subresources"]["status"].is_object());
        let columns: Vec<_> = version["additionalPrinterColumns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            columns,
            [
                "Ready",
                "Desired",
                "Status",
                "Available",
                "Primary",
                "Degraded",
                "Image",
                "Age"
            ]
        );
        assert_eq!(crd["spec"]["names"]["shortNames"][0], "dbc");
    }

    #[test]
    fn a_spec_of_only_an_image_gets_the_documented_defaults() {
        let spec: super::super::DatabaseClusterSpec =
            serde_json::from_str(r#"{"image":"postgres:18"}"#).unwrap();
        assert_eq!(spec.replicas, 1);
        let in_schema = schema_of(&cluster_crd());
        let spec_schema = &in_schema["properties"]["spec"]["properties"];
        assert_eq!(spec_schema["replicas"]["default"], 1);
        assert_eq!(
            spec_schema["resources"]["default"],
            serde_json::to_value(&spec.resources).unwrap()
        );
        assert_eq!(
            spec_schema["storage"]["default"],
            serde_json::to_value(&spec.storage).unwrap()
        );
    }
}
