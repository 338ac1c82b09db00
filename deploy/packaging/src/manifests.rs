//! Puts the files of `deploy/base` together: one file for `kubectl apply`, and the part of the chart that is the same
//! but for the namespace; and the alerts into the objects of the Prometheus operator. Text in, text out, so that the
//! comments stay.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::olm;

const NAMESPACE: &str = "databasecluster-system";
const HEADER: &str = "\
# Everything that the operator needs: kubectl apply -f install.yaml
# Generated from deploy/base, do not edit: run `make manifests`.
#
# To remove the operator and leave the databases where they are:
#   kubectl delete -f install.yaml -l 'database.io/keep!=true' --ignore-not-found
# Without the selector the API server refuses to delete the CustomResourceDefinition, and says why.
";

/// Files of the base that are templates of the chart once names, labels and namespace are the release's, with the
/// value of the chart that switches them off.
const TEMPLATES: [(&str, Option<&str>); 6] = [
    ("crd", Some(".Values.crds.create")),
    ("fence", None),
    ("flowcontrol", Some(".Values.flowControl.enabled")),
    ("guard", None),
    ("rbac", None),
    ("users", Some(".Values.userRoles.create")),
];

/// Kinds that the chart has templates of its own for.
const WRITTEN_BY_HAND: [&str; 2] = ["ClusterRoleBinding", "ServiceAccount"];
/// Kinds without a namespace, whose names the chart derives from the release's namespace.
const CLUSTER_SCOPED: [&str; 5] = [
    "ClusterRole",
    "FlowSchema",
    "PriorityLevelConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];
/// Keys whose value is the name of one of those.
const REFERENCES: [&str; 2] = ["  policyName: ", "    name: databasecluster-"];
const APP: &str = "databasecluster-operator";

/// The dashboards that the chart brings.
const DASHBOARDS: [&str; 4] = [
    "databases.json",
    "fleet.json",
    "postgresql.json",
    "replica.json",
];
/// Where the runbooks are, in `dashboards/alerts.yaml`.
const RUNBOOKS: &str = "https://example.com/runbooks";
const RULE: &str = "\
# Generated from dashboards/alerts.yaml, do not edit: run `make manifests`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: databasecluster-operator
  namespace: databasecluster-system
  labels:
    app.kubernetes.io/name: databasecluster-operator
spec:
  groups:
";

#[derive(Deserialize)]
struct Kustomization {
    resources: Vec<String>,
}

/// All generated files, by their path below `deploy/`.
///
/// # Errors
/// When a file of the base cannot be read or is not as expected.
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
    let beside = |name: &str| {
        let path = deploy.join(name);
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    let example = String::from_utf8(beside("samples/smallest.yaml")?)?;
    let mut files = olm::bundle(&install, &example, &beside("../docs/pictures/icon.svg")?)?;
    files.insert("install.yaml".to_owned(), install);
    for (name, switch) in TEMPLATES {
        let text = template(&read(&format!("{name}.yaml"))?, switch)
            .with_context(|| format!("deploy/base/{name}.yaml"))?;
        files.insert(format!("chart/templates/generated-{name}.yaml"), text);
    }
    let path = deploy.join("../dashboards/alerts.yaml");
    let alerts = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let rule = prometheus_rule(&alerts).context("dashboards/alerts.yaml")?;
    let alerts = "chart/templates/generated-alerts.yaml".to_owned();
    files.insert(alerts, rule_template(&rule));
    files.insert("components/alerts/prometheusrule.yaml".to_owned(), rule);
    // A chart knows only what is inside of it.
    for name in DASHBOARDS {
        let path = deploy.join("../dashboards").join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        files.insert(format!("chart/dashboards/{name}"), text);
    }
    Ok(files)
}

/// The rules as an object: the same text, further to the right.
fn prometheus_rule(alerts: &str) -> Result<String> {
    let Some((_, groups)) = alerts.split_once("\ngroups:\n") else {
        bail!("there is no line 'groups:'");
    };
    let indented = groups.lines().map(|line| match line {
        "" => "\n".to_owned(),
        line => format!("  {line}\n"),
    });
    Ok(RULE.to_owned() + &indented.collect::<String>())
}

/// What is between braces in the texts of alerts is for Prometheus, not for Helm.
fn rule_template(rule: &str) -> String {
    const NAME: &str = "    app.kubernetes.io/name: databasecluster-operator\n";
    const LABELS: &str = "    {{- include \"operator.labels\" . | nindent 4 }}
    {{- with .Values.alerts.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
";
    let body = rule
        .replace("{{", "{{`{{`}}")
        .replace(NAMESPACE, "{{ .Release.Namespace }}")
        .replacen(NAME, LABELS, 1)
        .replace(RUNBOOKS, "{{ .Values.alerts.runbooks }}");
    format!("{{{{- if .Values.alerts.enabled }}}}\n{body}{{{{- end }}}}\n")
}

/// The CRD has a header that it is generated, which would mislead inside of another file.
fn without_header(text: &str) -> String {
    let kept = text.lines().filter(|line| !line.starts_with("# Generated"));
    kept.map(|line| format!("{line}\n")).collect()
}

fn template(text: &str, switch: Option<&str>) -> Result<String> {
    if text.contains("{{") {
        bail!("'{{{{' would be understood by Helm");
    }
    let text = without_header(text);
    let objects = text.split("---\n").map(object_template);
    let body = objects.flatten().collect::<Vec<_>>().join("---\n");
    let (begin, end) = match switch {
        Some(switch) => (format!("{{{{- if {switch} }}}}\n"), "{{- end }}\n"),
        None => (String::new(), ""),
    };
    Ok(format!(
        "# Generated from deploy/base, do not edit: run `make manifests`.\n{begin}{body}{end}"
    ))
}

/// One object with the release's names, labels and namespace; none if the chart has a template of its own for it.
fn object_template(object: &str) -> Option<String> {
    let kind = object.lines().find_map(|line| line.strip_prefix("kind: "));
    let kind = kind.unwrap_or_default();
    if WRITTEN_BY_HAND.contains(&kind) {
        return None;
    }
    let is_cluster_scoped = CLUSTER_SCOPED.contains(&kind);
    let mut is_named = false;
    let mut made = String::new();
    for line in object.lines() {
        made.push_str(line);
        let is_own_name = !is_named && line.starts_with("  name: ");
        is_named |= is_own_name;
        if is_cluster_scoped
            && (is_own_name || REFERENCES.iter().any(|key| is_reference(line, key)))
        {
            made.push_str("{{ include \"operator.suffix\" . }}");
        }
        made.push('\n');
    }
    let account = "{{ include \"operator.serviceAccountName\" . }}";
    let labels = "\n    {{- include \"operator.labels\" . | nindent 4 }}\n";
    let made = made
        .replacen(&format!("\n    app.kubernetes.io/name: {APP}\n"), labels, 1)
        .replace(
            &format!("system:serviceaccount:{NAMESPACE}:{APP}"),
            &format!("system:serviceaccount:{NAMESPACE}:{account}"),
        )
        // Subjects of bindings and of FlowSchemas.
        .replace(
            &format!("- kind: ServiceAccount\n  name: {APP}\n"),
            &format!("- kind: ServiceAccount\n  name: {account}\n"),
        )
        .replace(
            &format!("serviceAccount:\n        name: {APP}\n"),
            &format!("serviceAccount:\n        name: {account}\n"),
        )
        .replace(
            "database.io/watch-namespaces: \"\"",
            "database.io/watch-namespaces: {{ join \",\" .Values.watchNamespaces | quote }}",
        )
        .replace(NAMESPACE, "{{ .Release.Namespace }}");
    Some(match kind {
        // An uninstallation leaves the kinds with all their objects.
        "CustomResourceDefinition" => made.replacen(
            "\nmetadata:\n",
            "\nmetadata:\n  annotations:\n    helm.sh/resource-policy: keep\n",
            1,
        ),
        _ => made,
    })
}

/// Whether a line is a reference to a cluster-scoped object of ours.
fn is_reference(line: &str, key: &str) -> bool {
    // The parameter of a policy is the shard table, which is in the release's namespace.
    line.starts_with(key) && !line.ends_with("databasecluster-shards")
}

/// Writes what [`generate`] gives.
///
/// # Errors
/// When a file cannot be read or written.
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
    fn committed_manifests_match_the_generated_ones() {
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
    fn template_has_the_names_labels_and_namespace_of_the_release() {
        let base = "\
# Generated, do not edit.
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: databasecluster-fence-order
  labels:
    app.kubernetes.io/name: databasecluster-operator
spec:
  policyName: databasecluster-fence-order
  paramRef:
    name: databasecluster-shards
    namespace: databasecluster-system
---
kind: ClusterRoleBinding
---
kind: FlowSchema
spec:
  priorityLevelConfiguration:
    name: databasecluster-reconcile
  rules:
  - subjects:
    - kind: ServiceAccount
      serviceAccount:
        name: databasecluster-operator
---
kind: Role
metadata:
  name: databasecluster-operator
";
        let made = template(base, Some(".Values.x")).unwrap();
        let wanted = "\
{{- if .Values.x }}
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: databasecluster-fence-order{{ include \"operator.suffix\" . }}
  labels:
    {{- include \"operator.labels\" . | nindent 4 }}
spec:
  policyName: databasecluster-fence-order{{ include \"operator.suffix\" . }}
  paramRef:
    name: databasecluster-shards
    namespace: {{ .Release.Namespace }}
---
kind: FlowSchema
spec:
  priorityLevelConfiguration:
    name: databasecluster-reconcile{{ include \"operator.suffix\" . }}
  rules:
  - subjects:
    - kind: ServiceAccount
      serviceAccount:
        name: {{ include \"operator.serviceAccountName\" . }}
---
kind: Role
metadata:
  name: databasecluster-operator
{{- end }}
";
        let (_, made) = made.split_once("`make manifests`.\n").unwrap();
        assert_eq!(made, wanted);
        assert!(template("a: '{{ b }}'", None).is_err());
    }

    #[test]
    fn alert_templates_keep_braces_and_use_the_release_address() {
        let alerts = "# x\ngroups:\n- name: a\n\n  b: '{{ $value }}'\n  c: https://example.com/runbooks/A.md\n";
        let rule = prometheus_rule(alerts).unwrap();
        assert!(rule.ends_with("  groups:\n  - name: a\n\n    b: '{{ $value }}'\n    c: https://example.com/runbooks/A.md\n"));
        let template = rule_template(&rule);
        assert!(template.contains("'{{`{{`}} $value }}'"));
        assert!(template.contains("c: {{ .Values.alerts.runbooks }}/A.md"));
        assert!(template.contains("namespace: {{ .Release.Namespace }}"));
        assert!(prometheus_rule("rules: []").is_err());
    }
}
