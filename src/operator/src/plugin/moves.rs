//! `move` and `drain`: requests to the fleet, which hands shards over as it does for balance.
//!
//! A move is planned in the shard's Lease as the fleet leader plans it: the successor warms up, the holder drains, one
//! write moves the shard. The leader counts such a plan among its own and leaves it alone. To drain, the member Lease gets
//! an annotation with which its replica receives no shards; the leader moves those that it holds.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::access::Session;
use super::failure::{Exit, Failure};
use super::fleet;
use super::output::{print, span};
use crate::api::names::NAMES;
use crate::telemetry::fleet_view::{FleetView, MemberView, ShardView};
use shard_ownership::hash::ShardId;
use shard_ownership::lease::Successor;
use sharded_controller::fleet::leases::{DRAIN, plan_annotations};
use sharded_controller::text::safe;

const POLL: Duration = Duration::from_millis(500);
/// Attempts to write a plan that somebody else's write overtakes.
const ATTEMPTS: usize = 3;

/// A shard and its planned next holder.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Planned {
    shard: u16,
    from: String,
    to: Successor,
}

/// Moves a shard, and waits until it works there.
pub(crate) async fn move_shard(
    session: &Session,
    shard: u16,
    replica: &str,
    timeout: Duration,
) -> Result<(), Failure> {
    let view = read(session).await?;
    let planned = plan(&view, shard, replica)?;
    let Some(first) = planned.first() else {
        print(&format!("{replica} holds shard {shard} already\n"))?;
        return Ok(());
    };
    print(&format!(
        "shard {shard}: {} hands it over to {replica}\n",
        first.from
    ))?;
    for exchange in planned.iter().skip(1) {
        print(&format!(
            "shard {}: {} hands it over to {} in exchange, so that the fleet stays balanced\n",
            exchange.shard, exchange.from, exchange.to.identity
        ))?;
    }
    for step in &planned {
        write_plan(session, step).await?;
    }
    wait_moved(session, &planned, timeout).await
}

async fn read(session: &Session) -> Result<FleetView, Failure> {
    let namespace = &session.operator_namespace;
    fleet::read(session.client.clone(), namespace, "-n").await
}

fn rejected(exit: Exit, message: impl Into<String>) -> Failure {
    Failure::new(exit, message)
}

/// The moves that bring a shard to a replica and leave the fleet balanced: one, or an exchange. None: it is there.
fn plan(view: &FleetView, shard: u16, replica: &str) -> Result<Vec<Planned>, Failure> {
    let row = held(view, shard)?;
    let from = row.holder.clone().unwrap_or_default();
    let target = receiver(view, replica)?;
    if from == replica {
        return Ok(Vec::new());
    }
    let mut planned = vec![Planned {
        shard,
        from: from.clone(),
        to: successor(target),
    }];
    if let Some(back) = view.members.iter().find(|member| member.identity == from)
        && can_receive(view, back).is_ok()
        && is_unbalanced_by(view, &from, replica)
    {
        let exchanged = view.shards.iter().rev().find(|row| {
            row.holder.as_deref() == Some(replica) && row.successor.is_none() && !row.orphaned
        });
        if let Some(number) = exchanged.and_then(|row| row.shard) {
            planned.push(Planned {
                shard: number,
                from: replica.to_owned(),
                to: successor(back),
            });
        }
    }
    Ok(planned)
}

/// A shard that a live replica holds.
fn held(view: &FleetView, shard: u16) -> Result<&ShardView, Failure> {
    let row = view.shards.iter().find(|row| row.shard == Some(shard));
    let Some(row) = row else {
        let shards = view.shard_count.unwrap_or(0);
        let message = format!("there is no shard {shard}: the fleet has {shards}, counted from 0");
        return Err(rejected(Exit::NotFound, message));
    };
    match row.holder {
        Some(_) if !row.orphaned => Ok(row),
        _ => Err(rejected(
            Exit::Failed,
            format!("no live replica holds shard {shard}: a replica takes it by itself"),
        )),
    }
}

/// A replica that may receive shards.
fn receiver<'a>(view: &'a FleetView, replica: &str) -> Result<&'a MemberView, Failure> {
    let found = member(view, replica)?;
    can_receive(view, found)
        .map_err(|why| rejected(Exit::Failed, format!("{replica} receives no shards: {why}")))?;
    Ok(found)
}

fn member<'a>(view: &'a FleetView, replica: &str) -> Result<&'a MemberView, Failure> {
    let found = view
        .members
        .iter()
        .find(|member| member.identity == replica);
    found.ok_or_else(|| {
        let names: Vec<&str> = view
            .members
            .iter()
            .map(|member| member.identity.as_str())
            .collect();
        let names = names.join(", ");
        let replica = safe(replica, 100);
        let message = format!("there is no replica {replica}: the fleet has {names}");
        rejected(Exit::NotFound, message)
    })
}

/// Whether the fleet gives shards to this member, and leaves them there.
fn can_receive(view: &FleetView, member: &MemberView) -> Result<(), &'static str> {
    if member.vacated {
        return Err("it is dead");
    }
    if member.draining {
        return Err("it is leaving");
    }
    if member.barred {
        return Err("it may not write the shard table");
    }
    if member.drain_requested {
        return Err("it is drained; kubectl dbc drain --undo withdraws that");
    }
    if member.shards != view.shard_count || member.namespaces != view.namespaces {
        return Err("it is configured for another number of shards or other namespaces");
    }
    let live = view
        .members
        .iter()
        .filter(|other| !other.vacated && !other.draining);
    if live
        .into_iter()
        .any(|other| other.revision != member.revision)
    {
        return Err("an update is in progress, which moves every shard itself");
    }
    Ok(())
}

fn successor(member: &MemberView) -> Successor {
    Successor {
        identity: member.identity.clone(),
        incarnation: member.incarnation.clone().unwrap_or_default(),
    }
}

/// Whether the leader would move a shard back for balance, if one moved between these two.
fn is_unbalanced_by(view: &FleetView, from: &str, to: &str) -> bool {
    let mut counts: BTreeMap<&str, i32> = view
        .members
        .iter()
        .filter(|member| can_receive(view, member).is_ok())
        .map(|member| (member.identity.as_str(), 0))
        .collect();
    for row in &view.shards {
        let planned = row
            .successor
            .as_deref()
            .and_then(|text| text.split('/').next());
        if let Some(count) = planned
            .or(row.holder.as_deref())
            .and_then(|name| counts.get_mut(name))
        {
            *count += 1;
        }
    }
    let mut change = |name, by| {
        if let Some(count) = counts.get_mut(name) {
            *count += by;
        }
    };
    change(from, -1);
    change(to, 1);
    let (most, least) = (counts.values().max(), counts.values().min());
    matches!((most, least), (Some(most), Some(least)) if most - least > 1)
}

/// Writes a plan by compare-and-swap, as the leader does, while the holder is the one that was read.
async fn write_plan(session: &Session, step: &Planned) -> Result<(), Failure> {
    let namespace = &session.operator_namespace;
    let api: Api<Lease> = Api::namespaced(session.client.clone(), namespace);
    let name = NAMES.shard_lease(ShardId(step.shard));
    let what = || format!("plan the move of shard {} in its Lease {name}", step.shard);
    for _ in 0..ATTEMPTS {
        let lease = api
            .get(&name)
            .await
            .map_err(|error| Failure::request(what(), &error))?;
        let holder = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref());
        if holder != Some(&step.from) {
            let message = format!(
                "shard {} changed hands meanwhile; run the command again",
                step.shard
            );
            return Err(rejected(Exit::Failed, message));
        }
        let patch = json!({
            "metadata": {
                "uid": lease.metadata.uid,
                "resourceVersion": lease.metadata.resource_version,
                "annotations": plan_annotations(&NAMES, Some(&step.to)),
            },
        });
        match api
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(Failure::request(what(), &error)),
        }
    }
    let message = format!(
        "cannot {}: others write it at the same time; run the command again",
        what()
    );
    Err(rejected(Exit::Failed, message))
}

/// Waits until the table grants each shard to its new holder.
async fn wait_moved(
    session: &Session,
    planned: &[Planned],
    timeout: Duration,
) -> Result<(), Failure> {
    let started = Instant::now();
    let mut reported: BTreeMap<u16, String> = BTreeMap::new();
    loop {
        let view = read(session).await?;
        let mut left = 0;
        for step in planned {
            let state = progress(&view, step);
            if reported.get(&step.shard) != Some(&state.text) {
                print(&format!("shard {}: {}\n", step.shard, state.text))?;
                reported.insert(step.shard, state.text.clone());
            }
            match state.end {
                None => left += 1,
                Some(true) => {}
                Some(false) => {
                    let message = format!("shard {} was not moved: {}", step.shard, state.text);
                    return Err(rejected(Exit::Failed, message));
                }
            }
        }
        if left == 0 {
            return Ok(());
        }
        timed_out(
            started,
            timeout,
            &format!("{left} shards are still to move"),
        )?;
        tokio::time::sleep(POLL).await;
    }
}

fn timed_out(started: Instant, timeout: Duration, left: &str) -> Result<(), Failure> {
    if started.elapsed() < timeout {
        return Ok(());
    }
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    let message = format!(
        "not finished after {}: {left}; the fleet goes on with it: kubectl dbc shards --watch",
        span(seconds)
    );
    Err(rejected(Exit::TimedOut, message))
}

/// How far a move is, and whether it has ended, well or not.
#[derive(Debug, PartialEq, Eq)]
struct State {
    text: String,
    end: Option<bool>,
}

fn progress(view: &FleetView, step: &Planned) -> State {
    let under_way = |text: String| State { text, end: None };
    let ended = |text: String, well| State {
        text,
        end: Some(well),
    };
    let Some(row) = view.shards.iter().find(|row| row.shard == Some(step.shard)) else {
        return under_way("its Lease is gone; a replica re-creates it".to_owned());
    };
    let to = &step.to.identity;
    let epoch = row.epoch.unwrap_or(0);
    match row.holder.as_deref() {
        Some(holder) if holder == to => match row.granted {
            Some(true) => ended(format!("{to} works in it under epoch {epoch}"), true),
            // The table cannot be read: the Lease is all that is known.
            None => ended(format!("{to} holds it under epoch {epoch}"), true),
            Some(false) => under_way(format!(
                "{to} holds it under epoch {epoch} and enters it in the shard table"
            )),
        },
        Some(holder) if holder == step.from => {
            let is_planned = row
                .successor
                .as_deref()
                .is_some_and(|next| next.split('/').next() == Some(to.as_str()));
            let is_warm = view.members.iter().any(|member| {
                let warm = member.warm.as_deref().unwrap_or_default();
                member.identity == *to && warm.split(',').any(|n| n.parse() == Ok(step.shard))
            });
            match (is_planned, is_warm) {
                (false, _) => ended(format!("the plan was withdrawn, {holder} keeps it"), false),
                (true, false) => under_way(format!("{to} lists its objects")),
                (true, true) => under_way(format!(
                    "{to} has listed its objects, {holder} finishes its work"
                )),
            }
        }
        Some(holder) => ended(format!("{holder} took it meanwhile"), false),
        None => under_way("it is vacant; a replica takes it".to_owned()),
    }
}

/// Requests that a replica gives up its shards and receives none, and waits until it holds none.
pub(crate) async fn drain(
    session: &Session,
    replica: &str,
    timeout: Duration,
) -> Result<(), Failure> {
    let view = read(session).await?;
    let found = member(&view, replica)?;
    if found.vacated || found.draining {
        let message = format!("{replica} is leaving or dead: its shards move by themselves");
        return Err(rejected(Exit::Failed, message));
    }
    let others = view
        .members
        .iter()
        .filter(|member| member.identity != replica);
    if !others
        .into_iter()
        .any(|other| !other.vacated && !other.draining && !other.barred && !other.drain_requested)
    {
        let message =
            format!("{replica} is the only replica that can hold shards: start another one first");
        return Err(rejected(Exit::Failed, message));
    }
    request_drain(session, replica, json!("true")).await?;
    print(&format!(
        "{replica} is drained until its Pod ends, or until kubectl dbc drain --undo {replica}\n"
    ))?;
    let started = Instant::now();
    let mut last = None;
    loop {
        let view = read(session).await?;
        let held = view
            .shards
            .iter()
            .filter(|row| row.holder.as_deref() == Some(replica))
            .count();
        if last != Some(held) {
            print(&format!("{replica} holds {held} shards\n"))?;
            last = Some(held);
        }
        if held == 0 {
            return Ok(());
        }
        timed_out(
            started,
            timeout,
            &format!("{replica} still holds {held} shards"),
        )?;
        tokio::time::sleep(POLL).await;
    }
}

/// Withdraws the request: the leader gives the replica its share again.
pub(crate) async fn undo_drain(session: &Session, replica: &str) -> Result<(), Failure> {
    let view = read(session).await?;
    if !member(&view, replica)?.drain_requested {
        print(&format!("{replica} is not drained\n"))?;
        return Ok(());
    }
    request_drain(session, replica, Value::Null).await?;
    print(&format!("{replica} receives shards again\n"))?;
    Ok(())
}

async fn request_drain(session: &Session, replica: &str, value: Value) -> Result<(), Failure> {
    let namespace = &session.operator_namespace;
    let api: Api<Lease> = Api::namespaced(session.client.clone(), namespace);
    let name = NAMES.member_lease(replica);
    let patch = json!({"metadata": {"annotations": {NAMES.label(DRAIN): value}}});
    let sent = api
        .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    sent.map(drop).map_err(|error| {
        Failure::request(format!("annotate the Lease {name} of the replica"), &error)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn replica(identity: &str) -> MemberView {
        MemberView {
            identity: identity.to_owned(),
            incarnation: Some(format!("{identity}-1")),
            shards: Some(8),
            ..MemberView::default()
        }
    }

    /// Three replicas with 3, 3 and 2 of 8 shards.
    fn view() -> FleetView {
        let holders = ["a", "a", "a", "b", "b", "b", "c", "c"];
        let shards = holders.iter().zip(0u16..).map(|(holder, shard)| ShardView {
            shard: Some(shard),
            holder: Some((*holder).to_owned()),
            granted: Some(true),
            epoch: Some(4),
            ..ShardView::default()
        });
        FleetView {
            members: ["a", "b", "c"].map(replica).to_vec(),
            shards: shards.collect(),
            shard_count: Some(8),
            ..FleetView::default()
        }
    }

    fn moves(view: &FleetView, shard: u16, to: &str) -> Vec<(u16, String, String)> {
        let planned = plan(view, shard, to).unwrap().into_iter();
        planned
            .map(|step| (step.shard, step.from, step.to.identity))
            .collect()
    }

    fn step(shard: u16, from: &str, to: &str) -> (u16, String, String) {
        (shard, from.to_owned(), to.to_owned())
    }

    #[test]
    fn balanced_move_needs_no_exchange_and_any_other_does() {
        let view = view();
        assert_eq!(moves(&view, 0, "c"), [step(0, "a", "c")]);
        assert_eq!(moves(&view, 0, "b"), [step(0, "a", "b"), step(5, "b", "a")]);
        assert_eq!(moves(&view, 6, "a"), [step(6, "c", "a"), step(2, "a", "c")]);
        assert_eq!(moves(&view, 0, "a"), []);
    }

    #[test]
    fn shard_of_a_drained_replica_is_not_exchanged() {
        let mut view = view();
        view.members[0].drain_requested = true;
        assert_eq!(moves(&view, 0, "b"), [step(0, "a", "b")]);
    }

    #[test]
    fn what_the_fleet_would_undo_is_refused() {
        let mut view = view();
        let failure = |view: &FleetView, shard, to| plan(view, shard, to).unwrap_err().to_string();
        assert!(failure(&view, 8, "a").contains("the fleet has 8"));
        assert!(failure(&view, 0, "z").contains("the fleet has a, b, c"));
        for (change, why) in [
            ((|m| m.vacated = true) as fn(&mut MemberView), "dead"),
            (|m| m.draining = true, "leaving"),
            (|m| m.barred = true, "may not write"),
            (|m| m.drain_requested = true, "drained"),
            (|m| m.shards = Some(16), "another number"),
            (
                |m| m.revision = Some("2".to_owned()),
                "update is in progress",
            ),
        ] {
            let mut view = self::view();
            change(&mut view.members[2]);
            assert!(failure(&view, 0, "c").contains(why), "{why}");
        }
        view.shards[0].orphaned = true;
        assert!(failure(&view, 0, "c").contains("no live replica holds shard 0"));
    }

    #[test]
    fn progress_ends_when_the_table_grants_the_shard_and_fails_when_the_plan_is_gone() {
        let mut view = view();
        let step = plan(&view, 0, "c").unwrap().remove(0);
        assert_eq!(progress(&view, &step).end, Some(false), "no plan");
        view.shards[0].successor = Some("c/c-1".to_owned());
        assert_eq!(progress(&view, &step).text, "c lists its objects");
        view.members[2].warm = Some("6,0".to_owned());
        assert_eq!(
            progress(&view, &step).text,
            "c has listed its objects, a finishes its work"
        );
        view.shards[0].holder = Some("c".to_owned());
        view.shards[0].granted = Some(false);
        assert_eq!(progress(&view, &step).end, None);
        view.shards[0].granted = Some(true);
        assert_eq!(progress(&view, &step).end, Some(true));
        view.shards[0].holder = Some("b".to_owned());
        assert_eq!(progress(&view, &step).end, Some(false));
    }
}
