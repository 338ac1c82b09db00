//! What a newcomer would try next, ready to be copied.

use std::path::Path;

use testbed::Fleet;

use crate::folder::Folder;

/// The fleet page of each replica, then commands for another terminal, in groups with a title each. Commands are
/// indented, and no line is longer than a usual terminal is wide, as long as the path of the repository is not.
pub(crate) fn text(folder: &Folder, fleet: &Fleet<'_>, namespaces: &[&str]) -> String {
    let namespace = namespaces.first().copied().unwrap_or("default");
    let pages = fleet
        .replicas()
        .iter()
        .map(|replica| format!("{}/fleet", replica.url()));
    let mut groups = vec![
        ("The fleet page of each replica:", pages.collect()),
        (
            "Try next, in another terminal:",
            vec![
                format!("export KUBECONFIG={}", quoted(&folder.kubeconfig())),
                format!("export PATH={}:$PATH", quoted(&folder.programs())),
                "kubectl dbc status -A".to_owned(),
                "kubectl dbc shards".to_owned(),
                format!("kubectl -n {namespace} scale dbc/db-0000 --replicas 4"),
                format!("kubectl dbc explain -n {namespace} db-0000"),
            ],
        ),
    ];
    if let Some(replica) = fleet.alive().next() {
        groups.push((
            "Kill a replica, see the others take over its shards, and start it again:",
            vec![
                format!("kill -9 {}", replica.pid()),
                "make start-replicas".to_owned(),
            ],
        ));
    }
    let group =
        |(title, lines): (&str, Vec<String>)| format!("{title}\n  {}\n", lines.join("\n  "));
    let groups: Vec<String> = groups.into_iter().map(group).collect();
    format!("{}\nCtrl-C takes everything down.\n", groups.join("\n"))
}

/// The path as one word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_only_when_necessary() {
        assert_eq!(quoted(Path::new("/tmp/a-b_c.d")), "/tmp/a-b_c.d");
        assert_eq!(
            quoted(Path::new("/my folder/it's")),
            r"'/my folder/it'\''s'"
        );
    }
}
