//! The fleet view as a plain-text table.

use std::fmt::Write as _;

use super::fleet_view::{FleetView, MemberView, ShardView};
use crate::plugin::output::columns;

/// The whole view as text; columns are aligned with spaces.
#[must_use]
pub(crate) fn render(view: &FleetView) -> String {
    let mut text = String::new();
    let leader = match &view.leader {
        Some(leader) => format!(
            "{} (renewed {})",
            leader.identity.as_deref().unwrap_or("nobody"),
            ago(leader.renewed_seconds_ago)
        ),
        None => "none elected yet".to_owned(),
    };
    // Writing into a String cannot fail, here and below.
    let _ = writeln!(text, "fleet leader: {leader}");
    if let Some(table) = &view.table {
        let _ = writeln!(
            text,
            "shard table:  {} ({} shards)",
            table.uid, table.shards
        );
    }
    text.push('\n');
    let members = view.members.iter().map(member_row).collect();
    columns(
        &mut text,
        &["MEMBER", "HELD", "STATE", "REVISION", "RENEWED", "FIGURES"],
        members,
    );
    text.push('\n');
    let shards = view.shards.iter().map(shard_row).collect();
    columns(&mut text, &SHARD_COLUMNS, shards);
    for note in &view.notes {
        let _ = writeln!(text, "\nnote: {note}");
    }
    text
}

/// What is to be known of a member, in words; empty if there is nothing to report.
pub(crate) fn member_state(member: &MemberView) -> String {
    let mut state = Vec::new();
    match member.live {
        Some(true) => state.push("live".to_owned()),
        Some(false) => state.push("silent".to_owned()),
        None => {}
    }
    if member.vacated {
        state.push("dead".to_owned());
    }
    if member.draining {
        state.push("draining".to_owned());
    }
    if member.drain_requested {
        state.push("drained by request".to_owned());
    }
    if member.barred {
        state.push("may not write the shard table".to_owned());
    }
    state.extend(member.damage.iter().map(|what| format!("damaged: {what}")));
    state.join(", ")
}

fn member_row(member: &MemberView) -> Vec<String> {
    // Those of a dead replica are of the past.
    let stats = member.stats.iter().filter(|_| member.is_current());
    let stats: Vec<String> = stats
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    vec![
        member.identity.clone(),
        member.held.to_string(),
        member_state(member),
        member.revision.clone().unwrap_or_default(),
        ago(member.renewed_seconds_ago),
        stats.join(" "),
    ]
}

/// Columns of the rows of shards.
pub(crate) const SHARD_COLUMNS: [&str; 6] =
    ["SHARD", "BUCKETS", "HOLDER", "EPOCH", "SUCCESSOR", "STATE"];

pub(crate) fn shard_row(shard: &ShardView) -> Vec<String> {
    let mut state = Vec::new();
    if shard.holder.is_none() {
        state.push("vacant".to_owned());
    }
    if shard.orphaned {
        state.push("its holder's incarnation is dead".to_owned());
    }
    if shard.granted == Some(false) {
        let epoch = shard.table_epoch.unwrap_or(0);
        let holder = shard.table_holder.as_deref().unwrap_or("nobody");
        state.push(format!(
            "the shard table grants it to {holder} under epoch {epoch}"
        ));
    }
    state.extend(shard.damage.iter().map(|what| format!("damaged: {what}")));
    let number = shard.shard.map(|number| number.to_string());
    let epoch = shard.epoch.map(|epoch| epoch.to_string());
    vec![
        number.unwrap_or_else(|| shard.lease.clone()),
        shard.buckets.clone().unwrap_or_default(),
        shard.holder.clone().unwrap_or_default(),
        epoch.unwrap_or_default(),
        shard.successor.clone().unwrap_or_default(),
        state.join(", "),
    ]
}

/// An age by the reader's clock, which may differ from the writer's.
pub(crate) fn ago(seconds: Option<f64>) -> String {
    match seconds {
        Some(seconds) if seconds < 0.0 => format!("{:.1}s in the future", -seconds),
        Some(seconds) => format!("{seconds:.1}s ago"),
        None => "at an unknown time".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::fleet_view::tests::{lease, whole_fleet};
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use sharded_controller::fleet::shard_table::ShardTable;

    #[test]
    fn fleet_table_shows_holders() {
        let view = FleetView::from_leases(&whole_fleet(), Some(Timestamp::UNIX_EPOCH));
        let expected = "\
fleet leader: op-1 (renewed 1.2s ago)

MEMBER   HELD   STATE      REVISION   RENEWED    FIGURES
op-0     0      -          -          1.2s ago   -
op-1     1      draining   7          1.2s ago   objects=20 queue=0.5

SHARD   BUCKETS   HOLDER   EPOCH   SUCCESSOR   STATE
0       0-127     -        1       -           vacant
1       128-255   op-1     3       op-0/bb     -
";
        assert_eq!(render(&view), expected);
    }

    #[test]
    fn shard_not_granted_by_the_table_is_marked() {
        let table = |epoch: u32| -> ShardTable {
            let entry = serde_json::json!({"epoch": epoch, "holder": "op-1", "incarnation": "aa"});
            let vacant = serde_json::json!({"epoch": 1, "holder": "", "incarnation": ""});
            serde_json::from_value(serde_json::json!({
                "apiVersion": "database.io/v1", "kind": "ShardTable",
                "metadata": {"name": "databasecluster-shards", "uid": "t-1"},
                "spec": {"shards": 2, "entries": {"000": vacant, "001": entry}},
            }))
            .unwrap()
        };
        let render = |epoch| {
            let view = FleetView::from_leases(&whole_fleet(), Some(Timestamp::UNIX_EPOCH));
            render(&view.with_table(Some(&table(epoch))))
        };
        let text = render(2);
        assert!(text.contains("shard table:  t-1 (2 shards)"), "{text}");
        let expected = "the shard table grants it to op-1 under epoch 2";
        assert!(text.contains(expected), "{text}");
        let text = render(3);
        assert!(!text.contains("the shard table grants"), "{text}");
    }

    #[test]
    fn an_empty_or_damaged_fleet_is_still_a_page() {
        let text = render(&FleetView::default());
        assert!(
            text.starts_with("fleet leader: none elected yet\n"),
            "{text}"
        );
        let odd = [lease("databasecluster-shard-zz", "a", -4, &[])];
        let text = render(&FleetView::from_leases(&odd, None));
        assert!(text.contains("databasecluster-shard-zz"), "{text}");
        assert!(text.contains("damaged: "), "{text}");
    }

    #[test]
    fn lagging_clock_is_shown_unchanged() {
        assert_eq!(ago(Some(-2.25)), "2.2s in the future");
        assert_eq!(ago(None), "at an unknown time");
    }
}
