//! A ValidatingAdmissionPolicy with its binding, and their form as YAML. The text is written here and not by a
//! serializer, so that expressions keep their lines and comments stay beside them.

use std::fmt::Write;

use super::Fence;

/// A policy and its only binding, with placeholders.
pub(super) struct Policy {
    /// What follows the prefix in its name.
    pub(super) name: &'static str,
    /// Why it exists, in lines.
    pub(super) comment: &'static str,
    /// Each write is compared with the shard table.
    pub(super) reads_table: bool,
    pub(super) scope: Scope,
    pub(super) rules: Vec<ResourceRule>,
    /// Name and expression, after the condition that the operator writes.
    pub(super) conditions: &'static [(&'static str, &'static str)],
    /// Name and expression.
    pub(super) variables: &'static [(&'static str, &'static str)],
    /// Expression whose value is the message of a refusal, or empty.
    pub(super) problem: &'static str,
    /// Message of a refusal whose `problem` is too long for the API server.
    pub(super) message: &'static str,
}

/// Which objects meet a policy, apart from their kind.
pub(super) enum Scope {
    /// All.
    All,
    /// Those that have the bucket's label, before or after the write.
    Labelled,
    /// Those in one of these namespaces.
    Namespaces(&'static [&'static str]),
}

/// Resources of one API group.
pub(super) struct ResourceRule {
    pub(super) group: String,
    pub(super) resources: Vec<String>,
}

impl ResourceRule {
    pub(super) fn new(group: &str, resources: &[&str]) -> Self {
        Self {
            group: group.to_owned(),
            resources: resources.iter().map(|name| (*name).to_owned()).collect(),
        }
    }
}

impl Policy {
    /// Policy and binding as two YAML documents.
    pub(super) fn yaml(&self, fence: &Fence) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _written = self.write(&mut text);
        fence.fill(&text)
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let name = self.name;
        for line in self.comment.lines() {
            writeln!(out, "# {}", line.trim())?;
        }
        write_head(out, "ValidatingAdmissionPolicy", name)?;
        writeln!(out, "spec:\n  failurePolicy: Fail")?;
        if self.reads_table {
            writeln!(
                out,
                "  paramKind:\n    apiVersion: $DOMAIN/v1\n    kind: ShardTable"
            )?;
        }
        self.write_constraints(out)?;
        writeln!(out, "  matchConditions:")?;
        write_named(
            out,
            "the-operator-writes",
            "request.userInfo.username == '$USER'",
        )?;
        for (name, expression) in self.conditions {
            write_named(out, name, expression)?;
        }
        writeln!(out, "  variables:")?;
        for (name, expression) in self.variables {
            write_named(out, name, expression)?;
        }
        writeln!(out, "  # The message of a refusal, or empty.")?;
        write_named(out, "problem", self.problem)?;
        writeln!(
            out,
            "  validations:\n  - expression: variables.problem == ''"
        )?;
        writeln!(
            out,
            "    reason: Forbidden\n    messageExpression: variables.problem"
        )?;
        writeln!(out, "    message: {}\n---", self.message)?;
        write_head(out, "ValidatingAdmissionPolicyBinding", name)?;
        writeln!(
            out,
            "spec:\n  policyName: $PREFIX-{name}\n  validationActions: [\"Deny\"]"
        )?;
        if self.reads_table {
            write!(
                out,
                "  paramRef:\n    name: $TABLE\n    namespace: $NAMESPACE\n    # Deny would refuse every user whose \
                 write matches, before the match conditions are evaluated.\n    parameterNotFoundAction: Allow\n"
            )?;
        }
        Ok(())
    }

    fn write_constraints(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "  matchConstraints:")?;
        match self.scope {
            Scope::All => {}
            Scope::Labelled => write!(
                out,
                "    objectSelector:\n      matchExpressions:\n      - key: $DOMAIN/bucket\n        operator: Exists\n"
            )?,
            Scope::Namespaces(names) => write!(
                out,
                "    namespaceSelector:\n      matchExpressions:\n      - key: kubernetes.io/metadata.name\n        \
                 operator: In\n        values: [{}]\n",
                quoted(names)
            )?,
        }
        writeln!(out, "    resourceRules:")?;
        for rule in &self.rules {
            writeln!(out, "    - apiGroups: [\"{}\"]", rule.group)?;
            writeln!(out, "      apiVersions: [\"*\"]")?;
            writeln!(out, "      resources: [{}]", quoted(&rule.resources))?;
            writeln!(
                out,
                "      operations: [\"CREATE\", \"UPDATE\", \"DELETE\"]"
            )?;
        }
        Ok(())
    }
}

fn write_head(out: &mut String, kind: &str, name: &str) -> std::fmt::Result {
    write!(
        out,
        "apiVersion: admissionregistration.k8s.io/v1\nkind: {kind}\nmetadata:\n  name: $PREFIX-{name}\n  labels:\n    \
         app.kubernetes.io/name: $APP\n"
    )
}

/// Lines of an expression that start with `#` are comments of it.
fn write_named(out: &mut String, name: &str, expression: &str) -> std::fmt::Result {
    let lines = || {
        expression
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    for comment in lines().filter(|line| line.starts_with('#')) {
        writeln!(out, "  {comment}")?;
    }
    writeln!(out, "  - name: {name}\n    expression: >-")?;
    for line in lines().filter(|line| !line.starts_with('#')) {
        writeln!(out, "      {line}")?;
    }
    Ok(())
}

fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    let names: Vec<String> = names
        .iter()
        .map(|name| format!("\"{}\"", name.as_ref()))
        .collect();
    names.join(", ")
}
