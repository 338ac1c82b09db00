//! The bill of materials (CycloneDX 1.5) of what is linked into the program: from `cargo metadata`, with the check sums
//! of `Cargo.lock`. The same input gives the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::metadata::{Dependency, Metadata, Node, Package};

/// The bill of `program`, a package of the workspace.
///
/// # Errors
/// When the package, or what it depends on, is missing in the metadata.
pub fn bill(metadata: &Metadata, lock: &str, program: &str, epoch_seconds: i64) -> Result<Value> {
    let packages: BTreeMap<&str, &Package> = metadata
        .packages
        .iter()
        .map(|p| (p.id.as_str(), p))
        .collect();
    let own = metadata
        .packages
        .iter()
        .find(|p| p.name == program && p.source.is_none());
    let own = own.with_context(|| format!("no package {program} in the workspace"))?;
    let linked = linked(metadata, &own.id)?;
    let checksums = checksums(lock);
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for (id, needs) in &linked {
        let package = packages
            .get(id)
            .with_context(|| format!("no package {id}"))?;
        let needs = needs
            .iter()
            .filter_map(|id| packages.get(id))
            .map(|p| purl(p));
        dependencies.push(json!({"ref": purl(package), "dependsOn": needs.collect::<Vec<_>>()}));
        if package.id != own.id {
            components.push(component(package, &checksums, "library"));
        }
    }
    components.sort_by_key(|component| component["purl"].to_string());
    dependencies.sort_by_key(|dependency| dependency["ref"].to_string());
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": jiff::Timestamp::from_second(epoch_seconds)?.to_string(),
            "component": component(own, &checksums, "application"),
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

/// What is linked into a package, itself included, each with what it needs in turn. Procedural macros and build scripts
/// run while it is built and are not in it, but what a macro's crate needs is listed: cargo does not distinguish them.
fn linked<'a>(
    metadata: &'a Metadata,
    own: &'a str,
) -> Result<BTreeMap<&'a str, BTreeSet<&'a str>>> {
    let nodes: BTreeMap<&str, &Node> = metadata
        .resolve
        .nodes
        .iter()
        .map(|node| (node.id.as_str(), node))
        .collect();
    let mut found = BTreeMap::new();
    let mut open = vec![own];
    while let Some(id) = open.pop() {
        if found.contains_key(id) {
            continue;
        }
        let Some(node) = nodes.get(id) else {
            bail!("no package {id} in the resolved graph");
        };
        let normal =
            |dependency: &&Dependency| dependency.dep_kinds.iter().any(|k| k.kind.is_none());
        let needs: BTreeSet<&str> = node
            .deps
            .iter()
            .filter(normal)
            .map(|dependency| dependency.pkg.as_str())
            .collect();
        open.extend(&needs);
        found.insert(id, needs);
    }
    Ok(found)
}

fn component(package: &Package, checksums: &BTreeMap<(&str, &str), &str>, kind: &str) -> Value {
    let mut made = json!({
        "type": kind,
        "bom-ref": purl(package),
        "purl": purl(package),
        "name": package.name,
        "version": package.version,
    });
    if let Some(license) = &package.license {
        // Old crates write `MIT/Apache-2.0`.
        made["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
    }
    if let Some(checksum) = checksums.get(&(package.name.as_str(), package.version.as_str())) {
        made["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    if let Some(repository) = &package.repository {
        made["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
    }
    made
}

fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

/// Name and version to the check sum of the package's archive.
fn checksums(lock: &str) -> BTreeMap<(&str, &str), &str> {
    let value = |block: &'_ str, key: &str| -> Option<(usize, usize)> {
        let start = block.find(&format!("\n{key} = \""))? + key.len() + 5;
        Some((start, start + block.get(start..)?.find('"')?))
    };
    let mut found = BTreeMap::new();
    for block in lock.split("[[package]]").skip(1) {
        let get = |key: &str| value(block, key).and_then(|(start, end)| block.get(start..end));
        if let (Some(name), Some(version), Some(sum)) =
            (get("name"), get("version"), get("checksum"))
        {
            found.insert((name, version), sum);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn metadata() -> Metadata {
        let package = |name: &str, source: Option<&str>| {
            json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0",
                "source": source, "repository": null})
        };
        serde_json::from_value(json!({
            "packages": [package("own", None), package("used", Some("r")), package("deep", Some("r")),
                package("tested", Some("r")), package("built", Some("r"))],
            "resolve": {"nodes": [
                {"id": "own", "deps": [
                    {"pkg": "used", "dep_kinds": [{"kind": null}]},
                    {"pkg": "tested", "dep_kinds": [{"kind": "dev"}]},
                    {"pkg": "built", "dep_kinds": [{"kind": "build"}]},
                ]},
                {"id": "used", "deps": [{"pkg": "deep", "dep_kinds": [{"kind": "build"}, {"kind": null}]}]},
                {"id": "deep", "deps": []}, {"id": "tested", "deps": []}, {"id": "built", "deps": []},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn sbom_lists_exactly_the_linked_crates_with_checksums() {
        let lock = "[[package]]\nname = \"used\"\nversion = \"1.0.0\"\nsource = \"r\"\nchecksum = \"abc\"\n\
                    [[package]]\nname = \"deep\"\nversion = \"1.0.0\"\n";
        let bill = bill(&metadata(), lock, "own", 0).unwrap();
        let names: Vec<&Value> = bill["components"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| &c["name"])
            .collect();
        assert_eq!(names, ["deep", "used"]);
        assert_eq!(bill["components"][1]["hashes"][0]["content"], "abc");
        assert_eq!(
            bill["components"][0]["licenses"][0]["expression"],
            "MIT OR Apache-2.0"
        );
        assert_eq!(bill["metadata"]["component"]["name"], "own");
        assert_eq!(
            bill["dependencies"][2]["dependsOn"],
            json!(["pkg:cargo/deep@1.0.0"])
        );
        assert!(super::bill(&metadata(), lock, "nobody", 0).is_err());
    }
}
