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
    /// Whether a match condition passes over everybody but the operator. A policy of one validation is cheaper without
    /// it, when the validation asks for the user itself.
    pub(super) only_operator: bool,
    /// Name and expression.
    pub(super) variables: &'static [(&'static str, &'static str)],
    pub(super) validations: Vec<Validation>,
}

/// What a write must satisfy.
pub(super) struct Validation {
    pub(super) expression: &'static str,
    pub(super) message: &'static str,
    /// An expression in place of the message. It is evaluated for each write, whether it is refused or not.
    pub(super) message_expression: &'static str,
}

/// The variable `problem` is the message of a refusal, or empty. It is evaluated twice: for writes that are rare.
pub(super) const PROBLEM: Validation = Validation {
    expression: "variables.problem == ''",
    message: "the operator does not write such an object",
    message_expression: "variables.problem",
};

impl Validation {
    pub(super) const fn new(message: &'static str, expression: &'static str) -> Self {
        Self {
            expression,
            message,
            message_expression: "",
        }
    }
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
    pub(super) operations: &'static [&'static str],
}

impl ResourceRule {
    pub(super) fn new(group: &str, resources: &[&str]) -> Self {
        Self::of(group, resources, &["CREATE", "UPDATE", "DELETE"])
    }

    pub(super) fn of(group: &str, resources: &[&str], operations: &'static [&'static str]) -> Self {
        Self {
            group: group.to_owned(),
            resources: resources.iter().map(|name| (*name).to_owned()).collect(),
            operations,
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
            writeln!(out, "{}", format!("# {}", line.trim()).trim_end())?;
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
        if self.only_operator {
            writeln!(out, "  matchConditions:")?;
            write_named(
                out,
                "the-operator-writes",
                "request.userInfo.username == '$USER'",
            )?;
        }
        if !self.variables.is_empty() {
            writeln!(out, "  variables:")?;
        }
        for (name, expression) in self.variables {
            write_named(out, name, expression)?;
        }
        writeln!(out, "  validations:")?;
        for validation in &self.validations {
            write_comments(out, validation.expression)?;
            writeln!(out, "  - expression: >-")?;
            write_lines(out, validation.expression)?;
            writeln!(out, "    reason: Forbidden")?;
            if !validation.message_expression.is_empty() {
                writeln!(out, "    messageExpression: >-")?;
                write_lines(out, validation.message_expression)?;
            }
            writeln!(out, "    message: >-")?;
            write_lines(out, validation.message)?;
        }
        writeln!(out, "---")?;
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
            writeln!(out, "      operations: [{}]", quoted(rule.operations))?;
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

fn write_named(out: &mut String, name: &str, expression: &str) -> std::fmt::Result {
    write_comments(out, expression)?;
    writeln!(out, "  - name: {name}\n    expression: >-")?;
    write_lines(out, expression)
}

/// Lines of an expression that start with `#` are comments of it.
fn write_comments(out: &mut String, text: &str) -> std::fmt::Result {
    for line in text.lines().map(str::trim) {
        if line.starts_with('#') {
            writeln!(out, "  {line}")?;
        }
    }
    Ok(())
}

fn write_lines(out: &mut String, text: &str) -> std::fmt::Result {
    for line in text.lines().map(str::trim) {
        if !line.is_empty() && !line.starts_with('#') {
            writeln!(out, "      {line}")?;
        }
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
