//! A ValidatingAdmissionPolicy with its binding, and their form as YAML. The text is written directly and not
//! by a serializer, so that expressions keep their lines and comments stay next to them.
//!
//! A policy matches what is to be refused, and refuses all that it matches: its match condition holds for the writes of
//! the operator that break its rule, and its only validation is `false`. So the API server evaluates one expression for
//! a write that is admitted. Match conditions, validations and messages are three evaluations, for each of which it
//! converts request and parameter again; the second and the third, whose messages may be expensive to compute, are left
//! to writes that are refused. A match condition that fails is a refusal, because `failurePolicy` is Fail.

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
    /// Name and expression. Each is evaluated once, before those that follow it, whatever the operation: it must not
    /// fail.
    pub(super) variables: &'static [(&'static str, &'static str)],
    /// What a write of the operator must satisfy.
    pub(super) condition: &'static str,
    /// Message of a refusal, if there is no `message_expression` or it fails.
    pub(super) message: &'static str,
    /// An expression that computes the message of a refusal, or empty.
    pub(super) message_expression: &'static str,
}

/// Condition of policies whose variable `problem` is the message of a refusal, or empty.
pub(super) const NO_PROBLEM: &str = "variables.problem == ''";
/// The message of such a policy.
pub(super) const PROBLEM: &str = "variables.problem";
/// Message of such a policy if the expression fails.
pub(super) const REFUSED: &str = "the operator does not write such an object";

/// Objects to which a policy applies, apart from their kind.
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
        self.write_match_condition(out)?;
        self.write_refusal(out)?;
        writeln!(out, "---")?;
        write_head(out, "ValidatingAdmissionPolicyBinding", name)?;
        writeln!(
            out,
            "spec:\n  policyName: $PREFIX-{name}$SUFFIX\n  validationActions: [\"Deny\"]"
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

    /// The only expression that is evaluated for a write that is admitted. Match conditions have no variables: each is
    /// bound by `[value].exists(name, …)`.
    fn write_match_condition(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "  matchConditions:")?;
        for (_, expression) in self.variables {
            write_comments(out, expression)?;
        }
        write_comments(out, self.condition)?;
        writeln!(
            out,
            "  - name: to-be-refused\n    expression: >-\n      request.userInfo.username == '$USER'"
        )?;
        let mut bound = String::new();
        for (name, expression) in self.variables {
            let lines: Vec<&str> = code(expression).collect();
            writeln!(bound, "[{}].exists({name},", lines.join("\n"))?;
        }
        let lines: Vec<&str> = code(self.condition).collect();
        let closing = ")".repeat(self.variables.len());
        writeln!(bound, "!({}){closing}", lines.join("\n"))?;
        write_lines(out, &format!("&& {}", bound.replace("variables.", "")))
    }

    /// What is evaluated for a write that is refused.
    fn write_refusal(&self, out: &mut String) -> std::fmt::Result {
        let has_expression = !self.message_expression.is_empty();
        if has_expression && !self.variables.is_empty() {
            writeln!(out, "  variables:")?;
            for (name, expression) in self.variables {
                writeln!(out, "  - name: {name}\n    expression: >-")?;
                write_lines(out, expression)?;
            }
        }
        writeln!(
            out,
            "  validations:\n  - expression: \"false\"\n    reason: Forbidden"
        )?;
        if has_expression {
            writeln!(out, "    messageExpression: >-")?;
            write_lines(out, self.message_expression)?;
        }
        writeln!(out, "    message: >-")?;
        write_lines(out, self.message)
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
        "apiVersion: admissionregistration.k8s.io/v1\nkind: {kind}\nmetadata:\n  name: $PREFIX-{name}$SUFFIX\n  labels:\n    \
         app.kubernetes.io/name: $APP\n"
    )
}

/// Lines of an expression that start with `#` are its comments.
fn write_comments(out: &mut String, text: &str) -> std::fmt::Result {
    for line in text.lines().map(str::trim) {
        if line.starts_with('#') {
            writeln!(out, "  {line}")?;
        }
    }
    Ok(())
}

fn write_lines(out: &mut String, text: &str) -> std::fmt::Result {
    for line in code(text) {
        writeln!(out, "      {line}")?;
    }
    Ok(())
}

/// The lines of an expression without its comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    let names: Vec<String> = names
        .iter()
        .map(|name| format!("\"{}\"", name.as_ref()))
        .collect();
    names.join(", ")
}
