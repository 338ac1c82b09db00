//! Puts the files of `deploy/base` together: one file for `kubectl apply`, and the part of the chart that is the same
//! but for the namespace. Text in, text out, so that the comments stay.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

const NAMESPACE: &str = "databasecluster-system";
const HEADER: &str = "\
# Everything that the operator needs: kubectl apply -f install.yaml
# Generated from deploy/base, do not edit: run `make manifests`.
#
# To remove the operator and leave the databases where they are:
#   kubectl delete -f install.yaml -l 'database.io/keep!=true' --ignore-not-found
# Without the selector the API server refuses to delete the CustomResourceDefinition, and says why.
";

/// Files of the base that are templates of the chart once the namespace is the release's, with the value of the chart
/// that switches them off.
const TEMPLATES: [(&str, Option<&str>); 6] = [
    ("fence", None),
    ("flowcontrol", Some(".Values.flowControl.enabled")),
    ("guard", None),
    ("lease-cache", None),
    ("rbac", None),
    ("users", Some(".Values.userRoles.create")),
];

#[derive(Deserialize)]
struct Kustomization {
    resources: Vec<String>,
}

/// All generated files, by their path below `deploy/`.
///
/// # Errors
/// When a file of the base can not be read or is not as expected.
pub fn generate(deploy: &Path) -> Result<BTreeMap<String, String>> {
    let read = |name: &str| {
        let path = deploy.join("base").join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let kustomization: Kustomization = serde_saphyr::from_str(&read("kustomization.yaml")?)
        .context("deploy/base/kustomization.yaml")?;
    let mut install = HEADER.to_owned();
    for name in &kustomization.resources {
        install.push_str("---\n");
        install.push_str(&without_header(&read(name)?));
    }
    let mut files = BTreeMap::from([
        ("install.yaml".to_owned(), install),
        ("chart/crds/crd.yaml".to_owned(), read("crd.yaml")?),
    ]);
    for (name, switch) in TEMPLATES {
        let text = template(&read(&format!("{name}.yaml"))?, switch)
            .with_context(|| format!("deploy/base/{name}.yaml"))?;
        files.insert(format!("chart/templates/generated-{name}.yaml"), text);
    }
    Ok(files)
}

/// The CRD says itself that it is generated; inside of another file that would mislead.
fn without_header(text: &str) -> String {
    let kept = text.lines().filter(|line| !line.starts_with("# Generated"));
    kept.map(|line| format!("{line}\n")).collect()
}

fn template(text: &str, switch: Option<&str>) -> Result<String> {
    if text.contains("{{") {
        bail!("'{{{{' would be understood by Helm");
    }
    let objects = text.split("---\n");
    // The chart has a template of its own for this one.
    let kept: Vec<&str> = objects
        .filter(|o| !o.contains("\nkind: ClusterRoleBinding\n"))
        .collect();
    let body = kept
        .join("---\n")
        .replace(NAMESPACE, "{{ .Release.Namespace }}");
    let (begin, end) = match switch {
        Some(switch) => (format!("{{{{- if {switch} }}}}\n"), "{{- end }}\n"),
        None => (String::new(), ""),
    };
    Ok(format!(
        "# Generated from deploy/base, do not edit: run `make manifests`.\n{begin}{body}{end}"
    ))
}

/// Writes what [`generate`] gives.
///
/// # Errors
/// When a file can not be read or written.
pub fn write(deploy: &Path) -> Result<()> {
    for (name, text) in generate(deploy)? {
        let path = deploy.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_committed_files_are_the_generated_ones() {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (name, text) in generate(&deploy).unwrap() {
            let committed = fs::read_to_string(deploy.join(&name)).unwrap_or_default();
            assert!(
                committed == text,
                "deploy/{name} differs from deploy/base: run `make manifests`"
            );
        }
    }

    #[test]
    fn a_template_has_the_namespace_of_the_release_and_no_other_binding() {
        let base = "a: databasecluster-system\n---\nx: y\nkind: ClusterRoleBinding\n---\nb: c\n";
        let made = template(base, Some(".Values.x")).unwrap();
        assert!(
            made.contains(
                "{{- if .Values.x }}\na: {{ .Release.Namespace }}\n---\nb: c\n{{- end }}"
            )
        );
        assert!(!made.contains("ClusterRoleBinding"));
        assert!(template("a: '{{ b }}'", None).is_err());
    }
}
