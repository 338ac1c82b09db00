//! What a newcomer would try next, ready to be copied.

use testbed::fleet::OPERATOR_NAMESPACE;
use testbed::{ControlPlane, Fleet};

/// Four lines for the shell, each under a word of what it shows.
pub(crate) fn text(control_plane: &ControlPlane, fleet: &Fleet<'_>, namespaces: &[&str]) -> String {
    let kubectl = format!(
        "{} --kubeconfig {}",
        quoted(&control_plane.kubectl().display().to_string()),
        quoted(&control_plane.kubeconfig().display().to_string()),
    );
    let namespace = namespaces.first().copied().unwrap_or("default");
    let columns = "custom-columns=SHARD:.metadata.name,HOLDER:.spec.holderIdentity,EPOCH:.spec.leaseTransitions";
    let mut lines = vec![
        "Try next:".to_owned(),
        format!("# the clusters, by phase\n{kubectl} get dbc -A"),
        format!(
            "# the holders of all shards\n{kubectl} -n {OPERATOR_NAMESPACE} get leases -l database.io/role=shard -o {columns}"
        ),
        format!(
            "# one more replica for one of them\n{kubectl} -n {namespace} scale dbc/db-0000 --replicas 4"
        ),
    ];
    if let Some(replica) = fleet.alive().next() {
        lines.push(format!(
            "# kill {}, and see the others take over its shards\nkill -9 {}",
            replica.name(),
            replica.pid()
        ));
    }
    lines.join("\n")
}

/// The text as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn words_are_quoted_only_when_necessary() {
        assert_eq!(quoted("/tmp/a-b_c.d"), "/tmp/a-b_c.d");
        assert_eq!(quoted("/my folder/it's"), r"'/my folder/it'\''s'");
    }
}
